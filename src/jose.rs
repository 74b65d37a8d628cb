//! Strict JWS in compact form (RFC 7515, RFC 8725): what is expected is fixed before the token is read, and nothing in the token
//! chooses how it is checked.
//!
//! The cryptographic library checks signatures and nothing else. Why not a JWT library: the one that is alive accepts tokens
//! without `aud`, with an unknown `crit`, of any `typ`, of the future and of the last minute unless it is told otherwise in five
//! places; each of these is a test below. Times are judged against the pipeline's `now`, by a step of their own: a repeated
//! operation must be recognized after its token's time is over.

pub mod keyring;
pub mod keyset;

use std::time::Duration;

use aws_lc_rs::signature::{EcdsaKeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::jose::keyset::KeySet;
use crate::json::{self, Object, Value};
use crate::model::time::Timestamp;

/// Leeway on tokens of our own.
pub const LEEWAY_OWN: Duration = Duration::from_secs(5);
/// Leeway on tokens of issuers, whose clocks are not ours.
pub const LEEWAY_ISSUERS: Duration = Duration::from_secs(30);

/// The longest token that is read, in bytes: a binding token holds a call's arguments.
const TOKEN_MAX: usize = 160 * 1024;
/// Members that may not stand in a header: each would let the token choose how it is checked.
const REFUSED_HEADERS: [&str; 7] = ["b64", "crit", "jku", "jwk", "x5c", "x5u", "zip"];

/// A signature algorithm (RFC 7518). The set is closed: no MAC, no `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Algorithm {
    /// ECDSA on P-256 with SHA-256.
    #[serde(rename = "ES256")]
    Es256,
    /// RSASSA-PSS with SHA-256.
    #[serde(rename = "PS256")]
    Ps256,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    #[serde(rename = "RS256")]
    Rs256,
}

impl Algorithm {
    /// The name in headers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Es256 => "ES256",
            Self::Ps256 => "PS256",
            Self::Rs256 => "RS256",
        }
    }
}

/// What a token must be.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// Header `typ`; the first is also what an absent one stands for if `typ_optional`.
    pub typ: &'a [&'a str],
    /// Whether `typ` may be absent.
    pub typ_optional: bool,
    /// Whether header members beside `alg`, `typ` and `kid` are refused.
    pub bare_header: bool,
    /// Header `alg`.
    pub algorithm: Algorithm,
    /// Claim `iss`; `None` where the format has no issuer.
    pub issuer: Option<&'a str>,
    /// Claim `aud`, one string.
    pub audience: &'a str,
}

impl<'a> Expected<'a> {
    /// A token of our own: ES256, this type and nothing else in the header.
    pub fn own(typ: &'a [&'a str], issuer: &'a str, audience: &'a str) -> Self {
        Self { typ, typ_optional: false, bare_header: true, algorithm: Algorithm::Es256, issuer: Some(issuer), audience }
    }
}

/// Why a token is not accepted. Says nothing of its contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenFault {
    /// Another algorithm.
    Algorithm,
    /// For somebody else.
    Audience,
    /// A required claim is missing or mistyped.
    Claims,
    /// Its time is over.
    Expired,
    /// The header has a member that is refused.
    Header,
    /// From somebody else.
    Issuer,
    /// No key of this id.
    Key,
    /// It lives too long.
    Life,
    /// It is no compact JWS.
    Malformed,
    /// Its time has not come.
    NotYet,
    /// The key was revoked.
    Revoked,
    /// The signature is wrong.
    Signature,
    /// Another type.
    Type,
}

impl TokenFault {
    /// What is wrong, in constant words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Algorithm => "the token's `alg` is not the expected one",
            Self::Audience => "the token's `aud` is not this server",
            Self::Claims => "the token lacks a required claim, or has one of another type",
            Self::Expired => "the token has expired",
            Self::Header => "the token's header has a member that is not accepted",
            Self::Issuer => "the token's `iss` is not trusted",
            Self::Key => "the token's `kid` is not known",
            Self::Life => "the token lives longer than it may",
            Self::Malformed => "the token is not a compact JWS",
            Self::NotYet => "the token is not valid yet",
            Self::Revoked => "the token's key was revoked",
            Self::Signature => "the token's signature does not verify",
            Self::Type => "the token's `typ` is not the expected one",
        }
    }
}

/// The times of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// `exp`.
    pub expires_at: Timestamp,
    /// `nbf`; of formats without it, `iat`.
    pub not_before: Timestamp,
    /// `iat`.
    pub issued_at: Timestamp,
}

/// A token whose signature, header, issuer and audience are as expected. Its times are not judged yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Opened<C> {
    claims: C,
    times: Times,
}

impl<C> Opened<C> {
    /// Judges the times.
    ///
    /// # Errors
    /// When the token is over, not yet valid, or lives longer than `longest`.
    pub fn at(self, now: Timestamp, leeway: Duration, longest: Duration) -> Result<C, TokenFault> {
        let Times { expires_at, not_before, issued_at } = self.times;
        if expires_at.plus(leeway) <= now {
            return Err(TokenFault::Expired);
        }
        if not_before > now.plus(leeway) || issued_at > now.plus(leeway) {
            return Err(TokenFault::NotYet);
        }
        if expires_at > issued_at.plus(longest) {
            return Err(TokenFault::Life);
        }
        Ok(self.claims)
    }

    /// The claims, whatever the time.
    pub fn claims(&self) -> &C {
        &self.claims
    }

    /// The times.
    pub fn times(&self) -> Times {
        self.times
    }
}

#[derive(serde::Deserialize)]
struct Registered {
    iss: Option<String>,
    sub: String,
    aud: Audience,
    exp: i64,
    nbf: Option<i64>,
    iat: Option<i64>,
}

#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

