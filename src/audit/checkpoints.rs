//! Keeps the tree of the log while lines are written, and its signed checkpoints in `checkpoints.txt`. `seg-<first>.tree` stores the
//! tree before each segment, so that the server reads only the last segment when it starts.

use std::fs;
use std::io::{self, BufRead as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::audit::checkpoint::{Checkpoint, CheckpointKey, notes};
use crate::audit::disk::{Disk, Segment};
use crate::audit::error::OpenError;
use crate::audit::recover::{LOSS, segments};
use crate::audit::tree::{Edge, Hash, leaf};
use crate::model::number::to_u64;
use crate::model::time::Timestamp;

/// File with all checkpoints, the oldest first.
pub const FILE: &str = "checkpoints.txt";
/// Number of lines after which a checkpoint is signed.
const LINES: u64 = 1000;
/// Time after which a checkpoint of new lines is signed.
const AGE: Duration = Duration::from_secs(10);
/// First line of a `.tree` file.
const TREE: &str = "countersign audit tree 1";

/// Tree before a segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Before {
    /// Number of the line that is the tree's first leaf. It is not 0 after lines were lost.
    pub base: u64,
    pub edge: Edge,
}

/// Place in the log at which the writer continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begins {
    /// In a new segment that begins with this line, after lines whose loss was accepted.
    AfterLoss(u64),
    /// In the first segment of a new log.
    New,
    /// After the last line of the last segment.
    There,
}

/// The tree of the log and its checkpoints.
#[derive(Debug)]
pub(super) struct Checkpoints {
    key: CheckpointKey,
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    file: Box<dyn Segment>,
    /// Length of the file's complete notes, in bytes.
    length: u64,
    base: u64,
    pub(super) edge: Edge,
    /// Size and time of the last checkpoint.
    signed: (u64, Timestamp),
}

impl Checkpoints {
    /// Reads the tree of a log.
    pub(super) fn open(
        folder: &Path,
        disk: Arc<dyn Disk>,
        key: CheckpointKey,
        begins: Begins,
        now: Timestamp,
    ) -> Result<Self, OpenError> {
        let io = |error| OpenError::Io(folder.to_owned(), error);
        let notes_file = fs::read(folder.join(FILE)).or_else(absent).map_err(io)?;
        let notes_file = String::from_utf8_lossy(&notes_file);
        let verifier = key.verifier().ok_or_else(|| io(io::Error::other("the checkpoint key can't be used")))?;
        let all = notes(&notes_file);
        let length = all.iter().map(|note| to_u64(note.len()) + 1).sum();
        let last = all.last().copied();
        let contradicts = || OpenError::Checkpoint(folder.join(FILE));
        let opened = last.map(|note| Checkpoint::open(note, &verifier).ok_or_else(contradicts)).transpose();
        let last = match begins {
            Begins::AfterLoss(_) => opened.unwrap_or_default(),
            // Every line that a checkpoint covers is gone.
            Begins::New if last.is_some() => return Err(contradicts()),
            Begins::New | Begins::There => opened?,
        };
        let base = if let Begins::AfterLoss(next) = begins { next } else { 0 };
        let mut tree = Before { base, edge: Edge::default() };
        if begins == Begins::There {
            let mut is_held = false;
            tree = read(folder, last.as_ref().map_or(u64::MAX, |last| last.size), |tree| {
                is_held |= last.as_ref().is_some_and(|last| {
                    let is_this = last.size == tree.edge.size() && last.origin == origin(&key, tree.base);
                    is_this && last.root == tree.edge.root()
                });
            })
            .map_err(io)?;
            let must = last.as_ref().filter(|last| last.origin == origin(&key, tree.base));
            if must.is_some() && !is_held {
                return Err(contradicts());
            }
        }
        let mut file = disk.open(&folder.join(FILE)).map_err(io)?;
        file.set_len(length).map_err(io)?;
        let size = last.filter(|last| last.origin == origin(&key, tree.base)).map_or(0, |last| last.size);
        let Before { base, edge } = tree;
        Ok(Self { key, disk, folder: folder.to_owned(), file, length, base, edge, signed: (size, now) })
    }

    /// Signs a checkpoint of all lines, which must be durable. It signs only if there are lines that no checkpoint covers, and if
    /// enough of them or enough time has passed, or `is_forced` is set.
    pub(super) fn sign(&mut self, now: Timestamp, is_forced: bool) -> io::Result<()> {
        let size = self.edge.size();
        let new = size.saturating_sub(self.signed.0);
        if new == 0 {
            // No line waits.
            self.signed.1 = now;
        }
        if new == 0 || !(is_forced || new >= LINES || self.signed.1.plus(AGE) <= now) {
            return Ok(());
        }
        let note = self.key.sign(&origin(&self.key, self.base), size, self.edge.root());
        // An empty line ends a note.
        let written = self.file.write_all(format!("{note}\n").as_bytes()).and_then(|()| self.file.sync());
        if let Err(error) = written {
            self.file.set_len(self.length)?;
            return Err(error);
        }
        self.length += to_u64(note.len()) + 1;
        self.signed = (size, now);
        Ok(())
    }

