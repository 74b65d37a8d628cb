//! One EvaluateOutput from top to bottom: detectors read the draft, policies compare the findings with the
//! facts of the case, and only a released draft gets a token to be sent.

use std::sync::Arc;

use crate::approvals::binding;
use crate::approvals::release::{draft_digest, sign_release};
use crate::audit::Recorded;
use crate::audit::content::{OutputRecord, written};
use crate::audit::record::{DecisionRecord, Record};
use crate::clock::Stopwatch;
use crate::json::Value;
use crate::model::answer::{Answer, Missing, Mode, Outcome, Reason};
use crate::model::approval::Binding;
use crate::model::call::{Call, Correlation};
use crate::model::chain::{Caller, Chain};
use crate::model::content::Disposition;
use crate::model::finding::Finding;
use crate::model::refusal::Refusal;
use crate::model::roles::{ContentRoles, Roles};
use crate::model::time::Timestamp;
use crate::obligations::disposition;
use crate::pdp::Pdp;
use crate::pdp::answers::AnswerSubject;
use crate::pdp::draft::{DraftDigestInput, DraftFacts, ToEvaluate, redacted};
use crate::pdp::evaluation::Evaluation;
use crate::pdp::origin::{CallInChain, Origin, Stopped};
use crate::pdp::pipeline::CallEvaluation;
use crate::pdp::redacted_values::{REPEATS_MAX, repeat, repeats_key};
use crate::pdp::refused::Refused;
use crate::pdp::risk_state::risk_keys::by;
use crate::pdp::risk_state::risk_signals::About;
use crate::pdp::snapshot::Moment;
use crate::pdp::span_facts::OpenSpan;
use crate::policy::Policies;
use crate::policy::rule::Requirement;
use crate::risk_store::{Batch, Tenant};
use crate::telemetry::spans::CallFacts;

/// Kinds of findings that redaction removes from a draft.
const REDACTABLE: [&str; 2] = ["internal_identifier", "personal_data"];

/// Result of evaluating a draft.
#[derive(Clone, Debug, Default)]
pub struct Evaluated {
    pub disposition: Disposition,
    /// Findings, each with a suggestion.
    pub findings: Vec<(Finding, String)>,
    /// Redacted draft, if redaction is all that the draft needs; otherwise empty.
    pub redacted_draft: String,
    /// `sha256:` and the hex digest of the draft, which the call that sends it names.
    pub draft_digest: String,
    /// Release token, and the end of its validity.
    pub release: Option<(String, Timestamp)>,
}

impl Pdp {
    /// Evaluates a draft before the customer sees it.
    ///
    /// # Errors
    /// If the request is refused; the refusal is already recorded or counted. It is UNAVAILABLE if the audit
    /// log can't be written.
    pub async fn evaluate_output(
        self: &Arc<Self>,
        origin: &Origin,
        read: Result<ToEvaluate, Refusal>,
    ) -> Result<Recorded<(Answer, Evaluated)>, Refused> {
        let watch = Stopwatch::start();
        let moment = self.moment();
        let caller = self.admission.service(&moment, origin)?;
        let _share = self.admission.share(&moment, origin, &caller.tool_service).await?;
        let mut open =
            OpenSpan::new(watch, self.telemetry.start_decision(&origin.trace, "EvaluateOutput"), CallFacts::default());
        let evaluation = match read {
            Ok(asked) => self.draft_in_chain(&moment, origin, &caller, &Arc::new(asked), &mut open.facts).await,
            Err(refusal) => Err(refusal.into()),
        };
        let (answer, evaluated, record) = match evaluation {
            Ok(evaluation) => evaluation,
            Err(stopped) => return self.refuse(&moment, origin, &caller, open, stopped).await,
        };
        open.stop();
        self.record_all(&moment, answer, evaluated, vec![record], open).await
    }

    async fn draft_in_chain(
        &self,
        moment: &Moment,
        origin: &Origin,
        caller: &Caller,
        asked: &Arc<ToEvaluate>,
        facts: &mut CallFacts,
    ) -> Result<(Answer, Evaluated, Record), Stopped> {
        let (roles, content) = moment.snapshot.content_roles()?;
        let development = moment.snapshot.bundle.manifest.development.as_ref();
        let chain = self.admission.delegations.chain(caller, &asked.credential, development, moment.now).await?;
        let call = releasing(roles, content, asked);
        let evaluation =
            self.evaluate_draft(moment, origin, CallInChain { caller, chain: &chain, call: &call }, asked, facts).await;
        evaluation.map_err(|refusal| Stopped::after(refusal, moment, &chain, &call))
    }

