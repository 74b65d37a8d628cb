//! Records of the log. Ids and names are in clear text; arguments, attributes and texts appear only as a
//! keyed digest.

pub mod decision;
pub mod parts;
mod refusal;
mod signals;
pub mod stored;

use serde::Serialize;

use crate::audit::operations::{
    LossRecord, PolicyRecord, RecoveredRecord, RefusalsRecord, ResumedRecord, ServerRecord, TrimmedRecord,
};
pub use crate::audit::record::decision::DecisionRecord;
pub use crate::audit::record::parts::RecordMetadata;
pub use crate::audit::record::refusal::RefusalRecord;
pub use crate::audit::record::stored::StoredRecord;
use crate::sealing::Sealed;

/// Maximum length of a line in bytes, without its newline.
pub const LINE_MAX: usize = 65_535;

/// Line of the log without the members that place it there.
#[derive(Debug, Serialize)]
#[serde(tag = "type")]
pub enum Record {
    #[serde(rename = "decision")]
    Decision(Box<DecisionRecord>),
    #[serde(rename = "policy.activated")]
    PolicyActivated(PolicyRecord),
    #[serde(rename = "policy.rejected")]
    PolicyRejected(PolicyRecord),
    /// A human accepted the loss of lines that were noted elsewhere.
    #[serde(rename = "log.loss_accepted")]
    LossAccepted(LossRecord),
    /// A torn tail was cut from the log at start.
    #[serde(rename = "log.recovered")]
    Recovered(RecoveredRecord),
    /// A request of an authenticated caller was refused.
    #[serde(rename = "refusal")]
    Refusal(Box<RefusalRecord>),
    /// Requests of unauthenticated peers were refused; counted by peer, kind and second.
    #[serde(rename = "refusals")]
    Refusals(RefusalsRecord),
    /// The log can be written again after failures.
    #[serde(rename = "log.resumed")]
    Resumed(ResumedRecord),
    /// Segments were deleted because they are older than the log is kept.
    #[serde(rename = "log.trimmed")]
    Trimmed(TrimmedRecord),
    #[serde(rename = "server.started")]
    Started(ServerRecord),
    #[serde(rename = "server.stopped")]
    Stopped(ServerRecord),
    /// A transition, an event or a list of redactions.
    #[serde(untagged)]
    Stored(StoredRecord),
}

impl Record {
    /// Takes the evidence of a decision, which is written beside its line.
    pub(super) fn take_evidence(&mut self) -> Option<Sealed> {
        match self {
            Self::Decision(record) => record.take_evidence(),
            Self::Stored(record) => record.take_evidence(),
            Self::LossAccepted(_)
            | Self::PolicyActivated(_)
            | Self::PolicyRejected(_)
            | Self::Recovered(_)
            | Self::Refusal(_)
            | Self::Refusals(_)
            | Self::Resumed(_)
            | Self::Started(_)
            | Self::Stopped(_)
            | Self::Trimmed(_) => None,
        }
    }
}
