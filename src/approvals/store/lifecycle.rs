//! Transitions of approvals, and the consumption of approvals and releases. Each is one transaction with a
//! new revision, the change and the outbox entry.

use sqlx::{AnyConnection, Row as _};

use crate::approvals::store::engine::End;
use crate::approvals::store::error::StoreError;
use crate::approvals::store::history::{Writer, next};
use crate::approvals::store::outbox::leave;
use crate::approvals::store::reads::receipt;
use crate::approvals::store::transitions::{
    Consumed, Consumption, Moved, NewApproval, NewReview, Requested, Revision, SingleUse, Transition, UsedToken,
    with_state,
};
use crate::approvals::store::{Store, reads, sums};
use crate::model::approval::{Approval, Review, State};
use crate::model::halt::{Halted, Halts};
use crate::model::number::to_usize;
use crate::model::time::Timestamp;

/// Maximum number of approvals that one sweep expires.
const SWEEP_MAX: i64 = 200;

impl Store {
    /// Requests an approval.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn request(&self, new: NewApproval) -> Result<Requested, StoreError> {
        self.advance(move |connection, writer| Box::pin(async move { request(connection, &writer, new).await })).await
    }

    /// Adds a review, and changes the approval's state if the review decides.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn review(&self, new: NewReview) -> Result<Moved, StoreError> {
        self.advance(move |connection, writer| Box::pin(async move { review(connection, &writer, new).await })).await
    }

    /// Ends an approval that was not consumed: cancels a pending one, revokes an approved one. The record's
    /// `state` is filled in.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn end(
        &self,
        id: String,
        reason: String,
        at: Timestamp,
        record: serde_json::Value,
    ) -> Result<Moved, StoreError> {
        self.advance(move |connection, writer| {
            Box::pin(async move {
                let moved = end(connection, &writer, Ending { id: &id, reason: &reason, at, record }).await?;
                Ok(End::commit_if(matches!(moved, Moved::Done(_)), moved))
            })
        })
        .await
    }

    /// Consumes all tokens of a call once, or none of them. A single statement checks that an approval or consent is
    /// approved, of this generation and not expired, and marks it as consumed.
    ///
    /// # Errors
    /// When the store does not answer. They may have been consumed even so; the receipt shows it.
    pub async fn consume(&self, consume: Consumption) -> Result<Consumed, StoreError> {
        let (evaluation_id, reservations, at) =
            (consume.evaluation_id.clone(), consume.reservations.clone(), consume.at);
        let consumed = self
            .advance(move |connection, writer| {
                Box::pin(async move { consume_once(connection, &writer, consume).await })
            })
            .await?;
        if matches!(consumed, Consumed::Now(_)) {
            self.note_reserved(&evaluation_id, &reservations, at);
        }
        Ok(consumed)
    }

    /// Expires pending and approved approvals whose time has passed, and those of older generations.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn expire(
        &self,
        at: Timestamp,
        record: fn(&Approval) -> serde_json::Value,
    ) -> Result<Vec<Transition>, StoreError> {
        // Approvals of an older generation can't be used any more, so their cases must request new ones.
        let over = "SELECT id FROM approvals WHERE (state = 'pending' AND review_until <= $1)
            OR (state = 'approved' AND approved_until <= $1) OR (state IN ('pending', 'approved') AND generation <> $3) LIMIT $2";
        let generation = self.seen().generation.clone();
        let due = sqlx::query(over).bind(at.micros()).bind(1_i64).bind(generation.clone());
        if self.read(|mut connection| async move { Ok(due.fetch_optional(&mut *connection).await?) }).await?.is_none() {
            return Ok(vec![]);
        }
        self.advance(move |connection, writer| {
            Box::pin(async move {
                let mut moved = vec![];
                for row in sqlx::query(over)
                    .bind(at.micros())
                    .bind(SWEEP_MAX)
                    .bind(generation)
                    .fetch_all(&mut *connection)
                    .await?
                {
                    let id: String = row.try_get(0)?;
                    let Some(approval) = reads::approval(connection, writer.keys(), &id).await? else { continue };
                    let revision = next(connection, &writer).await?;
                    set_state(connection, &id, State::Expired, revision.number, at).await?;
                    leave(connection, &writer, &revision, &id, &with_state(record(&approval), State::Expired), at)
                        .await?;
                    moved.push(Transition { revision, state: State::Expired });
                }
                Ok(End::Commit(moved))
            })
        })
        .await
    }
}