/// Opens a token: header, key, signature, `iss`, `aud`, and that every required claim is there.
///
/// # Errors
/// The first fault.
pub fn open<C: DeserializeOwned>(token: &str, keys: &KeySet, expected: &Expected<'_>) -> Result<Opened<C>, TokenFault> {
    let parts = parts(token)?;
    let kid = header(&parts.header, expected)?;
    let key = keys.get(&kid).ok_or(if keys.is_revoked(&kid) { TokenFault::Revoked } else { TokenFault::Key })?;
    key.verify(expected.algorithm, parts.signed.as_bytes(), &parts.signature)?;
    let registered: Registered = serde_json::from_slice(&parts.payload).map_err(|_| TokenFault::Claims)?;
    if let Some(issuer) = expected.issuer
        && registered.iss.as_deref().ok_or(TokenFault::Claims)? != issuer
    {
        return Err(TokenFault::Issuer);
    }
    let audience = match &registered.aud {
        Audience::One(one) => one,
        Audience::Many(many) => match many.as_slice() {
            [one] => one,
            _ => return Err(TokenFault::Audience),
        },
    };
    if audience != expected.audience {
        return Err(TokenFault::Audience);
    }
    if registered.sub.is_empty() {
        return Err(TokenFault::Claims);
    }
    // JWT-SVIDs alone have no issuer, and need not say when they begin.
    let begins = |time: Option<i64>| match (time, expected.issuer) {
        (Some(time), _) => Ok(Timestamp::from_seconds(time)),
        (None, None) => Ok(Timestamp::default()),
        (None, Some(_)) => Err(TokenFault::Claims),
    };
    let times = Times {
        expires_at: Timestamp::from_seconds(registered.exp),
        not_before: begins(registered.nbf)?,
        issued_at: begins(registered.iat)?,
    };
    let claims = serde_json::from_slice(&parts.payload).map_err(|_| TokenFault::Claims)?;
    Ok(Opened { claims, times })
}

/// The `iss` and `kid` that a token names, unverified: to choose whose keys to check it with, and for nothing else.
pub fn claimed_issuer(token: &str) -> Option<(String, Option<String>)> {
    #[derive(serde::Deserialize)]
    struct Issuer {
        iss: String,
    }
    let parts = parts(token).ok()?;
    let issuer: Issuer = serde_json::from_slice(&parts.payload).ok()?;
    let kid = parts.header.get("kid").and_then(Value::as_str).map(str::to_owned);
    Some((issuer.iss, kid))
}

struct Parts<'a> {
    header: Object,
    payload: Vec<u8>,
    signed: &'a str,
    signature: Vec<u8>,
}

fn parts(token: &str) -> Result<Parts<'_>, TokenFault> {
    if token.len() > TOKEN_MAX {
        return Err(TokenFault::Malformed);
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(TokenFault::Malformed)?;
    let (header, payload) = signed.split_once('.').filter(|(_, payload)| !payload.contains('.')).ok_or(TokenFault::Malformed)?;
    let decode = |text: &str| BASE64.decode(text).map_err(|_| TokenFault::Malformed);
    let header = json::read_object(&decode(header)?).map_err(|_| TokenFault::Malformed)?;
    Ok(Parts { header, payload: decode(payload)?, signed, signature: decode(signature)? })
}

fn header(header: &Object, expected: &Expected<'_>) -> Result<String, TokenFault> {
    let known = |name: &str| ["alg", "kid", "typ"].contains(&name);
    if header.keys().any(|name| REFUSED_HEADERS.contains(&name.as_str()) || (expected.bare_header && !known(name))) {
        return Err(TokenFault::Header);
    }
    let text = |name: &str| header.get(name).and_then(Value::as_str);
    if text("alg") != Some(expected.algorithm.name()) {
        return Err(TokenFault::Algorithm);
    }
    match (header.get("typ"), text("typ")) {
        (None, _) if expected.typ_optional => {}
        (_, Some(typ)) if expected.typ.contains(&typ) => {}
        _ => return Err(TokenFault::Type),
    }
    text("kid").map(str::to_owned).ok_or(TokenFault::Key)
}

/// A private key that signs tokens of our own.
pub struct Signer {
    kid: String,
    pair: EcdsaKeyPair,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Signer").field("kid", &self.kid).finish_non_exhaustive()
    }
}

/// A token could not be signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the token could not be signed")]
pub struct SignFault;

impl Signer {
    /// The key's id: its RFC 7638 thumbprint.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The public key as an uncompressed point.
    fn point(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    /// Signs claims under a header of this type.
    ///
    /// # Errors
    /// When the claims have no JSON form, or the library fails.
    pub fn sign(&self, typ: &str, claims: &impl Serialize) -> Result<String, SignFault> {
        let header = json::object([("alg", Value::from("ES256")), ("kid", Value::from(self.kid.as_str())), ("typ", Value::from(typ))]);
        let claims = json::canonical(claims);
        if claims.is_empty() {
            return Err(SignFault);
        }
        let signed = format!("{}.{}", BASE64.encode(json::canonical(&header)), BASE64.encode(claims));
        let signature = self.pair.sign(&aws_lc_rs::rand::SystemRandom::new(), signed.as_bytes()).map_err(|_| SignFault)?;
        Ok(format!("{signed}.{}", BASE64.encode(signature)))
    }
}

/// SHA-256 in base64url, as `x5t#S256` and digests in tokens have it.
pub fn digest(bytes: &[u8]) -> String {
    BASE64.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes))
}

/// Bytes in base64url.
pub fn encode(bytes: &[u8]) -> String {
    BASE64.encode(bytes)
}

/// A digest in base64url, read back.
pub fn read_digest(text: &str) -> Option<[u8; 32]> {
    BASE64.decode(text).ok()?.try_into().ok()
}
