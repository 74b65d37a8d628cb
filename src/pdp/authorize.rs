//! One Authorize, top to bottom.

use crate::pdp::consumption::used;
use crate::pdp::span_facts::facts;
use std::sync::Arc;

use crate::approvals::store::transitions::{Reservation, SingleUse};
use crate::audit::Recorded;
use crate::audit::events::Actor;
use crate::audit::record::DecisionRecord;
use crate::clock::Stopwatch;
use crate::entities::direct::On;
use crate::model::answer::{Answer, Mode};
use crate::model::call::{Call, PlainCall};
use crate::model::chain::Caller;
use crate::model::refusal::Refusal;
use crate::model::right::Right;
use crate::model::roles::Roles;
use crate::model::text::visible;
use crate::pdp::Pdp;
use crate::pdp::concurrency::Share;
use crate::pdp::consumption::Use;
use crate::pdp::origin::{CallInChain, Origin, Purpose, Request, Stopped};
use crate::pdp::pipeline::CallEvaluation;
use crate::pdp::refused::{Refused, run_to_completion};
use crate::pdp::risk_signals::About;
use crate::pdp::snapshot::Moment;
use crate::pdp::tokens::TokenState;
use crate::telemetry::spans::CallFacts;

/// An evaluated call, before its record.
struct Evaluated {
    answer: Answer,
    record: DecisionRecord,
    facts: CallFacts,
    /// The approval that an allow uses, and the operation that uses it.
    consume: Option<Use>,
    /// What an allow without an approval adds to sums.
    reservations: Vec<Reservation>,
}

impl Pdp {
    /// Decides one call, or says why it can't, at one moment.
    ///
    /// INVARIANT: an answer leaves as [`Recorded`] alone, which only a durable record gives.
    ///
    /// # Errors
    /// A refusal, recorded or counted; or UNAVAILABLE, when the audit log can't take the record.
    pub async fn authorize(
        self: &Arc<Self>,
        moment: &Moment,
        origin: &Origin,
        read: Result<Request, Refusal>,
    ) -> Result<Recorded<Answer>, Refused> {
        let watch = Stopwatch::start();
        let mut facts = facts(moment, read.as_ref().ok());
        let span = self.telemetry.start_decision(&origin.trace, if facts.action.is_empty() { "_OTHER" } else { &facts.action });

        let (caller, share) = match self.identify(moment, origin).await {
            Ok(admitted) => admitted,
            Err(refusal) => {
                self.end_refused(span, &facts, &refusal);
                // Counted, not recorded one by one: anybody can ask faster than the log is written.
                return Err(self.unauthenticated(origin, refusal));
            }
        };
        let request = match read {
            Ok(request) => request,
            Err(refusal) => return self.refuse(moment, origin, &caller, (span, facts), refusal.into()).await,
        };
        let Some(_flight) = self.track_in_flight(&caller, request.id()) else {
            let refusal = Refusal::invalid("request_id", "is that of a request still in flight");
            return self.refuse(moment, origin, &caller, (span, facts), refusal.into()).await;
        };
        let evaluated = match self.evaluate_in_turn(moment, origin, (&caller, &share), &request, facts.clone()).await {
            Ok(evaluated) => evaluated,
            Err(stopped) => return self.refuse(moment, origin, &caller, (span, facts), stopped).await,
        };
        let took = watch.elapsed();

        let Evaluated { answer, record, facts: known, consume, reservations } = evaluated;
        facts = known;
        let recorded = match consume {
            // To its end, even if the caller goes away: what is consumed must be recorded.
            Some(used) => {
                let (pdp, moment) = (Arc::clone(self), moment.clone());
                run_to_completion(async move { pdp.consume(&moment, used, answer, record).await }).await
            }
            None if reservations.is_empty() => self.record(moment, answer, record).await,
            None => self.reserve(moment, reservations, answer, record).await,
        };
        let recorded = match recorded {
            Ok(recorded) => recorded,
            Err(refused) => {
                self.telemetry.metrics.refusal(refused.refusal().kind());
                self.end_refused(span, &facts, refused.refusal());
                return Err(refused);
            }
        };
        let answer = recorded.value();
        let reason = answer.outcome.denied.map_or("", |reason| reason.name());
        self.telemetry.metrics.decision(answer.allows(), reason, answer.mode.name(), took);
        if let Some(span) = span {
            span.answered(&facts, answer);
        }
        Ok(recorded)
    }

    /// Evaluates a request when it is the caller's turn, which ends before the record is made: that takes time, but no CPU.
    async fn evaluate_in_turn(
        &self,
        moment: &Moment,
        origin: &Origin,
        (caller, share): (&Caller, &Share),
        request: &Request,
        facts: CallFacts,
    ) -> Result<Evaluated, Stopped> {
        let _turn = share.turn(request.has_texts()).await;
        match request {
            Request::Call(call) => self.evaluate(moment, origin, caller, call, facts).await,
            Request::Plain(call) => Ok(self.evaluate_plain(moment, origin, caller, call, facts)?),
        }
    }

    /// Who asks, with a share of the permits.
    async fn identify(&self, moment: &Moment, origin: &Origin) -> Result<(Caller, Share), Refusal> {
        let development = moment.snapshot.bundle.manifest.development.as_ref();
        let caller = self.callers.identify(&origin.peer, development, moment.now)?;
        let share = self.shares.take(&caller.tool_service, origin.waits).await?;
        Ok((caller, share))
    }

