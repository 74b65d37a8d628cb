//! The store's history: numbered revisions, each with a head that no other history has. A store that lost its
//! last writes, by a failover to a standby that was behind or by an older backup, counts to the same numbers
//! again but with other heads, so a replica that has seen a head can tell whether the store still has
//! everything up to it. `settling.rs` implements what follows if the head is missing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};
use sqlx::{AnyConnection, AssertSqlSafe, Row as _};

use crate::approvals::store::dialect::Dialect;
use crate::approvals::store::error::StoreError;
use crate::approvals::store::location::Seen;
use crate::approvals::store::transitions::Revision;
use crate::model::number::to_u64;
use crate::model::text::hex;
use crate::sealing::DeploymentKeys;

/// Identity of a writer, and the last revision that it has seen.
#[derive(Clone, Debug)]
pub(super) struct Writer {
    /// Last revision that the writer has seen.
    pub seen: Seen,
    /// Replica whose audit log records the writer's outbox entries.
    pub replica: String,
    /// Id of this start of the replica's process.
    pub boot: String,
    pub(super) heads: Arc<AtomicU64>,
    pub dialect: Dialect,
    pub(super) sealing: Option<DeploymentKeys>,
    /// Last revision of the current transaction.
    pub(super) last: Arc<Mutex<Option<Revision>>>,
}

impl Writer {
    /// Returns the keys with which the calls of approvals are encrypted.
    pub(super) fn keys(&self) -> Option<&DeploymentKeys> {
        self.sealing.as_ref()
    }

    /// Returns bytes that no other write of any process has.
    fn fresh(&self) -> [u8; 16] {
        let count = self.heads.fetch_add(1, Ordering::Relaxed);
        let digest: [u8; 32] =
            Sha256::new().chain_update(&self.boot).chain_update(count.to_be_bytes()).finalize().into();
        let mut first = [0; 16];
        first.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
        first
    }

    /// Returns a revision with a unique head.
    pub(super) fn revision(&self, number: i64) -> Revision {
        Revision { number, head: hex(self.fresh()) }
    }

    /// Returns a key for an outbox entry that is not part of the count of revisions.
    pub(super) fn unnumbered(&self) -> Revision {
        let number = to_u64(u128::from_be_bytes(self.fresh()) >> 64).cast_signed();
        Revision { number: number | i64::MIN, head: String::new() }
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Option<Revision>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// State of the store's history.
pub(super) struct Found {
    /// Last revision of the store.
    pub seen: Seen,
    /// Lineage in which the store last settled; empty after a replica did not find the head that it has seen.
    pub lineage: String,
    /// Lineage of the server that answered.
    pub server: String,
    /// Time of the store, in microseconds.
    pub clock: i64,
    /// Time when an unconfirmed loss was found, in microseconds; 0 without one.
    pub went_back_at: i64,
    /// Whether the store has the head that this replica has seen.
    pub known: bool,
}

/// Increments the revision. Until the transaction ends, every other writer of revisions waits. Returns an
/// error if the store went back.
pub(super) async fn next(connection: &mut AnyConnection, writer: &Writer) -> Result<Revision, StoreError> {
    let lineage = &writer.dialect.lineage;
    let sql = format!(
        "UPDATE meta SET revision = revision + 1 WHERE one = 1 AND generation = $1 AND lineage = {lineage} RETURNING revision"
    );
    let row =
        sqlx::query(AssertSqlSafe(sql)).bind(writer.seen.generation.clone()).fetch_optional(&mut *connection).await?;
    let number: i64 = row.ok_or(StoreError::Unsettled)?.try_get(0)?;
    let revision = writer.revision(number);
    insert(connection, &writer.dialect, &revision, &writer.seen).await?.then_some(()).ok_or(StoreError::WentBack)?;
    *writer.last() = Some(revision.clone());
    Ok(revision)
}

/// Inserts a revision; returns false if the store lacks the revision in `seen`.
pub(super) async fn insert(
    connection: &mut AnyConnection,
    dialect: &Dialect,
    revision: &Revision,
    seen: &Seen,
) -> Result<bool, StoreError> {
    let (clock, known) = (&dialect.clock, known("$3", "$4"));
    let sql =
        format!("INSERT INTO revisions (revision, head, at) SELECT $1, $2, {clock} WHERE {known} RETURNING revision");
    let insert = sqlx::query(AssertSqlSafe(sql)).bind(revision.number).bind(revision.head.clone());
    Ok(insert.bind(seen.revision).bind(seen.head.clone()).fetch_optional(connection).await?.is_some())
}

/// Returns SQL for whether a revision belongs to this history. A revision older than all stored ones is
/// accepted, because nothing depends on it any more. If the head was not noted, only the number is compared.
fn known(number: &str, head: &str) -> String {
    format!(
        "(EXISTS (SELECT 1 FROM revisions WHERE revision = {number} AND head = {head})
            OR CAST({number} AS BIGINT) < (SELECT MIN(revision) FROM revisions)
            OR ({head} = '' AND CAST({number} AS BIGINT) <= (SELECT revision FROM meta WHERE one = 1)))"
    )
}

/// Locks out every other writer of revisions until the transaction ends. Read the state in a separate
/// statement afterwards: a statement that waited for the lock would still see other tables as they were
/// before.
pub(super) async fn hold(connection: &mut AnyConnection) -> Result<(), StoreError> {
    sqlx::query("UPDATE meta SET revision = revision WHERE one = 1").execute(connection).await?;
    Ok(())
}

/// Queries the state of the store's history.
pub(super) async fn ask(connection: &mut AnyConnection, dialect: &Dialect, seen: &Seen) -> Result<Found, StoreError> {
    let (lineage, clock, known) = (&dialect.lineage, &dialect.clock, known("$1", "$2"));
    let sql = format!(
        "SELECT generation, revision, lineage, {lineage}, {clock}, went_back_at,
            COALESCE((SELECT head FROM revisions WHERE revision = meta.revision), ''), CASE WHEN {known} THEN CAST(1 AS BIGINT) ELSE CAST(0 AS BIGINT) END,
            (SELECT COUNT(*) FROM generations WHERE generation = $3) FROM meta WHERE one = 1"
    );
    let query =
        sqlx::query(AssertSqlSafe(sql)).bind(seen.revision).bind(seen.head.clone()).bind(seen.generation.clone());
    let row = query.fetch_one(connection).await?;
    let found = Seen { generation: row.try_get(0)?, revision: row.try_get(1)?, head: row.try_get(6)? };
    let known = match found.generation == seen.generation {
        true => row.try_get::<i64, _>(7)? == 1,
        // A store of a later generation lists the earlier ones, and nothing of those is valid any more.
        false => row.try_get::<i64, _>(8)? > 0,
    };
    let (lineage, server) = (row.try_get(2)?, row.try_get(3)?);
    Ok(Found { seen: found, lineage, server, clock: row.try_get(4)?, went_back_at: row.try_get(5)?, known })
}
