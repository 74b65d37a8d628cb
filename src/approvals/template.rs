//! `approvals.yaml`: what the bundle says of approvals, template by template.

use crate::model::approval::Binding;
use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

/// How bad a mistake would be; shown to the reviewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reversibility {
    /// Only with somebody else's help.
    ExternallyReversible,
    /// Not at all.
    Irreversible,
    /// By us.
    Reversible,
}

impl Reversibility {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::ExternallyReversible => "externally_reversible",
            Self::Irreversible => "irreversible",
            Self::Reversible => "reversible",
        }
    }
}

/// What the bundle says of one kind of approval.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    /// What it is for, in a line for the reviewer.
    pub title: String,
    /// How many reviewers must approve, at least; policies may ask for more with `@quorum`.
    #[serde(default = "one")]
    pub quorum: u32,
    /// How long it may be reviewed; 1 to 10,080 (a week).
    pub review_minutes: u32,
    /// How long it may be used once approved; 1 to 1,440 (a day).
    pub use_minutes: u32,
    /// How bad a mistake would be.
    pub reversibility: Reversibility,
    /// Integer arguments that may be at most what was approved; all others must be the same.
    #[serde(default)]
    pub at_most: Vec<String>,
    /// Whether the reviewer must be another person than the supervisor.
    #[serde(default = "yes")]
    pub four_eyes: bool,
    /// Ways of authentication of which the reviewer's token must name one (RFC 8176); none: any.
    #[serde(default)]
    pub amr: Vec<String>,
    /// Strengths of authentication of which the reviewer's token must name one; none: any.
    #[serde(default)]
    pub acr: Vec<String>,
    /// Whether the justification must name a clause.
    #[serde(default)]
    pub needs_policy_clause: bool,
    /// Whether the justification must name evaluations as evidence.
    #[serde(default)]
    pub needs_evidence: bool,
}

fn one() -> u32 {
    1
}

fn yes() -> bool {
    true
}

impl Template {
    /// How long it may be reviewed.
    pub fn review(&self) -> Duration {
        Duration::from_secs(u64::from(self.review_minutes) * 60)
    }

    /// How long it may be used once approved.
    pub fn usable(&self) -> Duration {
        Duration::from_secs(u64::from(self.use_minutes) * 60)
    }
}

/// How many requests may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Caps {
    /// Of one case.
    pub case: u32,
    /// Of one agent.
    pub agent: u32,
    /// In one tenant's queue of one template: what its reviewers have before them.
    pub queue: u32,
}

/// All of `approvals.yaml`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Templates {
    /// How many requests may wait.
    pub pending: Caps,
    /// How long after a denial the same call may not be asked for again; 0 to 10,080.
    pub cool_down_minutes: u32,
    /// The templates by name.
    pub templates: BTreeMap<String, Template>,
}

impl Default for Templates {
    /// Nothing can be approved.
    fn default() -> Self {
        Self { pending: Caps { case: 0, agent: 0, queue: 0 }, cool_down_minutes: 0, templates: BTreeMap::new() }
    }
}

impl Templates {
    /// How many reviewers must approve: the quorum at the time of the request, or the template's present one if it is higher.
    pub fn quorum(&self, binding: &Binding) -> u32 {
        let template = self.templates.get(&binding.template);
        binding.quorum.max(template.map_or(0, |template| template.quorum))
    }

    /// What is out of bounds, and the name to look for.
    pub fn faults(&self) -> Vec<(String, String)> {
        let mut faults = vec![];
        let mut bound = |name: &str, what: &str, value: u32, lowest: u32, highest: u32| {
            if !(lowest..=highest).contains(&value) {
                faults.push((name.to_owned(), format!("`{what}` must be {lowest} to {highest}")));
            }
        };
        for (what, value) in [("case", self.pending.case), ("agent", self.pending.agent), ("queue", self.pending.queue)] {
            bound("pending", what, value, 1, 100_000);
        }
        bound("cool_down_minutes", "cool_down_minutes", self.cool_down_minutes, 0, 10_080);
        for (name, template) in &self.templates {
            bound(name, "quorum", template.quorum, 1, 9);
            bound(name, "review_minutes", template.review_minutes, 1, 10_080);
            bound(name, "use_minutes", template.use_minutes, 1, 1_440);
            bound(name, "title", u32::try_from(template.title.len()).unwrap_or(u32::MAX), 1, 200);
        }
        faults
    }

    /// How long after a denial the same call may not be asked for again.
    pub fn cool_down(&self) -> Duration {
        Duration::from_secs(u64::from(self.cool_down_minutes) * 60)
    }
}
