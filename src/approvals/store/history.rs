//! The store's history: a count of revisions, each with a head that no other history has. A store that lost its last writes, in a failover
//! to a standby that was behind or by an older backup, counts to the same numbers again, under other heads. So a replica that knows
//! a head can tell whether the store still has what it had.
//!
//! `settling.rs` says what follows from a head that is not found.

use crate::approvals::store::transitions::Revision;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};
use sqlx::{AnyConnection, AssertSqlSafe, Row as _};

use crate::approvals::store::engine::Dialect;
use crate::approvals::store::error::StoreError;
use crate::approvals::store::location::Seen;

/// Who writes, and what it knows of the store.
#[derive(Clone, Debug)]
pub(super) struct Writer {
    /// The last revision that it has seen.
    pub seen: Seen,
    /// The replica, whose audit log records what it leaves in the outbox.
    pub replica: String,
    /// The start of its process.
    pub boot: String,
    pub(super) heads: Arc<AtomicU64>,
    pub dialect: Dialect,
    /// The last revision of this transaction.
    pub(super) last: Arc<Mutex<Option<Revision>>>,
}

impl Writer {
    /// Unlike that of any other write, of any process.
    fn fresh(&self) -> [u8; 16] {
        let count = self.heads.fetch_add(1, Ordering::Relaxed);
        let digest: [u8; 32] = Sha256::new().chain_update(&self.boot).chain_update(count.to_be_bytes()).finalize().into();
        digest.first_chunk().copied().unwrap_or_default()
    }

    /// A revision with a head that no other has.
    pub(super) fn revision(&self, number: i64) -> Revision {
        Revision { number, head: self.fresh().iter().map(|byte| format!("{byte:02x}")).collect() }
    }

    /// A place in the outbox that takes no part in the count of revisions.
    pub(super) fn unnumbered(&self) -> Revision {
        let fresh = self.fresh();
        let number = i64::from_be_bytes(fresh.first_chunk().copied().unwrap_or_default());
        Revision { number: number | i64::MIN, head: String::new() }
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Option<Revision>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a question about the history found.
pub(super) struct Found {
    /// The last revision.
    pub seen: Seen,
    /// The lineage that it was written in; empty since somebody missed its head.
    pub lineage: String,
    /// The server's own.
    pub server: String,
    /// The store's time.
    pub clock: i64,
    /// When a loss was found that nobody has confirmed; 0: none.
    pub went_back_at: i64,
    /// Whether the head that this replica knows is there.
    pub known: bool,
}

/// Counts the revision up. Holds every other writer back until the transaction ends, and refuses a store that went back.
pub(super) async fn next(connection: &mut AnyConnection, writer: &Writer) -> Result<Revision, StoreError> {
    let lineage = &writer.dialect.lineage;
    let sql =
        format!("UPDATE meta SET revision = revision + 1 WHERE one = 1 AND generation = $1 AND lineage = {lineage} RETURNING revision");
    let row = sqlx::query(AssertSqlSafe(sql)).bind(writer.seen.generation.clone()).fetch_optional(&mut *connection).await?;
    let number: i64 = row.ok_or(StoreError::Unsettled)?.try_get(0)?;
    let revision = writer.revision(number);
    insert(connection, &writer.dialect, &revision, &writer.seen).await?.then_some(()).ok_or(StoreError::WentBack)?;
    *writer.last() = Some(revision.clone());
    Ok(revision)
}

/// Adds a revision; false if what was seen is not there.
pub(super) async fn insert(
    connection: &mut AnyConnection,
    dialect: &Dialect,
    revision: &Revision,
    seen: &Seen,
) -> Result<bool, StoreError> {
    let (clock, known) = (&dialect.clock, known("$3", "$4"));
    let sql = format!("INSERT INTO revisions (revision, head, at) SELECT $1, $2, {clock} WHERE {known} RETURNING revision");
    let insert = sqlx::query(AssertSqlSafe(sql)).bind(revision.number).bind(revision.head.clone());
    Ok(insert.bind(seen.revision).bind(seen.head.clone()).fetch_optional(connection).await?.is_some())
}

/// Whether a revision is one of this history. Of one that is older than what is kept, nothing counts any more; of one whose head nobody
/// noted, the number must do.
fn known(number: &str, head: &str) -> String {
    format!(
        "(EXISTS (SELECT 1 FROM revisions WHERE revision = {number} AND head = {head})
            OR CAST({number} AS BIGINT) < (SELECT MIN(revision) FROM revisions)
            OR ({head} = '' AND CAST({number} AS BIGINT) <= (SELECT revision FROM meta WHERE one = 1)))"
    )
}

/// Holds every other writer back until the transaction ends. What is to be known then is asked by a statement of its own: one that waited
/// for the lock would see other tables as they were before.
pub(super) async fn hold(connection: &mut AnyConnection) -> Result<(), StoreError> {
    sqlx::query("UPDATE meta SET revision = revision WHERE one = 1").execute(connection).await?;
    Ok(())
}

/// Asks where the store stands.
pub(super) async fn ask(connection: &mut AnyConnection, dialect: &Dialect, seen: &Seen) -> Result<Found, StoreError> {
    let (lineage, clock, known) = (&dialect.lineage, &dialect.clock, known("$1", "$2"));
    let sql = format!(
        "SELECT generation, revision, lineage, {lineage}, {clock}, went_back_at,
            COALESCE((SELECT head FROM revisions WHERE revision = meta.revision), ''), CASE WHEN {known} THEN CAST(1 AS BIGINT) ELSE CAST(0 AS BIGINT) END,
            (SELECT COUNT(*) FROM generations WHERE generation = $3) FROM meta WHERE one = 1"
    );
    let query = sqlx::query(AssertSqlSafe(sql)).bind(seen.revision).bind(seen.head.clone()).bind(seen.generation.clone());
    let row = query.fetch_one(connection).await?;
    let found = Seen { generation: row.try_get(0)?, revision: row.try_get(1)?, head: row.try_get(6)? };
    let known = match found.generation == seen.generation {
        true => row.try_get::<i64, _>(7)? == 1,
        // A later generation knows the earlier ones, of which nothing counts any more.
        false => row.try_get::<i64, _>(8)? > 0,
    };
    let (lineage, server) = (row.try_get(2)?, row.try_get(3)?);
    Ok(Found { seen: found, lineage, server, clock: row.try_get(4)?, went_back_at: row.try_get(5)?, known })
}
