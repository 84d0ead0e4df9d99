//! The layers of a crate: no file imports upwards, and no two folders import each other.
//!
//! ARCHITECTURE.md gives the order, for each crate in a block that begins with "```layers FOLDER".
//! Each line of a block is a layer, the top one first: names of folders and files below the crate's
//! `src`, then a colon and their purpose. A file belongs to the longest name that it has:
//! `engine/session` is a layer of its own beside `engine`. Names on one line do not import each
//! other; files of one name may.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result};

use super::imports::{self, Import};

/// The layers of one crate, in their order.
pub(crate) struct Layers {
    /// The folder of the crate's sources.
    src: String,
    /// Names of folders and files, and the distance of each from the top.
    names: BTreeMap<String, usize>,
}

/// Reads the blocks with layers from the text of ARCHITECTURE.md.
pub(crate) fn read(text: &str) -> Vec<Layers> {
    let mut all = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(src) = line.strip_prefix("```layers ") else { continue };
        let mut names = BTreeMap::new();
        for (depth, line) in lines.by_ref().take_while(|line| *line != "```").enumerate() {
            let written = line.split(':').next().unwrap_or_default();
            names.extend(written.split_whitespace().map(|name| (name.to_owned(), depth)));
        }
        all.push(Layers { src: src.trim().to_owned(), names });
    }
    all
}

/// Checks a crate whose files are in the working folder.
pub(crate) fn check(layers: &Layers, files: &[&str], breaches: &mut Vec<String>) -> Result<()> {
    let mut texts = BTreeMap::new();
    for file in files {
        if let Some(name) = file.strip_prefix(&format!("{}/", layers.src))
            && Path::new(name).extension().is_some_and(|extension| extension == "rs")
        {
            let text = std::fs::read_to_string(file).with_context(|| format!("reading {file}"))?;
            texts.insert(name.to_owned(), text);
        }
    }
    breaches.extend(layers.breaches(&texts)?);
    Ok(())
}

impl Layers {
    /// Returns a line for each breach of the rules in these files.
    fn breaches(&self, texts: &BTreeMap<String, String>) -> Result<Vec<String>> {
        let src = &self.src;
        let mut out = Vec::new();
        for file in texts.keys().filter(|file| self.layer(file).is_none()) {
            out.push(format!("{src}/{file}: is in no layer of ARCHITECTURE.md"));
        }
        for name in self.names.keys() {
            if !texts.keys().any(|file| is_below(file, name)) {
                out.push(format!("ARCHITECTURE.md: the layer '{name}' has no file in {src}"));
            }
        }
        let imports = imports::of(texts)?;
        for import in &imports {
            let (Some(from), Some(to)) = (self.layer(&import.from), self.layer(&import.to)) else {
                continue;
            };
            let Import { from: file, line, path, to: target, through, .. } = import;
            // The path names a lower layer through an upper one, so the file depends on both.
            let by = self.layer(through).filter(|by| by.1 < from.1);
            if let Some(by) = by.filter(|_| to.1 >= from.1) {
                let (from, by) = (from.0, by.0);
                out.push(format!(
                    "{src}/{file}:{line}: `{path}` goes through {through}, upwards: '{from}' is \
                     below '{by}'; name {target} itself"
                ));
            } else if to.1 < from.1 {
                let (from, to) = (from.0, to.0);
                out.push(format!(
                    "{src}/{file}:{line}: `{path}` ({target}) imports upwards: '{from}' is below \
                     '{to}'"
                ));
            } else if to.1 == from.1 && to.0 != from.0 {
                let (from, to) = (from.0, to.0);
                out.push(format!(
                    "{src}/{file}:{line}: `{path}` ({target}): '{from}' and '{to}' are of one \
                     layer and must not import each other"
                ));
            }
        }
        for circle in circles(&imports) {
            let folders: BTreeSet<_> = circle.iter().map(|file| Path::new(file).parent()).collect();
            if folders.len() > 1 {
                out.push(format!(
                    "{src}: files of different folders import each other: {}",
                    circle.join(", ")
                ));
            }
        }
        Ok(out)
    }

    /// The layer of a file: its name and its distance from the top.
    fn layer(&self, file: &str) -> Option<(&str, usize)> {
        let named = self.names.iter().filter(|(name, _)| is_below(file, name));
        named.max_by_key(|(name, _)| name.len()).map(|(name, depth)| (name.as_str(), *depth))
    }
}

/// Whether a file is the module with this name, or is in its folder.
fn is_below(file: &str, name: &str) -> bool {
    file.strip_prefix(name)
        .is_some_and(|rest| rest.is_empty() || rest == ".rs" || rest.starts_with('/'))
}

