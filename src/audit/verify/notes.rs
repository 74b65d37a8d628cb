//! The tree of the verified lines and the signed checkpoints that it must agree with, without code of the writer.

use std::collections::BTreeMap;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest, Sha256};

/// Complete subtrees: the number of leaves and the hash of each.
#[derive(Debug, Default)]
pub(super) struct Tree {
    subtrees: Vec<(u64, [u8; 32])>,
    size: u64,
}

impl Tree {
    /// Creates a tree of this many leaves from its complete subtrees, the largest first.
    pub(super) fn of(size: u64, hashes: Vec<[u8; 32]>) -> Option<Self> {
        let sizes: Vec<u64> = (0..u64::BITS).rev().map(|bit| 1 << bit).filter(|part| size & part != 0).collect();
        (sizes.len() == hashes.len()).then(|| Self { subtrees: sizes.into_iter().zip(hashes).collect(), size })
    }

    pub(super) fn push(&mut self, line: &[u8]) {
        let mut last: (u64, [u8; 32]) = (1, Sha256::new().chain_update(b"\0").chain_update(line).finalize().into());
        while let Some((size, hash)) = self.subtrees.pop_if(|(size, _)| *size == last.0) {
            last = (2 * size, pair(&hash, &last.1));
        }
        self.subtrees.push(last);
        self.size += 1;
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn root(&self) -> [u8; 32] {
        let mut rest = self.subtrees.iter().rev().map(|(_, hash)| *hash);
        rest.next()
            .map_or_else(|| Sha256::digest(b"").into(), |last| rest.fold(last, |right, left| pair(&left, &right)))
    }
}

fn pair(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    Sha256::new().chain_update(b"\x01").chain_update(left).chain_update(right).finalize().into()
}

/// Public key of the checkpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verifier {
    name: String,
    id: [u8; 4],
    key: Vec<u8>,
}

impl Verifier {
    /// Parses `<name>+<hash>+<key>`, as `checkpoints.vkey` has it.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().splitn(3, '+');
        let (name, _, key) = (parts.next()?, parts.next()?, BASE64.decode(parts.next()?).ok()?);
        let hash = Sha256::new().chain_update(name).chain_update(b"\n").chain_update(&key).finalize();
        let id = hash.first_chunk().copied()?;
        // The first byte is the algorithm, 1 for Ed25519.
        key.strip_prefix(&[1]).map(|key| Self { name: name.to_owned(), id, key: key.to_vec() })
    }

    fn has_signed(&self, text: &str, signature: &str) -> bool {
        let bytes = BASE64.decode(signature).unwrap_or_default();
        let Some(rest) = bytes.strip_prefix(&self.id) else { return false };
        UnparsedPublicKey::new(&ED25519, &self.key).verify(text.as_bytes(), rest).is_ok()
    }
}

/// A checkpoint.
#[derive(Clone, Copy, Debug)]
struct Note {
    root: [u8; 32],
    /// Whether an auditor passed it with `--checkpoint`, so that it must be compared.
    is_noted: bool,
}

/// Checkpoints that the log has not reached yet, by the number of the tree's first line and the size of the tree.
#[derive(Debug, Default)]
pub(super) struct Notes {
    open: BTreeMap<(u64, u64), Note>,
    tree: Tree,
    base: u64,
    /// Number of checkpoints that agree with the log.
    pub(super) held: u64,
}

impl Notes {
    /// Reads a file of signed notes, each ended by an empty line. Without a key their signatures are not checked.
    pub(super) fn read(file: &str, verifier: Option<&Verifier>) -> Result<Self, String> {
        let mut notes = Self::default();
        notes.add(file, verifier, false)?;
        Ok(notes)
    }

