//! The layer in front of every method. This layer opens the server span, limits unauthenticated peers,
//! enforces the request timeout, turns a panic into an error status, and counts requests that no method
//! received.

mod gate;

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use http::{Request, Response};
use http_body::Frame;
use opentelemetry::context::FutureExt as _;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::Service;

use crate::api::front::gate::{Gate, UnderWay, too_many};
use crate::api::listen::Connection;
use crate::caller::Peer;
use crate::clock::Stopwatch;
use crate::pdp::Pdp;
use crate::pdp::origin::{Origin, Purpose};
use crate::telemetry::spans::Trace;

/// Settings of the gRPC server. No load limit can be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether any peer may use reflection and health watches. Otherwise only authenticated callers may.
    pub reflects_to_all: bool,
    /// Maximum number of concurrent HTTP/2 streams on one connection.
    pub streams_per_connection: u32,
    /// Time limit of a request. A reload may take longer.
    pub request_timeout: Duration,
    /// Maximum age of a connection, and so of a stream of calls.
    pub connection_age: Duration,
    /// Whether plaintext connections may carry bearer tokens: in development mode, and behind a proxy that
    /// ends TLS.
    pub bearer_in_plaintext: bool,
}

/// Every method of the protocol, by its name in spans and metrics.
pub const METHODS: [&str; 22] = [
    "countersign.v1.AdminService/ConfirmStore",
    "countersign.v1.AdminService/EraseSubject",
    "countersign.v1.AdminService/ExplainDecision",
    "countersign.v1.AdminService/GetStatus",
    RELOAD,
    "countersign.v1.ApprovalService/GetApproval",
    "countersign.v1.ApprovalService/ListApprovals",
    "countersign.v1.ApprovalService/ReportConsent",
    "countersign.v1.ApprovalService/RequestApproval",
    "countersign.v1.ApprovalService/ReviewApproval",
    "countersign.v1.ApprovalService/RevokeApproval",
    "countersign.v1.ApprovalService/WatchApprovals",
    "countersign.v1.DecisionService/Authorize",
    "countersign.v1.DecisionService/AuthorizeBatch",
    "countersign.v1.DecisionService/AuthorizeStream",
    "countersign.v1.DecisionService/EvaluateOutput",
    "countersign.v1.DecisionService/PrepareContext",
    "countersign.v1.DecisionService/ReportOutcome",
    "countersign.v1.SignalService/ClearRisk",
    "countersign.v1.SignalService/LiftSignal",
    "countersign.v1.SignalService/ListSignals",
    "countersign.v1.SignalService/ReportSignal",
];
const OTHER: &str = "_OTHER";
const RELOAD: &str = "countersign.v1.AdminService/ReloadBundle";
/// Maximum size of a request's metadata, in bytes.
const METADATA_MAX: usize = 16 * 1024;
/// Maximum size of metadata that is read. The HTTP/2 library answers larger ones itself, with an HTTP status that gRPC
/// clients report as UNKNOWN, so this limit is above [`METADATA_MAX`].
pub(super) const METADATA_READ_MAX: u32 = 64 * 1024;
/// A bundle may have 200,000 policies.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Flag that a method sets when it has its message. From then on the pipelines record how the request ends.
#[derive(Clone, Debug, Default)]
pub struct Seen(Arc<AtomicBool>);

