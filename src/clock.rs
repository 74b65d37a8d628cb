//! The seam to time: features take `now` as an argument, and only the pipelines read a [`Clock`], once a request.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::model::time::Timestamp;

/// Tells the time of day.
pub trait Clock: fmt::Debug + Send + Sync {
    /// The time of day, as the operating system has it.
    fn now(&self) -> Timestamp;
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

/// A measure of elapsed time for durations in metrics; never an input of a decision.
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

/// A clock that never goes backwards, and knows when the one below it did.
#[derive(Debug)]
pub struct Monotonic<C> {
    below: C,
    highest: AtomicI64,
    step_back: AtomicI64,
}

impl<C: Clock> Monotonic<C> {
    /// Wraps a clock.
    pub fn new(below: C) -> Self {
        Self { below, highest: AtomicI64::new(i64::MIN), step_back: AtomicI64::new(0) }
    }

    /// The time, at least as late as any answer before.
    pub fn now(&self) -> Timestamp {
        let read = self.below.now().micros();
        let before = self.highest.fetch_max(read, Ordering::Relaxed);
        let back = before.saturating_sub(read).max(0);
        self.step_back.store(back, Ordering::Relaxed);
        Timestamp::from_micros(read.max(before))
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
}
