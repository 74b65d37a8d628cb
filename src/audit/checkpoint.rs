//! Checkpoints of the log: its number of lines and the root of its tree, signed (C2SP tlog-checkpoint and signed-note, with
//! Ed25519). Whoever has a checkpoint that left this machine can prove what was in the log at that time.

use std::path::Path;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest, Sha256};

use crate::audit::key::DigestKey;
use crate::audit::tree::Hash;
use crate::model::part::Part;

/// Name of the key file in the folder of keys.
pub const KEY_FILE: &str = "audit-checkpoint.key";
/// Name of the file with its public key, beside it.
pub const VERIFIER_FILE: &str = "audit-checkpoint.vkey";
/// Signature algorithm of a note: Ed25519.
const ED25519_KIND: u8 = 1;
/// Number of bytes of a key id before a signature.
const KEY_ID: usize = 4;
/// Number of hexadecimal digits of a log's name.
const NAME: usize = 16;
/// Beginning of a line with a signature.
const SIGNATURE: &str = "\u{2014} ";
/// Purpose of the seed that is derived from the key file.
const PURPOSE: &str = "countersign audit checkpoint";

/// Key that signs checkpoints. Its `Debug` output contains no byte of it.
pub struct CheckpointKey {
    name: String,
    pair: Ed25519KeyPair,
}

impl std::fmt::Debug for CheckpointKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("CheckpointKey")
    }
}

/// Number of lines of a log and the root of their tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Name of the tree: that of the key, and the number of the first line if it is not 0.
    pub origin: String,
    pub size: u64,
    pub root: Hash,
}

/// Public key of a log, as `<name>+<hash>+<key>` (C2SP signed-note).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    key: [u8; 32],
}

impl CheckpointKey {
    /// Reads the key file, or creates it.
    ///
    /// # Errors
    /// When the file can't be read or written, or holds no key.
    pub fn read_or_create(path: &Path, fresh: [u8; 32]) -> std::io::Result<Self> {
        let seed = DigestKey::read_or_create(path, fresh)?.derived_key(PURPOSE);
        Self::new(seed).ok_or_else(|| std::io::Error::other("the cryptographic library refused the key"))
    }

    /// The name is made from the public key, so that each log has its own, whatever else is renamed.
    pub fn new(seed: [u8; 32]) -> Option<Self> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).ok()?;
        let hash = crate::model::text::hex(Sha256::digest(pair.public_key().as_ref()));
        Some(Self { name: format!("countersign/log-{}", hash.get(..NAME)?), pair })
    }

    /// Name of the key, with which the origin of each checkpoint begins.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn verifier(&self) -> Option<VerifierKey> {
        let key = self.pair.public_key().as_ref().try_into().ok()?;
        Some(VerifierKey { name: self.name.clone(), key })
    }

    /// Returns the signed note of a checkpoint.
    pub fn sign(&self, origin: &str, size: u64, root: Hash) -> String {
        let text = Checkpoint { origin: origin.to_owned(), size, root }.text();
        let mut signature = self.verifier().map_or_else(Vec::new, |key| key.id().to_vec());
        signature.extend_from_slice(self.pair.sign(text.as_bytes()).as_ref());
        format!("{text}\n{SIGNATURE}{} {}\n", self.name, BASE64.encode(signature))
    }
}

impl Checkpoint {
    fn text(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, BASE64.encode(self.root))
    }

    /// Reads the text of a note without checking its signature; `None` if the note has another form.
    pub fn read(note: &str) -> Option<Self> {
        let (text, _) = note.split_once("\n\n")?;
        let lines: Vec<&str> = text.split('\n').collect();
        let [origin, size, root] = lines.as_slice() else { return None };
        Some(Self {
            origin: (*origin).to_owned(),
            size: size.parse().ok().filter(|parsed: &u64| parsed.to_string() == *size)?,
            root: BASE64.decode(root).ok()?.try_into().ok()?,
        })
    }

    /// Returns the number of the first line of the tree.
    pub fn base(&self) -> u64 {
        self.origin.rsplit('/').next().and_then(|last| last.parse().ok()).unwrap_or(0)
    }

    /// Reads a signed note and checks its signature; `None` if the note has another form or was not signed by this key. Signatures
    /// by other keys, such as those of witnesses, are ignored.
    pub fn open(note: &str, key: &VerifierKey) -> Option<Self> {
        let (text, signatures) = note.split_once("\n\n")?;
        let checkpoint = Self::read(note)?;
        let signed = format!("{text}\n");
        let mut own = signatures.lines().filter_map(|line| line.strip_prefix(SIGNATURE)?.split_once(' '));
        let is_signed = own.any(|(name, signature)| {
            let signature = BASE64.decode(signature).unwrap_or_default();
            let (id, rest) = signature.split_at(KEY_ID.min(signature.len()));
            name == key.name && id == key.id() && key.public().verify(signed.as_bytes(), rest).is_ok()
        });
        let is_own =
            checkpoint.origin.strip_prefix(&key.name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        (is_signed && is_own).then_some(checkpoint)
    }
}

