//! `risk.yaml` and the score computed from it: 0 to 100, explained factor by factor. This module is pure.
//!
//! INVARIANT: more of any input never gives a lower score. Points expire with time, or a human clears them.
//! Whether policies permit less at a higher score is for decision tables to test.

mod check;

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::model::answer::Reason;
use crate::model::halt::Severity;
use crate::model::number::to_u32;
use crate::model::signals::{Part, Risk};

/// Factor for denials of an agent on a case.
pub const DENIALS: &str = "denials";
/// Factor for denials of an agent on cases of a customer whose text is hostile. They count only for this pair
/// of agent and customer, so that a hostile ticket can't lock out an agent that others share.
pub const PROVOKED_DENIALS: &str = "provoked_denials";
/// Factor for requests for approval on a case that a human denied.
pub const APPROVALS_DENIED: &str = "approvals_denied";
/// Factor for drafts of a case with a finding that an honest mistake does not explain.
pub const UNSAFE_DRAFTS: &str = "unsafe_drafts";
/// Factor for reports of other systems.
pub const REPORTED: &str = "reported";
/// Factor for the requested action itself.
pub const ASKED: &str = "asked";

/// Maximum of a score.
pub const WORST: u32 = 100;

/// Weight of one kind of event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Factor {
    /// Points per event; 1 to 100. A kind of finding may have 0: it is no sign of an attack, so it taints no case.
    pub points: u32,
    /// Time that one event counts for; several events count one after the other. 1 to 44,640 (31 days).
    pub minutes: u32,
    /// Maximum points of all events of this kind together.
    pub most: u32,
    /// Whether this factor may reach the highest tier by itself.
    #[serde(default)]
    pub decisive: bool,
}

/// Weight of a count of distinct things: 0 points up to `from`, `most` from `to` on, and linear in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Slope {
    /// Highest count that is usual.
    pub from: u64,
    /// Lowest count that gives `most` points.
    pub to: u64,
    /// Maximum number of points.
    pub most: u32,
}

/// Weights of what is counted per principal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ProbingWeights {
    pub cases: Slope,
    pub resources: Slope,
    /// Distinct actions that were denied, counted per case.
    pub denied: Slope,
}

/// Detection of probing: an agent that tries one case and action after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Probing {
    /// Length of the window; 1 to 10,080 (a week).
    pub minutes: u32,
    pub agent: ProbingWeights,
    /// Weights per supervisor, over all of her agents.
    pub supervisor: ProbingWeights,
}

/// Points of a report, by severity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Reported {
    pub low: u32,
    pub medium: u32,
    pub high: u32,
    /// Only a critical report may reach the highest tier by itself.
    pub critical: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Tier {
    /// A member of the schema's type of tiers.
    pub tier: String,
    /// Lowest score of the tier.
    pub from: u32,
}

/// Contents of `risk.yaml`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RiskRules {
    /// Tiers in ascending order; the first begins at 0.
    pub tiers: Vec<Tier>,
    /// Time that the screening of a case's version counts for; 1 to 44,640.
    pub screening_minutes: u32,
    /// Time during which worst-case values are used after state was lost; 1 to 10,080.
    pub recovery_minutes: u32,
    /// Weights of findings in untrusted text, by kind.
    pub findings: BTreeMap<String, Factor>,
    pub denials: Factor,
    pub provoked_denials: Factor,
    pub approvals_denied: Factor,
    pub unsafe_drafts: Factor,
    /// Kinds of findings that make a draft unsafe.
    pub unsafe_findings: Vec<String>,
    pub reported: Reported,
    /// Points of the requested action, by action group. If the action is in several groups, the highest
    /// counts.
    pub asked: BTreeMap<String, u32>,
    pub probing: Probing,
}

/// Input of the score of one call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Number of events that still count, by factor.
    pub events: BTreeMap<String, u64>,
    /// Distinct cases, resources and denied actions of the agent.
    pub agent: [u64; 3],
    /// Distinct cases, resources and denied actions of the supervisor.
    pub supervisor: [u64; 3],
    /// The most severe report in force.
    pub reported: Option<Severity>,
    /// Groups that the action is in.
    pub groups: Vec<String>,
}

/// Names of what is counted per principal.
const BREADTH: [&str; 3] = ["cases", "resources", "denied"];

impl Factor {
    /// Time that one event counts for, in microseconds.
    pub fn micros(&self) -> i64 {
        i64::from(self.minutes) * 60_000_000
    }

    /// Maximum time ahead of now until which events may count, in microseconds. Events beyond those that give
    /// `most` points add nothing.
    pub fn reach(&self) -> i64 {
        self.micros() * i64::from(self.most.div_ceil(self.points.max(1)).max(1))
    }

    /// Number of events that still count, from the time until which they do.
    pub fn count(&self, until: i64, now: i64) -> u64 {
        let left = until.saturating_sub(now).max(0);
        left.unsigned_abs().div_ceil(self.micros().unsigned_abs().max(1))
    }

    fn weigh(&self, count: u64) -> u32 {
        to_u32(count).saturating_mul(self.points).min(self.most)
    }
}

impl Probing {
    /// Length of the window, in microseconds.
    pub fn micros(&self) -> i64 {
        i64::from(self.minutes) * 60_000_000
    }
}

