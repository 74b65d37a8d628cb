//! `rates.yaml`: limits on the number of calls and on sums within a time. Calls are counted by GCRA (a leaky
//! bucket stored as one timestamp, ITU-T I.371), so that one rule has a burst and a sustained rate. Sums add
//! up an argument, such as an amount of money.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use crate::model::call::Call;
use crate::model::chain::Chain;
use crate::policy::shape::{Action, Shape, Shapes};

/// Part of a window's key. A window always belongs to one tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Per {
    Action,
    Agent,
    Case,
    /// Customer of the case.
    Customer,
    /// Id of the resource. A window then covers only actions on one type of resource.
    Resource,
    Supervisor,
    Tenant,
    ToolService,
}

/// Limit on the number of calls.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CallRate {
    pub per: Vec<Per>,
    /// Actions or action groups that are counted.
    pub actions: Vec<String>,
    /// Calls per `minutes` in the long run; 1 to 1,000,000.
    pub sustained: u32,
    /// 1 to 1,440.
    pub minutes: u32,
    /// Calls at once; 1 to 1,000,000.
    pub burst: u32,
    /// Whether denied calls count, too. Without it, a call that is denied uses up nothing.
    #[serde(default)]
    pub denied: bool,
}

/// Limit on the sum of an integer argument over allowed calls.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SumRate {
    pub per: Vec<Per>,
    /// Actions or action groups that are added up.
    pub actions: Vec<String>,
    /// Further actions or action groups whose policies read the sum: after one action another may have to
    /// wait.
    #[serde(default)]
    pub seen_by: Vec<String>,
    /// Argument to add up, a required `Long` of each action. If empty, each allowed call counts as 1.
    #[serde(default)]
    pub argument: String,
    /// Arguments with a separate sum per value, e.g. the currency of an amount.
    #[serde(default)]
    pub apart: Vec<String>,
    pub most: Most,
    /// Length of the window; 1 to 44,640 (31 days).
    pub minutes: u32,
}

/// Maximum of a sum.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Most {
    Fixed(i64),
    /// An attribute of the resource: no more is refunded than was paid.
    Resource {
        /// A required `Long` attribute of each resource of the actions.
        resource: String,
    },
}

/// Limit on the number of distinct things.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DistinctRate {
    pub per: Vec<Per>,
    /// The ids to count; each distinct id counts once.
    pub of: Per,
    /// Actions or action groups that are counted.
    pub actions: Vec<String>,
    /// Maximum number of distinct ids; 1 to 512.
    pub most: u64,
    /// Length of the window; 1 to 1,440.
    pub minutes: u32,
}

impl DistinctRate {
    /// Length of the window, in microseconds.
    pub fn micros(&self) -> i64 {
        i64::from(self.minutes) * 60_000_000
    }
}

/// Contents of `rates.yaml`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Rates {
    /// Windows that count calls, by name.
    pub calls: BTreeMap<String, CallRate>,
    /// Windows that add up an argument, by name.
    pub sums: BTreeMap<String, SumRate>,
    /// Windows that count distinct ids, by name.
    pub distinct: BTreeMap<String, DistinctRate>,
}

impl CallRate {
    /// Time per call in microseconds, rounded up so that a window never allows more than its rule.
    pub fn every(&self) -> i64 {
        let period = i64::from(self.minutes) * 60_000_000;
        let sustained = i64::from(self.sustained.max(1));
        (period + sustained - 1) / sustained
    }

    /// Maximum time ahead of now until which the bucket may be filled, in microseconds.
    pub fn room(&self) -> i64 {
        self.every().saturating_mul(i64::from(self.burst))
    }
}

impl SumRate {
    /// Checks the settings against the actions that the sum covers.
    fn faults(&self, name: &str, shapes: &Shapes) -> Vec<String> {
        let mut faults = vec![];
        for action in shapes.actions.values().filter(|action| covers(&self.actions, action)) {
            let argument = |argument: &str| {
                shapes.follow(&action.context, &["args", argument]).map(|member| (&member.shape, member.required))
            };
            if !self.argument.is_empty() && argument(&self.argument) != Some((&Shape::Long, true)) {
                let id = action.uid.id().unescaped();
                faults
                    .push(format!("`{name}`: `{}` is not a required `Long` argument of action `{id}`", self.argument));
            }
            if let Most::Resource { resource } = &self.most {
                let is_sum = |kind: &String| {
                    let attribute = shapes.entities.get(kind).and_then(|kind| kind.attributes.get(resource));
                    attribute.is_some_and(|attribute| attribute.shape == Shape::Long && attribute.required)
                };
                if !action.resources.iter().map(ToString::to_string).all(|kind| is_sum(&kind)) {
                    let id = action.uid.id().unescaped();
                    faults.push(format!(
                        "`{name}`: `{resource}` is not a required `Long` attribute of all resources of action `{id}`"
                    ));
                }
            }
            if let Some(missing) = self.apart.iter().find(|name| argument(name).is_none()) {
                faults.push(format!(
                    "`{name}`: `{missing}` is not an argument of action `{}`",
                    action.uid.id().unescaped()
                ));
            }
        }
        faults
    }

