//! The demonstration: a switch device at work, in one command without root, set-up or arguments.
//!
//! It makes three backing files, starts a daemon inside itself, and drives it like a user: for each
//! verb it runs this program again, with the words that it prints. It writes and reads through the
//! NBD export. Then it reads the backing files, without the daemon, to prove which path each region
//! is on.
//!
//! Contract: all files are in one new folder below the temporary folder, which is removed at the
//! end. Anything unexpected is an error, with an exit status other than zero.

mod group;
mod stage;

use std::fs;
use std::io::{Write as _, stdout};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use self::stage::{Folder, Running, program, say, verb};
use crate::config::{DemoOf, DemoOptions};
use crate::daemon::process::listen::uri_of_device;
use crate::daemon::process::runtime::runtime;
use crate::daemon::process::stop::Signals;
use crate::nbd_client::NbdClient;

/// Bytes of a region: 128 sectors, as in the documented example.
const REGION: usize = 64 << 10;
/// Regions of the device.
const REGIONS: usize = 16;
/// The paths of the regions after the documented message: it names seven, the others are round
/// robin.
const PATHS: [usize; REGIONS] = [0, 1, 2, 0, 1, 2, 1, 1, 2, 0, 1, 2, 0, 1, 2, 0];
const NAME: &str = "switch";

/// Shows a switch device at work, or the demonstration of `options`.
pub fn run(options: DemoOptions) -> anyhow::Result<()> {
    match &options.what {
        Some(DemoOf::Group(group)) => group::run(group),
        None => run_switch(options.keep),
    }
}

fn run_switch(keep_serving: bool) -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let socket = folder.0.join("control.sock");
    let files: Vec<PathBuf> = (0..3).map(|path| folder.0.join(format!("switch{path}"))).collect();
    for file in &files {
        let made =
            fs::File::create_new(file).and_then(|made| made.set_len((REGION * REGIONS) as u64));
        made.with_context(|| format!("cannot make '{}'", file.display()))?;
    }
    say(&format!(
        "Three paths to three files of 1 MiB, {}/switch0..2. (The paths of a storage group lead to \
         one volume. Here they differ, so that the files show which path each region took.)",
        folder.0.display()
    ))?;
    let daemon = Running::start(&socket, None)?;
    let shown = show(&socket, &files).and_then(|()| prove(&folder.0.join("nbd.sock"), &files));
    let ended = shown.and_then(|()| {
        say("I/O per path, as the daemon counted it:")?;
        verb(&socket, &["stats", NAME])?;
        let uri = uri_of_device(&daemon.uri, NAME);
        say(&format!("NBD URI, for any NBD client: {uri}"))?;
        if keep_serving { keep(&socket, &uri) } else { Ok(()) }
    });
    daemon.stop()?;
    ended?;
    say("All of it was as it should be.")?;
    Ok(())
}

/// Makes the documented example and sends the documented message.
fn show(socket: &Path, files: &[PathBuf]) -> anyhow::Result<()> {
    let paths: String = files.iter().map(|file| format!(" {} 0", file.display())).collect();
    let table = format!("0 {} switch 3 128 0{paths}", REGION * REGIONS / 512);
    say("A switch device over them, in regions of 128 sectors (64 KiB):")?;
    verb(socket, &["create", NAME, "--table", &table])?;
    verb(socket, &["table", NAME])?;
    say("Regions start round robin. A message moves the first seven:")?;
    verb(
        socket,
        &["message", NAME, "0", "set_region_mappings", "0:0", ":1", ":2", ":0", ":1", ":2", ":1"],
    )?;
    verb(socket, &["map", "show", NAME])
}

/// Writes and reads through the export, then finds every region in the backing files.
fn prove(nbd: &Path, files: &[PathBuf]) -> anyhow::Result<()> {
    let mut client = NbdClient::unix(nbd, NAME).context("cannot connect to the NBD export")?;
    ensure!(client.size() == (REGION * REGIONS) as u64, "the export has {} bytes", client.size());
    for region in 0..REGIONS {
        client
            .write((region * REGION) as u64, &content(region), false)
            .context("a write failed")?;
    }
    client.flush().context("the flush failed")?;
    for region in 0..REGIONS {
        let read = client.read((region * REGION) as u64, REGION).context("a read failed")?;
        ensure!(read == content(region), "region {region} reads back differently");
    }
    client.disconnect().context("the client could not take its leave")?;
    say("Wrote and read back every region over NBD. Looked up in the files, past the daemon:")?;
    let images: Vec<Vec<u8>> = files.iter().map(fs::read).collect::<Result<_, _>>()?;
    for (region, expected) in PATHS.iter().enumerate() {
        let here = |image: &Vec<u8>| {
            image.get(region * REGION..(region + 1) * REGION) == Some(&content(region))
        };
        let found: Vec<usize> = (0..images.len()).filter(|path| here(&images[*path])).collect();
        ensure!(
            found == [*expected],
            "region {region} is in the files {found:?}, it should be in {expected}"
        );
    }
    for (path, image) in images.iter().enumerate() {
        let regions: Vec<usize> = (0..REGIONS).filter(|region| PATHS[*region] == path).collect();
        for region in (0..REGIONS).filter(|region| !regions.contains(region)) {
            let blank = image[region * REGION..(region + 1) * REGION].iter().all(|byte| *byte == 0);
            ensure!(
                blank,
                "path {path} holds something in region {region}, which was never sent there"
            );
        }
        writeln!(stdout(), "  switch{path} holds the regions {regions:?} and nothing else")?;
    }
    Ok(())
}

/// The content of a region: its number in every word, so that no two regions are alike.
fn content(region: usize) -> Vec<u8> {
    format!("region {region:08} ").into_bytes().into_iter().cycle().take(REGION).collect()
}

/// Serves until Ctrl-C, and prints commands to try.
fn keep(socket: &Path, uri: &str) -> anyhow::Result<()> {
    let program = program()?.display().to_string();
    let socket = socket.display();
    let runtime = runtime()?;
    // Handle Ctrl-C before the text below tells the user to press it.
    let mut signals = runtime.block_on(async { Signals::new() })?;
    say("Serving until Ctrl-C. To try in another terminal:")?;
    writeln!(stdout(), "  export BLKSWITCH_SOCKET={socket}")?;
    writeln!(stdout(), "  nbdinfo '{uri}'")?;
    writeln!(stdout(), "  nbdinfo --map=blkswitch:path '{uri}'")?;
    writeln!(stdout(), "  {program} message {NAME} 0 set_region_mappings 0:2 R1,f")?;
    writeln!(stdout(), "  {program} map show {NAME}")?;
    stdout().flush()?;
    runtime.block_on(signals.first());
    Ok(())
}
