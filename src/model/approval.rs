//! Approvals: decisions of humans on single calls.

use crate::json::{Object, Value};
use crate::model::time::Timestamp;

/// State of an approval. A pending one is approved, denied, expired or cancelled; an approved one is
/// consumed, expired or revoked. The other states are final.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// The quorum approved, so the approval may be used once.
    Approved,
    /// The requester withdrew the request.
    Cancelled,
    /// A call used the approval.
    Consumed,
    /// A reviewer denied the request.
    Denied,
    /// The time for review or use has passed.
    Expired,
    /// The request waits for reviewers.
    Pending,
    /// A granted approval was revoked.
    Revoked,
}

impl State {
    /// Every state, in alphabetical order.
    pub const ALL: [Self; 7] =
        [Self::Approved, Self::Cancelled, Self::Consumed, Self::Denied, Self::Expired, Self::Pending, Self::Revoked];

    /// Name in the store and in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Approved => "approved",
            Self::Cancelled => "cancelled",
            Self::Consumed => "consumed",
            Self::Denied => "denied",
            Self::Expired => "expired",
            Self::Pending => "pending",
            Self::Revoked => "revoked",
        }
    }

    /// Looks up a state by its name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

/// Who gives an approval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Giver {
    /// The case's customer. Such an approval is called a consent.
    Customer,
    /// Humans of the bundle, who review a request.
    #[default]
    Reviewers,
}

impl Giver {
    /// Name of what is given, in records.
    pub fn gives(self) -> &'static str {
        match self {
            Self::Customer => "consent",
            Self::Reviewers => "approval",
        }
    }
}

/// Consent that a customer gave.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GivenConsent {
    /// `con_` and the denial's evaluation id.
    pub id: String,
    /// Tool service that showed the text to the customer and reported the answer.
    pub reported_by: String,
    pub given_at: Timestamp,
    /// Text that the customer was shown.
    pub text: String,
}

/// Justification of a request, written by the agent and not verified.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Justification {
    pub customer_request: String,
    /// Evaluation ids that the request is based on.
    pub evidence: Vec<String>,
    /// Clause of the support policy.
    pub policy_clause: String,
    pub expected_effect: String,
}

/// Evaluation of the case that a request is based on, as its id proves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    pub id: String,
    pub action: String,
    pub allowed: bool,
    /// Time of the evaluation, to the second.
    pub at: Timestamp,
}

/// Human or agent, as an issuer identifies the subject.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Subject {
    /// Issuer of the subject.
    pub iss: String,
    /// Id of the bundle's entity for the subject.
    pub sub: String,
}

/// Call that an approval is for, as the binding token and the digest contain it.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoundCall {
    /// Format of this object.
    pub v: String,
    pub environment: String,
    pub tenant: String,
    pub case: String,
    /// Version of the case when the call was denied.
    pub case_version: String,
    pub step: String,
    pub supervisor: Subject,
    pub agent: Subject,
    /// Tool service that may use the approval.
    pub audience: String,
    pub action: String,
    pub resource_type: String,
    pub resource_id: String,
    pub resource_version: String,
    /// Arguments that must be the same.
    pub exact: Object,
    /// Arguments that may be at most this large; integers only.
    pub at_most: Object,
    /// Attributes of the case, including its customer.
    #[serde(default)]
    pub case_attributes: Object,
    #[serde(default)]
    pub resource_attributes: Object,
    /// Further facts that the tool service reported.
    #[serde(default)]
    pub facts: Object,
}

