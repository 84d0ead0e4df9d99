//! Devices whose map comes from a source: `create --map-from`.
//!
//! Each such device has a thread that looks at its source. It reads the source when that shows a
//! change, when the device has got another table, and after an interval. It applies the difference
//! to the map in use as one edit, under the device's message lock.
//!
//! Contract: as [`super`]. A source that cannot be read, or makes no sense, changes nothing: the
//! map in use goes on. The log says it once for each new reason. A source that hangs holds up its
//! own device only.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use blkswitch_core::map::diff::{Change, Diff};
use blkswitch_core::switch::MapWriter;
use blkswitch_io::event::Who;
use blkswitch_io::slots::Slots;
use blkswitch_io::{Device, Segment, Table, Target};

use crate::daemon::devices::Devices;
use crate::daemon::devices::keep::in_use;
use crate::daemon::devices::message::Keeping;
use crate::daemon::failure::Failure;
use crate::daemon::sources::{Seen, Source, StagedMap, Supplied};
use crate::daemon::tables::targets::Keeper as _;
use crate::protocol::{CreateDevice, Errno, LoadTable, MapSource};

/// Interval between two looks at the sources.
const LOOK: Duration = Duration::from_millis(200);
/// A source that shows no change is read again after this time: an array need not tell.
const INTERVAL: Duration = Duration::from_secs(30);
/// Pause after a reading that failed.
const PAUSE: Duration = Duration::from_secs(1);

/// A device and its source.
pub(crate) struct Following {
    device: Weak<Device>,
    source: Source,
    state: Mutex<State>,
    /// Number of readings that failed.
    failures: AtomicU64,
    /// Whether a thread looks at the source.
    is_watched: AtomicBool,
}

#[derive(Default)]
struct State {
    seen: Seen,
    /// The table whose map was read last.
    table: Weak<Table>,
    due: Option<Instant>,
    /// When the source was read last.
    read: Option<SystemTime>,
    /// The generation after that reading.
    generation: u64,
    /// Why the last reading failed; `None` after one that succeeded.
    error: Option<String>,
    /// Remarks about the last map, for people.
    remarks: Vec<String>,
}

/// The devices that follow a source, by device number.
#[derive(Default)]
pub(crate) struct Followings(Mutex<HashMap<u32, Arc<Following>>>);

impl Followings {
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Arc<Following>>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, one| one.device.strong_count() > 0);
        all
    }

    /// The source of a device; `None` if its map is changed by messages only.
    pub(crate) fn of(&self, device: &Device) -> Option<Arc<Following>> {
        let all = self.lock();
        let one = all.get(&device.id())?;
        std::ptr::eq(one.device.as_ptr(), device).then(|| one.clone())
    }

    /// Lets a device follow a source from now on.
    pub(crate) fn set(&self, device: &Arc<Device>, source: Source) -> Arc<Following> {
        let one = Arc::new(Following {
            device: Arc::downgrade(device),
            source,
            state: Mutex::default(),
            failures: AtomicU64::new(0),
            is_watched: AtomicBool::new(false),
        });
        self.lock().insert(device.id(), one.clone());
        one
    }

    fn all(&self) -> Vec<Arc<Following>> {
        self.lock().values().cloned().collect()
    }
}

