//! The decision explorer: search in this replica's audit log, one decision with why it was made, and the timeline of a case.

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};
use serde::Deserialize;

use crate::audit::story::{Entry, Filter};
use crate::audit::told::{details, summary};
use crate::desk::{Desk, Human, page, refused};
use crate::model::text::visible;
use crate::model::time::Timestamp;
use crate::pdp::audit_reading::LINES_MAX;
use crate::pdp::explanation::Explanation;
use crate::policy::explain::{Clause, Explained};

/// Number of hours that a search covers by default, and at most.
const HOURS: u64 = 24;
const HOURS_MAX: u64 = 24 * 31;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    case: String,
    agent: String,
    human: String,
    reason: String,
    policy: String,
    decision: String,
    /// Hours before now.
    hours: String,
}

impl Asked {
    fn filter(&self, now: Timestamp) -> Filter {
        let some = |text: &String| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
        let hours = self.hours.trim().parse::<u64>().unwrap_or(HOURS).clamp(1, HOURS_MAX);
        Filter {
            case: some(&self.case),
            agent: some(&self.agent),
            human: some(&self.human),
            reason: some(&self.reason),
            policy: some(&self.policy),
            decision: some(&self.decision),
            kind: Some("decision".to_owned()),
            since: Some(now.minus(std::time::Duration::from_secs(hours * 3600))),
            ..Filter::default()
        }
    }
}

pub(super) async fn search(State(desk): State<Arc<Desk>>, human: Human, Query(asked): Query<Asked>) -> Response {
    let asked = Asked { hours: if asked.hours.is_empty() { "24".to_owned() } else { asked.hours.clone() }, ..asked };
    let now = desk.pdp.moment().now;
    let found = match desk.pdp.read_audit(&human.origin, asked.filter(now)).await {
        Ok(found) => found,
        Err(fault) => return refused(&fault),
    };
    let field = |name: &str, label: &str, value: &str| {
        html! { div { label for=(name) { (label) } input id=(name) name=(name) value=(value) maxlength="128"; } }
    };
    let body = html! {
        form method="get" class="search" role="search" {
            (field("case", "Case", &asked.case)) (field("agent", "Agent", &asked.agent)) (field("human", "Human", &asked.human))
            (field("reason", "Reason", &asked.reason)) (field("policy", "Policy", &asked.policy)) (field("hours", "Last hours", &asked.hours))
            div {
                label for="decision" { "Decision" }
                select id="decision" name="decision" {
                    @for (value, words) in [("", "any"), ("allow", "allow"), ("deny", "deny")] {
                        option value=(value) selected[asked.decision == value] { (words) }
                    }
                }
            }
            button type="submit" { "Search" }
        }
        p role="status" {
            @match found.len() {
                0 => "No decision matches.",
                LINES_MAX => { "The last " (LINES_MAX) " decisions that match. Narrow the search to see others." }
                1 => "1 decision matches.",
                some => { (some) " decisions match, the newest first." }
            }
        }
        @if !found.is_empty() { (table(&found)) }
    };
    page::of(&desk, &human.session, "/decisions", "Decisions", &body)
}

fn table(found: &[Entry]) -> Markup {
    html! {
        table class="rows" {
            thead { tr { th scope="col" { "Time" } th scope="col" { "Decision" } th scope="col" { "Action" } th scope="col" { "Case" }
                th scope="col" { "Agent" } th scope="col" { "Decided by" } } }
            tbody { @for entry in found {
                tr {
                    th scope="row" data-label="Time" {
                        a href=(format!("/decisions/{}", entry.text("/evaluation_id"))) { (page::time(entry.at)) }
                    }
                    td data-label="Decision" {
                        span class={ "verdict " (entry.text("/decision")) } { (visible(entry.text("/decision"))) } " " (visible(entry.text("/reason")))
                    }
                    td data-label="Action" { (visible(entry.text("/action"))) }
                    td data-label="Case" { a href=(case_page(entry.text("/case/id"))) { (visible(entry.text("/case/id"))) } }
                    td data-label="Agent" { (visible(entry.text("/chain/agent"))) }
                    td data-label="Decided by" { (visible(&decided_by(entry))) }
                }
            } }
        }
    }
}

