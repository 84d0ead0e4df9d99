//! A session with a target: login, and commands one at a time, blocking, for the control side. A
//! session that is ready is handed to a queue, whose [`super::link`] drives it from then on.
//!
//! Contract: a session is used by one thread at a time. Every call here ends at its deadline; one
//! that fails ends the session, so that libiscsi refers to none of its memory afterwards.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_int, c_void};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use blkswitch_core::multipath::outcome::is_path_error;

use super::address::{IscsiAddress, SecretAt};
use super::ffi::{self, Context};
use super::scsi::{self, ANSWER, Command, Outcome, Volume, Way};
use crate::gather::tune;

/// The initiator's name where the address has none: a session's own identifier is drawn by
/// libiscsi.
const INITIATOR: &str = "iqn.2026-11.org.blkswitch:host";
/// How often a command is sent again after a unit attention: one for each kind that a session may
/// begin with.
pub(super) const TRIES: u32 = 8;
/// Longest wait between two looks at the clock, and at timers of libiscsi.
const SLICE: Duration = Duration::from_millis(500);
/// Most portals that a login is sent on to: a group needs one or two, and one that sends in a
/// circle is to be told from one that is slow.
const MAX_REDIRECTIONS: u32 = 8;
/// Of a file's mode.
const OTHERS_MAY_READ: u32 = 0o004;
/// Longest secret.
const MAX_SECRET: u64 = 255;

/// See the module's text.
pub(super) struct Session {
    context: *mut Context,
    lun: c_int,
    /// Where libiscsi notes the end of the login, and later that of the connection.
    login: Box<Cell<Option<c_int>>>,
    /// The unit has told that it may be another while it was asked what it is.
    told: bool,
}

// SAFETY: a context has no ties to a thread, and a session is used by one at a time.
unsafe impl Send for Session {}

/// What became of a login by one portal.
enum Login {
    Done(Session),
    /// Another portal is to be asked.
    Elsewhere(String),
}

/// The end of a command.
struct Ended {
    status: c_int,
    sense: (u8, u16),
}

/// Notes the status. `to` is a cell that outlives the session.
unsafe extern "C" fn login_ended(_: *mut Context, status: c_int, _: *mut c_void, to: *mut c_void) {
    // SAFETY: `to` is the session's `login`, which lives until the context is destroyed.
    unsafe { &*to.cast::<Cell<Option<c_int>>>() }.set(Some(status));
}

/// Notes how a command ended.
unsafe extern "C" fn command_ended(
    _: *mut Context,
    status: c_int,
    task: *mut c_void,
    to: *mut c_void,
) {
    // SAFETY: `to` is a cell of Session::call, which waits for this or destroys the context; the
    // task is its own.
    unsafe {
        let sense = task.cast::<ffi::Task>().as_ref().map_or((0, 0), sense);
        (*to.cast::<Cell<Option<Ended>>>()).set(Some(Ended { status, sense }));
    }
}

/// Key and additional code of a task's sense data.
pub(super) fn sense(task: &ffi::Task) -> (u8, u16) {
    (task.sense.key as u8, task.sense.ascq as u16)
}

impl Session {
    /// Connects, logs in, follows redirections, and looks whether the unit is there.
    pub(super) fn login(address: &IscsiAddress, deadline: Instant) -> io::Result<Session> {
        let mut portal = portal(address);
        for _ in 0..=MAX_REDIRECTIONS {
            match Session::login_at(address, &portal, deadline)? {
                Login::Done(mut session) => {
                    // What is new to a session that begins says nothing: what the unit is, is asked
                    // after this.
                    session.carry_out(&scsi::test_unit_ready(), &mut [], deadline, true)?;
                    return Ok(session);
                }
                Login::Elsewhere(next) => portal = next,
            }
        }
        let reason = format!(
            "the login was redirected more than {MAX_REDIRECTIONS} times, at last to '{portal}'"
        );
        Err(io::Error::new(io::ErrorKind::NotConnected, reason))
    }

