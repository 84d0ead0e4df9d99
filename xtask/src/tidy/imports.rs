//! Finds which file of a crate imports which, from the tokens of the files.
//!
//! An import is a path that begins with `crate`, `self`, `super` or a child module, in a `use` or
//! anywhere else. A name that a file only hands on (`use`, `pub use`) is followed to the file that
//! defines it: a file that imports `crate::engine::LeafIo` imports `engine/io.rs` if
//! `engine/mod.rs` gets the name from there. `mod` lines do not count as imports.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, anyhow};
use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// A path as it is written, and its place.
#[derive(Debug)]
struct Written {
    segments: Vec<String>,
    /// Inline modules of the file that surround the path.
    inline: Vec<String>,
    line: usize,
    /// Set if the path is a leaf of a `use`: the name that it gets here, and whether others may see
    /// it.
    alias: Option<(String, bool)>,
}

/// One import of a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Import {
    /// The importing file, relative to `src`.
    pub(crate) from: String,
    /// The file that defines the imported name.
    pub(crate) to: String,
    /// The file that the path leads through as it is written, where names may be handed on.
    pub(crate) through: String,
    /// The number of the line in `from`.
    pub(crate) line: usize,
    /// The path as the file writes it.
    pub(crate) path: String,
    /// Whether the file only hands the name on (`pub use`).
    pub(crate) is_reexport: bool,
}

/// All imports of a crate. `files` has the names of its files, relative to `src`, and their texts.
pub(crate) fn of(files: &BTreeMap<String, String>) -> Result<BTreeSet<Import>> {
    let modules: BTreeMap<Vec<String>, &str> =
        files.keys().map(|file| (module_of(file), file.as_str())).collect();
    let mut written = BTreeMap::new();
    for (file, text) in files {
        let tokens: TokenStream = text.parse().map_err(|error| anyhow!("{file}: {error}"))?;
        let mut found = Vec::new();
        walk(tokens, &mut Vec::new(), &mut found);
        written.insert(module_of(file), found);
    }
    let mut house = House { modules: &modules, aliases: BTreeMap::new() };
    for (module, paths) in &written {
        for path in paths.iter().filter(|path| path.inline.is_empty()) {
            if let (Some((name, _)), Some(absolute)) = (&path.alias, house.absolute(module, path)) {
                house.aliases.insert((module.clone(), name.clone()), absolute);
            }
        }
    }
    let mut imports = BTreeSet::new();
    for (module, paths) in &written {
        for path in paths {
            let Some(absolute) = house.absolute(module, path) else { continue };
            let Some(to) = house.file_of(&absolute, 0) else { continue };
            let from = modules[module];
            let Some(through) = house.module_file(&absolute) else { continue };
            if to != from {
                imports.insert(Import {
                    from: from.to_owned(),
                    to: to.to_owned(),
                    through: through.to_owned(),
                    line: path.line,
                    path: path.segments.join("::"),
                    is_reexport: path.alias.as_ref().is_some_and(|(_, is_public)| *is_public),
                });
            }
        }
    }
    Ok(imports)
}

/// The module of a file: `a/mod.rs` and `a.rs` are `[a]`, `lib.rs` and `main.rs` the root.
fn module_of(file: &str) -> Vec<String> {
    let path = file.trim_end_matches(".rs").trim_end_matches("/mod");
    match path {
        "lib" | "main" => Vec::new(),
        _ => path.split('/').map(str::to_owned).collect(),
    }
}

struct House<'a> {
    modules: &'a BTreeMap<Vec<String>, &'a str>,
    aliases: BTreeMap<(Vec<String>, String), Vec<String>>,
}

impl House<'_> {
    /// The path from the root of the crate; `None` if it leads out of the crate.
    fn absolute(&self, module: &[String], path: &Written) -> Option<Vec<String>> {
        let mut at: Vec<String> = module.iter().chain(&path.inline).cloned().collect();
        let mut segments = path.segments.iter().peekable();
        match segments.peek()?.as_str() {
            "crate" => {
                segments.next();
                at.clear();
            }
            "self" => {
                segments.next();
            }
            "super" => {
                while segments.next_if(|segment| *segment == "super").is_some() {
                    at.pop()?;
                }
            }
            first => {
                // The first name is a child module, or a name that this file has.
                let child = at.iter().cloned().chain([first.to_owned()]).collect::<Vec<_>>();
                if !path.inline.is_empty() || !self.modules.contains_key(&child) {
                    return None;
                }
            }
        }
        at.extend(segments.cloned());
        // An inline module belongs to its file.
        Some(at)
    }

    /// The file of the innermost module that a path from the root names.
    fn module_file(&self, path: &[String]) -> Option<&str> {
        (0..=path.len()).rev().find_map(|len| self.modules.get(&path[..len]).copied())
    }

    /// The file that defines the end of a path from the root.
    fn file_of(&self, path: &[String], depth: usize) -> Option<&str> {
        let len = (0..=path.len()).rev().find(|len| self.modules.contains_key(&path[..*len]))?;
        let (module, rest) = path.split_at(len);
        if let Some(first) = rest.first()
            && depth < 16
            && let Some(alias) = self.aliases.get(&(module.to_vec(), first.clone()))
            && alias != path
        {
            let path: Vec<String> = alias.iter().chain(&rest[1..]).cloned().collect();
            return self.file_of(&path, depth + 1);
        }
        self.modules.get(module).copied()
    }
}

