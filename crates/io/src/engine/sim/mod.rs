//! The sim engine: memory that injects faults from a seed. It is product code: users try out faults
//! with a leaf `sim:SIZE[,option...]`, and this project's simulation uses it as its disk.
//!
//! It delays and reorders completions, fails operations, tears failed writes at sector boundaries,
//! shortens transfers, interrupts operations before they do anything, and may be unable to discard
//! or zero. It has a volatile cache: a completed write is durable only if it was FUA, or after the
//! success of a flush that started after its completion. [`SimEngine::power_cut`] keeps the durable
//! data plus an arbitrary choice of the rest.
//!
//! Several leaves may be paths to one memory (`name=`, `path=`). On a path that is down, operations
//! fail, also those under way. On a silent path, operations fail after `timeout=`. In both cases
//! the operation may have been carried out or not; if it was, then before its answer. Bad sectors
//! are bad over every path.
//!
//! There is one mutex per leaf and one per memory, because the speed of a test engine does not
//! matter.

mod options;
mod volume;

use std::collections::HashSet;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::{LeafIo, LeafOp, Submitted};
use crate::engine::session::turn::Turn;
use crate::sys::lock::lock;

pub use options::SimOptions;
pub use volume::Random;
use volume::Volume;

const SECTOR: usize = 512;
/// Chances are given in millionths.
const MILLION: u64 = 1_000_000;

/// The state of a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Link {
    /// Operations reach the memory.
    #[default]
    Up,
    /// Operations fail at once.
    Down,
    /// Operations get no answer, and fail after `timeout=`.
    Silent,
}

/// The state of one path.
#[derive(Default)]
struct SimState {
    link: Link,
    /// Operations that were sent while the path was silent: (queue, part).
    lost: HashSet<(usize, u32)>,
    errors: u64,
    flush_errors: u64,
}

/// A leaf in memory with injected faults.
pub struct SimEngine {
    volume: Arc<Mutex<Volume>>,
    state: Mutex<SimState>,
    /// The options at opening. `state` has the current chances of errors.
    options: SimOptions,
}

impl SimEngine {
    /// Creates a disk of zeroes, or another path to an existing one.
    pub fn new(options: &SimOptions) -> io::Result<SimEngine> {
        let state = SimState {
            errors: options.errors,
            flush_errors: options.flush_errors,
            ..SimState::default()
        };
        Ok(SimEngine {
            volume: volume::open(options)?,
            state: Mutex::new(state),
            options: options.clone(),
        })
    }

