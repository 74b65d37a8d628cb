//! What the windows could not be told yet, and until when they count as the worst.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dashmap::DashMap;
use smol_str::SmolStr;

use crate::clock::Seldom;
use crate::model::time::Timestamp;
use crate::pdp::shared::UNREACHED;
use crate::pdp::{Moment, Pdp};
use crate::windows::{Change, Key, Note, Tenant, Touch, Visit, Windows, WindowsDown};

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
pub(in crate::pdp) struct Memory {
    /// Until when a tenant's windows count as the worst, since they were lost.
    worst_until: DashMap<Tenant, Timestamp>,
    /// Until when the windows count as the worst for a tool service that filled its part of a tenant's table.
    full_until: DashMap<(Tenant, Option<Key>), Timestamp>,
    /// Until when all do.
    all_worst_until: AtomicI64,
    /// While what happened before the start is read back.
    pub(in crate::pdp) rebuilding: AtomicBool,
    /// Tenants whose past is to be said again.
    pub(in crate::pdp) replays: Mutex<Vec<Tenant>>,
    /// Held while lost windows are made anew.
    pub(in crate::pdp) recovering: tokio::sync::Mutex<()>,
    /// What the server was not told yet.
    unsent: Mutex<HashMap<Whose, Unsent>>,
    /// Of how many it is: calls look at this alone.
    waiting: AtomicUsize,
    /// Held while it is told.
    sending: tokio::sync::Mutex<()>,
    /// When they could not be asked last.
    pub(super) failed_at: AtomicI64,
    /// When that was logged last.
    pub(super) logged: Seldom,
    /// Since when the windows' server does not answer; 0: it does.
    unreached_since: AtomicI64,
}

/// Whose windows could not be told something: the tenant, the tool service, and whether that says something of all of the tenant's
/// windows, or of the tool service's part alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Whose {
    tenant: Tenant,
    by: Option<Key>,
    of_all: bool,
}

/// What could not be said, once for each thing: what came later is added to it, as of its own time.
#[derive(Clone, Debug, Default)]
struct Unsent {
    at: Timestamp,
    notes: HashMap<(Key, SmolStr), Change>,
    touches: HashMap<(Key, Option<u64>), Touch>,
}

impl Unsent {
    /// Adds what could not be said at this time. It counts for as long as it would have, or a little longer.
    fn add(&mut self, at: Timestamp, visit: Visit) {
        let (first, last) = (self.at.min(at), self.at.max(at));
        let later = |change: Change, by: Timestamp| match change {
            Change::For(length) => Change::For(length.saturating_sub(last.micros() - by.micros())),
            add => add,
        };
        if self.at < last {
            self.notes.values_mut().for_each(|change| *change = later(*change, first));
        }
        self.at = last;
        for note in visit.notes {
            let new = later(note.change, at);
            self.notes.entry((note.key, note.name)).and_modify(|known| *known = both(*known, new)).or_insert(new);
        }
        for touch in visit.touches {
            self.touches.insert((touch.key, touch.item), touch);
        }
    }

    /// Takes some of it out.
    fn take(&mut self, by: Option<Key>) -> Visit {
        let notes: Vec<_> = self.notes.keys().take(SAID_AT_ONCE).cloned().collect();
        let touches: Vec<_> = self.touches.keys().take(SAID_AT_ONCE - notes.len()).copied().collect();
        let note = |(key, name): (Key, SmolStr)| self.notes.remove(&(key, name.clone())).map(|change| Note { key, name, change });
        let notes = notes.into_iter().filter_map(note).collect();
        let touches = touches.into_iter().filter_map(|named| self.touches.remove(&named)).collect();
        Visit { notes, touches, by, ..Visit::default() }
    }

