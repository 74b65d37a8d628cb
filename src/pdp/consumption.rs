//! Consumes approvals, consents and releases after Cedar permitted the call, reserves sums, and answers the retry of
//! an operation. `tokens.rs` verifies the token before Cedar.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::approvals::binding::call_digest;
use crate::approvals::store::transitions::{Consumed, Consumption, Receipt, Reservation, SingleUse, UsedToken};
use crate::audit::Recorded;
use crate::audit::events::{self, Actor};
use crate::audit::record::{DecisionRecord, Record};
use crate::model::answer::{Answer, Gate, Obligation, Outcome, PolicyVersion, Reason};
use crate::model::approval::{Approval, GivenConsent, State, Subject, UsedApproval};
use crate::model::refusal::Refusal;
use crate::model::roles::Roles;
use crate::model::time::Timestamp;
use crate::model::verdict::Verdict;
use crate::pdp::Pdp;
use crate::pdp::origin::CallInChain;
use crate::pdp::refused::Refused;
use crate::pdp::snapshot::Moment;

/// A retry of an operation that was allowed before.
pub(super) struct Repetition {
    pub(super) by: Actor,
    pub(super) receipt: Receipt,
    /// Amounts that the operation adds to sums.
    pub(super) reservations: Vec<Reservation>,
}

/// Consumption of approvals, consents or releases, or the repetition of an earlier one.
pub(super) enum Use {
    Again(Repetition),
    Now(Actor, Box<Consumption>),
}

