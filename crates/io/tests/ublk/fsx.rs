//! Treats a file on a filesystem on a ublk disk as fsx does: random writes, reads, truncations,
//! mappings and holes from a seed, compared with a copy in memory, and again after a remount. The
//! server is a process of its own, so that a page fault in a mapping never waits for a thread of
//! the same process.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use blkswitch_io::export::ublk;

use crate::lab::{self, Folder, run};
use crate::recovery::Server;

/// Largest length of the file.
const MAX_LEN: u64 = 2 << 20;
const MAX_PIECE: u64 = 40_000;
const STEPS: u32 = 1500;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit.max(1)
    }
}

/// A file and the content that it must have.
struct Subject {
    file: File,
    model: Vec<u8>,
    random: Random,
}

impl Subject {
    /// Does one random operation. Returns its name, for the message if the file has wrong content.
    fn step(&mut self) -> &'static str {
        let at = self.random.below(MAX_LEN - MAX_PIECE);
        let len = 1 + self.random.below(MAX_PIECE);
        match self.random.below(20) {
            0..=6 => self.write(at, len),
            7..=11 => self.read(at, len),
            12 | 13 => self.truncate(at),
            14 | 15 => self.punch(at, len),
            16 | 17 => self.map(at, len, true),
            18 => self.map(at, len, false),
            _ => {
                self.file.sync_all().unwrap();
                "fsync"
            }
        }
    }

    fn bytes(&mut self, len: u64) -> Vec<u8> {
        let (start, step) = (self.random.below(256), self.random.below(7));
        (0..len).map(|n| (start + n * step + (n >> 8)) as u8).collect()
    }

    fn write(&mut self, at: u64, len: u64) -> &'static str {
        let bytes = self.bytes(len);
        self.file.write_all_at(&bytes, at).unwrap();
        let end = (at + len) as usize;
        if self.model.len() < end {
            self.model.resize(end, 0);
        }
        self.model[at as usize..end].copy_from_slice(&bytes);
        "write"
    }

    fn read(&mut self, at: u64, len: u64) -> &'static str {
        let mut bytes = vec![0xee; len as usize];
        let read = self.file.read_at(&mut bytes, at).unwrap();
        let there = self.model.len().saturating_sub(at as usize).min(len as usize);
        assert_eq!(read, there, "length of a read of {len} at {at}");
        let expected = self.model.get(at as usize..at as usize + read).unwrap_or_default();
        assert!(bytes[..read] == *expected, "content of a read of {len} at {at}");
        "read"
    }

    fn truncate(&mut self, at: u64) -> &'static str {
        self.file.set_len(at).unwrap();
        self.model.resize(at as usize, 0);
        "truncate"
    }

    fn punch(&mut self, at: u64, len: u64) -> &'static str {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: a system call with integers, on a descriptor of this process.
        let result = unsafe {
            libc::fallocate(self.file.as_raw_fd(), mode, at as libc::off_t, len as libc::off_t)
        };
        assert_eq!(result, 0, "fallocate: {}", std::io::Error::last_os_error());
        let end = self.model.len().min((at + len) as usize);
        if let Some(hole) = self.model.get_mut(at as usize..end) {
            hole.fill(0);
        }
        "punch a hole"
    }

    /// Writes to a mapping of the file, or reads from one.
    fn map(&mut self, at: u64, len: u64, write: bool) -> &'static str {
        let end = self.model.len().min((at + len) as usize);
        if end <= at as usize {
            return "nothing";
        }
        let bytes = self.bytes((end - at as usize) as u64);
        let (fd, both) = (self.file.as_raw_fd(), libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: a new mapping of a file that nobody truncates while it exists. It is used below
        // the file's length, and then unmapped.
        unsafe {
            let memory = libc::mmap(std::ptr::null_mut(), end, both, libc::MAP_SHARED, fd, 0);
            assert_ne!(memory, libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
            let part = std::slice::from_raw_parts_mut(
                memory.cast::<u8>().add(at as usize),
                end - at as usize,
            );
            assert!(*part == self.model[at as usize..end], "content of a mapping at {at}");
            if write {
                part.copy_from_slice(&bytes);
                self.model[at as usize..end].copy_from_slice(&bytes);
            }
            assert_eq!(libc::munmap(memory, end), 0);
        }
        "map"
    }

    fn check(&self, when: &str) {
        let content = std::fs::read(format!("/proc/self/fd/{}", self.file.as_raw_fd())).unwrap();
        assert_eq!(content.len(), self.model.len(), "length {when}");
        let wrong = content.iter().zip(&self.model).position(|(is, should)| is != should);
        assert_eq!(wrong, None, "first wrong byte {when}");
    }
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

#[test]
fn a_file_is_what_its_writers_made_it() {
    if !lab::ready() {
        return;
    }
    run("modprobe", &["ext4"]);
    let files = Folder::new("fsx");
    let server = Server::start(&files.0, None);
    let node = format!("/dev/ublkb{}", server.id);
    run("mkfs.ext4", &["-q", "-F", &node]);
    let at = Folder::new("fsx-mount");
    let mount = at.0.to_str().unwrap();
    for seed in [1, 2, 3] {
        run("mount", &[&node, mount]);
        let path = at.0.join(format!("file{seed}"));
        let mut subject = Subject { file: open(&path), model: Vec::new(), random: Random(seed) };
        for step in 0..STEPS {
            let what = subject.step();
            if step % 100 == 99 {
                subject.check(&format!("after step {step} ({what}), seed {seed}"));
            }
        }
        let Subject { file, model, random } = subject;
        drop(file);
        run("umount", &[mount]);
        run("fsck.ext4", &["-f", "-n", &node]);
        run("mount", &[&node, mount]);
        let subject = Subject { file: open(&path), model, random };
        subject.check(&format!("after a new mount, seed {seed}"));
        drop(subject);
        run("umount", &[mount]);
    }
    ublk::remove_leftover(server.kill()).unwrap();
}
