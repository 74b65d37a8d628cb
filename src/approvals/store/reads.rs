//! Reads of approvals, receipts, checks, kill switches and other signals, and the conversion of approvals to
//! and from rows.

use sqlx::any::AnyRow;
use sqlx::{AnyConnection, AssertSqlSafe, Row as _};

use crate::approvals::store::Store;
use crate::approvals::store::engine::End;
use crate::approvals::store::error::StoreError;
use crate::approvals::store::history::Writer;
use crate::approvals::store::subjects::approval_key;
use crate::approvals::store::transitions::{Body, Check, Halts, Receipt, ReceiptKey};
use crate::model::approval::{Approval, REPEATS_MAX, Review, State, Subject};
use crate::model::halt::{Halt, HaltKind, SubjectKind};
use crate::model::time::Timestamp;
use crate::sealing::{DeploymentKeys, Sealed};

const APPROVAL: &str =
    "SELECT id, generation, revision, state, digest, body, COALESCE((SELECT secret FROM subject_keys k WHERE k.id = sealed_by), '') AS secret, requested_at, review_until, approved_at, approved_until,
    denial_reason, suggested, repeats FROM approvals";

/// Filter for listing approvals; an empty member does not filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub tenant: String,
    /// Tool service that the approvals are for.
    pub tool_service: String,
    pub state: Option<State>,
    pub case: String,
    /// Position in the order of requests after which the list starts: time of the request, and id.
    pub after: (i64, String),
    /// Revision after which an approval must have changed; if set, the list is in the order of changes.
    pub changed_after: Option<i64>,
    /// Maximum number of approvals.
    pub most: i64,
}

impl Store {
    /// Returns the approval with this id.
    ///
    /// # Errors
    /// When the store does not answer, or the row can't be parsed.
    pub async fn approval(&self, id: &str) -> Result<Option<Approval>, StoreError> {
        let id = id.to_owned();
        let sealing = self.options.sealing.clone();
        self.read(|mut connection| async move { approval(&mut connection, sealing.as_ref(), &id).await }).await
    }

    /// Returns the draft that the call of an open approval sends; empty if its tool service did not pass it.
    ///
    /// # Errors
    /// When the store does not answer, or the draft can't be decrypted.
    pub async fn draft(&self, id: &str) -> Result<String, StoreError> {
        let sql = "SELECT draft, (SELECT secret FROM subject_keys k WHERE k.id = sealed_by) AS secret FROM approvals
            WHERE id = $1 AND draft <> '' AND state IN ('pending', 'approved')";
        let query = sqlx::query(sql).bind(id.to_owned());
        let row = self.read(|mut connection| async move { Ok(query.fetch_optional(&mut *connection).await?) }).await?;
        let Some(row) = row else { return Ok(String::new()) };
        let draft = opened(row.try_get("draft")?, self.options.sealing.as_ref(), row.try_get("secret")?);
        draft.and_then(|draft| String::from_utf8(draft).ok()).ok_or(StoreError::Damaged)
    }

