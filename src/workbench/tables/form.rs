//! A table as it is written.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::json::{Object, Value};
use crate::model::content::{Channel, Disposition};
use crate::workbench::request::{Written, WrittenText};

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) now: String,
    #[serde(default)]
    pub(super) fixtures: Fixtures,
    /// Contexts that every case of the file has, before its own.
    #[serde(default)]
    pub(super) context: Vec<String>,
    #[serde(default)]
    pub(super) cases: Vec<Case>,
}

/// Named values, shared by all files of the folder.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Fixtures {
    /// Entities beside the bundle's own.
    pub(super) principals: BTreeMap<String, Principal>,
    /// Resources and cases.
    pub(super) resources: BTreeMap<String, Written>,
    /// What the PDP would vouch for.
    pub(super) contexts: BTreeMap<String, Object>,
    /// What a case of an action has if it doesn't say.
    pub(super) calls: BTreeMap<String, Defaults>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
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
pub(super) struct Defaults {
    pub(super) resource: Option<String>,
    pub(super) arguments: Option<Object>,
    pub(super) facts: Option<Object>,
}

/// One name or several.
#[derive(Clone, Debug, Default)]
pub(super) struct Names(pub(super) Vec<String>);

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
pub(super) struct Case {
    pub(super) name: String,
    pub(super) now: Option<String>,
    pub(super) caller: Option<Names>,
    pub(super) agent: Option<Names>,
    pub(super) supervisor: Option<Names>,
    pub(super) step: Option<Names>,
    /// Of a draft, if it doesn't say: the action that lets drafts go.
    #[serde(default)]
    pub(super) action: Names,
    #[serde(default)]
    pub(super) scopes: Vec<String>,
    pub(super) resource: Option<Names>,
    /// Fixtures of the case; of what is done on one's own behalf there is none.
    #[serde(default)]
    pub(super) case: Names,
    /// Who acts on her own behalf, where that is a human.
    pub(super) reviewer: Option<Names>,
    /// Whether that human supervises the call herself.
    #[serde(default)]
    pub(super) own: bool,
    pub(super) arguments: Option<Object>,
    pub(super) facts: Option<Object>,
    #[serde(default)]
    pub(super) without_model: bool,
    /// Without the tenant and case gates in code: do the policies hold alone?
    #[serde(default)]
    pub(super) policy_alone: bool,
    #[serde(default)]
    pub(super) context: Vec<String>,
    /// Untrusted texts of the call: by them, findings, screening and risk are as a server would vouch for them.
    #[serde(default)]
    pub(super) untrusted: Vec<WrittenText>,
    /// Fields of the case, for a context to be prepared from them, from `articles` and from `untrusted`.
    pub(super) record: Option<Object>,
    /// Articles of that context.
    #[serde(default)]
    pub(super) articles: Vec<WrittenArticle>,
    /// A draft to be judged, with what it was written from.
    pub(super) draft: Option<String>,
    #[serde(default)]
    pub(super) sources: Vec<String>,
    /// The model's confidence in it, in percent; 90 if it doesn't say.
    pub(super) confidence: Option<u32>,
    /// BCP 47 tag of its language.
    #[serde(default)]
    pub(super) locale: String,
    /// Whether the context that it was written from is not known.
    #[serde(default)]
    pub(super) unprepared: bool,
    /// Values that were redacted before.
    #[serde(default)]
    pub(super) redacted: Vec<String>,
    /// Attributes of the case that are other than its fixture's.
    #[serde(default)]
    pub(super) attributes: Object,
    pub(super) expect: Expect,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Expect {
    pub(super) decision: Option<Decision>,
    pub(super) reason: Option<String>,
    pub(super) requires: Option<Vec<String>>,
    pub(super) policies: Option<Vec<String>>,
    pub(super) obligations: Option<Vec<String>>,
    pub(super) gate: Option<String>,
    /// What may be done with a draft.
    pub(super) disposition: Option<Disposition>,
    /// What is found in a draft: kinds, and claims as `claim/<code>`; or the kinds that are found in the texts of a context.
    pub(super) findings: Option<Vec<String>>,
    /// The segments of a context behind its constraints, in order.
    pub(super) segments: Option<Vec<WrittenSegment>>,
    /// The fields of a context by what became of them.
    pub(super) included: Option<Vec<String>>,
    pub(super) masked: Option<Vec<String>>,
    pub(super) withheld: Option<Vec<String>>,
    /// What was taken out of a context: `<kind> <source>`, and of a value of the record its path.
    pub(super) redactions: Option<Vec<String>>,
    /// The field of an INVALID_ARGUMENT.
    pub(super) invalid: Option<String>,
}

/// An article of a context, by the fixture that it is.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenArticle {
    pub(super) resource: String,
    pub(super) text: String,
}

/// A segment of a context as a case expects it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenSegment {
    pub(super) channel: Channel,
    pub(super) source: String,
    pub(super) text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Decision {
    Allow,
    Deny,
}

impl Decision {
    /// The decision as a table writes it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}
