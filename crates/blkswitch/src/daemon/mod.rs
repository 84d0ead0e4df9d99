//! The daemon: it owns the devices, offers them over NBD and as disks, and answers the control
//! protocol on a unix socket.
//!
//! | folder | contents |
//! |---|---|
//! | [`server`] | the control protocol over HTTP: routes and their document, connections, events, metrics |
//! | [`checker`] | probes the paths of multipath devices |
//! | [`devices`] | the operations on devices and disks; saves what the next daemon needs |
//! | [`sources`] | maps that files and arrays supply |
//! | [`tables`] | from the text of a table to a table that runs, and back |
//! | [`state`] | the files of `serve --state` |
//! | [`process`] | sockets, signals, limits, privileges, mounts |
//! | [`failure`] | why something was refused |
//!
//! Each uses only those below it.
//!
//! Contract: one daemon per process, in the foreground. [`serve`] returns after a signal has ended
//! it ([`process::stop`]): it accepts nothing new, finishes and answers the requests in flight,
//! flushes every leaf, and removes the socket files. Anything that does not end in time is reported
//! and makes `serve` return an error.

pub mod checker;
pub mod devices;
pub mod failure;
pub mod process;
pub mod server;
pub mod sources;
pub mod state;
pub mod tables;

use std::ffi::OsStr;
use std::future::Future;
use std::io::{IsTerminal, Write};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use blkswitch_io::export::nbd::admission::raise_descriptor_limit;
use blkswitch_io::{Pool, PoolOptions, closer};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

use self::devices::Devices;
use self::devices::vhost_user::Sockets;
use self::process::privileges::Privileges;
use self::process::runtime::{keep_a_thread, runtime};
use self::process::sockets::Kept;
use self::process::stop::{InUse, Signals};
use self::process::{limits, listen, mounts, privileges, sockets};
use self::server::app::App;
use self::server::monitor::Monitor;
use self::server::router;
use self::state::Folder;
use crate::config::{LogFormat, NbdAddress, PathOptions, ServeOptions};
use crate::printable;
use crate::protocol::AttachUblk;

/// How long control requests under way may take once the daemon stops. Long polls end by
/// themselves; a message may stall for this long.
const CONTROL_GRACE: Duration = Duration::from_secs(10);
/// Interval of the check whether a queue has failed. A queue fails only if the kernel takes its
/// ring away.
const HEALTH_CHECK: Duration = Duration::from_secs(1);
/// How long to wait after that for threads of control requests that are not done.
const THREAD_GRACE: Duration = Duration::from_secs(1);

/// Serves devices until SIGTERM or SIGINT.
pub fn serve(options: ServeOptions) -> anyhow::Result<()> {
    init_log(&options)?;
    // Before any thread is started, so that all threads have the privileges.
    let privileges = privileges::claim(options.ublk);
    let runtime = runtime()?;
    let stopped = runtime.block_on(async {
        let mut signals = Signals::new()?;
        let daemon = Daemon::start_with(&options, privileges)?;
        announce(&options, &daemon);
        let devices = daemon.devices().clone();
        let in_use = move || devices.disks_in_use();
        let asked: Option<InUse> = (!options.leave_disks).then(|| Arc::new(in_use) as InUse);
        daemon.run(async move { signals.agreed(asked).await }).await
    });
    runtime.shutdown_timeout(THREAD_GRACE);
    // Lets closed leaves tell their servers that the client leaves.
    closer::settle(THREAD_GRACE);
    stopped
}

