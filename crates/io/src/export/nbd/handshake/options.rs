//! The answers to options, and their effects on the negotiation.
//!
//! Contract: [`Handshake::option`] gets an option with all of its data, at most `MAX_OPTION_BYTES`,
//! and answers it completely. An option that fails changes nothing, except SET_META_CONTEXT, which
//! has dropped the old selection by then.

use super::{CloseReason, Handshake, Next};
use crate::export::nbd::contexts::{Contexts, MetaContext};
use crate::export::nbd::negotiated::Negotiated;
use crate::export::nbd::proto::{
    self, EXPORT_NAME_PADDING, OPTION_REPLY_MAGIC, Reader, info, opt, rep,
};
use crate::export::nbd::replaces;
use crate::export::nbd::{
    Directory, ExportInfo, MAX_CONTEXT_QUERIES, MAX_LIST_BYTES, MAX_REFUSAL_TEXT,
    MAX_REQUEST_BYTES, MAX_STRING,
};
use std::borrow::Cow;

/// The error that answers an option.
pub(super) struct Refusal {
    code: u32,
    text: Cow<'static, str>,
}

impl Refusal {
    pub(super) fn new(code: u32, text: impl Into<Cow<'static, str>>) -> Self {
        Refusal { code, text: text.into() }
    }

    pub(super) fn invalid(text: impl Into<Cow<'static, str>>) -> Self {
        Refusal::new(rep::ERR_INVALID, text)
    }
}

impl Handshake {
    /// Answers an option, given all of its data.
    pub(super) fn option(
        &mut self,
        option: u32,
        data: &[u8],
        dir: &dyn Directory,
        out: &mut Vec<u8>,
    ) -> Next {
        let result = match option {
            opt::EXPORT_NAME => return self.export_name(data, dir, out),
            opt::LIST => list(dir, out),
            opt::INFO | opt::GO => self.info_or_go(option, data, dir, out),
            opt::STRUCTURED_REPLY => self.structured_reply(out),
            opt::EXTENDED_HEADERS => self.extended_headers(out),
            opt::LIST_META_CONTEXT => self.list_meta_context(data, dir, out),
            opt::SET_META_CONTEXT => self.set_meta_context(data, dir, out),
            // verdict() passes no other option to this function.
            _ => Err(Refusal::new(rep::ERR_UNSUP, "this option is not known here")),
        };
        result.unwrap_or_else(|refusal| {
            refuse(out, option, &refusal);
            Next::More
        })
    }

    /// Answers EXPORT_NAME, the only option whose answer has no header, and which fails by closing.
    fn export_name(&self, data: &[u8], dir: &dyn Directory, out: &mut Vec<u8>) -> Next {
        let found = if self.extended {
            Err(Refusal::invalid("not allowed after EXTENDED_HEADERS"))
        } else {
            text(data).and_then(|name| self.negotiated(name, dir))
        };
        let negotiated = match found {
            Ok(negotiated) => negotiated,
            Err(refusal) => return Next::Close(CloseReason::ExportName(refusal.text.into_owned())),
        };
        out.extend_from_slice(&negotiated.export.size_bytes.to_be_bytes());
        out.extend_from_slice(&negotiated.transmission_flags().to_be_bytes());
        if !self.no_zeroes {
            out.extend_from_slice(&[0; EXPORT_NAME_PADDING]);
        }
        Next::Transmission(negotiated)
    }

    /// Answers INFO or GO. Both describe the session that `name` would give, so they say the same.
    fn info_or_go(
        &self,
        option: u32,
        data: &[u8],
        dir: &dyn Directory,
        out: &mut Vec<u8>,
    ) -> Result<Next, Refusal> {
        let (name, wanted) = info_request(data)?;
        let negotiated = self.negotiated(name, dir)?;
        let mut item = |kind: u16, parts: &[&[u8]]| {
            answer(out, option, rep::INFO, &[&[&kind.to_be_bytes()[..]], parts].concat());
        };
        let export = &negotiated.export;
        item(
            info::EXPORT,
            &[&export.size_bytes.to_be_bytes(), &negotiated.transmission_flags().to_be_bytes()],
        );
        // Sent also unasked, because a client that does not ask for the limits may still observe
        // them.
        let (minimum, preferred) = export.block_sizes();
        let sizes = [minimum, preferred, MAX_REQUEST_BYTES].map(u32::to_be_bytes);
        item(info::BLOCK_SIZE, &[sizes.as_flattened()]);
        if wanted.contains(&info::NAME) {
            item(info::NAME, &[export.name.as_bytes()]);
        }
        if wanted.contains(&info::DESCRIPTION) && !export.description.is_empty() {
            item(info::DESCRIPTION, &[export.description.as_bytes()]);
        }
        answer(out, option, rep::ACK, &[]);
        Ok(if option == opt::GO { Next::Transmission(negotiated) } else { Next::More })
    }

