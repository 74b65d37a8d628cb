//! Which of a bundle's entity types play which part; from the manifest.

use std::collections::BTreeMap;

use crate::model::chain::Link;

/// Who may supply entities of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Supplier {
    /// The bundle's folder.
    Bundle,
    /// The authenticated tool service, with the request.
    ToolService,
}

/// The parts that entity types play where gates are on.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Roles {
    /// Type of agents; has `tenant` and `scopes`.
    pub agent: String,
    /// Type of supervising humans; has `tenant`.
    pub supervisor: String,
    /// Type of tool services; has `tenants`.
    pub tool_service: String,
    /// Type of tenants.
    pub tenant: String,
    /// Type of cases; has `tenant`.
    pub case: String,
    /// Enumerated type of workflow steps; each step `s` has an action group `in_s`.
    pub step: String,
    /// Types without a tenant, shared by all; read-only.
    pub shared: Vec<String>,
    /// Who supplies entities, by type; every standard type stands here once.
    pub supplied_by: BTreeMap<Supplier, Vec<String>>,
    /// Action groups whose calls must name the model.
    pub model_required: Vec<String>,
}

impl Roles {
    /// The type of a link's principal.
    pub fn of(&self, link: Link) -> &str {
        match link {
            Link::Agent => &self.agent,
            Link::Plain => "",
            Link::Supervisor => &self.supervisor,
            Link::ToolService => &self.tool_service,
        }
    }

    /// Who may supply entities of a type; `None` for types that the manifest does not list.
    pub fn supplier(&self, kind: &str) -> Option<Supplier> {
        self.supplied_by.iter().find(|(_, kinds)| kinds.iter().any(|listed| listed == kind)).map(|(supplier, _)| *supplier)
    }
}
