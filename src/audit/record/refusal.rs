//! Audit record of a refused request.

use serde::Serialize;

use crate::audit::events::Actor;
use crate::audit::record::parts::{
    CaseRecord, ChainRecord, CorrelationRecord, PolicyReference, RecordMetadata, ResourceRecord, correlation,
};
use crate::audit::record::signals::SignalsRecord;
use crate::model::answer::PolicyVersion;
use crate::model::call::{Call, Model};
use crate::model::chain::Chain;
use crate::model::refusal::Refusal;
use crate::model::signals::Signals;

/// Refusal of an authenticated caller's request, with the call if its chain was verified.
#[derive(Debug, Serialize)]
pub struct RefusalRecord {
    nonce: String,
    kind: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    problem: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    field: String,
    purpose: &'static str,
    caller: Actor,
    policy: PolicyReference,
    #[serde(skip_serializing_if = "String::is_empty")]
    trace_id: String,
    #[serde(flatten)]
    proven: Option<ProvenRecord>,
}

/// Verified chain of a refused call, and the action and resource that it asked for.
#[derive(Debug, Serialize)]
struct ProvenRecord {
    chain: ChainRecord,
    action: String,
    resource: ResourceRecord,
    case: CaseRecord,
    correlation: CorrelationRecord,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<Model>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signals: Option<SignalsRecord>,
}

impl RefusalRecord {
    /// Creates the record of a refusal without a call.
    pub fn of(refusal: &Refusal, caller: Actor, policy: &PolicyVersion, record_metadata: RecordMetadata) -> Self {
        let (field, problem) = match refusal {
            Refusal::Invalid { field, problem, .. } => (field.clone(), *problem),
            Refusal::Exhausted(words)
            | Refusal::Forbidden(words)
            | Refusal::Precondition(words)
            | Refusal::Unauthenticated(words)
            | Refusal::Unavailable(words) => (String::new(), *words),
            Refusal::NotFound => (String::new(), "not_found"),
            Refusal::Deadline => (String::new(), ""),
        };
        Self {
            nonce: record_metadata.nonce,
            kind: refusal.kind(),
            problem,
            field,
            purpose: record_metadata.purpose,
            caller,
            policy: PolicyReference { digest: policy.digest.clone(), version: policy.version },
            trace_id: record_metadata.trace_id,
            proven: None,
        }
    }

    /// Adds the call, whose chain was verified, and its risk signals.
    #[must_use]
    pub fn with_call(self, chain: &Chain, call: &Call, signals: &Signals) -> Self {
        let proven = ProvenRecord {
            chain: ChainRecord::new(chain),
            action: call.action.clone(),
            resource: ResourceRecord::new(call),
            case: CaseRecord::new(call, &signals.customer),
            correlation: correlation(&call.correlation),
            model: call.model.clone(),
            signals: SignalsRecord::new(signals),
        };
        Self { proven: Some(proven), ..self }
    }
}
