//! What a state folder does with files, a function each: [`super`] decides when. A test of power
//! cuts is told of every step, in its order.
//!
//! Contract: as [`super`]. A folder that need not outlive the machine forces nothing to the medium.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
#[cfg(test)]
use std::sync::Arc;

use blkswitch_io::slots::{InUse, Slots};

#[cfg(test)]
use super::power::Journal;

/// The state is its user's alone: it says where things are, and maps decide where data goes.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Files {
    forces: bool,
    in_use: InUse,
    #[cfg(test)]
    journal: Option<Arc<Journal>>,
}

/// What has been done.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(test), expect(dead_code, reason = "nobody is told but a test"))]
pub(super) enum Step<'a> {
    MadeFolder(&'a Path),
    Made(&'a Path),
    Written,
    Renamed(&'a Path, &'a Path),
    Removed(&'a Path),
    /// A file or a folder.
    Forced(&'a Path),
}

impl Files {
    /// `forces`: to the medium, where that is asked for.
    pub(super) fn new(forces: bool) -> Files {
        Files {
            forces,
            in_use: InUse::default(),
            #[cfg(test)]
            journal: None,
        }
    }

    /// Files that force, and whose steps go to `journal`.
    #[cfg(test)]
    pub(super) fn noted(journal: Arc<Journal>) -> Files {
        Files { journal: Some(journal), ..Files::new(true) }
    }

    fn done(&self, _step: Step<'_>) {
        #[cfg(test)]
        if let Some(journal) = &self.journal {
            journal.note(_step);
        }
    }

    /// Makes a folder, and those above that are not there, each with its name on the medium before
    /// anything is put into it. Those that are there are forced, too: who made them may have been
    /// killed before.
    pub(super) fn make_folder(&self, path: &Path) -> io::Result<()> {
        let (above, is_there) = (above(path), path.is_dir());
        if !is_there {
            if above != path {
                self.make_folder(above)?;
            }
            match DirBuilder::new().mode(FOLDER_MODE).create(path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => {}
                made => made?,
            }
            self.done(Step::MadeFolder(path));
        }
        match self.force(above) {
            // Who may not read the folder above has not made this one.
            Err(error) if is_there && error.kind() == ErrorKind::PermissionDenied => Ok(()),
            forced => forced,
        }
    }

    /// Makes a file that is empty, or empties it.
    fn make(&self, path: &Path) -> io::Result<File> {
        let mut open = OpenOptions::new();
        let file = open.write(true).create(true).truncate(true).mode(FILE_MODE).open(path)?;
        self.done(Step::Made(path));
        Ok(file)
    }

    /// Opens a file, which is made if it is not there.
    pub(super) fn open_or_make(path: &Path) -> io::Result<File> {
        OpenOptions::new().write(true).create(true).truncate(false).mode(FILE_MODE).open(path)
    }

    /// A file with this text and no other.
    pub(super) fn write(&self, path: &Path, text: &[u8]) -> io::Result<()> {
        self.make(path)?.write_all(text)?;
        self.done(Step::Written);
        self.force(path)
    }

    /// Another name for a file, in place of what had that name.
    pub(super) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)?;
        self.done(Step::Renamed(from, to));
        Ok(())
    }

    /// Removes a file; one that is not there is no error.
    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            removed => removed?,
        }
        self.done(Step::Removed(path));
        Ok(())
    }

    /// Forces to the medium a file's content and length, or the names in a folder.
    pub(super) fn force(&self, path: &Path) -> io::Result<()> {
        if self.forces {
            File::open(path)?.sync_all()?;
            self.done(Step::Forced(path));
        }
        Ok(())
    }

    /// Words for a new map in a new file, whose length and name are on the medium: a description
    /// that has the name must not be there before it, and nothing but a forced folder says which of
    /// two names comes first.
    pub(super) fn make_map(&self, path: &Path, len: usize) -> io::Result<Slots> {
        let slots = Slots::in_new_file(path, len, &self.in_use)?;
        self.done(Step::Made(path));
        self.force(path)?;
        self.force(above(path))?;
        Ok(slots)
    }

    /// The words of a map that is there.
    pub(super) fn open_map(&self, path: &Path, len: usize) -> io::Result<Slots> {
        Slots::in_file(path, len, &self.in_use)
    }

    /// Forces what was stored to a map so far, if it is in a file.
    pub(super) fn force_map(&self, slots: &Slots) -> io::Result<()> {
        if self.forces
            && let Some(path) = slots.file()
        {
            slots.sync()?;
            self.done(Step::Forced(path));
        }
        Ok(())
    }

    /// Removes the file of a map, unless a table has it.
    pub(super) fn remove_unused_map(&self, path: &Path) {
        self.in_use.remove_unused(path);
        if !path.exists() {
            self.done(Step::Removed(path));
        }
    }
}

/// The folder that a path's name is in.
pub(super) fn above(path: &Path) -> &Path {
    path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
