//! Strict JWS in compact form (RFC 7515, RFC 8725). The expected type, algorithm, issuer and audience are
//! fixed before a token is read, so nothing in the token decides how it is checked.
//!
//! The cryptographic library only verifies signatures. No JWT library is used: by default the one that is
//! maintained accepts tokens without `aud`, with an unknown `crit`, of any `typ`, from the future, or expired
//! within the last minute. Changing this takes five settings; each case is a test below. Times are checked in
//! a separate step against the pipeline's `now`, because a repeated operation must be recognized after its
//! token has expired.

mod algorithm;
pub mod keyring;
pub mod keyset;
pub mod mac;

use std::time::Duration;

use aws_lc_rs::signature::{EcdsaKeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use crate::jose::algorithm::{Algorithm, TokenFault};
use crate::jose::keyset::KeySet;
use crate::json::{self, Object, Value};
use crate::model::part::Part;
use crate::model::time::Timestamp;

/// Clock leeway for tokens that this deployment signed.
pub const LEEWAY_OWN: Duration = Duration::from_secs(5);
/// Maximum length of a token, in bytes. A binding token holds a call's arguments, attributes and facts.
const TOKEN_MAX: usize = 400 * 1024;
/// Header members that are rejected, because each would let the token choose how it is checked.
const REFUSED_HEADERS: [&str; 7] = ["b64", "crit", "jku", "jwk", "x5c", "x5u", "zip"];

/// Properties that a token must have.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// Accepted values of header `typ`.
    pub typ: &'a [&'a str],
    /// Whether `typ` may be absent.
    pub typ_optional: bool,
    /// Whether header members other than `alg`, `typ` and `kid` are rejected.
    pub bare_header: bool,
    /// Required value of header `alg`.
    pub algorithm: Algorithm,
    /// Required claim `iss`; `None` if the format has no issuer.
    pub issuer: Option<&'a str>,
    /// Required claim `aud`: one string, or an array of one.
    pub audience: &'a str,
    /// Whether the token is a security event token (RFC 8417), which needs neither `sub` nor `exp`.
    pub event: bool,
}

impl<'a> Expected<'a> {
    /// Expects a token that this deployment signed: ES256, one of these types, no further header members.
    pub fn own(typ: &'a [&'a str], issuer: &'a str, audience: &'a str) -> Self {
        Self {
            typ,
            typ_optional: false,
            bare_header: true,
            algorithm: Algorithm::Es256,
            issuer: Some(issuer),
            audience,
            event: false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// Claim `exp`; the latest possible time for events without it.
    pub expires_at: Timestamp,
    /// Claim `nbf`; for events without it, `iat`.
    pub not_before: Timestamp,
    /// Claim `iat`; the epoch for JWT-SVIDs without it.
    pub issued_at: Timestamp,
}

/// A token whose signature, header, issuer and audience are verified. Its times are not checked yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Opened<C> {
    claims: C,
    times: Times,
}

impl<C> Opened<C> {
    /// Checks the times and returns the claims.
    ///
    /// # Errors
    /// If the token has expired, is not valid yet, or is valid for longer than `longest`.
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

    /// Returns the claims without checking the times.
    pub fn claims(&self) -> &C {
        &self.claims
    }

    pub fn times(&self) -> Times {
        self.times
    }
}

/// The registered claims of a token (RFC 7519, section 4.1), by name.
struct Registered(Object);

impl Registered {
    /// Returns a claim that is text; `None` if it is absent.
    fn text(&self, name: &'static str) -> Result<Option<&str>, TokenFault> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(TokenFault::Claims(name)),
        }
    }

    /// Returns a claim that is a time in seconds; `None` if it is absent.
    fn seconds(&self, name: &'static str) -> Result<Option<i64>, TokenFault> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Integer(seconds)) => Ok(Some(*seconds)),
            Some(_) => Err(TokenFault::Claims(name)),
        }
    }

    /// Returns the only audience of the token.
    fn audience(&self) -> Result<&str, TokenFault> {
        let one = match self.0.get("aud") {
            Some(Value::Array(many)) => match many.as_slice() {
                [one] => one,
                _ => return Err(TokenFault::Audience),
            },
            Some(one) => one,
            None => return Err(TokenFault::Claims("aud")),
        };
        one.as_str().ok_or(TokenFault::Claims("aud"))
    }
}

