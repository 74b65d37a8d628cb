//! What the PDP itself knows of a call that passed the gates: kill switches, what a human said, which checks were made. Then Cedar.

use std::sync::Arc;

use crate::approvals::binding::{self, Allowed};
use crate::entities::Named;
use crate::json;
use crate::json::Value;
use crate::model::answer::{Answer, Gate, Missing, Mode, Reason};
use crate::model::approval::Binding;
use crate::model::call::{Call, Untrusted};
use crate::model::chain::{Caller, Chain};
use crate::model::halt::Halted;
use crate::model::refusal::Refusal;
use crate::model::roles::Roles;
use crate::model::signals::Signals;
use crate::model::time::Timestamp;
use crate::model::vouched::Vouched;
use crate::pdp::judge::{Judged, judge_named};
use crate::pdp::output::{DraftFacts, ToEvaluate, is_entitled, members};
use crate::pdp::present::Presented;
use crate::pdp::{Moment, Pdp, memory};

/// A call with who makes it: caller, chain, call.
pub(super) type Asking<'a> = (&'a Caller, &'a Chain, &'a Call);

/// What a call is weighed for, beside itself.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct About<'a> {
    /// It is asked hypothetically: no token is used.
    pub(super) hypothetical: bool,
    /// Further actions that are judged by what is known of this call.
    pub(super) also: &'a [&'a str],
    /// Further texts of the case that are screened: they taint it, and are not what a version of it must be screened for.
    pub(super) texts: &'a [Untrusted],
    /// The draft that the call would let go.
    pub(super) draft: Option<&'a Arc<ToEvaluate>>,
}

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
    /// Weighs a call that passed the gates.
    pub(super) async fn weigh(
        &self,
        moment: &Moment,
        roles: &Roles,
        (caller, chain, call): Asking<'_>,
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
            memory::vouch(&mut vouched, &bundle.policies, signals);
            judge_named(bundle, roles, named.clone(), chain, call, &vouched, moment.now).unwrap_or_default()
        };
        let has_texts = !call.untrusted.is_empty() || !about.texts.is_empty() || about.draft.is_some();
        let presented = self.presented(moment, (caller, chain, call), about.hypothetical).await;
        // What an operation was answered before it is answered again, whatever is full now.
        let may_wait = has_texts && !matches!(presented, Presented::Repeated(_));
        let is_refused = |signals: &Signals| may_wait && !signals.full.is_empty() && unread(signals).is_limited();
        // Counted before anything that a caller can get wrong.
        let signals = self.recall(moment, (chain, call), named.action, about, is_refused).await?;
        if is_refused(&signals) || about.draft.is_some() && !is_entitled(&bundle.policies, chain, call, &unread(&signals)) {
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
            for (name, value) in members(&draft.found, draft.sources, draft.prepared, asked.confidence) {
                vouched.set(name, value);
            }
        }
        let unknown = bundle.policies.reads(&call.action, "checks") && self.add_checks(&mut vouched, call, moment.now).await.is_err();
        let calm = signals.unknown.then(|| (named.clone(), vouched.clone()));
        memory::vouch(&mut vouched, &bundle.policies, &signals);
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

    /// What became of the token that came with a call.
    async fn presented(&self, moment: &Moment, (caller, chain, call): Asking<'_>, hypothetical: bool) -> Presented {
        match (&call.tokens.approval, &call.tokens.release) {
            (Some(token), None) if !hypothetical => self.present(moment, caller, chain, call, token).await,
            (None, Some(token)) if !hypothetical => self.present_release(moment, (caller, chain, call), token).await,
            // Both: refused when the request was read.
            (Some(_), Some(_)) => Presented::Denied(Reason::ApprovalUnverifiable),
            (None | Some(_), None) | (None, Some(_)) => Presented::None,
        }
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

    /// Signs what the caller is to bring back: a requestable denial's binding, or what was allowed.
    pub(super) fn sign(&self, moment: &Moment, (caller, chain, call): Asking<'_>, answer: &mut Answer) -> Result<(), Refusal> {
        if answer.mode != Mode::Enforce {
            return Ok(());
        }
        let keys = self.keys.load();
        let signed = match (&answer.outcome.missing, answer.outcome.denied) {
            (Some(missing), Some(_)) if !missing.template.is_empty() => {
                match self.binding(moment, (caller, chain, call), missing, answer) {
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

    pub(super) fn binding(&self, moment: &Moment, (_, chain, call): Asking<'_>, missing: &Missing, answer: &Answer) -> Option<Binding> {
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
}
