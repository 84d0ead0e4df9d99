//! The command line: its definition, one file per verb, and their common code.
//!
//! [`run`] parses the words, runs the verb and returns the exit status. If dmsetup has the verb,
//! its output and failures are dmsetup's (docs/dmsetup.md). A new verb needs a file here, and a
//! line in `command.rs`.
//!
//! Contract: the exit status is 0, or 1 for every failure; no input of a user makes it panic.

mod client;
mod command;
mod context;
mod devices;
mod disconnect;
mod failure;
mod folder;
mod format;
mod map;
mod monitor;
mod names;
mod options;
mod refusal;
mod table_text;
mod terminal;
mod upload;

mod attach;
mod clear;
mod complete;
mod completions;
mod create;
mod deps;
mod help;
mod info;
mod load;
mod ls;
mod man;
mod message;
mod remove;
mod remove_all;
mod rename;
mod resume;
mod state;
mod stats;
mod status;
mod suspend;
mod table;
mod targets;
mod udev;
mod version;
mod wait;
mod wipe_table;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::FromArgMatches;

use self::client::Client;
use self::command::{Cli, ClientVerb, PROGRAM, Verb, command, usage};
use self::context::Context;
use self::failure::Failure;
use self::options::options_behind_verb;
use self::terminal::complain;
use crate::config::ServeOptions;
use crate::raw;

/// Runs a command line, and returns the exit status for `main`.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    // Any word may have bytes that are not UTF-8: a path, a word of a table or of a message.
    let args = args.into_iter().map(|word| raw::encode_os(&word).into_owned().into());
    let args = options_behind_verb(args);
    let as_json = args.iter().take_while(|word| *word != "--").any(is_json);
    let parsed =
        command().try_get_matches_from(&args).and_then(|matches| Cli::from_arg_matches(&matches));
    match parsed {
        Ok(cli) => cli.run(as_json),
        Err(error) => match refusal::text(&error) {
            None => exit(error.print().map_err(Failure::Output), as_json),
            Some(text) if as_json => {
                exit(Err(Failure::CommandLine(text.trim_end().to_owned())), true)
            }
            Some(text) => {
                complain(&text);
                ExitCode::FAILURE
            }
        },
    }
}

/// Returns whether a word is `--json` or an abbreviation of it.
fn is_json(word: &OsString) -> bool {
    word.to_str().is_some_and(|word| word.len() > "--".len() && "--json".starts_with(word))
}

impl Cli {
    fn run(self, as_json: bool) -> ExitCode {
        let exit = |done| exit(done, as_json);
        let named = self.socket.socket;
        match self.verb {
            Verb::Serve(options) => exit_serve(named, options),
            Verb::Demo(options) => exit_daemon(crate::demo::run(options)),
            // These verbs need no daemon, so they must not fail if its socket has no default place.
            Verb::Completions(verb) => exit(verb.run(std::io::stdout())),
            Verb::Man(verb) => exit(verb.run()),
            Verb::Help(verb) => exit(verb.run(std::io::stdout())),
            Verb::Complete(verb) => exit(verb.run(named, std::io::stdout())),
            Verb::Udev(udev::Accepted { .. }) => exit(Ok(())),
            Verb::Client(ClientVerb::State(ref verb)) if verb.offline().is_some() => {
                exit(verb.offline().map_or(Ok(()), |check| check.run(std::io::stdout())))
            }
            Verb::Client(verb) => {
                let socket = named.map_or_else(folder::of_client, Ok);
                exit(socket.and_then(|socket| run_client(verb, socket)))
            }
        }
    }
}

fn exit_serve(named: Option<PathBuf>, options: ServeOptions) -> ExitCode {
    if let Err(why) = options.paths.check() {
        return exit(Err(Failure::CommandLine(why)), false);
    }
    match named.map_or_else(folder::of_daemon, Ok) {
        Ok(socket) => exit_daemon(crate::daemon::serve(ServeOptions { socket, ..options })),
        Err(failure) => exit(Err(failure), false),
    }
}

/// Runs a verb that needs the daemon, on a runtime of its own.
fn run_client(verb: ClientVerb, socket: PathBuf) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut context = Context::new(Client::new(socket));
    let done = runtime.block_on(verb.run(&mut context));
    // The output before a failure must appear, and must appear before the failure's text.
    let flushed = context.flush();
    // A thread that still reads standard input must not delay the end.
    runtime.shutdown_background();
    done.and(flushed)
}

fn exit(done: Result<(), Failure>, as_json: bool) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            match failure.json(usage).filter(|_| as_json) {
                Some(json) => eprintln!("{json}"),
                None => complain(&failure.text(usage)),
            }
            ExitCode::FAILURE
        }
    }
}