/// Verifies a token's header, signature, `iss` and `aud`, and that it has every required claim.
///
/// # Errors
/// The first fault.
pub fn open<C: DeserializeOwned>(token: &str, keys: &KeySet, expected: &Expected<'_>) -> Result<Opened<C>, TokenFault> {
    let parts = parts(token)?;
    let kid = header(&parts.header, expected)?;
    let key = keys.get(&kid).ok_or(if keys.is_revoked(&kid) { TokenFault::Revoked } else { TokenFault::Key })?;
    key.verify(expected.algorithm, parts.signed.as_bytes(), &parts.signature)?;
    let registered = Registered(json::read_as(&parts.payload).map_err(|_| TokenFault::Claims(""))?);
    if let Some(issuer) = expected.issuer
        && registered.text("iss")?.ok_or(TokenFault::Claims("iss"))? != issuer
    {
        return Err(TokenFault::Issuer);
    }
    if registered.audience()? != expected.audience {
        return Err(TokenFault::Audience);
    }
    if !expected.event && registered.text("sub")?.is_none_or(str::is_empty) {
        return Err(TokenFault::Claims("sub"));
    }
    let never = expected.event.then_some(i64::MAX);
    // Only JWT-SVIDs have no issuer; they may lack `nbf` and `iat`.
    let begins = |name: &'static str, time: Option<i64>| match (time, expected.issuer) {
        (Some(time), _) => Ok(Timestamp::from_seconds(time)),
        (None, None) => Ok(Timestamp::default()),
        (None, Some(_)) => Err(TokenFault::Claims(name)),
    };
    let (issued_at, not_before) = (registered.seconds("iat")?, registered.seconds("nbf")?);
    let times = Times {
        expires_at: Timestamp::from_seconds(registered.seconds("exp")?.or(never).ok_or(TokenFault::Claims("exp"))?),
        not_before: begins("nbf", if expected.event { not_before.or(issued_at) } else { not_before })?,
        issued_at: begins("iat", issued_at)?,
    };
    let claims = serde_json::from_slice(&parts.payload).map_err(|_| TokenFault::Claims(""))?;
    Ok(Opened { claims, times })
}

/// Returns the unverified `iss` and `kid` of a token. Their only use is to choose the keys that verify it.
pub fn claimed_issuer(token: &str) -> Option<(String, Option<String>)> {
    #[derive(serde::Deserialize)]
    struct Issuer {
        iss: String,
    }
    let parts = parts(token).ok()?;
    let issuer: Issuer = json::read_as(&parts.payload).ok()?;
    let kid = parts.header.get("kid").and_then(Value::as_str).map(str::to_owned);
    Some((issuer.iss, kid))
}

/// Returns the unverified `iss` and `sub` of a token, for a log line about its rejection.
pub fn claimed_subject(token: &str) -> Option<(String, String)> {
    let claims: Object = json::read_as(&parts(token).ok()?.payload).ok()?;
    let text = |name: &str| claims.get(name).and_then(Value::as_str).unwrap_or("").to_owned();
    Some((text("iss"), text("sub")))
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
    let (header, payload) =
        signed.split_once('.').filter(|(_, payload)| !payload.contains('.')).ok_or(TokenFault::Malformed)?;
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
        (_, Some(typ)) if expected.typ.iter().any(|expected| is_same_type(typ, expected)) => {}
        _ => return Err(TokenFault::Type),
    }
    text("kid").map(str::to_owned).ok_or(TokenFault::Key)
}

/// Returns whether two media types are the same: in any case, and with or without `application/` (RFC 7515, section
/// 4.1.9).
fn is_same_type(one: &str, other: &str) -> bool {
    const PREFIX: &str = "application/";
    let short = |name: &str| match name.get(..PREFIX.len()) {
        Some(prefix) if prefix.eq_ignore_ascii_case(PREFIX) => name.part(PREFIX.len()..).to_owned(),
        Some(_) | None => name.to_owned(),
    };
    short(one).eq_ignore_ascii_case(&short(other))
}

