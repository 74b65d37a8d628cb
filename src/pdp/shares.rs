//! How many requests are decided at the same time, and each caller's share of it. A request takes its permit when its message was read
//! and its caller is known, so that who sends slowly, or is nobody, takes none.

use std::sync::Arc;

use dashmap::DashMap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::model::refusal::Refusal;

/// The permits.
#[derive(Debug)]
pub(super) struct Shares {
    all: Arc<Semaphore>,
    /// How many one caller may have: half of all.
    share: usize,
    callers: DashMap<String, Arc<Semaphore>>,
}

/// A permit, until it is dropped.
#[derive(Debug)]
pub struct Share {
    _all: OwnedSemaphorePermit,
    _own: OwnedSemaphorePermit,
}

impl Shares {
    /// So many permits.
    pub(super) fn new(most: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(most)), share: most.div_ceil(2), callers: DashMap::new() }
    }

    /// A permit for a known caller; there are as many callers as the settings name. One that `waits` is given it when it is free: what
    /// comes on a stream is held back by the stream's own flow control.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED, when the caller's share or all permits are taken.
    pub(super) async fn take(&self, caller: &str, waits: bool) -> Result<Share, Refusal> {
        let own = self.own(caller);
        let all = Arc::clone(&self.all);
        let taken = match waits {
            // The semaphores are never closed.
            true => own.acquire_owned().await.ok().zip(all.acquire_owned().await.ok()),
            false => {
                let own = own.try_acquire_owned().map_err(|_| Refusal::Exhausted("too many requests of this caller are under way"))?;
                Some(own).zip(all.try_acquire_owned().ok())
            }
        };
        let (own, all) = taken.ok_or(Refusal::Exhausted("too many requests are under way"))?;
        Ok(Share { _all: all, _own: own })
    }

    fn own(&self, caller: &str) -> Arc<Semaphore> {
        if let Some(own) = self.callers.get(caller) {
            return Arc::clone(&own);
        }
        Arc::clone(&self.callers.entry(caller.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(self.share))))
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
        let _others = (shares.take("two", false).await.expect("its share"), shares.take("three", true).await.expect("a permit"));
        let refused = shares.take("four", false).await.map(|_| ());
        assert_eq!(refused, Err(Refusal::Exhausted("too many requests are under way")));
        drop(first);
        assert!(shares.take("four", true).await.is_ok());
    }
}
