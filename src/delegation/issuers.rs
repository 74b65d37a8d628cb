//! Trusted issuers of tokens, and their keys. Keys come from a JWKS file, which is reloaded, or from a URL,
//! whose answer is cached.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Mutex;

use crate::jose::keyset::{BYTES_MAX, KeySet, KeySetFault};
use crate::jose::{self, Algorithm, Expected, Opened, TokenFault};
use crate::json::{Object, Value};
use crate::model::refusal::Refusal;
use crate::model::time::Timestamp;

/// Minimum interval between fetches that unknown `kid`s cause. Otherwise a flood of forged tokens would
/// become a flood of requests to the issuer.
const REFRESH: Duration = Duration::from_secs(60);
/// Age at which a fetched key set is fetched again.
const CACHED: Duration = Duration::from_secs(5 * 60);
/// Time limit of a fetch.
const FETCH: Duration = Duration::from_secs(3);

/// An issuer of the settings.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Issuer {
    /// `iss` of its tokens.
    pub issuer: String,
    /// Tenant of every token of the issuer, whatever the token claims.
    pub tenant: String,
    /// Path or `https://` URL of its JWKS.
    pub keys: String,
    /// The only algorithm that its tokens may use.
    pub algorithm: Algorithm,
    /// `typ` of its tokens.
    #[serde(default = "access_token")]
    pub typ: String,
    /// Claim that has the same value for all subjects of one person, e.g. `employee_id`. Without it, humans
    /// of the issuer can't review where four eyes are required.
    #[serde(default)]
    pub person_claim: Option<String>,
    /// Issuers of agents that its tokens may name in `act.iss`, in addition to itself.
    #[serde(default)]
    pub actor_issuers: Vec<String>,
    /// Prefix that turns the `sub` of a human, or of an agent that the issuer names as its own, into an
    /// entity id. Two issuers of one tenant must have different prefixes. Agents of `actor_issuers` get no
    /// prefix.
    #[serde(default)]
    pub subject_prefix: String,
    /// Whether delegation tokens must be bound to a certificate by `cnf`.
    #[serde(default = "yes")]
    pub bound: bool,
}

/// `typ` of security event tokens (RFC 8417).
pub const SECURITY_EVENT: &str = "secevent+jwt";

fn access_token() -> String {
    "at+jwt".to_owned()
}

fn yes() -> bool {
    true
}

impl Issuer {
    /// Returns the entity id of a human or of the issuer's own agent.
    pub fn entity_id(&self, subject: &str) -> String {
        format!("{}{subject}", self.subject_prefix)
    }

    /// Returns the person behind a subject, if the issuer has a `person_claim`.
    pub(super) fn person(&self, claims: &Object) -> Option<String> {
        let person = claims.get(self.person_claim.as_ref()?).and_then(Value::as_str)?;
        (1..=128).contains(&person.len()).then(|| person.to_owned())
    }

    /// Returns the entity id of an agent.
    pub(super) fn agent_id(&self, agent_issuer: &str, subject: &str) -> String {
        if agent_issuer == self.issuer { self.entity_id(subject) } else { subject.to_owned() }
    }

    pub(super) fn may_name_actors_of(&self, issuer: &str) -> bool {
        issuer == self.issuer || self.actor_issuers.iter().any(|named| named == issuer)
    }

    fn url(&self) -> Option<&str> {
        self.keys.starts_with("https://").then_some(self.keys.as_str())
    }
}

/// Reason why an issuer's keys can't be used.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    #[error("the key set `{0}` can't be read: {1}: see the `keys` of the issuer in the settings")]
    Unreadable(PathBuf, std::io::Error),
    #[error("the key set `{0}` {1}: see the `keys` of the issuer in the settings")]
    Faulty(PathBuf, KeySetFault),
    #[error("key sets can't be fetched: {0}")]
    Client(String),
    /// The URL of this issuer does not answer with a key set.
    #[error("the key set of `{0}` can't be fetched: tokens of this issuer would be refused")]
    NotFetched(String),
}

#[derive(Debug)]
struct Live {
    issuer: Arc<Issuer>,
    keys: ArcSwap<KeySet>,
    /// Time of the last fetch from the URL.
    asked: Mutex<Timestamp>,
}

/// All trusted issuers with their keys.
#[derive(Debug)]
pub struct Issuers {
    live: Vec<Live>,
    audience: String,
    leeway: Duration,
    client: Option<reqwest::Client>,
}

impl Issuers {
    /// Reads the key files. An issuer with a URL has no keys until [`Issuers::refresh`] fetches them. `leeway` is how
    /// far the issuers' clocks may differ from the server's.
    ///
    /// # Errors
    /// Returns an error if a key file can't be used, or the HTTP client can't be built.
    pub fn new(issuers: Vec<Issuer>, audience: String, leeway: Duration) -> Result<Self, IssuerError> {
        let client = match issuers.iter().any(|issuer| issuer.url().is_some()) {
            true => Some(client().map_err(|error| IssuerError::Client(error.to_string()))?),
            false => None,
        };
        let live: Result<Vec<Live>, IssuerError> = issuers
            .into_iter()
            .map(|issuer| {
                let keys = match issuer.url() {
                    Some(_) => KeySet::default(),
                    None => read(&issuer.keys)?,
                };
                Ok(Live { issuer: Arc::new(issuer), keys: ArcSwap::from_pointee(keys), asked: Mutex::default() })
            })
            .collect();
        Ok(Self { live: live?, audience, leeway, client })
    }

