//! How unusual a call is: what was seen of its case, agent, human and tenant is asked before Cedar, and what came of it is added
//! after. What can't be known counts as the worst.

pub(super) mod places;

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use dashmap::DashMap;

use crate::json::{self, Value};
use crate::model::call::{Call, Resource};
use crate::model::chain::Chain;
use crate::model::finding::Screened;
use crate::model::halt::Halted;
use crate::model::signals::{Screening, Signals};
use crate::model::time::Timestamp;
use crate::model::vouched::Vouched;
use crate::pdp::judge::{self, judge_named};
use crate::pdp::memory::places::{Happened, Places, SCREENED, UNSCREENED, Whose};
use crate::pdp::rights::tenant_of;
use crate::pdp::{Moment, Pdp, gates, limits};
use crate::policy::Policies;
use crate::policy::shape::Action;
use crate::rates::{Per, covers};
use crate::risk::{Known, RiskRules, is_probing};
use crate::windows::{Tenant, Visit, Visited, Windows, WindowsDown};

/// How much may wait to be said to a server that does not answer.
const UNSENT_MAX: usize = 10_000;

/// What this replica knows of its windows.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Until when a tenant's windows count as the worst, since they were lost.
    pub(super) worst_until: DashMap<Tenant, Timestamp>,
    /// Until when all do.
    pub(super) rebuilding: std::sync::atomic::AtomicBool,
    /// Tenants whose past is to be said again.
    pub(super) replays: Mutex<Vec<Tenant>>,
    /// Held while lost windows are made anew.
    pub(super) recovering: tokio::sync::Mutex<()>,
    /// What the server was not told yet.
    unsent: Mutex<VecDeque<(Tenant, Timestamp, Visit)>>,
}

impl Pdp {
    /// What is known of a call that passed the gates. Counts it in the windows that cover it.
    pub(super) async fn recall(&self, moment: &Moment, chain: &Chain, call: &Call, action: &Action) -> Signals {
        let bundle = &moment.snapshot.bundle;
        let screened = bundle.rules.phrases.screen(&call.untrusted);
        let customer = self.remembered_as(call.customer());
        let places = Places::of(&self.options.environment, Whose::of(&call.case.tenant, chain, call, &customer));
        let takes = limits::takes(&bundle.rules.rates, action, places.tenant, |per| match per {
            Per::Customer => customer.clone(),
            per => per.of(chain, call).to_owned(),
        });
        let reads = ["findings", "risk", "screening"].into_iter().any(|member| bundle.policies.reads(&call.action, member));
        let visit = places.before(bundle.rules.risk.as_ref(), reads, takes.iter().map(|(_, take)| *take).collect());
        let sums = self.full_sums(moment, chain, call, action).await;
        let (Ok(visited), Ok(sums)) = (self.visit(places.tenant, moment, &visit).await, sums) else {
            return self.worst(moment, places.tenant, screened, action);
        };
        let mut signals = Signals { screened, customer: self.audit.digest(&Value::from(call.customer())), ..Signals::default() };
        let waits = takes.iter().zip(&visited.waits).filter(|(_, wait)| **wait > 0);
        let mut full: Vec<(String, Duration)> =
            waits.map(|((name, _), wait)| ((*name).to_owned(), Duration::from_micros(wait.unsigned_abs()))).collect();
        full.extend(sums);
        full.sort();
        signals.retry_after = full.iter().map(|(_, wait)| *wait).max();
        signals.full = full.into_iter().map(|(name, _)| name).collect();
        if let Some(risk) = bundle.rules.risk.as_ref().filter(|_| reads) {
            let halted = Halted::call(chain, &call.case.tenant, &call.case.id, call.customer());
            let reported = halted.reported_by(&self.store.halts().halts, moment.now);
            weigh(&mut signals, risk, &visited, moment.now, Known { reported, groups: action.groups.clone(), ..Known::default() });
        }
        signals
    }

    /// What a customer is remembered as: in process by the digest that stands in the log, so that the log tells of it again.
    pub(super) fn remembered_as(&self, customer: &str) -> String {
        match self.windows {
            Windows::InProcess(_) => self.audit.digest(&Value::from(customer)),
            Windows::Redis(_) => customer.to_owned(),
        }
    }

