//! Decides whether the store has everything that was written to it, and voids earlier approvals if it does
//! not.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::{AnyConnection, AssertSqlSafe, Row as _};

use crate::approvals::store::engine::End;
use crate::approvals::store::error::StoreError;
use crate::approvals::store::history::{Found, Writer, ask, hold, insert};
use crate::approvals::store::location::Seen;
use crate::approvals::store::replicas::GONE;
use crate::approvals::store::transitions::Revision;
use crate::approvals::store::{Store, reads, signals};
use crate::model::halt::{Halt, Halts};
use crate::model::time::Timestamp;

/// Time for which the store waits for the replicas that were last running.
pub const SETTLE: Duration = Duration::from_secs(5);
/// Maximum age of restored notes of sums before the store's last revision; allows for clock differences and
/// running requests.
const MARGIN: Duration = Duration::from_secs(60);

/// State of the store after a refresh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Last revision seen.
    pub seen: Seen,
    /// False while it is unknown whether the store lost anything; until then nothing is written.
    pub settled: bool,
    /// Time when a loss was found that no operator has confirmed.
    pub went_back_at: Option<Timestamp>,
}

/// Last revision of a settled store, and the time when an unconfirmed loss was found, in microseconds; 0 without
/// one.
type Settled = (Seen, i64);

