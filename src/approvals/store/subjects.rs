//! Secrets of data subjects, by which the evidence of their decisions is encrypted, and their erasure.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::{AnyConnection, Connection as _, Row as _};

use crate::approvals::store::Store;
use crate::approvals::store::engine::{self, End};
use crate::approvals::store::error::StoreError;
use crate::approvals::store::history::next;
use crate::approvals::store::location::Location;
use crate::approvals::store::outbox::leave;
use crate::approvals::store::transitions::Revision;
use crate::model::approval::Approval;
use crate::model::call::Case;
use crate::model::time::Timestamp;
use crate::sealing;

/// `day` of the key of a subject's approvals, which have a time of their own.
const OF_APPROVALS: i64 = i64::MAX;

/// Person that decisions are about, or the case if it has no owner.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Subject {
    pub tenant: String,
    pub kind: SubjectOf,
    pub id: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SubjectOf {
    Case,
    Customer,
}

impl SubjectOf {
    /// Name in the store and in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Case => "case",
            Self::Customer => "customer",
        }
    }
}

impl Subject {
    /// Returns the subject of an approval.
    pub fn of_approval(approval: &Approval) -> Self {
        let (call, customer) = (&approval.binding.call, &approval.binding.customer);
        let (kind, id) =
            if customer.is_empty() { (SubjectOf::Case, &call.case) } else { (SubjectOf::Customer, customer) };
        Self { tenant: call.tenant.clone(), kind, id: id.clone() }
    }

    /// Returns the subject of a case. `owner` is empty if the case has none.
    pub fn of(case: &Case, owner: &str) -> Self {
        let (kind, id) = if owner.is_empty() { (SubjectOf::Case, &*case.id) } else { (SubjectOf::Customer, owner) };
        Self { tenant: case.tenant.clone(), kind, id: id.to_owned() }
    }
}

/// Key of a subject for one day, which is stored if the day has none.
#[derive(Clone, Debug)]
pub struct NewSubjectKey {
    pub subject: Subject,
    /// Number of days since the epoch.
    pub day: i64,
    pub id: String,
    pub secret: String,
}

/// Result of an erasure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Erased {
    /// This many keys were deleted.
    Done(u64, Revision),
    /// Approvals or consents of the subject are still open, and nothing was erased.
    Open,
}

impl Store {
    /// Returns id and secret of a subject's key of a day.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn subject_key(&self, new: NewSubjectKey) -> Result<(String, String), StoreError> {
        let (subject, day) = (new.subject.clone(), new.day);
        let found = self.read(|mut connection| async move { stored(&mut connection, &subject, day).await }).await?;
        if let Some(found) = found {
            return Ok(found);
        }
        self.write(move |connection| Box::pin(async move { Ok(End::Commit(insert(connection, new).await?)) })).await
    }

    /// Returns the secret of the key with this id; `None` if it was erased or has expired.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn subject_secret(&self, id: &str) -> Result<Option<String>, StoreError> {
        let query = sqlx::query("SELECT secret FROM subject_keys WHERE id = $1").bind(id.to_owned());
        let row = self.read(|mut connection| async move { Ok(query.fetch_optional(&mut *connection).await?) }).await?;
        Ok(row.map(|row| row.try_get(0)).transpose()?)
    }

    /// Deletes the keys of a subject, and what the store has about it: approvals and consents that have ended, and checks.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn erase(
        &self,
        subject: Subject,
        at: Timestamp,
        record: serde_json::Value,
    ) -> Result<Erased, StoreError> {
        let erased = self.advance(move |connection, writer| {
            Box::pin(async move {
                // This takes the lock under which all replicas add approvals.
                let revision = next(connection, &writer).await?;
                let column = match subject.kind {
                    SubjectOf::Case => "customer = '' AND case_id",
                    SubjectOf::Customer => "customer",
                };
                let about = |sql: &str| {
                    let sql = sql.replace("{column}", column);
                    sqlx::query(sqlx::AssertSqlSafe(sql)).bind(subject.tenant.clone()).bind(subject.id.clone())
                };
                let open = "SELECT id FROM approvals WHERE tenant = $1 AND {column} = $2 AND state IN ('pending', 'approved') LIMIT 1";
                if about(open).fetch_optional(&mut *connection).await?.is_some() {
                    return Ok(End::RollBack(Erased::Open));
                }
                const APPROVALS: &str = "(SELECT id FROM approvals WHERE tenant = $1 AND {column} = $2)";
                for sql in [
                    format!("DELETE FROM reviews WHERE approval IN {APPROVALS}"),
                    format!("DELETE FROM receipts WHERE approval IN {APPROVALS}"),
                    "DELETE FROM approvals WHERE tenant = $1 AND {column} = $2".to_owned(),
                    "DELETE FROM checks WHERE tenant = $1 AND {column} = $2".to_owned(),
                ] {
                    about(&sql).execute(&mut *connection).await?;
                }
                let keys = "DELETE FROM subject_keys WHERE tenant = $1 AND subject = $2 AND kind = $3";
                let keys = about(keys).bind(subject.kind.name()).execute(&mut *connection).await?.rows_affected();
                leave(connection, &writer, &revision, "", &record, at).await?;
                Ok(End::Commit(Erased::Done(keys, revision)))
            })
        });
        erased.await
    }

    /// Empties the journal of SQLite, so that it has no copy of erased rows.
    ///
    /// # Errors
    /// When the store does not answer, or a reader holds the journal.
    pub async fn empty_journal(&self) -> Result<(), StoreError> {
        self.engine.empty_journal().await
    }

    /// Deletes the keys whose evidence is not kept any longer.
    pub(super) async fn expire_keys(
        connection: &mut AnyConnection,
        now: Timestamp,
        kept: Duration,
    ) -> Result<(), StoreError> {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        // The evidence of a day may have been written until its end.
        let before = now.minus(kept).minus(DAY).micros().div_euclid(Timestamp::default().plus(DAY).micros());
        sqlx::query("DELETE FROM subject_keys WHERE day < $1").bind(before).execute(&mut *connection).await?;
        let unused = "DELETE FROM subject_keys WHERE day = $1 AND NOT EXISTS (SELECT 1 FROM approvals WHERE sealed_by = subject_keys.id)";
        sqlx::query(unused).bind(OF_APPROVALS).execute(connection).await?;
        Ok(())
    }
}

