//! What stands before every method: a server span, bounds of load and time, no panic on the wire, and a count of what no method
//! ever saw.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures_util::FutureExt;
use http::{Request, Response};
use http_body::Frame;
use opentelemetry::context::FutureExt as _;
use tokio::sync::Semaphore;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::Service;

use crate::api::Options;
use crate::api::listen::Connection;
use crate::caller::Peer;
use crate::clock::Stopwatch;
use crate::pdp::Pdp;
use crate::pdp::authorize::{Origin, Purpose};
use crate::telemetry::spans::Trace;

/// Every method of ours, as it may stand in spans and metrics.
pub const METHODS: [&str; 17] = [
    "countersign.v1.AdminService/ExplainDecision",
    "countersign.v1.AdminService/GetStatus",
    "countersign.v1.AdminService/ReloadBundle",
    "countersign.v1.ApprovalService/GetApproval",
    "countersign.v1.ApprovalService/ListApprovals",
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
    "countersign.v1.SignalService/ReportSignal",
];
const OTHER: &str = "_OTHER";

/// Set by a method once it has the message: from then on the pipelines record what becomes of it.
#[derive(Clone, Debug, Default)]
pub struct Seen(Arc<AtomicBool>);

impl Seen {
    /// Says that a method has the message.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Where a message came from; says that a method has it.
pub(super) fn origin<T>(request: &tonic::Request<T>, purpose: Purpose) -> Origin {
    if let Some(seen) = request.extensions().get::<Seen>() {
        seen.set();
    }
    let connection = request.extensions().get::<Connection>().cloned().unwrap_or_default();
    let bearer = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
    let bearer = bearer.and_then(|value| value.strip_prefix("Bearer ")).filter(|_| connection.takes_bearer).map(str::to_owned);
    Origin { peer: Peer { bearer, ..connection.peer }, trace: Trace::current(), purpose }
}

/// The layer.
#[derive(Clone, Debug)]
pub struct Front<S> {
    inner: S,
    pdp: Arc<Pdp>,
    options: Options,
    permits: Arc<Semaphore>,
}

impl<S> Front<S> {
    /// Puts the layer before a service.
    pub fn new(inner: S, pdp: Arc<Pdp>, options: Options, permits: Arc<Semaphore>) -> Self {
        Self { inner, pdp, options, permits }
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
        // Only the service that `poll_ready` was asked of may be called.
        let unready = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, unready);
        let path = request.uri().path().trim_start_matches('/').to_owned();
        if path.starts_with("grpc.health.") || path.starts_with("grpc.reflection.") {
            return Box::pin(inner.call(request));
        }
        let method = METHODS.into_iter().find(|method| *method == path);
        let peer = request.extensions().get::<Connection>().map(|connection| connection.peer.clone()).unwrap_or_default();
        let seen = Seen::default();
        request.extensions_mut().insert(seen.clone());
        let original = method.is_none().then_some(path.as_str());
        let trace = self.pdp.telemetry().start_rpc(method.unwrap_or(OTHER), original, request.headers(), peer.address);
        let ending = Ending {
            pdp: Arc::clone(&self.pdp),
            trace: trace.clone(),
            method: method.unwrap_or(OTHER),
            watch: Stopwatch::start(),
            done: false,
        };
        let (permits, timeout) = (Arc::clone(&self.permits), self.options.request_timeout);
        let answered = async move {
            let Ok(_permit) = permits.try_acquire() else {
                return Status::resource_exhausted("too many requests are under way").into_http();
            };
            let handled = std::panic::AssertUnwindSafe(inner.call(request)).catch_unwind();
            match tokio::time::timeout(timeout, handled).await {
                Ok(Ok(Ok(response))) => response,
                Ok(Ok(Err(never))) => match never {},
                Ok(Err(_panic)) => {
                    tracing::error!(name: "rpc.panicked", method = method.unwrap_or(OTHER));
                    Status::internal("the request could not be handled").into_http()
                }
                Err(_elapsed) => Status::deadline_exceeded("the decision was not recorded in time").into_http(),
            }
        };
        Box::pin(async move { Ok(end(answered.with_context(trace.context()).await, ending, &seen, &peer)) })
    }
}

/// Ends the span with the status in the headers, or hands it to the body to end it with the trailers.
fn end(response: Response<Body>, mut ending: Ending, seen: &Seen, peer: &Peer) -> Response<Body> {
    let Some(mut code) = response.headers().get("grpc-status").map(|value| Code::from_bytes(value.as_bytes())) else {
        return response.map(|body| Body::new(Watched { body, ending }));
    };
    let mut response = response;
    if code == Code::OutOfRange {
        // tonic's word for a message over the limit; the contract has another, and nothing of ours says this one.
        code = Code::ResourceExhausted;
        response = too_large().into_http();
    }
    // What a method has is recorded by the pipelines, but for an answer that was cut off.
    match (seen.0.load(Ordering::Relaxed), code) {
        (_, Code::Ok) => {}
        (true, Code::Internal) => ending.pdp.count_stranger(peer.host(), "internal"),
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
    /// A call that is dropped before its end was cancelled.
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// A body whose trailers end the span.
struct Watched {
    body: Body,
    ending: Ending,
}

impl http_body::Body for Watched {
    type Data = <Body as http_body::Body>::Data;
    type Error = <Body as http_body::Body>::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(status) = frame.trailers_ref().and_then(|trailers| trailers.get("grpc-status"))
        {
            this.ending.end(Code::from_bytes(status.as_bytes()));
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

/// A status by the name that the semantic conventions give it.
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

/// The contract's word for a message over the limit.
pub(super) fn too_large() -> Status {
    Status::resource_exhausted("the message is larger than 4 MiB")
}

/// Counts a request that no pipeline recorded.
pub(super) fn count(pdp: &Pdp, peer: &Peer, code: Code) {
    pdp.count_stranger(peer.host(), kind(code));
}

/// The kind under which such a request is counted in the audit log.
fn kind(code: Code) -> &'static str {
    match code {
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::OutOfRange | Code::ResourceExhausted => "resource_exhausted",
        Code::Unimplemented => "unimplemented",
        Code::Unauthenticated => "unauthenticated",
        _ => "unreadable",
    }
}