fn exit_daemon(done: anyhow::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{PROGRAM}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Command;

    use super::command::SHOWN_SWITCHES;
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        command().debug_assert();
    }

    fn parses(line: &str) -> bool {
        let args = options_behind_verb(line.split(' ').map(OsString::from));
        command().try_get_matches_from(&args).is_ok()
    }

    /// Parses every recorded command, apart from the parts that the shell handles.
    #[test]
    fn what_dmsetup_takes_is_taken() {
        for line in [
            "blkswitch ls --tree -o device,blkdevname,active,open,rw,uuid,ascii",
            "blkswitch info -c --noheadings --separator | switch",
            "blkswitch table -j 253 -m 0",
            "blkswitch table --noheadings switch",
            "blkswitch message -u SWITCH-0001 0 set_region_mappings 1:2",
            "blkswitch suspend --nolockfs --noflush switch",
            "blkswitch rename --setuuid switch SWITCH-0001",
            "blkswitch create switch --notable --noudevsync --udevcookie 0x123 -y --readahead \
             none --checks",
            "blkswitch -v --noheadings info -C switch",
            "blkswitch remove --deferred -f --retry a b c",
            "blkswitch reload switch --table x --verifyudev --noudevrules --manglename HEX",
            "blkswitch create --concise a,,,,0_1_zero",
            "blkswitch status --target switch --noopencount",
            "blkswitch wait switch 3",
            "blkswitch help -c",
            "blkswitch info --col --noh --sep | switch",
            "blkswitch --targ switch table",
            "blkswitch mknodes",
            "blkswitch mknodes switch --noudevsync",
            "blkswitch udevcreatecookie",
            "blkswitch udevreleasecookie 0xd4d1234",
            "blkswitch udevcomplete_all 5 -y",
        ] {
            assert!(parses(line), "{line}");
        }
        for line in [
            "blkswitch bogus",
            "blkswitch ls x",
            "blkswitch info --bogus",
            "blkswitch create a b c",
            "blkswitch message",
        ] {
            assert!(!parses(line), "{line}");
        }
    }

    /// Calls `look` for each verb, and each verb of a verb, with its words.
    fn visit(command: &Command, name: &str, look: &mut dyn FnMut(&str, &Command)) {
        look(name, command);
        for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
            visit(verb, format!("{name} {}", verb.get_name()).trim(), look);
        }
    }

    /// Regression: a switch of dmsetup once hid all switches that a verb had of its own.
    #[test]
    fn a_verb_shows_every_switch_that_it_accepts() {
        let mut command = command();
        command.build();
        visit(&command, "", &mut |verb, command| {
            let help = command.clone().render_long_help().to_string();
            let mut page = Vec::new();
            clap_mangen::Man::new(command.clone()).render(&mut page).unwrap();
            let page = String::from_utf8(page).unwrap().replace('\\', "");
            for long in command.get_arguments().filter_map(clap::Arg::get_long) {
                let switch = format!("--{long}");
                assert!(help.contains(&switch), "the help of '{verb}' does not show {switch}");
                assert!(page.contains(&switch), "the page of '{verb}' does not show {switch}");
            }
        });
    }

    /// If the source of a verb uses a switch of dmsetup, the verb's help must explain that switch,
    /// and not list it among those without effect.
    #[test]
    fn a_verb_explains_every_switch_that_it_uses() {
        let mut command = command();
        command.build();
        for (verb, ids) in SHOWN_SWITCHES {
            let file = if *verb == "detach" { "attach" } else { verb };
            let file = format!("{}/src/cli/{file}.rs", env!("CARGO_MANIFEST_DIR"));
            let source = std::fs::read_to_string(&file).unwrap();
            let command = command.find_subcommand(*verb).unwrap();
            for id in *ids {
                let arg = command.get_arguments().find(|arg| arg.get_id() == id);
                assert!(
                    arg.is_some_and(|arg| !arg.is_hide_set()),
                    "{verb} has no switch {id} to show"
                );
            }
            for arg in command.get_arguments().filter(|arg| arg.is_hide_set()) {
                let id = arg.get_id().as_str();
                // These verbs use the switch only to refuse it.
                let refuses = [("load", "notable"), ("create", "inactive"), ("attach", "force")];
                let is_used = source.contains(&format!("options.{id}"));
                assert!(!is_used || refuses.contains(&(*verb, id)), "{verb} uses {id}, hidden");
            }
        }
    }

    #[test]
    fn manual_pages_and_completions_know_every_verb() {
        let folder = tempfile::tempdir().unwrap();
        clap_mangen::generate_to(command(), folder.path()).unwrap();
        for verb in command().get_subcommands().filter(|verb| !verb.is_hide_set()) {
            let page = folder.path().join(format!("blkswitch-{}.1", verb.get_name()));
            assert!(page.exists(), "{} has no manual page", verb.get_name());
        }
        for shell in [clap_complete::Shell::PowerShell, clap_complete::Shell::Elvish] {
            let mut script = Vec::new();
            completions::Completions { shell }.run(&mut script).unwrap();
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("wipe_table") && script.contains("export"), "{shell}");
        }
    }
}
