//! Roles of a bundle's entity types and actions, from the manifest.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use crate::json::{self, Object, Value};
use crate::model::call::Case;
use crate::model::chain::Link;
use crate::model::derivation::{Derivation, Named};
use crate::model::right::RightOn;

/// Supplier of the entities of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Supplier {
    /// The bundle's folder.
    Bundle,
    /// The PDP itself.
    Pdp,
    /// The authenticated tool service, with the request.
    ToolService,
}

/// Roles of entity types and actions where gates are on.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
    /// Types without a tenant, which all tenants share; read-only.
    pub shared: Vec<String>,
    /// Entity types by supplier; every standard type must be listed exactly once.
    pub supplied_by: BTreeMap<Supplier, Vec<String>>,
    /// Attribute that names whom an entity belongs to, by type: of the case, and of each type that tool services supply
    /// with a call. A resource must have the same owner as the call's case.
    #[serde(default)]
    pub owners: BTreeMap<String, String>,
    /// Types of the case or of resources that belong to nobody.
    #[serde(default)]
    pub ownerless: Vec<String>,
    /// Action groups that change something. Their calls must name the model, and are denied while kill
    /// switches can't be read. Each group has the case attributes that a `forbid` must check before such a
    /// call is allowed.
    pub writes: BTreeMap<String, Vec<String>>,
    /// Steps whose delegation tokens must be bound to a case.
    #[serde(default)]
    pub case_bound_steps: Vec<String>,
    /// Type of requests for approval, which the PDP supplies; empty if the bundle lacks the type.
    #[serde(default)]
    pub approval_request: String,
    /// Type of the server, which the PDP supplies; empty if the bundle lacks the type.
    #[serde(default)]
    pub server: String,
    /// Actions that principals do on their own behalf: outside any case, without a chain, with one principal.
    #[serde(default)]
    pub direct: Vec<String>,
    /// The action that reads a case. Only a chain that may do it changes the case's history; if empty, no
    /// chain does.
    #[serde(default)]
    pub case_read: String,
    /// Roles for governed texts; without them the server prepares no contexts and evaluates no drafts.
    #[serde(default)]
    pub content: Option<ContentRoles>,
    /// Checks that actions make when their outcome is reported as a success, by action.
    #[serde(default)]
    pub checks: BTreeMap<String, CheckMade>,
    /// Actions, or groups of them, by which an agent gets data: each `permit` for agents names the fields that
    /// may be returned.
    #[serde(default)]
    pub reads: Vec<String>,
    /// Actions, or groups of them, that neither write nor return data.
    #[serde(default)]
    pub returns_nothing: Vec<String>,
    /// Values that the PDP computes from the arguments: members of `context.derived`.
    #[serde(default)]
    pub derive: BTreeMap<String, Derivation>,
    /// Arguments that name an entity of the call, by action: a call in which they differ is invalid.
    #[serde(default)]
    pub names: BTreeMap<String, BTreeMap<String, Named>>,
    /// Arguments that lines of the audit log have as plain text, by action: numbers, truth values and values of enumerated types.
    /// Lines have all others only as a digest.
    #[serde(default)]
    pub recorded: BTreeMap<String, Vec<String>>,
    /// Maximum number of attribute steps from an entity in a policy, 1 to [`LEVEL_MAX`]: with 1, `resource.tenant` is allowed
    /// and `resource.tenant.region` is not.
    #[serde(default = "one")]
    pub level: u32,
    /// Number of humans who must ask before a kill switch is lifted.
    #[serde(default)]
    pub lift_quorum: LiftQuorum,
    /// Types of obligations and advice besides [`OBLIGATIONS`], with the form of their values.
    #[serde(default)]
    pub obligations: BTreeMap<String, ValueForm>,
}

/// Member of the attributes of an entity under which tool services send its tags, if its type has some.
pub const TAGS: &str = "tags";

/// Greatest [`Roles::level`].
pub const LEVEL_MAX: u32 = 4;

fn one() -> u32 {
    1
}

/// Number of humans who must ask before a kill switch is lifted; 1 by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(transparent)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LiftQuorum(pub NonZeroU32);

impl Default for LiftQuorum {
    fn default() -> Self {
        Self(NonZeroU32::MIN)
    }
}

/// Form of an obligation's value. A name has letters, digits and `_`, `-` or `.`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum ValueForm {
    /// One name.
    Name,
    /// Names, separated by commas; each occurs once.
    Names,
}

/// Types of obligations that every policy enforcement point knows.
pub const OBLIGATIONS: [(&str, ValueForm); 3] =
    [("notify", ValueForm::Name), ("return_only", ValueForm::Names), ("route", ValueForm::Name)];

impl ValueForm {
    /// Describes the form for an error message.
    pub fn words(self) -> &'static str {
        match self {
            Self::Name => "one name, of letters, digits and `_`, `-` or `.`",
            Self::Names => "names separated by commas, of letters, digits and `_`, `-` or `.`, each once",
        }
    }

    /// Returns whether a value has this form.
    pub fn fits(self, value: &str) -> bool {
        let is_name = |name: &str| {
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
        };
        match self {
            Self::Name => is_name(value),
            Self::Names => {
                let names: Vec<&str> = value.split(',').map(str::trim).collect();
                names.iter().all(|name| is_name(name)) && !json::has_duplicates(names)
            }
        }
    }
}

