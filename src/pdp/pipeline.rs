//! What the PDP itself knows of a call that passed the gates: kill switches, what a human said, which checks were made. Then Cedar.

use crate::entities::Named;
use crate::json;
use crate::json::Value;
use crate::model::answer::{Gate, Reason};
use crate::model::call::Call;
use crate::model::halt::Halted;
use crate::model::refusal::Refusal;
use crate::model::roles::Roles;
use crate::model::signals::Signals;
use crate::model::time::Timestamp;
use crate::model::vouched::Vouched;
use crate::pdp::draft::{DraftFacts, draft_members};
use crate::pdp::evaluation::{Judged, judge_named, stopped};
use crate::pdp::origin::CallInChain;
use crate::pdp::risk_signals::About;
use crate::pdp::scoring::vouch;
use crate::pdp::snapshot::Moment;
use crate::pdp::tokens::Presented;
use crate::pdp::{Pdp, gates};

/// What judging gave.
pub(super) struct Weighed {
    /// Outcome, gate, verdict.
    pub(super) judged: Judged,
    /// The approval that was presented, and how.
    pub(super) presented: Presented,
    /// How unusual the call is.
    pub(super) signals: Signals,
    /// What was found in the draft; nothing if it was not read.
    pub(super) draft: DraftFacts,
}

impl Weighed {
    /// A call that was judged before anything was known of it.
    pub(super) fn judged(judged: Judged) -> Self {
        Self { judged, presented: Presented::None, signals: Signals::default(), draft: DraftFacts::default() }
    }

    fn stopped(gate: Gate, reason: Reason) -> Self {
        Self::judged(Judged::stopped(gate, reason))
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
    ) -> Result<Weighed, Refusal> {
        let mut weighed = match gates::pass(&moment.snapshot.bundle.policies, roles, chain, call) {
            Ok(named) => self.evaluate_resolved(moment, roles, CallInChain { caller, chain, call }, named, about).await?,
            Err(stop) => Weighed::judged(stopped(stop)?),
        };
        let bundle = &moment.snapshot.bundle;
        let rules = bundle.rules.risk.as_ref();
        weighed.signals.unsafe_draft = rules.is_some_and(|risk| risk.is_unsafe(weighed.draft.found.kinds().into_iter()));
        // A draft that has to be written anew is no attempt at anything; one that the chain may not write at all, or an unsafe one, is.
        let tries = about.draft.is_none() || weighed.signals.unsafe_draft || !weighed.judged.is_entitled(&bundle.policies, chain, call);
        self.remember(moment, chain, call, (&weighed.judged, tries), &mut weighed.signals).await?;
        Ok(weighed)
    }

