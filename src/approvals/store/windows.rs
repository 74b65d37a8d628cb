//! Generations of the tenants' entries in the risk store, and the number of writes of each process to them.
//! The risk store itself can't tell whether it lost anything.

use sqlx::{AnyConnection, AssertSqlSafe, Row as _};

use crate::approvals::store::Store;
use crate::approvals::store::engine::End;
use crate::approvals::store::error::StoreError;
use crate::approvals::store::history::next;
use crate::model::time::Timestamp;

/// Maximum number of processes whose writes are compared: those that wrote last.
const WRITERS_MAX: i64 = 1000;

/// A generation of a tenant's entries in the risk store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    pub id: String,
    /// Time from which on the generation is treated as complete.
    pub whole_from: Timestamp,
}

/// State of a tenant's generation when it is to be settled.
#[derive(Clone, Debug)]
pub struct Settling {
    pub tenant: String,
    /// Generation that was recorded as adopted before the risk store was queried. Only this one must be
    /// there: another replica may have adopted a newer one after the query.
    pub before: Option<String>,
    /// Generation that the risk store has.
    pub found: Option<String>,
    /// Generation that is known to be gone or incomplete.
    pub lost: Option<String>,
    /// Generation to use if a new one is needed.
    pub fresh: Generation,
}

/// Number of acknowledged writes of a process to the risk store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    pub tenant: String,
    /// Id of the start of the process.
    pub boot: String,
    /// Generation that the process wrote to.
    pub generation: String,
    pub writes: i64,
}

impl Store {
    /// Settles a tenant's generation. Keeps the recorded one if nothing of it is known to be lost, and
    /// otherwise records the new one. A new one is complete at `whole_from`, or at once if the tenant never
    /// had entries. It must be found in the risk store only after [`Store::adopted`].
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn generation(&self, settling: Settling) -> Result<Generation, StoreError> {
        let asked = settling.clone();
        let found = self.read(|mut connection| async move { known(&mut connection, &asked).await }).await?;
        if let Known::Stands(generation) = found {
            return Ok(generation);
        }
        self.advance(move |connection, writer| {
            Box::pin(async move {
                next(connection, &writer).await?;
                let settled = match known(connection, &settling).await? {
                    Known::Stands(generation) => return Ok(End::RollBack(generation)),
                    Known::Lost => settling.fresh,
                    Known::Never => Generation { whole_from: Timestamp::default(), ..settling.fresh },
                };
                let insert = "INSERT INTO windows (tenant, id, whole_from, made_at, adopted) VALUES ($1, $2, $3, 0, 0) ON CONFLICT (tenant)
                    DO UPDATE SET id = excluded.id, whole_from = excluded.whole_from, adopted = 0";
                let insert = sqlx::query(insert).bind(settling.tenant).bind(settled.id.clone()).bind(settled.whole_from.micros());
                insert.execute(&mut *connection).await?;
                Ok(End::Commit(settled))
            })
        })
        .await
    }

    /// Returns the tenant's generation if a replica recorded that the risk store has it, or a write to it.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn adopted_generation(&self, tenant: String) -> Result<Option<String>, StoreError> {
        let sql = "SELECT id FROM windows w WHERE tenant = $1
            AND (adopted = 1 OR EXISTS (SELECT 1 FROM window_writes p WHERE p.tenant = w.tenant AND p.id = w.id))";
        let query = sqlx::query_scalar::<_, String>(sql).bind(tenant);
        self.read(|mut connection| async move { Ok(query.fetch_optional(&mut *connection).await?) }).await
    }

    /// Records that the risk store has a tenant's generation, so that it must be found there from now on.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn adopted(&self, tenant: String, generation: String) -> Result<(), StoreError> {
        self.write(move |connection| {
            Box::pin(async move {
                let sql = "UPDATE windows SET adopted = 1 WHERE tenant = $1 AND id = $2 AND adopted = 0";
                sqlx::query(sql).bind(tenant).bind(generation).execute(connection).await?;
                Ok(End::Commit(()))
            })
        })
        .await
    }

    /// Returns the recorded numbers of writes, by process.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn written(&self, tenant: String) -> Result<Vec<Written>, StoreError> {
        let query =
            sqlx::query("SELECT boot, id, writes FROM window_writes WHERE tenant = $1 ORDER BY at DESC LIMIT $2");
        let query = query.bind(tenant.clone()).bind(WRITERS_MAX);
        let rows = self.read(|mut connection| async move { Ok(query.fetch_all(&mut *connection).await?) }).await?;
        let read = |row: &sqlx::any::AnyRow| {
            let (boot, generation, writes) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            Ok(Written { tenant: tenant.clone(), boot, generation, writes })
        };
        rows.iter().map(read).collect()
    }

    /// Records how many writes the risk store acknowledged.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn note_written(&self, written: Vec<Written>) -> Result<(), StoreError> {
        let clock = self.engine.dialect().clock.clone();
        self.write_apart(move |connection| {
            Box::pin(async move {
                let sql = format!(
                    "INSERT INTO window_writes (tenant, boot, id, writes, at) VALUES ($1, $2, $3, $4, {clock}) ON CONFLICT (tenant, boot)
                        DO UPDATE SET id = excluded.id, writes = excluded.writes, at = excluded.at"
                );
                for Written { tenant, boot, generation, writes } in written {
                    let insert = sqlx::query(AssertSqlSafe(sql.clone())).bind(tenant).bind(boot).bind(generation).bind(writes);
                    insert.execute(&mut *connection).await?;
                }
                Ok(End::Commit(()))
            })
        })
        .await
    }
}

/// State of a tenant's recorded generation.
enum Known {
    Lost,
    Never,
    Stands(Generation),
}

async fn known(connection: &mut AnyConnection, settling: &Settling) -> Result<Known, StoreError> {
    let known = sqlx::query(
        "SELECT id, whole_from, adopted + (SELECT COUNT(*) FROM window_writes p WHERE p.tenant = w.tenant AND p.id = w.id) FROM windows w
            WHERE tenant = $1",
    )
    .bind(settling.tenant.clone());
    let Some(row) = known.fetch_optional(connection).await? else {
        let never = settling.found.is_none() && settling.lost.is_none();
        return Ok(if never { Known::Never } else { Known::Lost });
    };
    let known = Generation { id: row.try_get(0)?, whole_from: Timestamp::from_micros(row.try_get(1)?) };
    // A generation need not be in the risk store if no replica adopted it or wrote to it, or if it was
    // recorded after the query.
    let need_not = row.try_get::<i64, _>(2)? == 0 || settling.before.as_ref() != Some(&known.id);
    let is_there = need_not || settling.found.as_ref() == Some(&known.id);
    Ok(if is_there && settling.lost.as_ref() != Some(&known.id) { Known::Stands(known) } else { Known::Lost })
}
