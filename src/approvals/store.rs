//! What must not be lost: approvals, consumed tokens, receipts, checks, kill switches. One port, two engines, one SQL.
//!
//! SQLite (WAL, `synchronous=FULL`) has one writer that commits in groups, so that many consumes share a sync; PostgreSQL has a pool.
//! An approval is usable because it is *present* as approved: what is absent, unreadable or of another generation denies. Every
//! transition counts the store's revision up in its own transaction and leaves its record in the outbox, for the audit log.
//!
//! A store that went back (an old backup, a failover to a standby that was behind) would hold used approvals as unused: `history.rs`.

mod engine;
pub mod error;
mod heads;
mod history;
mod lifecycle;
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
pub mod sums;
mod transaction;
pub mod transitions;
pub mod windows;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;

use crate::approvals::store::engine::{Engine, Lane};
use crate::approvals::store::error::{OpenError, StoreError};
use crate::approvals::store::location::{Location, Options, Seen};
use crate::approvals::store::reserved::ReservedNotes;
use crate::approvals::store::stops::StopNotes;
use crate::approvals::store::transitions::Halts;
use crate::model::time::Timestamp;

/// The store.
#[derive(Debug)]
pub struct Store {
    engine: Engine,
    options: Options,
    seen: Arc<ArcSwap<Seen>>,
    halts: ArcSwap<Halts>,
    /// What stops, outside of the store.
    stops: StopNotes,
    /// What calls added to sums, outside of the store.
    reserved: Arc<ReservedNotes>,
    failures: AtomicU64,
    /// Whether the last operation failed.
    failing: AtomicBool,
    /// How many heads this process has made.
    heads: Arc<AtomicU64>,
    /// Whether this replica knows a head of the store's history.
    knows: AtomicBool,
    /// False while it is not known whether the store lost anything.
    settled: AtomicBool,
    /// In which lineage, and since when that is.
    settling_since: Mutex<Option<(String, Timestamp)>>,
}

impl Store {
    /// Opens the store, and brings its tables up to date. Whether it has what was seen of it, [`Store::refresh`] finds out.
    ///
    /// # Errors
    /// When it can't be reached, or is of a newer version.
    pub async fn open(options: Options) -> Result<Self, OpenError> {
        let place = options.location.place();
        Self::open_at(options).await.map_err(|error| error::named(error, &place))
    }

    async fn open_at(options: Options) -> Result<Self, OpenError> {
        let (stops, reserved) = (StopNotes::open(&options.notes)?, ReservedNotes::open(&options.notes)?);
        let engine = Engine::open(&options).await?;
        let found = engine.transact(Lane::Apart, options.timeout, {
            let (options, dialect) = (options.clone(), engine.dialect().clone());
            move |connection| Box::pin(async move { Ok((true, schema::bring_up(connection, &dialect, &options).await?)) })
        });
        let found = found.await??;
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

    /// The engine's name.
    pub fn engine(&self) -> &'static str {
        match self.options.location {
            Location::Postgres(_) => "postgresql",
            Location::Sqlite(_) => "sqlite",
        }
    }

    /// The file, or the server's host and port.
    pub fn place(&self) -> String {
        self.options.location.place()
    }

    /// The generation, and the highest revision seen.
    pub fn seen(&self) -> Seen {
        self.seen.load().as_ref().clone()
    }

    /// The copy of the halts.
    pub fn halts(&self) -> Arc<Halts> {
        self.halts.load_full()
    }

    /// How many operations failed since the start.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Writes what is queued and closes; later operations fail.
    pub async fn close(&self) {
        self.engine.close().await;
    }

    /// Counts a failure. The first one after a success is logged.
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

    /// Whether it is known that the store has all that was written to it, or that it went back.
    pub fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    /// Whether other processes use the store, too.
    pub fn is_shared(&self) -> bool {
        self.engine.dialect().is_shared
    }

    /// What a commit waits for beyond the server's own disk, as `synchronous_commit` names it; empty: nothing, so that a failover may
    /// lose it.
    pub fn durability(&self) -> &str {
        &self.engine.dialect().durability
    }
}
