//! Encryption (AES-256-GCM) of what is kept about a person, so that deleting the person's secret erases all of it, wherever copies are.

use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::model::text::hex;

/// Keys of a deployment, from which those of data subjects are derived. Its `Debug` output contains no byte of them.
#[derive(Clone)]
pub struct DeploymentKeys(Arc<[[u8; 32]]>);

impl std::fmt::Debug for DeploymentKeys {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("DeploymentKeys")
    }
}

/// Key of one data subject, derived from its secret in the state store and a key of the deployment, which is in a file. Whoever has only one of them
/// can read nothing.
#[derive(Debug)]
pub struct SubjectKey {
    id: String,
    /// One for each key of the deployment, the current one first.
    keys: Vec<RandomizedNonceKey>,
}

/// Encrypted text. It is displayed as the id of its key and, in base64, nonce, ciphertext and tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    key: String,
    /// Nonce, ciphertext and tag.
    bytes: Vec<u8>,
}

/// Returns a random id for a key, and a random secret, in hex. `None` if the random source fails.
pub fn fresh() -> Option<(String, String)> {
    let (mut id, mut secret) = ([0; 16], [0; 32]);
    aws_lc_rs::rand::fill(&mut id).and_then(|()| aws_lc_rs::rand::fill(&mut secret)).ok()?;
    Some((hex(id), hex(secret)))
}

impl DeploymentKeys {
    /// Takes the keys, the current one first.
    pub fn new(keys: impl IntoIterator<Item = [u8; 32]>) -> Self {
        Self(keys.into_iter().collect())
    }

    /// Returns a subject's key of this id and secret. `None` if the cryptographic library refuses it.
    pub fn of_subject(&self, id: &str, secret: &str) -> Option<SubjectKey> {
        let derive = |deployment: &[u8; 32]| {
            let mut mac = Hmac::<Sha256>::new_from_slice(deployment).ok()?;
            mac.update(secret.as_bytes());
            RandomizedNonceKey::new(&AES_256_GCM, &mac.finalize().into_bytes()).ok()
        };
        Some(SubjectKey { id: id.to_owned(), keys: self.0.iter().map(derive).collect::<Option<_>>()? })
    }
}

impl SubjectKey {
    /// Encrypts a text. `None` if the cryptographic library fails.
    pub fn seal(&self, mut text: Vec<u8>) -> Option<Sealed> {
        let nonce = self.keys.first()?.seal_in_place_append_tag(Aad::from(self.id.as_bytes()), &mut text).ok()?;
        let bytes = [nonce.as_ref().as_slice(), &text].concat();
        Some(Sealed { key: self.id.clone(), bytes })
    }

    /// Decrypts a text. `None` if it was encrypted under another key, or changed.
    pub fn open(&self, sealed: &Sealed) -> Option<Vec<u8>> {
        let (nonce, text) = sealed.bytes.split_at_checked(NONCE_LEN)?;
        self.keys.iter().find_map(|key| {
            let mut text = text.to_vec();
            let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
            let length = key.open_in_place(nonce, Aad::from(self.id.as_bytes()), &mut text).ok()?.len();
            text.truncate(length);
            Some(text)
        })
    }
}

impl Sealed {
    /// Id of the key that it is encrypted under.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Returns `sha256:` and the hex digest of nonce, ciphertext and tag.
    pub fn digest(&self) -> String {
        format!("sha256:{}", hex(Sha256::digest(&self.bytes)))
    }

    /// Reads what [`Sealed`] is displayed as.
    pub fn read(text: &str) -> Option<Self> {
        let (key, bytes) = text.split_once(' ')?;
        Some(Self { key: key.to_owned(), bytes: BASE64.decode(bytes).ok()? })
    }
}

impl std::fmt::Display for Sealed {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} {}", self.key, BASE64.encode(&self.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str, secret: &str) -> SubjectKey {
        DeploymentKeys::new([[7; 32]]).of_subject(id, secret).expect("a key")
    }

    #[test]
    fn a_text_opens_under_its_own_key_alone_and_unchanged() {
        let sealed = key("k1", "secret").seal(b"the call".to_vec()).expect("sealed");
        assert_eq!(key("k1", "secret").open(&sealed).as_deref(), Some(b"the call".as_slice()));
        assert_eq!(Sealed::read(&sealed.to_string()).as_ref(), Some(&sealed));
        assert!(!sealed.bytes.windows(8).any(|window| window == b"the call"));
        assert_eq!(key("k1", "other").open(&sealed), None);
        assert_eq!(key("k2", "secret").open(&sealed), None);
        let other = DeploymentKeys::new([[8; 32]]).of_subject("k1", "secret").expect("a key");
        assert_eq!(other.open(&sealed), None);
        let rotated = DeploymentKeys::new([[8; 32], [7; 32]]).of_subject("k1", "secret").expect("a key");
        assert_eq!(rotated.open(&sealed).as_deref(), Some(b"the call".as_slice()));
        assert_eq!(key("k1", "secret").open(&rotated.seal(b"more".to_vec()).expect("sealed")), None);
        for at in 0..sealed.bytes.len() {
            let mut changed = sealed.clone();
            changed.bytes[at] ^= 1;
            assert_eq!(key("k1", "secret").open(&changed), None, "{at}");
            assert_ne!(changed.digest(), sealed.digest());
        }
        for length in 0..NONCE_LEN + 16 {
            let short = Sealed { bytes: sealed.bytes[..length].to_vec(), ..sealed.clone() };
            assert_eq!(key("k1", "secret").open(&short), None, "{length}");
        }
    }
}
