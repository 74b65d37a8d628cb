//! Whether the store has all that was written to it. A replica that does not find the head that it knows, or a stop, knows of a loss; and a
//! store that is in another lineage (see [`Dialect`](super::engine::Dialect)) may have lost what another replica wrote.
//!
//! Then nothing is written until every replica that was there at the end has come, or a few seconds are over. Each that comes adds again the
//! stops and sums that it noted, and says whether it found its head. If all found theirs, the store goes on. If one did not, or did not
//! come, or nobody knows a head, the store gets a new generation: what was approved, released or verified in earlier ones is void.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::{AnyConnection, AssertSqlSafe, Row as _};

use crate::approvals::store::error::StoreError;
use crate::approvals::store::history::{Found, Writer, ask, hold, insert};
use crate::approvals::store::location::Seen;
use crate::approvals::store::replicas::GONE;
use crate::approvals::store::transitions::Revision;
use crate::approvals::store::{Store, reads, signals};
use crate::model::halt::{Halt, Halts};
use crate::model::time::Timestamp;

/// How long a store waits for the replicas that were there at the end.
pub const SETTLE: Duration = Duration::from_secs(5);
/// How much older than the store's last revision notes of sums are that are added again: clocks and requests may take so long.
const MARGIN: Duration = Duration::from_secs(60);

/// What the store says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The last revision seen.
    pub seen: Seen,
    /// False while it is not known whether the store lost anything. Nothing is written then.
    pub settled: bool,
    /// When a loss was found that no operator has confirmed.
    pub went_back_at: Option<Timestamp>,
}

/// Where a store settled, and when a loss was found that nobody has confirmed; 0: none.
type Settled = (Seen, i64);

impl Store {
    /// Reads the stops and reports anew, and looks whether the store went back; then it is given a new generation. To be called twice
    /// a second, by one at a time.
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
        let missing: Vec<Halt> = before.halts.iter().filter(|halt| halt.until > now && !halts.has(halt)).cloned().collect();
        let lacks = missing.iter().any(|halt| halt.kind.stops());
        let same = found.seen.generation == own && found.known && found.lineage == found.server && !lacks;
        let settled = match same {
            true => {
                self.saw(&own, &Revision { number: found.seen.revision, head: found.seen.head.clone() });
                *self.settling_since() = None;
                Some((self.seen(), found.went_back_at))
            }
            false => {
                // What was stopped stays stopped, though the store may have forgotten it.
                missing.iter().for_each(|halt| halts.add(halt.clone()));
                let settled = self.settle(now, generation, (&found.server, missing)).await?;
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

    /// Finds out, with the other replicas, whether the store lost anything. `None`: it is not known yet.
    async fn settle(
        &self,
        now: Timestamp,
        generation: String,
        (server, missing): (&str, Vec<Halt>),
    ) -> Result<Option<Settled>, StoreError> {
        let since = self.settling_since().clone().filter(|(of, _)| of == server).map(|(_, since)| since);
        if since.is_none() {
            // Before this replica says that it has come, and anybody may write again.
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
                    return Ok((true, Some((found.seen, found.went_back_at))));
                }
                if lost && found.lineage == found.server {
                    // So that no other replica writes before it has come.
                    sqlx::query("UPDATE meta SET lineage = '' WHERE one = 1").execute(&mut *connection).await?;
                }
                match come(connection, &writer, &found.server, (knows, lost)).await? {
                    Came::All { lost: false } => {
                        let sql = "UPDATE meta SET lineage = $1 WHERE one = 1";
                        sqlx::query(sql).bind(found.server).execute(&mut *connection).await?;
                        Ok((true, Some((found.seen, found.went_back_at))))
                    }
                    Came::Some if !late => Ok((true, None)),
                    Came::All { lost: true } | Came::Some => Ok((true, Some(renew(connection, &writer, &generation, &found).await?))),
                }
            })
        })
        .await
    }

    /// Adds to sums again what this replica noted since a while before the store's last revision.
    async fn reserve_again(&self) -> Result<(), StoreError> {
        let last = sqlx::query_scalar::<_, i64>("SELECT COALESCE(MAX(at), 0) FROM revisions");
        let last = self.read_apart(|mut connection| async move { Ok(last.fetch_one(&mut *connection).await?) }).await?;
        let since = Timestamp::from_micros(last).minus(MARGIN);
        let (sender, mut some) = tokio::sync::mpsc::channel(4);
        let notes = Arc::clone(&self.reserved);
        // A receiver that is gone wants no more.
        let reading = tokio::task::spawn_blocking(move || notes.since(since, |reserved| drop(sender.blocking_send(reserved))));
        while let Some(reserved) = some.recv().await {
            self.add_again(reserved).await?;
        }
        let read = reading.await.map_err(std::io::Error::other).and_then(|read| read);
        if let Err(error) = read {
            tracing::error!(name: "store.sums_not_read", error = %error, "sums may count less than was allowed");
        }
        Ok(())
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

    /// An operator knows of the loss that was found at this time. A later one waits for its own confirmation.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn confirm(&self, went_back_at: Timestamp) -> Result<(), StoreError> {
        self.write_apart(move |connection| {
            Box::pin(async move {
                let sql = "UPDATE meta SET went_back_at = 0 WHERE one = 1 AND went_back_at = $1";
                sqlx::query(sql).bind(went_back_at.micros()).execute(connection).await?;
                Ok((true, ()))
            })
        })
        .await
    }
}

/// Who has come of the replicas that were there at the end.
enum Came {
    /// All: whether one of them did not find its head, or nobody knows one.
    All { lost: bool },
    /// Not all.
    Some,
}

/// Says that this replica has come, unless it knows no head, and who else has.
async fn come(connection: &mut AnyConnection, writer: &Writer, server: &str, (knows, lost): (bool, bool)) -> Result<Came, StoreError> {
    let missed = format!("missed {server}");
    let last: i64 = sqlx::query("SELECT COALESCE(MAX(at), 0) FROM replicas").fetch_one(&mut *connection).await?.try_get(0)?;
    if knows {
        // A heartbeat says when a replica was there at last: this is none.
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

/// Gives the store a new generation, at a revision that was never used. What it holds of earlier ones is nothing from then on.
async fn renew(connection: &mut AnyConnection, writer: &Writer, generation: &str, found: &Found) -> Result<Settled, StoreError> {
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
    // What was answered or verified may have been used or ended in what was lost.
    for sql in ["DELETE FROM receipts", "DELETE FROM checks"] {
        sqlx::query(sql).execute(&mut *connection).await?;
    }
    Ok((Seen { generation: generation.to_owned(), revision: number, head: revision.head }, found.clock))
}
