//! The risk store: rate windows, case risk and distinct counts of recent calls. It has two engines, one in
//! process and one on Redis or Valkey for replicas. Both use the same integer arithmetic, so they agree to
//! the microsecond.
//!
//! Every entry holds times in microseconds until which something counts, and expires by itself:
//! - a *bucket* (GCRA, the leaky bucket of ITU-T I.371) holds the time until which a rate is used;
//! - a *memory* holds named times until which each kind of event of a case counts;
//! - a *breadth* counts distinct things, exactly up to [`EXACT`](crate::model::signals::EXACT) and above that
//!   by a sample.
//!
//! INVARIANT: nothing is dropped while it counts. If something can't be stored, the operation fails, and
//! after any error the caller uses worst-case values.

pub mod breadth;
pub mod process;
pub mod redis;

use std::fmt;
use std::time::Duration;

use sha2::{Digest, Sha256};
use smol_str::SmolStr;

use crate::model::time::Timestamp;
use crate::windows::process::InProcess;
use crate::windows::redis::Redis;

/// Key of an entry: 128 bits of a SHA-256 over deployment, tenant, kind of entry and ids. Stores contain no
/// ids in clear text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(u128);

impl Key {
    /// Derives a key. Parts are hashed with their lengths, so different lists have different keys.
    pub fn of(parts: &[&str]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            hash.update(part.as_bytes());
        }
        let digest: [u8; 32] = hash.finalize().into();
        let (first, _) = digest.split_first_chunk::<16>().unwrap_or((&[0; 16], &[]));
        Self(u128::from_be_bytes(*first))
    }

    /// Returns 64 bits of the key, for things that are only counted.
    pub fn short(self) -> u64 {
        // The bits of a hash are all equally good, so the low half will do.
        u64::try_from(self.0 & u128::from(u64::MAX)).unwrap_or(0)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:032x}", self.0)
    }
}

/// A call to count in a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Take {
    pub key: Key,
    /// Time that one call takes, in microseconds.
    pub every: i64,
    /// Maximum time ahead of now until which the bucket may be filled, in microseconds.
    pub room: i64,
}

/// A query of a distinct count, optionally with one more thing to add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    pub key: Key,
    /// The thing to add; `None` only queries.
    pub item: Option<u64>,
    /// Time that a thing counts for, in microseconds.
    pub within: i64,
    /// Maximum count, at most [`EXACT`](crate::model::signals::EXACT). A further thing is not added, and the
    /// answer is then `most` + 1.
    pub most: Option<u64>,
}

/// A change of a memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    pub key: Key,
    /// Name of the time to change.
    pub name: SmolStr,
    pub change: Change,
}

impl Note {
    /// Maximum time from now until which the changed time may count.
    pub fn reach(&self) -> Duration {
        let micros = match self.change {
            Change::Add { reach, .. } => reach,
            Change::For(micros) => micros,
        };
        Duration::from_micros(micros.unsigned_abs())
    }
}

/// Change of a time, which never moves it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Adds one event: it counts for `step` after the events that count already, but no further ahead than
    /// `reach`.
    Add {
        /// Time that the event counts for, in microseconds.
        step: i64,
        /// Maximum time ahead of now, in microseconds.
        reach: i64,
    },
    /// Counts for these microseconds from now on.
    For(i64),
}

/// All operations of one request on the risk store, for one tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Visit {
    /// Calls to count.
    pub takes: Vec<Take>,
    /// Distinct counts to query and add to.
    pub touches: Vec<Touch>,
    /// Memories to change.
    pub notes: Vec<Note>,
    /// Memories to read before they are changed.
    pub reads: Vec<Key>,
    /// Entries to delete before everything else, because a human cleared them.
    pub forgets: Vec<Key>,
    /// Tool service that the call is from. In process, one tool service can fill at most half of a tenant's
    /// table.
    pub by: Option<Key>,
}

impl Visit {
    /// Returns whether there are no operations.
    pub fn is_empty(&self) -> bool {
        *self == Self { by: self.by, ..Self::default() }
    }
}

