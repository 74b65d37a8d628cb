//! A listener that yields connections whose TLS handshake is complete, for the HTTP ports.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use crate::connections::{Bounded, Bounds, Connections, Handle};

/// Timeout of a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Pause after a failed `accept`, so that a shortage of file descriptors does not cause a busy loop.
const PAUSE: Duration = Duration::from_millis(50);

/// A connection, with or without TLS.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

type Shaken = (Box<dyn Io>, Remote);

/// The connections of a port.
pub struct Handshakes {
    shaken: mpsc::Receiver<Shaken>,
    address: SocketAddr,
    accepting: tokio::task::JoinHandle<()>,
}

/// Peer of a connection.
#[derive(Clone, Debug)]
pub struct Remote {
    pub address: SocketAddr,
    /// The connection; `None` of a listener.
    pub connection: Option<Handle>,
}

impl axum::extract::connect_info::Connected<axum::serve::IncomingStream<'_, Handshakes>> for Remote {
    fn connect_info(stream: axum::serve::IncomingStream<'_, Handshakes>) -> Self {
        stream.remote_addr().clone()
    }
}

impl std::fmt::Debug for Handshakes {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Handshakes").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Handshakes {
    /// Accepts connections from now on. `tls` returns the certificate in force; without one, connections are plaintext.
    ///
    /// # Errors
    /// If the listener has no address.
    pub fn start(
        listener: TcpListener,
        bounds: Bounds,
        tls: impl Fn() -> Option<Arc<ServerConfig>> + Send + 'static,
    ) -> io::Result<Self> {
        let (sender, shaken) = mpsc::channel(16);
        let address = listener.local_addr()?;
        Ok(Self { shaken, address, accepting: tokio::spawn(accept(listener, bounds, tls, sender)) })
    }
}

impl Drop for Handshakes {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Listener for Handshakes {
    type Io = Box<dyn Io>;
    type Addr = Remote;

    async fn accept(&mut self) -> Shaken {
        match self.shaken.recv().await {
            Some(shaken) => shaken,
            // The accept loop has ended, so no further connection will come.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Remote> {
        Ok(Remote { address: self.address, connection: None })
    }
}

async fn accept(
    listener: TcpListener,
    bounds: Bounds,
    tls: impl Fn() -> Option<Arc<ServerConfig>>,
    sender: mpsc::Sender<Shaken>,
) {
    // Slow or excess connections are closed to make room for new ones.
    let connections = Connections::new(bounds);
    loop {
        let Ok((stream, address)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let sender = sender.clone();
        let Some(mut place) = connections.admit() else { continue };
        let remote = Remote { address, connection: Some(place.handle.clone()) };
        let Some(config) = tls() else {
            let _stopped = sender.send((Box::new(Bounded::new(stream, place)), remote)).await;
            continue;
        };
        tokio::spawn(async move {
            let shaking = tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(config).accept(stream));
            if let Some(Ok(Ok(stream))) = place.unless_closed(shaking).await {
                let _stopped = sender.send((Box::new(Bounded::new(stream, place)), remote)).await;
            }
        });
    }
}
