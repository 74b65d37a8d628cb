//! Sign-in: at an OpenID provider, or by a link that works once. Only a development server makes such links, in a file that no other user can
//! read.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{ConnectInfo, Form, Path as Segment, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use maud::html;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::clock::Seldom;
use crate::connections::handshakes::Remote;
use crate::desk::attempts::Attempts;
use crate::desk::oidc::{Client, Faulty};
use crate::desk::session::cookie;
use crate::desk::{Desk, Human, Options, page};
use crate::entropy::{Entropy, SystemEntropy, nonce};
use crate::jose;
use crate::jose::mac::MacKey;
use crate::model::chain;
use crate::pdp::Pdp;

/// Cookie of a sign-in that the provider has not answered yet; over TLS with the prefix that keeps other hosts from setting it.
const PENDING: &str = "countersign-sign-in";
const PENDING_SECURE: &str = "__Host-countersign-sign-in";
/// Time for which a provider may take to answer.
const PATIENCE: Duration = Duration::from_secs(600);
/// Number of sign-ins that are finished at the provider at the same time.
const FINISHING_MAX: usize = 32;
/// Issuer of humans that signed in by a link.
const LINK_ISSUER: &str = "countersign:dev-token";

/// The way in which humans sign in.
#[derive(Debug)]
pub(super) struct Login {
    client: Option<Client>,
    /// Code of the link that has not been used.
    code: Mutex<Option<String>>,
    pending: MacKey,
    failed_logged: Seldom,
    attempts: Attempts,
    /// Sign-ins that are being finished at the provider.
    finishing: Semaphore,
}

/// Contents of the cookie that the browser keeps while a human is at the provider.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pending {
    state: String,
    nonce: String,
    verifier: String,
    to: String,
    expires: i64,
}

/// Returns the name of the cookie of a sign-in.
fn pending_name(desk: &Desk) -> &'static str {
    if desk.options.url.starts_with("https://") { PENDING_SECURE } else { PENDING }
}

impl Login {
    pub(super) fn new(pdp: &Pdp, options: &Options) -> io::Result<Self> {
        let login = Self {
            client: options.provider.clone().map(|provider| Client::new(provider, &options.url)),
            code: Mutex::default(),
            pending: MacKey::new(&pdp.derived_key("desk sign-in")),
            failed_logged: Seldom::default(),
            attempts: Attempts::default(),
            finishing: Semaphore::new(FINISHING_MAX),
        };
        if options.provider.is_none() {
            login.renew(options)?;
        }
        Ok(login)
    }

    /// Writes a new link to the file.
    fn renew(&self, options: &Options) -> io::Result<()> {
        let code = nonce(&SystemEntropy as &dyn Entropy).map_err(io::Error::other)?;
        write(&options.link, &format!("{}/login/{code}\n", options.url))?;
        *self.code() = Some(code);
        Ok(())
    }

