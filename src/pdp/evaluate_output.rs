//! One EvaluateOutput, top to bottom: what a draft says is found, policy judges it with the case's own facts, and only what is released
//! gets a token to be sent.

use crate::pdp::risk_keys::by;
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
use crate::model::call::{Call, Correlation, EntityReference, Resource, Tokens};
use crate::model::chain::{Caller, Chain};
use crate::model::content::Disposition;
use crate::model::finding::Finding;
use crate::model::refusal::Refusal;
use crate::model::roles::{ContentRoles, Roles};
use crate::model::time::Timestamp;
use crate::obligations::disposition;
use crate::pdp::Pdp;
use crate::pdp::draft::{DraftFacts, ToEvaluate, digest_input, redacted};
use crate::pdp::evaluation::Evaluation;
use crate::pdp::origin::{CallInChain, Origin, Stopped};
use crate::pdp::pipeline::CallEvaluation;
use crate::pdp::redacted_values::{REPEATS_MAX, repeat, repeats_key};
use crate::pdp::refused::Refused;
use crate::pdp::risk_signals::About;
use crate::pdp::snapshot::Moment;
use crate::policy::Policies;
use crate::policy::rule::Requirement;
use crate::risk_store::{Batch, Tenant};
use crate::telemetry::spans::CallFacts;

/// The kinds of finding that a redacted draft is without.
const REDACTABLE: [&str; 2] = ["internal_identifier", "personal_data"];

/// What may be done with a draft.
#[derive(Clone, Debug, Default)]
pub struct Evaluated {
    /// What may be done with it.
    pub disposition: Disposition,
    /// What was found, with what to do about it.
    pub findings: Vec<(Finding, String)>,
    /// The draft redacted, where that is all that it needs.
    pub redacted_draft: String,
    /// `sha256:` and hex of the draft: what the call that sends it names.
    pub draft_digest: String,
    /// The token of a release, and until when it may be used.
    pub release: Option<(String, Timestamp)>,
}

impl Pdp {
    /// Judges a draft before the customer sees it.
    ///
    /// # Errors
    /// A refusal, recorded or counted; or UNAVAILABLE, when the audit log can't take the record.
    pub async fn evaluate_output(
        self: &Arc<Self>,
        origin: &Origin,
        read: Result<ToEvaluate, Refusal>,
    ) -> Result<Recorded<(Answer, Evaluated)>, Refused> {
        let watch = Stopwatch::start();
        let moment = self.moment();
        let caller = self.service(&moment, origin)?;
        let _share = self.share(origin, &caller.tool_service).await?;
        let span = self.telemetry.start_decision(&origin.trace, "EvaluateOutput");
        let mut facts = CallFacts::default();
        let evaluation = match read {
            Ok(asked) => self.draft_in_chain(&moment, origin, &caller, &Arc::new(asked), &mut facts).await,
            Err(refusal) => Err(refusal.into()),
        };
        let (answer, evaluated, record) = match evaluation {
            Ok(evaluation) => evaluation,
            Err(stopped) => return self.refuse(&moment, origin, &caller, (span, facts), stopped).await,
        };
        let took = watch.elapsed();
        self.record_all(&moment, (answer, evaluated), vec![record], (span, facts), took).await
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
        let chain = self.delegations.chain(caller, &asked.credential, development, moment.now).await?;
        let call = releasing(roles, content, asked);
        let evaluation = self.evaluate_draft(moment, origin, CallInChain { caller, chain: &chain, call: &call }, asked, facts).await;
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
        let CallEvaluation { mut evaluation, signals, draft: known, .. } =
            self.evaluate_call(moment, roles, CallInChain { caller, chain, call }, about).await?;
        *facts = self.call_facts(roles, chain, call, &evaluation);
        let mut verdict = verdict(policies, &evaluation, known.prepared);
        // Of a draft that the chain may not let go at all, nothing is told and nothing remembered.
        let entitled = evaluation.is_entitled(policies, chain, call);
        let known = if entitled { known } else { DraftFacts { prepared: known.prepared, ..DraftFacts::default() } };
        let digest = self.audit.digest(&digest_input(call, asked));
        if verdict == Disposition::HumanReview && evaluation.outcome.denied.is_none() {
            // Policy would let it go, but nobody knows what was redacted.
            evaluation.outcome.denied = Some(Reason::ApprovalRequired);
        }
        if known.repeats >= REPEATS_MAX {
            // Whoever tries values one after the other learns nothing more.
            evaluation.outcome = Outcome::denied(Reason::NotPermitted);
            verdict = Disposition::Block;
        }
        let mut answer = self.answer(moment, evaluation, Mode::Enforce, (Some(call), "", String::new(), digest))?;
        answer.signals = Box::new(signals);
        let mut evaluated = Evaluated { disposition: verdict, draft_digest: draft_digest(&asked.draft), ..Evaluated::default() };
        self.settle(moment, CallInChain { caller, chain, call }, asked, &known, (&mut answer, &mut evaluated))?;
        let record = DecisionRecord::of(&answer, caller, chain, call, self.record_metadata(origin)?);
        let repeats = entitled && self.note_repeat(moment, (chain, call), asked, &known, &answer).await;
        let found = (entitled, repeats);
        let output = OutputRecord::of(&evaluated.draft_digest, evaluated.disposition, &known.found.findings, &asked.context, found);
        Ok((answer, evaluated, Record::Decision(Box::new(record.with_output(output)))))
    }

