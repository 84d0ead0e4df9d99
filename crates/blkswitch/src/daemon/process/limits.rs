//! Finds out how much memory this process may use, and how much of it the data of clients may take.
//!
//! Contract: reads files of `/proc` and `/sys`; called once, when the daemon starts. A file that
//! cannot be read sets no limit.

use std::fs::read_to_string;
use std::path::{Path, PathBuf};

use blkswitch_io::memory::{DEFAULT_BYTES, MIN_BYTES};

/// The data of clients gets a quarter of the memory that the process may use.
const SHARE: u64 = 4;

/// The budget in bytes for the data of clients: a quarter of the least of the machine's memory, the
/// control group's limit and the limit of the address space, and at most [`DEFAULT_BYTES`].
pub fn client_memory() -> usize {
    let limits = [total_memory(), address_space(), group(Path::new("/sys/fs/cgroup"))];
    budget(limits.into_iter().flatten().min())
}

fn budget(limit: Option<u64>) -> usize {
    let share = limit.map_or(u64::MAX, |limit| limit / SHARE);
    usize::try_from(share).unwrap_or(usize::MAX).clamp(MIN_BYTES, DEFAULT_BYTES)
}

/// Memory of the machine in bytes.
fn total_memory() -> Option<u64> {
    let text = read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The soft limit of the address space in bytes; `None` if there is none.
fn address_space() -> Option<u64> {
    let text = read_to_string("/proc/self/limits").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The least memory limit of the process's control group and those above it, in version 1 or 2.
fn group(mounted: &Path) -> Option<u64> {
    group_of(mounted, &read_to_string("/proc/self/cgroup").ok()?)
}

fn group_of(mounted: &Path, groups: &str) -> Option<u64> {
    let limits = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let (root, file) = match controllers {
            "" => (mounted.to_owned(), "memory.max"),
            "memory" => (mounted.join("memory"), "memory.limit_in_bytes"),
            _ => return None,
        };
        least(&root, path, file)
    });
    limits.min()
}

/// The least number in `file` of a group and those above it. In a container, `path` may be a path
/// of the host that does not exist inside. Then the root is the container's own group.
fn least(root: &Path, path: &str, file: &str) -> Option<u64> {
    let mut folder: PathBuf = root.join(path.trim_start_matches('/'));
    let mut least = None;
    loop {
        let here = read_to_string(folder.join(file)).ok().and_then(|text| text.trim().parse().ok());
        least = [least, here].into_iter().flatten().min();
        if folder == root || !folder.pop() {
            return least;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_a_quarter_within_bounds() {
        assert_eq!(budget(None), DEFAULT_BYTES);
        assert_eq!(budget(Some(1 << 40)), DEFAULT_BYTES);
        assert_eq!(budget(Some(512 << 20)), 128 << 20);
        assert_eq!(budget(Some(64 << 20)), MIN_BYTES);
        assert!(total_memory().is_some_and(|bytes| bytes > 16 << 20));
        assert!((MIN_BYTES..=DEFAULT_BYTES).contains(&client_memory()));
    }

    #[test]
    fn the_least_limit_of_the_groups_above_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("a/memory.max", "5000\n");
        write("a/b/memory.max", "max\n");
        write("memory/c/memory.limit_in_bytes", "7000\n");
        let of = |groups: &str| group_of(root.path(), groups);
        assert_eq!(of("0::/a/b\n"), Some(5000));
        assert_eq!(of("4:memory:/c/d\n1:cpu:/a\n"), Some(7000));
        assert_eq!(of("4:memory:/c\n0::/a\n"), Some(5000));
        assert_eq!(of("0::/\n"), None);
        assert_eq!(of("nonsense"), None);
        // In a container, the path is the host's, and the limit is at the root.
        write("memory.max", "3000\n");
        assert_eq!(of("0::/docker/1234\n"), Some(3000));
    }
}