impl Store {
    /// Reads the kill switches and other signals, and checks whether the store went back; if it did, it gets
    /// a new generation. Must be called twice a second, and never concurrently.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn refresh(&self, now: Timestamp, generation: String) -> Result<Condition, StoreError> {
        let refreshed = self.look(now, generation).await;
        if refreshed.is_err() {
            // Another server may answer the next time.
            *self.settling_since() = None;
        }
        refreshed
    }

    async fn look(&self, now: Timestamp, generation: String) -> Result<Condition, StoreError> {
        let before = self.halts();
        let (seen, dialect) = (self.seen(), self.engine.dialect().clone());
        let own = seen.generation.clone();
        let asked = self.read_apart(|mut connection| async move {
            let found = ask(&mut connection, &dialect, &seen).await?;
            Ok((found, reads::halts(&mut connection, reads::Which::All).await?))
        });
        let (found, read) = match asked.await {
            Ok(found) => found,
            Err(error) => return Err(self.engine.why_unreachable(self.options.timeout).await.unwrap_or(error)),
        };
        let mut halts: Halts = read.into_iter().collect();
        let missing: Vec<Halt> =
            before.halts.iter().filter(|halt| halt.until > now && !halts.has(halt)).cloned().collect();
        let lacks = missing.iter().any(|halt| halt.kind.stops());
        let same = found.seen.generation == own && found.known && found.lineage == found.server && !lacks;
        let settled = match same {
            true => {
                self.saw(&own, &Revision { number: found.seen.revision, head: found.seen.head.clone() });
                *self.settling_since() = None;
                Some((self.seen(), found.went_back_at))
            }
            false => {
                // A kill switch stays in effect even if the store has lost it.
                missing.iter().for_each(|halt| halts.add(halt.clone()));
                let settled = self.settle(now, generation, &found.server, missing).await?;
                if let Some((seen, _)) = &settled {
                    self.seen.store(Arc::new(seen.clone()));
                }
                settled
            }
        };
        self.settled.store(settled.is_some(), Ordering::Release);
        self.knows.fetch_or(settled.is_some(), Ordering::AcqRel);
        self.copy_halts(&halts, now, before.taken);
        self.note_stops(now);
        let went_back_at = settled.as_ref().map(|(_, at)| *at).filter(|at| *at > 0).map(Timestamp::from_micros);
        Ok(Condition { seen: self.seen(), settled: settled.is_some(), went_back_at })
    }

    fn settling_since(&self) -> MutexGuard<'_, Option<(String, Timestamp)>> {
        self.settling_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Determines together with the other replicas whether the store lost anything; `None` if it is not known
    /// yet.
    ///
    /// A replica detects a loss if it does not find the head that it has seen, or a kill switch. A store in
    /// another lineage (see [`Dialect`](super::engine::Dialect)) may have lost the writes of other replicas.
    /// In both cases nothing is written until every replica that was last running has reported, or [`SETTLE`]
    /// has passed. Each replica that reports restores the kill switches and sums that it noted, and reports
    /// whether it found its head. If all found theirs, the store continues. If one did not find its head or
    /// did not report, or no replica has seen a head, the store gets a new generation, and approvals,
    /// releases and checks of earlier generations are void.
    async fn settle(
        &self,
        now: Timestamp,
        generation: String,
        server: &str,
        missing: Vec<Halt>,
    ) -> Result<Option<Settled>, StoreError> {
        let since = self.settling_since().clone().filter(|(of, _)| of == server).map(|(_, since)| since);
        if since.is_none() {
            // Restore the sums before this replica reports, because afterwards any replica may write again.
            self.reserve_again().await?;
            *self.settling_since() = Some((server.to_owned(), now));
        }
        let late = since.is_some_and(|since| since.plus(SETTLE) <= now);
        let (writer, knows) = (self.writer(), self.knows.load(Ordering::Acquire));
        self.write_apart(move |connection| {
            Box::pin(async move {
                hold(connection).await?;
                let found = ask(connection, &writer.dialect, &writer.seen).await?;
                signals::stand_all(connection, &missing).await?;
                let lost = !found.known || missing.iter().any(|halt| halt.kind.stops());
                if !lost && found.lineage == found.server {
                    return Ok(End::Commit(Some((found.seen, found.went_back_at))));
                }
                if lost && found.lineage == found.server {
                    // Clear the lineage, so that no other replica writes before it has reported.
                    sqlx::query("UPDATE meta SET lineage = '' WHERE one = 1").execute(&mut *connection).await?;
                }
                match come(connection, &writer, &found.server, knows, lost).await? {
                    Came::All { lost: false } => {
                        let sql = "UPDATE meta SET lineage = $1 WHERE one = 1";
                        sqlx::query(sql).bind(found.server).execute(&mut *connection).await?;
                        Ok(End::Commit(Some((found.seen, found.went_back_at))))
                    }
                    Came::Some if !late => Ok(End::Commit(None)),
                    Came::All { lost: true } | Came::Some => {
                        Ok(End::Commit(Some(renew(connection, &writer, &generation, &found).await?)))
                    }
                }
            })
        })
        .await
    }

    /// Restores the sums that this replica noted shortly before the store's last revision or later.
    async fn reserve_again(&self) -> Result<(), StoreError> {
        let last = sqlx::query_scalar::<_, i64>("SELECT COALESCE(MAX(at), 0) FROM revisions");
        let last = self.read_apart(|mut connection| async move { Ok(last.fetch_one(&mut *connection).await?) }).await?;
        let since = Timestamp::from_micros(last).minus(MARGIN);
        let (sender, mut some) = tokio::sync::mpsc::channel(4);
        let notes = Arc::clone(&self.reserved);
        // If the receiver is gone, the rest is not needed.
        let reading =
            tokio::task::spawn_blocking(move || notes.since(since, |reserved| drop(sender.blocking_send(reserved))));
        while let Some(reserved) = some.recv().await {
            self.add_again(reserved).await?;
        }
        let read = reading.await.map_err(std::io::Error::other).and_then(|read| read);
        if let Err(error) = read {
            tracing::error!(name: "store.sums_not_read", error = %error, "could not read the notes of sums: sums may be too low");
        }
        Ok(())
    }

    /// Returns the store's time; `None` if the store is not shared.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn time(&self) -> Result<Option<Timestamp>, StoreError> {
        let dialect = self.engine.dialect();
        if !dialect.is_shared {
            return Ok(None);
        }
        let asked = sqlx::query_scalar::<_, i64>(AssertSqlSafe(format!("SELECT {}", dialect.clock)));
        let micros =
            self.read_apart(|mut connection| async move { Ok(asked.fetch_one(&mut *connection).await?) }).await?;
        Ok(Some(Timestamp::from_micros(micros)))
    }

    /// Confirms on behalf of an operator the loss that was found at this time. A later loss needs its own
    /// confirmation.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn confirm(&self, went_back_at: Timestamp) -> Result<(), StoreError> {
        self.write_apart(move |connection| {
            Box::pin(async move {
                let sql = "UPDATE meta SET went_back_at = 0 WHERE one = 1 AND went_back_at = $1";
                sqlx::query(sql).bind(went_back_at.micros()).execute(connection).await?;
                Ok(End::Commit(()))
            })
        })
        .await
    }
}

