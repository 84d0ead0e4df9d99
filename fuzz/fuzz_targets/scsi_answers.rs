//! Parses answers of a hostile logical unit about itself, as the iSCSI leaf does. Nothing panics,
//! an accepted geometry makes sense, names are plain text that no separator can make into other
//! names, and every sense has one meaning for the pipeline.
//!
//! The input is a row of answers: a byte for the question, one for the length, and the answer.

#![no_main]

use blkswitch_io::engine::iscsi::scsi::{ANSWER, Outcome, Volume, judge, status};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (mut volume, mut rest) = (Volume::default(), data);
    while let [question, len, behind @ ..] = rest {
        let (answer, next) = behind.split_at(behind.len().min(usize::from(*len)));
        rest = next;
        // The leaf takes missing bytes as zero and never reads more than it asked for.
        let mut page = [0; ANSWER];
        page[..answer.len()].copy_from_slice(answer);
        for answer in [answer, &page] {
            match question % 8 {
                0 => {
                    if volume.take_capacity(answer).is_some() {
                        let bytes =
                            volume.blocks.checked_mul(u64::from(volume.block_bytes)).unwrap();
                        assert!(bytes > 0 && bytes <= i64::MAX as u64);
                        assert!(volume.block_bytes.is_power_of_two() && volume.block_bytes >= 512);
                        assert!(volume.physical_bytes.is_multiple_of(volume.block_bytes));
                    }
                }
                1 => volume.take_limits(answer),
                2 => volume.take_characteristics(answer),
                3 => volume.take_provisioning(answer),
                4 => volume.take_identity(answer),
                5 => volume.take_serial(answer),
                6 => volume.take_mode(answer),
                _ => sense(answer),
            }
            if let Some(names) = &volume.identity {
                assert!(
                    !names.is_empty() && names.chars().all(|c| c == ' ' || c.is_ascii_graphic())
                );
            }
        }
    }
});

fn sense(answer: &[u8]) {
    let [status, key, code, qualifier, ..] = answer else { return };
    let ascq = u16::from_be_bytes([*code, *qualifier]);
    match judge(i32::from(*status), *key, ascq) {
        Outcome::Failed(errno) => assert!(errno > 0),
        Outcome::Changed => assert!(i32::from(*status) == status::CHECK_CONDITION && *key == 6),
        Outcome::Gone => assert!(i32::from(*status) == status::CHECK_CONDITION && *key == 5),
        Outcome::Good | Outcome::Again | Outcome::Busy => {}
    }
}
