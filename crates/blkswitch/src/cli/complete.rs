//! `__complete`: offers words for the word under the cursor. The completion scripts of
//! `completions` run it at every press of the completion key.
//!
//! Contract: prints one candidate per line, with a tab and a description after it. The lines
//! [`FILES`] and [`FOLDERS`] ask the shell for paths instead. It offers only words that the verb
//! accepts: devices that the verb can use, and messages that the target knows. If the daemon does
//! not answer within [`PATIENCE`], there are no devices: the key must not hang.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, Args, Command};
use tokio::time::timeout;

use super::client::Client;
use super::command;
use super::context::Context;
use super::failure::Failure;
use super::names::unmangle;
use crate::protocol::{Device, Segment};
use crate::raw;

/// Tells the shell to complete file names.
const FILES: &str = ":files";
/// Tells the shell to complete folder names.
const FOLDERS: &str = ":folders";
/// How long to wait for the daemon.
const PATIENCE: Duration = Duration::from_secs(1);
/// The messages of a multipath.
const MULTIPATH_MESSAGES: [&str; 7] = [
    "fail_path",
    "reinstate_path",
    "disable_group",
    "enable_group",
    "switch_group",
    "queue_if_no_path",
    "fail_if_no_path",
];
/// The messages of a switch.
const SWITCH_MESSAGES: [&str; 2] = ["set_region_mappings", "get_region_mappings"];

/// Print what may stand in place of the last word
#[derive(Debug, Args)]
pub(super) struct Complete {
    /// The words behind the program's name
    #[arg(num_args = 0.., allow_hyphen_values = true, trailing_var_arg = true)]
    words: Vec<String>,
}

/// A word to offer and a description.
type Candidate = (String, String);

/// The kind of words that are offered for an operand of a verb.
#[derive(Debug, Clone, Copy)]
enum Operand {
    Nothing,
    Files,
    Folders,
    /// The devices for which this returns `true`.
    Devices(fn(&Device) -> bool),
    /// As [`Operand::Devices`], and files.
    DevicesOrFiles(fn(&Device) -> bool),
    /// The first sectors of the segments that take messages.
    Sector,
    /// The first word of a message.
    Message,
    Verbs,
}

/// The command line before the word under the cursor.
struct Line<'a> {
    command: &'a Command,
    verbs: Vec<&'a str>,
    operands: Vec<&'a str>,
    /// The switch that takes the word under the cursor as its value.
    pending: Option<&'a Arg>,
    socket: Option<&'a str>,
}

impl<'a> Line<'a> {
    fn read(root: &'a Command, words: &'a [String]) -> Self {
        let mut line = Self {
            command: root,
            verbs: Vec::new(),
            operands: Vec::new(),
            pending: None,
            socket: None,
        };
        for word in words {
            if let Some(arg) = line.pending.take() {
                line.socket =
                    Some(word.as_str()).filter(|_| arg.get_id() == "socket").or(line.socket);
            } else if word.starts_with('-') && word.len() > 1 {
                let takes_value = |arg: &&Arg| arg.get_action().takes_values();
                line.pending = switch(line.command, word).filter(takes_value);
            } else if let Some(verb) = line.verb(word) {
                line.command = verb;
                line.verbs.push(verb.get_name());
            } else {
                line.operands.push(word);
            }
        }
        line
    }

    fn verb(&self, word: &str) -> Option<&'a Command> {
        let found = self.command.find_subcommand(word)?;
        (self.operands.is_empty() && !found.is_hide_set()).then_some(found)
    }

    fn operand(&self) -> Operand {
        let is_any = |_: &Device| true;
        let has_map = |device: &Device| segments(device).any(|one| one.target == "switch");
        match (self.verbs.join(" ").as_str(), self.operands.len()) {
            ("message", 0) => Operand::Devices(|device| segments(device).any(takes_messages)),
            ("message", 1) => Operand::Sector,
            ("message", 2) => Operand::Message,
            ("map where", 0) => Operand::Devices(is_any),
            ("map plan", 1) => Operand::Nothing,
            ("map diff", 1) => Operand::DevicesOrFiles(has_map),
            (
                "map show" | "map export" | "map import" | "map set" | "map regions" | "map diff"
                | "map plan",
                0,
            ) => Operand::Devices(has_map),
            ("load" | "create" | "map import", 1) => Operand::Files,
            ("man" | "state check", 0) => Operand::Folders,
            ("state forget", 0) => Operand::Devices(|device| device.away.is_some()),
            ("load" | "rename" | "wait", 0) => Operand::Devices(is_any),
            ("disconnect", 0) => Operand::Devices(|device| !device.clients.is_empty()),
            ("attach", _) => {
                Operand::Devices(|device| device.disk.is_none() || device.vhost_user.is_none())
            }
            ("detach", _) => {
                Operand::Devices(|device| device.disk.is_some() || device.vhost_user.is_some())
            }
            ("clear", _) => Operand::Devices(|device| device.inactive.is_some()),
            ("suspend", _) => Operand::Devices(|device| !device.suspended),
            ("resume", _) => {
                Operand::Devices(|device| device.suspended || device.inactive.is_some())
            }
            (
                "info" | "deps" | "table" | "status" | "remove" | "wipe_table" | "monitor"
                | "stats",
                _,
            ) => Operand::Devices(is_any),
            ("help", _) => Operand::Verbs,
            _ => Operand::Nothing,
        }
    }
}