fn decided_by(entry: &Entry) -> String {
    let policies = entry.policies();
    if policies.is_empty() { entry.text("/gate").to_owned() } else { policies.join(", ") }
}

fn case_page(case: &str) -> String {
    let case: String = oauth2::url::form_urlencoded::byte_serialize(case.as_bytes()).collect();
    format!("/cases/{}", case.replace('+', "%20"))
}

/// Shows a decision and what followed from it.
pub(super) async fn show(State(desk): State<Arc<Desk>>, human: Human, Path(evaluation): Path<String>) -> Response {
    let filter = Filter { evaluation: Some(evaluation), ..Filter::default() };
    let mut found = match desk.pdp.read_audit(&human.origin, filter).await {
        Ok(found) => found,
        Err(fault) => return refused(&fault),
    };
    found.reverse();
    let Some(decision) = found.iter().find(|entry| ["decision", "refusal"].contains(&entry.kind())).or(found.first())
    else {
        return page::failure(
            axum::http::StatusCode::NOT_FOUND,
            "There is no such decision",
            "This replica's log has no line about it in your tenant. Another replica may have made it.",
        );
    };
    let explanation = match desk.pdp.explain_recorded(&human.origin, decision).await {
        Ok(explanation) => explanation,
        Err(fault) => return refused(&fault),
    };
    let body = html! {
        p class={ "state verdict " (decision.text("/decision")) } role="status" { strong { (summary(decision)) } }
        section class="panel" {
            h2 { "Why" }
            (links(decision))
            (explained(&explanation))
        }
        section class="panel" {
            h2 { "Facts" }
            ul { @for fact in details(decision) { li { bdi { (fact) } } } }
        }
        (followed(&found, decision))
        section class="panel" {
            h2 { "Elsewhere" }
            ul {
                li { a href=(case_page(decision.text("/case/id"))) { "The case's timeline" } }
                li { a href=(format!("/decisions/{}/proof", decision.text("/evaluation_id"))) { "Proof that this line is in the audit log" } }
                @let trace = decision.text("/trace_id");
                @if !desk.options.trace_url.is_empty() && !trace.is_empty() {
                    li { a href=(desk.options.trace_url.replace("{trace_id}", trace)) rel="noreferrer" { "The trace" } }
                }
            }
        }
    };
    page::of(&desk, &human.session, "/decisions", "Decision", &body)
}

/// Shows what each principal of the chain was permitted, by which policies.
fn links(decision: &Entry) -> Markup {
    let links = decision.value.get("links").and_then(serde_json::Value::as_array).cloned().unwrap_or_default();
    let text = |link: &serde_json::Value, name: &str| {
        visible(link.get(name).and_then(serde_json::Value::as_str).unwrap_or(""))
    };
    let list = |link: &serde_json::Value, place: &str| {
        let items = link.pointer(place).and_then(serde_json::Value::as_array).into_iter().flatten();
        items.filter_map(|item| item.as_str()).map(visible).collect::<Vec<_>>().join(", ")
    };
    html! {
        @if links.is_empty() { p { "Policies were not asked: " (visible(decision.text("/gate"))) " decided before." } }
        @else {
            table class="rows" {
                thead { tr { th scope="col" { "Principal" } th scope="col" { "Permitted" } th scope="col" { "Policies that determined it" } th scope="col" { "Errors" } } }
                tbody { @for link in &links {
                    tr {
                        th scope="row" data-label="Principal" { (text(link, "principal")) }
                        td data-label="Permitted" { (if link.get("permitted") == Some(&true.into()) { "yes" } else { "no" }) }
                        td data-label="Policies" { (list(link, "/determining/items")) }
                        td data-label="Errors" { (list(link, "/errors/items")) }
                    }
                } }
            }
        }
    }
}

