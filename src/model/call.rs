//! One tool call, read: every member means something or the request was refused.

use crate::json::{self, Object, Value};
use crate::model::chain::Credential;

/// An entity by type and id, as the caller names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntityReference {
    /// Type name.
    pub kind: String,
    /// Id.
    pub id: String,
}

/// What the call acts on.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// Its identity.
    pub reference: EntityReference,
    /// The version that the caller read.
    pub version: String,
    /// Its attributes; `None` when the caller sent none.
    pub attributes: Option<Object>,
}

/// The case that the call belongs to.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// Id.
    pub id: String,
    /// Version of what decisions depend on.
    pub version: String,
    /// Tenant id; may be empty, which is no tenant's.
    pub tenant: String,
    /// Its further attributes.
    pub attributes: Object,
}

/// The model behind the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Model {
    /// Provider.
    pub provider: String,
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
}

/// Untrusted text of this turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Untrusted {
    /// Where it came from.
    pub source: String,
    /// The text.
    pub text: String,
}

/// Tokens that the call uses, and the operation that uses them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Approval token.
    pub approval: Option<String>,
    /// Release token.
    pub release: Option<String>,
    /// Operation id.
    pub operation: String,
}

/// Ids for correlation; they decide nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Correlation {
    /// The caller's id of the request.
    pub request: String,
    /// Conversation id.
    pub conversation: String,
    /// The model's tool call id.
    pub tool_call: String,
}

/// One tool call to be decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// On whose behalf.
    pub credential: Credential,
    /// Cedar action id.
    pub action: String,
    /// What it acts on.
    pub resource: Resource,
    /// The case that it belongs to.
    pub case: Case,
    /// The tool call's arguments.
    pub arguments: Object,
    /// Further facts that the caller vouches for; `None` when the caller sent none.
    pub facts: Option<Object>,
    /// Untrusted text of this turn.
    pub untrusted: Vec<Untrusted>,
    /// Tokens to use.
    pub tokens: Tokens,
    /// The model behind the agent.
    pub model: Option<Model>,
    /// Ids for correlation.
    pub correlation: Correlation,
    /// Evaluate hypothetically.
    pub dry_run: bool,
}

impl Call {
    /// The case's customer; empty if it names none.
    pub fn customer(&self) -> &str {
        self.case.attributes.get("customer").and_then(Value::as_str).unwrap_or_default()
    }

    /// All that the decision and its record depend on, as one object to be digested. Texts and tokens are in it, so only a
    /// keyed digest of it may leave the process.
    pub fn digest_input(&self) -> Value {
        let text = |text: &str| Value::from(text);
        let untrusted = self.untrusted.iter().map(|item| json::object([("source", text(&item.source)), ("text", text(&item.text))]));
        json::object([
            ("action", text(&self.action)),
            ("approval_token", text(self.tokens.approval.as_deref().unwrap_or_default())),
            ("arguments", Value::Object(self.arguments.clone())),
            (
                "case",
                json::object([
                    ("attributes", Value::Object(self.case.attributes.clone())),
                    ("id", text(&self.case.id)),
                    ("tenant", text(&self.case.tenant)),
                    ("version", text(&self.case.version)),
                ]),
            ),
            ("facts", self.facts.clone().map_or(Value::Null, Value::Object)),
            ("operation", text(&self.tokens.operation)),
            ("release_token", text(self.tokens.release.as_deref().unwrap_or_default())),
            (
                "resource",
                json::object([
                    ("attributes", self.resource.attributes.clone().map_or(Value::Null, Value::Object)),
                    ("id", text(&self.resource.reference.id)),
                    ("type", text(&self.resource.reference.kind)),
                    ("version", text(&self.resource.version)),
                ]),
            ),
            ("untrusted", Value::Array(untrusted.collect())),
        ])
    }
}

/// A plain Cedar request, for conformance mode.
#[derive(Clone, Debug, PartialEq)]
pub struct PlainCall {
    /// Ids for correlation.
    pub correlation: Correlation,
    /// The principal.
    pub principal: EntityReference,
    /// The action, of any action type.
    pub action: EntityReference,
    /// The resource.
    pub resource: EntityReference,
    /// Cedar's JSON form of the context.
    pub context: Vec<u8>,
    /// Cedar's JSON form of the entities; empty: the bundle's own.
    pub entities: Vec<u8>,
}

impl PlainCall {
    /// All that the decision depends on, as one object to be digested.
    pub fn digest_input(&self) -> Value {
        let uid = |reference: &EntityReference| {
            json::object([("id", Value::from(reference.id.as_str())), ("type", Value::from(reference.kind.as_str()))])
        };
        let text = |bytes: &[u8]| Value::String(String::from_utf8_lossy(bytes).into_owned());
        json::object([
            ("action", uid(&self.action)),
            ("context", text(&self.context)),
            ("entities", text(&self.entities)),
            ("principal", uid(&self.principal)),
            ("resource", uid(&self.resource)),
        ])
    }
}
