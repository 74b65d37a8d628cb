//! `POST /events`: receives security events from transmitters (RFC 8935) on a separate listener, over TLS
//! with the server's certificate. A 202 without a body means that the event was accepted or is a duplicate.

use std::future::Future;
use std::io;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use tokio::net::TcpListener;

use crate::caller::Callers;
use crate::connections::Bounds;
use crate::connections::handshakes::{Handshakes, Remote};
use crate::jose::TokenFault;
use crate::model::refusal::Refusal;
use crate::pdp::Pdp;
use crate::pdp::refused::run_to_completion;

/// Maximum size of an event, in bytes.
const EVENT_MAX: usize = 64 * 1024;
/// Serves until `shutdown` resolves.
///
/// # Errors
/// If the listener fails.
pub async fn serve(
    pdp: Arc<Pdp>,
    listener: TcpListener,
    callers: Arc<Callers>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    // Only development mode runs without a certificate.
    let connections = Handshakes::start(listener, Bounds::of_port(), move || callers.trust().events.clone())?;
    let routes = Router::new().route("/events", post(take)).layer(DefaultBodyLimit::max(EVENT_MAX)).with_state(pdp);
    axum::serve(connections, routes.into_make_service_with_connect_info::<Remote>())
        .with_graceful_shutdown(shutdown)
        .await
}

async fn take(
    State(pdp): State<Arc<Pdp>>,
    ConnectInfo(Remote { address, .. }): ConnectInfo<Remote>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
    let token = match std::str::from_utf8(&body) {
        Ok(token) if kind.eq_ignore_ascii_case("application/secevent+jwt") => token.trim().to_owned(),
        Ok(_) | Err(_) => {
            return refused(
                "invalid_request",
                "the body must be a single token with content type `application/secevent+jwt`",
            );
        }
    };
    match run_to_completion(async move { pdp.take_event(address, &token).await }).await {
        Ok(()) => StatusCode::ACCEPTED.into_response(),
        Err(refused) => answer(refused.refusal()),
    }
}

/// Maps a refusal to a response (RFC 8935, section 2.4): 400 with a code if the transmitter must not send the
/// event again, 503 if it should.
fn answer(refusal: &Refusal) -> Response {
    match refusal {
        Refusal::Unauthenticated(words) => refused(code(words), words),
        Refusal::Forbidden(words) => refused("access_denied", words),
        Refusal::Invalid { field, problem, .. } => refused("invalid_request", &format!("`{field}` {problem}")),
        Refusal::NotFound | Refusal::Precondition(_) => refused("invalid_request", "the event can't be accepted"),
        Refusal::Deadline | Refusal::Exhausted(_) | Refusal::Unavailable(_) => {
            StatusCode::SERVICE_UNAVAILABLE.into_response()
        }
    }
}

/// Returns the RFC 8935 error code for the message of a token fault.
fn code(words: &str) -> &'static str {
    let is = |faults: &[TokenFault]| faults.iter().any(|fault| fault.message() == words);
    if is(&[TokenFault::Audience]) {
        return "invalid_audience";
    }
    if is(&[TokenFault::Issuer]) {
        return "invalid_issuer";
    }
    if is(&[TokenFault::Algorithm, TokenFault::Key, TokenFault::Revoked, TokenFault::Signature]) {
        return "invalid_key";
    }
    let claims = TokenFault::NAMED_CLAIMS.map(TokenFault::Claims);
    if is(&[TokenFault::Header, TokenFault::Malformed, TokenFault::Type]) || is(&claims) {
        return "invalid_request";
    }
    "authentication_failed"
}

fn refused(code: &str, words: &str) -> Response {
    let text = crate::json::canonical(&crate::json::object([("description", words.into()), ("err", code.into())]));
    (StatusCode::BAD_REQUEST, [(header::CONTENT_TYPE, "application/json"), (header::CONTENT_LANGUAGE, "en-US")], text)
        .into_response()
}
