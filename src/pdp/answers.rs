//! Turns an evaluation into an answer, signs the answer's tokens, and seals the answer with its durable
//! records.

use crate::pdp::span_facts::OpenSpan;

use crate::audit::Recorded;
use crate::audit::record::Record;
use crate::model::answer::{Answer, Gate, Mode, Reason};
use crate::model::call::Call;
use crate::model::refusal::Refusal;
use crate::model::text::known;
use crate::pdp::Pdp;
use crate::pdp::evaluation::Evaluation;
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
        let hint = match call {
            Some(call) if self.options.development => hint(moment, &evaluation, call),
            Some(_) | None => String::new(),
        };
        let call = call.filter(|_| mode == Mode::Enforce);
        Ok(Answer {
            request_id: request_id.to_owned(),
            evaluation_id: self.tokens.evaluation_id(call, evaluation.outcome.denied.is_none(), moment.now)?,
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
            hint,
            approval: None,
            consent: None,
            binding_token: String::new(),
            outcome_token: String::new(),
            repeats: None,
        })
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

/// Returns the gate or the policies that denied a call as `not_permitted`, and the known action that an unknown one
/// resembles; otherwise an empty string.
fn hint(moment: &Moment, evaluation: &Evaluation, call: &Call) -> String {
    if evaluation.outcome.denied != Some(Reason::NotPermitted) {
        return String::new();
    }
    let actions = &moment.snapshot.bundle.policies.shapes.actions;
    match evaluation.gate {
        Some(Gate::Action) if !actions.contains_key(&call.action) => {
            format!(
                "development: the bundle has no such action{}",
                known(&call.action, actions.keys().map(String::as_str))
            )
        }
        Some(gate) => format!("development: the gate `{}` denied the call", gate.name()),
        None => format!("development: {}", evaluation.verdict.denials().join("; ")),
    }
}
