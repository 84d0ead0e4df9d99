//! Cables: sockets that forward bytes to other sockets and can be pulled out.
//!
//! Contract: a cable has a socket of its own, and forwards its clients to the server behind it.
//! When it is pulled out, it drops its connections and takes no new ones. When it is plugged in
//! again, it takes new connections.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::thread;

use anyhow::{Context, bail};
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;

use crate::daemon::process::runtime::runtime;

/// The address of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// The path of a unix socket.
    Unix(PathBuf),
    /// A port of this machine; 0 means any free port.
    Tcp(u16),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Unix(path) => write!(f, "{}", path.display()),
            Place::Tcp(port) => write!(f, "{}:{port}", Ipv4Addr::LOCALHOST),
        }
    }
}

/// A stream of bytes in both directions.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    /// Listens at a place. Returns the place with its port.
    async fn bind(place: Place) -> io::Result<(Listener, Place)> {
        match place {
            Place::Unix(path) => {
                Ok((Listener::Unix(UnixListener::bind(&path)?), Place::Unix(path)))
            }
            Place::Tcp(port) => {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
                let port = listener.local_addr()?.port();
                Ok((Listener::Tcp(listener), Place::Tcp(port)))
            }
        }
    }

    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Listener::Unix(listener) => Box::new(listener.accept().await?.0),
            Listener::Tcp(listener) => Box::new(quick(listener.accept().await?.0)?),
        })
    }
}

async fn connect(place: &Place) -> io::Result<Box<dyn Stream>> {
    Ok(match place {
        Place::Unix(path) => Box::new(UnixStream::connect(path).await?),
        Place::Tcp(port) => {
            Box::new(quick(TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).await?)?)
        }
    })
}

/// Makes a stream send at once, without Nagle's algorithm.
fn quick(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A cable with a socket for clients and a server behind it.
pub(super) struct Cable {
    place: Place,
    plugged: watch::Sender<bool>,
}

impl Cable {
    /// The place for clients.
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Plugs the cable in, or pulls it out.
    pub(super) fn plug(&self, plugged: bool) {
        self.plugged.send_replace(plugged);
    }
}

/// All cables, on a thread of their own.
pub(super) struct Cables {
    thread: thread::JoinHandle<anyhow::Result<()>>,
}

impl Cables {
    /// Makes cables, each from its own place and the place of the server behind it.
    pub(super) fn lay(ways: Vec<(Place, Place)>) -> anyhow::Result<(Cables, Vec<Cable>)> {
        let runtime = runtime()?;
        let (mut cables, mut ends) = (Vec::new(), Vec::new());
        for (place, server) in ways {
            let (plugged, state) = watch::channel(true);
            let cannot = format!("cannot listen on '{place}'");
            let (listener, place) = runtime.block_on(Listener::bind(place)).context(cannot)?;
            ends.push((listener, server, state));
            cables.push(Cable { place, plugged });
        }
        let carry_all = async move {
            let ends: Vec<_> =
                ends.into_iter().map(|end| tokio::spawn(serve(end.0, end.1, end.2))).collect();
            for end in ends {
                end.await.context("a cable's task panicked")??;
            }
            Ok(())
        };
        Ok((Cables { thread: thread::spawn(move || runtime.block_on(carry_all)) }, cables))
    }

    /// Drops all cables and waits for the end of the thread.
    pub(super) fn end(self, cables: Vec<Cable>) -> anyhow::Result<()> {
        drop(cables);
        self.thread.join().unwrap_or_else(|_| bail!("the cables' thread panicked"))
    }
}

/// Forwards connections until the cable is dropped.
async fn serve(
    listener: Listener,
    server: Place,
    mut plugged: watch::Receiver<bool>,
) -> io::Result<()> {
    loop {
        let client = tokio::select! {
            accepted = listener.accept() => accepted?,
            changed = plugged.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return Ok(()),
            },
        };
        // Pulled out: drop the connection at once.
        if *plugged.borrow() {
            tokio::spawn(carry(client, server.clone(), plugged.clone()));
        }
    }
}

/// Forwards one connection until one side closes it or the cable is pulled out.
async fn carry(mut client: Box<dyn Stream>, server: Place, mut plugged: watch::Receiver<bool>) {
    let carried = async {
        let mut server = connect(&server).await?;
        copy_bidirectional(&mut client, &mut server).await
    };
    tokio::select! {
        // Either side may reset its connection, which is not an error of the cable.
        carried = carried => if let Err(error) = carried
            && error.kind() != ErrorKind::ConnectionReset
        {
            tracing::debug!(%error, "a connection through a cable ended");
        },
        _ = plugged.wait_for(|plugged| !plugged) => {}
    }
}
