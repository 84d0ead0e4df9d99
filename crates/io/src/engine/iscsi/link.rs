//! iSCSI on a session: operations to commands, their ends to answers. libiscsi keeps what is on the
//! wire; the ring tells when its socket is ready.
//!
//! Contract: as [`Protocol`]. libiscsi allocates for every command, and so does this: what a
//! command needs beside the operation's own memory stays in one place of its own ([`Call`]) until
//! the command has ended, or its context, with all that it refers to, is destroyed. Secrets are not
//! here.

use std::ffi::{c_int, c_void};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use io_uring::{opcode, types};

use super::ffi;
use super::scsi::{self, Command, Outcome, UNMAP_LIST, Volume, Way};
use super::session::{FIRST_OF_TRANSPORT, Session, TRIES, sense};
use crate::engine::LeafOp;
use crate::engine::carrier::{self, DOUBTED, Lost, Protocol};
use crate::engine::links::{Part, Port};
use crate::gather::{is_closed, reset_on_close, shutdown};

/// Largest transfer of one command: larger ones gain nothing, and hold up the others.
const MAX_TRANSFER: u64 = 4 << 20;
/// Longest range of one UNMAP or WRITE SAME: what every target does in time.
const MAX_RANGE: u64 = 1 << 30;

/// A block of zeroes of any size.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

type Work<'a> = carrier::Work<'a, IscsiLink>;

/// What libiscsi refers to while a command is under way.
struct Call {
    task: *mut ffi::Task,
    slot: u32,
    ended: *mut Vec<Ended>,
    unmap: [u8; UNMAP_LIST],
}

impl Drop for Call {
    fn drop(&mut self) {
        // SAFETY: our task; a call is dropped when its command has ended or its context is gone.
        unsafe { ffi::scsi_free_scsi_task(self.task) };
    }
}

/// What is kept of a command.
#[derive(Default)]
pub(super) struct Request {
    call: Option<Box<Call>>,
    /// Bytes of the operation that it is for.
    piece: u64,
    tries: u32,
}

/// The end of a command.
struct Ended {
    slot: u32,
    status: c_int,
    sense: (u8, u16),
    /// Something of a read was not transferred.
    is_short: bool,
}

/// See the module's text.
pub(super) struct IscsiLink {
    session: Session,
    /// Its socket again, under a descriptor of our own: libiscsi closes its one when it likes, with
    /// which a wait of the ring would never end.
    socket: Option<OwnedFd>,
    /// Where callbacks note what has ended. Boxed: they have its address.
    #[expect(clippy::box_collection, reason = "the address of the list itself is given away")]
    ended: Box<Vec<Ended>>,
    /// Refused for want of room at the target: to be sent again when something else is done.
    busy: Vec<u32>,
    under_way: usize,
    /// The ring looks for bytes that come, or for room to send.
    waits_in: bool,
    waits_out: bool,
}

/// Notes the end of a command for [`IscsiLink::take_ended`].
unsafe extern "C" fn ended(_: *mut ffi::Context, status: c_int, _: *mut c_void, call: *mut c_void) {
    // SAFETY: `call` is the boxed call of a command that has not been answered, its task is its
    // own, and its list is that of the link whose thread is just calling libiscsi.
    unsafe {
        let call = &*call.cast::<Call>();
        let task = &*call.task;
        let is_short = task.residual_status == 1 && task.residual > 0;
        (*call.ended).push(Ended { slot: call.slot, status, sense: sense(task), is_short });
    }
}

unsafe extern "C" fn ignored(_: *mut ffi::Context, _: c_int, _: *mut c_void, _: *mut c_void) {}

impl Protocol for IscsiLink {
    type Connection = Session;
    type Facts = Volume;
    type Request = Request;

    fn new(session: Session) -> IscsiLink {
        let socket = session.socket().and_then(|socket| socket.try_clone_to_owned().ok());
        IscsiLink {
            session,
            socket,
            ended: Box::default(),
            busy: Vec::new(),
            under_way: 0,
            waits_in: false,
            waits_out: false,
        }
    }

    fn is_stale(&self) -> bool {
        self.socket.as_ref().is_none_or(|socket| is_closed(socket.as_fd()))
    }

    fn turn(&mut self, work: &mut Work<'_>, port: &mut Port<'_>) -> Result<(), Lost> {
        if self.under_way == 0 {
            work.ready.extend(self.busy.drain(..));
        }
        while let Some(slot) = work.ready.pop_front() {
            self.send(slot, work)?;
        }
        if self.wants() & libc::POLLOUT != 0 && !self.waits_out {
            self.service(libc::POLLOUT, work)?;
        }
        self.wait(port);
        Ok(())
    }