    fn len(&self) -> usize {
        self.notes.len() + self.touches.len()
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

impl Memory {
    /// A tenant's windows count as the worst at least until then.
    pub(in crate::pdp) fn worst_until(&self, tenant: Tenant, until: Timestamp) {
        self.worst_until.entry(tenant).and_modify(|known| *known = until.max(*known)).or_insert(until);
    }

    /// All count as the worst at least until then.
    pub(in crate::pdp) fn all_worst_until(&self, until: Timestamp) {
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
    pub(in crate::pdp) fn reached(&self, reached: bool, now: Timestamp) {
        match reached {
            true => self.unreached_since.store(0, Ordering::Release),
            // One that failed before stays the first.
            false => drop(self.unreached_since.compare_exchange(0, now.micros(), Ordering::AcqRel, Ordering::Acquire)),
        }
    }

    /// Whether the windows' server answered a short while ago.
    pub(in crate::pdp) fn is_reached(&self, now: Timestamp) -> bool {
        let since = self.unreached_since.load(Ordering::Acquire);
        since == 0 || Timestamp::from_micros(since).plus(UNREACHED) >= now
    }

    /// Whether nothing counts as the worst.
    pub(in crate::pdp) fn is_healthy(&self, now: Timestamp) -> bool {
        let lost = self.worst_until.iter().any(|until| *until > now) || self.all_worst_until.load(Ordering::Acquire) > now.micros();
        let failed = self.failed_at.load(Ordering::Acquire).saturating_add(FAILED_MICROS) > now.micros();
        // What one tool service's part has no room for says nothing of the windows.
        let told = || !self.unsent().keys().any(|whose| whose.of_all);
        !lost && !failed && !self.rebuilding.load(Ordering::Acquire) && (self.waiting.load(Ordering::Acquire) == 0 || told())
    }

    /// Why what a tenant's windows know is not all, for this tool service.
    pub(super) fn lacks(&self, tenant: Tenant, by: Option<Key>) -> Result<(), WindowsDown> {
        if self.waiting.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        let unsent = self.unsent();
        let own = || unsent.keys().filter(|whose| whose.tenant == tenant);
        match () {
            () if own().any(|whose| whose.of_all) => {
                Err(WindowsDown::Unreachable("what it could not be told before waits to be said".into()))
            }
            () if own().any(|whose| whose.by == by) => Err(WindowsDown::Full),
            () => Ok(()),
        }
    }

    /// Some of what could not be said, and of when.
    fn next_unsent(&self, whose: Whose) -> Option<(Timestamp, Visit)> {
        self.unsent().get_mut(&whose).map(|unsent| (unsent.at, unsent.take(whose.by)))
    }

    /// Puts back what could not be said again, or notes that it was; whether nothing waits any more.
    fn settle_unsent(&self, whose: Whose, again: Option<(Timestamp, Visit)>) -> bool {
        let mut unsent = self.unsent();
        match again {
            Some((at, visit)) => unsent.entry(whose).or_default().add(at, visit),
            None if unsent.get(&whose).is_some_and(|rest| rest.len() == 0) => drop(unsent.remove(&whose)),
            None => {}
        }
        self.waiting.store(unsent.len(), Ordering::Release);
        unsent.is_empty()
    }

    fn unsent(&self) -> MutexGuard<'_, HashMap<Whose, Unsent>> {
        self.unsent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pdp {
    /// Tells the windows; what they can't be told now, they are told before they are asked again.
    pub(in crate::pdp) async fn say(&self, tenant: Tenant, moment: &Moment, visit: Visit) {
        if visit.is_empty() {
            return;
        }
        match self.ask(tenant, moment, &visit).await {
            Ok(_) => {}
            // Who filled its part of the table gets the worst until it could be said. Nobody else does.
            Err(WindowsDown::Full) => self.keep_unsent(Whose { tenant, by: visit.by, of_all: false }, moment, visit),
            Err(WindowsDown::Evicts | WindowsDown::Lost | WindowsDown::Unreachable(_)) => {
                self.keep_unsent(Whose { tenant, by: visit.by, of_all: true }, moment, visit);
            }
        }
    }

    /// Keeps what could not be said. A note on disk tells the next start of what a server was not told. What can't be kept counts as the
    /// worst: of a tool service's part until it would be over, of a server for every replica.
    fn keep_unsent(&self, whose: Whose, moment: &Moment, visit: Visit) {
        let mut unsent = self.memory.unsent();
        let is_on_server = matches!(self.windows, Windows::Redis(_));
        if unsent.is_empty() && is_on_server {
            self.replica.note_unsent(true);
        }
        let all: usize = unsent.values().map(Unsent::len).sum();
        let own = unsent.get(&whose).map_or(0, Unsent::len);
        if all < UNSENT_MAX && (whose.of_all || own < UNSENT_OF_PART_MAX) {
            unsent.entry(whose).or_default().add(moment.now, visit);
            self.memory.waiting.store(unsent.len(), Ordering::Release);
            return;
        }
        match &self.windows {
            _ if !whose.of_all => {
                let until = moment.now.plus(visit.notes.iter().map(Note::reach).max().unwrap_or_default());
                let part = (whose.tenant, whose.by);
                self.memory.full_until.entry(part).and_modify(|known| *known = until.max(*known)).or_insert(until);
            }
            Windows::Redis(server) => server.give_up(whose.tenant),
            Windows::InProcess(_) => {
                self.memory.worst_until(whose.tenant, moment.now.plus(moment.snapshot.bundle.rules.recovery()));
            }
        }
    }

    /// To be called every second: tells the windows what they could not be told before. What still can't be told waits on: one tenant's
    /// holds up no other's.
    pub(in crate::pdp) async fn send_unsent(&self) {
        if self.memory.waiting.load(Ordering::Acquire) == 0 {
            return;
        }
        let Ok(_sending) = self.memory.sending.try_lock() else { return };
        let all: Vec<Whose> = self.memory.unsent().keys().copied().collect();
        for whose in all {
            // It stays in the list until it is said, so that nobody asks the windows before.
            while let Some((at, visit)) = self.memory.next_unsent(whose) {
                let told = self.tell(whose.tenant, at, &visit).await;
                let told_all = self.memory.settle_unsent(whose, told.is_err().then_some((at, visit)));
                if told_all && matches!(self.windows, Windows::Redis(_)) {
                    self.replica.note_unsent(false);
                }
                match told {
                    Ok(_) => {}
                    Err(WindowsDown::Unreachable(_)) => return,
                    Err(WindowsDown::Evicts | WindowsDown::Full | WindowsDown::Lost) => break,
                }
            }
        }
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
                let apart = history.iter().fold(before, |until, (at, change)| crate::windows::change(until, *at, *change));
                let mut unsent = Unsent::default();
                for (at, change) in &history {
                    let notes = vec![Note { key, name: "denials".into(), change: *change }];
                    unsent.add(Timestamp::from_micros(*at), Visit { notes, ..Visit::default() });
                }
                assert_eq!(unsent.len(), 1);
                let (at, visit) = (unsent.at.micros(), unsent.take(None));
                let kept = visit.notes.iter().fold(before, |until, note| crate::windows::change(until, at, note.change));
                let last = history.iter().map(|(at, _)| *at).max().expect("some");
                assert!(kept >= apart || apart <= last, "{history:?} from {before}: {kept} < {apart}");
                assert_eq!(unsent.len(), 0);
            }
        }
    }
}