    /// Asks the windows; what was lost counts as the worst for a while.
    async fn visit(&self, tenant: Tenant, moment: &Moment, visit: &Visit) -> Result<Visited, WindowsDown> {
        // They are asked in that time, too: what is said then must be there when they count again.
        let visited = self.ask(tenant, moment, visit).await;
        if let Err(down) = &visited {
            self.telemetry.metrics.windows_failed();
            tracing::warn!(name: "windows.failed", error = %down);
        }
        let worst = self.memory.worst_until.get(&tenant).is_some_and(|until| moment.now < *until);
        visited.and_then(|visited| if worst { Err(WindowsDown::Lost) } else { Ok(visited) })
    }

    /// Asks the windows, and makes them anew when they were lost.
    async fn ask(&self, tenant: Tenant, moment: &Moment, visit: &Visit) -> Result<Visited, WindowsDown> {
        if self.memory.rebuilding.load(std::sync::atomic::Ordering::Acquire) {
            return Err(WindowsDown::Lost);
        }
        if self.has_unsent() && self.send_unsent().await.is_err() {
            return Err(WindowsDown::Unreachable("it was not told all yet".into()));
        }
        match self.windows.visit(tenant, moment.now, visit).await {
            Err(WindowsDown::Lost) => {
                self.recover(tenant, moment).await?;
                self.windows.visit(tenant, moment.now, visit).await
            }
            visited => visited,
        }
    }

    /// Nothing can be known: everything is full, everything was found, nothing was screened.
    fn worst(&self, moment: &Moment, tenant: Tenant, screened: Screened, action: &Action) -> Signals {
        let bundle = &moment.snapshot.bundle;
        let rates = &bundle.rules.rates;
        let calls = rates.calls.iter().filter(|(_, rate)| covers(&rate.actions, action)).map(|(name, _)| name);
        let sums = rates.sums.iter().filter(|(_, rate)| covers(&rate.actions, action)).map(|(name, _)| name);
        let mut full: Vec<String> = calls.chain(sums).cloned().collect();
        full.sort();
        let until = self.memory.worst_until.get(&tenant).map(|until| *until).filter(|until| *until > moment.now);
        let wait = until.map(|until| until.micros().saturating_sub(moment.now.micros()).unsigned_abs());
        Signals {
            risk: bundle.rules.risk.as_ref().map(RiskRules::worst),
            full,
            retry_after: Some(wait.map_or(Duration::from_secs(1), Duration::from_micros)),
            kinds: bundle.rules.risk.iter().flat_map(|risk| risk.findings.keys().cloned()).collect(),
            screening: screened.screened.then_some(Screening { tainted: true, unscreened: screened.unscreened }),
            hostile: !screened.findings.is_empty(),
            screened,
            unknown: true,
            reads_case: false,
            customer: String::new(),
        }
    }

    /// Adds what came of a call: of one that passed the gates to its case, of every one to its agent and human.
    pub(super) async fn remember(
        &self,
        moment: &Moment,
        chain: &Chain,
        call: &Call,
        denied: Option<crate::model::answer::Reason>,
        signals: &mut Signals,
    ) {
        let bundle = &moment.snapshot.bundle;
        let (Some(risk), Some(roles)) = (&bundle.rules.risk, &bundle.roles) else { return };
        let agent = bundle.policies.shapes.uid(&roles.agent, &chain.agent).and_then(|uid| bundle.policies.store.get(&uid));
        // Of an agent that is none there is nothing to remember.
        let Some(tenant) = agent.and_then(tenant_of) else { return };
        let probing = denied.is_some_and(is_probing);
        if !(probing || signals.screened.screened || signals.screened.unscreened) {
            return;
        }
        signals.reads_case = tenant == call.case.tenant && self.reads_case(moment, chain, call);
        let happened = Happened {
            probing,
            hostile: signals.hostile,
            reads_case: signals.reads_case,
            kinds: signals.screened.kinds(),
            screened: signals.screened.screened,
            unscreened: signals.screened.unscreened,
        };
        let customer = self.remembered_as(call.customer());
        let places = Places::of(&self.options.environment, Whose::of(&tenant, chain, call, &customer));
        self.say(places.tenant, moment, places.after(risk, &happened)).await;
    }

