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
    unsent: Mutex<VecDeque<(Tenant, Timestamp, Visit)>>,
    /// How much of it there is: calls look at this alone.
    waiting: AtomicUsize,
    /// Held while it is told.
    sending: tokio::sync::Mutex<()>,
    /// When a failure was logged last.
    pub(super) logged: AtomicI64,
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
        let told = self.waiting.load(Ordering::Acquire) == 0 && !self.rebuilding.load(Ordering::Acquire);
        told && !lost && !failed
    }

    pub(super) fn has_unsent(&self, tenant: Tenant) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
            && self.unsent.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|(of, ..)| *of == tenant)
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
            // Who filled its part of the table gets the worst, until what is not kept would be over. Nobody else does.
            Err(WindowsDown::Full) => {
                let until = moment.now.plus(visit.notes.iter().map(Note::reach).max().unwrap_or_default());
                self.memory.full_until.entry((tenant, visit.by)).and_modify(|known| *known = until.max(*known)).or_insert(until);
            }
            Err(WindowsDown::Evicts | WindowsDown::Lost | WindowsDown::Unreachable(_)) => {
                self.keep_unsent(tenant, moment, visit);
            }
        }
    }

    /// Keeps what could not be said. A note on disk tells the next start of it.
    fn keep_unsent(&self, tenant: Tenant, moment: &Moment, visit: Visit) {
        let mut unsent = self.memory.unsent.lock().unwrap_or_else(PoisonError::into_inner);
        if unsent.is_empty() && matches!(self.windows, Windows::Redis(_)) {
            self.replica.note_unsent(true);
        }
        if unsent.len() < UNSENT_MAX {
            unsent.push_back((tenant, moment.now, visit));
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
            let Some((tenant, at, visit)) = front() else { break };
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
