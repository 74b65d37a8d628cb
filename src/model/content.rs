//! What the model may see, and what the customer may see.

use crate::json::Object;
use crate::model::call::EntityReference;
use crate::model::finding::Private;

/// How far a segment may be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Channel {
    /// From the bundle: holds no caller text.
    Constraint,
    /// An article that policy let through. It grounds drafts as a fact does, and is no more to be obeyed than any text.
    Article,
    /// A fact that policy let through: no text that somebody could write an order into.
    Fact,
    /// Screened, redacted, still not to be obeyed.
    Untrusted,
}

impl Channel {
    /// The name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Article => "article",
            Self::Constraint => "constraint",
            Self::Fact => "fact",
            Self::Untrusted => "untrusted",
        }
    }
}

/// A piece of a prepared context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// How far it may be trusted.
    pub channel: Channel,
    /// Where it came from.
    pub source: String,
    /// The text for the model.
    pub text: String,
    /// By which a draft's sources name it, and no other text.
    pub source_id: String,
}

/// What became of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shown {
    /// Not shown.
    Excluded,
    /// Shown masked.
    Masked,
    /// Shown.
    Included,
}

/// The verdict on one field of the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldVerdict {
    /// JSON path, e.g. `orders[0].total`.
    pub path: String,
    /// What became of it.
    pub shown: Shown,
    /// The action that decided, `none` where none was permitted, or `max_bytes`.
    pub rule: String,
}

/// A value that was taken out of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redaction {
    /// Its kind.
    pub kind: Private,
    /// The text that it stood in.
    pub source: String,
    /// JSON path, for record values.
    pub path: String,
    /// Where, in bytes of the text as it was sent.
    pub span: (usize, usize),
}

/// A knowledge article.
#[derive(Clone, Debug, PartialEq)]
pub struct Article {
    /// Its identity.
    pub reference: EntityReference,
    /// Its tags.
    pub attributes: Option<Object>,
    /// Its text.
    pub text: String,
}

/// What may be done with a draft, from the loosest to the strictest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Disposition {
    /// It may be sent.
    Release,
    /// It must be rewritten.
    Revise,
    /// A human must read it first.
    HumanReview,
    /// It must not be sent.
    #[default]
    Block,
}

impl Disposition {
    /// The name in annotations and records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::HumanReview => "human_review",
            Self::Release => "release",
            Self::Revise => "revise",
        }
    }

    /// The disposition of this name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Release, Self::Revise, Self::HumanReview, Self::Block].into_iter().find(|disposition| disposition.name() == name)
    }
}

/// What the model may see.
#[derive(Clone, Debug, Default)]
pub struct Prepared {
    /// The context, in order; none if the chain may not read the case.
    pub segments: Vec<Segment>,
    /// What became of each field.
    pub fields: Vec<FieldVerdict>,
    /// What was taken out.
    pub redactions: Vec<Redaction>,
    /// Whether `max_bytes` cut something.
    pub truncated: bool,
}
