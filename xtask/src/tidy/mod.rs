//! `cargo xtask tidy`: checks the project's rules that no compiler checks.
//!
//! Reads the files that git tracks, prints every breach with its place, and fails if there is one.

mod imports;
mod layers;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};

/// Longest source file in lines. A longer file has more than one concept. Tests may be longer.
const MAX_LINES: usize = 700;

/// Longest line of Rust in columns, as in `rustfmt.toml`. rustfmt checks neither comments nor the
/// bodies of macros.
const MAX_COLUMNS: usize = 100;

/// Words that mark unfinished code. A test may be ignored if it states the reason: `.ci/run` runs
/// those that need root. The words are written in two halves because this file is checked, too.
const UNFINISHED: [&str; 5] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("todo", "!("),
    concat!("unimpl", "emented!("),
    concat!("#[ign", "ore]"),
];

/// Folders whose code may be unsafe.
const UNSAFE_HOMES: [&str; 2] = ["crates/io/", "kmod/"];

/// Files that contain the words they search for, so they are not checked for these.
const CHECKED_BY_EYE: &str = "xtask/src/tidy/";

pub(crate) fn main(words: &[String]) -> anyhow::Result<ExitCode> {
    ensure!(words.is_empty(), "'{}': tidy takes no arguments", words.join(" "));
    let output =
        Command::new("git").args(["ls-files"]).output().context("cannot run git ls-files")?;
    let files = String::from_utf8(output.stdout)?;
    let mut breaches = Vec::new();
    for file in files.lines().filter(|file| !file.starts_with("tests/golden/")) {
        let Ok(text) = std::fs::read_to_string(file) else { continue };
        match Path::new(file).extension().and_then(|e| e.to_str()) {
            Some("rs") => rust_file(file, &text, &mut breaches),
            Some("md") => markdown_file(file, &text, &mut breaches),
            _ => {}
        }
        if !file.starts_with(CHECKED_BY_EYE) {
            unfinished(file, &text, &mut breaches);
        }
    }
    let names: Vec<&str> = files.lines().collect();
    let order = std::fs::read_to_string("ARCHITECTURE.md").context("reading ARCHITECTURE.md")?;
    breaches.extend(module_style(&names));
    for layers in layers::read(&order) {
        layers::check(&layers, &names, &mut breaches)?;
    }
    breaches.iter().for_each(|breach| println!("{breach}"));
    println!("tidy: {} files, {} breaches", files.lines().count(), breaches.len());
    Ok(if breaches.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Checks that a module with a folder is `foo/mod.rs`, not `foo.rs` beside the folder, so that the
/// folder has all of it.
fn module_style(files: &[&str]) -> Vec<String> {
    let folders: BTreeSet<&Path> =
        files.iter().filter_map(|file| Path::new(file).parent()).collect();
    let beside = files.iter().filter(|file| {
        let folder = file.strip_suffix(".rs").filter(|folder| folder.contains("/src/"));
        folder.is_some_and(|folder| folders.iter().any(|other| other.starts_with(folder)))
    });
    beside
        .map(|file| format!("{file}: has a folder of its own: it belongs there as mod.rs"))
        .collect()
}

fn rust_file(file: &str, text: &str, breaches: &mut Vec<String>) {
    let is_test = file.contains("/tests/") || file.ends_with("tests.rs");
    let first = text.lines().find(|line| !line.starts_with("#!"));
    if !first.is_some_and(|line| line.starts_with("//!")) {
        breaches.push(format!("{file}:1: opens without //! (what it is, and its contract)"));
    }
    let own = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text).lines().count();
    if own > MAX_LINES && !is_test {
        breaches.push(format!("{file}: {own} lines, more than {MAX_LINES}: split it by concept"));
    }
    breaches.extend(
        long_lines(text)
            .into_iter()
            .map(|nr| format!("{file}:{nr}: longer than {MAX_COLUMNS} columns")),
    );
    let may_be_unsafe = UNSAFE_HOMES.iter().any(|home| file.starts_with(home)) || is_test;
    for (nr, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or("");
        if !may_be_unsafe
            && ["unsafe {", "unsafe fn", "unsafe impl"].iter().any(|word| code.contains(word))
            && !file.starts_with(CHECKED_BY_EYE)
        {
            breaches.push(format!(
                "{file}:{}: unsafe code outside {}",
                nr + 1,
                UNSAFE_HOMES.join(" and ")
            ));
        }
    }
}

/// The numbers of the lines that are too long. A line may be longer if it has a text in quotes, an
/// address on the web, or a row of a table: to cut these would make them harder to read or to find.
fn long_lines(text: &str) -> Vec<usize> {
    let mut found = Vec::new();
    let mut in_text = false;
    for (nr, line) in text.lines().enumerate() {
        let code = line.trim_start();
        let comment = code.strip_prefix("//").map(|rest| rest.trim_start_matches(['/', '!', ' ']));
        let was_in_text = in_text;
        let quotes = line.replace("\\\"", "").replace("'\"'", "").matches('"').count();
        in_text ^= comment.is_none() && quotes % 2 == 1;
        let is_row = comment.is_some_and(|rest| rest.starts_with('|'));
        let may_be_long = was_in_text || is_row || line.contains('"') || line.contains("://");
        if line.chars().count() > MAX_COLUMNS && !may_be_long {
            found.push(nr + 1);
        }
    }
    found
}

/// Checks that files named in backticks, and the targets of relative links, exist.
fn markdown_file(file: &str, text: &str, breaches: &mut Vec<String>) {
    let folder = Path::new(file).parent().unwrap_or(Path::new(""));
    for (nr, line) in text.lines().enumerate() {
        for quoted in line.split('`').skip(1).step_by(2) {
            let ours = ["crates/", "kmod/", "xtask/", "bench/", "fuzz/", "docs/", "tests/"];
            let plain = quoted.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
            if plain && ours.iter().any(|o| quoted.starts_with(o)) && !Path::new(quoted).exists() {
                breaches.push(format!("{file}:{}: names `{quoted}`, which does not exist", nr + 1));
            }
        }
        for target in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = target.split('#').next().unwrap_or("");
            if !target.is_empty() && !target.contains("://") && !folder.join(target).exists() {
                breaches
                    .push(format!("{file}:{}: links to {target}, which does not exist", nr + 1));
            }
        }
    }
}

