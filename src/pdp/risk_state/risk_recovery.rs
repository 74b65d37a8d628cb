//! Rebuilds the risk store by replaying the audit log: in process at every start, on Redis after a loss of
//! data. Until the rebuild ends, and on Redis for a recovery period, calls are evaluated with worst-case
//! values.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::approvals::store::windows::{Generation, Settling, Written};
use crate::audit::replay::Line;
use crate::model::answer::Reason;
use crate::model::time::Timestamp;
use crate::pdp::redacted_values::{PREPARED, context_key, repeat, repeats_key, values_key};
use crate::pdp::risk_state::risk_keys::{CallOutcome, RiskKeys, RiskSubject};
use crate::pdp::risk_state::{RiskState, rate_limits};
use crate::pdp::snapshot::Moment;
use crate::rates::Per;
use crate::risk::{APPROVALS_DENIED, is_probing};
use crate::risk_store::redis::{Looked, Redis};
use crate::risk_store::{Batch, BatchResult, Change, Key, RiskStore, RiskStoreError, Tenant, Update};

/// Maximum number of tenants whose writes are noted at once.
const WRITTEN_MAX: usize = 1000;

/// Time that a start waits for the rebuild. After that, the rebuild continues while calls are served with
/// worst-case values.
const START: Duration = Duration::from_secs(5);

impl RiskState {
    /// Replays what happened before this start: in process always; for Redis only if updates were still
    /// unsent.
    pub(in crate::pdp) async fn rebuild(self: &Arc<Self>) {
        if matches!(self.risk_store, RiskStore::Redis(_)) && !self.replica.has_unsent() {
            return;
        }
        self.backlog.rebuilding.store(true, Ordering::Release);
        let state = Arc::clone(self);
        let reading = tokio::spawn(async move {
            state.replay(None).await;
            state.backlog.rebuilding.store(false, Ordering::Release);
        });
        if tokio::time::timeout(START, reading).await.is_err() {
            tracing::warn!(name: "windows.rebuilding", "the risk store is still being rebuilt from the audit log: worst-case values are used until then");
        }
    }

    /// Replaces a tenant's generation on Redis after a loss, or adopts the one that another replica made.
    pub(in crate::pdp) async fn recover(&self, tenant: Tenant, moment: &Moment) -> Result<(), RiskStoreError> {
        let RiskStore::Redis(server) = &self.risk_store else { return Err(RiskStoreError::Lost) };
        let unreachable = |what: &str| RiskStoreError::Unreachable(what.to_owned());
        let recovering = tokio::time::timeout(server.timeout(), self.backlog.recovering.lock()).await;
        let _recovering = recovering.map_err(|_| unreachable("another recovery is under way"))?;
        if server.knows(tenant) {
            return Ok(());
        }
        // Read the state store before Redis. Otherwise a generation that another replica adopts in between
        // would look lost.
        let before = self
            .store
            .adopted_generation(tenant.tag())
            .await
            .map_err(|_| unreachable("the state store does not answer"))?;
        let written =
            self.store.written(tenant.tag()).await.map_err(|_| unreachable("the state store does not answer"))?;
        let boots: Vec<&str> = written.iter().map(|written| written.boot.as_str()).chain([server.boot()]).collect();
        let looked = server.look(tenant, &boots).await?;
        let lost = server
            .lost(tenant)
            .or_else(|| looked.found.clone().filter(|found| is_behind(server, tenant, found, &written, &looked)));
        let was_lost = lost.is_some();
        let id = crate::entropy::nonce(self.entropy.as_ref()).map_err(|_| unreachable("no random source"))?;
        let fresh = Generation { id: id.clone(), whole_from: moment.now.plus(moment.snapshot.bundle.rules.recovery()) };
        let settling = Settling { tenant: tenant.tag(), before, found: looked.found.clone(), lost, fresh };
        let settled =
            self.store.generation(settling).await.map_err(|_| unreachable("the state store does not answer"))?;
        server.adopt(tenant, &settled.id, looked.found.as_deref()).await?;
        let adopted = self.store.adopted(tenant.tag(), settled.id.clone()).await;
        adopted.map_err(|_| unreachable("the state store does not answer"))?;
        server.use_from_now_on(tenant, &settled.id);
        if was_lost || settled.whole_from > moment.now {
            // Every replica replays its own log, also one that was idle while another replica replaced the
            // generation.
            self.backlog.replays.lock().unwrap_or_else(PoisonError::into_inner).push(tenant);
        }
        if settled.whole_from > moment.now {
            self.backlog.worst_until(tenant, settled.whole_from);
            tracing::error!(name: "windows.lost", until = %settled.whole_from, "the risk store lost data: worst-case values are used until then");
        }
        Ok(())
    }

