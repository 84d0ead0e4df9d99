//! A session with a target: login, and single blocking commands for the control side. When it is
//! ready, a session is handed to a queue, whose [`super::protocol`] uses it from then on.
//!
//! Contract: one thread at a time uses a session. Every call ends at its deadline. A call that
//! fails on the way ends the session. Everything a target sends is checked against its request,
//! with [`super::pdu`] as in [`super::protocol`].

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use blkswitch_core::multipath::outcome::is_path_error;

use super::address::{IscsiAddress, SecretAt};
use super::login::{self, Agreed};
use super::pdu::{self, Counters, HEADER, Header, Heard, Incoming, Numbers, Stage, Transfer};
use super::scsi::{self, ANSWER, Outcome, ScsiCommand, Volume};
use crate::engine::session::socket::Socket;
use crate::engine::session::uri::{Place, host_and_port};

/// The default name of the initiator.
const INITIATOR: &str = "iqn.2026-11.org.blkswitch:host";
/// How often a command is sent again after a unit attention: once for each kind that a session may
/// begin with.
pub(super) const TRIES: u32 = 8;
/// Pause before a command is sent again because the target had no room for it.
const PAUSE: Duration = Duration::from_millis(50);
/// Most redirections of a login. A storage group needs one or two, and more suggest a circle.
const MAX_REDIRECTIONS: u32 = 8;
/// Most exchanges of one login. Each stage needs a few.
const MAX_EXCHANGES: u32 = 16;
/// Most text in bytes that a target may send in one answer of a login.
const MAX_TEXT: usize = 64 << 10;
/// The bit of a file's mode.
const OTHERS_MAY_READ: u32 = 0o004;
/// Longest secret in bytes.
const MAX_SECRET: u64 = 255;
/// Time limit for sending a logout.
const GOODBYE: Duration = Duration::from_millis(100);

/// The initiator's part of a session identifier; the initiator's name is that of the leaf. A login
/// with the same name and identifier at the same portal group begins the session anew. The target
/// then ends the old session, with all its commands, before it answers (RFC 7143, 6.3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Isid([u8; 6]);

impl Isid {
    /// The identifier of a leaf's session `number`. `leaf` is drawn whenever a leaf is opened, so
    /// that two daemons do not end each other's sessions.
    pub(super) fn new(leaf: [u8; 3], number: u16) -> Isid {
        // The standard's form for random numbers, with a qualifier.
        let ([a, b, c], [high, low]) = (leaf, number.to_be_bytes());
        Isid([0x80, a, b, c, high, low])
    }
}

/// The target's end of a session. A later login at the same end with the same identifier ends the
/// session that was there before, with all its commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Nexus {
    place: Place,
    /// The tag of the portal group; `None` if the target does not report it.
    group: Option<u16>,
}

impl Nexus {
    /// Whether both are the same end. By the standard, the group alone decides, whatever the
    /// portal. But there are storage groups of several machines whose portals all report the same
    /// tag without knowing each other's sessions. So the portal must be the same, too.
    pub(super) fn is_same(&self, other: &Nexus) -> bool {
        self.group.is_some() && self == other
    }
}

/// The state of a session beside its socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wire {
    pub(super) lun: [u8; 8],
    pub(super) numbers: Numbers,
    /// The last command number that the target accepts.
    pub(super) most: u32,
    pub(super) agreed: Agreed,
}

impl Wire {
    /// Processes the counters of a header.
    pub(super) fn count(&mut self, counters: &Counters) {
        if let Some(status) = counters.status
            && !pdu::is_after(self.numbers.status, status.wrapping_add(1))
        {
            self.numbers.status = status.wrapping_add(1);
        }
        // The standard requires to ignore both counters if they contradict each other.
        let fit = !pdu::is_after(counters.expected.wrapping_sub(1), counters.most);
        if fit && pdu::is_after(counters.most, self.most) {
            self.most = counters.most;
        }
    }

    /// Whether the target accepts a further command now.
    pub(super) fn is_open(&self) -> bool {
        !pdu::is_after(self.numbers.command, self.most)
    }

    /// Length of an incoming header in bytes, with its digest.
    pub(super) fn header_len(&self) -> usize {
        HEADER + if self.agreed.digest { pdu::DIGEST } else { 0 }
    }
}

/// A session with one logical unit.
pub(super) struct IscsiSession {
    /// `None` after the session has ended.
    socket: Option<Socket>,
    wire: Wire,
    nexus: Nexus,
    /// The properties of the unit, as reported on this session.
    volume: Volume,
    tag: u32,
    /// Whether the unit has reported that it may be another one, while its properties were queried.
    told: bool,
    has_reset: bool,
}

