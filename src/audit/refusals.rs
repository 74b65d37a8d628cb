//! Counts refusals of unauthenticated peers by peer and kind, so that such peers can't fill the log.

use dashmap::DashMap;

use crate::audit::operations::RefusalsRecord;

/// Maximum number of pairs of peer and kind that are counted separately; further peers count as `other`.
const PEERS_MAX: usize = 1024;
const OTHER: &str = "other";

/// Counter that is drained once a second.
#[derive(Debug, Default)]
pub struct RefusalCounter {
    counts: DashMap<(String, &'static str), u64>,
}

impl RefusalCounter {
    pub fn count(&self, peer: String, kind: &'static str) {
        let known = self.counts.len() < PEERS_MAX || self.counts.contains_key(&(peer.clone(), kind));
        let peer = if known { peer } else { OTHER.to_owned() };
        *self.counts.entry((peer, kind)).or_insert(0) += 1;
    }

    /// Removes and returns the counts, sorted by peer and kind.
    pub fn drain(&self) -> Vec<RefusalsRecord> {
        let keys: Vec<_> = self.counts.iter().map(|entry| entry.key().clone()).collect();
        let mut drained: Vec<RefusalsRecord> = keys
            .into_iter()
            .filter_map(|key| self.counts.remove(&key))
            .map(|((peer, kind), count)| RefusalsRecord { peer, kind, count })
            .collect();
        drained.sort_by(|left, right| (&left.peer, left.kind).cmp(&(&right.peer, right.kind)));
        drained
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_peers_is_counted_within_bounds_and_nothing_is_lost() {
        let counter = RefusalCounter::default();
        for peer in 0..5000 {
            counter.count(format!("192.0.2.{peer}"), "unauthenticated");
            counter.count("192.0.2.1".into(), "unauthenticated");
        }
        let drained = counter.drain();
        assert!(drained.len() <= PEERS_MAX + 1);
        assert_eq!(drained.iter().map(|record| record.count).sum::<u64>(), 10_000);
        assert!(counter.drain().is_empty());
    }
}
