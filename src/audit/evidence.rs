//! Evidence of decisions: what each of them was evaluated with, so that `countersign replay` can evaluate it again. It is encrypted
//! under a key of its data subject and lies beside the segment of its line, in `seg-<first>.evidence`; the line has its digest.
//! Without the key the evidence can't be read, and the line and its proofs stay valid.
//!
//! An evidence file has one line for each decision: the number of the decision's line, and the evidence as [`Sealed`] is
//! displayed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::audit::disk::{Disk, Segment};
use crate::model::time::Timestamp;
use crate::sealing::Sealed;

/// Part of the disk, as a divisor, below which no evidence is written.
const LEAST: u64 = 20;
/// Extension of evidence files.
pub(super) const EXTENSION: &str = "evidence";

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
            text.push_str(&format!("{seq} {sealed}\n"));
        }
        if text.is_empty() {
            return;
        }
        // The lines need what is left.
        let is_full = self.disk.free(segment).is_some_and(|(free, total)| free < total / LEAST);
        let written = if is_full {
            Err(io::ErrorKind::StorageFull.into())
        } else {
            self.write(&segment.with_extension(EXTENSION), &text)
        };
        match written {
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
fn is_older(path: &Path, before: Timestamp) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(fs::metadata(path)?.mtime() < before.seconds_and_nanos().0)
}
