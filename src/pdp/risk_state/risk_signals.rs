//! Risk signals of a call: the history of its case, agent, supervisor and tenant is read before Cedar, and
//! its outcome is added after. If the risk store can't be read, worst-case values are used.

use std::sync::Arc;
use std::time::Duration;

use crate::bundle::Bundle;
use crate::model::answer::{Answer, Gate, Reason};
use crate::model::call::{Call, Untrusted};
use crate::model::chain::Chain;
use crate::model::finding::Screened;
use crate::model::halt::Halted;
use crate::model::refusal::Refusal;
use crate::model::roles::Roles;
use crate::model::signals::{Screening, Signals};
use crate::pdp::draft::ToEvaluate;
use crate::pdp::evaluation::{Evaluation, Evaluator};
use crate::pdp::gates;
use crate::pdp::origin::CallInChain;
use crate::pdp::risk_state::risk_keys::{CallOutcome, RiskKeys, RiskSubject};
use crate::pdp::risk_state::{RiskState, rate_limits};
use crate::pdp::scoring::{Recalled, score};
use crate::pdp::snapshot::Moment;
use crate::policy::Policies;
use crate::policy::shape::Action;
use crate::rates::{Per, covers};
use crate::risk::{Known, RiskRules, is_probing};
use crate::risk_store::{Acquire, Batch, RiskStore, Tenant};

/// Circumstances of an evaluation that are not part of the call.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::pdp) struct About<'a> {
    /// Whether the call is hypothetical. A hypothetical call uses no token.
    pub(in crate::pdp) hypothetical: bool,
    /// Further actions that are evaluated with the signals of this call.
    pub(in crate::pdp) also: &'a [&'a str],
    /// Further texts of the case to screen. They can taint the case, but do not count as a screening of its
    /// version.
    pub(in crate::pdp) texts: &'a [Untrusted],
    /// The draft that the call would release.
    pub(in crate::pdp) draft: Option<&'a Arc<ToEvaluate>>,
}

/// Outcome of a call, and whether it may be probing.
#[derive(Clone, Copy, Debug)]
pub(in crate::pdp) struct Attempt<'a> {
    pub(in crate::pdp) evaluation: &'a Evaluation,
    /// Whether a denial of the call is evidence of probing.
    pub(in crate::pdp) tries: bool,
}

impl RiskState {
    /// Returns the signals of a call that passed the gates. Counts the call in the windows that cover it.
    /// Screens its texts, unless `is_refused` reports that the call is denied without them.
    ///
    /// # Errors
    /// If too many texts are waiting to be processed (RESOURCE_EXHAUSTED).
    pub(in crate::pdp) async fn recall(
        &self,
        moment: &Moment,
        CallInChain { chain, call, .. }: CallInChain<'_>,
        action: &Action,
        about: About<'_>,
        is_refused: impl Fn(&Signals) -> bool,
    ) -> Result<Signals, Refusal> {
        let bundle = &moment.snapshot.bundle;
        let customer = self.remembered_as(bundle.case_owner(&call.case));
        let keys = RiskKeys::of(&self.options.environment, RiskSubject::of(&call.case.tenant, chain, call, &customer));
        let per = |per: Per| match per {
            Per::Customer => customer.clone(),
            per => per.of(chain, call, "").to_owned(),
        };
        let acquires = rate_limits::acquires(&bundle.rules.rates, action, keys.tenant, per);
        let observations = rate_limits::observations(&bundle.rules.rates, action, keys.tenant, per);
        let reads = reads_risk(&bundle.policies, call, about.also);
        let mut batch =
            keys.before(bundle.rules.risk.as_ref(), reads, acquires.iter().map(|(_, _, acquire)| *acquire).collect());
        let own = batch.observations.len();
        batch.observations.extend(observations.iter().map(|(_, observation)| *observation));
        let sums = self.sums(moment, chain, call).await;
        let (Ok(result), Ok(sums)) = (self.batch(keys.tenant, moment, &batch).await, sums) else {
            let mut signals = self.worst(moment, keys.tenant, call, action);
            if !is_refused(&signals) {
                signals.screened = self.screen(moment, &chain.tool_service, &call.untrusted, about.texts).await?;
                let screening = Screening { tainted: true, unscreened: signals.screened.unscreened };
                signals.screening = signals.screened.screened.then_some(screening);
                signals.hostile = is_hostile(bundle, signals.screened.kinds().iter().map(String::as_str));
            }
            return Ok(signals);
        };
        let customer = self.audit.customer(bundle.case_owner(&call.case));
        let mut signals = Signals { counted: true, customer, ..Signals::default() };
        let waits = acquires.iter().zip(&result.waits).filter(|(_, wait)| **wait > 0);
        let mut full: Vec<(String, Duration)> = waits
            .map(|((name, _, _), wait)| ((*name).to_owned(), Duration::from_micros(wait.unsigned_abs())))
            .collect();
        full.extend(sums.iter().filter_map(|sum| Some((sum.window.clone(), sum.wait?))));
        signals.sums = sums.into_iter().map(|sum| (sum.window, sum.total)).collect();
        let over = observations
            .iter()
            .zip(result.counts.iter().skip(own))
            .filter(|((_, observation), count)| observation.most.is_some_and(|most| **count > most));
        full.extend(over.map(|((name, observation), _)| {
            ((*name).to_owned(), Duration::from_micros(observation.within.unsigned_abs()))
        }));
        full.sort();
        signals.retry_after = full.iter().map(|(_, wait)| *wait).max();
        signals.full = full.into_iter().map(|(name, _)| name).collect();
        if is_refused(&signals) {
            return Ok(signals);
        }
        signals.screened = self.screen(moment, &chain.tool_service, &call.untrusted, about.texts).await?;
        if let Some(risk) = bundle.rules.risk.as_ref().filter(|_| reads) {
            let halted = Halted::call(chain, &call.case.tenant, &call.case.id, bundle.case_owner(&call.case));
            let reported = halted.reported_by(&self.store.halts().halts, moment.now);
            score(
                &mut signals,
                risk,
                Recalled { result: &result, version: keys.version() },
                moment.now,
                Known { reported, groups: action.groups.clone(), ..Known::default() },
            );
        }
        Ok(signals)
    }

