//! Sign-in at an OpenID provider (OpenID Connect Core 1.0): the authorization code flow with PKCE (RFC 7636), `state` and `nonce`.
//! The provider is found by its issuer (OpenID Connect Discovery 1.0), and `jose` verifies the ID token.

use std::pin::Pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use oauth2::basic::BasicClient;
use oauth2::url::Url;
use oauth2::{
    AsyncHttpClient, AuthUrl, AuthorizationCode, ClientId, ClientSecret, CsrfToken, HttpRequest, HttpResponse,
    PkceCodeChallenge, PkceCodeVerifier, RedirectUrl, Scope, TokenUrl,
};
use serde::Deserialize;

use crate::jose::keyset::{BYTES_MAX, KeySet};
use crate::jose::{self, Algorithm, Expected};
use crate::json::{Object, Value};
use crate::model::chain::Human;
use crate::model::time::Timestamp;

/// Time limit of a request to the provider.
const PATIENCE: Duration = Duration::from_secs(5);
/// Age at which the provider's metadata and keys are fetched again.
const CACHED: Duration = Duration::from_secs(300);
/// Time for which a provider that did not answer is not asked again.
const PAUSE: Duration = Duration::from_secs(5);
/// Minimum time between two fetches that an unknown key causes.
const REFRESH: Duration = Duration::from_secs(10);
/// Longest life of an ID token.
const LIFE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Maximum difference between the provider's clock and the server's.
const LEEWAY: Duration = Duration::from_secs(30);
/// Longest id of a human, in bytes.
const ID_MAX: usize = 128;

/// An OpenID provider, and what its claims mean.
#[derive(Clone)]
pub struct Provider {
    /// `iss` of its tokens, and the URL below which its metadata is.
    pub issuer: String,
    pub client_id: String,
    /// Secret of a confidential client.
    pub client_secret: Option<String>,
    /// The only algorithm that ID tokens may use.
    pub algorithm: Algorithm,
    /// Tenant of the humans; empty to take it from the bundle.
    pub tenant: String,
    /// Claim that is the id of the human in the bundle, apart from the prefix.
    pub subject_claim: String,
    pub subject_prefix: String,
    /// Claim that is the same for all subjects of one person.
    pub person_claim: Option<String>,
    /// Scopes besides `openid`.
    pub scopes: Vec<String>,
}

impl std::fmt::Debug for Provider {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Provider").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

/// Reason why a human can't be signed in. Its words are for her, and name no value of the provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Faulty {
    #[error("the provider does not answer, or its settings can't be read")]
    Provider,
    #[error("the provider did not accept the sign-in")]
    Exchange,
    #[error("the provider's ID token can't be accepted")]
    Token,
    #[error("the ID token belongs to another sign-in")]
    Nonce,
    #[error("the ID token does not say who you are, in the claim that the settings name")]
    Subject,
}

/// Members of the provider's metadata.
#[derive(Clone, Debug, Deserialize)]
struct Metadata {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    jwks_uri: String,
}

#[derive(Clone, Debug)]
struct Known {
    metadata: Metadata,
    keys: KeySet,
    read_at: Timestamp,
}

/// A sign-in that was begun.
pub(super) struct Begun {
    pub(super) url: Url,
    pub(super) verifier: String,
}

/// Signs humans in at one provider.
#[derive(Debug)]
pub(super) struct Client {
    provider: Provider,
    redirect: String,
    http: reqwest::Client,
    known: tokio::sync::Mutex<Option<Known>>,
    /// Second until which the provider is not asked again, because it did not answer.
    paused_until: AtomicI64,
}

impl Client {
    pub(super) fn new(provider: Provider, url: &str) -> Self {
        let builder = reqwest::Client::builder().timeout(PATIENCE).redirect(reqwest::redirect::Policy::none());
        // The builder fails only if the TLS backend can't be initialised, which the first request reports as well.
        let http = builder.build().unwrap_or_default();
        Self {
            provider,
            redirect: format!("{url}/callback"),
            http,
            known: tokio::sync::Mutex::default(),
            paused_until: AtomicI64::default(),
        }
    }

