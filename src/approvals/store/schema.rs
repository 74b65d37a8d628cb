//! The tables, and how they came to be: a list of migrations, applied by the program itself at start. Times are microseconds since
//! the epoch; no column is ever null.

use sqlx::AnyConnection;
use sqlx::{Executor as _, Row as _};

use crate::approvals::store::{Location, OpenError, Options, Seen, StoreError};

/// Each version's statements; a version, once released, is never changed.
const MIGRATIONS: [&[&str]; 4] = [
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
    // Released drafts that were sent. They are forgotten when no token of theirs can be alive.
    &["CREATE TABLE releases (id TEXT PRIMARY KEY, at BIGINT NOT NULL)"],
    // The head of each replica's audit log.
    &["CREATE TABLE heads (replica TEXT PRIMARY KEY, line BIGINT NOT NULL, hash TEXT NOT NULL)"],
];

/// Brings the tables up to date, and says which generation and revision the store is at.
pub(super) async fn bring_up(connection: &mut AnyConnection, options: &Options) -> Result<Result<Seen, OpenError>, StoreError> {
    if matches!(options.location, Location::Postgres(_)) {
        // Replicas that start together would each make the tables.
        sqlx::query("SELECT CAST(pg_advisory_xact_lock(7070) AS TEXT)").execute(&mut *connection).await?;
    }
    let made = "CREATE TABLE IF NOT EXISTS meta (
        one BIGINT PRIMARY KEY, format BIGINT NOT NULL, generation TEXT NOT NULL, revision BIGINT NOT NULL)";
    connection.execute(made).await?;
    connection.execute("CREATE TABLE IF NOT EXISTS generations (generation TEXT PRIMARY KEY)").await?;
    let fresh = "INSERT INTO meta (one, format, generation, revision) VALUES (1, 0, $1, 0) ON CONFLICT DO NOTHING";
    sqlx::query(fresh).bind(options.generation.clone()).execute(&mut *connection).await?;
    let row = sqlx::query("SELECT format, generation, revision FROM meta WHERE one = 1").fetch_one(&mut *connection).await?;
    let (format, generation, revision): (i64, String, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let current = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    if format > current {
        return Ok(Err(OpenError::Newer(format)));
    }
    for migration in MIGRATIONS.iter().skip(usize::try_from(format).unwrap_or(0)) {
        for statement in *migration {
            connection.execute(*statement).await?;
        }
    }
    sqlx::query("UPDATE meta SET format = $1").bind(current).execute(&mut *connection).await?;
    let found = Seen { generation, revision };
    match &options.seen {
        Some(seen) if !is_later(connection, seen, &found).await? => Ok(Ok(renew(connection, &options.generation, seen, &found).await?)),
        Some(_) | None => Ok(Ok(found)),
    }
}

/// Whether what is found stands where, or behind where, it was last seen: the same generation and no lower revision, or a later
/// generation that knows the one that was seen.
pub(super) async fn is_later(connection: &mut AnyConnection, seen: &Seen, found: &Seen) -> Result<bool, StoreError> {
    if seen.generation == found.generation {
        return Ok(found.revision >= seen.revision);
    }
    let known = sqlx::query("SELECT generation FROM generations WHERE generation = $1").bind(seen.generation.clone());
    Ok(known.fetch_optional(connection).await?.is_some())
}

/// Gives the store a new generation, at a revision that was never used. What it holds of earlier ones is nothing from then on.
pub(super) async fn renew(connection: &mut AnyConnection, generation: &str, seen: &Seen, found: &Seen) -> Result<Seen, StoreError> {
    let revision = seen.revision.max(found.revision) + 1;
    let insert = "INSERT INTO generations (generation) VALUES ($1) ON CONFLICT DO NOTHING";
    for old in [&seen.generation, &found.generation] {
        sqlx::query(insert).bind(old.clone()).execute(&mut *connection).await?;
    }
    let update = sqlx::query("UPDATE meta SET generation = $1, revision = $2").bind(generation.to_owned()).bind(revision);
    update.execute(&mut *connection).await?;
    tracing::error!(
        name: "store.went_back", seen = seen.revision, found = found.revision,
        "the state store stands behind what was seen of it: approvals made before are void"
    );
    Ok(Seen { generation: generation.to_owned(), revision })
}