    /// Notes that the call of a pending approval was requested again, and adds the draft that the call sends, if the approval has none.
    /// Counts up to [`REPEATS_MAX`], so that a caller who repeats a request does not write without end.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn repeat(&self, id: &str, draft: String) -> Result<(), StoreError> {
        let (id, sealing) = (id.to_owned(), self.options.sealing.clone());
        self.write(move |connection| {
            Box::pin(async move {
                let update =
                    "UPDATE approvals SET repeats = repeats + 1 WHERE id = $1 AND state = 'pending' AND repeats < $2";
                let counted = sqlx::query(update).bind(id.clone()).bind(i64::from(REPEATS_MAX));
                let counted = counted.execute(&mut *connection).await?.rows_affected() > 0;
                if draft.is_empty() {
                    return Ok(End::commit_if(counted, ()));
                }
                let sql = "SELECT sealed_by, (SELECT secret FROM subject_keys k WHERE k.id = sealed_by) AS secret FROM approvals
                    WHERE id = $1 AND draft = '' AND state = 'pending'";
                let row = sqlx::query(sql).bind(id.clone()).fetch_optional(&mut *connection).await?;
                let Some(row) = row else { return Ok(End::commit_if(counted, ())) };
                let (by, secret): (String, String) = (row.try_get("sealed_by")?, row.try_get("secret")?);
                let key = sealing.and_then(|sealing| sealing.of_subject(&by, &secret));
                let sealed = key.and_then(|key| key.seal(draft.into_bytes())).ok_or(StoreError::Damaged)?;
                let update = "UPDATE approvals SET draft = $1 WHERE id = $2 AND draft = '' AND state = 'pending'";
                sqlx::query(update).bind(sealed.to_string()).bind(id).execute(&mut *connection).await?;
                Ok(End::Commit(()))
            })
        })
        .await
    }

    /// Returns approvals in the order of their requests or of their last changes.
    ///
    /// # Errors
    /// When the store does not answer, or a row can't be parsed.
    pub async fn list(&self, filter: Filter) -> Result<Vec<Approval>, StoreError> {
        let sealing = self.options.sealing.clone();
        self.read(|mut connection| async move { list(&mut connection, sealing.as_ref(), &filter).await }).await
    }

    /// Returns the stored answer of an operation.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn receipt(&self, key: &ReceiptKey) -> Result<Option<Receipt>, StoreError> {
        let key = key.clone();
        self.read(|mut connection| async move { receipt(&mut connection, &key).await }).await
    }

    /// Returns the checks of a case and its customer that have not expired.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn checks(
        &self,
        tenant: &str,
        case: &str,
        customer: &str,
        now: Timestamp,
    ) -> Result<Vec<Check>, StoreError> {
        let [tenant, case, customer] = [tenant, case, customer].map(str::to_owned);
        let sql =
            "SELECT kind, expires FROM checks WHERE tenant = $1 AND case_id = $2 AND customer = $3 AND expires > $4";
        let query = sqlx::query(sql).bind(tenant.clone()).bind(case.clone()).bind(customer.clone()).bind(now.micros());
        let rows = self.read(|mut connection| async move { Ok(query.fetch_all(&mut *connection).await?) }).await?;
        rows.iter()
            .map(|row| {
                let expires = Timestamp::from_micros(row.try_get("expires")?);
                Ok(Check {
                    kind: row.try_get("kind")?,
                    tenant: tenant.clone(),
                    case: case.clone(),
                    customer: customer.clone(),
                    expires,
                })
            })
            .collect()
    }

    /// Returns the number of pending approvals.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn pending(&self) -> Result<u64, StoreError> {
        let query = sqlx::query("SELECT COUNT(*) FROM approvals WHERE state = 'pending'");
        let row = self.read(|mut connection| async move { Ok(query.fetch_one(&mut *connection).await?) }).await?;
        u64::try_from(row.try_get::<i64, _>(0)?).map_err(|_| StoreError::Damaged)
    }

    /// Replaces the copy of the kill switches and other signals with what was read.
    pub(super) fn copy_halts(&self, read: &crate::model::halt::Halts, now: Timestamp, taken: u64) {
        self.halts.rcu(|copy| {
            // The read may lack a signal that was accepted after the read began, so keep such signals.
            let fresh: Vec<(u64, Halt)> = copy.fresh.iter().filter(|(number, _)| *number > taken).cloned().collect();
            let mut halts = read.clone();
            fresh.iter().for_each(|(_, halt)| halts.add(halt.clone()));
            Halts { halts, read_at: Some(now), taken: copy.taken, fresh }
        });
    }
}

pub(super) async fn approval(
    connection: &mut AnyConnection,
    sealing: Option<&DeploymentKeys>,
    id: &str,
) -> Result<Option<Approval>, StoreError> {
    let query = sqlx::query(AssertSqlSafe(format!("{APPROVAL} WHERE id = $1"))).bind(id.to_owned());
    match query.fetch_optional(&mut *connection).await? {
        Some(row) => Ok(Some(whole(connection, sealing, &row).await?)),
        None => Ok(None),
    }
}

