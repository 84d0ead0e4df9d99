//! A portal that sends every login to another address, as the portal of a group does. It answers
//! the first login request of a connection with a temporary redirection (RFC 7143, 11.13), and
//! hangs up.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub(crate) struct Portal {
    pub(crate) address: SocketAddr,
    logins: Arc<AtomicUsize>,
}

impl Portal {
    /// Starts a portal that sends login number `n` to the address that `next` returns. The thread
    /// ends with the test program.
    pub(crate) fn start(next: impl Fn(usize, SocketAddr) -> String + Send + 'static) -> Portal {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, logins) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let counted = logins.clone();
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let number = counted.fetch_add(1, Ordering::SeqCst);
                // A client may hang up before the answer.
                let _ = redirect(connection, &next(number, address));
            }
        });
        Portal { address, logins }
    }

    pub(crate) fn logins(&self) -> usize {
        self.logins.load(Ordering::SeqCst)
    }
}

fn redirect(mut connection: TcpStream, to: &str) -> std::io::Result<()> {
    let mut request = [0; 48];
    connection.read_exact(&mut request)?;
    let len = u32::from_be_bytes([0, request[5], request[6], request[7]]) as usize;
    connection.read_exact(&mut vec![0; len.next_multiple_of(4)])?;
    let text = format!("TargetAddress={to}\0");
    let mut reply = [0; 48];
    // A login response in the operational stage.
    reply[0] = 0x23;
    reply[1] = request[1] & 0x0c;
    reply[5..8].copy_from_slice(&(text.len() as u32).to_be_bytes()[1..]);
    // The session's identifier and the task's tag come from the request. ExpCmdSN is 1, for the
    // first command.
    reply[8..20].copy_from_slice(&request[8..20]);
    reply[24..28].copy_from_slice(&1u32.to_be_bytes());
    reply[28..32].copy_from_slice(&request[24..28]);
    reply[32..36].copy_from_slice(&request[24..28]);
    // Class 1, detail 1: the target has moved temporarily.
    reply[36..38].copy_from_slice(&[1, 1]);
    let mut bytes = [&reply[..], text.as_bytes()].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    connection.write_all(&bytes)?;
    // Wait until the client has closed the connection: closing first could discard the unread
    // answer.
    connection.read(&mut request).map(drop)
}
