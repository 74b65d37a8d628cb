//! What is asked of approvals and releases, and what comes of it.

use std::time::Duration;

use crate::model::approval::{Approval, Binding, Justification, Review, State};
use crate::model::halt::Halt;
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
pub enum SingleUse {
    /// An approval.
    Approval,
    /// A released draft.
    Release,
}

/// A use of an approval, or of a released draft.
#[derive(Clone, Debug)]
pub struct Consumption {
    /// What is used.
    pub what: SingleUse,
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

/// What became of a consume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Consumed {
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

/// A row of the outbox.
#[derive(Clone, Debug, PartialEq)]
pub struct OutboxEntry {
    /// Its revision.
    pub revision: Revision,
    /// Whether the process that left it has sent no heartbeat for a while.
    pub gone: bool,
    /// The record.
    pub record: serde_json::Value,
    /// The replica whose audit log is to have it.
    pub replica: String,
    /// The start of that replica's process.
    pub boot: String,
    /// When it was left.
    pub at: Timestamp,
    /// Where it is recorded: log and line; `None` if it is not yet.
    pub recorded: Option<(String, u64)>,
}

/// A check that an allowed verification made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Name in `context.checks`.
    pub kind: String,
    /// Tenant.
    pub tenant: String,
    /// Case.
    pub case: String,
    /// Customer.
    pub customer: String,
    /// Until when it holds.
    pub expires: Timestamp,
}

/// An outcome to be remembered, once.
#[derive(Clone, Debug)]
pub struct NewOutcome {
    /// Evaluation id of the allow.
    pub evaluation_id: String,
    /// The checks that it makes.
    pub checks: Vec<Check>,
    /// The checks of a case that a failure ends: tenant, case, and their names.
    pub ends: Option<(String, String, Vec<String>)>,
    /// When it was reported.
    pub at: Timestamp,
    /// The record of it.
    pub record: serde_json::Value,
}

/// A copy of every halt, as old as `read_at`.
#[derive(Clone, Debug, Default)]
pub struct Halts {
    /// The halts.
    pub halts: crate::model::halt::Halts,
    /// When the store was asked; `None` before the first answer.
    pub read_at: Option<Timestamp>,
    /// How many signals this process has taken, and those that may not stand in what was read last.
    pub(super) taken: u64,
    pub(super) fresh: Vec<(u64, Halt)>,
}

/// A transition's record with where it led.
pub fn with_state(mut record: serde_json::Value, state: State) -> serde_json::Value {
    if let Some(members) = record.as_object_mut() {
        members.insert("state".to_owned(), state.name().into());
    }
    record
}

/// An approval's members that are text in one column.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Body {
    pub(super) binding: Binding,
    pub(super) justification: Justification,
    pub(super) display: String,
    pub(super) reversibility: String,
}

/// A write of the store: its number, and the head that only this history has at that number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revision {
    /// Number. That of a signal is negative: it takes no part in the count, so that nothing can hold it up.
    pub number: i64,
    /// Head; empty where none is known.
    pub head: String,
}

/// What an allowed call adds to a sum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// The window's name.
    pub window: String,
    /// Whose sum it is.
    pub key: String,
    /// What it adds.
    pub amount: i64,
    /// The most that the sum may be.
    pub most: i64,
    /// Within this time.
    pub within: Duration,
}
