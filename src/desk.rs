//! The approval desk: web pages on a listener of their own, where humans review requests for approval, search decisions, and set
//! and lift kill switches. Pages are rendered here and work without JavaScript; a small script keeps the inbox up to date.
//!
//! A human signs in at an OpenID provider ([`oidc`]) or, in development mode, by a link that works once. The session is a cookie
//! that only this deployment can make (`session.rs`). Each action is a call of the PDP as this human, so Cedar decides about it as
//! about a call over gRPC.

mod attempts;
mod bundle;
mod decisions;
mod draft;
mod inbox;
mod login;
mod notify;
pub mod oidc;
mod page;
mod request;
mod session;
mod stops;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit, FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::net::TcpListener;

use crate::caller::{Callers, Peer};
use crate::connections::handshakes::{Handshakes, Remote};
use crate::connections::{Bounds, Handle};
use crate::desk::login::Login;
pub use crate::desk::notify::Webhook;
pub use crate::desk::oidc::Provider;
use crate::desk::session::{Session, Sessions};
use crate::model::refusal::Refusal;
use crate::pdp::Pdp;
use crate::pdp::origin::{Origin, Purpose};
use crate::pdp::refused::Refused;
use crate::telemetry::spans::Trace;

/// Maximum size of a form, in bytes: a reason and suggested arguments.
const FORM_MAX: usize = 64 * 1024;
/// Maximum time for which a connection may have no request.
const AGE: Duration = Duration::from_secs(600);
/// Time within which a request must be read and answered; the stream of changes has begun by then.
const ANSWER: Duration = Duration::from_secs(60);
/// Maximum age of a connection without a request of a signed-in human.
const UNKNOWN_AGE: Duration = Duration::from_secs(60);

const STYLE: &str = include_str!("desk/assets/desk.css");
const SCRIPT: &str = include_str!("desk/assets/desk.js");

/// Settings of the desk.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of the deployment, which every page shows.
    pub environment: String,
    /// URL under which browsers reach the desk.
    pub url: String,
    /// Provider at which humans sign in. Without one they use a link that works once, which only a development server makes.
    pub provider: Option<Provider>,
    /// File of that link.
    pub link: PathBuf,
    /// Time after which a human must sign in again.
    pub session: Duration,
    /// Receivers of events about requests.
    pub webhooks: Vec<Webhook>,
    /// URL of a trace, with `{trace_id}`; empty without a trace viewer.
    pub trace_url: String,
    /// URL of a case in the system of tickets, with `{case}`; empty without one.
    pub case_url: String,
}

/// State that the handlers share.
#[derive(Debug)]
struct Desk {
    pdp: Arc<Pdp>,
    options: Options,
    sessions: Sessions,
    login: Login,
}

impl Desk {
    /// Returns the origin of a request that a signed-in human makes.
    fn origin(address: SocketAddr, session: &Session) -> Origin {
        let peer = Peer { address: Some(address), human: Some(Arc::new(session.human())), ..Peer::default() };
        Origin { peer, trace: Trace::default(), purpose: Purpose::Authorize, waits: false }
    }
}

/// A signed-in human and her request.
struct Human {
    session: Session,
    origin: Origin,
    /// The connection of the request.
    connection: Option<Handle>,
}

impl FromRequestParts<Arc<Desk>> for Human {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, desk: &Arc<Desk>) -> Result<Self, Response> {
        let to = parts.uri.path_and_query().map_or("/", |to| to.as_str()).to_owned();
        let ConnectInfo(Remote { address, connection }) =
            ConnectInfo::from_request_parts(parts, desk).await.map_err(IntoResponse::into_response)?;
        let now = desk.pdp.moment().now;
        match desk.sessions.read(&parts.headers, now) {
            Some(session) => {
                // The connections of strangers can't close a known one, and those of one human only her own.
                let is_hers = |connection: &Handle| connection.standing.is_known() || connection.prove(&session.human);
                if !connection.as_ref().is_none_or(is_hers) {
                    return Err(page::failure(
                        StatusCode::TOO_MANY_REQUESTS,
                        "Too many connections",
                        "You have too many connections. Close some pages and try again.",
                    ));
                }
                Ok(Self { origin: Desk::origin(address, &session), session, connection })
            }
            None if parts.method == axum::http::Method::GET => Err(login::ask(desk, &to)),
            None => Err(page::failure(
                StatusCode::UNAUTHORIZED,
                "You are not signed in",
                "Your session has ended. Nothing was changed. Sign in and try again.",
            )),
        }
    }
}

/// The pages, before they are served.
#[derive(Debug)]
pub struct Pages {
    router: Router,
    pdp: Arc<Pdp>,
    webhooks: Vec<Webhook>,
    url: String,
}

/// Makes the pages, and on a development server the first link that signs a human in.
///
/// # Errors
/// If the link can't be written.
pub fn pages(pdp: Arc<Pdp>, options: Options) -> io::Result<Pages> {
    let (webhooks, url) = (options.webhooks.clone(), options.url.clone());
    let sessions = Sessions::new(&pdp.derived_key("desk session"), &options);
    let login = Login::new(&pdp, &options)?;
    let router = routes(Arc::new(Desk { pdp: Arc::clone(&pdp), options, sessions, login }));
    Ok(Pages { router, pdp, webhooks, url })
}