impl Seen {
    /// Marks the message as received by a method.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Returns what waits until the server closes the message's connection.
pub(super) fn closes<T>(request: &tonic::Request<T>) -> impl Future<Output = ()> + Send + use<T> {
    request.extensions().get::<Connection>().cloned().unwrap_or_default().standing.closes()
}

/// Returns a message's peer and trace, and marks the message as received by a method.
pub(super) fn origin<T>(request: &tonic::Request<T>, purpose: Purpose) -> Origin {
    if let Some(seen) = request.extensions().get::<Seen>() {
        seen.set();
    }
    // Without facts about its connection, a request is of an unauthenticated peer.
    let connection = request.extensions().get::<Connection>().cloned().unwrap_or_default();
    let bearer = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
    let bearer =
        bearer.and_then(|value| value.strip_prefix("Bearer ")).filter(|_| connection.takes_bearer).map(str::to_owned);
    Origin { peer: Peer { bearer, ..connection.peer }, trace: Trace::current(), purpose, waits: false }
}

/// Service wrapper that the module documentation describes.
#[derive(Clone, Debug)]
pub struct Front<S> {
    inner: S,
    gate: Gate,
}

impl<S> Front<S> {
    /// Wraps a service. `unknown` counts the requests of unauthenticated peers on all connections.
    pub fn new(inner: S, pdp: Arc<Pdp>, options: Options, unknown: Arc<AtomicUsize>) -> Self {
        Self { inner, gate: Gate { pdp, options, unknown } }
    }
}

impl<S> Service<Request<Body>> for Front<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // Only the instance that `poll_ready` was called on is ready, so call that one and keep the clone.
        let unready = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, unready);
        let gate = self.gate.clone();
        Box::pin(async move {
            let path = request.uri().path().trim_start_matches('/').to_owned();
            let connection = request.extensions().get::<Connection>().cloned().unwrap_or_default();
            let caller = with_bearer(&request, connection.peer.clone());
            let under_way = gate.admit(&connection.standing, &path, &caller).await;
            let timeout = gate.options.request_timeout;
            if path.starts_with("grpc.health.") || path.starts_with("grpc.reflection.") {
                let under_way = match gate.may_watch(&path, &caller, under_way).await {
                    Ok(under_way) => under_way,
                    Err(status) => return Ok(status.into_http()),
                };
                let late =
                    |_| Ok(Status::deadline_exceeded("the request's message did not arrive in time").into_http());
                let answered: Result<Response<Body>, Infallible> =
                    tokio::time::timeout(timeout, inner.call(request)).await.unwrap_or_else(late);
                return answered.map(|response| {
                    response.map(|body| Body::new(Watched { body, ending: None, _under_way: under_way }))
                });
            }
            let peer = connection.peer;
            let method = METHODS.into_iter().find(|method| *method == path).unwrap_or(OTHER);
            let timeout = if method == RELOAD { timeout.max(RELOAD_TIMEOUT) } else { timeout };
            let seen = Seen::default();
            request.extensions_mut().insert(seen.clone());
            let trace = gate.pdp.telemetry().start_rpc(method, request.headers(), peer.address);
            let ending = Ending { pdp: gate.pdp, trace: trace.clone(), method, watch: Stopwatch::start(), done: false };
            let Some(under_way) = under_way else { return Ok(refused(too_many(), ending, &peer)) };
            if metadata_size(request.headers()) > METADATA_MAX {
                return Ok(refused(Status::resource_exhausted("the metadata is larger than 16 KiB"), ending, &peer));
            }
            let answered =
                answered(method, timeout, async move { inner.call(request).await }).with_context(trace.context()).await;
            Ok(end(answered, ending, &seen, &peer, under_way))
        })
    }
}

/// Returns the size of a request's metadata by the measure of HTTP/2 (RFC 9113, section 6.5.2), in bytes.
fn metadata_size(headers: &http::HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum()
}

/// Runs a method within its time limit. A panic becomes an INTERNAL status.
async fn answered(
    method: &'static str,
    timeout: Duration,
    call: impl Future<Output = Result<Response<Body>, Infallible>> + Send,
) -> Response<Body> {
    match tokio::time::timeout(timeout, std::panic::AssertUnwindSafe(call).catch_unwind()).await {
        Ok(Ok(Ok(response))) => response,
        Ok(Ok(Err(never))) => match never {},
        Ok(Err(_panic)) => {
            tracing::error!(name: "rpc.panicked", method);
            Status::internal("the request could not be handled").into_http()
        }
        Err(_elapsed) => Status::deadline_exceeded("the decision was not recorded in time").into_http(),
    }
}