    /// Weighs a call that passed the gates.
    pub(super) async fn evaluate_resolved(
        &self,
        moment: &Moment,
        roles: &Roles,
        CallInChain { caller, chain, call }: CallInChain<'_>,
        named: Named<'_>,
        about: About<'_>,
    ) -> Result<Weighed, Refusal> {
        let bundle = &moment.snapshot.bundle;
        if !self.may_decide(moment.now, roles.is_write(&named.action.groups)) {
            return Ok(Weighed::stopped(Gate::State, Reason::StateUnavailable));
        }
        let halted = Halted::call(chain, &call.case.tenant, &call.case.id, call.customer());
        if halted.stopped_by(&self.store.halts().halts, moment.now) {
            return Ok(Weighed::stopped(Gate::Halt, Reason::NotPermitted));
        }
        // A text costs more than all else, so it is read only if what is known without it does not refuse the call.
        let unread = |signals: &Signals| {
            let mut vouched = moment.snapshot.nothing.clone();
            vouch(&mut vouched, &bundle.policies, signals);
            judge_named(bundle, roles, named.clone(), chain, call, &vouched, moment.now).unwrap_or_default()
        };
        let has_texts = !call.untrusted.is_empty() || !about.texts.is_empty() || about.draft.is_some();
        let presented = self.presented(moment, CallInChain { caller, chain, call }, about.hypothetical).await;
        // What an operation was answered before it is answered again, whatever is full now.
        let may_wait = has_texts && !matches!(presented, Presented::Repeated(_));
        let is_refused = |signals: &Signals| may_wait && !signals.full.is_empty() && unread(signals).is_limited();
        // Counted before anything that a caller can get wrong.
        let signals = self.recall(moment, (chain, call), named.action, about, is_refused).await?;
        if is_refused(&signals) || about.draft.is_some() && !unread(&signals).is_entitled(&bundle.policies, chain, call) {
            let judged = unread(&signals);
            return Ok(Weighed { signals, ..Weighed::judged(judged) });
        }
        if let Presented::Denied(reason) = presented {
            let gate = if reason == Reason::StateUnavailable { Gate::State } else { Gate::Token };
            return Ok(Weighed { signals, ..Weighed::stopped(gate, reason) });
        }
        let mut vouched = self.vouch_for(moment, &presented);
        let draft = match about.draft {
            Some(draft) => self.read_draft(moment, &chain.tool_service, draft).await?,
            None => DraftFacts::default(),
        };
        if let Some(asked) = about.draft {
            for (name, value) in draft_members(&draft.found, draft.sources, draft.prepared, asked.confidence) {
                vouched.set(name, value);
            }
        }
        let unknown = bundle.policies.reads(&call.action, "checks") && self.add_checks(&mut vouched, call, moment.now).await.is_err();
        let calm = signals.unknown.then(|| (named.clone(), vouched.clone()));
        vouch(&mut vouched, &bundle.policies, &signals);
        let mut judged = judge_named(bundle, roles, named, chain, call, &vouched, moment.now)?;
        if let Some((named, calm)) = calm.filter(|_| judged.outcome.denied.is_some() && judged.could_be_allowed()) {
            // What can't be known is the worst. Is it the reason, or is there another that a better time would leave?
            let calm = judge_named(bundle, roles, named, chain, call, &calm, moment.now)?;
            if calm.outcome.denied != judged.outcome.denied {
                judged = Judged::stopped(Gate::State, Reason::StateUnavailable);
            }
        }
        if unknown && judged.could_be_allowed() {
            judged = Judged::stopped(Gate::State, Reason::StateUnavailable);
        }
        if matches!(presented, Presented::Repeated(_)) && judged.could_be_allowed() {
            // What the operation used is used up, and what it changed has changed: it was allowed then. Only what would stop it
            // whatever a human says, stops its answer now.
            judged.outcome.denied = None;
            judged.outcome.missing = None;
        }
        Ok(Weighed { judged, presented, signals, draft })
    }

    /// What policies are told of what a human said, or of a release.
    fn vouch_for(&self, moment: &Moment, presented: &Presented) -> Vouched {
        let mut vouched = moment.snapshot.nothing.clone();
        match presented {
            Presented::Usable(approval) => vouched.set("approval", self.context_of(moment, approval)),
            Presented::Released(claims) => {
                let expires = Timestamp::from_seconds(claims.exp).to_string();
                vouched.set("release", json::object([("expires", Value::String(expires))]));
            }
            Presented::Denied(_) | Presented::None | Presented::Repeated(_) => {}
        }
        vouched
    }

    /// Vouches for the checks of the call's case and customer.
    pub(super) async fn add_checks(
        &self,
        vouched: &mut Vouched,
        call: &Call,
        now: Timestamp,
    ) -> Result<(), crate::approvals::store::StoreError> {
        for check in self.store.checks(&call.case.tenant, &call.case.id, call.customer(), now).await? {
            let done = json::object([("expires", Value::String(check.expires.to_string()))]);
            vouched.set("checks", json::object([(check.kind.as_str(), done)]));
        }
        Ok(())
    }
}
