//! Outcomes, which create or end checks, and signals: kill switches, revoked sessions and reports that raise
//! the risk.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::{AnyConnection, AssertSqlSafe, Row as _};

use crate::approvals::store::engine::End;
use crate::approvals::store::error::StoreError;
use crate::approvals::store::history::{Writer, hold, next};
use crate::approvals::store::lifecycle::{self, Ending};
use crate::approvals::store::outbox::leave;
use crate::approvals::store::sums::{ROWS, rows};
use crate::approvals::store::transitions::{Moved, NewOutcome, Revision, Transition};
use crate::approvals::store::{Store, reads};
use crate::model::approval::Approval;
use crate::model::halt::{Halt, HaltKind, Severity, SignalKind, SubjectKind};
use crate::model::time::Timestamp;

/// Maximum number of approvals that one transaction ends, because every other writer waits for it.
const CASCADE_MAX: i64 = 50;

/// Maximum number of reports per tenant that raise the risk score; each replica keeps a copy of them.
const REPORTS_MAX: i64 = 10_000;

/// Signal to store.
#[derive(Clone, Debug)]
pub struct NewSignal {
    /// Tool service that reports the signal.
    pub reporter: String,
    /// Id of the event, chosen by the reporter.
    pub event_id: String,
    pub kind: SignalKind,
    /// Effect of the signal.
    pub halt: Halt,
    /// Time when the signal is accepted.
    pub at: Timestamp,
    pub record: serde_json::Value,
}

/// Clearing of the reports about some subjects, so that they no longer raise the risk score.
#[derive(Clone, Debug)]
pub struct Cleared {
    pub tenant: String,
    pub subjects: Vec<(SubjectKind, String)>,
    pub at: Timestamp,
    pub record: serde_json::Value,
}

/// Result of storing a signal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SignalTaken {
    /// It is stored, under this key of the outbox.
    Stored(Revision),
    /// The tenant has too many reports.
    Full,
    /// The event was accepted before.
    Known,
    /// The reporter has reported a later event of this kind about this subject.
    Old,
}

impl Store {
    /// Stores an outcome once, with the checks that it creates or ends; returns `None` if it was reported
    /// before.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn outcome(&self, new: NewOutcome) -> Result<Option<Revision>, StoreError> {
        self.advance(move |connection, writer| Box::pin(async move { outcome(connection, &writer, new).await })).await
    }

    /// Stores a signal. It takes effect with its commit on this replica, and within one refresh on the
    /// others. On PostgreSQL it waits neither for consumptions nor for other writers of revisions. Returns
    /// the key of its outbox entry. [`Store::end_halted`] then ends the approvals of its subject.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn signal(&self, new: NewSignal) -> Result<SignalTaken, StoreError> {
        let (writer, halt, new_at) = (self.writer(), new.halt.clone(), new.at);
        let taken =
            self.write_apart(move |connection| Box::pin(async move { signal(connection, writer, new).await })).await?;
        if matches!(taken, SignalTaken::Stored(_)) {
            self.halts.rcu(|copy| {
                let mut halts = copy.as_ref().clone();
                halts.taken += 1;
                halts.fresh.push((halts.taken, halt.clone()));
                halts.halts.add(halt.clone());
                halts
            });
            self.note_stops(new_at);
        }
        Ok(taken)
    }

    /// Ends some of the approvals that a signal ends; returns `None` when all are ended. `record` makes
    /// an approval's record, without its state.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn end_halted(
        &self,
        at: Timestamp,
        record: fn(&Approval) -> serde_json::Value,
    ) -> Result<Option<Vec<Transition>>, StoreError> {
        let waiting = sqlx::query("SELECT subject FROM halts WHERE ends_approvals = 1 LIMIT 1");
        if self
            .read(|mut connection| async move { Ok(waiting.fetch_optional(&mut *connection).await?) })
            .await?
            .is_none()
        {
            return Ok(None);
        }
        self.advance(move |connection, writer| {
            Box::pin(async move { end_halted(connection, &writer, at, record).await })
        })
        .await
    }

    /// Deletes reports that raise the risk score; kill switches and revoked sessions stay. Returns the key of
    /// its outbox entry.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn clear(&self, cleared: Cleared) -> Result<Revision, StoreError> {
        self.advance(move |connection, writer| {
            Box::pin(async move {
                let revision = next(connection, &writer).await?;
                for (kind, subject) in &cleared.subjects {
                    let sql = "DELETE FROM halts WHERE tenant = $1 AND subject_kind = $2 AND subject = $3 AND kind LIKE 'risk%'";
                    let delete = sqlx::query(sql).bind(cleared.tenant.clone()).bind(kind.name()).bind(subject.clone());
                    delete.execute(&mut *connection).await?;
                }
                leave(connection, &writer, &revision, "", &cleared.record, cleared.at).await?;
                Ok(End::Commit(revision))
            })
        })
        .await
    }

    /// Notes kill switches and revoked sessions outside of the store.
    pub(super) fn note_stops(&self, now: Timestamp) {
        if let Err(error) = self.stops.note(self.halts().halts.iter(), now) {
            tracing::error!(name: "store.stops_not_noted", error = %error, "kill switches could not be noted: if the state store loses data, they can't be restored");
        }
    }
}

