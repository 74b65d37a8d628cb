//! What the windows could not be told yet, and until when they count as the worst.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dashmap::DashMap;
use smol_str::SmolStr;

use crate::clock::Seldom;
use crate::model::time::Timestamp;
use crate::pdp::snapshot::UNREACHED;
use crate::risk_store::{Batch, Change, Key, Observation, RiskStoreError, Tenant, Update};

/// How much may wait to be said to a server that does not answer: changes of memories and breadths, those of the same thing counted once.
const UNSENT_MAX: usize = 100_000;

/// How much of it may be what one tool service's part of a table has no room for.
const UNSENT_OF_PART_MAX: usize = 256;

/// How much of it is said at once.
const SAID_AT_ONCE: usize = 256;

/// How long a failure shows in the status.
const FAILED_MICROS: i64 = 10_000_000;

/// What this replica knows of its windows.
#[derive(Debug, Default)]
pub(super) struct WriteBacklog {
    /// Until when a tenant's windows count as the worst, since they were lost.
    worst_until: DashMap<Tenant, Timestamp>,
    /// Until when the windows count as the worst for a tool service that filled its part of a tenant's table.
    full_until: DashMap<(Tenant, Option<Key>), Timestamp>,
    /// Until when all do.
    all_worst_until: AtomicI64,
    /// While what happened before the start is read back.
    pub(super) rebuilding: AtomicBool,
    /// Tenants whose past is to be said again.
    pub(super) replays: Mutex<Vec<Tenant>>,
    /// Held while lost windows are made anew.
    pub(super) recovering: tokio::sync::Mutex<()>,
    /// What the server was not told yet.
    unsent: Mutex<HashMap<BacklogKey, BacklogEntry>>,
    /// Of how many it is: calls look at this alone.
    waiting: AtomicUsize,
    /// Held while it is told.
    pub(super) sending: tokio::sync::Mutex<()>,
    /// When they could not be asked last.
    pub(super) failed_at: AtomicI64,
    /// When that was logged last.
    pub(super) logged: Seldom,
    /// Since when the windows' server does not answer; 0: it does.
    unreached_since: AtomicI64,
}

/// BacklogKey windows could not be told something: the tenant, the tool service, and whether that says something of all of the tenant's
/// windows, or of the tool service's part alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct BacklogKey {
    pub(super) tenant: Tenant,
    pub(super) by: Option<Key>,
    pub(super) of_all: bool,
}

/// What could not be said, once for each thing: what came later is added to it, as of its own time.
#[derive(Clone, Debug, Default)]
struct BacklogEntry {
    at: Timestamp,
    updates: HashMap<(Key, SmolStr), Change>,
    observations: HashMap<(Key, Option<u64>), Observation>,
}

impl BacklogEntry {
    /// Adds what could not be said at this time. It counts for as long as it would have, or a little longer.
    fn add(&mut self, at: Timestamp, batch: Batch) {
        let (first, last) = (self.at.min(at), self.at.max(at));
        let later = |change: Change, by: Timestamp| match change {
            Change::For(length) => Change::For(length.saturating_sub(last.micros() - by.micros())),
            add => add,
        };
        if self.at < last {
            self.updates.values_mut().for_each(|change| *change = later(*change, first));
        }
        self.at = last;
        for update in batch.updates {
            let new = later(update.change, at);
            self.updates.entry((update.key, update.name)).and_modify(|known| *known = both(*known, new)).or_insert(new);
        }
        for observation in batch.observations {
            self.observations.insert((observation.key, observation.item), observation);
        }
    }

    /// Takes some of it out.
    fn take(&mut self, by: Option<Key>) -> Batch {
        let updates: Vec<_> = self.updates.keys().take(SAID_AT_ONCE).cloned().collect();
        let observations: Vec<_> = self.observations.keys().take(SAID_AT_ONCE - updates.len()).copied().collect();
        let update = |(key, name): (Key, SmolStr)| self.updates.remove(&(key, name.clone())).map(|change| Update { key, name, change });
        let updates = updates.into_iter().filter_map(update).collect();
        let observations = observations.into_iter().filter_map(|named| self.observations.remove(&named)).collect();
        Batch { updates, observations, by, ..Batch::default() }
    }