/// Roles of types and actions for governed texts.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ContentRoles {
    /// Type of a record's fields, which the bundle supplies; an id is the field's path.
    pub field: String,
    /// The action that shows a field as it is.
    pub field_read: String,
    /// The action that shows a field masked.
    pub field_read_masked: String,
    /// The action that shows an article.
    pub article_read: String,
    /// The action that releases a draft; takes `channel` and `recipient`.
    pub release: String,
    /// The action that sends a released or approved draft; takes `channel`, `recipient` and `draft_digest`.
    pub send: String,
    /// The approval template with which a human releases a draft.
    pub template: String,
    /// The reader of each argument of a write that holds text, by action and argument.
    #[serde(default)]
    pub texts: BTreeMap<String, BTreeMap<String, Reader>>,
}

/// Reader of the text in an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Reader {
    /// The customer: the argument is the digest of a released draft.
    Customer,
    /// Staff, or a program.
    Staff,
}

impl ContentRoles {
    /// Returns the argument of an action that the customer will read.
    pub fn customer_text(&self, action: &str) -> Option<&str> {
        let (argument, _) = self.texts.get(action)?.iter().find(|(_, reader)| **reader == Reader::Customer)?;
        Some(argument)
    }
}

/// Check that an action's success makes.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CheckMade {
    /// Name in `context.checks`.
    pub makes: String,
    /// Validity of the check in minutes, from 1 to 1,440.
    pub minutes: u32,
    /// Condition under which the action also makes a stronger check.
    #[serde(default)]
    pub stronger: Option<Stronger>,
}

/// Stronger check that an action makes in addition, because some facts prove more than others.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Stronger {
    /// The argument that names the fact that was checked.
    pub by: String,
    /// The values of the argument that make the stronger check.
    pub values: Vec<String>,
    /// Name in `context.checks`.
    pub makes: String,
}

impl CheckMade {
    /// Returns the names of the checks that a call with these arguments makes, the strongest last.
    pub fn made<'a>(&'a self, arguments: &Object) -> Vec<&'a str> {
        let is_strong = |stronger: &&Stronger| {
            let value = arguments.get(&stronger.by).and_then(Value::as_str);
            value.is_some_and(|value| stronger.values.iter().any(|strong| strong == value))
        };
        std::iter::once(self.makes.as_str())
            .chain(self.stronger.iter().filter(is_strong).map(|stronger| stronger.makes.as_str()))
            .collect()
    }

    /// Returns the names of all checks that the action can make.
    pub fn makes(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.makes).chain(self.stronger.iter().map(|stronger| &stronger.makes))
    }
}

impl Roles {
    /// Returns the entity type of a link's principal.
    pub fn of(&self, link: Link) -> &str {
        match link {
            Link::Agent => &self.agent,
            Link::Plain => "",
            Link::Supervisor => &self.supervisor,
            Link::ToolService => &self.tool_service,
        }
    }

    /// Returns the owner in the attributes of an entity of this type; empty if it has none.
    pub fn owner<'o>(&self, kind: &str, attributes: &'o Object) -> &'o str {
        let owner = self.owners.get(kind).and_then(|attribute| attributes.get(attribute));
        owner.and_then(Value::as_str).unwrap_or("")
    }

    /// Returns the owner of a call's case; empty if the case has none.
    pub fn case_owner<'o>(&self, case: &'o Case) -> &'o str {
        self.owner(&self.case, &case.attributes)
    }

    /// Returns the entity type that a right applies to.
    pub fn on(&self, on: RightOn) -> &str {
        match on {
            RightOn::Approval => &self.approval_request,
            RightOn::Server => &self.server,
            RightOn::Tenant => &self.tenant,
        }
    }

    /// Returns whether an action in these groups changes something.
    pub fn is_write(&self, groups: &[String]) -> bool {
        self.writes.keys().any(|group| groups.contains(group))
    }

    /// Returns whether an agent gets data by the action.
    pub fn is_read(&self, action: &str, groups: &[String]) -> bool {
        is_listed(&self.reads, action, groups)
    }

    /// Returns whether the manifest says that the action neither writes nor returns data.
    pub fn is_without_data(&self, action: &str, groups: &[String]) -> bool {
        is_listed(&self.returns_nothing, action, groups)
    }

    /// Returns the types of obligations and advice with the form of their values.
    pub fn obligation_types(&self) -> impl Iterator<Item = (&str, ValueForm)> {
        OBLIGATIONS.into_iter().chain(self.obligations.iter().map(|(kind, form)| (kind.as_str(), *form)))
    }

    /// Returns true for an action that a principal does on its own behalf.
    pub fn is_direct(&self, action: &str) -> bool {
        self.direct.iter().any(|direct| direct == action)
    }

    /// Returns the supplier of entities of a type; `None` for types that the manifest does not list.
    pub fn supplier(&self, kind: &str) -> Option<Supplier> {
        self.supplied_by
            .iter()
            .find(|(_, kinds)| kinds.iter().any(|listed| listed == kind))
            .map(|(supplier, _)| *supplier)
    }
}

fn is_listed(listed: &[String], action: &str, groups: &[String]) -> bool {
    listed.iter().any(|name| name == action || groups.contains(name))
}
