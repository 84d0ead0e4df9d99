//! Stand-ins for kept devices that cannot be served yet, because a file, a server or a map is away.
//! The daemon starts all the same. Such a device has its name, number, size and exports, and an
//! error table stands in for the saved one. The daemon retries until it can build the saved table,
//! then exchanges the two.
//!
//! I/O to a stand-in fails as it would on a path that is down. In two cases failing would be worse,
//! and the I/O waits at a closed gate: under a disk that an earlier daemon has left, whose users
//! would lose their writes; and for a multipath that queues without a path. `resume` opens that
//! gate.
//!
//! Contract: as [`super`]. The description of a stand-in is the saved one; only `remove` and
//! `state forget` delete it. A retry holds nothing that another device needs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use blkswitch_core::multipath::checker::NoPathRetry;
use blkswitch_io::device::Interrupt;
use blkswitch_io::{Device, Table, TableBuilder, Target};
use tokio::sync::Semaphore;

use crate::daemon::devices::{Devices, save};
use crate::daemon::failure::Failure;
use crate::daemon::state::SavedDevice;
use crate::daemon::tables::build;
use crate::daemon::tables::builder::{Maps, Site};
use crate::daemon::tables::lines::{Line, Lines};
use crate::daemon::tables::lookup::{Found, find};
use crate::daemon::tables::opening::Opening;
use crate::daemon::tables::words::device_word;
use crate::printable::on_one_line;
use crate::protocol::{self, Errno, LeafOptions, LoadTable, RemoveQuery};
use crate::raw;

/// Pause before the second attempt. Each further pause is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Interval between two checks for devices that are due.
const LOOK: Duration = Duration::from_millis(250);
/// Most devices that are tried at a time.
const TRIES_MAX: usize = 16;
/// Longest time that a start waits for slow devices.
const START_TIME: Duration = Duration::from_secs(10);
/// Pause between two attempts to open what a killed daemon has not released yet.
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// A device whose table is away.
struct StandIn {
    device: Arc<Device>,
    saved: SavedDevice,
    /// The error table that stands in. The entry is void once another table is live.
    table: Arc<Table>,
    reason: String,
    /// The running attempt, which knows what it waits for; `None` if no attempt is under way.
    trying: Option<Arc<Opening>>,
    due: Instant,
    pause: Duration,
}

/// The devices whose tables are away, by device number.
#[derive(Default)]
pub struct Standing(Mutex<HashMap<u32, StandIn>>);

impl Standing {
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, StandIn>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Drops entries whose device was removed or got another table from the user.
        all.retain(|_, one| one.device.live().is_some_and(|live| Arc::ptr_eq(&live, &one.table)));
        all
    }

    fn of<T>(&self, device: &Device, with: impl FnOnce(&mut StandIn) -> T) -> Option<T> {
        self.lock().get_mut(&device.id()).filter(|one| is(device, &one.device)).map(with)
    }

    /// The saved description of a device whose table is away, with its current name and UUID.
    pub fn saved(&self, device: &Device) -> Option<SavedDevice> {
        let info = device.info();
        self.of(device, |one| SavedDevice { name: info.name, uuid: info.uuid, ..one.saved.clone() })
    }

    /// Why the table of a device is away; `None` if it is not away.
    pub fn reason(&self, device: &Device) -> Option<String> {
        self.of(device, |one| match &one.trying {
            Some(trying) if one.reason.is_empty() => trying.waits_for(),
            _ => one.reason.clone(),
        })
    }

    /// Notes that the user has closed or opened the gate.
    pub fn set_suspended(&self, device: &Device, suspended: bool) {
        self.of(device, |one| one.saved.suspended = suspended);
    }

    /// Follows a rename in the saved tables, which name devices below by name.
    pub fn renamed(&self, old: &str, new: &str) {
        let (old, new) = (device_word(old), device_word(new));
        for one in self.lock().values_mut() {
            let word = |word: &str| match word.trim_end() {
                trimmed if trimmed == old => word.replacen(&old, &new, 1),
                _ => word.to_owned(),
            };
            one.saved.table =
                one.saved.table.split_inclusive([' ', '\t', '\n']).map(word).collect();
        }
    }
}

