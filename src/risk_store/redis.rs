//! The risk store's engine for replicas, on Redis 7 or Valkey: a single server, Sentinel, or a cluster. Each
//! batch is one script. All keys of a tenant share a hash tag, so that a cluster keeps them on one node.
//!
//! Redis may lose acknowledged writes: when it is restarted, flushed, or fails over to a replica that was
//! behind. To notice that, each tenant has a generation, which is also stored in the state store, and each
//! process counts its acknowledged writes. If either does not match, the batch fails with
//! [`RiskStoreError::Lost`]. A server that may evict keys is not used.

mod line;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use ::redis::{FromRedisValue, RedisError, Script};
use dashmap::DashMap;
use futures_util::future::BoxFuture;
use smol_str::SmolStr;

use crate::model::time::Timestamp;
use crate::risk_store::address::AddressError;
use crate::risk_store::operations::{Batch, BatchResult, Change, Key, Options, RiskStoreError, Tenant};
use crate::risk_store::redis::line::Line;

/// This process's knowledge of a tenant's entries on the server.
#[derive(Debug)]
struct Adopted {
    generation: String,
    /// Number of acknowledged writes of this process.
    writes: AtomicI64,
    /// Number of those that are noted in the state store.
    noted: AtomicI64,
    /// False after a connection error: the server behind the connection may be another one, or have older
    /// data.
    sure: AtomicBool,
}

/// State of a tenant's entries on the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Looked {
    /// Generation on the server, if there is one.
    pub found: Option<String>,
    /// Number of writes of each process that the server has.
    pub counts: Vec<i64>,
    /// Time on the server.
    pub clock: Timestamp,
}

pub struct Redis {
    line: Line,
    timeout: Duration,
    boot: String,
    adopted: DashMap<Tenant, Arc<Adopted>>,
    /// Generations that the server no longer has, or has only in part.
    lost: DashMap<Tenant, String>,
    visiting: Script,
    adopting: Script,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Addresses may contain passwords, so they are not shown.
        formatter.debug_struct("Redis").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

type Reply = (i64, i64, Vec<i64>, Vec<u64>, Vec<Vec<String>>);

impl Redis {
    /// Creates the engine; it connects when it is first used.
    ///
    /// # Errors
    /// When an address can't be used.
    pub(super) fn open(options: Options) -> Result<Self, AddressError> {
        let line = Line::open(&options)?;
        Ok(Self {
            line,
            timeout: options.timeout,
            boot: options.boot,
            adopted: DashMap::new(),
            lost: DashMap::new(),
            visiting: Script::new(include_str!("batch.lua")),
            adopting: Script::new(include_str!("adopt.lua")),
        })
    }

    pub(super) async fn batch(
        &self,
        tenant: Tenant,
        now: Timestamp,
        batch: &Batch,
    ) -> Result<BatchResult, RiskStoreError> {
        let adopted = self.adopted.get(&tenant).map(|adopted| Arc::clone(&adopted)).ok_or(RiskStoreError::Lost)?;
        if !adopted.sure.load(Ordering::Acquire) {
            return Err(RiskStoreError::Lost);
        }
        let before = adopted.writes.load(Ordering::Acquire);
        let mut call = self.visiting.prepare_invoke();
        call.key(generation_key(tenant)).key(writes_key(tenant, &self.boot));
        call.arg(&adopted.generation).arg(now.micros());
        say(&mut call, tenant, Key::of(&[&adopted.generation]), batch);
        let (known, writes, waits, counts, memories): Reply = self.call(&call).await?;
        // A server that does not count more writes than were acknowledged before has lost one.
        if known == 0 || writes <= before {
            self.forsake(tenant, &adopted);
            return Err(RiskStoreError::Lost);
        }
        adopted.writes.fetch_max(writes, Ordering::AcqRel);
        let memories = memories.into_iter().map(times).collect::<Option<Vec<_>>>();
        let memories = memories.ok_or_else(|| RiskStoreError::Unreachable("it sent an unexpected answer".into()))?;
        Ok(BatchResult { waits, counts, memories })
    }

    /// Queries a tenant's generation on the server, and its number of writes by these processes.
    ///
    /// # Errors
    /// When the server does not answer, or may evict keys.
    pub async fn look(&self, tenant: Tenant, boots: &[&str]) -> Result<Looked, RiskStoreError> {
        self.adopting(tenant, "", "", boots).await
    }