    fn code(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.code.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn knows(&self, code: &str) -> bool {
        self.code().as_ref().is_some_and(|known| jose::same(known, code))
    }
}

/// Writes a file that only its user can read.
fn write(path: &Path, text: &str) -> io::Result<()> {
    use io::Write as _;
    let new = path.with_extension("new");
    let _stale = std::fs::remove_file(&new);
    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?.write_all(text.as_bytes())?;
    std::fs::rename(new, path)
}

/// Returns where a human may be sent after signing in: a page of the desk.
fn local(to: &str) -> &str {
    let is_local = to.starts_with('/') && !to.starts_with("//") && !to.contains(['\\', '\r', '\n']);
    if is_local { to } else { "/" }
}

/// Answers a request without a session that would show a page.
pub(super) fn ask(desk: &Desk, to: &str) -> Response {
    if desk.login.client.is_some() {
        let query = form_urlencoded(&[("to", local(to))]);
        return Redirect::to(&format!("/login?{query}")).into_response();
    }
    page::failure(
        StatusCode::UNAUTHORIZED,
        "You are not signed in",
        &format!("Open the link in the file {}. It works once; then a new one is there.", desk.options.link.display()),
    )
}

fn form_urlencoded(pairs: &[(&str, &str)]) -> String {
    let mut query = oauth2::url::form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(pairs);
    query.finish()
}

#[derive(Debug, Deserialize)]
pub(super) struct Begin {
    #[serde(default)]
    to: String,
    /// Strength of authentication that is asked for.
    #[serde(default)]
    acr: String,
}

/// Sends a human to the provider.
pub(super) async fn begin(State(desk): State<Arc<Desk>>, Query(asked): Query<Begin>) -> Response {
    let Some(client) = &desk.login.client else { return ask(&desk, "/") };
    let random = || nonce(&SystemEntropy as &dyn Entropy);
    let (Ok(state), Ok(own)) = (random(), random()) else { return page::unavailable("no random numbers") };
    let now = desk.pdp.moment().now;
    let begun = match client.begin(&state, &own, &asked.acr).await {
        Ok(begun) => begun,
        Err(faulty) => return provider_failed(&desk, &faulty),
    };
    let expires = now.plus(PATIENCE).seconds();
    let to = local(&asked.to).to_owned();
    let Ok(sealed) = desk.login.pending.seal(&Pending { state, nonce: own, verifier: begun.verifier, to, expires })
    else {
        return page::unavailable("the sign-in can't be begun");
    };
    let cookie = desk.sessions.cookie(pending_name(&desk), &sealed, PATIENCE);
    ([(header::SET_COOKIE, cookie)], Redirect::to(begun.url.as_str())).into_response()
}

fn provider_failed(desk: &Desk, faulty: &Faulty) -> Response {
    if desk.login.failed_logged.is_due(desk.pdp.moment().now) {
        tracing::warn!(name: "desk.sign_in_failed", error = %faulty, "further ones of this second are not logged");
    }
    page::failure(StatusCode::BAD_GATEWAY, "You could not be signed in", &format!("{faulty}. Try again."))
}

#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    #[serde(default)]
    code: String,
    #[serde(default)]
    state: String,
    #[serde(default)]
    error: String,
}

/// Takes the provider's answer.
pub(super) async fn callback(
    State(desk): State<Arc<Desk>>,
    ConnectInfo(Remote { address, .. }): ConnectInfo<Remote>,
    headers: HeaderMap,
    Query(answer): Query<Answer>,
) -> Response {
    let now = desk.pdp.moment().now;
    let stale = || {
        page::failure(
            StatusCode::BAD_REQUEST,
            "You could not be signed in",
            "This answer belongs to no sign-in of this browser, or came too late. Sign in again.",
        )
    };
    let (Some(client), Some(sealed)) = (&desk.login.client, cookie(&headers, pending_name(&desk))) else {
        return stale();
    };
    let Ok(pending) = desk.login.pending.open::<Pending>(sealed) else { return stale() };
    if pending.state != answer.state || pending.expires <= now.seconds() {
        return stale();
    }
    if !answer.error.is_empty() || answer.code.is_empty() {
        return page::failure(
            StatusCode::UNAUTHORIZED,
            "You could not be signed in",
            "The provider refused to sign you in. Ask who runs it.",
        );
    }
    // Anybody can begin a sign-in and make up its answer, which costs the provider a request.
    let turn = desk.login.finishing.try_acquire().ok();
    let Some(_turn) = turn.filter(|_| desk.login.attempts.take(address.ip(), now)) else {
        return page::failure(
            StatusCode::TOO_MANY_REQUESTS,
            "Too many sign-ins",
            "Too many people sign in from here at the moment. Wait a few seconds and sign in again.",
        );
    };
    let human = match client.finish(&answer.code, pending.verifier, &pending.nonce, now).await {
        Ok(human) => human,
        Err(faulty) => return provider_failed(&desk, &faulty),
    };
    signed_in(&desk, &human, local(&pending.to))
}

