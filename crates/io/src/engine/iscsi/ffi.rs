//! The functions of libiscsi 1.19 that are used, as `iscsi/iscsi.h` and `iscsi/scsi-lowlevel.h`
//! declare them, and the beginning of one structure. Written by hand, so that nothing but the
//! library itself is needed to build.
//!
//! Contract: declarations only. A context is used by one thread at a time; it may be handed from
//! one to another.

use std::ffi::{c_char, c_int, c_uchar, c_void};
use std::marker::{PhantomData, PhantomPinned};

/// `struct iscsi_context`.
#[repr(C)]
pub(super) struct Context {
    opaque: [u8; 0],
    pinned: PhantomData<(*mut u8, PhantomPinned)>,
}

/// The beginning of `struct scsi_task`, of which there is no other way to read what was not
/// transferred.
#[repr(C)]
pub(super) struct Task {
    pub(super) status: c_int,
    cdb_size: c_int,
    xfer_dir: c_int,
    expxferlen: c_int,
    cdb: [c_uchar; 16],
    /// 1: less was transferred than asked for, 2: there was more.
    pub(super) residual_status: c_int,
    /// Bytes not transferred.
    pub(super) residual: usize,
    pub(super) sense: Sense,
}

/// The beginning of `struct scsi_sense`.
#[repr(C)]
pub(super) struct Sense {
    error_type: c_uchar,
    pub(super) key: c_int,
    pub(super) ascq: c_int,
}

/// `iscsi_command_cb`: context, status, data, the caller's pointer.
pub(super) type Callback = unsafe extern "C" fn(*mut Context, c_int, *mut c_void, *mut c_void);

/// `ISCSI_SESSION_NORMAL`.
pub(super) const SESSION_NORMAL: c_int = 2;
/// `ISCSI_HEADER_DIGEST_NONE_CRC32C`: none is preferred.
pub(super) const DIGEST_NONE_CRC32C: c_int = 1;
/// `SCSI_STATUS_REDIRECT`, of a login.
pub(super) const REDIRECT: c_int = 0x101;
/// `SCSI_XFER_NONE`, `SCSI_XFER_READ`, `SCSI_XFER_WRITE`.
pub(super) const XFER: [c_int; 3] = [0, 1, 2];

#[link(name = "iscsi")]
unsafe extern "C" {
    pub(super) fn iscsi_create_context(initiator: *const c_char) -> *mut Context;
    pub(super) fn iscsi_destroy_context(context: *mut Context) -> c_int;
    pub(super) fn iscsi_set_targetname(context: *mut Context, name: *const c_char) -> c_int;
    pub(super) fn iscsi_set_session_type(context: *mut Context, kind: c_int) -> c_int;
    pub(super) fn iscsi_set_header_digest(context: *mut Context, digest: c_int) -> c_int;
    pub(super) fn iscsi_set_initiator_username_pwd(
        context: *mut Context,
        user: *const c_char,
        secret: *const c_char,
    ) -> c_int;
    pub(super) fn iscsi_set_noautoreconnect(context: *mut Context, state: c_int);
    pub(super) fn iscsi_set_tcp_user_timeout(context: *mut Context, ms: c_int);
    pub(super) fn iscsi_set_tcp_keepidle(context: *mut Context, seconds: c_int);
    pub(super) fn iscsi_set_tcp_keepcnt(context: *mut Context, count: c_int);
    pub(super) fn iscsi_set_tcp_keepintvl(context: *mut Context, seconds: c_int);
    pub(super) fn iscsi_connect_async(
        context: *mut Context,
        portal: *const c_char,
        callback: Callback,
        data: *mut c_void,
    ) -> c_int;
    pub(super) fn iscsi_login_async(
        context: *mut Context,
        callback: Callback,
        data: *mut c_void,
    ) -> c_int;
    pub(super) fn iscsi_get_target_address(context: *mut Context) -> *const c_char;
    pub(super) fn iscsi_logout_async(
        context: *mut Context,
        callback: Callback,
        data: *mut c_void,
    ) -> c_int;
    pub(super) fn iscsi_get_error(context: *mut Context) -> *const c_char;
    pub(super) fn iscsi_get_fd(context: *mut Context) -> c_int;
    pub(super) fn iscsi_which_events(context: *mut Context) -> c_int;
    pub(super) fn iscsi_service(context: *mut Context, events: c_int) -> c_int;
    pub(super) fn iscsi_scsi_command_async(
        context: *mut Context,
        lun: c_int,
        task: *mut Task,
        callback: Callback,
        data: *mut c_void,
        private: *mut c_void,
    ) -> c_int;
    pub(super) fn scsi_create_task(
        size: c_int,
        cdb: *mut c_uchar,
        way: c_int,
        bytes: c_int,
    ) -> *mut Task;
    pub(super) fn scsi_free_scsi_task(task: *mut Task);
    pub(super) fn scsi_task_add_data_in_buffer(
        task: *mut Task,
        len: c_int,
        buffer: *mut c_uchar,
    ) -> c_int;
    pub(super) fn scsi_task_add_data_out_buffer(
        task: *mut Task,
        len: c_int,
        buffer: *mut c_uchar,
    ) -> c_int;
}