fn is(one: &Device, other: &Arc<Device>) -> bool {
    std::ptr::eq(one, Arc::as_ptr(other))
}

impl Devices {
    /// Creates a saved device with a table that stands in for its own.
    pub(crate) fn stand_in(&self, saved: &SavedDevice, is_left: bool) -> anyhow::Result<()> {
        let device = self.pool().registry().create(&saved.name, &saved.uuid, Some(saved.minor))?;
        self.remember_cache(&device, saved.cache);
        device.restore_generation(saved.known_generation());
        for map in &saved.maps {
            // A map that is away has its number in the description, perhaps an older one.
            device.restore_generation(self.folder.generation_in(map).unwrap_or(0));
        }
        let text = raw::decode(&saved.table);
        let lines = Lines::parse(&text);
        self.restore_source(&device, saved.map_from.as_deref());
        let mut error = TableBuilder::new(saved.read_only).least_block(saved.block);
        error.push(lines.sectors(), Target::Error);
        device.load(error.build()?)?;
        device.resume()?;
        let waits = queues_without_path(&lines, self.no_path_retry_of(&saved.name));
        if is_left || saved.suspended || waits {
            device.suspend_noflush()?;
        }
        let Some(table) = device.live() else { return Ok(()) };
        let (saved, now) = (saved.clone(), Instant::now());
        let (reason, trying, pause) = (String::new(), None, FIRST_PAUSE);
        let one = StandIn { device, saved, table, reason, trying, due: now, pause };
        self.standing.lock().insert(one.saved.minor, one);
        Ok(())
    }

    /// Gives all devices their tables, lower devices first. Returns when that is done or
    /// [`START_TIME`] is over; slow devices go on in the background.
    pub(crate) fn revive_all(self: &Arc<Self>) {
        let until = Instant::now() + START_TIME;
        let mut left = self.standing_numbers();
        while !left.is_empty() {
            // First those whose lower devices are done or will not be done soon.
            let (next, later): (Vec<u32>, Vec<u32>) =
                left.iter().partition(|number| !self.below(**number).any(|id| left.contains(&id)));
            // In a circle of tables each waits for another; so all are tried, and each is refused.
            let (next, later) = if next.is_empty() { (later, next) } else { (next, later) };
            self.revive_these(&next, until);
            left = later;
        }
    }

