//! Deletes segments that are older than the log is kept. A line of type `log.trimmed` says so before, so that
//! `verify` can distinguish a deletion by the server from one by an attacker.

use std::fs;
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::audit::evidence::EXTENSION;
use crate::audit::key::DigestKey;
use crate::audit::recover::{LOSS, is_own, segments};
use crate::model::time::Timestamp;

/// Segments that may be deleted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Old {
    /// Number of the first line that stays.
    pub(super) before: u64,
    /// Hash of the last line that goes, which the first line that stays has as `prev`.
    pub(super) hash: String,
    segments: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct First {
    seq: u64,
    ts: String,
    prev: String,
    r#type: String,
}

/// Returns the segments whose lines were all written before a time. The last two segments stay, because a start reads them, and so does
/// a segment that begins after lost lines, because it says that they were lost.
///
/// # Errors
/// When a segment can't be read, or begins with a line that this deployment did not write.
pub(super) fn old(folder: &Path, key: &DigestKey, cutoff: Timestamp) -> io::Result<Option<Old>> {
    let all = segments(folder)?;
    let mut found = None;
    for (count, (first, path)) in all.iter().enumerate().skip(1).take(all.len().saturating_sub(2)) {
        let line = BufReader::new(fs::File::open(path)?).split(b'\n').next().transpose()?.unwrap_or_default();
        let own =
            Some(line).filter(|line| is_own(line, key)).and_then(|line| serde_json::from_slice::<First>(&line).ok());
        let Some(line) = own.filter(|line| line.seq == *first) else {
            return Err(io::Error::other(format!("`{}` begins with a line of somebody else", path.display())));
        };
        if line.r#type == LOSS || Timestamp::parse(&line.ts).is_none_or(|begun| cutoff < begun) {
            break;
        }
        let segments = all.iter().take(count).map(|(_, path)| path.clone()).collect();
        found = Some(Old { before: *first, hash: line.prev, segments });
    }
    Ok(found)
}

impl Old {
    /// Deletes the segments, the oldest first, and what lies beside them.
    pub(super) fn delete(&self) -> io::Result<()> {
        for segment in &self.segments {
            // The tree goes last: a reader of what is left may need it.
            for extension in ["index", EXTENSION, "jsonl", "tree"] {
                match fs::remove_file(segment.with_extension(extension)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    Ok(()) | Err(_) => {}
                }
            }
        }
        Ok(())
    }
}
