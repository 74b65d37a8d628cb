//! The request for a context, the fixed input of its steps, and its state while it is built.

use crate::json::Object;
use crate::model::call::{Call, Case, Model, Untrusted};
use crate::model::chain::{Chain, Credential};
use crate::model::content::{Article, Channel, Prepared, Segment};
use crate::model::trusted_context::TrustedContext;
use crate::pdp::prepare_context::case_values::{CaseValues, TextRead};
use crate::pdp::snapshot::Moment;

/// A request for a context, as it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct ToPrepare {
    pub credential: Credential,
    pub case: Case,
    /// Model that will read the context.
    pub model: Option<Model>,
    /// Fields of the case as the tool service has them.
    pub record: Object,
    pub untrusted: Vec<Untrusted>,
    /// The agent's previous turn, to which a text may be a bare reply.
    pub previous_turn: String,
    /// Articles, which are evaluated one by one.
    pub articles: Vec<Article>,
    /// Maximum length of the returned text in bytes; 0 means no limit.
    pub max_bytes: usize,
    pub conversation: String,
}

/// The input of a context's steps. It is owned, because the steps run on other threads.
pub(super) struct Making {
    pub(super) moment: Moment,
    pub(super) chain: Chain,
    /// Call that reads the case, without its texts. Calls that read fields and articles are derived from it.
    pub(super) reading: Call,
    pub(super) trusted: TrustedContext,
    pub(super) asked: ToPrepare,
}

/// A context while it is built, step by step.
pub(super) struct Unfinished {
    pub(super) values: CaseValues,
    /// Result of reading each of the untrusted texts.
    pub(super) read: Vec<TextRead>,
    /// Whether the numbers in the untrusted texts are few enough to be shown.
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
