//! The steps that Authorize, PrepareContext and EvaluateOutput share: gates, kill switches, token, risk
//! signals, draft and checks, and then Cedar.

use std::sync::Arc;

use crate::approvals::store::error::StoreError;
use crate::entities::ResolvedCall;
use crate::json;
use crate::json::Value;
use crate::model::answer::{Gate, Reason};
use crate::model::call::Call;
use crate::model::chain::Chain;
use crate::model::halt::{Halt, Halted};
use crate::model::refusal::Refusal;
use crate::model::roles::Roles;
use crate::model::signals::Signals;
use crate::model::time::Timestamp;
use crate::model::trusted_context::TrustedContext;
use crate::pdp::draft::{DraftFacts, ToEvaluate, draft_members};
use crate::pdp::evaluation::{Evaluation, Evaluator, stopped};
use crate::pdp::evidence::Used;
use crate::pdp::origin::CallInChain;
use crate::pdp::risk_state::risk_signals::{About, Attempt};
use crate::pdp::scoring::{consent, set_signals};
use crate::pdp::snapshot::Moment;
use crate::pdp::tokens::{Presented, TokenState};
use crate::pdp::{Pdp, gates};
use crate::sealing::Sealed;

/// Result of evaluating a call with everything that the PDP knows about it.
pub(super) struct CallEvaluation {
    pub(super) evaluation: Evaluation,
    pub(super) presented: Presented,
    pub(super) signals: Signals,
    /// Findings in the draft; empty if the draft was not read.
    pub(super) draft: DraftFacts,
    /// What policies knew besides chain and call; `None` if none was asked, or something that they read was unavailable.
    trusted: Option<TrustedContext>,
    /// Evidence of the evaluation.
    pub(super) evidence: Option<Sealed>,
}

impl CallEvaluation {
    /// Wraps the evaluation of a call that was decided before token, signals and draft were known.
    pub(super) fn evaluation(evaluation: Evaluation) -> Self {
        Self {
            evaluation,
            presented: Presented::none(),
            signals: Signals::default(),
            draft: DraftFacts::default(),
            trusted: None,
            evidence: None,
        }
    }

    fn stopped(gate: Gate, reason: Reason) -> Self {
        Self::evaluation(Evaluation::stopped(gate, reason))
    }

    fn halted(stop: &Halt) -> Self {
        let signals = Signals { halted_by: stop.words(), ..Signals::default() };
        Self { signals, ..Self::stopped(Gate::Halt, Reason::NotPermitted) }
    }
}

impl Pdp {
    /// Evaluates a call, or denies it at a gate, and adds the outcome to the risk store.
    pub(super) async fn evaluate_call(
        &self,
        moment: &Moment,
        roles: &Roles,
        CallInChain { caller, chain, call }: CallInChain<'_>,
        about: About<'_>,
    ) -> Result<CallEvaluation, Refusal> {
        let mut evaluated = match gates::check(&moment.snapshot.bundle.policies, roles, chain, call) {
            Ok(resolved) => {
                self.evaluate_resolved(moment, roles, CallInChain { caller, chain, call }, resolved, about).await?
            }
            Err(stop) => CallEvaluation::evaluation(stopped(stop)?),
        };
        if evaluated.evaluation.outcome.denied.is_some() {
            self.risk.withdraw(moment, chain, call, &evaluated.signals).await;
        }
        let bundle = &moment.snapshot.bundle;
        let rules = bundle.rules.risk.as_ref();
        evaluated.signals.unsafe_draft =
            rules.is_some_and(|risk| risk.is_unsafe(evaluated.draft.found.kinds().into_iter()));
        // A draft that only needs revision does not count as probing. A draft that the chain may not release
        // at all does, and so does an unsafe one.
        let tries = about.draft.is_none()
            || evaluated.signals.unsafe_draft
            || !evaluated.evaluation.is_entitled(&bundle.policies, chain, call);
        self.risk
            .remember(moment, chain, call, Attempt { evaluation: &evaluated.evaluation, tries }, &mut evaluated.signals)
            .await?;
        // Worst-case values in place of signals that were unavailable are no evidence.
        if let Some(trusted) = evaluated.trusted.take().filter(|_| !evaluated.signals.unknown) {
            let used = Used { now: moment.now, trusted: &trusted, repeated: evaluated.presented.receipt().is_some() };
            evaluated.evidence = self.evidence.of(roles.case_owner(&call.case), chain, call, used).await;
        }
        Ok(evaluated)
    }