/// The result of a login at one portal.
enum Login {
    Done(IscsiSession),
    /// The target redirects to another portal.
    Elsewhere(String),
}

/// The end of a command.
struct Ended {
    status: Option<u8>,
    sense: (u8, u16),
    /// Number of bytes of its data that have arrived.
    moved: u32,
}

/// An error for an invalid answer. The session cannot be used any more.
fn broken(why: impl Into<String>) -> io::Error {
    io::Error::new(
        io::ErrorKind::NotConnected,
        format!("the target breaks the protocol: {}", why.into()),
    )
}

impl IscsiSession {
    /// Connects, logs in, follows redirections, and checks that the unit is there.
    pub(super) fn login(
        address: &IscsiAddress,
        isid: Isid,
        deadline: Instant,
    ) -> io::Result<IscsiSession> {
        let mut place = Place::Tcp { host: address.host.clone(), port: address.port };
        let mut last = String::new();
        for _ in 0..=MAX_REDIRECTIONS {
            match IscsiSession::login_at(address, &place, isid, deadline)? {
                Login::Done(mut session) => {
                    // Unit attentions at the start of a session do not matter, because the
                    // properties of the unit are queried after this.
                    session.carry_out(&scsi::test_unit_ready(), &mut [], deadline, true)?;
                    return Ok(session);
                }
                Login::Elsewhere(next) => {
                    tracing::debug!(?place, next, "the login is redirected");
                    place = portal(&next)?;
                    last = next;
                }
            }
        }
        let reason = format!(
            "the login was redirected more than {MAX_REDIRECTIONS} times, at last to '{last}'"
        );
        Err(io::Error::new(io::ErrorKind::NotConnected, reason))
    }

    /// Logs in at one portal.
    fn login_at(
        address: &IscsiAddress,
        place: &Place,
        isid: Isid,
        deadline: Instant,
    ) -> io::Result<Login> {
        let user = match &address.user {
            Some(user) => Some((user.name.as_str(), secret(&user.secret)?)),
            None => None,
        };
        let socket = Socket::connect(place, address.patience.timeout, deadline)?;
        // The login has command number 1, and so has the first command.
        let numbers = Numbers { command: 1, status: 0 };
        let wire = Wire { lun: pdu::lun(address.lun), numbers, most: 1, agreed: Agreed::default() };
        let nexus = Nexus { place: place.clone(), group: None };
        let volume = Volume::default();
        let mut session = IscsiSession {
            socket: Some(socket),
            wire,
            nexus,
            volume,
            tag: 0,
            told: false,
            has_reset: false,
        };
        let method = if user.is_some() { "CHAP,None" } else { "None" };
        let mut text = login::text(&[
            ("InitiatorName", address.initiator.as_deref().unwrap_or(INITIATOR)),
            ("TargetName", &address.target),
            ("SessionType", "Normal"),
            ("AuthMethod", method),
        ]);
        let (mut stage, mut agreed) = (Stage::Security, Agreed::default());
        // Whether this side has nothing more to say in this stage.
        let mut done = user.is_none();
        for _ in 0..MAX_EXCHANGES {
            let next = match stage {
                Stage::Security => Stage::Operational,
                Stage::Operational | Stage::Full => Stage::Full,
            };
            let (answer, status, turned) =
                session.exchange_text(isid, stage, done.then_some(next), &text)?;
            match status {
                [0, _] => {}
                [1, _] => {
                    let to = login::value(&answer, "TargetAddress").unwrap_or_default();
                    return Ok(Login::Elsewhere(to.to_string()));
                }
                status => {
                    // Only class 3 means that a later login may succeed.
                    let refused = io::ErrorKind::PermissionDenied;
                    let kind = if status[0] == 3 { io::ErrorKind::NotConnected } else { refused };
                    return Err(io::Error::new(kind, login::refusal(status)));
                }
            }
            if let Some(group) = login::value(&answer, "TargetPortalGroupTag") {
                session.nexus.group = group.parse().ok();
            }
            text = agreed.take(&answer).map_err(broken)?;
            match (stage, turned) {
                (Stage::Security, Some(1)) if done => {
                    stage = Stage::Operational;
                    text = login::offer();
                }
                (Stage::Operational, Some(3)) if done => {
                    session.wire.agreed = agreed;
                    return Ok(Login::Done(session));
                }
                (_, Some(_)) => {
                    return Err(broken("it leaves a stage of the login that has not ended"));
                }
                (Stage::Security, None) => {
                    if let Some((name, secret)) = &user {
                        (text, done) = prove(&answer, name, secret)?;
                    }
                }
                (_, None) => {}
            }
        }
        Err(broken("the login does not end"))
    }

