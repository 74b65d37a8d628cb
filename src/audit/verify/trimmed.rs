//! The beginning of a log whose oldest segments were deleted.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::canonical::Members;
use super::notes::Tree;

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
        // Another tree begins with it, and it says which lines are lost.
        return Ok(None);
    }
    let tree = fs::read_to_string(folder.join(format!("{stem}.tree"))).ok();
    let (base, tree) = tree.as_deref().and_then(read).ok_or_else(|| {
        format!("the lines before {line} are not there, and neither is their tree in `{stem}.tree`: lines were cut off")
    })?;
    Ok(Some(Before { line, prev, base, tree }))
}

fn read(text: &str) -> Option<(u64, Tree)> {
    let mut lines = text.lines();
    let (_, base, size) = (lines.next()?, lines.next()?.parse().ok()?, lines.next()?.parse().ok()?);
    let hashes = lines.map(|line| BASE64.decode(line).ok()?.try_into().ok()).collect::<Option<_>>()?;
    Some((base, Tree::of(size, hashes)?))
}
