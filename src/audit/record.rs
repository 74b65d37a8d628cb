//! Records of the log. Ids and names are in clear text; arguments, attributes and texts appear only as a
//! keyed digest.

mod refusal;
mod signals;

use serde::Serialize;

use crate::audit::content::{ContextRecord, OutputRecord};
use crate::audit::operations::{LossRecord, PolicyRecord, RecoveredRecord, RefusalsRecord, ResumedRecord, ServerRecord};
pub use crate::audit::record::refusal::RefusalRecord;
use crate::audit::record::signals::SignalsRecord;
use crate::json;
use crate::model::answer::{Answer, Obligation};
use crate::model::call::{Call, Correlation, Model, PlainCall};
use crate::model::chain::{Caller, Chain};
use crate::model::verdict::LinkVerdict;

/// Maximum length of a line in bytes, without its newline.
pub const LINE_MAX: usize = 65_535;
/// Maximum number of items of a list in a line, and maximum bytes of them as JSON; `more` counts the rest.
const ITEMS_MAX: usize = 64;
const ITEMS_BYTES_MAX: usize = 4096;

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
    #[serde(rename = "server.started")]
    Started(ServerRecord),
    #[serde(rename = "server.stopped")]
    Stopped(ServerRecord),
    /// JSON record that contains its own `type`, such as an outbox entry, an event or a list of redactions.
    #[serde(untagged)]
    Stored(serde_json::Value),
}

/// List that is cut to the limits above, with a count of the cut items, so that it is never cut silently.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Capped<T> {
    items: Vec<T>,
    #[serde(skip_serializing_if = "is_zero")]
    more: usize,
}

