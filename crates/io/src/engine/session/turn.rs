//! What a queue lends to all who work for it in a turn of its loop: its ring, and the links on it.
//!
//! Contract: one thread owns a [`Turn`] and passes it as an argument. It can be used as its ring; only
//! engines and the owner of the loop look at the links.

use std::io;
use std::ops::{Deref, DerefMut};

use super::links::Links;
use crate::sys::ring::Ring;

/// See the module's text.
pub struct Turn {
    /// What the kernel does, and what only time does.
    pub ring: Ring,
    /// The links that engines have on the ring.
    pub links: Links,
}

impl Turn {
    /// With a ring of this thread.
    ///
    /// # Errors
    /// As [`Ring::new`].
    pub fn new() -> io::Result<Turn> {
        Ok(Turn { ring: Ring::new()?, links: Links::default() })
    }

    /// With a ring without a kernel side ([`Ring::simulated`]).
    pub fn simulated() -> Turn {
        Turn { ring: Ring::simulated(), links: Links::default() }
    }

    /// Gives every link that needs one its turn.
    pub fn run_links(&mut self) {
        self.links.turn(&mut self.ring);
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