impl BoundCall {
    /// Returns all arguments, as the denied call had them.
    pub fn arguments(&self) -> Object {
        self.exact.iter().chain(&self.at_most).map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// Returns the digest of the draft that the call sends; empty if it sends none.
    pub fn draft_digest(&self) -> &str {
        self.exact.get("draft_digest").and_then(Value::as_str).unwrap_or("")
    }

    /// Returns whether an approval of this call covers `call`: every member is the same, except that bounded
    /// arguments may be smaller. The case's version and attributes are left to the caller of this method,
    /// because their change has its own reason.
    pub fn covers(&self, call: &Self) -> bool {
        let rest = |call: &Self| Self {
            at_most: Object::new(),
            case_version: String::new(),
            case_attributes: Object::new(),
            ..call.clone()
        };
        let within = self.at_most.iter().all(|(name, most)| match (most, call.at_most.get(name)) {
            (Value::Integer(most), Some(Value::Integer(value))) => value <= most,
            _ => false,
        });
        rest(self) == rest(call) && self.at_most.len() == call.at_most.len() && within
    }

    /// Returns whether `call` differs from the approved call only in bounded arguments that `at_most` still
    /// lists.
    pub fn stays_within(&self, call: &Self, at_most: &[String]) -> bool {
        self.at_most
            .iter()
            .filter(|(name, _)| !at_most.contains(name))
            .all(|(name, value)| call.at_most.get(name) == Some(value))
    }
}

/// Contents of the binding token: the call, and the facts about its denial.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Binding {
    /// Evaluation id of the denial.
    pub evaluation_id: String,
    /// Name of the approval or consent template.
    pub template: String,
    /// Whether reviewers or the customer must approve.
    #[serde(default)]
    pub giver: Giver,
    /// Number of reviewers who must approve.
    pub quorum: u32,
    /// Everything that the denied call lacks.
    pub requires: Vec<String>,
    /// Digest of the bundle that denied the call.
    pub policy: String,
    /// Person behind the supervisor, by the issuer's stable claim.
    pub supervisor_person: Option<String>,
    /// Customer of the case; empty if the case names none.
    pub customer: String,
    /// Conversation id of the denied call; empty if the call named none.
    #[serde(default)]
    pub conversation: String,
    /// Risk tier and score when the call was denied; empty if no policy reads the risk.
    #[serde(default)]
    pub risk: String,
    /// Findings in the draft that the call sends: kind, code, severity and place; `None` if the call sends no
    /// draft.
    #[serde(default)]
    pub findings: Option<Vec<String>>,
    /// Generation of the state store at the denial. A consent counts in no other, because a store that lost data may have
    /// lost that it was used.
    #[serde(default)]
    pub generation: String,
    /// Consent that the denied call brought.
    #[serde(default)]
    pub consent: Option<GivenConsent>,
    pub call: BoundCall,
}

/// Review by one reviewer, or a customer's answer.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Review {
    /// The reviewer. Of a customer, the issuer is the tool service that reports the answer.
    pub reviewer: Subject,
    /// Person behind the subject; the subject itself if the issuer has no stable claim.
    pub person: String,
    pub approves: bool,
    pub at: Timestamp,
    /// Reason in the reviewer's words; of a customer, the id of the message with the answer.
    pub reason: String,
}

impl Review {
    /// Returns whether two reviews are of one human. If two issuers name her, she may have a person for each of them.
    pub fn is_of_same_human(&self, other: &Self) -> bool {
        self.person == other.person || self.reviewer.sub == other.reviewer.sub
    }
}

/// Largest number of repeated requests that is counted.
pub const REPEATS_MAX: u32 = 999;

/// Returns how often a call was requested again, in words.
pub fn repeated(repeats: u32) -> String {
    match repeats {
        1 => "requested again once".to_owned(),
        REPEATS_MAX.. => format!("requested again {REPEATS_MAX} times or more"),
        repeats => format!("requested again {repeats} times"),
    }
}

/// Approval as the store holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct Approval {
    /// `apr_` and a UUIDv7; of a consent, `con_` and the denial's evaluation id.
    pub id: String,
    pub state: State,
    /// Generation of the store when the approval was created; in any other generation the approval is void.
    pub generation: String,
    /// Revision of the store at the last change of the approval.
    pub revision: i64,
    /// SHA-256 over the canonical form of the call.
    pub digest: String,
    pub binding: Binding,
    pub justification: Justification,
    /// Text that the reviewer or the customer is shown.
    pub display: String,
    /// Reversibility, as the template states it; empty for a consent.
    pub reversibility: String,
    pub reviews: Vec<Review>,
    pub requested_at: Timestamp,
    /// Time until which the request may be reviewed.
    pub review_until: Timestamp,
    /// Time when the quorum was reached; the epoch before.
    pub approved_at: Timestamp,
    /// Time until which the approval may be used; the epoch before it is approved.
    pub approved_until: Timestamp,
    /// Reason of the denial or revocation.
    pub denial_reason: String,
    /// Arguments that the reviewer would approve, as canonical JSON; empty if not suggested.
    pub suggested: String,
    /// Number of times that the call was requested again while it was pending, up to [`REPEATS_MAX`].
    pub repeats: u32,
}

impl Approval {
    /// Returns the state at this instant. A request or approval whose time has passed has expired, even if
    /// the store has not recorded that yet.
    pub fn state_at(&self, now: Timestamp) -> State {
        match self.state {
            State::Approved if self.approved_until <= now => State::Expired,
            State::Pending if self.review_until <= now => State::Expired,
            state => state,
        }
    }

