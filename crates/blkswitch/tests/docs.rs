//! What the documents promise of the repository itself: places to look at, and tests, are there.

use std::path::{Path, PathBuf};

/// As many rows as the table had when this was written: it may grow.
const PLACES: usize = 22;
/// Likewise of the list of faults.
const FAULTS: usize = 15;

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = repository().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The rows of the first table below a heading, without its head.
fn rows<'a>(text: &'a str, heading: &str) -> Vec<Vec<&'a str>> {
    let section =
        text.split_once(&format!("\n## {heading}")).unwrap_or_else(|| panic!("no '{heading}'")).1;
    let table = section.lines().skip_while(|line| !line.starts_with('|')).skip(2);
    let cells = |line: &'a str| line.trim_matches('|').split('|').map(str::trim).collect();
    table.take_while(|line| line.starts_with('|')).map(cells).collect()
}

fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

#[test]
fn every_place_to_look_at_is_there() {
    let text = read("ARCHITECTURE.md");
    let rows = rows(&text, "I want to");
    assert!(rows.len() >= PLACES, "{} rows", rows.len());
    for row in rows {
        let [wish, places] = row.as_slice() else { panic!("{row:?}: a wish and its places") };
        let paths: Vec<&str> = quoted(places).filter(|word| word.contains('/')).collect();
        assert!(!paths.is_empty(), "'{wish}' has no place to look at");
        for path in paths {
            assert!(repository().join(path).is_file(), "'{wish}': no file {path}");
        }
    }
}

/// All functions with `#[test]` of a folder of Rust files.
fn tests_in(folder: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests_in(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let names = text
                .split("#[test]\n")
                .skip(1)
                .filter_map(|rest| rest.trim_start().strip_prefix("fn "));
            found.extend(names.filter_map(|rest| rest.split('(').next()).map(str::to_owned));
        }
    }
}

#[test]
fn every_test_of_the_list_of_faults_is_there() {
    let text = read("docs/kernel-differences.md");
    let rows = rows(&text, "The faults of the target");
    assert!(rows.len() >= FAULTS, "{} rows", rows.len());
    let mut tests = Vec::new();
    for package in ["core", "io", "blkswitch"] {
        for folder in ["src", "tests"] {
            tests_in(&repository().join("crates").join(package).join(folder), &mut tests);
        }
    }
    let module = read("kmod/tests/behaviour.py");
    for row in rows {
        let [fault, _, names] = row.as_slice() else {
            panic!("{row:?}: a fault, what is done, tests")
        };
        let (ours, its) = names.split_once("module:").unwrap_or((names, ""));
        assert!(
            names.starts_with("none: ") || quoted(ours).next().is_some(),
            "'{fault}' has no test"
        );
        for name in quoted(ours) {
            assert!(tests.iter().any(|test| test == name), "'{fault}': no test {name}");
        }
        for name in quoted(its) {
            assert!(
                module.contains(&format!("def {name}(self)")),
                "'{fault}': no test {name} of the module"
            );
        }
    }
}
