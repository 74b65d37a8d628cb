//! Makes records durable: those of answers, of events, and of transitions that the state store committed with
//! an outbox entry.

use std::sync::Arc;

use crate::approvals::store::Store;
use crate::approvals::store::outbox::TAKE_OVER;
use crate::approvals::store::transitions::{OutboxEntry, Revision, Transition};
use crate::audit::events::{self, Actor, Happened};
use crate::audit::record::{DecisionRecord, Record, RecordMetadata, StoredRecord};
use crate::audit::{Audit, AuditDown, Receipt, Recorded};
use crate::clock::Seldom;
use crate::entropy::{Entropy, nonce};
use crate::json::Object;
use crate::model::answer::Answer;
use crate::model::approval::Approval;
use crate::model::call::Call;
use crate::model::refusal::Refusal;
use crate::model::roles::Roles;
use crate::model::time::Timestamp;
use crate::pdp::origin::Origin;
use crate::pdp::refused::Refused;
use crate::pdp::services::Services;
use crate::pdp::snapshot::{Moment, PdpClock};
use crate::policy::Policies;
use crate::policy::shape::Shape;
use crate::sealing::Sealed;

/// Writes records to the audit log, and empties the outbox of the state store into it.
#[derive(Debug)]
pub(super) struct Recorder {
    audit: Arc<Audit>,
    store: Arc<Store>,
    clock: PdpClock,
    entropy: Arc<dyn Entropy>,
    /// Locked while an outbox entry of another request or an earlier start is recorded, so that it is
    /// recorded once.
    settling: tokio::sync::Mutex<()>,
    damaged_logged: Seldom,
}

impl Recorder {
    pub(super) fn new(services: &Services) -> Self {
        Self {
            audit: Arc::clone(&services.audit),
            store: Arc::clone(&services.store),
            clock: Arc::clone(&services.clock),
            entropy: Arc::clone(&services.entropy),
            settling: tokio::sync::Mutex::default(),
            damaged_logged: Seldom::default(),
        }
    }

    pub(super) fn record_metadata(&self, origin: &Origin) -> Result<RecordMetadata, Refusal> {
        let nonce = nonce(self.entropy.as_ref())?;
        Ok(RecordMetadata { nonce, trace_id: origin.trace.id(), purpose: origin.purpose.name() })
    }

    pub(super) async fn record(
        &self,
        moment: &Moment,
        answer: Answer,
        record: DecisionRecord,
    ) -> Result<Recorded<Answer>, Refused> {
        Ok(self.audit.append(moment.now, Record::Decision(Box::new(record))).await?.seal(answer))
    }

    /// Records an event that is not a transition of the state store.
    ///
    /// # Errors
    /// If the log or the random source fails (UNAVAILABLE).
    pub(super) async fn record_event(&self, now: Timestamp, event: serde_json::Value) -> Result<Receipt, Refusal> {
        let nonce = nonce(self.entropy.as_ref())?;
        let record = StoredRecord::read(event).map_err(|_| AuditDown::Failed)?.with_nonce(nonce);
        Ok(self.audit.append(now, Record::Stored(record)).await?)
    }

    /// Makes the record of a transition durable, and notes its line in the outbox.
    pub(super) async fn record_entry(
        &self,
        now: Timestamp,
        revision: &Revision,
        record: serde_json::Value,
    ) -> Result<Receipt, AuditDown> {
        let record = StoredRecord::read(record).map_err(|_| AuditDown::Failed)?;
        self.record_stored(now, revision, record).await
    }

    /// Like [`Self::record_entry`], with the evidence whose digest the record has.
    pub(super) async fn record_with_evidence(
        &self,
        now: Timestamp,
        revision: &Revision,
        record: serde_json::Value,
        sealed: Option<Sealed>,
    ) -> Result<Receipt, AuditDown> {
        let record = StoredRecord::read(record).map_err(|_| AuditDown::Failed)?;
        self.record_stored(now, revision, record.with_evidence(sealed)).await
    }

    async fn record_stored(
        &self,
        now: Timestamp,
        revision: &Revision,
        record: StoredRecord,
    ) -> Result<Receipt, AuditDown> {
        let nonce = nonce(self.entropy.as_ref()).map_err(|_| AuditDown::Failed)?;
        let generation = self.store.seen().generation;
        let record = record.with_nonce(nonce).with_transition(&generation, revision.number, &revision.head);
        let receipt = self.audit.append(now, Record::Stored(record)).await?;
        if let Err(error) = self.store.recorded(revision.number, self.audit.log(), receipt.index().unwrap_or(0)).await {
            // The record is durable, so the answer may leave. A restart finds the line by its transition.
            tracing::warn!(name: "store.not_noted", revision = revision.number, error = %error);
        }
        Ok(receipt)
    }

