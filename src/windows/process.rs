//! The engine in process: a sharded table, bounded by tenant. Each key is locked by itself and for no longer than its own arithmetic.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicUsize, Ordering};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use smol_str::SmolStr;

use crate::model::time::Timestamp;
use crate::windows::breadth::Breadth;
use crate::windows::{Key, Note, Take, Tenant, Touch, Visit, Visited, WindowsDown, change, take};

/// What is kept under a key.
#[derive(Debug)]
enum Kept {
    Breadth(Box<Breadth>),
    Bucket,
    Memory(Vec<(SmolStr, i64)>),
}

/// What is kept, until when it counts, and whose it is.
#[derive(Debug)]
struct Held {
    until: i64,
    owner: u32,
    kept: Kept,
}

/// Windows in process.
#[derive(Debug)]
pub struct InProcess {
    held: DashMap<Key, Held>,
    /// How much each tenant holds, and its number.
    owners: DashMap<Tenant, (u32, Arc<AtomicUsize>)>,
    numbers: AtomicU32,
    most: usize,
    seed: Key,
    /// When a full table was last purged: not for every call that finds it full.
    purged: AtomicI64,
}

/// How long a full table is left as it is.
const PURGE_MICROS: i64 = 1_000_000;

/// How a tenant's new entries are counted.
struct Owner {
    number: u32,
    holds: Arc<AtomicUsize>,
    most: usize,
}

impl InProcess {
    /// An empty table, of at most so many entries of each tenant. The seed is this process's secret.
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

    /// Asks and says all of a request. Nothing of it waits.
    ///
    /// # Errors
    /// When the tenant's table is full.
    pub fn visit(&self, tenant: Tenant, now: Timestamp, visit: &Visit) -> Result<Visited, WindowsDown> {
        let now = now.micros();
        let owner = self.owner(tenant);
        for key in &visit.forgets {
            if self.held.remove(key).is_some() {
                owner.holds.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let mut visited = Visited { memories: visit.reads.iter().map(|key| self.read(*key, now)).collect(), ..Visited::default() };
        visited.waits = visit.takes.iter().map(|asked| self.wait(now, asked)).collect();
        if visited.waits.iter().all(|wait| *wait == 0) {
            for (asked, wait) in visit.takes.iter().zip(&mut visited.waits) {
                *wait = self.take(&owner, now, asked)?;
            }
        }
        for touch in &visit.touches {
            visited.counts.push(self.touch(&owner, now, touch)?);
        }
        for note in &visit.notes {
            self.note(&owner, now, note)?;
        }
        Ok(visited)
    }

    /// Drops what is over.
    pub fn purge(&self, now: Timestamp) {
        let owners: HashMap<u32, Arc<AtomicUsize>> = self.owners.iter().map(|owner| owner.value().clone()).collect();
        self.held.retain(|_, held| {
            let counts = held.until > now.micros();
            if !counts && let Some(holds) = owners.get(&held.owner) {
                holds.fetch_sub(1, Ordering::Relaxed);
            }
            counts
        });
    }

    /// How many entries are held.
    pub fn entries(&self) -> usize {
        self.held.len()
    }

    fn owner(&self, tenant: Tenant) -> Owner {
        if let Some(owner) = self.owners.get(&tenant) {
            return Owner { number: owner.0, holds: Arc::clone(&owner.1), most: self.most };
        }
        let owner = self.owners.entry(tenant).or_insert_with(|| (self.numbers.fetch_add(1, Ordering::Relaxed), Arc::default()));
        Owner { number: owner.0, holds: Arc::clone(&owner.1), most: self.most }
    }

    fn read(&self, key: Key, now: i64) -> Vec<(SmolStr, i64)> {
        match self.held.get(&key).as_deref() {
            Some(Held { kept: Kept::Memory(times), .. }) => times.iter().filter(|(_, until)| *until > now).cloned().collect(),
            Some(_) | None => vec![],
        }
    }

    /// How long a call would have to wait, without counting it.
    fn wait(&self, now: i64, asked: &Take) -> i64 {
        let until = self.held.get(&asked.key).map_or(now, |held| held.until);
        take(until, now, asked).1
    }

    fn take(&self, owner: &Owner, now: i64, asked: &Take) -> Result<i64, WindowsDown> {
        self.change(owner, asked.key, now, |held| {
            if !matches!(held.kept, Kept::Bucket) {
                *held = Held { until: now, owner: owner.number, kept: Kept::Bucket };
            }
            let (until, wait) = take(held.until, now, asked);
            held.until = until;
            wait
        })
    }

    fn touch(&self, owner: &Owner, now: i64, touch: &Touch) -> Result<u64, WindowsDown> {
        if touch.item.is_none() && !self.held.contains_key(&touch.key) {
            return Ok(0);
        }
        self.change(owner, touch.key, now, |held| {
            if !matches!(held.kept, Kept::Breadth(_)) {
                held.kept = Kept::Breadth(Box::default());
            }
            let Kept::Breadth(breadth) = &mut held.kept else { return 0 };
            let count = breadth.touch(touch.item.map(|item| Tenant::thing(self.seed, item)), now, touch.within);
            held.until = breadth.until(touch.within);
            count
        })
    }

    fn note(&self, owner: &Owner, now: i64, note: &Note) -> Result<(), WindowsDown> {
        self.change(owner, note.key, now, |held| {
            if !matches!(held.kept, Kept::Memory(_)) {
                held.kept = Kept::Memory(Vec::with_capacity(1));
            }
            let Kept::Memory(times) = &mut held.kept else { return };
            times.retain(|(_, until)| *until > now);
            match times.iter_mut().find(|(name, _)| *name == note.name) {
                Some((_, until)) => *until = change(*until, now, note.change),
                None => {
                    times.reserve_exact(1);
                    times.push((note.name.clone(), change(now, now, note.change)));
                }
            }
            held.until = times.iter().map(|(_, until)| *until).max().unwrap_or(now);
        })
    }

    /// Changes what is held under a key, or begins to hold it. A full table is purged once before it is called full.
    fn change<T>(&self, owner: &Owner, key: Key, now: i64, change: impl FnOnce(&mut Held) -> T) -> Result<T, WindowsDown> {
        if owner.holds.load(Ordering::Relaxed) >= owner.most && !self.held.contains_key(&key) {
            if self.purged.load(Ordering::Relaxed).saturating_add(PURGE_MICROS) <= now {
                self.purged.store(now, Ordering::Relaxed);
                self.purge(Timestamp::from_micros(now));
            }
            if owner.holds.load(Ordering::Relaxed) >= owner.most {
                return Err(WindowsDown::Full);
            }
        }
        match self.held.entry(key) {
            Entry::Occupied(mut held) => Ok(change(held.get_mut())),
            Entry::Vacant(place) => {
                let mut held = Held { until: now, owner: owner.number, kept: Kept::Bucket };
                let changed = change(&mut held);
                place.insert(held);
                owner.holds.fetch_add(1, Ordering::Relaxed);
                Ok(changed)
            }
        }
    }
}
