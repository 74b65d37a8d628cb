//! Listeners of the gRPC API: TCP, in plaintext or with TLS, and a Unix socket. Each connection carries the
//! identity that its peer proved.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use crate::caller::svid::Svid;
use crate::caller::{Callers, Peer};
use crate::connections::authority::Authority;
use crate::connections::batched::Batched;
use crate::connections::{Bounded, Bounds, Connections, Place, Standing};

/// Time limit of a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Pause after `accept` fails, e.g. for lack of descriptors, so that the accept loop does not spin.
const PAUSE: Duration = Duration::from_millis(50);

/// The listening sockets and the callers that they trust.
#[derive(Debug)]
pub struct Listeners {
    /// TCP listener, which speaks TLS if the server has a certificate.
    pub tcp: TcpListener,
    pub unix: Option<UnixListener>,
    pub callers: Arc<Callers>,
}

/// Facts about a connection that every request on it can read.
#[derive(Clone, Debug, Default)]
pub struct Connection {
    pub peer: Peer,
    /// Whether bearer tokens are accepted on the connection.
    pub takes_bearer: bool,
    /// Live state of the connection: whether its peer is authenticated, and its requests in flight.
    pub standing: Standing,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Unix(Authority<UnixStream>),
}

pub(super) struct Accepted {
    stream: Bounded<Batched<Stream>>,
    connection: Connection,
}

impl Accepted {
    /// Registers an accepted stream under the owner that its peer proved, if any. Returns `None` if the owner
    /// has too many connections.
    fn new(stream: Stream, peer: Peer, takes_bearer: bool, place: Place, callers: &Callers) -> Option<Self> {
        if let Some(owner) = callers.owner(&peer)
            && !place.handle.prove(owner)
        {
            return None;
        }
        let standing = place.handle.standing.clone();
        let peer = Peer { known: Arc::clone(&standing.known), ..peer };
        Some(Self {
            stream: Bounded::new(Batched::new(stream), place),
            connection: Connection { peer, takes_bearer, standing },
        })
    }
}

impl Listeners {
    /// Accepts connections until the returned stream is dropped. Also returns those that are open.
    pub(super) fn accept(self, bearer_in_plaintext: bool) -> (ReceiverStream<io::Result<Accepted>>, Connections) {
        let (sender, receiver) = mpsc::channel(16);
        let connections = Connections::new(Bounds::of_calls());
        if let Some(unix) = self.unix {
            tokio::spawn(accept_unix(unix, Arc::clone(&self.callers), connections.clone(), sender.clone()));
        }
        tokio::spawn(accept_tcp(self.tcp, self.callers, bearer_in_plaintext, connections.clone(), sender));
        (ReceiverStream::new(receiver), connections)
    }
}

type Sender = mpsc::Sender<io::Result<Accepted>>;

async fn accept_tcp(
    listener: TcpListener,
    callers: Arc<Callers>,
    bearer_in_plaintext: bool,
    connections: Connections,
    sender: Sender,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = sender.closed() => return,
        };
        let Ok((stream, address)) = accepted else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        // Close a connection that there is no room for, to keep its descriptor for authenticated callers.
        let Some(mut place) = connections.admit() else { continue };
        // Without TCP_NODELAY, trailers wait for the acknowledgement of the message, which adds 40 ms to each
        // call. A socket that refuses the option still works.
        let _slower = stream.set_nodelay(true);
        let peer = Peer { address: Some(address), ..Peer::default() };
        let (sender, callers) = (sender.clone(), Arc::clone(&callers));
        let Some(config) = callers.trust().server.clone() else {
            if let Some(accepted) = Accepted::new(Stream::Plain(stream), peer, bearer_in_plaintext, place, &callers)
                && sender.send(Ok(accepted)).await.is_err()
            {
                return;
            }
            continue;
        };
        // Each handshake runs in its own task. A stalled one then occupies a place of unauthenticated peers
        // but does not delay other handshakes.
        tokio::spawn(async move {
            let shaking = tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(config).accept(stream));
            let Some(Ok(Ok(stream))) = place.unless_closed(shaking).await else {
                tracing::debug!(name: "tls.handshake_failed", peer = %address.ip());
                return;
            };
            let peer = match stream.get_ref().1.peer_certificates().map(Svid::read) {
                Some(Ok(svid)) => Peer { svid: Some(Arc::new(svid)), ..peer },
                Some(Err(fault)) => Peer { fault: Some(fault), ..peer },
                None => peer,
            };
            if let Some(accepted) = Accepted::new(Stream::Tls(Box::new(stream)), peer, true, place, &callers) {
                // Sending only fails if the server has stopped; the connection is then dropped.
                let _stopped = sender.send(Ok(accepted)).await;
            }
        });
    }
}

async fn accept_unix(listener: UnixListener, callers: Arc<Callers>, connections: Connections, sender: Sender) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = sender.closed() => return,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let Some(place) = connections.admit() else { continue };
        let user = stream.peer_cred().map(|credentials| credentials.uid()).ok();
        let peer = Peer { user, ..Peer::default() };
        if let Some(accepted) = Accepted::new(Stream::Unix(Authority::new(stream)), peer, true, place, &callers)
            && sender.send(Ok(accepted)).await.is_err()
        {
            return;
        }
    }
}

impl Connected for Accepted {
    type ConnectInfo = Connection;

    fn connect_info(&self) -> Connection {
        self.connection.clone()
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(context, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write(context, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(context),
            Self::Unix(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(context),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(context, slices),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
            Self::Unix(stream) => stream.is_write_vectored(),
        }
    }
}