    /// Records an outbox entry that no request will record any more: of an earlier start of this replica, of
    /// a request that gave up, or of a replica that is gone. An entry that this replica's log already
    /// contains is only noted.
    pub(super) async fn drain_entry(&self, left: &OutboxEntry) -> Result<(), AuditDown> {
        let now = self.clock.now();
        let abandoned = match self.store.is_own(left) {
            true => left.at.plus(TAKE_OVER) <= now,
            false => left.gone || left.at.plus(TAKE_OVER) <= now,
        };
        if !abandoned && !self.store.is_earlier_own(left) {
            return Ok(());
        }
        // Record one entry at a time, so that a concurrent attempt finds it recorded. If the store does not
        // answer now, a later attempt does this.
        let _settling = self.settling.lock().await;
        let Ok(Some(left)) = self.store.outbox_entry(left.revision.number).await else { return Ok(()) };
        if left.recorded.is_some() {
            return Ok(());
        }
        if self.store.is_own(&left) || self.store.is_earlier_own(&left) {
            let generation = self.store.seen().generation;
            // `line_of` reads whole segments, which may be large.
            return match tokio::task::block_in_place(|| self.audit.line_of(&generation, left.revision.number, left.at))
            {
                Some(line) => {
                    // If this fails, the next sweep finds the line again.
                    let _noted = self.store.recorded(left.revision.number, self.audit.log(), line).await;
                    Ok(())
                }
                None => self.record_entry(now, &left.revision, left.record).await.map(|_| ()),
            };
        }
        let Ok(record) = StoredRecord::read(left.record.clone()) else {
            if self.damaged_logged.is_due(now) {
                let revision = left.revision.number;
                tracing::error!(name: "store.entry_damaged", revision, "an outbox entry can't be read: its replica must record it");
            }
            return Ok(());
        };
        if !matches!(self.store.take_over(&left).await, Ok(true)) {
            return Ok(());
        }
        // The log of that replica may contain the line, too. The evaluation id shows that both lines are the
        // same record.
        self.record_stored(now, &left.revision, record.with_left_by(left.replica)).await.map(|_| ())
    }

    /// Records what earlier starts of this replica left in the outbox. No request is served before.
    pub(super) async fn drain_at_start(&self, now: Timestamp) -> Result<(), AuditDown> {
        // If the store does not answer now, a later sweep records the entries.
        let Ok(all_left) = self.store.left(now).await else { return Ok(()) };
        for left in all_left {
            if self.store.is_earlier_own(&left) {
                match self.drain_entry(&left).await {
                    Err(down) if !self.audit.healthy() => return Err(down),
                    // This entry must not block the others; the sweep tries it again.
                    Err(_) => {
                        tracing::error!(name: "store.not_recorded", revision = left.revision.number, "an outbox entry of an earlier start can't be recorded")
                    }
                    Ok(()) => {}
                }
            }
        }
        Ok(())
    }

    /// Ends the approvals of stopped subjects, and records that. An approval that can't be ended now is ended
    /// by the next sweep; it can't be consumed before.
    pub(super) async fn end_halted(&self, now: Timestamp) {
        // The store logs its own failures.
        while let Ok(Some(moved)) = self.store.end_halted(now, ended_by_signal).await {
            for moved in moved {
                self.record_moved(now, &moved).await;
            }
        }
    }

    /// Records a transition that no request waits for.
    pub(super) async fn record_moved(&self, now: Timestamp, moved: &Transition) {
        if let Ok(Some(left)) = self.store.outbox_entry(moved.revision.number).await {
            // If this fails, the next sweep records it.
            let _recorded = self.record_entry(now, &left.revision, left.record).await;
        }
    }
}

/// Returns the arguments of a call that the bundle has recorded as plain text. A value of another type than the schema's is not among
/// them, because the call may be denied before its values are checked.
pub(super) fn recorded_arguments(policies: &Policies, roles: &Roles, call: &Call) -> Object {
    let recorded = roles.recorded.get(&call.action);
    let action = policies.shapes.actions.get(&call.action);
    let (Some(recorded), Some(action)) = (recorded, action) else { return Object::new() };
    let Some(Shape::Record(shapes)) = action.context.get("args").map(|member| &member.shape) else {
        return Object::new();
    };
    let value = |name: &String| {
        let value = call
            .arguments
            .get(name)
            .filter(|value| shapes.get(name).is_some_and(|member| member.shape.fits_without_text(value)));
        Some((name.clone(), value?.clone()))
    };
    recorded.iter().filter_map(value).collect()
}

fn ended_by_signal(approval: &Approval) -> serde_json::Value {
    events::about(Happened::Ended, &Actor::server(), approval, &[("because", "signal".into())])
}
