//! The risk store's engine in process: a sharded table with a limit per tenant. Each key is locked
//! separately, and only during its own arithmetic.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicUsize, Ordering};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use smol_str::SmolStr;

use crate::model::time::Timestamp;
use crate::risk_store::distinct_counter::DistinctCounter;
use crate::risk_store::operations::{
    Acquire, Batch, BatchResult, Key, OVERFULL, Observation, RiskStoreError, Tenant, Update, acquire, change, withdraw,
};

#[derive(Debug)]
enum Kept {
    DistinctCounter(Box<DistinctCounter>),
    Bucket,
    Memory(Vec<(SmolStr, i64)>),
}

/// An entry, until when it counts, and the numbers of its tenant and of the tool service that created it.
#[derive(Debug)]
struct Held {
    until: i64,
    tenant: u32,
    by: u32,
    kept: Kept,
}

impl Held {
    fn size(&self) -> usize {
        match &self.kept {
            Kept::DistinctCounter(_) | Kept::Bucket => 1,
            Kept::Memory(times) => times.len().max(1),
        }
    }
}

#[derive(Debug)]
pub struct InProcess {
    held: DashMap<Key, Held>,
    /// Number, and count of entries, of each tenant and of each of its tool services.
    owners: DashMap<(Tenant, Option<Key>), (u32, Arc<AtomicUsize>)>,
    numbers: AtomicU32,
    most: usize,
    seed: Key,
    /// When a full table was last purged; not every call that finds it full purges it.
    purged: AtomicI64,
}

/// Minimum time between two purges of a full table.
const PURGE_MICROS: i64 = 1_000_000;

/// Maximum number of times in one memory, including [`OVERFULL`]: twice the values that a case may have, and
/// more versions than it has in years. `batch.lua` has the same constant.
const TIMES_MAX: usize = 1024;

/// The tenant and the tool service that new entries are counted for.
struct Owner {
    tenant: (u32, Arc<AtomicUsize>),
    by: (u32, Arc<AtomicUsize>),
    most: usize,
}

impl Owner {
    fn holds(&self, more: usize) {
        self.tenant.1.fetch_add(more, Ordering::Relaxed);
        self.by.1.fetch_add(more, Ordering::Relaxed);
    }

    /// Returns whether `more` entries exceed the tenant's limit or the tool service's half of it. A quarter
    /// of the limit is reserved for rates.
    fn is_full(&self, is_rate: bool, more: usize) -> bool {
        let [all, own] = [&self.tenant, &self.by].map(|(_, holds)| holds.load(Ordering::Relaxed));
        let most = if is_rate { self.most } else { self.most - self.most / 4 };
        all + more > most || self.by.0 != self.tenant.0 && own + more > self.most.div_ceil(2)
    }
}

impl InProcess {
    /// Creates an empty table with at most `most` entries per tenant. The seed is a secret of this process.
    pub fn new(most: usize, seed: &str) -> Self {
        Self {
            held: DashMap::new(),
            owners: DashMap::new(),
            numbers: AtomicU32::new(0),
            most,
            seed: Key::of(&[seed]),
            purged: AtomicI64::new(i64::MIN),
        }
    }