    /// Tells the windows; what they can't be told now, they are told before they are asked again.
    pub(super) async fn say(&self, tenant: Tenant, moment: &Moment, visit: Visit) {
        if visit.is_empty() {
            return;
        }
        match self.ask(tenant, moment, &visit).await {
            // A full table counts as the worst by itself.
            Ok(_) | Err(WindowsDown::Full) => {}
            Err(WindowsDown::Lost | WindowsDown::Unreachable(_)) => {
                let mut unsent = self.memory.unsent.lock().unwrap_or_else(PoisonError::into_inner);
                if unsent.len() < UNSENT_MAX {
                    unsent.push_back((tenant, moment.now, visit));
                } else {
                    // More than can be kept: it counts as lost.
                    let recovery = moment.snapshot.bundle.rules.recovery();
                    self.memory.worst_until.insert(tenant, moment.now.plus(recovery));
                }
            }
        }
    }

    fn has_unsent(&self) -> bool {
        !self.memory.unsent.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Tells the windows what they could not be told before, in order.
    ///
    /// # Errors
    /// When they still can't be.
    pub(super) async fn send_unsent(&self) -> Result<(), WindowsDown> {
        loop {
            let next = self.memory.unsent.lock().unwrap_or_else(PoisonError::into_inner).front().cloned();
            let Some((tenant, at, visit)) = next else { return Ok(()) };
            match self.windows.visit(tenant, at, &visit).await {
                Ok(_) | Err(WindowsDown::Full) => {}
                Err(WindowsDown::Lost) => {
                    let moment = self.moment();
                    self.recover(tenant, &moment).await?;
                    self.windows.visit(tenant, at, &visit).await?;
                }
                Err(down) => return Err(down),
            }
            // Twice is no harm: two that come here together may both tell it.
            let mut unsent = self.memory.unsent.lock().unwrap_or_else(PoisonError::into_inner);
            if unsent.front().is_some_and(|(_, told_at, told)| (*told_at, told) == (at, &visit)) {
                unsent.pop_front();
            }
        }
    }

    /// Whether the chain may read the case, in whatever step: only such a chain writes what is remembered of it.
    fn reads_case(&self, moment: &Moment, chain: &Chain, call: &Call) -> bool {
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
            let Ok(named) = gates::pass(&bundle.policies, roles, &chain, &reading) else { return false };
            if !named.action.groups.contains(&format!("in_{step}")) {
                return false;
            }
            let judged = judge_named(bundle, roles, named, &chain, &reading, &moment.snapshot.nothing, moment.now);
            judged.is_ok_and(|judged| judged.outcome.denied.is_none())
        })
    }
}

/// The score of what was remembered, and what it says of the case's text.
fn weigh(signals: &mut Signals, risk: &RiskRules, visited: &Visited, now: Timestamp, mut known: Known) {
    let [case, version, pair, customer] = [0, 1, 2, 3].map(|index| visited.memories.get(index).map(Vec::as_slice).unwrap_or_default());
    for (name, until) in case.iter().chain(pair).chain(customer) {
        if let Some(factor) = risk.factor(name) {
            *known.events.entry(name.to_string()).or_default() += factor.count(*until, now.micros());
        }
    }
    for kind in signals.screened.kinds() {
        *known.events.entry(kind).or_default() += 1;
    }
    let count = |index: usize| visited.counts.get(index).copied().unwrap_or_default();
    known.agent = [count(0), count(1), count(2)];
    known.supervisor = [count(3), count(4), count(5)];
    signals.kinds = risk.findings.keys().filter(|kind| known.events.contains_key(*kind)).cloned().collect();
    signals.hostile = !signals.kinds.is_empty();
    let before = |name: &str| version.iter().any(|(known, _)| known == name);
    let was_screened = signals.screened.screened || before(SCREENED);
    let unscreened = signals.screened.unscreened || before(UNSCREENED);
    signals.screening = (was_screened || unscreened).then_some(Screening { tainted: signals.hostile, unscreened });
    signals.risk = Some(risk.score(&known));
}

/// Vouches for what is known of a call.
pub(super) fn vouch(vouched: &mut Vouched, policies: &Policies, signals: &Signals) {
    if let Some(risk) = &signals.risk {
        vouched.set("risk", judge::risk(&policies.shapes, risk));
    }
    let list = |names: &[String]| Value::Array(names.iter().map(|name| Value::from(name.as_str())).collect());
    vouched.set("rates", list(&signals.full));
    vouched.set("findings", list(&signals.kinds));
    if let Some(Screening { tainted, unscreened }) = signals.screening {
        vouched.set("screening", json::object([("tainted", Value::Bool(tainted)), ("unscreened", Value::Bool(unscreened))]));
    }
}