    /// The same by one portal. Another place to go to is one for another context: libiscsi would
    /// follow for ever.
    fn login_at(address: &IscsiAddress, portal: &str, deadline: Instant) -> io::Result<Login> {
        let text = |text: &str| CString::new(text).map_err(io::Error::other);
        let initiator = text(address.initiator.as_deref().unwrap_or(INITIATOR))?;
        let (target, to) = (text(&address.target)?, text(portal)?);
        let user = match &address.user {
            Some(user) => Some((text(&user.name)?, secret(&user.secret)?)),
            None => None,
        };
        // SAFETY: the string is live.
        let context = unsafe { ffi::iscsi_create_context(initiator.as_ptr()) };
        if context.is_null() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let session =
            Session { context, lun: c_int::from(address.lun), login: Box::default(), told: false };
        let silence = address.patience.timeout.as_secs().clamp(1, 3600) as c_int;
        let login = (&raw const *session.login).cast_mut().cast();
        // SAFETY: a live context, live strings that libiscsi copies; `login` lives as long as the
        // session.
        let begun = unsafe {
            ffi::iscsi_set_targetname(context, target.as_ptr());
            ffi::iscsi_set_session_type(context, ffi::SESSION_NORMAL);
            ffi::iscsi_set_header_digest(context, ffi::DIGEST_NONE_CRC32C);
            // What becomes of a lost connection is decided here, and another one begins at the
            // portal again: there a group may send it elsewhere.
            ffi::iscsi_set_noautoreconnect(context, 1);
            ffi::iscsi_set_tcp_user_timeout(context, silence * 1000);
            ffi::iscsi_set_tcp_keepidle(context, (silence / 4).max(1));
            ffi::iscsi_set_tcp_keepintvl(context, (silence / 4).max(1));
            ffi::iscsi_set_tcp_keepcnt(context, 3);
            let refused = user.as_ref().is_some_and(|(name, secret)| {
                ffi::iscsi_set_initiator_username_pwd(context, name.as_ptr(), secret.as_ptr()) != 0
            });
            if refused {
                -1
            } else {
                ffi::iscsi_connect_async(context, to.as_ptr(), login_ended, login)
            }
        };
        session.until_ended(begun, deadline)?;
        session.login.set(None);
        // SAFETY: as above.
        let begun = unsafe { ffi::iscsi_login_async(context, login_ended, login) };
        match session.until_ended(begun, deadline) {
            Ok(ffi::REDIRECT) => {
                let next = session.redirected_to();
                tracing::debug!(portal, next, "the login is redirected");
                return Ok(Login::Elsewhere(next));
            }
            ended => ended?,
        };
        if let Some(socket) = session.socket() {
            tune(socket);
        }
        Ok(Login::Done(session))
    }

    /// Waits for the end of what was begun, and returns its status: good, or that the login is to
    /// go elsewhere.
    fn until_ended(&self, begun: c_int, deadline: Instant) -> io::Result<c_int> {
        if begun != 0 {
            return Err(self.error());
        }
        loop {
            match self.login.get() {
                Some(status @ (scsi::status::GOOD | ffi::REDIRECT)) => return Ok(status),
                Some(_) => return Err(self.error()),
                None => self.service(deadline)?,
            }
        }
    }

    /// Where the portal sends the login.
    fn redirected_to(&self) -> String {
        // SAFETY: a live context; the text is its own, and copied.
        unsafe {
            let text = ffi::iscsi_get_target_address(self.context);
            if text.is_null() {
                String::new()
            } else {
                CStr::from_ptr(text).to_string_lossy().into_owned()
            }
        }
    }

    /// What the logical unit says about itself, all of it after it has told last that it may be
    /// another.
    pub(super) fn volume(&mut self, deadline: Instant) -> io::Result<Volume> {
        for _ in 0..TRIES {
            self.told = false;
            let volume = self.volume_once(deadline)?;
            if !self.told {
                return Ok(volume);
            }
        }
        self.destroy();
        Err(io::Error::new(io::ErrorKind::ConnectionReset, "the logical unit changes all the time"))
    }

