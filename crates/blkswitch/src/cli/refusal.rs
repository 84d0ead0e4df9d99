//! The texts for command lines that clap refuses. They are dmsetup's where dmsetup has one.
//!
//! Contract: dmsetup's own lines come out byte for byte. Additional lines are indented by two
//! spaces, quote the input, and say what is allowed.

use clap::error::{ContextKind, ContextValue, Error, ErrorKind};

use super::command::{PROGRAM, command, usage};
use crate::nearest::did_you_mean;

/// The text for standard error; `None` if the user asked for help or version.
pub(super) fn text(error: &Error) -> Option<String> {
    error.use_stderr().then(|| refusal(error))
}

fn refusal(error: &Error) -> String {
    let invalid = words(error, ContextKind::InvalidArg);
    let is_word = invalid.first().is_some_and(|word| !word.starts_with('-'));
    match error.kind() {
        ErrorKind::InvalidSubcommand => unknown_verb(error),
        // A verb is missing, so show help.
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => error.to_string(),
        ErrorKind::TooManyValues | ErrorKind::TooFewValues | ErrorKind::WrongNumberOfValues => {
            wrong_number(error, "")
        }
        // The usage line shows missing words, but no missing switches.
        ErrorKind::MissingRequiredArgument => {
            // One of several switches is `<--this|--that>`.
            let switches = invalid.iter().filter(|word| word.contains("--"));
            let why: String = switches.map(|word| format!("  missing: {word}\n")).collect();
            wrong_number(error, &why)
        }
        ErrorKind::UnknownArgument if is_word => {
            wrong_number(error, &format!("  '{}' is one word too many\n", invalid.join(" ")))
        }
        _ => format!("{error}Couldn't process command line.\n"),
    }
}

/// The words in one part of a clap error.
fn words(error: &Error, kind: ContextKind) -> Vec<String> {
    match error.get(kind) {
        Some(ContextValue::String(word)) => vec![word.clone()],
        Some(ContextValue::Strings(words)) => words.clone(),
        _ => Vec::new(),
    }
}

fn unknown_verb(error: &Error) -> String {
    let word = words(error, ContextKind::InvalidSubcommand).join(" ");
    let usage_line = usage_of(error).unwrap_or_else(|| format!("Usage: {PROGRAM} <COMMAND>\n"));
    // The usage line names the verb that has the unknown sub-verb:
    // `Usage: blkswitch map [OPTIONS] ...`.
    let mut root = command();
    root.build();
    let path = usage_line.split_whitespace().skip(2);
    let (mut at, mut verb) = (&root, "");
    for name in path.take_while(|word| !word.starts_with(['[', '<', '-'])) {
        let Some(found) = at.find_subcommand(name) else { break };
        (at, verb) = (found, name);
    }
    let shown = at.get_subcommands().filter(|verb| !verb.is_hide_set());
    let known: Vec<&str> = shown.flat_map(clap::Command::get_name_and_visible_aliases).collect();
    let near = did_you_mean(&word, known.iter().copied());
    let allowed = match verb {
        "" => format!("{PROGRAM} help lists the verbs"),
        verb => format!("{verb} has {}", known.join(", ")),
    };
    format!("Unknown command.\n  there is no verb '{word}': {near}{allowed}\n{usage_line}")
}

fn wrong_number(error: &Error, why: &str) -> String {
    let usage = usage_of(error).unwrap_or_else(|| usage(None));
    format!("Incorrect number of arguments.\n{why}{usage}")
}

fn usage_of(error: &Error) -> Option<String> {
    match error.get(ContextKind::Usage) {
        Some(ContextValue::StyledStr(usage)) => Some(format!("{usage}\n")),
        _ => None,
    }
}