    /// Executes all operations of a request, without blocking on I/O.
    ///
    /// # Errors
    /// When the tenant's table is full.
    pub fn batch(&self, tenant: Tenant, now: Timestamp, batch: &Batch) -> Result<BatchResult, RiskStoreError> {
        let now = now.micros();
        let owner = self.owner(tenant, batch.by);
        let forgotten: Vec<Held> = batch.deletes.iter().filter_map(|key| Some(self.held.remove(key)?.1)).collect();
        if !forgotten.is_empty() {
            let owners = self.owners();
            forgotten.iter().for_each(|held| free(&owners, held, held.size()));
        }
        for withdrawn in &batch.withdrawals {
            if let Some(mut held) = self.held.get_mut(&withdrawn.key).filter(|held| matches!(held.kept, Kept::Bucket)) {
                held.until = withdraw(held.until, now, withdrawn);
            }
        }
        let mut result = BatchResult {
            memories: batch.reads.iter().map(|key| self.read(*key, now)).collect(),
            ..BatchResult::default()
        };
        result.waits = batch.acquires.iter().map(|asked| self.wait(now, asked)).collect();
        // A call that has to wait leaves no trace. Between this check and the counting below, a concurrent
        // call may still fill a bucket; this call is then counted in the others.
        let is_held_back = result.waits.iter().any(|wait| *wait > 0);
        if !is_held_back {
            self.has_room(&owner, now, batch)?;
            for (asked, wait) in batch.acquires.iter().zip(&mut result.waits) {
                *wait = self.acquire(&owner, now, asked);
            }
        }
        for observation in &batch.observations {
            let observation = if is_held_back { Observation { item: None, ..*observation } } else { *observation };
            result.counts.push(self.observation(&owner, now, &observation));
        }
        for update in batch.updates.iter().filter(|_| !is_held_back) {
            self.update(&owner, now, update);
        }
        Ok(result)
    }

    /// Returns an error unless all new entries of a batch fit, so that all of them are stored or none. A full
    /// table is purged before, at most once per [`PURGE_MICROS`].
    fn has_room(&self, owner: &Owner, now: i64, batch: &Batch) -> Result<(), RiskStoreError> {
        let new = |key: &&Key| !self.held.contains_key(*key);
        let touched = batch
            .observations
            .iter()
            .filter(|observation| observation.item.is_some())
            .map(|observation| &observation.key);
        let noted: HashSet<&Key> = batch.updates.iter().map(|update| &update.key).chain(touched).filter(new).collect();
        let rates = batch.acquires.iter().map(|acquire| &acquire.key).filter(new).count();
        let is_full = || {
            !noted.is_empty() && owner.is_full(false, noted.len())
                || rates > 0 && owner.is_full(true, noted.len() + rates)
        };
        if is_full() && self.purged.load(Ordering::Relaxed).saturating_add(PURGE_MICROS) <= now {
            self.purged.store(now, Ordering::Relaxed);
            self.purge(Timestamp::from_micros(now));
        }
        if is_full() { Err(RiskStoreError::Full) } else { Ok(()) }
    }

    pub fn purge(&self, now: Timestamp) {
        let owners = self.owners();
        self.held.retain(|_, held| {
            let counts = held.until > now.micros();
            if !counts {
                free(&owners, held, held.size());
            }
            counts
        });
    }

    /// Number of keys in the table.
    pub fn entries(&self) -> usize {
        self.held.len()
    }

    fn owner(&self, tenant: Tenant, by: Option<Key>) -> Owner {
        let of = |whose: (Tenant, Option<Key>)| {
            if let Some(owner) = self.owners.get(&whose) {
                return owner.clone();
            }
            self.owners
                .entry(whose)
                .or_insert_with(|| (self.numbers.fetch_add(1, Ordering::Relaxed), Arc::default()))
                .clone()
        };
        let all = of((tenant, None));
        // Calls without a tool service are counted only for the tenant.
        let own = by.map_or_else(|| (all.0, Arc::default()), |by| of((tenant, Some(by))));
        Owner { tenant: all, by: own, most: self.most }
    }

    fn owners(&self) -> HashMap<u32, Arc<AtomicUsize>> {
        self.owners.iter().map(|owner| owner.value().clone()).collect()
    }

    fn read(&self, key: Key, now: i64) -> Vec<(SmolStr, i64)> {
        match self.held.get(&key).as_deref() {
            Some(Held { kept: Kept::Memory(times), .. }) => {
                times.iter().filter(|(_, until)| *until > now).cloned().collect()
            }
            Some(_) | None => vec![],
        }
    }

    /// Returns the time that a call would have to wait, without counting it.
    fn wait(&self, now: i64, asked: &Acquire) -> i64 {
        let until = self.held.get(&asked.key).map_or(now, |held| held.until);
        acquire(until, now, asked).1
    }

