//! What lines say of governed texts: kinds, places, digests. Never a text, and of names below a record's fields only those that look like
//! names.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::json;

use crate::audit::events::about_case;
use crate::audit::record::{Capped, Record};
use crate::model::call::Case;
use crate::model::content::{Channel, Disposition, Prepared, Redaction, Shown};
use crate::model::finding::Finding;

/// The most findings that stand in a line.
const FINDINGS_MAX: usize = 64;
/// The most bytes of redactions in a line: the line has room for the rest.
const ITEMS_BYTES_MAX: usize = 32 * 1024;

/// What a context's line says.
#[derive(Debug, Serialize)]
pub struct ContextRecord {
    /// Which secret values are known again by.
    secret: String,
    /// Untrusted texts that came.
    untrusted: usize,
    segments: usize,
    /// Names of the record's fields.
    included: Capped<String>,
    masked: Capped<String>,
    excluded: Capped<String>,
    /// Articles that were shown.
    articles: Capped<String>,
    /// Each of them stands in a line of type `redactions`.
    redactions: usize,
    truncated: bool,
}

impl ContextRecord {
    /// The record of a context that was prepared from `untrusted` texts.
    pub fn of(secret: &str, untrusted: usize, prepared: &Prepared) -> Self {
        let named = |shown: Shown| {
            let fields = prepared.fields.iter().filter(|field| field.shown == shown).map(|field| visible_path(&field_of(&field.path)));
            fields.collect::<BTreeSet<String>>().into_iter().collect()
        };
        let articles = prepared.segments.iter().filter(|segment| segment.channel == Channel::Article);
        Self {
            secret: secret.to_owned(),
            untrusted,
            segments: prepared.segments.len(),
            included: named(Shown::Included),
            masked: named(Shown::Masked),
            excluded: named(Shown::Excluded),
            articles: articles.map(|segment| segment.source.strip_prefix("article:").unwrap_or_default().to_owned()).collect(),
            redactions: prepared.redactions.len(),
            truncated: prepared.truncated,
        }
    }
}

/// The field that a path of the record is of: without the places in lists.
fn field_of(path: &str) -> String {
    path.split('.').map(|name| name.split('[').next().unwrap_or_default()).collect::<Vec<_>>().join(".")
}

/// What a draft's line says.
#[derive(Debug, Serialize)]
pub struct OutputRecord {
    disposition: &'static str,
    /// SHA-256 of the draft: a short one could be guessed from it, so it is what `reply.send` and its approval name, and no more.
    draft_digest: String,
    /// Evaluation id of the context that it was written from.
    #[serde(skip_serializing_if = "String::is_empty")]
    context: String,
    findings: Vec<String>,
    #[serde(skip_serializing_if = "is_zero")]
    more_findings: usize,
    /// Whether the chain may let drafts of this case go at all: else nothing is found in them, nor remembered.
    entitled: bool,
    /// Whether it was remembered that it repeated a redacted value.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    repeats: bool,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl OutputRecord {
    /// Of a draft.
    pub fn of(
        draft_digest: &str,
        disposition: Disposition,
        findings: &[Finding],
        context: &str,
        (entitled, repeats): (bool, bool),
    ) -> Self {
        Self {
            disposition: disposition.name(),
            draft_digest: draft_digest.to_owned(),
            context: context.to_owned(),
            findings: written(findings),
            more_findings: findings.len().saturating_sub(FINDINGS_MAX),
            entitled,
            repeats,
        }
    }
}

/// Findings as a line and a reviewer's view name them: kind, code, severity and place; the first 64.
pub fn written(findings: &[Finding]) -> Vec<String> {
    let one = |finding: &Finding| {
        let place = finding.span.map_or(String::new(), |(start, end)| format!(" {start}..{end}"));
        format!("{}/{} {}{place}", finding.kind, finding.code, finding.severity.name())
    };
    findings.iter().take(FINDINGS_MAX).map(one).collect()
}

/// The members that all lines of one context share.
#[derive(Debug)]
pub struct Of<'a> {
    /// The evaluation that made the context.
    pub evaluation_id: &'a str,
    /// The case.
    pub case: &'a Case,
    /// Conversation id; empty if it has none.
    pub conversation: &'a str,
    /// W3C trace id; empty if the request is not traced.
    pub trace_id: &'a str,
}

/// Lines that say what was redacted: every redaction by kind, source, path and span, and every value that is remembered by what it is
/// known again by, which says nothing without the deployment's key.
pub fn redactions(of: &Of<'_>, redactions: &[Redaction], values: &[String], nonce: impl Fn() -> String) -> Vec<Record> {
    let items = redactions.iter().map(|redaction| {
        let (start, end) = redaction.span;
        let mut item = json!({"kind": redaction.kind.name(), "source": redaction.source, "span": format!("{start}..{end}")});
        if let (false, Some(members)) = (redaction.path.is_empty(), item.as_object_mut()) {
            members.insert("path".to_owned(), visible_path(&redaction.path).into());
        }
        ("items", item)
    });
    let mut lines: Vec<Record> = vec![];
    let mut line = Line::default();
    for (list, item) in items.chain(values.iter().map(|value| ("values", json!(value)))) {
        line.bytes += item.to_string().len() + 1;
        (if list == "items" { &mut line.items } else { &mut line.values }).push(item);
        if line.bytes > ITEMS_BYTES_MAX {
            lines.push(std::mem::take(&mut line).record(of, nonce()));
        }
    }
    if line.bytes > 0 {
        lines.push(line.record(of, nonce()));
    }
    lines
}

#[derive(Default)]
struct Line {
    items: Vec<serde_json::Value>,
    values: Vec<serde_json::Value>,
    bytes: usize,
}

impl Line {
    fn record(self, of: &Of<'_>, nonce: String) -> Record {
        let mut record = json!({
            "type": "redactions", "evaluation_id": of.evaluation_id, "nonce": nonce, "items": self.items, "values": self.values,
        });
        if let Some(members) = record.as_object_mut() {
            let about = about_case((&of.case.tenant, &of.case.id, &of.case.version), of.conversation);
            members.extend(about.map(|(name, value)| (name.to_owned(), value)));
            if !of.trace_id.is_empty() {
                members.insert("trace_id".to_owned(), of.trace_id.into());
            }
        }
        Record::Stored(record)
    }
}

/// A path of which only names that look like names are shown: a caller's own name may be a value.
fn visible_path(path: &str) -> String {
    let shown = path.split('.').take(16).map(|name| {
        let plain = name.split('[').next().unwrap_or_default();
        let is_name = plain.len() <= 64
            && plain.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
            && plain.chars().all(|sign| sign.is_ascii_alphanumeric() || sign == '_');
        if is_name && name.len() <= 128 { name } else { "?" }
    });
    shown.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_shows_names_alone() {
        assert_eq!(visible_path("customer.orders[2].total"), "customer.orders[2].total");
        assert_eq!(visible_path("emails.jane@example.com"), "emails.?.com");
        assert_eq!(visible_path("cards.4111111111111111"), "cards.?");
    }
}
