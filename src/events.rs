//! `POST /events`: security events pushed by transmitters (RFC 8935), on a listener of its own that speaks TLS with the server's
//! certificate. 202 and nothing: it was taken, or known before.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use crate::caller::Callers;
use crate::connections::{Bounded, Bounds, Connections};
use crate::jose::TokenFault;
use crate::model::refusal::Refusal;
use crate::pdp::{Pdp, to_its_end};

/// The largest event, in bytes.
const EVENT_MAX: usize = 64 * 1024;
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Pause after `accept` failed, so that a lack of descriptors causes no busy loop.
const PAUSE: Duration = Duration::from_millis(50);

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

type Shaken = (Box<dyn Io>, SocketAddr);

/// Connections whose handshake is done.
struct Handshakes {
    shaken: mpsc::Receiver<Shaken>,
    address: SocketAddr,
}

/// Who is at the other end.
#[derive(Clone, Copy, Debug)]
struct From(SocketAddr);

impl axum::extract::connect_info::Connected<axum::serve::IncomingStream<'_, Handshakes>> for From {
    fn connect_info(stream: axum::serve::IncomingStream<'_, Handshakes>) -> Self {
        Self(*stream.remote_addr())
    }
}

impl Listener for Handshakes {
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
    let connections = Handshakes { shaken, address: listener.local_addr()? };
    let accepting = tokio::spawn(accept(listener, callers, sender));
    let routes = Router::new().route("/events", post(take)).layer(DefaultBodyLimit::max(EVENT_MAX)).with_state(pdp);
    let served = axum::serve(connections, routes.into_make_service_with_connect_info::<From>()).with_graceful_shutdown(shutdown).await;
    accepting.abort();
    served
}

async fn accept(listener: TcpListener, callers: Arc<Callers>, sender: mpsc::Sender<Shaken>) {
    // Who is slow, or too many, makes room for the next: transmitters try again.
    let connections = Connections::new(Bounds::of_port());
    loop {
        let Ok((stream, address)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let sender = sender.clone();
        let Some(mut place) = connections.admit() else { continue };
        // In development mode alone there is no certificate.
        let Some(config) = callers.trust().events.clone() else {
            let _stopped = sender.send((Box::new(Bounded::new(stream, place)), address)).await;
            continue;
        };
        tokio::spawn(async move {
            let shaking = tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(config).accept(stream));
            if let Some(Ok(Ok(stream))) = place.unless_closed(shaking).await {
                let _stopped = sender.send((Box::new(Bounded::new(stream, place)), address)).await;
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
