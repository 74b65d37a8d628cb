//! What must not be lost: approvals, burned tokens, receipts, checks, kill switches. One port, two engines, one SQL.
//!
//! SQLite (WAL, `synchronous=FULL`) has one writer that commits in groups, so that many burns share a sync; PostgreSQL has a pool.
//! An approval is usable because it is *present* as approved: what is absent, unreadable or of another generation denies. Every
//! transition counts the store's revision up in its own transaction and leaves its record in the outbox, for the audit log.
//!
//! A store that went back (an old backup, a failover to a standby that was behind) would hold used approvals as unused: `history.rs`.

mod engine;
mod heads;
mod history;
mod lifecycle;
mod location;
mod outbox;
mod reads;
pub mod replica;
mod replicas;
mod reserved;
mod schema;
mod settling;
mod signals;
mod stops;
mod sums;
mod transitions;
mod windows;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::approvals::store::engine::{Engine, Lane};
use crate::approvals::store::reserved::ReservedNotes;
use crate::approvals::store::stops::StopNotes;
use crate::model::approval::{Justification, State};
use crate::model::halt::Halt;
use crate::model::refusal::Refusal;
use crate::model::time::Timestamp;

pub use crate::approvals::store::history::Revision;
pub use crate::approvals::store::location::Location;
pub use crate::approvals::store::outbox::TAKE_OVER;
pub use crate::approvals::store::reads::Filter;
pub use crate::approvals::store::settling::{Condition, SETTLE};
pub use crate::approvals::store::signals::{Cleared, NewSignal, SignalRefused, TTL_MAX};
pub use crate::approvals::store::sums::{Reservation, Sum};
pub use crate::approvals::store::transitions::{
    Burn, Burnable, Burned, Moved, NewApproval, NewReview, Receipt, ReceiptKey, Requested, Transition,
};
pub use crate::approvals::store::windows::{Generation, Settling, Written};

/// How the store is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which engine, where.
    pub location: Location,
    /// How long an operation may take.
    pub timeout: Duration,
    /// Connections of a pool.
    pub connections: u32,
    /// This replica's own id: whose audit log records what it left in the outbox.
    pub replica: String,
    /// Unique to this start of the process.
    pub boot: String,
    /// A fresh generation, should one be needed.
    pub generation: String,
    /// The highest generation and revision ever seen here; `None` if none was.
    pub seen: Option<Seen>,
    /// The folder in which this replica notes what the store might lose: what stops, and what calls added to sums.
    pub notes: PathBuf,
}

/// A generation of the store and the highest revision seen in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// Generation.
    pub generation: String,
    /// Revision.
    pub revision: i64,
    /// Its head; empty where none was noted.
    #[serde(default)]
    pub head: String,
}

/// The store can't be asked, or must not be believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// What it holds can't be read.
    #[error("the state store holds a row that can't be read")]
    Damaged,
    /// It does not answer, or refuses.
    #[error("the state store does not answer: {0}")]
    Unreachable(String),
    /// It came into another lineage or generation, and this replica does not know yet what that means.
    #[error("the state store is another one than before: nothing is written until it is known whether it lost anything")]
    Unsettled,
    /// It lacks what was seen of it.
    #[error("the state store went back: it lacks what was written to it")]
    WentBack,
}

impl From<StoreError> for Refusal {
    fn from(_: StoreError) -> Self {
        Self::Unavailable("the state store does not answer: try again")
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::ColumnNotFound(_) => Self::Damaged,
            // Never the query's values: the statements have parameters alone.
            // PostgreSQL's own words, without those around them.
            sqlx::Error::Database(error) => Self::Unreachable(error.message().to_owned()),
            sqlx::Error::PoolTimedOut => Self::Unreachable("no connection in time".to_owned()),
            error => Self::Unreachable(error.to_string()),
        }
    }
}

/// A row of the outbox.
#[derive(Clone, Debug, PartialEq)]
pub struct Left {
    /// Its revision.
    pub revision: Revision,
    /// Whether the process that left it has sent no heartbeat for a while.
    pub gone: bool,
    /// The record.
    pub record: serde_json::Value,
    /// The replica whose audit log is to have it.
    pub replica: String,
    /// The start of that replica's process.
    pub boot: String,
    /// When it was left.
    pub at: Timestamp,
    /// Where it is recorded: log and line; `None` if it is not yet.
    pub recorded: Option<(String, u64)>,
}

/// A check that an allowed verification made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Name in `context.checks`.
    pub kind: String,
    /// Tenant.
    pub tenant: String,
    /// Case.
    pub case: String,
    /// Customer.
    pub customer: String,
    /// Until when it holds.
    pub expires: Timestamp,
}

/// An outcome to be remembered, once.
#[derive(Clone, Debug)]
pub struct NewOutcome {
    /// Evaluation id of the allow.
    pub evaluation_id: String,
    /// The checks that it makes.
    pub checks: Vec<Check>,
    /// The checks of a case that a failure ends: tenant, case, and their names.
    pub ends: Option<(String, String, Vec<String>)>,
    /// When it was reported.
    pub at: Timestamp,
    /// The record of it.
    pub record: serde_json::Value,
}

/// A copy of every halt, as old as `read_at`.
#[derive(Clone, Debug, Default)]
pub struct Halts {
    /// The halts.
    pub halts: crate::model::halt::Halts,
    /// When the store was asked; `None` before the first answer.
    pub read_at: Option<Timestamp>,
    /// How many signals this process has taken, and those that may not stand in what was read last.
    taken: u64,
    fresh: Vec<(u64, Halt)>,
}

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
        Self::open_at(options).await.map_err(|error| location::named(error, &place))
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

/// A transition's record with where it led.
pub fn with_state(mut record: serde_json::Value, state: State) -> serde_json::Value {
    if let Some(members) = record.as_object_mut() {
        members.insert("state".to_owned(), state.name().into());
    }
    record
}

/// The store can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It is of a version that this program does not know.
    #[error("the state store's tables are of version {0}, newer than this program's: use the newer program, or another store")]
    Newer(i64),
    /// This replica's notes can't be used.
    #[error("the notes beside the state store, in `state/` of the data folder, can't be used: {0}")]
    Notes(#[from] std::io::Error),
    /// It can't be reached.
    #[error("the state store can't be opened: {0}: see `store` in the settings")]
    Unreachable(#[from] StoreError),
}

/// An approval's members that are text in one column.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    binding: crate::model::approval::Binding,
    justification: Justification,
    display: String,
    reversibility: String,
}
