//! The line between two threads (`handoff`) in every order that loom finds:
//! `RUSTFLAGS="--cfg loom" cargo test -p blkswitch-io --release --test loom_handoff`.
//! Empty without `--cfg loom`.
//!
//! The promises: values come out in order and once, no slot is used by both sides at once, and what
//! a thread does before it sends a value is seen by the thread that takes the value.

#![cfg(loom)]

use blkswitch_io::handoff::line;
use loom::thread;

#[test]
fn values_come_out_in_order_and_once() {
    loom::model(|| {
        let (mut sender, mut receiver) = line(2);
        let thread = thread::spawn(move || {
            let mut sent = 0_u64;
            for _ in 0..4 {
                // Boxed: the content is written before the value is sent.
                if sender.send(Box::new(sent)).is_ok() {
                    sent += 1;
                }
            }
            sent
        });
        let mut taken = 0;
        for _ in 0..3 {
            if let Some(value) = receiver.take() {
                assert_eq!(*value, taken);
                taken += 1;
            }
        }
        let sent = thread.join().unwrap();
        while let Some(value) = receiver.take() {
            assert_eq!(*value, taken);
            taken += 1;
        }
        assert_eq!(taken, sent);
    });
}

#[test]
fn what_is_left_is_dropped_once() {
    loom::model(|| {
        let (mut sender, mut receiver) = line(2);
        let thread = thread::spawn(move || {
            let _ = sender.send(Box::new(1));
            let _ = sender.send(Box::new(2));
        });
        drop(receiver.take());
        drop(receiver);
        thread.join().unwrap();
    });
}
