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
    pub human: String,
    /// Number of humans who must ask.
    pub quorum: u32,
    pub at: Timestamp,
    /// Record if the switch is lifted.
    pub lifted: serde_json::Value,
    /// Record if more humans must ask.
    pub asked: serde_json::Value,
}

/// Result of asking for a lifting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LiftTaken {
    /// This number of humans has asked, and more must.
    Asked(u32, Revision),
    Lifted(Revision),
    /// No kill switch of this subject is in force.
    Nothing,
}

impl Store {
    /// Lifts a kill switch if enough humans ask for it. It takes effect with the next refresh of each replica.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn lift(&self, asked: Lift) -> Result<LiftTaken, StoreError> {
        self.advance(move |connection, writer| Box::pin(async move { lift(connection, &writer, asked).await })).await
    }
}

async fn lift(connection: &mut AnyConnection, writer: &Writer, asked: Lift) -> Result<End<LiftTaken>, StoreError> {
    const WHOSE: &str = "tenant = $1 AND subject_kind = $2 AND subject = $3";
    let Lift { tenant, subject_kind, subject, human, quorum, at, lifted, asked } = asked;
    let kind = subject_kind.name();
    let revision = next(connection, writer).await?;
    let sql = format!(
        "SELECT since FROM halts WHERE {WHOSE} AND kind = $4 AND until > $5 AND (lifted = 0 OR lifted < since)"
    );
    let switch = sqlx::query(AssertSqlSafe(sql)).bind(tenant.clone()).bind(kind).bind(subject.clone());
    let switch = switch.bind(HaltKind::KillSwitch.name()).bind(at.micros()).fetch_optional(&mut *connection).await?;
    let Some(switch) = switch else { return Ok(End::RollBack(LiftTaken::Nothing)) };
    let since: i64 = switch.try_get(0)?;
    let vote = "INSERT INTO lifts (tenant, subject_kind, subject, human, at) VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (tenant, subject_kind, subject, human) DO UPDATE SET at = excluded.at";
    let vote = sqlx::query(vote).bind(tenant.clone()).bind(kind).bind(subject.clone()).bind(human);
    vote.bind(at.micros()).execute(&mut *connection).await?;
    // Who asked before the switch was last reported did not mean that report.
    let from = since.max(at.minus(TOGETHER).micros());
    let sql = format!("SELECT COUNT(*) FROM lifts WHERE {WHOSE} AND at >= $4");
    let count = sqlx::query(AssertSqlSafe(sql)).bind(tenant.clone()).bind(kind).bind(subject.clone()).bind(from);
    let count: i64 = count.fetch_one(&mut *connection).await?.try_get(0)?;
    let count = u32::try_from(count).map_err(|_| StoreError::Damaged)?;
    if count < quorum {
        leave(connection, writer, &revision, "", &asked, at).await?;
        return Ok(End::Commit(LiftTaken::Asked(count, revision)));
    }
    let sql = format!("UPDATE halts SET lifted = $5 WHERE {WHOSE} AND kind = $4");
    let update = sqlx::query(AssertSqlSafe(sql)).bind(tenant.clone()).bind(kind).bind(subject.clone());
    update.bind(HaltKind::KillSwitch.name()).bind(at.micros().max(since)).execute(&mut *connection).await?;
    let sql = format!("DELETE FROM lifts WHERE {WHOSE}");
    let delete = sqlx::query(AssertSqlSafe(sql)).bind(tenant).bind(kind).bind(subject);
    delete.execute(&mut *connection).await?;
    leave(connection, writer, &revision, "", &lifted, at).await?;
    Ok(End::Commit(LiftTaken::Lifted(revision)))
}
