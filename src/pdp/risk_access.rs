//! Reads and writes of the risk store: what can't be written now waits in the backlog, and what can't be read counts as the worst.

use crate::pdp::write_backlog::BacklogKey;
use std::sync::atomic::Ordering;

use crate::pdp::Pdp;
use crate::pdp::snapshot::Moment;
use crate::risk_store::{Batch, BatchResult, RiskStore, RiskStoreError, Tenant, Update};

impl Pdp {
    /// Asks the windows; what was lost counts as the worst for a while.
    pub(super) async fn batch(&self, tenant: Tenant, moment: &Moment, batch: &Batch) -> Result<BatchResult, RiskStoreError> {
        if batch.is_empty() {
            return Ok(BatchResult::default());
        }
        // They are asked in that time, too: what is said then must be there when they count again.
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
            // Each is counted, and one a second is logged.
            if self.backlog.logged.is_due(moment.now) {
                tracing::warn!(name: "windows.failed", error = %down, "what can't be known counts as the worst");
            }
        }
        result
    }

    /// Asks the windows, and makes them anew when they were lost.
    pub(super) async fn ask(&self, tenant: Tenant, moment: &Moment, batch: &Batch) -> Result<BatchResult, RiskStoreError> {
        if self.backlog.rebuilding.load(Ordering::Acquire) {
            return Err(RiskStoreError::Lost);
        }
        self.backlog.lacks(tenant, batch.by)?;
        self.tell(tenant, moment.now, batch).await
    }

    /// Tells the windows; what they can't be told now, they are told before they are asked again.
    pub(super) async fn say(&self, tenant: Tenant, moment: &Moment, batch: Batch) {
        if batch.is_empty() {
            return;
        }
        match self.ask(tenant, moment, &batch).await {
            Ok(_) => {}
            // Who filled its part of the table gets the worst until it could be said. Nobody else does.
            Err(RiskStoreError::Full) => self.keep_unsent(BacklogKey { tenant, by: batch.by, of_all: false }, moment, batch),
            Err(RiskStoreError::Evicts | RiskStoreError::Lost | RiskStoreError::Unreachable(_)) => {
                self.keep_unsent(BacklogKey { tenant, by: batch.by, of_all: true }, moment, batch);
            }
        }
    }

    /// Keeps what could not be written. A update on disk tells the next start that a server lacks writes. What the backlog has no room
    /// for counts as the worst: for one tool service's part until it would have expired, otherwise for the tenant on every replica.
    fn keep_unsent(&self, key: BacklogKey, moment: &Moment, batch: Batch) {
        if self.backlog.is_empty() && matches!(self.risk_store, RiskStore::Redis(_)) {
            self.replica.note_unsent(true);
        }
        let Err(batch) = self.backlog.keep(key, moment.now, batch) else { return };
        match &self.risk_store {
            _ if !key.of_all => {
                let longest = batch.updates.iter().map(Update::reach).max().unwrap_or_default();
                self.backlog.part_worst_until(key, moment.now.plus(longest));
            }
            RiskStore::Redis(server) => server.give_up(key.tenant),
            RiskStore::InProcess(_) => self.backlog.worst_until(key.tenant, moment.now.plus(moment.snapshot.bundle.rules.recovery())),
        }
    }

    /// To be called every second: tells the windows what they could not be told before. What still can't be told waits on: one tenant's
    /// holds up no other's.
    pub(super) async fn send_unsent(&self) {
        if self.backlog.is_empty() {
            return;
        }
        let Ok(_sending) = self.backlog.sending.try_lock() else { return };
        for whose in self.backlog.keys() {
            // It stays in the list until it is said, so that nobody asks the windows before.
            while let Some((at, batch)) = self.backlog.next_unsent(whose) {
                let told = self.tell(whose.tenant, at, &batch).await;
                let told_all = self.backlog.settle_unsent(whose, told.is_err().then_some((at, batch)));
                if told_all && matches!(self.risk_store, RiskStore::Redis(_)) {
                    self.replica.note_unsent(false);
                }
                match told {
                    Ok(_) => {}
                    Err(RiskStoreError::Unreachable(_)) => return,
                    Err(RiskStoreError::Evicts | RiskStoreError::Full | RiskStoreError::Lost) => break,
                }
            }
        }
    }
}
