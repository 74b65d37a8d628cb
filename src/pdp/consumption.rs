//! The use of an approval or a release: consumed after Cedar, recorded, and only then answered. `present.rs` verifies it before.

use crate::approvals::binding::call_digest;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::approvals::store::transitions::{Consumed, Consumption, Receipt, Reservation, SingleUse};
use crate::audit::Recorded;
use crate::audit::events::{self, Actor};
use crate::audit::record::{DecisionRecord, Record};
use crate::model::answer::{Answer, Gate, Obligation, Outcome, PolicyVersion, Reason};
use crate::model::approval::{Approval, State, Subject, UsedApproval};
use crate::model::refusal::Refusal;
use crate::model::time::Timestamp;
use crate::model::verdict::Verdict;
use crate::pdp::Pdp;
use crate::pdp::origin::CallInChain;
use crate::pdp::refused::Refused;
use crate::pdp::snapshot::Moment;
use crate::pdp::tokens::receipt_key;

/// A use of an approval, or the repetition of one.
pub(super) enum Use {
    /// The operation again, and what it adds to sums.
    Again(Actor, Receipt, Vec<Reservation>),
    /// The operation's first use.
    Now(Actor, Box<Consumption>),
}

impl Use {
    /// An operation's first use.
    pub(super) fn now(
        CallInChain { caller, chain, call }: CallInChain<'_>,
        used: (SingleUse, &str, &str),
        environment: &str,
        reservations: Vec<Reservation>,
    ) -> Self {
        let (what, id, generation) = used;
        let halted = [&call.case.tenant, &chain.agent, &chain.supervisor, &call.case.id, call.customer()].map(|id: &str| id.to_owned());
        let consume = Consumption {
            what,
            id: id.to_owned(),
            generation: generation.to_owned(),
            key: receipt_key(caller, call, id),
            call_digest: call_digest(environment, chain, call),
            answer: String::new(),
            record: serde_json::Value::Null,
            halted,
            issued_at: chain.token.issued_at,
            reservations,
            evaluation_id: String::new(),
            at: Timestamp::default(),
        };
        Self::Now(Actor::service(caller), Box::new(consume))
    }
}

/// The answer of an operation, as its receipt keeps it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    evaluation_id: String,
    evaluated_at: Timestamp,
    obligations: Vec<Obligation>,
    advice: Vec<Obligation>,
    display: String,
    call_digest: String,
    policy: PolicyVersion,
    /// Absent when a release was used.
    approval: Option<UsedApproval>,
    outcome_token: String,
}

/// The approval as an answer shows it.
pub(super) fn used(approval: &Approval) -> UsedApproval {
    let approvers: Vec<Subject> = approval.approvers().map(|review| review.reviewer.clone()).collect();
    UsedApproval { id: approval.id.clone(), approvers, approved_at: approval.approved_at }
}

