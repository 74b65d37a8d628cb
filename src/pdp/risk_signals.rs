//! How unusual a call is: what was seen of its case, agent, human and tenant is asked before Cedar, and what came of it is added
//! after. What can't be known counts as the worst.

use crate::pdp::rate_limits;
use std::sync::Arc;
use std::time::Duration;

use crate::bundle::Bundle;
use crate::json::{self, Value};
use crate::model::answer::{Gate, Reason};
use crate::model::call::{Call, Resource, Untrusted};
use crate::model::chain::Chain;
use crate::model::finding::Screened;
use crate::model::halt::Halted;
use crate::model::refusal::Refusal;
use crate::model::roles::Roles;
use crate::model::signals::{Screening, Signals};
use crate::pdp::draft::ToEvaluate;
use crate::pdp::evaluation::{Evaluation, evaluate_resolved};
use crate::pdp::risk_keys::{CallOutcome, RiskKeys, RiskSubject};
use crate::pdp::scoring::score;
use crate::pdp::snapshot::Moment;
use crate::pdp::{Pdp, gates};
use crate::policy::shape::Action;
use crate::rates::{Per, covers};
use crate::risk::{Known, RiskRules, is_probing};
use crate::risk_store::{Batch, RiskStore, Tenant};

/// What a call is weighed for, beside itself.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct About<'a> {
    /// It is asked hypothetically: no token is used.
    pub(super) hypothetical: bool,
    /// Further actions that are evaluation by what is known of this call.
    pub(super) also: &'a [&'a str],
    /// Further texts of the case that are screened: they taint it, and are not what a version of it must be screened for.
    pub(super) texts: &'a [Untrusted],
    /// The draft that the call would let go.
    pub(super) draft: Option<&'a Arc<ToEvaluate>>,
}

impl Pdp {
    /// What is known of a call that passed the gates. Counts it in the windows that cover it, and reads its texts, unless
    /// `is_refused` says that what is known without them refuses the call.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED, when too many texts wait to be read.
    pub(super) async fn recall(
        &self,
        moment: &Moment,
        (chain, call): (&Chain, &Call),
        action: &Action,
        about: About<'_>,
        is_refused: impl Fn(&Signals) -> bool,
    ) -> Result<Signals, Refusal> {
        let bundle = &moment.snapshot.bundle;
        let customer = self.remembered_as(call.customer());
        let keys = RiskKeys::of(&self.options.environment, RiskSubject::of(&call.case.tenant, chain, call, &customer));
        let per = |per: Per| match per {
            Per::Customer => customer.clone(),
            per => per.of(chain, call).to_owned(),
        };
        let acquires = rate_limits::acquires(&bundle.rules.rates, action, keys.tenant, per);
        let observations = rate_limits::observations(&bundle.rules.rates, action, keys.tenant, per);
        let reads = ["findings", "risk", "screening"].into_iter().any(|member| {
            std::iter::once(call.action.as_str()).chain(about.also.iter().copied()).any(|action| bundle.policies.reads(action, member))
        });
        let mut batch = keys.before(bundle.rules.risk.as_ref(), reads, acquires.iter().map(|(_, acquire)| *acquire).collect());
        let own = batch.observations.len();
        batch.observations.extend(observations.iter().map(|(_, observation)| *observation));
        let sums = self.sums(moment, chain, call).await;
        let (Ok(result), Ok(sums)) = (self.batch(keys.tenant, moment, &batch).await, sums) else {
            let mut signals = self.worst(moment, keys.tenant, (call, action));
            if !is_refused(&signals) {
                signals.screened = self.screen(moment, &chain.tool_service, &call.untrusted, about.texts).await?;
                let screening = Screening { tainted: true, unscreened: signals.screened.unscreened };
                signals.screening = signals.screened.screened.then_some(screening);
                signals.hostile = !signals.screened.findings.is_empty();
            }
            return Ok(signals);
        };
        let customer = self.audit.digest(&Value::from(call.customer()));
        let mut signals = Signals { counted: true, customer, ..Signals::default() };
        let waits = acquires.iter().zip(&result.waits).filter(|(_, wait)| **wait > 0);
        let mut full: Vec<(String, Duration)> =
            waits.map(|((name, _), wait)| ((*name).to_owned(), Duration::from_micros(wait.unsigned_abs()))).collect();
        full.extend(sums.iter().filter_map(|sum| Some((sum.window.clone(), sum.wait?))));
        signals.sums = sums.into_iter().map(|sum| (sum.window, sum.total)).collect();
        let over = observations
            .iter()
            .zip(result.counts.iter().skip(own))
            .filter(|((_, observation), count)| observation.most.is_some_and(|most| **count > most));
        full.extend(over.map(|((name, observation), _)| ((*name).to_owned(), Duration::from_micros(observation.within.unsigned_abs()))));
        full.sort();
        signals.retry_after = full.iter().map(|(_, wait)| *wait).max();
        signals.full = full.into_iter().map(|(name, _)| name).collect();
        if is_refused(&signals) {
            return Ok(signals);
        }
        signals.screened = self.screen(moment, &chain.tool_service, &call.untrusted, about.texts).await?;
        if let Some(risk) = bundle.rules.risk.as_ref().filter(|_| reads) {
            let halted = Halted::call(chain, &call.case.tenant, &call.case.id, call.customer());
            let reported = halted.reported_by(&self.store.halts().halts, moment.now);
            score(
                &mut signals,
                risk,
                (&result, keys.version()),
                moment.now,
                Known { reported, groups: action.groups.clone(), ..Known::default() },
            );
        }
        Ok(signals)
    }

