//! State that replicas share: history and clock of the state store, kill switches, and the replicas with
//! their bundles.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::approvals::store::Store;
use crate::approvals::store::replica::Replica;
use crate::approvals::store::settling::Condition;
use crate::audit::events;
use crate::audit::events::Actor;
use crate::clock::{Seldom, Stopwatch};
use crate::entropy::Entropy;
use crate::model::refusal::Refusal;
use crate::model::time::Timestamp;
use crate::pdp::recorder::Recorder;
use crate::pdp::services::Services;
use crate::pdp::snapshot::{ActiveBundle, Options, PdpClock, Shared, UNREACHED};
use crate::telemetry::export::Telemetry;

/// Maximum step back of the clock. Beyond it, no call is decided on a shared store.
const STEP_BACK_MAX: Duration = Duration::from_secs(2);
/// Maximum age of the copy of the kill switches for a write, if the store is not shared.
const OWN_AGE: Duration = Duration::from_secs(5);
/// Minimum time between two heartbeats of a replica: one in two refreshes sends one.
const HEARTBEAT: Duration = Duration::from_millis(900);
/// Maximum duration of a query of the store's clock. The reading may be wrong by half of it.
const CLOCK_TOOK_MAX: Duration = Duration::from_millis(500);
/// Difference between the server's clock and the store's that is logged, in microseconds.
const SKEW_SAID: i64 = 2_000_000;
/// Difference from which the server is not ready and writes nothing that is shared, in microseconds.
const SKEW_MAX: i64 = 10_000_000;

/// Knowledge of this replica about the state store and the other replicas: kill switches, the store's history
/// and clock, and the bundles in force.
#[derive(Debug)]
pub(super) struct Replicas {
    active: Arc<ActiveBundle>,
    options: Arc<Options>,
    store: Arc<Store>,
    replica: Arc<Replica>,
    clock: PdpClock,
    entropy: Arc<dyn Entropy>,
    telemetry: Arc<Telemetry>,
    shared: ArcSwap<Shared>,
    /// Locked during [`Replicas::refresh`], so that each change is detected once.
    refreshing: tokio::sync::Mutex<()>,
    /// Time of the last successful heartbeat to the state store, in microseconds.
    written_at: AtomicI64,
    store_logged: Seldom,
}

impl Replicas {
    pub(super) fn new(services: &Services, active: Arc<ActiveBundle>) -> Self {
        Self {
            active,
            options: Arc::clone(&services.options),
            store: Arc::clone(&services.store),
            replica: Arc::clone(&services.replica),
            clock: Arc::clone(&services.clock),
            entropy: Arc::clone(&services.entropy),
            telemetry: Arc::clone(&services.telemetry),
            shared: ArcSwap::default(),
            refreshing: tokio::sync::Mutex::default(),
            written_at: AtomicI64::new(0),
            store_logged: Seldom::default(),
        }
    }

    /// Reads the kill switches and the state of the store again, and notes both outside of the store. Call it
    /// twice a second.
    pub(super) async fn refresh(&self, recorder: &Recorder) {
        // Refresh one at a time, so that each change is detected once.
        let _refreshing = self.refreshing.lock().await;
        let Ok(generation) = crate::entropy::nonce(self.entropy.as_ref()) else { return };
        self.follow_clock().await;
        let (before, now) = (self.store.seen(), self.clock.now());
        let condition = match self.store.refresh(now, generation).await {
            Ok(condition) => condition,
            Err(error) => {
                if self.store_logged.is_due(now) {
                    let place = self.store.place();
                    tracing::error!(name: "store.unreachable", error = %error, place, "the state store can't be used: calls that need it are denied");
                }
                return;
            }
        };
        if condition.seen.generation != before.generation {
            self.went_back(recorder, &condition, before.revision).await;
        }
        self.shared.rcu(|shared| Shared { went_back_at: condition.went_back_at, ..Shared::clone(shared) });
        self.telemetry.metrics.store_went_back(condition.went_back_at.is_some());
        if let Err(error) = self.replica.note(&condition.seen) {
            tracing::error!(name: "store.seen_not_noted", error = %error, "a restart might not detect that the store lost writes");
        }
        if Timestamp::from_micros(self.written_at.load(Ordering::Acquire)).plus(HEARTBEAT) <= now {
            self.heartbeat().await;
        }
    }

