//! The connections of one queue, and the ways between them, the ring and the pipeline.
//!
//! Contract: one thread. A token is the connection's index and the index of the request within it;
//! a connection is dropped only when the kernel and the pipeline have given back everything of it.

use std::os::fd::OwnedFd;

use super::conn::Conn;
use crate::queue::Context;
use crate::request::Done;
use crate::ring::{Completion, Tag};
use crate::slab::Slab;

/// Connections that one queue serves. Each costs its input buffer and two descriptors' worth of
/// kernel memory.
pub const MAX_CONNECTIONS_PER_QUEUE: usize = 1024;

/// See the module's text.
#[derive(Default)]
pub struct Server {
    conns: Slab<Box<Conn>>,
    /// Connections that something happened to in this turn.
    touched: Vec<u32>,
    stopping: bool,
}

/// The token of request `slot` of connection `conn`.
pub(super) fn token(conn: u32, slot: u32) -> u64 {
    (u64::from(conn) << 32) | u64::from(slot)
}

impl Server {
    /// No connections.
    pub fn is_empty(&self) -> bool {
        self.conns.is_empty()
    }

    /// Nothing has happened to a connection in this turn.
    pub fn is_quiet(&self) -> bool {
        self.touched.is_empty()
    }

    /// Serves a connection from its greeting on.
    pub fn connect(&mut self, socket: OwnedFd, context: &mut Context<'_>) {
        if self.stopping || self.conns.len() >= MAX_CONNECTIONS_PER_QUEUE {
            tracing::warn!(
                limit = MAX_CONNECTIONS_PER_QUEUE,
                "connection refused: this queue serves as many as it may"
            );
            return;
        }
        let conn = Box::new(Conn::new(socket, context));
        let id = self.conns.insert(conn);
        self.touch(id);
    }

    /// A receive or send of a connection has completed.
    pub fn complete(&mut self, completion: &Completion, context: &mut Context<'_>) {
        let id = completion.id as u32;
        let Some(conn) = self.conns.get_mut(id) else { return };
        match completion.tag {
            Tag::Receive => conn.received(completion.result),
            _ => conn.sent(completion.result, context),
        }
        self.touch(id);
    }

    /// A request of a connection was answered.
    pub fn answered(&mut self, done: Done, context: &mut Context<'_>) {
        let (id, slot) = ((done.token >> 32) as u32, done.token as u32);
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.answered(slot, done.errno, context);
        self.touch(id);
    }

    /// Lets every touched connection go on. True if it is to be called again at once, after the
    /// answers there are have been carried.
    pub fn turn(&mut self, context: &mut Context<'_>) -> bool {
        let mut more = false;
        for at in 0..self.touched.len() {
            let id = self.touched[at];
            let Some(conn) = self.conns.get_mut(id) else { continue };
            conn.read_requests(id, context);
            more |= conn.has_more || context.pipeline.has_done();
        }
        if more {
            return true;
        }
        let Server { conns, touched, .. } = self;
        touched.retain(|&id| {
            let Some(conn) = conns.get_mut(id) else { return false };
            conn.touched = conn.arm(id, context);
            let again = conn.touched;
            if conn.is_over()
                && let Some(conn) = conns.remove(id)
            {
                conn.release(context);
                return false;
            }
            again
        });
        !touched.is_empty()
    }

    /// No new requests; connections close when what is in flight is answered.
    pub fn stop(&mut self, now_ns: u64) {
        self.stopping = true;
        for id in self.ids() {
            if let Some(conn) = self.conns.get_mut(id) {
                conn.stop(now_ns);
            }
            self.touch(id);
        }
    }

    /// Whether a connection has a deadline: then [`Server::tick`] is to be called every second or
    /// so.
    pub fn is_timed(&self) -> bool {
        self.conns.iter().any(|(_, conn)| conn.is_timed())
    }

    /// Drops connections whose time is up.
    pub fn tick(&mut self, now_ns: u64) {
        for id in self.ids() {
            if self.conns.get_mut(id).is_some_and(|conn| conn.expire(now_ns)) {
                self.touch(id);
            }
        }
    }

    fn ids(&self) -> Vec<u32> {
        self.conns.iter().map(|(id, _)| id).collect()
    }

    fn touch(&mut self, id: u32) {
        if let Some(conn) = self.conns.get_mut(id)
            && !conn.touched
        {
            conn.touched = true;
            self.touched.push(id);
        }
    }
}
