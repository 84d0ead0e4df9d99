//! Routes the requests of many threads in one thread: a driver with a thread of its own, and a
//! handle that any thread can use.

use std::collections::HashMap;
use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use blkswitch_io::driver::{Answer, Ask, Driver, Waker};
use blkswitch_io::request::Op;
use blkswitch_io::{AlignedBytes, Table};

/// A request to the service, and the channel for the answer.
struct Order {
    op: Op,
    offset: u64,
    data: AlignedBytes,
    reply: Sender<Answer>,
}

/// A table that many threads use. The driver stays on the thread that made it.
#[derive(Debug)]
pub struct Service {
    orders: Option<Sender<Order>>,
    waker: Waker,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Service {
    /// Starts the thread. It calls `table`, which opens the leaves for the driver and makes the
    /// table.
    ///
    /// # Errors
    /// The driver or the table could not be made.
    pub fn start(
        table: impl FnOnce(&Driver) -> io::Result<Table> + Send + 'static,
    ) -> io::Result<Service> {
        let (orders, receiver) = mpsc::channel();
        let (started, starts) = mpsc::channel();
        let thread = thread::spawn(move || {
            let made = Driver::new().and_then(|mut driver| {
                let table = table(&driver)?;
                let device = driver.add(table).map_err(io::Error::other)?;
                Ok((driver, device))
            });
            match made {
                Ok((driver, device)) => {
                    let _ = started.send(Ok(driver.waker()));
                    run(driver, device, &receiver)
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                    Ok(())
                }
            }
        });
        let waker = starts.recv().map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))??;
        Ok(Service { orders: Some(orders), waker, thread: Some(thread) })
    }

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// The write failed, or the service has ended.
    pub fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.call(Op::Write, offset, AlignedBytes::copy_of(data)?).map(drop)
    }

    /// Reads `len` bytes at `offset`.
    ///
    /// # Errors
    /// As [`Service::write`].
    pub fn read(&self, offset: u64, len: usize) -> io::Result<AlignedBytes> {
        self.call(Op::Read, offset, AlignedBytes::zeroed(len)?)
    }

    fn call(&self, op: Op, offset: u64, data: AlignedBytes) -> io::Result<AlignedBytes> {
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        let (reply, answers) = mpsc::channel();
        let orders = self.orders.as_ref().ok_or_else(gone)?;
        orders.send(Order { op, offset, data, reply }).map_err(|_| gone())?;
        // Send the order before waking the driver: its thread looks for orders after it wakes.
        self.waker.wake();
        let Answer { result, data, .. } = answers.recv().map_err(|_| gone())?;
        result.map(|()| data)
    }
}

/// Serves orders until all handles are dropped.
fn run(mut driver: Driver, device: u32, orders: &Receiver<Order>) -> io::Result<()> {
    let (mut waiting, mut answers, mut next) = (HashMap::new(), Vec::new(), 0);
    loop {
        loop {
            match orders.try_recv() {
                Ok(Order { op, offset, data, reply }) => {
                    let ask =
                        Ask { op, fua: false, offset, len: data.len() as u64, data, token: next };
                    driver.start(device, ask);
                    waiting.insert(next, reply);
                    next += 1;
                }
                Err(mpsc::TryRecvError::Empty) => break,
                Err(mpsc::TryRecvError::Disconnected) => return driver.close(&mut answers),
            }
        }
        driver.wait(&mut answers, None)?;
        for answer in answers.drain(..) {
            if let Some(reply) = waiting.remove(&answer.token) {
                // The sender of the order may be gone.
                let _ = reply.send(answer);
            }
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.orders.take();
        self.waker.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