/// Collects the paths in a range of tokens.
fn walk(tokens: TokenStream, inline: &mut Vec<String>, found: &mut Vec<Written>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    let mut is_public = false;
    while at < tokens.len() {
        match &tokens[at] {
            TokenTree::Ident(ident) if ident == "pub" => {
                is_public = true;
                at += 1;
                // The path in `pub(in crate::engine)` does not import anything.
                if group(&tokens, at).is_some_and(|g| g.delimiter() == Delimiter::Parenthesis) {
                    at += 1;
                }
                continue;
            }
            TokenTree::Ident(ident) if ident == "use" => {
                let end = (at..tokens.len()).find(|at| is_punct(&tokens, *at, ';'));
                let end = end.unwrap_or(tokens.len());
                used(&tokens[at + 1..end], &[], (is_public, inline), found);
                at = end;
            }
            TokenTree::Ident(ident) if ident == "mod" => {
                if let (Some(TokenTree::Ident(name)), Some(body)) =
                    (tokens.get(at + 1), group(&tokens, at + 2))
                {
                    inline.push(name.to_string());
                    walk(body.stream(), inline, found);
                    inline.pop();
                    at += 2;
                }
            }
            TokenTree::Ident(ident) if !follows_path(&tokens, at) => {
                let line = ident.span().start().line;
                let mut segments = vec![ident.to_string()];
                while is_punct(&tokens, at + 1, ':')
                    && is_punct(&tokens, at + 2, ':')
                    && let Some(TokenTree::Ident(next)) = tokens.get(at + 3)
                {
                    segments.push(next.to_string());
                    at += 3;
                }
                if segments.len() > 1 {
                    found.push(Written { segments, inline: inline.clone(), line, alias: None });
                }
            }
            TokenTree::Group(group) => walk(group.stream(), inline, found),
            _ => {}
        }
        is_public = false;
        at += 1;
    }
}

/// Collects the names of a `use`, whose keyword and semicolon are left out.
fn used(
    tokens: &[TokenTree],
    before: &[String],
    context: (bool, &[String]),
    found: &mut Vec<Written>,
) {
    for tree in tokens.split(|token| matches!(token, TokenTree::Punct(p) if p.as_char() == ',')) {
        let mut segments = before.to_vec();
        let (mut line, mut name, mut at) = (0, None, 0);
        while let Some(token) = tree.get(at) {
            match token {
                TokenTree::Ident(ident) if ident == "as" => {
                    name = tree.get(at + 1).map(ToString::to_string);
                    at += 1;
                }
                TokenTree::Ident(ident) => {
                    line = ident.span().start().line;
                    segments.push(ident.to_string());
                }
                TokenTree::Group(group) => {
                    let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                    used(&inner, &segments, context, found);
                    segments.clear();
                }
                _ => {}
            }
            at += 1;
        }
        if segments.last().is_some_and(|last| last == "self") && segments.len() > 1 {
            segments.pop();
        }
        if let Some(last) = segments.last() {
            let alias = Some((name.unwrap_or_else(|| last.clone()), context.0));
            let inline = context.1.to_vec();
            found.push(Written { segments, inline, line, alias });
        }
    }
}

fn group(tokens: &[TokenTree], at: usize) -> Option<&Group> {
    match tokens.get(at) {
        Some(TokenTree::Group(group)) => Some(group),
        _ => None,
    }
}

fn is_punct(tokens: &[TokenTree], at: usize, wanted: char) -> bool {
    matches!(tokens.get(at), Some(TokenTree::Punct(punct)) if punct.as_char() == wanted)
}

/// Whether the token before belongs to the same path, or makes this a field or method.
fn follows_path(tokens: &[TokenTree], at: usize) -> bool {
    at > 0
        && (is_punct(tokens, at - 1, ':') && at > 1 && is_punct(tokens, at - 2, ':')
            || is_punct(tokens, at - 1, '.'))
}