    /// What follows from the verdict: tokens, words, or silence.
    fn settle(
        &self,
        moment: &Moment,
        CallInChain { caller, chain, call }: CallInChain<'_>,
        asked: &ToEvaluate,
        known: &DraftFacts,
        (answer, evaluated): (&mut Answer, &mut Evaluated),
    ) -> Result<(), Refusal> {
        answer.outcome.missing = None;
        if known.repeats >= REPEATS_MAX {
            return Ok(());
        }
        let detectors = &moment.snapshot.bundle.rules.detectors;
        evaluated.findings = known.found.findings.iter().map(|finding| (finding.clone(), detectors.suggestion(finding))).collect();
        match evaluated.disposition {
            Disposition::Block => {}
            Disposition::HumanReview => {
                answer.outcome.denied = Some(Reason::ApprovalRequired);
                let findings = written(&known.found.findings);
                self.ask_human(moment, CallInChain { caller, chain, call }, (asked, &findings), answer);
            }
            Disposition::Release => {
                let send = sending(call, &evaluated.draft_digest, moment);
                let release = self.released(moment, chain, &send).ok_or(Refusal::Unavailable("the release could not be made"))?;
                let keys = self.keys.load();
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

    /// Signs what turns this into a request that a human lets exactly this draft go.
    fn ask_human(
        &self,
        moment: &Moment,
        CallInChain { caller, chain, call }: CallInChain<'_>,
        (asked, findings): (&ToEvaluate, &[String]),
        answer: &mut Answer,
    ) {
        let Ok((roles, content)) = moment.snapshot.content_roles() else { return };
        if chain.asserted && !self.options.development {
            return;
        }
        let shapes = &moment.snapshot.bundle.policies.shapes;
        let send = sending(call, &draft_digest(&asked.draft), moment);
        let covers = |step: &String| shapes.actions.get(&content.send).is_some_and(|send| send.groups.contains(&format!("in_{step}")));
        let own = Some(&chain.step).filter(|step| covers(step));
        let step = own.or_else(|| shapes.choices(&roles.step).iter().find(|step| covers(step))).cloned().unwrap_or_default();
        let chain = Chain { step, ..chain.clone() };
        let requires = vec![Requirement::Approval(content.template.clone()).to_string()];
        let missing = Missing { template: content.template.clone(), requires, quorum: 1 };
        let bound = self.binding(moment, CallInChain { caller, chain: &chain, call: &send }, &missing, answer);
        let bound = bound.map(|bound| Binding { findings: Some(findings.to_vec()), ..bound });
        let token = bound.and_then(|bound| binding::sign_binding(&self.keys.load().binding, bound, moment.now).ok());
        answer.binding_token = token.unwrap_or_default();
        answer.display = format!("{} on {} {}", content.send, roles.case, asked.case.id);
        answer.outcome.missing = Some(missing);
    }

    /// Remembers that a draft of the case repeated a redacted value; only of a chain that may read the case.
    async fn note_repeat(
        &self,
        moment: &Moment,
        (chain, call): (&Chain, &Call),
        asked: &ToEvaluate,
        known: &DraftFacts,
        answer: &Answer,
    ) -> bool {
        let counts =
            known.found.kinds().contains("redacted_value_repeated") && known.repeats < REPEATS_MAX && self.reads_case(moment, chain, call);
        if counts {
            let tenant = Tenant::of(&self.options.environment, &asked.case.tenant);
            let update = repeat(repeats_key(tenant, &asked.case.id), &answer.evaluation_id, moment.snapshot.retention_micros());
            self.say(tenant, moment, Batch { updates: vec![update], by: Some(by(tenant, &chain.tool_service)), ..Batch::default() }).await;
        }
        counts
    }
}

/// What may be done with a draft. Where it is not known what was redacted, a human reads it at least: it could repeat a value, and nobody
/// would see.
pub fn verdict(policies: &Policies, evaluation: &Evaluation, prepared: bool) -> Disposition {
    let said = match (evaluation.gate, evaluation.outcome.denied) {
        (Some(_), _) => Disposition::Block,
        (None, None) => Disposition::Release,
        (None, Some(_)) => disposition(policies, &evaluation.verdict),
    };
    if prepared { said } else { said.max(Disposition::HumanReview) }
}

/// The call that lets a draft go.
fn releasing(roles: &Roles, content: &ContentRoles, asked: &ToEvaluate) -> Call {
    let reference = EntityReference { kind: roles.case.clone(), id: asked.case.id.clone() };
    let arguments = [("channel", &asked.channel), ("recipient", &asked.recipient)];
    Call {
        credential: asked.credential.clone(),
        action: content.release.clone(),
        resource: Resource { reference, version: String::new(), attributes: None },
        case: asked.case.clone(),
        arguments: arguments.into_iter().map(|(name, value)| (name.to_owned(), Value::from(value.as_str()))).collect(),
        facts: None,
        untrusted: vec![],
        tokens: Tokens::default(),
        model: Some(asked.model.clone()),
        correlation: Correlation { conversation: asked.conversation.clone(), ..Correlation::default() },
        dry_run: false,
    }
}

/// The call that sends it.
fn sending(releasing: &Call, draft_digest: &str, moment: &Moment) -> Call {
    let action = moment.snapshot.content_roles().map(|(_, content)| content.send.clone()).unwrap_or_default();
    let mut call = Call { action, ..releasing.clone() };
    call.arguments.insert("draft_digest".to_owned(), Value::from(draft_digest));
    call
}
