//! Types of the state store: requested transitions of approvals, consents and releases with their results, outbox
//! entries, outcomes and checks, the copy of the signals, revisions, and reservations.

use std::time::Duration;

use crate::model::approval::{Approval, Binding, Giver, Justification, Review, State};
use crate::model::halt::Halt;
use crate::model::time::Timestamp;

/// Request for an approval.
#[derive(Clone, Debug)]
pub struct NewApproval {
    /// The approval in the state pending.
    pub approval: Approval,
    /// Draft that the call sends; empty if it sends none, or if the tool service did not pass it.
    pub draft: String,
    /// Maximum numbers of pending requests of the case, of the agent, and in the queue.
    pub caps: (i64, i64, i64),
    /// Time for which a denial of the same call prevents a new request.
    pub cool_down: Duration,
    pub record: serde_json::Value,
}

/// Result of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Requested {
    /// The agent has too many pending requests.
    AgentFull,
    /// The case has too many pending requests.
    CaseFull,
    /// The same call was denied recently.
    CoolDown,
    /// The request is now pending.
    New(Transition),
    /// The queue has too many pending requests.
    QueueFull,
    /// The same call is already pending.
    Same(Box<Approval>),
}

/// Review to add.
#[derive(Clone, Debug)]
pub struct NewReview {
    pub id: String,
    pub review: Review,
    /// Arguments that the reviewer would approve, as canonical JSON.
    pub suggested: String,
    /// Time for which the approval may be used if this review completes the quorum.
    pub usable: Duration,
    pub quorum: u32,
    /// Record for the audit log; `state` is filled in.
    pub record: serde_json::Value,
}

/// Answer of a customer to a request for consent.
#[derive(Clone, Debug)]
pub struct NewConsent {
    /// The consent in the state approved or denied, with the customer's answer.
    pub consent: Approval,
    /// Record for the audit log; `state` is filled in.
    pub record: serde_json::Value,
}

/// Result of a reported answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Answered {
    /// The customer had given the same answer.
    Known(Box<Approval>),
    /// The answer contradicts an earlier one that can't be changed any more.
    Late,
    /// The answer is stored.
    New(Transition),
    /// The same message was reported as the answer to another denial of the same call.
    Reused,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// Revision of the transition, which is the key of its outbox entry.
    pub revision: Revision,
    /// State of the approval after the transition.
    pub state: State,
}

/// Result of a requested transition.
#[derive(Clone, Debug, PartialEq)]
pub enum Moved {
    Done(Transition),
    /// The approval's state no longer permits the transition.
    Late(State),
    /// There is no approval with this id.
    Missing,
    /// The same person has already reviewed the approval.
    Twice,
}

/// Kind of object that can be consumed once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SingleUse {
    Approval,
    Consent,
    /// A released draft.
    Release,
}

impl SingleUse {
    /// Outcome in metrics.
    pub fn consumed(self) -> &'static str {
        match self {
            Self::Approval => "consumed",
            Self::Consent => "consent_consumed",
            Self::Release => "sent",
        }
    }
}

impl From<Giver> for SingleUse {
    fn from(giver: Giver) -> Self {
        match giver {
            Giver::Customer => Self::Consent,
            Giver::Reviewers => Self::Approval,
        }
    }
}

/// Approval, consent or release that a call consumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsedToken {
    pub what: SingleUse,
    /// Id of the approval or release, and the operation that consumes it.
    pub key: ReceiptKey,
    /// Generation in which a release was given; that of an approval is in the store.
    pub generation: String,
}

