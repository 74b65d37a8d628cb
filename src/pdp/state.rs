//! What is done beside requests: expiry, what a halt ends, and the records that transitions left in the outbox.

use std::sync::Arc;

use crate::approvals::store::{Left, Revision, StoreError, TAKE_OVER, Transition};
use crate::audit::events::{self, Actor};
use crate::audit::key::DigestKey;
use crate::audit::{AuditDown, Receipt};
use crate::content::values::ValueKey;
use crate::jose::keyring::{Keyring, KeyringError, Purpose};
use crate::model::approval::Approval;
use crate::model::time::Timestamp;
use crate::pdp::{Keys, Pdp};

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
        self.telemetry.metrics.windows_entries(self.windows.entries());
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
                if self.settle_left(&left).await.is_err() && !self.audit.healthy() {
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
        if let Ok(Some(left)) = self.store.left_at(moved.revision.number).await {
            // What can't be recorded now, the next sweep records.
            let _recorded = self.record_left(now, &left.revision, left.record).await;
        }
    }

    /// To be called now and then: removes what nobody can ask for any more.
    pub async fn purge(&self) {
        self.windows.purge(self.clock.now());
        if self.is_skewed() {
            return;
        }
        // A store that does not answer is logged there.
        let _purged = self.store.purge(self.clock.now()).await;
    }

    /// Records what this replica left before it was started. No request is taken before.
    pub(super) async fn finish_left(&self, now: Timestamp) -> Result<(), AuditDown> {
        // A store that does not answer now is swept later.
        for left in self.store.left(now).await.unwrap_or_default() {
            if self.store.is_earlier_own(&left) {
                match self.settle_left(&left).await {
                    Err(down) if !self.audit.healthy() => return Err(down),
                    // One that can't be recorded stops no other; the sweep tries it again.
                    Err(_) => {
                        tracing::error!(name: "store.not_recorded", revision = left.revision.number, "what was left can't be recorded")
                    }
                    Ok(()) => {}
                }
            }
        }
        Ok(())
    }

    /// Records a row that nobody is about to record: of an earlier start of this replica, of a request that gave up, or of a replica
    /// that is gone. What the own log has already is not recorded twice.
    pub(super) async fn settle_left(&self, left: &Left) -> Result<(), AuditDown> {
        let now = self.clock.now();
        let abandoned = match self.store.is_own(left) {
            true => left.at.plus(TAKE_OVER) <= now,
            false => left.gone || left.at.plus(TAKE_OVER) <= now,
        };
        if !abandoned && !self.store.is_earlier_own(left) {
            return Ok(());
        }
        // One at a time: whoever comes second finds it recorded. A store that does not answer now is asked again.
        let _settling = self.settling.lock().await;
        let Ok(Some(left)) = self.store.left_at(left.revision.number).await else { return Ok(()) };
        if left.recorded.is_some() {
            return Ok(());
        }
        if self.store.is_own(&left) || self.store.is_earlier_own(&left) {
            let generation = self.store.seen().generation;
            // Reads segments, which may be large.
            return match tokio::task::block_in_place(|| self.audit.line_of(&generation, left.revision.number, left.at)) {
                Some(line) => {
                    // If it can't be noted now, the next sweep finds it again.
                    let _noted = self.store.recorded(left.revision.number, self.audit.log(), line).await;
                    Ok(())
                }
                None => self.record_left(now, &left.revision, left.record).await.map(|_| ()),
            };
        }
        if !matches!(self.store.take_over(&left).await, Ok(true)) {
            return Ok(());
        }
        let mut record = left.record;
        if let Some(members) = record.as_object_mut() {
            // Its log may have the line, too: the evaluation's id tells that they are one.
            members.insert("left_by".to_owned(), left.replica.into());
        }
        self.record_left(now, &left.revision, record).await.map(|_| ())
    }

    /// Makes the record of a transition durable, and notes where it stands.
    pub(super) async fn record_left(&self, now: Timestamp, revision: &Revision, record: serde_json::Value) -> Result<Receipt, AuditDown> {
        let nonce = crate::entropy::nonce(self.entropy.as_ref()).map_err(|_| AuditDown::Failed)?;
        let generation = self.store.seen().generation;
        let record = events::stored(record, Some((&generation, revision.number, &revision.head)), nonce);
        let receipt = self.audit.append(now, record).await?;
        if let Err(error) = self.store.recorded(revision.number, self.audit.log(), receipt.index().unwrap_or(0)).await {
            // The record is durable, and the answer may leave; a start finds the line by its transition.
            tracing::warn!(name: "store.not_noted", revision = revision.number, error = %error);
        }
        Ok(receipt)
    }

    /// Reads certificates, authorities, issuers' keys and our own again. What is faulty keeps what was there, and is logged.
    pub async fn reload_identity(&self) {
        // Files may be slow, on a network's file system say: other requests go on.
        match tokio::task::block_in_place(|| self.callers.reload()) {
            Ok(true) => tracing::info!(name: "trust.reloaded", "certificates and authorities were read again"),
            Ok(false) => {}
            Err(error) => tracing::error!(name: "trust.not_reloaded", error = %error, "what was trusted before stays"),
        }
        let now = self.clock.now();
        let faults = self.delegations.issuers.refresh(now).await.into_iter().chain(self.transmitters.refresh(now).await);
        for error in faults {
            tracing::error!(name: "issuer.not_reloaded", error = %error, "the keys that are known stay");
        }
        match tokio::task::block_in_place(|| Keys::read(&self.options.keys)) {
            Ok(keys) => self.keys.store(Arc::new(keys)),
            Err(error) => tracing::error!(name: "keys.not_reloaded", error = %error, "the keys that were read before stay"),
        }
    }

    /// The public keys of tokens, as a JWK set (RFC 7517).
    pub fn jwks(&self) -> String {
        let keys = self.keys.load();
        let all: Vec<_> = keys.approval.jwks().into_iter().chain(keys.binding.jwks()).collect();
        let set = crate::json::object([("keys", crate::json::Value::Array(all))]);
        String::from_utf8_lossy(&crate::json::canonical(&set)).into_owned()
    }
}

