//! An approval: what a human said of one call.

use crate::json::{Object, Value};
use crate::model::time::Timestamp;

/// Where an approval stands. One transition each: a pending one is approved, denied, expired or cancelled; an approved one is
/// consumed, expired or revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// The quorum approved; it may be used once.
    Approved,
    /// The requester withdrew it.
    Cancelled,
    /// It was used.
    Consumed,
    /// A reviewer denied.
    Denied,
    /// Its time is over.
    Expired,
    /// It waits for reviewers.
    Pending,
    /// It was revoked after approval.
    Revoked,
}

impl State {
    /// Every state, in alphabetical order.
    pub const ALL: [Self; 7] = [Self::Approved, Self::Cancelled, Self::Consumed, Self::Denied, Self::Expired, Self::Pending, Self::Revoked];

    /// The name in the store and in records.
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

    /// The state of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

/// Why the requester asks: written by the agent, verified by nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Justification {
    /// What the customer asked for.
    pub customer_request: String,
    /// Evaluation ids that the request rests on.
    pub evidence: Vec<String>,
    /// Clause of the support policy.
    pub policy_clause: String,
    /// What will be different afterwards.
    pub expected_effect: String,
}

/// An evaluation of the case that a request rests on, as its id proves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Evaluation id.
    pub id: String,
    /// Cedar action.
    pub action: String,
    /// What was answered.
    pub allowed: bool,
    /// When, to the second.
    pub at: Timestamp,
}

/// A human as an issuer knows her.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Subject {
    /// Issuer.
    pub iss: String,
    /// Subject, as the bundle's entity is called.
    pub sub: String,
}

/// The call that an approval is for, as the binding token and the digest have it.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoundCall {
    /// Format of this object.
    pub v: String,
    /// Deployment environment.
    pub environment: String,
    /// Tenant.
    pub tenant: String,
    /// Case id.
    pub case: String,
    /// The case's version when the call was denied.
    pub case_version: String,
    /// Workflow step.
    pub step: String,
    /// The supervising human.
    pub supervisor: Subject,
    /// The agent.
    pub agent: Subject,
    /// The tool service that may use it.
    pub audience: String,
    /// Cedar action.
    pub action: String,
    /// Type of the resource.
    pub resource_type: String,
    /// Id of the resource.
    pub resource_id: String,
    /// Version of the resource.
    pub resource_version: String,
    /// Arguments that must be the same.
    pub exact: Object,
    /// Arguments that may be at most this; integers only.
    pub at_most: Object,
    /// Attributes of the case, its customer among them.
    #[serde(default)]
    pub case_attributes: Object,
    /// Attributes of the resource.
    #[serde(default)]
    pub resource_attributes: Object,
    /// Further facts that the tool service reported.
    #[serde(default)]
    pub facts: Object,
}

impl BoundCall {
    /// All arguments, as the denied call had them.
    pub fn arguments(&self) -> Object {
        self.exact.iter().chain(&self.at_most).map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// The digest of the draft that it sends; empty if it sends none.
    pub fn draft_digest(&self) -> &str {
        self.exact.get("draft_digest").and_then(Value::as_str).unwrap_or_default()
    }

    /// The case's customer; empty if the case names none.
    pub fn customer(&self) -> &str {
        self.case_attributes.get("customer").and_then(Value::as_str).unwrap_or_default()
    }

    /// Returns whether an approval of this call is one of `call`: every member is the same, except that bounded arguments may be
    /// smaller. The case's version and attributes are left to the caller, because their change has a reason of its own; the
    /// customer is compared here.
    pub fn covers(&self, call: &Self) -> bool {
        let rest =
            |call: &Self| Self { at_most: Object::new(), case_version: String::new(), case_attributes: Object::new(), ..call.clone() };
        let within = self.at_most.iter().all(|(name, most)| match (most, call.at_most.get(name)) {
            (Value::Integer(most), Some(Value::Integer(value))) => value <= most,
            _ => false,
        });
        rest(self) == rest(call) && self.customer() == call.customer() && self.at_most.len() == call.at_most.len() && within
    }

    /// Whether `call` differs from what was approved in those arguments alone that may still be smaller.
    pub fn stays_within(&self, call: &Self, at_most: &[String]) -> bool {
        self.at_most.iter().filter(|(name, _)| !at_most.contains(name)).all(|(name, value)| call.at_most.get(name) == Some(value))
    }
}

/// What the binding token binds beside the call.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Binding {
    /// Evaluation id of the denial.
    pub evaluation_id: String,
    /// Template.
    pub template: String,
    /// How many reviewers must approve.
    pub quorum: u32,
    /// All that the denial lacks.
    pub requires: Vec<String>,
    /// Digest of the bundle that denied.
    pub policy: String,
    /// The supervisor's person, by the issuer's stable claim.
    pub supervisor_person: Option<String>,
    /// The case's customer; empty if it names none.
    pub customer: String,
    /// The denied call's conversation id; empty if it named none.
    #[serde(default)]
    pub conversation: String,
    /// The risk when the call was denied: tier and score; empty where no policy reads it.
    #[serde(default)]
    pub risk: String,
    /// What was found in the draft that the call sends: kind, code, severity and place. `None`: it sends none.
    #[serde(default)]
    pub findings: Option<Vec<String>>,
    /// The call.
    pub call: BoundCall,
}