/// Tells the process that started the daemon that it is ready, and where.
fn announce(options: &ServeOptions, daemon: &Daemon) {
    let mut text = format!("ready: control socket {}\n", options.socket.display());
    for uri in daemon.nbd() {
        text.push_str(&format!("ready: {uri}\n"));
    }
    // Standard output may be closed: nobody has to listen.
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// A daemon whose sockets listen.
pub struct Daemon {
    devices: Arc<Devices>,
    nbd: Vec<String>,
    control: UnixListener,
    /// Limit of open descriptors of the process.
    descriptors: usize,
    stop: watch::Sender<bool>,
    monitor: Monitor,
    paths: PathOptions,
    stop_timeout: Duration,
    /// Removed when the daemon has stopped.
    sockets: Vec<Kept>,
}

impl Daemon {
    /// Opens the sockets and starts the queues. Must be called within a Tokio runtime.
    pub fn start(options: &ServeOptions) -> anyhow::Result<Daemon> {
        Daemon::start_with(options, Privileges::default())
    }

    /// [`Daemon::start`] in a process that has got `privileges`.
    fn start_with(options: &ServeOptions, privileges: Privileges) -> anyhow::Result<Daemon> {
        let (control, control_file) = listen::unix(&options.socket)?;
        let control = listen::for_runtime(control).context("cannot use the control socket")?;
        // Must come before the pool reads the limit.
        let descriptors = raise_descriptor_limit().context("cannot learn the descriptor limit")?;
        let pool = PoolOptions {
            queues: options.queues.unwrap_or(PoolOptions::default().queues),
            memory_bytes: limits::client_memory(),
        };
        let pool = Pool::start(pool).context("cannot start the queues")?;
        let (mut nbd, mut listeners) = (Vec::new(), Vec::new());
        let mut sockets = vec![Kept::new(control_file, true)];
        for address in nbd_addresses(options) {
            for socket in listen::nbd(&address)? {
                listeners.push(socket.listener);
                nbd.push(socket.uri);
                sockets.extend(socket.file.map(|file| Kept::new(file, false)));
            }
        }
        mounts::check_start(options.state.as_deref())?;
        let folder = match &options.state {
            Some(path) => Folder::of_all(path.clone())
                .with_context(|| format!("cannot keep devices in '{}'", path.display()))?,
            None => Folder::of_disks(disks_folder(&options.socket)),
        };
        let default_disk = options.ublk.then(AttachUblk::default);
        let monitor = Monitor::default();
        pool.observe(monitor.observer());
        let has_own_mounts = privileges.has_own_mounts;
        let sockets_folder = options.socket.parent().unwrap_or(Path::new(""));
        let devices = Devices::new(pool, folder, default_disk)
            .with_privileges(privileges)
            .with_paths(options.paths.clone())
            .with_sockets(Sockets::new(sockets_folder.to_owned()));
        let devices = Arc::new(devices);
        devices.recover(options.abandon_disks)?;
        if has_own_mounts {
            let devices = Arc::downgrade(&devices);
            mounts::watch(move || Some(devices.upgrade()?.disk_names().collect()));
        }
        // Only now: clients that connect early wait until the devices are restored.
        for (listener, uri) in listeners.into_iter().zip(&nbd) {
            devices.pool().listen(listener)?;
            tracing::info!(%uri, "NBD");
        }
        let (stop, _) = watch::channel(false);
        tracing::info!(socket = %options.socket.display(), queues = devices.pool().queues().count(), "control");
        let paths = options.paths.clone();
        let stop_timeout = options.stop_timeout;
        Ok(Daemon {
            devices,
            nbd,
            control,
            descriptors,
            stop,
            monitor,
            paths,
            stop_timeout,
            sockets,
        })
    }

    /// NBD URIs of the listening sockets, without an export name.
    pub fn nbd(&self) -> &[String] {
        &self.nbd
    }

    /// The devices that the daemon serves.
    pub fn devices(&self) -> &Arc<Devices> {
        &self.devices
    }

    /// Serves until `until` is done, then stops in good order.
    pub async fn run(self, until: impl Future<Output = ()> + Send + 'static) -> anyhow::Result<()> {
        let app = App::new(
            self.devices.clone(),
            self.nbd.clone(),
            self.monitor.clone(),
            self.stop.subscribe(),
        );
        let changed = self.monitor.paths_changed.clone();
        let checker = tokio::spawn(checker::run(self.devices.clone(), self.paths, changed));
        let retry = tokio::spawn(devices::standing::retry(self.devices.clone()));
        let sources = tokio::spawn(devices::following::follow(self.devices.clone()));
        let troubles =
            tokio::spawn(server::troubles::run(self.devices.clone(), self.monitor.clone()));
        tokio::spawn(keep_a_thread());
        let stop = self.stop.clone();
        let devices = self.devices.clone();
        let mut stopping = self.stop.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                () = until => {}
                () = queue_failure(&devices) => tracing::error!("a queue has failed: the daemon ends"),
            }
            stop.send_replace(true);
        });
        let limits = server::accept::Limits::of(self.descriptors);
        let (router, stop) = (router(app), self.stop.clone());
        let serve_control = move |listener| {
            server::accept::serve(listener, router.clone(), limits, stop.subscribe())
        };
        let served = tokio::spawn(serve_control(self.control));
        let devices = self.devices.clone();
        let serve_nbd = Arc::new(move |listener: StdUnixListener| {
            if let Err(error) = devices.pool().listen(listener.into()) {
                tracing::warn!(%error, "nobody answers at a socket for NBD clients");
            }
        });
        let kept = sockets::keep(self.sockets, self.stop.subscribe(), serve_control, serve_nbd);
        let kept = tokio::spawn(kept);
        // An error means that the sender is gone, which ends the daemon as well.
        let _ = stopping.wait_for(|stopping| *stopping).await;
        tracing::info!("stopping: finishing what is under way");
        checker.abort();
        retry.abort();
        sources.abort();
        troubles.abort();
        match tokio::time::timeout(CONTROL_GRACE, served).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(error).context("the control server failed"),
            Err(_) => tracing::warn!("control requests were not done in time and are given up"),
        }
        // Keeps the socket files until the end of this function.
        let _sockets = tokio::time::timeout(THREAD_GRACE, kept).await;
        let devices = self.devices.clone();
        devices.leave_disks();
        let time = self.stop_timeout;
        let unfinished = tokio::task::spawn_blocking(move || devices.pool().stop_within(time))
            .await
            .context("the queues failed to stop")?;
        ensure!(!self.devices.pool().failed(), "a queue failed: see the log");
        ensure!(unfinished.is_empty(), "stopped, but not in good order: {}", unfinished.join("; "));
        tracing::info!("stopped");
        Ok(())
    }
}