    /// Screens untrusted texts, each when it is the caller's turn. By `more` a version of the case does not count as screened.
    async fn screen(&self, moment: &Moment, caller: &str, texts: &[Untrusted], more: &[Untrusted]) -> Result<Screened, Refusal> {
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

    /// What a customer is remembered as: in process by the digest that stands in the log, so that the log tells of it again.
    pub(super) fn remembered_as(&self, customer: &str) -> String {
        match self.risk_store {
            RiskStore::InProcess(_) => self.audit.digest(&Value::from(customer)),
            RiskStore::Redis(_) => customer.to_owned(),
        }
    }

    /// Nothing can be known: everything is full, everything was found, nothing was screened.
    fn worst(&self, moment: &Moment, tenant: Tenant, (call, action): (&Call, &Action)) -> Signals {
        let bundle = &moment.snapshot.bundle;
        let rates = &bundle.rules.rates;
        let mut full: Vec<String> = rates.actions().filter(|(_, actions)| covers(actions, action)).map(|(name, _)| name.clone()).collect();
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
            customer: self.audit.digest(&Value::from(call.customer())),
        }
    }

    /// Adds what came of a call: of one that passed the gates to its case, of every one to its agent and human.
    /// A denial of a call that `tries` nothing is no probing.
    pub(super) async fn remember(
        &self,
        moment: &Moment,
        chain: &Chain,
        call: &Call,
        (evaluation, tries): (&Evaluation, bool),
        signals: &mut Signals,
    ) -> Result<(), Refusal> {
        let bundle = &moment.snapshot.bundle;
        let Some(risk) = &bundle.rules.risk else { return Ok(()) };
        // Nobody else's agent, and none that is none: by a token of its own an issuer must not make another tenant's agent suspicious.
        let Some(tenant) = own_tenant(bundle, chain, &chain.agent, |roles| &roles.agent) else { return Ok(()) };
        let stopped = matches!(evaluation.gate, Some(Gate::Halt | Gate::Rate | Gate::State));
        let probing = tries && !stopped && evaluation.outcome.denied.is_some_and(is_probing) && !evaluation.is_service_alone();
        let told = signals.screened.screened || signals.screened.unscreened || !signals.screened.findings.is_empty();
        if !(probing || signals.unsafe_draft || told) {
            return Ok(());
        }
        let customer = self.remembered_as(call.customer());
        let known = bundle.policies.shapes.actions.contains_key(&call.action);
        // Names that nobody gave are one name.
        let action = if known { call.action.as_str() } else { "" };
        let subject = RiskSubject { action, ..RiskSubject::of(&tenant, chain, call, &customer) };
        let keys = RiskKeys::of(&self.options.environment, subject);
        if !signals.counted {
            self.glance(moment, &keys, (chain, call), signals).await?;
        }
        signals.remembered = true;
        signals.reads_case = tenant == call.case.tenant && self.reads_case(moment, chain, call);
        let happened = CallOutcome {
            probing,
            supervised: own_tenant(bundle, chain, &chain.supervisor, |roles| &roles.supervisor).as_ref() == Some(&tenant),
            hostile: signals.hostile,
            reads_case: signals.reads_case,
            kinds: signals.screened.kinds(),
            unsafe_draft: signals.unsafe_draft,
            // Of a case without a version nobody could tell whether a later call is of the same one.
            screened: signals.screened.screened && !call.case.version.is_empty(),
            unscreened: signals.screened.unscreened,
        };
        self.say(keys.tenant, moment, keys.after(risk, &happened)).await;
        Ok(())
    }

