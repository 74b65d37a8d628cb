//! `risk.yaml`, and the score that it gives: 0 to 100, explained factor by factor. Pure.
//!
//! INVARIANT: more of anything never gives a lower score, and more risk never permits more. Points go by time alone.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::model::answer::Reason;
use crate::model::halt::Severity;
use crate::model::signals::{EXACT, Part, Risk};

/// Denials of an agent on a case.
pub const DENIALS: &str = "denials";
/// Denials of an agent on cases of a customer whose text is hostile: they count for this pair alone, so that a hostile ticket can't
/// lock out an agent that others share.
pub const PROVOKED_DENIALS: &str = "provoked_denials";
/// Requests for approval on a case that a human denied.
pub const APPROVALS_DENIED: &str = "approvals_denied";
/// Drafts of a case in which something was found that no mistake explains.
pub const UNSAFE_DRAFTS: &str = "unsafe_drafts";
/// What other systems reported.
pub const REPORTED: &str = "reported";
/// What is asked for.
pub const ASKED: &str = "asked";

/// The most that a score can be.
pub const WORST: u32 = 100;

/// What an event weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Factor {
    /// Points of one event; 1 to 100.
    pub points: u32,
    /// How long one event counts; several count one after the other. 1 to 44,640 (31 days).
    pub minutes: u32,
    /// The most points that events of this kind make together.
    pub most: u32,
    /// Whether it may reach the highest tier by itself.
    #[serde(default)]
    pub decisive: bool,
}

/// What a count of different things weighs: nothing up to `from`, `most` at `to`, in between in proportion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slope {
    /// The highest count that is usual.
    pub from: u64,
    /// The count that weighs all of `most`.
    pub to: u64,
    /// The most points.
    pub most: u32,
}

/// What is counted of one principal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Breadth {
    /// Different cases that it asked for.
    pub cases: Slope,
    /// Different resources that it asked for.
    pub resources: Slope,
    /// Different actions that it was denied, each case for itself.
    pub denied: Slope,
}

/// How probing is seen: an agent that tries its way through cases and actions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probing {
    /// Within these minutes; 1 to 10,080 (a week).
    pub minutes: u32,
    /// Of one agent.
    pub agent: Breadth,
    /// Of one supervising human, over all of her agents.
    pub supervisor: Breadth,
}

/// What a report weighs, by its severity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reported {
    /// Points of a low one.
    pub low: u32,
    /// Points of a medium one.
    pub medium: u32,
    /// Points of a high one.
    pub high: u32,
    /// Points of a critical one; it may reach the highest tier by itself.
    pub critical: u32,
}

/// A tier and the score at which it begins.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tier {
    /// Its name: a member of the schema's type of tiers.
    pub tier: String,
    /// The score at which it begins.
    pub from: u32,
}

/// All of `risk.yaml`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RiskRules {
    /// The tiers, rising; the first begins at 0.
    pub tiers: Vec<Tier>,
    /// How long a screening of a case's version counts; 1 to 44,640.
    pub screening_minutes: u32,
    /// How long everything counts as the worst after state was lost; 1 to 10,080.
    pub recovery_minutes: u32,
    /// What findings in untrusted text weigh, by kind.
    pub findings: BTreeMap<String, Factor>,
    /// What denials of an agent on a case weigh.
    pub denials: Factor,
    /// What denials after hostile text weigh.
    pub provoked_denials: Factor,
    /// What denied approvals of a case weigh.
    pub approvals_denied: Factor,
    /// What unsafe drafts of a case weigh.
    pub unsafe_drafts: Factor,
    /// The kinds of findings that make a draft unsafe.
    pub unsafe_findings: Vec<String>,
    /// What reports of other systems weigh.
    pub reported: Reported,
    /// What is asked for weighs, by action group; of several groups the heaviest.
    pub asked: BTreeMap<String, u32>,
    /// How probing is seen.
    pub probing: Probing,
}

