//! `POST /events`: security events pushed by transmitters (RFC 8935), on a listener of its own that speaks TLS with the server's
//! certificate. 202 and nothing: it was taken, or known before.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;

use crate::caller::Callers;
use crate::jose::TokenFault;
use crate::model::refusal::Refusal;
use crate::pdp::{Pdp, to_its_end};

/// The largest event, in bytes.
const EVENT_MAX: usize = 64 * 1024;
/// Connections at once, how long a handshake may take, and how long a connection may last: whoever is slow is cut off.
const CONNECTIONS_MAX: usize = 256;
const HANDSHAKE: Duration = Duration::from_secs(5);
const CONNECTION: Duration = Duration::from_secs(30);
/// How long to wait after the operating system gave no connection.
const PAUSE: Duration = Duration::from_millis(50);

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

type Shaken = (Box<dyn Io>, SocketAddr);

/// A connection that counts among those that there may be, and ends in time.
struct Held<S> {
    stream: S,
    end: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

impl<S> Held<S> {
    fn new(stream: S, permit: OwnedSemaphorePermit) -> Self {
        Self { stream, end: Box::pin(tokio::time::sleep(CONNECTION)), _permit: permit }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Held<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.end.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Held<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.end.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Connections whose handshake is done.
struct Connections {
    shaken: mpsc::Receiver<Shaken>,
    address: SocketAddr,
}

/// Who is at the other end.
#[derive(Clone, Copy, Debug)]
struct From(SocketAddr);

impl axum::extract::connect_info::Connected<axum::serve::IncomingStream<'_, Connections>> for From {
    fn connect_info(stream: axum::serve::IncomingStream<'_, Connections>) -> Self {
        Self(*stream.remote_addr())
    }
}

impl Listener for Connections {
    type Io = Box<dyn Io>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> Shaken {
        match self.shaken.recv().await {
            Some(shaken) => shaken,
            // The server ends.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// Serves until `shutdown` resolves.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    pdp: Arc<Pdp>,
    listener: TcpListener,
    callers: Arc<Callers>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let (sender, shaken) = mpsc::channel(16);
    let connections = Connections { shaken, address: listener.local_addr()? };
    let accepting = tokio::spawn(accept(listener, callers, sender));
    let routes = Router::new().route("/events", post(take)).layer(DefaultBodyLimit::max(EVENT_MAX)).with_state(pdp);
    let served = axum::serve(connections, routes.into_make_service_with_connect_info::<From>()).with_graceful_shutdown(shutdown).await;
    accepting.abort();
    served
}

async fn accept(listener: TcpListener, callers: Arc<Callers>, sender: mpsc::Sender<Shaken>) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok((stream, address)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let sender = sender.clone();
        // More than can be served are let go: transmitters try again.
        let Ok(permit) = Arc::clone(&connections).try_acquire_owned() else { continue };
        // In development mode alone there is no certificate.
        let Some(config) = callers.trust().events.clone() else {
            let _stopped = sender.send((Box::new(Held::new(stream, permit)), address)).await;
            continue;
        };
        tokio::spawn(async move {
            let shaken = tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(config).accept(stream)).await;
            if let Ok(Ok(stream)) = shaken {
                let _stopped = sender.send((Box::new(Held::new(stream, permit)), address)).await;
            }
        });
    }
}

async fn take(State(pdp): State<Arc<Pdp>>, ConnectInfo(From(address)): ConnectInfo<From>, headers: HeaderMap, body: Bytes) -> Response {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let token = match std::str::from_utf8(&body) {
        Ok(token) if kind.eq_ignore_ascii_case("application/secevent+jwt") => token.trim().to_owned(),
        Ok(_) | Err(_) => return refused("invalid_request", "the body must be one `application/secevent+jwt`"),
    };
    match to_its_end(async move { pdp.take_event(address, &token).await }).await {
        Ok(()) => StatusCode::ACCEPTED.into_response(),
        Err(refused) => answer(refused.refusal()),
    }
}

/// RFC 8935, section 2.4: what a transmitter may not send again is 400 and a code; what it should is 503.
fn answer(refusal: &Refusal) -> Response {
    match refusal {
        Refusal::Unauthenticated(words) => refused(code(words), words),
        Refusal::Forbidden(words) => refused("access_denied", words),
        Refusal::Invalid { field, problem, .. } => refused("invalid_request", &format!("`{field}` {problem}")),
        Refusal::NotFound | Refusal::Precondition(_) => refused("invalid_request", "the event can't be taken"),
        Refusal::Deadline | Refusal::Exhausted(_) | Refusal::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

/// RFC 8935's code of what is wrong with a token.
fn code(words: &str) -> &'static str {
    let is = |faults: &[TokenFault]| faults.iter().any(|fault| fault.words() == words);
    if is(&[TokenFault::Audience]) {
        return "invalid_audience";
    }
    if is(&[TokenFault::Issuer]) {
        return "invalid_issuer";
    }
    if is(&[TokenFault::Algorithm, TokenFault::Key, TokenFault::Revoked, TokenFault::Signature]) {
        return "invalid_key";
    }
    if is(&[TokenFault::Claims, TokenFault::Header, TokenFault::Malformed, TokenFault::Type]) {
        return "invalid_request";
    }
    "authentication_failed"
}

fn refused(code: &str, words: &str) -> Response {
    let text = crate::json::canonical(&crate::json::object([("description", words.into()), ("err", code.into())]));
    (StatusCode::BAD_REQUEST, [(header::CONTENT_TYPE, "application/json"), (header::CONTENT_LANGUAGE, "en-US")], text).into_response()
}
