//! Runs `tests/*.json` in the JSON test format of `cedar run-tests`: plain Cedar, without gates.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::Value;

use crate::bundle::Bundle;
use crate::model::call::{Correlation, EntityReference, PlainCall};
use crate::pdp::conformance::evaluate_plain;
use crate::pdp::snapshot::OnError;
use crate::policy::Validation;
use crate::workbench::tables::{Failure, Report};

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    #[serde(default)]
    name: String,
    request: Request,
    /// Entities in Cedar's JSON form; if omitted, the bundle's own.
    entities: Option<Value>,
    decision: String,
    /// Policies that must be among the determining ones.
    #[serde(default)]
    reason: Vec<String>,
    /// Policies that must be exactly the determining ones.
    exact_reason: Option<Vec<String>>,
    num_errors: Option<usize>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    principal: String,
    action: String,
    resource: String,
    #[serde(default)]
    context: Value,
}

/// Runs every JSON test of a bundle.
pub fn run(bundle: &Bundle, validation: Validation) -> Report {
    let mut report = Report::default();
    for source in bundle.tests.iter().filter(|source| source.file.ends_with(".json")) {
        let fail = |case: String, differences| Failure { file: source.file.clone(), line: 1, case, differences };
        let cases: Vec<Case> = match serde_json::from_str(&source.text) {
            Ok(cases) => cases,
            Err(error) => {
                report.failures.push(fail(String::new(), vec![error.to_string()]));
                continue;
            }
        };
        for (index, case) in cases.iter().enumerate() {
            report.decisions += 1;
            match differences(bundle, validation, case) {
                Ok((allowed, differences)) => {
                    *(if allowed { &mut report.allowed } else { &mut report.denied }) += 1;
                    if !differences.is_empty() {
                        report.failures.push(fail(format!("{} {}", index + 1, case.name), differences));
                    }
                }
                Err(problem) => report.failures.push(fail(format!("{} {}", index + 1, case.name), vec![problem])),
            }
        }
    }
    report
}

fn differences(bundle: &Bundle, validation: Validation, case: &Case) -> Result<(bool, Vec<String>), String> {
    let text = |value: &Value| if value.is_null() { vec![] } else { value.to_string().into_bytes() };
    let call = PlainCall {
        correlation: Correlation::default(),
        principal: reference(&case.request.principal)?,
        action: reference(&case.request.action)?,
        resource: reference(&case.request.resource)?,
        context: text(&case.request.context),
        entities: case.entities.as_ref().map_or_else(Vec::new, text),
    };
    let evaluation = evaluate_plain(bundle, &call, validation, OnError::Skip).map_err(|refusal| refusal.to_string())?;
    let link = evaluation.verdict.links.first().ok_or("no link was evaluated")?;
    let mut found = vec![];
    let allowed = evaluation.outcome.denied.is_none();
    let decision = if allowed { "allow" } else { "deny" };
    if case.decision.to_lowercase() != decision {
        found.push(format!("decision: expected {}, found {decision}", case.decision));
    }
    let determining: BTreeSet<&String> = link.determining.iter().collect();
    let missing: Vec<&String> = case.reason.iter().filter(|id| !determining.contains(id)).collect();
    let exact = case.exact_reason.as_ref().is_none_or(|exact| exact.iter().collect::<BTreeSet<_>>() == determining);
    if !missing.is_empty() || !exact {
        found.push(format!(
            "reason: expected {:?}, found {:?}",
            case.exact_reason.as_ref().unwrap_or(&case.reason),
            link.determining
        ));
    }
    if case.num_errors.is_some_and(|count| count != link.errors.len()) {
        found.push(format!("num_errors: expected {:?}, found {}", case.num_errors, link.errors.len()));
    }
    Ok((allowed, found))
}

/// Parses `Type::"id"` in Cedar's syntax.
fn reference(text: &str) -> Result<EntityReference, String> {
    let uid: cedar_policy::EntityUid =
        text.parse().map_err(|_| format!("`{text}` is not an entity uid such as `Type::\"id\"`"))?;
    Ok(EntityReference { kind: uid.type_name().to_string(), id: uid.id().unescaped().to_owned() })
}