impl Pdp {
    /// Burns, then records, then gives the answer. Whoever comes second is told so.
    pub(super) async fn consume(
        &self,
        moment: &Moment,
        using: Use,
        answer: Answer,
        record: DecisionRecord,
    ) -> Result<Recorded<Answer>, Refused> {
        let (by, mut consume) = match using {
            Use::Again(by, receipt, reservations) => {
                let record = serde_json::to_value(Record::Decision(Box::new(record))).unwrap_or_default();
                return self.repeat(moment, &by, &receipt, reservations, (answer, record)).await;
            }
            Use::Now(by, consume) => (by, consume),
        };
        if !self.audit.healthy() {
            // What is consumed must be recorded, and this could not be.
            return Err(Refused(Refusal::Unavailable("the audit log can't be written: no approval is used")));
        }
        let reservations = consume.reservations.clone();
        let (evaluation_id, action) = (answer.evaluation_id.clone(), record.action().to_owned());
        consume.at = moment.now;
        consume.evaluation_id.clone_from(&evaluation_id);
        consume.answer =
            serde_json::to_string(&keep(&answer)).map_err(|_| Refused(Refusal::Unavailable("the answer could not be kept")))?;
        consume.record = serde_json::to_value(Record::Decision(Box::new(record))).unwrap_or_default();
        let (what, id, call_digest, record) = (consume.what, consume.id.clone(), consume.call_digest.clone(), consume.record.clone());
        match self.store.consume(*consume).await {
            Ok(Consumed::Now(revision)) => {
                let receipt = self.record_entry(moment.now, &revision, record).await?;
                self.telemetry.metrics.approval(if what == SingleUse::Approval { "consumed" } else { "sent" });
                Ok(receipt.seal(answer))
            }
            Ok(Consumed::Repeated(receipt)) if receipt.call_digest == call_digest => {
                self.repeat(moment, &by, &receipt, reservations, (answer, record)).await
            }
            // Another call of the same operation came first, while this one was weighed.
            Ok(Consumed::Repeated(_)) => self.denied_late(moment, answer, record, Reason::ApprovalOutOfScope, Gate::Token).await,
            Ok(Consumed::Lost) => {
                let reason = if what == SingleUse::Approval { self.lost(moment, &id).await } else { Reason::ApprovalUsed };
                if self.lost_logged.is_due(moment.now) {
                    let reason = reason.name();
                    tracing::warn!(name: "approval.lost", evaluation_id, action, reason, "another call used the approval first, or it ended");
                }
                self.denied_late(moment, answer, record, reason, Gate::Token).await
            }
            Ok(Consumed::Full) => self.denied_late(moment, answer, record, Reason::RateLimited, Gate::Rate).await,
            Ok(Consumed::Halted) => self.denied_late(moment, answer, record, Reason::NotPermitted, Gate::Halt).await,
            Err(_) => self.denied_late(moment, answer, record, Reason::StateUnavailable, Gate::State).await,
        }
    }

    /// Reserves what an allowed call adds to sums, then records, then gives the answer.
    pub(super) async fn reserve(
        &self,
        moment: &Moment,
        reservations: Vec<Reservation>,
        answer: Answer,
        record: DecisionRecord,
    ) -> Result<Recorded<Answer>, Refused> {
        let (reason, gate) = match self.store.reserve(answer.evaluation_id.clone(), reservations, moment.now).await {
            Ok(None) => return self.record(moment, answer, record).await,
            // Others came first while this call was weighed.
            Ok(Some(_)) => (Reason::RateLimited, Gate::Rate),
            Err(_) => (Reason::StateUnavailable, Gate::State),
        };
        let record = serde_json::to_value(Record::Decision(Box::new(record))).unwrap_or_default();
        self.denied_late(moment, answer, record, reason, gate).await
    }

    /// The answer of an operation, again: once its record is durable, and by a record of its own.
    async fn repeat(
        &self,
        moment: &Moment,
        by: &Actor,
        receipt: &Receipt,
        reservations: Vec<Reservation>,
        (answer, record): (Answer, serde_json::Value),
    ) -> Result<Recorded<Answer>, Refused> {
        let unreadable = || Refused(Refusal::Unavailable("the operation's answer can't be read"));
        let kept: Kept = serde_json::from_str(&receipt.answer).map_err(|_| unreadable())?;
        // A store that went back may lack what it reserved.
        let full = match reservations.is_empty() {
            true => None,
            false => self.store.reserve(kept.evaluation_id.clone(), reservations, moment.now).await.map_err(|_| unreadable())?,
        };
        if full.is_some() {
            return self.denied_late(moment, answer, record, Reason::RateLimited, Gate::Rate).await;
        }
        let recorded = self.until_recorded(receipt.revision).await?;
        let mut more = vec![("evaluation_id", kept.evaluation_id.clone().into()), ("transition_of", receipt.revision.into())];
        // Those of the call that asks again.
        let about = ["case", "correlation", "trace_id"].into_iter();
        more.extend(about.filter_map(|member| Some((member, record.get(member)?.clone()))));
        let event = events::event("operation.repeated", by, None, &more);
        let nonce = crate::entropy::nonce(self.entropy.as_ref()).map_err(|_| unreadable())?;
        let proof = self.audit.append(moment.now, events::stored(event, None, nonce)).await?;
        self.telemetry.metrics.approval("repeated");
        Ok(proof.seal(Answer {
            evaluation_id: kept.evaluation_id,
            evaluated_at: kept.evaluated_at,
            outcome: Outcome { denied: None, obligations: kept.obligations, advice: kept.advice, missing: None },
            gate: None,
            display: kept.display,
            call_digest: kept.call_digest,
            policy: kept.policy,
            approval: kept.approval.map(Box::new),
            binding_token: String::new(),
            outcome_token: kept.outcome_token,
            repeats: Some(Box::new(recorded)),
            ..answer
        }))
    }

