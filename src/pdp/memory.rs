//! How unusual a call is: what was seen of its case, agent, human and tenant is asked before Cedar, and what came of it is added
//! after. What can't be known counts as the worst.

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
use crate::pdp::rights::tenant_of;
use crate::pdp::{Moment, Pdp, gates, limits};
use crate::policy::Policies;
use crate::policy::shape::Action;
use crate::rates::covers;
use crate::risk::{DENIALS, Known, PROVOKED_DENIALS, RiskRules, is_probing};
use crate::windows::{Change, Key, Note, Take, Tenant, Touch, Visit, Visited, WindowsDown};

/// The memory of a version of a case: it was screened, or could not be.
const SCREENED: &str = "screened";
const UNSCREENED: &str = "unscreened";
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

/// Where what is remembered of a call is kept.
#[derive(Clone, Debug)]
pub(super) struct Places {
    pub(super) tenant: Tenant,
    pub(super) case: Key,
    case_version: Key,
    /// Of the agent on the case.
    pair: Key,
    /// Of the agent for the customer.
    customer: Key,
    /// Different cases, resources and denied actions of the agent.
    pub(super) agent: [Key; 3],
    /// The same of the supervisor.
    pub(super) supervisor: [Key; 3],
    items: [u64; 3],
}

/// Whom and what a call is of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Whose<'a> {
    pub(super) tenant: &'a str,
    pub(super) case: &'a str,
    pub(super) case_version: &'a str,
    pub(super) customer: &'a str,
    pub(super) agent: &'a str,
    pub(super) supervisor: &'a str,
    pub(super) action: &'a str,
    pub(super) resource: (&'a str, &'a str),
}

impl<'a> Whose<'a> {
    /// Of a tenant, and nobody in it.
    pub(super) fn nobody(tenant: &'a str) -> Self {
        Self { tenant, case: "", case_version: "", customer: "", agent: "", supervisor: "", action: "", resource: ("", "") }
    }

    fn of(tenant: &'a str, chain: &'a Chain, call: &'a Call) -> Self {
        let reference = &call.resource.reference;
        Self {
            tenant,
            case: &call.case.id,
            case_version: &call.case.version,
            customer: call.customer(),
            agent: &chain.agent,
            supervisor: &chain.supervisor,
            action: &call.action,
            resource: (&reference.kind, &reference.id),
        }
    }
}

impl Places {
    pub(super) fn of(environment: &str, whose: Whose<'_>) -> Self {
        let tenant = Tenant::of(environment, whose.tenant);
        let breadth = |of: &str, id: &str| ["cases", "resources", "denied"].map(|what| tenant.key(of, &[what, id]));
        let item = |parts: &[&str]| tenant.key("item", parts).short();
        Self {
            tenant,
            case: tenant.key("case", &[whose.case]),
            case_version: tenant.key("version", &[whose.case, whose.case_version]),
            pair: tenant.key("case-agent", &[whose.case, whose.agent]),
            customer: tenant.key("customer-agent", &[whose.customer, whose.agent]),
            agent: breadth("agent", whose.agent),
            supervisor: breadth("supervisor", whose.supervisor),
            items: [item(&[whose.case]), item(&[whose.resource.0, whose.resource.1]), item(&[whose.case, whose.action])],
        }
    }

    /// What is asked and counted before the decision: the call in every window that covers it, and its case and resource.
    /// What is remembered is read only where a policy reads it.
    pub(super) fn before(&self, risk: Option<&RiskRules>, reads: bool, takes: Vec<Take>) -> Visit {
        let mut visit = Visit { takes, ..Visit::default() };
        if let Some(risk) = risk {
            let within = risk.probing.micros();
            let [case, resource, _] = self.items;
            for [cases, resources, denied] in [self.agent, self.supervisor] {
                visit.touches.push(Touch { key: cases, item: Some(case), within });
                visit.touches.push(Touch { key: resources, item: Some(resource), within });
                if reads {
                    visit.touches.push(Touch { key: denied, item: None, within });
                }
            }
            if reads {
                visit.reads = vec![self.case, self.case_version, self.pair, self.customer];
            }
        }
        visit
    }

