//! Turns an evaluation into an answer, signs the answer's tokens, and seals the answer with its durable
//! records.

use crate::approvals::binding;
use crate::pdp::span_facts::OpenSpan;

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

/// The request that an answer belongs to.
pub(super) struct AnswerSubject<'a> {
    /// Call that the evaluation id proves; `None` for a plain Cedar request.
    pub(super) call: Option<&'a Call>,
    /// Id of the request; empty if the caller sent none, or the RPC has no request ids.
    pub(super) request_id: &'a str,
    /// Summary of the call for reviewers.
    pub(super) display: String,
    /// Keyed digest of everything that the decision depends on.
    pub(super) call_digest: String,
}

impl Pdp {
    pub(super) fn answer(
        &self,
        moment: &Moment,
        evaluation: Evaluation,
        mode: Mode,
        of: AnswerSubject<'_>,
    ) -> Result<Answer, Refusal> {
        let AnswerSubject { call, request_id, display, call_digest } = of;
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

    /// Signs the token that the caller sends back later: the binding of a denial that can be requested, or
    /// the outcome token of an allow.
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
                    Some(binding) => binding::sign_binding(&keys.binding, binding, moment.now)
                        .map(|token| answer.binding_token = token),
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
                    approval: answer.approval.as_ref().map_or_else(String::new, |used| used.id.clone()),
                };
                let environment = &self.options.environment;
                let token =
                    binding::sign_outcome(&keys.binding, environment, &caller.tool_service, allowed, moment.now);
                token.map(|token| answer.outcome_token = token)
            }
            (_, Some(_)) => Ok(()),
        };
        signed.map_err(|_| Refusal::Unavailable("the answer could not be signed"))
    }

    /// Returns the binding of a denied call; `None` if the bundle lacks the template or the case has no
    /// version.
    pub(super) fn binding(
        &self,
        moment: &Moment,
        CallInChain { chain, call, .. }: CallInChain<'_>,
        missing: &Missing,
        answer: &Answer,
    ) -> Option<Binding> {
        let bundle = &moment.snapshot.bundle;
        // Without a version, a change of the case after the denial could not be detected.
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
            risk: answer
                .signals
                .risk
                .as_ref()
                .map_or(String::new(), |risk| format!("{}, {} of 100", risk.tier, risk.score)),
            findings: None,
            call: binding::bound_call(&self.options.environment, chain, call, &template.at_most),
        })
    }

    /// Returns the checks that a call creates when its success is reported.
    pub(super) fn checks_of(&self, moment: &Moment, call: &Call) -> Vec<String> {
        let made = moment.snapshot.bundle.roles.as_ref().and_then(|roles| roles.checks.get(&call.action));
        made.map_or_else(Vec::new, |made| made.made(&call.arguments).into_iter().map(str::to_owned).collect())
    }

    /// Makes the records durable, the answer's own last, and ends the answer's span.
    pub(super) async fn record_all<T>(
        &self,
        moment: &Moment,
        answer: Answer,
        content: T,
        records: Vec<Record>,
        open: OpenSpan,
    ) -> Result<Recorded<(Answer, T)>, Refused> {
        let mut receipt = None;
        for record in records {
            match self.audit.append(moment.now, record).await {
                Ok(durable) => receipt = Some(durable),
                Err(down) => {
                    let refused = Refused::from(down);
                    self.telemetry.metrics.refusal(refused.refusal().kind());
                    open.refused(refused.refusal());
                    return Err(refused);
                }
            }
        }
        let reason = answer.outcome.denied.map_or("", |reason| reason.name());
        self.telemetry.metrics.decision(answer.allows(), reason, answer.mode.name(), open.took());
        open.answered(&answer);
        let receipt = receipt.ok_or(Refused(Refusal::Unavailable("the answer has no record")))?;
        Ok(receipt.seal((answer, content)))
    }
}