    /// Returns the generation that this process knows to be gone or incomplete.
    pub fn lost(&self, tenant: Tenant) -> Option<String> {
        self.lost.get(&tenant).map(|lost| lost.clone())
    }

    /// Returns whether the tenant's generation is known, and the connection to its server had no error since.
    pub fn knows(&self, tenant: Tenant) -> bool {
        self.adopted.get(&tenant).is_some_and(|adopted| adopted.sure.load(Ordering::Acquire))
    }

    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// Returns the number of acknowledged writes of this process in a tenant's generation.
    pub fn writes(&self, tenant: Tenant, generation: &str) -> i64 {
        let adopted = self.adopted.get(&tenant).filter(|adopted| adopted.generation == generation);
        adopted.map_or(0, |adopted| adopted.writes.load(Ordering::Acquire))
    }

    /// Returns at most `most` tenants with writes not yet noted in the state store: generation and number of
    /// writes.
    pub fn unnoted(&self, most: usize) -> Vec<(Tenant, String, i64)> {
        let written = self.adopted.iter().map(|adopted| {
            let writes = adopted.writes.load(Ordering::Acquire);
            (*adopted.key(), adopted.generation.clone(), writes, adopted.noted.load(Ordering::Acquire))
        });
        written
            .filter(|(.., writes, noted)| writes > noted)
            .take(most)
            .map(|(tenant, generation, writes, _)| (tenant, generation, writes))
            .collect()
    }

    /// Records how many writes are noted in the state store.
    pub fn noted(&self, tenant: Tenant, generation: &str, writes: i64) {
        if let Some(adopted) = self.adopted.get(&tenant).filter(|adopted| adopted.generation == generation) {
            adopted.noted.fetch_max(writes, Ordering::AcqRel);
        }
    }

    pub fn tenants(&self) -> Vec<Tenant> {
        self.adopted.iter().map(|adopted| *adopted.key()).collect()
    }

    /// Checks that the server still has the known generation of a tenant.
    ///
    /// # Errors
    /// When it does not, may evict keys, or does not answer.
    pub async fn check(&self, tenant: Tenant) -> Result<(), RiskStoreError> {
        let adopted = self.adopted.get(&tenant).map(|adopted| Arc::clone(&adopted)).ok_or(RiskStoreError::Lost)?;
        match self.look(tenant, &[]).await {
            Ok(looked) if looked.found.as_ref() == Some(&adopted.generation) => Ok(()),
            Ok(_) => {
                self.forsake(tenant, &adopted);
                Err(RiskStoreError::Lost)
            }
            Err(RiskStoreError::Evicts) => {
                self.forsake(tenant, &adopted);
                Err(RiskStoreError::Evicts)
            }
            Err(down) => Err(down),
        }
    }

    /// Marks a tenant's entries as lost. Recovery then replaces the generation, so that every other replica
    /// finds them lost, too.
    pub fn give_up(&self, tenant: Tenant) {
        if let Some(adopted) = self.adopted.get(&tenant).map(|adopted| Arc::clone(&adopted)) {
            self.forsake(tenant, &adopted);
        }
    }

    fn forsake(&self, tenant: Tenant, adopted: &Arc<Adopted>) {
        if self.adopted.remove_if(&tenant, |_, known| Arc::ptr_eq(known, adopted)).is_some() {
            self.lost.insert(tenant, adopted.generation.clone());
        }
    }

    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Sets the generation on the server, if the server still has the one that was found.
    ///
    /// # Errors
    /// When the server has another one, does not answer, or may evict keys.
    pub async fn adopt(&self, tenant: Tenant, generation: &str, found: Option<&str>) -> Result<(), RiskStoreError> {
        let looked = self.adopting(tenant, generation, found.unwrap_or(""), &[]).await?;
        match looked.found.as_deref() == Some(generation) {
            true => Ok(()),
            false => Err(RiskStoreError::Lost),
        }
    }

