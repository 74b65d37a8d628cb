//! Cases that ask for a prepared context: what the model sees of a record, articles and untrusted texts.

use std::sync::Arc;

use super::expect::list;
use super::form::{Case, Expect, WrittenSegment};
use super::{Runner, read_resource};
use crate::model::call::Call;
use crate::model::chain::{Chain, Credential};
use crate::model::content::{Article, Channel, Prepared, Shown};
use crate::model::refusal::Refusal;
use crate::model::time::Timestamp;
use crate::model::trusted_context::TrustedContext;
use crate::pdp::prepare_context::compose;
use crate::pdp::prepare_context::making::ToPrepare;
use crate::pdp::snapshot::Moment;

/// A prepared context, and the kinds of findings in its texts.
pub(super) struct Context {
    pub(super) prepared: Prepared,
    pub(super) kinds: Vec<String>,
}

impl Runner<'_> {
    /// Composes the context that the model would see, for a chain that may read the case.
    pub(super) fn context(
        &self,
        chain: &Chain,
        call: &Call,
        trusted: TrustedContext,
        asked: ToPrepare,
        now: Timestamp,
    ) -> Result<Prepared, Refusal> {
        let moment = Moment { snapshot: Arc::clone(self.snapshot), now };
        let asked = ToPrepare { case: call.case.clone(), ..asked };
        compose(moment, chain.clone(), trusted, asked)
    }

    /// Returns the request for a context, or `None` if the case asks for none.
    pub(super) fn to_prepare(&self, case: &Case, call: &Call) -> Result<Option<ToPrepare>, Refusal> {
        if case.record.is_none() && case.articles.is_empty() {
            return Ok(None);
        }
        let mut articles = vec![];
        for article in &case.articles {
            let resource = read_resource(self.fixture(&article.resource, "articles")?);
            articles.push(Article {
                reference: resource.reference,
                attributes: resource.attributes,
                text: article.text.clone(),
            });
        }
        Ok(Some(ToPrepare {
            credential: Credential::None,
            case: call.case.clone(),
            model: call.model.clone(),
            record: case.record.clone().unwrap_or_default(),
            untrusted: call.untrusted.clone(),
            previous_turn: String::new(),
            articles,
            max_bytes: 0,
            conversation: String::new(),
        }))
    }
}

/// Returns the differences between the expected and the actual context.
pub(super) fn differences(expect: &Expect, context: &Context) -> Vec<String> {
    let mut found = vec![];
    let mut compare = |what: &str, expected: Option<&Vec<String>>, mut actual: Vec<String>| {
        actual.sort();
        if let Some(expected) = expected.filter(|expected| list(expected) != list(&actual)) {
            found.push(format!("{what}: expected {}, found {}", list(expected), list(&actual)));
        }
    };
    let Context { prepared, kinds } = context;
    let fields = |shown: Shown| {
        prepared.fields.iter().filter(|field| field.shown == shown).map(|field| field.path.clone()).collect()
    };
    compare("included", expect.included.as_ref(), fields(Shown::Included));
    compare("masked", expect.masked.as_ref(), fields(Shown::Masked));
    compare("withheld", expect.withheld.as_ref(), fields(Shown::Excluded));
    compare("findings", expect.findings.as_ref(), kinds.clone());
    let redactions = prepared.redactions.iter().map(|redaction| {
        let place = if redaction.path.is_empty() { &redaction.source } else { &redaction.path };
        format!("{} {place}", redaction.kind.name())
    });
    compare("redactions", expect.redactions.as_ref(), redactions.collect());
    let segments = prepared.segments.iter().filter(|segment| segment.channel != Channel::Constraint);
    let segments: Vec<WrittenSegment> = segments
        .map(|segment| WrittenSegment {
            channel: segment.channel,
            source: segment.source.clone(),
            text: segment.text.clone(),
        })
        .collect();
    if let Some(expected) = expect.segments.as_ref().filter(|expected| **expected != segments) {
        let shown = |segments: &[WrittenSegment]| {
            let each = segments
                .iter()
                .map(|segment| format!("{} {}: {:?}", segment.channel.name(), segment.source, segment.text));
            each.collect::<Vec<_>>().join("; ")
        };
        found.push(format!("segments: expected {}; found {}", shown(expected), shown(&segments)));
    }
    found
}
