//! `demo`: the command line of the demonstration.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// Show a switch device over three files, remap it, and prove where its data is
///
/// Needs neither root nor arguments and leaves nothing behind.
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct DemoOptions {
    /// Another demonstration
    #[command(subcommand)]
    pub what: Option<DemoOf>,
    /// Keep serving until Ctrl-C, and print commands to try
    #[arg(long)]
    pub keep: bool,
}

/// The other demonstrations.
#[derive(Debug, Clone, Subcommand)]
pub enum DemoOf {
    /// A storage group.
    Group(GroupOptions),
}

/// Show a storage group whose regions move, and a host that follows them
///
/// All of it runs in this process: members that own the regions of one volume and forward requests
/// to each other, and a host with a switch device over one multipath device per member. Regions
/// move under load, a network is cut, a member dies.
#[derive(Debug, Clone, Args)]
pub struct GroupOptions {
    /// Members of the group
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(2..=16))]
    pub members: u32,
    /// Seconds to watch after each event
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0, value_parser = parse_act)]
    pub act: f64,
    /// How the host reaches the members
    #[arg(long, value_enum, default_value_t = Transport::Nbd)]
    pub transport: Transport,
    /// Draw the observations into this file (SVG)
    #[arg(long, value_name = "FILE")]
    pub figure: Option<PathBuf>,
}

/// The protocol between the host and the members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    /// NBD, by unix sockets.
    Nbd,
    /// iSCSI, with tgt in front of each member. Needs root, tgt and nbdfuse.
    Iscsi,
}

fn parse_act(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.5..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err(format!("'{text}' is no number of seconds from 0.5 to 3600")),
    }
}