    async fn evaluate_draft(
        &self,
        moment: &Moment,
        origin: &Origin,
        CallInChain { caller, chain, call }: CallInChain<'_>,
        asked: &Arc<ToEvaluate>,
        facts: &mut CallFacts,
    ) -> Result<(Answer, Evaluated, Record), Refusal> {
        let policies = &moment.snapshot.bundle.policies;
        let (roles, _) = moment.snapshot.content_roles()?;
        let about = About { draft: Some(asked), ..About::default() };
        let CallEvaluation { mut evaluation, signals, draft: known, evidence, .. } =
            self.evaluate_call(moment, roles, CallInChain { caller, chain, call }, about).await?;
        *facts = self.call_facts(roles, chain, call, &evaluation);
        let mut verdict = verdict(policies, &evaluation, known.prepared);
        // If the chain may not release drafts of the case at all, its findings are neither returned nor
        // stored.
        let entitled = evaluation.is_entitled(policies, chain, call);
        let known = if entitled { known } else { DraftFacts { prepared: known.prepared, ..DraftFacts::default() } };
        let digest = self.audit.digest(&DraftDigestInput::of(call, asked));
        if verdict == Disposition::HumanReview && evaluation.outcome.denied.is_none() {
            // Policies would release the draft, but it is unknown which values were redacted from its
            // context.
            evaluation.outcome.denied = Some(Reason::ApprovalRequired);
        }
        if known.repeats >= REPEATS_MAX {
            // Drafts of this case have repeated redacted values too often. Block without details, so that no
            // one can find a value by trying one after the other.
            evaluation.outcome = Outcome::denied(Reason::NotPermitted);
            verdict = Disposition::Block;
        }
        let mut answer = self.answer(
            moment,
            evaluation,
            Mode::Enforce,
            AnswerSubject { call: Some(call), request_id: "", display: String::new(), call_digest: digest },
        )?;
        answer.signals = Box::new(signals);
        let mut evaluated =
            Evaluated { disposition: verdict, draft_digest: draft_digest(&asked.draft), ..Evaluated::default() };
        // Counted before anything can fail, because a failure would tell whether the draft repeats a value.
        let repeats =
            entitled && self.note_repeat(moment, CallInChain { caller, chain, call }, asked, &known, &answer).await;
        self.settle(moment, CallInChain { caller, chain, call }, asked, &known, &mut answer, &mut evaluated)?;
        let record = DecisionRecord::of(&answer, caller, chain, call, self.recorder.record_metadata(origin)?)
            .with_evidence(evidence);
        let found = (entitled, repeats);
        let output = OutputRecord::of(
            &evaluated.draft_digest,
            evaluated.disposition,
            &known.found.findings,
            &asked.context,
            found,
        );
        Ok((answer, evaluated, Record::Decision(Box::new(record.with_output(output)))))
    }

    /// Adds the consequences of the disposition: findings with suggestions, and a release token, a redacted
    /// draft or a binding for a human's review. Too many repetitions of redacted values get none of these.
    fn settle(
        &self,
        moment: &Moment,
        CallInChain { caller, chain, call }: CallInChain<'_>,
        asked: &ToEvaluate,
        known: &DraftFacts,
        answer: &mut Answer,
        evaluated: &mut Evaluated,
    ) -> Result<(), Refusal> {
        answer.outcome.missing = None;
        if known.repeats >= REPEATS_MAX {
            return Ok(());
        }
        let detectors = &moment.snapshot.bundle.rules.detectors;
        evaluated.findings =
            known.found.findings.iter().map(|finding| (finding.clone(), detectors.suggestion(finding))).collect();
        match evaluated.disposition {
            Disposition::Block => {}
            Disposition::HumanReview => {
                answer.outcome.denied = Some(Reason::ApprovalRequired);
                let findings = written(&known.found.findings);
                self.ask_human(moment, CallInChain { caller, chain, call }, asked, &findings, answer)?;
            }
            Disposition::Release => {
                let (_, content) = moment.snapshot.content_roles()?;
                let send = sending(call, &evaluated.draft_digest, content);
                let release = self
                    .tokens
                    .released(moment, chain, &send)
                    .ok_or(Refusal::Unavailable("the release could not be made"))?;
                let keys = self.tokens.keys();
                let (environment, id) = (&self.options.environment, &answer.evaluation_id);
                let signed = sign_release(&keys.binding, environment, &caller.tool_service, id, release, moment.now);
                evaluated.release = Some(signed.map_err(|_| Refusal::Unavailable("the release could not be signed"))?);
            }
            Disposition::Revise => {
                let all = known.found.findings.iter().all(|finding| REDACTABLE.contains(&finding.kind.as_str()));
                if all && !known.found.has_more_names {
                    evaluated.redacted_draft = redacted(&asked.draft, &known.found);
                }
            }
        }
        Ok(())
    }