    /// Starts to use a generation that the server has and the state store records as adopted.
    pub fn use_from_now_on(&self, tenant: Tenant, generation: &str) {
        self.lost.remove(&tenant);
        let known = self
            .adopted
            .get(&tenant)
            .filter(|adopted| adopted.generation == generation)
            .map(|adopted| Arc::clone(&adopted));
        match known {
            Some(adopted) => adopted.sure.store(true, Ordering::Release),
            None => {
                let (writes, noted, sure) = (AtomicI64::new(0), AtomicI64::new(0), AtomicBool::new(true));
                self.adopted
                    .insert(tenant, Arc::new(Adopted { generation: generation.to_owned(), writes, noted, sure }));
            }
        }
    }

    async fn adopting(
        &self,
        tenant: Tenant,
        generation: &str,
        found: &str,
        boots: &[&str],
    ) -> Result<Looked, RiskStoreError> {
        let mut call = self.adopting.prepare_invoke();
        call.key(generation_key(tenant)).arg(generation).arg(found);
        for boot in boots {
            call.key(writes_key(tenant, boot));
        }
        let (evicts, clock, found, counts): (i64, i64, Option<String>, Vec<i64>) = self.call(&call).await?;
        if evicts == 0 {
            return Ok(Looked { found, counts, clock: Timestamp::from_micros(clock) });
        }
        Err(RiskStoreError::Evicts)
    }

    /// Stops using all generations until they are checked again: the server behind the connection may be
    /// another one, or have older data.
    fn doubt(&self) {
        self.adopted.iter().for_each(|adopted| adopted.sure.store(false, Ordering::Release));
    }

    async fn call<T: FromRedisValue + Send>(&self, call: &::redis::ScriptInvocation<'_>) -> Result<T, RiskStoreError> {
        // Boxed, so that the future of an evaluation does not contain the client's.
        let running: BoxFuture<'_, Result<T, RedisError>> = Box::pin(self.line.run(call, self.timeout));
        let answered = tokio::time::timeout(self.timeout, running).await;
        match answered {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                if self.line.drop_after(&error) {
                    self.doubt();
                }
                // Only the category is reported, because the message may contain keys and addresses.
                Err(RiskStoreError::Unreachable(error.category().to_owned()))
            }
            Err(_) => {
                self.doubt();
                self.line.drop_stalled();
                Err(RiskStoreError::Unreachable("timed out".into()))
            }
        }
    }
}

fn writes_key(tenant: Tenant, boot: &str) -> String {
    format!("countersign:{{{}}}:writes:{boot}", tenant.0)
}

fn generation_key(tenant: Tenant) -> String {
    format!("countersign:{{{}}}:generation", tenant.0)
}

/// Appends the keys and arguments of a batch in the order in which `batch.lua` reads them.
fn say(call: &mut ::redis::ScriptInvocation<'_>, tenant: Tenant, seed: Key, batch: &Batch) {
    let key = |key: Key| format!("countersign:{{{}}}:{key}", tenant.0);
    call.arg(batch.deletes.len());
    for forgotten in &batch.deletes {
        call.key(key(*forgotten));
    }
    call.arg(batch.withdrawals.len());
    for withdrawn in &batch.withdrawals {
        call.key(key(withdrawn.key)).arg(withdrawn.every);
    }
    call.arg(batch.reads.len());
    for read in &batch.reads {
        call.key(key(*read));
    }
    call.arg(batch.acquires.len());
    for acquire in &batch.acquires {
        call.key(key(acquire.key)).arg(acquire.every).arg(acquire.room);
    }
    call.arg(batch.observations.len());
    for observation in &batch.observations {
        let item = observation.item.map_or_else(String::new, |item| format!("{:016x}", Tenant::thing(seed, item)));
        call.key(key(observation.key))
            .key(key(observation.key) + ":level")
            .arg(item)
            .arg(observation.within)
            .arg(observation.most.unwrap_or(0));
    }
    call.arg(batch.updates.len());
    for update in &batch.updates {
        let (kind, length, reach) = match update.change {
            Change::Add { step, reach } => ("add", step, reach),
            Change::For(length) => ("for", length, 0),
        };
        call.key(key(update.key)).arg(update.name.as_str()).arg(kind).arg(length).arg(reach);
    }
}

/// Parses the times of a memory from alternating names and numbers.
fn times(flat: Vec<String>) -> Option<Vec<(SmolStr, i64)>> {
    flat.chunks(2)
        .map(|pair| match pair {
            [name, until] => Some((SmolStr::new(name), until.parse().ok()?)),
            _ => None,
        })
        .collect()
}