    fn structured_reply(&mut self, out: &mut Vec<u8>) -> Result<Next, Refusal> {
        if self.extended {
            let text = "extended headers were negotiated and include structured replies";
            return Err(Refusal::new(rep::ERR_EXT_HEADER_REQD, text));
        }
        self.structured = true;
        answer(out, opt::STRUCTURED_REPLY, rep::ACK, &[]);
        Ok(Next::More)
    }

    fn extended_headers(&mut self, out: &mut Vec<u8>) -> Result<Next, Refusal> {
        self.structured = true;
        self.extended = true;
        answer(out, opt::EXTENDED_HEADERS, rep::ACK, &[]);
        Ok(Next::More)
    }

    fn list_meta_context(
        &mut self,
        data: &[u8],
        dir: &dyn Directory,
        out: &mut Vec<u8>,
    ) -> Result<Next, Refusal> {
        let (_, queries) = self.context_request(data, dir)?;
        let mut replaces = None;
        for name in queries.iter().filter_map(|query| replaces::name_in(query)) {
            replaces = Some(name.map_err(|name| {
                let allowed = replaces::ALLOWED;
                Refusal::invalid(format!("{}'{name}': {allowed}", replaces::QUERY))
            })?);
        }
        for context in MetaContext::ALL {
            if queries.is_empty() || queries.iter().any(|query| context.is_listed_by(query)) {
                // The number is reserved in this answer.
                let name = context.name().as_bytes();
                answer(
                    out,
                    opt::LIST_META_CONTEXT,
                    rep::META_CONTEXT,
                    &[&0u32.to_be_bytes(), name],
                );
            }
        }
        if let Some(name) = replaces {
            let context = replaces::confirmation(&name, dir.instance());
            let parts: [&[u8]; 2] = [&0u32.to_be_bytes(), context.as_bytes()];
            answer(out, opt::LIST_META_CONTEXT, rep::META_CONTEXT, &parts);
            self.replaces = Some(name);
        }
        answer(out, opt::LIST_META_CONTEXT, rep::ACK, &[]);
        Ok(Next::More)
    }

    fn set_meta_context(
        &mut self,
        data: &[u8],
        dir: &dyn Directory,
        out: &mut Vec<u8>,
    ) -> Result<Next, Refusal> {
        let (export, queries) = self.context_request(data, dir)?;
        let selected: Contexts = MetaContext::ALL
            .into_iter()
            .filter(|context| queries.iter().any(|query| context.is_selected_by(query)))
            .collect();
        for context in selected.iter() {
            let name = context.name().as_bytes();
            answer(
                out,
                opt::SET_META_CONTEXT,
                rep::META_CONTEXT,
                &[&context.id().to_be_bytes(), name],
            );
        }
        answer(out, opt::SET_META_CONTEXT, rep::ACK, &[]);
        self.selected = Some((export.to_owned(), selected));
        Ok(Next::More)
    }

