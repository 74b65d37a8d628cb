//! Public keys by id (RFC 7517), and the ids of revoked keys.

use std::collections::{HashMap, HashSet};

use aws_lc_rs::rsa::PublicKeyComponents;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;

use crate::jose::algorithm::{Algorithm, TokenFault};
use crate::json;

/// Maximum size of a key set, in bytes.
pub const BYTES_MAX: usize = 256 * 1024;
/// Maximum number of keys in a set.
const KEYS_MAX: usize = 256;

/// Public keys by `kid`.
#[derive(Clone, Debug, Default)]
pub struct KeySet {
    keys: HashMap<String, PublicKey>,
    revoked: HashSet<String>,
}

/// Reasons why a key set can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeySetFault {
    /// The text is not a JWKS, exceeds a limit, or has two keys with the same `kid`.
    #[error("is not a JWK set (RFC 7517)")]
    Unreadable,
    /// The set has no usable key.
    #[error("has no P-256 or RSA signature key with a `kid`")]
    Unusable,
}

#[derive(Clone, Debug)]
pub enum PublicKey {
    /// P-256 key as an uncompressed point.
    P256(Vec<u8>),
    /// RSA key of 2048 to 8192 bits: modulus and exponent.
    Rsa(Vec<u8>, Vec<u8>),
}

#[derive(serde::Deserialize)]
struct Jwks {
    keys: Vec<Jwk>,
}

#[derive(serde::Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    r#use: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
}

impl KeySet {
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Reads a JWK set and skips keys of other types and uses, which issuers publish for other consumers.
    ///
    /// # Errors
    /// If the text is not a JWK set, or none of its keys can be used.
    pub fn read(text: &[u8]) -> Result<Self, KeySetFault> {
        if text.len() > BYTES_MAX {
            return Err(KeySetFault::Unreadable);
        }
        let read: Jwks = json::read_as(text).map_err(|_| KeySetFault::Unreadable)?;
        if read.keys.len() > KEYS_MAX {
            return Err(KeySetFault::Unreadable);
        }
        let mut set = Self::default();
        for jwk in read.keys {
            if let Some((kid, key)) = public_key(jwk)
                && set.keys.insert(kid, key).is_some()
            {
                // Two keys have the same id, so it is ambiguous which one a token refers to.
                return Err(KeySetFault::Unreadable);
            }
        }
        if set.keys.is_empty() { Err(KeySetFault::Unusable) } else { Ok(set) }
    }

    /// Adds a key, unless its id is revoked.
    pub fn insert(&mut self, kid: String, key: PublicKey) {
        if !self.revoked.contains(&kid) {
            self.keys.insert(kid, key);
        }
    }

    /// Removes the keys with these ids and prevents adding them again.
    pub fn revoke(&mut self, kids: &HashSet<String>) {
        self.keys.retain(|kid, _| !kids.contains(kid));
        self.revoked.extend(kids.iter().cloned());
    }

    /// Returns the key with this id, unless it is revoked.
    pub fn get(&self, kid: &str) -> Option<&PublicKey> {
        self.keys.get(kid)
    }

    pub fn is_revoked(&self, kid: &str) -> bool {
        self.revoked.contains(kid)
    }
}

impl PublicKey {
    /// Verifies a signature with this algorithm, which must match the key's type.
    ///
    /// # Errors
    /// If the algorithm doesn't match, or the signature is wrong.
    pub fn verify(&self, algorithm: Algorithm, signed: &[u8], signature: &[u8]) -> Result<(), TokenFault> {
        let rsa = |n, e| PublicKeyComponents { n, e };
        let verified = match (algorithm, self) {
            (Algorithm::Es256, Self::P256(point)) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point.as_slice()).verify(signed, signature)
            }
            (Algorithm::Ps256, Self::Rsa(n, e)) => {
                rsa(n.as_slice(), e.as_slice()).verify(&RSA_PSS_2048_8192_SHA256, signed, signature)
            }
            (Algorithm::Rs256, Self::Rsa(n, e)) => {
                rsa(n.as_slice(), e.as_slice()).verify(&RSA_PKCS1_2048_8192_SHA256, signed, signature)
            }
            (Algorithm::Es256, Self::Rsa(..)) | (Algorithm::Ps256 | Algorithm::Rs256, Self::P256(_)) => {
                return Err(TokenFault::Algorithm);
            }
        };
        verified.map_err(|_| TokenFault::Signature)
    }
}

fn public_key(jwk: Jwk) -> Option<(String, PublicKey)> {
    if jwk.r#use.is_some_and(|usage| usage != "sig" && usage != "jwt-svid") {
        return None;
    }
    let decode = |text: Option<String>| BASE64.decode(text?).ok();
    let key = match jwk.kty.as_str() {
        "EC" if jwk.crv.as_deref() == Some("P-256") => {
            let (x, y) = (decode(jwk.x)?, decode(jwk.y)?);
            (x.len() == 32 && y.len() == 32).then(|| PublicKey::P256([vec![4], x, y].concat()))?
        }
        "RSA" => {
            let (n, e) = (decode(jwk.n)?, decode(jwk.e)?);
            (n.len() >= 256).then_some(PublicKey::Rsa(n, e))?
        }
        _ => return None,
    };
    Some((jwk.kid.filter(|kid| !kid.is_empty())?, key))
}