    /// Screens untrusted texts, each when it is the caller's turn. Only `texts` count as a screening of the
    /// case's version, not `more`.
    async fn screen(
        &self,
        moment: &Moment,
        caller: &str,
        texts: &[Untrusted],
        more: &[Untrusted],
    ) -> Result<Screened, Refusal> {
        let mut screened = Screened::default();
        for (text, counts) in texts.iter().map(|text| (text, true)).chain(more.iter().map(|text| (text, false))) {
            let (snapshot, text) = (Arc::clone(&moment.snapshot), text.clone());
            let one = self.texts.run(caller, move || snapshot.bundle.rules.detectors.screen(&[text])).await?;
            screened.screened |= one.screened && counts;
            screened.unscreened |= one.unscreened;
            screened.findings.extend(one.findings);
        }
        Ok(screened)
    }

    /// Returns the id under which a customer is stored. In process it is the digest that the log contains, so
    /// that the log can be replayed.
    pub(in crate::pdp) fn remembered_as(&self, customer: &str) -> String {
        match self.risk_store {
            RiskStore::InProcess(_) => self.audit.customer(customer),
            RiskStore::Redis(_) => customer.to_owned(),
        }
    }

    /// Returns worst-case signals: every window is full, every kind was found, and nothing was screened.
    fn worst(&self, moment: &Moment, tenant: Tenant, call: &Call, action: &Action) -> Signals {
        let bundle = &moment.snapshot.bundle;
        let rates = &bundle.rules.rates;
        let mut full: Vec<String> =
            rates.actions().filter(|(_, actions)| covers(actions, action)).map(|(name, _)| name.clone()).collect();
        full.sort();
        let until = self.backlog.is_worst_until(tenant, moment.now);
        let wait = until.map(|until| until.micros().saturating_sub(moment.now.micros()).unsigned_abs());
        Signals {
            risk: bundle.rules.risk.as_ref().map(RiskRules::worst),
            full,
            retry_after: Some(wait.map_or(Duration::from_secs(1), Duration::from_micros)),
            kinds: bundle.rules.risk.iter().flat_map(|risk| risk.findings.keys().cloned()).collect(),
            screening: None,
            hostile: false,
            screened: Screened::default(),
            unknown: true,
            counted: true,
            remembered: false,
            reads_case: false,
            sums: vec![],
            unsafe_draft: false,
            halted_by: String::new(),
            customer: self.audit.customer(bundle.case_owner(&call.case)),
        }
    }

    /// Takes a denied call out of the windows that count only allowed calls, if `recall` counted it.
    pub(in crate::pdp) async fn withdraw(&self, moment: &Moment, chain: &Chain, call: &Call, signals: &Signals) {
        let bundle = &moment.snapshot.bundle;
        let rates = &bundle.rules.rates;
        let Some(action) = bundle.policies.shapes.actions.get(&call.action) else { return };
        // A call that finds one window full is counted in none.
        let was_counted =
            signals.counted && !signals.unknown && !signals.full.iter().any(|name| rates.calls.contains_key(name));
        if !was_counted {
            return;
        }
        let drained = self.clock.now().micros().saturating_sub(moment.now.micros()).max(0);
        let tenant = Tenant::of(&self.options.environment, &call.case.tenant);
        let customer = self.remembered_as(bundle.case_owner(&call.case));
        let per = |per: Per| match per {
            Per::Customer => customer.clone(),
            per => per.of(chain, call, "").to_owned(),
        };
        let withdrawals: Vec<_> = rate_limits::acquires(rates, action, tenant, per)
            .into_iter()
            .filter(|(_, rate, _)| !rate.denied)
            // What drained since the call was counted must not be taken from other calls.
            .map(|(_, _, acquire)| Acquire { every: acquire.every.saturating_sub(drained), ..acquire })
            .filter(|withdrawn| withdrawn.every > 0)
            .collect();
        if !withdrawals.is_empty() {
            // If the risk store can't be reached, the call stays counted.
            let batch = Batch { withdrawals, ..Batch::default() };
            let _withdrawn = self.batch(tenant, moment, &batch).await;
        }
    }