impl Use {
    /// Prepares the consumption of all tokens that a call brought.
    pub(super) fn now(
        roles: &Roles,
        CallInChain { caller, chain, call }: CallInChain<'_>,
        tokens: Vec<UsedToken>,
        environment: &str,
        reservations: Vec<Reservation>,
    ) -> Self {
        let owner = roles.case_owner(&call.case);
        let halted =
            [&call.case.tenant, &chain.agent, &chain.supervisor, &call.case.id, owner].map(|id: &str| id.to_owned());
        let consume = Consumption {
            tokens,
            call_digest: call_digest(environment, roles, chain, call),
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

/// Answer of an operation, as its receipt stores it.
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
    /// Absent if no approval was consumed.
    approval: Option<UsedApproval>,
    #[serde(default)]
    consent: Option<GivenConsent>,
    outcome_token: String,
}

/// Returns the approval as an answer shows it.
pub(super) fn used(approval: &Approval) -> UsedApproval {
    let approvers: Vec<Subject> = approval.reviewers().cloned().collect();
    UsedApproval { id: approval.id.clone(), approvers, approved_at: approval.approved_at }
}

impl Pdp {
    /// Consumes, then records, then returns the answer. Only one operation can consume an approval, consent or
    /// release: its retry gets the stored answer, and any other call is denied.
    pub(super) async fn consume(
        &self,
        moment: &Moment,
        using: Use,
        answer: Answer,
        mut record: DecisionRecord,
    ) -> Result<Recorded<Answer>, Refused> {
        let (by, mut consume) = match using {
            Use::Again(repetition) => return self.repeat(moment, repetition, answer, record).await,
            Use::Now(by, consume) => (by, consume),
        };
        if !self.audit.healthy() {
            // A consumption must be recorded, and that is not possible now, so consume nothing.
            return Err(Refused(Refusal::Unavailable("the audit log can't be written: the approval was not consumed")));
        }
        let reservations = consume.reservations.clone();
        let (evaluation_id, action) = (answer.evaluation_id.clone(), record.action().to_owned());
        consume.at = moment.now;
        consume.evaluation_id.clone_from(&evaluation_id);
        consume.answer = serde_json::to_string(&keep(&answer))
            .map_err(|_| Refused(Refusal::Unavailable("the answer could not be stored")))?;
        let entry = serde_json::to_value(Record::Decision(Box::new(record.clone())));
        let entry = entry.map_err(|_| {
            Refused(Refusal::Unavailable("the record could not be serialized: the approval was not consumed"))
        })?;
        consume.record = entry.clone();
        let (tokens, call_digest) = (consume.tokens.clone(), consume.call_digest.clone());
        match self.store.consume(*consume).await {
            Ok(Consumed::Now(revision)) => {
                let receipt =
                    self.recorder.record_with_evidence(moment.now, &revision, entry, record.take_evidence()).await?;
                tokens.iter().for_each(|token| self.telemetry.metrics.approval(token.what.consumed()));
                Ok(receipt.seal(answer))
            }
            Ok(Consumed::Repeated(receipt)) if receipt.call_digest == call_digest => {
                self.repeat(moment, Repetition { by, receipt, reservations }, answer, record).await
            }
            // While this call was evaluated, another call under the same operation id consumed the approval.
            Ok(Consumed::Repeated(_)) => {
                self.denied_late(moment, answer, record, Reason::ApprovalOutOfScope, Gate::Token).await
            }
            Ok(Consumed::Lost) => {
                let reason = self.lost(moment, &tokens).await;
                if self.lost_logged.is_due(moment.now) {
                    let reason = reason.name();
                    tracing::warn!(name: "approval.lost", evaluation_id, action, reason, "another call consumed the approval, consent or release first, or it ended");
                }
                self.denied_late(moment, answer, record, reason, Gate::Token).await
            }
            Ok(Consumed::Full) => self.denied_late(moment, answer, record, Reason::RateLimited, Gate::Rate).await,
            Ok(Consumed::Halted) => self.denied_late(moment, answer, record, Reason::NotPermitted, Gate::Halt).await,
            Err(_) => self.denied_late(moment, answer, record, Reason::StateUnavailable, Gate::State).await,
        }
    }

    /// Reserves the amounts that an allowed call adds to sums, then records, then returns the answer.
    pub(super) async fn reserve(
        &self,
        moment: &Moment,
        reservations: Vec<Reservation>,
        answer: Answer,
        record: DecisionRecord,
    ) -> Result<Recorded<Answer>, Refused> {
        let (reason, gate) = match self.store.reserve(answer.evaluation_id.clone(), reservations, moment.now).await {
            Ok(None) => return self.recorder.record(moment, answer, record).await,
            // Other calls filled a sum while this call was evaluated.
            Ok(Some(_)) => (Reason::RateLimited, Gate::Rate),
            Err(_) => (Reason::StateUnavailable, Gate::State),
        };
        self.denied_late(moment, answer, record, reason, gate).await
    }

    /// Returns the answer of an operation again, after the operation's own record is durable. The repetition
    /// gets a record of its own.
    async fn repeat(
        &self,
        moment: &Moment,
        Repetition { by, receipt, reservations }: Repetition,
        answer: Answer,
        record: DecisionRecord,
    ) -> Result<Recorded<Answer>, Refused> {
        let unreadable = || Refused(Refusal::Unavailable("the operation's answer can't be read"));
        let kept: Kept = serde_json::from_str(&receipt.answer).map_err(|_| unreadable())?;
        // A store that lost writes may lack the reservations of the operation. Those that it has are not
        // added again.
        let full = match reservations.is_empty() {
            true => None,
            false => self
                .store
                .reserve(kept.evaluation_id.clone(), reservations, moment.now)
                .await
                .map_err(|error| Refused(error.into()))?,
        };
        if full.is_some() {
            return self.denied_late(moment, answer, record, Reason::RateLimited, Gate::Rate).await;
        }
        let recorded = self.until_recorded(receipt.revision).await?;
        let mut more =
            vec![("evaluation_id", kept.evaluation_id.clone().into()), ("transition_of", receipt.revision.into())];
        // These members describe the retry.
        more.extend(record.about().map_err(|_| Refused(Refusal::Unavailable("the repetition could not be recorded")))?);
        let event = events::event("operation.repeated", &by, &more);
        let proof = self.recorder.record_event(moment.now, event).await.map_err(Refused)?;
        self.telemetry.metrics.approval("repeated");
        Ok(proof.seal(Answer {
            evaluation_id: kept.evaluation_id,
            evaluated_at: kept.evaluated_at,
            outcome: Outcome { denied: None, obligations: kept.obligations, advice: kept.advice, ..Outcome::default() },
            gate: None,
            display: kept.display,
            call_digest: kept.call_digest,
            policy: kept.policy,
            approval: kept.approval.map(Box::new),
            consent: kept.consent.map(Box::new),
            binding_token: String::new(),
            outcome_token: kept.outcome_token,
            repeats: Some(Box::new(recorded)),
            ..answer
        }))
    }

    /// Waits until the operation's record is durable, and writes it if whoever should do so is gone.
    async fn until_recorded(&self, revision: i64) -> Result<(String, u64), Refused> {
        const PERIOD: Duration = Duration::from_millis(25);
        const TRIES: u32 = 200;
        let unavailable = || Refused(Refusal::Unavailable("the operation's record is not durable yet: try again"));
        for _ in 0..TRIES {
            let left = self.store.outbox_entry(revision).await.map_err(|_| unavailable())?.ok_or_else(unavailable)?;
            if let Some(recorded) = left.recorded {
                return Ok(recorded);
            }
            self.recorder.drain_entry(&left).await.map_err(|_| unavailable())?;
            tokio::time::sleep(PERIOD).await;
        }
        Err(unavailable())
    }

    /// Returns the reason for which tokens that were usable before can't be consumed any more.
    async fn lost(&self, moment: &Moment, tokens: &[UsedToken]) -> Reason {
        let mut reason = Reason::ApprovalUnverifiable;
        for token in tokens {
            if token.what == SingleUse::Release {
                reason = Reason::ApprovalUsed;
                continue;
            }
            match self.store.approval(&token.key.approval).await {
                Ok(Some(approval)) => match approval.state_at(moment.now) {
                    State::Consumed => {
                        self.telemetry.metrics.approval("replayed");
                        return Reason::ApprovalUsed;
                    }
                    State::Revoked => return Reason::ApprovalRevoked,
                    State::Approved | State::Cancelled | State::Denied | State::Expired | State::Pending => {}
                },
                Ok(None) => {}
                Err(_) => return Reason::StateUnavailable,
            }
        }
        reason
    }

    /// Denies a call that Cedar had permitted, because its approval could not be consumed or its sums could
    /// not be reserved.
    async fn denied_late(
        &self,
        moment: &Moment,
        answer: Answer,
        record: DecisionRecord,
        reason: Reason,
        gate: Gate,
    ) -> Result<Recorded<Answer>, Refused> {
        // The evaluation id proves an allow. The transaction may also have committed although it returned an
        // error, and the outbox then holds an allow record under this id. So the denial gets another id,
        // which is not evidence.
        let evaluation_id = self.tokens.evaluation_id(None, false, moment.now).map_err(Refused)?;
        let record = Record::Decision(Box::new(record.denied(reason, gate, &evaluation_id)));
        let proof = self.audit.append(moment.now, record).await?;
        let answer = Answer {
            evaluation_id,
            outcome: Outcome::denied(reason),
            gate: Some(gate),
            verdict: Verdict::default(),
            approval: None,
            consent: None,
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
        consent: answer.consent.as_deref().cloned(),
        outcome_token: answer.outcome_token.clone(),
    }
}