    fn len(&self) -> usize {
        self.updates.len() + self.observations.len()
    }
}

/// Two changes of a memory's time as one, which reaches at least as far as both.
fn both(one: Change, other: Change) -> Change {
    match (one, other) {
        (Change::Add { step, reach }, Change::Add { step: more, reach: other }) => {
            Change::Add { step: step.saturating_add(more), reach: reach.max(other) }
        }
        (Change::For(one), Change::For(other)) => Change::For(one.max(other)),
        (Change::Add { step, reach }, Change::For(length)) | (Change::For(length), Change::Add { step, reach }) => {
            Change::Add { step: step.max(length), reach: reach.max(length) }
        }
    }
}

impl WriteBacklog {
    /// A tenant's windows count as the worst at least until then.
    pub(super) fn worst_until(&self, tenant: Tenant, until: Timestamp) {
        self.worst_until.entry(tenant).and_modify(|known| *known = until.max(*known)).or_insert(until);
    }

    /// All count as the worst at least until then.
    pub(super) fn all_worst_until(&self, until: Timestamp) {
        self.all_worst_until.fetch_max(until.micros(), Ordering::AcqRel);
    }

    /// Until when a tenant's windows count as the worst, if they do.
    pub(super) fn is_worst_until(&self, tenant: Tenant, now: Timestamp) -> Option<Timestamp> {
        let all = Timestamp::from_micros(self.all_worst_until.load(Ordering::Acquire));
        let own = self.worst_until.get(&tenant).map_or(all, |until| *until);
        Some(own.max(all)).filter(|until| *until > now)
    }

    /// Whether they count as the worst for this tool service, whose part of the tenant's table was full.
    pub(super) fn is_full(&self, tenant: Tenant, by: Option<Key>, now: Timestamp) -> bool {
        [None, by].into_iter().any(|by| self.full_until.get(&(tenant, by)).is_some_and(|until| *until > now))
    }

    /// Notes whether the windows' server answered.
    pub(super) fn reached(&self, reached: bool, now: Timestamp) {
        match reached {
            true => self.unreached_since.store(0, Ordering::Release),
            // One that failed before stays the first.
            false => drop(self.unreached_since.compare_exchange(0, now.micros(), Ordering::AcqRel, Ordering::Acquire)),
        }
    }

    /// Whether the windows' server answered a short while ago.
    pub(super) fn is_reached(&self, now: Timestamp) -> bool {
        let since = self.unreached_since.load(Ordering::Acquire);
        since == 0 || Timestamp::from_micros(since).plus(UNREACHED) >= now
    }

    /// Whether nothing counts as the worst.
    pub(super) fn is_healthy(&self, now: Timestamp) -> bool {
        let lost = self.worst_until.iter().any(|until| *until > now) || self.all_worst_until.load(Ordering::Acquire) > now.micros();
        let failed = self.failed_at.load(Ordering::Acquire).saturating_add(FAILED_MICROS) > now.micros();
        // What one tool service's part has no room for says nothing of the windows.
        let told = || !self.unsent().keys().any(|whose| whose.of_all);
        !lost && !failed && !self.rebuilding.load(Ordering::Acquire) && (self.waiting.load(Ordering::Acquire) == 0 || told())
    }

    /// Why what a tenant's windows know is not all, for this tool service.
    pub(super) fn lacks(&self, tenant: Tenant, by: Option<Key>) -> Result<(), RiskStoreError> {
        if self.waiting.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        let unsent = self.unsent();
        let own = || unsent.keys().filter(|whose| whose.tenant == tenant);
        match () {
            () if own().any(|whose| whose.of_all) => {
                Err(RiskStoreError::Unreachable("what it could not be told before waits to be said".into()))
            }
            () if own().any(|whose| whose.by == by) => Err(RiskStoreError::Full),
            () => Ok(()),
        }
    }