async fn set_state(
    connection: &mut AnyConnection,
    id: &str,
    state: State,
    revision: i64,
    at: Timestamp,
) -> Result<(), StoreError> {
    let sql = "UPDATE approvals SET state = $1, revision = $2, ended_at = $3, draft = '' WHERE id = $4";
    let update = sqlx::query(sql).bind(state.name()).bind(revision).bind(at.micros()).bind(id.to_owned());
    update.execute(connection).await?;
    Ok(())
}

async fn count(connection: &mut AnyConnection, sql: &'static str, values: [&str; 2]) -> Result<i64, StoreError> {
    let [first, second] = values.map(str::to_owned);
    Ok(sqlx::query(sql).bind(first).bind(second).fetch_one(connection).await?.try_get(0)?)
}

async fn request(
    connection: &mut AnyConnection,
    writer: &Writer,
    new: NewApproval,
) -> Result<End<Requested>, StoreError> {
    let revision = next(connection, writer).await?;
    let approval = Approval { generation: writer.seen.generation.clone(), revision: revision.number, ..new.approval };
    let call = &approval.binding.call;
    let same = "SELECT id FROM approvals WHERE tenant = $1 AND digest = $2 AND state = 'pending'";
    if let Some(row) = sqlx::query(same)
        .bind(call.tenant.clone())
        .bind(approval.digest.clone())
        .fetch_optional(&mut *connection)
        .await?
    {
        let id: String = row.try_get(0)?;
        let waiting = reads::approval(connection, writer.keys(), &id).await?.ok_or(StoreError::Damaged)?;
        return Ok(End::RollBack(Requested::Same(Box::new(waiting))));
    }
    let denied = "SELECT COALESCE(MAX(ended_at), 0) FROM approvals WHERE tenant = $1 AND digest = $2 AND state = 'denied' AND id LIKE 'apr%'";
    let denied = count(connection, denied, [&call.tenant, &approval.digest]).await?;
    if denied > 0 && Timestamp::from_micros(denied).plus(new.cool_down) > approval.requested_at {
        return Ok(End::RollBack(Requested::CoolDown));
    }
    if let Some(full) = full_queue(connection, &approval, new.caps).await? {
        return Ok(End::RollBack(full));
    }
    reads::insert(connection, writer, &approval, new.draft).await?;
    leave(connection, writer, &revision, &approval.id, &with_state(new.record, State::Pending), approval.requested_at)
        .await?;
    Ok(End::Commit(Requested::New(Transition { revision, state: State::Pending })))
}

/// Returns which limit of pending requests is reached: `caps` are those of a case, an agent and a template's queue.
async fn full_queue(
    connection: &mut AnyConnection,
    approval: &Approval,
    caps: (i64, i64, i64),
) -> Result<Option<Requested>, StoreError> {
    let call = &approval.binding.call;
    let waiting = [
        ("SELECT COUNT(*) FROM approvals WHERE tenant = $1 AND case_id = $2 AND state = 'pending'", &call.case, caps.0),
        (
            "SELECT COUNT(*) FROM approvals WHERE tenant = $1 AND agent = $2 AND state = 'pending'",
            &call.agent.sub,
            caps.1,
        ),
        (
            "SELECT COUNT(*) FROM approvals WHERE tenant = $1 AND template = $2 AND state = 'pending'",
            &approval.binding.template,
            caps.2,
        ),
    ];
    // One tool service may use half of an agent's pending requests and half of a template's queue, so that
    // the rest stays available to others.
    let by = [
        (
            "SELECT COUNT(*) FROM approvals WHERE tenant = $1 AND agent = $2 AND tool_service = $3 AND state = 'pending'",
            &call.agent.sub,
        ),
        (
            "SELECT COUNT(*) FROM approvals WHERE tenant = $1 AND template = $2 AND tool_service = $3 AND state = 'pending'",
            &approval.binding.template,
        ),
    ];
    for ((sql, value), (most, full)) in
        by.into_iter().zip([(caps.1, Requested::AgentFull), (caps.2, Requested::QueueFull)])
    {
        let own = sqlx::query(sql).bind(call.tenant.clone()).bind(value.clone()).bind(call.audience.clone());
        let own: i64 = own.fetch_one(&mut *connection).await?.try_get(0)?;
        if own >= (most + 1) / 2 {
            return Ok(Some(full));
        }
    }
    for (index, (sql, value, most)) in waiting.into_iter().enumerate() {
        if count(connection, sql, [&call.tenant, value]).await? >= most {
            let full = [Requested::CaseFull, Requested::AgentFull, Requested::QueueFull].into_iter().nth(index);
            return Ok(Some(full.unwrap_or(Requested::QueueFull)));
        }
    }
    Ok(None)
}

