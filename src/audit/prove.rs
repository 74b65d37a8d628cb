//! Proofs of one line (C2SP tlog-proof) and of the consistency of two checkpoints, made from the files of a log.

use std::fs;
use std::io::{self, BufRead as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;

use crate::audit::checkpoint::{Checkpoint, VerifierKey, notes};
use crate::audit::checkpoints::{self, Before};
use crate::audit::recover::segments;
use crate::audit::tree::{Hash, Leaves, leaf, root_by_inclusion};

/// First line of a proof.
const FORMAT: &str = "c2sp.org/tlog-proof@v1";

/// Line to prove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The line of a decision or refusal.
    Evaluation(String),
    /// The line with this number.
    Index(u64),
}

/// Line of a log, with its proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    pub index: u64,
    /// The exact bytes of the line, without its newline: what is proven.
    pub line: Vec<u8>,
    /// Text of the proof, which contains the checkpoint.
    pub text: String,
}

/// Reason why nothing can be proven.
#[derive(Debug, thiserror::Error)]
pub enum ProveError {
    #[error("the log in `{0}` has no such line")]
    Missing(PathBuf),
    /// The lines are not those that a checkpoint was signed for.
    #[error("the log in `{0}` differs from the checkpoint: lines were changed, inserted or deleted")]
    Differs(PathBuf),
    /// No checkpoint covers the line yet.
    #[error("no checkpoint covers line {0} yet: one is signed every ten seconds, and when the server stops")]
    Uncovered(u64),
    #[error("`{0}` is no checkpoint of this log")]
    Foreign(String),
    #[error("`{0}` can't be read: {1}")]
    Io(PathBuf, io::Error),
}

#[derive(Deserialize)]
struct Place {
    seq: u64,
    evaluation_id: Option<String>,
    r#type: String,
}

/// Proves that a line is in the tree of the newest checkpoint.
///
/// # Errors
/// If the log has no such line, no checkpoint covers it, or a file can't be read.
pub fn prove(folder: &Path, wanted: &Wanted) -> Result<Proof, ProveError> {
    let unreadable = |error| ProveError::Io(folder.to_owned(), error);
    let (index, line) = find(folder, wanted).map_err(unreadable)?.ok_or(ProveError::Missing(folder.to_owned()))?;
    let (tree, leaves) = leaves(folder, index).map_err(unreadable)?;
    let at = index.saturating_sub(tree);
    let newest = newest(folder, tree, leaves.size()).map_err(unreadable)?;
    let (note, Checkpoint { size, root, .. }) = newest.ok_or(ProveError::Uncovered(index))?;
    let proof = leaves.inclusion(at, size).ok_or(ProveError::Uncovered(index))?;
    if leaves.root(0, size) != Some(root) {
        return Err(ProveError::Differs(folder.to_owned()));
    }
    let text = format!("{FORMAT}\nindex {at}\n{}\n{note}", written(&proof));
    Ok(Proof { index, line, text })
}

/// Proves that an older checkpoint's tree is the beginning of the newest one's: the body of a witness' `add-checkpoint` request
/// (C2SP tlog-witness).
///
/// # Errors
/// If the older checkpoint is not of this log, or a file can't be read.
pub fn prove_consistency(folder: &Path, older: &str) -> Result<String, ProveError> {
    let unreadable = |error| ProveError::Io(folder.to_owned(), error);
    let foreign = || ProveError::Foreign(older.lines().next().unwrap_or("").to_owned());
    let old = Checkpoint::read(older).ok_or_else(foreign)?;
    // The tree before a later segment is enough, and the segments before may have been deleted.
    let (_, leaves) = leaves(folder, old.base() + old.size).map_err(unreadable)?;
    let newest = newest(folder, old.base(), leaves.size()).map_err(unreadable)?;
    let (note, new) = newest.filter(|(_, new)| new.origin == old.origin).ok_or_else(foreign)?;
    if leaves.root(0, old.size) != Some(old.root) || leaves.root(0, new.size) != Some(new.root) {
        return Err(ProveError::Differs(folder.to_owned()));
    }
    let proof = leaves.consistency(old.size, new.size).ok_or_else(foreign)?;
    Ok(format!("old {}\n{}\n{note}", old.size, written(&proof)))
}

/// Checks a proof of a line; returns the checkpoint that it leads to.
pub fn check(line: &[u8], proof: &str, key: &VerifierKey) -> Option<Checkpoint> {
    let (head, note) = proof.split_once("\n\n")?;
    let mut lines = head.lines().filter(|line| !line.starts_with("extra "));
    let index = (lines.next()? == FORMAT).then(|| lines.next()?.strip_prefix("index ")?.parse().ok())??;
    let hashes: Option<Vec<Hash>> = lines.map(|line| BASE64.decode(line).ok()?.try_into().ok()).collect();
    let checkpoint = Checkpoint::open(note, key)?;
    let root = root_by_inclusion(leaf(line), index, checkpoint.size, &hashes?)?;
    (root == checkpoint.root).then_some(checkpoint)
}

fn written(proof: &[Hash]) -> String {
    proof.iter().map(|hash| format!("{}\n", BASE64.encode(hash))).collect()
}

/// Returns the number of a line and its bytes.
fn find(folder: &Path, wanted: &Wanted) -> io::Result<Option<(u64, Vec<u8>)>> {
    let segments = segments(folder)?;
    let last = |index: &u64| segments.iter().rposition(|(first, _)| first <= index);
    let (from, to) = match wanted {
        Wanted::Evaluation(_) => (0, segments.len()),
        Wanted::Index(index) => match last(index) {
            Some(at) => (at, at + 1),
            None => return Ok(None),
        },
    };
    for (_, path) in segments.iter().take(to).skip(from) {
        for line in io::BufReader::new(fs::File::open(path)?).split(b'\n') {
            let line = line?;
            let Ok(place) = serde_json::from_slice::<Place>(&line) else { continue };
            let is_wanted = match wanted {
                Wanted::Evaluation(id) => {
                    ["decision", "refusal"].contains(&place.r#type.as_str())
                        && place.evaluation_id.as_deref() == Some(id)
                }
                Wanted::Index(index) => place.seq == *index,
            };
            if is_wanted {
                return Ok(Some((place.seq, line)));
            }
        }
    }
    Ok(None)
}

/// Returns the tree's first line, and its leaves from the segment of a line on.
fn leaves(folder: &Path, index: u64) -> io::Result<(u64, Leaves)> {
    let segments = segments(folder)?;
    let (from, Before { base, edge }) = checkpoints::noted(folder, &segments, |first, _| first <= index);
    let mut leaves = Leaves { before: edge, hashes: vec![] };
    for (first, path) in segments.iter().skip(from) {
        if first.checked_sub(base) != Some(leaves.size()) {
            // Another tree begins after lost lines.
            break;
        }
        for line in io::BufReader::new(fs::File::open(path)?).split(b'\n') {
            leaves.hashes.push(leaf(&line?));
        }
    }
    Ok((base, leaves))
}

/// Returns the newest checkpoint of a tree that has at most this many leaves, with its note.
fn newest(folder: &Path, base: u64, most: u64) -> io::Result<Option<(String, Checkpoint)>> {
    let file = fs::read(folder.join(checkpoints::FILE))?;
    let file = String::from_utf8_lossy(&file);
    let all = notes(&file).into_iter().filter_map(|note| Some((note.to_owned(), Checkpoint::read(note)?)));
    let mut of_tree = all.filter(|(_, checkpoint)| checkpoint.base() == base && checkpoint.size <= most);
    Ok(of_tree.next_back())
}
