//! One Authorize from top to bottom: caller, chain, evaluation, consumption, record, answer. ExplainDecision
//! and conformance mode take the same path.

use std::sync::Arc;

use crate::approvals::store::transitions::{Reservation, SingleUse, UsedToken};
use crate::audit::Recorded;
use crate::audit::events::Actor;
use crate::audit::record::DecisionRecord;
use crate::clock::Stopwatch;
use crate::entities::direct::On;
use crate::model::answer::{Answer, Mode, SCREENING_NOT_STORED};
use crate::model::call::{Call, PlainCall};
use crate::model::chain::Caller;
use crate::model::refusal::Refusal;
use crate::model::right::Right;
use crate::model::roles::Roles;
use crate::model::text::visible;
use crate::pdp::Pdp;
use crate::pdp::admission::Admitted;
use crate::pdp::answers::AnswerSubject;
use crate::pdp::consumption::{Repetition, Use, used};
use crate::pdp::origin::{CallInChain, Origin, Purpose, Request, Stopped};
use crate::pdp::pipeline::CallEvaluation;
use crate::pdp::recorder::recorded_arguments;
use crate::pdp::refused::{Refused, run_to_completion};
use crate::pdp::rights::may;
use crate::pdp::risk_state::risk_signals::About;
use crate::pdp::snapshot::Moment;
use crate::pdp::span_facts::{OpenSpan, facts};
use crate::pdp::tokens::{Presented, TokenState, receipt_key};
use crate::telemetry::spans::CallFacts;

/// An evaluated call whose record is not written yet.
struct Evaluated {
    answer: Answer,
    record: DecisionRecord,
    /// Approval or release that an allow consumes, or the repetition of an earlier operation.
    consume: Option<Use>,
    /// Amounts that an allow adds to sums, if it consumes nothing.
    reservations: Vec<Reservation>,
}

impl Pdp {
    /// Decides one call at one moment, and records the decision or the refusal.
    ///
    /// INVARIANT: an answer leaves only as [`Recorded`], which requires a durable record.
    ///
    /// # Errors
    /// If the request is refused; the refusal is already recorded or counted. It is UNAVAILABLE if the audit
    /// log can't be written.
    pub async fn authorize(
        self: &Arc<Self>,
        moment: &Moment,
        origin: &Origin,
        read: Result<Request, Refusal>,
    ) -> Result<Recorded<Answer>, Refused> {
        let watch = Stopwatch::start();
        let facts = facts(moment, read.as_ref().ok());
        let span = self
            .telemetry
            .start_decision(&origin.trace, if facts.action.is_empty() { "_OTHER" } else { &facts.action });
        let mut open = OpenSpan::new(watch, span, facts);

        let Admitted { caller, share } = match self.admission.admit(moment, origin).await {
            Ok(admitted) => admitted,
            Err(refusal) => {
                open.refused(&refusal);
                // Anyone can send such requests faster than the log can be written, so they are counted and
                // not recorded one by one.
                return Err(self.admission.unauthenticated(moment, origin, refusal));
            }
        };
        let request = match read {
            Ok(request) => request,
            Err(refusal) => return self.refuse(moment, origin, &caller, open, refusal.into()).await,
        };
        let turn = share.turn(request.has_texts()).await;
        let evaluated = match &request {
            Request::Call(call) => self.evaluate(moment, origin, &caller, call, &mut open.facts).await,
            Request::Plain(call) => self.evaluate_plain(moment, origin, &caller, call).map_err(Stopped::from),
        };
        // End the turn before the record is written, because writing takes time but no CPU.
        drop(turn);
        open.stop();
        let Evaluated { answer, record, consume, reservations } = match evaluated {
            Ok(evaluated) => evaluated,
            Err(stopped) => return self.refuse(moment, origin, &caller, open, stopped).await,
        };

        let recorded = match consume {
            // A consumption must be recorded, so run it to completion even if the caller disconnects.
            Some(used) => {
                let (pdp, moment) = (Arc::clone(self), moment.clone());
                run_to_completion(async move { pdp.consume(&moment, used, answer, record).await }).await
            }
            None if reservations.is_empty() => self.recorder.record(moment, answer, record).await,
            None => self.reserve(moment, reservations, answer, record).await,
        };
        let recorded = match recorded {
            Ok(recorded) => recorded,
            Err(refused) => {
                self.telemetry.metrics.refusal(refused.refusal().kind());
                open.refused(refused.refusal());
                return Err(refused);
            }
        };
        let answer = recorded.value();
        let reason = answer.outcome.denied.map_or("", |reason| reason.name());
        self.telemetry.metrics.decision(answer.allows(), reason, answer.mode.name(), open.took());
        open.answered(answer);
        Ok(recorded)
    }

    /// Determines the chain of principals, and evaluates the call in it. A refusal after that names chain and
    /// call in its record.
    async fn evaluate(
        &self,
        moment: &Moment,
        origin: &Origin,
        caller: &Caller,
        call: &Call,
        facts: &mut CallFacts,
    ) -> Result<Evaluated, Stopped> {
        let bundle = &moment.snapshot.bundle;
        let roles = bundle
            .roles
            .as_ref()
            .ok_or_else(|| Refusal::invalid("plain", "is required: this server is in conformance mode"))?;
        let chain = self
            .admission
            .delegations
            .chain(caller, &call.credential, bundle.manifest.development.as_ref(), moment.now)
            .await?;
        let evaluated =
            self.evaluate_in_chain(moment, origin, CallInChain { caller, chain: &chain, call }, roles, facts).await;
        evaluated.map_err(|refusal| Stopped::after(refusal, moment, &chain, call))
    }

