//! dmsetup's switches: one set for all verbs.
//!
//! Contract: like dmsetup, every verb accepts every switch anywhere on the line, used or not
//! ([`options_behind_verb`]). A verb's help shows the switches that it uses, and its last line
//! lists the others ([`shown`]). Pure.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgAction, Args, Command, ValueEnum};

/// The switch for the daemon's socket.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct SocketOption {
    /// Control socket of the daemon [default: /run/blkswitch/control.sock as root, else
    /// $XDG_RUNTIME_DIR/blkswitch/control.sock, or /tmp/blkswitch-UID/control.sock without a
    /// runtime folder]
    #[arg(long, env = "BLKSWITCH_SOCKET", value_name = "PATH", global = true)]
    pub socket: Option<PathBuf>,
}

/// How `--manglename` treats characters that the kernel's names should not contain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Mangling {
    /// Leave them.
    None,
    /// Write them as `\xNN`.
    Hex,
    /// Write them as `\xNN` unless the name is written that way already.
    #[default]
    Auto,
}

/// dmsetup's switches.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct Options {
    /// Print what the daemon says, as JSON
    #[arg(long)]
    pub json: bool,
    /// Print more
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,
    /// The device with this uuid, in place of a name; the new device's uuid for create
    #[arg(short, long)]
    pub uuid: Option<String>,
    /// The device with this major number, in place of a name
    #[arg(short = 'j', long, requires = "minor")]
    pub major: Option<u32>,
    /// The device with this minor number, in place of a name; the new device's number for create
    #[arg(short, long, requires = "major")]
    pub minor: Option<u32>,

    /// Table of the device: lines of START LENGTH TYPE PARAMETERS
    #[arg(long, conflicts_with = "notable")]
    pub table: Option<String>,
    /// Make a device without a table
    #[arg(short, long)]
    pub notable: bool,
    /// One line for all: name,uuid,minor,flags,table[,table...][;name...]
    #[arg(long)]
    pub concise: bool,
    /// Refuse writes
    #[arg(short, long)]
    pub readonly: bool,

    /// The inactive table instead of the live one
    #[arg(long)]
    pub inactive: bool,
    /// Only devices and segments of this target type
    #[arg(long, value_name = "TYPE")]
    pub target: Option<String>,
    /// Run this command with the path of each device
    #[arg(long, value_name = "COMMAND")]
    pub exec: Option<String>,
    /// Print devices and their dependencies as a tree
    #[arg(long)]
    pub tree: bool,

    /// A table with a row per device
    #[arg(short, long, short_alias = 'C')]
    pub columns: bool,
    /// What to print: columns of info -c ("help" lists them); devno, blkdevname, devname for ls and
    /// deps; active, ascii, utf, vt100, blkdevname, [no]device, compact, inverted, notrunc, open,
    /// rw, uuid for ls --tree
    #[arg(short = 'o', long = "options", value_name = "LIST")]
    pub fields: Option<String>,
    /// Sort rows by these columns; a - before a column reverses
    #[arg(short = 'O', long, value_name = "COLUMNS")]
    pub sort: Option<String>,
    /// No headings, and a colon between columns
    #[arg(long)]
    pub noheadings: bool,
    /// Print this between columns, without padding
    #[arg(long)]
    pub separator: Option<String>,
    /// Print DM_COLUMN='value'
    #[arg(long)]
    pub nameprefixes: bool,
    /// No quotes with --nameprefixes
    #[arg(long)]
    pub unquoted: bool,

    /// Fail I/O under way by swapping in an error table
    #[arg(short, long)]
    pub force: bool,
    /// Remove a device that is open with its last user
    #[arg(long)]
    pub deferred: bool,
    /// Try again for some seconds while the device is open
    #[arg(long)]
    pub retry: bool,
    /// Do not wait for I/O that a target holds back
    #[arg(long)]
    pub noflush: bool,
    /// Accepted: a suspend freezes no file system (for one on a ublk disk: fsfreeze before)
    #[arg(long)]
    pub nolockfs: bool,
    /// Give the device a uuid instead of a name
    #[arg(long)]
    pub setuuid: bool,
    /// Characters of names outside 0-9A-Za-z#+-.:=@_ become \xNN: none, hex, auto
    #[arg(long, value_name = "MODE", ignore_case = true, default_value = "auto")]
    pub manglename: Mangling,

    /// Accepted without effect.
    #[command(flatten)]
    pub without_effect: WithoutEffect,
}

