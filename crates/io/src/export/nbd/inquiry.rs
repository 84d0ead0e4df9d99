//! Inquiries to leaves for an answer to BLOCK_STATUS. They run on the threads of the leaves'
//! helpers, because a file system may take long to find holes, and a queue must not wait for it.
//!
//! Contract: an inquiry asks one leaf after the other, each on its own helper's thread, and at most
//! [`MAX_ASKED`] times in all. It answers exactly once, whatever happens. The answer has at least
//! one extent, and covers the range up to the first place where no leaf was asked.

use std::sync::Arc;

use super::{MAX_EXTENTS, Order};
use crate::leaf::Leaf;
use crate::pipeline::{EXTENTS_PIECES, Found};
use crate::sys::helper::Work;
use crate::sys::mailbox::Post;

/// Most questions to leaves for one answer: twice the extents of the longest answer, because
/// adjacent extents may turn out to be one.
const MAX_ASKED: usize = 2 * MAX_EXTENTS;
/// Most questions for a client that asks for one extent.
const MAX_ASKED_FOR_ONE: usize = 64;

/// The connection that gets the answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker {
    pub(super) queue: usize,
    /// The index and the number of the connection. The index may belong to another connection by
    /// then.
    pub(super) conn: u32,
    pub(super) conn_number: u64,
    /// The number of the inquiry among those of the connection.
    pub(super) number: u64,
}

/// The answer of an inquiry.
pub(crate) struct Described {
    /// The index of the connection.
    pub(super) conn: u32,
    pub(super) conn_number: u64,
    pub(super) number: u64,
    /// Length in bytes and status of each extent, in order.
    pub(super) extents: Vec<(u64, u32)>,
}

/// A piece of the range.
struct Piece {
    len: u64,
    known: Known,
}

#[derive(Clone, Copy)]
enum Known {
    Status(u32),
    /// Unknown: ask this leaf at this offset.
    Ask {
        leaf: usize,
        offset: u64,
    },
}

/// Collects the pieces of a range, asks their leaves, and answers.
pub(super) struct Inquiry {
    asker: Asker,
    post: Arc<dyn Post<Order>>,
    pieces: Vec<Piece>,
    leaves: Vec<Arc<Leaf>>,
    /// The index of the leaf that is asked next.
    next: usize,
    /// Answers of leaves: the piece's number, length in bytes, and status.
    found: Vec<(usize, u64, u32)>,
    max_asked: usize,
}

impl Inquiry {
    pub(super) fn new(asker: Asker, post: &Arc<dyn Post<Order>>, one: bool) -> Inquiry {
        Inquiry {
            asker,
            post: post.clone(),
            pieces: Vec::new(),
            leaves: Vec::new(),
            next: 0,
            found: Vec::new(),
            max_asked: if one { MAX_ASKED_FOR_ONE } else { MAX_ASKED },
        }
    }

    /// Adds the next piece of the range. Returns `false` if there are enough.
    pub(super) fn piece(&mut self, len: u64, found: Found<'_>) -> bool {
        let known = match found {
            Found::Status(status) => Known::Status(status),
            Found::Ask(leaf, offset) => Known::Ask { leaf: self.place(leaf), offset },
        };
        self.pieces.push(Piece { len, known });
        self.pieces.len() < EXTENTS_PIECES.min(self.max_asked)
    }

    fn place(&mut self, leaf: &Arc<Leaf>) -> usize {
        let known = self.leaves.iter().position(|known| Arc::ptr_eq(known, leaf));
        known.unwrap_or_else(|| {
            self.leaves.push(leaf.clone());
            self.leaves.len() - 1
        })
    }

    /// The extents, if no leaf needs to be asked. `None` otherwise.
    pub(super) fn answer_now(&mut self) -> Option<Vec<(u64, u32)>> {
        self.leaves.is_empty().then(|| self.extents())
    }

    /// Asks the next leaf. Answers if there is none.
    pub(super) fn go_on(self: Box<Self>) {
        if let Some(leaf) = self.leaves.get(self.next).cloned() {
            leaf.helper().give(leaf.name(), self);
        }
    }

    /// Asks a leaf about all of its pieces.
    fn ask(&mut self, at: usize) {
        let Some(leaf) = self.leaves.get(at) else { return };
        // Give each leaf a share, so that the first pieces are described whatever comes later.
        let mut left = (self.max_asked / self.leaves.len()).max(1);
        for (number, piece) in self.pieces.iter().enumerate() {
            let Known::Ask { leaf: of, offset } = piece.known else { continue };
            let mut done = 0;
            while of == at && done < piece.len && left > 0 {
                left -= 1;
                let (len, status) = leaf.engine().allocation(offset + done, piece.len - done);
                self.found.push((number, len, status));
                done += len;
            }
        }
    }

    /// The extents from the start of the range, up to the first unknown place.
    fn extents(&mut self) -> Vec<(u64, u32)> {
        self.found.sort_by_key(|&(piece, ..)| piece);
        let mut found = self.found.iter().peekable();
        let mut extents = Vec::new();
        for (number, piece) in self.pieces.iter().enumerate() {
            let mut left = piece.len;
            if let Known::Status(status) = piece.known {
                extents.push((piece.len, status));
                left = 0;
            }
            while let Some((_, len, status)) = found.next_if(|(of, ..)| *of == number) {
                extents.push((*len, *status));
                left = left.saturating_sub(*len);
            }
            if left > 0 {
                if extents.is_empty() {
                    // No leaf could be asked. Treat the range as data, which is always correct.
                    extents.push((left, 0));
                }
                break;
            }
        }
        extents
    }
}

impl Work for Inquiry {
    fn work(mut self: Box<Self>) {
        self.ask(self.next);
        self.next += 1;
        self.go_on();
    }

    fn refused(self: Box<Self>) {}
}

/// Answers, if there are leaves to ask. Every such inquiry ends here.
impl Drop for Inquiry {
    fn drop(&mut self) {
        if self.leaves.is_empty() {
            return;
        }
        let Asker { queue, conn, conn_number, number } = self.asker;
        let described = Described { conn, conn_number, number, extents: self.extents() };
        self.post.send(queue, Order::Described(Box::new(described)));
    }
}
