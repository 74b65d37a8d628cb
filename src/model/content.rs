//! Texts that the model may see, and texts that the customer may see.

use crate::json::Object;
use crate::model::call::EntityReference;
use crate::model::finding::SensitiveKind;

/// Trust in a segment of a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Channel {
    /// Text from the bundle, without any text from a caller.
    Constraint,
    /// Article that policy lets through. It grounds drafts as a fact does, but the model must not obey it.
    Article,
    /// Fact that policy lets through. It is not free text, so no one can place an instruction in it.
    Fact,
    /// Screened and redacted text, which the model still must not obey.
    Untrusted,
}

impl Channel {
    pub fn name(self) -> &'static str {
        match self {
            Self::Article => "article",
            Self::Constraint => "constraint",
            Self::Fact => "fact",
            Self::Untrusted => "untrusted",
        }
    }
}

/// Piece of a prepared context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub channel: Channel,
    /// Origin of the text, such as `constraint:` and an id.
    pub source: String,
    pub text: String,
    /// Id that a draft's sources use for this text in this context and no other.
    pub source_id: String,
}

/// Visibility of a field to the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shown {
    Excluded,
    Masked,
    Included,
}

/// Verdict on one field of the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldVerdict {
    /// JSON path, e.g. `orders[0].total`.
    pub path: String,
    pub shown: Shown,
    /// The action that decided, `none` if none was permitted, or `max_bytes`.
    pub rule: String,
}

/// Value that was redacted in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redaction {
    pub kind: SensitiveKind,
    /// Source of the text that contained the value.
    pub source: String,
    /// JSON path, for values of the record.
    pub path: String,
    /// Byte range in the text as it was sent.
    pub span: (usize, usize),
}

/// Knowledge article that a context may show.
#[derive(Clone, Debug, PartialEq)]
pub struct Article {
    pub reference: EntityReference,
    /// Tags of the article.
    pub attributes: Option<Object>,
    pub text: String,
}

/// Permitted use of a draft, from the loosest to the strictest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Disposition {
    /// The draft may be sent.
    Release,
    /// The draft must be rewritten.
    Revise,
    /// A human must read the draft first.
    HumanReview,
    /// The draft must not be sent.
    #[default]
    Block,
}

impl Disposition {
    /// Name in annotations and records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::HumanReview => "human_review",
            Self::Release => "release",
            Self::Revise => "revise",
        }
    }

    /// Constant text for the agent that wrote the draft; empty for a release.
    pub fn text(self) -> &'static str {
        match self {
            Self::Block => "This draft must not be sent. Do not retry it.",
            Self::HumanReview => "A person must read this draft before it is sent.",
            Self::Release => "",
            Self::Revise => "Change the draft as the findings suggest, and submit it again.",
        }
    }

    /// Looks up a disposition by its name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Release, Self::Revise, Self::HumanReview, Self::Block]
            .into_iter()
            .find(|disposition| disposition.name() == name)
    }
}

/// Prepared context for the model.
#[derive(Clone, Debug, Default)]
pub struct Prepared {
    /// Segments in order; empty if the chain may not read the case.
    pub segments: Vec<Segment>,
    /// Verdict on each field of the record.
    pub fields: Vec<FieldVerdict>,
    /// Values that were redacted.
    pub redactions: Vec<Redaction>,
    /// Whether `max_bytes` cut something.
    pub truncated: bool,
}
