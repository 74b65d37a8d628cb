//! A draft: the sources that it is held to, and what is left of it without what must not be in it.

use crate::pdp::risk_keys::by;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use crate::content::Detectors;
use crate::content::drafts::{Draft, DraftReport, INTERNAL};
use crate::content::values::Values;
use crate::json::{self, Object, Value};
use crate::model::call::{Call, Case, Model};
use crate::model::chain::Credential;
use crate::model::content::Channel;
use crate::model::refusal::Refusal;
use crate::pdp::Pdp;
use crate::pdp::redacted_values::{PREPARED, Remembered, context_key, repeats_key, values_key};
use crate::pdp::snapshot::Moment;
use crate::redact::{Replaced, placeholder, redact};
use crate::risk_store::{Batch, Tenant};

/// A draft to be evaluation, as it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct ToEvaluate {
    /// On whose behalf.
    pub credential: Credential,
    /// The case with its facts.
    pub case: Case,
    /// The model that wrote it.
    pub model: Model,
    /// The draft.
    pub draft: String,
    /// Channel that it would be sent on.
    pub channel: String,
    /// Who would get it.
    pub recipient: String,
    /// BCP 47 tag of its language; empty: one of the bundle's.
    pub locale: String,
    /// What it was written from: id and text.
    pub sources: Vec<(String, String)>,
    /// Ids of the sources that it cites.
    pub citations: Vec<String>,
    /// The model's own confidence, in percent.
    pub confidence: u32,
    /// Evaluation id of the PrepareContext that it was written from.
    pub context: String,
    /// Conversation id.
    pub conversation: String,
}

/// What was found in a draft, and what is known of its case, before policies judge it.
#[derive(Debug, Default)]
pub(super) struct DraftFacts {
    pub(super) found: DraftReport,
    pub(super) sources: usize,
    /// Whether the context that it was written from is known, and all that was redacted.
    pub(super) prepared: bool,
    pub(super) repeats: usize,
}

impl Pdp {
    /// Reads a draft, on a thread for texts, with what is remembered of its case.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED, when too many texts wait to be read.
    pub(super) async fn read_draft(&self, moment: &Moment, caller: &str, asked: &Arc<ToEvaluate>) -> Result<DraftFacts, Refusal> {
        let tenant = Tenant::of(&self.options.environment, &asked.case.tenant);
        let case = asked.case.id.as_str();
        let keys = self.keys.load_full();
        let context = context_key(tenant, case, &asked.context, &keys.values_id());
        let reads = vec![values_key(tenant, case), context, repeats_key(tenant, case)];
        let result = self.batch(tenant, moment, &Batch { reads, by: Some(by(tenant, caller)), ..Batch::default() }).await;
        let memories = result.map(|result| result.memories).unwrap_or_default();
        let [values, context, repeats] = [0, 1, 2].map(|index| memories.get(index).map(Vec::as_slice).unwrap_or_default());
        let remembered = Remembered::of(values);
        let prepared = context.iter().any(|(name, _)| name == PREPARED) && !remembered.too_many;
        let values = remembered.values(keys.of_case(&asked.case.tenant, case));
        let (environment, snapshot, asked) = (self.options.environment.clone(), Arc::clone(&moment.snapshot), Arc::clone(asked));
        let read = self.texts.run(caller, move || {
            let id_of = |channel, text: &str| keys.source_id(&environment, &asked.case, &asked.context, channel, text);
            find_in_draft(&snapshot.bundle.rules.detectors, &asked, &values, id_of)
        });
        let (found, sources) = read.await?;
        Ok(DraftFacts { found, sources, prepared, repeats: repeats.len() })
    }
}

/// What was found in a draft, as policies see it.
pub fn draft_members(found: &DraftReport, sources: usize, prepared: bool, confidence: u32) -> [(&'static str, Value); 5] {
    let list = |names: BTreeSet<&str>| Value::Array(names.into_iter().map(Value::from).collect());
    let count = |count: usize| Value::Integer(i64::try_from(count).unwrap_or(i64::MAX));
    [
        ("claims", list(found.claims())),
        ("confidence", Value::Integer(i64::from(confidence))),
        ("draft", list(found.kinds())),
        ("grounding", json::object([("sources", count(sources)), ("ungrounded", count(found.ungrounded))])),
        ("prepared", Value::Bool(prepared)),
    ]
}

/// What is found in a draft, held to the sources that are genuine: those whose id is that of their text in the prepared context.
pub(super) fn find_in_draft(
    detectors: &Detectors,
    asked: &ToEvaluate,
    values: &Values,
    id_of: impl Fn(Channel, &str) -> String,
) -> (DraftReport, usize) {
    let genuine = |channel: Channel| {
        let id_of = &id_of;
        asked.sources.iter().filter(move |(id, text)| id_of(channel, text) == *id)
    };
    let sources: Vec<&(String, String)> =
        genuine(Channel::Constraint).chain(genuine(Channel::Fact)).chain(genuine(Channel::Article)).collect();
    let customer: Vec<&(String, String)> = genuine(Channel::Untrusted).collect();
    let known: HashSet<&str> = sources.iter().chain(&customer).map(|(id, _)| id.as_str()).collect();
    let facts = case_facts(&asked.case);
    let draft = Draft {
        text: &asked.draft,
        sources: sources.iter().map(|(_, text)| text.as_str()).chain([facts.as_str()]).collect(),
        customer: customer.iter().map(|(_, text)| text.as_str()).collect(),
        has_sources: !asked.sources.is_empty(),
        unknown_source: sources.len() + customer.len() < asked.sources.len()
            || !asked.citations.iter().all(|id| known.contains(id.as_str())),
        confidence: asked.confidence,
        locale: &asked.locale,
        redacted: values,
    };
    (detectors.draft(&draft), sources.len() + customer.len())
}

/// The draft without what must not be in it.
pub(super) fn redacted(draft: &str, found: &DraftReport) -> String {
    let mut replaced: BTreeMap<(usize, usize), String> = BTreeMap::new();
    for finding in found.findings.iter().filter(|finding| finding.kind == INTERNAL) {
        replaced.extend(finding.span.map(|span| (span, "[internal detail removed]".to_owned())));
    }
    replaced.extend(found.private.iter().map(|located| (located.span, placeholder(located.kind, None))));
    let replaced: Vec<Replaced> = replaced.into_iter().map(|(span, placeholder)| Replaced { span, placeholder }).collect();
    redact(draft, &replaced)
}

/// The facts of a case as a source: what the tool service vouches for.
pub fn case_facts(case: &Case) -> String {
    let mut facts = format!("case {}", case.id);
    for (name, value) in &case.attributes {
        facts.push_str(&format!("\n{name}: {}", String::from_utf8_lossy(&json::canonical(value))));
    }
    facts
}

/// All that the decision and its record depend on, to be digested.
pub(super) fn digest_input(call: &Call, asked: &ToEvaluate) -> Value {
    let text = |text: &str| Value::from(text);
    let sources = asked.sources.iter().map(|(id, source)| json::object([("id", text(id)), ("text", text(source))]));
    let mut input: Object = Object::new();
    input.insert("call".into(), call.digest_input());
    input.insert("draft".into(), text(&asked.draft));
    input.insert("sources".into(), Value::Array(sources.collect()));
    input.insert("citations".into(), Value::Array(asked.citations.iter().map(|id| text(id)).collect()));
    input.insert("confidence".into(), Value::Integer(i64::from(asked.confidence)));
    input.insert("context".into(), text(&asked.context));
    Value::Object(input)
}