/// Finds files that import each other, directly or through others. Names that a file only hands on
/// do not count.
fn circles(imports: &BTreeSet<Import>) -> Vec<Vec<String>> {
    let mut next: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for import in imports.iter().filter(|import| !import.is_reexport) {
        next.entry(&import.from).or_default().insert(&import.to);
    }
    let reach = |from: &str| {
        let (mut seen, mut todo) = (BTreeSet::new(), vec![from]);
        while let Some(file) = todo.pop() {
            for to in next.get(file).into_iter().flatten() {
                if seen.insert(*to) {
                    todo.push(to);
                }
            }
        }
        seen
    };
    let reached: BTreeMap<&str, BTreeSet<&str>> =
        next.keys().map(|file| (*file, reach(file))).collect();
    let mut out: BTreeSet<Vec<String>> = BTreeSet::new();
    for (file, there) in &reached {
        let mutual = there.iter().filter(|to| reached.get(**to).is_some_and(|r| r.contains(file)));
        let circle: Vec<String> = mutual.map(|file| (*file).to_owned()).collect();
        if circle.len() > 1 {
            out.insert(circle);
        }
    }
    out.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORDER: &str = "\
text
```layers a/src
lib.rs            : what others see
pool driver       : threads
pipeline          : the way of a request
engine            : how a leaf is reached
engine/io.rs sys  : words of all engines
```
";

    fn breaches(files: &[(&str, &str)]) -> Vec<String> {
        let mut texts: BTreeMap<String, String> = ["lib.rs", "pool.rs", "driver.rs", "sys/mod.rs"]
            .iter()
            .chain(&["pipeline/mod.rs", "engine/mod.rs", "engine/io.rs", "engine/file.rs"])
            .map(|file| ((*file).to_owned(), String::new()))
            .collect();
        texts.extend(files.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned())));
        let [layers] = &read(ORDER)[..] else { panic!("one block") };
        layers.breaches(&texts).unwrap()
    }

    #[test]
    fn imports_downwards_and_within_a_folder_are_fine() {
        let none: [String; 0] = [];
        assert_eq!(breaches(&[]), none);
        let files = [
            ("lib.rs", "mod pool; pub use pool::Pool; pub use crate::sys;"),
            ("pool.rs", "use crate::pipeline::{self, Pipeline}; use crate::{engine, sys as s};"),
            ("engine/mod.rs", "mod file; pub use io::LeafIo; use file::FileEngine;"),
            ("engine/file.rs", "use super::LeafIo; fn f() { crate::sys::g(super::io::COPY) }"),
            // Words in comments and strings do not import, and neither does the path of a
            // visibility.
            (
                "sys/mod.rs",
                "/// [`crate::pool`]\npub(in crate::sys) const A: &str = \"crate::pool\";",
            ),
        ];
        assert_eq!(breaches(&files), none);
    }

    #[test]
    fn an_import_upwards_is_found_wherever_it_stands() {
        for text in [
            "use crate::pool::lock;",
            "use crate::{pool::lock, sys};",
            "use super::pool;",
            "fn f() { crate::pool::lock(); }",
            "#[error(\"{max}\", max = crate::pool::MAX)] struct E;",
            "macro!(super::pool::A);",
            "mod tests { use crate::pool; }",
            "mod tests { use super::super::pool::Pool; }",
            "pub use crate::pool::Pool;",
            "impl From<crate::pool::A> for B {}",
        ] {
            let found = breaches(&[("sys/mod.rs", &format!("\n{text}"))]);
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert!(found[0].starts_with("a/src/sys/mod.rs:2: `"), "{found:?}");
            assert!(found[0].ends_with("imports upwards: 'sys' is below 'pool'"), "{found:?}");
        }
        let found = breaches(&[("driver.rs", "use crate::pool::Pool;")]);
        assert!(found.len() == 1 && found[0].contains("must not import each other"), "{found:?}");
        // A lower file must not be imported through an upper one that hands its name on.
        let found = breaches(&[
            ("pool.rs", "pub use crate::sys::MAX;"),
            ("engine/file.rs", "const MAX: u32 = crate::pool::MAX;"),
        ]);
        assert!(
            found.len() == 1 && found[0].contains("goes through pool.rs, upwards"),
            "{found:?}"
        );
        // A name that a lower file hands on belongs to the file that defines it.
        let found = breaches(&[
            ("engine/mod.rs", "pub use crate::pipeline::HOLE;"),
            ("engine/file.rs", "use super::HOLE;"),
        ]);
        assert!(
            found.iter().any(|one| one.contains("engine/file.rs:1: `super::HOLE`")),
            "{found:?}"
        );
    }

    #[test]
    fn circles_between_folders_and_files_without_a_layer_are_found() {
        let files = [
            ("pipeline/mod.rs", "mod cut; use cut::wide::Wide;"),
            ("pipeline/cut/mod.rs", "mod wide;"),
            ("pipeline/cut/wide.rs", "use crate::pipeline::Pipeline;"),
            ("other.rs", ""),
        ];
        let found = breaches(&files);
        assert_eq!(
            found,
            [
                "a/src/other.rs: is in no layer of ARCHITECTURE.md",
                "a/src: files of different folders import each other: pipeline/cut/wide.rs, \
                 pipeline/mod.rs",
            ]
        );
    }
}