impl VerifierKey {
    /// Parses `<name>+<hash>+<key>`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().splitn(3, '+');
        let (name, hash, key) = (parts.next()?, parts.next()?, BASE64.decode(parts.next()?).ok()?);
        let (kind, key) = key.split_first()?;
        let parsed = Self { name: name.to_owned(), key: key.try_into().ok()? };
        (*kind == ED25519_KIND && crate::model::text::hex(parsed.id()) == hash).then_some(parsed)
    }

    fn public(&self) -> UnparsedPublicKey<&[u8; 32]> {
        UnparsedPublicKey::new(&ED25519, &self.key)
    }

    /// Returns the key id: the beginning of the SHA-256 of the name, a newline, the kind of the key and the key.
    fn id(&self) -> [u8; KEY_ID] {
        let hash = Sha256::new().chain_update(&self.name).chain_update([b'\n', ED25519_KIND]).chain_update(self.key);
        let mut id = [0; KEY_ID];
        id.iter_mut().zip(hash.finalize()).for_each(|(byte, hashed)| *byte = hashed);
        id
    }
}

impl std::fmt::Display for VerifierKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let key: Vec<u8> = std::iter::once(ED25519_KIND).chain(self.key).collect();
        write!(formatter, "{}+{}+{}", self.name, crate::model::text::hex(self.id()), BASE64.encode(key))
    }
}

/// Splits a file of checkpoints into its signed notes, the oldest first. Bytes of a note that a crash cut off are left out.
pub fn notes(file: &str) -> Vec<&str> {
    let mut notes = vec![];
    let mut rest = file;
    while let Some(end) = rest.find(SIGNATURE).and_then(|at| rest.part(at..).find("\n\n").map(|length| at + length + 1))
    {
        notes.push(rest.part(..end));
        rest = rest.part(end + 1..);
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_opened_by_its_key_alone() {
        let key = CheckpointKey::new([7; 32]).expect("a key");
        let verifier = key.verifier().expect("a public key");
        assert_eq!(VerifierKey::parse(&verifier.to_string()), Some(verifier.clone()));
        let note = key.sign(key.name(), 20, [3; 32]);
        let expected = Checkpoint { origin: key.name().into(), size: 20, root: [3; 32] };
        assert_eq!(Checkpoint::open(&note, &verifier), Some(expected));
        let witnessed = format!("{note}\u{2014} witness.example AAAAAAAA\n");
        assert!(Checkpoint::open(&witnessed, &verifier).is_some(), "a witness may sign as well");
        let other = CheckpointKey::new([8; 32]).expect("a key").verifier().expect("a public key");
        assert_eq!(Checkpoint::open(&note, &other), None);
        for (what, forged) in [
            ("size", note.replace("\n20\n", "\n21\n")),
            ("leading zero", note.replace("\n20\n", "\n020\n")),
            ("name", note.replace("log-", "log-0")),
            ("a line more", note.replace("\n20\n", "\n20\nx\n")),
            ("no signature", note.split('\u{2014}').next().unwrap_or_default().to_owned()),
        ] {
            assert_eq!(Checkpoint::open(&forged, &verifier), None, "{what}");
        }
        let file = format!("{note}\n{}\n{note}", key.sign(key.name(), 21, [4; 32]));
        assert_eq!(notes(&file).len(), 2);
        assert!(notes(&file).iter().all(|note| Checkpoint::open(note, &verifier).is_some()));
        let name = verifier.to_string().replace("log-", "log-0");
        assert_eq!(VerifierKey::parse(&name), None, "the hash covers the name");
        let after_loss = key.sign(&format!("{}/900", key.name()), 3, [5; 32]);
        assert!(Checkpoint::open(&after_loss, &verifier).is_some(), "a tree after lost lines");
        let longer = key.sign(&format!("{}2", key.name()), 3, [5; 32]);
        assert_eq!(Checkpoint::open(&longer, &verifier), None, "another log");
    }
}