    /// Waits until the operation's record is durable, or records what nobody will record any more.
    async fn until_recorded(&self, revision: i64) -> Result<(String, u64), Refused> {
        const PERIOD: Duration = Duration::from_millis(25);
        const TRIES: u32 = 200;
        let unavailable = || Refused(Refusal::Unavailable("the operation's record is not durable yet: try again"));
        for _ in 0..TRIES {
            let left = self.store.outbox_entry(revision).await.map_err(|_| unavailable())?.ok_or_else(unavailable)?;
            if let Some(recorded) = left.recorded {
                return Ok(recorded);
            }
            self.drain_entry(&left).await.map_err(|_| unavailable())?;
            tokio::time::sleep(PERIOD).await;
        }
        Err(unavailable())
    }

    /// Why an approval that could be used a moment ago can't be any more.
    async fn lost(&self, moment: &Moment, id: &str) -> Reason {
        match self.store.approval(id).await {
            Ok(Some(approval)) => match approval.state_at(moment.now) {
                State::Consumed => {
                    self.telemetry.metrics.approval("replayed");
                    Reason::ApprovalUsed
                }
                State::Revoked => Reason::ApprovalRevoked,
                State::Approved | State::Cancelled | State::Denied | State::Expired | State::Pending => Reason::ApprovalUnverifiable,
            },
            Ok(None) => Reason::ApprovalUnverifiable,
            Err(_) => Reason::StateUnavailable,
        }
    }

    /// A denial that came after Cedar had permitted: the approval was gone when it was to be used.
    async fn denied_late(
        &self,
        moment: &Moment,
        answer: Answer,
        mut record: serde_json::Value,
        reason: Reason,
        gate: Gate,
    ) -> Result<Recorded<Answer>, Refused> {
        // The id says that the call was allowed; and if the store does not answer, it may have been, and have its record. The denial is
        // another evaluation, which is no evidence.
        let evaluation_id = self.evaluation_id(None, false, moment.now).map_err(Refused)?;
        let id = evaluation_id.as_str();
        for (member, value) in [("decision", "deny"), ("reason", reason.name()), ("gate", gate.name()), ("evaluation_id", id)] {
            if let Some(members) = record.as_object_mut() {
                members.insert(member.to_owned(), value.into());
            }
        }
        let proof = self.audit.append(moment.now, Record::Stored(record)).await?;
        let answer = Answer {
            evaluation_id,
            outcome: Outcome::denied(reason),
            gate: Some(gate),
            verdict: Verdict::default(),
            approval: None,
            outcome_token: String::new(),
            ..answer
        };
        Ok(proof.seal(answer))
    }
}

fn keep(answer: &Answer) -> Kept {
    Kept {
        evaluation_id: answer.evaluation_id.clone(),
        evaluated_at: answer.evaluated_at,
        obligations: answer.outcome.obligations.clone(),
        advice: answer.outcome.advice.clone(),
        display: answer.display.clone(),
        call_digest: answer.call_digest.clone(),
        policy: answer.policy.clone(),
        approval: answer.approval.as_deref().cloned(),
        outcome_token: answer.outcome_token.clone(),
    }
}
