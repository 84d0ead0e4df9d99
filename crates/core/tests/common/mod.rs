//! Shared by the tests that replay recordings of a kernel: reads the cases and checks the list of
//! expected differences in both directions.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::Value;

/// The path of a recorded file. `tests/golden` links to the repository's files; a published package
/// contains the files themselves.
fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

pub(crate) fn cases(suite: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(golden(&format!("{suite}.jsonl"))).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Ids of the cases that `docs/kernel-differences.md` lists as decided differently by the core.
pub(crate) fn listed_differences() -> BTreeSet<String> {
    let text = std::fs::read_to_string(golden("kernel-differences")).unwrap();
    let mut ids = BTreeSet::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if cells.len() > 3 && cells[2] == "core" {
            assert!(ids.insert(cells[1].to_owned()), "{} is listed twice", cells[1]);
        }
    }
    ids
}

/// Replays every case of `suite` and compares the outcome with the list. `replay` returns how a
/// case differs.
pub(crate) fn check_suite(
    suite: &str,
    least: usize,
    mut replay: impl FnMut(&Value) -> Result<(), String>,
) {
    let listed: BTreeSet<String> = listed_differences()
        .into_iter()
        .filter(|id| id.starts_with(&format!("{suite}-")))
        .collect();
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    let cases = cases(suite);
    assert!(cases.len() >= least, "only {} cases in {suite}", cases.len());
    for case in &cases {
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
    wrong.extend(
        listed.difference(&seen).map(|id| format!("{id}: listed, but there is no such case")),
    );
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

pub(crate) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} missing in {value}"))
}

pub(crate) fn differs<T: PartialEq + std::fmt::Debug>(
    what: &str,
    ours: T,
    kernel: T,
) -> Result<(), String> {
    if ours == kernel {
        Ok(())
    } else {
        Err(format!("{what}: ours {ours:?}, the kernel's {kernel:?}"))
    }
}
