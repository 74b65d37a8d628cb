//! Record of a decision.

use serde::Serialize;
use serde_json::Value;

use crate::audit::content::{ContextRecord, OutputRecord};
use crate::audit::record::parts::{
    CallerRecord, Capped, CaseRecord, ChainRecord, ConsentRecord, CorrelationRecord, DraftRecord, Engine, LinkRecord,
    PolicyReference, RecordMetadata, ResourceRecord, UsedRecord, correlation, link,
};
use crate::audit::record::signals::SignalsRecord;
use crate::json::Object;
use crate::model::answer::{Answer, Gate, Mode, Obligation, Reason};
use crate::model::call::{Call, Model, PlainCall};
use crate::model::chain::{Caller, Chain};
use crate::sealing::Sealed;

#[derive(Clone, Debug, Default, Serialize)]
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
    #[serde(skip_serializing_if = "Option::is_none")]
    consent: Option<ConsentRecord>,
    /// Draft that the call sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    draft: Option<DraftRecord>,
    action: String,
    /// Arguments that the bundle has recorded as plain text.
    #[serde(skip_serializing_if = "Object::is_empty")]
    arguments: Object,
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
    /// Digest of the evidence. Absent for a decision without evidence.
    #[serde(skip_serializing_if = "String::is_empty")]
    evidence: String,
    #[serde(skip)]
    sealed: Option<Sealed>,
    untrusted: usize,
    correlation: CorrelationRecord,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<Model>,
    #[serde(skip_serializing_if = "String::is_empty")]
    trace_id: String,
    warnings: Vec<&'static str>,
    /// Kill switch or revoked session that stopped the call.
    #[serde(skip_serializing_if = "String::is_empty")]
    halted_by: String,
}

impl DecisionRecord {
    pub fn action(&self) -> &str {
        &self.action
    }

    /// Turns the record of an allow that did not come to pass into that of a denial, which is an evaluation of its own.
    #[must_use]
    pub fn denied(self, reason: Reason, gate: Gate, evaluation_id: &str) -> Self {
        Self {
            decision: "deny",
            reason: reason.name(),
            gate: gate.name(),
            evaluation_id: evaluation_id.to_owned(),
            ..self
        }
    }

    /// The members by which the lines of a case and of a request are found: `case`, `correlation` and `trace_id`.
    ///
    /// # Errors
    /// When they can't be serialised.
    pub fn about(&self) -> Result<Vec<(&'static str, Value)>, serde_json::Error> {
        let mut about = vec![("correlation", serde_json::to_value(&self.correlation)?)];
        if let Some(case) = &self.case {
            about.push(("case", serde_json::to_value(case)?));
        }
        if !self.trace_id.is_empty() {
            about.push(("trace_id", self.trace_id.clone().into()));
        }
        Ok(about)
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

    /// Adds the arguments that the bundle has recorded as plain text.
    #[must_use]
    pub fn with_arguments(self, arguments: Object) -> Self {
        Self { arguments, ..self }
    }

    /// Adds the evidence of the decision, if there is any.
    #[must_use]
    pub fn with_evidence(self, sealed: Option<Sealed>) -> Self {
        Self { evidence: sealed.as_ref().map_or_else(String::new, Sealed::digest), sealed, ..self }
    }

    /// Takes the evidence, which is written beside the line.
    pub fn take_evidence(&mut self) -> Option<Sealed> {
        self.sealed.take()
    }

    /// Creates the record of an answer to a call.
    pub fn of(answer: &Answer, caller: &Caller, chain: &Chain, call: &Call, record_metadata: RecordMetadata) -> Self {
        let approval = answer.approval.as_ref().map(|used| UsedRecord {
            id: used.id.clone(),
            operation: call.tokens.operation.clone(),
            approvers: used.approvers.iter().map(|subject| subject.sub.clone()).collect(),
            approved_at: used.approved_at.to_string(),
        });
        let consent = answer.consent.as_ref().map(|used| ConsentRecord {
            id: used.id.clone(),
            operation: call.tokens.operation.clone(),
            reported_by: used.reported_by.clone(),
            given_at: used.given_at.to_string(),
        });
        Self {
            chain: Some(ChainRecord::new(chain)),
            approval,
            consent,
            action: call.action.clone(),
            resource: ResourceRecord::new(call),
            case: Some(CaseRecord::new(call, &answer.signals.customer)),
            signals: SignalsRecord::new(&answer.signals),
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
        let resource =
            ResourceRecord { r#type: short(&call.resource.kind), id: short(&call.resource.id), version: String::new() };
        Self {
            action: short(&call.action.id),
            resource,
            correlation: correlation(&call.correlation),
            ..Self::of_answer(answer, caller, record_metadata)
        }
    }

    fn of_answer(answer: &Answer, caller: &Caller, record_metadata: RecordMetadata) -> Self {
        let name = |allowed| if allowed { "allow" } else { "deny" };
        let dry_run = answer.mode == Mode::DryRun;
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
            obligations: answer
                .outcome
                .obligations
                .iter()
                .map(|Obligation { kind, value }| format!("{kind}:{value}"))
                .collect(),
            requires: answer.outcome.missing.iter().flat_map(|missing| missing.requires.iter().cloned()).collect(),
            policy: PolicyReference { digest: answer.policy.digest.clone(), version: answer.policy.version },
            input_digest: answer.call_digest.clone(),
            trace_id: record_metadata.trace_id,
            warnings: answer.warnings.clone(),
            halted_by: answer.signals.halted_by.clone(),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::operations::PolicyRecord;
    use crate::audit::record::{LINE_MAX, Record};
    use crate::json;

    #[test]
    fn the_longest_record_fits_a_line() {
        let worst = || (0..1000).map(|_| "\u{1}".repeat(128)).collect::<Capped<String>>();
        let id = || "\\".repeat(128);
        let link = || LinkRecord {
            link: "tool_service",
            principal: id(),
            permitted: false,
            determining: worst(),
            errors: worst(),
        };
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
        assert!(
            json::canonical(&Record::PolicyRejected(PolicyRecord::rejected(&id(), &faults, &id()))).len() < LINE_MAX
        );
    }
}
