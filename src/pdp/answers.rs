//! Answers: how an evaluation becomes one, what is signed for the caller, and how it is sealed by its durable record.

use crate::approvals::binding;
use std::time::Duration;

use crate::approvals::binding::Allowed;
use crate::audit::Recorded;
use crate::audit::record::Record;
use crate::model::answer::{Answer, Missing, Mode};
use crate::model::approval::Binding;
use crate::model::call::Call;
use crate::model::refusal::Refusal;
use crate::pdp::Pdp;
use crate::pdp::evaluation::Evaluation;
use crate::pdp::origin::CallInChain;
use crate::pdp::refused::Refused;
use crate::pdp::snapshot::Moment;
use crate::telemetry::spans::{CallFacts, DecisionSpan};

impl Pdp {
    pub(super) fn answer(
        &self,
        moment: &Moment,
        evaluation: Evaluation,
        mode: Mode,
        of: (Option<&Call>, &str, String, String),
    ) -> Result<Answer, Refusal> {
        let (call, request_id, display, call_digest) = of;
        let call = call.filter(|_| mode == Mode::Enforce);
        Ok(Answer {
            request_id: request_id.to_owned(),
            evaluation_id: self.evaluation_id(call, evaluation.outcome.denied.is_none(), moment.now)?,
            evaluated_at: moment.now,
            outcome: evaluation.outcome,
            gate: evaluation.gate,
            verdict: evaluation.verdict,
            mode,
            signals: Box::default(),
            display,
            call_digest,
            policy: moment.snapshot.bundle.version.clone(),
            warnings: self.options.warnings.clone(),
            approval: None,
            binding_token: String::new(),
            outcome_token: String::new(),
            repeats: None,
        })
    }

    /// Signs what the caller is to bring back: a requestable denial's binding, or what was allowed.
    pub(super) fn sign(
        &self,
        moment: &Moment,
        CallInChain { caller, chain, call }: CallInChain<'_>,
        answer: &mut Answer,
    ) -> Result<(), Refusal> {
        if answer.mode != Mode::Enforce {
            return Ok(());
        }
        let keys = self.keys.load();
        let signed = match (&answer.outcome.missing, answer.outcome.denied) {
            (Some(missing), Some(_)) if !missing.template.is_empty() => {
                match self.binding(moment, CallInChain { caller, chain, call }, missing, answer) {
                    Some(binding) => binding::sign_binding(&keys.binding, binding, moment.now).map(|token| answer.binding_token = token),
                    None => Ok(()),
                }
            }
            (_, None) => {
                let allowed = Allowed {
                    evaluation_id: answer.evaluation_id.clone(),
                    tenant: call.case.tenant.clone(),
                    case: call.case.id.clone(),
                    conversation: call.correlation.conversation.clone(),
                    customer: call.customer().to_owned(),
                    action: call.action.clone(),
                    checks: self.checks_of(moment, call),
                    approval: answer.approval.as_ref().map(|used| used.id.clone()).unwrap_or_default(),
                };
                let environment = &self.options.environment;
                let token = binding::sign_outcome(&keys.binding, environment, &caller.tool_service, allowed, moment.now);
                token.map(|token| answer.outcome_token = token)
            }
            (_, Some(_)) => Ok(()),
        };
        signed.map_err(|_| Refusal::Unavailable("the answer could not be signed"))
    }

    pub(super) fn binding(
        &self,
        moment: &Moment,
        CallInChain { chain, call, .. }: CallInChain<'_>,
        missing: &Missing,
        answer: &Answer,
    ) -> Option<Binding> {
        let bundle = &moment.snapshot.bundle;
        // Without a version nobody could tell whether the case changed since.
        let template = bundle.approvals.templates.get(&missing.template).filter(|_| !call.case.version.is_empty())?;
        Some(Binding {
            evaluation_id: answer.evaluation_id.clone(),
            template: missing.template.clone(),
            quorum: template.quorum.max(missing.quorum),
            requires: missing.requires.clone(),
            policy: bundle.version.digest.clone(),
            supervisor_person: chain.token.supervisor_person.clone(),
            customer: call.customer().to_owned(),
            conversation: call.correlation.conversation.clone(),
            risk: answer.signals.risk.as_ref().map_or(String::new(), |risk| format!("{}, {} of 100", risk.tier, risk.score)),
            findings: None,
            call: binding::bound_call(&self.options.environment, chain, call, &template.at_most),
        })
    }

    /// The checks that a call makes when its success is reported.
    pub(super) fn checks_of(&self, moment: &Moment, call: &Call) -> Vec<String> {
        let made = moment.snapshot.bundle.roles.as_ref().and_then(|roles| roles.checks.get(&call.action));
        made.map(|made| made.made(&call.arguments).into_iter().map(str::to_owned).collect()).unwrap_or_default()
    }

    /// Makes records durable, the answer's own last, and ends its span.
    pub(super) async fn record_all<T>(
        &self,
        moment: &Moment,
        (answer, content): (Answer, T),
        records: Vec<Record>,
        (span, facts): (Option<DecisionSpan>, CallFacts),
        took: Duration,
    ) -> Result<Recorded<(Answer, T)>, Refused> {
        let mut receipt = None;
        for record in records {
            match self.audit.append(moment.now, record).await {
                Ok(durable) => receipt = Some(durable),
                Err(down) => {
                    let refused = Refused::from(down);
                    self.telemetry.metrics.refusal(refused.refusal().kind());
                    self.end_refused(span, &facts, refused.refusal());
                    return Err(refused);
                }
            }
        }
        let reason = answer.outcome.denied.map_or("", |reason| reason.name());
        self.telemetry.metrics.decision(answer.allows(), reason, answer.mode.name(), took);
        if let Some(span) = span {
            span.answered(&facts, &answer);
        }
        let receipt = receipt.ok_or(Refused(Refusal::Unavailable("the answer has no record")))?;
        Ok(receipt.seal((answer, content)))
    }
}