    /// Adds a call that could not be read, though its chain was proven: to try arguments is to try.
    pub(super) async fn remember_refusal(&self, moment: &Moment, chain: &Chain, call: &Call, refusal: &Refusal) -> Signals {
        let mut signals = Signals::default();
        if matches!(refusal, Refusal::Invalid { .. }) {
            let tried = Evaluation::stopped(Gate::Action, Reason::NotPermitted);
            // A text that can't be read now is no reason to answer otherwise.
            let _unread = self.remember(moment, chain, call, (&tried, true), &mut signals).await;
        }
        signals
    }

    /// Of a call that a gate stopped: whether the text of its case is what made the agent try. The same for what is foreign and for what
    /// is not there.
    async fn glance(&self, moment: &Moment, keys: &RiskKeys, (chain, call): (&Chain, &Call), signals: &mut Signals) -> Result<(), Refusal> {
        let bundle = &moment.snapshot.bundle;
        signals.screened = self.screen(moment, &chain.tool_service, &call.untrusted, &[]).await?;
        signals.customer = self.audit.digest(&Value::from(call.customer()));
        let read = Batch { reads: vec![keys.case], by: Some(keys.by), ..Batch::default() };
        // What can't be known is no excuse.
        let remembered = self.batch(keys.tenant, moment, &read).await.unwrap_or_default();
        let findings = bundle.rules.risk.as_ref().map(|risk| &risk.findings);
        let found = |name: &str| findings.is_some_and(|findings| findings.contains_key(name));
        signals.hostile = !signals.screened.findings.is_empty() || remembered.memories.iter().flatten().any(|(name, _)| found(name));
        Ok(())
    }

    /// Whether the chain may read the case, in whatever step: only such a chain writes what is remembered of it.
    pub(super) fn reads_case(&self, moment: &Moment, chain: &Chain, call: &Call) -> bool {
        let bundle = &moment.snapshot.bundle;
        let Some(roles) = bundle.roles.as_ref().filter(|roles| !roles.case_read.is_empty()) else { return false };
        let reference = crate::model::call::EntityReference { kind: roles.case.clone(), id: call.case.id.clone() };
        let reading = Call {
            action: roles.case_read.clone(),
            resource: Resource { reference, version: String::new(), attributes: None },
            arguments: json::Object::new(),
            facts: None,
            untrusted: vec![],
            tokens: crate::model::call::Tokens::default(),
            ..call.clone()
        };
        let steps = bundle.policies.shapes.choices(&roles.step);
        steps.iter().any(|step| {
            let chain = Chain { step: step.clone(), ..chain.clone() };
            let Ok(resolved) = gates::check(&bundle.policies, roles, &chain, &reading) else { return false };
            if !resolved.action.groups.contains(&format!("in_{step}")) {
                return false;
            }
            let evaluation = evaluate_resolved(bundle, roles, resolved, &chain, &reading, &moment.snapshot.nothing, moment.now);
            evaluation.is_ok_and(|evaluation| evaluation.outcome.denied.is_none())
        })
    }
}

/// The tenant of an entity of the chain, if what was proven of caller and token speaks for it.
fn own_tenant(bundle: &Bundle, chain: &Chain, id: &str, kind: impl Fn(&Roles) -> &String) -> Option<String> {
    let tenant = bundle.policies.tenant_of(kind(bundle.roles.as_ref()?), id)?;
    let proven = chain.token.tenant.as_ref().is_none_or(|proven| *proven == tenant)
        && chain.tool_tenants.as_ref().is_none_or(|tenants| tenants.contains(&tenant));
    proven.then_some(tenant)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::Reading;

    /// Another tenant's issuer, or a tool service of another trust domain, can't make an agent suspicious.
    #[test]
    fn an_agent_is_remembered_only_by_who_speaks_for_its_tenant() {
        let bundle = Bundle::load(std::path::Path::new("policies"), Reading::default()).expect("the reference bundle");
        let of = |agent: &str, token: Option<&str>, tools: Option<&str>| {
            let mut chain = Chain { agent: agent.into(), tool_tenants: tools.map(|tenant| vec![tenant.into()]), ..Chain::default() };
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
