//! Updates that could not be written to the risk store yet, and the times until which worst-case values
//! apply.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dashmap::DashMap;
use smol_str::SmolStr;

use crate::clock::Seldom;
use crate::model::time::Timestamp;
use crate::pdp::snapshot::UNREACHED;
use crate::risk_store::{Batch, Change, Key, Observation, RiskStoreError, Tenant, Update};

/// Maximum number of changes of memories and distinct counters that wait. Changes of the same entry count
/// once.
const UNSENT_MAX: usize = 100_000;

/// Maximum number of these changes for one tool service whose part of a table is full.
const UNSENT_OF_PART_MAX: usize = 256;

/// Maximum number of changes in one batch.
const SAID_AT_ONCE: usize = 256;

/// Time for which the status shows a failure, in microseconds.
const FAILED_MICROS: i64 = 10_000_000;

/// State of this replica's access to the risk store.
#[derive(Debug, Default)]
pub(in crate::pdp) struct WriteBacklog {
    /// End of the worst-case values for each tenant whose data was lost.
    worst_until: DashMap<Tenant, Timestamp>,
    /// End of the worst-case values for each tool service that filled its part of a tenant's table.
    full_until: DashMap<(Tenant, Option<Key>), Timestamp>,
    /// End of the worst-case values for all tenants, in microseconds.
    all_worst_until: AtomicI64,
    /// Whether events before the start are still being replayed.
    pub(in crate::pdp) rebuilding: AtomicBool,
    /// Tenants whose events must be replayed.
    pub(in crate::pdp) replays: Mutex<Vec<Tenant>>,
    /// Locked while lost data is recovered.
    pub(in crate::pdp) recovering: tokio::sync::Mutex<()>,
    /// Changes that are not written yet.
    unsent: Mutex<HashMap<BacklogKey, BacklogEntry>>,
    /// Number of keys in `unsent`. Calls read only this number, which needs no lock.
    waiting: AtomicUsize,
    /// Locked while the backlog is written.
    pub(in crate::pdp) sending: tokio::sync::Mutex<()>,
    /// Time of the last failure, in microseconds.
    pub(in crate::pdp) failed_at: AtomicI64,
    /// Limits the log to one failure per second.
    pub(in crate::pdp) logged: Seldom,
    /// Time since which Redis does not answer, in microseconds; 0 if it answers.
    unreached_since: AtomicI64,
}

/// Identifies changes that wait: by tenant, by tool service, and by whether they make all of the tenant's
/// data incomplete (`of_all`) or only the tool service's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::pdp) struct BacklogKey {
    pub(in crate::pdp) tenant: Tenant,
    pub(in crate::pdp) by: Option<Key>,
    pub(in crate::pdp) of_all: bool,
}

/// Changes that wait, one for each entry. Later changes are merged into it; all are relative to `at`.
#[derive(Clone, Debug, Default)]
struct BacklogEntry {
    at: Timestamp,
    updates: HashMap<(Key, SmolStr), Change>,
    observations: HashMap<(Key, Option<u64>), Observation>,
}

impl BacklogEntry {
    /// Adds the changes of a batch at this time. A merged change counts for as long as the separate ones
    /// would, or a little longer.
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

    /// Removes and returns some of the changes.
    fn take(&mut self, by: Option<Key>) -> Batch {
        let updates: Vec<_> = self.updates.keys().take(SAID_AT_ONCE).cloned().collect();
        let observations: Vec<_> = self.observations.keys().take(SAID_AT_ONCE - updates.len()).copied().collect();
        let update = |(key, name): (Key, SmolStr)| {
            self.updates.remove(&(key, name.clone())).map(|change| Update { key, name, change })
        };
        let updates = updates.into_iter().filter_map(update).collect();
        let observations = observations.into_iter().filter_map(|named| self.observations.remove(&named)).collect();
        Batch { updates, observations, by, ..Batch::default() }
    }

    fn len(&self) -> usize {
        self.updates.len() + self.observations.len()
    }
}

