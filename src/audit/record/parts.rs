//! Members that several kinds of record share.

use std::sync::LazyLock;

use serde::Serialize;

use crate::json;
use crate::model::call::{Call, Correlation};
use crate::model::chain::Chain;
use crate::model::verdict::LinkVerdict;

/// Maximum number of items of a list in a line, and maximum bytes of them as JSON; `more` counts the rest.
pub(in crate::audit) const ITEMS_MAX: usize = 64;

pub(in crate::audit) const ITEMS_BYTES_MAX: usize = 4096;

/// List that is cut to the limits above, with a count of the cut items, so that it is never cut silently.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Capped<T> {
    pub(in crate::audit) items: Vec<T>,
    #[serde(skip_serializing_if = "is_zero")]
    pub(in crate::audit) more: usize,
}

pub(in crate::audit) fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl<T: Serialize> FromIterator<T> for Capped<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        let mut items: Vec<T> = items.into_iter().collect();
        let mut bytes = 0;
        let fits = |item: &T| {
            bytes += json::canonical(item).len();
            bytes <= ITEMS_BYTES_MAX
        };
        let kept = items.iter().take(ITEMS_MAX).map(fits).take_while(|fits| *fits).count();
        let more = items.len() - kept;
        items.truncate(kept);
        Self { items, more }
    }
}

#[derive(Clone, Debug, Default, Serialize)]
pub(in crate::audit) struct CallerRecord {
    pub(in crate::audit) tool_service: String,
    pub(in crate::audit) by: &'static str,
}

/// Approval that a call used.
#[derive(Clone, Debug, Serialize)]
pub(in crate::audit) struct UsedRecord {
    pub(in crate::audit) id: String,
    pub(in crate::audit) operation: String,
    pub(in crate::audit) approvers: Vec<String>,
    pub(in crate::audit) approved_at: String,
}

/// Consent of the customer that a call used.
#[derive(Clone, Debug, Serialize)]
pub(in crate::audit) struct ConsentRecord {
    pub(in crate::audit) id: String,
    pub(in crate::audit) operation: String,
    pub(in crate::audit) reported_by: String,
    pub(in crate::audit) given_at: String,
}

/// Draft that a call sends, and the evaluation that released it.
#[derive(Clone, Debug, Serialize)]
pub(in crate::audit) struct DraftRecord {
    pub(in crate::audit) digest: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::audit) release: String,
}

#[derive(Clone, Debug, Serialize)]
pub(in crate::audit) struct ChainRecord {
    pub(in crate::audit) agent: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::audit) agent_issuer: String,
    pub(in crate::audit) supervisor: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::audit) supervisor_issuer: String,
    pub(in crate::audit) step: String,
    /// Absent if the chain has all of the agent's scopes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::audit) scopes: Option<Capped<String>>,
    pub(in crate::audit) asserted: bool,
}

#[derive(Clone, Debug, Default, Serialize)]
pub(in crate::audit) struct ResourceRecord {
    pub(in crate::audit) r#type: String,
    pub(in crate::audit) id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::audit) version: String,
}

#[derive(Clone, Debug, Serialize)]
pub(in crate::audit) struct CaseRecord {
    pub(in crate::audit) id: String,
    pub(in crate::audit) version: String,
    pub(in crate::audit) tenant: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::audit) customer: String,
}

#[derive(Clone, Debug, Serialize)]
pub(in crate::audit) struct LinkRecord {
    pub(in crate::audit) link: &'static str,
    pub(in crate::audit) principal: String,
    pub(in crate::audit) permitted: bool,
    pub(in crate::audit) determining: Capped<String>,
    pub(in crate::audit) errors: Capped<String>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub(in crate::audit) struct PolicyReference {
    pub(in crate::audit) digest: String,
    pub(in crate::audit) version: u64,
}

#[derive(Clone, Debug, Serialize)]
pub(in crate::audit) struct Engine {
    pub(in crate::audit) cedar: &'static str,
    pub(in crate::audit) countersign: &'static str,
}

#[derive(Clone, Debug, Default, Serialize)]
pub(in crate::audit) struct CorrelationRecord {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::audit) request: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::audit) conversation: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::audit) tool_call: String,
}

/// Members of a decision's record that are not in the answer.
#[derive(Clone, Debug, Default)]
pub struct RecordMetadata {
    /// 128 random bits, so that the record can't be guessed from the line's hash.
    pub nonce: String,
    /// W3C trace id; empty if the call is not traced.
    pub trace_id: String,
    /// Purpose of the request: `authorize`, `evaluate_output`, `explain` or `prepare_context`.
    pub purpose: &'static str,
}

/// Version of the Cedar library that evaluates the policies.
pub static CEDAR_VERSION: LazyLock<String> = LazyLock::new(|| cedar_policy::get_sdk_version().to_string());

impl Default for Engine {
    fn default() -> Self {
        Self { cedar: &CEDAR_VERSION, countersign: env!("CARGO_PKG_VERSION") }
    }
}

impl ChainRecord {
    pub(in crate::audit) fn new(chain: &Chain) -> Self {
        Self {
            agent: chain.agent.clone(),
            agent_issuer: chain.token.agent_issuer.clone(),
            supervisor: chain.supervisor.clone(),
            supervisor_issuer: chain.token.supervisor_issuer.clone(),
            step: chain.step.clone(),
            scopes: chain.scopes.as_ref().map(|scopes| scopes.iter().cloned().collect()),
            asserted: chain.asserted,
        }
    }
}

impl ResourceRecord {
    pub(in crate::audit) fn new(call: &Call) -> Self {
        let reference = &call.resource.reference;
        Self { r#type: reference.kind.clone(), id: reference.id.clone(), version: call.resource.version.clone() }
    }
}

impl CaseRecord {
    pub(in crate::audit) fn new(call: &Call, customer: &str) -> Self {
        let case = &call.case;
        Self {
            id: case.id.clone(),
            version: case.version.clone(),
            tenant: case.tenant.clone(),
            customer: customer.to_owned(),
        }
    }
}

pub(in crate::audit) fn correlation(correlation: &Correlation) -> CorrelationRecord {
    CorrelationRecord {
        request: correlation.request.clone(),
        conversation: correlation.conversation.clone(),
        tool_call: correlation.tool_call.clone(),
    }
}

pub(in crate::audit) fn link(verdict: &LinkVerdict) -> LinkRecord {
    // In conformance mode a policy or entity id may have any length.
    let short = |id: &String| id.chars().take(128).collect::<String>();
    LinkRecord {
        link: verdict.link.name(),
        principal: format!("{}::{}", short(&verdict.principal.kind), short(&verdict.principal.id)),
        permitted: verdict.permitted,
        determining: verdict.determining.iter().map(short).collect(),
        errors: verdict.errors.iter().map(|fault| format!("{}: {}", short(&fault.policy), fault.class)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_cut_by_count_and_by_bytes_and_says_so() {
        let many: Capped<String> = (0..100).map(|number| number.to_string()).collect();
        assert_eq!((many.items.len(), many.more), (64, 36));
        // A control character takes six bytes in JSON.
        let long: Capped<String> = (0..10).map(|_| "\u{1}".repeat(200)).collect();
        assert_eq!((long.items.len(), long.more), (3, 7));
    }
}