    /// Returns whether there are no checkpoints left.
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Adds the checkpoints of a file. `is_noted` says that somebody noted them elsewhere.
    pub(super) fn add(&mut self, file: &str, verifier: Option<&Verifier>, is_noted: bool) -> Result<(), String> {
        let mut rest = file;
        let mut number = 0;
        while let Some((text, after)) = rest.split_once("\n\n") {
            number += 1;
            let wrong = |problem: &str| format!("checkpoint {number} {problem}");
            // What is not ended by an empty line is a write in progress, or was cut off by a crash.
            let Some((signatures, next)) = after.split_once("\n\n") else { break };
            let signed = format!("{text}\n");
            let is_signed = |verifier: &Verifier| {
                let lines = signatures.lines().filter_map(|line| line.strip_prefix("\u{2014} ")?.split_once(' '));
                lines.filter(|(name, _)| *name == verifier.name).any(|(_, by)| verifier.has_signed(&signed, by))
            };
            if verifier.is_some_and(|verifier| !is_signed(verifier)) {
                return Err(wrong("was not signed with this log's key"));
            }
            let (at, root) = parse(text, verifier).ok_or_else(|| wrong("has another form"))?;
            let is_noted = is_noted || self.open.get(&at).is_some_and(|known| known.is_noted);
            if self.open.insert(at, Note { root, is_noted }).is_some_and(|other| other.root != root) {
                return Err(wrong("contradicts an earlier one of the same size: the log has two histories"));
            }
            rest = next;
        }
        Ok(())
    }

    /// Begins behind lines that were deleted, with their tree. A checkpoint of fewer lines can't be compared.
    pub(super) fn begin(&mut self, base: u64, tree: Tree) -> Result<(), String> {
        let (root, end) = (tree.root(), base + tree.size);
        for ((of, size), note) in std::mem::take(&mut self.open) {
            if of + size > end {
                self.open.insert((of, size), note);
            } else if (of, size) == (base, tree.size) && note.root == root {
                self.held += 1;
            } else if (of, size) == (base, tree.size) {
                return Err(format!("the checkpoint of {size} lines is not that of the deleted lines"));
            } else if note.is_noted {
                return Err(format!(
                    "the checkpoint of {size} lines covers only deleted lines, so it can't be compared: give a later one"
                ));
            }
        }
        (self.base, self.tree) = (base, tree);
        Ok(())
    }

    /// Takes a line; `is_first` says that another tree begins with it.
    pub(super) fn line(&mut self, line: &[u8], seq: u64, is_first: bool) -> Result<(), String> {
        if is_first {
            (self.tree, self.base) = (Tree::default(), seq);
        }
        self.tree.push(line);
        match self.open.remove(&(self.base, self.tree.size)) {
            Some(note) if note.root != self.tree.root() => Err(
                "the lines up to this one are not those of their checkpoint: a line was changed, inserted or deleted"
                    .into(),
            ),
            Some(_) => {
                self.held += 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Returns the size of a checkpoint that the log does not reach, unless its last line is one whose loss was accepted.
    pub(super) fn left(&self, is_lost: impl Fn(u64) -> bool) -> Option<u64> {
        let last = |(base, size): &(u64, u64)| (base + size).saturating_sub(1);
        self.open.keys().filter(|place| !is_lost(last(place))).map(|(_, size)| *size).max()
    }
}

/// Returns the place of a checkpoint and its root.
fn parse(text: &str, verifier: Option<&Verifier>) -> Option<((u64, u64), [u8; 32])> {
    let lines: Vec<&str> = text.split('\n').collect();
    let [origin, size, root] = lines.as_slice() else { return None };
    let size: u64 = size.parse().ok().filter(|parsed: &u64| parsed.to_string() == *size)?;
    let last = origin.rsplit('/').next().unwrap_or("");
    let base = match verifier {
        Some(verifier) if *origin == verifier.name => 0,
        Some(verifier) => origin.strip_prefix(verifier.name.as_str())?.strip_prefix('/')?.parse().ok()?,
        // Names of logs are not numbers, so a number is that of the first line.
        None => last.parse().unwrap_or(0),
    };
    Some(((base, size), BASE64.decode(root).ok()?.try_into().ok()?))
}