/// Folder of what the next daemon needs for the disks. It lies beside the control socket; sockets
/// in one folder have different folders.
fn disks_folder(socket: &Path) -> PathBuf {
    match socket.file_name().and_then(OsStr::to_str) {
        Some(name) if name != "control.sock" => socket.with_file_name(format!("{name}.disks")),
        _ => socket.with_file_name("disks"),
    }
}

/// Waits until a queue has failed. Its connections are dead, and the daemon cannot recover.
async fn queue_failure(devices: &Devices) {
    while !devices.pool().failed() {
        tokio::time::sleep(HEALTH_CHECK).await;
    }
}

/// The addresses for NBD clients: those of the options, or a socket beside the control socket.
fn nbd_addresses(options: &ServeOptions) -> Vec<NbdAddress> {
    if options.nbd.is_empty() {
        return vec![NbdAddress::Unix(options.socket.with_file_name("nbd.sock"))];
    }
    options.nbd.clone()
}

/// Sets up logging to standard error.
fn init_log(options: &ServeOptions) -> anyhow::Result<()> {
    let filter: Targets = options
        .log_level
        .parse()
        .with_context(|| format!("'{}' is no log level and no filter", options.log_level))?;
    let has_colours =
        matches!(options.log_format, LogFormat::Human) && std::io::stderr().is_terminal();
    let writer = move || printable::Log { to: std::io::stderr(), has_colours };
    let log = tracing_subscriber::fmt::layer().with_writer(writer);
    let registry = tracing_subscriber::registry().with(filter);
    match options.log_format {
        LogFormat::Human => registry.with(log.with_ansi(has_colours)).init(),
        LogFormat::Json => registry.with(log.json()).init(),
    }
    Ok(())
}
