//! Cedar's verdict on one call.

use crate::model::call::EntityReference;
use crate::model::chain::Link;

/// Policy that could not be evaluated.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyFault {
    pub policy: String,
    /// Class of the error, without any value.
    pub class: &'static str,
}

/// Cedar's verdict on one link of the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkVerdict {
    pub link: Link,
    pub principal: EntityReference,
    /// Cedar's decision for this link.
    pub permitted: bool,
    /// Ids of the determining policies, sorted; empty on a default denial.
    pub determining: Vec<String>,
    /// Policies that could not be evaluated, sorted.
    pub errors: Vec<PolicyFault>,
}

/// Cedar's verdict on every link of the chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// One verdict for each link; an empty list denies.
    pub links: Vec<LinkVerdict>,
}

impl Verdict {
    /// Returns true if there is a link and Cedar permits every link.
    pub fn permits(&self) -> bool {
        !self.links.is_empty() && self.links.iter().all(|link| link.permitted)
    }

    /// Returns true if a policy of any link could not be evaluated.
    pub fn has_errors(&self) -> bool {
        self.links.iter().any(|link| !link.errors.is_empty())
    }

    /// Says for each denied link what denied it.
    pub fn denials(&self) -> Vec<String> {
        let denied = self.links.iter().filter(|link| !link.permitted);
        denied
            .map(|link| match link.determining.is_empty() {
                true => format!("no policy permits it to the {}", link.link.name()),
                false => format!("{} forbids it to the {}", link.determining.join(", "), link.link.name()),
            })
            .collect()
    }

    /// Returns the ids of the policies that determined the verdict, sorted and without duplicates: those of
    /// every link if it permits, otherwise those of the denied links.
    pub fn determining(&self) -> Vec<&str> {
        let permits = self.permits();
        let links = self.links.iter().filter(|link| link.permitted == permits);
        let mut ids: Vec<&str> = links.flat_map(|link| &link.determining).map(String::as_str).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}