    /// Notes the tree before a segment that begins with line `first`.
    pub(super) fn begin(&self, first: u64) -> io::Result<()> {
        let mut text = format!("{TREE}\n{}\n{}\n", self.base, self.edge.size());
        self.edge.hashes().iter().for_each(|hash| text.push_str(&format!("{}\n", BASE64.encode(hash))));
        let mut file = self.disk.open(&tree_path(&self.folder, first))?;
        file.set_len(0)?;
        file.write_all(text.as_bytes())?;
        file.sync()
    }

    /// Returns the time of the last checkpoint, or of the last look at which no line waited for one.
    pub(super) fn signed_at(&self) -> Timestamp {
        self.signed.1
    }
}

/// Returns the name of a tree in its checkpoints: after a loss, another tree begins.
fn origin(key: &CheckpointKey, base: u64) -> String {
    if base == 0 { key.name().to_owned() } else { format!("{}/{base}", key.name()) }
}

fn absent(error: io::Error) -> io::Result<Vec<u8>> {
    if error.kind() == io::ErrorKind::NotFound { Ok(vec![]) } else { Err(error) }
}

/// Returns the number of the last line that a checkpoint of this log covers.
pub(super) fn last_line(folder: &Path, key: &CheckpointKey) -> Option<u64> {
    let file = fs::read(folder.join(FILE)).ok()?;
    let file = String::from_utf8_lossy(&file);
    let verifier = key.verifier()?;
    let all = notes(&file).into_iter().filter_map(|note| Checkpoint::open(note, &verifier));
    let last = |checkpoint: Checkpoint| checkpoint.base().checked_add(checkpoint.size)?.checked_sub(1);
    all.filter_map(last).max()
}

/// Returns whether a segment begins with the line that accepts a loss, and with another tree.
fn begins_after_loss(segment: &Path) -> bool {
    #[derive(serde::Deserialize)]
    struct First {
        r#type: String,
    }
    let first = fs::File::open(segment).ok().and_then(|file| io::BufReader::new(file).split(b'\n').next()?.ok());
    first.and_then(|line| serde_json::from_slice::<First>(&line).ok()).is_some_and(|first| first.r#type == LOSS)
}

fn tree_path(folder: &Path, first: u64) -> PathBuf {
    folder.join(format!("seg-{first:020}.tree"))
}

/// Reads the tree before a segment; `None` if its file is missing or damaged.
fn before(folder: &Path, first: u64) -> Option<Before> {
    let text = fs::read_to_string(tree_path(folder, first)).ok()?;
    let mut lines = text.lines();
    let (head, base, size) = (lines.next()?, lines.next()?.parse().ok()?, lines.next()?.parse().ok()?);
    let hashes = lines.map(|line| BASE64.decode(line).ok()?.try_into().ok()).collect::<Option<_>>()?;
    let edge = Edge::new(size, hashes).filter(|_| head == TREE)?;
    Some(Before { base, edge })
}

/// Returns the first line and the root of the tree before a segment.
///
/// # Errors
/// If it is not noted.
pub(super) fn root_before(folder: &Path, first: u64) -> io::Result<(u64, Hash)> {
    let tree = before(folder, first).filter(|tree| tree.base + tree.edge.size() == first);
    let tree = tree.ok_or_else(|| io::Error::other(format!("`{}` is missing", tree_path(folder, first).display())))?;
    Ok((tree.base, tree.edge.root()))
}

/// Returns the last segment with a tree noted before it that `is_wanted` takes, by its place, and the tree. Without one, the log is
/// read from its beginning.
pub(super) fn noted(
    folder: &Path,
    segments: &[(u64, PathBuf)],
    is_wanted: impl Fn(u64, &Before) -> bool,
) -> (usize, Before) {
    // Somebody who can write the folder can write notes of trees, but can't sign the line that accepts a loss.
    let is_first = |base: u64| segments.iter().any(|(first, path)| *first == base && begins_after_loss(path));
    let is_true = |first: u64, tree: &Before| (tree.base == 0 || is_first(tree.base)) && is_wanted(first, tree);
    let all = segments.iter().enumerate().rev();
    let found = all
        .map(|(at, (first, _))| (at, *first))
        .find_map(|(at, first)| Some((at, before(folder, first).filter(|tree| is_true(first, tree))?)));
    found.unwrap_or_default()
}

/// Reads the tree of a whole log. `visit` is called with the tree after each line from a segment on before which the tree is noted
/// and has at most `size` leaves.
fn read(folder: &Path, size: u64, mut visit: impl FnMut(&Before)) -> io::Result<Before> {
    let segments = segments(folder)?;
    let (from, mut tree) = noted(folder, &segments, |_, tree| tree.edge.size() <= size);
    for (first, path) in segments.iter().skip(from) {
        if first.checked_sub(tree.base) != Some(tree.edge.size()) {
            if !begins_after_loss(path) {
                return Err(io::Error::other(format!("lines are missing before `{}`", path.display())));
            }
            tree = Before { base: *first, edge: Edge::default() };
        }
        visit(&tree);
        for line in io::BufReader::new(fs::File::open(path)?).split(b'\n') {
            tree.edge.push(leaf(&line?));
            visit(&tree);
        }
    }
    Ok(tree)
}
