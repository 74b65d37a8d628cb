//! A draft: the sources that it is held to, and what is left of it without what must not be in it.

use std::collections::{BTreeMap, HashSet};

use crate::content::Detectors;
use crate::content::drafts::{Draft, INTERNAL, Judged as Found};
use crate::content::values::Values;
use crate::json::{self, Object, Value};
use crate::model::call::{Call, Case};
use crate::model::content::Channel;
use crate::pdp::output::ToEvaluate;
use crate::redact::{Replaced, placeholder, redact};

/// What is found in a draft, held to the sources that are genuine: those whose id is that of their text in the prepared context.
pub(super) fn find_in_draft(
    detectors: &Detectors,
    asked: &ToEvaluate,
    values: &Values,
    id_of: impl Fn(Channel, &str) -> String,
) -> (Found, usize) {
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
pub(super) fn redacted(draft: &str, found: &Found) -> String {
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
