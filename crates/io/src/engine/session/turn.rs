//! The ring of a queue and the sessions on it. The queue lends both to all code that works for it
//! in a turn of its loop.
//!
//! Contract: one thread owns a [`Turn`] and passes it as an argument. A `Turn` can be used as its
//! ring. Only engines and the owner of the loop use the sessions.

use std::io;
use std::ops::{Deref, DerefMut};

use super::sessions::Sessions;
use crate::sys::ring::Ring;

/// A ring and the sessions on it.
pub struct Turn {
    /// The io_uring, with the timers for deferred operations.
    pub ring: Ring,
    /// The sessions that engines have on the ring.
    pub sessions: Sessions,
}

impl Turn {
    /// Creates a turn with a ring that only this thread may use.
    ///
    /// # Errors
    /// As [`Ring::new`].
    pub fn new() -> io::Result<Turn> {
        Ok(Turn { ring: Ring::new()?, sessions: Sessions::default() })
    }

    /// Creates a turn with a ring without a kernel side ([`Ring::simulated`]).
    pub fn simulated() -> Turn {
        Turn { ring: Ring::simulated(), sessions: Sessions::default() }
    }

    /// Gives every session that needs a turn its turn.
    pub fn run_sessions(&mut self) {
        self.sessions.turn(&mut self.ring);
    }
}

impl Deref for Turn {
    type Target = Ring;

    fn deref(&self) -> &Ring {
        &self.ring
    }
}

impl DerefMut for Turn {
    fn deref_mut(&mut self) -> &mut Ring {
        &mut self.ring
    }
}