    /// Checks whether Redis answers, and notes in the state store how many writes it acknowledged. Call it
    /// every second.
    pub(in crate::pdp) async fn watch_windows(&self) {
        let RiskStore::Redis(server) = &self.risk_store else { return };
        let now = self.clock.now();
        let looked = server.look(Tenant::of(&self.options.environment, ""), &[]).await;
        self.backlog.reached(!matches!(looked, Err(RiskStoreError::Unreachable(_))), now);
        if let Ok(looked) = looked {
            self.telemetry.metrics.clock_skew("windows", now.micros().saturating_sub(looked.clock.micros()));
        }
        self.note_written().await;
    }

    /// Notes in the state store how many writes Redis acknowledged, because Redis can't detect that it lost
    /// some.
    pub(in crate::pdp) async fn note_written(&self) {
        let RiskStore::Redis(server) = &self.risk_store else { return };
        let unnoted = server.unnoted(WRITTEN_MAX);
        if unnoted.is_empty() {
            return;
        }
        let written = unnoted.iter().map(|(tenant, generation, writes)| Written {
            tenant: tenant.tag(),
            boot: server.boot().to_owned(),
            generation: generation.clone(),
            writes: *writes,
        });
        // The store logs its own failures; the next call tries again.
        if self.store.note_written(written.collect()).await.is_ok() {
            unnoted.iter().for_each(|(tenant, generation, writes)| server.noted(*tenant, generation, *writes));
        }
    }

    /// Checks each tenant's generation on Redis, so that idle replicas detect a loss, too, and an eviction
    /// policy that was set since. Call it every ten seconds.
    pub(in crate::pdp) async fn tend_windows(&self) {
        let RiskStore::Redis(server) = &self.risk_store else { return };
        let moment = self.active.moment();
        for tenant in server.tenants() {
            if server.check(tenant).await.is_err() {
                // If this fails, the next call tries again.
                let _recovered = self.recover(tenant, &moment).await;
            }
        }
    }

    /// Replays this replica's log for tenants whose data Redis lost. Call it every second.
    pub(in crate::pdp) fn replay_lost(self: &Arc<Self>) {
        let lost = std::mem::take(&mut *self.backlog.replays.lock().unwrap_or_else(PoisonError::into_inner));
        for tenant in lost {
            let state = Arc::clone(self);
            tokio::spawn(async move { state.replay(Some(tenant)).await });
        }
    }

    /// Replays the log for one tenant or for all. If that fails, worst-case values apply for the recovery
    /// period.
    async fn replay(self: &Arc<Self>, only: Option<Tenant>) {
        let moment = self.active.moment();
        let until = moment.now.plus(moment.snapshot.bundle.rules.recovery());
        match (self.say_again(&moment, only).await, only) {
            (Ok(lost), _) => {
                lost.iter().for_each(|tenant| self.backlog.worst_until(*tenant, until));
                if only.is_none() && lost.is_empty() {
                    self.replica.note_unsent(false);
                }
            }
            (Err(error), only) => {
                tracing::error!(name: "windows.not_rebuilt", error = %error, until = %until, "the risk store could not be rebuilt: worst-case values are used until then");
                match only {
                    Some(tenant) => self.backlog.worst_until(tenant, until),
                    None => self.backlog.all_worst_until(until),
                }
            }
        }
    }

    /// Replays the log. Returns the tenants for which something could not be written.
    async fn say_again(self: &Arc<Self>, moment: &Moment, only: Option<Tenant>) -> io::Result<HashSet<Tenant>> {
        // Leave out what a human cleared later. The deletion itself is not replayed, because it could remove
        // newer entries of other replicas.
        let mut cleared: HashMap<Key, Timestamp> = HashMap::new();
        let (mut lines, reading) = self.read_back(moment);
        while let Some((at, line)) = lines.recv().await {
            let forgotten = self.visits_of(moment, &line).into_iter().flat_map(|(_, batch)| batch.deletes);
            cleared.extend(forgotten.map(|key| (key, at)));
        }
        reading.await.map_err(io::Error::other)??;
        let mut lost = HashSet::new();
        let (mut lines, reading) = self.read_back(moment);
        while let Some((at, line)) = lines.recv().await {
            let counts = |key: &Key| cleared.get(key).is_none_or(|cleared_at| at > *cleared_at);
            for (tenant, mut batch) in self.visits_of(moment, &line) {
                batch.deletes.clear();
                batch.updates.retain(|update| counts(&update.key));
                batch.observations.retain(|observation| counts(&observation.key));
                let wanted = only.is_none_or(|only| only == tenant) && !batch.is_empty() && !lost.contains(&tenant);
                if wanted && self.tell(tenant, at, &batch).await.is_err() {
                    lost.insert(tenant);
                }
            }
        }
        reading.await.map_err(io::Error::other)??;
        Ok(lost)
    }

