//! Requests as people write them: in a case of a decision table, or in a file for `countersign authorize`.

use serde::Deserialize;

use crate::json::Object;
use crate::model::call::{Call, Case, Correlation, EntityReference, Model, Resource, Tokens, Untrusted};
use crate::model::chain::{Asserted, Credential};

/// An entity of a written request.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Written {
    /// Entity type; may be omitted for a case.
    #[serde(rename = "type", default)]
    pub kind: String,
    pub id: String,
    #[serde(default)]
    pub version: String,
    /// Tenant; only for a case.
    #[serde(default)]
    pub tenant: String,
    /// Attributes; omitted if the bundle supplies them.
    pub attributes: Option<Object>,
}

/// A request in written form.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenRequest {
    /// Agent id; if empty, the bundle's development default.
    #[serde(default)]
    pub agent: String,
    /// Supervisor id; if empty, the bundle's development default.
    #[serde(default)]
    pub supervisor: String,
    /// Workflow step; if empty, the bundle's development default.
    #[serde(default)]
    pub step: String,
    /// Scopes that the agent's own scopes are restricted to.
    #[serde(default)]
    pub scopes: Vec<String>,
    pub action: String,
    pub resource: Written,
    pub case: Written,
    #[serde(default)]
    pub arguments: Object,
    pub facts: Option<Object>,
    /// Untrusted texts to screen.
    #[serde(default)]
    pub untrusted: Vec<WrittenText>,
    /// The model behind the agent.
    pub model: Option<WrittenModel>,
    /// Id that the caller gave the request.
    #[serde(default)]
    pub request_id: String,
    /// Whether to evaluate only hypothetically.
    #[serde(default)]
    pub dry_run: bool,
}

/// A model in written form.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenModel {
    #[serde(default)]
    pub provider: String,
    pub name: String,
    #[serde(default)]
    pub version: String,
}

/// An untrusted text in written form.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct WrittenText {
    pub source: String,
    pub text: String,
}

impl WrittenRequest {
    /// Converts the written request into a call.
    pub fn call(self) -> Call {
        let asserted =
            Asserted { agent: self.agent, supervisor: self.supervisor, step: self.step, scopes: self.scopes };
        let credential =
            if asserted == Asserted::default() { Credential::None } else { Credential::Asserted(asserted) };
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

/// Converts written texts.
pub fn texts(written: Vec<WrittenText>) -> Vec<Untrusted> {
    written.into_iter().map(|written| Untrusted { source: written.source, text: written.text }).collect()
}

/// Converts a written resource.
pub fn resource(written: Written) -> Resource {
    let reference = EntityReference { kind: written.kind, id: written.id };
    Resource { reference, version: written.version, attributes: written.attributes }
}

/// Converts a written case.
pub fn case(written: Written) -> Case {
    Case {
        id: written.id,
        version: written.version,
        tenant: written.tenant,
        attributes: written.attributes.unwrap_or_default(),
    }
}