/// Reads the secrets of all keys, by the keys' ids. The store may be in use by a server.
///
/// # Errors
/// When the store does not answer, or is of an earlier version.
pub async fn secrets(location: &Location, timeout: Duration) -> Result<HashMap<String, String>, StoreError> {
    let late = |_| StoreError::Unreachable("no answer in time".to_owned());
    let asked = async {
        let mut connection = engine::connect_to_read(location).await?;
        let rows = sqlx::query("SELECT id, secret FROM subject_keys").fetch_all(&mut connection).await?;
        connection.close().await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
    };
    tokio::time::timeout(timeout, asked).await.map_err(late)?
}

/// Returns id and secret of the key of an approval's subject. Creates the key if the subject has none.
pub(super) async fn approval_key(
    connection: &mut AnyConnection,
    approval: &Approval,
) -> Result<(String, String), StoreError> {
    let subject = Subject::of_approval(approval);
    if let Some(found) = stored(connection, &subject, OF_APPROVALS).await? {
        return Ok(found);
    }
    let (id, secret) = sealing::fresh().ok_or(StoreError::Damaged)?;
    insert(connection, NewSubjectKey { subject, day: OF_APPROVALS, id, secret }).await
}

async fn insert(connection: &mut AnyConnection, new: NewSubjectKey) -> Result<(String, String), StoreError> {
    let sql = "INSERT INTO subject_keys (id, secret, tenant, kind, subject, day) VALUES ($1, $2, $3, $4, $5, $6)
        ON CONFLICT (tenant, kind, subject, day) DO NOTHING";
    let insert = sqlx::query(sql).bind(new.id).bind(new.secret).bind(new.subject.tenant.clone());
    let insert = insert.bind(new.subject.kind.name()).bind(new.subject.id.clone()).bind(new.day);
    insert.execute(&mut *connection).await?;
    stored(connection, &new.subject, new.day).await?.ok_or(StoreError::Damaged)
}

async fn stored(
    connection: &mut AnyConnection,
    subject: &Subject,
    day: i64,
) -> Result<Option<(String, String)>, StoreError> {
    let sql = "SELECT id, secret FROM subject_keys WHERE tenant = $1 AND kind = $2 AND subject = $3 AND day = $4";
    let asked = sqlx::query(sql).bind(subject.tenant.clone()).bind(subject.kind.name()).bind(subject.id.clone());
    let row = asked.bind(day).fetch_optional(connection).await?;
    row.map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).transpose()
}