impl Slope {
    fn weigh(&self, count: u64) -> u32 {
        let above = count.saturating_sub(self.from).min(self.to.saturating_sub(self.from));
        let points = u64::from(self.most) * above / self.to.saturating_sub(self.from).max(1);
        to_u32(points)
    }
}

impl ProbingWeights {
    fn slopes(&self) -> [Slope; 3] {
        [self.cases, self.resources, self.denied]
    }

    fn most(&self) -> u32 {
        self.slopes().iter().map(|slope| slope.most).sum()
    }
}

impl Reported {
    fn of(&self, severity: Severity) -> u32 {
        match severity {
            Severity::Critical => self.critical,
            Severity::High => self.high,
            Severity::Info => 0,
            Severity::Low => self.low,
            Severity::Medium => self.medium,
        }
    }
}

impl RiskRules {
    /// Returns the factor with this name, if it counts events.
    pub fn factor(&self, name: &str) -> Option<&Factor> {
        match name {
            APPROVALS_DENIED => Some(&self.approvals_denied),
            DENIALS => Some(&self.denials),
            PROVOKED_DENIALS => Some(&self.provoked_denials),
            UNSAFE_DRAFTS => Some(&self.unsafe_drafts),
            kind => self.findings.get(kind),
        }
    }

    /// Names of all factors, which are the members of the schema's type of risk signals.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            [APPROVALS_DENIED, ASKED, DENIALS, PROVOKED_DENIALS, REPORTED, UNSAFE_DRAFTS].map(str::to_owned).into();
        names.extend(self.findings.keys().cloned());
        for whose in ["agent", "supervisor"] {
            names.extend(BREADTH.map(|what| format!("{whose}_{what}")));
        }
        names.sort();
        names
    }

    /// Longest time for which anything is kept, in microseconds.
    pub fn longest(&self) -> i64 {
        let factors = self.findings.values().chain([
            &self.denials,
            &self.provoked_denials,
            &self.approvals_denied,
            &self.unsafe_drafts,
        ]);
        let longest = factors.map(Factor::reach).max().unwrap_or(0);
        let minutes = i64::from(self.screening_minutes.max(self.probing.minutes));
        longest.max(minutes * 60_000_000)
    }

    pub fn is_unsafe<'k>(&self, mut kinds: impl Iterator<Item = &'k str>) -> bool {
        kinds.any(|kind| self.unsafe_findings.iter().any(|listed| listed == kind))
    }

    /// Returns whether findings of a kind are signs of an attack.
    pub fn is_hostile(&self, kind: &str) -> bool {
        self.findings.get(kind).is_none_or(|factor| factor.points > 0)
    }

    pub fn score(&self, known: &Known) -> Risk {
        let mut parts: Vec<Part> = vec![];
        let mut add = |name: String, count: u64, points: u32| {
            if points > 0 {
                parts.push(Part { name, count, points });
            }
        };
        for (name, count) in &known.events {
            if let Some(factor) = self.factor(name) {
                add(name.clone(), *count, factor.weigh(*count));
            }
        }
        for (whose, breadth, counts) in
            [("agent", &self.probing.agent, known.agent), ("supervisor", &self.probing.supervisor, known.supervisor)]
        {
            for ((what, slope), count) in BREADTH.into_iter().zip(breadth.slopes()).zip(counts) {
                add(format!("{whose}_{what}"), count, slope.weigh(count));
            }
        }
        add(REPORTED.to_owned(), 1, known.reported.map_or(0, |severity| self.reported.of(severity)));
        let asked = known.groups.iter().filter_map(|group| self.asked.get(group)).max();
        add(ASKED.to_owned(), 1, asked.copied().unwrap_or(0));
        parts.sort_by(|one, other| other.points.cmp(&one.points).then_with(|| one.name.cmp(&other.name)));
        let score = parts.iter().fold(0_u32, |sum, part| sum.saturating_add(part.points)).min(WORST);
        Risk { score, tier: self.tier(score), parts }
    }

    /// The risk that is used when signals are unavailable.
    pub fn worst(&self) -> Risk {
        Risk { score: WORST, tier: self.tier(WORST), parts: vec![] }
    }

    /// Returns the tier of a score. `faults` refuses rules whose lowest tier is not from 0, so there is one.
    fn tier(&self, score: u32) -> String {
        self.tiers.iter().rev().find(|tier| tier.from <= score).map_or_else(String::new, |tier| tier.tier.clone())
    }
}

/// Returns whether a denial suggests probing. Denials that occur in normal work (a missing approval, a full
/// window) do not.
pub fn is_probing(reason: Reason) -> bool {
    match reason {
        Reason::ApprovalOutOfScope
        | Reason::ApprovalUnverifiable
        | Reason::ApprovalUsed
        | Reason::NotPermitted
        | Reason::StepNotAllowed => true,
        Reason::ApprovalExpired
        | Reason::ApprovalRequired
        | Reason::ApprovalRevoked
        | Reason::CaseChanged
        | Reason::CheckRequired
        | Reason::ConsentRequired
        | Reason::DraftRequired
        | Reason::PolicyError
        | Reason::RateLimited
        | Reason::RiskTooHigh
        | Reason::ScreeningRequired
        | Reason::StateUnavailable => false,
    }
}
