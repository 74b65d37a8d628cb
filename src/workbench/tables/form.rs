//! The YAML form of a decision table.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::json::{Object, Value};
use crate::model::content::{Channel, Disposition};
use crate::workbench::request::{Written, WrittenText};

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct File {
    pub(super) now: String,
    #[serde(default)]
    pub(super) fixtures: Fixtures,
    /// Contexts that apply to every case of the file, before its own.
    #[serde(default)]
    pub(super) context: Vec<String>,
    /// Members of each case that does not give them itself; `arguments`, `attributes` and `facts` are merged.
    #[serde(default)]
    pub(super) defaults: Option<Case>,
    #[serde(default)]
    pub(super) cases: Vec<Case>,
}

/// ResolvedCall values, shared by all files of the folder.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Fixtures {
    /// Entities in addition to the bundle's own.
    pub(super) principals: BTreeMap<String, Principal>,
    /// Resources and cases.
    pub(super) resources: BTreeMap<String, Written>,
    /// Members of `context` that the PDP would supply.
    pub(super) contexts: BTreeMap<String, Object>,
    /// Defaults for the cases of an action.
    pub(super) calls: BTreeMap<String, Defaults>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Principal {
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) attributes: Object,
    #[serde(default)]
    pub(super) parents: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Defaults {
    pub(super) resource: Option<String>,
    pub(super) arguments: Option<Object>,
    pub(super) facts: Option<Object>,
}

/// One name or several.
#[derive(Clone, Debug, Default)]
pub(super) struct Names(pub(super) Vec<String>);

#[cfg(test)]
impl schemars::JsonSchema for Names {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Names".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]})
    }
}

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(name) => Ok(Self(vec![name])),
            Value::Array(items) => {
                let names = items.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
                names.map(Self).ok_or_else(|| serde::de::Error::custom("expected a name or a list of names"))
            }
            _ => Err(serde::de::Error::custom("expected a name or a list of names")),
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Case {
    #[serde(default)]
    pub(super) name: String,
    /// Name of an earlier case of the file whose members this case has, unless it gives them itself.
    pub(super) same: Option<String>,
    /// Values for a member such as `arguments.amount_minor`: one case is made for each.
    #[serde(default)]
    pub(super) each: BTreeMap<String, Vec<Value>>,
    pub(super) now: Option<String>,
    pub(super) caller: Option<Names>,
    pub(super) agent: Option<Names>,
    pub(super) supervisor: Option<Names>,
    pub(super) step: Option<Names>,
    /// Defaults to the `case_read` action if a context is prepared, otherwise to the release action.
    #[serde(default)]
    pub(super) action: Names,
    #[serde(default)]
    pub(super) scopes: Vec<String>,
    pub(super) resource: Option<Names>,
    /// Fixtures of the case; empty for direct actions.
    #[serde(default)]
    pub(super) case: Names,
    /// Human who performs a direct action.
    pub(super) reviewer: Option<Names>,
    /// Whether that human is the supervisor of the call.
    #[serde(default)]
    pub(super) own: bool,
    pub(super) arguments: Option<Object>,
    pub(super) facts: Option<Object>,
    #[serde(default)]
    pub(super) without_model: bool,
    /// Whether to skip the tenant and case gates in code, to test that the policies suffice without them.
    #[serde(default)]
    pub(super) policy_alone: bool,
    #[serde(default)]
    pub(super) context: Vec<String>,
    /// Untrusted texts of the call. Findings, screening and risk follow from them as on a server.
    #[serde(default)]
    pub(super) untrusted: Vec<WrittenText>,
    /// Fields of the case. A context is prepared from them, from `articles` and from `untrusted`.
    pub(super) record: Option<Object>,
    /// Articles for the prepared context.
    #[serde(default)]
    pub(super) articles: Vec<WrittenArticle>,
    /// Draft to evaluate against `sources`.
    pub(super) draft: Option<String>,
    #[serde(default)]
    pub(super) sources: Vec<String>,
    /// The model's confidence in the draft, in percent; 90 if absent.
    pub(super) confidence: Option<u32>,
    /// BCP 47 tag of the draft's language.
    #[serde(default)]
    pub(super) locale: String,
    /// Whether the context that the draft was written from is unknown.
    #[serde(default)]
    pub(super) unprepared: bool,
    /// Values that were redacted earlier.
    #[serde(default)]
    pub(super) redacted: Vec<String>,
    /// Attributes of the case that override those of its fixture.
    #[serde(default)]
    pub(super) attributes: Object,
    /// Whether the case names something that does not exist, on purpose.
    #[serde(default)]
    pub(super) unknown: bool,
    #[serde(default)]
    pub(super) expect: Expect,
}

impl Case {
    /// Returns the name as the file has it, without what `each` adds.
    pub(super) fn written_name(&self) -> &str {
        self.name.split(" (").next().unwrap_or(&self.name)
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Expect {
    pub(super) decision: Option<Decision>,
    pub(super) reason: Option<String>,
    pub(super) requires: Option<Vec<String>>,
    pub(super) policies: Option<Vec<String>>,
    pub(super) obligations: Option<Vec<String>>,
    pub(super) advice: Option<Vec<String>>,
    /// Text for the agent and the customer.
    pub(super) user: Option<String>,
    /// Texts that the customer is asked to agree to, by language.
    pub(super) consent: Option<BTreeMap<String, String>>,
    pub(super) gate: Option<String>,
    pub(super) disposition: Option<Disposition>,
    /// Findings in a draft: kinds, and claims as `claim/<code>`. For a context, the kinds found in its texts.
    pub(super) findings: Option<Vec<String>>,
    /// Segments of a context after its constraints, in order.
    pub(super) segments: Option<Vec<WrittenSegment>>,
    /// Paths of a context's fields, grouped by how they are shown.
    pub(super) included: Option<Vec<String>>,
    pub(super) masked: Option<Vec<String>>,
    pub(super) withheld: Option<Vec<String>>,
    /// Redactions of a context as `<kind> <source>`; for a value of the record, `<kind> <path>`.
    pub(super) redactions: Option<Vec<String>>,
    /// Field that an INVALID_ARGUMENT refusal names.
    pub(super) invalid: Option<String>,
}

impl Expect {
    /// Returns whether anything is expected.
    pub(super) fn says_something(&self) -> bool {
        let lists = [
            &self.requires,
            &self.policies,
            &self.obligations,
            &self.advice,
            &self.findings,
            &self.included,
            &self.masked,
            &self.withheld,
            &self.redactions,
        ];
        let texts = [&self.reason, &self.user, &self.gate, &self.invalid];
        self.decision.is_some()
            || self.disposition.is_some()
            || self.segments.is_some()
            || self.consent.is_some()
            || lists.iter().any(|list| list.is_some())
            || texts.iter().any(|text| text.is_some())
    }
}

/// An article of a context; `resource` names its fixture.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct WrittenArticle {
    pub(super) resource: String,
    pub(super) text: String,
}

/// A segment of a context that a case expects.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct WrittenSegment {
    pub(super) channel: Channel,
    pub(super) source: String,
    pub(super) text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) enum Decision {
    Allow,
    Deny,
}

impl Decision {
    /// Returns the name in tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}
