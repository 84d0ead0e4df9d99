//! The recorded cases and the list of deliberate differences, and the comparison of the two.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::Value;

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

pub(crate) fn cases(suite: &str) -> Vec<Value> {
    let text =
        std::fs::read_to_string(repository().join(format!("tests/golden/{suite}.jsonl"))).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Ids of the suite's cases that the list has with one of `of` in its column *by*: `core`,
/// `daemon`, `paths`, ...
pub(crate) fn listed_differences(suite: &str, of: &[&str]) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    for by in of {
        for id in listed_texts(suite, by).into_keys() {
            assert!(ids.insert(id.clone()), "{id} is listed twice");
        }
    }
    ids
}

/// The suite's cases that the list has with `by` in its column *by*, with the texts for the kernel
/// and for blkswitch.
pub(crate) fn listed_texts(suite: &str, by: &str) -> BTreeMap<String, [String; 2]> {
    let text = std::fs::read_to_string(repository().join("docs/kernel-differences.md")).unwrap();
    let mut listed = BTreeMap::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, id, of, kernel, ours, ..] = cells.as_slice() else { continue };
        if *of == by && id.starts_with(&format!("{suite}-")) {
            let before = listed.insert((*id).to_owned(), [*kernel, *ours].map(str::to_owned));
            assert!(before.is_none(), "{id} is listed twice");
        }
    }
    listed
}

/// The result of replaying a case; `Err` describes the difference.
pub(crate) type Verdict = Result<(), String>;

/// Compares every case of a suite with the list. A listed case must differ, and all others must
/// agree.
pub(crate) fn check_suite(suite: &str, least: usize, mut replay: impl FnMut(&Value) -> Verdict) {
    // The daemon decides some of these itself, and the core the others.
    let listed = listed_differences(suite, &["core", "daemon"]);
    let mut seen = BTreeSet::new();
    let mut wrong = Vec::new();
    for case in &cases(suite) {
        let id = text(case, "id");
        seen.insert(id.to_owned());
        match (replay(case), listed.contains(id)) {
            (Err(difference), false) => {
                wrong.push(format!("{id} ({}): {difference}", text(case, "name")))
            }
            (Ok(()), true) => {
                wrong.push(format!("{id}: listed as a difference, but there is none"))
            }
            _ => {}
        }
    }
    assert!(seen.len() >= least, "only {} cases in {suite}", seen.len());
    wrong.extend(
        listed.difference(&seen).map(|id| format!("{id}: listed, but there is no such case")),
    );
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), seen.len(), wrong.join("\n"));
}

pub(crate) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} missing in {value}"))
}

/// Converts recorded text to bytes. It is Latin-1, so each character is one byte.
pub(crate) fn latin1(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(c).unwrap()).collect()
}

/// Expands a recorded map: `0 1 2*3`, or `(0 1)*5` for a cycle of that many regions.
pub(crate) fn expand(map: &str) -> Vec<u32> {
    let number = |word: &str| word.parse::<u32>().unwrap();
    if let Some((cycle, count)) = map.strip_prefix('(').and_then(|rest| rest.split_once(")*")) {
        let cycle: Vec<u32> = cycle.split(' ').map(number).collect();
        return cycle.into_iter().cycle().take(count.parse().unwrap()).collect();
    }
    map.split(' ')
        .flat_map(|word| match word.split_once('*') {
            Some((path, count)) => vec![number(path); count.parse().unwrap()],
            None => vec![number(word)],
        })
        .collect()
}

pub(crate) fn differs<T: PartialEq + std::fmt::Debug>(what: &str, ours: T, kernel: T) -> Verdict {
    if ours == kernel {
        Ok(())
    } else {
        Err(format!("{what}:\n    ours   {ours:?}\n    kernel {kernel:?}"))
    }
}

/// The messages of the kernel's log at error level, with `$DEV` for the device.
pub(crate) fn errors_logged(kmsg: &Value) -> Vec<String> {
    let lines = kmsg.as_array().map(Vec::as_slice).unwrap_or_default();
    let error = |line: &&Value| line[0].as_i64() == Some(3);
    lines.iter().filter(error).map(|line| line[1].as_str().unwrap().to_owned()).collect()
}