    /// Evaluates a call in its chain, and prepares everything that follows: answer, tokens, consumption,
    /// reservations and record.
    async fn evaluate_in_chain(
        &self,
        moment: &Moment,
        origin: &Origin,
        CallInChain { caller, chain, call }: CallInChain<'_>,
        roles: &Roles,
        facts: &mut CallFacts,
    ) -> Result<Evaluated, Refusal> {
        let hypothetical = call.dry_run || origin.purpose == Purpose::Explain;
        if hypothetical && !may(moment, Right::DecisionExplain, &caller.tool_service, On::Tenant(&call.case.tenant)) {
            return Err(Refusal::Forbidden(
                "dry runs and explanations need `decision.explain` for this tenant, which no policy grants",
            ));
        }
        let about = About { hypothetical, ..About::default() };
        let CallEvaluation { mut evaluation, presented, signals, evidence, .. } =
            self.evaluate_call(moment, roles, CallInChain { caller, chain, call }, about).await?;
        facts.principal_type.clone_from(&roles.agent);
        self.known(facts, chain, call, &evaluation);
        let sends = roles.content.as_ref().is_some_and(|content| content.send == call.action);
        if sends || !self.options.accepts(chain) {
            // An asserted chain is not proven, so it can't request approvals. Neither can a call that sends a
            // draft: only EvaluateOutput, which reads the draft, offers a request to a human.
            evaluation.outcome.missing = None;
        }
        let mode = if hypothetical { Mode::DryRun } else { Mode::Enforce };
        let reference = &call.resource.reference;
        let display =
            visible(&format!("{} on {} {} of case {}", call.action, reference.kind, reference.id, call.case.id));
        let digest = self.audit.digest(&call.digest_input());
        let mut answer = self.answer(
            moment,
            evaluation,
            mode,
            AnswerSubject { call: Some(call), request_id: &call.correlation.request, display, call_digest: digest },
        )?;
        let discards = self.risk.discards_screening(moment, CallInChain { caller, chain, call }, &answer, &signals);
        answer.warnings.extend(discards.then_some(SCREENING_NOT_STORED));
        answer.warnings.sort_unstable();
        answer.signals = Box::new(signals);
        if let TokenState::Usable(approval) = &presented.token
            && answer.allows()
        {
            answer.approval = Some(Box::new(used(approval)));
        }
        let consent = presented.consent();
        answer.consent = consent.clone().filter(|_| answer.allows()).map(Box::new);
        self.tokens.sign(moment, CallInChain { caller, chain, call }, &mut answer, consent)?;
        let draft = self.tokens.draft_of(moment, chain, call, &presented);
        let mut reservations = if answer.allows() { self.risk.reservations(moment, chain, call) } else { vec![] };
        let consume = match answer.allows() {
            true => self.token_use(origin, roles, CallInChain { caller, chain, call }, &presented, &mut reservations),
            false => None,
        };
        let mut record = DecisionRecord::of(&answer, caller, chain, call, self.recorder.record_metadata(origin)?)
            .with_evidence(evidence)
            .with_arguments(recorded_arguments(&moment.snapshot.bundle.policies, roles, call));
        if let Some((digest, release)) = draft {
            record = record.with_draft(&digest, &release);
        }
        Ok(Evaluated { answer, record, consume, reservations })
    }

    /// Returns how an allow uses the tokens that were presented, with the reservations that its transaction makes.
    fn token_use(
        &self,
        origin: &Origin,
        roles: &Roles,
        CallInChain { caller, chain, call }: CallInChain<'_>,
        presented: &Presented,
        reservations: &mut Vec<Reservation>,
    ) -> Option<Use> {
        if let Some(receipt) = presented.receipt().cloned() {
            let by = Actor::service(caller).in_trace(origin.trace.id());
            return Some(Use::Again(Repetition { by, receipt, reservations: std::mem::take(reservations) }));
        }
        let used = |state: &TokenState| match state {
            TokenState::Usable(approval) => Some(UsedToken {
                what: approval.binding.giver.into(),
                key: receipt_key(caller, call, &approval.id),
                generation: approval.generation.clone(),
            }),
            TokenState::Released(claims) => Some(UsedToken {
                what: SingleUse::Release,
                key: receipt_key(caller, call, &claims.jti),
                generation: claims.release.generation.clone(),
            }),
            TokenState::Denied(_) | TokenState::None | TokenState::Repeated(_) => None,
        };
        let tokens: Vec<UsedToken> = presented.states().into_iter().filter_map(used).collect();
        let asked = CallInChain { caller, chain, call };
        let environment = &self.options.environment;
        (!tokens.is_empty()).then(|| Use::now(roles, asked, tokens, environment, std::mem::take(reservations)))
    }

    fn evaluate_plain(
        &self,
        moment: &Moment,
        origin: &Origin,
        caller: &Caller,
        call: &PlainCall,
    ) -> Result<Evaluated, Refusal> {
        let evaluation = self.evaluate_conformance(moment, call)?;
        let mode = if origin.purpose == Purpose::Explain { Mode::DryRun } else { Mode::Enforce };
        let digest = self.audit.digest(&call.digest_input());
        let answer = self.answer(
            moment,
            evaluation,
            mode,
            AnswerSubject {
                call: None,
                request_id: &call.correlation.request,
                display: String::new(),
                call_digest: digest,
            },
        )?;
        let record = DecisionRecord::of_plain(&answer, caller, call, self.recorder.record_metadata(origin)?);
        Ok(Evaluated { answer, record, consume: None, reservations: vec![] })
    }
}
