//! Audit records of prepared contexts and evaluated drafts: kinds, places and digests, never a text. Names
//! below a record's fields appear only if they look like identifiers.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::audit::events::about_case;
use crate::audit::record::parts::Capped;
use crate::audit::record::stored::StoredRecord;
use crate::model::call::Case;
use crate::model::content::{Channel, Disposition, Prepared, Redaction, Shown};
use crate::model::finding::Finding;

/// Maximum number of findings in a line.
const FINDINGS_MAX: usize = 64;
/// A `redactions` line is closed once its items exceed this many bytes, so that the other members fit.
const ITEMS_BYTES_MAX: usize = 32 * 1024;

/// Record of a prepared context.
#[derive(Clone, Debug, Serialize)]
pub struct ContextRecord {
    /// Id of the key that the value digests were made with.
    secret: String,
    /// Number of untrusted texts in the request.
    untrusted: usize,
    segments: usize,
    /// Fields of the record without list indexes; likewise in `masked` and `excluded`.
    included: Capped<String>,
    masked: Capped<String>,
    excluded: Capped<String>,
    /// Ids of the articles in the context.
    articles: Capped<String>,
    /// Number of redactions; each is listed in a line of type `redactions`.
    redactions: usize,
    truncated: bool,
}

impl ContextRecord {
    /// Creates the record of a context that was prepared from `untrusted` texts.
    pub fn of(secret: &str, untrusted: usize, prepared: &Prepared) -> Self {
        let named = |shown: Shown| {
            let fields = prepared
                .fields
                .iter()
                .filter(|field| field.shown == shown)
                .map(|field| visible_path(&field_of(&field.path)));
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
            articles: articles
                .map(|segment| segment.source.strip_prefix("article:").unwrap_or(&segment.source).to_owned())
                .collect(),
            redactions: prepared.redactions.len(),
            truncated: prepared.truncated,
        }
    }
}

/// Returns a path without its list indexes.
fn field_of(path: &str) -> String {
    path.split('.').map(|name| name.split_once('[').map_or(name, |(name, _)| name)).collect::<Vec<_>>().join(".")
}

/// Record of an evaluated draft.
#[derive(Clone, Debug, Serialize)]
pub struct OutputRecord {
    disposition: &'static str,
    /// SHA-256 of the draft, without a key because `reply.send` and its approval name the same digest. A
    /// short draft could be guessed from it.
    draft_digest: String,
    /// Evaluation id of the context that the draft was written from.
    #[serde(skip_serializing_if = "String::is_empty")]
    context: String,
    findings: Vec<String>,
    #[serde(skip_serializing_if = "is_zero")]
    more_findings: usize,
    /// Whether the chain may release drafts of this case at all. If not, no findings are recorded or stored.
    entitled: bool,
    /// Whether the risk store was told that the draft repeated a redacted value.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    repeats: bool,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl OutputRecord {
    /// Creates the record of an evaluated draft.
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

/// Formats findings for a line or a reviewer's view: kind, code, severity and place; at most 64.
pub fn written(findings: &[Finding]) -> Vec<String> {
    let one = |finding: &Finding| {
        let place = finding.span.map_or(String::new(), |(start, end)| format!(" {start}..{end}"));
        format!("{}/{} {}{place}", finding.kind, finding.code, finding.severity.name())
    };
    findings.iter().take(FINDINGS_MAX).map(one).collect()
}

/// Members that all lines of one context share.
#[derive(Debug)]
pub struct Of<'a> {
    /// Id of the evaluation that prepared the context.
    pub evaluation_id: &'a str,
    pub case: &'a Case,
    /// Conversation id; empty if the request has no conversation.
    pub conversation: &'a str,
    /// W3C trace id; empty if the request is not traced.
    pub trace_id: &'a str,
}

/// Creates the `redactions` lines of a context: every redaction with kind, source, path and span, and every
/// stored value with its length and keyed hash, which can be checked only with the deployment's key.
pub fn redactions<E>(
    of: &Of<'_>,
    redactions: &[Redaction],
    values: &[String],
    nonce: impl Fn() -> Result<String, E>,
) -> Result<Vec<StoredRecord>, E> {
    let items = redactions.iter().map(|redaction| {
        let (start, end) = redaction.span;
        let mut item =
            json!({"kind": redaction.kind.name(), "source": redaction.source, "span": format!("{start}..{end}")});
        if let (false, Some(members)) = (redaction.path.is_empty(), item.as_object_mut()) {
            members.insert("path".to_owned(), visible_path(&redaction.path).into());
        }
        ("items", item)
    });
    let mut lines = vec![];
    let mut line = Line::default();
    for (list, item) in items.chain(values.iter().map(|value| ("values", json!(value)))) {
        line.bytes += item.to_string().len() + 1;
        (if list == "items" { &mut line.items } else { &mut line.values }).push(item);
        if line.bytes > ITEMS_BYTES_MAX {
            lines.push(std::mem::take(&mut line).record(of, nonce()?));
        }
    }
    if line.bytes > 0 {
        lines.push(line.record(of, nonce()?));
    }
    Ok(lines)
}

#[derive(Default)]
struct Line {
    items: Vec<Value>,
    values: Vec<Value>,
    bytes: usize,
}

impl Line {
    fn record(self, of: &Of<'_>, nonce: String) -> StoredRecord {
        let mut members = Map::new();
        let mut add = |(name, value): (&str, Value)| members.insert(name.to_owned(), value);
        add(("type", "redactions".into()));
        add(("evaluation_id", of.evaluation_id.into()));
        add(("items", self.items.into()));
        add(("values", self.values.into()));
        about_case(&of.case.tenant, &of.case.id, &of.case.version, of.conversation)
            .into_iter()
            .for_each(|member| drop(add(member)));
        if !of.trace_id.is_empty() {
            add(("trace_id", of.trace_id.into()));
        }
        StoredRecord::new(members).with_nonce(nonce)
    }
}

/// Returns the path with `?` for each name that does not look like an identifier, because a caller's own name
/// may itself be a sensitive value. At most 16 names are shown.
fn visible_path(path: &str) -> String {
    let shown = path.split('.').take(16).map(|name| {
        let plain = name.split_once('[').map_or(name, |(name, _)| name);
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
