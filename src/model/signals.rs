//! How unusual a call is: what the PDP remembers of its case, agent, human and tenant, and what its text tries.

use std::time::Duration;

use crate::model::finding::Screened;

/// Different things are counted exactly up to here.
pub const EXACT: usize = 512;

/// A part of a score.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    /// The factor's name.
    pub name: String,
    /// How many events, or different things; 1 where nothing is counted.
    pub count: u64,
    /// The points that it gives.
    pub points: u32,
}

/// A score.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Risk {
    /// 0 to 100.
    pub score: u32,
    /// The tier that it is in.
    pub tier: String,
    /// What it is made of, the heaviest first.
    pub parts: Vec<Part>,
}

/// What is known of the untrusted content of a case's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Screening {
    /// Whether text of the case tries to steer the agent.
    pub tainted: bool,
    /// Whether there is text that could not be screened.
    pub unscreened: bool,
}

/// All of it, of one call. The default is what is known of a call that was stopped before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signals {
    /// The score; `None` where no policy reads it.
    pub risk: Option<Risk>,
    /// The windows that are full, sorted.
    pub full: Vec<String>,
    /// The sums that cover the call, as they would be with it.
    pub sums: Vec<(String, i64)>,
    /// How long until they are not, or until what was lost counts as gone.
    pub retry_after: Option<Duration>,
    /// Kinds that were found in the case's text, now or before; sorted.
    pub kinds: Vec<String>,
    /// What came of screening this call's texts.
    pub screened: Screened,
    /// What is known of this version of the case; `None`: it was never screened.
    pub screening: Option<Screening>,
    /// Whether text of the case tries to steer the agent.
    pub hostile: bool,
    /// Whether the windows could not be asked, so that all of it is the worst.
    pub unknown: bool,
    /// Whether the call was counted in the windows that cover it.
    pub counted: bool,
    /// Whether what came of the call is remembered.
    pub remembered: bool,
    /// Whether the chain may read the case: only then does it write the case's memory.
    pub reads_case: bool,
    /// Whether the call is a draft in which something was found that no mistake explains.
    pub unsafe_draft: bool,
    /// Keyed digest of the case's customer; empty where nothing was asked of it.
    pub customer: String,
}