    /// Evaluates a call that passed the gates of [`gates`]. The steps run in this order:
    ///
    /// 1. Deny the call if the copy of the kill switches is too old, or the state store not usable for a
    ///    write.
    /// 2. Deny it if a kill switch or a revoked session stops it.
    /// 3. Verify its tokens. Nothing is consumed, and an unusable token denies only in step 6.
    /// 4. Count the call in its windows, and read its risk signals. Its texts are screened here, unless full
    ///    windows already deny the call.
    /// 5. Deny it without reading the draft, if full windows deny it or the chain may not release drafts of
    ///    the case.
    /// 6. Deny it if a token can't be used.
    /// 7. Read the draft, and the checks if a policy of the action reads them.
    /// 8. Evaluate policies, step gate and what-if with everything that is known by then.
    /// 9. If signals were unavailable, evaluate again with calm values: the outcome is `state_unavailable` if
    ///    the signals made the difference. It is `state_unavailable`, too, if the checks could not be read,
    ///    unless the call is denied for a reason that is not liftable.
    /// 10. Allow the retry of an operation that was allowed before, unless it is denied for a reason that is
    ///     not liftable ([`Reason::LIFTABLE`]).
    pub(super) async fn evaluate_resolved(
        &self,
        moment: &Moment,
        roles: &Roles,
        CallInChain { caller, chain, call }: CallInChain<'_>,
        resolved: ResolvedCall<'_>,
        about: About<'_>,
    ) -> Result<CallEvaluation, Refusal> {
        let bundle = &moment.snapshot.bundle;
        let evaluator = Evaluator { bundle, roles, now: moment.now };
        if !self.replicas.may_decide(moment.now, roles.is_write(&resolved.action.groups)) {
            return Ok(CallEvaluation::stopped(Gate::State, Reason::StateUnavailable));
        }
        let halted = Halted::call(chain, &call.case.tenant, &call.case.id, roles.case_owner(&call.case));
        if let Some(stop) = halted.stop(&self.store.halts().halts, moment.now) {
            return Ok(CallEvaluation::halted(stop));
        }
        // Reading a text costs more than everything else, so it is read only if the call is not denied
        // without it. This evaluates the call with its signals, but without token, draft and checks.
        let unread = |signals: &Signals| {
            let mut trusted = moment.snapshot.nothing.clone();
            set_signals(&mut trusted, &bundle.policies, signals);
            let evaluation = evaluator.evaluate_resolved(resolved.clone(), chain, call, &trusted);
            evaluation.map(|evaluation| (evaluation, trusted))
        };
        let has_texts = !call.untrusted.is_empty() || !about.texts.is_empty() || about.draft.is_some();
        let presented = self.tokens.presented(moment, CallInChain { caller, chain, call }, about.hypothetical).await;
        // A retry gets the answer of its operation even if windows are full now, so it must not be denied
        // early.
        let may_wait = has_texts && presented.receipt().is_none();
        let is_limited = |signals: &Signals| unread(signals).is_ok_and(|(evaluation, _)| evaluation.is_limited());
        let is_refused = |signals: &Signals| may_wait && !signals.full.is_empty() && is_limited(signals);
        // Count the call before its token, draft and checks are considered, so that a caller can't avoid the
        // windows with faulty calls.
        let asked = CallInChain { caller, chain, call };
        let signals = self.risk.recall(moment, asked, resolved.action, about, is_refused).await?;
        let refused = is_refused(&signals);
        if refused || about.draft.is_some() {
            let (evaluation, trusted) = unread(&signals)?;
            if refused || !evaluation.is_entitled(&bundle.policies, chain, call) {
                let trusted = Some(trusted);
                return Ok(CallEvaluation { signals, trusted, ..CallEvaluation::evaluation(evaluation) });
            }
        }
        if let Some(reason) = presented.denied() {
            let gate = if reason == Reason::StateUnavailable { Gate::State } else { Gate::Token };
            return Ok(CallEvaluation { signals, ..CallEvaluation::stopped(gate, reason) });
        }
        let mut trusted = self.trusted_context(moment, &presented);
        let draft = match about.draft {
            Some(asked) => self.draft_facts(moment, chain, asked, &mut trusted).await?,
            None => DraftFacts::default(),
        };
        let reads_checks = bundle.policies.reads(&call.action, "checks");
        let unknown = reads_checks && self.add_checks(&mut trusted, roles, call, moment.now).await.is_err();
        let calm = signals.unknown.then(|| trusted.clone());
        set_signals(&mut trusted, &bundle.policies, &signals);
        let mut evaluation = with_signals(evaluator, resolved, chain, call, &trusted, calm)?;
        // Without the checks, only an unconditional denial is certain.
        if unknown && evaluation.could_be_allowed() {
            evaluation = Evaluation::stopped(Gate::State, Reason::StateUnavailable);
        }
        if presented.receipt().is_some() && evaluation.could_be_allowed() {
            // This is a retry of an operation that was already allowed. Its approval is consumed and the case
            // may have moved on, so ignore liftable denials; unconditional ones still apply.
            (evaluation.outcome.denied, evaluation.outcome.missing) = (None, None);
        }
        let (evaluation, trusted) = (evaluator.with_texts(call, evaluation)?, (!unknown).then_some(trusted));
        Ok(CallEvaluation { evaluation, presented, signals, draft, trusted, evidence: None })
    }

