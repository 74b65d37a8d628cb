//! Limits on the requests that are decided at the same time, and each caller's share of them. A request takes
//! its permit when its message is read and its caller authenticated, so slow senders and unauthenticated
//! peers take none. For its evaluation it then waits for one of its caller's turns, so a caller with hundreds
//! of requests delays another caller's by a few of them at most.

use std::sync::Arc;

use dashmap::DashMap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::model::refusal::Refusal;

/// Maximum number of requests of one caller that are evaluated at the same time, for each core. It is more
/// than one, because an evaluation may wait for PostgreSQL or Redis.
const TURNS_PER_CORE: usize = 8;

/// Permits of all callers.
#[derive(Debug)]
pub(in crate::pdp) struct Shares {
    all: Arc<Semaphore>,
    /// Maximum number of permits of one caller.
    share: usize,
    /// Number of turns of each kind that one caller has.
    turns: usize,
    callers: DashMap<String, Own>,
}

/// Permits and turns of one caller.
#[derive(Clone, Debug)]
struct Own {
    permits: Arc<Semaphore>,
    turns: Turns,
}

/// Turns of one caller. Calls with texts have separate ones, because they wait for the threads that read
/// texts.
#[derive(Clone, Debug)]
struct Turns {
    plain: Arc<Semaphore>,
    with_texts: Arc<Semaphore>,
}

/// A permit, which is returned when it is dropped.
#[derive(Debug)]
pub struct Share {
    _all: OwnedSemaphorePermit,
    _own: OwnedSemaphorePermit,
    turns: Turns,
    /// Whether the caller has more requests under way than turns.
    is_many: bool,
}

impl Share {
    /// Waits for one of the caller's turns, in the order of its requests. The turn ends when the returned
    /// permit is dropped.
    pub(in crate::pdp) async fn turn(&self, has_texts: bool) -> Option<OwnedSemaphorePermit> {
        let turns = if has_texts { &self.turns.with_texts } else { &self.turns.plain };
        // The semaphores are never closed.
        let turn = Arc::clone(turns).acquire_owned().await.ok();
        if self.is_many {
            // An evaluation rarely waits, so without this yield one task would evaluate all calls of its
            // stream in a row.
            tokio::task::yield_now().await;
        }
        turn
    }
}

impl Shares {
    /// Creates this number of permits, of which one caller gets half.
    pub(in crate::pdp) fn new(most: usize) -> Self {
        Self::with_share(most, most.div_ceil(2))
    }

    /// Creates this number of permits, of which one caller gets at most `share`.
    pub(in crate::pdp) fn with_share(most: usize, share: usize) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { all: Arc::new(Semaphore::new(most)), share, turns: cores * TURNS_PER_CORE, callers: DashMap::new() }
    }

    /// Takes a permit for an authenticated caller; their number is bounded by settings and bundle. With
    /// `waits`, the request waits until a permit is free, because the flow control of its stream limits what
    /// follows.
    ///
    /// # Errors
    /// If the caller's share or all permits are taken (RESOURCE_EXHAUSTED).
    pub(in crate::pdp) async fn take(&self, caller: &str, waits: bool) -> Result<Share, Refusal> {
        let Own { permits, turns } = self.own(caller);
        let own = Arc::clone(&permits);
        let all = Arc::clone(&self.all);
        let taken = match waits {
            // The semaphores are never closed.
            true => own.acquire_owned().await.ok().zip(all.acquire_owned().await.ok()),
            false => {
                let own = own
                    .try_acquire_owned()
                    .map_err(|_| Refusal::Exhausted("too many requests of this caller are under way"))?;
                Some(own).zip(all.try_acquire_owned().ok())
            }
        };
        let (own, all) = taken.ok_or(Refusal::Exhausted("too many requests are under way"))?;
        let is_many = self.share.saturating_sub(permits.available_permits()) > self.turns;
        Ok(Share { _all: all, _own: own, turns, is_many })
    }

    fn own(&self, caller: &str) -> Own {
        if let Some(own) = self.callers.get(caller) {
            return own.clone();
        }
        let semaphore = |permits| Arc::new(Semaphore::new(permits));
        let turns = || Turns { plain: semaphore(self.turns), with_texts: semaphore(self.turns) };
        let new = || Own { permits: semaphore(self.share), turns: turns() };
        self.callers.entry(caller.to_owned()).or_insert_with(new).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_caller_never_has_all_permits_and_gives_them_back() {
        let shares = Shares::new(4);
        let (first, _second) = (shares.take("one", false).await, shares.take("one", false).await);
        let refused = shares.take("one", false).await.map(|_| ());
        assert_eq!(refused, Err(Refusal::Exhausted("too many requests of this caller are under way")));
        let _others =
            (shares.take("two", false).await.expect("its share"), shares.take("three", true).await.expect("a permit"));
        let refused = shares.take("four", false).await.map(|_| ());
        assert_eq!(refused, Err(Refusal::Exhausted("too many requests are under way")));
        drop(first);
        assert!(shares.take("four", true).await.is_ok());
    }

    #[tokio::test]
    async fn one_caller_waits_for_its_own_turns_alone() {
        let shares = Shares { turns: 2, ..Shares::new(16) };
        let mut held = vec![];
        for _ in 0..3 {
            held.push(shares.take("one", false).await.expect("its share"));
        }
        let (first, _second) = (held[0].turn(false).await, held[1].turn(false).await);
        assert!(futures_util::FutureExt::now_or_never(held[2].turn(false)).is_none(), "a third turn at once");
        assert!(held[2].turn(true).await.is_some());
        assert!(shares.take("two", false).await.expect("its share").turn(false).await.is_some());
        drop(first);
        assert!(held[2].turn(false).await.is_some());
    }
}