async fn list(
    connection: &mut AnyConnection,
    sealing: Option<&DeploymentKeys>,
    filter: &Filter,
) -> Result<Vec<Approval>, StoreError> {
    let sql = format!(
        "{APPROVAL} WHERE ($1 = '' OR tenant = $1) AND ($2 = '' OR tool_service = $2) AND ($3 = '' OR state = $3)
            AND ($4 = '' OR case_id = $4) AND (requested_at > $5 OR (requested_at = $5 AND id > $6)) AND revision > $7
            ORDER BY {} LIMIT $8",
        if filter.changed_after.is_some() { "revision" } else { "requested_at, id" }
    );
    let query = sqlx::query(AssertSqlSafe(sql))
        .bind(filter.tenant.clone())
        .bind(filter.tool_service.clone())
        .bind(filter.state.map_or("", State::name))
        .bind(filter.case.clone())
        .bind(filter.after.0)
        .bind(filter.after.1.clone())
        .bind(filter.changed_after.unwrap_or(0))
        .bind(filter.most);
    let mut approvals = vec![];
    for row in query.fetch_all(&mut *connection).await? {
        approvals.push(whole(connection, sealing, &row).await?);
    }
    Ok(approvals)
}

/// Builds an approval from its row and its reviews.
async fn whole(
    connection: &mut AnyConnection,
    sealing: Option<&DeploymentKeys>,
    row: &AnyRow,
) -> Result<Approval, StoreError> {
    let id: String = row.try_get("id")?;
    let sql =
        "SELECT person, issuer, subject, approves, at, reason FROM reviews WHERE approval = $1 ORDER BY at, person";
    let reviews = sqlx::query(sql).bind(id.clone()).fetch_all(connection).await?;
    let reviews: Result<Vec<Review>, StoreError> = reviews
        .iter()
        .map(|row| {
            Ok(Review {
                reviewer: Subject { iss: row.try_get("issuer")?, sub: row.try_get("subject")? },
                person: row.try_get("person")?,
                approves: row.try_get::<i64, _>("approves")? == 1,
                at: Timestamp::from_micros(row.try_get("at")?),
                reason: row.try_get("reason")?,
            })
        })
        .collect();
    let body = opened(row.try_get("body")?, sealing, row.try_get("secret")?).ok_or(StoreError::Damaged)?;
    let body: Body = serde_json::from_slice(&body).map_err(|_| StoreError::Damaged)?;
    let time = |name: &str| Ok::<_, StoreError>(Timestamp::from_micros(row.try_get(name)?));
    let state: String = row.try_get("state")?;
    Ok(Approval {
        id,
        // An unknown state must not be usable.
        state: State::from_name(&state).ok_or(StoreError::Damaged)?,
        generation: row.try_get("generation")?,
        revision: row.try_get("revision")?,
        digest: row.try_get("digest")?,
        binding: body.binding,
        justification: body.justification,
        display: body.display,
        reversibility: body.reversibility,
        reviews: reviews?,
        requested_at: time("requested_at")?,
        review_until: time("review_until")?,
        approved_at: time("approved_at")?,
        approved_until: time("approved_until")?,
        denial_reason: row.try_get("denial_reason")?,
        suggested: row.try_get("suggested")?,
        repeats: u32::try_from(row.try_get::<i64, _>("repeats")?).map_err(|_| StoreError::Damaged)?,
    })
}

/// Decrypts the call of an approval. Rows of earlier versions have it as plain text.
fn opened(body: String, sealing: Option<&DeploymentKeys>, secret: String) -> Option<Vec<u8>> {
    if body.starts_with('{') {
        return Some(body.into_bytes());
    }
    let sealed = Sealed::read(&body)?;
    sealing?.of_subject(sealed.key(), &secret)?.open(&sealed)
}

