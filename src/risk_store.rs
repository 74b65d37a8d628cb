//! The risk store: rate windows, case risk and distinct counts of recent calls. It has two engines, one in
//! process and one on Redis or Valkey for replicas. Both use the same integer arithmetic, so they agree to
//! the microsecond.
//!
//! Every entry holds times in microseconds until which something counts, and expires by itself:
//! - a *bucket* (GCRA, the leaky bucket of ITU-T I.371) holds the time until which a rate is used;
//! - a *memory* holds named times until which each kind of event of a case counts;
//! - a *distinct counter* counts distinct things, exactly up to [`EXACT`](crate::model::signals::EXACT) and above that
//!   by a sample.
//!
//! INVARIANT: nothing is dropped while it counts. If something can't be stored, the operation fails, and
//! after any error the caller uses worst-case values.

pub mod address;
pub mod distinct_counter;
pub mod operations;
pub mod process;
pub mod redis;

use crate::model::time::Timestamp;
use crate::risk_store::address::AddressError;
pub use crate::risk_store::operations::{
    Acquire, Batch, BatchResult, Change, Key, OVERFULL, Observation, Options, RiskStoreError, Tenant, Update, change,
};
use crate::risk_store::process::InProcess;
use crate::risk_store::redis::Redis;

#[derive(Debug)]
pub enum RiskStore {
    InProcess(InProcess),
    Redis(Box<Redis>),
}

impl RiskStore {
    /// Opens the store. The connection to a server is made when it is first needed.
    ///
    /// # Errors
    /// When the server's address can't be used.
    pub fn open(options: Options) -> Result<Self, AddressError> {
        match &options.server {
            None => Ok(Self::InProcess(InProcess::new(options.entries_per_tenant, &options.boot))),
            Some(_) => Ok(Self::Redis(Box::new(Redis::open(options)?))),
        }
    }

    pub fn engine(&self) -> &'static str {
        match self {
            Self::InProcess(_) => "in_process",
            Self::Redis(_) => "redis",
        }
    }

    /// Executes all operations of a request.
    ///
    /// # Errors
    /// When the operations can't be executed. The caller must then use worst-case values.
    pub async fn batch(&self, tenant: Tenant, now: Timestamp, batch: &Batch) -> Result<BatchResult, RiskStoreError> {
        match self {
            Self::InProcess(windows) => windows.batch(tenant, now, batch),
            Self::Redis(windows) => windows.batch(tenant, now, batch).await,
        }
    }

    /// Asks a server about a tenant that does not exist, to find out whether it answers.
    ///
    /// # Errors
    /// When a server does not answer, or refuses the request.
    pub async fn reach(&self) -> Result<(), RiskStoreError> {
        match self {
            Self::InProcess(_) => Ok(()),
            Self::Redis(windows) => windows.look(Tenant::of("", ""), &[]).await.map(|_| ()),
        }
    }

    /// Drops expired entries of the engine in process; Redis expires keys by itself.
    pub fn purge(&self, now: Timestamp) {
        match self {
            Self::InProcess(windows) => windows.purge(now),
            Self::Redis(_) => {}
        }
    }

    /// Number of entries in process.
    pub fn entries(&self) -> usize {
        match self {
            Self::InProcess(windows) => windows.entries(),
            Self::Redis(_) => 0,
        }
    }
}
