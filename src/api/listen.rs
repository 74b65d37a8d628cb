//! Where connections come from: TCP in plaintext or TLS, and a Unix socket. Each connection carries what was proven of its peer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use crate::caller::svid::Svid;
use crate::caller::{Callers, Peer};

/// Handshakes under way; a client that stalls holds one for [`HANDSHAKE`].
const HANDSHAKES_MAX: usize = 256;
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long to wait after the operating system gave no connection, for want of descriptors, say.
const PAUSE: Duration = Duration::from_millis(50);

/// The sockets that are listened on, and who is trusted there.
#[derive(Debug)]
pub struct Listeners {
    /// TCP; TLS is spoken if there is a certificate.
    pub tcp: TcpListener,
    /// A Unix socket.
    pub unix: Option<UnixListener>,
    /// Who is trusted.
    pub callers: Arc<Callers>,
}

/// What is known of a connection.
#[derive(Clone, Debug, Default)]
pub struct Connection {
    /// The other end.
    pub peer: Peer,
    /// Whether tokens may travel on it.
    pub takes_bearer: bool,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
}

/// A connection that was accepted.
pub(super) struct Accepted {
    stream: Stream,
    connection: Connection,
}

impl Listeners {
    /// Accepts until the stream is dropped.
    pub(super) fn accept(self, bearer_in_plaintext: bool) -> ReceiverStream<io::Result<Accepted>> {
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(accept_tcp(self.tcp, self.callers, bearer_in_plaintext, sender.clone()));
        if let Some(unix) = self.unix {
            tokio::spawn(accept_unix(unix, sender));
        }
        ReceiverStream::new(receiver)
    }
}

type Sender = mpsc::Sender<io::Result<Accepted>>;

async fn accept_tcp(listener: TcpListener, callers: Arc<Callers>, bearer_in_plaintext: bool, sender: Sender) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = sender.closed() => return,
        };
        let Ok((stream, address)) = accepted else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        // Without it, trailers wait for the acknowledgement of the message: 40 ms a call. A socket that refuses it works all the same.
        let _slower = stream.set_nodelay(true);
        let peer = Peer { address: Some(address), ..Peer::default() };
        let Some(config) = callers.trust().server.clone() else {
            let connection = Connection { peer, takes_bearer: bearer_in_plaintext };
            if sender.send(Ok(Accepted { stream: Stream::Plain(stream), connection })).await.is_err() {
                return;
            }
            continue;
        };
        // The semaphore is never closed.
        let permit = Arc::clone(&handshakes).acquire_owned().await;
        let sender = sender.clone();
        tokio::spawn(async move {
            let shaken = tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(config).accept(stream)).await;
            drop(permit);
            let Ok(Ok(stream)) = shaken else {
                tracing::debug!(name: "tls.handshake_failed", peer = %address.ip());
                return;
            };
            let peer = match stream.get_ref().1.peer_certificates().map(Svid::read) {
                Some(Ok(svid)) => Peer { svid: Some(Arc::new(svid)), ..peer },
                Some(Err(fault)) => Peer { fault: Some(fault), ..peer },
                None => peer,
            };
            let connection = Connection { peer, takes_bearer: true };
            // A server that has stopped takes no more connections.
            let _stopped = sender.send(Ok(Accepted { stream: Stream::Tls(Box::new(stream)), connection })).await;
        });
    }
}

async fn accept_unix(listener: UnixListener, sender: Sender) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = sender.closed() => return,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let user = stream.peer_cred().map(|credentials| credentials.uid()).ok();
        let connection = Connection { peer: Peer { user, ..Peer::default() }, takes_bearer: true };
        if sender.send(Ok(Accepted { stream: Stream::Unix(stream), connection })).await.is_err() {
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
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_read(context, buffer),
            Stream::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_write(context, bytes),
            Stream::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(context),
            Stream::Unix(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(context),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(context, slices),
            Stream::Unix(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
            Stream::Unix(stream) => stream.is_write_vectored(),
        }
    }
}