pub(super) async fn insert(
    connection: &mut AnyConnection,
    writer: &Writer,
    approval: &Approval,
    draft: String,
) -> Result<(), StoreError> {
    let call = &approval.binding.call;
    let body = Body {
        binding: approval.binding.clone(),
        justification: approval.justification.clone(),
        display: approval.display.clone(),
        reversibility: approval.reversibility.clone(),
    };
    let body = serde_json::to_vec(&body).map_err(|_| StoreError::Damaged)?;
    let (id, secret) = approval_key(connection, approval).await?;
    let key = writer.keys().and_then(|sealing| sealing.of_subject(&id, &secret));
    let key = key.ok_or(StoreError::Damaged)?;
    let sealed = key.seal(body).ok_or(StoreError::Damaged)?;
    let draft = match draft.is_empty() {
        true => draft,
        false => key.seal(draft.into_bytes()).ok_or(StoreError::Damaged)?.to_string(),
    };
    // A consent that the customer refuses has ended when it is stored.
    let ended = if approval.state == State::Denied { approval.requested_at } else { Timestamp::default() };
    let sql = "INSERT INTO approvals (id, generation, revision, state, tenant, template, digest, case_id, customer, agent, supervisor,
        tool_service, quorum, body, requested_at, review_until, approved_at, approved_until, ended_at, denial_reason, suggested, sealed_by, draft)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, '', '', $20, $21)";
    sqlx::query(sql)
        .bind(approval.id.clone())
        .bind(approval.generation.clone())
        .bind(approval.revision)
        .bind(approval.state.name())
        .bind(call.tenant.clone())
        .bind(approval.binding.template.clone())
        .bind(approval.digest.clone())
        .bind(call.case.clone())
        .bind(approval.binding.customer.clone())
        .bind(call.agent.sub.clone())
        .bind(call.supervisor.sub.clone())
        .bind(call.audience.clone())
        .bind(i64::from(approval.binding.quorum))
        .bind(sealed.to_string())
        .bind(approval.requested_at.micros())
        .bind(approval.review_until.micros())
        .bind(approval.approved_at.micros())
        .bind(approval.approved_until.micros())
        .bind(ended.micros())
        .bind(id)
        .bind(draft)
        .execute(connection)
        .await?;
    Ok(())
}

pub(super) async fn receipt(connection: &mut AnyConnection, key: &ReceiptKey) -> Result<Option<Receipt>, StoreError> {
    let sql = "SELECT call_digest, answer, revision FROM receipts WHERE tenant = $1 AND caller = $2 AND approval = $3 AND operation = $4";
    let query = sqlx::query(sql)
        .bind(key.tenant.clone())
        .bind(key.caller.clone())
        .bind(key.approval.clone())
        .bind(key.operation.clone());
    let Some(row) = query.fetch_optional(connection).await? else { return Ok(None) };
    let (call_digest, answer) = (row.try_get("call_digest")?, row.try_get("answer")?);
    Ok(Some(Receipt { call_digest, answer, revision: row.try_get("revision")? }))
}

/// Selection of the rows of `halts`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Which<'a> {
    /// All rows of all tenants.
    All,
    /// Rows whose subject may still have approvals to end.
    EndApprovals,
    /// Rows of a tenant and of the server that prevent consumptions.
    StopsOf(&'a str),
}

pub(super) async fn halts(connection: &mut AnyConnection, which: Which<'_>) -> Result<Vec<Halt>, StoreError> {
    let (tenant, condition) = match which {
        Which::All => ("", "$1 = ''"),
        Which::EndApprovals => ("", "$1 = '' AND ends_approvals = 1"),
        Which::StopsOf(tenant) => {
            (tenant, "(tenant = $1 OR tenant = '') AND (kind NOT LIKE 'risk%' OR ends_approvals = 1)")
        }
    };
    // A row whose approvals are not all ended yet prevents their use until they are, whatever its kind and
    // end.
    let (kind, until, lifted) = match which {
        Which::StopsOf(_) => (
            "CASE WHEN ends_approvals = 1 THEN 'kill_switch' ELSE kind END",
            "CASE WHEN ends_approvals = 1 THEN 9223372036854775807 ELSE until END",
            "CASE WHEN ends_approvals = 1 THEN 0 ELSE lifted END",
        ),
        Which::All | Which::EndApprovals => ("kind", "until", "lifted"),
    };
    let sql = format!(
        "SELECT tenant, subject_kind, subject, {kind} AS kind, since, {until} AS until, {lifted} AS lifted FROM halts
            WHERE {condition}"
    );
    let rows = sqlx::query(AssertSqlSafe(sql)).bind(tenant.to_owned()).fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            let (subject_kind, kind): (String, String) = (row.try_get("subject_kind")?, row.try_get("kind")?);
            Ok(Halt {
                tenant: row.try_get("tenant")?,
                // A row that can't be parsed must not be overlooked.
                subject_kind: SubjectKind::from_name(&subject_kind).ok_or(StoreError::Damaged)?,
                subject: row.try_get("subject")?,
                kind: HaltKind::from_name(&kind).ok_or(StoreError::Damaged)?,
                since: Timestamp::from_micros(row.try_get("since")?),
                until: Timestamp::from_micros(row.try_get("until")?),
                lifted: Timestamp::from_micros(row.try_get("lifted")?),
            })
        })
        .collect()
}
