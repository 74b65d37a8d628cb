//! The state store: approvals, consumed releases, receipts, checks, kill switches and sums, on SQLite or
//! PostgreSQL with the same SQL. This file has [`Store`] itself; its operations are in the files of `store/`.

mod consents;
mod dialect;
mod engine;
pub mod error;
mod heads;
mod history;
mod lifecycle;
pub mod lifting;
pub mod location;
pub mod outbox;
pub mod reads;
pub mod replica;
mod replicas;
mod reserved;
mod schema;
pub mod settling;
pub mod signals;
mod stops;
pub mod subjects;
pub mod sums;
mod transaction;
pub mod transitions;
pub mod windows;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::approvals::store::engine::{End, Engine, Lane};
use crate::approvals::store::error::{OpenError, StoreError};
use crate::approvals::store::location::{Location, Options, Seen};
use crate::approvals::store::reserved::ReservedNotes;
use crate::approvals::store::schema::Migrated;
use crate::approvals::store::stops::StopNotes;
use crate::approvals::store::transitions::Halts;
use crate::model::time::Timestamp;
use crate::sealing::DeploymentKeys;

/// INVARIANT: an approval is usable only if it is *stored* as approved. An approval that is missing,
/// unreadable or of another generation denies the call.
///
/// Every transition increments the revision and writes its outbox entry, for the audit log, in its own
/// transaction. A store that went back (an old backup, a failover to a standby that was behind) would contain
/// consumed approvals as unused; `history.rs` detects that, and `settling.rs` voids them.
#[derive(Debug)]
pub struct Store {
    engine: Engine,
    options: Options,
    seen: Arc<ArcSwap<Seen>>,
    halts: ArcSwap<Halts>,
    /// Copy of the entries that stop calls, in a file outside of the store.
    stops: StopNotes,
    /// Copy of the additions to sums, in a file outside of the store.
    reserved: Arc<ReservedNotes>,
    failures: AtomicU64,
    /// Whether the last operation failed.
    failing: AtomicBool,
    /// Number of unique values that this process has made for heads and for outbox entries without a
    /// revision.
    heads: Arc<AtomicU64>,
    /// Whether this replica has seen a head of the store's history.
    knows: AtomicBool,
    /// False until it is certain that the store lost nothing, or that a loss was handled.
    settled: AtomicBool,
    /// Lineage in which the store is not settled, and the time when this replica first saw it.
    settling_since: Mutex<Option<(String, Timestamp)>>,
}

impl Store {
    /// Opens the store and migrates its tables. [`Store::refresh`] finds out later whether the store lost
    /// anything.
    ///
    /// # Errors
    /// When the store can't be reached, its version is newer, or this replica's notes can't be used.
    pub async fn open(options: Options) -> Result<Self, OpenError> {
        let place = options.location.place();
        Self::open_at(options).await.map_err(|error| error::named(error, &place))
    }

    async fn open_at(options: Options) -> Result<Self, OpenError> {
        let (stops, reserved) = (StopNotes::open(&options.notes)?, ReservedNotes::open(&options.notes)?);
        let engine = Engine::open(&options).await?;
        let found = engine.transact(Lane::Apart, options.timeout, {
            let (options, dialect) = (options.clone(), engine.dialect().clone());
            move |connection| {
                Box::pin(async move { Ok(End::Commit(schema::bring_up(connection, &dialect, &options).await?)) })
            }
        });
        let found = match found.await? {
            Migrated::Current(seen) => seen,
            Migrated::Newer(version) => return Err(OpenError::Newer(version)),
        };
        Ok(Self {
            engine,
            knows: AtomicBool::new(options.seen.is_some()),
            seen: Arc::new(ArcSwap::from_pointee(options.seen.clone().unwrap_or(found))),
            halts: ArcSwap::from_pointee(Halts { halts: stops.noted().into_iter().collect(), ..Halts::default() }),
            stops,
            reserved: Arc::new(reserved),
            options,
            failures: AtomicU64::new(0),
            failing: AtomicBool::new(false),
            heads: Arc::default(),
            settled: AtomicBool::new(false),
            settling_since: Mutex::default(),
        })
    }

    /// Connects to a server without using it. The file of SQLite is made at a start.
    ///
    /// # Errors
    /// When the server can't be reached.
    pub async fn reach(location: &Location, timeout: Duration) -> Result<(), StoreError> {
        engine::reach(location, timeout).await
    }

    pub fn engine(&self) -> &'static str {
        match self.options.location {
            Location::Postgres(_) => "postgresql",
            Location::Sqlite(_) => "sqlite",
        }
    }

    /// Returns the file, or the server's host and port.
    pub fn place(&self) -> String {
        self.options.location.place()
    }

    /// Returns the key with which those of data subjects are derived.
    pub fn sealing(&self) -> Option<DeploymentKeys> {
        self.options.sealing.clone()
    }

    /// Returns the generation, and the highest revision seen in it.
    pub fn seen(&self) -> Seen {
        self.seen.load().as_ref().clone()
    }

    /// Returns the copy of the kill switches and other signals.
    pub fn halts(&self) -> Arc<Halts> {
        self.halts.load_full()
    }

    /// Returns the number of failed operations since the start.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Commits the queued operations and closes the store; later operations fail.
    pub async fn close(&self) {
        self.engine.close().await;
    }

    /// Counts a failure. The first failure after a success is logged.
    fn noted<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        match &result {
            Err(error) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                if !self.failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(name: "store.failed", error = %error, place = self.place(), "the state store fails");
                }
            }
            Ok(_) => self.failing.store(false, Ordering::Relaxed),
        }
        result
    }

    /// Returns whether it is certain that the store lost nothing, or that a loss was handled.
    pub fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    /// Returns whether other processes use the store as well.
    pub fn is_shared(&self) -> bool {
        self.engine.dialect().is_shared
    }

    /// Returns what a commit waits for beyond the server's own disk, in the terms of `synchronous_commit`. If
    /// empty, a commit waits for nothing else, so a failover may lose it.
    pub fn durability(&self) -> &str {
        &self.engine.dialect().durability
    }
}
