//! A bounded line from one thread to another: values go in at one end and come out at the other, in
//! order, without locks, allocations or waits.
//!
//! Contract: one sender and one receiver; neither can be cloned. Values that are in the line when
//! both are gone are dropped. The line does not wake anybody; its users have a bell of their own.

use std::fmt;
use std::mem::MaybeUninit;
use std::sync::Arc;

use super::sync::{AtomicU64, Ordering, UnsafeCell};

/// A word on cache lines of its own, so that the two threads do not slow each other down.
#[repr(align(128))]
struct Alone(AtomicU64);

struct Line<T> {
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
    /// Number of values that were taken. Only the receiver writes it.
    taken: Alone,
    /// Number of values that were sent. Only the sender writes it. The values between `taken` and
    /// `sent` are in the line.
    sent: Alone,
}

// SAFETY: a slot belongs to the sender until `sent` has passed it, and then to the receiver until
// `taken` has. Each counter is stored with Release and loaded by the other side with Acquire.
unsafe impl<T: Send> Sync for Line<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Line<T> {}

impl<T> Line<T> {
    fn slot(&self, number: u64) -> &UnsafeCell<MaybeUninit<T>> {
        // The number of slots is a power of two, so the places go on in order when the counter
        // wraps.
        &self.slots[number as usize & (self.slots.len() - 1)]
    }
}

impl<T> Drop for Line<T> {
    fn drop(&mut self) {
        let sent = self.sent.0.load(Ordering::Acquire);
        let mut next = self.taken.0.load(Ordering::Acquire);
        while next != sent {
            // SAFETY: it was sent and not taken, and nobody else has the line any more.
            self.slot(next).with_mut(|slot| unsafe { (*slot).assume_init_drop() });
            next = next.wrapping_add(1);
        }
    }
}

/// The end where values go in.
pub struct Sender<T>(Arc<Line<T>>);

/// The end where values come out.
pub struct Receiver<T>(Arc<Line<T>>);

/// Makes a line for `room` values, or for the next power of two.
pub fn line<T>(room: usize) -> (Sender<T>, Receiver<T>) {
    let slots = (0..room.max(1).next_power_of_two())
        .map(|_| UnsafeCell::new(MaybeUninit::uninit()))
        .collect();
    let line =
        Arc::new(Line { slots, taken: Alone(AtomicU64::new(0)), sent: Alone(AtomicU64::new(0)) });
    (Sender(line.clone()), Receiver(line))
}

impl<T> Sender<T> {
    /// Puts a value in.
    ///
    /// # Errors
    /// The line is full: returns the value.
    pub fn send(&mut self, value: T) -> Result<(), T> {
        let line = &*self.0;
        let sent = line.sent.0.load(Ordering::Relaxed);
        if sent.wrapping_sub(line.taken.0.load(Ordering::Acquire)) >= line.slots.len() as u64 {
            return Err(value);
        }
        // SAFETY: the receiver has taken what was there, and does not look at this slot before
        // `sent` has passed it. There is one sender, which is borrowed mutably.
        line.slot(sent).with_mut(|slot| unsafe { (*slot).write(value) });
        line.sent.0.store(sent.wrapping_add(1), Ordering::Release);
        Ok(())
    }
}

impl<T> Receiver<T> {
    /// Takes the oldest value out; `None` if there is none.
    pub fn take(&mut self) -> Option<T> {
        let line = &*self.0;
        let taken = line.taken.0.load(Ordering::Relaxed);
        if taken == line.sent.0.load(Ordering::Acquire) {
            return None;
        }
        // SAFETY: the sender has written this slot, and does not touch it before `taken` has passed
        // it. There is one receiver, which is borrowed mutably, so the value is read once.
        let value = line.slot(taken).with_mut(|slot| unsafe { (*slot).assume_init_read() });
        line.taken.0.store(taken.wrapping_add(1), Ordering::Release);
        Some(value)
    }

    /// Whether there is nothing to take now.
    pub fn is_empty(&self) -> bool {
        self.0.taken.0.load(Ordering::Relaxed) == self.0.sent.0.load(Ordering::Acquire)
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("room", &self.0.slots.len()).finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("room", &self.0.slots.len()).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn values_come_out_in_order_and_once() {
        let (mut sender, mut receiver) = line(3);
        for round in 0..10 {
            for value in 0..4 {
                sender.send(Box::new(round * 4 + value)).unwrap();
            }
            assert_eq!(*sender.send(Box::new(99)).unwrap_err(), 99);
            for value in 0..4 {
                assert_eq!(receiver.take().as_deref(), Some(&(round * 4 + value)));
            }
            assert!(receiver.take().is_none() && receiver.is_empty());
        }
    }

    #[test]
    fn what_is_left_is_dropped() {
        let value = Arc::new(());
        let (mut sender, mut receiver) = line(4);
        (0..3).for_each(|_| sender.send(value.clone()).unwrap());
        drop(receiver.take());
        drop((sender, receiver));
        assert_eq!(Arc::strong_count(&value), 1);
    }

    #[test]
    fn two_threads_agree() {
        let (mut sender, mut receiver) = line(8);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for mut value in 0..20_000_u64 {
                    while let Err(back) = sender.send(value) {
                        value = back;
                        std::thread::yield_now();
                    }
                }
            });
            for value in 0..20_000 {
                let taken = std::iter::repeat_with(|| receiver.take()).find_map(|taken| {
                    if taken.is_none() {
                        std::thread::yield_now();
                    }
                    taken
                });
                assert_eq!(taken, Some(value));
            }
        });
    }
}
