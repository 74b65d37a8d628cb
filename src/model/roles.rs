//! Which of a bundle's entity types play which part; from the manifest.

use std::collections::BTreeMap;

use crate::json::{Object, Value};
use crate::model::chain::Link;
use crate::model::right::RightOn;

/// Who may supply entities of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Supplier {
    /// The bundle's folder.
    Bundle,
    /// The PDP itself.
    Pdp,
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
    /// Action groups that change something: their calls must name the model, and are denied while kill switches can't be read. Each with
    /// the attributes of the case that a `forbid` must look at before such a call is allowed.
    pub writes: BTreeMap<String, Vec<String>>,
    /// Steps whose delegation tokens must be bound to a case.
    #[serde(default)]
    pub case_bound_steps: Vec<String>,
    /// Type of requests for approval, which the PDP supplies; empty: none.
    #[serde(default)]
    pub approval_request: String,
    /// Type of the server, which the PDP supplies; empty: none.
    #[serde(default)]
    pub server: String,
    /// Actions that principals do on their own behalf, outside of any case: no chain, one principal.
    #[serde(default)]
    pub direct: Vec<String>,
    /// The action that reads a case: only a chain that may do it writes what is remembered of the case. Empty: none does.
    #[serde(default)]
    pub case_read: String,
    /// What governs texts; without it, the server prepares no contexts and checks no drafts.
    #[serde(default)]
    pub content: Option<ContentRoles>,
    /// The checks that actions make when their outcome is reported as a success, by action.
    #[serde(default)]
    pub checks: BTreeMap<String, CheckMade>,
}

/// The parts that types and actions play where texts are governed.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContentRoles {
    /// Type of a record's fields, which the bundle supplies; an id is the field's path.
    pub field: String,
    /// The action that shows a field as it is.
    pub field_read: String,
    /// The action that shows a field masked.
    pub field_read_masked: String,
    /// The action that shows an article.
    pub article_read: String,
    /// The action that lets a draft go; takes `channel` and `recipient`.
    pub release: String,
    /// The action that sends what was let go, or approved; takes `channel`, `recipient` and `draft_digest`.
    pub send: String,
    /// The approval template by which a human lets a draft go.
    pub template: String,
    /// The arguments of writes that hold text, by action and argument, with who reads it.
    #[serde(default)]
    pub texts: BTreeMap<String, BTreeMap<String, Reader>>,
}

/// Who reads the text of an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reader {
    /// The customer: the argument is the digest of a released draft.
    Customer,
    /// Staff, or a program.
    Staff,
}

impl ContentRoles {
    /// The argument of an action that the customer will read.
    pub fn customer_text(&self, action: &str) -> Option<&str> {
        let (argument, _) = self.texts.get(action)?.iter().find(|(_, reader)| **reader == Reader::Customer)?;
        Some(argument)
    }
}

/// A check that an action's success makes.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckMade {
    /// Name in `context.checks`.
    pub makes: String,
    /// How long it holds; 1 to 1,440.
    pub minutes: u32,
    /// When it makes a stronger check, too.
    #[serde(default)]
    pub stronger: Option<Stronger>,
}

/// By what an action makes a stronger check beside its own: not every fact proves as much as another.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stronger {
    /// The argument that says by what it was checked.
    pub by: String,
    /// The values of the argument that make the stronger check.
    pub values: Vec<String>,
    /// Name in `context.checks`.
    pub makes: String,
}

impl CheckMade {
    /// The names of the checks that a call with these arguments makes, the strongest last.
    pub fn made<'a>(&'a self, arguments: &Object) -> Vec<&'a str> {
        let is_strong = |stronger: &&Stronger| {
            let value = arguments.get(&stronger.by).and_then(Value::as_str);
            value.is_some_and(|value| stronger.values.iter().any(|strong| strong == value))
        };
        std::iter::once(self.makes.as_str()).chain(self.stronger.iter().filter(is_strong).map(|stronger| stronger.makes.as_str())).collect()
    }

    /// The names of all checks that it can make.
    pub fn makes(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.makes).chain(self.stronger.iter().map(|stronger| &stronger.makes))
    }
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

    /// The type that a right is on.
    pub fn on(&self, on: RightOn) -> &str {
        match on {
            RightOn::Approval => &self.approval_request,
            RightOn::Server => &self.server,
            RightOn::Tenant => &self.tenant,
        }
    }

    /// Whether an action in these groups changes something.
    pub fn is_write(&self, groups: &[String]) -> bool {
        self.writes.keys().any(|group| groups.contains(group))
    }

    /// True for an action that a principal does on its own behalf.
    pub fn is_direct(&self, action: &str) -> bool {
        self.direct.iter().any(|direct| direct == action)
    }

    /// Who may supply entities of a type; `None` for types that the manifest does not list.
    pub fn supplier(&self, kind: &str) -> Option<Supplier> {
        self.supplied_by.iter().find(|(_, kinds)| kinds.iter().any(|listed| listed == kind)).map(|(supplier, _)| *supplier)
    }
}