    fn volume_once(&mut self, deadline: Instant) -> io::Result<Volume> {
        // A unit that does not tell may have a cache.
        let mut volume = Volume { cache: true, ..Volume::default() };
        let capacity = self.ask(&scsi::read_capacity(), deadline)?;
        volume.take_capacity(&capacity).ok_or_else(|| {
            let reason = format!("a capacity that makes no sense: {:x?}", capacity.get(..16));
            io::Error::new(io::ErrorKind::InvalidData, reason)
        })?;
        type Take = fn(&mut Volume, &[u8]);
        let questions: [(Command, Take); 6] = [
            (scsi::inquiry(0xb0), Volume::take_limits),
            (scsi::inquiry(0xb1), Volume::take_characteristics),
            (scsi::inquiry(0xb2), Volume::take_provisioning),
            (scsi::inquiry(0x83), Volume::take_identity),
            (scsi::inquiry(0x80), Volume::take_serial),
            (scsi::mode_sense_caching(), Volume::take_mode),
        ];
        for (question, take) in questions {
            match self.ask(&question, deadline) {
                Ok(answer) => take(&mut volume, &answer),
                // It does not know the question. (One that cannot answer now may know it another
                // time, and would seem to have become another unit.)
                Err(error) if error.raw_os_error().is_some_and(|errno| !is_path_error(errno)) => {
                    tracing::debug!(?question, %error, "not answered");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(volume)
    }

    /// Makes what was written stable.
    pub(super) fn flush(&mut self, deadline: Instant) -> io::Result<()> {
        self.call(&scsi::synchronize_cache(), &mut [], deadline)
    }

    /// Reads the first block.
    pub(super) fn read_first(&mut self, volume: &Volume, deadline: Instant) -> io::Result<()> {
        self.call(&scsi::read(0, 1), &mut vec![0; volume.block_bytes as usize], deadline)
    }

    /// Whether the session was not ended by a call that failed.
    pub(super) fn is_there(&self) -> bool {
        !self.context.is_null()
    }

    pub(super) fn context(&self) -> *mut Context {
        self.context
    }

    pub(super) fn lun(&self) -> c_int {
        self.lun
    }

    /// The socket, while it is connected.
    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        if self.context.is_null() {
            return None;
        }
        // SAFETY: a live context, whose descriptor stays open as long as it; -1 is no descriptor.
        unsafe {
            let fd = ffi::iscsi_get_fd(self.context);
            (fd >= 0).then(|| BorrowedFd::borrow_raw(fd))
        }
    }

    /// What libiscsi says about its last failure.
    pub(super) fn error(&self) -> io::Error {
        if self.context.is_null() {
            return io::ErrorKind::NotConnected.into();
        }
        // SAFETY: a live context; the text is its own, and copied.
        let text = unsafe {
            let text = ffi::iscsi_get_error(self.context);
            if text.is_null() {
                String::new()
            } else {
                CStr::from_ptr(text).to_string_lossy().into_owned()
            }
        };
        // What the target says to a login is an answer; anything else is that it cannot be reached.
        let refused = text.contains("Failed to log in");
        let kind =
            if refused { io::ErrorKind::PermissionDenied } else { io::ErrorKind::NotConnected };
        io::Error::new(kind, text.trim().to_string())
    }

    /// The answer to a question.
    fn ask(&mut self, question: &Command, deadline: Instant) -> io::Result<Vec<u8>> {
        let mut answer = vec![0; ANSWER];
        self.carry_out(question, &mut answer, deadline, true).map(|()| answer)
    }

    /// A command, again while the unit has something else to say first; if that is that it may be
    /// another now, or none, the session ends: the next one looks what it is.
    fn call(&mut self, command: &Command, data: &mut [u8], deadline: Instant) -> io::Result<()> {
        self.carry_out(command, data, deadline, false)
    }

    /// The same; a command that only `asks` goes on by this session.
    fn carry_out(
        &mut self,
        command: &Command,
        data: &mut [u8],
        deadline: Instant,
        asks: bool,
    ) -> io::Result<()> {
        for _ in 0..TRIES {
            let ended = self.call_once(command, data, deadline)?;
            match scsi::judge(ended.status, ended.sense.0, ended.sense.1) {
                Outcome::Good => return Ok(()),
                Outcome::Again => {}
                Outcome::Changed if asks => self.told = true,
                Outcome::Changed => {
                    self.destroy();
                    let reason = "the logical unit may have changed";
                    return Err(io::Error::new(io::ErrorKind::ConnectionReset, reason));
                }
                Outcome::Gone => {
                    self.destroy();
                    return Err(io::Error::from_raw_os_error(scsi::GONE));
                }
                Outcome::Busy => std::thread::sleep(SLICE / 10),
                Outcome::Failed(errno) => return Err(io::Error::from_raw_os_error(errno)),
            }
        }
        Err(io::Error::from_raw_os_error(libc::EBUSY))
    }

    fn call_once(
        &mut self,
        command: &Command,
        data: &mut [u8],
        deadline: Instant,
    ) -> io::Result<Ended> {
        if self.context.is_null() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let ended = Cell::new(None::<Ended>);
        let (mut cdb, way) = (command.cdb, ffi::XFER[usize::from(command.way == Way::In)]);
        let (len, to) = (data.len() as c_int, (&raw const ended).cast_mut().cast());
        // SAFETY: a live context; the bytes of the command are copied; `data` and `ended` live
        // until the command has ended or the context is destroyed, both before this returns.
        let task = unsafe {
            let task = ffi::scsi_create_task(command.len as c_int, cdb.as_mut_ptr(), way, len);
            if !task.is_null() && len > 0 {
                ffi::scsi_task_add_data_in_buffer(task, len, data.as_mut_ptr());
            }
            task
        };
        if task.is_null() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let none = std::ptr::null_mut();
        // SAFETY: as above.
        let begun = unsafe {
            ffi::iscsi_scsi_command_async(self.context, self.lun, task, command_ended, none, to)
        };
        let mut result = if begun == 0 { Ok(()) } else { Err(self.error()) };
        let ended = loop {
            if let Some(ended) = ended.take() {
                break Some(ended);
            }
            if result.is_err() {
                break None;
            }
            result = self.service(deadline);
        };
        if result.is_err() || ended.as_ref().is_some_and(|ended| ended.status >= FIRST_OF_TRANSPORT)
        {
            let error = self.error();
            self.destroy();
            result = result.and(Err(error));
        }
        // SAFETY: our task; its command has ended or its context is gone.
        unsafe { ffi::scsi_free_scsi_task(task) };
        result?;
        ended.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Waits for the socket and lets libiscsi go on.
    fn service(&self, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // SAFETY: a live context; `poll` gets one live structure.
        let served = unsafe {
            let events = ffi::iscsi_which_events(self.context) as i16;
            let mut poll = libc::pollfd { fd: ffi::iscsi_get_fd(self.context), events, revents: 0 };
            let ms = left.min(SLICE).as_millis().max(1) as c_int;
            libc::poll(&raw mut poll, 1, ms);
            ffi::iscsi_service(self.context, c_int::from(poll.revents))
        };
        if served < 0 { Err(self.error()) } else { Ok(()) }
    }

    /// Ends it: what is under way is cancelled, and nothing is referred to any more.
    fn destroy(&mut self) {
        if !self.context.is_null() {
            // SAFETY: our context, used no more.
            unsafe { ffi::iscsi_destroy_context(self.context) };
            self.context = std::ptr::null_mut();
        }
    }
}

/// Statuses from here on are not the target's but libiscsi's: cancelled, failed, timed out.
pub(super) const FIRST_OF_TRANSPORT: c_int = 0x0f00_0000;

impl Drop for Session {
    fn drop(&mut self) {
        self.destroy();
    }
}

/// The portal as libiscsi wants it.
fn portal(address: &IscsiAddress) -> String {
    match address.host.contains(':') {
        true => format!("[{}]:{}", address.host, address.port),
        false => format!("{}:{}", address.host, address.port),
    }
}

/// Reads a secret. Errors name where it was looked for, never what it is.
fn secret(at: &SecretAt) -> io::Result<CString> {
    let failed = |why: String| io::Error::new(io::ErrorKind::PermissionDenied, why);
    let bytes = match at {
        SecretAt::File(path) => {
            let file = std::fs::metadata(path);
            if file.as_ref().is_ok_and(|file| file.mode() & OTHERS_MAY_READ != 0) {
                tracing::warn!(
                    file = path,
                    "everybody on this machine may read this secret: chmod o-r"
                );
            }
            let len = file.map(|file| file.len());
            match len.and_then(|len| {
                if len > MAX_SECRET + 1 { Ok(Vec::new()) } else { std::fs::read(path) }
            }) {
                Ok(mut bytes) => {
                    if bytes.last() == Some(&b'\n') {
                        bytes.pop();
                    }
                    bytes
                }
                Err(error) => {
                    return Err(failed(format!("cannot read the secret in '{path}': {error}")));
                }
            }
        }
        SecretAt::Env(name) => match std::env::var(name) {
            Ok(value) => value.into_bytes(),
            Err(_) => {
                return Err(failed(format!(
                    "there is no variable '{name}' with a secret in the environment"
                )));
            }
        },
    };
    if bytes.is_empty() || bytes.len() as u64 > MAX_SECRET {
        return Err(failed(format!("a secret has 1 to {MAX_SECRET} bytes")));
    }
    CString::new(bytes).map_err(|_| failed("a secret has no byte of zero in it".into()))
}
