//! Lists the NBD clients of devices, and disconnects them.
//!
//! Contract: asks the queues and waits a bounded time for their answers. The caller must be allowed
//! to block.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use blkswitch_io::Device;
use blkswitch_io::export::nbd::Peer;
use blkswitch_io::export::nbd::clients::Client;

use crate::daemon::devices::Devices;
use crate::daemon::failure::Failure;
use crate::protocol::{self, Errno};

/// How long to wait until disconnected connections are gone. A connection stays until its leaves
/// have answered its requests in flight.
const GONE_TIME: Duration = Duration::from_secs(10);
/// How long clients of a device that is removed by force have for the errors of what they had under
/// way. A client that sends without a pause always has something under way.
const ANSWERED_TIME: Duration = Duration::from_secs(1);
/// How often a removal by force disconnects clients. Some connect again at once.
const DISMISSALS_MAX: u32 = 20;
/// Pause between two checks.
const GONE_PAUSE: Duration = Duration::from_millis(10);

fn describe(client: &Client) -> protocol::Client {
    let since = client.since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    protocol::Client {
        number: client.number,
        peer: client.peer.to_string(),
        since: since.as_secs(),
        in_flight: client.in_flight as u64,
    }
}

/// Returns whether `word` names this connection: its number, its address or process as `info` shows
/// it, or the address of its host alone.
fn is_meant(client: &Client, word: &str) -> bool {
    let of_host = match client.peer {
        Peer::Tcp(address) => address.ip().to_string() == word,
        _ => false,
    };
    of_host || client.number.to_string() == word || client.peer.to_string() == word
}

impl Devices {
    /// All devices as the protocol describes them, each with its clients.
    pub fn describe_all(&self) -> Vec<protocol::Device> {
        let devices = self.list();
        let mut clients: HashMap<u32, Vec<protocol::Client>> = HashMap::new();
        if devices.iter().any(|device| device.info().opens > 0) {
            for client in self.pool().clients() {
                clients.entry(client.device).or_default().push(describe(&client));
            }
        }
        let with = |device: &Device| protocol::Device {
            clients: clients.remove(&device.id()).unwrap_or_default(),
            ..self.describe(device)
        };
        devices.iter().map(|device| device.as_ref()).map(with).collect()
    }

    /// One device as the protocol describes it, with its clients.
    pub fn describe_with_clients(&self, device: &Device) -> protocol::Device {
        let clients = if device.info().opens > 0 { self.clients_of(device) } else { Vec::new() };
        protocol::Device {
            clients: clients.iter().map(describe).collect(),
            ..self.describe(device)
        }
    }

    /// Removes a device whose requests all fail. Disconnects its NBD clients, unless it has other
    /// users: devices on top of it stay its users, as a mounted disk does.
    pub(crate) fn remove_from_clients(&self, device: &Arc<Device>) -> Result<(), Failure> {
        let until = Instant::now() + ANSWERED_TIME;
        while self.clients_of(device).iter().any(|client| client.in_flight > 0)
            && Instant::now() < until
        {
            std::thread::sleep(GONE_PAUSE);
        }
        let mut dismissals = 0;
        loop {
            let busy = match self.remove_saved(device) {
                Err(failure) if failure.errno == Errno::Ebusy => failure,
                removed => return removed,
            };
            let clients = self.clients_of(device);
            let others = device.info().opens as usize > clients.len();
            if others || dismissals == DISMISSALS_MAX {
                return Err(busy);
            }
            dismissals += 1;
            for client in self.disconnect(device, None)? {
                tracing::warn!(device = %device.name(), client = %client.peer,
                    "disconnected, because the device is removed by force");
            }
        }
    }

    fn clients_of(&self, device: &Device) -> Vec<Client> {
        let mut clients = self.pool().clients();
        clients.retain(|client| client.device == device.id());
        clients
    }

    /// Disconnects the clients of a device that `word` names, or all if it is `None`. Returns the
    /// clients that were disconnected.
    pub fn disconnect(
        &self,
        device: &Device,
        word: Option<&str>,
    ) -> Result<Vec<protocol::Client>, Failure> {
        let (all, name) = (self.clients_of(device), device.name());
        let meant: Vec<&Client> =
            all.iter().filter(|client| word.is_none_or(|word| is_meant(client, word))).collect();
        if let Some(word) = word
            && meant.is_empty()
        {
            let there: Vec<String> =
                all.iter().map(|client| format!("{} ({})", client.peer, client.number)).collect();
            let there = if there.is_empty() { "nobody".into() } else { there.join(", ") };
            let reason = format!("no client '{word}' has the device '{name}' open: {there} has");
            return Err(Failure::new(Errno::Enoent, reason));
        }
        let numbers: Vec<u64> = meant.iter().map(|client| client.number).collect();
        self.pool().disconnect(&numbers);
        let until = Instant::now() + GONE_TIME;
        let is_there = |client: &Client| numbers.contains(&client.number);
        while self.clients_of(device).iter().any(is_there) {
            if Instant::now() >= until {
                let reason = format!(
                    "the clients of '{name}' are cut off, but what they have under way has not \
                     ended in {} s: a leaf does not answer",
                    GONE_TIME.as_secs()
                );
                return Err(Failure::new(Errno::Etimedout, reason));
            }
            std::thread::sleep(GONE_PAUSE);
        }
        Ok(meant.into_iter().map(describe).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_meant_by_number_address_host_or_process() {
        let client = |peer| Client {
            device: 0,
            number: 7,
            peer,
            since: SystemTime::UNIX_EPOCH + Duration::from_secs(5),
            in_flight: 2,
        };
        let tcp = client(Peer::Tcp("[::1]:4711".parse().unwrap()));
        for word in ["7", "[::1]:4711", "::1"] {
            assert!(is_meant(&tcp, word), "{word}");
        }
        let unix = client(Peer::Unix { pid: 12, uid: 34 });
        assert!(is_meant(&unix, "pid 12 uid 34"));
        for word in ["", "12", "pid 12", "77"] {
            assert!(!is_meant(&unix, word) && !is_meant(&tcp, word), "{word}");
        }
        let shown = describe(&unix);
        assert_eq!((shown.number, shown.since, shown.in_flight), (7, 5, 2));
    }
}