/// Adds the request's bearer token to the peer if the connection accepts bearer tokens.
fn with_bearer(request: &Request<Body>, peer: Peer) -> Peer {
    let takes_bearer = request.extensions().get::<Connection>().is_some_and(|connection| connection.takes_bearer);
    let bearer = request.headers().get("authorization").and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    Peer { bearer: bearer.filter(|_| takes_bearer).map(str::to_owned), ..peer }
}

/// Ends a request that is refused before a method receives it.
fn refused(status: Status, mut ending: Ending, peer: &Peer) -> Response<Body> {
    count(&ending.pdp, peer, status.code());
    ending.end(status.code());
    status.into_http()
}

/// Ends the span with the status in the headers. Without a status there, the trailers of the body end the
/// span.
fn end(response: Response<Body>, mut ending: Ending, seen: &Seen, peer: &Peer, under_way: UnderWay) -> Response<Body> {
    let Some(mut code) = response.headers().get("grpc-status").map(|value| Code::from_bytes(value.as_bytes())) else {
        return response.map(|body| Body::new(Watched { body, ending: Some(ending), _under_way: under_way }));
    };
    let mut response = response;
    match (seen.0.load(Ordering::Relaxed), code) {
        // tonic returns OUT_OF_RANGE for a message over the size limit. The protocol documents another code,
        // and no handler returns this one.
        (_, Code::OutOfRange) => (code, response) = (Code::ResourceExhausted, too_large().into_http()),
        // tonic returns INTERNAL for a message that it can't decode. If no method received a message, the
        // request is at fault.
        (false, Code::Internal) => (code, response) = (Code::InvalidArgument, undecodable().into_http()),
        _ => {}
    }
    // The pipelines record what a method received, except for an answer that a timeout or panic cut off.
    match (seen.0.load(Ordering::Relaxed), code) {
        (_, Code::Ok) => {}
        (true, Code::Internal) => ending.pdp.count_unauthenticated(peer.host(), "internal"),
        (true, Code::DeadlineExceeded) | (false, _) => count(&ending.pdp, peer, code),
        (true, _) => {}
    }
    ending.end(code);
    response
}

struct Ending {
    pdp: Arc<Pdp>,
    trace: Trace,
    method: &'static str,
    watch: Stopwatch,
    done: bool,
}

impl Ending {
    fn end(&mut self, code: Code) {
        if !std::mem::replace(&mut self.done, true) {
            let status = name(code);
            self.pdp.telemetry().metrics.rpc(self.method, status, self.watch.elapsed());
            self.pdp.telemetry().end_rpc(&self.trace, status);
        }
    }
}

impl Drop for Ending {
    /// Ends the span as CANCELLED if the call is dropped before its end.
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// Response body whose trailers end the span.
struct Watched {
    body: Body,
    /// `None` for health and reflection, which have no span.
    ending: Option<Ending>,
    _under_way: UnderWay,
}

impl http_body::Body for Watched {
    type Data = <Body as http_body::Body>::Data;
    type Error = <Body as http_body::Body>::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(status) = frame.trailers_ref().and_then(|trailers| trailers.get("grpc-status"))
            && let Some(ending) = &mut this.ending
        {
            ending.end(Code::from_bytes(status.as_bytes()));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// Returns the name of a status code in the semantic conventions.
pub(super) fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Status for a message over the size limit: RESOURCE_EXHAUSTED.
pub(super) fn too_large() -> Status {
    Status::resource_exhausted("the message is larger than 4 MiB")
}

/// Status for a message that can't be decoded: INVALID_ARGUMENT.
pub(super) fn undecodable() -> Status {
    Status::invalid_argument("the message can't be decoded: it is not of this method's type")
}

/// Counts a request that no pipeline recorded.
pub(super) fn count(pdp: &Pdp, peer: &Peer, code: Code) {
    pdp.count_unauthenticated(peer.host(), kind(code));
}

/// Returns the kind under which the audit log counts a request that no pipeline recorded.
fn kind(code: Code) -> &'static str {
    match code {
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::OutOfRange | Code::ResourceExhausted => "resource_exhausted",
        Code::Unimplemented => "unimplemented",
        Code::Unauthenticated => "unauthenticated",
        _ => "unreadable",
    }
}