async fn review(connection: &mut AnyConnection, writer: &Writer, new: NewReview) -> Result<End<Moved>, StoreError> {
    let revision = next(connection, writer).await?;
    let Some(approval) = reads::approval(connection, writer.keys(), &new.id).await? else {
        return Ok(End::RollBack(Moved::Missing));
    };
    let at = new.review.at;
    let stands = approval.state_at(at);
    if stands != State::Pending || approval.generation != writer.seen.generation {
        return Ok(End::RollBack(Moved::Late(stands)));
    }
    if approval.reviews.iter().any(|review| review.is_of_same_human(&new.review)) {
        return Ok(End::RollBack(Moved::Twice));
    }
    insert_review(connection, &new.id, &new.review).await?;
    let approvers = approval.approvers().count() + usize::from(new.review.approves);
    let quorum = to_usize(new.quorum);
    let state = match new.review.approves {
        false => State::Denied,
        true if approvers >= quorum => State::Approved,
        true => State::Pending,
    };
    let (approved_at, approved_until) = match state {
        State::Approved => (at, at.plus(new.usable)),
        _ => (Timestamp::default(), Timestamp::default()),
    };
    let (ended, reason) = match state {
        State::Denied => (at, new.review.reason.as_str()),
        _ => (Timestamp::default(), ""),
    };
    let update = sqlx::query(
        "UPDATE approvals SET state = $1, revision = $2, approved_at = $3, approved_until = $4, ended_at = $5, denial_reason = $6,
            suggested = $7, draft = CASE WHEN $1 = 'denied' THEN '' ELSE draft END WHERE id = $8",
    );
    update
        .bind(state.name())
        .bind(revision.number)
        .bind(approved_at.micros())
        .bind(approved_until.micros())
        .bind(ended.micros())
        .bind(reason.to_owned())
        .bind(new.suggested.clone())
        .bind(new.id.clone())
        .execute(&mut *connection)
        .await?;
    leave(connection, writer, &revision, &new.id, &with_state(new.record, state), at).await?;
    Ok(End::Commit(Moved::Done(Transition { revision, state })))
}

pub(super) async fn insert_review(connection: &mut AnyConnection, id: &str, review: &Review) -> Result<(), StoreError> {
    let insert = "INSERT INTO reviews (approval, person, issuer, subject, approves, at, reason) VALUES ($1, $2, $3, $4, $5, $6, $7)";
    sqlx::query(insert)
        .bind(id.to_owned())
        .bind(review.person.clone())
        .bind(review.reviewer.iss.clone())
        .bind(review.reviewer.sub.clone())
        .bind(i64::from(review.approves))
        .bind(review.at.micros())
        .bind(review.reason.clone())
        .execute(&mut *connection)
        .await?;
    Ok(())
}

pub(super) async fn end(
    connection: &mut AnyConnection,
    writer: &Writer,
    ending: Ending<'_>,
) -> Result<Moved, StoreError> {
    let revision = next(connection, writer).await?;
    end_at(connection, writer, revision, ending).await
}

/// The end of an approval that was not consumed.
pub(super) struct Ending<'a> {
    pub(super) id: &'a str,
    pub(super) reason: &'a str,
    pub(super) at: Timestamp,
    pub(super) record: serde_json::Value,
}

