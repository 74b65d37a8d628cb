//! What was seen a short while ago: how often, of how many different things, and what of it still counts. One port, two engines: in
//! process, and Redis or Valkey for replicas. Both do the same arithmetic on integers, so that they agree to the microsecond.
//!
//! Everything that is kept is a time until which something counts, in microseconds, and goes by itself when it is over:
//! - a *bucket* (GCRA, the leaky bucket of ITU-T I.371): until when a rate is taken up;
//! - a *memory*: a few named times, until when each event of a case still counts;
//! - a *breadth*: the different things of a time, exactly up to [`EXACT`](crate::model::signals::EXACT), then by a sample of them.
//!
//! INVARIANT: nothing that still counts is dropped before its time. What can't be kept is an error, and every error counts as the worst.

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

/// What something is kept under: 128 bits of SHA-256 over deployment, tenant, what it is and whose. Ids are in no store in clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(u128);

impl Key {
    /// The key of these parts; no two lists run together.
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

    /// 64 bits of it, for what is only counted.
    pub fn short(self) -> u64 {
        // The low half: as good as any other.
        u64::try_from(self.0 & u128::from(u64::MAX)).unwrap_or(0)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:032x}", self.0)
    }
}

/// A call that a rate counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Take {
    /// The bucket.
    pub key: Key,
    /// The time that one call takes up.
    pub every: i64,
    /// How far ahead the bucket may be taken up.
    pub room: i64,
}

/// A look at how many different things there were, and one more of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    /// The breadth.
    pub key: Key,
    /// The thing; `None` only looks.
    pub item: Option<u64>,
    /// How long a thing counts.
    pub within: i64,
    /// How many things there may be: another one is not counted, and the answer is one more than these. At most
    /// [`EXACT`](crate::model::signals::EXACT).
    pub most: Option<u64>,
}

/// A change of a memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The memory.
    pub key: Key,
    /// Which of its times.
    pub name: SmolStr,
    /// What happens to it.
    pub change: Change,
}

impl Note {
    /// How long it counts at most, from now on.
    pub fn reach(&self) -> Duration {
        let micros = match self.change {
            Change::Add { reach, .. } => reach,
            Change::For(micros) => micros,
        };
        Duration::from_micros(micros.unsigned_abs())
    }
}

/// What happens to a time. It never moves back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// One more event that counts for so long, after those that count already, at most so far ahead.
    Add {
        /// How long it counts.
        step: i64,
        /// How far ahead of now.
        reach: i64,
    },
    /// It counts for so long from now.
    For(i64),
}

/// All that one request asks and says, of one tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Visit {
    /// Calls to be counted.
    pub takes: Vec<Take>,
    /// Different things to be counted.
    pub touches: Vec<Touch>,
    /// Memories to be changed.
    pub notes: Vec<Note>,
    /// Memories to be read, before they are changed.
    pub reads: Vec<Key>,
    /// What is to be forgotten, first: a human said so.
    pub forgets: Vec<Key>,
    /// Who asks: of a tenant's table in process, one tool service fills no more than half.
    pub by: Option<Key>,
}

impl Visit {
    /// Whether it asks and says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self { by: self.by, ..Self::default() }
    }
}

/// What came of a visit, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Visited {
    /// How long until a call would fit, in microseconds. Only if all are 0 it was counted, in all: who is held back by one window
    /// must not use up another that is shared.
    pub waits: Vec<i64>,
    /// How many different things there are, with the one that was touched. A call that a window held back touches nothing, and changes
    /// no memory.
    pub counts: Vec<u64>,
    /// The times of each memory that still count.
    pub memories: Vec<Vec<(SmolStr, i64)>>,
}

impl Visited {
    /// Whether one of the memories lacks something that it was told.
    pub fn is_overfull(&self) -> bool {
        self.memories.iter().flatten().any(|(name, _)| name == OVERFULL)
    }
}