    /// What a human clears: all that is remembered of those who are named.
    pub(super) fn forget(&self, whose: Whose<'_>) -> Visit {
        let named = |names: &[&str], keys: &[Key]| if names.iter().any(|name| name.is_empty()) { vec![] } else { keys.to_vec() };
        let mut forgets = named(&[whose.case], &[self.case]);
        forgets.extend(named(&[whose.case, whose.agent], &[self.pair]));
        forgets.extend(named(&[whose.customer, whose.agent], &[self.customer]));
        forgets.extend(named(&[whose.agent], &self.agent));
        forgets.extend(named(&[whose.supervisor], &self.supervisor));
        Visit { forgets, ..Visit::default() }
    }

    /// What is added after it.
    pub(super) fn after(&self, risk: &RiskRules, happened: &Happened) -> Visit {
        let mut visit = Visit::default();
        let add = |key: Key, name: &str| {
            let factor = risk.factor(name)?;
            Some(Note { key, name: name.into(), change: Change::Add { step: factor.micros(), reach: factor.reach() } })
        };
        if happened.probing && happened.hostile {
            // What the text did, the agent is not held to account for elsewhere.
            visit.notes.extend(add(self.customer, PROVOKED_DENIALS));
        } else if happened.probing {
            let within = risk.probing.micros();
            let [_, _, denied] = self.items;
            for [_, _, key] in [self.agent, self.supervisor] {
                visit.touches.push(Touch { key, item: Some(denied), within });
            }
        }
        if !happened.reads_case {
            return visit;
        }
        if happened.probing && !happened.hostile {
            visit.notes.extend(add(self.pair, DENIALS));
        }
        visit.notes.extend(happened.kinds.iter().filter_map(|kind| add(self.case, kind)));
        for (name, _) in [(SCREENED, happened.screened), (UNSCREENED, happened.unscreened)].into_iter().filter(|(_, is)| *is) {
            let change = Change::For(i64::from(risk.screening_minutes) * 60_000_000);
            visit.notes.push(Note { key: self.case_version, name: name.into(), change });
        }
        visit
    }
}

/// What came of a call, as far as it is remembered.
#[derive(Clone, Debug, Default)]
pub(super) struct Happened {
    pub(super) probing: bool,
    pub(super) hostile: bool,
    pub(super) reads_case: bool,
    pub(super) kinds: Vec<String>,
    pub(super) screened: bool,
    pub(super) unscreened: bool,
}

impl Pdp {
    /// What is known of a call that passed the gates. Counts it in the windows that cover it.
    pub(super) async fn recall(&self, moment: &Moment, chain: &Chain, call: &Call, action: &Action) -> Signals {
        let bundle = &moment.snapshot.bundle;
        let screened = bundle.rules.phrases.screen(&call.untrusted);
        let places = Places::of(&self.options.environment, Whose::of(&call.case.tenant, chain, call));
        let takes = limits::takes(&bundle.rules.rates, action, places.tenant, |per| per.of(chain, call).to_owned());
        let reads = ["findings", "risk", "screening"].into_iter().any(|member| bundle.policies.reads(&call.action, member));
        let visit = places.before(bundle.rules.risk.as_ref(), reads, takes.iter().map(|(_, take)| *take).collect());
        let sums = self.full_sums(moment, chain, call, action).await;
        let (Ok(visited), Ok(sums)) = (self.visit(places.tenant, moment, &visit).await, sums) else {
            return self.worst(moment, places.tenant, screened, action);
        };
        let mut signals = Signals { screened, ..Signals::default() };
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
        }
    }

    /// Adds what came of a call: of one that passed the gates to its case, of every one to its agent and human.
    pub(super) async fn remember(&self, moment: &Moment, chain: &Chain, call: &Call, denied: Option<crate::model::answer::Reason>, signals: &mut Signals) {
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
        let places = Places::of(&self.options.environment, Whose::of(&tenant, chain, call));
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