/// What is known of a call: the score's input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Events that still count, by factor.
    pub events: BTreeMap<String, u64>,
    /// Different cases, resources and denied actions of the agent.
    pub agent: [u64; 3],
    /// The same of the supervising human.
    pub supervisor: [u64; 3],
    /// The worst report that stands.
    pub reported: Option<Severity>,
    /// Groups that the action is in.
    pub groups: Vec<String>,
}

/// The names of what is counted of a principal.
const BREADTH: [&str; 3] = ["cases", "resources", "denied"];

impl Factor {
    /// How long one event counts, in microseconds.
    pub fn micros(&self) -> i64 {
        i64::from(self.minutes) * 60_000_000
    }

    /// How far ahead events may reach, in microseconds: more of them than give `most` add nothing.
    pub fn reach(&self) -> i64 {
        self.micros() * i64::from(self.most.div_ceil(self.points.max(1)).max(1))
    }

    /// The events that still count, of a time until which they do.
    pub fn count(&self, until: i64, now: i64) -> u64 {
        let left = until.saturating_sub(now).max(0);
        u64::try_from(left).unwrap_or(0).div_ceil(u64::try_from(self.micros()).unwrap_or(1).max(1))
    }

    fn weigh(&self, count: u64) -> u32 {
        u32::try_from(count).unwrap_or(u32::MAX).saturating_mul(self.points).min(self.most)
    }
}

impl Probing {
    /// Its length in microseconds.
    pub fn micros(&self) -> i64 {
        i64::from(self.minutes) * 60_000_000
    }
}

impl Slope {
    fn weigh(&self, count: u64) -> u32 {
        let above = count.saturating_sub(self.from).min(self.to.saturating_sub(self.from));
        let points = u64::from(self.most) * above / self.to.saturating_sub(self.from).max(1);
        u32::try_from(points).unwrap_or(u32::MAX)
    }
}

impl Breadth {
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
    /// The factor of this name, if it counts events.
    pub fn factor(&self, name: &str) -> Option<&Factor> {
        match name {
            APPROVALS_DENIED => Some(&self.approvals_denied),
            DENIALS => Some(&self.denials),
            PROVOKED_DENIALS => Some(&self.provoked_denials),
            UNSAFE_DRAFTS => Some(&self.unsafe_drafts),
            kind => self.findings.get(kind),
        }
    }

    /// Every factor's name: the members of the schema's type of risk signals.
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

    /// The longest that anything is remembered, in microseconds.
    pub fn longest(&self) -> i64 {
        let factors = self.findings.values().chain([&self.denials, &self.provoked_denials, &self.approvals_denied, &self.unsafe_drafts]);
        let longest = factors.map(Factor::reach).max().unwrap_or(0);
        let minutes = i64::from(self.screening_minutes.max(self.probing.minutes));
        longest.max(minutes * 60_000_000)
    }

