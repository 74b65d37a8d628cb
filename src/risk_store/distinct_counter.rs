//! Counts distinct things within a time: exactly up to [`EXACT`], and above that by sampling.
//!
//! The algorithm is Wegman's adaptive sampling (Flajolet 1990, "On adaptive sampling"). When there are more
//! than [`EXACT`] things, only those whose hash ends in one more zero bit stay, and each of them counts twice
//! as much. Each thing has the time when it was last seen, so the window slides exactly. The standard error
//! of a sampled count is 1.2/√512, 5.3 %. The sampling level falls back to 0 only after all things have
//! expired, because things outside of the sample were not stored.

use crate::model::number::to_u64;
use crate::model::signals::EXACT;

/// Maximum number of zero bits, enough for 2⁹ × 2²⁴ things.
const LEVEL_MAX: u32 = 24;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DistinctCounter {
    level: u32,
    /// Hash of each thing and the time when it was last seen, sorted by hash.
    things: Vec<(u64, i64)>,
}

impl DistinctCounter {
    /// Adds a thing, if there is one, and returns the count. A new thing that would exceed `most` is not
    /// added; the result is then one more than the count.
    pub fn observation(&mut self, item: Option<u64>, now: i64, within: i64, most: Option<u64>) -> u64 {
        let over = now.saturating_sub(within);
        self.things.retain(|(_, seen)| *seen > over);
        if self.things.is_empty() {
            self.level = 0;
        }
        if let Some(item) = item.filter(|item| in_sample(*item, self.level)) {
            match self.things.binary_search_by_key(&item, |(thing, _)| *thing) {
                Ok(found) => {
                    if let Some((_, seen)) = self.things.get_mut(found) {
                        *seen = now.max(*seen);
                    }
                }
                Err(_) if most.is_some_and(|most| self.count() >= most) => return self.count().saturating_add(1),
                Err(place) => self.things.insert(place, (item, now)),
            }
        }
        while self.things.len() > EXACT && self.level < LEVEL_MAX {
            self.level += 1;
            let level = self.level;
            self.things.retain(|(thing, _)| in_sample(*thing, level));
        }
        self.count()
    }

    fn count(&self) -> u64 {
        to_u64(self.things.len()) << self.level
    }

    /// Returns when the last of the things expires.
    pub fn until(&self, within: i64) -> i64 {
        self.things.iter().map(|(_, seen)| seen.saturating_add(within)).max().unwrap_or(0)
    }
}

fn in_sample(item: u64, level: u32) -> bool {
    item.trailing_zeros() >= level
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::risk_store::operations::Key;

    fn item(number: u64) -> u64 {
        Key::of(&[&number.to_string()]).short()
    }

    proptest! {
        #[test]
        fn up_to_the_bound_it_counts_as_a_plain_map_does(steps in proptest::collection::vec((0_u64..100, 0_i64..50), 1..300)) {
            let (mut breadth, mut model, mut now) = (DistinctCounter::default(), HashMap::new(), 0);
            for (number, later) in steps {
                now += later;
                model.insert(number, now);
                let expected = model.values().filter(|seen| **seen > now - 500).count();
                prop_assert_eq!(breadth.observation(Some(item(number)), now, 500, None), expected as u64);
            }
        }
    }

    #[test]
    fn beyond_the_bound_it_errs_by_no_more_than_is_said() {
        for things in [1_000_u64, 10_000, 100_000] {
            let errors: Vec<f64> = (0..20)
                .map(|round| {
                    let mut breadth = DistinctCounter::default();
                    let count = (0..things)
                        .map(|number| breadth.observation(Some(item(round * things + number)), 0, 1, None))
                        .last();
                    count.expect("a count") as f64 / things as f64 - 1.0
                })
                .collect();
            let mean = errors.iter().sum::<f64>() / 20.0;
            assert!(mean.abs() < 0.04, "{things}: biased by {mean}");
            // The bound is four standard errors.
            assert!(errors.iter().all(|error| error.abs() < 0.213), "{things}: {errors:?}");
        }
    }

    #[test]
    fn it_is_bounded_and_forgets_all_of_a_time_together() {
        let mut breadth = DistinctCounter::default();
        for number in 0..10_000 {
            breadth.observation(Some(item(number)), 0, 10, None);
            assert!(breadth.things.len() <= EXACT);
        }
        assert_eq!(breadth.observation(None, 10, 10, None), 0);
        assert_eq!(breadth.observation(Some(1), 10, 10, None), 1, "the sampling ended with the last thing");
    }
}