fn segments(device: &Device) -> impl Iterator<Item = &Segment> {
    device.live.iter().flat_map(|table| &table.segments)
}

fn takes_messages(segment: &Segment) -> bool {
    !messages(&segment.target).is_empty()
}

fn messages(target: &str) -> &'static [&'static str] {
    match target {
        "switch" => &SWITCH_MESSAGES,
        "multipath" => &MULTIPATH_MESSAGES,
        _ => &[],
    }
}

/// The switch that a word like `--queues` or `-vo` names. After `=`, the word contains the value
/// itself.
fn switch<'a>(command: &'a Command, word: &str) -> Option<&'a Arg> {
    let mut args = command.get_arguments();
    match word.strip_prefix("--") {
        Some(long) => args.find(|arg| arg.get_long() == Some(long)),
        None => {
            args.find(|arg| arg.get_short().is_some() && arg.get_short() == word.chars().last())
        }
    }
}

impl Complete {
    /// Runs the verb. `named` is the socket from the switch of the command line or from the
    /// environment.
    pub(super) fn run(
        self,
        named: Option<PathBuf>,
        mut out: impl std::io::Write,
    ) -> Result<(), Failure> {
        let mut root = command::command();
        root.build();
        let (current, before) = match self.words.split_last() {
            Some((current, before)) => (current.as_str(), before),
            None => ("", [].as_slice()),
        };
        let line = Line::read(&root, before);
        let socket = line.socket.map(raw::path).or(named);
        let mut candidates = offered(&line, current, socket);
        candidates.retain(|(word, _)| word.starts_with(current) || word.starts_with(':'));
        for (word, description) in candidates {
            out.write_all(&raw::decode(&format!("{word}\t{description}\n")))?;
        }
        Ok(())
    }
}

fn offered(line: &Line<'_>, current: &str, socket: Option<PathBuf>) -> Vec<Candidate> {
    if let Some(arg) = line.pending {
        return values(arg, || devices(socket));
    }
    if current.starts_with('-') {
        return switches(line.command);
    }
    if line.command.has_subcommands() {
        return verbs(line.command);
    }
    let plain = |word: &str| vec![(word.to_owned(), String::new())];
    match line.operand() {
        Operand::Nothing => line.command.get_positionals().flat_map(possible).collect(),
        Operand::Files => plain(FILES),
        Operand::Folders => plain(FOLDERS),
        Operand::Devices(suits) => suitable(line, suits, socket),
        Operand::DevicesOrFiles(suits) => [suitable(line, suits, socket), plain(FILES)].concat(),
        Operand::Sector => {
            let device = named(line, socket);
            let starts = device.iter().flat_map(segments).filter(|one| takes_messages(one));
            starts.map(|one| (one.start.to_string(), one.target.clone())).collect()
        }
        Operand::Message => {
            let sector = line.operands.get(1).and_then(|word| word.parse::<u64>().ok());
            let device = named(line, socket);
            let holds = |one: &&Segment| {
                sector.is_some_and(|at| at >= one.start && at - one.start < one.length)
            };
            let words =
                device.iter().flat_map(segments).find(holds).map(|one| messages(&one.target));
            words.unwrap_or_default().iter().flat_map(|word| plain(word)).collect()
        }
        Operand::Verbs => {
            let root = command::command();
            let named = line.operands.iter().try_fold(&root, |at, verb| at.find_subcommand(verb));
            named.map(verbs).unwrap_or_default()
        }
    }
}

