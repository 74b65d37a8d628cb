//! The input of a context, and the context while it is made.

use crate::json::Object;
use crate::model::call::{Call, Case, Model, Untrusted};
use crate::model::chain::{Chain, Credential};
use crate::model::content::{Article, Channel, Prepared, Segment};
use crate::model::trusted_context::TrustedContext;
use crate::pdp::prepare_context::case_values::{CaseValues, TextRead};
use crate::pdp::snapshot::Moment;

/// What shall be put before the model, as it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct ToPrepare {
    /// On whose behalf.
    pub credential: Credential,
    /// The case.
    pub case: Case,
    /// The model that will read it.
    pub model: Option<Model>,
    /// Fields of the case as the tool service has them.
    pub record: Object,
    /// Untrusted text.
    pub untrusted: Vec<Untrusted>,
    /// The turn before.
    pub previous_turn: String,
    /// Articles to be evaluation one by one.
    pub articles: Vec<Article>,
    /// Upper bound of the returned text in bytes; 0: none.
    pub max_bytes: usize,
    /// Conversation id.
    pub conversation: String,
}

/// What a context is made of and by. Owned, since it is made on threads of its own.
pub(super) struct Making {
    pub(super) moment: Moment,
    pub(super) chain: Chain,
    /// The call that reads the case, without its texts: what calls on fields and articles are made from.
    pub(super) reading: Call,
    pub(super) trusted: TrustedContext,
    pub(super) asked: ToPrepare,
}

/// A context while it is made, step by step.
pub(super) struct Unfinished {
    pub(super) values: CaseValues,
    /// What was found in each of the untrusted texts, until all were read.
    pub(super) read: Vec<TextRead>,
    /// Whether the numbers in them are few enough to be shown.
    pub(super) numbers_fit: bool,
    pub(super) prepared: Prepared,
}

impl Unfinished {
    pub(super) fn of(values: CaseValues) -> Self {
        Self { values, read: vec![], numbers_fit: true, prepared: Prepared::default() }
    }
}

pub(super) fn segment(channel: Channel, source: String, text: String) -> Segment {
    Segment { channel, source, text, source_id: String::new() }
}
