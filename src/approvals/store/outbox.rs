//! The outbox: the record of every transition, until it is in an audit log. A replica that is started again
//! records its own entries; another replica takes them over when the replica is gone or the entries are old.

use std::time::Duration;

use sqlx::any::AnyRow;
use sqlx::{AnyConnection, AssertSqlSafe, Row as _};

use crate::approvals::store::Store;
use crate::approvals::store::dialect::Dialect;
use crate::approvals::store::engine::End;
use crate::approvals::store::error::StoreError;
use crate::approvals::store::history::Writer;
use crate::approvals::store::replicas::GONE;
use crate::approvals::store::transitions::{OutboxEntry, Revision};
use crate::model::number::to_i64;
use crate::model::time::Timestamp;

/// Time after which an entry is abandoned even if its process still runs; longer than any request runs.
pub const TAKE_OVER: Duration = Duration::from_secs(60);
/// Maximum number of entries in one sweep.
const SWEEP_MAX: i64 = 200;

/// Returns a query for outbox entries with their heads, and whether the process that wrote each is gone.
fn rows(dialect: &Dialect, which: &str) -> AssertSqlSafe<String> {
    AssertSqlSafe(format!(
        "SELECT o.revision, o.record, o.replica, o.boot, o.at, o.log, o.line, COALESCE(r.head, '') AS head,
            CASE WHEN {} THEN CAST(0 AS BIGINT) ELSE CAST(1 AS BIGINT) END AS gone
            FROM outbox o LEFT JOIN revisions r ON r.revision = o.revision
            LEFT JOIN replicas p ON p.replica = o.replica AND p.boot = o.boot WHERE {which}",
        is_there(dialect),
    ))
}

/// Returns SQL for whether the process that wrote an entry has recently sent a heartbeat.
fn is_there(dialect: &Dialect) -> String {
    format!("COALESCE(p.at, 0) > {} - {}", dialect.clock, GONE.as_micros())
}