fn is_zero(count: &usize) -> bool {
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

#[derive(Debug, Default, Serialize)]
pub struct DecisionRecord {
    evaluation_id: String,
    nonce: String,
    decision: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    hypothetical: Option<&'static str>,
    reason: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    gate: &'static str,
    mode: &'static str,
    purpose: &'static str,
    caller: CallerRecord,
    #[serde(skip_serializing_if = "Option::is_none")]
    chain: Option<ChainRecord>,
    #[serde(skip_serializing_if = "Option::is_none")]
    approval: Option<UsedRecord>,
    /// Draft that the call sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    draft: Option<DraftRecord>,
    action: String,
    resource: ResourceRecord,
    #[serde(skip_serializing_if = "Option::is_none")]
    case: Option<CaseRecord>,
    links: Vec<LinkRecord>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signals: Option<SignalsRecord>,
    /// Content of a prepared context.
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<Box<ContextRecord>>,
    /// Findings in an evaluated draft.
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<Box<OutputRecord>>,
    obligations: Capped<String>,
    requires: Capped<String>,
    policy: PolicyReference,
    engine: Engine,
    input_digest: String,
    untrusted: usize,
    correlation: CorrelationRecord,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<Model>,
    #[serde(skip_serializing_if = "String::is_empty")]
    trace_id: String,
    warnings: Vec<&'static str>,
}

#[derive(Debug, Default, Serialize)]
struct CallerRecord {
    tool_service: String,
    by: &'static str,
}

/// Approval that a call used.
#[derive(Debug, Serialize)]
struct UsedRecord {
    id: String,
    operation: String,
    approvers: Vec<String>,
    approved_at: String,
}

/// Draft that a call sends, and the evaluation that released it.
#[derive(Debug, Serialize)]
struct DraftRecord {
    digest: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    release: String,
}

#[derive(Debug, Serialize)]
struct ChainRecord {
    agent: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    agent_issuer: String,
    supervisor: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    supervisor_issuer: String,
    step: String,
    /// Absent if the chain has all of the agent's scopes.
    #[serde(skip_serializing_if = "Option::is_none")]
    scopes: Option<Capped<String>>,
    asserted: bool,
}

#[derive(Debug, Default, Serialize)]
struct ResourceRecord {
    r#type: String,
    id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    version: String,
}

#[derive(Debug, Serialize)]
struct CaseRecord {
    id: String,
    version: String,
    tenant: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    customer: String,
}

#[derive(Debug, Serialize)]
struct LinkRecord {
    link: &'static str,
    principal: String,
    permitted: bool,
    determining: Capped<String>,
    errors: Capped<String>,
}

#[derive(Debug, Default, Serialize)]
struct PolicyReference {
    digest: String,
    version: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Engine {
    cedar: &'static str,
    countersign: &'static str,
}

impl Default for Engine {
    fn default() -> Self {
        Self { cedar: CEDAR_VERSION, countersign: env!("CARGO_PKG_VERSION") }
    }
}

/// Version of the Cedar library that evaluates the policies.
pub const CEDAR_VERSION: &str = "4.14.1";

#[derive(Debug, Default, Serialize)]
struct CorrelationRecord {
    #[serde(skip_serializing_if = "String::is_empty")]
    request: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    conversation: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    tool_call: String,
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

impl DecisionRecord {
    pub fn action(&self) -> &str {
        &self.action
    }

    /// Adds the record of a prepared context.
    #[must_use]
    pub fn with_context(self, context: ContextRecord) -> Self {
        Self { context: Some(Box::new(context)), ..self }
    }

    /// Adds the record of an evaluated draft.
    #[must_use]
    pub fn with_output(self, output: OutputRecord) -> Self {
        Self { output: Some(Box::new(output)), ..self }
    }

    /// Adds the draft that the call sends; `release` is the id of the evaluation that released it, or empty.
    #[must_use]
    pub fn with_draft(self, digest: &str, release: &str) -> Self {
        Self { draft: Some(DraftRecord { digest: digest.to_owned(), release: release.to_owned() }), ..self }
    }

    /// Creates the record of an answer to a call.
    pub fn of(answer: &Answer, caller: &Caller, chain: &Chain, call: &Call, record_metadata: RecordMetadata) -> Self {
        let approval = answer.approval.as_ref().map(|used| UsedRecord {
            id: used.id.clone(),
            operation: call.tokens.operation.clone(),
            approvers: used.approvers.iter().map(|subject| subject.sub.clone()).collect(),
            approved_at: used.approved_at.to_string(),
        });
        Self {
            chain: Some(ChainRecord::of(chain)),
            approval,
            action: call.action.clone(),
            resource: ResourceRecord::of(call),
            case: Some(CaseRecord::of(call, &answer.signals.customer)),
            signals: SignalsRecord::of(&answer.signals),
            untrusted: call.untrusted.len(),
            correlation: correlation(&call.correlation),
            model: call.model.clone(),
            ..Self::of_answer(answer, caller, record_metadata)
        }
    }

    /// Creates the record of an answer to a plain Cedar request. Its ids may have any length, so they are cut
    /// to fit a line.
    pub fn of_plain(answer: &Answer, caller: &Caller, call: &PlainCall, record_metadata: RecordMetadata) -> Self {
        let short = |text: &str| text.chars().take(128).collect::<String>();
        let resource = ResourceRecord { r#type: short(&call.resource.kind), id: short(&call.resource.id), version: String::new() };
        Self {
            action: short(&call.action.id),
            resource,
            correlation: correlation(&call.correlation),
            ..Self::of_answer(answer, caller, record_metadata)
        }
    }

    fn of_answer(answer: &Answer, caller: &Caller, record_metadata: RecordMetadata) -> Self {
        let name = |allowed| if allowed { "allow" } else { "deny" };
        let dry_run = answer.mode == crate::model::answer::Mode::DryRun;
        Self {
            evaluation_id: answer.evaluation_id.clone(),
            nonce: record_metadata.nonce,
            decision: name(answer.allows()),
            hypothetical: dry_run.then(|| name(answer.outcome.denied.is_none())),
            reason: answer.outcome.denied.map_or("", |reason| reason.name()),
            gate: answer.gate.map_or("", |gate| gate.name()),
            mode: answer.mode.name(),
            purpose: record_metadata.purpose,
            caller: CallerRecord { tool_service: caller.tool_service.clone(), by: caller.by.name() },
            links: answer.verdict.links.iter().map(link).collect(),
            obligations: answer.outcome.obligations.iter().map(|Obligation { kind, value }| format!("{kind}:{value}")).collect(),
            requires: answer.outcome.missing.iter().flat_map(|missing| missing.requires.iter().cloned()).collect(),
            policy: PolicyReference { digest: answer.policy.digest.clone(), version: answer.policy.version },
            input_digest: answer.call_digest.clone(),
            trace_id: record_metadata.trace_id,
            warnings: answer.warnings.clone(),
            ..Self::default()
        }
    }
}

impl ChainRecord {
    fn of(chain: &Chain) -> Self {
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
    fn of(call: &Call) -> Self {
        let reference = &call.resource.reference;
        Self { r#type: reference.kind.clone(), id: reference.id.clone(), version: call.resource.version.clone() }
    }
}

impl CaseRecord {
    fn of(call: &Call, customer: &str) -> Self {
        let case = &call.case;
        Self { id: case.id.clone(), version: case.version.clone(), tenant: case.tenant.clone(), customer: customer.to_owned() }
    }
}

fn correlation(correlation: &Correlation) -> CorrelationRecord {
    CorrelationRecord {
        request: correlation.request.clone(),
        conversation: correlation.conversation.clone(),
        tool_call: correlation.tool_call.clone(),
    }
}

fn link(verdict: &LinkVerdict) -> LinkRecord {
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

    #[test]
    fn the_longest_record_fits_a_line() {
        let worst = || (0..1000).map(|_| "\u{1}".repeat(128)).collect::<Capped<String>>();
        let id = || "\\".repeat(128);
        let link = || LinkRecord { link: "tool_service", principal: id(), permitted: false, determining: worst(), errors: worst() };
        let record = Record::Decision(Box::new(DecisionRecord {
            evaluation_id: id(),
            chain: Some(ChainRecord {
                agent: id(),
                agent_issuer: id(),
                supervisor: id(),
                supervisor_issuer: id(),
                step: id(),
                scopes: Some(worst()),
                asserted: true,
            }),
            action: id(),
            resource: ResourceRecord { r#type: id(), id: id(), version: id() },
            case: Some(CaseRecord { id: id(), version: id(), tenant: id(), customer: id() }),
            links: vec![link(), link(), link()],
            obligations: worst(),
            requires: worst(),
            correlation: CorrelationRecord { request: id(), conversation: id(), tool_call: id() },
            model: Some(Model { provider: id(), name: id(), version: id() }),
            ..DecisionRecord::default()
        }));
        assert!(json::canonical(&record).len() < LINE_MAX - 4096);
        let faults: Vec<String> = (0..1000).map(|_| "\u{1}".repeat(1000)).collect();
        assert!(json::canonical(&Record::PolicyRejected(PolicyRecord::rejected(&id(), &faults, &id()))).len() < LINE_MAX);
    }
}
