//! The definition of the command line.
//!
//! Contract: pure; the same definition serves parsing, help, completions and manual pages.

use std::any::TypeId;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::{Arg, Command, CommandFactory, Parser, Subcommand};

use super::context::Context;
use super::failure::Failure;
use super::options::{SocketOption, shown};
use super::{
    attach, clear, complete, completions, create, deps, disconnect, help, info, load, ls, man, map,
    message, monitor, remove, remove_all, rename, resume, state, stats, status, suspend, table,
    targets, udev, version, wait, wipe_table,
};
use crate::config::{DemoOptions, ServeOptions};
use crate::raw;

pub(super) const PROGRAM: &str = "blkswitch";

/// Switch devices in user space: made and re-mapped with dmsetup's verbs, served over NBD.
///
/// Every region of a switch device is on one of several paths; messages move regions while I/O
/// runs. Start the daemon with `blkswitch serve`, then use the other verbs as those of dmsetup.
/// `blkswitch demo` shows all of it.
#[derive(Debug, Parser)]
#[command(name = PROGRAM, version, infer_long_args = true, disable_help_subcommand = true)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) socket: SocketOption,
    #[command(subcommand)]
    pub(super) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    Serve(ServeOptions),
    Demo(DemoOptions),
    #[command(flatten)]
    Client(ClientVerb),
    Completions(completions::Completions),
    Man(man::Man),
    Help(help::Help),
    #[command(name = "__complete", hide = true)]
    Complete(complete::Complete),
    #[command(
        name = "mknodes",
        hide = true,
        aliases = [
            "udevcreatecookie",
            "udevreleasecookie",
            "udevflags",
            "udevcomplete",
            "udevcomplete_all",
            "udevcookies"
        ]
    )]
    Udev(udev::Accepted),
}

/// Defines the verbs that need the daemon, one line each: the name, the type, and the switches of
/// dmsetup that the verb's help shows, if the verb takes those.
macro_rules! client_verbs {
    ($($(#[$attribute:meta])* $name:literal $verb:ident($type:ty) $(shows $shown:expr)?;)*) => {
        /// The verbs that ask the daemon.
        #[derive(Debug, Subcommand)]
        pub(super) enum ClientVerb {
            $($(#[$attribute])* #[command(name = $name)] $verb($type),)*
        }

        impl ClientVerb {
            pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
                match self {
                    $(Self::$verb(verb) => verb.run(context).await,)*
                }
            }
        }

        /// For each verb, the switches of dmsetup that its help shows.
        pub(super) const SHOWN_SWITCHES: &[(&str, &[&str])] =
            &[$($(($name, $shown),)?)* ("help", help::SHOWN)];
    };
}

client_verbs! {
    "create" Create(create::Create) shows create::SHOWN;
    #[command(visible_alias = "reload")] "load" Load(load::Load) shows load::SHOWN;
    "resume" Resume(resume::Resume) shows resume::SHOWN;
    "suspend" Suspend(suspend::Suspend) shows suspend::SHOWN;
    "clear" Clear(clear::Clear) shows clear::SHOWN;
    "attach" Attach(attach::Attach) shows attach::ATTACH_SHOWN;
    "detach" Detach(attach::Detach) shows attach::DETACH_SHOWN;
    "disconnect" Disconnect(disconnect::Disconnect) shows disconnect::SHOWN;
    "message" Message(message::Message) shows message::SHOWN;
    "map" Map(map::Map);
    "stats" Stats(stats::Stats) shows stats::SHOWN;
    "state" State(state::State);
    "table" Table(table::Table) shows table::SHOWN;
    "status" Status(status::Status) shows status::SHOWN;
    "info" Info(info::Info) shows info::SHOWN;
    "ls" Ls(ls::Ls) shows ls::SHOWN;
    "deps" Deps(deps::Deps) shows deps::SHOWN;
    "rename" Rename(rename::Rename) shows rename::SHOWN;
    "remove" Remove(remove::Remove) shows remove::SHOWN;
    "remove_all" RemoveAll(remove_all::RemoveAll) shows remove_all::SHOWN;
    "wipe_table" WipeTable(wipe_table::WipeTable) shows wipe_table::SHOWN;
    "wait" Wait(wait::Wait) shows wait::SHOWN;
    "monitor" Monitor(monitor::Monitor) shows monitor::SHOWN;
    "targets" Targets(targets::Targets) shows targets::SHOWN;
    "version" Version(version::Version) shows version::SHOWN;
}

/// The definition of the command line.
pub(super) fn command() -> Command {
    let define = |command: Command, (verb, ids): &(&str, &[&str])| {
        command.mut_subcommand(verb, |command| shown(command, ids))
    };
    with_decoded_paths(SHOWN_SWITCHES.iter().fold(Cli::command(), define))
}

/// Decodes all words that are paths ([`raw`]).
fn with_decoded_paths(command: Command) -> Command {
    let is_path = |arg: &Arg| arg.get_value_parser().type_id() == TypeId::of::<PathBuf>();
    let decode = |arg: Arg| if is_path(&arg) { arg.value_parser(DecodedPath) } else { arg };
    command.mut_args(decode).mut_subcommands(with_decoded_paths)
}

/// Parses a path as clap does, after decoding it.
#[derive(Debug, Clone)]
struct DecodedPath;

impl TypedValueParser for DecodedPath {
    type Value = PathBuf;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
    ) -> Result<PathBuf, clap::Error> {
        // Only the environment has words that are not UTF-8 here.
        let path = value.to_str().map(raw::path);
        let path = path.as_deref().map_or(value, Path::as_os_str);
        PathBufValueParser::new().parse_ref(command, arg, path)
    }
}

/// The usage line of a verb or of the program.
pub(super) fn usage(verb: Option<&str>) -> String {
    let mut command = command();
    command.build();
    let usage = match verb.and_then(|verb| command.find_subcommand_mut(verb)) {
        Some(command) => command.render_usage(),
        None => command.render_help(),
    };
    format!("{usage}\n")
}
