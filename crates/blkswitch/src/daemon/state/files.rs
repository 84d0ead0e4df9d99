//! The operations of a state folder on files, one function each. [`super`] decides when they
//! happen. A test of power cuts gets a note of every step, in order.
//!
//! Contract: as [`super`]. A folder that need not survive a reboot forces nothing to the medium.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
#[cfg(test)]
use std::sync::Arc;

use blkswitch_io::process;

#[cfg(test)]
use super::journal::Journal;

/// Only the daemon's user may read or write the state: maps decide where data goes.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// The write permissions of a folder's group and of others.
const OTHERS_WRITE: u32 = 0o022;
/// In a folder with this bit, only the owner of a file may remove or rename it.
const STICKY: u32 = 0o1000;
/// `O_NOFOLLOW` of open(2): a symbolic link in the folder is not followed.
pub(super) const NO_FOLLOW: i32 = 0o400_000;
/// `O_NONBLOCK` of open(2): opening does not wait, whatever has taken the place of the file.
pub(super) const OPEN_AT_ONCE: i32 = 0o4000;
/// Longest text that is read. The description of a million devices is shorter.
const TEXT_MAX_BYTES: u64 = 1 << 30;

/// The operations on files, with or without forcing.
#[derive(Debug)]
pub(crate) struct Files {
    forces: bool,
    #[cfg(test)]
    journal: Option<Arc<Journal>>,
}

/// A step that was taken.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(test), expect(dead_code, reason = "nobody is told but a test"))]
pub(crate) enum FileStep<'a> {
    MadeFolder(&'a Path),
    Made(&'a Path),
    Written,
    Renamed(&'a Path, &'a Path),
    Removed(&'a Path),
    /// A file or folder.
    Forced(&'a Path),
}

impl Files {
    /// `forces`: whether the operations that promise it force data to the medium.
    pub(super) fn new(forces: bool) -> Files {
        Files {
            forces,
            #[cfg(test)]
            journal: None,
        }
    }

    /// Creates operations that force, and that note each step in `journal`.
    #[cfg(test)]
    pub(crate) fn noted(journal: Arc<Journal>) -> Files {
        Files { journal: Some(journal), ..Files::new(true) }
    }

    fn done(&self, _step: FileStep<'_>) {
        #[cfg(test)]
        if let Some(journal) = &self.journal {
            journal.note(_step);
        }
    }

    /// Creates a folder and the missing folders above it. The name of each is forced before
    /// anything is put into it. Folders that exist are forced as well: a daemon may have been
    /// killed between making and forcing them.
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
            self.done(FileStep::MadeFolder(path));
        }
        match self.force(above) {
            // A user who may not read the folder above has not made this one, and a read-only
            // medium has nothing left to force.
            Err(error)
                if is_there
                    && matches!(
                        error.kind(),
                        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem
                    ) =>
            {
                Ok(())
            }
            forced => forced,
        }
    }

    /// Creates a file that must not exist yet.
    pub(super) fn make_new(&self, path: &Path) -> io::Result<File> {
        let mut open = OpenOptions::new();
        let file = open.read(true).write(true).create_new(true).mode(FILE_MODE).open(path)?;
        self.done(FileStep::Made(path));
        Ok(file)
    }

    /// Opens a file, or creates it if it does not exist. On a read-only file system it opens the
    /// file for reading.
    pub(super) fn open_or_make(path: &Path) -> io::Result<File> {
        let mut open = OpenOptions::new();
        open.mode(FILE_MODE).custom_flags(NO_FOLLOW | OPEN_AT_ONCE);
        let file = match open.write(true).create(true).truncate(false).open(path) {
            Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem => {
                open.write(false).create(false).read(true).open(path)?
            }
            file => file?,
        };
        Files::check_owner(&file)?;
        Ok(file)
    }

    /// Reads a whole file, which must belong to this user.
    pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
        let mut open = OpenOptions::new();
        let file = open.read(true).custom_flags(NO_FOLLOW | OPEN_AT_ONCE).open(path)?;
        Files::check_owner(&file)?;
        let mut text = Vec::new();
        file.take(TEXT_MAX_BYTES).read_to_end(&mut text)?;
        Ok(text)
    }

    /// Writes a file that contains exactly `text`.
    pub(super) fn write(&self, path: &Path, text: &[u8]) -> io::Result<()> {
        // An earlier daemon may have left a file, or somebody else may have put one there.
        self.remove(path)?;
        let mut file = self.make_new(path)?;
        file.write_all(text)?;
        self.wrote();
        self.force_file(&file, path)
    }

    /// Notes that something was written to a file.
    pub(super) fn wrote(&self) {
        self.done(FileStep::Written);
    }

    /// Forces the data and the length of a file.
    pub(super) fn force_file(&self, file: &File, path: &Path) -> io::Result<()> {
        if self.forces {
            file.sync_data()?;
            self.done(FileStep::Forced(path));
        }
        Ok(())
    }

    /// Renames a file, and replaces the file that has the new name.
    pub(super) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)?;
        self.done(FileStep::Renamed(from, to));
        Ok(())
    }

    /// Removes a file. A file that does not exist is no error.
    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            removed => removed?,
        }
        self.done(FileStep::Removed(path));
        Ok(())
    }

    /// Forces the names in a folder to the medium.
    pub(super) fn force(&self, folder: &Path) -> io::Result<()> {
        if self.forces {
            File::open(folder)?.sync_all()?;
            self.done(FileStep::Forced(folder));
        }
        Ok(())
    }

    /// Checks that a file belongs to this user.
    pub(super) fn check_owner(file: &File) -> io::Result<()> {
        let (owner, user) = (file.metadata()?.uid(), process::user());
        if owner == user {
            return Ok(());
        }
        let why = format!("the file belongs to user {owner}, and the daemon is user {user}");
        Err(io::Error::new(ErrorKind::PermissionDenied, why))
    }

    /// Checks that nobody else can exchange the files of a folder.
    pub(super) fn check_folder(path: &Path) -> io::Result<()> {
        let refuse = |why: String| Err(io::Error::new(ErrorKind::PermissionDenied, why));
        let (folder, user) = (path.metadata()?, process::user());
        if folder.uid() != user {
            let why = format!(
                "the folder belongs to user {} and the daemon is user {user}: whoever owns it \
                 could exchange its files (chown {user} it, if it is yours)",
                folder.uid()
            );
            return refuse(why);
        }
        // In a sticky folder, such as a new tmpfs, others can add files. `check_owner` refuses
        // those.
        if folder.mode() & OTHERS_WRITE != 0 && folder.mode() & STICKY == 0 {
            let mode = folder.mode() & 0o7777;
            return refuse(format!(
                "others may write to the folder (mode {mode:o}): chmod go-w it"
            ));
        }
        Ok(())
    }
}

/// The folder that contains the path's last name.
pub(super) fn above(path: &Path) -> &Path {
    path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
