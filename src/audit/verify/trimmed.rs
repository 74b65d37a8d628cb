//! The beginning of a log whose oldest segments were deleted.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::canonical::Members;
use super::hex;
use super::notes::{Notes, Tree};

/// What is known of the deleted lines. Later checkpoints show whether the tree is true, and the MAC of the first line whether its
/// `prev` is.
#[derive(Debug)]
pub(super) struct Before {
    /// Number of the first line that is there.
    pub(super) line: u64,
    /// Hash of the line before.
    pub(super) prev: String,
    /// Number of the line with which the tree begins.
    pub(super) base: u64,
    pub(super) tree: Tree,
}

/// Lines that were deleted because of their age, and whether a line of the server says so.
#[derive(Debug)]
pub(super) struct Deleted {
    line: u64,
    prev: String,
    base: u64,
    root: String,
    /// Whether the log has checkpoints.
    has_checkpoints: bool,
    is_said: bool,
}

impl Deleted {
    /// Begins the tree of the log behind the deleted lines.
    pub(super) fn of(Before { line, prev, base, tree }: Before, notes: &mut Notes) -> Result<Self, String> {
        let (root, has_checkpoints) = (hex(&tree.root()), !notes.is_empty());
        notes.begin(base, tree)?;
        Ok(Self { line, prev, base, root, has_checkpoints, is_said: false })
    }

    /// Takes a line that says that those before `before` were deleted. `tree` and `root` are first line and root of their tree.
    pub(super) fn says(&mut self, before: u64, hash: &str, tree: u64, root: &str) -> Result<(), String> {
        if before == self.line && (hash, tree, root) != (&*self.prev, self.base, &*self.root) {
            return Err(
                "the tree or the hash of the deleted lines is another one: `seg-*.tree` or the first line was changed"
                    .to_owned(),
            );
        }
        // A deletion that was interrupted left some of the lines.
        self.is_said |= before >= self.line;
        Ok(())
    }

    /// Returns why the lines may have been deleted by somebody else. `held` is the number of checkpoints that agree.
    pub(super) fn problem(&self, first: u64, held: u64) -> Option<String> {
        if !self.is_said {
            return Some(format!(
                "the log begins with line {first}, and no line says that those before were deleted: lines were cut off"
            ));
        }
        (self.has_checkpoints && held == 0)
            .then(|| format!("the log begins with line {first}, and no checkpoint covers a line that is there"))
    }
}

/// Reads what is known of the lines before the first segment; `None` if the log has its beginning.
pub(super) fn before(folder: &Path, segments: &[(String, PathBuf)]) -> Result<Option<Before>, String> {
    let Some((name, path)) = segments.first() else { return Ok(None) };
    let stem = name.strip_suffix(".jsonl").unwrap_or(name);
    let Some(line) = stem.strip_prefix("seg-").and_then(|first| first.parse().ok()).filter(|first| *first > 0) else {
        return Ok(None);
    };
    let first =
        fs::File::open(path).ok().and_then(|file| BufReader::new(file).split(b'\n').next()?.ok()).unwrap_or_default();
    let members = Members::read(&first).ok_or("the first line of the log is not whole")?;
    let (Some(kind), Some(prev)) = (members.text(&first, "type"), members.text(&first, "prev")) else {
        return Err("the first line of the log lacks `type` or `prev`".to_owned());
    };
    if kind == "log.loss_accepted" {
        // Another tree begins with it. The log had no line before, or somebody cut those off, which its `prev` shows.
        return Ok(None);
    }
    let tree = fs::read_to_string(folder.join(format!("{stem}.tree"))).ok();
    let fits = |(base, tree): &(u64, Tree)| base.checked_add(tree.size()) == Some(line);
    let (base, tree) = tree.as_deref().and_then(read).filter(fits).ok_or_else(|| {
        format!("the lines before {line} are not there, and `verify` finds no whole tree of them in `{stem}.tree`: lines were cut off")
    })?;
    Ok(Some(Before { line, prev: prev.into_owned(), base, tree }))
}

fn read(text: &str) -> Option<(u64, Tree)> {
    let mut lines = text.lines();
    let (_, base, size) = (lines.next()?, lines.next()?.parse().ok()?, lines.next()?.parse().ok()?);
    let hashes = lines.map(|line| BASE64.decode(line).ok()?.try_into().ok()).collect::<Option<_>>()?;
    Some((base, Tree::of(size, hashes)?))
}