    /// Whether a draft in which these kinds were found is unsafe.
    pub fn is_unsafe<'k>(&self, mut kinds: impl Iterator<Item = &'k str>) -> bool {
        kinds.any(|kind| self.unsafe_findings.iter().any(|listed| listed == kind))
    }

    /// The score of what is known.
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

    /// What counts where nothing can be known.
    pub fn worst(&self) -> Risk {
        Risk { score: WORST, tier: self.tier(WORST), parts: vec![] }
    }

    fn tier(&self, score: u32) -> String {
        self.tiers.iter().rev().find(|tier| tier.from <= score).map(|tier| tier.tier.clone()).unwrap_or_default()
    }

    /// What is out of bounds, and the name to look for. `tiers`, `signals` and `kinds` are the members of the schema's types.
    pub fn faults(&self, tiers: &[String], signals: &[String], kinds: &[String]) -> Vec<(String, String)> {
        let mut faults = vec![];
        let mut fault = |name: &str, problem: String| faults.push((name.to_owned(), problem));
        let own: Vec<&String> = self.tiers.iter().map(|tier| &tier.tier).collect();
        if own != tiers.iter().collect::<Vec<_>>() {
            fault("tiers", format!("`tiers` must be the members of the schema's type of tiers, in its order: {}", tiers.join(", ")));
        }
        let rising = self.tiers.windows(2).all(|pair| matches!(pair, [one, next] if one.from < next.from));
        if self.tiers.first().is_none_or(|first| first.from != 0) || !rising || self.tiers.last().is_some_and(|last| last.from > WORST) {
            fault("tiers", "`tiers` must rise, from 0 to at most 100".into());
        }
        let highest = self.tiers.last().map_or(0, |tier| tier.from);
        let named = [
            (APPROVALS_DENIED, &self.approvals_denied),
            (DENIALS, &self.denials),
            (PROVOKED_DENIALS, &self.provoked_denials),
            (UNSAFE_DRAFTS, &self.unsafe_drafts),
        ];
        for (name, factor) in named.into_iter().chain(self.findings.iter().map(|(name, factor)| (name.as_str(), factor))) {
            if factor.points == 0 || factor.points > WORST || !(1..=44_640).contains(&factor.minutes) {
                fault(name, format!("`{name}`: `points` must be 1 to 100, `minutes` 1 to 44640"));
            }
            if factor.most < factor.points || factor.most > WORST {
                fault(name, format!("`{name}`: `most` must be at least `points`, and at most 100"));
            }
            if factor.most >= highest && !factor.decisive {
                fault(name, format!("`{name}` alone would reach the highest tier: lower `most`, or say `decisive: true`"));
            }
        }
        let asked = self.asked.values().copied().max().unwrap_or(0);
        if self.probing.agent.most() + self.probing.supervisor.most() + asked >= highest {
            fault("probing", "probing alone must stop below the highest tier: it could be somebody else's doing".into());
        }
        let slopes = self.probing.agent.slopes().into_iter().chain(self.probing.supervisor.slopes());
        if [self.probing.agent.denied, self.probing.supervisor.denied]
            .iter()
            .any(|slope| slope.to > u64::try_from(EXACT).unwrap_or(u64::MAX))
        {
            fault("probing", format!("`probing`: `denied.to` must be at most {EXACT}: up to there it is counted exactly"));
        }
        if slopes.clone().any(|slope| slope.from >= slope.to) || !(1..=10_080).contains(&self.probing.minutes) {
            fault("probing", "`probing`: each `from` must be below its `to`, `minutes` 1 to 10080".into());
        }
        let rises = [self.reported.low, self.reported.medium, self.reported.high, self.reported.critical];
        if !rises.is_sorted() || rises.into_iter().max() > Some(WORST) || self.reported.high >= highest {
            fault("reported", "`reported` must rise with the severity, and only `critical` may reach the highest tier".into());
        }
        if !(1..=44_640).contains(&self.screening_minutes) || !(1..=10_080).contains(&self.recovery_minutes) {
            fault("screening_minutes", "`screening_minutes` must be 1 to 44640, `recovery_minutes` 1 to 10080".into());
        }
        let mut expected = signals.to_vec();
        expected.sort();
        if expected != self.names() {
            let names = self.names();
            let missing: Vec<&str> = names.iter().filter(|name| !signals.contains(name)).map(String::as_str).collect();
            let much: Vec<&str> = signals.iter().filter(|name| !names.contains(name)).map(String::as_str).collect();
            let list = |names: &[&str]| if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
            fault("findings", format!("the schema's type of risk signals lacks {}, and has too much {}", list(&missing), list(&much)));
        }
        let mut kinds = kinds.to_vec();
        kinds.sort();
        if !kinds.iter().eq(self.findings.keys()) {
            fault("findings", "`findings` must weigh each member of the schema's type of findings".into());
        }
        faults
    }
}

/// Whether a denial is one that trying gives: what a normal course of work meets (a missing approval, a full window) is none.
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
        | Reason::DraftRequired
        | Reason::PolicyError
        | Reason::RateLimited
        | Reason::RiskTooHigh
        | Reason::ScreeningRequired
        | Reason::StateUnavailable => false,
    }
}
