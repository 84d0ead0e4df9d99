//! What a state folder does with files, a function each: [`super`] decides when. A test of power
//! cuts is told of every step, in its order.
//!
//! Contract: as [`super`]. A folder that need not outlive the machine forces nothing to the medium.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
#[cfg(test)]
use std::sync::Arc;

use blkswitch_io::process;

#[cfg(test)]
use super::journal::Journal;

/// The state is its user's alone: it says where things are, and maps decide where data goes.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// The rights to write of a folder's group and of others.
const OTHERS_WRITE: u32 = 0o022;
/// Files of a folder with this bit are removed and renamed by their owner alone.
const STICKY: u32 = 0o1000;
/// `O_NOFOLLOW` of open(2): a link in the folder leads nowhere.
pub(super) const NO_FOLLOW: i32 = 0o400_000;
/// `O_NONBLOCK`: whatever stands in the place of a file, opening it does not wait.
pub(super) const OPEN_AT_ONCE: i32 = 0o4000;
/// Longest text that is read: a million devices have fewer.
const TEXT_MAX_BYTES: u64 = 1 << 30;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Files {
    forces: bool,
    #[cfg(test)]
    journal: Option<Arc<Journal>>,
}

/// What has been done.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(test), expect(dead_code, reason = "nobody is told but a test"))]
pub(crate) enum Step<'a> {
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
            #[cfg(test)]
            journal: None,
        }
    }

    /// Files that force, and whose steps go to `journal`.
    #[cfg(test)]
    pub(crate) fn noted(journal: Arc<Journal>) -> Files {
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
            // Who may not read the folder above has not made this one, and where nothing can be
            // written nothing is left to be forced.
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

    /// Makes a file that there was not.
    pub(super) fn make_new(&self, path: &Path) -> io::Result<File> {
        let mut open = OpenOptions::new();
        let file = open.read(true).write(true).create_new(true).mode(FILE_MODE).open(path)?;
        self.done(Step::Made(path));
        Ok(file)
    }

    /// Opens a file, which is made if it is not there; only for reading where nothing can be
    /// written.
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

    /// What a file holds.
    pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
        let mut open = OpenOptions::new();
        let file = open.read(true).custom_flags(NO_FOLLOW | OPEN_AT_ONCE).open(path)?;
        Files::check_owner(&file)?;
        let mut text = Vec::new();
        file.take(TEXT_MAX_BYTES).read_to_end(&mut text)?;
        Ok(text)
    }

    /// A file with this text and no other.
    pub(super) fn write(&self, path: &Path, text: &[u8]) -> io::Result<()> {
        // One that is left of a daemon before us, or that somebody has put there.
        self.remove(path)?;
        let mut file = self.make_new(path)?;
        file.write_all(text)?;
        self.wrote();
        self.force_file(&file, path)
    }

    /// Something was written to a file.
    pub(super) fn wrote(&self) {
        self.done(Step::Written);
    }

    /// Forces what was written to a file, and its length.
    pub(super) fn force_file(&self, file: &File, path: &Path) -> io::Result<()> {
        if self.forces {
            file.sync_data()?;
            self.done(Step::Forced(path));
        }
        Ok(())
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

    /// Forces the names in a folder to the medium.
    pub(super) fn force(&self, folder: &Path) -> io::Result<()> {
        if self.forces {
            File::open(folder)?.sync_all()?;
            self.done(Step::Forced(folder));
        }
        Ok(())
    }

    /// That a file was made by this user.
    pub(super) fn check_owner(file: &File) -> io::Result<()> {
        let (owner, user) = (file.metadata()?.uid(), process::user());
        if owner == user {
            return Ok(());
        }
        let why = format!("the file belongs to user {owner}, and the daemon is user {user}");
        Err(io::Error::new(ErrorKind::PermissionDenied, why))
    }

    /// That nobody else can exchange files of a folder.
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
        // Where it is sticky, as a new tmpfs is, others can add files, and those are not taken for
        // ours (`check_owner`).
        if folder.mode() & OTHERS_WRITE != 0 && folder.mode() & STICKY == 0 {
            let mode = folder.mode() & 0o7777;
            return refuse(format!(
                "others may write to the folder (mode {mode:o}): chmod go-w it"
            ));
        }
        Ok(())
    }
}

/// The folder that a path's name is in.
pub(super) fn above(path: &Path) -> &Path {
    path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
