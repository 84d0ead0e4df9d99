//! The write protection of a SCSI disk, as the disk itself reports it.
//!
//! The kernel asks for it only when it examines the disk. A disk that becomes write-protected later
//! answers writes with a sense key that the kernel turns into `EREMOTEIO`, as it does with several
//! other errors. Meanwhile `BLKROGET` and `open` say that the disk can be written.
//!
//! Contract: blocks, at most for [`TIMEOUT_MS`]. Any user who may read the disk may ask.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr;

/// `SG_IO` of scsi/sg.h.
const SG_IO: libc::c_ulong = 0x2285;
const SG_DXFER_FROM_DEV: i32 = -3;
/// Time limit of the command in milliseconds.
const TIMEOUT_MS: u32 = 5000;
/// Length of the answer that is asked for. Only its first bytes matter.
const ANSWER: u8 = 64;
/// MODE SENSE(6) of all pages, without block descriptors.
const MODE_SENSE: [u8; 6] = [0x1a, 0x08, 0x3f, 0, ANSWER, 0];
/// The byte of the answer with the bit for write protection, and that bit.
const SPECIFIC: usize = 2;
const WRITE_PROTECTED: u8 = 0x80;

/// `struct sg_io_hdr` of scsi/sg.h.
#[repr(C)]
struct SgIoHdr {
    interface_id: i32,
    dxfer_direction: i32,
    cmd_len: u8,
    mx_sb_len: u8,
    iovec_count: u16,
    dxfer_len: u32,
    dxferp: *mut u8,
    cmdp: *const u8,
    sbp: *mut u8,
    timeout: u32,
    flags: u32,
    pack_id: i32,
    usr_ptr: *mut u8,
    status: u8,
    masked_status: u8,
    msg_status: u8,
    sb_len_wr: u8,
    host_status: u16,
    driver_status: u16,
    resid: i32,
    duration: u32,
    info: u32,
}

/// Whether the disk says that it is write-protected. `false` if it does not answer, or is no SCSI
/// disk.
pub(super) fn is_write_protected(disk: &File) -> bool {
    let mut answer = [0u8; ANSWER as usize];
    let mut header = SgIoHdr {
        interface_id: i32::from(b'S'),
        dxfer_direction: SG_DXFER_FROM_DEV,
        cmd_len: MODE_SENSE.len() as u8,
        mx_sb_len: 0,
        iovec_count: 0,
        dxfer_len: u32::from(ANSWER),
        dxferp: answer.as_mut_ptr(),
        cmdp: MODE_SENSE.as_ptr(),
        sbp: ptr::null_mut(),
        timeout: TIMEOUT_MS,
        flags: 0,
        pack_id: 0,
        usr_ptr: ptr::null_mut(),
        status: 0,
        masked_status: 0,
        msg_status: 0,
        sb_len_wr: 0,
        host_status: 0,
        driver_status: 0,
        resid: 0,
        duration: 0,
        info: 0,
    };
    // SAFETY: the header and both buffers live until the call returns, and the lengths in the
    // header are theirs. The kernel writes into the answer and the header only.
    let asked = unsafe { libc::ioctl(disk.as_raw_fd(), SG_IO, &raw mut header) } == 0;
    let is_good = header.status == 0 && header.host_status == 0 && header.driver_status == 0;
    // The answer is filled from its beginning, so bytes that did not come are zero.
    asked && is_good && answer[SPECIFIC] & WRITE_PROTECTED != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_scsi_disk_is_not_protected() {
        assert_eq!(size_of::<SgIoHdr>(), 88, "as in scsi/sg.h");
        assert!(!is_write_protected(&tempfile::tempfile().unwrap()));
        assert!(!is_write_protected(&File::open("/dev/null").unwrap()));
    }
}
