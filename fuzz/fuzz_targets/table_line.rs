//! Parses table texts of any bytes. Nothing panics, line numbers go up, words are those of the
//! model, and the geometry of an accepted constructor has every region within the target.

#![no_main]

use blkswitch_core::args::{Words, split_in_place};
use blkswitch_core::model;
use blkswitch_core::switch::{Geometry, Params};
use blkswitch_core::table::{Layout, MAX_TYPE_LEN, lines};
use libfuzzer_sys::fuzz_target;

fn construct(len: u64, words: Vec<&[u8]>) -> Option<()> {
    let given = words.len();
    let params = Params::parse(words.into_iter()).ok()?;
    let (num_paths, region_size) = (params.num_paths(), params.region_size());
    assert_eq!(given as u64, 3 + 2 * u64::from(num_paths));
    let offsets: Vec<_> = params.map(|path| path.offset()).collect();
    assert_eq!(offsets.len(), num_paths as usize);
    let geometry = Geometry::new(len, num_paths, region_size).ok()?;
    let last = geometry.nr_regions() - 1;
    assert_eq!(geometry.region_of(len - 1), last);
    let (start, size) = geometry.region_extent(last).expect("the last region");
    assert_eq!(start + size, len);
    assert!(geometry.default_path(last) < num_paths);
    Some(())
}

fuzz_target!(|text: &[u8]| {
    let mut layout = Layout::new();
    let mut before = 0;
    for target in lines(text) {
        let target = match target {
            Ok(target) => target,
            Err(error) => {
                assert!(!error.in_table("fuzz").to_string().is_empty());
                continue;
            }
        };
        assert!(
            target.line > before && !target.kind.is_empty() && target.kind.len() <= MAX_TYPE_LEN
        );
        assert!(!target.params.contains(&b'#') && !target.params.contains(&b'\n'));
        before = target.line;
        let expected = model::split(target.params);
        let words: Vec<Vec<u8>> =
            Words::new(target.params).map(|word| word.bytes().collect()).collect();
        assert_eq!(words, expected);
        let mut params = target.params.to_vec();
        let words: Vec<&[u8]> = split_in_place(&mut params).collect();
        assert_eq!(words, expected);
        if Layout::extent(target.start, target.len).is_ok() {
            if layout.append(target.start, target.len).is_ok() {
                assert_eq!(layout.end(), target.start + target.len);
            }
            construct(target.len, words);
        }
    }
});
