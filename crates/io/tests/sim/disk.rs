//! The model of one leaf: every version that was ever written to each of its sectors, and when.
//!
//! Written to be obviously right. A version lives from the moment it was sent (`begin`) to the
//! answer (`end`). What a read may return, and what may be found after the power went, follows from
//! these intervals alone:
//! * a version is *replaced* once another one that succeeded had begun after the first one's end;
//! * a version is *replaced for good* if that other one is durable: FUA, or covered by a flush that
//!   began after its end and succeeded.

/// Logical time: every step of the simulation has its own.
pub type Time = u64;

/// A bit per device that a write came through.
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

/// See the module's text.
#[derive(Debug)]
pub struct Disk {
    sectors: Vec<Vec<Version>>,
}

impl Disk {
    /// All sectors hold 0, durably.
    pub fn new(sectors: usize) -> Disk {
        let first =
            Version { value: 0, request: 0, through: 0, begin: 0, end: 0, ok: true, durable: true };
        Disk { sectors: vec![vec![first]; sectors] }
    }

    /// A write of a sector was sent.
    pub fn begin(&mut self, sector: usize, value: u64, request: u64, through: Through, now: Time) {
        let version =
            Version { value, request, through, begin: now, end: NEVER, ok: false, durable: false };
        self.sectors[sector].push(version);
    }

    /// It was answered.
    pub fn end(&mut self, sector: usize, request: u64, ok: bool, durable: bool, now: Time) {
        for version in
            self.sectors[sector].iter_mut().filter(|v| v.request == request && v.end == NEVER)
        {
            (version.end, version.ok, version.durable) = (now, ok, durable);
        }
    }

    /// A flush of a device that was sent at `since` has succeeded.
    pub fn flushed(&mut self, device: Through, since: Time) {
        for version in self.sectors.iter_mut().flatten() {
            version.durable |= version.ok && version.through & device != 0 && version.end < since;
        }
    }

    /// Whether a read between `from` and `to` may return this.
    pub fn may_read(&self, sector: usize, value: u64, from: Time, to: Time) -> bool {
        let versions = &self.sectors[sector];
        let replaced = versions.iter().filter(|v| v.ok && v.end < from).map(|v| v.begin).max();
        versions.iter().any(|v| v.value == value && v.begin < to && Some(v.end) >= replaced)
    }

    /// Whether this may be found after the power went.
    pub fn may_survive(&self, sector: usize, value: u64) -> bool {
        let versions = &self.sectors[sector];
        let replaced = versions.iter().filter(|v| v.durable).map(|v| v.begin).max();
        versions.iter().any(|v| v.value == value && Some(v.end) >= replaced)
    }

    /// Nothing is in flight: what can never be seen again is forgotten.
    pub fn forget(&mut self) {
        for versions in &mut self.sectors {
            let replaced = versions.iter().filter(|v| v.durable).map(|v| v.begin).max();
            versions.retain(|v| Some(v.end) >= replaced);
        }
    }

    /// The devices are gone; those that come are others, whose flushes promise nothing about these
    /// writes.
    pub fn forget_devices(&mut self) {
        self.sectors.iter_mut().flatten().for_each(|version| version.through = 0);
    }

    /// A new life that begins with what was found.
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

    /// What is known of a sector, for a failure's text.
    pub fn describe(&self, sector: usize) -> String {
        self.sectors[sector].iter().map(|version| format!("\n    {version:?}")).collect()
    }
}