/// Switches for the kernel or udev only. Runbooks contain them.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct WithoutEffect {
    /// Accepted: messages are always checked
    #[arg(long)]
    pub checks: bool,
    /// Accepted: an open count costs nothing here
    #[arg(long)]
    pub noopencount: bool,
    /// Accepted: no udev
    #[arg(long)]
    pub noudevrules: bool,
    /// Accepted: no udev
    #[arg(long)]
    pub noudevsync: bool,
    /// Accepted: no udev
    #[arg(long)]
    pub verifyudev: bool,
    /// Accepted: no udev
    #[arg(long)]
    pub udevcookie: Option<String>,
    /// Accepted: clients of the export read ahead, not the device
    #[arg(long, allow_hyphen_values = true)]
    pub readahead: Option<String>,
    /// Accepted: no verb asks
    #[arg(short, long)]
    pub yes: bool,
    /// Accepted: no device node
    #[arg(short = 'U', long)]
    pub uid: Option<String>,
    /// Accepted: no device node
    #[arg(short = 'G', long)]
    pub gid: Option<String>,
    /// Accepted: no device node
    #[arg(short = 'M', long)]
    pub mode: Option<String>,
    /// Accepted: no device node
    #[arg(long, conflicts_with = "addnodeoncreate")]
    pub addnodeonresume: bool,
    /// Accepted: no device node
    #[arg(long)]
    pub addnodeoncreate: bool,
    /// Accepted: tables hold no keys
    #[arg(long)]
    pub showkeys: bool,
    /// Accepted: rows are printed at the end
    #[arg(long)]
    pub unbuffered: bool,
}

/// Hides dmsetup's switches that the verb does not use in its help; the text after the help lists
/// them. The verb's own switches stay visible.
pub(super) fn shown(command: Command, ids: &[&str]) -> Command {
    let dmsetup = Options::augment_args(Command::new("switches"));
    let is_hidden = |arg: &Arg| {
        let id = arg.get_id().as_str();
        let names_device = id == "manglename" && ids.contains(&"uuid");
        let is_used = ["json", "verbose"].contains(&id) || ids.contains(&id) || names_device;
        !is_used && dmsetup.get_arguments().any(|known| known.get_id() == id)
    };
    let unused: Vec<String> =
        command.get_arguments().filter(|arg| is_hidden(arg)).map(spelling).collect();
    let unused = format!("Accepted as dmsetup does, and not used here: {}.", unused.join(", "));
    let command = command.mut_args(|arg| if is_hidden(&arg) { arg.hide(true) } else { arg });
    let text = match command.get_after_long_help() {
        Some(own) => format!("{own}\n\n{unused}"),
        None => unused,
    };
    command.after_long_help(text)
}

/// The spelling of a switch in a text: `-y/--yes`.
fn spelling(arg: &Arg) -> String {
    match (arg.get_short(), arg.get_long()) {
        (Some(short), Some(long)) => format!("-{short}/--{long}"),
        (_, Some(long)) => format!("--{long}"),
        (short, None) => format!("-{}", short.unwrap_or_default()),
    }
}

/// Moves switches from before the verb to after it: `-v --target switch status` becomes
/// `status -v --target switch`. dmsetup accepts switches anywhere, but clap accepts a verb's
/// switches only after the verb.
pub(super) fn options_behind_verb(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<OsString> = args.into_iter().collect();
    let switches = leading_switches();
    let mut at = 1;
    while let Some(text) = args.get(at).and_then(|arg| arg.to_str()) {
        match switch_words(text, &switches) {
            Some(words) => at += words,
            None => {
                args[1..=at].rotate_right(1);
                return args;
            }
        }
    }
    args
}

/// Number of words that the switch `text` and its value occupy; `None` if it is not a switch.
fn switch_words(text: &str, switches: &Command) -> Option<usize> {
    let takes_value =
        |found: Option<&Arg>| found.is_some_and(|arg| arg.get_action().takes_values());
    if let Some(name) = text.strip_prefix("--") {
        let long = |matches: &dyn Fn(&str) -> bool| {
            switches.get_arguments().find(|arg| arg.get_long().is_some_and(matches))
        };
        // A switch may be abbreviated. A full name wins over longer names that begin with it.
        let found = long(&|long| long == name).or_else(|| long(&|long| long.starts_with(name)));
        return Some(if takes_value(found) { 2 } else { 1 });
    }
    let cluster = text.strip_prefix('-').filter(|rest| !rest.is_empty())?;
    // In a cluster like -vcO, the value of the first letter that takes one is the rest, or the next
    // word.
    let short = |letter| switches.get_arguments().find(|arg| arg.get_short() == Some(letter));
    let valued = cluster.char_indices().find(|&(_, letter)| takes_value(short(letter)));
    Some(match valued {
        Some((index, letter)) if index + letter.len_utf8() == cluster.len() => 2,
        _ => 1,
    })
}

/// The switches that are allowed before the verb.
fn leading_switches() -> Command {
    SocketOption::augment_args(Options::augment_args(Command::new("switches")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(line: &str) -> String {
        let words = options_behind_verb(line.split(' ').map(OsString::from));
        words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn switches_may_stand_before_the_verb() {
        assert_eq!(moved("b status x"), "b status x");
        assert_eq!(moved("b -v --target switch status x"), "b status -v --target switch x");
        assert_eq!(moved("b --targ switch status x"), "b status --targ switch x");
        assert_eq!(moved("b --target=switch status x"), "b status --target=switch x");
        assert_eq!(moved("b -vcOname info"), "b info -vcOname");
        assert_eq!(moved("b -vcO name info"), "b info -vcO name");
        assert_eq!(moved("b -u UUID message 0 x"), "b message -u UUID 0 x");
        assert_eq!(moved("b --socket /a/b ls"), "b ls --socket /a/b");
        assert_eq!(moved("b --help"), "b --help");
        assert_eq!(moved("b - x"), "b - x");
    }
}
