//! The decision: every link of the chain must be permitted. Pure.

use cedar_policy::{Entities, Request};

use crate::model::chain::Link;
use crate::model::verdict::Verdict;
use crate::policy::engine::Engine;

/// Evaluates each link's request; rights intersect.
pub fn decide(engine: &Engine, requests: &[(Link, Request)], entities: &Entities) -> Verdict {
    Verdict { links: requests.iter().map(|(link, request)| engine.evaluate(*link, request, entities)).collect() }
}

/// What a verdict would be if something were different. A type of its own, so that it can never become an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WhatIf {
    would_permit: bool,
}

impl WhatIf {
    /// Evaluates requests that hold what is not so.
    pub fn of(engine: &Engine, requests: &[(Link, Request)], entities: &Entities) -> Self {
        let verdict = decide(engine, requests, entities);
        Self { would_permit: verdict.permits() && !verdict.has_errors() }
    }

    /// Whether the call would be permitted.
    pub fn would_permit(self) -> bool {
        self.would_permit
    }
}
