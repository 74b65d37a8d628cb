//! Durable records: of answers, of events, and of the transitions that the state store committed with an outbox entry.

use crate::approvals::store::outbox::TAKE_OVER;
use crate::approvals::store::transitions::{OutboxEntry, Revision};
use crate::audit::record::{DecisionRecord, Record, RecordMetadata};
use crate::audit::{AuditDown, Receipt, Recorded, events};
use crate::entropy::nonce;
use crate::model::answer::Answer;
use crate::model::refusal::Refusal;
use crate::model::time::Timestamp;
use crate::pdp::Pdp;
use crate::pdp::origin::Origin;
use crate::pdp::refused::Refused;
use crate::pdp::snapshot::Moment;

impl Pdp {
    pub(super) fn record_metadata(&self, origin: &Origin) -> Result<RecordMetadata, Refusal> {
        let nonce = nonce(self.entropy.as_ref())?;
        Ok(RecordMetadata { nonce, trace_id: origin.trace.id(), purpose: origin.purpose.name() })
    }

    /// Makes an answer's record durable.
    pub(super) async fn record(&self, moment: &Moment, answer: Answer, record: DecisionRecord) -> Result<Recorded<Answer>, Refused> {
        Ok(self.audit.append(moment.now, Record::Decision(Box::new(record))).await?.seal(answer))
    }

    /// Records an event that no transition of the state store belongs to.
    ///
    /// # Errors
    /// UNAVAILABLE, when the log or the random source fails.
    pub(super) async fn record_event(&self, now: Timestamp, event: serde_json::Value) -> Result<Receipt, Refusal> {
        let nonce = nonce(self.entropy.as_ref())?;
        Ok(self.audit.append(now, events::stored(event, None, nonce)).await?)
    }

    /// Makes the record of a transition durable, and notes where it stands.
    pub(super) async fn record_entry(&self, now: Timestamp, revision: &Revision, record: serde_json::Value) -> Result<Receipt, AuditDown> {
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

    /// Records a row that nobody is about to record: of an earlier start of this replica, of a request that gave up, or of a replica
    /// that is gone. What the own log has already is not recorded twice.
    pub(super) async fn drain_entry(&self, left: &OutboxEntry) -> Result<(), AuditDown> {
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
        let Ok(Some(left)) = self.store.outbox_entry(left.revision.number).await else { return Ok(()) };
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
                None => self.record_entry(now, &left.revision, left.record).await.map(|_| ()),
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
        self.record_entry(now, &left.revision, record).await.map(|_| ())
    }

    /// Records what this replica left before it was started. No request is taken before.
    pub(super) async fn drain_at_start(&self, now: Timestamp) -> Result<(), AuditDown> {
        // A store that does not answer now is swept later.
        for left in self.store.left(now).await.unwrap_or_default() {
            if self.store.is_earlier_own(&left) {
                match self.drain_entry(&left).await {
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
}
