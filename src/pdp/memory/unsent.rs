//! What the windows could not be told yet, and until when they count as the worst.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use dashmap::DashMap;

use crate::model::time::Timestamp;
use crate::pdp::{Moment, Pdp};
use crate::windows::{Key, Note, Tenant, Visit, Windows, WindowsDown};

/// How much may wait to be said to a server that does not answer.
const UNSENT_MAX: usize = 10_000;

/// How much of it may be what one tool service's part of a table has no room for.
const UNSENT_OF_PART_MAX: usize = 256;

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
    unsent: Mutex<VecDeque<Unsent>>,
    /// How much of it there is: calls look at this alone.
    waiting: AtomicUsize,
    /// Held while it is told.
    sending: tokio::sync::Mutex<()>,
    /// When a failure was logged last.
    pub(super) logged: AtomicI64,
}

/// What could not be said, of when, and whether that says something of all of the tenant's windows, or of a tool service's part alone.
#[derive(Clone, Debug)]
struct Unsent {
    tenant: Tenant,
    at: Timestamp,
    visit: Visit,
    of_all: bool,
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

    /// Whether nothing counts as the worst.
    pub(in crate::pdp) fn is_healthy(&self, now: Timestamp) -> bool {
        let lost = self.worst_until.iter().any(|until| *until > now) || self.all_worst_until.load(Ordering::Acquire) > now.micros();
        let failed = self.logged.load(Ordering::Acquire).saturating_add(FAILED_MICROS) > now.micros();
        // What one tool service's part has no room for says nothing of the windows.
        let told = || !self.unsent.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|unsent| unsent.of_all);
        !lost && !failed && !self.rebuilding.load(Ordering::Acquire) && (self.waiting.load(Ordering::Acquire) == 0 || told())
    }

    /// Why what a tenant's windows know is not all, for this tool service.
    pub(super) fn lacks(&self, tenant: Tenant, by: Option<Key>) -> Result<(), WindowsDown> {
        if self.waiting.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        let unsent = self.unsent.lock().unwrap_or_else(PoisonError::into_inner);
        let mut own = unsent.iter().filter(|unsent| unsent.tenant == tenant).peekable();
        match own.peek().is_some() {
            false => Ok(()),
            true if own.clone().any(|unsent| unsent.of_all) => {
                Err(WindowsDown::Unreachable("what it could not be told before waits to be said".into()))
            }
            true if own.any(|unsent| unsent.visit.by == by) => Err(WindowsDown::Full),
            true => Ok(()),
        }
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
            Err(WindowsDown::Full) => self.keep_of_part(Unsent { tenant, at: moment.now, visit, of_all: false }),
            Err(WindowsDown::Evicts | WindowsDown::Lost | WindowsDown::Unreachable(_)) => {
                self.keep_unsent(tenant, moment, visit);
            }
        }
    }

    /// Keeps what a tool service's part of the table had no room for; if there is more of it than can be kept, that part counts as the
    /// worst until it would be over.
    fn keep_of_part(&self, new: Unsent) {
        let mut unsent = self.memory.unsent.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same = |kept: &&Unsent| kept.tenant == new.tenant && kept.visit.by == new.visit.by;
        if unsent.len() < UNSENT_MAX && unsent.iter().filter(is_same).count() < UNSENT_OF_PART_MAX {
            unsent.push_back(new);
            self.memory.waiting.store(unsent.len(), Ordering::Release);
        } else {
            let until = new.at.plus(new.visit.notes.iter().map(Note::reach).max().unwrap_or_default());
            let part = (new.tenant, new.visit.by);
            self.memory.full_until.entry(part).and_modify(|known| *known = until.max(*known)).or_insert(until);
        }
    }

    /// Keeps what could not be said. A note on disk tells the next start of it.
    fn keep_unsent(&self, tenant: Tenant, moment: &Moment, visit: Visit) {
        let mut unsent = self.memory.unsent.lock().unwrap_or_else(PoisonError::into_inner);
        if unsent.is_empty() && matches!(self.windows, Windows::Redis(_)) {
            self.replica.note_unsent(true);
        }
        if unsent.len() < UNSENT_MAX {
            unsent.push_back(Unsent { tenant, at: moment.now, visit, of_all: true });
            self.memory.waiting.store(unsent.len(), Ordering::Release);
        } else if let Windows::Redis(server) = &self.windows {
            // More than can be kept: for every replica it counts as lost.
            server.give_up(tenant);
        } else {
            self.memory.worst_until(tenant, moment.now.plus(moment.snapshot.bundle.rules.recovery()));
        }
    }

    /// To be called every second: tells the windows what they could not be told before. What still can't be told waits on, behind the
    /// others: one tenant's holds up no other's.
    pub(in crate::pdp) async fn send_unsent(&self) {
        let Ok(_sending) = self.memory.sending.try_lock() else { return };
        let front = || self.memory.unsent.lock().unwrap_or_else(PoisonError::into_inner).front().cloned();
        for _ in 0..self.memory.waiting.load(Ordering::Acquire) {
            let Some(Unsent { tenant, at, visit, .. }) = front() else { break };
            let told = self.tell(tenant, at, &visit).await;
            let mut unsent = self.memory.unsent.lock().unwrap_or_else(PoisonError::into_inner);
            let waits = unsent.pop_front().filter(|_| told.is_err());
            unsent.extend(waits);
            self.memory.waiting.store(unsent.len(), Ordering::Release);
            if unsent.is_empty() && matches!(self.windows, Windows::Redis(_)) {
                self.replica.note_unsent(false);
            }
            if matches!(told, Err(WindowsDown::Unreachable(_))) {
                return;
            }
        }
    }
}