fn unfinished(file: &str, text: &str, breaches: &mut Vec<String>) {
    for (nr, line) in text.lines().enumerate() {
        for word in UNFINISHED.iter().filter(|word| line.contains(**word)) {
            breaches.push(format!("{file}:{}: '{word}'", nr + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_short_except_texts_addresses_and_tables() {
        let words = "word ".repeat(30);
        let fine = [
            format!("let text = \"{words}\";"),
            format!("let text = \"a\n{words}\n\";\nlet b = 1;"),
            format!("/// | {words} |"),
            format!("// https://example.org/{words}"),
        ];
        fine.iter().for_each(|text| assert_eq!(long_lines(text), Vec::<usize>::new(), "{text}"));
        for text in [format!("// {words}"), format!("f({words});"), format!("\"a\"\n{words}")] {
            assert_eq!(long_lines(&text), [text.lines().count()], "{text}");
        }
    }

    #[test]
    fn a_module_with_a_folder_has_its_file_there() {
        let fine =
            ["a/src/lib.rs", "a/src/b/mod.rs", "a/src/b/c.rs", "a/src/bc.rs", "a/tests/d.rs"];
        assert_eq!(module_style(&fine), Vec::<String>::new());
        let found = module_style(&["a/src/b.rs", "a/src/b/c/d.rs"]);
        assert_eq!(found, ["a/src/b.rs: has a folder of its own: it belongs there as mod.rs"]);
    }
}