    /// Streams the log's lines, as far back as anything counts.
    fn read_back(self: &Arc<Self>, moment: &Moment) -> (mpsc::Receiver<(Timestamp, Line)>, JoinHandle<io::Result<()>>) {
        let since = moment.now.minus(Duration::from_micros(moment.snapshot.bundle.rules.longest().unsigned_abs()));
        let (sender, lines) = mpsc::channel(1024);
        let state = Arc::clone(self);
        // An error means that the receiver is gone and needs no more lines.
        (
            lines,
            tokio::task::spawn_blocking(move || {
                state.audit.replay(since, |at, line| drop(sender.blocking_send((at, line))))
            }),
        )
    }

    /// Converts a line of the log to the batches that it caused.
    fn visits_of(&self, moment: &Moment, line: &Line) -> Vec<(Tenant, Batch)> {
        let environment = &self.options.environment;
        match line.r#type.as_str() {
            "refusal" => self.visits_of_decision(moment, line),
            "decision" => {
                let mut batches = self.visits_of_decision(moment, line);
                batches.extend(told_of_texts(moment, environment, line));
                batches
            }
            "redactions" => {
                let (tenant, micros) =
                    (Tenant::of(environment, line.case("tenant")), moment.snapshot.retention_micros());
                let key = values_key(tenant, line.case("id"));
                let update = |name: &String| Update { key, name: name.into(), change: Change::For(micros) };
                vec![(tenant, Batch { updates: line.values.iter().map(update).collect(), ..Batch::default() })]
            }
            "approval.reviewed" if line.decision == "deny" => {
                denied_approval(moment, environment, line.case("tenant"), line.case("id")).into_iter().collect()
            }
            "risk.cleared" => {
                let cleared = &line.cleared;
                let subject = RiskSubject {
                    case: &cleared.case,
                    customer: &cleared.customer,
                    agent: &cleared.agent,
                    supervisor: &cleared.supervisor,
                    ..RiskSubject::nobody(&cleared.tenant)
                };
                let keys = RiskKeys::of(environment, subject);
                vec![(keys.tenant, keys.forget(subject, moment.snapshot.tool_services().iter().map(String::as_str)))]
            }
            _ => vec![],
        }
    }

    fn visits_of_decision(&self, moment: &Moment, line: &Line) -> Vec<(Tenant, Batch)> {
        let bundle = &moment.snapshot.bundle;
        let Some(roles) = &bundle.roles else { return vec![] };
        let risk = bundle.rules.risk.as_ref();
        let Some(tenant) = bundle.policies.tenant_of(&roles.agent, &line.chain.agent) else { return vec![] };
        let subject = RiskSubject {
            tenant: &tenant,
            case: line.case("id"),
            case_version: line.case("version"),
            customer: line.case("customer"),
            agent: &line.chain.agent,
            supervisor: &line.chain.supervisor,
            tool_service: &line.caller.tool_service,
            action: if bundle.policies.shapes.actions.contains_key(&line.action) { &line.action } else { "" },
            resource: (&line.resource.r#type, &line.resource.id),
        };
        let keys = RiskKeys::of(&self.options.environment, subject);
        let mut batches = vec![];
        if let Some(action) = bundle.policies.shapes.actions.get(&line.action).filter(|_| line.signals.counted) {
            let per = |per: Per| match per {
                Per::Action => line.action.clone(),
                Per::Agent => line.chain.agent.clone(),
                Per::Case => line.case("id").to_owned(),
                Per::Customer => line.case("customer").to_owned(),
                Per::Resource => line.resource.id.clone(),
                Per::Supervisor => line.chain.supervisor.clone(),
                Per::Tenant => line.case("tenant").to_owned(),
                Per::ToolService => line.caller.tool_service.clone(),
            };
            let denied = line.decision == "deny";
            let acquires = rate_limits::acquires(&bundle.rules.rates, action, keys.tenant, per).into_iter();
            let counted = acquires.filter(|(_, rate, _)| rate.denied || !denied).map(|(_, _, acquire)| acquire);
            let mut batch = keys.before(risk, false, counted.collect());
            batch.observations.extend(
                rate_limits::observations(&bundle.rules.rates, action, keys.tenant, per)
                    .into_iter()
                    .map(|(_, observation)| observation),
            );
            batches.push((keys.tenant, batch));
        }
        let Some(risk) = risk.filter(|_| line.signals.remembered) else { return batches };
        let stopped = ["halt", "rate", "state"].contains(&line.gate.as_str());
        let supervisor = bundle.policies.tenant_of(&roles.supervisor, &line.chain.supervisor);
        let happened = CallOutcome {
            supervised: supervisor.as_ref() == Some(&tenant),
            // Redis keys use the customer's id, and the log contains only its digest, so denials after
            // hostile text can't be replayed into Redis.
            probing: !stopped
                && (line.purpose != "evaluate_output" || !line.output.entitled || line.signals.unsafe_draft)
                && (line.r#type == "refusal" || Reason::from_name(&line.reason).is_some_and(is_probing))
                && !(line.signals.hostile && matches!(self.risk_store, RiskStore::Redis(_))),
            hostile: line.signals.hostile,
            reads_case: line.signals.reads_case,
            kinds: line.signals.found.clone(),
            unsafe_draft: line.signals.unsafe_draft,
            screened: line.signals.screened && !line.case("version").is_empty(),
            unscreened: line.signals.unscreened,
        };
        batches.push((keys.tenant, keys.after(risk, &happened)));
        batches
    }

    /// Executes a batch at this instant, which may be past. If the tenant's data was lost, it is recovered
    /// first.
    pub(in crate::pdp) async fn tell(
        &self,
        tenant: Tenant,
        at: Timestamp,
        batch: &Batch,
    ) -> Result<BatchResult, RiskStoreError> {
        match self.risk_store.batch(tenant, at, batch).await {
            Err(RiskStoreError::Lost) => {
                self.recover(tenant, &self.active.moment()).await?;
                self.risk_store.batch(tenant, at, batch).await
            }
            result => result,
        }
    }
}

/// Returns whether Redis lacks acknowledged writes to this generation: those that processes noted in the
/// state store, and those of this process.
fn is_behind(server: &Redis, tenant: Tenant, found: &str, written: &[Written], looked: &Looked) -> bool {
    let noted = written.iter().map(|written| if written.generation == found { written.writes } else { 0 });
    noted.chain([server.writes(tenant, found)]).zip(&looked.counts).any(|(noted, count)| *count < noted)
}

/// Returns what a prepared context or an evaluated draft adds to the memory of its case's texts.
fn told_of_texts(moment: &Moment, environment: &str, line: &Line) -> Option<(Tenant, Batch)> {
    let (tenant, case, micros) =
        (Tenant::of(environment, line.case("tenant")), line.case("id"), moment.snapshot.retention_micros());
    let update = match (line.purpose.as_str(), line.decision.as_str()) {
        ("prepare_context", "allow") => {
            let key = context_key(tenant, case, &line.evaluation_id, &line.context.secret);
            Update { key, name: PREPARED.into(), change: Change::For(micros) }
        }
        ("evaluate_output", _) if line.output.repeats => repeat(repeats_key(tenant, case), &line.evaluation_id, micros),
        _ => return None,
    };
    Some((tenant, Batch { updates: vec![update], ..Batch::default() }))
}

/// Returns what a denied approval adds to the memory of its case.
pub(in crate::pdp) fn denied_approval(
    moment: &Moment,
    environment: &str,
    tenant: &str,
    case: &str,
) -> Option<(Tenant, Batch)> {
    let factor = moment.snapshot.bundle.rules.risk.as_ref()?.factor(APPROVALS_DENIED)?;
    let keys = RiskKeys::of(environment, RiskSubject { case, ..RiskSubject::nobody(tenant) });
    let change = Change::Add { step: factor.micros(), reach: factor.reach() };
    let update = Update { key: keys.case, name: APPROVALS_DENIED.into(), change };
    Some((keys.tenant, Batch { updates: vec![update], ..Batch::default() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_without_the_members_of_a_decision_is_read_as_empty() {
        let line: Line =
            serde_json::from_str(r#"{"ts":"2026-03-02T09:00:00Z","type":"server.started"}"#).expect("valid");
        assert_eq!((line.r#type.as_str(), line.case("id")), ("server.started", ""));
    }
}
