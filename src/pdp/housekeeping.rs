//! Periodic work beside requests: noting the log's head, expiring and ending approvals, recording outbox
//! entries, and removing old data.

use std::time::Duration;

use crate::audit::events::{self, Actor, Happened};
use crate::model::approval::Approval;
use crate::pdp::{Pdp, kept_bundles};

impl Pdp {
    /// Notes the head of the audit log outside of the log, so that a start detects lost lines. Call it every
    /// second.
    pub async fn note_head(&self) {
        let Some(head) = self.audit.head().filter(|head| self.replica.head().as_ref() != Some(head)) else { return };
        // Note the head in the store first, because once it is in the replica's file it is not noted again. A
        // failure of the store is logged there.
        let in_store = self.store.note_head(head.clone()).await;
        match self.replica.note_head(&head) {
            Err(error) => {
                tracing::error!(name: "audit.head_not_noted", error = %error, "a restart might not detect that the log lost lines")
            }
            Ok(()) if in_store.is_err() => {
                tracing::warn!(name: "audit.head_not_in_store", "this head was not noted in the state store; the next one will be")
            }
            Ok(()) => {}
        }
    }

    /// Sends the head of the audit log to the witness. Returns false if the witness did not accept it. Call
    /// it every few seconds.
    pub async fn tell_witness(&self) -> bool {
        let (Some(witness), Some(head)) = (&self.witness, self.audit.head()) else { return true };
        let told = witness.append(self.replica.id(), self.audit.log(), &head, &self.clock.now().to_string()).await;
        if let Err(error) = &told {
            self.telemetry.metrics.witness_failed();
            tracing::error!(name: "audit.witness_not_told", error = %error, "the witness did not accept the head of the audit log");
        }
        told.is_ok()
    }

    /// Lets approvals expire, and records outbox entries that were left unrecorded. Call it every second.
    pub async fn sweep(&self) {
        let now = self.clock.now();
        self.telemetry.metrics.store_failures(self.store.failures());
        self.telemetry.metrics.windows_entries(self.risk.entries());
        self.risk.send_unsent().await;
        if !self.audit.healthy() || self.replicas.is_skewed() {
            return;
        }
        // The store logs and counts its failures; the next call tries again.
        if let Ok(all_moved) = self.store.expire(now, expired).await {
            for moved in all_moved {
                self.recorder.record_moved(now, &moved).await;
            }
        }
        self.recorder.end_halted(now).await;
        if let Ok(left) = self.store.left(now).await {
            for left in left {
                // An entry of a request of this process is skipped, because the request records it, until the
                // request has given up.
                if self.recorder.drain_entry(&left).await.is_err() && !self.audit.healthy() {
                    break;
                }
            }
        }
        if let Ok(pending) = self.store.pending().await {
            self.telemetry.metrics.pending(pending);
        }
    }

    /// Removes data that no request can use any more. Call it every few minutes.
    pub async fn purge(&self) {
        self.risk.purge(self.clock.now());
        if self.replicas.is_skewed() {
            return;
        }
        let now = self.clock.now();
        let kept = Duration::from_secs(u64::from(self.options.evidence_days) * 24 * 3600);
        // The store logs its own failures.
        let _purged = self.store.purge(now, kept).await;
        if self.options.log_days > 0 {
            self.audit.trim(now.minus(Duration::from_secs(u64::from(self.options.log_days) * 24 * 3600)), now);
        }
        let in_force = self.active.snapshot().bundle.version.digest.clone();
        let purged = tokio::task::block_in_place(|| {
            self.audit.purge_evidence(now.minus(kept))?;
            kept_bundles::purge(self.audit.folder(), &in_force, now, kept)
        });
        if let Err(error) = purged {
            tracing::warn!(name: "audit.evidence_not_deleted", error = %error, "old evidence can't be deleted; its keys are");
        }
    }
}

fn expired(approval: &Approval) -> serde_json::Value {
    events::about(Happened::Expired, &Actor::server(), approval, &[])
}