    /// Sends a login request and reads the answer: its text, its status, and the next stage.
    fn exchange_text(
        &mut self,
        isid: Isid,
        stage: Stage,
        next: Option<Stage>,
        text: &[u8],
    ) -> io::Result<(Vec<u8>, [u8; 2], Option<u8>)> {
        let header = |numbers, next, text: &[u8]| {
            pdu::login(isid.0, stage, next, numbers, text.len() as u32)
        };
        let first = header(self.wire.numbers, next, text);
        self.send(&first, text)?;
        let mut all = Vec::new();
        loop {
            let (incoming, data) = self.receive()?;
            let Heard::Login { status, next: turned, continues } = incoming.heard else {
                return Err(broken("its answer to a login is none"));
            };
            if incoming.tag != 0 {
                return Err(broken("it answers another login"));
            }
            if status[0] == 0 {
                self.wire.numbers.status = incoming.counters.status.unwrap_or(0).wrapping_add(1);
                self.wire.most = incoming.counters.most;
            }
            all.extend_from_slice(&data);
            if all.len() > MAX_TEXT {
                return Err(broken("it sends too much text"));
            }
            if !continues || status[0] != 0 {
                return Ok((all, status, turned));
            }
            let more = header(self.wire.numbers, None, &[]);
            self.send(&more, &[])?;
        }
    }