/// Consumption of everything that a call brings: all of it, or nothing.
#[derive(Clone, Debug)]
pub struct Consumption {
    /// At least one.
    pub tokens: Vec<UsedToken>,
    pub call_digest: String,
    /// Answer, which a retry gets again.
    pub answer: String,
    /// Record of the decision.
    pub record: serde_json::Value,
    /// Subjects that a signal may stop: tenant, agent, supervisor, case, customer.
    pub halted: [String; 5],
    /// Time when the credential was issued.
    pub issued_at: Option<Timestamp>,
    /// Amounts that the call adds to sums.
    pub reservations: Vec<Reservation>,
    /// Evaluation that the amounts belong to.
    pub evaluation_id: String,
    pub at: Timestamp,
}

/// Key of a receipt.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReceiptKey {
    pub tenant: String,
    pub caller: String,
    /// Id of the consumed approval, or evaluation id of the release.
    pub approval: String,
    pub operation: String,
}

/// Result of a consumption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Consumed {
    /// A sum would exceed its limit.
    Full,
    /// A kill switch or a revoked session stops the call.
    Halted,
    /// It can't be consumed: it is consumed, revoked or expired, or belongs to another generation.
    Lost,
    /// This operation consumed it now; the revision is the key of the outbox entry.
    Now(Revision),
    /// This operation consumed it before.
    Repeated(Receipt),
}

/// Stored answer of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    pub call_digest: String,
    pub answer: String,
    /// Revision of the outbox entry with the operation's record.
    pub revision: i64,
}

/// Row of the outbox.
#[derive(Clone, Debug, PartialEq)]
pub struct OutboxEntry {
    pub revision: Revision,
    /// Whether the process that wrote the entry has sent no recent heartbeat.
    pub gone: bool,
    pub record: serde_json::Value,
    /// Replica whose audit log is to contain the record.
    pub replica: String,
    /// Id of the start of that replica's process.
    pub boot: String,
    /// Time when the entry was written.
    pub at: Timestamp,
    /// Log and line of the recorded entry; `None` if it is not recorded yet.
    pub recorded: Option<(String, u64)>,
}

/// Check that a successful verification created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Name in `context.checks`.
    pub kind: String,
    pub tenant: String,
    pub case: String,
    pub customer: String,
    /// Time until which the check is valid.
    pub expires: Timestamp,
}

/// Outcome to store once.
#[derive(Clone, Debug)]
pub struct NewOutcome {
    /// Evaluation id of the allowed call.
    pub evaluation_id: String,
    /// Checks that the outcome creates.
    pub checks: Vec<Check>,
    /// Checks that a failure ends: tenant, case, and names of the checks.
    pub ends: Option<(String, String, Vec<String>)>,
    /// Time when the outcome was reported.
    pub at: Timestamp,
    pub record: serde_json::Value,
}

/// Copy of all kill switches and other signals, as of `read_at`.
#[derive(Clone, Debug, Default)]
pub struct Halts {
    pub halts: crate::model::halt::Halts,
    /// Time when the store was read; `None` before the first read.
    pub read_at: Option<Timestamp>,
    /// Number of signals that this process has accepted; `fresh` has those that the last read may lack.
    pub(super) taken: u64,
    pub(super) fresh: Vec<(u64, Halt)>,
}

/// Adds the state after a transition to its record.
pub fn with_state(mut record: serde_json::Value, state: State) -> serde_json::Value {
    if let Some(members) = record.as_object_mut() {
        members.insert("state".to_owned(), state.name().into());
    }
    record
}

/// Members of an approval that are stored as JSON in one column.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Body {
    pub(super) binding: Binding,
    pub(super) justification: Justification,
    pub(super) display: String,
    pub(super) reversibility: String,
}

/// A write to the store: its number, and a head that only this history has at that number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revision {
    /// Number of the revision. That of a signal is negative and not part of the count, so a signal does not
    /// have to wait for the counter.
    pub number: i64,
    /// Head of the revision; empty if none is known.
    pub head: String,
}

/// Amount that an allowed call adds to a sum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    pub window: String,
    /// Key of the sum.
    pub key: String,
    pub amount: i64,
    /// Limit of the sum.
    pub most: i64,
    /// Period of the sum.
    pub within: Duration,
}