/// Ends an approval as the write with this revision.
pub(super) async fn end_at(
    connection: &mut AnyConnection,
    writer: &Writer,
    revision: Revision,
    Ending { id, reason, at, record }: Ending<'_>,
) -> Result<Moved, StoreError> {
    let Some(approval) = reads::approval(connection, writer.keys(), id).await? else { return Ok(Moved::Missing) };
    let state = match approval.state_at(at) {
        State::Approved => State::Revoked,
        State::Pending => State::Cancelled,
        late => return Ok(Moved::Late(late)),
    };
    set_state(connection, id, state, revision.number, at).await?;
    let update = sqlx::query("UPDATE approvals SET denial_reason = $1 WHERE id = $2")
        .bind(reason.to_owned())
        .bind(id.to_owned());
    update.execute(&mut *connection).await?;
    leave(connection, writer, &revision, id, &with_state(record, state), at).await?;
    Ok(Moved::Done(Transition { revision, state }))
}

async fn consume_once(
    connection: &mut AnyConnection,
    writer: &Writer,
    consume: Consumption,
) -> Result<End<Consumed>, StoreError> {
    let revision = next(connection, writer).await?;
    let [tenant, agent, supervisor, case, customer] = &consume.halted;
    let halted = Halted { tenant, agent, supervisor, case, customer, issued_at: consume.issued_at };
    let halts: Halts = reads::halts(connection, reads::Which::StopsOf(tenant)).await?.into_iter().collect();
    if halted.stopped_by(&halts, consume.at) {
        return Ok(End::RollBack(Consumed::Halted));
    }
    let Some(first) = consume.tokens.first() else { return Ok(End::RollBack(Consumed::Lost)) };
    for token in &consume.tokens {
        if !use_up(connection, writer, token, revision.number, consume.at).await? {
            // It is already consumed. If this operation consumed it, the receipt exists.
            let receipt = receipt(connection, &token.key).await?;
            return Ok(End::RollBack(receipt.map_or(Consumed::Lost, Consumed::Repeated)));
        }
    }
    if sums::add(connection, &consume.evaluation_id, &consume.reservations, consume.at).await?.is_some() {
        return Ok(End::RollBack(Consumed::Full));
    }
    let receipt = "INSERT INTO receipts (tenant, caller, approval, operation, call_digest, answer, revision, at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
    for UsedToken { key, .. } in &consume.tokens {
        sqlx::query(receipt)
            .bind(key.tenant.clone())
            .bind(key.caller.clone())
            .bind(key.approval.clone())
            .bind(key.operation.clone())
            .bind(consume.call_digest.clone())
            .bind(consume.answer.clone())
            .bind(revision.number)
            .bind(consume.at.micros())
            .execute(&mut *connection)
            .await?;
    }
    leave(connection, writer, &revision, &first.key.approval, &consume.record, consume.at).await?;
    Ok(End::Commit(Consumed::Now(revision)))
}

/// Marks an approval, consent or release as consumed; returns false if it can't be consumed.
async fn use_up(
    connection: &mut AnyConnection,
    writer: &Writer,
    token: &UsedToken,
    revision: i64,
    at: Timestamp,
) -> Result<bool, StoreError> {
    let id = token.key.approval.clone();
    let sql = match token.what {
        SingleUse::Approval | SingleUse::Consent => {
            "UPDATE approvals SET state = 'consumed', revision = $1, ended_at = $2, draft = ''
            WHERE id = $3 AND state = 'approved' AND generation = $4 AND approved_until > $2 RETURNING id"
        }
        // A row in `releases` marks the release as consumed; everything else is in its token.
        SingleUse::Release => {
            if token.generation != writer.seen.generation {
                return Ok(false);
            }
            let sql = "INSERT INTO releases (id, at) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING id";
            let inserted = sqlx::query(sql).bind(id).bind(at.micros()).fetch_optional(connection).await?;
            return Ok(inserted.is_some());
        }
    };
    let used = sqlx::query(sql)
        .bind(revision)
        .bind(at.micros())
        .bind(id)
        .bind(writer.seen.generation.clone())
        .fetch_optional(connection)
        .await?;
    Ok(used.is_some())
}
