//! What replicas share: the state store's history and clock, what stops, and who is there with which bundle.

use crate::audit::events;
use crate::audit::events::Actor;
use crate::model::refusal::Refusal;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::approvals::store::settling::Condition;
use crate::clock::Stopwatch;
use crate::model::time::Timestamp;
use crate::pdp::Pdp;
use crate::pdp::snapshot::{Shared, UNREACHED};

/// How far the shared clock may step back before nothing is decided by it.
const STEP_BACK_MAX: Duration = Duration::from_secs(2);
/// How old what is known of kill switches may be for a write when nobody shares the store.
const OWN_AGE: Duration = Duration::from_secs(5);
/// How often a replica says that it is there: once in two refreshes.
const HEARTBEAT: Duration = Duration::from_millis(900);
/// The longest question by which the store's clock is read: half of it is how wrong the reading may be.
const CLOCK_TOOK_MAX: Duration = Duration::from_millis(500);
/// By how much the server's clock may differ from the store's before it is said.
const SKEW_SAID: i64 = 2_000_000;
/// By how much, before the server is not ready and writes nothing shared.
const SKEW_MAX: i64 = 10_000_000;

impl Pdp {
    /// To be called twice a second: reads what stops and where the store stands anew, and notes both outside of the store.
    pub async fn refresh(&self) {
        // One at a time, so that each change is seen once.
        let _refreshing = self.refreshing.lock().await;
        let Ok(generation) = crate::entropy::nonce(self.entropy.as_ref()) else { return };
        self.follow_clock().await;
        let (before, now) = (self.store.seen(), self.clock.now());
        let condition = match self.store.refresh(now, generation).await {
            Ok(condition) => condition,
            Err(error) => {
                if self.store_logged.is_due(now) {
                    let place = self.store.place();
                    tracing::error!(name: "store.unreachable", error = %error, place, "the state store can't be asked: calls that need it are denied");
                }
                return;
            }
        };
        if condition.seen.generation != before.generation {
            self.went_back(&condition, before.revision).await;
        }
        self.shared.rcu(|shared| Shared { went_back_at: condition.went_back_at, ..Shared::clone(shared) });
        self.telemetry.metrics.store_went_back(condition.went_back_at.is_some());
        if let Err(error) = self.replica.note(&condition.seen) {
            tracing::error!(name: "store.seen_not_noted", error = %error, "a restart might not see that the store went back");
        }
        if Timestamp::from_micros(self.written_at.load(Ordering::Acquire)).plus(HEARTBEAT) <= now {
            self.heartbeat().await;
        }
    }

    /// Takes the store's time, which is the same for every replica.
    async fn follow_clock(&self) {
        let asking = Stopwatch::start();
        // A store that does not answer is logged there.
        let Ok(Some(clock)) = self.store.time().await else { return };
        let took = asking.elapsed();
        if took > CLOCK_TOOK_MAX {
            return;
        }
        let before = self.clock.skew().abs() > SKEW_SAID;
        // It was read in about the middle of the question.
        self.clock.follow(clock.plus(took / 2));
        let skew = self.clock.skew();
        self.telemetry.metrics.clock_skew("store", skew);
        if (skew.abs() > SKEW_SAID) != before {
            let milliseconds = skew / 1000;
            match before {
                false => tracing::warn!(
                    name: "clock.skewed", milliseconds,
                    "this machine's clock differs from the state store's, whose time counts: past 10 s the server is not ready"
                ),
                true => tracing::info!(name: "clock.agrees", milliseconds, "this machine's clock agrees with the state store's again"),
            }
        }
    }

    /// Says in the log and in the audit log that the store went back.
    async fn went_back(&self, condition: &Condition, seen: i64) {
        tracing::error!(
            name: "store.went_back", seen, found = condition.seen.revision, generation = condition.seen.generation,
            "the state store lost what was written to it: approvals, releases and checks from before are void, and what stopped stays stopped. \
             Report stops again that no running replica knew, then confirm with `countersign store confirm`"
        );
        let more =
            [("seen", seen.into()), ("found", condition.seen.revision.into()), ("generation", condition.seen.generation.clone().into())];
        let event = events::event("store.went_back", &Actor::server(), None, &more);
        if let Err(error) = self.record_event(self.clock.now(), event).await {
            let error = error.kind();
            tracing::error!(name: "store.went_back_not_recorded", error);
        }
    }

    /// Says that this replica is there, with its bundle, and reads what others have.
    async fn heartbeat(&self) {
        let own = self.snapshot.load().bundle.version.digest.clone();
        // A store that can't be written is logged there.
        let Ok(bundles) = self.store.heartbeat(&own).await else { return };
        self.written_at.fetch_max(self.clock.now().micros(), Ordering::AcqRel);
        let differ = bundles.iter().any(|bundle| *bundle != own);
        let before = self.shared.load().bundles.iter().any(|bundle| *bundle != own);
        if differ && !before {
            tracing::warn!(name: "bundle.differs", own, "replicas have different bundles in force: what is approved under one is evaluation under another");
        }
        self.telemetry.metrics.bundles(bundles.len());
        self.shared.rcu(|shared| Shared { bundles: bundles.clone(), ..Shared::clone(shared) });
    }

    /// Whether calls may be decided by the copy of what stops: it is young enough, and, for a write, the store is known to be whole and the clock
    /// right.
    pub(super) fn may_decide(&self, now: Timestamp, is_write: bool) -> bool {
        let young = |age| self.store.halts().read_at.is_some_and(|read_at| read_at.plus(age) >= now);
        let written_at = Timestamp::from_micros(self.written_at.load(Ordering::Acquire));
        let sound = || {
            self.store.is_settled()
                && !self.is_skewed()
                && (!self.store.is_shared() || written_at.plus(UNREACHED.max(self.options.stops_age)) >= now)
        };
        // By a clock that stands still, nothing grows old.
        let runs = || self.clock.is_shared() && self.clock.step_back() < STEP_BACK_MAX;
        match self.store.is_shared() {
            true => runs() && young(self.options.stops_age) && (!is_write || sound()),
            // Nobody else could have told it anything.
            false => !is_write || young(OWN_AGE) && sound(),
        }
    }

    /// Refuses what needs to know who is stopped while that can't be known.
    pub(super) fn can_tell_stops(&self, now: Timestamp) -> Result<(), Refusal> {
        match self.may_decide(now, true) {
            true => Ok(()),
            false => Err(Refusal::Unavailable("kill switches can't be read now")),
        }
    }

    /// Whether the clocks of machine and store differ so much that one of them must be wrong.
    pub(super) fn is_skewed(&self) -> bool {
        self.clock.skew().abs() > SKEW_MAX
    }

    /// Whether the state store was read and written, and known to be whole, a short while ago.
    pub(super) fn has_state(&self, now: Timestamp) -> bool {
        let recent = |at: Timestamp| at.plus(UNREACHED) >= now;
        let written_at = Timestamp::from_micros(self.written_at.load(Ordering::Acquire));
        self.store.is_settled() && self.store.halts().read_at.is_some_and(recent) && (!self.store.is_shared() || recent(written_at))
    }

    /// What is known of the store and the other replicas.
    pub(super) fn shared(&self) -> Arc<Shared> {
        self.shared.load_full()
    }
}
