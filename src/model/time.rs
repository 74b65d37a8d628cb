//! Instants in microseconds.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Datelike, SecondsFormat};

use crate::model::number::to_i64;

/// Instant in microseconds since 1970-01-01T00:00:00Z, displayed as RFC 3339 in UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Timestamp(i64);

impl Timestamp {
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Parses RFC 3339 with any offset; in UTC the year must have four digits.
    pub fn parse(text: &str) -> Option<Self> {
        let time = DateTime::parse_from_rfc3339(text).ok()?.to_utc();
        (0..=9999).contains(&time.year()).then(|| Self(time.timestamp_micros()))
    }

    /// Creates an instant from whole seconds since the epoch, as JWTs have them.
    pub const fn from_seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(1_000_000))
    }

    /// Returns whole seconds since the epoch, rounded down.
    pub const fn seconds(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    pub const fn micros(self) -> i64 {
        self.0
    }

    /// Returns seconds since the epoch and the remaining nanoseconds.
    pub fn seconds_and_nanos(self) -> (i64, i32) {
        let rest = Duration::from_micros(self.0.rem_euclid(1_000_000).unsigned_abs());
        (self.0.div_euclid(1_000_000), rest.subsec_nanos().cast_signed())
    }

    /// Returns the instant that is this much later, or the latest possible one.
    pub fn plus(self, later: Duration) -> Self {
        Self(self.0.saturating_add(to_i64(later.as_micros())))
    }

    /// Returns the instant that is this much earlier, or the earliest possible one.
    pub fn minus(self, earlier: Duration) -> Self {
        Self(self.0.saturating_sub(to_i64(earlier.as_micros())))
    }

    /// Returns the time from another instant to this one; zero if that is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0).max(0).unsigned_abs())
    }

    /// Formats the instant for Cedar's `datetime`: milliseconds, UTC.
    pub fn cedar(self) -> String {
        self.text(SecondsFormat::Millis)
    }

    fn text(self, format: SecondsFormat) -> String {
        DateTime::from_timestamp_micros(self.0).unwrap_or(DateTime::UNIX_EPOCH).to_rfc3339_opts(format, true)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text(SecondsFormat::Micros))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_read_and_utc_is_shown() {
        let time = Timestamp::parse("2026-03-02T10:00:00.5+01:00").expect("valid");
        assert_eq!(time.to_string(), "2026-03-02T09:00:00.500000Z");
        assert_eq!(time.cedar(), "2026-03-02T09:00:00.500Z");
        assert_eq!(Timestamp::parse("yesterday"), None);
        assert_eq!(Timestamp::parse("9999-12-31T23:59:59-01:00"), None);
        assert_eq!(Timestamp::from_micros(-1).seconds_and_nanos(), (-1, 999_999_000));
    }
}