/// Begins a session, and removes the cookie of the sign-in, so that its answer counts once.
fn signed_in(desk: &Desk, human: &chain::Human, to: &str) -> Response {
    let Ok(session) = desk.sessions.begin(human, desk.pdp.moment().now) else {
        return page::unavailable("no random numbers");
    };
    tracing::info!(name: "desk.signed_in", human = human.id, issuer = human.issuer);
    let mut response = Redirect::to(to).into_response();
    for cookie in [session, desk.sessions.cookie(pending_name(desk), "", Duration::ZERO)] {
        if let Ok(cookie) = cookie.parse() {
            response.headers_mut().append(header::SET_COOKIE, cookie);
        }
    }
    response
}

/// Shows whom a link may sign in.
pub(super) async fn choose(State(desk): State<Arc<Desk>>, Segment(code): Segment<String>) -> Response {
    if !desk.login.knows(&code) {
        return used(&desk);
    }
    let moment = desk.pdp.moment();
    let bundle = &moment.snapshot.bundle;
    let supervisor = bundle.roles.as_ref().map_or("", |roles| roles.supervisor.as_str());
    let mut humans: Vec<&str> = bundle.policies.ids(supervisor).collect();
    humans.sort_unstable();
    let body = html! {
        p { "This is a development server. Choose who you are; the link works once." }
        form method="post" class="panel" {
            label for="human" { "Sign in as" }
            select id="human" name="human" required {
                @for human in humans { option value=(human) { (human) } }
            }
            button type="submit" { "Sign in" }
        }
    };
    page::of_nobody(&desk, "Sign in", &body)
}

fn used(desk: &Desk) -> Response {
    page::failure(
        StatusCode::NOT_FOUND,
        "This link does not work",
        &format!("It was used before. The file {} has a new one.", desk.options.link.display()),
    )
}

#[derive(Debug, Deserialize)]
pub(super) struct Chosen {
    human: String,
}

/// Signs in whom a development link names, once.
pub(super) async fn use_link(
    State(desk): State<Arc<Desk>>,
    ConnectInfo(Remote { address, .. }): ConnectInfo<Remote>,
    Segment(code): Segment<String>,
    Form(chosen): Form<Chosen>,
) -> Response {
    if !is_loopback(address) || !desk.login.knows(&code) || desk.login.code().take().is_none() {
        return used(&desk);
    }
    if let Err(error) = desk.login.renew(&desk.options) {
        tracing::error!(name: "desk.no_link", error = %error, path = %desk.options.link.display(), "the next link can't be written");
    }
    let human = chain::Human {
        issuer: LINK_ISSUER.to_owned(),
        subject: chosen.human.clone(),
        person: Some(chosen.human.clone()),
        id: chosen.human,
        amr: vec!["hwk".to_owned(), "mfa".to_owned()],
        issued_at: desk.pdp.moment().now,
        ..chain::Human::default()
    };
    signed_in(&desk, &human, "/")
}

fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

#[derive(Debug, Deserialize)]
pub(super) struct Leave {
    form: String,
}

/// Ends the session.
pub(super) async fn logout(State(desk): State<Arc<Desk>>, human: Human, Form(leave): Form<Leave>) -> Response {
    if !human.session.made(&leave.form) {
        return page::stale_form();
    }
    let removed = desk.sessions.end(&human.session, desk.pdp.moment().now);
    let body = html! { p { "You are signed out. " a href="/" { "Sign in again" } } };
    ([(header::SET_COOKIE, removed)], page::of_nobody(&desk, "Signed out", &body)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_signing_in_nobody_is_sent_elsewhere() {
        for to in ["https://evil.example/", "//evil.example", "/\\evil.example", "", "javascript:alert(1)", "/a\r\nb"] {
            assert_eq!(local(to), "/", "{to}");
        }
        assert_eq!(local("/requests/apr_1?x=1"), "/requests/apr_1?x=1");
    }
}
