//! What the PDP itself knows of a call that passed the gates: kill switches, what a human said, which checks were made. Then Cedar.

use crate::approvals::store::error::StoreError;
use crate::entities::ResolvedCall;
use crate::json;
use crate::json::Value;
use crate::model::answer::{Gate, Reason};
use crate::model::call::Call;
use crate::model::halt::Halted;
use crate::model::refusal::Refusal;
use crate::model::roles::Roles;
use crate::model::signals::Signals;
use crate::model::time::Timestamp;
use crate::model::trusted_context::TrustedContext;
use crate::pdp::draft::{DraftFacts, draft_members};
use crate::pdp::evaluation::{Evaluation, evaluate_resolved, stopped};
use crate::pdp::origin::CallInChain;
use crate::pdp::risk_signals::About;
use crate::pdp::scoring::set_signals;
use crate::pdp::snapshot::Moment;
use crate::pdp::tokens::TokenState;
use crate::pdp::{Pdp, gates};

/// What judging gave.
pub(super) struct CallEvaluation {
    /// Outcome, gate, verdict.
    pub(super) evaluation: Evaluation,
    /// The approval that was presented, and how.
    pub(super) presented: TokenState,
    /// How unusual the call is.
    pub(super) signals: Signals,
    /// What was found in the draft; nothing if it was not read.
    pub(super) draft: DraftFacts,
}

impl CallEvaluation {
    /// A call that was evaluation before anything was known of it.
    pub(super) fn evaluation(evaluation: Evaluation) -> Self {
        Self { evaluation, presented: TokenState::None, signals: Signals::default(), draft: DraftFacts::default() }
    }

    fn stopped(gate: Gate, reason: Reason) -> Self {
        Self::evaluation(Evaluation::stopped(gate, reason))
    }
}

impl Pdp {
    /// Weighs a call, or stops it at a gate, and remembers what came of it.
    pub(super) async fn evaluate_call(
        &self,
        moment: &Moment,
        roles: &Roles,
        CallInChain { caller, chain, call }: CallInChain<'_>,
        about: About<'_>,
    ) -> Result<CallEvaluation, Refusal> {
        let mut evaluated = match gates::check(&moment.snapshot.bundle.policies, roles, chain, call) {
            Ok(resolved) => self.evaluate_resolved(moment, roles, CallInChain { caller, chain, call }, resolved, about).await?,
            Err(stop) => CallEvaluation::evaluation(stopped(stop)?),
        };
        let bundle = &moment.snapshot.bundle;
        let rules = bundle.rules.risk.as_ref();
        evaluated.signals.unsafe_draft = rules.is_some_and(|risk| risk.is_unsafe(evaluated.draft.found.kinds().into_iter()));
        // A draft that has to be written anew is no attempt at anything; one that the chain may not write at all, or an unsafe one, is.
        let tries =
            about.draft.is_none() || evaluated.signals.unsafe_draft || !evaluated.evaluation.is_entitled(&bundle.policies, chain, call);
        self.remember(moment, chain, call, (&evaluated.evaluation, tries), &mut evaluated.signals).await?;
        Ok(evaluated)
    }

