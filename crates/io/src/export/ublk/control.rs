//! Commands to the driver, one call for each, on the thread of the control side.
//!
//! Contract: every method blocks until the driver has answered. For a start, the device's first
//! reads (of a partition table) must have been served, and for a stop, its last requests. So never
//! call a method on a queue's thread. The object has its own ring, because control commands need
//! submissions of 128 bytes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use super::UblkError;
use super::abi::{self, ControlCommand, DevInfo, UblkParams};
use crate::sys::process;

/// Most commands under way: one, and its cancellation.
const SUBMISSIONS: u32 = 2;
/// How long a device may take to start or stop before the command is cancelled.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a removal waits for the last user of the device. The driver completes it later by
/// itself.
const REMOVAL: Duration = Duration::from_secs(2);

/// Pause after the kernel had no memory for a call.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(10);

const COMMAND: u64 = 1;
const CANCEL: u64 = 2;

/// The control device of the driver, with a ring for commands.
pub(super) struct Control {
    device: File,
    ring: IoUring<squeue::Entry128, cqueue::Entry>,
}

impl Control {
    /// Opens the control device. `Err` if there is no driver, permission or io_uring.
    pub(super) fn open() -> Result<Control, UblkError> {
        let device =
            OpenOptions::new().read(true).write(true).open(abi::CONTROL).map_err(|source| {
                match source.raw_os_error() {
                    Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
                        UblkError::NoDriver { release: kernel_release() }
                    }
                    Some(libc::EACCES | libc::EPERM) => UblkError::NotPermitted(source),
                    _ => UblkError::System { what: "open", name: abi::CONTROL.into(), source },
                }
            })?;
        let ring = IoUring::builder().build(SUBMISSIONS).map_err(|source| UblkError::System {
            what: "make",
            name: "an io_uring".into(),
            source,
        })?;
        Ok(Control { device, ring })
    }

    /// The features that the driver knows. `Err` if it is too old to report them.
    pub(super) fn features(&mut self) -> Result<u64, UblkError> {
        let mut features = 0u64;
        let command = ControlCommand {
            // The driver requires exactly this length.
            len: size_of::<u64>() as u16,
            addr: (&raw mut features).addr() as u64,
            queue_id: ControlCommand::NO_QUEUE,
            ..ControlCommand::default()
        };
        self.run(abi::Control::GetFeatures, command, PATIENCE).map_err(no_features)?;
        Ok(features)
    }

    /// Creates a device. `info` is the request, and becomes the driver's answer. The features
    /// `welcome` are used only if the driver accepts all of them.
    pub(super) fn add(&mut self, info: &mut DevInfo, welcome: u64) -> Result<(), UblkError> {
        let plain = *info;
        info.flags |= welcome;
        match self.add_as_is(info) {
            Ok(()) if info.flags & welcome == welcome => return Ok(()),
            Ok(()) => self.delete(info.dev_id)?,
            Err(UblkError::Command { .. }) if welcome != 0 => {}
            Err(error) => return Err(error),
        }
        tracing::info!("the ublk driver does not do all of {welcome:#x} together: it does without");
        *info = plain;
        self.add_as_is(info)
    }

    fn add_as_is(&mut self, info: &mut DevInfo) -> Result<(), UblkError> {
        let (id, len, addr) =
            (info.dev_id, size_of::<DevInfo>() as u16, std::ptr::from_mut(info).addr() as u64);
        self.device_command(abi::Control::AddDev, id, len, addr, 0)
    }

    /// The driver's information about a device.
    pub(super) fn info(&mut self, id: u32) -> Result<DevInfo, UblkError> {
        let mut info = DevInfo::default();
        let addr = (&raw mut info).addr() as u64;
        self.device_command(abi::Control::GetDevInfo, id, size_of::<DevInfo>() as u16, addr, 0)?;
        Ok(info)
    }

    /// Sets the device's parameters for the block layer. Only before it is started.
    pub(super) fn set_params(&mut self, id: u32, params: &UblkParams) -> Result<(), UblkError> {
        let addr = std::ptr::from_ref(params).addr() as u64;
        self.device_command(abi::Control::SetParams, id, size_of::<UblkParams>() as u16, addr, 0)
    }

    /// The device's parameters for the block layer.
    pub(super) fn params(&mut self, id: u32) -> Result<UblkParams, UblkError> {
        let len = size_of::<UblkParams>() as u16;
        let mut params = UblkParams { len: len.into(), ..UblkParams::default() };
        let addr = (&raw mut params).addr() as u64;
        self.device_command(abi::Control::GetParams, id, len, addr, 0)?;
        Ok(params)
    }

    /// Starts the device, so that the disk appears. Waits until every tag of every queue was
    /// fetched.
    pub(super) fn start(&mut self, id: u32) -> Result<(), UblkError> {
        self.device_command(abi::Control::StartDev, id, 0, 0, std::process::id().into())
    }

    /// Stops the device, so that the disk disappears after its requests were answered.
    pub(super) fn stop(&mut self, id: u32) -> Result<(), UblkError> {
        self.device_command(abi::Control::StopDev, id, 0, 0, 0)
    }

    /// Deletes the device. If it is still open, the driver deletes it at the last close.
    pub(super) fn delete(&mut self, id: u32) -> Result<(), UblkError> {
        let command = ControlCommand {
            dev_id: id,
            queue_id: ControlCommand::NO_QUEUE,
            ..ControlCommand::default()
        };
        match self.run(abi::Control::DelDev, command, REMOVAL) {
            Err(error) if error.raw_os_error() != Some(libc::EINTR) => {
                Err(UblkError::command(abi::Control::DelDev, error))
            }
            _ => Ok(()),
        }
    }

    /// Begins the recovery of a device whose server has died.
    pub(super) fn start_recovery(&mut self, id: u32) -> Result<(), UblkError> {
        self.device_command(abi::Control::StartUserRecovery, id, 0, 0, 0)
    }

    /// Ends the recovery, with this process as the server. Waits until every tag of every queue was
    /// fetched.
    pub(super) fn end_recovery(&mut self, id: u32) -> Result<(), UblkError> {
        self.device_command(abi::Control::EndUserRecovery, id, 0, 0, std::process::id().into())
    }

    fn device_command(
        &mut self,
        what: abi::Control,
        dev_id: u32,
        len: u16,
        addr: u64,
        data: u64,
    ) -> Result<(), UblkError> {
        let command = ControlCommand {
            dev_id,
            queue_id: ControlCommand::NO_QUEUE,
            len,
            addr,
            data,
            ..ControlCommand::default()
        };
        self.run(what, command, PATIENCE).map_err(|source| UblkError::command(what, source))
    }

    /// Runs a command to its end. A command that takes longer than `patience` is cancelled (EINTR).
    fn run(
        &mut self,
        what: abi::Control,
        command: ControlCommand,
        patience: Duration,
    ) -> io::Result<()> {
        let fd = types::Fd(self.device.as_raw_fd());
        let entry = opcode::UringCmd80::new(fd, what as u32)
            .cmd(command.bytes())
            .build()
            .user_data(COMMAND);
        // SAFETY: `command.addr` points to memory of the caller, and this function returns only
        // after the command has ended.
        unsafe { self.push(&entry)? };
        if let Some(result) = self.wait(Some(patience))? {
            return result;
        }
        let cancel = opcode::AsyncCancel::new(COMMAND).build().user_data(CANCEL);
        // SAFETY: a cancellation points to nothing.
        unsafe { self.push(&cancel.into())? };
        loop {
            if let Some(result) = self.wait(None)? {
                return result;
            }
        }
    }

    /// # Safety
    /// The memory that the entry points to stays valid until its completion is taken.
    unsafe fn push(&mut self, entry: &squeue::Entry128) -> io::Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.ring.submission().push(entry) }.map_err(|_| io::ErrorKind::WouldBlock.into())
    }

    fn enter(&mut self, at_most: Option<Duration>) -> io::Result<usize> {
        match at_most.map(types::Timespec::from) {
            Some(time) => {
                self.ring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&time))
            }
            None => self.ring.submit_and_wait(1),
        }
    }

    /// Waits for the completion of the command. `None` if the time is over, or if another
    /// completion came.
    fn wait(&mut self, at_most: Option<Duration>) -> io::Result<Option<io::Result<()>>> {
        while let Err(error) = self.enter(at_most) {
            match error.raw_os_error() {
                Some(libc::ETIME) => return Ok(None),
                // A signal, or a shortage that passes. The command goes on, so wait again.
                Some(libc::EINTR) => {}
                Some(libc::EAGAIN | libc::ENOMEM | libc::EBUSY) => {
                    std::thread::sleep(SHORTAGE_PAUSE);
                }
                // The driver may still write to the caller's memory.
                _ => process::fail(&format!("the ring for ublk's commands failed: {error}")),
            }
        }
        let done = self.ring.completion().find(|cqe| cqe.user_data() == COMMAND);
        Ok(done.map(|cqe| match cqe.result() {
            errno if errno < 0 => Err(io::Error::from_raw_os_error(-errno)),
            _ => Ok(()),
        }))
    }
}

/// Converts the error of GET_FEATURES. A driver that is too old does not have the command, or
/// mistakes it for one of a device.
fn no_features(source: io::Error) -> UblkError {
    match source.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENODEV) => {
            UblkError::TooOld { release: kernel_release(), lacks: "the GET_FEATURES command" }
        }
        _ => UblkError::command(abi::Control::GetFeatures, source),
    }
}

/// `uname -r`, for messages.
pub(super) fn kernel_release() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease");
    release.map_or_else(|_| "of unknown release".into(), |text| text.trim().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_does_not_know_the_question_is_too_old() {
        for errno in [libc::EOPNOTSUPP, libc::ENODEV] {
            let error = no_features(io::Error::from_raw_os_error(errno)).to_string();
            let expected = "lacks the GET_FEATURES command: Linux 6.5 or newer is needed";
            assert!(error.ends_with(expected), "{error}");
        }
        assert!(matches!(
            no_features(io::Error::from_raw_os_error(libc::EPERM)),
            UblkError::NotPermitted(_)
        ));
    }
}