/// A private key that signs this deployment's tokens.
pub struct Signer {
    kid: String,
    pair: EcdsaKeyPair,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Signer").field("kid", &self.kid).finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the token could not be signed")]
pub struct SignFault;

impl Signer {
    /// Returns the key's id, which is its RFC 7638 thumbprint.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// Returns the public key as an uncompressed point.
    fn point(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    /// Signs claims under a header with this `typ`.
    ///
    /// # Errors
    /// If the claims can't be serialized, or the library fails.
    pub fn sign(&self, typ: &str, claims: &impl Serialize) -> Result<String, SignFault> {
        let header = json::object([
            ("alg", Value::from("ES256")),
            ("kid", Value::from(self.kid.as_str())),
            ("typ", Value::from(typ)),
        ]);
        let claims = json::canonical(claims);
        if claims.is_empty() {
            return Err(SignFault);
        }
        let signed = format!("{}.{}", BASE64.encode(json::canonical(&header)), BASE64.encode(claims));
        Ok(format!("{signed}.{}", BASE64.encode(self.sign_bytes(signed.as_bytes())?)))
    }

    fn sign_bytes(&self, text: &[u8]) -> Result<Vec<u8>, SignFault> {
        let signature = self.pair.sign(&aws_lc_rs::rand::SystemRandom::new(), text);
        Ok(signature.map_err(|_| SignFault)?.as_ref().to_vec())
    }
}

/// Returns whether two secrets are equal. The time that this takes depends only on their lengths.
pub fn same(one: &str, other: &str) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(one.as_bytes(), other.as_bytes()).is_ok()
}

/// Returns SHA-256 in base64url, the form of `x5t#S256` and of digests in tokens.
pub fn digest(bytes: &[u8]) -> String {
    BASE64.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes))
}

/// Encodes bytes as base64url.
pub fn encode(bytes: &[u8]) -> String {
    BASE64.encode(bytes)
}

