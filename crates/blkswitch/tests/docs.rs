//! Checks the documents against the repository: the files, tests and limits that they name exist.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Number of rows of the table when this was written. It may grow.
const PLACES: usize = 22;
/// Number of rows of the list of faults when this was written. It may grow.
const FAULTS: usize = 15;
/// Number of limits in docs/security.md when this was written. It may grow.
const LIMITS: usize = 80;

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = repository().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The rows of the first table below a heading, without the head of the table.
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

/// Finds all functions with `#[test]` in a folder of Rust files.
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

/// Finds all Rust files below a folder, as paths within the repository.
fn sources(folder: &str, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(repository().join(folder)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{folder}/{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            sources(&path, found);
        } else if path.ends_with(".rs") {
            found.push(path);
        }
    }
}

/// The constants of the product, by file: name, and the text of type and value.
#[derive(Default)]
struct Constants {
    files: HashMap<String, Vec<(String, String, String)>>,
}

impl Constants {
    fn read() -> Constants {
        let (mut constants, mut paths) = (Constants::default(), Vec::new());
        for package in ["core", "io", "blkswitch"] {
            sources(&format!("crates/{package}/src"), &mut paths);
        }
        for path in paths {
            let text = read(&path);
            let all = text.split("const ").skip(1).filter_map(|rest| {
                let (name, rest) = rest.split_once(": ")?;
                let (kind, rest) = rest.split_once(" =")?;
                let is_name =
                    name.bytes().all(|b| b.is_ascii_uppercase() || b"_0123456789".contains(&b));
                let value = rest.split(';').next()?.trim();
                is_name.then(|| (name.to_owned(), kind.to_owned(), value.to_owned()))
            });
            constants.files.insert(path.clone(), all.collect());
        }
        constants
    }

    /// The constant `name` of `file`, or of the nearest file that has a constant with that name.
    fn find(&self, name: &str, file: &str) -> (&str, &str, &str) {
        assert!(self.files.contains_key(file), "no file {file}");
        let shared =
            |path: &str| path.bytes().zip(file.bytes()).take_while(|(a, b)| a == b).count();
        let all = self.files.iter().flat_map(|(path, all)| all.iter().map(move |one| (path, one)));
        let found = all.filter(|(_, (other, ..))| other == name);
        let nearest = found.max_by_key(|(path, _)| (*path == file, shared(path), path.as_str()));
        let (_, (name, kind, value)) =
            nearest.unwrap_or_else(|| panic!("{file}: no constant {name}"));
        (name, kind, value)
    }

    /// The value of a constant: a number, or a time in nanoseconds.
    fn value(&self, name: &str, file: &str) -> u64 {
        let (name, kind, text) = self.find(name, file);
        let (text, scale) = match text.strip_prefix("Duration::from_") {
            Some(rest) => {
                let (unit, number) = rest.split_once('(').unwrap();
                let scale = match unit {
                    "secs" => 1_000_000_000,
                    "millis" => 1_000_000,
                    "micros" => 1_000,
                    _ => panic!("{file}: {name}: Duration::from_{unit}"),
                };
                (number.trim_end_matches(')'), scale)
            }
            None if kind == "Duration" => panic!("{file}: {name}: {text}"),
            None => (text, 1),
        };
        scale * self.sum(text, file)
    }

    /// Computes sums, products and shifts of numbers and other constants. Limits use nothing else.
    fn sum(&self, text: &str, file: &str) -> u64 {
        if let Some((number, shift)) = text.split_once(" << ") {
            return self.sum(number, file) << self.sum(shift, file);
        }
        if let Some((one, rest)) = text.split_once(" + ") {
            return self.sum(one, file) + self.sum(rest, file);
        }
        if let Some((one, rest)) = text.split_once(" * ") {
            return self.sum(one, file) * self.sum(rest, file);
        }
        let word = text.split(" as ").next().unwrap().rsplit("::").next().unwrap();
        word.replace('_', "").parse().unwrap_or_else(|_| self.value(word, file))
    }
}