impl Following {
    /// The source.
    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The description for `info`.
    pub(crate) fn describe(&self) -> MapSource {
        let state = self.state();
        let since = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).ok();
        MapSource {
            source: self.source.to_string(),
            read_at: state.read.and_then(since).map(|time| time.as_secs()),
            generation: state.read.map(|_| state.generation),
            failures: self.failures.load(Relaxed),
            error: state.error.clone(),
            remarks: state.remarks.clone(),
        }
    }

    /// Whether the source is to be read now.
    fn is_due(&self, device: &Device) -> bool {
        let Some(table) = device.live() else { return false };
        let (seen, error) = {
            let state = self.state();
            let is_other = !std::ptr::eq(state.table.as_ptr(), Arc::as_ptr(&table));
            if is_other || state.due.is_none_or(|due| Instant::now() >= due) {
                return true;
            }
            (state.seen.clone(), state.error.is_some())
        };
        // A source that has failed is not looked at before its pause is over.
        !error
            && only_switch(&table)
                .is_ok_and(|segment| self.source.has_changed(&table, segment.target.paths(), &seen))
    }

    /// Reads the source for a segment of a table, which may not be live yet.
    fn read(&self, table: &Table, segment: &Segment) -> Result<Supplied, Failure> {
        let seen = self.state().seen.clone();
        let read = self.source.read(table, segment, &seen);
        read.map_err(|why| Failure::new(Errno::Eio, format!("no map from {}: {why}", self.source)))
    }

    /// Notes the result of a reading, and logs what is new.
    fn ended(&self, device: &str, table: &Arc<Table>, read: Result<(Noted, u64), Failure>) {
        let mut state = self.state();
        state.table = Arc::downgrade(table);
        let source = &self.source;
        match read {
            Ok((Noted { seen, remarks, changed }, generation)) => {
                if changed > 0 || state.error.is_some() {
                    tracing::info!(device, %source, changed, generation, "the map was read");
                }
                for remark in remarks.iter().filter(|remark| !state.remarks.contains(remark)) {
                    tracing::warn!(device, %source, "{remark}");
                }
                state.due = Some(Instant::now() + INTERVAL);
                (state.seen, state.remarks, state.error) = (seen, remarks, None);
                (state.read, state.generation) = (Some(SystemTime::now()), generation);
            }
            Err(failure) => {
                self.failures.fetch_add(1, Relaxed);
                if state.error.as_ref() != Some(&failure.reason) {
                    tracing::warn!(device, "{}: the map in use goes on", failure.reason);
                }
                state.due = Some(Instant::now() + PAUSE);
                state.error = Some(failure.reason);
            }
        }
    }
}

/// The result of a reading, after its map was applied.
struct Noted {
    seen: Seen,
    remarks: Vec<String>,
    /// Number of regions that have another path now.
    changed: u64,
}

/// The source that a request names.
///
/// Errors: it names no source, or the device has no table that could have a map.
pub(crate) fn source_of(request: &CreateDevice) -> Result<Option<Source>, Failure> {
    let Some(word) = &request.map_from else { return Ok(None) };
    if request.table.is_none() {
        let reason = format!("a device without a table has no map that '{word}' could supply");
        return Err(Failure::new(Errno::Einval, reason));
    }
    word.parse().map(Some)
}

/// The one switch segment of a table.
fn only_switch(table: &Table) -> Result<&Segment, Failure> {
    let is_switch = |segment: &&Segment| matches!(segment.target, Target::Switch { .. });
    let mut switches = table.segments().iter().filter(is_switch);
    match (switches.next(), switches.next()) {
        (Some(only), None) => Ok(only),
        (first, _) => {
            let has = if first.is_some() { "several switch segments" } else { "no switch segment" };
            let reason = format!("the table has {has}: a source supplies the map of exactly one");
            Err(Failure::new(Errno::Einval, reason))
        }
    }
}

impl Devices {
    /// Lets a device of the previous daemon follow its source again.
    pub(crate) fn restore_source(&self, device: &Arc<Device>, word: Option<&str>) {
        match word.map(str::parse) {
            Some(Ok(source)) => {
                self.followings.set(device, source);
            }
            Some(Err(Failure { reason, .. })) => {
                tracing::warn!(device = %device.name(), reason, "the source of the map is not known");
            }
            None => {}
        }
    }

    /// Refuses a message to a map that a source supplies.
    pub(crate) fn check_not_supplied(&self, device: &Device) -> Result<(), Failure> {
        let Some(following) = self.followings.of(device) else { return Ok(()) };
        let reason = format!(
            "the map of '{}' comes from {}: change it there (--force changes it until that is read \
             again)",
            device.name(),
            following.source
        );
        Err(Failure::new(Errno::Eperm, reason))
    }