/// Results of a [`Visit`], in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Visited {
    /// Microseconds until each call would fit. A call is counted in every bucket if all are 0, and otherwise
    /// in none: a caller that exceeds its own limit must not consume a limit that it shares with others.
    pub waits: Vec<i64>,
    /// Distinct counts, including the added things. A call with a wait adds nothing and changes no memory.
    pub counts: Vec<u64>,
    /// Times of each memory that still count.
    pub memories: Vec<Vec<(SmolStr, i64)>>,
}

impl Visited {
    /// Returns whether one of the memories was full and lacks something.
    pub fn is_overfull(&self) -> bool {
        self.memories.iter().flatten().any(|(name, _)| name == OVERFULL)
    }
}

/// A reason for which risk signals are unavailable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WindowsDown {
    #[error("the windows' server may evict keys: set its `maxmemory-policy` to `noeviction`")]
    Evicts,
    /// The tenant's table is full, and nothing in it has expired.
    #[error("the tenant's table of windows is full")]
    Full,
    /// Some or all of the stored entries are gone.
    #[error("the windows were lost: the server was restarted without them, or stands behind what was written to it")]
    Lost,
    /// The server does not answer, or refuses the operation.
    #[error("the windows' server does not answer: {0}")]
    Unreachable(String),
}

/// Name of the time that marks a full memory, from which something is missing. `visit.lua` has the same
/// constant.
pub const OVERFULL: &str = "!";

/// A tenant of a deployment, hashed. All keys of a tenant derive from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tenant(Key);

impl Tenant {
    pub fn of(environment: &str, tenant: &str) -> Self {
        Self(Key::of(&[environment, tenant]))
    }

    /// Name of the tenant in keys on servers.
    pub fn tag(self) -> String {
        self.0.to_string()
    }

    /// Hashes a counted thing with the engine's seed. Without a secret seed, callers could choose things that
    /// are not in the sample.
    pub(crate) fn thing(seed: Key, item: u64) -> u64 {
        Key::of(&[&seed.to_string(), &format!("{item:016x}")]).short()
    }

    /// Derives a key of this tenant.
    pub fn key(self, what: &str, whose: &[&str]) -> Key {
        let own = self.0.to_string();
        let mut parts = vec![own.as_str(), what];
        parts.extend(whose);
        Key::of(&parts)
    }
}

#[derive(Clone, Debug)]
pub struct Options {
    /// Redis or Valkey; `None` for the engine in process.
    pub server: Option<redis::Server>,
    /// Certificate authorities for the server, in PEM; `None` for those of the system.
    pub authorities: Option<Vec<u8>>,
    pub timeout: Duration,
    /// Maximum number of entries per tenant in process.
    pub entries_per_tenant: usize,
    /// Id that is unique to this start of the process.
    pub boot: String,
}

#[derive(Debug)]
pub enum Windows {
    InProcess(InProcess),
    Redis(Box<Redis>),
}

impl Windows {
    /// Opens the store. The connection to a server is made when it is first needed.
    ///
    /// # Errors
    /// When the server's address can't be used.
    pub fn open(options: Options) -> Result<Self, redis::AddressError> {
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
    pub async fn visit(&self, tenant: Tenant, now: Timestamp, visit: &Visit) -> Result<Visited, WindowsDown> {
        match self {
            Self::InProcess(windows) => windows.visit(tenant, now, visit),
            Self::Redis(windows) => windows.visit(tenant, now, visit).await,
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

/// Adds a call to a bucket. Returns the time until which the bucket is then used, and the time that the call
/// would have to wait. A call that has to wait is not added.
pub(crate) fn take(until: i64, now: i64, take: &Take) -> (i64, i64) {
    let then = until.max(now).saturating_add(take.every);
    let wait = then.saturating_sub(now).saturating_sub(take.room).max(0);
    (if wait == 0 { then } else { until }, wait)
}

/// Returns the time of a memory after a change.
pub(crate) fn change(until: i64, now: i64, change: Change) -> i64 {
    match change {
        Change::Add { step, reach } => until.max(now).saturating_add(step).min(now.saturating_add(reach)).max(until),
        Change::For(length) => until.max(now.saturating_add(length)),
    }
}
