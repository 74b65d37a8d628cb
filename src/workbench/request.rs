//! A request as people write it: a case of a decision table, or a file for `countersign authorize`.

use serde::Deserialize;

use crate::json::Object;
use crate::model::call::{Call, Case, Correlation, EntityReference, Model, Resource, Tokens, Untrusted};
use crate::model::chain::{Asserted, Credential};

/// An entity of a request, written out.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Written {
    /// Type; of a case it may be left out.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// Id.
    pub id: String,
    /// Version.
    #[serde(default)]
    pub version: String,
    /// Tenant, of a case.
    #[serde(default)]
    pub tenant: String,
    /// Attributes; left out when the bundle supplies them.
    pub attributes: Option<Object>,
}

/// A request, written out.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenRequest {
    /// Agent id; empty: the bundle's development default.
    #[serde(default)]
    pub agent: String,
    /// Supervisor id; empty: the bundle's development default.
    #[serde(default)]
    pub supervisor: String,
    /// Workflow step; empty: the bundle's development default.
    #[serde(default)]
    pub step: String,
    /// Scopes to narrow the agent's own to.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// Cedar action.
    pub action: String,
    /// What it acts on.
    pub resource: Written,
    /// The case.
    pub case: Written,
    /// The tool call's arguments.
    #[serde(default)]
    pub arguments: Object,
    /// Further facts.
    pub facts: Option<Object>,
    /// Untrusted texts to be screened.
    #[serde(default)]
    pub untrusted: Vec<WrittenText>,
    /// The model behind the agent.
    pub model: Option<WrittenModel>,
    /// The caller's id of the request.
    #[serde(default)]
    pub request_id: String,
    /// Evaluate hypothetically.
    #[serde(default)]
    pub dry_run: bool,
}

/// A model, written out.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenModel {
    /// Provider.
    #[serde(default)]
    pub provider: String,
    /// Name.
    pub name: String,
    /// Version.
    #[serde(default)]
    pub version: String,
}

/// An untrusted text, written out.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenText {
    /// Where it came from.
    pub source: String,
    /// The text.
    pub text: String,
}

impl WrittenRequest {
    /// The call that it writes out.
    pub fn call(self) -> Call {
        let asserted = Asserted { agent: self.agent, supervisor: self.supervisor, step: self.step, scopes: self.scopes };
        let credential = if asserted == Asserted::default() { Credential::None } else { Credential::Asserted(asserted) };
        Call {
            credential,
            action: self.action,
            resource: resource(self.resource),
            case: case(self.case),
            arguments: self.arguments,
            facts: self.facts,
            untrusted: texts(self.untrusted),
            tokens: Tokens::default(),
            model: self.model.map(|model| Model { provider: model.provider, name: model.name, version: model.version }),
            correlation: Correlation { request: self.request_id, ..Correlation::default() },
            dry_run: self.dry_run,
        }
    }
}

/// Texts that were written out.
pub fn texts(written: Vec<WrittenText>) -> Vec<Untrusted> {
    written.into_iter().map(|written| Untrusted { source: written.source, text: written.text }).collect()
}

/// A resource that was written out.
pub fn resource(written: Written) -> Resource {
    let reference = EntityReference { kind: written.kind, id: written.id };
    Resource { reference, version: written.version, attributes: written.attributes }
}

/// A case that was written out.
pub fn case(written: Written) -> Case {
    Case { id: written.id, version: written.version, tenant: written.tenant, attributes: written.attributes.unwrap_or_default() }
}
