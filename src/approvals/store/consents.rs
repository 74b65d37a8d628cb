//! Answers of customers to requests for consent. Each is one transaction, like the transitions of approvals.

use sqlx::{AnyConnection, Row as _};

use crate::approvals::store::engine::End;
use crate::approvals::store::error::StoreError;
use crate::approvals::store::history::{Writer, next};
use crate::approvals::store::lifecycle::{Ending, end_at, insert_review};
use crate::approvals::store::outbox::leave;
use crate::approvals::store::transitions::{Answered, Moved, NewConsent, Transition, with_state};
use crate::approvals::store::{Store, reads};
use crate::model::approval::{Approval, State};

impl Store {
    /// Stores a customer's answer to a request for consent. A refusal after a consent revokes it, unless it was consumed.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn answer(&self, new: NewConsent) -> Result<Answered, StoreError> {
        self.advance(move |connection, writer| Box::pin(async move { answer(connection, &writer, new).await })).await
    }
}

async fn answer(connection: &mut AnyConnection, writer: &Writer, new: NewConsent) -> Result<End<Answered>, StoreError> {
    let NewConsent { consent, record } = new;
    let revision = next(connection, writer).await?;
    if let Some(known) = reads::approval(connection, writer.keys(), &consent.id).await? {
        let gave = |approval: &Approval| approval.approvers().next().is_some();
        // The state tells whether the customer withdrew the consent since.
        let stands = known.state_at(consent.requested_at);
        return match (gave(&known) && stands != State::Revoked, gave(&consent)) {
            (true, true) | (false, false) => Ok(End::RollBack(Answered::Known(Box::new(known)))),
            (true, false) => {
                let at = consent.requested_at;
                let ending = Ending { id: &consent.id, reason: "the customer refused", at, record };
                match end_at(connection, writer, revision, ending).await? {
                    Moved::Done(transition) => Ok(End::Commit(Answered::New(transition))),
                    Moved::Late(_) | Moved::Missing | Moved::Twice => Ok(End::RollBack(Answered::Late)),
                }
            }
            (false, true) => Ok(End::RollBack(Answered::Late)),
        };
    }
    if is_reported(connection, &consent).await? {
        return Ok(End::RollBack(Answered::Reused));
    }
    let consent = Approval { generation: writer.seen.generation.clone(), revision: revision.number, ..consent };
    reads::insert(connection, writer, &consent, String::new()).await?;
    for review in &consent.reviews {
        insert_review(connection, &consent.id, review).await?;
    }
    leave(connection, writer, &revision, &consent.id, &with_state(record, consent.state), consent.requested_at).await?;
    Ok(End::Commit(Answered::New(Transition { revision, state: consent.state })))
}

/// Returns whether the reporter named the message of this answer for another denial of the same call.
async fn is_reported(connection: &mut AnyConnection, consent: &Approval) -> Result<bool, StoreError> {
    let Some(answer) = consent.reviews.first().filter(|answer| !answer.reason.is_empty()) else { return Ok(false) };
    let sql = "SELECT COUNT(*) FROM approvals JOIN reviews ON reviews.approval = approvals.id
        WHERE approvals.tenant = $1 AND approvals.digest = $2 AND reviews.issuer = $3 AND reviews.reason = $4";
    let count = sqlx::query(sql)
        .bind(consent.binding.call.tenant.clone())
        .bind(consent.digest.clone())
        .bind(answer.reviewer.iss.clone())
        .bind(answer.reason.clone());
    Ok(count.fetch_one(connection).await?.try_get::<i64, _>(0)? > 0)
}
