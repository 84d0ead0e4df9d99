//! The default path of the daemon's control socket.
//!
//! The socket of root is in `/run/blkswitch`. The socket of another user is in
//! `$XDG_RUNTIME_DIR/blkswitch`. Without such a folder (`su`, cron, containers) it is in
//! `/tmp/blkswitch-UID`.
//!
//! Contract: everybody may write to `/tmp`, so a folder there is used only if it belongs to this
//! user, has mode 0700, and is not a symbolic link. `/tmp` has the sticky bit, so nobody else can
//! replace a folder that passed the check.

use std::env;
use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::failure::Failure;

const ROOT: &str = "/run/blkswitch";
const SOCKET: &str = "control.sock";
/// Mode of a folder below `/tmp`: only the owner may use it.
const PRIVATE: u32 = 0o700;

/// The control socket for a daemon. If it is in the folder below `/tmp`, that folder is created.
pub(super) fn of_daemon() -> Result<PathBuf, Failure> {
    let places = Places::of_this_process()?;
    let folder = places.first();
    if folder == places.fallback {
        make(&folder, places.user).map_err(Failure::Message)?;
    }
    Ok(folder.join(SOCKET))
}

/// The control socket for a client, in the first folder that has one. So a client without a runtime
/// folder finds a daemon that was started with one, and vice versa.
pub(super) fn of_client() -> Result<PathBuf, Failure> {
    let places = Places::of_this_process()?;
    let first = places.first();
    let has_socket = |folder: &PathBuf| folder.join(SOCKET).symlink_metadata().is_ok();
    let found = [&first, &places.fallback].into_iter().find(|folder| has_socket(folder));
    let folder = found.unwrap_or(&first);
    if *folder == places.fallback && folder.symlink_metadata().is_ok() {
        check(folder, places.user).map_err(Failure::Message)?;
    }
    Ok(folder.join(SOCKET))
}

/// The folders that may hold the sockets of a user.
struct Places {
    user: u32,
    /// `None` if the user has no runtime folder.
    runtime: Option<PathBuf>,
    /// The folder below `/tmp`; for root, its only folder.
    fallback: PathBuf,
}

impl Places {
    fn of_this_process() -> Result<Self, Failure> {
        let user = fs::metadata("/proc/self")
            .map_err(|error| Failure::Message(format!("cannot look at /proc/self: {error}")))?
            .uid();
        // The runtime folder may be unusable: it disappears when its user's last session ends, and
        // `su` without a login passes on the folder of another user.
        let usable = |folder: &PathBuf| {
            fs::metadata(folder).is_ok_and(|found| found.is_dir() && found.uid() == user)
        };
        let runtime = env::var_os("XDG_RUNTIME_DIR").filter(|_| user != 0);
        Ok(Self::new(user, runtime.filter(|folder| usable(&folder.into()))))
    }

    fn new(user: u32, runtime: Option<OsString>) -> Self {
        let runtime = runtime.filter(|folder| !folder.is_empty());
        let fallback =
            if user == 0 { ROOT.into() } else { format!("/tmp/blkswitch-{user}").into() };
        Self {
            user,
            runtime: runtime.map(|folder| PathBuf::from(folder).join("blkswitch")),
            fallback,
        }
    }

    fn first(&self) -> PathBuf {
        self.runtime.clone().unwrap_or_else(|| self.fallback.clone())
    }
}

/// Creates the folder unless it exists, and checks it either way.
fn make(folder: &Path, user: u32) -> Result<(), String> {
    match DirBuilder::new().mode(PRIVATE).create(folder) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => {
            return Err(format!("cannot make the folder '{}': {error}", folder.display()));
        }
    }
    check(folder, user)
}

/// Refuses a folder that another user may have created.
fn check(folder: &Path, user: u32) -> Result<(), String> {
    // The folder of root is below `/run`, where only root may write.
    if user == 0 {
        return Ok(());
    }
    let found = folder
        .symlink_metadata()
        .map_err(|error| format!("cannot look at the folder '{}': {error}", folder.display()))?;
    let mode = found.mode() & 0o7777;
    let wrong = if !found.is_dir() {
        "is not a folder".to_owned()
    } else if found.uid() != user {
        format!("belongs to user {}", found.uid())
    } else if mode & 0o077 != 0 {
        format!("has mode {mode:04o}")
    } else {
        return Ok(());
    };
    Err(format!(
        "'{}' {wrong}: the daemon's sockets are kept there only in a folder of user {user} with \
         mode 0700. Remove it, set XDG_RUNTIME_DIR, or name the control socket with --socket or \
         BLKSWITCH_SOCKET.",
        folder.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn sockets_are_in_the_runtime_folder_and_without_one_below_tmp() {
        let first = |user, runtime: Option<&str>| {
            Places::new(user, runtime.map(Into::into)).first().display().to_string()
        };
        assert_eq!(first(0, None), "/run/blkswitch");
        assert_eq!(first(7, Some("/run/user/7")), "/run/user/7/blkswitch");
        assert_eq!(first(7, Some("")), "/tmp/blkswitch-7");
        assert_eq!(first(7, None), "/tmp/blkswitch-7");
    }

    #[test]
    fn a_folder_that_another_user_can_change_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let user = dir.path().metadata().unwrap().uid();
        // The folder of root is not checked, so as root this test uses another user.
        let (own, other) = (user.max(1), user.max(1) + 1);
        let folder = dir.path().join("sockets");
        make(&folder, 0).unwrap();
        assert_eq!(folder.metadata().unwrap().mode() & 0o7777, 0o700);
        if user != 0 {
            check(&folder, own).unwrap();
            fs::set_permissions(&folder, PermissionsExt::from_mode(0o755)).unwrap();
            let refused = check(&folder, own).unwrap_err();
            assert!(refused.contains("sockets' has mode 0755:"), "{refused}");
        }
        let refused = check(&folder, other).unwrap_err();
        assert!(refused.contains(&format!("sockets' belongs to user {user}:")), "{refused}");
        let link = dir.path().join("link");
        symlink(&folder, &link).unwrap();
        for made in [check(&link, own), make(&link, own)] {
            let refused = made.unwrap_err();
            assert!(refused.contains("link' is not a folder:"), "{refused}");
        }
    }
}