    /// Returns the time until which the request may be reviewed or, once approved, the approval may be used.
    pub fn expires_at(&self) -> Timestamp {
        if self.approved_until > Timestamp::default() { self.approved_until } else { self.review_until }
    }

    /// Returns the consent, if this is one that the customer gave.
    pub fn consent(&self) -> Option<GivenConsent> {
        let given = self.approvers().next().filter(|_| self.binding.giver == Giver::Customer)?;
        Some(GivenConsent {
            id: self.id.clone(),
            reported_by: given.reviewer.iss.clone(),
            given_at: given.at,
            text: self.display.clone(),
        })
    }

    /// Returns the reviewers who approved. A customer is not one of them.
    pub fn reviewers(&self) -> impl Iterator<Item = &Subject> {
        let by_reviewers = self.binding.giver == Giver::Reviewers;
        self.approvers().filter(move |_| by_reviewers).map(|review| &review.reviewer)
    }

    /// Returns the reviews that approve.
    pub fn approvers(&self) -> impl Iterator<Item = &Review> {
        self.reviews.iter().filter(|review| review.approves)
    }
}

/// Approval that a call used.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct UsedApproval {
    pub id: String,
    pub approvers: Vec<Subject>,
    /// Time when the quorum was reached.
    pub approved_at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(name: &str, value: i64) -> Object {
        Object::from([(name.to_owned(), Value::Integer(value))])
    }

    fn subject(sub: &str) -> Subject {
        Subject { iss: "i".into(), sub: sub.into() }
    }

    fn call(text: &str, number: i64) -> BoundCall {
        let own = || text.to_owned();
        BoundCall {
            v: own(),
            environment: own(),
            tenant: own(),
            case: own(),
            case_version: own(),
            step: own(),
            supervisor: subject(text),
            agent: subject(text),
            audience: own(),
            action: own(),
            resource_type: own(),
            resource_id: own(),
            resource_version: own(),
            exact: object("exact", number),
            at_most: object("most", number),
            case_attributes: Object::from([("customer".to_owned(), Value::from(text))]),
            resource_attributes: object("attribute", number),
            facts: object("fact", number),
        }
    }

    /// Takes each member in turn from another call. A new member does not compile here until it has a row.
    #[test]
    fn a_call_covers_none_that_differs_in_any_member() {
        let (own, other) = (call("a", 1), call("b", 2));
        assert!(own.covers(&own));
        let BoundCall {
            v,
            environment,
            tenant,
            case,
            case_version,
            step,
            supervisor,
            agent,
            audience,
            action,
            resource_type,
            resource_id,
            resource_version,
            exact,
            at_most,
            case_attributes,
            resource_attributes,
            facts,
        } = other;
        for changed in [
            BoundCall { v, ..own.clone() },
            BoundCall { environment, ..own.clone() },
            BoundCall { tenant, ..own.clone() },
            BoundCall { case, ..own.clone() },
            BoundCall { step, ..own.clone() },
            BoundCall { supervisor, ..own.clone() },
            BoundCall { agent, ..own.clone() },
            BoundCall { audience, ..own.clone() },
            BoundCall { action, ..own.clone() },
            BoundCall { resource_type, ..own.clone() },
            BoundCall { resource_id, ..own.clone() },
            BoundCall { resource_version, ..own.clone() },
            BoundCall { exact, ..own.clone() },
            BoundCall { at_most, ..own.clone() },
            BoundCall { resource_attributes, ..own.clone() },
            BoundCall { facts, ..own.clone() },
        ] {
            assert!(!own.covers(&changed), "{changed:?}");
        }
        // The roles name the owner's attribute, so the caller of this method, which has the roles, compares it.
        assert!(own.covers(&BoundCall { case_attributes, ..own.clone() }));
        // A changed version of the case has its own reason, and a smaller amount than approved is covered.
        assert!(own.covers(&BoundCall { case_version, ..own.clone() }));
        assert!(own.covers(&BoundCall { at_most: object("most", 0), ..own.clone() }));
        // Under a template that no longer bounds the argument, the argument must be the same.
        let smaller = BoundCall { at_most: object("most", 0), ..own.clone() };
        assert!(
            own.stays_within(&smaller, &["most".to_owned()])
                && own.stays_within(&own, &[])
                && !own.stays_within(&smaller, &[])
        );
    }
}
