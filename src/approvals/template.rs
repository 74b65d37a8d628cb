//! The templates of approvals in `approvals.yaml`, and their limits.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use crate::approvals::consent::ConsentTemplate;
use crate::model::approval::{Binding, Giver};
use crate::model::number::to_u32;

/// Whether a mistake can be reversed; shown to the reviewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Reversibility {
    /// Only with the help of a third party.
    ExternallyReversible,
    Irreversible,
    Reversible,
}

impl Reversibility {
    /// Name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::ExternallyReversible => "externally_reversible",
            Self::Irreversible => "irreversible",
            Self::Reversible => "reversible",
        }
    }
}

/// Rules for one kind of approval.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Template {
    /// Purpose of the approval, in one line for the reviewer.
    pub title: String,
    /// Minimum number of reviewers who must approve; policies may require more with `@quorum`.
    #[serde(default = "one")]
    pub quorum: u32,
    /// Time for review, 1 to 10,080 minutes (a week).
    pub review_minutes: u32,
    /// Time for use after the approval, 1 to 1,440 minutes (a day).
    pub use_minutes: u32,
    pub reversibility: Reversibility,
    /// Integer arguments that may be smaller than approved; all others must be equal.
    #[serde(default)]
    pub at_most: Vec<String>,
    /// Whether the reviewer must be a different person than the supervisor.
    #[serde(default = "yes")]
    pub four_eyes: bool,
    /// Authentication methods (RFC 8176), one of which the reviewer's token must name; empty for any.
    #[serde(default)]
    pub amr: Vec<String>,
    /// Authentication strengths, one of which the reviewer's token must name; empty for any.
    #[serde(default)]
    pub acr: Vec<String>,
    /// Whether the justification must name a policy clause.
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
    pub fn review(&self) -> Duration {
        Duration::from_secs(u64::from(self.review_minutes) * 60)
    }

    pub fn usable(&self) -> Duration {
        Duration::from_secs(u64::from(self.use_minutes) * 60)
    }
}

/// Maximum numbers of pending requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Caps {
    /// For one case.
    pub case: u32,
    /// For one agent.
    pub agent: u32,
    /// For one tenant and one template, whose requests its reviewers see as one queue.
    pub queue: u32,
}

/// Content of `approvals.yaml`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Templates {
    pub pending: Caps,
    /// Minutes after a denial in which the same call can't be requested again, 0 to 10,080.
    pub cool_down_minutes: u32,
    /// Templates of approvals, by name.
    #[serde(default)]
    pub templates: BTreeMap<String, Template>,
    /// Templates of consents, which the case's customer gives, by name.
    #[serde(default)]
    pub consents: BTreeMap<String, ConsentTemplate>,
}

impl Default for Templates {
    /// Returns templates under which nothing can be approved.
    fn default() -> Self {
        let pending = Caps { case: 0, agent: 0, queue: 0 };
        Self { pending, cool_down_minutes: 0, templates: BTreeMap::new(), consents: BTreeMap::new() }
    }
}

impl Templates {
    /// Returns the number of reviewers who must approve: the quorum at the time of the request, or that of
    /// the current template if it is higher. A consent needs the customer alone.
    pub fn quorum(&self, binding: &Binding) -> u32 {
        match binding.giver {
            Giver::Customer => 1,
            Giver::Reviewers => {
                binding.quorum.max(self.templates.get(&binding.template).map_or(0, |template| template.quorum))
            }
        }
    }

    /// Returns for how long an approval of this kind may be used, and the arguments that may be smaller than approved;
    /// `None` if the bundle no longer has its template.
    pub fn usable(&self, binding: &Binding) -> Option<(Duration, &[String])> {
        match binding.giver {
            Giver::Customer => Some((self.consents.get(&binding.template)?.usable(), &[])),
            Giver::Reviewers => {
                let template = self.templates.get(&binding.template)?;
                Some((template.usable(), &template.at_most))
            }
        }
    }

    /// Returns the values that are out of bounds: for each, the name to look for in the file, and the
    /// message.
    pub fn faults(&self) -> Vec<(String, String)> {
        let mut faults = vec![];
        let mut bound = |name: &str, what: &str, value: u32, lowest: u32, highest: u32| {
            if !(lowest..=highest).contains(&value) {
                faults.push((name.to_owned(), format!("`{what}` must be {lowest} to {highest}")));
            }
        };
        for (what, value) in [("case", self.pending.case), ("agent", self.pending.agent), ("queue", self.pending.queue)]
        {
            bound("pending", what, value, 1, 100_000);
        }
        bound("cool_down_minutes", "cool_down_minutes", self.cool_down_minutes, 0, 10_080);
        for (name, template) in &self.templates {
            bound(name, "quorum", template.quorum, 1, 9);
            bound(name, "review_minutes", template.review_minutes, 1, 10_080);
            bound(name, "use_minutes", template.use_minutes, 1, 1_440);
            bound(name, "title", to_u32(template.title.len()), 1, 200);
        }
        for (name, consent) in &self.consents {
            bound(name, "use_minutes", consent.use_minutes, 1, 60);
            bound(name, "title", to_u32(consent.title.len()), 1, 200);
            bound(name, "text", to_u32(consent.text.len()), 1, 64);
        }
        faults
    }

    pub fn cool_down(&self) -> Duration {
        Duration::from_secs(u64::from(self.cool_down_minutes) * 60)
    }
}
