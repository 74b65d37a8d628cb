//! The SQL and the server properties in which the engines of the state store differ.

use sqlx::{AnyConnection, AssertSqlSafe, Executor as _};

use crate::approvals::store::error::StoreError;

/// SQL that differs between the engines, and properties of the server.
#[derive(Clone, Debug)]
pub(super) struct Dialect {
    /// SQL for the identity of the server's tables in one line of its history. On PostgreSQL it consists of
    /// the system identifier, the timeline, which each promotion changes, and the identifiers of database and
    /// table, which each restored dump changes. It is an empty text on SQLite.
    pub lineage: String,
    /// SQL for the time, in microseconds since the epoch.
    pub clock: String,
    /// Whether other processes use the store as well.
    pub is_shared: bool,
    /// PostgreSQL's `synchronous_commit`, which names what a commit waits for; empty if no standby confirms
    /// commits.
    pub durability: String,
}

impl Dialect {
    pub(super) fn sqlite() -> Self {
        let clock = "CAST((julianday('now') - 2440587.5) * 86400000000.0 AS BIGINT)".to_owned();
        Self { lineage: "''".to_owned(), clock, is_shared: false, durability: String::new() }
    }

    /// Queries which parts of its lineage the server shows to this role.
    pub(super) async fn postgres(connection: &mut AnyConnection) -> Result<Self, StoreError> {
        const SYSTEM: &str = "(SELECT CAST(system_identifier AS TEXT) FROM pg_control_system())";
        const TIMELINE: &str = "substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)";
        const TABLE: &str = "(SELECT CAST(oid AS TEXT) FROM pg_database WHERE datname = current_database())
            || '/' || CAST(CAST(CAST('meta' AS regclass) AS oid) AS TEXT)";
        // Insufficient privilege, undefined function, feature not supported.
        const MAY_NOT: [&str; 3] = ["42501", "42883", "0A000"];
        let standby: bool = sqlx::query_scalar("SELECT pg_is_in_recovery()").fetch_one(&mut *connection).await?;
        if standby {
            return Err(StoreError::Unreachable("the server is a standby".to_owned()));
        }
        let mut lineage = vec![TABLE];
        for (part, sql) in [("timeline", TIMELINE), ("system identifier", SYSTEM)] {
            match connection.execute(AssertSqlSafe(format!("SELECT {sql}"))).await {
                Ok(_) => lineage.insert(0, sql),
                Err(sqlx::Error::Database(error))
                    if error.code().is_some_and(|code| MAY_NOT.contains(&code.as_ref())) =>
                {
                    tracing::warn!(
                        name: "store.lineage_unknown", part,
                        "this role may not read it: only replicas that still have their data folder detect a failover or an older backup"
                    )
                }
                Err(error) => return Err(error.into()),
            }
        }
        let durability = "SELECT CASE WHEN current_setting('synchronous_standby_names') = ''
                OR current_setting('synchronous_commit') IN ('local', 'off') THEN ''
            ELSE current_setting('synchronous_commit') END";
        Ok(Self {
            lineage: lineage.join(" || '/' || "),
            clock: "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)".to_owned(),
            is_shared: true,
            durability: sqlx::query_scalar(durability).fetch_one(connection).await?,
        })
    }
}
