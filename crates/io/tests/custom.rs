//! Engines that lie, below the real pipeline. Whatever a leaf answers, every request is answered
//! once, and a read that succeeds returns only bytes that the leaf gave for it.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use blkswitch_io::driver::{Answer, Ask, Driver};
use blkswitch_io::engine::{CustomEngine, CustomKind, CustomOp, Properties};
use blkswitch_io::request::Op;
use blkswitch_io::{AlignedBytes, Leaf, LeafError, TableBuilder, Target, To};

const BLOCK: usize = 4096;
const SECRET: u8 = 0xee;
const TRUE: u8 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    /// Answers every operation correctly.
    Nothing,
    /// Answers with more bytes than the request has.
    More,
    /// Answers with fewer bytes than the request has.
    Less,
    /// Answers with an empty slice.
    Zero,
    /// Answers "done" without bytes, also for a read.
    Done,
    /// Answers without bytes for a read, and with bytes for any other request.
    Bytes,
    /// Drops the operation without an answer.
    Forgotten,
    /// Answers `EAGAIN` every time.
    Again,
    /// Fails with -5, which is not an errno.
    NoErrno,
    /// Panics when it gets an operation.
    Panic,
    /// Answers after the time limit.
    Late,
}

struct Liar {
    lie: Lie,
    kept: Arc<Kept>,
}

/// Operations to answer late, and whether the time limit is long.
#[derive(Default)]
struct Kept {
    ops: Mutex<Vec<CustomOp>>,
    is_patient: AtomicBool,
}

impl CustomEngine for Liar {
    fn submit(&self, op: CustomOp) {
        let len = op.len() as usize;
        match (self.lie, op.kind()) {
            (Lie::Nothing, CustomKind::Read) => op.done_with(&vec![TRUE; len]),
            (Lie::Nothing, _) | (Lie::Done, _) => op.done(),
            (Lie::More, _) => op.done_with(&vec![TRUE; len + 512]),
            (Lie::Less, _) => op.done_with(&vec![TRUE; len.saturating_sub(512)]),
            (Lie::Zero, _) => op.done_with(&[]),
            (Lie::Bytes, CustomKind::Read) => op.done(),
            (Lie::Bytes, _) => op.done_with(&vec![TRUE; len]),
            (Lie::Forgotten, _) => drop(op),
            (Lie::Again, _) => op.fail(io::Error::from_raw_os_error(libc::EAGAIN)),
            (Lie::NoErrno, _) => op.fail(io::Error::from_raw_os_error(-5)),
            (Lie::Panic, _) => panic!("a test wants it"),
            (Lie::Late, _) => self.kept.ops.lock().unwrap().push(op),
        }
    }

    fn flush_blocking(&self) -> io::Result<()> {
        Ok(())
    }

    fn time_limit(&self) -> Duration {
        let is_patient = self.kept.is_patient.load(Ordering::SeqCst);
        Duration::from_millis(if is_patient { 100_000 } else { 1 })
    }
}

fn driver_over(lie: Lie) -> (Driver, u32, Arc<Kept>) {
    let (mut driver, kept) = (Driver::new().unwrap(), Arc::<Kept>::default());
    let engine = Box::new(Liar { lie, kept: kept.clone() });
    let properties = Properties::memory(1 << 20);
    let leaf = Leaf::custom("liar", engine, properties, driver.queues()).unwrap();
    let mut table = TableBuilder::new(false);
    let below = table.leaf(leaf);
    table.push(2048, Target::Linear(To { below, offset: 0 }));
    let device = driver.add(table.build().unwrap()).unwrap();
    (driver, device, kept)
}

/// Sends a request of each kind, over memory that holds a secret. Returns the answers by token.
fn ask_all(driver: &mut Driver, device: u32) -> Vec<Answer> {
    let zeroes = Op::WriteZeroes { no_hole: false, fast: false };
    let ops = [(Op::Read, false), (Op::Write, false), (Op::Write, true), (Op::Discard, false)];
    let mut count = 0;
    for (op, fua) in ops.into_iter().chain([(zeroes, false), (Op::Flush, false)]) {
        let data = AlignedBytes::copy_of(&[SECRET; BLOCK]).unwrap();
        let (offset, len) = if op == Op::Flush { (0, 0) } else { (8192, BLOCK as u64) };
        driver.start(device, Ask { op, fua, offset, len, data, token: count });
        count += 1;
    }
    let (mut answers, began) = (Vec::new(), Instant::now());
    while answers.len() < count as usize {
        assert!(began.elapsed() < Duration::from_secs(20), "answered: {answers:?}");
        driver.wait(&mut answers, Some(Duration::from_secs(1))).unwrap();
    }
    answers.sort_by_key(|answer: &Answer| answer.token);
    let tokens: Vec<u64> = answers.iter().map(|answer| answer.token).collect();
    assert_eq!(tokens, (0..count).collect::<Vec<_>>(), "each once");
    answers
}