impl Keys {
    /// The file of the secret by which values are known again.
    pub const VALUES: &str = "values.key";

    /// By what the values of a case are known again: of another case, the same value is another.
    pub fn of_case(&self, tenant: &str, case: &str) -> ValueKey {
        ValueKey::new(self.values.derived(&format!("values\0{tenant}\0{case}")))
    }

    /// Which secret it is, without telling it.
    pub fn values_id(&self) -> String {
        self.values.derived("id").iter().take(4).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Reads the rings of a deployment, and its secret.
    ///
    /// # Errors
    /// When one is missing or damaged, or its current key was revoked.
    pub fn read(folder: &std::path::Path) -> Result<Self, KeyringError> {
        let (approval, binding) = (Keyring::read(folder, Purpose::Approval)?, Keyring::read(folder, Purpose::Binding)?);
        let path = folder.join(Self::VALUES);
        let values = DigestKey::read(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => KeyringError::Missing("value", folder.to_owned()),
            std::io::ErrorKind::InvalidData => KeyringError::Damaged(path),
            _ => KeyringError::Io(path, error),
        })?;
        Ok(Self { approval, binding, values })
    }
}

fn expired(approval: &Approval) -> serde_json::Value {
    events::event("approval.expired", &Actor::server(), Some(approval), &[])
}

fn ended_by_signal(approval: &Approval) -> serde_json::Value {
    events::event("approval.ended", &Actor::server(), Some(approval), &[("because", "signal".into())])
}

/// The store could not be asked.
pub(super) fn unavailable(_: StoreError) -> crate::model::refusal::Refusal {
    crate::model::refusal::Refusal::Unavailable("the state store does not answer: try again")
}