/// Decodes a 32-byte digest from base64url.
pub fn read_digest(text: &str) -> Option<[u8; 32]> {
    BASE64.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jose::keyring::{Keyring, Purpose};

    const NOW: i64 = 1_800_000_000;

    /// Creates a key ring in a temporary folder.
    fn ring() -> Keyring {
        let folder = tempfile::tempdir().expect("a folder");
        keyring::generate(folder.path(), Purpose::Approval, Timestamp::from_seconds(NOW)).expect("keys");
        Keyring::read(folder.path(), Purpose::Approval).expect("keys")
    }

    fn claims() -> serde_json::Value {
        serde_json::json!({"iss": "us", "aud": "us", "sub": "s", "exp": NOW + 60, "nbf": NOW, "iat": NOW})
    }

    /// Returns the claims with one set to this value; `null` removes it.
    fn with(name: &str, value: serde_json::Value) -> serde_json::Value {
        let mut claims = claims();
        let members = claims.as_object_mut().expect("an object");
        match value {
            serde_json::Value::Null => members.remove(name),
            value => members.insert(name.to_owned(), value),
        };
        claims
    }

    fn judged(token: &str, keys: &KeySet) -> Result<(), TokenFault> {
        let opened = open::<serde_json::Value>(token, keys, &Expected::own(&["t+jwt"], "us", "us"))?;
        opened.at(Timestamp::from_seconds(NOW), LEEWAY_OWN, Duration::from_secs(120)).map(|_| ())
    }

    fn signed(claims: &serde_json::Value) -> Result<(), TokenFault> {
        let ring = ring();
        judged(&ring.sign("t+jwt", claims).expect("signed"), &ring.set)
    }

    /// Opens a token that has a handwritten header and a valid signature.
    fn under(ring: &Keyring, header: &str) -> Result<(), TokenFault> {
        let header = header.replace("KID", ring.kid().expect("a current key"));
        let text = format!("{}.{}", BASE64.encode(header), BASE64.encode(claims().to_string()));
        let signature = ring.sign_bytes(text.as_bytes()).expect("signed");
        judged(&format!("{text}.{}", BASE64.encode(signature)), &ring.set)
    }

    #[test]
    fn a_token_as_it_should_be_is_accepted() {
        assert_eq!(signed(&claims()), Ok(()));
        // A media type has no case, and `application/` may be left out.
        for typ in ["t+jwt", "T+JWT", "application/t+jwt", "Application/T+jwt"] {
            let header = format!(r#"{{"alg":"ES256","kid":"KID","typ":"{typ}"}}"#);
            assert_eq!(under(&ring(), &header), Ok(()), "{typ}");
        }
        for typ in ["text/t+jwt", "application/application/t+jwt", "application/", "at+jwt"] {
            let header = format!(r#"{{"alg":"ES256","kid":"KID","typ":"{typ}"}}"#);
            assert_eq!(under(&ring(), &header), Err(TokenFault::Type), "{typ}");
        }
    }

    #[test]
    fn claims_that_say_something_twice_are_refused_however_deep() {
        let ring = ring();
        let whole = claims().to_string();
        for twice in
            [r#""aud":"us","aud":"us""#, r#""aud":"us","x":{"y":1,"y":1}"#, r#""aud":"us","x":[{"y":1,"y":2}]"#]
        {
            let text = whole.replacen(r#""aud":"us""#, twice, 1);
            let header = format!(r#"{{"alg":"ES256","kid":"{}","typ":"t+jwt"}}"#, ring.kid().expect("a current key"));
            let signed = format!("{}.{}", BASE64.encode(header), BASE64.encode(&text));
            let signature = ring.sign_bytes(signed.as_bytes()).expect("signed");
            assert_eq!(
                judged(&format!("{signed}.{}", BASE64.encode(signature)), &ring.set),
                Err(TokenFault::Claims("")),
                "{text}"
            );
            assert_eq!(claimed_issuer(&format!("{signed}.x")), None);
        }
    }

    // Each `trap_` test is a fault that the JWT library would have let through by default.

    #[test]
    fn trap_1_a_token_without_aud_or_iss_is_refused() {
        assert_eq!(signed(&with("aud", serde_json::Value::Null)), Err(TokenFault::Claims("aud")));
        assert_eq!(signed(&with("iss", serde_json::Value::Null)), Err(TokenFault::Claims("iss")));
        for required in ["sub", "exp", "nbf", "iat"] {
            assert_eq!(
                signed(&with(required, serde_json::Value::Null)),
                Err(TokenFault::Claims(required)),
                "{required}"
            );
        }
    }

    #[test]
    fn trap_2_a_token_that_expired_a_minute_ago_is_refused() {
        assert_eq!(signed(&with("exp", (NOW - 4).into())), Ok(()));
        assert_eq!(signed(&with("exp", (NOW - 5).into())), Err(TokenFault::Expired));
        assert_eq!(signed(&with("exp", (NOW - 59).into())), Err(TokenFault::Expired));
    }

    #[test]
    fn trap_3_a_token_of_the_future_is_refused() {
        assert_eq!(signed(&with("nbf", (NOW + 3600).into())), Err(TokenFault::NotYet));
        assert_eq!(signed(&with("iat", (NOW + 6).into())), Err(TokenFault::NotYet));
    }

    #[test]
    fn trap_4_another_typ_is_refused() {
        for typ in [r#","typ":"at+jwt""#, r#","typ":"JWT""#, r#","typ":"text/t+jwt""#, r#","typ":1"#, ""] {
            let header = format!(r#"{{"alg":"ES256","kid":"KID"{typ}}}"#);
            assert_eq!(under(&ring(), &header), Err(TokenFault::Type), "{header}");
        }
    }

    #[test]
    fn trap_5_crit_and_what_brings_its_own_key_are_refused() {
        for member in [
            r#""crit":["x"]"#,
            r#""jku":"https://x""#,
            r#""jwk":{}"#,
            r#""x5u":"https://x""#,
            r#""x5c":[]"#,
            r#""b64":false"#,
            r#""zip":"DEF""#,
            r#""x":1"#,
        ] {
            let header = format!(r#"{{"alg":"ES256","kid":"KID","typ":"t+jwt",{member}}}"#);
            assert_eq!(under(&ring(), &header), Err(TokenFault::Header), "{header}");
        }
    }

    #[test]
    fn trap_6_algorithms_are_fixed_and_unknown_ones_are_no_error_of_ours() {
        for algorithm in ["EdDSA", "Ed25519", "none", "None", "HS256", "RS256", "ES384", "es256"] {
            let header = format!(r#"{{"alg":"{algorithm}","kid":"KID","typ":"t+jwt"}}"#);
            assert_eq!(under(&ring(), &header), Err(TokenFault::Algorithm), "{algorithm}");
        }
    }

    #[test]
    fn trap_7_the_one_backend_needs_no_installing() {
        // Signing and verifying need no provider in a fresh process, whatever features other crates enable.
        assert_eq!(signed(&claims()), Ok(()));
    }

    #[test]
    fn trap_8_a_public_key_is_no_mac_key_and_two_audiences_are_none() {
        let ring = ring();
        let text = format!(
            "{}.{}",
            BASE64.encode(format!(r#"{{"alg":"HS256","kid":"{}","typ":"t+jwt"}}"#, ring.kid().expect("a key"))),
            BASE64.encode(claims().to_string())
        );
        assert_eq!(judged(&format!("{text}.{}", BASE64.encode([0; 32])), &ring.set), Err(TokenFault::Algorithm));
        assert_eq!(signed(&with("aud", serde_json::json!(["us", "them"]))), Err(TokenFault::Audience));
        assert_eq!(signed(&with("aud", "them".into())), Err(TokenFault::Audience));
        assert_eq!(signed(&with("iss", "them".into())), Err(TokenFault::Issuer));
    }

    #[test]
    fn claims_of_another_type_or_twice_are_refused() {
        assert_eq!(signed(&with("exp", "tomorrow".into())), Err(TokenFault::Claims("exp")));
        assert_eq!(signed(&with("exp", 1.5.into())), Err(TokenFault::Claims("exp")));
        assert_eq!(signed(&with("exp", (NOW + 121).into())), Err(TokenFault::Life));
        let ring = ring();
        let twice = claims().to_string().replacen(r#""aud":"us""#, r#""aud":"them","aud":"us""#, 1);
        let header =
            BASE64.encode(format!(r#"{{"alg":"ES256","kid":"{}","typ":"t+jwt"}}"#, ring.kid().expect("a key")));
        let text = format!("{header}.{}", BASE64.encode(twice));
        let token = format!("{text}.{}", BASE64.encode(ring.sign_bytes(text.as_bytes()).expect("signed")));
        assert_eq!(judged(&token, &ring.set), Err(TokenFault::Claims("")));
    }

    #[test]
    fn another_key_a_changed_byte_and_what_is_no_token_are_refused() {
        let (one, two) = (ring(), ring());
        let token = one.sign("t+jwt", &claims()).expect("signed");
        assert_eq!(judged(&token, &two.set), Err(TokenFault::Key));
        let (text, signature) = token.rsplit_once('.').expect("three parts");
        let mut bytes = BASE64.decode(signature).expect("base64");
        bytes[0] ^= 1;
        assert_eq!(judged(&format!("{text}.{}", BASE64.encode(bytes)), &one.set), Err(TokenFault::Signature));
        for text in
            ["", ".", "..", "...", "a.b", &token[1..], &format!("{token}."), &format!("{token}="), &format!(" {token}")]
        {
            assert!(judged(text, &one.set).is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_text_never_panics_and_is_never_accepted(text in "[A-Za-z0-9_.-]{0,400}") {
            let set = KeySet::default();
            proptest::prop_assert!(judged(&text, &set).is_err());
        }

        // A token with any byte changed must be rejected.
        #[test]
        fn a_changed_token_is_refused(at in 0..200_usize, to in "[A-Za-z0-9_-]") {
            let ring = ring();
            let token = ring.sign("t+jwt", &claims()).expect("signed");
            let at = at % token.len();
            let changed = format!("{}{to}{}", &token[..at], &token[at + 1..]);
            if changed != token {
                proptest::prop_assert!(judged(&changed, &ring.set).is_err());
            }
        }
    }
}