    /// Tries these devices, several at a time, until all were tried or `until` has passed.
    fn revive_these(self: &Arc<Self>, numbers: &[u32], until: Instant) {
        let queue = Arc::new(Mutex::new(numbers.to_vec()));
        let work = move |devices: Arc<Devices>, queue: Arc<Mutex<Vec<u32>>>| {
            let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
            while let Some(number) = next() {
                devices.revive(number, until);
            }
        };
        let start = |_| {
            let (devices, queue) = (self.clone(), queue.clone());
            let thread = std::thread::Builder::new().name("restore".into());
            thread.spawn(move || work(devices, queue)).ok()
        };
        let threads: Vec<_> = (0..numbers.len().min(TRIES_MAX)).filter_map(start).collect();
        for thread in threads {
            while !thread.is_finished() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(1));
            }
            if thread.is_finished() {
                let _ = thread.join();
            }
        }
    }

    fn standing_numbers(&self) -> Vec<u32> {
        self.standing.lock().keys().copied().collect()
    }

    /// Numbers of the devices that the saved table of a device names.
    fn below(&self, number: u32) -> impl Iterator<Item = u32> + use<> {
        let text = self.standing.lock().get(&number).map(|one| one.saved.table.clone());
        let below = self.named_in(text.as_deref().unwrap_or_default());
        below.into_iter().map(|device| device.id())
    }

    /// The devices that a table's text names.
    pub(crate) fn named_in(&self, text: &str) -> Vec<Arc<Device>> {
        let text = raw::decode(text);
        let lines = Lines::parse(&text);
        let found = lines.iter().flat_map(|line| &line.words).filter_map(|word| {
            match find(word, self.pool().registry()) {
                Ok(Found::Device(device)) => Some(device),
                _ => None,
            }
        });
        found.collect()
    }

    /// Tries to give a device its table. A leaf that is busy is tried again until `until`: a killed
    /// daemon holds its files until the kernel has finished the I/O in flight.
    fn revive(&self, number: u32, until: Instant) {
        let opening = Arc::new(Opening::default());
        let begun = self.standing.lock().get_mut(&number).map(|one| {
            one.trying = Some(opening.clone());
            (one.device.clone(), one.saved.clone(), one.table.clone())
        });
        let Some((device, saved, stand_in)) = begun else { return };
        let _over = Over { devices: self, number };
        let built = self.build_saved(&device, &saved, &opening, until);
        let ready = built.inspect(|table| self.apply_no_path_retry(&saved.name, table));
        match ready.and_then(|table| self.exchange(&device, table, &stand_in)) {
            Ok(()) => {}
            Err(failure) => self.still_away(&device, failure.reason),
        }
    }

    fn build_saved(
        &self,
        device: &Arc<Device>,
        saved: &SavedDevice,
        opening: &Opening,
        until: Instant,
    ) -> Result<Table, Failure> {
        let leaves = LeafOptions { make_files: false, cache: saved.cache };
        let load = LoadTable {
            table: saved.table.clone(),
            read_only: saved.read_only,
            leaves,
            ..LoadTable::default()
        };
        let maps = Maps::saved(&self.folder, &saved.maps);
        let site = Site { maps, restores: true, ..self.site(device, opening) };
        let text = raw::decode(&load.table);
        let lines = Lines::parse(&text);
        loop {
            match build(&site, &load, &lines) {
                Err(failure) if failure.errno == Errno::Ebusy && Instant::now() < until => {
                    site.maps.rewind();
                    std::thread::sleep(BUSY_PAUSE);
                }
                built => return built,
            }
        }
    }

    /// Replaces a stand-in by the table that it stands for.
    fn exchange(
        &self,
        device: &Arc<Device>,
        table: Table,
        stand_in: &Arc<Table>,
    ) -> Result<(), Failure> {
        let (needed, told) = (table.logical_block(), stand_in.logical_block());
        if needed > told && device.info().opens > 0 {
            let reason = format!(
                "the table needs blocks of {needed} bytes, and who has the device open was told of {told}"
            );
            return Err(Failure::new(Errno::Einval, reason));
        }
        let Some(saved) = self.standing.saved(device) else { return Ok(()) };
        if saved.disk.is_some() {
            table.prefer_direct();
        }
        let maps = save::maps(&table).filter_map(|map| self.folder.saved_as(map));
        maps.for_each(|map| device.restore_generation(map.generation));
        if !device.replace(table, stand_in, !saved.suspended)? {
            return Ok(());
        }
        tracing::info!(device = %saved.name, "has its table");
        self.table_went_live(device);
        if !self.recovering() {
            if let Err(failure) = self.save() {
                // The existing description still describes the device.
                tracing::warn!(device = %saved.name, reason = %failure.reason,
                    "the description stays as it was");
            }
            self.attach_if_default(device);
        }
        Ok(())
    }

    fn still_away(&self, device: &Device, reason: String) {
        let reason = on_one_line(&reason).into_owned();
        let said = self.standing.of(device, |one| {
            let said = one.reason == reason;
            one.reason.clone_from(&reason);
            said
        });
        let name = device.name();
        match said {
            Some(false) => tracing::warn!(device = %name, %reason,
                "cannot be served yet: its table is away; trying again"),
            _ => tracing::debug!(device = %name, %reason, "cannot be served yet"),
        }
    }

    /// Everything that is kept for the next daemon.
    pub fn kept(&self) -> protocol::KeptList {
        let kept = |saved: SavedDevice| {
            let device = self.pool().registry().by_id(saved.minor);
            protocol::KeptDevice {
                name: saved.name,
                uuid: saved.uuid,
                minor: saved.minor,
                table: saved.table,
                away: device.and_then(|device| self.standing.reason(&device)),
            }
        };
        protocol::KeptList {
            folder: self.folder.path().display().to_string(),
            keeps_all: self.folder.keeps_all(),
            devices: self.described(&HashMap::new()).into_iter().map(kept).collect(),
        }
    }

    /// Forgets a device whose table is away.
    ///
    /// Errors: the device is served.
    pub fn forget(&self, device: &Arc<Device>) -> Result<(), Failure> {
        if self.standing.reason(device).is_none() {
            let reason = format!("device '{}' is served: remove it", device.name());
            return Err(Failure::new(Errno::Ebusy, reason));
        }
        self.remove(device, RemoveQuery::default(), &Interrupt::default())
    }

    /// Refuses an operation that needs the table if the table is away.
    pub fn check_there(&self, device: &Device) -> Result<(), Failure> {
        let Some(reason) = self.standing.reason(device) else { return Ok(()) };
        let reason = format!("the table of '{}' is away: {reason}", device.name());
        Err(Failure::new(Errno::Eio, reason))
    }

    /// Adds to `text` what `table` and `status` show of a device whose table is away.
    pub(crate) fn describe_away(&self, device: &Device, text: &mut protocol::Device) {
        let Some(saved) = self.standing.saved(device) else { return };
        let reason = self.standing.reason(device).unwrap_or_default();
        let segment = |line: &Line<'_>| protocol::Segment {
            start: line.start,
            length: line.len,
            target: raw::encode(line.kind).into_owned(),
            params: raw::encode(line.params).into_owned(),
            status: format!("away: {reason}"),
        };
        let lines = raw::decode(&saved.table);
        let segments = Lines::parse(&lines).iter().map(segment).collect();
        text.live = Some(protocol::LoadedTable { segments, deps: Vec::new() });
        text.away = Some(reason);
    }
}