    /// Returns where to send the browser. `acr` is the strength of authentication that is asked for; empty for any.
    pub(super) async fn begin(&self, state: &str, nonce: &str, acr: &str) -> Result<Begun, Faulty> {
        let known = self.known(CACHED).await?;
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let client = BasicClient::new(ClientId::new(self.provider.client_id.clone()))
            .set_auth_uri(AuthUrl::new(known.metadata.authorization_endpoint).map_err(|_| Faulty::Provider)?)
            .set_redirect_uri(RedirectUrl::new(self.redirect.clone()).map_err(|_| Faulty::Provider)?);
        let state = state.to_owned();
        let scopes = self.provider.scopes.iter().cloned().map(Scope::new);
        let mut request = client
            .authorize_url(|| CsrfToken::new(state))
            .add_scope(Scope::new("openid".to_owned()))
            .add_scopes(scopes)
            .add_extra_param("nonce", nonce)
            .set_pkce_challenge(challenge);
        if !acr.is_empty() {
            // She must authenticate again, even if the provider still has a session of hers.
            request = request.add_extra_param("acr_values", acr).add_extra_param("prompt", "login");
        }
        let (url, _) = request.url();
        Ok(Begun { url, verifier: verifier.into_secret() })
    }

    /// Exchanges the code for an ID token, and returns the human whom it names.
    pub(super) async fn finish(
        &self,
        code: &str,
        verifier: String,
        nonce: &str,
        now: Timestamp,
    ) -> Result<Human, Faulty> {
        let known = self.known(CACHED).await?;
        let token = self.exchange(&known.metadata, code, verifier).await?;
        let claims = match self.claims(&token, &known.keys, now) {
            Err(jose::TokenFault::Key) => {
                let known = self.known(REFRESH).await?;
                self.claims(&token, &known.keys, now)
            }
            read => read,
        };
        let claims = claims.map_err(|fault| {
            tracing::debug!(name: "desk.id_token_refused", fault = fault.message());
            Faulty::Token
        })?;
        human(&self.provider, &claims, nonce, now)
    }

    async fn exchange(&self, metadata: &Metadata, code: &str, verifier: String) -> Result<String, Faulty> {
        let mut client = BasicClient::new(ClientId::new(self.provider.client_id.clone()));
        if let Some(secret) = &self.provider.client_secret {
            client = client.set_client_secret(ClientSecret::new(secret.clone()));
        }
        let client = client
            .set_token_uri(TokenUrl::new(metadata.token_endpoint.clone()).map_err(|_| Faulty::Provider)?)
            .set_redirect_uri(RedirectUrl::new(self.redirect.clone()).map_err(|_| Faulty::Provider)?);
        let exchange = Exchange { http: self.http.clone(), id_token: Arc::default() };
        client
            .exchange_code(AuthorizationCode::new(code.to_owned()))
            .set_pkce_verifier(PkceCodeVerifier::new(verifier))
            .request_async(&exchange)
            .await
            .map_err(|_| Faulty::Exchange)?;
        let taken = exchange.id_token.lock().unwrap_or_else(PoisonError::into_inner).take();
        taken.ok_or(Faulty::Token)
    }

    /// Returns what is known of the provider, read again if it is older than `age`.
    async fn known(&self, age: Duration) -> Result<Known, Faulty> {
        let mut known = self.known.lock().await;
        let now = Timestamp::from_seconds(i64::try_from(seconds()).unwrap_or(i64::MAX));
        if let Some(known) = known.as_ref().filter(|known| now < known.read_at.plus(age)) {
            return Ok(known.clone());
        }
        // Those who wait for the lock must not wait for the provider one after the other.
        if now.seconds() < self.paused_until.load(Ordering::Relaxed) {
            return Err(Faulty::Provider);
        }
        self.paused_until.store(now.plus(PAUSE).seconds(), Ordering::Relaxed);
        let url = format!("{}/.well-known/openid-configuration", self.provider.issuer.trim_end_matches('/'));
        let read = self.get(&url).await.and_then(|body| serde_json::from_slice::<Metadata>(&body).ok());
        // The provider must name itself as the settings do, or its tokens would have another issuer.
        let metadata = read.filter(|read| read.issuer == self.provider.issuer && is_private(&read.token_endpoint));
        let metadata = metadata.ok_or(Faulty::Provider)?;
        let keys = self.get(&metadata.jwks_uri).await.and_then(|body| KeySet::read(&body).ok());
        let read = Known { metadata, keys: keys.ok_or(Faulty::Provider)?, read_at: now };
        self.paused_until.store(0, Ordering::Relaxed);
        *known = Some(read.clone());
        Ok(read)
    }

