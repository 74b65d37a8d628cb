//! Risk signals of a call: the history of its case, agent, supervisor and tenant, and attempts in its text.

use std::time::Duration;

use crate::model::finding::Screened;

/// Maximum number of distinct items that is counted exactly.
pub const EXACT: usize = 512;

/// Contribution of one factor to a risk score.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    /// Name of the factor.
    pub name: String,
    /// Number of events or of distinct items; 1 if the factor counts nothing.
    pub count: u64,
    /// Points that the factor adds.
    pub points: u32,
}

/// Risk score and its parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Risk {
    /// Value from 0 to 100.
    pub score: u32,
    /// Tier of the score.
    pub tier: String,
    /// Parts of the score, the heaviest first.
    pub parts: Vec<Part>,
}

/// Screening result for the untrusted content of one version of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Screening {
    /// Whether text of the case tries to steer the agent.
    pub tainted: bool,
    /// Whether there is text that could not be screened.
    pub unscreened: bool,
}

/// Risk signals of one call. The default is for a call that was stopped before the risk store was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signals {
    /// Risk score; `None` if no policy reads it.
    pub risk: Option<Risk>,
    /// Names of the full windows, sorted.
    pub full: Vec<String>,
    /// Sums that cover the call; the totals include it.
    pub sums: Vec<(String, i64)>,
    /// Time until the full windows have room, or until a loss of the risk store's data no longer counts.
    pub retry_after: Option<Duration>,
    /// Kinds of findings in the case's text, in this call or before; sorted.
    pub kinds: Vec<String>,
    /// Result of screening this call's texts.
    pub screened: Screened,
    /// Screening result for this version of the case; `None` if it was never screened.
    pub screening: Option<Screening>,
    /// Whether text of the case tries to steer the agent.
    pub hostile: bool,
    /// Whether the risk store could not be read, so that worst-case values are used.
    pub unknown: bool,
    /// Whether the call counts in the windows that cover it.
    pub counted: bool,
    /// Whether the result of the call is added to the risk store.
    pub remembered: bool,
    /// Whether the chain may read the case; only such a chain changes the case's history.
    pub reads_case: bool,
    /// Whether the call is a draft with a finding that the bundle's risk rules list as unsafe, because it
    /// can't be a mistake.
    pub unsafe_draft: bool,
    /// Kill switch or revoked session that stopped the call, as [`Halt::words`](crate::model::halt::Halt::words);
    /// empty if none did.
    pub halted_by: String,
    /// Keyed digest of the case's customer; empty if the risk store was not asked about the call.
    pub customer: String,
}