/// Merges two changes of a time into one that reaches at least as far as both.
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
    /// Applies worst-case values to a tenant, at least until this time.
    pub(in crate::pdp) fn worst_until(&self, tenant: Tenant, until: Timestamp) {
        self.worst_until.entry(tenant).and_modify(|known| *known = until.max(*known)).or_insert(until);
    }

    /// Applies worst-case values to all tenants, at least until this time.
    pub(in crate::pdp) fn all_worst_until(&self, until: Timestamp) {
        self.all_worst_until.fetch_max(until.micros(), Ordering::AcqRel);
    }

    /// Returns the time until which worst-case values apply to a tenant, if they do.
    pub(in crate::pdp) fn is_worst_until(&self, tenant: Tenant, now: Timestamp) -> Option<Timestamp> {
        let all = Timestamp::from_micros(self.all_worst_until.load(Ordering::Acquire));
        let own = self.worst_until.get(&tenant).map_or(all, |until| *until);
        Some(own.max(all)).filter(|until| *until > now)
    }

    /// Returns whether worst-case values apply to this tool service, because its part of the tenant's table
    /// was full.
    pub(in crate::pdp) fn is_full(&self, tenant: Tenant, by: Option<Key>, now: Timestamp) -> bool {
        [None, by].into_iter().any(|by| self.full_until.get(&(tenant, by)).is_some_and(|until| *until > now))
    }

    /// Notes whether Redis answered.
    pub(in crate::pdp) fn reached(&self, reached: bool, now: Timestamp) {
        match reached {
            true => self.unreached_since.store(0, Ordering::Release),
            // The time of the first failure is kept.
            false => drop(self.unreached_since.compare_exchange(0, now.micros(), Ordering::AcqRel, Ordering::Acquire)),
        }
    }

    /// Returns whether Redis answered recently.
    pub(in crate::pdp) fn is_reached(&self, now: Timestamp) -> bool {
        let since = self.unreached_since.load(Ordering::Acquire);
        since == 0 || Timestamp::from_micros(since).plus(UNREACHED) >= now
    }

    /// Returns whether no tenant's data was lost, no access failed recently, and no update waits that makes a
    /// tenant's data incomplete.
    pub(in crate::pdp) fn is_healthy(&self, now: Timestamp) -> bool {
        let lost = self.worst_until.iter().any(|until| *until > now)
            || self.all_worst_until.load(Ordering::Acquire) > now.micros();
        let failed = self.failed_at.load(Ordering::Acquire).saturating_add(FAILED_MICROS) > now.micros();
        // Changes for which one tool service's part has no room do not make the store unhealthy.
        let told = || !self.unsent().keys().any(|whose| whose.of_all);
        !lost
            && !failed
            && !self.rebuilding.load(Ordering::Acquire)
            && (self.waiting.load(Ordering::Acquire) == 0 || told())
    }

    /// Returns an error if a tenant's data is incomplete for this tool service, because changes wait.
    pub(in crate::pdp) fn lacks(&self, tenant: Tenant, by: Option<Key>) -> Result<(), RiskStoreError> {
        if self.waiting.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        let unsent = self.unsent();
        let own = || unsent.keys().filter(|whose| whose.tenant == tenant);
        match () {
            () if own().any(|whose| whose.of_all) => {
                Err(RiskStoreError::Unreachable("earlier updates are still waiting".into()))
            }
            () if own().any(|whose| whose.by == by) => Err(RiskStoreError::Full),
            () => Ok(()),
        }
    }

    /// Removes and returns some of the waiting changes, with their time.
    pub(in crate::pdp) fn next_unsent(&self, whose: BacklogKey) -> Option<(Timestamp, Batch)> {
        self.unsent().get_mut(&whose).map(|unsent| (unsent.at, unsent.take(whose.by)))
    }

    /// Puts back changes that failed again, or forgets the key if none are left. `emptied` runs when the backlog is empty, under the
    /// lock.
    pub(in crate::pdp) fn settle_unsent(
        &self,
        whose: BacklogKey,
        again: Option<(Timestamp, Batch)>,
        emptied: impl FnOnce(),
    ) {
        let mut unsent = self.unsent();
        match again {
            Some((at, batch)) => unsent.entry(whose).or_default().add(at, batch),
            None if unsent.get(&whose).is_some_and(|rest| rest.len() == 0) => drop(unsent.remove(&whose)),
            None => {}
        }
        self.waiting.store(unsent.len(), Ordering::Release);
        if unsent.is_empty() {
            emptied();
        }
    }

    fn unsent(&self) -> MutexGuard<'_, HashMap<BacklogKey, BacklogEntry>> {
        self.unsent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a batch that could not be written at this time; returns the batch if the backlog is full. `first` runs before the first batch is queued, under the lock, so that
    /// it does not overlap with `emptied` of [`Self::settle_unsent`].
    pub(in crate::pdp) fn keep(
        &self,
        key: BacklogKey,
        at: Timestamp,
        batch: Batch,
        first: impl FnOnce(),
    ) -> Option<Batch> {
        let mut unsent = self.unsent();
        if unsent.is_empty() {
            first();
        }
        let all: usize = unsent.values().map(BacklogEntry::len).sum();
        let own = unsent.get(&key).map_or(0, BacklogEntry::len);
        if all >= UNSENT_MAX || !key.of_all && own >= UNSENT_OF_PART_MAX {
            return Some(batch);
        }
        unsent.entry(key).or_default().add(at, batch);
        self.waiting.store(unsent.len(), Ordering::Release);
        None
    }

    pub(in crate::pdp) fn is_empty(&self) -> bool {
        self.waiting.load(Ordering::Acquire) == 0
    }

    pub(in crate::pdp) fn keys(&self) -> Vec<BacklogKey> {
        self.unsent().keys().copied().collect()
    }

    /// Applies worst-case values to a tool service's part of a tenant's table, at least until this time.
    pub(in crate::pdp) fn part_worst_until(&self, key: BacklogKey, until: Timestamp) {
        self.full_until.entry((key.tenant, key.by)).and_modify(|known| *known = until.max(*known)).or_insert(until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A merged change reaches at least as far as its parts would, applied one after the other.
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
                let apart =
                    history.iter().fold(before, |until, (at, change)| crate::risk_store::change(until, *at, *change));
                let mut unsent = BacklogEntry::default();
                for (at, change) in &history {
                    let updates = vec![Update { key, name: "denials".into(), change: *change }];
                    unsent.add(Timestamp::from_micros(*at), Batch { updates, ..Batch::default() });
                }
                assert_eq!(unsent.len(), 1);
                let (at, batch) = (unsent.at.micros(), unsent.take(None));
                let kept = batch
                    .updates
                    .iter()
                    .fold(before, |until, update| crate::risk_store::change(until, at, update.change));
                let last = history.iter().map(|(at, _)| *at).max().expect("some");
                assert!(kept >= apart || apart <= last, "{history:?} from {before}: {kept} < {apart}");
                assert_eq!(unsent.len(), 0);
            }
        }
    }

    /// The note on disk is set before anything waits, and taken away when nothing does.
    #[test]
    fn the_note_is_set_for_the_first_batch_only_and_taken_away_with_the_last() {
        let backlog = WriteBacklog::default();
        let tenant = Tenant::of("test", "acme");
        let key = BacklogKey { tenant, by: None, of_all: true };
        let noted = std::cell::RefCell::new(vec![]);
        let batch = |name: &str| {
            let update = Update { key: tenant.key("case", &[name]), name: "denials".into(), change: Change::For(60) };
            Batch { updates: vec![update], ..Batch::default() }
        };
        for name in ["1", "2"] {
            let refused = backlog.keep(key, Timestamp::from_seconds(1), batch(name), || noted.borrow_mut().push(true));
            assert_eq!(refused, None);
        }
        assert_eq!(*noted.borrow(), [true]);
        let (at, rest) = backlog.next_unsent(key).expect("two updates");
        backlog.settle_unsent(key, Some((at, rest)), || noted.borrow_mut().push(false));
        assert_eq!(*noted.borrow(), [true], "they failed again");
        let _written = backlog.next_unsent(key);
        backlog.settle_unsent(key, None, || noted.borrow_mut().push(false));
        assert_eq!((noted.into_inner(), backlog.is_empty()), (vec![true, false], true));
    }
}