    /// Some of what could not be said, and of when.
    pub(super) fn next_unsent(&self, whose: BacklogKey) -> Option<(Timestamp, Batch)> {
        self.unsent().get_mut(&whose).map(|unsent| (unsent.at, unsent.take(whose.by)))
    }

    /// Puts back what could not be said again, or notes that it was; whether nothing waits any more.
    pub(super) fn settle_unsent(&self, whose: BacklogKey, again: Option<(Timestamp, Batch)>) -> bool {
        let mut unsent = self.unsent();
        match again {
            Some((at, batch)) => unsent.entry(whose).or_default().add(at, batch),
            None if unsent.get(&whose).is_some_and(|rest| rest.len() == 0) => drop(unsent.remove(&whose)),
            None => {}
        }
        self.waiting.store(unsent.len(), Ordering::Release);
        unsent.is_empty()
    }

    fn unsent(&self) -> MutexGuard<'_, HashMap<BacklogKey, BacklogEntry>> {
        self.unsent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a batch that could not be written at this time. Returns the batch if there is no room for it.
    ///
    /// # Errors
    /// The batch, when the backlog is full.
    pub(super) fn keep(&self, key: BacklogKey, at: Timestamp, batch: Batch) -> Result<(), Batch> {
        let mut unsent = self.unsent();
        let all: usize = unsent.values().map(BacklogEntry::len).sum();
        let own = unsent.get(&key).map_or(0, BacklogEntry::len);
        if all >= UNSENT_MAX || !key.of_all && own >= UNSENT_OF_PART_MAX {
            return Err(batch);
        }
        unsent.entry(key).or_default().add(at, batch);
        self.waiting.store(unsent.len(), Ordering::Release);
        Ok(())
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.load(Ordering::Acquire) == 0
    }

    /// Whose batches wait.
    pub(super) fn keys(&self) -> Vec<BacklogKey> {
        self.unsent().keys().copied().collect()
    }

    /// A tool service's part of a tenant's table counts as the worst at least until then.
    pub(super) fn part_worst_until(&self, key: BacklogKey, until: Timestamp) {
        self.full_until.entry((key.tenant, key.by)).and_modify(|known| *known = until.max(*known)).or_insert(until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever is kept as one reaches as far as what it is made of, said one after the other.
    #[test]
    fn what_is_kept_as_one_counts_no_shorter() {
        let key = Key::of(&["case"]);
        let add = |step: i64, reach: i64| Change::Add { step, reach };
        let histories = [
            vec![(10, add(5, 100)), (12, add(5, 100)), (40, add(5, 100))],
            vec![(10, Change::For(50)), (30, Change::For(20)), (45, Change::For(20))],
            vec![(10, add(90, 100)), (20, add(90, 100))],
            vec![(30, Change::For(10)), (10, Change::For(50))],
        ];
        for history in histories {
            for before in [0, 15, 35, 90] {
                let apart = history.iter().fold(before, |until, (at, change)| crate::risk_store::change(until, *at, *change));
                let mut unsent = BacklogEntry::default();
                for (at, change) in &history {
                    let updates = vec![Update { key, name: "denials".into(), change: *change }];
                    unsent.add(Timestamp::from_micros(*at), Batch { updates, ..Batch::default() });
                }
                assert_eq!(unsent.len(), 1);
                let (at, batch) = (unsent.at.micros(), unsent.take(None));
                let kept = batch.updates.iter().fold(before, |until, update| crate::risk_store::change(until, at, update.change));
                let last = history.iter().map(|(at, _)| *at).max().expect("some");
                assert!(kept >= apart || apart <= last, "{history:?} from {before}: {kept} < {apart}");
                assert_eq!(unsent.len(), 0);
            }
        }
    }
}
