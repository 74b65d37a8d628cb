//! Which generation of windows a tenant has: the windows' own server can't say whether it lost them.

use std::time::Duration;

use sqlx::Row as _;

use crate::approvals::store::lifecycle::next;
use crate::approvals::store::{Store, StoreError};
use crate::model::time::Timestamp;

/// A generation of a tenant's windows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// Its id.
    pub id: String,
    /// From when on what is in it is believed to be all.
    pub whole_from: Timestamp,
}

/// What is known of a tenant's generation when it is to be settled.
#[derive(Clone, Debug)]
pub struct Settling {
    /// The tenant.
    pub tenant: String,
    /// What the windows' server has.
    pub found: Option<String>,
    /// The generation of which this process knows that it is not all there.
    pub lost: Option<String>,
    /// The one to go on with if a new one is needed.
    pub fresh: Generation,
    /// Now.
    pub at: Timestamp,
}

/// How long after a replica made a generation the others may not find it on the server yet.
const YOUNG: Duration = Duration::from_secs(10);

impl Store {
    /// Settles a tenant's generation: the one that is known and was found, else a new one, which is whole after a while; at once if the
    /// tenant never had windows.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn generation(&self, settling: Settling) -> Result<Generation, StoreError> {
        let seen = self.seen();
        self.write(move |connection| {
            Box::pin(async move {
                next(connection, &seen).await?;
                let Settling { tenant, found, lost, fresh, at } = settling;
                let known = sqlx::query("SELECT id, whole_from, made_at FROM windows WHERE tenant = $1").bind(tenant.clone());
                let settled = match known.fetch_optional(&mut *connection).await? {
                    Some(row) => {
                        let known = Generation { id: row.try_get(0)?, whole_from: Timestamp::from_micros(row.try_get(1)?) };
                        let young = Timestamp::from_micros(row.try_get(2)?).plus(YOUNG) > at;
                        if lost.as_ref() != Some(&known.id) && (young || found.as_ref() == Some(&known.id)) {
                            return Ok((false, known));
                        }
                        fresh
                    }
                    None if found.is_none() && lost.is_none() => Generation { whole_from: Timestamp::default(), ..fresh },
                    None => fresh,
                };
                let insert = "INSERT INTO windows (tenant, id, whole_from, made_at) VALUES ($1, $2, $3, $4) ON CONFLICT (tenant)
                    DO UPDATE SET id = excluded.id, whole_from = excluded.whole_from, made_at = excluded.made_at";
                let insert = sqlx::query(insert).bind(tenant).bind(settled.id.clone()).bind(settled.whole_from.micros());
                insert.bind(at.micros()).execute(&mut *connection).await?;
                Ok((true, settled))
            })
        })
        .await
    }
}