/// Ends an attempt when it is dropped, however the attempt went.
struct Over<'a> {
    devices: &'a Devices,
    number: u32,
}

impl Drop for Over<'_> {
    fn drop(&mut self) {
        if let Some(one) = self.devices.standing.lock().get_mut(&self.number) {
            one.trying = None;
            one.due = Instant::now() + one.pause;
            one.pause = (one.pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// Retries devices whose tables are away, for as long as the future is polled.
pub async fn retry(devices: Arc<Devices>) {
    let places = Arc::new(Semaphore::new(TRIES_MAX));
    loop {
        tokio::time::sleep(LOOK).await;
        let now = Instant::now();
        let is_due = |one: &StandIn| one.trying.is_none() && one.due <= now;
        let due: Vec<u32> = {
            let all = devices.standing.lock();
            all.iter().filter(|(_, one)| is_due(one)).map(|(number, _)| *number).collect()
        };
        for number in due {
            let Ok(place) = places.clone().try_acquire_owned() else { break };
            let devices = devices.clone();
            // Otherwise the next look would find the device due before the thread has begun.
            devices.standing.lock().entry(number).and_modify(|one| one.due = now + LONGEST_PAUSE);
            tokio::task::spawn_blocking(move || {
                devices.revive(number, Instant::now());
                drop(place);
            });
        }
    }
}

/// Returns whether I/O to the table waits while no path is up. The option of `serve` comes before
/// the word of the table. A number of rounds counts as the table's word: the rounds of the checker
/// begin when there is a table.
fn queues_without_path(lines: &Lines<'_>, retry: Option<NoPathRetry>) -> bool {
    let mut multipaths = lines.iter().filter(|line| line.kind == b"multipath");
    match retry {
        Some(NoPathRetry::Queue) => multipaths.next().is_some(),
        Some(NoPathRetry::Fail | NoPathRetry::Rounds(0)) => false,
        Some(NoPathRetry::Rounds(_)) | None => {
            multipaths.any(|line| line.words.contains(&b"queue_if_no_path".as_slice()))
        }
    }
}