    fn state(&self) -> MutexGuard<'_, SimState> {
        lock(&self.state)
    }

    fn volume_lock(&self) -> MutexGuard<'_, Volume> {
        lock(&self.volume)
    }

    /// Changes the chances of errors, in millionths (reads and writes; flushes).
    pub fn set_errors(&self, errors: u64, flush_errors: u64) {
        let mut state = self.state();
        (state.errors, state.flush_errors) = (errors, flush_errors);
    }

    /// Changes the state of the path.
    pub fn set_link(&self, link: Link) {
        self.state().link = link;
    }

    /// Makes these sectors, and no others, unreadable over every path.
    pub fn set_bad(&self, sectors: Range<u64>) {
        self.volume_lock().bad = sectors;
    }

    /// The data that reads return now.
    pub fn image(&self) -> Vec<u8> {
        self.volume_lock().current.clone()
    }

    /// Simulates a power cut: durable data stays, and of the rest each sector is kept or lost as
    /// `seed` decides. Returns the data that a restart would find, and goes on from it.
    pub fn power_cut(&self, seed: u64) -> Vec<u8> {
        self.state().lost.clear();
        self.volume_lock().power_cut(seed)
    }

    /// Whether the path is down or silent now.
    pub(super) fn is_cut(&self) -> bool {
        !matches!(self.link(), Link::Up)
    }

    fn link(&self) -> Link {
        let cut = self.options.cut.as_ref().and_then(|file| std::fs::read(file).ok());
        match cut {
            Some(text) if text.trim_ascii() == b"silent" => Link::Silent,
            Some(_) => Link::Down,
            None => self.state().link,
        }
    }

    pub(super) fn can_discard(&self) -> bool {
        !self.options.no_discard
    }

    pub(super) fn has_fua(&self) -> bool {
        !self.options.no_fua
    }

    pub(super) fn volume(&self) -> Option<String> {
        let name = self.options.path.as_ref().and(self.options.name.as_ref())?;
        Some(format!("sim:{name}"))
    }

    /// Never waits, also for a silent path.
    ///
    pub(crate) fn probe(&self, _: Duration) -> io::Result<()> {
        match self.link() {
            Link::Up => Ok(()),
            Link::Down => Err(io::Error::from_raw_os_error(libc::ENOTCONN)),
            Link::Silent => Err(io::Error::from_raw_os_error(libc::ETIMEDOUT)),
        }
    }

    pub(super) fn flush_blocking(&self) -> io::Result<()> {
        self.probe(Duration::ZERO)?;
        let chance = self.state().flush_errors;
        let mut volume = self.volume_lock();
        if volume.random.chance(chance) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let order = volume.order;
        volume.settle(order);
        Ok(())
    }

    /// # Safety
    /// As [`super::Engine::submit`].
    pub(super) unsafe fn submit(&self, io: &LeafIo, turn: &mut Turn) -> Submitted {
        let link = self.link();
        let mut volume = self.volume_lock();
        let (low, high) = self.options.delay_ns;
        let mut delay = low + volume.random.below(high - low + 1);
        if io.op == LeafOp::Flush {
            volume.start_flush(io);
        }
        if link == Link::Silent {
            self.state().lost.insert((io.queue, io.part));
            delay = self.options.timeout_ns;
        }
        if link == Link::Up && volume.random.chance(self.options.at_once) {
            drop(volume);
            // SAFETY: the caller's promise.
            return Submitted::Done(unsafe { self.finish(io) });
        }
        let at_ns = turn.now_ns() + delay;
        turn.defer(at_ns, io.part);
        Submitted::Pending
    }

    /// # Safety
    /// As [`super::Engine::submit`].
    pub(super) unsafe fn finish(&self, io: &LeafIo) -> i64 {
        let link = self.link();
        let was_lost = self.state().lost.remove(&(io.queue, io.part));
        if !was_lost && link == Link::Silent {
            // The path became silent while the operation was under way. Treat it as if it were sent
            // only now.
            return -i64::from(libc::EAGAIN);
        }
        let mut volume = self.volume_lock();
        if !was_lost && link == Link::Up {
            // SAFETY: the caller's promise.
            return unsafe { self.carry_out(&mut volume, io) };
        }
        if volume.random.chance(MILLION / 2) {
            // SAFETY: the caller's promise.
            unsafe { self.carry_out(&mut volume, io) };
        } else {
            volume.end_flush(io);
        }
        -i64::from(if was_lost { libc::ETIMEDOUT } else { libc::ENOTCONN })
    }

    /// # Safety
    /// As [`super::Engine::submit`].
    unsafe fn carry_out(&self, volume: &mut Volume, io: &LeafIo) -> i64 {
        let (errors, flush_errors) = {
            let state = self.state();
            (state.errors, state.flush_errors)
        };
        if volume.random.chance(self.options.interrupts) {
            volume.end_flush(io);
            return -i64::from(if volume.random.chance(MILLION / 2) {
                libc::EINTR
            } else {
                libc::EAGAIN
            });
        }
        match io.op {
            LeafOp::Flush => return finish_flush(volume, io, flush_errors),
            LeafOp::Discard if self.options.no_discard => return -i64::from(libc::EOPNOTSUPP),
            LeafOp::Zero { .. } if self.options.no_zero => return -i64::from(libc::EOPNOTSUPP),
            _ => {}
        }
        let (offset, mut len) = (io.offset as usize, io.len as usize);
        if offset.checked_add(len).is_none_or(|end| end > volume.current.len()) {
            return -i64::from(libc::EIO);
        }
        let failed = volume.random.chance(errors);
        if matches!(io.op, LeafOp::Read | LeafOp::Write)
            && len > SECTOR
            && volume.random.chance(self.options.short)
        {
            len = SECTOR * (1 + volume.random.below((len / SECTOR - 1) as u64) as usize);
        }
        match io.op {
            LeafOp::Read if failed => {}
            LeafOp::Read if overlap(&volume.bad, offset, len) => return -i64::from(libc::ENODATA),
            LeafOp::Read => {
                // SAFETY: the caller lends `len` bytes at `data`; the range of the image was
                // checked above.
                unsafe {
                    std::ptr::copy_nonoverlapping(volume.current[offset..].as_ptr(), io.data.0, len)
                };
            }
            LeafOp::Write => {
                // SAFETY: the caller lends `len` bytes at `data`.
                let data = unsafe { std::slice::from_raw_parts(io.data.0, len) }.to_vec();
                volume.write(offset, data, io.fua, failed);
            }
            LeafOp::Discard | LeafOp::Zero { .. } => {
                volume.write(offset, vec![0; len], io.fua, failed)
            }
            LeafOp::Flush => {}
        }
        if failed { -i64::from(libc::EIO) } else { len as i64 }
    }
}