async fn outcome(
    connection: &mut AnyConnection,
    writer: &Writer,
    new: NewOutcome,
) -> Result<End<Option<Revision>>, StoreError> {
    let revision = next(connection, writer).await?;
    let once = "INSERT INTO outcomes (evaluation_id, at) VALUES ($1, $2) ON CONFLICT DO NOTHING";
    let inserted =
        sqlx::query(once).bind(new.evaluation_id.clone()).bind(new.at.micros()).execute(&mut *connection).await?;
    if inserted.rows_affected() == 0 {
        return Ok(End::RollBack(None));
    }
    if let Some((tenant, case, kinds)) = new.ends {
        for kind in kinds {
            let delete = sqlx::query("DELETE FROM checks WHERE tenant = $1 AND case_id = $2 AND kind = $3");
            delete.bind(tenant.clone()).bind(case.clone()).bind(kind).execute(&mut *connection).await?;
        }
    }
    for check in new.checks {
        let sql = "INSERT INTO checks (tenant, case_id, customer, kind, expires, evaluation_id) VALUES ($1, $2, $3, $4, $5, $6)
            ON CONFLICT (tenant, case_id, kind) DO UPDATE SET customer = excluded.customer, expires = excluded.expires,
                evaluation_id = excluded.evaluation_id";
        sqlx::query(sql)
            .bind(check.tenant)
            .bind(check.case)
            .bind(check.customer)
            .bind(check.kind)
            .bind(check.expires.micros())
            .bind(new.evaluation_id.clone())
            .execute(&mut *connection)
            .await?;
    }
    leave(connection, writer, &revision, "", &new.record, new.at).await?;
    Ok(End::Commit(Some(revision)))
}

/// INVARIANT: a signal locks neither `meta` nor approvals, so it does not wait for a consumption.
async fn signal(
    connection: &mut AnyConnection,
    writer: Writer,
    new: NewSignal,
) -> Result<End<SignalTaken>, StoreError> {
    let Halt { tenant, subject_kind, subject, kind, since, .. } = &new.halt;
    let about = format!("{tenant}/{}/{}/{subject}", new.kind.name(), subject_kind.name());
    let event = "INSERT INTO events (reporter, event_id, subject, event_time, at) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING";
    let event =
        sqlx::query(event).bind(new.reporter.clone()).bind(new.event_id).bind(about.clone()).bind(since.micros());
    if event.bind(new.at.micros()).execute(&mut *connection).await?.rows_affected() == 0 {
        return Ok(End::RollBack(SignalTaken::Known));
    }
    let last = sqlx::query("SELECT MAX(event_time) FROM events WHERE reporter = $1 AND subject = $2");
    let last: i64 = last.bind(new.reporter).bind(about).fetch_one(&mut *connection).await?.try_get(0)?;
    // A kill switch is stored even if the reporter has reported a later one, because it can only extend what
    // is stored.
    if since.micros() < last && *kind != HaltKind::KillSwitch {
        return Ok(End::RollBack(SignalTaken::Old));
    }
    match kind {
        // Only recorded, because it does not raise the risk.
        HaltKind::Risk(Severity::Info) => {}
        HaltKind::Risk(severity) if reports(connection, tenant, new.at).await? >= REPORTS_MAX => {
            // A full table drops its lightest report, and among equal ones the report that ends first. A
            // report lighter than all others is refused.
            if !evict(connection, tenant, *severity, new.at).await? {
                return Ok(End::RollBack(SignalTaken::Full));
            }
            stand(connection, &new.halt).await?;
        }
        HaltKind::KillSwitch | HaltKind::Risk(_) | HaltKind::SessionRevoked => stand(connection, &new.halt).await?,
    }
    if *kind == HaltKind::KillSwitch {
        // A lifting that was committed after this report was received must not lift it.
        let sql = "UPDATE halts SET since = lifted + 1
            WHERE tenant = $1 AND subject_kind = $2 AND subject = $3 AND kind = $4 AND lifted >= since";
        let update = sqlx::query(sql).bind(tenant.clone()).bind(subject_kind.name()).bind(subject.clone());
        update.bind(kind.name()).execute(&mut *connection).await?;
    }
    let revision = writer.unnumbered();
    leave(connection, &writer, &revision, "", &new.record, new.at).await?;
    Ok(End::Commit(SignalTaken::Stored(revision)))
}

