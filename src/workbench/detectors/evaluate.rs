//! Measures what detectors find in corpora, as proportions with confidence intervals (Wilson, 95 %).

mod evasions;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::content::Detectors;
use crate::content::drafts::{CLAIM, Draft, UNPLACED};
use crate::content::normalise::Views;
use crate::content::values::{ValueKey, Values};
use crate::model::call::Untrusted;
use crate::model::finding::SensitiveKind;
use crate::model::part::Part;
use crate::workbench::detectors::corpus::{Row, Span};
use crate::workbench::detectors::evaluate::evasions::EVASIONS;

/// Source name under which texts of corpora are screened.
const SOURCE: &str = "chat";
/// Source name under which outputs of tools are screened.
const TOOL: &str = "tool:orders";
/// Maximum number of words beside a value in a bare reply.
const BARE_WORDS: usize = 3;

/// A proportion measured on a corpus.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Measure {
    pub name: String,
    /// Number of items found.
    pub found: usize,
    /// Number of items measured.
    pub of: usize,
    /// Quotient of `found` and `of`.
    pub share: f64,
    /// Lower bound of the 95 % confidence interval.
    pub low: f64,
    /// Upper bound of the 95 % confidence interval.
    pub high: f64,
}

/// Numbers of found and of measured items, sorted by name.
#[derive(Default)]
struct Counts {
    counts: BTreeMap<String, (usize, usize)>,
    /// Name of the measure whose texts are collected, and the texts with whether they were found.
    shown: Option<(String, Vec<(bool, String)>)>,
    /// Text that is measured.
    text: String,
}

impl Counts {
    fn add(&mut self, name: impl Into<String>, found: bool) {
        let name = name.into();
        if let Some((_, texts)) = self.shown.as_mut().filter(|(shown, _)| *shown == name) {
            texts.push((found, self.text.clone()));
        }
        let (all, of) = self.counts.entry(name).or_default();
        *all += usize::from(found);
        *of += 1;
    }

    fn measures(self) -> Vec<Measure> {
        self.counts.into_iter().map(|(name, (found, of))| measure(name, found, of)).collect()
    }
}

fn measure(name: String, found: usize, of: usize) -> Measure {
    let float = |count: usize| u32::try_from(count).map_or(f64::MAX, f64::from);
    let (share, total, z) = (float(found) / float(of).max(1.0), float(of).max(1.0), 1.96_f64);
    let middle = (share + z * z / (2.0 * total)) / (1.0 + z * z / total);
    let half = z / (1.0 + z * z / total) * (share * (1.0 - share) / total + z * z / (4.0 * total * total)).sqrt();
    Measure { name, found, of, share, low: (middle - half).max(0.0), high: (middle + half).min(1.0) }
}

/// Runs every measurement that the lines' kinds allow.
pub fn evaluate(detectors: &Detectors, rows: &[Row]) -> Vec<Measure> {
    counted(detectors, rows, None).measures()
}

/// Returns the texts of one measure, each with whether it was found.
pub fn texts(detectors: &Detectors, rows: &[Row], measure: &str) -> Vec<(bool, String)> {
    counted(detectors, rows, Some((measure.to_owned(), vec![]))).shown.map_or_else(Vec::new, |(_, texts)| texts)
}

fn counted(detectors: &Detectors, rows: &[Row], shown: Option<(String, Vec<(bool, String)>)>) -> Counts {
    let mut counts = Counts { shown, ..Counts::default() };
    for row in rows {
        if counts.shown.is_some() {
            counts.text.clone_from(&row.text);
        }
        match row {
            Row { when, .. } if !when.is_empty() => drafts(detectors, row, &mut counts),
            Row { right_answer, .. } if !right_answer.is_empty() => answers(detectors, row, &mut counts),
            Row { status, .. } if !status.is_empty() => outcomes(detectors, row, &mut counts),
            Row { spans: Some(spans), .. } => values(detectors, row, spans, &mut counts),
            Row { kind: Some(kind), .. } => of_kind(detectors, row, kind, &mut counts),
            Row { label: Some(1), .. } => injections(detectors, row, &mut counts),
            Row { .. } => benign(detectors, row, &mut counts),
        }
    }
    counts
}

