//! Access to time. Features take `now` as an argument; only the pipelines read a [`Clock`], once per request.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;

use crate::model::number::to_i64;
use crate::model::time::Timestamp;

/// A source of the time of day.
pub trait Clock: fmt::Debug + Send + Sync {
    /// Returns the time of day.
    fn now(&self) -> Timestamp;

    /// Returns whether the clock that replicas share replaces this one.
    fn follows(&self) -> bool {
        true
    }
}

#[derive(Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the clock")]
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Timestamp::from_micros(to_i64(since.as_micros()))
    }
}

/// Measures elapsed time.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(std::time::Instant);

impl Stopwatch {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the clock")]
    pub fn start() -> Self {
        Self(std::time::Instant::now())
    }

    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Limits an action, such as logging each failed call, to once in each second of the clock.
#[derive(Debug)]
pub struct Seldom(AtomicI64);

impl Default for Seldom {
    /// Returns a limiter whose first check is due.
    fn default() -> Self {
        Self(AtomicI64::new(i64::MIN / 2))
    }
}

impl Seldom {
    /// Returns whether the action is due; if so, it is not due again within the same second.
    pub fn is_due(&self, now: Timestamp) -> bool {
        const SECOND: i64 = 1_000_000;
        let begun = now.micros() - now.micros().rem_euclid(SECOND);
        self.0.fetch_max(begun, Ordering::AcqRel) + SECOND <= now.micros()
    }
}

/// A clock that does not go backwards and reports when the clock below did. Replicas share the state store's
/// clock: once it is known, it provides the time, so that all replicas agree on the instant and a step of the
/// clock below has no effect. The time may go back once, when the shared clock takes over.
#[derive(Debug)]
pub struct Monotonic<C> {
    below: C,
    highest: AtomicI64,
    step_back: AtomicI64,
    shared: ArcSwapOption<Shared>,
    skew: AtomicI64,
}

/// Last reading of the shared clock, and the time elapsed since then.
#[derive(Debug)]
struct Shared {
    at: Timestamp,
    since: Stopwatch,
}

impl<C: Clock> Monotonic<C> {
    pub fn new(below: C) -> Self {
        Self {
            below,
            highest: AtomicI64::new(i64::MIN),
            step_back: AtomicI64::new(0),
            shared: ArcSwapOption::empty(),
            skew: AtomicI64::new(0),
        }
    }

    /// Returns the time, never before an earlier result, except when the shared clock takes over.
    pub fn now(&self) -> Timestamp {
        let read = match self.shared.load().as_ref() {
            Some(shared) => shared.at.plus(shared.since.elapsed()).micros(),
            None => self.below.now().micros(),
        };
        let before = self.highest.fetch_max(read, Ordering::Relaxed);
        let back = before.saturating_sub(read).max(0);
        self.step_back.store(back, Ordering::Relaxed);
        Timestamp::from_micros(read.max(before))
    }

    /// Sets the shared clock to its current time `at`, unless the clock below does not follow one.
    pub fn follow(&self, at: Timestamp) {
        if !self.below.follows() {
            return;
        }
        self.skew.store(self.below.now().micros().saturating_sub(at.micros()), Ordering::Relaxed);
        let first = self.shared.swap(Some(std::sync::Arc::new(Shared { at, since: Stopwatch::start() }))).is_none();
        if first {
            // Earlier readings came from the clock below and can't be compared with the shared clock.
            self.highest.store(at.micros(), Ordering::Relaxed);
        }
    }

    /// Returns whether the shared clock provides the time, or the clock below does not follow one.
    pub fn is_shared(&self) -> bool {
        self.shared.load().is_some() || !self.below.follows()
    }

    /// Returns how far the clock below is ahead of the shared one, in microseconds. Negative means behind;
    /// without a shared clock the result is 0.
    pub fn skew(&self) -> i64 {
        self.skew.load(Ordering::Relaxed)
    }

    /// Returns how far the last reading was behind the highest one.
    pub fn step_back(&self) -> Duration {
        Duration::from_micros(self.step_back.load(Ordering::Relaxed).unsigned_abs())
    }
}

impl Clock for Box<dyn Clock> {
    fn now(&self) -> Timestamp {
        self.as_ref().now()
    }

    fn follows(&self) -> bool {
        self.as_ref().follows()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Hands(AtomicI64);

    impl Clock for Hands {
        fn now(&self) -> Timestamp {
            Timestamp::from_micros(self.0.load(Ordering::Relaxed))
        }
    }

    #[test]
    fn now_never_goes_backwards_and_a_step_back_is_seen() {
        let clock = Monotonic::new(Hands(AtomicI64::new(10_000_000)));
        assert_eq!(clock.now().micros(), 10_000_000);
        clock.below.0.store(3_000_000, Ordering::Relaxed);
        assert_eq!(clock.now().micros(), 10_000_000);
        assert_eq!(clock.step_back(), Duration::from_secs(7));
        clock.below.0.store(11_000_000, Ordering::Relaxed);
        assert_eq!(clock.now().micros(), 11_000_000);
        assert_eq!(clock.step_back(), Duration::ZERO);
    }

    #[test]
    fn the_shared_clock_tells_the_time_and_steps_of_the_own_one_change_nothing() {
        let clock = Monotonic::new(Hands(AtomicI64::new(400_000_000)));
        assert_eq!(clock.now().micros(), 400_000_000);
        clock.follow(Timestamp::from_micros(100_000_000));
        assert_eq!(clock.skew(), 300_000_000);
        let within = |now: Timestamp| (100_000_000..160_000_000).contains(&now.micros());
        assert!(within(clock.now()), "{}", clock.now());
        clock.below.0.store(0, Ordering::Relaxed);
        assert!(within(clock.now()), "{}", clock.now());
        assert_eq!(clock.step_back(), Duration::ZERO);
        clock.follow(Timestamp::from_micros(100_000_001));
        assert_eq!(clock.skew(), -100_000_001);
    }
}