    /// Reads a draft, and adds what was found in it to the trusted context.
    async fn draft_facts(
        &self,
        moment: &Moment,
        chain: &Chain,
        asked: &Arc<ToEvaluate>,
        trusted: &mut TrustedContext,
    ) -> Result<DraftFacts, Refusal> {
        let draft = self.read_draft(moment, &chain.tool_service, asked).await?;
        let members = draft_members(&draft.found, draft.sources, draft.prepared, asked.confidence);
        members.into_iter().for_each(|(name, value)| trusted.set(name, value));
        Ok(draft)
    }

    /// Returns the trusted members of `context`: those of a case without history, and a usable approval, consent or
    /// release.
    fn trusted_context(&self, moment: &Moment, presented: &Presented) -> TrustedContext {
        let mut trusted = moment.snapshot.nothing.clone();
        if let TokenState::Usable(given) = &presented.consent {
            let expires = Value::String(given.approved_until.to_string());
            trusted.set("consent", consent(&given.binding.template, expires));
        }
        match &presented.token {
            TokenState::Usable(approval) => trusted.set("approval", self.tokens.context_of(moment, approval)),
            TokenState::Released(claims) => {
                let expires = Timestamp::from_seconds(claims.exp).to_string();
                trusted.set("release", json::object([("expires", Value::String(expires))]));
            }
            TokenState::Denied(_) | TokenState::None | TokenState::Repeated(_) => {}
        }
        trusted
    }

    /// Adds the valid checks of the call's case and customer to the trusted context.
    pub(super) async fn add_checks(
        &self,
        trusted: &mut TrustedContext,
        roles: &Roles,
        call: &Call,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        for check in self.store.checks(&call.case.tenant, &call.case.id, roles.case_owner(&call.case), now).await? {
            let done = json::object([("expires", Value::String(check.expires.to_string()))]);
            trusted.set("checks", json::object([(check.kind.as_str(), done)]));
        }
        Ok(())
    }
}

/// Evaluates a call with everything that is known of it. `calm` has calm values in place of signals that were unavailable.
fn with_signals(
    evaluator: Evaluator<'_>,
    resolved: ResolvedCall<'_>,
    chain: &Chain,
    call: &Call,
    trusted: &TrustedContext,
    calm: Option<TrustedContext>,
) -> Result<Evaluation, Refusal> {
    let calm = calm.map(|calm| (resolved.clone(), calm));
    let evaluation = evaluator.evaluate_resolved(resolved, chain, call, trusted)?;
    if let Some((resolved, calm)) =
        calm.filter(|_| evaluation.outcome.denied.is_some() && evaluation.could_be_allowed())
    {
        // Signals were unavailable, so worst-case values were used. Evaluate again with calm values: if the
        // outcome differs, the missing signals are the reason for the denial.
        let calm = evaluator.evaluate_resolved(resolved, chain, call, &calm)?;
        if calm.outcome.denied != evaluation.outcome.denied {
            return Ok(Evaluation::stopped(Gate::State, Reason::StateUnavailable));
        }
    }
    Ok(evaluation)
}
