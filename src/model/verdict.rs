//! What Cedar said of one call.

use crate::model::call::EntityReference;
use crate::model::chain::Link;

/// A policy that could not be evaluated.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyFault {
    /// Policy id.
    pub policy: String,
    /// Class of the error; never a value.
    pub class: &'static str,
}

/// Cedar's verdict on one link of the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkVerdict {
    /// Which link.
    pub link: Link,
    /// Its principal.
    pub principal: EntityReference,
    /// Cedar's own decision.
    pub permitted: bool,
    /// Ids of the determining policies, sorted; none on a default denial.
    pub determining: Vec<String>,
    /// Policies that could not be evaluated, sorted.
    pub errors: Vec<PolicyFault>,
}

/// Cedar's verdict on every link of the chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// One for each link; none denies.
    pub links: Vec<LinkVerdict>,
}

impl Verdict {
    /// True when every link is permitted. No link permits nothing.
    pub fn permits(&self) -> bool {
        !self.links.is_empty() && self.links.iter().all(|link| link.permitted)
    }

    /// True when a policy of any link could not be evaluated.
    pub fn has_errors(&self) -> bool {
        self.links.iter().any(|link| !link.errors.is_empty())
    }

    /// The policies that determined the verdict, sorted, each once: when it permits, those of every link; else those of the links
    /// that are denied.
    pub fn determining(&self) -> Vec<&str> {
        let permits = self.permits();
        let links = self.links.iter().filter(|link| link.permitted == permits);
        let mut ids: Vec<&str> = links.flat_map(|link| &link.determining).map(String::as_str).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}