/// The number in a cell such as `32 MiB`, `0.5 ms` or `1/4`. The flag says whether it is a time, in
/// nanoseconds.
fn number(cell: &str) -> (u64, bool) {
    let (number, unit) = cell.split_once(' ').unwrap_or((cell, ""));
    let number: f64 =
        number.trim_start_matches("1/").parse().unwrap_or_else(|_| panic!("'{cell}'"));
    let (scale, is_time) = match unit {
        "" | "B" => (1.0, false),
        "KiB" => (1024.0, false),
        "MiB" => (1024.0 * 1024.0, false),
        "GiB" => (1024.0 * 1024.0 * 1024.0, false),
        "ms" => (1e6, true),
        "s" => (1e9, true),
        "h" => (3600e9, true),
        _ => panic!("'{cell}': the unit"),
    };
    ((number * scale) as u64, is_time)
}

/// The rows of the tables of limits: limit, value, constant, file.
fn limits(text: &str) -> Vec<[&str; 4]> {
    let lines = text.lines().filter(|line| line.contains(".rs` |"));
    let cells = lines.map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        <[&str; 4]>::try_from(cells).unwrap_or_else(|cells| panic!("{cells:?}: four cells"))
    });
    cells
        .map(|[limit, value, name, file]| {
            [limit, value, name.trim_matches('`'), file.trim_matches('`')]
        })
        .collect()
}

#[test]
fn every_limit_of_the_security_page_holds() {
    let (text, constants) = (read("docs/security.md"), Constants::read());
    let limits = limits(&text);
    assert!(limits.len() >= LIMITS, "{} limits", limits.len());
    for [limit, value, name, file] in &limits {
        let (said, is_time) = number(value);
        let (found, kind, _) = constants.find(name, file);
        assert!(
            constants.files[*file].iter().any(|(other, ..)| other == found),
            "{file}: no {name}"
        );
        let scale = match is_time {
            true if name.ends_with("_MS") => 1_000_000,
            true if !name.ends_with("_NS") && kind != "Duration" => 1_000_000_000,
            _ => 1,
        };
        let is = constants.value(name, file) * scale;
        assert_eq!(
            said, is,
            "docs/security.md says of '{limit}' {value}, {file} has another {name}"
        );
    }
    // Every limit in these files must be on the page.
    for file in [
        "export/nbd/mod.rs",
        "export/nbd/admission.rs",
        "export/nbd/conn/mod.rs",
        "export/nbd/inquiry.rs",
        "engine/iscsi/protocol.rs",
        "engine/iscsi/session.rs",
        "engine/iscsi/login.rs",
        "engine/nbd/handshake.rs",
        "engine/nbd/wire.rs",
        "engine/session/uri.rs",
    ] {
        let file = format!("crates/io/src/{file}");
        for (name, ..) in &constants.files[&file] {
            let is_limit = name.split('_').any(|word| word == "MAX");
            let is_there = limits.iter().any(|[_, _, other, of]| other == name && *of == file);
            assert!(!is_limit || is_there, "docs/security.md lacks {name} of {file}");
        }
    }
}

#[test]
fn every_measurement_is_in_the_index_newest_first() {
    let index = read("bench/results/README.md");
    let files = std::fs::read_dir(repository().join("bench/results")).unwrap();
    for file in files {
        let name = file.unwrap().file_name().into_string().unwrap();
        let is_page = name != "README.md" && !name.ends_with(".json");
        assert!(!is_page || index.contains(&format!("]({name})")), "no row for {name}");
    }
    let dates = index.lines().filter_map(|line| line.strip_prefix("| 2"));
    let dates: Vec<&str> = dates.filter_map(|row| row.split(' ').next()).collect();
    assert!(dates.len() > 10 && dates.is_sorted_by(|one, next| one >= next), "{dates:?}");
}
