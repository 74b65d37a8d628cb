//! The store's history: a count of revisions, each with a head that no other history has. A store that lost its last writes, in a failover
//! to a standby that was behind or by an older backup, counts to the same numbers again, under other heads. So a replica that knows
//! a head can tell whether the store still has what it had.
//!
//! A replica alone can't tell what another one wrote last. So the store also names the lineage that it is in (see
//! [`Dialect`](super::engine::Dialect)). When that is another one, nothing is written until each replica that was there at the end has
//! found its head, or a few seconds are over. If one does not find it, or does not come, or nobody knows a head, the store gets a new
//! generation: what was approved or released in earlier ones is void.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use sqlx::{AnyConnection, AssertSqlSafe, Row as _};

use crate::approvals::store::engine::{Dialect, Operation};
use crate::approvals::store::{Seen, Store, StoreError, reads, signals};
use crate::model::halt::{Halt, Halts};
use crate::model::time::Timestamp;

/// How long a store that is in another lineage waits for the replicas that were there at the end.
pub const SETTLE: Duration = Duration::from_secs(5);
/// Whose last heartbeat is this much older than the last one of all was gone before the lineage changed.
const GONE: Duration = Duration::from_secs(5);

/// A write of the store: its number, and the head that only this history has at that number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revision {
    /// Number. That of a signal is negative: it takes no part in the count, so that nothing can hold it up.
    pub number: i64,
    /// Head; empty where none is known.
    pub head: String,
}

/// Who writes, and what it knows of the store.
#[derive(Clone, Debug)]
pub(super) struct Writer {
    /// The last revision that it has seen.
    pub seen: Seen,
    /// The replica, whose audit log records what it leaves in the outbox.
    pub replica: String,
    /// The start of its process.
    pub boot: String,
    heads: Arc<AtomicU64>,
    dialect: Dialect,
    /// The last revision of this transaction.
    last: Arc<Mutex<Option<Revision>>>,
}

impl Writer {
    /// Unlike that of any other write, of any process.
    fn fresh(&self) -> [u8; 16] {
        let count = self.heads.fetch_add(1, Ordering::Relaxed);
        let digest: [u8; 32] = Sha256::new().chain_update(&self.boot).chain_update(count.to_be_bytes()).finalize().into();
        digest.first_chunk().copied().unwrap_or_default()
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

/// What the store says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The last revision seen.
    pub seen: Seen,
    /// False while it is not known whether the store lost anything when it came into another lineage. Nothing is written then.
    pub settled: bool,
    /// When it was found that the store went back, until an operator confirms it.
    pub went_back_at: Option<Timestamp>,
}

/// What a question about the history found.
struct Found {
    seen: Seen,
    lineage: String,
    server: String,
    clock: i64,
    went_back_at: i64,
    /// Whether the head that this replica knows is there.
    known: bool,
}

impl Store {
    pub(super) fn writer(&self) -> Writer {
        Writer {
            seen: self.seen(),
            replica: self.options.replica.clone(),
            boot: self.options.boot.clone(),
            heads: Arc::clone(&self.heads),
            dialect: self.engine.dialect().clone(),
            last: Arc::default(),
        }
    }