    /// Adds the outcome of a call to the history of its agent and supervisor, and to that of its case if the
    /// chain may read the case. A denial is probing only if the call `tries` something.
    pub(in crate::pdp) async fn remember(
        &self,
        moment: &Moment,
        chain: &Chain,
        call: &Call,
        attempt: Attempt<'_>,
        signals: &mut Signals,
    ) -> Result<(), Refusal> {
        let Attempt { evaluation, tries } = attempt;
        let bundle = &moment.snapshot.bundle;
        let Some(risk) = &bundle.rules.risk else { return Ok(()) };
        // Store history only for an existing agent of a tenant that the chain may speak for. Otherwise an
        // issuer could use its tokens to raise the risk score of another tenant's agent.
        let Some(tenant) = own_tenant(bundle, chain, &chain.agent, |roles| &roles.agent) else { return Ok(()) };
        let stopped = matches!(evaluation.gate, Some(Gate::Halt | Gate::Rate | Gate::State));
        let probing =
            tries && !stopped && evaluation.outcome.denied.is_some_and(is_probing) && !evaluation.is_service_alone();
        let told = signals.screened.screened || signals.screened.unscreened || !signals.screened.findings.is_empty();
        if !(probing || signals.unsafe_draft || told) {
            return Ok(());
        }
        let customer = self.remembered_as(bundle.case_owner(&call.case));
        let known = bundle.policies.shapes.actions.contains_key(&call.action);
        // All unknown actions count as one, because a caller could invent any number of names.
        let action = if known { call.action.as_str() } else { "" };
        let subject = RiskSubject { action, ..RiskSubject::of(&tenant, chain, call, &customer) };
        let keys = RiskKeys::of(&self.options.environment, subject);
        if !signals.counted {
            self.glance(moment, &keys, chain, call, signals).await?;
        }
        signals.remembered = true;
        signals.reads_case = tenant == call.case.tenant && self.reads_case(moment, chain, call);
        let happened = CallOutcome {
            probing,
            supervised: own_tenant(bundle, chain, &chain.supervisor, |roles| &roles.supervisor).as_ref()
                == Some(&tenant),
            hostile: signals.hostile,
            reads_case: signals.reads_case,
            kinds: signals.screened.kinds(),
            unsafe_draft: signals.unsafe_draft,
            // Without a version it would be unknown whether a later call is about the same version of the
            // case.
            screened: signals.screened.screened && !call.case.version.is_empty(),
            unscreened: signals.screened.unscreened,
        };
        self.say(keys.tenant, moment, keys.after(risk, &happened)).await;
        Ok(())
    }

    /// Adds a call that is invalid although its chain was proven, because trying out arguments is probing.
    pub(in crate::pdp) async fn remember_refusal(
        &self,
        moment: &Moment,
        chain: &Chain,
        call: &Call,
        refusal: &Refusal,
    ) -> Signals {
        let mut signals = Signals::default();
        if matches!(refusal, Refusal::Invalid { .. }) {
            let tried = Evaluation::stopped(Gate::Action, Reason::NotPermitted);
            // The answer must not depend on whether the texts can be screened now.
            let _unread =
                self.remember(moment, chain, call, Attempt { evaluation: &tried, tries: true }, &mut signals).await;
        }
        signals
    }

    /// Determines whether text of the case may have provoked a call that a gate stopped. Cases of another
    /// tenant and cases that do not exist are treated alike.
    async fn glance(
        &self,
        moment: &Moment,
        keys: &RiskKeys,
        chain: &Chain,
        call: &Call,
        signals: &mut Signals,
    ) -> Result<(), Refusal> {
        let bundle = &moment.snapshot.bundle;
        signals.screened = self.screen(moment, &chain.tool_service, &call.untrusted, &[]).await?;
        signals.customer = self.audit.customer(bundle.case_owner(&call.case));
        let read = Batch { reads: vec![keys.case], by: Some(keys.by), ..Batch::default() };
        // If the risk store can't be read, only this call's own texts can make the case hostile.
        let memories = match self.batch(keys.tenant, moment, &read).await {
            Ok(result) => result.memories,
            Err(_) => vec![],
        };
        let findings = bundle.rules.risk.as_ref().map(|risk| &risk.findings);
        let found = |name: &str| findings.is_some_and(|findings| findings.contains_key(name));
        let remembered = memories.iter().flatten().map(|(name, _)| name.as_str()).filter(|name| found(name));
        let kinds = signals.screened.kinds();
        signals.hostile = is_hostile(bundle, kinds.iter().map(String::as_str).chain(remembered));
        Ok(())
    }

