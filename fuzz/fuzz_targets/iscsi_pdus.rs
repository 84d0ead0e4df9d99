//! Sends iSCSI PDUs of a hostile target to the whole leaf: login, session, link, pipeline. Nothing
//! panics, every request is answered, and a read returns only bytes that were sent for it.
//!
//! The target is the one of the tests. Each four bytes of the input change one of its answers to
//! reads and writes: which answer, the kind of change, its place, and its value.

#![no_main]

#[path = "../../crates/io/tests/iscsi_own/own.rs"]
mod own;

use std::cell::RefCell;
use std::sync::{Arc, Mutex};

use blkswitch_io::driver::{Ask, Driver};
use blkswitch_io::request::Op;
use blkswitch_io::{AlignedBytes, Leaf, LeafOptions, TableBuilder, Target, To};
use libfuzzer_sys::fuzz_target;
use own::{Own, Pdu, READ16, WRITE16, operation, pdu};

const LEN: usize = 64 << 10;
/// The content of buffers before a read.
const SECRET: u8 = 0xee;
/// The content of the target's unit.
const DATA: u8 = 0x11;
/// A kind of PDU that does not exist. The leaf ends the session for it, so that no request waits
/// for an answer that the input has removed.
const END: u8 = 0x3e;

thread_local! {
    static TARGET: RefCell<Option<Own>> = const { RefCell::new(None) };
}

fn change(input: &[u8], answers: &mut Vec<Pdu>) {
    for edit in input.chunks_exact(4) {
        let [which, what, at, by] = edit.try_into().unwrap_or([0; 4]);
        let count = answers.len().max(1);
        let which = usize::from(which) % count;
        let Some(answer) = answers.get_mut(which) else { return };
        let at_byte = usize::from(at) % answer.len().clamp(1, 64);
        match what % 8 {
            0..4 => {
                if let Some(byte) = answer.get_mut(at_byte) {
                    *byte = if what & 8 == 0 { by } else { *byte ^ by };
                }
            }
            4 => answers.insert(which, answers[which].clone()),
            5 => drop(answers.remove(which)),
            6 => answers.swap(which, usize::from(by) % count),
            _ if answers.len() < 64 => {
                let mut new = pdu(at, by, &[]);
                new[16..20].copy_from_slice(&answers[which][16..20]);
                answers.insert(which, new);
            }
            _ => {}
        }
    }
}

fuzz_target!(|input: &[u8]| {
    TARGET.with_borrow_mut(|target| {
        let target = target.get_or_insert_with(|| {
            let target = Own::start(LEN, "InitialR2T=No\0ImmediateData=Yes\0FirstBurstLength=16384\0");
            target.shared.data.lock().unwrap().fill(DATA);
            target
        });
        target.behave(|_, _| ());
        let address = target.address("?timeout=10&settle=0").parse().unwrap();
        let mut driver = Driver::new().unwrap();
        let leaf = Leaf::open(&address, &LeafOptions::new(driver.queues())).unwrap();
        let input = Arc::new(Mutex::new(input.to_vec()));
        target.behave(move |request, answers| {
            let is_ours = request[0] & 0x3f == 1 && matches!(operation(request), READ16 | WRITE16);
            if is_ours && !input.lock().unwrap().is_empty() {
                change(&input.lock().unwrap(), answers);
                answers.push(pdu(END, 0, &[]));
            }
        });
        let mut table = TableBuilder::new(false);
        let below = table.leaf(leaf);
        table.push((LEN / 512) as u64, Target::Linear(To { below, offset: 0 }));
        let device = driver.add(table.build().unwrap()).unwrap();
        let ask = |op, offset: u64, len: usize, token| {
            let data = vec![if op == Op::Read { SECRET } else { DATA }; len];
            let data = AlignedBytes::copy_of(&data).unwrap();
            Ask { op, fua: false, offset, len: len as u64, data, token }
        };
        driver.start(device, ask(Op::Read, 0, LEN / 2, 0));
        driver.start(device, ask(Op::Write, 4096, LEN / 2, 1));
        driver.start(device, ask(Op::Read, 512, 4096, 2));
        let (mut answers, mut left) = (Vec::new(), 3);
        while left > 0 {
            driver.wait(&mut answers, None).unwrap();
            for answer in answers.drain(..) {
                left -= 1;
                let shown = answer.result.is_ok() && answer.token != 1;
                let has_secret =
                    answer.data.chunks(512).any(|one| one.iter().all(|b| *b == SECRET));
                assert!(!(shown && has_secret), "a buffer is shown that nobody has filled");
            }
        }
    });
});
