//! The seam to time: features take `now` as an argument, and only the pipelines read a [`Clock`], once a request.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;

use crate::model::time::Timestamp;

/// Tells the time of day.
pub trait Clock: fmt::Debug + Send + Sync {
    /// The time of day, as the operating system has it.
    fn now(&self) -> Timestamp;

    /// Whether the clock that replicas share takes its place.
    fn follows(&self) -> bool {
        true
    }
}

/// The operating system's clock.
#[derive(Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the clock")]
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }
}

/// A measure of elapsed time.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(std::time::Instant);

impl Stopwatch {
    /// Starts to measure.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the clock")]
    pub fn start() -> Self {
        Self(std::time::Instant::now())
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Something that is done at most once a second, such as a line in the log that every failed call would write.
#[derive(Debug)]
pub struct Seldom(AtomicI64);

impl Default for Seldom {
    /// It is due at once.
    fn default() -> Self {
        Self(AtomicI64::new(i64::MIN / 2))
    }
}

impl Seldom {
    /// Whether it may be done now; then it may not again within this second.
    pub fn is_due(&self, now: Timestamp) -> bool {
        const SECOND: i64 = 1_000_000;
        let begun = now.micros() - now.micros().rem_euclid(SECOND);
        self.0.fetch_max(begun, Ordering::AcqRel) + SECOND <= now.micros()
    }
}

/// A clock that never goes backwards, and knows when the one below it did. Replicas share a clock, the state store's: once it is known,
/// it tells the time, so that all replicas mean the same instant, and a step of the clock below changes nothing.
#[derive(Debug)]
pub struct Monotonic<C> {
    below: C,
    highest: AtomicI64,
    step_back: AtomicI64,
    shared: ArcSwapOption<Shared>,
    skew: AtomicI64,
}

/// The shared clock when it was asked last, and since when that is.
#[derive(Debug)]
struct Shared {
    at: Timestamp,
    since: Stopwatch,
}

impl<C: Clock> Monotonic<C> {
    /// Wraps a clock.
    pub fn new(below: C) -> Self {
        Self {
            below,
            highest: AtomicI64::new(i64::MIN),
            step_back: AtomicI64::new(0),
            shared: ArcSwapOption::empty(),
            skew: AtomicI64::new(0),
        }
    }

    /// The time, at least as late as any answer before.
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

    /// Takes the shared clock's time, as it is now.
    pub fn follow(&self, at: Timestamp) {
        if !self.below.follows() {
            return;
        }
        self.skew.store(self.below.now().micros().saturating_sub(at.micros()), Ordering::Relaxed);
        let first = self.shared.swap(Some(std::sync::Arc::new(Shared { at, since: Stopwatch::start() }))).is_none();
        if first {
            // What the clock below said before means nothing any more.
            self.highest.store(at.micros(), Ordering::Relaxed);
        }
    }

    /// Whether the shared clock tells the time, where there may be one.
    pub fn is_shared(&self) -> bool {
        self.shared.load().is_some() || !self.below.follows()
    }

    /// How far the clock below is ahead of the shared one, in microseconds; negative: behind. 0 without a shared one.
    pub fn skew(&self) -> i64 {
        self.skew.load(Ordering::Relaxed)
    }

    /// How far the clock below stood behind its highest reading when it was last read.
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
