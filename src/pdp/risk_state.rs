//! Risk state: what the risk store remembers of cases, agents, supervisors and tenants. A write that fails
//! waits in the backlog; if a read fails, worst-case values are used.

pub(super) mod rate_limits;
pub(super) mod risk_keys;
pub(super) mod risk_recovery;
pub(super) mod risk_signals;
pub(super) mod write_backlog;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::approvals::store::Store;
use crate::approvals::store::replica::Replica;
use crate::audit::Audit;
use crate::entropy::Entropy;
use crate::model::time::Timestamp;
use crate::pdp::risk_state::write_backlog::{BacklogKey, WriteBacklog};
use crate::pdp::services::Services;
use crate::pdp::snapshot::{ActiveBundle, Moment, Options, PdpClock};
use crate::risk_store::{Batch, BatchResult, RiskStore, RiskStoreError, Tenant, Update};
use crate::telemetry::export::Telemetry;
use crate::text_pool::TextPool;

/// The risk store, and how this replica reads, writes and recovers it.
#[derive(Debug)]
pub(super) struct RiskState {
    options: Arc<Options>,
    active: Arc<ActiveBundle>,
    clock: PdpClock,
    entropy: Arc<dyn Entropy>,
    audit: Arc<Audit>,
    store: Arc<Store>,
    replica: Arc<Replica>,
    telemetry: Arc<Telemetry>,
    texts: Arc<TextPool>,
    risk_store: RiskStore,
    backlog: WriteBacklog,
}

impl RiskState {
    pub(super) fn new(services: &Services, active: Arc<ActiveBundle>, risk_store: RiskStore) -> Self {
        Self {
            options: Arc::clone(&services.options),
            active,
            clock: Arc::clone(&services.clock),
            entropy: Arc::clone(&services.entropy),
            audit: Arc::clone(&services.audit),
            store: Arc::clone(&services.store),
            replica: Arc::clone(&services.replica),
            telemetry: Arc::clone(&services.telemetry),
            texts: Arc::clone(&services.texts),
            risk_store,
            backlog: WriteBacklog::default(),
        }
    }

    /// Returns the engine of the risk store.
    pub(super) fn engine(&self) -> &'static str {
        self.risk_store.engine()
    }

    /// Returns the number of entries of the risk store in this process.
    pub(super) fn entries(&self) -> usize {
        self.risk_store.entries()
    }

    /// Removes entries that no longer count.
    pub(super) fn purge(&self, now: Timestamp) {
        self.risk_store.purge(now);
    }

    /// Returns whether the risk store answered recently.
    pub(super) fn is_reached(&self, now: Timestamp) -> bool {
        self.backlog.is_reached(now)
    }

    /// Returns whether the risk store answered recently and has all updates.
    pub(super) fn is_healthy(&self, now: Timestamp) -> bool {
        self.backlog.is_healthy(now)
    }

    /// Executes a batch. Returns an error if the results are incomplete, so that the caller uses worst-case
    /// values.
    pub(super) async fn batch(
        &self,
        tenant: Tenant,
        moment: &Moment,
        batch: &Batch,
    ) -> Result<BatchResult, RiskStoreError> {
        if batch.is_empty() {
            return Ok(BatchResult::default());
        }
        // Execute the batch even while worst-case values apply, because its writes must be there when that
        // time is over.
        let result = self.ask(tenant, moment, batch).await;
        let worst = self.backlog.is_worst_until(tenant, moment.now).is_some();
        let full = self.backlog.is_full(tenant, batch.by, moment.now);
        let result = result.and_then(|result| match () {
            () if worst => Err(RiskStoreError::Lost),
            () if full || result.is_overfull() => Err(RiskStoreError::Full),
            () => Ok(result),
        });
        if let Err(down) = &result {
            self.telemetry.metrics.windows_failed();
            self.backlog.failed_at.fetch_max(moment.now.micros(), Ordering::AcqRel);
            // Count every failure, but log only one per second.
            if self.backlog.logged.is_due(moment.now) {
                tracing::warn!(name: "windows.failed", error = %down, "the risk store can't be used: worst-case values are used");
            }
        }
        result
    }

    /// Executes a batch, and recovers lost data first. Returns an error while past events are replayed or
    /// earlier updates wait in the backlog.
    pub(super) async fn ask(
        &self,
        tenant: Tenant,
        moment: &Moment,
        batch: &Batch,
    ) -> Result<BatchResult, RiskStoreError> {
        if self.backlog.rebuilding.load(Ordering::Acquire) {
            return Err(RiskStoreError::Lost);
        }
        self.backlog.lacks(tenant, batch.by)?;
        self.tell(tenant, moment.now, batch).await
    }

    /// Writes a batch. If that fails, the batch waits in the backlog, and reads fail until it is written.
    pub(super) async fn say(&self, tenant: Tenant, moment: &Moment, batch: Batch) {
        if batch.is_empty() {
            return;
        }
        match self.ask(tenant, moment, &batch).await {
            Ok(_) => {}
            // Only the tool service that filled its part of the table gets worst-case values until the batch
            // is written.
            Err(RiskStoreError::Full) => {
                self.keep_unsent(BacklogKey { tenant, by: batch.by, of_all: false }, moment, batch)
            }
            Err(RiskStoreError::Evicts | RiskStoreError::Lost | RiskStoreError::Unreachable(_)) => {
                self.keep_unsent(BacklogKey { tenant, by: batch.by, of_all: true }, moment, batch);
            }
        }
    }

    /// Adds a batch to the backlog. A note on disk tells the next start that Redis lacks updates. If the
    /// backlog is full, worst-case values apply: for one tool service's part until the batch would have
    /// expired, otherwise for the tenant, with Redis on every replica.
    fn keep_unsent(&self, key: BacklogKey, moment: &Moment, batch: Batch) {
        let Some(batch) = self.backlog.keep(key, moment.now, batch, || self.note_unsent(true)) else { return };
        match &self.risk_store {
            _ if !key.of_all => {
                let longest = batch.updates.iter().map(Update::reach).max().unwrap_or(Duration::ZERO);
                self.backlog.part_worst_until(key, moment.now.plus(longest));
            }
            RiskStore::Redis(server) => server.give_up(key.tenant),
            RiskStore::InProcess(_) => {
                self.backlog.worst_until(key.tenant, moment.now.plus(moment.snapshot.bundle.rules.recovery()))
            }
        }
    }

    /// Notes on disk whether Redis lacks updates.
    fn note_unsent(&self, unsent: bool) {
        if matches!(self.risk_store, RiskStore::Redis(_)) {
            self.replica.note_unsent(unsent);
        }
    }

    /// Writes the batches of the backlog. A batch that fails waits for the next call; it does not block other
    /// tenants, unless Redis is unreachable. Call it every second.
    pub(super) async fn send_unsent(&self) {
        if self.backlog.is_empty() {
            return;
        }
        let Ok(_sending) = self.backlog.sending.try_lock() else { return };
        for whose in self.backlog.keys() {
            // The key stays in the backlog until everything is written, so that no call reads incomplete data
            // before.
            while let Some((at, batch)) = self.backlog.next_unsent(whose) {
                let told = self.tell(whose.tenant, at, &batch).await;
                self.backlog.settle_unsent(whose, told.is_err().then_some((at, batch)), || self.note_unsent(false));
                match told {
                    Ok(_) => {}
                    Err(RiskStoreError::Unreachable(_)) => return,
                    Err(RiskStoreError::Evicts | RiskStoreError::Full | RiskStoreError::Lost) => break,
                }
            }
        }
    }
}