    /// Weighs a call that passed the gates.
    pub(super) async fn evaluate_resolved(
        &self,
        moment: &Moment,
        roles: &Roles,
        CallInChain { caller, chain, call }: CallInChain<'_>,
        resolved: ResolvedCall<'_>,
        about: About<'_>,
    ) -> Result<CallEvaluation, Refusal> {
        let bundle = &moment.snapshot.bundle;
        if !self.may_decide(moment.now, roles.is_write(&resolved.action.groups)) {
            return Ok(CallEvaluation::stopped(Gate::State, Reason::StateUnavailable));
        }
        let halted = Halted::call(chain, &call.case.tenant, &call.case.id, call.customer());
        if halted.stopped_by(&self.store.halts().halts, moment.now) {
            return Ok(CallEvaluation::stopped(Gate::Halt, Reason::NotPermitted));
        }
        // A text costs more than all else, so it is read only if what is known without it does not refuse the call.
        let unread = |signals: &Signals| {
            let mut trusted = moment.snapshot.nothing.clone();
            set_signals(&mut trusted, &bundle.policies, signals);
            evaluate_resolved(bundle, roles, resolved.clone(), chain, call, &trusted, moment.now).unwrap_or_default()
        };
        let has_texts = !call.untrusted.is_empty() || !about.texts.is_empty() || about.draft.is_some();
        let presented = self.presented(moment, CallInChain { caller, chain, call }, about.hypothetical).await;
        // What an operation was answered before it is answered again, whatever is full now.
        let may_wait = has_texts && !matches!(presented, TokenState::Repeated(_));
        let is_refused = |signals: &Signals| may_wait && !signals.full.is_empty() && unread(signals).is_limited();
        // Counted before anything that a caller can get wrong.
        let signals = self.recall(moment, (chain, call), resolved.action, about, is_refused).await?;
        if is_refused(&signals) || about.draft.is_some() && !unread(&signals).is_entitled(&bundle.policies, chain, call) {
            let evaluation = unread(&signals);
            return Ok(CallEvaluation { signals, ..CallEvaluation::evaluation(evaluation) });
        }
        if let TokenState::Denied(reason) = presented {
            let gate = if reason == Reason::StateUnavailable { Gate::State } else { Gate::Token };
            return Ok(CallEvaluation { signals, ..CallEvaluation::stopped(gate, reason) });
        }
        let mut trusted = self.trusted_context(moment, &presented);
        let draft = match about.draft {
            Some(draft) => self.read_draft(moment, &chain.tool_service, draft).await?,
            None => DraftFacts::default(),
        };
        if let Some(asked) = about.draft {
            for (name, value) in draft_members(&draft.found, draft.sources, draft.prepared, asked.confidence) {
                trusted.set(name, value);
            }
        }
        let unknown = bundle.policies.reads(&call.action, "checks") && self.add_checks(&mut trusted, call, moment.now).await.is_err();
        let calm = signals.unknown.then(|| (resolved.clone(), trusted.clone()));
        set_signals(&mut trusted, &bundle.policies, &signals);
        let mut evaluation = evaluate_resolved(bundle, roles, resolved, chain, call, &trusted, moment.now)?;
        if let Some((resolved, calm)) = calm.filter(|_| evaluation.outcome.denied.is_some() && evaluation.could_be_allowed()) {
            // What can't be known is the worst. Is it the reason, or is there another that a better time would leave?
            let calm = evaluate_resolved(bundle, roles, resolved, chain, call, &calm, moment.now)?;
            if calm.outcome.denied != evaluation.outcome.denied {
                evaluation = Evaluation::stopped(Gate::State, Reason::StateUnavailable);
            }
        }
        if unknown && evaluation.could_be_allowed() {
            evaluation = Evaluation::stopped(Gate::State, Reason::StateUnavailable);
        }
        if matches!(presented, TokenState::Repeated(_)) && evaluation.could_be_allowed() {
            // What the operation used is used up, and what it changed has changed: it was allowed then. Only what would stop it
            // whatever a human says, stops its answer now.
            evaluation.outcome.denied = None;
            evaluation.outcome.missing = None;
        }
        Ok(CallEvaluation { evaluation, presented, signals, draft })
    }

    /// What policies are told of what a human said, or of a release.
    fn trusted_context(&self, moment: &Moment, presented: &TokenState) -> TrustedContext {
        let mut trusted = moment.snapshot.nothing.clone();
        match presented {
            TokenState::Usable(approval) => trusted.set("approval", self.context_of(moment, approval)),
            TokenState::Released(claims) => {
                let expires = Timestamp::from_seconds(claims.exp).to_string();
                trusted.set("release", json::object([("expires", Value::String(expires))]));
            }
            TokenState::Denied(_) | TokenState::None | TokenState::Repeated(_) => {}
        }
        trusted
    }

    /// Vouches for the checks of the call's case and customer.
    pub(super) async fn add_checks(&self, trusted: &mut TrustedContext, call: &Call, now: Timestamp) -> Result<(), StoreError> {
        for check in self.store.checks(&call.case.tenant, &call.case.id, call.customer(), now).await? {
            let done = json::object([("expires", Value::String(check.expires.to_string()))]);
            trusted.set("checks", json::object([(check.kind.as_str(), done)]));
        }
        Ok(())
    }
}
