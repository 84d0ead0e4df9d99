//! The model of one leaf: every version that was written to each of its sectors, and when.
//!
//! The model is written to be obviously right. A version lives from the moment it was sent
//! (`begin`) to the answer (`end`). These intervals decide which data a read may return and which
//! may be found after a power cut:
//! * a version is *replaced* once another version that succeeded had begun after the first one's
//!   end;
//! * a version is *replaced for good* if that other version is durable: FUA, or covered by a flush
//!   that began after its end and succeeded.

/// Logical time: each step of the simulation has its own value.
pub type Time = u64;

/// The devices that a write passed: a bit for each.
pub type Through = u32;

const NEVER: Time = Time::MAX;

#[derive(Clone, Debug)]
struct Version {
    value: u64,
    request: u64,
    through: Through,
    begin: Time,
    end: Time,
    ok: bool,
    durable: bool,
}

/// A leaf's sectors, each with its versions.
#[derive(Debug)]
pub struct Disk {
    sectors: Vec<Vec<Version>>,
}

impl Disk {
    /// Makes a disk whose sectors all hold a durable 0.
    pub fn new(sectors: usize) -> Disk {
        let first =
            Version { value: 0, request: 0, through: 0, begin: 0, end: 0, ok: true, durable: true };
        Disk { sectors: vec![vec![first]; sectors] }
    }

    /// Records that a write of a sector was sent.
    pub fn begin(&mut self, sector: usize, value: u64, request: u64, through: Through, now: Time) {
        let version =
            Version { value, request, through, begin: now, end: NEVER, ok: false, durable: false };
        self.sectors[sector].push(version);
    }

    /// Records the answer to a write of a sector.
    pub fn end(&mut self, sector: usize, request: u64, ok: bool, durable: bool, now: Time) {
        for version in
            self.sectors[sector].iter_mut().filter(|v| v.request == request && v.end == NEVER)
        {
            (version.end, version.ok, version.durable) = (now, ok, durable);
        }
    }

    /// Records that a flush of a device succeeded; it was sent at `since`.
    pub fn flushed(&mut self, device: Through, since: Time) {
        for version in self.sectors.iter_mut().flatten() {
            version.durable |= version.ok && version.through & device != 0 && version.end < since;
        }
    }

    /// Whether a read from `from` to `to` may return this value.
    pub fn may_read(&self, sector: usize, value: u64, from: Time, to: Time) -> bool {
        let versions = &self.sectors[sector];
        let replaced = versions.iter().filter(|v| v.ok && v.end < from).map(|v| v.begin).max();
        versions.iter().any(|v| v.value == value && v.begin < to && Some(v.end) >= replaced)
    }

    /// Whether this value may be found after a power cut.
    pub fn may_survive(&self, sector: usize, value: u64) -> bool {
        let versions = &self.sectors[sector];
        let replaced = versions.iter().filter(|v| v.durable).map(|v| v.begin).max();
        versions.iter().any(|v| v.value == value && Some(v.end) >= replaced)
    }

    /// Drops the versions that can never be seen again. Call it while nothing is in flight.
    pub fn forget(&mut self) {
        for versions in &mut self.sectors {
            let replaced = versions.iter().filter(|v| v.durable).map(|v| v.begin).max();
            versions.retain(|v| Some(v.end) >= replaced);
        }
    }

    /// Records that all devices are gone. Later devices are others, and their flushes do not cover
    /// these writes.
    pub fn forget_devices(&mut self) {
        self.sectors.iter_mut().flatten().for_each(|version| version.through = 0);
    }

    /// Begins again after a power cut with the value that was found.
    pub fn restart(&mut self, sector: usize, value: u64, now: Time) {
        let found = Version {
            value,
            request: 0,
            through: 0,
            begin: now,
            end: now,
            ok: true,
            durable: true,
        };
        self.sectors[sector] = vec![found];
    }

    /// All versions of a sector, for the text of a failure.
    pub fn describe(&self, sector: usize) -> String {
        self.sectors[sector].iter().map(|version| format!("\n    {version:?}")).collect()
    }
}
