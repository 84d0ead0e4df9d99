//! A placeholder for a path that cannot be reached when its table is loaded. (A member of a group
//! may be down while the host starts.) It has the properties of the other paths and fails every
//! operation. Once a probe reaches the path and finds the same volume, it passes operations to the
//! real engine.
//!
//! Contract: as [`super::Engine`]. The real engine stays for the life of the leaf.

use std::io;
use std::sync::OnceLock;
use std::time::Duration;

use super::{Engine, LeafIo, Properties, Submitted};
use crate::engine::error::LeafError;
use crate::engine::session::turn::Turn;

/// Tries to open the real engine. Returns the engine, its properties and its name. The leaf
/// supplies this function ([`crate::leaf::open_engine`]).
pub(crate) type Open =
    Box<dyn Fn() -> Result<(Engine, Properties, String), LeafError> + Send + Sync>;

/// The engine of a leaf that could not be reached when it was opened.
pub struct AbsentEngine {
    open: Open,
    /// The properties of the other paths. The real engine must match them.
    properties: Properties,
    identity: Option<String>,
    found: OnceLock<Engine>,
}

impl AbsentEngine {
    /// Creates a placeholder for a leaf that cannot be reached yet. When it appears, it must have
    /// `properties` and `identity`; otherwise it is rejected.
    pub(crate) fn new(open: Open, properties: &Properties, identity: Option<String>) -> Self {
        AbsentEngine { open, properties: properties.clone(), identity, found: OnceLock::new() }
    }

    /// The real engine, once a probe has found it.
    pub(super) fn found(&self) -> Option<&Engine> {
        self.found.get()
    }

    /// # Safety
    /// As [`Engine::submit`].
    pub(super) unsafe fn submit(&self, io: &LeafIo, turn: &mut Turn) -> Submitted {
        match self.found() {
            // SAFETY: the caller's promise.
            Some(engine) => unsafe { engine.submit(io, turn) },
            None => Submitted::Done(-i64::from(libc::ENOTCONN)),
        }
    }

    /// # Safety
    /// As [`Engine::finish`].
    pub(super) unsafe fn finish(&self, io: &LeafIo) -> i64 {
        // SAFETY: the caller's promise.
        self.found().map_or(0, |engine| unsafe { engine.finish(io) })
    }

    pub(super) fn flush_blocking(&self) -> io::Result<()> {
        match self.found() {
            Some(engine) => engine.flush_blocking(),
            None => Err(io::Error::from_raw_os_error(libc::ENOTCONN)),
        }
    }

    /// Opens the leaf if it is not open yet. `Err` if it cannot be reached, or is another volume.
    pub(super) fn probe(&self, timeout: Duration) -> io::Result<()> {
        if let Some(engine) = self.found() {
            return engine.probe(timeout);
        }
        let (engine, properties, name) = (self.open)().map_err(|error| match error {
            LeafError::System { source, .. } => source,
            error => io::Error::other(error),
        })?;
        let identity = engine.identity();
        if let Some(why) = self.differs(identity.as_deref(), &properties) {
            tracing::error!(
                path = name,
                why,
                "this path leads to another volume than the others: it is not used"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        // Probes come one at a time. If an engine is there already, it serves as well.
        let _ = self.found.set(engine);
        Ok(())
    }

    /// Describes how the engine that was found differs from the other paths. `None` if it matches
    /// them.
    fn differs(&self, identity: Option<&str>, properties: &Properties) -> Option<String> {
        let expected = &self.properties;
        Some(match (self.identity.as_deref(), identity) {
            (Some(wanted), Some(found)) if found != wanted => {
                format!("it is {found}, and the other paths lead to {wanted}")
            }
            _ if properties.sectors != expected.sectors => {
                let (found, wanted) = (properties.sectors, expected.sectors);
                format!("it has {found} sectors, and the other paths {wanted}")
            }
            _ if properties.logical_block > expected.logical_block => {
                let (found, wanted) = (properties.logical_block, expected.logical_block);
                format!("its smallest block is {found}, and that of the other paths {wanted}")
            }
            _ if properties.read_only && !expected.read_only => "it is read-only".to_owned(),
            _ if properties.read_only != expected.read_only => "it can be written".to_owned(),
            _ => return None,
        })
    }

    pub(super) fn identity(&self) -> Option<String> {
        self.found().map_or_else(|| self.identity.clone(), Engine::identity)
    }
}