    /// Signs the binding of a request that a human approve exactly this draft.
    fn ask_human(
        &self,
        moment: &Moment,
        CallInChain { caller, chain, call }: CallInChain<'_>,
        asked: &ToEvaluate,
        findings: &[String],
        answer: &mut Answer,
    ) -> Result<(), Refusal> {
        let (roles, content) = moment.snapshot.content_roles()?;
        if !self.options.accepts(chain) {
            return Ok(());
        }
        let shapes = &moment.snapshot.bundle.policies.shapes;
        let send = sending(call, &draft_digest(&asked.draft), content);
        let covers = |step: &String| shapes.actions.get(&content.send).is_some_and(|send| send.is_in_step(step));
        let own = Some(&chain.step).filter(|step| covers(step));
        // If no step covers the call that sends the draft, no call could use the approval.
        let Some(step) = own.or_else(|| shapes.choices(&roles.step).iter().find(|step| covers(step))) else {
            return Ok(());
        };
        let chain = Chain { step: step.clone(), ..chain.clone() };
        let requires = vec![Requirement::Approval(content.template.clone()).to_string()];
        let missing = Missing { template: content.template.clone(), requires, quorum: 1, ..Missing::default() };
        let bound = self.tokens.binding(moment, CallInChain { caller, chain: &chain, call: &send }, &missing, answer);
        if let Some(bound) = bound {
            let bound = Binding { findings: Some(findings.to_vec()), ..bound };
            let signed = binding::sign_binding(&self.tokens.keys().binding, bound, moment.now);
            answer.binding_token = signed.map_err(|_| Refusal::Unavailable("the answer could not be signed"))?;
        }
        answer.display = format!("{} on {} {}", content.send, roles.case, asked.case.id);
        answer.outcome.missing = Some(missing);
        Ok(())
    }

    /// Stores that a draft of the case repeated a redacted value, if the chain may read the case. Returns
    /// whether it does.
    async fn note_repeat(
        &self,
        moment: &Moment,
        CallInChain { chain, call, .. }: CallInChain<'_>,
        asked: &ToEvaluate,
        known: &DraftFacts,
        answer: &Answer,
    ) -> bool {
        let counts = known.found.kinds().contains("redacted_value_repeated")
            && known.repeats < REPEATS_MAX
            && self.risk.reads_case(moment, chain, call);
        if counts {
            let tenant = Tenant::of(&self.options.environment, &asked.case.tenant);
            let update =
                repeat(repeats_key(tenant, &asked.case.id), &answer.evaluation_id, moment.snapshot.retention_micros());
            self.risk
                .say(
                    tenant,
                    moment,
                    Batch { updates: vec![update], by: Some(by(tenant, &chain.tool_service)), ..Batch::default() },
                )
                .await;
        }
        counts
    }
}

/// Returns the disposition of a draft. If it is unknown what was redacted from its context, a human must read
/// it at least, because the draft could repeat a value without being noticed.
pub fn verdict(policies: &Policies, evaluation: &Evaluation, prepared: bool) -> Disposition {
    let said = match (evaluation.gate, evaluation.outcome.denied) {
        (Some(_), _) => Disposition::Block,
        (None, None) => Disposition::Release,
        (None, Some(_)) => disposition(policies, &evaluation.verdict),
    };
    if prepared { said } else { said.max(Disposition::HumanReview) }
}

/// Builds the call that releases a draft.
fn releasing(roles: &Roles, content: &ContentRoles, asked: &ToEvaluate) -> Call {
    let arguments = [("channel", &asked.channel), ("recipient", &asked.recipient)];
    Call {
        arguments: arguments.into_iter().map(|(name, value)| (name.to_owned(), Value::from(value.as_str()))).collect(),
        model: Some(asked.model.clone()),
        correlation: Correlation { conversation: asked.conversation.clone(), ..Correlation::default() },
        ..Call::on_case(&content.release, &roles.case, asked.case.clone(), asked.credential.clone())
    }
}

/// Builds the call that sends a released draft.
fn sending(releasing: &Call, draft_digest: &str, content: &ContentRoles) -> Call {
    let mut call = Call { action: content.send.clone(), ..releasing.clone() };
    call.arguments.insert("draft_digest".to_owned(), Value::from(draft_digest));
    call
}
