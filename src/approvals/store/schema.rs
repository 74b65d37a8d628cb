//! The tables of the state store and their migrations, which the server applies at start. Times are
//! microseconds since the epoch; no column is nullable.

use sqlx::{AnyConnection, AssertSqlSafe, Executor as _, Row as _};

use crate::approvals::store::dialect::Dialect;
use crate::approvals::store::error::StoreError;
use crate::approvals::store::location::{Location, Options, Seen};
use crate::model::number::to_i64;

/// Statements of each version. A released version is never changed.
const MIGRATIONS: [&[&str]; 9] = [
    &[
        "CREATE TABLE approvals (
        id TEXT PRIMARY KEY, generation TEXT NOT NULL, revision BIGINT NOT NULL, state TEXT NOT NULL, tenant TEXT NOT NULL,
        template TEXT NOT NULL, digest TEXT NOT NULL, case_id TEXT NOT NULL, customer TEXT NOT NULL, agent TEXT NOT NULL,
        supervisor TEXT NOT NULL, tool_service TEXT NOT NULL, quorum BIGINT NOT NULL, body TEXT NOT NULL, requested_at BIGINT NOT NULL,
        review_until BIGINT NOT NULL, approved_at BIGINT NOT NULL, approved_until BIGINT NOT NULL, ended_at BIGINT NOT NULL,
        denial_reason TEXT NOT NULL, suggested TEXT NOT NULL)",
        "CREATE UNIQUE INDEX approvals_waiting ON approvals (tenant, digest) WHERE state = 'pending'",
        "CREATE INDEX approvals_digest ON approvals (tenant, digest, ended_at)",
        "CREATE INDEX approvals_case ON approvals (tenant, case_id, state)",
        "CREATE INDEX approvals_state ON approvals (state, tenant, template)",
        "CREATE INDEX approvals_order ON approvals (requested_at, id)",
        "CREATE INDEX approvals_changes ON approvals (revision)",
        "CREATE TABLE reviews (
        approval TEXT NOT NULL, person TEXT NOT NULL, issuer TEXT NOT NULL, subject TEXT NOT NULL, approves BIGINT NOT NULL,
        at BIGINT NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (approval, person))",
        "CREATE TABLE receipts (
        tenant TEXT NOT NULL, caller TEXT NOT NULL, approval TEXT NOT NULL, operation TEXT NOT NULL, call_digest TEXT NOT NULL,
        answer TEXT NOT NULL, revision BIGINT NOT NULL, at BIGINT NOT NULL, PRIMARY KEY (tenant, caller, approval, operation))",
        "CREATE TABLE outbox (
        revision BIGINT PRIMARY KEY, approval TEXT NOT NULL, record TEXT NOT NULL, replica TEXT NOT NULL, boot TEXT NOT NULL,
        at BIGINT NOT NULL, log TEXT NOT NULL, line BIGINT NOT NULL)",
        "CREATE INDEX outbox_left ON outbox (at) WHERE log = ''",
        "CREATE INDEX outbox_approval ON outbox (approval) WHERE log = ''",
        "CREATE TABLE checks (
        tenant TEXT NOT NULL, case_id TEXT NOT NULL, customer TEXT NOT NULL, kind TEXT NOT NULL, expires BIGINT NOT NULL,
        evaluation_id TEXT NOT NULL, PRIMARY KEY (tenant, case_id, kind))",
        "CREATE TABLE outcomes (evaluation_id TEXT PRIMARY KEY, at BIGINT NOT NULL)",
        "CREATE TABLE halts (
        tenant TEXT NOT NULL, subject_kind TEXT NOT NULL, subject TEXT NOT NULL, kind TEXT NOT NULL, since BIGINT NOT NULL,
        until BIGINT NOT NULL, PRIMARY KEY (tenant, subject_kind, subject, kind))",
        "CREATE TABLE events (
        reporter TEXT NOT NULL, event_id TEXT NOT NULL, subject TEXT NOT NULL, event_time BIGINT NOT NULL, at BIGINT NOT NULL,
        PRIMARY KEY (reporter, event_id))",
        "CREATE INDEX events_subject ON events (reporter, subject, event_time)",
    ],
    &[
        "CREATE TABLE sums (
        evaluation_id TEXT NOT NULL, key TEXT NOT NULL, amount BIGINT NOT NULL, at BIGINT NOT NULL, until BIGINT NOT NULL,
        PRIMARY KEY (evaluation_id, key))",
        "CREATE INDEX sums_key ON sums (key, at)",
        "CREATE INDEX sums_until ON sums (until)",
        "CREATE TABLE windows (
        tenant TEXT PRIMARY KEY, id TEXT NOT NULL, whole_from BIGINT NOT NULL, made_at BIGINT NOT NULL)",
    ],
    // Consumed releases. Rows are deleted after a day, when their tokens have long expired.
    &["CREATE TABLE releases (id TEXT PRIMARY KEY, at BIGINT NOT NULL)"],
    // The head of each replica's audit log.
    &["CREATE TABLE heads (replica TEXT PRIMARY KEY, line BIGINT NOT NULL, hash TEXT NOT NULL)"],
    // The store's history, the replicas that share it, and what each process wrote to the risk store.
    &[
        "ALTER TABLE meta ADD COLUMN lineage TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE meta ADD COLUMN went_back_at BIGINT NOT NULL DEFAULT 0",
        "CREATE TABLE revisions (revision BIGINT PRIMARY KEY, head TEXT NOT NULL, at BIGINT NOT NULL)",
        "CREATE INDEX revisions_at ON revisions (at)",
        "CREATE TABLE replicas (
        replica TEXT PRIMARY KEY, boot TEXT NOT NULL, at BIGINT NOT NULL, confirmed TEXT NOT NULL, bundle TEXT NOT NULL)",
        "ALTER TABLE halts ADD COLUMN ends_approvals BIGINT NOT NULL DEFAULT 0",
        "ALTER TABLE windows ADD COLUMN adopted BIGINT NOT NULL DEFAULT 1",
        "CREATE TABLE window_writes (
        tenant TEXT NOT NULL, boot TEXT NOT NULL, id TEXT NOT NULL, writes BIGINT NOT NULL, at BIGINT NOT NULL,
        PRIMARY KEY (tenant, boot))",
    ],
    // Kill switches that humans lifted, and who asked for it.
    &[
        "ALTER TABLE halts ADD COLUMN lifted BIGINT NOT NULL DEFAULT 0",
        "CREATE TABLE lifts (
        tenant TEXT NOT NULL, subject_kind TEXT NOT NULL, subject TEXT NOT NULL, person TEXT NOT NULL, human TEXT NOT NULL,
        issued_at BIGINT NOT NULL, at BIGINT NOT NULL, PRIMARY KEY (tenant, subject_kind, subject, person))",
    ],
    // Secrets of data subjects, by which evidence and the calls of approvals are encrypted.
    &[
        "CREATE TABLE subject_keys (
        id TEXT PRIMARY KEY, secret TEXT NOT NULL, tenant TEXT NOT NULL, kind TEXT NOT NULL, subject TEXT NOT NULL,
        day BIGINT NOT NULL)",
        "CREATE UNIQUE INDEX subject_keys_subject ON subject_keys (tenant, kind, subject, day)",
        "CREATE INDEX subject_keys_day ON subject_keys (day)",
        "ALTER TABLE approvals ADD COLUMN sealed_by TEXT NOT NULL DEFAULT ''",
        "CREATE INDEX approvals_sealed_by ON approvals (sealed_by)",
    ],
    // Drafts that reviewers are shown, encrypted, until their approvals end; and indexes by which pending requests are counted
    // without reading their rows.
    &[
        "ALTER TABLE approvals ADD COLUMN draft TEXT NOT NULL DEFAULT ''",
        "CREATE INDEX approvals_of_agent ON approvals (tenant, agent, tool_service) WHERE state = 'pending'",
        "CREATE INDEX approvals_of_template ON approvals (tenant, template, tool_service) WHERE state = 'pending'",
    ],
    // The number of times that a pending call was requested again.
    &["ALTER TABLE approvals ADD COLUMN repeats BIGINT NOT NULL DEFAULT 0"],
];