    /// Queries the properties of the logical unit. Repeats all queries if the unit reports
    /// meanwhile that it may be another one.
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
        // Assume a cache if the unit does not report one.
        let mut volume = Volume { cache: true, ..Volume::default() };
        let capacity = self.ask(&scsi::read_capacity(), deadline)?;
        volume.take_capacity(&capacity).ok_or_else(|| {
            let reason = "the target tells a capacity that makes no sense";
            io::Error::new(io::ErrorKind::InvalidData, reason)
        })?;
        type Take = fn(&mut Volume, &[u8]);
        let questions: [(ScsiCommand, Take); 6] = [
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
                // The unit does not know the question. If it only cannot answer now, fail: a later
                // answer would look like another unit.
                Err(error) if error.raw_os_error().is_some_and(|errno| !is_path_error(errno)) => {
                    tracing::debug!(?question, %error, "not answered");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(volume)
    }

    /// The number of blocks from `block` on in one state, and whether they are provisioned.
    pub(super) fn lba_status(&mut self, block: u64, deadline: Instant) -> io::Result<(u64, bool)> {
        let answer = self.ask(&scsi::get_lba_status(block), deadline)?;
        let nonsense = || io::Error::new(io::ErrorKind::InvalidData, "an LBA status of nothing");
        scsi::lba_status(&answer, block).ok_or_else(nonsense)
    }

    /// Makes completed writes durable.
    pub(super) fn flush(&mut self, deadline: Instant) -> io::Result<()> {
        self.call(&scsi::synchronize_cache(), &mut [], deadline)
    }

    /// Reads the first block of the unit.
    pub(super) fn read_first(&mut self, volume: &Volume, deadline: Instant) -> io::Result<()> {
        self.call(&scsi::read(0, 1), &mut vec![0; volume.block_bytes as usize], deadline)
    }

    /// Resets the unit, which ends all of its commands, also those of other hosts. `Err` if the
    /// target has not reset it.
    pub(super) fn reset_unit(&mut self, deadline: Instant) -> io::Result<()> {
        match &mut self.socket {
            Some(socket) => socket.set_deadline(deadline),
            None => return Err(io::ErrorKind::NotConnected.into()),
        }
        self.tag = (self.tag + 1) & 0xffff;
        let (tag, Wire { lun, numbers, .. }) = (self.tag, self.wire);
        self.send(&pdu::reset_unit(lun, tag, numbers), &[])?;
        let response = loop {
            let (incoming, segment) = self.receive()?;
            match incoming.heard {
                Heard::Managed { response } if incoming.tag == tag => break response,
                _ => self.hear(&incoming, &segment)?,
            }
        };
        if response != 0 {
            return Err(io::Error::other(format!("the target does not reset it ({response})")));
        }
        self.has_reset = true;
        // The unit reports the reset to all sessions, also to this one.
        self.carry_out(&scsi::test_unit_ready(), &mut [], deadline, true).map(drop)
    }

    /// Whether this session has reset the unit.
    pub(super) fn has_reset_unit(&self) -> bool {
        self.has_reset
    }

    /// Whether the session has not been ended by a failed call.
    pub(super) fn is_there(&self) -> bool {
        self.socket.is_some()
    }

    /// The target's end of this session.
    pub(super) fn nexus(&self) -> &Nexus {
        &self.nexus
    }

    /// The parts that a session needs.
    pub(super) fn into_parts(mut self) -> (Option<OwnedFd>, Wire, Volume) {
        let volume = std::mem::take(&mut self.volume);
        (self.socket.take().map(OwnedFd::from), self.wire, volume)
    }

    /// Sets the properties of the unit.
    pub(super) fn can(&mut self, volume: Volume) {
        self.volume = volume;
    }

    /// Sends a query and returns its answer.
    fn ask(&mut self, question: &ScsiCommand, deadline: Instant) -> io::Result<Vec<u8>> {
        let mut answer = vec![0; ANSWER];
        self.carry_out(question, &mut answer, deadline, true).map(|_| answer)
    }

    /// Sends a query. Returns the number of bytes of its answer.
    pub(super) fn query(
        &mut self,
        query: &ScsiCommand,
        answer: &mut [u8],
        deadline: Instant,
    ) -> io::Result<usize> {
        self.carry_out(query, answer, deadline, true)
    }

    /// Carries out a command. Repeats it after a unit attention. If the unit may be another one
    /// now, or is gone, the session ends, and the next one queries the unit.
    fn call(
        &mut self,
        command: &ScsiCommand,
        data: &mut [u8],
        deadline: Instant,
    ) -> io::Result<()> {
        self.carry_out(command, data, deadline, false).map(drop)
    }

    /// As [`IscsiSession::call`]. A command that only `asks` does not end the session. Returns the
    /// number of bytes that have arrived.
    fn carry_out(
        &mut self,
        command: &ScsiCommand,
        data: &mut [u8],
        deadline: Instant,
        asks: bool,
    ) -> io::Result<usize> {
        for _ in 0..TRIES {
            let ended = self.call_once(command, data, deadline)?;
            let Ended { status, sense: (key, ascq), moved } = ended;
            let moved = moved as usize;
            let judged = status.map(|status| scsi::judge(i32::from(status), key, ascq));
            match judged.unwrap_or(Outcome::Failed(libc::EREMOTEIO)) {
                // An answer to a query may be shorter than requested.
                Outcome::Good if asks || moved == data.len() => return Ok(moved),
                Outcome::Good => return Err(io::Error::from_raw_os_error(libc::EREMOTEIO)),
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
                Outcome::Busy => std::thread::sleep(PAUSE),
                Outcome::Failed(errno) => return Err(io::Error::from_raw_os_error(errno)),
            }
        }
        Err(io::Error::from_raw_os_error(libc::EBUSY))
    }

    fn call_once(
        &mut self,
        command: &ScsiCommand,
        data: &mut [u8],
        deadline: Instant,
    ) -> io::Result<Ended> {
        match &mut self.socket {
            Some(socket) => socket.set_deadline(deadline),
            None => return Err(io::ErrorKind::NotConnected.into()),
        }
        let result = self.exchange(command, data);
        if result.is_err() {
            self.destroy();
        }
        result
    }

    /// Sends a command without outgoing data and waits for its end.
    fn exchange(&mut self, command: &ScsiCommand, data: &mut [u8]) -> io::Result<Ended> {
        while !self.wire.is_open() {
            let (incoming, segment) = self.receive()?;
            self.hear(&incoming, &segment)?;
        }
        self.tag = (self.tag + 1) & 0xffff;
        let (tag, bytes) = (self.tag, data.len() as u32);
        let Wire { lun, numbers, .. } = self.wire;
        self.wire.numbers.command = numbers.command.wrapping_add(1);
        self.send(&pdu::command(command, lun, tag, numbers, bytes, 0, false), &[])?;
        let mut transfer = Transfer { way: command.way, bytes, moved: 0 };
        loop {
            let (incoming, segment) = self.receive()?;
            let (end, sense) = match incoming.heard {
                Heard::DataIn { offset, status } if incoming.tag == tag => {
                    transfer.came(offset, incoming.data).map_err(broken)?;
                    let place = offset as usize..offset as usize + segment.len();
                    if let Some(place) = data.get_mut(place) {
                        place.copy_from_slice(&segment);
                    }
                    (status, (0, 0))
                }
                Heard::Response(status) if incoming.tag == tag => {
                    (Some(status), scsi::sense(&segment))
                }
                _ => {
                    self.hear(&incoming, &segment)?;
                    (None, (0, 0))
                }
            };
            if let Some(end) = end {
                return Ok(Ended { status: end.status, sense, moved: transfer.moved });
            }
        }
    }

    /// Processes an unsolicited PDU.
    fn hear(&mut self, incoming: &Incoming, segment: &[u8]) -> io::Result<()> {
        match incoming.heard {
            Heard::Ping { transfer: pdu::NO_TAG, .. } => Ok(()),
            Heard::Ping { transfer, lun } => {
                let header = pdu::nop_out(lun, transfer, self.wire.numbers);
                self.send(&header, &[])
            }
            // Sense data of the unit.
            Heard::Event { code: 0, .. } => {
                let (key, ascq) = scsi::sense(segment);
                let sense = scsi::judge(scsi::status::CHECK_CONDITION, key, ascq);
                self.told |= sense == Outcome::Changed;
                Ok(())
            }
            Heard::Event { code: 1..=4, .. } => {
                self.say_goodbye();
                let reason = "the target asks for the end of the session";
                Err(io::Error::new(io::ErrorKind::ConnectionReset, reason))
            }
            Heard::Event { .. } => Ok(()),
            Heard::Reject { reason } => {
                Err(broken(format!("it rejects a request (reason {reason})")))
            }
            Heard::Broken(why) => Err(broken(why)),
            _ => Err(broken("an answer to no request")),
        }
    }

    /// Reads the next PDU and its data.
    fn receive(&mut self) -> io::Result<(Incoming, Vec<u8>)> {
        let socket = self.socket.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let header: Header = socket.array()?;
        if self.wire.agreed.digest && socket.array()? != pdu::digest(&header) {
            return Err(broken("a header whose digest is wrong"));
        }
        let incoming = Incoming::parse(&header);
        if let Heard::Broken(why) = incoming.heard {
            return Err(broken(why));
        }
        let mut data = vec![0; (incoming.data + pdu::padding(incoming.data)) as usize];
        socket.read_exact(&mut data)?;
        data.truncate(incoming.data as usize);
        // Those of a login are processed with its status.
        if !matches!(incoming.heard, Heard::Login { .. }) {
            self.wire.count(&incoming.counters);
        }
        Ok((incoming, data))
    }

    fn send(&mut self, header: &Header, data: &[u8]) -> io::Result<()> {
        let socket = self.socket.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let mut bytes = header.to_vec();
        if self.wire.agreed.digest {
            bytes.extend_from_slice(&pdu::digest(header));
        }
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len() + pdu::padding(data.len() as u32) as usize, 0);
        socket.write_all(&bytes)
    }