    /// Parses the export name and the queries of a metadata option, and checks that it may be
    /// answered.
    fn context_request<'a>(
        &self,
        data: &'a [u8],
        dir: &dyn Directory,
    ) -> Result<(&'a str, Vec<&'a str>), Refusal> {
        if !self.structured {
            return Err(Refusal::invalid(
                "metadata contexts need structured replies or extended headers first",
            ));
        }
        let mut reader = Reader::new(data);
        let export = string(&mut reader)?;
        let count = reader.u32().ok_or_else(cut_short)?;
        if count > MAX_CONTEXT_QUERIES {
            let text = format!("{count} queries; at most {MAX_CONTEXT_QUERIES} are answered");
            return Err(Refusal::new(rep::ERR_TOO_BIG, text));
        }
        let queries = (0..count).map(|_| string(&mut reader)).collect::<Result<Vec<_>, _>>()?;
        if reader.len() > 0 {
            return Err(Refusal::invalid(format!("{} bytes behind the last query", reader.len())));
        }
        if let Some(query) = queries.iter().find(|query| !query.contains(':')) {
            return Err(Refusal::invalid(format!(
                "query '{query}' is not of the form namespace:leaf"
            )));
        }
        find(export, dir)?;
        Ok((export, queries))
    }

    /// The session that results from choosing `name` now.
    fn negotiated(&self, name: &str, dir: &dyn Directory) -> Result<Box<Negotiated>, Refusal> {
        let export = find(name, dir)?;
        // The selection counts only for the export name that it was made with.
        let contexts = match &self.selected {
            Some((selected_for, contexts)) if selected_for == name => *contexts,
            _ => Contexts::NONE,
        };
        let mut negotiated = Negotiated::new(export, self.structured, self.extended, contexts);
        negotiated.replaces = self.replaces.clone();
        Ok(Box::new(negotiated))
    }
}

/// Appends a reply to `option`.
pub(super) fn answer(out: &mut Vec<u8>, option: u32, kind: u32, data: &[&[u8]]) {
    let len: usize = data.iter().map(|part| part.len()).sum();
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(len as u32).to_be_bytes());
    for part in data {
        out.extend_from_slice(part);
    }
}

/// Appends an error as the reply to `option`.
pub(super) fn refuse(out: &mut Vec<u8>, option: u32, refusal: &Refusal) {
    let text = proto::at_most(&refusal.text, MAX_REFUSAL_TEXT);
    answer(out, option, refusal.code, &[text.as_bytes()]);
}

fn list(dir: &dyn Directory, out: &mut Vec<u8>) -> Result<Next, Refusal> {
    let begin = out.len();
    let mut left_out = 0u32;
    dir.list(&mut |name, description| {
        if out.len() - begin > MAX_LIST_BYTES {
            left_out += 1;
            return;
        }
        let name_len = (name.len() as u32).to_be_bytes();
        answer(out, opt::LIST, rep::SERVER, &[&name_len, name.as_bytes(), description.as_bytes()]);
    });
    if left_out > 0 {
        let text =
            format!("the list is cut at {MAX_LIST_BYTES} bytes; {left_out} more exports exist");
        return Err(Refusal::new(rep::ERR_TOO_BIG, text));
    }
    answer(out, opt::LIST, rep::ACK, &[]);
    Ok(Next::More)
}

fn find(name: &str, dir: &dyn Directory) -> Result<ExportInfo, Refusal> {
    dir.find(name).ok_or_else(|| {
        Refusal::new(
            rep::ERR_UNKNOWN,
            match name {
                "" => "there is no default export: name one of the list".into(),
                _ => format!("there is no export '{name}'"),
            },
        )
    })
}

/// Parses the data of INFO and GO: a name, and the requested kinds of information.
fn info_request(data: &[u8]) -> Result<(&str, Vec<u16>), Refusal> {
    let mut reader = Reader::new(data);
    let name = string(&mut reader)?;
    let count = reader.u16().ok_or_else(cut_short)?;
    let wanted =
        (0..count).map(|_| reader.u16()).collect::<Option<Vec<_>>>().ok_or_else(cut_short)?;
    if reader.len() > 0 {
        return Err(Refusal::invalid(format!(
            "{} bytes behind the last information request",
            reader.len()
        )));
    }
    Ok((name, wanted))
}

/// Parses a string with its length in front.
fn string<'a>(reader: &mut Reader<'a>) -> Result<&'a str, Refusal> {
    let len = reader.u32().ok_or_else(cut_short)? as usize;
    if len > MAX_STRING {
        return Err(Refusal::invalid(format!("a string of {len} bytes; at most {MAX_STRING}")));
    }
    text(reader.bytes(len).ok_or_else(cut_short)?)
}

fn text(bytes: &[u8]) -> Result<&str, Refusal> {
    match str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(Refusal::invalid(format!("'{}' is not UTF-8 without NUL", bytes.escape_ascii()))),
    }
}

fn cut_short() -> Refusal {
    Refusal::invalid("the option ends before what its lengths announce")
}
