//! `create`: makes a device, loads its table and resumes it, in one request that leaves nothing
//! behind if it fails.

use std::path::PathBuf;

use clap::Args;
use hyper::Method;

use super::context::Context;
use super::failure::{Failure, Subject};
use super::load::{LeafSwitches, read_map};
use super::names::{mangle, stored_name};
use super::options::Options;
use super::{format, table_text};
use crate::protocol::{AttachUblk, AttachVhostUser, CreateDevice, Device, route};

/// Make a device
///
/// The table comes from --table, from a file, or from standard input. With --concise, the one
/// argument (or standard input) describes any number of devices.
#[derive(Debug, Args)]
#[command(
    override_usage = "blkswitch create [OPTIONS] <NAME> [TABLE_FILE]\n       blkswitch create \
                      --concise [DESCRIPTION]",
    after_long_help = LANGUAGE
)]
pub(super) struct Create {
    /// Name of the device and file with its table
    #[arg(value_names = ["NAME", "TABLE_FILE"], num_args = 0..=2)]
    args: Vec<String>,
    /// The map of the table, from a file in the format of map export
    #[arg(long, value_name = "FILE", conflicts_with = "concise")]
    map: Option<PathBuf>,
    #[command(flatten)]
    leaves: LeafSwitches,
    /// Take the region map from file:PATH or from the array (referrals), now and whenever it
    /// changes
    #[arg(long, value_name = "SOURCE")]
    map_from: Option<String>,
    /// Attach it as a ublk disk, /dev/blkswitch/NAME, as attach does
    #[arg(long)]
    ublk: bool,
    /// Offer it to vhost-user front ends at the socket NAME.vhost, as attach does
    #[arg(long)]
    vhost_user: bool,
    /// Most virtqueues of a vhost-user front end [default: 64]
    #[arg(long, value_name = "N", requires = "vhost_user",
        value_parser = clap::value_parser!(u16).range(1..=256))]
    queues: Option<u16>,
    #[command(flatten)]
    options: Options,
}

/// The language of tables, for help and manual page (docs/switch.md has all of it).
const LANGUAGE: &str = "\
A table has one or more lines START LENGTH TYPE PARAMETERS. START and LENGTH count sectors of 512 \
bytes. All numbers of a table are decimal, without units (those of messages are hexadecimal):
  switch NUM_PATHS REGION_SIZE 0 [PATH OFFSET]...
    each region goes to the path that the map names
  linear PATH OFFSET
    all goes to one path
  striped STRIPES CHUNK_SIZE [PATH OFFSET]...
    chunks go to the paths in turn
  multipath ...
    several ways to one volume: docs/multipath.md
  zero
    reads give zeroes, writes vanish
  error
    every request fails

A PATH is a file or disk (/data/vol, /dev/sdb), another device (/dev/blkswitch/NAME), an export \
(nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH), an iSCSI unit \
(iscsi://PORTAL/TARGET/LUN), or mem:SIZE, null:SIZE, sim:SIZE. OFFSET is added to each sector. A \
new switch has region I on path I modulo NUM_PATHS; message and map set change that.

Example: 1 GiB in regions of 64 KiB over two paths to one volume
  blkswitch create vol --make-files \\
    --table '0 2097152 switch 2 128 0 /data/vol 0 /data/vol 0'";

pub(super) const SHOWN: &[&str] =
    &["table", "notable", "concise", "readonly", "uuid", "major", "minor"];

impl Create {
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        for request in self.requests()? {
            self.create(request, context).await?;
        }
        Ok(())
    }

    /// Builds the requests for the devices that the command line describes.
    fn requests(&self) -> Result<Vec<CreateDevice>, Failure> {
        if self.options.concise {
            return self.concise_requests();
        }
        let Some(name) = self.args.first() else {
            let text = "Please provide a name for the new device.\n  blkswitch create NAME --table \
                        'START LENGTH TYPE PARAMETERS'";
            return Err(Failure::message(text));
        };
        let file = self.args.get(1).map(String::as_str);
        let table = if self.options.notable {
            None
        } else {
            table_text::read(self.options.table.as_deref(), file)?
        };
        let uuid =
            self.options.uuid.as_deref().map(|uuid| mangle("UUID", uuid, self.options.manglename));
        Ok(vec![CreateDevice {
            name: stored_name(name, self.options.manglename)?,
            uuid: uuid.transpose()?,
            minor: self.options.minor,
            read_only: self.options.readonly,
            table,
            map: self.map.as_deref().map(read_map).transpose()?,
            leaves: self.leaves.options(),
            map_from: self.map_from.clone(),
            ublk: self.ublk.then(AttachUblk::default),
            vhost_user: self.vhost_user(),
        }])
    }

    fn vhost_user(&self) -> Option<AttachVhostUser> {
        self.vhost_user.then_some(AttachVhostUser { queues: self.queues })
    }

    fn concise_requests(&self) -> Result<Vec<CreateDevice>, Failure> {
        let options = &self.options;
        if options.table.is_some()
            || options.minor.is_some()
            || options.uuid.is_some()
            || options.notable
            || options.inactive
        {
            let text =
                "--concise is incompatible with --[no]table, --minor, --uuid and --inactive.";
            return Err(Failure::message(text));
        }
        let text = match self.args.as_slice() {
            [] => table_text::read_stdin()?,
            [text] => text.clone(),
            _ => return Err(Failure::message("create --concise takes at most one argument")),
        };
        let devices = table_text::parse_concise(&text)?.into_iter();
        let request = |device: table_text::Concise| {
            Ok(CreateDevice {
                name: stored_name(&device.name, options.manglename)?,
                uuid: Some(mangle("UUID", &device.uuid, options.manglename)?)
                    .filter(|uuid| !uuid.is_empty()),
                minor: device.minor,
                read_only: options.readonly || device.read_only,
                table: table_text::canonical(&device.table, "")?,
                map: None,
                leaves: self.leaves.options(),
                map_from: self.map_from.clone(),
                ublk: self.ublk.then(AttachUblk::default),
                vhost_user: self.vhost_user(),
            })
        };
        devices.map(request).collect()
    }

    async fn create(&self, request: CreateDevice, context: &mut Context) -> Result<(), Failure> {
        let subject = Subject {
            name: request.name.clone(),
            uuid: request.uuid.clone().unwrap_or_default(),
            devno: self
                .options
                .major
                .filter(|major| *major > 0)
                .zip(request.minor)
                .map(|(major, minor)| [major, minor]),
        };
        let made = context.client.exchange(Method::POST, route::DEVICES, &request).await;
        let device: Device = made.map_err(|error| error.about(subject))?;
        if self.options.json {
            context.print_json(&device)?;
        } else if self.options.verbose > 0 {
            context.print(&format::info::block(&device, false))?;
        }
        Ok(())
    }
}
