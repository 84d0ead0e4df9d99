//! Arguments of a message straight from its text.
//!
//! Four speeds, one meaning: blocks of `:<digit>` many at a time ([`super::blocks`], the form a
//! whole map is sent in), runs of `<region>:<digit>` ([`super::entries`], the form single changes
//! are sent in), an argument read where it stands, and, for whatever is left (backslashes, cut
//! words, errors), a word split off first. The faster ways only take what they are sure of and
//! leave everything else to the last.
//!
//! Contract: as [`super::message`]; how a text is cut into chunks makes no difference to the
//! result.

use super::super::args::{Word, Words, is_space, skip_space};
use super::message::{Argument, MAX_WORD_LEN, Message, MessageError, Table};
use super::{blocks, entries};

/// See [`Message::apply_text`].
pub(super) fn run<T: Table>(
    message: &mut Message,
    table: &T,
    text: &[u8],
    last: bool,
) -> Result<usize, (usize, MessageError)> {
    let mut rest = text;
    loop {
        rest = blocks::run::<b' ', T>(message, table, rest);
        rest = skip_space(entries::run::<b' ', T>(message, table, rest));
        let start = text.len().wrapping_sub(rest.len());
        if rest.is_empty() {
            return Ok(start);
        }
        if let Some((argument, after)) = in_place(rest, last) {
            message.execute(table, argument).map_err(|error| (start, error))?;
            rest = after;
            continue;
        }
        match split_off(message, table, rest, last) {
            Ok(0) => return Ok(start),
            Ok(len) => rest = rest.split_at_checked(len).map_or(&[], |(_, after)| after),
            Err(error) => return Err((start, error)),
        }
    }
}

/// See [`Message::apply_split`].
pub(super) fn run_split<T: Table>(
    message: &mut Message,
    table: &T,
    text: &[u8],
) -> Result<(), MessageError> {
    let mut rest = text;
    loop {
        rest = blocks::run::<0, T>(message, table, rest);
        rest = entries::run::<0, T>(message, table, rest);
        let Some((_separator, word)) = rest.split_first() else { return Ok(()) };
        match Argument::parse(word) {
            Some((argument, after)) if after.first().is_none_or(|&byte| byte == 0) => {
                message.execute(table, argument)?;
                rest = after;
            }
            _ => return Ok(()),
        }
    }
}

/// An argument that ends in white space, or in the end of the message, without a backslash in it.
#[inline(always)]
fn in_place(text: &[u8], last: bool) -> Option<(Argument, &[u8])> {
    let (argument, rest) = Argument::parse(text)?;
    let ends = rest.first().map_or(last, |&byte| is_space(byte));
    let fits = text.len().wrapping_sub(rest.len()) <= MAX_WORD_LEN;
    if ends && fits { Some((argument, rest)) } else { None }
}

/// The word a text begins with, split off first. Returns its length, 0 if it is not all there yet.
#[cold]
fn split_off<T: Table>(
    message: &mut Message,
    table: &T,
    text: &[u8],
    last: bool,
) -> Result<usize, MessageError> {
    let mut words = Words::new(text);
    let Some(word) = words.next() else { return Ok(0) };
    let len = word.raw().len();
    if len > MAX_WORD_LEN {
        return Err(message.refuse_word());
    }
    if words.rest().is_empty() && !last {
        return Ok(0);
    }
    with_literal(word, |literal| message.word(table, literal))?;
    Ok(len)
}

/// Calls `f` with the word's bytes, backslashes removed.
fn with_literal<R>(word: Word<'_>, f: impl FnOnce(&[u8]) -> R) -> R {
    if let Some(literal) = word.plain() {
        return f(literal);
    }
    let mut buffer = [0u8; MAX_WORD_LEN];
    let mut len = 0usize;
    for (slot, byte) in buffer.iter_mut().zip(word.bytes()) {
        *slot = byte;
        len = len.wrapping_add(1);
    }
    f(buffer.split_at_checked(len).map_or(&[], |(literal, _)| literal))
}