/// Ends approvals of one signal. Locks are taken in the same order everywhere: `meta`, approvals, halts.
async fn end_halted(
    connection: &mut AnyConnection,
    writer: &Writer,
    at: Timestamp,
    record: fn(&Approval) -> serde_json::Value,
) -> Result<End<Option<Vec<Transition>>>, StoreError> {
    hold(connection).await?;
    let Some(halt) = reads::halts(connection, reads::Which::EndApprovals).await?.into_iter().next() else {
        return Ok(End::RollBack(None));
    };
    let Halt { tenant, subject_kind, subject, kind, since, until, .. } = halt;
    let mut ended = vec![];
    for id in ended_by(connection, &tenant, subject_kind, &subject, at).await? {
        let Some(approval) = reads::approval(connection, writer.keys(), &id).await? else { continue };
        let ending = Ending { id: &id, reason: kind.name(), at, record: record(&approval) };
        if let Moved::Done(moved) = lifecycle::end(connection, writer, ending).await? {
            ended.push(moved);
        }
    }
    if ended.is_empty() {
        // If the signal was reported again meanwhile, its times differ and the mark stays.
        let sql =
            "UPDATE halts SET ends_approvals = 0 WHERE tenant = $1 AND subject_kind = $2 AND subject = $3 AND kind = $4
            AND since = $5 AND until = $6";
        let done = sqlx::query(sql).bind(tenant).bind(subject_kind.name()).bind(subject).bind(kind.name());
        done.bind(since.micros()).bind(until.micros()).execute(&mut *connection).await?;
    }
    Ok(End::Commit(Some(ended)))
}

/// Returns the number of a tenant's reports that raise the risk score.
async fn reports(connection: &mut AnyConnection, tenant: &str, at: Timestamp) -> Result<i64, StoreError> {
    let sql = "SELECT COUNT(*) FROM halts WHERE tenant = $1 AND kind LIKE 'risk%' AND until > $2";
    Ok(sqlx::query(sql).bind(tenant.to_owned()).bind(at.micros()).fetch_one(connection).await?.try_get(0)?)
}

/// Deletes a tenant's lightest report if it is not heavier than a new one; returns false otherwise.
async fn evict(
    connection: &mut AnyConnection,
    tenant: &str,
    severity: Severity,
    at: Timestamp,
) -> Result<bool, StoreError> {
    for lighter in [Severity::Low, Severity::Medium, Severity::High, Severity::Critical]
        .into_iter()
        .filter(|lighter| *lighter <= severity)
    {
        let kind = HaltKind::Risk(lighter).name();
        let sql = "SELECT subject_kind, subject FROM halts WHERE tenant = $1 AND kind = $2 AND until > $3 ORDER BY until, subject LIMIT 1";
        let oldest = sqlx::query(sql)
            .bind(tenant.to_owned())
            .bind(kind)
            .bind(at.micros())
            .fetch_optional(&mut *connection)
            .await?;
        let Some(oldest) = oldest else { continue };
        let (subject_kind, subject): (String, String) = (oldest.try_get(0)?, oldest.try_get(1)?);
        let sql = "DELETE FROM halts WHERE tenant = $1 AND kind = $2 AND subject_kind = $3 AND subject = $4";
        let delete = sqlx::query(sql).bind(tenant.to_owned()).bind(kind).bind(subject_kind).bind(subject);
        delete.execute(&mut *connection).await?;
        return Ok(true);
    }
    Ok(false)
}

