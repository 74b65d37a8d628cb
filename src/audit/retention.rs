//! Deletes segments that are older than the log is kept. A line of type `log.trimmed` says so before, so that a log without its
//! beginning can be told from one that somebody cut.

use std::fs;
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::audit::evidence::EXTENSION;
use crate::audit::recover::segments;
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
    ts: String,
    prev: String,
}

/// Returns the segments whose lines were all written before a time. The last two segments stay, because a start reads them.
pub(super) fn old(folder: &Path, cutoff: Timestamp) -> io::Result<Option<Old>> {
    let all = segments(folder)?;
    let mut found = None;
    for (count, (first, path)) in all.iter().enumerate().skip(1).take(all.len().saturating_sub(2)) {
        let line = BufReader::new(fs::File::open(path)?).split(b'\n').next().transpose()?.unwrap_or_default();
        let Ok(line) = serde_json::from_slice::<First>(&line) else { break };
        if Timestamp::parse(&line.ts).is_none_or(|begun| cutoff < begun) {
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
            for extension in ["index", EXTENSION, "tree"] {
                match fs::remove_file(segment.with_extension(extension)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    Ok(()) | Err(_) => {}
                }
            }
            fs::remove_file(segment)?;
        }
        Ok(())
    }
}