/// First version in which revisions have heads.
const HISTORY: i64 = 5;

/// Tables of a store that was opened.
pub(super) enum Migrated {
    /// They are of this program's version; the store is at this generation and revision.
    Current(Seen),
    /// They are of a later version.
    Newer(i64),
}

/// Migrates the tables, and returns the generation and revision of the store.
pub(super) async fn bring_up(
    connection: &mut AnyConnection,
    dialect: &Dialect,
    options: &Options,
) -> Result<Migrated, StoreError> {
    if matches!(options.location, Location::Postgres(_)) {
        // Replicas that start at the same time would create the same tables, so they take turns.
        sqlx::query("SELECT CAST(pg_advisory_xact_lock(7070) AS TEXT)").execute(&mut *connection).await?;
    }
    let made = "CREATE TABLE IF NOT EXISTS meta (
        one BIGINT PRIMARY KEY, format BIGINT NOT NULL, generation TEXT NOT NULL, revision BIGINT NOT NULL)";
    connection.execute(made).await?;
    connection.execute("CREATE TABLE IF NOT EXISTS generations (generation TEXT PRIMARY KEY)").await?;
    let fresh = "INSERT INTO meta (one, format, generation, revision) VALUES (1, 0, $1, 0) ON CONFLICT DO NOTHING";
    sqlx::query(fresh).bind(options.generation.clone()).execute(&mut *connection).await?;
    let format: i64 =
        sqlx::query("SELECT format FROM meta WHERE one = 1").fetch_one(&mut *connection).await?.try_get(0)?;
    let current = to_i64(MIGRATIONS.len());
    if format > current {
        return Ok(Migrated::Newer(format));
    }
    let done = usize::try_from(format).map_err(|_| StoreError::Damaged)?;
    for migration in MIGRATIONS.iter().skip(done) {
        for statement in *migration {
            connection.execute(*statement).await?;
        }
    }
    sqlx::query("UPDATE meta SET format = $1").bind(current).execute(&mut *connection).await?;
    if format < HISTORY {
        let lineage = format!("UPDATE meta SET lineage = {}", dialect.lineage);
        connection.execute(AssertSqlSafe(lineage)).await?;
        let first =
            format!("INSERT INTO revisions (revision, head, at) SELECT revision, $1, {} FROM meta", dialect.clock);
        sqlx::query(AssertSqlSafe(first)).bind(options.boot.clone()).execute(&mut *connection).await?;
    }
    let sql = "SELECT m.generation, m.revision, COALESCE(r.head, '') FROM meta m LEFT JOIN revisions r ON r.revision = m.revision WHERE m.one = 1";
    let row = sqlx::query(sql).fetch_one(&mut *connection).await?;
    Ok(Migrated::Current(Seen { generation: row.try_get(0)?, revision: row.try_get(1)?, head: row.try_get(2)? }))
}