#[test]
fn a_read_never_succeeds_with_bytes_that_the_leaf_did_not_give() {
    let lies = [Lie::More, Lie::Less, Lie::Zero, Lie::Done, Lie::Bytes, Lie::Forgotten];
    for lie in lies.into_iter().chain([Lie::Again, Lie::NoErrno, Lie::Panic, Lie::Nothing]) {
        let (mut driver, device, _) = driver_over(lie);
        let answers = ask_all(&mut driver, device);
        assert_eq!(answers[0].result.is_ok(), lie == Lie::Nothing, "{lie:?}: {answers:?}");
        if answers[0].result.is_ok() {
            assert!(answers[0].data.iter().all(|byte| *byte == TRUE), "{lie:?}");
        }
        // Requests without data may be answered without any.
        let is_honest = matches!(lie, Lie::Nothing | Lie::Done);
        for answer in &answers[1..] {
            assert_eq!(answer.result.is_ok(), is_honest, "{lie:?}: {answer:?}");
        }
        driver.close(&mut Vec::new()).unwrap();
    }
}

/// The errno of an answer, 0 if it succeeded.
fn errno(answer: &Answer) -> i32 {
    answer.result.as_ref().err().map_or(0, |error| error.raw_os_error().unwrap())
}

/// When the time limit is over, the memory belongs to its owner again. A later answer changes
/// neither that request nor the next one in its slot.
#[test]
fn an_answer_after_the_fact_changes_nothing() {
    let (mut driver, device, kept) = driver_over(Lie::Late);
    let answers = ask_all(&mut driver, device);
    assert!(answers.iter().all(|answer| errno(answer) == libc::ETIMEDOUT), "{answers:?}");
    kept.is_patient.store(true, Ordering::SeqCst);
    let data = AlignedBytes::copy_of(&[SECRET; BLOCK]).unwrap();
    driver.start(device, Ask { op: Op::Read, fua: false, offset: 0, len: 4096, data, token: 9 });
    driver.wait(&mut Vec::new(), Some(Duration::ZERO)).unwrap();
    let mut late = std::mem::take(&mut *kept.ops.lock().unwrap());
    let next = late.pop().unwrap();
    std::thread::spawn(move || {
        for op in late {
            assert!(op.with_data(|data| data.len()).is_none(), "{op:?} has its data still");
            let bytes = vec![TRUE; op.len() as usize];
            if op.kind() == CustomKind::Read { op.done_with(&bytes) } else { op.done() }
        }
        next.done_with(&[2; BLOCK]);
    });
    let (mut more, began) = (Vec::new(), Instant::now());
    while more.is_empty() {
        assert!(began.elapsed() < Duration::from_secs(20), "no answer");
        driver.wait(&mut more, Some(Duration::from_secs(1))).unwrap();
    }
    assert_eq!((more.len(), more[0].token, errno(&more[0]), more[0].data[7]), (1, 9, 0, 2));
    assert!(answers.iter().all(|answer| answer.data.iter().all(|byte| *byte == SECRET)));
    driver.close(&mut Vec::new()).unwrap();
}

/// An engine is dropped together with the last table that has its leaf, not with the driver.
#[test]
fn an_engine_goes_with_its_leaf() {
    let (mut driver, device, kept) = driver_over(Lie::Nothing);
    ask_all(&mut driver, device);
    driver.remove(device).unwrap();
    let began = Instant::now();
    while Arc::strong_count(&kept) > 1 {
        assert!(began.elapsed() < Duration::from_secs(20), "the engine stays");
        driver.wait(&mut Vec::new(), Some(Duration::from_millis(10))).unwrap();
    }
    driver.close(&mut Vec::new()).unwrap();
}

#[test]
fn limits_that_make_no_sense_are_refused() {
    for properties in [
        Properties { logical_block: 0, ..Properties::memory(4096) },
        Properties { logical_block: 513, ..Properties::memory(4096) },
        Properties { logical_block: 1 << 20, ..Properties::memory(1 << 30) },
        Properties { physical_block: 0, ..Properties::memory(4096) },
        Properties::memory(511),
        Properties { sectors: u64::MAX, ..Properties::memory(4096) },
    ] {
        let driver = Driver::new().unwrap();
        let engine = Box::new(Liar { lie: Lie::Nothing, kept: Arc::default() });
        let error = Leaf::custom("mine", engine, properties, driver.queues()).unwrap_err();
        assert!(matches!(error, LeafError::Properties { .. }), "{error}");
        assert!(error.to_string().contains("'mine'"), "{error}");
    }
}