    /// Fills the map of a table that is not live yet from the device's source, if it has one.
    pub(crate) fn supply(
        &self,
        device: &Arc<Device>,
        table: &Table,
        load: &LoadTable,
    ) -> Result<(), Failure> {
        let Some(following) = self.followings.of(device) else { return Ok(()) };
        if load.map.is_some() {
            let reason =
                format!("a table has one map: either --map FILE or that of {}", following.source);
            return Err(Failure::new(Errno::Einval, reason));
        }
        if load.keep_map {
            // The kept map is that of the source already, and may be the live table's own memory,
            // which only a message may change. The source is read again when the table is live.
            return Ok(());
        }
        let segment = only_switch(table)?;
        let Supplied { map: wanted, .. } = following.read(table, segment)?;
        let Target::Switch { map, .. } = &segment.target else { return Ok(()) };
        let diff = Diff::new(map, &wanted);
        let diff = diff.map_err(|error| Failure::new(Errno::Einval, error.to_string()))?;
        set_all(map.writer().ok_or_else(in_use)?, &diff);
        self.save_new(map)
    }

    /// Gives the regions of a map in use the paths of `wanted`, as one edit. Returns the number of
    /// regions that have changed.
    fn apply_map(
        &self,
        device: &Device,
        (table, start): (&Arc<Table>, u64),
        (source, wanted): (&Source, &StagedMap),
    ) -> Result<u64, Failure> {
        let messenger = device.messenger(start)?;
        if !Arc::ptr_eq(messenger.table(), table) {
            let reason = "the device got another table meanwhile";
            return Err(Failure::new(Errno::Ebusy, reason));
        }
        let map = messenger.map().ok_or_else(in_use)?;
        let diff = Diff::new(map, wanted);
        let diff = diff.map_err(|error| Failure::new(Errno::Einval, error.to_string()))?;
        if diff.next(0, u64::MAX).is_none() {
            return Ok(0);
        }
        let who = Who { uid: None, pid: None, source: source.to_string() };
        let keeper = Keeping { devices: self, device, messenger: &messenger, who: &who };
        keeper.begin(map)?;
        let changed = set_all(messenger.writer().ok_or_else(in_use)?, &diff);
        keeper.end(map, changed)?;
        Ok(changed)
    }

    /// Reads the source of a device once, and applies what differs.
    fn follow_once(&self, device: &Arc<Device>, following: &Following) {
        let Some(table) = device.live() else { return };
        let applied = only_switch(&table).and_then(|segment| {
            let Supplied { map, seen, remarks } = following.read(&table, segment)?;
            let changed =
                self.apply_map(device, (&table, segment.start), (&following.source, &map))?;
            Ok((Noted { seen, remarks, changed }, device.generation()))
        });
        following.ended(&device.name(), &table, applied);
    }
}

/// Gives the regions that differ the paths of the second map. `writer` is that of the first.
/// Returns the number of these regions.
pub(super) fn set_all(mut writer: MapWriter<'_, Slots>, diff: &Diff<'_, Slots, Slots>) -> u64 {
    let mut changed = 0;
    for Change { first, count, to, .. } in diff.changes(0, u64::MAX) {
        changed += count;
        (first..first + count).for_each(|region| {
            writer.set(region, to);
        });
    }
    changed
}

/// Starts a thread for each source that has none, for as long as the future is polled.
pub(crate) async fn follow(devices: Arc<Devices>) {
    loop {
        for following in devices.followings.all() {
            if following.is_watched.swap(true, Relaxed) {
                continue;
            }
            let (devices, watched) = (Arc::downgrade(&devices), following.clone());
            let watch = move || watch(&devices, &watched);
            let started = std::thread::Builder::new().name("map source".to_owned()).spawn(watch);
            if let Err(error) = started {
                following.is_watched.store(false, Relaxed);
                tracing::warn!(%error, "cannot start a thread that reads a map: tried again");
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Looks at a source until its device is gone or follows another one.
fn watch(devices: &Weak<Devices>, following: &Arc<Following>) {
    loop {
        let (Some(devices), Some(device)) = (devices.upgrade(), following.device.upgrade()) else {
            return;
        };
        let is_followed =
            devices.followings.of(&device).is_some_and(|now| Arc::ptr_eq(&now, following));
        if !is_followed {
            return;
        }
        if following.is_due(&device) {
            devices.follow_once(&device, following);
        }
        drop((devices, device));
        std::thread::sleep(LOOK);
    }
}