    pub fn within(&self) -> Duration {
        Duration::from_secs(u64::from(self.minutes) * 60)
    }
}

impl Per {
    /// Returns the id that a call is counted under; `owner` is that of its case.
    pub fn of<'a>(self, chain: &'a Chain, call: &'a Call, owner: &'a str) -> &'a str {
        match self {
            Self::Action => &call.action,
            Self::Agent => &chain.agent,
            Self::Case => &call.case.id,
            Self::Customer => owner,
            Self::Resource => &call.resource.reference.id,
            Self::Supervisor => &chain.supervisor,
            Self::Tenant => &call.case.tenant,
            Self::ToolService => &chain.tool_service,
        }
    }
}

/// Returns whether a rule's list contains an action or one of its groups.
pub fn covers(listed: &[String], action: &Action) -> bool {
    listed.iter().any(|name| name == action.uid.id().unescaped() || action.groups.contains(name))
}

impl Rates {
    /// Returns the names of the windows that count separately by the owner of the case.
    pub fn per_customer(&self) -> impl Iterator<Item = &String> {
        let of = |per: &[Per]| per.contains(&Per::Customer);
        let calls = self.calls.iter().filter(move |(_, rate)| of(&rate.per)).map(|(name, _)| name);
        let sums = self.sums.iter().filter(move |(_, rate)| of(&rate.per)).map(|(name, _)| name);
        let distinct = self.distinct.iter().filter(move |(_, rate)| of(&rate.per) || rate.of == Per::Customer);
        calls.chain(sums).chain(distinct.map(|(name, _)| name))
    }

    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.calls.keys().chain(self.sums.keys()).chain(self.distinct.keys())
    }

    /// Returns each window with the actions that it counts.
    pub fn actions(&self) -> impl Iterator<Item = (&String, &Vec<String>)> {
        let calls = self.calls.iter().map(|(name, rate)| (name, &rate.actions));
        let sums = self.sums.iter().map(|(name, rate)| (name, &rate.actions));
        calls.chain(sums).chain(self.distinct.iter().map(|(name, rate)| (name, &rate.actions)))
    }

    /// Checks the settings. Returns the name to locate each fault by, and a message. `windows` are the
    /// members of the schema's type of windows.
    pub fn faults(&self, shapes: &Shapes, windows: &[String]) -> Vec<(String, String)> {
        let mut faults = vec![];
        let mut fault = |name: &str, problem: String| faults.push((name.to_owned(), problem));
        let within = |value: u32, most: u32| (1..=most).contains(&value);
        for (name, rate) in &self.calls {
            if !(within(rate.sustained, 1_000_000) && within(rate.burst, 1_000_000) && within(rate.minutes, 1440)) {
                fault(name, format!("`{name}`: `sustained` and `burst` must be 1 to 1000000, `minutes` 1 to 1440"));
            }
        }
        for (name, rate) in &self.sums {
            if matches!(rate.most, Most::Fixed(..1)) || !within(rate.minutes, 44_640) {
                fault(name, format!("`{name}`: `most` must be 1 or more, `minutes` 1 to 44640"));
            }
            rate.faults(name, shapes).into_iter().for_each(|problem| fault(name, problem));
        }
        for (name, rate) in &self.distinct {
            if !within(rate.minutes, 1440) || !(1..=512).contains(&rate.most) {
                fault(name, format!("`{name}`: `most` must be 1 to 512, `minutes` 1 to 1440"));
            }
        }
        let seen_by = self.sums.iter().map(|(name, rate)| (name, &rate.seen_by));
        for (name, actions) in self.actions().chain(seen_by) {
            let known =
                |listed: &String| shapes.actions.values().any(|action| covers(std::slice::from_ref(listed), action));
            for unknown in actions.iter().filter(|listed| !known(listed)) {
                fault(name, format!("`{name}`: `{unknown}` is neither an action nor a group of actions"));
            }
            if !windows.contains(name) {
                fault(
                    name,
                    format!("`{name}` is not a member of the schema's type of windows, so no policy could read it"),
                );
            }
        }
        let is_other = |name: &&String| self.sums.contains_key(*name) || self.distinct.contains_key(*name);
        let twice =
            self.calls.keys().filter(is_other).chain(self.sums.keys().filter(|name| self.distinct.contains_key(*name)));
        faults.extend(twice.map(|name| (name.clone(), format!("`{name}` is used as the name of two windows"))));
        let nothing = windows.iter().filter(|name| !self.names().any(|known| known == *name));
        faults.extend(
            nothing.map(|name| (String::new(), format!("`{name}` is a window of the schema but is not defined here"))),
        );
        faults
    }
}
