//! The meaning of a refusal of `io_uring_enter`.
//!
//! Some refusals pass: the kernel is short of memory (`ENOMEM`, `EAGAIN`), a signal came (`EINTR`),
//! or completions must be taken first (`EBUSY`). Then nothing is lost: entries that were not
//! submitted stay in the queue and go with the next call. So the caller goes on, after a pause if
//! it has nothing else to do. Any other error, or a shortage that does not end, is the end of the
//! ring.

use std::io;
use std::time::Duration;

/// How long the kernel may refuse, in ns: longer than the shortages of a machine that recovers, and
/// shorter than the time after which clients give up.
const PATIENCE_NS: u64 = 30_000_000_000;
/// First pause. Each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_micros(100);
/// Longest pause between two calls.
const LAST_PAUSE: Duration = Duration::from_millis(50);

/// The refusals in a row.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    /// The time of the first of the refusals in a row.
    since_ns: Option<u64>,
    pause: Duration,
    #[cfg(test)]
    pub(super) injected: std::collections::VecDeque<i32>,
}

impl Trouble {
    /// Judges the result of a call. `has_come` says that there are completions to take, so the
    /// caller has something to do. `Err` if the ring cannot be used any more.
    #[inline]
    pub(super) fn judge(
        &mut self,
        result: io::Result<()>,
        now_ns: u64,
        has_come: bool,
    ) -> io::Result<()> {
        match result {
            Ok(()) if self.since_ns.is_none() => Ok(()),
            Ok(()) => {
                self.recovered();
                Ok(())
            }
            Err(error) => self.refused(error, now_ns, has_come),
        }
    }

    #[cold]
    fn refused(&mut self, error: io::Error, now_ns: u64, has_come: bool) -> io::Result<()> {
        match error.raw_os_error() {
            // The time is over, a signal came, or completions must be taken first.
            Some(libc::ETIME | libc::EINTR) => return Ok(()),
            Some(libc::EBUSY) if has_come => return Ok(()),
            Some(libc::EAGAIN | libc::ENOMEM | libc::EBUSY) => {}
            _ => return Err(error),
        }
        let since_ns = *self.since_ns.get_or_insert_with(|| {
            tracing::warn!(%error, "the kernel refuses io_uring operations for now: trying again");
            now_ns
        });
        if now_ns.saturating_sub(since_ns) > PATIENCE_NS {
            return Err(error);
        }
        if !has_come {
            self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LAST_PAUSE);
            std::thread::sleep(self.pause);
        }
        Ok(())
    }

    #[cold]
    fn recovered(&mut self) {
        tracing::info!("the kernel takes io_uring operations again");
        (self.since_ns, self.pause) = (None, Duration::ZERO);
    }

    /// The next refusal that a test injects.
    #[cfg(test)]
    pub(super) fn inject(&mut self) -> io::Result<()> {
        self.injected.pop_front().map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(errno: i32) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(errno))
    }

    #[test]
    fn what_passes_is_tried_again_and_what_does_not_ends_the_ring() {
        for errno in [libc::EAGAIN, libc::ENOMEM, libc::EBUSY, libc::EINTR, libc::ETIME] {
            let mut trouble = Trouble::default();
            for second in 0..20 {
                trouble.judge(refusal(errno), second * 1_000_000_000, false).unwrap();
            }
            trouble.judge(Ok(()), 0, false).unwrap();
            assert_eq!(trouble.since_ns, None, "it has recovered");
        }
        for errno in [libc::EBADF, libc::EINVAL, libc::EFAULT, libc::EBADR] {
            let error = Trouble::default().judge(refusal(errno), 0, true).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(errno));
        }
    }

    #[test]
    fn a_shortage_that_does_not_end_is_the_end() {
        let mut trouble = Trouble::default();
        trouble.judge(refusal(libc::ENOMEM), 5, true).unwrap();
        trouble.judge(refusal(libc::ENOMEM), 5 + PATIENCE_NS, true).unwrap();
        trouble.judge(refusal(libc::ENOMEM), 6 + PATIENCE_NS, true).unwrap_err();
    }
}
