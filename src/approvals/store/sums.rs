//! Sums over allowed calls. Amounts are reserved in a transaction that every other writer waits for, so a sum
//! never exceeds its limit.

use std::time::Duration;

use sqlx::{AnyConnection, AssertSqlSafe, Row as _};

use crate::approvals::store::Store;
use crate::approvals::store::engine::End;
use crate::approvals::store::error::StoreError;
use crate::approvals::store::history::next;
use crate::approvals::store::reserved::Reserved;
use crate::approvals::store::transitions::Reservation;
use crate::model::time::Timestamp;

/// A sum, including the amount of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sum {
    pub window: String,
    pub total: i64,
    /// Time until the sum has room for the amount; `None` if it has room now, 31 days if it never will.
    pub wait: Option<Duration>,
}

impl Store {
    /// Returns the sums, each with the amount of its reservation.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn sums_with(&self, reservations: Vec<Reservation>, at: Timestamp) -> Result<Vec<Sum>, StoreError> {
        self.read(move |mut connection| async move {
            let mut sums = vec![];
            for reservation in &reservations {
                let total = total(&mut connection, reservation, at).await?;
                let wait = wait(&mut connection, reservation, total, at).await?;
                sums.push(Sum { window: reservation.window.clone(), total, wait });
            }
            Ok(sums)
        })
        .await
    }

    /// Adds to all of these sums or to none; returns the first window that is full. If this evaluation has
    /// already added to sums, nothing changes.
    ///
    /// # Errors
    /// When the store does not answer. The amounts may have been added even so.
    pub async fn reserve(
        &self,
        evaluation_id: String,
        reservations: Vec<Reservation>,
        at: Timestamp,
    ) -> Result<Option<String>, StoreError> {
        let (noted, of) = (reservations.clone(), evaluation_id.clone());
        let full = self.advance(move |connection, writer| {
            Box::pin(async move {
                next(connection, &writer).await?;
                let stands = sqlx::query("SELECT key FROM sums WHERE evaluation_id = $1").bind(evaluation_id.clone());
                if stands.fetch_optional(&mut *connection).await?.is_some() {
                    return Ok(End::RollBack(None));
                }
                let full = add(connection, &evaluation_id, &reservations, at).await?;
                Ok(End::commit_if(full.is_none(), full))
            })
        });
        let full = full.await?;
        if full.is_none() {
            self.note_reserved(&of, &noted, at);
        }
        Ok(full)
    }
}

impl Store {
    /// Notes the additions of a call outside of the store, because the store might lose them.
    pub(super) fn note_reserved(&self, evaluation_id: &str, reservations: &[Reservation], at: Timestamp) {
        if reservations.is_empty() {
            return;
        }
        if let Err(error) = self.reserved.note(evaluation_id, reservations, at) {
            tracing::error!(name: "store.sums_not_noted", error = %error, "additions to sums could not be noted: if the state store loses data, they can't be restored");
        }
    }

    /// Restores additions that this replica noted; existing ones stay.
    pub(super) async fn add_again(&self, reserved: Vec<Reserved>) -> Result<(), StoreError> {
        self.write_apart(move |connection| {
            Box::pin(async move {
                for some in reserved.chunks(ROWS) {
                    let sql = format!(
                        "INSERT INTO sums (evaluation_id, key, amount, at, until) VALUES {} ON CONFLICT DO NOTHING",
                        rows(some.len(), 5)
                    );
                    let mut insert = sqlx::query(AssertSqlSafe(sql));
                    for Reserved { evaluation_id, key, amount, at, until } in some {
                        insert = insert
                            .bind(evaluation_id.clone())
                            .bind(key.clone())
                            .bind(*amount)
                            .bind(at.micros())
                            .bind(until.micros());
                    }
                    insert.execute(&mut *connection).await?;
                }
                Ok(End::Commit(()))
            })
        })
        .await
    }
}

/// Maximum number of rows that one statement inserts.
pub(super) const ROWS: usize = 100;

/// Returns the placeholders for this number of rows and values per row.
pub(super) fn rows(count: usize, values: usize) -> String {
    let row = |row: usize| {
        let values: Vec<String> = (1..=values).map(|value| format!("${}", row * values + value)).collect();
        format!("({})", values.join(", "))
    };
    (0..count).map(row).collect::<Vec<_>>().join(", ")
}

/// Adds to sums in an open transaction; returns the first window that is full, and stops there.
pub(super) async fn add(
    connection: &mut AnyConnection,
    evaluation_id: &str,
    reservations: &[Reservation],
    at: Timestamp,
) -> Result<Option<String>, StoreError> {
    for reservation in reservations {
        if total(connection, reservation, at).await? > reservation.most {
            return Ok(Some(reservation.window.clone()));
        }
        let insert = "INSERT INTO sums (evaluation_id, key, amount, at, until) VALUES ($1, $2, $3, $4, $5)";
        sqlx::query(insert)
            .bind(evaluation_id.to_owned())
            .bind(reservation.key.clone())
            .bind(reservation.amount)
            .bind(at.micros())
            .bind(at.plus(reservation.within).micros())
            .execute(&mut *connection)
            .await?;
    }
    Ok(None)
}

/// Returns the sum with the amount of the reservation.
async fn total(connection: &mut AnyConnection, reservation: &Reservation, at: Timestamp) -> Result<i64, StoreError> {
    let since = at.minus(reservation.within).micros();
    let sum = "SELECT CAST(COALESCE(SUM(amount), 0) AS BIGINT) FROM sums WHERE key = $1 AND at > $2";
    let sum: i64 =
        sqlx::query(sum).bind(reservation.key.clone()).bind(since).fetch_one(&mut *connection).await?.try_get(0)?;
    Ok(sum.saturating_add(reservation.amount))
}

/// Returns the time until a sum with this total would fit; `None` if it fits now.
async fn wait(
    connection: &mut AnyConnection,
    reservation: &Reservation,
    total: i64,
    at: Timestamp,
) -> Result<Option<Duration>, StoreError> {
    const NEVER: Duration = Duration::from_secs(31 * 24 * 3600);
    let since = at.minus(reservation.within).micros();
    let over = total.saturating_sub(reservation.most);
    if over <= 0 {
        return Ok(None);
    }
    // The sum fits once enough of its earliest additions have left the period.
    let freed =
        "SELECT at FROM (SELECT at, SUM(amount) OVER (ORDER BY at, evaluation_id ROWS UNBOUNDED PRECEDING) AS freed
        FROM sums WHERE key = $1 AND at > $2) AS earliest WHERE freed >= $3 ORDER BY at LIMIT 1";
    let freed = sqlx::query(freed)
        .bind(reservation.key.clone())
        .bind(since)
        .bind(over)
        .fetch_optional(&mut *connection)
        .await?;
    let Some(row) = freed else { return Ok(Some(NEVER)) };
    let left = Timestamp::from_micros(row.try_get(0)?).plus(reservation.within);
    Ok(Some(Duration::from_micros(left.micros().saturating_sub(at.micros()).unsigned_abs())))
}
