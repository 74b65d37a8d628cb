//! Lifting of kill switches: who asked for it, and when enough humans have.

use std::time::Duration;

use sqlx::{AnyConnection, AssertSqlSafe, Row as _};

use crate::approvals::store::Store;
use crate::approvals::store::engine::End;
use crate::approvals::store::error::StoreError;
use crate::approvals::store::history::{Writer, next};
use crate::approvals::store::outbox::leave;
use crate::approvals::store::transitions::Revision;
use crate::model::halt::{HaltKind, SubjectKind};
use crate::model::time::Timestamp;

/// Time within which all humans that a lifting needs must ask for it.
const TOGETHER: Duration = Duration::from_secs(15 * 60);

/// A human's wish to lift a kill switch.
#[derive(Clone, Debug)]
pub struct Lift {
    /// Tenant of the subject; empty for the server.
    pub tenant: String,
    pub subject_kind: SubjectKind,
    pub subject: String,
    pub asks: Asked,
    /// Persons who asked before and may not lift any more.
    pub excluded: Vec<String>,
    /// Number of humans who must ask.
    pub quorum: u32,
    pub at: Timestamp,
    /// Record if the switch is lifted.
    pub lifted: serde_json::Value,
    /// Record if more humans must ask.
    pub asked: serde_json::Value,
}

/// A human who asked for a lifting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The person, who may have several entities.
    pub person: String,
    /// Entity id.
    pub human: String,
    /// Time when the human's token was issued.
    pub issued_at: Timestamp,
}

/// Result of asking for a lifting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LiftTaken {
    /// This number of humans has asked, and more must.
    Asked(u32, Revision),
    Lifted(Revision),
    /// No kill switch of this subject is in force.
    Nothing,
    /// The switch was reported again meanwhile.
    Reported,
}

const WHOSE: &str = "tenant = $1 AND subject_kind = $2 AND subject = $3";

impl Store {
    /// Returns the humans who have asked for a lifting.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn lift_asked(&self, tenant: &str, kind: SubjectKind, subject: &str) -> Result<Vec<Asked>, StoreError> {
        let sql = format!("SELECT person, human, issued_at FROM lifts WHERE {WHOSE}");
        let query = sqlx::query(AssertSqlSafe(sql)).bind(tenant.to_owned()).bind(kind.name()).bind(subject.to_owned());
        let rows = self.read(|mut connection| async move { Ok(query.fetch_all(&mut *connection).await?) }).await?;
        rows.iter()
            .map(|row| {
                let issued_at = Timestamp::from_micros(row.try_get("issued_at")?);
                Ok(Asked { person: row.try_get("person")?, human: row.try_get("human")?, issued_at })
            })
            .collect()
    }

    /// Lifts a kill switch if enough humans ask for it. It takes effect with the next refresh of each replica.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn lift(&self, asked: Lift) -> Result<LiftTaken, StoreError> {
        self.advance(move |connection, writer| Box::pin(async move { lift(connection, &writer, asked).await })).await
    }
}

async fn lift(connection: &mut AnyConnection, writer: &Writer, wish: Lift) -> Result<End<LiftTaken>, StoreError> {
    let Lift { tenant, subject_kind, subject, asks, excluded, quorum, at, lifted, asked } = wish;
    let kind = subject_kind.name();
    let statement = |sql: String| sqlx::query(AssertSqlSafe(sql)).bind(tenant.clone()).bind(kind).bind(subject.clone());
    let revision = next(connection, writer).await?;
    let sql = format!(
        "SELECT since FROM halts WHERE {WHOSE} AND kind = $4 AND until > $5 AND (lifted = 0 OR lifted < since)"
    );
    let switch = statement(sql).bind(HaltKind::KillSwitch.name()).bind(at.micros());
    let Some(switch) = switch.fetch_optional(&mut *connection).await? else {
        return Ok(End::RollBack(LiftTaken::Nothing));
    };
    let since: i64 = switch.try_get(0)?;
    for person in excluded {
        statement(format!("DELETE FROM lifts WHERE {WHOSE} AND person = $4"))
            .bind(person)
            .execute(&mut *connection)
            .await?;
    }
    let vote = "INSERT INTO lifts (tenant, subject_kind, subject, person, human, issued_at, at) VALUES ($1, $2, $3, $4, $5, $6, $7)
        ON CONFLICT (tenant, subject_kind, subject, person) DO UPDATE SET human = excluded.human,
            issued_at = excluded.issued_at, at = excluded.at";
    let vote = statement(vote.to_owned()).bind(asks.person).bind(asks.human).bind(asks.issued_at.micros());
    vote.bind(at.micros()).execute(&mut *connection).await?;
    // A human whom two issuers name may have a person for each of them, and counts once. A vote from before the last report does not
    // count, because the voter did not know of that report.
    let from = since.max(at.minus(TOGETHER).micros());
    let count = statement(format!("SELECT COUNT(DISTINCT human) FROM lifts WHERE {WHOSE} AND at >= $4")).bind(from);
    let count: i64 = count.fetch_one(&mut *connection).await?.try_get(0)?;
    let count = u32::try_from(count).map_err(|_| StoreError::Damaged)?;
    if count < quorum {
        leave(connection, writer, &revision, "", &asked, at).await?;
        return Ok(End::Commit(LiftTaken::Asked(count, revision)));
    }
    // A report does not wait for this transaction, so it may have been stored since the switch was read.
    let update = statement(format!("UPDATE halts SET lifted = $5 WHERE {WHOSE} AND kind = $4 AND since = $6"));
    let update = update.bind(HaltKind::KillSwitch.name()).bind(at.micros().max(since)).bind(since);
    if update.execute(&mut *connection).await?.rows_affected() == 0 {
        return Ok(End::RollBack(LiftTaken::Reported));
    }
    statement(format!("DELETE FROM lifts WHERE {WHOSE}")).execute(&mut *connection).await?;
    leave(connection, writer, &revision, "", &lifted, at).await?;
    Ok(End::Commit(LiftTaken::Lifted(revision)))
}