impl Store {
    /// Returns unrecorded entries that were written at `before` or earlier, oldest first.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn left(&self, before: Timestamp) -> Result<Vec<OutboxEntry>, StoreError> {
        // An entry of another replica is only due once that replica will not record it any more. Otherwise
        // the entries of a live replica that can't record would fill every sweep.
        let which = format!(
            "o.log = '' AND o.at <= $1 AND (o.replica = $2 OR o.at <= $3 OR NOT ({})) ORDER BY o.at, o.revision LIMIT $4",
            is_there(self.engine.dialect())
        );
        let query =
            sqlx::query(rows(self.engine.dialect(), &which)).bind(before.micros()).bind(self.options.replica.clone());
        let query = query.bind(before.minus(TAKE_OVER).micros()).bind(SWEEP_MAX);
        let rows = self.read(|mut connection| async move { Ok(query.fetch_all(&mut *connection).await?) }).await?;
        // A damaged row must not keep the others from being recorded.
        let (mut entries, mut damaged) = (vec![], None);
        for row in &rows {
            match read(row) {
                Ok(entry) => entries.push(entry),
                Err(error) => damaged = Some(error),
            }
        }
        let noted = damaged.map_or(Ok(()), |error| self.noted(Err(error)));
        if entries.is_empty() { noted.map(|()| entries) } else { Ok(entries) }
    }

    /// Returns the entry of this revision.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn outbox_entry(&self, revision: i64) -> Result<Option<OutboxEntry>, StoreError> {
        let query = sqlx::query(rows(self.engine.dialect(), "o.revision = $1")).bind(revision);
        let row = self.read(|mut connection| async move { Ok(query.fetch_optional(&mut *connection).await?) }).await?;
        self.noted(row.as_ref().map(read).transpose())
    }

    /// Returns whether a transition of this approval is not recorded yet.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn has_outbox_entry(&self, approval: &str) -> Result<bool, StoreError> {
        let sql = "SELECT revision FROM outbox WHERE approval = $1 AND log = '' LIMIT 1";
        let query = sqlx::query(sql).bind(approval.to_owned());
        Ok(self
            .read(|mut connection| async move { Ok(query.fetch_optional(&mut *connection).await?) })
            .await?
            .is_some())
    }

    /// Returns whether this process wrote the entry.
    pub fn is_own(&self, left: &OutboxEntry) -> bool {
        left.replica == self.options.replica && left.boot == self.options.boot
    }

    /// Returns whether this replica wrote the entry before its last start.
    pub fn is_earlier_own(&self, left: &OutboxEntry) -> bool {
        left.replica == self.options.replica && left.boot != self.options.boot
    }

    /// Takes over an entry of another process; returns false if it was already recorded or taken over.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn take_over(&self, left: &OutboxEntry) -> Result<bool, StoreError> {
        let (replica, boot, left) = (self.options.replica.clone(), self.options.boot.clone(), left.clone());
        self.write(move |connection| {
            Box::pin(async move {
                let sql = "UPDATE outbox SET replica = $1, boot = $2 WHERE revision = $3 AND log = '' AND replica = $4 AND boot = $5";
                let update = sqlx::query(sql).bind(replica).bind(boot).bind(left.revision.number).bind(left.replica).bind(left.boot);
                let taken = update.execute(connection).await?.rows_affected() == 1;
                Ok(End::commit_if(taken, taken))
            })
        })
        .await
    }

    /// Stores where an entry is recorded. From then on, answers may depend on the transition.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn recorded(&self, revision: i64, log: &str, line: u64) -> Result<(), StoreError> {
        let line = to_i64(line);
        let noted = sqlx::query("UPDATE outbox SET log = $1, line = $2 WHERE revision = $3")
            .bind(log.to_owned())
            .bind(line)
            .bind(revision);
        self.noted(self.engine.run(self.options.timeout, noted).await.map(|_| ()))
    }

    /// Deletes rows that can't be used any more, such as receipts after a day, ended approvals after 30 days, and keys whose evidence
    /// is older than `evidence`.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn purge(&self, now: Timestamp, evidence: Duration) -> Result<(), StoreError> {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        let (day, month) = (now.minus(DAY).micros(), now.minus(DAY * 30).micros());
        self.write(move |connection| {
            Box::pin(async move {
                for (sql, before) in [
                    ("DELETE FROM receipts WHERE at < $1", day),
                    ("DELETE FROM outcomes WHERE at < $1", day),
                    ("DELETE FROM outbox WHERE at < $1 AND log <> ''", month),
                    ("DELETE FROM reviews WHERE approval IN (SELECT id FROM approvals WHERE ended_at > 0 AND ended_at < $1)", month),
                    ("DELETE FROM approvals WHERE ended_at > 0 AND ended_at < $1", month),
                    ("DELETE FROM events WHERE at < $1", month),
                    ("DELETE FROM halts WHERE until < $1 AND ends_approvals = 0", day),
                    ("DELETE FROM lifts WHERE at < $1", day),
                    ("DELETE FROM checks WHERE expires < $1", day),
                    ("DELETE FROM releases WHERE at < $1", day),
                    ("DELETE FROM sums WHERE until < $1", day),
                    ("DELETE FROM revisions WHERE at < $1 AND revision < (SELECT revision FROM meta WHERE one = 1)", month),
                    ("DELETE FROM replicas WHERE at < $1", month),
                    ("DELETE FROM window_writes WHERE at < $1", month),
                ] {
                    sqlx::query(sql).bind(before).execute(&mut *connection).await?;
                }
                Self::expire_keys(connection, now, evidence).await?;
                Ok(End::Commit(()))
            })
        })
        .await
    }
}

/// Inserts an outbox entry in the transaction of its transition.
pub(super) async fn leave(
    connection: &mut AnyConnection,
    writer: &Writer,
    revision: &Revision,
    approval: &str,
    record: &serde_json::Value,
    at: Timestamp,
) -> Result<(), StoreError> {
    let sql = "INSERT INTO outbox (revision, approval, record, replica, boot, at, log, line) VALUES ($1, $2, $3, $4, $5, $6, '', 0)";
    sqlx::query(sql)
        .bind(revision.number)
        .bind(approval.to_owned())
        .bind(record.to_string())
        .bind(writer.replica.clone())
        .bind(writer.boot.clone())
        .bind(at.micros())
        .execute(connection)
        .await?;
    Ok(())
}

fn read(row: &AnyRow) -> Result<OutboxEntry, StoreError> {
    let record: String = row.try_get("record")?;
    let (log, line): (String, i64) = (row.try_get("log")?, row.try_get("line")?);
    Ok(OutboxEntry {
        revision: Revision { number: row.try_get("revision")?, head: row.try_get("head")? },
        gone: row.try_get::<i64, _>("gone")? == 1,
        record: serde_json::from_str(&record).map_err(|_| StoreError::Damaged)?,
        replica: row.try_get("replica")?,
        boot: row.try_get("boot")?,
        at: Timestamp::from_micros(row.try_get("at")?),
        recorded: if log.is_empty() {
            None
        } else {
            Some((log, u64::try_from(line).map_err(|_| StoreError::Damaged)?))
        },
    })
}