fn injections(detectors: &Detectors, row: &Row, counts: &mut Counts) {
    let found = |text: &str| screened(detectors, SOURCE, text).iter().any(|kind| kind == crate::content::INJECTION);
    let plain = found(&row.text);
    counts.add("injection: recall", plain);
    if !row.src.is_empty() {
        counts.add(format!("injection: recall of {}", row.src), plain);
    }
    for (name, evade) in EVASIONS {
        counts.add(format!("injection: recall under {name}"), found(&evade(&row.text)));
    }
    let kinds = screened(detectors, TOOL, &tool_output(&row.text));
    counts.add("injection: recall in an output of a tool", kinds.iter().any(|kind| kind == crate::content::INJECTION));
}

/// Kinds of findings by which a message of a customer is routed to other people.
const ROUTED: [&str; 2] = ["distress", "fraud"];

fn of_kind(detectors: &Detectors, row: &Row, kind: &str, counts: &mut Counts) {
    let kinds = screened(detectors, SOURCE, &row.text);
    let has = |kind: &str| kinds.iter().any(|found| found == kind);
    if !kind.is_empty() {
        counts.add(format!("{kind}: recall in {}", row.src), has(kind));
        return;
    }
    for kind in ROUTED {
        counts.add(format!("{kind}: false findings in {}", row.src), has(kind));
    }
}

fn benign(detectors: &Detectors, row: &Row, counts: &mut Counts) {
    let kinds = screened(detectors, SOURCE, &row.text);
    let source = if row.src.is_empty() { "benign texts" } else { &row.src };
    counts.add("injection: false positives", kinds.iter().any(|kind| kind == crate::content::INJECTION));
    counts.add(
        format!("injection: false positives in {source}"),
        kinds.iter().any(|kind| kind == crate::content::INJECTION),
    );
    let output = screened(detectors, TOOL, &tool_output(&row.text));
    counts.add(
        "injection: false positives in an output of a tool",
        output.iter().any(|kind| kind == crate::content::INJECTION),
    );
    let text = Untrusted { source: SOURCE.to_owned(), text: row.text.clone() };
    counts.add("languages: benign texts that count as unscreened", detectors.screen(&[text]).unscreened);
    for kind in kinds.iter().filter(|kind| *kind != crate::content::INJECTION) {
        counts.add(format!("{kind}: found in {source}"), true);
    }
    // Only unlabelled messages are known to be free of sensitive values: a `label` does not cover them.
    if row.label.is_none() {
        let found = private(detectors, &row.text, "");
        counts.add("values: false redactions", !found.is_empty());
        for (kind, _) in found {
            counts.add(format!("values: false redactions as {}", kind.name()), true);
        }
    }
}

/// Returns an output of a tool with a text of somebody in it.
fn tool_output(text: &str) -> String {
    let review = serde_json::json!({"rating": 4, "author": "R. Meyer", "content": text, "date": "2026-02-11"});
    serde_json::json!({"order": "A-20931", "state": "delivered", "items": [{"sku": "P-100", "title": "Phone, black, 128 GB",
        "reviews": [review]}], "total_minor": 49_900, "currency": "EUR"})
    .to_string()
}

fn screened(detectors: &Detectors, source: &str, text: &str) -> Vec<String> {
    let mut kinds: Vec<String> =
        detectors.screen_text(source, text, &Views::of(text)).into_iter().map(|finding| finding.kind).collect();
    kinds.sort();
    kinds.dedup();
    kinds
}

fn private(detectors: &Detectors, text: &str, turn: &str) -> Vec<(SensitiveKind, (usize, usize))> {
    let values = Values::new(ValueKey::new([0; 16]));
    detectors.private(text, turn, &values).into_iter().map(|located| (located.kind, located.span)).collect()
}

/// The measured kinds of values: name, labels in corpora, keywords that name the kind in a text, and words
/// that ask for it in the turn before.
const LABELS: [(&str, &[&str], &[&str], &str); 9] = [
    ("account_number", &["account_number", "target_account_number"], &["account"], "account number"),
    ("card_number", &["card_number", "credit_card"], &["card", "credit", "debit", "visa"], "card number"),
    ("email", &["email", "email_address"], &["@"], "e-mail address"),
    ("iban", &["iban", "iban_code"], &["iban"], "IBAN"),
    ("ip_address", &["ip_address"], &["."], "IP address"),
    ("password", &["password"], &["passw", "pwd", "passcode", "pass word"], "password"),
    (
        "phone",
        &["phone_number", "phonenumber", "phone"],
        &["phone", "mobile", "cell", "call", "contact", "tel", "number"],
        "phone number",
    ),
    ("pin", &["pin"], &["pin"], "PIN"),
    ("ssn", &["ssn", "us_ssn"], &["ssn", "social", "security"], "social security number"),
];

