//! The reviewer's view of a call, rendered from the signed binding token, proven evidence and the template.
//! It shows every member of the call, and no character in it can mislead the reviewer.

use std::fmt::Write as _;

use crate::approvals::template::Template;
use crate::json::{Object, Value, canonical};
use crate::model::approval::{Binding, Evidence, Justification, Subject};
use crate::model::text::visible;

/// Returns the reviewer's view as lines of text. Its SHA-256 is the display digest that a review must repeat.
///
/// `derived` are the values that the PDP computes from the arguments. Every value is on its own line after its name. Line breaks, characters that reverse text and invisible
/// characters are escaped, so that no value can imitate another line.
pub fn display(binding: &Binding, derived: &Object, evidence: &[Evidence], template: &Template) -> String {
    let call = &binding.call;
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing to a string can't fail.
        let _written = writeln!(text, "{name}: {}", visible(value));
    };
    line("approval", &format!("{} ({})", binding.template, template.title));
    line("reversibility", &template.reversibility.name().replace('_', " "));
    line("tenant", &call.tenant);
    line("environment", &call.environment);
    line("case", &format!("{} version {}", call.case, call.case_version));
    for (name, value) in &call.case_attributes {
        line(&format!("case {}", visible(name)), &text_of(value));
    }
    line("action", &call.action);
    let version =
        if call.resource_version.is_empty() { String::new() } else { format!(" version {}", call.resource_version) };
    line("resource", &format!("{} {}{version}", call.resource_type, call.resource_id));
    for (name, value) in &call.resource_attributes {
        line(&format!("{} {}", visible(&call.resource_type), visible(name)), &text_of(value));
    }
    for (name, value) in &call.facts {
        line(&format!("fact {}", visible(name)), &text_of(value));
    }
    for (name, value) in &call.at_most {
        line(&format!("argument {} at most", visible(name)), &text_of(value));
    }
    for (name, value) in &call.exact {
        line(&format!("argument {}", visible(name)), &text_of(value));
    }
    for (name, value) in derived {
        line(&format!("computed {}", visible(name)), &text_of(value));
    }
    match &binding.findings {
        Some(findings) if findings.is_empty() => line("found in the draft", "nothing"),
        Some(findings) => findings.iter().for_each(|found| line("found in the draft", found)),
        None => {}
    }
    if let Some(consent) = &binding.consent {
        line(
            "customer's consent",
            &format!("{} of {}, reported by {}", consent.id, consent.given_at, consent.reported_by),
        );
        line("shown to the customer", &consent.text);
    }
    if !binding.risk.is_empty() {
        line("risk", &binding.risk);
    }
    for Evidence { id, action, allowed, at } in evidence {
        line("evidence", &format!("{id}: {action} was {} at {at}", if *allowed { "allowed" } else { "denied" }));
    }
    line("agent", &of(&call.agent));
    line("for", &of(&call.supervisor));
    line("in step", &call.step);
    line("by tool service", &call.audience);
    line("requires", &binding.requires.join(", "));
    line("reviewers needed", &binding.quorum.to_string());
    line("usable for", &format!("{} minutes, once", template.use_minutes));
    line("evaluation", &binding.evaluation_id);
    line("policy", &binding.policy);
    text
}

/// Returns the justification for display, separate from the view, because an agent wrote it and nothing in it
/// is verified.
pub fn unverified(justification: &Justification) -> Justification {
    Justification {
        customer_request: visible(&justification.customer_request),
        evidence: justification.evidence.iter().map(|id| visible(id)).collect(),
        policy_clause: visible(&justification.policy_clause),
        expected_effect: visible(&justification.expected_effect),
    }
}

fn of(subject: &Subject) -> String {
    match subject.iss.as_str() {
        "" => format!("{} (asserted by the tool service)", subject.sub),
        issuer => format!("{} of {issuer}", subject.sub),
    }
}

fn text_of(value: &Value) -> String {
    String::from_utf8_lossy(&canonical(value)).into_owned()
}