    fn say_goodbye(&mut self) {
        if let Some(socket) = &mut self.socket {
            socket.set_deadline(Instant::now() + GOODBYE);
            // If this fails, the target will notice the end of the connection.
            let _ = self.send(&pdu::logout(self.tag, self.wire.numbers), &[]);
        }
    }

    /// Ends the session without a logout.
    fn destroy(&mut self) {
        self.socket = None;
    }
}

impl Drop for IscsiSession {
    fn drop(&mut self) {
        self.say_goodbye();
    }
}

/// Builds a user's answer in the security stage. Returns whether it is the last one.
fn prove(answer: &[u8], name: &str, secret: &[u8]) -> io::Result<(Vec<u8>, bool)> {
    let refused = |why| io::Error::new(io::ErrorKind::PermissionDenied, why);
    match login::value(answer, "AuthMethod") {
        Some("CHAP") => Ok((login::algorithm(), false)),
        Some("None") => Ok((Vec::new(), true)),
        Some(other) => Err(refused(format!("the target wants '{other}' and not CHAP"))),
        None => login::chap(answer, name, secret).map(|answer| (answer, true)).map_err(refused),
    }
}

/// Parses the address of a redirection: `HOST:PORT,GROUP`.
fn portal(text: &str) -> io::Result<Place> {
    let place = text.split_once(',').map_or(text, |(place, _)| place);
    let (host, port) = host_and_port(place, super::address::PORT)
        .ok_or_else(|| broken(format!("it sends the login to '{}'", text.escape_default())))?;
    Ok(Place::Tcp { host, port })
}

/// Reads a secret. Errors name its place, never its content.
fn secret(at: &SecretAt) -> io::Result<Vec<u8>> {
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
    if bytes.contains(&0) {
        return Err(failed("a secret has no byte of zero in it".into()));
    }
    Ok(bytes)
}