    /// Runs an operation that counts revisions, in a transaction.
    pub(super) async fn advance<T: Send + 'static>(
        &self,
        operation: impl for<'c> FnOnce(&'c mut AnyConnection, Writer) -> Operation<'c, T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let writer = self.writer();
        let last = Arc::clone(&writer.last);
        let written = self.write(move |connection| {
            Box::pin(async move {
                let counted = Arc::clone(&writer.last);
                let (keep, value) = operation(connection, writer).await?;
                if !keep {
                    *counted.lock().unwrap_or_else(PoisonError::into_inner) = None;
                }
                Ok((keep, value))
            })
        });
        let value = written.await?;
        if let Some(revision) = last.lock().unwrap_or_else(PoisonError::into_inner).take() {
            self.saw(&revision);
        }
        Ok(value)
    }

    fn saw(&self, revision: &Revision) {
        self.seen.rcu(|seen| match revision.number > seen.revision {
            true => Seen { generation: seen.generation.clone(), revision: revision.number, head: revision.head.clone() },
            false => seen.as_ref().clone(),
        });
    }

    /// Reads the stops and reports anew, and looks whether the store went back; then it is given a new generation. To be called twice
    /// a second.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn refresh(&self, now: Timestamp, generation: String) -> Result<Condition, StoreError> {
        let before = self.halts();
        let (seen, dialect) = (self.seen(), self.engine.dialect().clone());
        let asked = self.read_apart(|mut connection| async move {
            let found = ask(&mut connection, &dialect, &seen, Asking::Looking).await?;
            Ok((found, reads::halts(&mut connection, reads::Which::All).await?))
        });
        let (found, read) = match asked.await {
            Ok(found) => found,
            Err(error) => return Err(self.engine.why_unreachable(self.options.timeout).await.unwrap_or(error)),
        };
        let mut halts: Halts = read.into_iter().collect();
        let standing: Vec<Halt> = before.halts.iter().filter(|halt| halt.until > now).cloned().collect();
        let lacks = standing.iter().any(|halt| halt.kind.stops() && !halts.has(halt));
        let mut condition = Condition { seen: self.seen(), settled: true, went_back_at: None };
        let same = found.seen.generation == condition.seen.generation && found.known && found.lineage == found.server && !lacks;
        let settled = match same {
            true => {
                self.saw(&Revision { number: found.seen.revision, head: found.seen.head.clone() });
                *self.settling_since() = None;
                Some((self.seen(), found.went_back_at))
            }
            // What was stopped stays stopped, though the store may have forgotten it.
            false => {
                standing.iter().for_each(|halt| halts.add(halt.clone()));
                self.settle(now, generation, (standing, lacks)).await?
            }
        };
        match settled {
            Some((seen, went_back_at)) => {
                condition.went_back_at = (went_back_at > 0).then(|| Timestamp::from_micros(went_back_at));
                if !same {
                    self.seen.store(Arc::new(seen.clone()));
                }
                condition.seen = seen;
            }
            None => condition.settled = false,
        }
        self.settled.store(condition.settled, Ordering::Release);
        self.knows.fetch_or(condition.settled, Ordering::AcqRel);
        self.copy_halts(&halts, now, before.taken);
        self.note_stops(now);
        Ok(condition)
    }

    fn settling_since(&self) -> std::sync::MutexGuard<'_, Option<Timestamp>> {
        self.settling_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds out, with the other replicas, whether the store lost anything. `None`: it is not known yet.
    async fn settle(
        &self,
        now: Timestamp,
        generation: String,
        (standing, lacks): (Vec<Halt>, bool),
    ) -> Result<Option<(Seen, i64)>, StoreError> {
        let since = *self.settling_since();
        if since.is_none() {
            // Before anybody may write again.
            self.reserve_again(now).await?;
            *self.settling_since() = Some(now);
        }
        let late = since.is_some_and(|since| since.plus(SETTLE) <= now);
        let (writer, knows) = (self.writer(), self.knows.load(Ordering::Acquire));
        self.write_apart(move |connection| {
            Box::pin(async move {
                let found = ask(connection, &writer.dialect, &writer.seen, Asking::Holding).await?;
                for halt in &standing {
                    signals::stand(connection, halt).await?;
                }
                let moved = found.lineage != found.server;
                if !found.known || lacks {
                    return Ok((true, Some(renew(connection, &writer, &generation, &found).await?)));
                }
                if !moved {
                    return Ok((true, Some((found.seen, found.went_back_at))));
                }
                match all_found(connection, &writer, knows, &found).await? {
                    Some(true) => {
                        let sql = "UPDATE meta SET lineage = $1 WHERE one = 1";
                        sqlx::query(sql).bind(found.server).execute(&mut *connection).await?;
                        Ok((true, Some((found.seen, found.went_back_at))))
                    }
                    Some(false) => Ok((true, Some(renew(connection, &writer, &generation, &found).await?))),
                    None if late => Ok((true, Some(renew(connection, &writer, &generation, &found).await?))),
                    None => Ok((true, None)),
                }
            })
        })
        .await
    }

    /// Notes what stops outside of the store.
    pub(super) fn note_stops(&self, now: Timestamp) {
        if let Err(error) = self.stops.note(self.halts().halts.iter(), now) {
            tracing::error!(name: "store.stops_not_noted", error = %error, "a store that goes back might lose a kill switch");
        }
    }

    /// The store's time; `None` of a store that nobody shares.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn time(&self) -> Result<Option<Timestamp>, StoreError> {
        let dialect = self.engine.dialect();
        if !dialect.is_shared {
            return Ok(None);
        }
        let asked = sqlx::query_scalar::<_, i64>(AssertSqlSafe(format!("SELECT {}", dialect.clock)));
        let micros = self.read_apart(|mut connection| async move { Ok(asked.fetch_one(&mut *connection).await?) }).await?;
        Ok(Some(Timestamp::from_micros(micros)))
    }

    /// An operator knows that the store went back.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn confirm(&self) -> Result<(), StoreError> {
        self.write_apart(|connection| {
            Box::pin(async move {
                sqlx::query("UPDATE meta SET went_back_at = 0 WHERE one = 1").execute(connection).await?;
                Ok((true, ()))
            })
        })
        .await
    }
}

/// Counts the revision up. Holds every other writer back until the transaction ends, and refuses a store that went back.
pub(super) async fn next(connection: &mut AnyConnection, writer: &Writer) -> Result<Revision, StoreError> {
    let lineage = &writer.dialect.lineage;
    let sql =
        format!("UPDATE meta SET revision = revision + 1 WHERE one = 1 AND generation = $1 AND lineage = {lineage} RETURNING revision");
    let row = sqlx::query(AssertSqlSafe(sql)).bind(writer.seen.generation.clone()).fetch_optional(&mut *connection).await?;
    let number: i64 = row.ok_or(StoreError::Unsettled)?.try_get(0)?;
    let revision = Revision { number, head: writer.fresh().iter().map(|byte| format!("{byte:02x}")).collect() };
    insert(connection, &writer.dialect, &revision, &writer.seen).await?.then_some(()).ok_or(StoreError::WentBack)?;
    *writer.last() = Some(revision.clone());
    Ok(revision)
}