/// Serves pages until `shutdown` resolves.
///
/// # Errors
/// If the listener fails.
pub async fn serve(
    pages: Pages,
    listener: TcpListener,
    callers: Arc<Callers>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let bounds = Bounds { all: 512, unknown: 256, idle: AGE, unknown_age: UNKNOWN_AGE };
    let connections = Handshakes::start(listener, bounds, move || callers.trust().events.clone())?;
    let service = pages.router.into_make_service_with_connect_info::<Remote>();
    let notifying = tokio::spawn(notify::run(pages.pdp, pages.webhooks, pages.url));
    let served = axum::serve(connections, service).with_graceful_shutdown(shutdown).await;
    notifying.abort();
    served
}

fn routes(desk: Arc<Desk>) -> Router {
    Router::new()
        .route("/", get(inbox::show))
        .route("/changes", get(inbox::changes))
        .route("/requests/{id}", get(request::show).post(request::review))
        .route("/decisions", get(decisions::search))
        .route("/decisions/{evaluation}", get(decisions::show))
        .route("/decisions/{evaluation}/proof", get(decisions::proof))
        .route("/cases/{case}", get(decisions::case))
        .route("/bundle", get(bundle::show))
        .route("/stops", get(stops::show).post(stops::set))
        .route("/stops/lift", post(stops::lift))
        .route("/login", get(login::begin))
        .route("/login/{code}", get(login::choose).post(login::use_link))
        .route("/callback", get(login::callback))
        .route("/logout", post(login::logout))
        .route("/desk.css", get(|| asset("text/css; charset=utf-8", STYLE)))
        .route("/desk.js", get(|| asset("text/javascript; charset=utf-8", SCRIPT)))
        .fallback(|| async { page::failure(StatusCode::NOT_FOUND, "There is no such page", "Check the address.") })
        .layer(DefaultBodyLimit::max(FORM_MAX))
        .layer(middleware::from_fn_with_state(Arc::clone(&desk), guard))
        .with_state(desk)
}

async fn asset(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// Headers of every answer. Nothing may be loaded, framed or submitted elsewhere.
const HEADERS: [(HeaderName, &str); 7] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; form-action 'self'; \
         frame-ancestors 'none'; base-uri 'none'",
    ),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "same-origin"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("permissions-policy"), "camera=(), geolocation=(), microphone=()"),
];

/// Refuses what a page of another origin submits, and adds the headers of every answer.
async fn guard(State(desk): State<Arc<Desk>>, request: axum::extract::Request, next: Next) -> Response {
    // A human's connection with a request is not closed to make room for others.
    let remote = request.extensions().get::<ConnectInfo<Remote>>();
    let _in_flight = remote.and_then(|remote| remote.0.connection.as_ref()).map(|open| open.standing.begin());
    let is_safe = request.method().is_safe();
    let mut response = if is_safe || is_own(request.headers()) {
        let late = || page::failure(StatusCode::REQUEST_TIMEOUT, "This took too long", "Try again.");
        tokio::time::timeout(ANSWER, next.run(request)).await.unwrap_or_else(|_late| late())
    } else {
        page::failure(
            StatusCode::FORBIDDEN,
            "This was sent by another page",
            "Nothing was changed. Open the desk yourself and try again.",
        )
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    if desk.options.url.starts_with("https://") {
        let value = HeaderValue::from_static("max-age=31536000");
        response.headers_mut().insert(header::STRICT_TRANSPORT_SECURITY, value);
    }
    response
}

/// Returns whether a page of the desk submitted a form. Browsers send `Origin` with each one.
fn is_own(headers: &HeaderMap) -> bool {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let origin = text(header::ORIGIN).and_then(|origin| origin.split_once("://")).map(|(_, host)| host);
    origin.is_some() && origin == text(header::HOST)
}

/// Turns a refusal into a page that says what it means for the reader.
fn refused(refused: &Refused) -> Response {
    let (status, title, text) = match refused.refusal() {
        Refusal::Forbidden(why) => (StatusCode::FORBIDDEN, "You may not do this", (*why).to_owned()),
        Refusal::Unauthenticated(why) => (StatusCode::UNAUTHORIZED, "You are not signed in", (*why).to_owned()),
        Refusal::Precondition(why) => (StatusCode::CONFLICT, "This is no longer possible", (*why).to_owned()),
        Refusal::NotFound => (
            StatusCode::NOT_FOUND,
            "This does not exist, or you may not see it",
            "Check the address, or ask who sent it to you.".to_owned(),
        ),
        Refusal::Exhausted(why) => (StatusCode::TOO_MANY_REQUESTS, "Too much at once", (*why).to_owned()),
        Refusal::Deadline => (
            StatusCode::SERVICE_UNAVAILABLE,
            "The server can't answer now",
            "It took too long. Try again in a moment.".to_owned(),
        ),
        Refusal::Invalid { field, problem, .. } => {
            (StatusCode::BAD_REQUEST, "This can't be used", format!("{field}: {problem}"))
        }
        Refusal::Unavailable(why) => {
            (StatusCode::SERVICE_UNAVAILABLE, "The server can't answer now", format!("{why}. Try again in a moment."))
        }
    };
    page::failure(status, title, &text)
}