    fn completed(&mut self, part: Part, result: i32, work: &mut Work<'_>) -> Result<(), Lost> {
        self.completed_after_end(part, result);
        match result {
            0.. => self.service(result as i16, work),
            error => Err((-error, "waiting for the socket failed")),
        }
    }

    fn say_goodbye(&mut self) {
        // SAFETY: a live context; the callback has no data.
        unsafe {
            let none = std::ptr::null_mut();
            if ffi::iscsi_logout_async(self.session.context(), ignored, none) == 0 {
                ffi::iscsi_service(self.session.context(), c_int::from(libc::POLLOUT));
            }
        }
    }

    fn end(&mut self) {
        if let Some(socket) = &self.socket {
            reset_on_close(socket.as_fd());
            shutdown(socket.as_fd(), libc::SHUT_RDWR);
        }
    }

    fn completed_after_end(&mut self, part: Part, _result: i32) {
        match part {
            Part::Send => self.waits_out = false,
            _ => self.waits_in = false,
        }
    }

    fn is_quiet(&self) -> bool {
        !self.waits_in && !self.waits_out
    }

    fn bury(self, _work: &mut Work<'_>) {
        // The context goes first: it cancels what is under way, which is noted in `ended`. What the
        // calls hold goes after that, when their operations are answered or made ready again.
        drop(self.session);
        drop(self.ended);
    }
}

impl IscsiLink {
    /// Hands an operation's next command to libiscsi.
    fn send(&mut self, slot: u32, work: &mut Work<'_>) -> Result<(), Lost> {
        const NO_MEMORY: Lost = (libc::ENOTCONN, "libiscsi takes no command");
        let Some(op) = work.ops.get_mut(slot) else { return Ok(()) };
        let volume = &work.shared.facts;
        let block_bytes = u64::from(volume.block_bytes);
        let at = op.io.offset + op.done;
        let most = limit(op.io.op, volume);
        let piece = (op.io.len - op.done).min(most);
        let (block, blocks) = (at / block_bytes, (piece / block_bytes) as u32);
        let mut unmap = [0; UNMAP_LIST];
        let mut command = match op.io.op {
            LeafOp::Read => scsi::read(block, blocks),
            LeafOp::Write => scsi::write(block, blocks, op.io.fua),
            LeafOp::Flush => scsi::synchronize_cache(),
            LeafOp::Zero { no_hole } => {
                scsi::write_same(block, blocks, volume.same_unmaps && !no_hole)
            }
            LeafOp::Discard => {
                let (command, list) = scsi::unmap(block, blocks);
                unmap = list;
                command
            }
        };
        let bytes = match op.io.op {
            LeafOp::Read | LeafOp::Write => piece as c_int,
            LeafOp::Flush => 0,
            LeafOp::Zero { .. } => volume.block_bytes as c_int,
            LeafOp::Discard => UNMAP_LIST as c_int,
        };
        let task = new_task(&mut command, bytes);
        if task.is_null() {
            return Err(NO_MEMORY);
        }
        let mut call = Box::new(Call { task, slot, ended: &raw mut *self.ended, unmap });
        let data = match op.io.op {
            LeafOp::Read | LeafOp::Write => op.io.data.0,
            LeafOp::Flush => std::ptr::null_mut(),
            // Only ever read.
            LeafOp::Zero { .. } => ZEROES.as_ptr().cast_mut(),
            LeafOp::Discard => call.unmap.as_mut_ptr(),
        };
        let private = (&raw mut *call).cast();
        (op.request.call, op.request.piece) = (Some(call), piece);
        let (context, lun) = (self.session.context(), self.session.lun());
        // SAFETY: a live context and task. `data` is the operation's, which lends it until it is
        // answered, or the call's, or static; the call stays in the operation until then. Nothing
        // is answered before its command has ended or the context is destroyed (bury).
        let begun = unsafe {
            match command.way {
                Way::In => ffi::scsi_task_add_data_in_buffer(task, bytes, data),
                Way::Out => ffi::scsi_task_add_data_out_buffer(task, bytes, data),
                Way::None => 0,
            };
            ffi::iscsi_scsi_command_async(context, lun, task, ended, std::ptr::null_mut(), private)
        };
        if begun != 0 {
            return Err(NO_MEMORY);
        }
        self.under_way += 1;
        Ok(())
    }

    /// What libiscsi waits for.
    fn wants(&self) -> i16 {
        // SAFETY: a live context.
        unsafe { ffi::iscsi_which_events(self.session.context()) as i16 }
    }