/// Why nothing can be known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WindowsDown {
    /// The server may evict what counts.
    #[error("the windows' server may evict keys: set its `maxmemory-policy` to `noeviction`")]
    Evicts,
    /// The tenant's table is full, and nothing in it is over.
    #[error("the tenant's table of windows is full")]
    Full,
    /// What was kept is not there any more, in part or whole.
    #[error("the windows were lost: the server was restarted without them, or stands behind what was written to it")]
    Lost,
    /// The server does not answer, or refuses.
    #[error("the windows' server does not answer: {0}")]
    Unreachable(String),
}

/// The name under which a memory says that it was full, so that something it was told is missing. `visit.lua` has it, too.
pub const OVERFULL: &str = "!";

/// A tenant: what its keys are kept together by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tenant(Key);

impl Tenant {
    /// A tenant of this deployment.
    pub fn of(environment: &str, tenant: &str) -> Self {
        Self(Key::of(&[environment, tenant]))
    }

    /// Its name on servers.
    pub fn tag(self) -> String {
        self.0.to_string()
    }

    /// A thing to be counted; the engine keys it, so that nobody can choose what falls into a sample.
    pub(crate) fn thing(seed: Key, item: u64) -> u64 {
        Key::of(&[&seed.to_string(), &format!("{item:016x}")]).short()
    }

    /// A key of this tenant.
    pub fn key(self, what: &str, whose: &[&str]) -> Key {
        let own = self.0.to_string();
        let mut parts = vec![own.as_str(), what];
        parts.extend(whose);
        Key::of(&parts)
    }
}

/// How windows are kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where; `None`: in process.
    pub server: Option<redis::Server>,
    /// PEM of the authorities that vouch for the server; `None`: the system's.
    pub authorities: Option<Vec<u8>>,
    /// How long a visit may take.
    pub timeout: Duration,
    /// The most that is kept of one tenant in process.
    pub entries_per_tenant: usize,
    /// Unique to this start of the process.
    pub boot: String,
}

/// The windows.
#[derive(Debug)]
pub enum Windows {
    /// In process.
    InProcess(InProcess),
    /// In a server that replicas share.
    Redis(Box<Redis>),
}

impl Windows {
    /// Windows that nothing is in yet. A server is connected to when it is first needed.
    ///
    /// # Errors
    /// When the server's address can't be used.
    pub fn open(options: Options) -> Result<Self, redis::AddressError> {
        match &options.server {
            None => Ok(Self::InProcess(InProcess::new(options.entries_per_tenant, &options.boot))),
            Some(_) => Ok(Self::Redis(Box::new(Redis::open(options)?))),
        }
    }

    /// The engine's name.
    pub fn engine(&self) -> &'static str {
        match self {
            Self::InProcess(_) => "in_process",
            Self::Redis(_) => "redis",
        }
    }

    /// Asks and says all of a request at once.
    ///
    /// # Errors
    /// When nothing can be known: then the worst counts.
    pub async fn visit(&self, tenant: Tenant, now: Timestamp, visit: &Visit) -> Result<Visited, WindowsDown> {
        match self {
            Self::InProcess(windows) => windows.visit(tenant, now, visit),
            Self::Redis(windows) => windows.visit(tenant, now, visit).await,
        }
    }

    /// Frees what is over; for the engine in process, which nobody else cleans.
    pub fn purge(&self, now: Timestamp) {
        match self {
            Self::InProcess(windows) => windows.purge(now),
            Self::Redis(_) => {}
        }
    }

    /// How many entries are kept in process.
    pub fn entries(&self) -> usize {
        match self {
            Self::InProcess(windows) => windows.entries(),
            Self::Redis(_) => 0,
        }
    }
}

/// One more call in a bucket: the time until which it is taken up then, and how long the call would have to wait. A call that does
/// not fit is not counted.
pub(crate) fn take(until: i64, now: i64, take: &Take) -> (i64, i64) {
    let then = until.max(now).saturating_add(take.every);
    let wait = then.saturating_sub(now).saturating_sub(take.room).max(0);
    (if wait == 0 { then } else { until }, wait)
}

/// A memory's time after a change.
pub(crate) fn change(until: i64, now: i64, change: Change) -> i64 {
    match change {
        Change::Add { step, reach } => until.max(now).saturating_add(step).min(now.saturating_add(reach)).max(until),
        Change::For(length) => until.max(now.saturating_add(length)),
    }
}
