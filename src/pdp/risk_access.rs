//! Reads and writes of the risk store: what can't be written now waits in the backlog, and what can't be read counts as the worst.

use crate::pdp::write_backlog::BacklogKey;
use std::sync::atomic::Ordering;

use crate::pdp::Pdp;
use crate::pdp::snapshot::Moment;
use crate::windows::{Note, Tenant, Visit, Visited, Windows, WindowsDown};

impl Pdp {
    /// Asks the windows; what was lost counts as the worst for a while.
    pub(super) async fn visit(&self, tenant: Tenant, moment: &Moment, visit: &Visit) -> Result<Visited, WindowsDown> {
        if visit.is_empty() {
            return Ok(Visited::default());
        }
        // They are asked in that time, too: what is said then must be there when they count again.
        let visited = self.ask(tenant, moment, visit).await;
        let worst = self.memory.is_worst_until(tenant, moment.now).is_some();
        let full = self.memory.is_full(tenant, visit.by, moment.now);
        let visited = visited.and_then(|visited| match () {
            () if worst => Err(WindowsDown::Lost),
            () if full || visited.is_overfull() => Err(WindowsDown::Full),
            () => Ok(visited),
        });
        if let Err(down) = &visited {
            self.telemetry.metrics.windows_failed();
            self.memory.failed_at.fetch_max(moment.now.micros(), Ordering::AcqRel);
            // Each is counted, and one a second is logged.
            if self.memory.logged.is_due(moment.now) {
                tracing::warn!(name: "windows.failed", error = %down, "what can't be known counts as the worst");
            }
        }
        visited
    }

    /// Asks the windows, and makes them anew when they were lost.
    pub(super) async fn ask(&self, tenant: Tenant, moment: &Moment, visit: &Visit) -> Result<Visited, WindowsDown> {
        if self.memory.rebuilding.load(Ordering::Acquire) {
            return Err(WindowsDown::Lost);
        }
        self.memory.lacks(tenant, visit.by)?;
        self.tell(tenant, moment.now, visit).await
    }

    /// Tells the windows; what they can't be told now, they are told before they are asked again.
    pub(super) async fn say(&self, tenant: Tenant, moment: &Moment, visit: Visit) {
        if visit.is_empty() {
            return;
        }
        match self.ask(tenant, moment, &visit).await {
            Ok(_) => {}
            // Who filled its part of the table gets the worst until it could be said. Nobody else does.
            Err(WindowsDown::Full) => self.keep_unsent(BacklogKey { tenant, by: visit.by, of_all: false }, moment, visit),
            Err(WindowsDown::Evicts | WindowsDown::Lost | WindowsDown::Unreachable(_)) => {
                self.keep_unsent(BacklogKey { tenant, by: visit.by, of_all: true }, moment, visit);
            }
        }
    }

    /// Keeps what could not be written. A note on disk tells the next start that a server lacks writes. What the backlog has no room
    /// for counts as the worst: for one tool service's part until it would have expired, otherwise for the tenant on every replica.
    fn keep_unsent(&self, key: BacklogKey, moment: &Moment, visit: Visit) {
        if self.memory.is_empty() && matches!(self.windows, Windows::Redis(_)) {
            self.replica.note_unsent(true);
        }
        let Err(visit) = self.memory.keep(key, moment.now, visit) else { return };
        match &self.windows {
            _ if !key.of_all => {
                let longest = visit.notes.iter().map(Note::reach).max().unwrap_or_default();
                self.memory.part_worst_until(key, moment.now.plus(longest));
            }
            Windows::Redis(server) => server.give_up(key.tenant),
            Windows::InProcess(_) => self.memory.worst_until(key.tenant, moment.now.plus(moment.snapshot.bundle.rules.recovery())),
        }
    }

    /// To be called every second: tells the windows what they could not be told before. What still can't be told waits on: one tenant's
    /// holds up no other's.
    pub(super) async fn send_unsent(&self) {
        if self.memory.is_empty() {
            return;
        }
        let Ok(_sending) = self.memory.sending.try_lock() else { return };
        for whose in self.memory.keys() {
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