/// A review.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Review {
    /// Who.
    pub reviewer: Subject,
    /// The person behind the subject; the subject itself where the issuer has no stable claim.
    pub person: String,
    /// Yes or no.
    pub approves: bool,
    /// When.
    pub at: Timestamp,
    /// Why, in the reviewer's words.
    pub reason: String,
}

/// An approval as the store has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Approval {
    /// `apr_` and a UUIDv7.
    pub id: String,
    /// Where it stands.
    pub state: State,
    /// The store's generation when it was made; of another one it is nothing.
    pub generation: String,
    /// The store's revision of its last change.
    pub revision: i64,
    /// SHA-256 over the canonical form of the call.
    pub digest: String,
    /// What is bound.
    pub binding: Binding,
    /// Why the requester asks.
    pub justification: Justification,
    /// What the reviewer is shown.
    pub display: String,
    /// Reversibility, by the template.
    pub reversibility: String,
    /// The reviews so far.
    pub reviews: Vec<Review>,
    /// When it was requested.
    pub requested_at: Timestamp,
    /// Until when it may be reviewed.
    pub review_until: Timestamp,
    /// When the quorum was reached; the epoch before.
    pub approved_at: Timestamp,
    /// Until when it may be used; the epoch before approval.
    pub approved_until: Timestamp,
    /// Why it was denied or revoked.
    pub denial_reason: String,
    /// Arguments that the reviewer would approve, as canonical JSON; empty: none.
    pub suggested: String,
}

impl Approval {
    /// Where it stands at this instant: what is over has expired, whether the store says so yet or not.
    pub fn state_at(&self, now: Timestamp) -> State {
        match self.state {
            State::Approved if self.approved_until <= now => State::Expired,
            State::Pending if self.review_until <= now => State::Expired,
            state => state,
        }
    }

    /// Until when it may be reviewed or, once approved, used.
    pub fn expires_at(&self) -> Timestamp {
        if self.approved_until > Timestamp::default() { self.approved_until } else { self.review_until }
    }

    /// The reviewers who approved.
    pub fn approvers(&self) -> impl Iterator<Item = &Review> {
        self.reviews.iter().filter(|review| review.approves)
    }
}

/// The approval that a call used.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct UsedApproval {
    /// Approval id.
    pub id: String,
    /// Who approved.
    pub approvers: Vec<Subject>,
    /// When the quorum was reached.
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

    /// Each member in turn is another call's. A member that is added does not compile here until it has a row.
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
            BoundCall { case_attributes, ..own.clone() },
            BoundCall { resource_attributes, ..own.clone() },
            BoundCall { facts, ..own.clone() },
        ] {
            assert!(!own.covers(&changed), "{changed:?}");
        }
        // The case's version has a reason of its own, and less than what was approved is covered.
        assert!(own.covers(&BoundCall { case_version, ..own.clone() }));
        assert!(own.covers(&BoundCall { at_most: object("most", 0), ..own.clone() }));
        // By a template that no longer bounds the argument, it must be the same.
        let smaller = BoundCall { at_most: object("most", 0), ..own.clone() };
        assert!(own.stays_within(&smaller, &["most".to_owned()]) && own.stays_within(&own, &[]) && !own.stays_within(&smaller, &[]));
    }
}
