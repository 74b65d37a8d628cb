//! A draft to be evaluated, what detectors find in it compared with its genuine sources, and its redacted
//! form.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use serde::Serialize;

use crate::content::Detectors;
use crate::content::drafts::{Draft, DraftReport, INTERNAL};
use crate::content::values::Values;
use crate::json::{self, Value};
use crate::model::call::{Call, Case, DigestInput, Model};
use crate::model::chain::Credential;
use crate::model::content::Channel;
use crate::model::number::to_i64;
use crate::model::refusal::Refusal;
use crate::pdp::Pdp;
use crate::pdp::redacted_values::{PREPARED, Remembered, context_key, repeats_key, values_key};
use crate::pdp::risk_state::risk_keys::by;
use crate::pdp::snapshot::Moment;
use crate::redact::{Replaced, placeholder, redact};
use crate::risk_store::{Batch, Tenant};

/// A draft to be evaluated, as it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct ToEvaluate {
    pub credential: Credential,
    /// Case with its current attributes.
    pub case: Case,
    /// Model that wrote the draft.
    pub model: Model,
    pub draft: String,
    /// Channel that the draft would be sent on.
    pub channel: String,
    pub recipient: String,
    /// BCP 47 tag of the draft's language; empty means a language that the bundle has rules for.
    pub locale: String,
    /// Texts that the draft was written from: id and text.
    pub sources: Vec<(String, String)>,
    /// Ids of the sources that the draft cites.
    pub citations: Vec<String>,
    /// The model's own confidence, in percent.
    pub confidence: u32,
    /// Evaluation id of the PrepareContext that the draft was written from.
    pub context: String,
    pub conversation: String,
}

/// Findings in a draft, and stored facts of its case, before policies are evaluated.
#[derive(Debug, Default)]
pub(super) struct DraftFacts {
    pub(super) found: DraftReport,
    pub(super) sources: usize,
    /// Whether the draft's context is stored, and every value that was redacted on the case.
    pub(super) prepared: bool,
    pub(super) repeats: usize,
}

impl Pdp {
    /// Reads a draft on a thread for texts, with the stored values of its case.
    ///
    /// # Errors
    /// If too many texts are waiting to be processed (RESOURCE_EXHAUSTED).
    pub(super) async fn read_draft(
        &self,
        moment: &Moment,
        caller: &str,
        asked: &Arc<ToEvaluate>,
    ) -> Result<DraftFacts, Refusal> {
        let tenant = Tenant::of(&self.options.environment, &asked.case.tenant);
        let case = asked.case.id.as_str();
        let keys = self.tokens.keys();
        let context = context_key(tenant, case, &asked.context, &keys.values_id());
        let reads = vec![values_key(tenant, case), context, repeats_key(tenant, case)];
        let result =
            self.risk.batch(tenant, moment, &Batch { reads, by: Some(by(tenant, caller)), ..Batch::default() }).await;
        // If the risk store can't be read, the context counts as unknown, so a human must read the draft.
        let memories = match result {
            Ok(result) => result.memories,
            Err(_) => vec![],
        };
        let [values, context, repeats] =
            [0, 1, 2].map(|index| memories.get(index).map_or([].as_slice(), Vec::as_slice));
        let remembered = Remembered::of(values);
        let prepared = context.iter().any(|(name, _)| name == PREPARED) && !remembered.too_many;
        let values = remembered.values(keys.of_case(&asked.case.tenant, case));
        let (environment, snapshot, asked) =
            (self.options.environment.clone(), Arc::clone(&moment.snapshot), Arc::clone(asked));
        let read = self.texts.run(caller, move || {
            let id_of = |channel, text: &str| keys.source_id(&environment, &asked.case, &asked.context, channel, text);
            find_in_draft(&snapshot.bundle.rules.detectors, &asked, &values, id_of)
        });
        let (found, sources) = read.await?;
        Ok(DraftFacts { found, sources, prepared, repeats: repeats.len() })
    }
}

/// Returns the members of `context` that describe a draft.
pub fn draft_members(
    found: &DraftReport,
    sources: usize,
    prepared: bool,
    confidence: u32,
) -> [(&'static str, Value); 5] {
    let list = |names: BTreeSet<&str>| Value::Array(names.into_iter().map(Value::from).collect());
    let count = |count: usize| Value::Integer(to_i64(count));
    [
        ("claims", list(found.claims())),
        ("confidence", Value::Integer(i64::from(confidence))),
        ("draft", list(found.kinds())),
        ("grounding", json::object([("sources", count(sources)), ("ungrounded", count(found.ungrounded))])),
        ("prepared", Value::Bool(prepared)),
    ]
}

/// Checks a draft against its genuine sources, which are those whose id belongs to their text in the prepared
/// context. Returns the report and the number of genuine sources.
pub(super) fn find_in_draft(
    detectors: &Detectors,
    asked: &ToEvaluate,
    values: &Values,
    id_of: impl Fn(Channel, &str) -> String,
) -> (DraftReport, usize) {
    // An id proves the channel of its text, so a source belongs to one channel at most.
    let is_of = |channel: Channel, (id, text): &(String, String)| id_of(channel, text) == *id;
    let (customer, others): (Vec<_>, Vec<_>) =
        asked.sources.iter().partition(|source| is_of(Channel::Untrusted, source));
    let given = [Channel::Fact, Channel::Article, Channel::Constraint];
    let is_genuine = |source: &&(String, String)| given.into_iter().any(|channel| is_of(channel, source));
    let sources: Vec<&(String, String)> = others.into_iter().filter(is_genuine).collect();
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

/// Returns the draft with internal names and sensitive values replaced by placeholders.
pub(super) fn redacted(draft: &str, found: &DraftReport) -> String {
    let mut replaced: BTreeMap<(usize, usize), String> = BTreeMap::new();
    for finding in found.findings.iter().filter(|finding| finding.kind == INTERNAL) {
        replaced.extend(finding.span.map(|span| (span, "[internal detail removed]".to_owned())));
    }
    replaced.extend(found.private.iter().map(|located| (located.span, placeholder(located.kind, None))));
    let replaced: Vec<Replaced> =
        replaced.into_iter().map(|(span, placeholder)| Replaced { span, placeholder }).collect();
    redact(draft, &replaced)
}

/// Returns the attributes of a case as a source, because the tool service vouches for them.
pub fn case_facts(case: &Case) -> String {
    let mut facts = format!("case {}", case.id);
    for (name, value) in &case.attributes {
        facts.push_str(&format!("\n{name}: {}", String::from_utf8_lossy(&json::canonical(value))));
    }
    facts
}

/// Everything that the decision on a draft and its record depend on, for the call's digest.
#[derive(Debug, Serialize)]
pub(super) struct DraftDigestInput<'a> {
    call: DigestInput<'a>,
    citations: &'a [String],
    confidence: u32,
    context: &'a str,
    draft: &'a str,
    sources: Vec<DigestedSource<'a>>,
}

#[derive(Debug, Serialize)]
struct DigestedSource<'a> {
    id: &'a str,
    text: &'a str,
}

impl<'a> DraftDigestInput<'a> {
    pub(super) fn of(call: &'a Call, asked: &'a ToEvaluate) -> Self {
        Self {
            call: call.digest_input(),
            citations: &asked.citations,
            confidence: asked.confidence,
            context: &asked.context,
            draft: &asked.draft,
            sources: asked.sources.iter().map(|(id, text)| DigestedSource { id, text }).collect(),
        }
    }
}