/// Shows the policies about each principal, whether each applied, and which clause prevented it.
fn explained(explanation: &Explanation) -> Markup {
    let (links, rules) = match explanation {
        Explanation::Of { links, rules } => (links, rules),
        Explanation::Missing(why) => return html! { p { "The policies can't be evaluated again: " (why) "." } },
    };
    html! {
        @for (link, policies) in links {
            details {
                summary { "Policies about the " (link.name().replace('_', " ")) " (" (policies.len()) ")" }
                ul { @for one in policies {
                    li {
                        code { (one.policy) }
                        (match (one.forbids, one.applies()) {
                            (false, true) => " permits",
                            (false, false) => " does not permit",
                            (true, true) => " forbids",
                            (true, false) => " does not forbid",
                        })
                        @for clause in deciding(one) {
                            ": " code { (visible(&clause.text)) }
                            @match clause.result { Err(class) => { " fails (" (class) ")" } Ok(true) => " is true", Ok(false) => " is false" }
                        }
                    }
                } }
            }
        }
        details {
            summary { "These policies, as the bundle that decided has them" }
            @for rule in rules {
                p { code { (rule.id) } " " (rule.doc) " (" (rule.place) ")" }
                pre { code { (rule.source) } }
            }
        }
    }
}

/// Returns the clauses that say why a policy applies, which are those of `unless`, or the one that prevents it.
fn deciding(one: &Explained) -> impl Iterator<Item = &Clause> {
    let applies = one.applies();
    let last = one.clauses.len().saturating_sub(1);
    let all = one.clauses.iter().enumerate();
    all.filter(move |(at, clause)| if applies { clause.is_unless } else { *at == last }).map(|(_, clause)| clause)
}

fn followed(found: &[Entry], decision: &Entry) -> Markup {
    let others: Vec<&Entry> = found.iter().filter(|entry| entry.seq != decision.seq).collect();
    html! {
        @if !others.is_empty() {
            section class="panel" {
                h2 { "What followed" }
                ol { @for entry in others { li { (page::time(entry.at)) " " bdi { (summary(entry)) } } } }
            }
        }
    }
}

/// Shows the lines of a case in order.
pub(super) async fn case(State(desk): State<Arc<Desk>>, human: Human, Path(case): Path<String>) -> Response {
    let filter = Filter { case: Some(case.clone()), ..Filter::default() };
    let mut found = match desk.pdp.read_audit(&human.origin, filter).await {
        Ok(found) => found,
        Err(fault) => return refused(&fault),
    };
    found.reverse();
    let body = html! {
        p role="status" {
            @match found.len() {
                0 => "This replica's log has no line about this case in your tenant.",
                LINES_MAX => { "The last " (LINES_MAX) " lines of this case." }
                some => { (some) " lines, in order." }
            }
        }
        ol class="timeline" { @for entry in &found {
            li {
                (page::time(entry.at)) " "
                @let evaluation = entry.text("/evaluation_id");
                @if evaluation.is_empty() { bdi { (summary(entry)) } }
                @else { a href=(format!("/decisions/{evaluation}")) { bdi { (summary(entry)) } } }
            }
        } }
    };
    page::of(&desk, &human.session, "/decisions", &format!("Case {}", visible(&case)), &body)
}

/// Answers with the proof of a decision's line, as a file.
pub(super) async fn proof(State(desk): State<Arc<Desk>>, human: Human, Path(evaluation): Path<String>) -> Response {
    match desk.pdp.prove_line(&human.origin, evaluation).await {
        Ok(proof) => {
            let name = format!("attachment; filename=\"{}.tlog-proof\"", proof.index);
            let kind = "text/plain; charset=utf-8".to_owned();
            ([(header::CONTENT_DISPOSITION, name), (header::CONTENT_TYPE, kind)], proof.text).into_response()
        }
        Err(fault) => refused(&fault),
    }
}
