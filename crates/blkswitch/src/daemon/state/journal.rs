//! Notes every step of a state folder for a test of power cuts.
//!
//! Contract: for tests only. Each note has the content of all files at that moment.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::files::FileStep;

/// Path of the folder below `base`. Only `base` exists before the test, so the folders in between
/// must be created.
pub(crate) const FOLDER: &str = "not/there/state";

pub(crate) type Contents = BTreeMap<PathBuf, Vec<u8>>;

/// Every step, and the content of all files after it. Paths are relative to `base`.
#[derive(Debug)]
pub(crate) struct Journal {
    pub(crate) base: PathBuf,
    pub(crate) notes: Mutex<Vec<Note>>,
}

#[derive(Debug)]
pub(crate) struct Note {
    pub(crate) step: NotedStep,
    pub(crate) contents: Contents,
}

#[derive(Debug, PartialEq)]
pub(crate) enum NotedStep {
    MadeFolder(PathBuf),
    Made(PathBuf),
    Written,
    Renamed(PathBuf, PathBuf),
    Removed(PathBuf),
    Forced(PathBuf),
    /// A change was answered; the number is that of the state after it.
    Answered(usize),
}

impl Journal {
    pub(crate) fn new(base: &Path) -> Arc<Journal> {
        Arc::new(Journal { base: base.to_owned(), notes: Mutex::default() })
    }

    pub(crate) fn note(&self, step: FileStep<'_>) {
        // `make_folder` may also force the folder above `base`, which is not part of the test.
        if matches!(step, FileStep::Forced(path) if path.strip_prefix(&self.base).is_err()) {
            return;
        }
        let name = |path: &Path| path.strip_prefix(&self.base).unwrap().to_owned();
        self.push(match step {
            FileStep::MadeFolder(path) => NotedStep::MadeFolder(name(path)),
            FileStep::Made(path) => NotedStep::Made(name(path)),
            FileStep::Written => NotedStep::Written,
            FileStep::Renamed(from, to) => NotedStep::Renamed(name(from), name(to)),
            FileStep::Removed(path) => NotedStep::Removed(name(path)),
            FileStep::Forced(path) => NotedStep::Forced(name(path)),
        });
    }

    pub(crate) fn push(&self, step: NotedStep) {
        let mut contents = Contents::new();
        for entry in std::fs::read_dir(self.base.join(FOLDER)).into_iter().flatten() {
            let name = Path::new(FOLDER).join(entry.unwrap().file_name());
            contents.insert(name.clone(), std::fs::read(self.base.join(name)).unwrap());
        }
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push(Note { step, contents });
    }
}
