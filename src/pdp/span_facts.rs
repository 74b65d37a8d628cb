//! What a decision's span says of its call.

use crate::model::answer::Gate;
use crate::model::call::Call;
use crate::model::chain::Chain;
use crate::model::roles::Roles;
use crate::pdp::Pdp;
use crate::pdp::evaluation::Evaluation;
use crate::pdp::origin::Request;
use crate::pdp::snapshot::Moment;
use crate::telemetry::spans::CallFacts;

impl Pdp {
    /// What a span may say of a call.
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

    /// What a span says of a call once it is known that its names are of the bundle.
    pub(super) fn known(&self, facts: &mut CallFacts, chain: &Chain, call: &Call, evaluation: &Evaluation) {
        if matches!(evaluation.gate, None | Some(Gate::Halt | Gate::State | Gate::Step | Gate::Token)) {
            facts.agent.clone_from(&chain.agent);
            facts.step.clone_from(&chain.step);
            facts.tenant.clone_from(&call.case.tenant);
            facts.case = self.case_id(call);
        }
    }

    /// The case as spans name it.
    pub(super) fn case_id(&self, call: &Call) -> String {
        if self.options.digests_case_ids { self.audit.digest(&call.case.id.as_str().into()) } else { call.case.id.clone() }
    }
}

/// What a span may say of a request before anything of it is known to exist: names of the schema alone.
pub(super) fn facts(moment: &Moment, request: Option<&Request>) -> CallFacts {
    let shapes = &moment.snapshot.bundle.policies.shapes;
    let listed = |known: bool, name: &str| if known { name.to_owned() } else { "_OTHER".to_owned() };
    match request {
        Some(Request::Call(call)) => CallFacts {
            action: listed(shapes.actions.contains_key(&call.action), &call.action),
            resource_type: listed(shapes.entities.contains_key(&call.resource.reference.kind), &call.resource.reference.kind),
            conversation: call.correlation.conversation.clone(),
            tool_call: call.correlation.tool_call.clone(),
            ..CallFacts::default()
        },
        Some(Request::Plain(call)) => {
            CallFacts { action: listed(shapes.actions.contains_key(&call.action.id), &call.action.id), ..CallFacts::default() }
        }
        None => CallFacts::default(),
    }
}
