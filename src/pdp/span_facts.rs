//! The span of a decision, and its attributes: names of the schema, and of the bundle once the gates
//! confirmed them.

use std::time::Duration;

use crate::clock::Stopwatch;
use crate::model::answer::{Answer, Gate};
use crate::model::call::Call;
use crate::model::chain::Chain;
use crate::model::refusal::Refusal;
use crate::model::roles::Roles;
use crate::pdp::Pdp;
use crate::pdp::evaluation::Evaluation;
use crate::pdp::origin::Request;
use crate::pdp::snapshot::Moment;
use crate::telemetry::spans::{CallFacts, DecisionSpan};

/// The open span of a request, with the attributes that are known so far.
pub(super) struct OpenSpan {
    span: Option<DecisionSpan>,
    watch: Stopwatch,
    /// Duration of the evaluation, once it has ended. The time for the record does not count.
    evaluated: Option<Duration>,
    pub(super) facts: CallFacts,
}

impl OpenSpan {
    /// Starts the time of the evaluation. `span` is `None` if traces are off.
    pub(super) fn new(watch: Stopwatch, span: Option<DecisionSpan>, facts: CallFacts) -> Self {
        Self { span, watch, evaluated: None, facts }
    }

    /// Stops the time of the evaluation.
    pub(super) fn stop(&mut self) {
        self.evaluated = Some(self.watch.elapsed());
    }

    /// Duration of the evaluation.
    pub(super) fn took(&self) -> Duration {
        self.evaluated.unwrap_or_else(|| self.watch.elapsed())
    }

    /// Ends the span of a request that was answered.
    pub(super) fn answered(self, answer: &Answer) {
        if let Some(span) = self.span {
            span.answered(&self.facts, answer);
        }
    }

    /// Ends the span of a request that was refused.
    pub(super) fn refused(self, refusal: &Refusal) {
        tracing::debug!(name: "request.refused", kind = refusal.kind());
        if let Some(span) = self.span {
            span.refused(&self.facts, refusal);
        }
    }
}

impl Pdp {
    /// Returns the attributes of a call.
    pub(super) fn call_facts(&self, roles: &Roles, chain: &Chain, call: &Call, evaluation: &Evaluation) -> CallFacts {
        let mut facts = CallFacts {
            action: call.action.clone(),
            resource_type: call.resource.reference.kind.clone(),
            principal_type: roles.agent.clone(),
            conversation: call.correlation.conversation.clone(),
            ..CallFacts::default()
        };
        self.known(&mut facts, chain, call, evaluation);
        facts
    }

    /// Adds agent, step, tenant and case, if the gates confirmed that they exist and belong together.
    pub(super) fn known(&self, facts: &mut CallFacts, chain: &Chain, call: &Call, evaluation: &Evaluation) {
        if evaluation.gate.is_none_or(Gate::is_late) {
            facts.agent.clone_from(&chain.agent);
            facts.step.clone_from(&chain.step);
            facts.tenant.clone_from(&call.case.tenant);
            facts.case = self.case_id(call);
        }
    }

    /// Returns the case as spans identify it: by its id or a keyed digest.
    pub(super) fn case_id(&self, call: &Call) -> String {
        if self.options.digests_case_ids { self.audit.digest(&call.case.id) } else { call.case.id.clone() }
    }
}

/// Returns the attributes of a request of which nothing is verified yet: only names that the schema has. Any
/// other name becomes `_OTHER`.
pub(super) fn facts(moment: &Moment, request: Option<&Request>) -> CallFacts {
    let shapes = &moment.snapshot.bundle.policies.shapes;
    let listed = |known: bool, name: &str| if known { name.to_owned() } else { "_OTHER".to_owned() };
    match request {
        Some(Request::Call(call)) => CallFacts {
            action: listed(shapes.actions.contains_key(&call.action), &call.action),
            resource_type: listed(
                shapes.entities.contains_key(&call.resource.reference.kind),
                &call.resource.reference.kind,
            ),
            conversation: call.correlation.conversation.clone(),
            tool_call: call.correlation.tool_call.clone(),
            ..CallFacts::default()
        },
        Some(Request::Plain(call)) => CallFacts {
            action: listed(shapes.actions.contains_key(&call.action.id), &call.action.id),
            ..CallFacts::default()
        },
        None => CallFacts::default(),
    }
}
