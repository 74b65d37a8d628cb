//! Heartbeats of the replicas that share the store, with the digests of their bundles.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Row as _};

use crate::approvals::store::Store;
use crate::approvals::store::engine::End;
use crate::approvals::store::error::StoreError;

/// Time without a heartbeat after which a replica is gone: other replicas record its outbox entries and do
/// not wait for it.
pub(super) const GONE: Duration = Duration::from_secs(4);

impl Store {
    /// Stores a heartbeat with this bundle's digest, and returns the digests of all live replicas. Must be
    /// called every second. Stores nothing if the store is not shared, or while it is unknown whether it lost
    /// anything.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn heartbeat(&self, bundle: &str) -> Result<Vec<String>, StoreError> {
        let dialect = self.engine.dialect().clone();
        if !dialect.is_shared || !self.is_settled() {
            return Ok(vec![bundle.to_owned()]);
        }
        let (replica, boot, bundle) = (self.options.replica.clone(), self.options.boot.clone(), bundle.to_owned());
        self.write_apart(move |connection| {
            Box::pin(async move {
                let (clock, lineage) = (&dialect.clock, &dialect.lineage);
                let sql = format!(
                    "INSERT INTO replicas (replica, boot, at, confirmed, bundle)
                        SELECT $1, $2, {clock}, lineage, $3 FROM meta WHERE one = 1 AND lineage = {lineage} ON CONFLICT (replica) DO UPDATE SET
                        boot = excluded.boot, at = excluded.at, confirmed = excluded.confirmed, bundle = excluded.bundle"
                );
                sqlx::query(AssertSqlSafe(sql)).bind(replica).bind(boot).bind(bundle).execute(&mut *connection).await?;
                let sql = format!("SELECT DISTINCT bundle FROM replicas WHERE at > {clock} - {} AND bundle <> '' ORDER BY bundle LIMIT 100", GONE.as_micros());
                let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(connection).await?;
                let bundles = rows.iter().map(|row| Ok(row.try_get(0)?)).collect::<Result<Vec<String>, StoreError>>()?;
                Ok(End::Commit(bundles))
            })
        })
        .await
    }

    /// Deletes this replica's heartbeat at an orderly stop, so that no other replica waits for it.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn leave(&self) -> Result<(), StoreError> {
        let replica = self.options.replica.clone();
        self.write_apart(move |connection| {
            Box::pin(async move {
                sqlx::query("DELETE FROM replicas WHERE replica = $1").bind(replica).execute(connection).await?;
                Ok(End::Commit(()))
            })
        })
        .await
    }
}