fn values(detectors: &Detectors, row: &Row, spans: &[Span], counts: &mut Counts) {
    let places: Vec<usize> = row.text.char_indices().map(|(at, _)| at).chain([row.text.len()]).collect();
    let mut labelled = false;
    for span in spans {
        let kind = span.r#type.to_lowercase();
        let Some((name, _, keywords, words)) = LABELS.iter().find(|(_, labels, ..)| labels.contains(&kind.as_str()))
        else {
            continue;
        };
        let (Some(start), Some(end)) = (places.get(span.start), places.get(span.end)) else { continue };
        labelled = true;
        let around = format!("{} {}", row.text.part(..*start), row.text.part(*end..));
        let bare = around.split_whitespace().count() <= BARE_WORDS;
        let asked = format!("What is your {words}?");
        let turn = if row.previous_turn.is_empty() && bare { &asked } else { &row.previous_turn };
        let found = private(detectors, &row.text, turn).iter().any(|(_, (from, to))| from < end && start < to);
        let lower = around.to_lowercase();
        let named = keywords.iter().any(|keyword| lower.contains(keyword) || row.text.contains('@') && *keyword == "@");
        let how = match (named, bare) {
            (true, _) => "with a keyword",
            (false, true) => "as a bare reply",
            (false, false) => "without a keyword",
        };
        counts.add(format!("{name}: recall {how}"), found);
    }
    if spans.is_empty() && !labelled {
        counts.add("values: redactions in texts without a label", !private(detectors, &row.text, "").is_empty());
    }
}

fn answers(detectors: &Detectors, row: &Row, counts: &mut Counts) {
    let flagged = |answer: &str| {
        evaluation(detectors, answer, vec![&row.knowledge, &row.question]).contains(&"ungrounded".to_owned())
    };
    counts.add("ungrounded: wrong answers flagged", flagged(&row.hallucinated_answer));
    counts.add("ungrounded: right answers flagged", flagged(&row.right_answer));
}

fn drafts(detectors: &Detectors, row: &Row, counts: &mut Counts) {
    let found = evaluation(detectors, &row.text, vec![]);
    let name = if row.when == "after_write" {
        "claim: drafts after a write found"
    } else {
        "claim: drafts before any write flagged"
    };
    counts.add(name, found.contains(&CLAIM.to_owned()));
    counts.add("unplaced_claim: drafts that go to a human", found.contains(&UNPLACED.to_owned()));
}

fn outcomes(detectors: &Detectors, row: &Row, counts: &mut Counts) {
    let found = evaluation(detectors, &row.text, vec![]);
    let name = if row.status == "success" {
        "claim: messages after a success found"
    } else {
        "claim: messages after a failure flagged"
    };
    counts.add(name, found.contains(&CLAIM.to_owned()));
    counts.add("unplaced_claim: messages that go to a human", found.contains(&UNPLACED.to_owned()));
}

fn evaluation(detectors: &Detectors, text: &str, sources: Vec<&str>) -> Vec<String> {
    let values = Values::new(ValueKey::new([0; 16]));
    let has_sources = !sources.is_empty();
    let draft = Draft {
        text,
        sources,
        customer: vec![],
        has_sources,
        unknown_source: false,
        confidence: 100,
        locale: "",
        redacted: &values,
    };
    detectors.draft(&draft).findings.into_iter().map(|finding| finding.kind).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_holds_its_share_and_narrows_with_numbers() {
        let (few, many) = (measure("few".into(), 8, 10), measure("many".into(), 800, 1000));
        for measure in [&few, &many] {
            assert!(measure.low < 0.8 && 0.8 < measure.high);
        }
        assert!(many.high - many.low < few.high - few.low);
        assert!((few.low - 0.490).abs() < 0.001 && (few.high - 0.943).abs() < 0.001, "{few:?}");
        let none = measure("none".into(), 0, 1000);
        assert!(none.low == 0.0 && none.high < 0.004);
    }
}