    /// Lets libiscsi send and receive.
    fn service(&mut self, events: i16, work: &mut Work<'_>) -> Result<(), Lost> {
        // SAFETY: a live context. Callbacks write to `ended` alone.
        let served = unsafe { ffi::iscsi_service(self.session.context(), c_int::from(events)) };
        self.take_ended(work)?;
        if served < 0 || self.session.socket().is_none() {
            Err((libc::ECONNRESET, "the session has ended"))
        } else {
            Ok(())
        }
    }

    /// Has the ring wait for what libiscsi waits for.
    fn wait(&mut self, port: &mut Port<'_>) {
        let wants = self.wants();
        let Some(fd) = self.socket.as_ref().map(|socket| types::Fd(socket.as_raw_fd())) else {
            return;
        };
        if !self.waits_in {
            self.waits_in = true;
            let entry = opcode::PollAdd::new(fd, libc::POLLIN as u32).build();
            // SAFETY: nothing is pointed to; the descriptor is open until bury(), which waits for
            // the completion.
            unsafe { port.push(Part::Receive, entry) };
        }
        if wants & libc::POLLOUT != 0 && !self.waits_out {
            self.waits_out = true;
            let entry = opcode::PollAdd::new(fd, libc::POLLOUT as u32).build();
            // SAFETY: as above.
            unsafe { port.push(Part::Send, entry) };
        }
    }

    /// Answers what has ended.
    fn take_ended(&mut self, work: &mut Work<'_>) -> Result<(), Lost> {
        let mut lost = Ok(());
        for Ended { slot, status, sense: (key, ascq), is_short } in std::mem::take(&mut *self.ended)
        {
            self.under_way -= 1;
            if status >= FIRST_OF_TRANSPORT {
                lost = Err((libc::ECONNRESET, "a command was not answered"));
                continue;
            }
            let Some(op) = work.ops.get_mut(slot) else { continue };
            op.request.call = None;
            let piece = op.request.piece;
            let outcome = match scsi::judge(status, key, ascq) {
                Outcome::Good if is_short && op.io.op == LeafOp::Read => {
                    Outcome::Failed(libc::EREMOTEIO)
                }
                outcome => outcome,
            };
            match outcome {
                Outcome::Good => {
                    work.ready.extend(self.busy.drain(..));
                    match op.io.op {
                        LeafOp::Read | LeafOp::Write => work.answer(slot, piece as i64),
                        LeafOp::Flush => work.answer(slot, 0),
                        LeafOp::Discard | LeafOp::Zero { .. } => {
                            op.done += piece;
                            if op.done < op.io.len {
                                op.again();
                                work.ready.push_back(slot);
                            } else {
                                work.answer(slot, 0);
                            }
                        }
                    }
                }
                Outcome::Again if op.request.tries < TRIES => {
                    op.request.tries += 1;
                    tracing::debug!(
                        leaf = work.shared.connector.name(),
                        key,
                        ascq,
                        "command sent again"
                    );
                    work.ready.push_back(slot);
                }
                Outcome::Changed => lost = Err((DOUBTED, "the logical unit may have changed")),
                Outcome::Gone => lost = Err((scsi::GONE, "the logical unit is gone")),
                // It has a deadline like every operation.
                Outcome::Busy => self.busy.push(slot),
                Outcome::Again => work.answer(slot, -i64::from(libc::EIO)),
                Outcome::Failed(errno) => work.answer(slot, -i64::from(errno)),
            }
        }
        lost
    }
}

fn new_task(command: &mut Command, bytes: c_int) -> *mut ffi::Task {
    let way = ffi::XFER[command.way as usize];
    // SAFETY: the bytes of the command are copied.
    unsafe { ffi::scsi_create_task(command.len as c_int, command.cdb.as_mut_ptr(), way, bytes) }
}

/// Most bytes of one command.
fn limit(op: LeafOp, volume: &Volume) -> u64 {
    let bytes = |blocks: u64| match blocks {
        0 => u64::MAX,
        blocks => blocks.saturating_mul(u64::from(volume.block_bytes)),
    };
    match op {
        LeafOp::Read | LeafOp::Write => bytes(u64::from(volume.transfer_blocks)).min(MAX_TRANSFER),
        LeafOp::Flush => 0,
        LeafOp::Discard => bytes(u64::from(volume.unmap_blocks)).min(MAX_RANGE),
        LeafOp::Zero { .. } => bytes(volume.same_blocks).min(MAX_RANGE),
    }
}
