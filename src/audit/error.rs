//! Errors of the log.

use std::path::PathBuf;

use crate::model::refusal::Refusal;
use crate::model::time::Timestamp;

/// Reason why the log can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The log lacks a line that was noted elsewhere.
    #[error(
        "the audit log in `{folder}` has no line {index} with the hash that is noted in {place}: lines were cut off, or the log was \
         replaced or rewritten. Restore the log. If the lines are lost for good, run `countersign audit accept-loss --reason …`; the \
         loss is recorded in the log"
    )]
    Behind {
        folder: String,
        /// Sequence number of the missing line.
        index: u64,
        /// Place of the note, for messages.
        place: String,
    },
    /// The log is not the one that its last checkpoint was signed for.
    #[error(
        "the audit log differs from its last checkpoint in `{0}`, or the checkpoint was not signed with this deployment's key: lines \
         were changed or cut off. Run `countersign audit verify` for details; restore the log, or move the folder away and keep it"
    )]
    Checkpoint(PathBuf),
    /// No noted line is missing, so there is no loss to accept.
    #[error("the audit log in `{0}` has every line that was noted: there is no loss to accept")]
    Complete(String),
    /// A durable line is damaged.
    #[error(
        "the audit log is damaged at {place}: run `countersign audit verify {folder}` for details; restore the log, or move the folder \
         away and keep it"
    )]
    Damaged {
        /// File and line number.
        place: String,
        folder: String,
    },
    /// The clock is more than 60 s behind the last record.
    #[error("the system clock is more than 60 s behind the last audit record ({0}): correct the clock")]
    Clock(Timestamp),
    /// The last segment has an earlier format.
    #[error(
        "the audit log in `{0}` was written by an earlier version: move the folder away and keep it; `countersign audit verify` reads it"
    )]
    Format(String),
    /// A line's MAC was not made with this key.
    #[error(
        "{place} of the audit log was not written with this deployment's key: the line was changed, or `keys/audit-digest.key` in the \
         data folder was replaced. Restore the log or the key"
    )]
    Foreign {
        /// File and line number.
        place: String,
    },
    #[error("the audit log at `{0}` can't be opened: {1}")]
    Io(PathBuf, std::io::Error),
    /// Another process holds the folder's lock.
    #[error("the data folder `{0}` is in use by another server: stop it, or give another folder with `--data`")]
    Locked(PathBuf),
}

/// Reason why the log takes no records at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuditDown {
    /// The record can't be written.
    #[error("the audit log can't be written")]
    Failed,
    /// Too many records wait for the disk.
    #[error("the audit log is overloaded")]
    Full,
}

impl From<AuditDown> for Refusal {
    fn from(down: AuditDown) -> Self {
        match down {
            AuditDown::Failed => Self::Unavailable("the audit log can't be written, so no decision is returned"),
            AuditDown::Full => Self::Exhausted("too many decisions are waiting for the audit log"),
        }
    }
}