    async fn get(&self, url: &str) -> Option<Vec<u8>> {
        if !is_private(url) {
            return None;
        }
        let request = http::Request::get(url).body(vec![]).ok()?;
        let response = send(&self.http, request).await.ok()?;
        response.status().is_success().then(|| response.into_body())
    }

    fn claims(&self, token: &str, keys: &KeySet, now: Timestamp) -> Result<Object, jose::TokenFault> {
        let expected = Expected {
            typ: &["JWT"],
            typ_optional: true,
            bare_header: false,
            algorithm: self.provider.algorithm,
            issuer: Some(&self.provider.issuer),
            audience: &self.provider.client_id,
            // ID tokens have no `nbf`; that they have `exp` is checked here.
            event: true,
        };
        let opened = jose::open::<Object>(token, keys, &expected)?;
        if !opened.claims().contains_key("exp") {
            return Err(jose::TokenFault::Claims("exp"));
        }
        opened.at(now, LEEWAY, LIFE_MAX)
    }
}

/// Sends the request for tokens. The library reads those of OAuth; the ID token beside them is kept here.
struct Exchange {
    http: reqwest::Client,
    id_token: Arc<Mutex<Option<String>>>,
}

impl<'c> AsyncHttpClient<'c> for Exchange {
    type Error = Unreachable;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, Unreachable>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(async move {
            let response = send(&self.http, request).await?;
            let read = serde_json::from_slice::<IdToken>(response.body()).ok();
            *self.id_token.lock().unwrap_or_else(PoisonError::into_inner) = read.map(|read| read.id_token);
            Ok(response)
        })
    }
}

async fn send(http: &reqwest::Client, request: HttpRequest) -> Result<HttpResponse, Unreachable> {
    let request = reqwest::Request::try_from(request).map_err(|_| Unreachable)?;
    let mut response = http.execute(request).await.map_err(|_| Unreachable)?;
    let mut built = http::Response::builder().status(response.status());
    if let Some(headers) = built.headers_mut() {
        *headers = response.headers().clone();
    }
    let mut body = vec![];
    while let Some(chunk) = response.chunk().await.map_err(|_| Unreachable)? {
        body.extend_from_slice(&chunk);
        if body.len() > BYTES_MAX {
            return Err(Unreachable);
        }
    }
    built.body(body).map_err(|_| Unreachable)
}

/// The provider does not answer, or its answer is too long.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the provider does not answer")]
pub(super) struct Unreachable;

#[derive(Deserialize)]
struct IdToken {
    id_token: String,
}

fn seconds() -> u64 {
    use crate::clock::{Clock as _, SystemClock};
    SystemClock.now().seconds().unsigned_abs()
}

/// Returns whether a URL is fetched over TLS or from this machine, so that the network can't read or change the answer.
pub fn is_private(url: &str) -> bool {
    let Ok(url) = Url::parse(url) else { return false };
    let is_here = match url.host() {
        Some(oauth2::url::Host::Ipv4(address)) => address.is_loopback(),
        Some(oauth2::url::Host::Ipv6(address)) => address.is_loopback(),
        Some(oauth2::url::Host::Domain(name)) => name == "localhost",
        None => false,
    };
    url.scheme() == "https" || url.scheme() == "http" && is_here
}

fn text<'c>(claims: &'c Object, name: &str) -> Option<&'c str> {
    claims.get(name).and_then(Value::as_str)
}