    /// Returns whether the caller must know that its texts don't screen the case: it sent texts that were not
    /// stored, or the call was denied for lack of a screening that this chain can't provide.
    pub(in crate::pdp) fn discards_screening(
        &self,
        moment: &Moment,
        CallInChain { chain, call, .. }: CallInChain<'_>,
        answer: &Answer,
        signals: &Signals,
    ) -> bool {
        if moment.snapshot.bundle.rules.risk.is_none() {
            return false;
        }
        let stores = signals.reads_case && !call.case.version.is_empty();
        let needs = answer.outcome.denied == Some(Reason::ScreeningRequired);
        let is_screened = signals.screened.screened || signals.screened.unscreened;
        (is_screened && !stores) || (needs && !is_screened && !self.reads_case(moment, chain, call))
    }

    /// Returns whether the chain may read the case in any step. Only such a chain changes the case's history.
    pub(in crate::pdp) fn reads_case(&self, moment: &Moment, chain: &Chain, call: &Call) -> bool {
        let bundle = &moment.snapshot.bundle;
        let Some(roles) = bundle.roles.as_ref().filter(|roles| !roles.case_read.is_empty()) else { return false };
        let reading = Call {
            model: call.model.clone(),
            correlation: call.correlation.clone(),
            dry_run: call.dry_run,
            ..Call::on_case(&roles.case_read, &roles.case, call.case.clone(), call.credential.clone())
        };
        let evaluator = Evaluator { bundle, roles, now: moment.now };
        let steps = bundle.policies.shapes.choices(&roles.step);
        steps.iter().any(|step| {
            let chain = Chain { step: step.clone(), ..chain.clone() };
            let Ok(resolved) = gates::check(&bundle.policies, roles, &chain, &reading) else { return false };
            if !resolved.action.is_in_step(step) {
                return false;
            }
            let evaluation = evaluator.evaluate_resolved(resolved, &chain, &reading, &moment.snapshot.nothing);
            evaluation.is_ok_and(|evaluation| evaluation.outcome.denied.is_none())
        })
    }
}

/// Returns whether some kind of finding is a sign of an attack.
fn is_hostile<'k>(bundle: &Bundle, mut kinds: impl Iterator<Item = &'k str>) -> bool {
    kinds.any(|kind| bundle.rules.risk.as_ref().is_none_or(|risk| risk.is_hostile(kind)))
}

/// Returns whether a policy of the call's action, or of one in `also`, reads the risk of the call.
fn reads_risk(policies: &Policies, call: &Call, also: &[&str]) -> bool {
    let mut actions = std::iter::once(call.action.as_str()).chain(also.iter().copied());
    actions.any(|action| ["findings", "risk", "screening"].into_iter().any(|member| policies.reads(action, member)))
}

/// Returns the tenant of a principal, if the chain may speak for that tenant.
fn own_tenant(bundle: &Bundle, chain: &Chain, id: &str, kind: impl Fn(&Roles) -> &String) -> Option<String> {
    let tenant = bundle.policies.tenant_of(kind(bundle.roles.as_ref()?), id)?;
    chain.speaks_for(&tenant).then_some(tenant)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::Reading;

    /// An issuer of another tenant, or a tool service of another trust domain, can't raise an agent's risk.
    #[test]
    fn an_agent_is_remembered_only_by_who_speaks_for_its_tenant() {
        let bundle = Bundle::load(std::path::Path::new("policies"), Reading::default()).expect("the reference bundle");
        let of = |agent: &str, token: Option<&str>, tools: Option<&str>| {
            let mut chain = Chain {
                agent: agent.into(),
                tool_tenants: tools.map(|tenant| vec![tenant.into()]),
                ..Chain::default()
            };
            chain.token.tenant = token.map(str::to_owned);
            own_tenant(&bundle, &chain, &chain.agent, |roles| &roles.agent)
        };
        assert_eq!(of("support-bot", None, None).as_deref(), Some("acme"));
        assert_eq!(of("support-bot", Some("acme"), Some("acme")).as_deref(), Some("acme"));
        assert_eq!(of("support-bot", Some("globex"), None), None);
        assert_eq!(of("support-bot", None, Some("globex")), None);
        assert_eq!(of("nobody", None, None), None);
    }
}