fn overlap(sectors: &Range<u64>, offset: usize, len: usize) -> bool {
    let (first, end) = ((offset / SECTOR) as u64, (offset + len).div_ceil(SECTOR) as u64);
    first < sectors.end && sectors.start < end
}

fn finish_flush(volume: &mut Volume, io: &LeafIo, chance: u64) -> i64 {
    let Some(order) = volume.end_flush(io) else { return -i64::from(libc::EIO) };
    if volume.random.chance(chance) {
        return -i64::from(libc::EIO);
    }
    volume.settle(order);
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_flushed_and_fua_writes_survive_for_certain() {
        // A flushed write, a write with FUA, and a plain one.
        let written = || {
            let engine = SimEngine::new(&SimOptions::new(4096, 1)).unwrap();
            let mut volume = engine.volume_lock();
            volume.write(0, vec![1; 512], false, false);
            let order = volume.order;
            volume.settle(order);
            volume.write(512, vec![2; 512], true, false);
            volume.write(1024, vec![3; 512], false, false);
            drop(volume);
            engine
        };
        let mut lost = 0;
        for seed in 0..32 {
            let engine = written();
            let image = engine.power_cut(seed);
            assert_eq!((image[0], image[512]), (1, 2));
            lost += usize::from(image[1024] == 0);
        }
        assert!(
            (1..32).contains(&lost),
            "an unflushed write is sometimes lost, sometimes not: {lost}"
        );
    }

    #[test]
    fn paths_of_one_name_are_one_memory_with_links_of_their_own() {
        let open = |path: &str| {
            let text = format!("4096,name=paths-of-one-name,path={path}");
            SimEngine::new(&SimOptions::parse("sim", &text).unwrap()).unwrap()
        };
        let (a, b) = (open("a"), open("b"));
        a.volume_lock().write(0, vec![7; 512], false, false);
        assert_eq!((b.image()[0], a.volume()), (7, b.volume()));
        a.set_link(Link::Down);
        assert!(a.probe(Duration::ZERO).is_err() && b.probe(Duration::ZERO).is_ok());
        b.set_link(Link::Silent);
        assert_eq!(b.probe(Duration::ZERO).unwrap_err().raw_os_error(), Some(libc::ETIMEDOUT));
        drop((a, b));
        assert_eq!(open("a").image()[0], 0, "the memory goes with the last path");
    }
}