/// Returns the human that an ID token names, if it was made for this sign-in.
fn human(provider: &Provider, claims: &Object, nonce: &str, now: Timestamp) -> Result<Human, Faulty> {
    if text(claims, "nonce") != Some(nonce) {
        return Err(Faulty::Nonce);
    }
    let is_id = |id: &&str| (1..=ID_MAX).contains(&id.len()) && !id.contains(char::is_control);
    let subject = text(claims, &provider.subject_claim).filter(is_id).ok_or(Faulty::Subject)?;
    // An unconfirmed address may be another person's.
    if provider.subject_claim == "email" && claims.get("email_verified") != Some(&Value::Bool(true)) {
        return Err(Faulty::Subject);
    }
    let person = provider.person_claim.as_ref().and_then(|claim| text(claims, claim)).filter(is_id);
    let amr = match claims.get("amr") {
        Some(Value::Array(items)) => items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect(),
        _ => vec![],
    };
    Ok(Human {
        issuer: provider.issuer.clone(),
        subject: text(claims, "sub").filter(is_id).ok_or(Faulty::Subject)?.to_owned(),
        id: format!("{}{subject}", provider.subject_prefix),
        person: person.map(str::to_owned),
        tenant: provider.tenant.clone(),
        amr,
        acr: text(claims, "acr").unwrap_or("").to_owned(),
        issued_at: now,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    fn provider(claim: &str) -> Provider {
        Provider {
            issuer: "https://id.example".into(),
            client_id: "desk".into(),
            client_secret: None,
            algorithm: Algorithm::Es256,
            tenant: "acme".into(),
            subject_claim: claim.into(),
            subject_prefix: "corp-".into(),
            person_claim: Some("employee".into()),
            scopes: vec![],
        }
    }

    #[test]
    fn an_id_token_names_the_human_by_the_claim_of_the_settings() {
        let now = Timestamp::from_seconds(1_700_000_000);
        let claims = |text: &str| json::read_object(text.as_bytes()).expect("an object");
        let token = claims(
            r#"{"nonce":"n","sub":"248","email":"ada@acme.example","email_verified":true,"employee":"e-7","amr":["mfa"],"acr":"high"}"#,
        );
        let found = human(&provider("email"), &token, "n", now).expect("a human");
        assert_eq!((found.id.as_str(), found.subject.as_str()), ("corp-ada@acme.example", "248"));
        assert_eq!(
            (found.person.as_deref(), found.amr.as_slice(), found.acr.as_str()),
            (Some("e-7"), ["mfa".to_owned()].as_slice(), "high")
        );
        assert_eq!(human(&provider("sub"), &token, "n", now).expect("a human").id, "corp-248");
        for wrong in [
            r#"{"nonce":"n","sub":"248","email":"ada@acme.example"}"#,
            r#"{"nonce":"n","sub":"248"}"#,
            r#"{"nonce":"n","sub":"248","email":"","email_verified":true}"#,
        ] {
            assert_eq!(human(&provider("email"), &claims(wrong), "n", now), Err(Faulty::Subject), "{wrong}");
        }
    }

    #[test]
    fn an_id_token_of_another_sign_in_names_nobody() {
        let claims = |text: &str| json::read_object(text.as_bytes()).expect("an object");
        for other in [r#"{"sub":"248"}"#, r#"{"nonce":"m","sub":"248"}"#, r#"{"nonce":1,"sub":"248"}"#] {
            assert_eq!(
                human(&provider("sub"), &claims(other), "n", Timestamp::default()),
                Err(Faulty::Nonce),
                "{other}"
            );
        }
    }

    #[test]
    fn a_provider_is_asked_over_tls_or_on_this_machine() {
        for private in
            ["https://id.example/keys", "http://127.0.0.1:4000/keys", "http://localhost/keys", "http://[::1]/k"]
        {
            assert!(is_private(private), "{private}");
        }
        for open in
            ["http://id.example", "http://127.0.0.1.evil.example/", "ftp://localhost/", "keys.json", "http://10.0.0.1/"]
        {
            assert!(!is_private(open), "{open}");
        }
    }
}