/// Reports of the replicas that were last running.
enum Came {
    /// All have reported. `lost` is true if one did not find its head, or if none has seen a head.
    All { lost: bool },
    /// At least one has not reported.
    Some,
}

/// Stores this replica's report, unless it has seen no head, and returns whether all replicas have reported.
async fn come(
    connection: &mut AnyConnection,
    writer: &Writer,
    server: &str,
    knows: bool,
    lost: bool,
) -> Result<Came, StoreError> {
    let missed = format!("missed {server}");
    let last: i64 =
        sqlx::query("SELECT COALESCE(MAX(at), 0) FROM replicas").fetch_one(&mut *connection).await?.try_get(0)?;
    if knows {
        // This is not a heartbeat, so the time of the last heartbeat stays.
        let sql = "INSERT INTO replicas (replica, boot, at, confirmed, bundle) VALUES ($1, $2, $3, $4, '') ON CONFLICT (replica)
            DO UPDATE SET confirmed = excluded.confirmed";
        let said = if lost { missed.clone() } else { server.to_owned() };
        let confirm = sqlx::query(sql).bind(writer.replica.clone()).bind(writer.boot.clone()).bind(last).bind(said);
        confirm.execute(&mut *connection).await?;
    }
    let since = Timestamp::from_micros(last).minus(GONE).micros();
    let rows = sqlx::query("SELECT confirmed FROM replicas WHERE at >= $1").bind(since).fetch_all(connection).await?;
    let said = rows.iter().map(|row| Ok(row.try_get(0)?)).collect::<Result<Vec<String>, StoreError>>()?;
    if said.iter().any(|said| said != server && *said != missed) {
        return Ok(Came::Some);
    }
    Ok(Came::All { lost: lost || said.is_empty() || said.contains(&missed) })
}

/// Gives the store a new generation, at a revision above those that the store and this replica had. Content
/// of earlier generations is void from then on.
async fn renew(
    connection: &mut AnyConnection,
    writer: &Writer,
    generation: &str,
    found: &Found,
) -> Result<Settled, StoreError> {
    let number = writer.seen.revision.max(found.seen.revision) + 1;
    let insert_old = "INSERT INTO generations (generation) VALUES ($1) ON CONFLICT DO NOTHING";
    for old in [&writer.seen.generation, &found.seen.generation] {
        sqlx::query(insert_old).bind(old.clone()).execute(&mut *connection).await?;
    }
    let sql = "UPDATE meta SET generation = $1, revision = $2, lineage = $3, went_back_at = $4 WHERE one = 1";
    let update = sqlx::query(sql).bind(generation.to_owned()).bind(number).bind(found.server.clone()).bind(found.clock);
    update.execute(&mut *connection).await?;
    let revision = writer.revision(number);
    insert(connection, &writer.dialect, &revision, &found.seen).await?;
    // The lost writes may have used or ended what a receipt or a check is about.
    for sql in ["DELETE FROM receipts", "DELETE FROM checks"] {
        sqlx::query(sql).execute(&mut *connection).await?;
    }
    Ok((Seen { generation: generation.to_owned(), revision: number, head: revision.head }, found.clock))
}