/// Stores a kill switch, revoked session or reported risk.
async fn stand(connection: &mut AnyConnection, halt: &Halt) -> Result<(), StoreError> {
    stand_all(connection, std::slice::from_ref(halt)).await
}

/// Stores kill switches, revoked sessions and reported risks. Those of one kind and subject are merged first,
/// because a statement can change a row only once.
pub(super) async fn stand_all(connection: &mut AnyConnection, halts: &[Halt]) -> Result<(), StoreError> {
    let mut merged: BTreeMap<(&str, SubjectKind, &str, HaltKind), Halt> = BTreeMap::new();
    for halt in halts {
        let kept =
            merged.entry((&halt.tenant, halt.subject_kind, &halt.subject, halt.kind)).or_insert_with(|| halt.clone());
        (kept.since, kept.until) = (kept.since.max(halt.since), kept.until.max(halt.until));
        kept.lifted = kept.lifted.max(halt.lifted);
    }
    let merged: Vec<Halt> = merged.into_values().collect();
    for some in merged.chunks(ROWS) {
        // A signal may only lower permission, so a new one never shortens a stored one: the later of both
        // times is kept.
        let sql = format!(
            "INSERT INTO halts (tenant, subject_kind, subject, kind, since, until, ends_approvals, lifted) VALUES {}
            ON CONFLICT (tenant, subject_kind, subject, kind) DO UPDATE SET ends_approvals = excluded.ends_approvals,
                since = CASE WHEN excluded.since > halts.since THEN excluded.since ELSE halts.since END,
                until = CASE WHEN excluded.until > halts.until THEN excluded.until ELSE halts.until END,
                lifted = CASE WHEN excluded.lifted > halts.lifted THEN excluded.lifted ELSE halts.lifted END",
            rows(some.len(), 8)
        );
        let mut insert = sqlx::query(AssertSqlSafe(sql));
        for Halt { tenant, subject_kind, subject, kind, since, until, lifted } in some {
            insert = insert.bind(tenant.clone()).bind(subject_kind.name()).bind(subject.clone()).bind(kind.name());
            insert = insert.bind(since.micros()).bind(until.micros()).bind(i64::from(kind.ends_approvals()));
            insert = insert.bind(lifted.micros());
        }
        insert.execute(&mut *connection).await?;
    }
    Ok(())
}

/// Returns the approvals that could still be reviewed or used and that a signal about this subject ends.
async fn ended_by(
    connection: &mut AnyConnection,
    tenant: &str,
    kind: SubjectKind,
    subject: &str,
    at: Timestamp,
) -> Result<Vec<String>, StoreError> {
    let whose = match kind {
        SubjectKind::Agent => "tenant = $1 AND agent = $2",
        SubjectKind::Case => "tenant = $1 AND case_id = $2",
        SubjectKind::Customer => "tenant = $1 AND customer = $2",
        SubjectKind::Server => "$1 = $1 AND $2 = $2",
        SubjectKind::Supervisor => {
            "tenant = $1 AND (supervisor = $2 OR id IN (SELECT approval FROM reviews WHERE subject = $2))"
        }
        SubjectKind::Tenant => "tenant = $1 AND tenant = $2",
    };
    // Approvals whose time has passed are left to expire.
    let sql = format!(
        "SELECT id FROM approvals WHERE {whose}
            AND (state = 'pending' AND review_until > $3 OR state = 'approved' AND approved_until > $3) LIMIT $4"
    );
    let query = sqlx::query(AssertSqlSafe(sql))
        .bind(tenant.to_owned())
        .bind(subject.to_owned())
        .bind(at.micros())
        .bind(CASCADE_MAX);
    query.fetch_all(connection).await?.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Maximum time for which a signal may count.
pub const TTL_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