    /// Sets the clock to the store's time, which is the same for every replica.
    async fn follow_clock(&self) {
        let asking = Stopwatch::start();
        // The store logs its own failures.
        let Ok(Some(clock)) = self.store.time().await else { return };
        let took = asking.elapsed();
        if took > CLOCK_TOOK_MAX {
            return;
        }
        let before = self.clock.skew().abs() > SKEW_SAID;
        // The store read its clock about halfway through the query.
        self.clock.follow(clock.plus(took / 2));
        let skew = self.clock.skew();
        self.telemetry.metrics.clock_skew("store", skew);
        if (skew.abs() > SKEW_SAID) != before {
            let milliseconds = skew / 1000;
            match before {
                false => tracing::warn!(
                    name: "clock.skewed", milliseconds,
                    "this machine's clock differs from the state store's, whose time is used: above 10 s the server is not ready"
                ),
                true => {
                    tracing::info!(name: "clock.agrees", milliseconds, "this machine's clock agrees with the state store's again")
                }
            }
        }
    }

    /// Reports in the log and in the audit log that the store lost data.
    async fn went_back(&self, recorder: &Recorder, condition: &Condition, seen: i64) {
        tracing::error!(
            name: "store.went_back", seen, found = condition.seen.revision, generation = condition.seen.generation,
            "the state store lost writes: earlier approvals, releases and checks are void; known kill switches stay in force. Report again \
             those kill switches that no running replica knew, then confirm with `countersign store confirm`"
        );
        let more = [
            ("seen", seen.into()),
            ("found", condition.seen.revision.into()),
            ("generation", condition.seen.generation.clone().into()),
        ];
        let event = events::event("store.went_back", &Actor::server(), &more);
        if let Err(error) = recorder.record_event(self.clock.now(), event).await {
            let error = error.kind();
            tracing::error!(name: "store.went_back_not_recorded", error);
        }
    }

    /// Sends a heartbeat with this replica's bundle, and reads the bundles of the others.
    async fn heartbeat(&self) {
        let own = self.active.snapshot().bundle.version.digest.clone();
        // The store logs its own failures.
        let Ok(bundles) = self.store.heartbeat(&own).await else { return };
        self.written_at.fetch_max(self.clock.now().micros(), Ordering::AcqRel);
        let differ = bundles.iter().any(|bundle| *bundle != own);
        let before = self.shared.load().bundles.iter().any(|bundle| *bundle != own);
        if differ && !before {
            tracing::warn!(name: "bundle.differs", own, "replicas have different bundles in force: a call that is approved under one may be evaluated under another");
        }
        self.telemetry.metrics.bundles(bundles.len());
        self.shared.rcu(|shared| Shared { bundles: bundles.clone(), ..Shared::clone(shared) });
    }

    /// Returns whether calls may be decided by the copy of the kill switches: it must be recent, and for a
    /// write the store must also be known to be complete and the clock to be right.
    pub(super) fn may_decide(&self, now: Timestamp, is_write: bool) -> bool {
        let young = |age| self.store.halts().read_at.is_some_and(|read_at| read_at.plus(age) >= now);
        let written_at = Timestamp::from_micros(self.written_at.load(Ordering::Acquire));
        let sound = || {
            self.store.is_settled()
                && !self.is_skewed()
                && (!self.store.is_shared() || written_at.plus(UNREACHED.max(self.options.stops_age)) >= now)
        };
        // After a step back the clock does not advance for a while, so ages would not grow and an old copy
        // would seem recent.
        let runs = || self.clock.is_shared() && self.clock.step_back() < STEP_BACK_MAX;
        match self.store.is_shared() {
            true => runs() && young(self.options.stops_age) && (!is_write || sound()),
            // No other process can add a kill switch to this store, so a read does not need a recent copy.
            false => !is_write || young(OWN_AGE) && sound(),
        }
    }

    /// Refuses an operation that depends on kill switches while they can't be known.
    pub(super) fn can_tell_stops(&self, now: Timestamp) -> Result<(), Refusal> {
        match self.may_decide(now, true) {
            true => Ok(()),
            false => Err(Refusal::Unavailable("the kill switches can't be read now: try again")),
        }
    }

    /// Returns whether the clocks of machine and store differ so much that one of them must be wrong.
    pub(super) fn is_skewed(&self) -> bool {
        self.clock.skew().abs() > SKEW_MAX
    }

    /// Returns whether the state store was recently read and written, and is known to be complete.
    pub(super) fn has_state(&self, now: Timestamp) -> bool {
        let recent = |at: Timestamp| at.plus(UNREACHED) >= now;
        let written_at = Timestamp::from_micros(self.written_at.load(Ordering::Acquire));
        self.store.is_settled()
            && self.store.halts().read_at.is_some_and(recent)
            && (!self.store.is_shared() || recent(written_at))
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        self.shared.load_full()
    }
}
