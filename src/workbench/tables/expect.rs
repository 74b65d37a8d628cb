//! Compares what a case expects with the result.

use std::collections::BTreeSet;

use super::form::{Decision, Expect};
use crate::content::drafts::DraftReport;
use crate::model::answer::Obligation;
use crate::model::content::Disposition;
use crate::model::refusal::Refusal;
use crate::pdp::evaluation::Evaluation;

/// Returns the differences between the expected and the actual findings and disposition of a draft.
pub(super) fn in_draft(expect: &Expect, found: &DraftReport, disposition: Disposition) -> Vec<String> {
    let mut differences = vec![];
    if let Some(expected) = expect.disposition.filter(|expected| *expected != disposition) {
        differences.push(format!("disposition: expected {}, found {}", expected.name(), disposition.name()));
    }
    let claims = found.claims().into_iter().map(|claim| format!("claim/{claim}"));
    let all: BTreeSet<String> = claims.chain(found.kinds().into_iter().map(str::to_owned)).collect();
    let list = |items: BTreeSet<String>| format!("[{}]", items.into_iter().collect::<Vec<_>>().join(", "));
    if let Some(expected) = &expect.findings
        && expected.iter().cloned().collect::<BTreeSet<_>>() != all
    {
        differences.push(format!(
            "findings: expected {}, found {}",
            list(expected.iter().cloned().collect()),
            list(all)
        ));
    }
    differences
}

pub(super) fn list(items: &[String]) -> String {
    let mut items = items.to_vec();
    items.sort();
    format!("[{}]", items.join(", "))
}

/// Returns what decided: a gate, the policies, or what denied which link.
fn deciding(evaluation: &Evaluation) -> String {
    let verdict = &evaluation.verdict;
    match evaluation.gate {
        Some(gate) => format!("the gate `{}`", gate.name()),
        None if verdict.permits() => verdict.determining().join(", "),
        None => verdict.denials().join("; "),
    }
}

/// Returns the differences between the expected and the actual decision.
pub(super) fn differences(expect: &Expect, evaluation: &Result<Evaluation, Refusal>) -> Vec<String> {
    let mut found = vec![];
    let mut compare = |what: &str, expected: &str, actual: &str| {
        if expected != actual {
            found.push(format!(
                "{what}: expected {expected}, found {}",
                if actual.is_empty() { "none" } else { actual }
            ));
        }
    };
    let evaluation = match (evaluation, &expect.invalid) {
        (Err(Refusal::Invalid { field, .. }), Some(expected)) => {
            compare("invalid", expected, field);
            return found;
        }
        (Err(refusal), _) => {
            let expected = expect.decision.map_or("a decision", Decision::name);
            compare("decision", expected, &format!("a refusal ({})", refusal.in_full()));
            return found;
        }
        (Ok(_), Some(expected)) => {
            compare("invalid", expected, "a decision");
            return found;
        }
        (Ok(evaluation), None) => evaluation,
    };
    let outcome = &evaluation.outcome;
    if let Some(decision) = expect.decision {
        let actual = if outcome.denied.is_none() { Decision::Allow } else { Decision::Deny };
        compare("decision", decision.name(), actual.name());
    }
    if let Some(reason) = &expect.reason {
        compare("reason", reason, outcome.denied.map_or("", |reason| reason.name()));
    }
    if let Some(requires) = &expect.requires {
        let actual = outcome.missing.as_ref().map_or([].as_slice(), |missing| &missing.requires);
        compare("requires", &list(requires), &list(actual));
    }
    if let Some(policies) = &expect.policies {
        let actual: Vec<String> = evaluation.verdict.determining().into_iter().map(str::to_owned).collect();
        compare("policies", &list(policies), &list(&actual));
    }
    if let Some(obligations) = &expect.obligations {
        let actual: Vec<String> =
            outcome.obligations.iter().map(|Obligation { kind, value }| format!("{kind}:{value}")).collect();
        compare("obligations", &list(obligations), &list(&actual));
    }
    if let Some(advice) = &expect.advice {
        let actual: Vec<String> =
            outcome.advice.iter().map(|Obligation { kind, value }| format!("{kind}:{value}")).collect();
        compare("advice", &list(advice), &list(&actual));
    }
    if let Some(user) = &expect.user {
        compare("user", user, &outcome.user);
    }
    for (language, text) in expect.consent.iter().flatten() {
        let actual = outcome.missing.as_ref().and_then(|missing| missing.texts.get(language));
        compare(&format!("consent: {language}"), text, actual.map_or("", String::as_str));
    }
    if let Some(gate) = &expect.gate {
        compare("gate", gate, evaluation.gate.map_or("", |gate| gate.name()));
    }
    if !found.is_empty() {
        found.push(format!("determined by: {}", deciding(evaluation)));
    }
    found
}
