//! The heads of the replicas' audit logs. If a log was cut or replaced while its server was stopped, it lacks
//! the line of the head that is stored here.

use sqlx::Row as _;

use crate::approvals::store::Store;
use crate::approvals::store::engine::End;
use crate::approvals::store::error::StoreError;
use crate::approvals::store::location::Location;
use crate::model::head::Head;
use crate::model::number::to_i64;

impl Store {
    /// Stores the head of this replica's log; an older head changes nothing.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn note_head(&self, head: Head) -> Result<(), StoreError> {
        let replica = self.options.replica.clone();
        let line = to_i64(head.index);
        self.write(move |connection| {
            Box::pin(async move {
                let sql = "INSERT INTO heads (replica, line, hash) VALUES ($1, $2, $3) ON CONFLICT (replica)
                    DO UPDATE SET line = excluded.line, hash = excluded.hash WHERE excluded.line > heads.line";
                sqlx::query(sql).bind(replica).bind(line).bind(head.hash).execute(connection).await?;
                Ok(End::Commit(()))
            })
        })
        .await
    }

    /// Returns the last stored head of this replica's log.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn head(&self) -> Result<Option<Head>, StoreError> {
        // A SQLite file belongs to one replica, so a head under another name is of the same log.
        let any = i64::from(matches!(self.options.location, Location::Sqlite(_)));
        let sql = "SELECT line, hash FROM heads WHERE replica = $1 OR $2 = 1 ORDER BY line DESC LIMIT 1";
        let noted = sqlx::query(sql).bind(self.options.replica.clone()).bind(any);
        self.read(|mut connection| async move {
            let row = noted.fetch_optional(&mut *connection).await?;
            let Some(row) = row else { return Ok(None) };
            let index = u64::try_from(row.try_get::<i64, _>(0)?).map_err(|_| StoreError::Damaged)?;
            Ok(Some(Head { index, hash: row.try_get(1)? }))
        })
        .await
    }
}
