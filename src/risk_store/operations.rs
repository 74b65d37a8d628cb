//! Operations on the risk store, and the arithmetic that both engines share.

use std::fmt;
use std::time::Duration;

use sha2::{Digest, Sha256};
use smol_str::SmolStr;

use crate::model::number::to_u64;
use crate::model::text::hex;
use crate::risk_store::address::Server;

/// Key of an entry: 128 bits of a SHA-256 over deployment, tenant, kind of entry and ids. Stores contain no
/// ids in clear text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(u128);

impl Key {
    /// Derives a key. Parts are hashed with their lengths, so different lists have different keys.
    pub fn of(parts: &[&str]) -> Self {
        Self::hashed(parts.iter().map(|part| part.as_bytes()))
    }

    // Stores keep keys for weeks, so the derivation must stay as it is.
    fn hashed<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update(to_u64(part.len()).to_be_bytes());
            hash.update(part);
        }
        let digest: [u8; 32] = hash.finalize().into();
        Self(digest.iter().take(16).fold(0, |key, byte| (key << 8) | u128::from(*byte)))
    }

    /// Returns the key in lower-case hexadecimal.
    fn digits(self) -> [u8; 32] {
        let mut digits = [0; 32];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(self.0.to_be_bytes()) {
            pair.copy_from_slice(&digits_of(byte));
        }
        digits
    }

    /// Returns 64 bits of the key, for things that are only counted.
    pub fn short(self) -> u64 {
        // The bits of a hash are all equally good, so the low half will do.
        to_u64(self.0 & u128::from(u64::MAX))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&hex(self.0.to_be_bytes()))
    }
}

/// Returns the two hexadecimal digits of a byte.
fn digits_of(byte: u8) -> [u8; 2] {
    [byte >> 4, byte & 15].map(|half| if half < 10 { b'0' + half } else { b'a' + half - 10 })
}

/// A tenant of a deployment, hashed. All keys of a tenant derive from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tenant(pub(super) Key);

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
        let mut digits = [0; 16];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(item.to_be_bytes()) {
            pair.copy_from_slice(&digits_of(byte));
        }
        Key::hashed([&seed.digits()[..], &digits]).short()
    }

    /// Derives a key of this tenant.
    pub fn key(self, what: &str, whose: &[&str]) -> Key {
        let own = self.0.digits();
        let parts = whose.iter().map(|part| part.as_bytes());
        Key::hashed([&own[..], what.as_bytes()].into_iter().chain(parts))
    }
}

/// A call to count in a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acquire {
    pub key: Key,
    /// Time that one call takes, in microseconds.
    pub every: i64,
    /// Maximum time ahead of now until which the bucket may be filled, in microseconds.
    pub room: i64,
}

/// A query of a distinct count, optionally with one more thing to add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
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
pub struct Update {
    pub key: Key,
    /// Name of the time to change.
    pub name: SmolStr,
    pub change: Change,
}

impl Update {
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
pub struct Batch {
    /// Calls to take out of their buckets again, because they were denied.
    pub withdrawals: Vec<Acquire>,
    /// Calls to count.
    pub acquires: Vec<Acquire>,
    /// Distinct counts to query and add to.
    pub observations: Vec<Observation>,
    /// Memories to change.
    pub updates: Vec<Update>,
    /// Memories to read before they are changed.
    pub reads: Vec<Key>,
    /// Entries to delete before everything else, because a human cleared them.
    pub deletes: Vec<Key>,
    /// Tool service that the call is from. In process, one tool service can fill at most half of a tenant's
    /// table.
    pub by: Option<Key>,
}

impl Batch {
    /// Returns whether there are no operations.
    pub fn is_empty(&self) -> bool {
        *self == Self { by: self.by, ..Self::default() }
    }
}

/// Results of a [`Batch`], in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatchResult {
    /// Microseconds until each call would fit. A call is counted in every bucket if all are 0, and otherwise
    /// in none: a caller that exceeds its own limit must not consume a limit that it shares with others.
    pub waits: Vec<i64>,
    /// Distinct counts, including the added things. A call with a wait adds nothing and changes no memory.
    pub counts: Vec<u64>,
    /// Times of each memory that still count.
    pub memories: Vec<Vec<(SmolStr, i64)>>,
}

impl BatchResult {
    /// Returns whether one of the memories was full and lacks something.
    pub fn is_overfull(&self) -> bool {
        self.memories.iter().flatten().any(|(name, _)| name == OVERFULL)
    }
}

/// Returns the time of a memory after a change.
pub fn change(until: i64, now: i64, change: Change) -> i64 {
    match change {
        Change::Add { step, reach } => until.max(now).saturating_add(step).min(now.saturating_add(reach)).max(until),
        Change::For(length) => until.max(now.saturating_add(length)),
    }
}

/// Adds a call to a bucket. Returns the time until which the bucket is then used, and the time that the call
/// would have to wait. A call that has to wait is not added.
pub fn acquire(until: i64, now: i64, acquire: &Acquire) -> (i64, i64) {
    let then = until.max(now).saturating_add(acquire.every);
    let wait = then.saturating_sub(now).saturating_sub(acquire.room).max(0);
    (if wait == 0 { then } else { until }, wait)
}

/// Takes a call out of a bucket again. Returns the time until which the bucket is then used.
pub fn withdraw(until: i64, now: i64, withdrawn: &Acquire) -> i64 {
    until.saturating_sub(withdrawn.every).max(until.min(now))
}

/// Name of the time that marks a full memory, from which something is missing. `batch.lua` has the same
/// constant.
pub const OVERFULL: &str = "!";

#[derive(Clone, Debug)]
pub struct Options {
    /// Redis or Valkey; `None` for the engine in process.
    pub server: Option<Server>,
    /// Certificate authorities for the server, in PEM; `None` for those of the system.
    pub authorities: Option<Vec<u8>>,
    pub timeout: Duration,
    /// Maximum number of entries per tenant in process.
    pub entries_per_tenant: usize,
    /// Id that is unique to this start of the process.
    pub boot: String,
}

/// A reason for which risk signals are unavailable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RiskStoreError {
    #[error("the risk store may evict keys: set its `maxmemory-policy` to `noeviction`")]
    Evicts,
    /// The tenant's table is full, and nothing in it has expired.
    #[error("the tenant's table in the risk store is full")]
    Full,
    /// Some or all of the stored entries are gone.
    #[error("the risk store lost data: it was emptied, or lacks acknowledged writes")]
    Lost,
    /// The server does not answer, or refuses the operation.
    #[error("the risk store does not answer: {0}")]
    Unreachable(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums and windows of running deployments are stored under these keys.
    #[test]
    fn keys_are_derived_as_ever() {
        let tenant = Tenant::of("production", "acme");
        assert_eq!(tenant.tag(), "1db7843eac77e861f3e12d9bbb31ae86");
        assert_eq!(
            tenant.key("sum", &["refunds_per_order", "order-1"]).to_string(),
            "c069c7232170e1c01f4db40dc5af2fbc"
        );
        assert_eq!(Tenant::thing(Key::of(&["seed"]), 7), 9108731850206489766);
    }
}