    /// A call in its chain: delegation, gates, what a human said, Cedar, obligations.
    async fn evaluate(
        &self,
        moment: &Moment,
        origin: &Origin,
        caller: &Caller,
        call: &Call,
        facts: CallFacts,
    ) -> Result<Evaluated, Stopped> {
        let bundle = &moment.snapshot.bundle;
        let roles = bundle.roles.as_ref().ok_or_else(|| Refusal::invalid("plain", "is required: every gate of this server is off"))?;
        let chain = self.delegations.chain(caller, &call.credential, bundle.manifest.development.as_ref(), moment.now).await?;
        let evaluated = self.evaluate_in_chain(moment, origin, CallInChain { caller, chain: &chain, call }, roles, facts).await;
        evaluated.map_err(|refusal| Stopped::after(refusal, moment, &chain, call))
    }

    async fn evaluate_in_chain(
        &self,
        moment: &Moment,
        origin: &Origin,
        CallInChain { caller, chain, call }: CallInChain<'_>,
        roles: &Roles,
        facts: CallFacts,
    ) -> Result<Evaluated, Refusal> {
        let hypothetical = call.dry_run || origin.purpose == Purpose::Explain;
        if hypothetical && !self.may(moment, Right::DecisionExplain, &caller.tool_service, On::Tenant(&call.case.tenant)) {
            return Err(Refusal::Forbidden("the caller may not ask hypothetically for this tenant: no policy grants `decision.explain`"));
        }
        let about = About { hypothetical, ..About::default() };
        let CallEvaluation { mut evaluation, presented, signals, .. } =
            self.evaluate_call(moment, roles, CallInChain { caller, chain, call }, about).await?;
        let mut facts = CallFacts { principal_type: roles.agent.clone(), ..facts };
        self.known(&mut facts, chain, call, &evaluation);
        let sends = roles.content.as_ref().is_some_and(|content| content.send == call.action);
        if sends || chain.asserted && !self.options.development {
            // A chain that nobody signed asks no human. Nor does a draft that nobody evaluation: EvaluateOutput says whether a human may let it go.
            evaluation.outcome.missing = None;
        }
        let mode = if hypothetical { Mode::DryRun } else { Mode::Enforce };
        let reference = &call.resource.reference;
        let display = visible(&format!("{} on {} {} of case {}", call.action, reference.kind, reference.id, call.case.id));
        let digest = self.audit.digest(&call.digest_input());
        let mut answer = self.answer(moment, evaluation, mode, (Some(call), &call.correlation.request, display, digest))?;
        answer.signals = Box::new(signals);
        if let TokenState::Usable(approval) = &presented
            && answer.allows()
        {
            answer.approval = Some(Box::new(used(approval)));
        }
        self.sign(moment, CallInChain { caller, chain, call }, &mut answer)?;
        let draft = self.draft_of(moment, chain, call, &presented);
        let mut reservations = if answer.allows() { self.reservations(moment, chain, call) } else { vec![] };
        let consume = match presented {
            TokenState::Repeated(receipt) if answer.allows() => {
                let by = Actor::service(caller).in_trace(origin.trace.id());
                Some(Use::Again(by, receipt, std::mem::take(&mut reservations)))
            }
            TokenState::Usable(approval) if answer.allows() => {
                let environment = &self.options.environment;
                let used = (SingleUse::Approval, approval.id.as_str(), approval.generation.as_str());
                Some(Use::now(CallInChain { caller, chain, call }, used, environment, std::mem::take(&mut reservations)))
            }
            TokenState::Released(claims) if answer.allows() => {
                let used = (SingleUse::Release, claims.jti.as_str(), claims.release.generation.as_str());
                Some(Use::now(CallInChain { caller, chain, call }, used, &self.options.environment, std::mem::take(&mut reservations)))
            }
            TokenState::Denied(_) | TokenState::None | TokenState::Released(_) | TokenState::Repeated(_) | TokenState::Usable(_) => None,
        };
        let mut record = DecisionRecord::of(&answer, caller, chain, call, self.record_metadata(origin)?);
        if let Some((digest, release)) = draft {
            record = record.with_draft(&digest, &release);
        }
        Ok(Evaluated { answer, record, facts, consume, reservations })
    }

    fn evaluate_plain(
        &self,
        moment: &Moment,
        origin: &Origin,
        caller: &Caller,
        call: &PlainCall,
        facts: CallFacts,
    ) -> Result<Evaluated, Refusal> {
        let evaluation = self.evaluate_conformance(moment, call)?;
        let mode = if origin.purpose == Purpose::Explain { Mode::DryRun } else { Mode::Enforce };
        let digest = self.audit.digest(&call.digest_input());
        let answer = self.answer(moment, evaluation, mode, (None, &call.correlation.request, String::new(), digest))?;
        let record = DecisionRecord::of_plain(&answer, caller, call, self.record_metadata(origin)?);
        Ok(Evaluated { answer, record, facts, consume: None, reservations: vec![] })
    }

    /// Marks a request as in flight until the guard is dropped; `None` if one of the same id is. Requests without id are not marked.
    fn track_in_flight(&self, caller: &Caller, request_id: &str) -> Option<InFlightGuard<'_>> {
        if request_id.is_empty() {
            return Some(InFlightGuard { pdp: self, key: None });
        }
        let key = (caller.tool_service.clone(), request_id.to_owned());
        self.in_flight.insert(key.clone()).then_some(InFlightGuard { pdp: self, key: Some(key) })
    }
}

struct InFlightGuard<'a> {
    pdp: &'a Pdp,
    key: Option<(String, String)>,
}

impl Drop for InFlightGuard<'_> {
    fn drop(&mut self) {
        if let Some(key) = &self.key {
            self.pdp.in_flight.remove(key);
        }
    }
}
