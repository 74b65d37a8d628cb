//! Decides a call without I/O: every link of the chain must be permitted.

use cedar_policy::{Entities, Request};

use crate::model::chain::Link;
use crate::model::verdict::Verdict;
use crate::policy::engine::Engine;

/// Evaluates each link's request. Every link must be permitted, so their rights intersect.
pub fn decide(engine: &Engine, requests: &[(Link, Request)], entities: &Entities) -> Verdict {
    Verdict { links: engine.evaluate_links(requests, entities) }
}

/// Result of a what-if evaluation. It has its own type, so that it can never become an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WhatIf {
    would_permit: bool,
}

impl WhatIf {
    /// Evaluates requests that assume different circumstances.
    pub fn of(engine: &Engine, requests: &[(Link, Request)], entities: &Entities) -> Self {
        let verdict = decide(engine, requests, entities);
        Self { would_permit: verdict.permits() && !verdict.has_errors() }
    }

    pub fn would_permit(self) -> bool {
        self.would_permit
    }
}
