//! Tool call after parsing. Every member of the request has a meaning; otherwise the request was refused.

use serde::Serialize;

use crate::json::{self, Object, Value};
use crate::model::chain::Credential;

/// Entity by type and id, as the caller names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntityReference {
    /// Name of the entity type.
    pub kind: String,
    pub id: String,
}

/// Resource that the call acts on.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    pub reference: EntityReference,
    /// Version that the caller read.
    pub version: String,
    /// Attributes of the resource; `None` if the caller sent none.
    pub attributes: Option<Object>,
}

/// Case that the call belongs to.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    pub id: String,
    /// Version of the data that decisions depend on.
    pub version: String,
    /// Tenant id; an empty id matches no tenant.
    pub tenant: String,
    /// Further attributes of the case.
    pub attributes: Object,
}

/// Model behind the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Model {
    pub provider: String,
    pub name: String,
    pub version: String,
}

/// Untrusted text of this turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Untrusted {
    /// Origin of the text.
    pub source: String,
    pub text: String,
}

/// Tokens that the call uses, and the id of the operation that uses them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    pub approval: Option<String>,
    pub consent: Option<String>,
    pub release: Option<String>,
    pub operation: String,
}

/// Ids for correlation, which do not influence decisions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Correlation {
    /// Caller's id of the request.
    pub request: String,
    pub conversation: String,
    /// Model's id of the tool call.
    pub tool_call: String,
}

/// Tool call to be decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    pub credential: Credential,
    /// Id of the Cedar action.
    pub action: String,
    pub resource: Resource,
    pub case: Case,
    pub arguments: Object,
    /// Further facts that the caller vouches for; `None` if the caller sent none.
    pub facts: Option<Object>,
    pub untrusted: Vec<Untrusted>,
    pub tokens: Tokens,
    pub model: Option<Model>,
    pub correlation: Correlation,
    /// Whether to evaluate the call hypothetically.
    pub dry_run: bool,
}

impl Call {
    /// Creates a call on a case itself, without arguments, tokens or texts. `case_type` is the Cedar type of cases.
    pub fn on_case(action: &str, case_type: &str, case: Case, credential: Credential) -> Self {
        let reference = EntityReference { kind: case_type.to_owned(), id: case.id.clone() };
        Self {
            credential,
            action: action.to_owned(),
            resource: Resource { reference, version: String::new(), attributes: None },
            case,
            arguments: Object::new(),
            facts: None,
            untrusted: vec![],
            tokens: Tokens::default(),
            model: None,
            correlation: Correlation::default(),
            dry_run: false,
        }
    }

    /// Returns everything that the decision and its record depend on, as one object to be digested. Because
    /// it contains texts and tokens, only a keyed digest of it may leave the process.
    pub fn digest_input(&self) -> DigestInput<'_> {
        let Self { case, resource, tokens, .. } = self;
        DigestInput {
            action: &self.action,
            approval_token: tokens.approval.as_deref().unwrap_or(""),
            arguments: &self.arguments,
            consent_token: tokens.consent.as_deref().unwrap_or(""),
            case: DigestedCase {
                attributes: &case.attributes,
                id: &case.id,
                tenant: &case.tenant,
                version: &case.version,
            },
            facts: self.facts.as_ref(),
            operation: &tokens.operation,
            release_token: tokens.release.as_deref().unwrap_or(""),
            resource: DigestedResource {
                attributes: resource.attributes.as_ref(),
                id: &resource.reference.id,
                kind: &resource.reference.kind,
                version: &resource.version,
            },
            untrusted: &self.untrusted,
        }
    }
}

/// Everything that a decision and its record depend on; see [`Call::digest_input`].
#[derive(Clone, Debug, Serialize)]
pub struct DigestInput<'a> {
    action: &'a str,
    approval_token: &'a str,
    arguments: &'a Object,
    case: DigestedCase<'a>,
    #[serde(skip_serializing_if = "str::is_empty")]
    consent_token: &'a str,
    facts: Option<&'a Object>,
    operation: &'a str,
    release_token: &'a str,
    resource: DigestedResource<'a>,
    untrusted: &'a [Untrusted],
}

#[derive(Clone, Debug, Serialize)]
struct DigestedCase<'a> {
    attributes: &'a Object,
    id: &'a str,
    tenant: &'a str,
    version: &'a str,
}

#[derive(Clone, Debug, Serialize)]
struct DigestedResource<'a> {
    attributes: Option<&'a Object>,
    id: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    version: &'a str,
}

/// Plain Cedar request, for conformance mode.
#[derive(Clone, Debug, PartialEq)]
pub struct PlainCall {
    pub correlation: Correlation,
    pub principal: EntityReference,
    /// Action of any action type.
    pub action: EntityReference,
    pub resource: EntityReference,
    /// Context in Cedar's JSON form.
    pub context: Vec<u8>,
    /// Entities in Cedar's JSON form; if empty, the bundle's own are used.
    pub entities: Vec<u8>,
}

impl PlainCall {
    /// Returns everything that the decision depends on, as one object to be digested.
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
