//! A custom leaf: a disk that a thread keeps, as the client of a storage service would.

use std::io;
use std::sync::mpsc::{self, Sender};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use blkswitch_io::engine::{CustomEngine, CustomKind, CustomOp};

/// A disk behind a thread. A queue only hands operations over; the thread carries them out and
/// answers.
#[derive(Debug)]
pub struct Archive {
    /// `None` when the archive is being dropped.
    orders: Mutex<Option<Sender<CustomOp>>>,
    thread: Option<JoinHandle<()>>,
}

impl Archive {
    /// Makes a disk of `bytes` zeroes.
    pub fn new(bytes: usize) -> Archive {
        let (orders, mut disk) = (mpsc::channel::<CustomOp>(), vec![0; bytes]);
        let thread = thread::spawn(move || {
            for op in orders.1 {
                serve(&mut disk, op);
            }
        });
        Archive { orders: Mutex::new(Some(orders.0)), thread: Some(thread) }
    }
}

fn serve(disk: &mut [u8], op: CustomOp) {
    let range = op.offset() as usize..(op.offset() + op.len()) as usize;
    let Some(bytes) = disk.get_mut(range) else {
        return op.fail(io::ErrorKind::InvalidInput.into());
    };
    match op.kind() {
        CustomKind::Read => op.done_with(bytes),
        CustomKind::Write => {
            op.with_data(|data| bytes.copy_from_slice(data));
            op.done();
        }
        CustomKind::Zero { .. } => {
            bytes.fill(0);
            op.done();
        }
        CustomKind::Flush => op.done(),
        _ => op.fail(io::ErrorKind::Unsupported.into()),
    }
}

impl CustomEngine for Archive {
    fn submit(&self, op: CustomOp) {
        // If the thread is gone, the operation is dropped, which fails it.
        if let Some(orders) = &*self.orders.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = orders.send(op);
        }
    }

    fn has_cache(&self) -> bool {
        false
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