/// Adds a revision; false if what was seen is not there.
async fn insert(connection: &mut AnyConnection, dialect: &Dialect, revision: &Revision, seen: &Seen) -> Result<bool, StoreError> {
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
            OR ({head} = '' AND CAST({number} AS BIGINT) <= (SELECT MAX(revision) FROM revisions)))"
    )
}

/// How a question about the history is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asking {
    /// Every other writer is held back until the transaction ends.
    Holding,
    /// Nobody is held back.
    Looking,
}

/// Asks where the store stands.
async fn ask(connection: &mut AnyConnection, dialect: &Dialect, seen: &Seen, asking: Asking) -> Result<Found, StoreError> {
    let (lineage, clock, known) = (&dialect.lineage, &dialect.clock, known("$1", "$2"));
    let what = format!(
        "generation, revision, lineage, {lineage}, {clock}, went_back_at,
            COALESCE((SELECT head FROM revisions WHERE revision = meta.revision), ''), CASE WHEN {known} THEN CAST(1 AS BIGINT) ELSE CAST(0 AS BIGINT) END,
            (SELECT COUNT(*) FROM generations WHERE generation = $3)"
    );
    let sql = match asking {
        Asking::Holding => format!("UPDATE meta SET revision = revision WHERE one = 1 RETURNING {what}"),
        Asking::Looking => format!("SELECT {what} FROM meta WHERE one = 1"),
    };
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

/// Whether every replica that was there at the end has found its head; this one has. `None`: some have not looked yet.
async fn all_found(connection: &mut AnyConnection, writer: &Writer, knows: bool, found: &Found) -> Result<Option<bool>, StoreError> {
    let last: i64 = sqlx::query("SELECT COALESCE(MAX(at), 0) FROM replicas").fetch_one(&mut *connection).await?.try_get(0)?;
    if knows {
        // A heartbeat says when a replica was there at last: this is none.
        let sql = "INSERT INTO replicas (replica, boot, at, confirmed, bundle) VALUES ($1, $2, $3, $4, '') ON CONFLICT (replica)
            DO UPDATE SET confirmed = excluded.confirmed";
        let confirm = sqlx::query(sql).bind(writer.replica.clone()).bind(writer.boot.clone());
        confirm.bind(last).bind(found.server.clone()).execute(&mut *connection).await?;
    }
    let sql = "SELECT confirmed FROM replicas WHERE at >= $1";
    let since = Timestamp::from_micros(last).minus(GONE).micros();
    let rows = sqlx::query(sql).bind(since).fetch_all(connection).await?;
    let confirmed = rows.iter().map(|row| Ok(row.try_get::<String, _>(0)? == found.server)).collect::<Result<Vec<_>, StoreError>>()?;
    Ok(match (confirmed.is_empty(), confirmed.iter().all(|found| *found)) {
        // Nobody knows what the store had.
        (true, _) => Some(false),
        (false, true) => Some(true),
        (false, false) => None,
    })
}

/// Gives the store a new generation, at a revision that was never used. What it holds of earlier ones is nothing from then on.
async fn renew(connection: &mut AnyConnection, writer: &Writer, generation: &str, found: &Found) -> Result<(Seen, i64), StoreError> {
    let number = writer.seen.revision.max(found.seen.revision) + 1;
    let insert_old = "INSERT INTO generations (generation) VALUES ($1) ON CONFLICT DO NOTHING";
    for old in [&writer.seen.generation, &found.seen.generation] {
        sqlx::query(insert_old).bind(old.clone()).execute(&mut *connection).await?;
    }
    let sql = "UPDATE meta SET generation = $1, revision = $2, lineage = $3, went_back_at = $4 WHERE one = 1";
    let update = sqlx::query(sql).bind(generation.to_owned()).bind(number).bind(found.server.clone()).bind(found.clock);
    update.execute(&mut *connection).await?;
    let revision = Revision { number, head: writer.fresh().iter().map(|byte| format!("{byte:02x}")).collect() };
    insert(connection, &writer.dialect, &revision, &found.seen).await?;
    // What was answered or verified may have been used or ended in what was lost.
    for sql in ["DELETE FROM receipts", "DELETE FROM checks"] {
        sqlx::query(sql).execute(&mut *connection).await?;
    }
    tracing::error!(
        name: "store.went_back", seen = writer.seen.revision, found = found.seen.revision,
        "the state store lacks what was written to it: what was approved, released or verified before is void. Report stops again that no \
         replica knew, then confirm with `countersign store confirm`"
    );
    Ok((Seen { generation: generation.to_owned(), revision: number, head: revision.head }, found.clock))
}