    /// Adds an issuer with keys that are already loaded: the development server's own issuer.
    pub fn add(&mut self, issuer: Issuer, keys: KeySet) {
        self.live.push(Live { issuer: Arc::new(issuer), keys: ArcSwap::from_pointee(keys), asked: Mutex::default() });
    }

    /// Returns how far the issuers' clocks may differ from the server's.
    pub fn leeway(&self) -> Duration {
        self.leeway
    }

    /// Returns whether tokens of this issuer are accepted.
    pub fn trusts(&self, issuer: &str) -> bool {
        self.live.iter().any(|live| live.issuer.issuer == issuer)
    }

    /// Returns the issuers that have no keys now.
    pub fn without_keys(&self) -> Vec<String> {
        let without = self.live.iter().filter(|live| live.keys.load().is_empty());
        without.map(|live| live.issuer.issuer.clone()).collect()
    }

    /// Reads the key files again, and fetches key sets that are older than five minutes. After a fault the
    /// known keys stay in force; faults of files are returned.
    pub async fn refresh(&self, now: Timestamp) -> Vec<IssuerError> {
        let mut faults = vec![];
        for live in self.live.iter().filter(|live| !live.issuer.keys.is_empty()) {
            if live.issuer.url().is_some() {
                self.fetch(live, now, CACHED).await;
                continue;
            }
            match read(&live.issuer.keys) {
                Ok(keys) => live.keys.store(Arc::new(keys)),
                Err(fault) => faults.push(fault),
            }
        }
        faults
    }

    /// Verifies a token with the keys of the issuer that it names. [`Opened::at`] checks its times.
    ///
    /// # Errors
    /// Returns UNAUTHENTICATED, in constant words.
    pub async fn open(&self, token: &str, now: Timestamp) -> Result<(Arc<Issuer>, Opened<Object>), Refusal> {
        let refused = |fault: TokenFault| Refusal::Unauthenticated(fault.message());
        let (named, _) = jose::claimed_issuer(token).ok_or_else(|| refused(TokenFault::Malformed))?;
        let live =
            self.live.iter().find(|live| live.issuer.issuer == named).ok_or_else(|| refused(TokenFault::Issuer))?;
        let opened = match self.open_with(live, token) {
            Err(TokenFault::Key) if live.issuer.url().is_some() => {
                self.fetch(live, now, REFRESH).await;
                self.open_with(live, token)
            }
            opened => opened,
        };
        Ok((Arc::clone(&live.issuer), opened.map_err(refused)?))
    }

    fn open_with(&self, live: &Live, token: &str) -> Result<Opened<Object>, TokenFault> {
        let typ = [live.issuer.typ.as_str()];
        let expected = Expected {
            typ: &typ,
            typ_optional: false,
            bare_header: false,
            algorithm: live.issuer.algorithm,
            issuer: Some(&live.issuer.issuer),
            audience: &self.audience,
            event: live.issuer.typ == SECURITY_EVENT,
        };
        jose::open(token, &live.keys.load(), &expected)
    }

    /// Fetches an issuer's key set, unless the last request was less than `interval` ago.
    async fn fetch(&self, live: &Live, now: Timestamp, interval: Duration) {
        let (Some(url), Some(client)) = (live.issuer.url(), &self.client) else { return };
        let mut asked = live.asked.lock().await;
        if *asked != Timestamp::default() && asked.plus(interval) > now {
            return;
        }
        *asked = now;
        match fetched(client, url).await {
            Some(keys) => live.keys.store(Arc::new(keys)),
            None => {
                tracing::warn!(name: "issuer.keys_not_fetched", issuer = live.issuer.issuer, "the issuer's previous keys stay in use")
            }
        }
    }
}

fn client() -> Result<reqwest::Client, reqwest::Error> {
    reqwest::Client::builder().timeout(FETCH).redirect(reqwest::redirect::Policy::none()).https_only(true).build()
}

async fn fetched(client: &reqwest::Client, url: &str) -> Option<KeySet> {
    let mut response = client.get(url).send().await.ok()?.error_for_status().ok()?;
    let mut text = vec![];
    while let Some(chunk) = response.chunk().await.ok()? {
        text.extend_from_slice(&chunk);
        if text.len() > BYTES_MAX {
            return None;
        }
    }
    KeySet::read(&text).ok()
}

fn read(path: &str) -> Result<KeySet, IssuerError> {
    let path = PathBuf::from(path);
    let text = std::fs::read(&path).map_err(|error| IssuerError::Unreadable(path.clone(), error))?;
    KeySet::read(&text).map_err(|fault| IssuerError::Faulty(path, fault))
}