    fn acquire(&self, owner: &Owner, now: i64, asked: &Acquire) -> i64 {
        self.change(owner, asked.key, now, |held| {
            if !matches!(held.kept, Kept::Bucket) {
                (held.until, held.kept) = (now, Kept::Bucket);
            }
            let (until, wait) = acquire(held.until, now, asked);
            held.until = until;
            wait
        })
    }

    fn observation(&self, owner: &Owner, now: i64, observation: &Observation) -> u64 {
        if observation.item.is_none() && !self.held.contains_key(&observation.key) {
            return 0;
        }
        self.change(owner, observation.key, now, |held| {
            if !matches!(held.kept, Kept::DistinctCounter(_)) {
                held.kept = Kept::DistinctCounter(Box::default());
            }
            let Kept::DistinctCounter(breadth) = &mut held.kept else { return 0 };
            let count = breadth.observation(
                observation.item.map(|item| Tenant::thing(self.seed, item)),
                now,
                observation.within,
                observation.most,
            );
            held.until = breadth.until(observation.within);
            count
        })
    }

    fn update(&self, owner: &Owner, now: i64, update: &Update) {
        self.change(owner, update.key, now, |held| {
            if !matches!(held.kept, Kept::Memory(_)) {
                held.kept = Kept::Memory(Vec::with_capacity(1));
            }
            let Kept::Memory(times) = &mut held.kept else { return };
            times.retain(|(_, until)| *until > now);
            let has = |name: &str| times.iter().position(|(known, _)| known == name);
            let (known, name) = match has(&update.name) {
                // A caller that makes up versions of a case could fill its memory. The last slot is therefore
                // reserved for `OVERFULL`: this case then counts as the worst, and no other case is affected.
                None if times.len() + 1 >= TIMES_MAX => (has(OVERFULL), SmolStr::new_static(OVERFULL)),
                known => (known, update.name.clone()),
            };
            match known.and_then(|known| times.get_mut(known)) {
                Some((_, until)) => *until = change(*until, now, update.change),
                None => {
                    times.reserve_exact(1);
                    times.push((name, change(now, now, update.change)));
                }
            }
            held.until = times.iter().map(|(_, until)| *until).max().unwrap_or(now);
        })
    }

    /// Changes the entry of a key, or creates it. Its growth is counted for the owners that created it.
    fn change<T>(&self, owner: &Owner, key: Key, now: i64, change: impl FnOnce(&mut Held) -> T) -> T {
        match self.held.entry(key) {
            Entry::Occupied(mut held) => {
                let held = held.get_mut();
                let before = held.size();
                let changed = change(held);
                let after = held.size();
                if after > before && held.by == owner.by.0 {
                    owner.holds(after - before);
                } else if after > before {
                    count(&self.owners(), held, |holds| holds.saturating_add(after - before));
                } else if after < before {
                    free(&self.owners(), held, before - after);
                }
                changed
            }
            Entry::Vacant(place) => {
                let mut held = Held { until: now, tenant: owner.tenant.0, by: owner.by.0, kept: Kept::Bucket };
                let changed = change(&mut held);
                owner.holds(held.size());
                place.insert(held);
                changed
            }
        }
    }
}

/// Subtracts entries from the counts of their owners.
fn free(owners: &HashMap<u32, Arc<AtomicUsize>>, held: &Held, entries: usize) {
    count(owners, held, |holds| holds.saturating_sub(entries));
}

/// Updates the counts of an entry's owners.
fn count(owners: &HashMap<u32, Arc<AtomicUsize>>, held: &Held, count: impl Fn(usize) -> usize) {
    let by = Some(held.by).filter(|by| *by != held.tenant);
    for holds in [Some(held.tenant), by].into_iter().flatten().filter_map(|owner| owners.get(&owner)) {
        holds.update(Ordering::Relaxed, Ordering::Relaxed, &count);
    }
}
