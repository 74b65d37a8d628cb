//! What is asked of approvals and releases, and what comes of it.

use std::time::Duration;

use crate::approvals::store::{Reservation, Revision};
use crate::model::approval::{Approval, Review, State};
use crate::model::time::Timestamp;

/// What is asked to become an approval.
#[derive(Clone, Debug)]
pub struct NewApproval {
    /// The approval, pending.
    pub approval: Approval,
    /// How many may wait: of the case, of the agent, in the queue.
    pub caps: (i64, i64, i64),
    /// How long a denial of the same call counts.
    pub cool_down: Duration,
    /// The record of it.
    pub record: serde_json::Value,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Requested {
    /// The agent has too many.
    AgentFull,
    /// The case has too many.
    CaseFull,
    /// The same call was denied a short while ago.
    CoolDown,
    /// It waits now.
    New(Transition),
    /// The queue has too many.
    QueueFull,
    /// The same call waits already.
    Same(Box<Approval>),
}

/// A review to be added.
#[derive(Clone, Debug)]
pub struct NewReview {
    /// Approval id.
    pub id: String,
    /// The review.
    pub review: Review,
    /// Arguments that would be approved, as canonical JSON.
    pub suggested: String,
    /// How long the approval may be used if this review completes the quorum.
    pub usable: Duration,
    /// How many reviewers must approve.
    pub quorum: u32,
    /// The record of it; `state` is filled in.
    pub record: serde_json::Value,
}

/// A transition that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// Its revision: the outbox row to be recorded.
    pub revision: Revision,
    /// Where the approval stands after it.
    pub state: State,
}

/// What became of a transition that was asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Moved {
    /// It happened.
    Done(Transition),
    /// The approval is no longer where it could.
    Late(State),
    /// There is none of this id.
    Missing,
    /// This person has reviewed it before.
    Twice,
}

/// What is used once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Burnable {
    /// An approval.
    Approval,
    /// A released draft.
    Release,
}

/// A use of an approval, or of a released draft.
#[derive(Clone, Debug)]
pub struct Burn {
    /// What is used.
    pub what: Burnable,
    /// The approval's id, or the release's evaluation id.
    pub id: String,
    /// The generation that a release was given in; of approvals the store knows it.
    pub generation: String,
    /// The operation that uses it.
    pub key: ReceiptKey,
    /// Digest of the whole call.
    pub call_digest: String,
    /// The answer, to be given again.
    pub answer: String,
    /// The decision's record.
    pub record: serde_json::Value,
    /// What a halt may stop: tenant, agent, supervisor, case, customer.
    pub halted: [String; 5],
    /// When the credential was issued.
    pub issued_at: Option<Timestamp>,
    /// What it adds to sums.
    pub reservations: Vec<Reservation>,
    /// The evaluation that they are of.
    pub evaluation_id: String,
    /// Now.
    pub at: Timestamp,
}

/// Whose operation a receipt is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReceiptKey {
    /// Tenant.
    pub tenant: String,
    /// Tool service.
    pub caller: String,
    /// What is used: an approval's id, or a release's evaluation id.
    pub approval: String,
    /// Operation id.
    pub operation: String,
}

/// What became of a burn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Burned {
    /// A sum would be exceeded.
    Full,
    /// A kill switch or a revoked session stops it.
    Halted,
    /// It is not there to be used: used, revoked, expired, or of another generation.
    Lost,
    /// It was used, by this operation, now; the outbox row to be recorded.
    Now(Revision),
    /// The operation used it before.
    Repeated(Receipt),
}

/// What an operation was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Digest of the whole call.
    pub call_digest: String,
    /// The answer.
    pub answer: String,
    /// The outbox row of its record.
    pub revision: i64,
}