/// The devices that suit, without those that the line has already.
fn suitable(
    line: &Line<'_>,
    suits: fn(&Device) -> bool,
    socket: Option<PathBuf>,
) -> Vec<Candidate> {
    let devices = devices(socket).into_iter().filter(suits);
    let names = devices.map(|device| (unmangle(&device.name), described(&device)));
    names.filter(|(name, _)| !line.operands.contains(&name.as_str())).collect()
}

/// The device that the first operand names.
fn named(line: &Line<'_>, socket: Option<PathBuf>) -> Option<Device> {
    let name = line.operands.first()?;
    devices(socket).into_iter().find(|device| unmangle(&device.name) == **name)
}

/// A short description of a device: its targets.
fn described(device: &Device) -> String {
    let mut targets: Vec<&str> = segments(device).map(|one| one.target.as_str()).collect();
    targets.dedup();
    targets.truncate(3);
    if targets.is_empty() { "no table".to_owned() } else { targets.join(", ") }
}

fn verbs(command: &Command) -> Vec<Candidate> {
    let shown = command.get_subcommands().filter(|verb| !verb.is_hide_set());
    shown.map(|verb| (verb.get_name().to_owned(), about(verb.get_about()))).collect()
}

fn switches(command: &Command) -> Vec<Candidate> {
    let shown = command.get_arguments().filter(|arg| !arg.is_hide_set());
    let long = |arg: &Arg| Some((format!("--{}", arg.get_long()?), about(arg.get_help())));
    shown.filter_map(long).collect()
}

fn about(text: Option<&clap::builder::StyledStr>) -> String {
    text.map(|text| text.to_string().lines().next().unwrap_or_default().to_owned())
        .unwrap_or_default()
}

/// The values that a switch accepts.
fn values(arg: &Arg, devices: impl FnOnce() -> Vec<Device>) -> Vec<Candidate> {
    let plain = |word: &str| (word.to_owned(), String::new());
    match arg.get_id().as_str() {
        "socket" | "output" | "nbd" => vec![plain(FILES)],
        "state" => vec![plain(FOLDERS)],
        "target" => crate::daemon::tables::targets::names().map(plain).collect(),
        "uuid" => {
            let named = devices().into_iter().filter(|device| !device.uuid.is_empty());
            named.map(|device| (unmangle(&device.uuid), device.name)).collect()
        }
        "minor" => {
            devices().into_iter().map(|device| (device.minor.to_string(), device.name)).collect()
        }
        "major" => vec![plain("0")],
        _ => possible(arg),
    }
}

fn possible(arg: &Arg) -> Vec<Candidate> {
    let values = arg.get_possible_values().into_iter().filter(|value| !value.is_hide_set());
    values.map(|value| (value.get_name().to_owned(), about(value.get_help()))).collect()
}

/// The daemon's devices; empty if it does not answer in time.
fn devices(socket: Option<PathBuf>) -> Vec<Device> {
    let Ok(socket) = socket.map_or_else(super::folder::of_client, Ok) else { return Vec::new() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return Vec::new() };
    let context = Context::new(Client::new(socket));
    let asked = runtime.block_on(async { timeout(PATIENCE, context.devices()).await });
    runtime.shutdown_background();
    asked.ok().and_then(Result::ok).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offers(words: &[&str]) -> Vec<String> {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        let mut out = Vec::new();
        Complete { words }.run(Some("/nonexistent/socket".into()), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        text.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect()
    }

    #[test]
    fn verbs_switches_and_values_that_are_accepted() {
        assert_eq!(offers(&["ma"]), ["map", "man"]);
        assert_eq!(offers(&["map", ""])[..2], ["show", "export"]);
        assert_eq!(offers(&["attach", "--zero"]), ["--zero-copy"]);
        assert_eq!(offers(&["attach", "--table"]), [""; 0], "attach does not use it");
        assert_eq!(offers(&["ls", "--target", "mul"]), ["multipath"]);
        assert_eq!(offers(&["create", "name", ""]), [FILES]);
        assert_eq!(offers(&["state", "check", ""]), [FOLDERS]);
        assert_eq!(offers(&["completions", "ba"]), ["bash"]);
        assert_eq!(offers(&["help", "map", "im"]), ["import"]);
        assert_eq!(offers(&["info", "--manglename", "h"]), ["hex"]);
        assert!(offers(&["udev"]).is_empty() && offers(&["__"]).is_empty());
    }

    #[test]
    fn no_daemon_means_no_devices() {
        assert!(offers(&["info", ""]).is_empty());
        assert!(offers(&["--socket", "/nonexistent", "message", ""]).is_empty());
    }
}
