//! What is done beside requests: expiry, what a halt ends, and the records that transitions left in the outbox.

use crate::approvals::store::transitions::Transition;
use crate::audit::events::{self, Actor};
use crate::model::approval::Approval;
use crate::model::time::Timestamp;
use crate::pdp::Pdp;

impl Pdp {
    /// To be called every second: notes the head of the audit log outside of the log, so that a start sees whether the log lost its end.
    pub async fn note_head(&self) {
        let Some(head) = self.audit.head().filter(|head| self.replica.head().as_ref() != Some(head)) else { return };
        // The store first: what stands in the replica's file is not noted again. A store that fails is logged there.
        let in_store = self.store.note_head(head.clone()).await;
        match self.replica.note_head(&head) {
            Err(error) => tracing::error!(name: "audit.head_not_noted", error = %error, "a restart might not see that the log lost lines"),
            Ok(()) if in_store.is_err() => tracing::warn!(name: "audit.head_not_in_store", "the next head is noted there"),
            Ok(()) => {}
        }
    }

    /// To be called every few seconds: tells the witness the head of the audit log. Returns whether there is a witness and it was told.
    pub async fn tell_witness(&self) -> bool {
        let (Some(witness), Some(head)) = (&self.witness, self.audit.head()) else { return true };
        let told = witness.append(self.replica.id(), self.audit.log(), &head, &self.clock.now().to_string()).await;
        if let Err(error) = &told {
            self.telemetry.metrics.witness_failed();
            tracing::error!(name: "audit.witness_not_told", error = %error, "the witness of the audit log does not take its head");
        }
        told.is_ok()
    }

    /// To be called every second: lets approvals expire, and records what was left unrecorded.
    pub async fn sweep(&self) {
        let now = self.clock.now();
        self.telemetry.metrics.store_failures(self.store.failures());
        self.telemetry.metrics.windows_entries(self.risk_store.entries());
        self.send_unsent().await;
        if !self.audit.healthy() || self.is_skewed() {
            return;
        }
        // Failures are logged and counted by the store; the next second tries again.
        for moved in self.store.expire(now, expired).await.unwrap_or_default() {
            self.record_moved(now, &moved).await;
        }
        self.end_halted(now).await;
        if let Ok(left) = self.store.left(now).await {
            for left in left {
                // What a request of this process left, that request records, unless it gave up.
                if self.drain_entry(&left).await.is_err() && !self.audit.healthy() {
                    break;
                }
            }
        }
        if let Ok(pending) = self.store.pending().await {
            self.telemetry.metrics.pending(pending);
        }
    }

    /// Ends the approvals of who is stopped, and records that. What can't be ended now, the next sweep ends; it can't be used before.
    pub(super) async fn end_halted(&self, now: Timestamp) {
        // A store that does not answer is logged there.
        while let Ok(Some(moved)) = self.store.end_halted(now, ended_by_signal).await {
            for moved in moved {
                self.record_moved(now, &moved).await;
            }
        }
    }

    /// Records a transition that no request waits for.
    async fn record_moved(&self, now: Timestamp, moved: &Transition) {
        if let Ok(Some(left)) = self.store.outbox_entry(moved.revision.number).await {
            // What can't be recorded now, the next sweep records.
            let _recorded = self.record_entry(now, &left.revision, left.record).await;
        }
    }

    /// To be called now and then: removes what nobody can ask for any more.
    pub async fn purge(&self) {
        self.risk_store.purge(self.clock.now());
        if self.is_skewed() {
            return;
        }
        // A store that does not answer is logged there.
        let _purged = self.store.purge(self.clock.now()).await;
    }
}

fn expired(approval: &Approval) -> serde_json::Value {
    events::event("approval.expired", &Actor::server(), Some(approval), &[])
}

fn ended_by_signal(approval: &Approval) -> serde_json::Value {
    events::event("approval.ended", &Actor::server(), Some(approval), &[("because", "signal".into())])
}
