//! Evidence of decisions: what each of them was evaluated with, so that `countersign replay` can evaluate it again. It is encrypted
//! under a key of its data subject and lies beside the segment of its line, in `seg-<first>.evidence`; the line has its digest.
//! Without the key the evidence can't be read, and the line and its proofs stay valid.
//!
//! An evidence file has one line for each decision: the number of the decision's line, the id of the key, and in base64 a nonce, the
//! ciphertext and its tag (AES-256-GCM).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::audit::disk::{Disk, Segment};
use crate::audit::key::DigestKey;
use crate::model::text::hex;
use crate::model::time::Timestamp;

/// Purpose of the key that the keys of subjects are derived with.
const PURPOSE: &str = "countersign evidence";
/// Extension of evidence files.
pub(super) const EXTENSION: &str = "evidence";

/// Key of one data subject, derived from the secret in the state store and the deployment's key. Whoever has only one of them can't
/// read the evidence.
#[derive(Debug)]
pub struct SubjectKey {
    id: String,
    key: RandomizedNonceKey,
}

/// Encrypted evidence of a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    key: String,
    /// Nonce, ciphertext and tag.
    bytes: Vec<u8>,
}

impl SubjectKey {
    /// Creates the key from its id and secret. `None` if the cryptographic library refuses the key.
    pub fn new(deployment: &DigestKey, id: &str, secret: &str) -> Option<Self> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&deployment.derived_key(PURPOSE)).ok()?;
        mac.update(secret.as_bytes());
        let key = RandomizedNonceKey::new(&AES_256_GCM, &mac.finalize().into_bytes()).ok()?;
        Some(Self { id: id.to_owned(), key })
    }

    /// Encrypts evidence. `None` if the cryptographic library fails.
    pub fn seal(&self, mut evidence: Vec<u8>) -> Option<Sealed> {
        let nonce = self.key.seal_in_place_append_tag(Aad::from(self.id.as_bytes()), &mut evidence).ok()?;
        let bytes = [nonce.as_ref().as_slice(), &evidence].concat();
        Some(Sealed { key: self.id.clone(), bytes })
    }

    /// Decrypts evidence. `None` if it was encrypted under another key, or changed.
    pub fn open(&self, sealed: &Sealed) -> Option<Vec<u8>> {
        let (nonce, text) = sealed.bytes.split_at_checked(NONCE_LEN)?;
        let mut text = text.to_vec();
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let length = self.key.open_in_place(nonce, Aad::from(self.id.as_bytes()), &mut text).ok()?.len();
        text.truncate(length);
        Some(text)
    }
}

impl Sealed {
    /// Id of the key that it is encrypted under.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Returns `sha256:` and the hex digest of nonce, ciphertext and tag, which the line contains.
    pub fn digest(&self) -> String {
        format!("sha256:{}", hex(Sha256::digest(&self.bytes)))
    }

    /// Reads a line of an evidence file.
    pub(super) fn read(line: &str) -> Option<(u64, Self)> {
        let mut words = line.split(' ');
        let (seq, key, bytes) = (words.next()?.parse().ok()?, words.next()?, words.next()?);
        Some((seq, Self { key: key.to_owned(), bytes: BASE64.decode(bytes).ok()? }))
    }
}

/// Writes evidence beside the segments. Lines do not wait for it: a decision without evidence can't be replayed, and is valid.
#[derive(Debug)]
pub(super) struct EvidenceWriter {
    disk: Arc<dyn Disk>,
    open: Option<(PathBuf, Box<dyn Segment>)>,
    failing: bool,
}

impl EvidenceWriter {
    pub(super) fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk, open: None, failing: false }
    }

    /// Appends the evidence of lines that are written in a segment. Logs the first failure of several.
    pub(super) fn append(&mut self, segment: &Path, all: &[(u64, Sealed)]) {
        let mut text = String::new();
        for (seq, sealed) in all {
            text.push_str(&format!("{seq} {} ", sealed.key));
            BASE64.encode_string(&sealed.bytes, &mut text);
            text.push('\n');
        }
        if text.is_empty() {
            return;
        }
        match self.write(&segment.with_extension(EXTENSION), &text) {
            Ok(()) => self.failing = false,
            Err(error) => {
                self.open = None;
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::error!(name: "audit.evidence_lost", error = %error, "evidence can't be written: these decisions can't be replayed");
                }
            }
        }
    }

    fn write(&mut self, path: &Path, text: &str) -> io::Result<()> {
        if let Some((open, file)) = &mut self.open
            && open == path
        {
            return file.write_all(text.as_bytes());
        }
        let mut file = self.disk.open(path)?;
        // A crash may have torn the last line.
        file.write_all(b"\n")?;
        file.write_all(text.as_bytes())?;
        self.open = Some((path.to_owned(), file));
        Ok(())
    }
}

/// Deletes evidence that was last written before a time.
///
/// # Errors
/// When the folder can't be read, or a file can't be deleted.
pub fn purge(folder: &Path, before: Timestamp) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == EXTENSION) && is_older(&path, before)? {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Returns whether a file was last written before a time.
pub(super) fn is_older(path: &Path, before: Timestamp) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(fs::metadata(path)?.mtime() < before.seconds_and_nanos().0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str, secret: &str) -> SubjectKey {
        SubjectKey::new(&DigestKey::new([7; 32]), id, secret).expect("a key")
    }

    #[test]
    fn evidence_opens_under_its_own_key_alone_and_unchanged() {
        let sealed = key("k1", "secret").seal(b"the call".to_vec()).expect("sealed");
        assert_eq!(key("k1", "secret").open(&sealed).as_deref(), Some(b"the call".as_slice()));
        assert!(!sealed.bytes.windows(8).any(|window| window == b"the call"));
        assert_eq!(key("k1", "other").open(&sealed), None);
        assert_eq!(key("k2", "secret").open(&sealed), None);
        let other = SubjectKey::new(&DigestKey::new([8; 32]), "k1", "secret").expect("a key");
        assert_eq!(other.open(&sealed), None);
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
