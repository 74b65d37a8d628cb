//! One request for approval, and its review. The page shows the lines of the reviewer's view, whose digest a review repeats: what a
//! reviewer sees is what is approved.

use std::sync::Arc;

use axum::extract::{Form, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};
use serde::Deserialize;

use crate::approvals::store::reads::Filter;
use crate::approvals::view;
use crate::desk::draft::draft;
use crate::desk::{Desk, Human, page, refused};
use crate::json;
use crate::model::approval::{State as ApprovalState, repeated};
use crate::model::text::{hex, visible};
use crate::pdp::approval_access::{Seen, display_digest};
use crate::pdp::approval_review::ToReview;
use crate::pdp::refused::run_to_completion;
use crate::policy::rule::{Requirement, Rule};

/// Longest reason, in bytes.
const REASON_MAX: usize = 2000;
/// Maximum number of other requests of the case that are read, and that are shown.
const OTHERS_MAX: i64 = 200;
const SHOWN_MAX: usize = 10;

/// Reasons of a denial that an agent can act on.
const REASONS: [(&str, &str); 6] = [
    ("wrong_amount", "The amount is wrong"),
    ("wrong_subject", "It is the wrong case, customer or order"),
    ("not_justified", "The justification does not support it"),
    ("against_policy", "It is against our policy"),
    ("needs_human", "A human must handle this case"),
    ("other", "Another reason, as written below"),
];

/// Parts of the page: the title, and the beginnings of the names of its lines. A line is in the first part that has it.
const PARTS: [(&str, &[&str]); 6] = [
    ("What would happen", &["approval", "action", "reversibility", "argument", "computed", "found in the draft"]),
    ("Customer's consent", &["customer's consent", "shown to the customer"]),
    ("Case and record", &["tenant", "case", "resource", "fact"]),
    ("Risk and evidence", &["risk", "evidence"]),
    ("Who asks", &["agent", "for", "in step", "by tool service"]),
    ("Limits", &["requires", "reviewers needed", "usable for", "evaluation", "policy", "environment"]),
];

/// A line of the reviewer's view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line<'d> {
    name: &'d str,
    value: &'d str,
}

/// Returns the lines of the reviewer's view. Its values have no line breaks, and no name of the view has a colon.
fn lines(display: &str) -> Vec<Line<'_>> {
    display.lines().filter_map(|line| line.split_once(": ")).map(|(name, value)| Line { name, value }).collect()
}

/// Returns the part of the page that a line belongs to. Attributes of a record begin with the record's type.
fn part(name: &str) -> usize {
    let begins =
        |beginning: &&str| name == *beginning || name.strip_prefix(beginning).is_some_and(|rest| rest.starts_with(' '));
    PARTS.iter().position(|(_, names)| names.iter().any(begins)).unwrap_or(2)
}

pub(super) async fn show(State(desk): State<Arc<Desk>>, human: Human, Path(id): Path<String>) -> Response {
    let (seen, why_not) = match desk.pdp.request_for_review(&human.origin, id).await {
        Ok(found) => found,
        Err(fault) => return refused(&fault),
    };
    let filter = Filter { case: seen.approval.binding.call.case.clone(), most: OTHERS_MAX, ..Filter::default() };
    let others = match desk.pdp.list_approvals(&human.origin, Ok(filter)).await {
        Ok((others, _)) => others,
        Err(fault) => return refused(&fault),
    };
    let moment = desk.pdp.moment();
    let rules = moment.snapshot.bundle.policies.rules();
    let asking: Vec<&Rule> = rules.into_values().filter(|rule| asks(rule, &seen)).collect();
    let template = moment.snapshot.bundle.approvals.templates.get(&seen.approval.binding.template);
    // The strength that the template asks for and the session lacks.
    let stronger =
        template.and_then(|template| template.acr.first()).filter(|acr| **acr != human.session.human().acr).cloned();
    let call = &seen.approval.binding.call;
    let title = format!("{} for case {}", visible(&call.action), visible(&call.case));
    let body = html! {
        (state(&seen, moment.now))
        div id="live" data-changes="/changes" {
            (draft(&seen))
            (view_of(&desk, &seen))
            (justification(&seen))
            (policies(&asking))
            (reviews(&seen))
            (earlier(&seen, &others, moment.now))
        }
        (decision(&human, &seen, why_not, stronger.as_deref()))
    };
    page::of(&desk, &human.session, "/", &title, &body)
}

/// Returns whether a policy asks for the approval.
fn asks(rule: &Rule, seen: &Seen) -> bool {
    matches!(&rule.requires, Some(Requirement::Approval(template)) if *template == seen.approval.binding.template)
}

fn state(seen: &Seen, now: crate::model::time::Timestamp) -> Markup {
    let approval = &seen.approval;
    let words = match seen.state {
        ApprovalState::Pending => {
            format!(
                "Waits for {} of {} reviewers; expires in {}.",
                u64::from(seen.quorum).saturating_sub(approval.approvers().count() as u64),
                seen.quorum,
                page::distance(now, approval.review_until)
            )
        }
        ApprovalState::Approved => {
            format!("Approved; may be used once within {}.", page::distance(now, approval.approved_until))
        }
        ApprovalState::Denied => "Denied.".to_owned(),
        ApprovalState::Consumed => "Approved and used.".to_owned(),
        ApprovalState::Expired => "Expired. Nothing was approved for later.".to_owned(),
        ApprovalState::Cancelled => "Cancelled by who asked.".to_owned(),
        ApprovalState::Revoked => "Revoked.".to_owned(),
    };
    html! {
        p class={ "state " (seen.state.name()) } role="status" { strong { (words) } " Requested " (page::time(approval.requested_at)) "." }
        @if approval.repeats > 0 { p { "The same call was " (repeated(approval.repeats)) "." } }
        @if seen.bundles_differ {
            p class="notice" { "The replicas have different bundles in force, so what is allowed may differ from one to the next." }
        }
    }
}

/// Shows the lines of the reviewer's view, part by part.
fn view_of(desk: &Desk, seen: &Seen) -> Markup {
    let all = lines(&seen.approval.display);
    let call = &seen.approval.binding.call;
    let case_url = desk.options.case_url.replace("{case}", &encoded(&call.case));
    html! {
        @for (index, (title, _)) in PARTS.iter().enumerate() {
            @let own: Vec<&Line<'_>> = all.iter().filter(|line| part(line.name) == index).collect();
            @if !own.is_empty() {
                section class="panel" {
                    h2 { (title) }
                    dl {
                        @for line in own {
                            div class=[weighty(line.name).then_some("weighty")] {
                                dt { (line.name) }
                                dd {
                                    bdi { (line.value) }
                                    @if let Some(then) = current(&all, line.name, &call.resource_type) {
                                        " " span class="mark" { "in the record when asked: " bdi { (then) } }
                                    }
                                    @if line.name == "case" && !desk.options.case_url.is_empty() {
                                        " " a href=(case_url) rel="noreferrer" { "Open the case" }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Returns whether a line says what is moved, and to whom.
fn weighty(name: &str) -> bool {
    let words = ["amount", "recipient", "currency", "iban", "email", "address", "plan"];
    name.starts_with("argument ") && words.iter().any(|word| name.contains(word)) || name == "reversibility"
}

/// Returns the value that the record has where a call has an argument of the same name.
fn current<'d>(all: &[Line<'d>], name: &str, resource: &str) -> Option<&'d str> {
    let argument = name.strip_prefix("argument ")?.trim_end_matches(" at most");
    let is_known = |line: &&Line<'_>| {
        let (of, attribute) = line.name.rsplit_once(' ').unwrap_or_default();
        attribute == argument && (of == "case" || of == visible(resource))
    };
    all.iter().find(is_known).map(|line| line.value)
}

/// Returns a text as a part of a URL.
fn encoded(text: &str) -> String {
    oauth2::url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

fn justification(seen: &Seen) -> Markup {
    let written = view::unverified(&seen.approval.justification);
    let rows = [
        ("Customer's request", &written.customer_request),
        ("Policy clause", &written.policy_clause),
        ("Expected effect", &written.expected_effect),
    ];
    html! {
        section class="panel unverified" aria-label="Written by the agent, not verified" {
            h2 { "Written by the agent, not verified" }
            dl { @for (name, text) in rows { @if !text.is_empty() { div { dt { (name) } dd { bdi { (text) } } } } } }
        }
    }
}

fn policies(asking: &[&Rule]) -> Markup {
    html! {
        @if !asking.is_empty() {
            section class="panel" {
                h2 { "Policies that ask for this approval" }
                @for rule in asking {
                    details {
                        summary { code { (rule.id) } " " (rule.doc) " (" (rule.place) ")" }
                        pre { code { (rule.source) } }
                    }
                }
            }
        }
    }
}

fn reviews(seen: &Seen) -> Markup {
    html! {
        @if !seen.approval.reviews.is_empty() {
            section class="panel" {
                h2 { "Reviews" }
                ul { @for review in &seen.approval.reviews {
                    li {
                        strong { (visible(&review.reviewer.sub)) } " " (if review.approves { "approved" } else { "denied" }) " "
                        (page::time(review.at)) @if !review.reason.is_empty() { ": " bdi { (visible(&review.reason)) } }
                    }
                } }
            }
        }
    }
}

fn earlier(seen: &Seen, others: &[Seen], now: crate::model::time::Timestamp) -> Markup {
    let others: Vec<&Seen> = others.iter().rev().filter(|other| other.approval.id != seen.approval.id).collect();
    html! {
        @if !others.is_empty() {
            section class="panel" {
                h2 { "Other requests of this case, the newest first (" (others.len()) ")" }
                ul { @for other in others.iter().take(SHOWN_MAX) {
                    li {
                        a href=(format!("/requests/{}", other.approval.id)) { (visible(&other.approval.binding.call.action)) }
                        " " (other.state.name()) ", " (page::distance(other.approval.requested_at, now)) " ago"
                    }
                } }
            }
        }
    }
}

/// Shows the forms of a review, or the reason why the human can't review.
fn decision(human: &Human, seen: &Seen, why_not: Option<&str>, stronger: Option<&str>) -> Markup {
    let digest = hex(display_digest(&seen.approval.display));
    let hidden = html! {
        (page::form_token(&human.session))
        input type="hidden" name="digest" value=(digest);
    };
    html! {
        @if seen.state != ApprovalState::Pending {
        } @else if let Some(why) = why_not {
            section class="panel" {
                h2 { "Your decision" }
                p { "You can't review this: " (why) "." }
                @if let Some(acr) = stronger {
                    @let to = encoded(&format!("/requests/{}", seen.approval.id));
                    p { a href=(format!("/login?acr={}&to={to}", encoded(acr))) { "Sign in again with stronger authentication" } }
                }
            }
        } @else {
            section class="panel" id="decide" {
                h2 { "Your decision" }
                form method="post" {
                    (hidden)
                    input type="hidden" name="decision" value="approve";
                    label for="why" { "Note (optional)" }
                    input id="why" name="text" maxlength="500";
                    button type="submit" class="approve" { "Approve" }
                }
                form method="post" {
                    (hidden)
                    input type="hidden" name="decision" value="deny";
                    label for="reason" { "Reason" }
                    select id="reason" name="reason" required { @for (code, words) in REASONS { option value=(code) { (words) } } }
                    label for="text" { "In your words (the agent is told)" }
                    textarea id="text" name="text" rows="2" maxlength="500" {}
                    details {
                        summary { "Suggest other arguments" }
                        label for="suggested" { "Arguments that you would approve, as JSON" }
                        textarea id="suggested" name="suggested" rows="4" { (arguments(seen)) }
                        label class="check" { input type="checkbox" name="suggests" value="yes"; " Send these arguments with the denial" }
                    }
                    button type="submit" class="deny" { "Deny" }
                }
            }
        }
    }
}

fn arguments(seen: &Seen) -> String {
    let arguments = json::Value::Object(seen.approval.binding.call.arguments());
    String::from_utf8_lossy(&json::canonical(&arguments)).into_owned()
}

/// A review as the form has it.
#[derive(Debug, Deserialize)]
pub(super) struct Review {
    form: String,
    digest: String,
    decision: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    text: String,
    #[serde(default)]
    suggested: String,
    #[serde(default)]
    suggests: String,
}

impl Review {
    fn read(self, id: String) -> Result<ToReview, &'static str> {
        let approves = match self.decision.as_str() {
            "approve" => true,
            "deny" => false,
            _ => return Err("Choose to approve or to deny."),
        };
        let known = REASONS.iter().find(|(code, _)| *code == self.reason);
        // The agent reads it, so no character in it may mislead.
        let text = visible(self.text.trim());
        let reason = match (approves, known) {
            (true, _) => text,
            (false, Some((code, words))) => match text.as_str() {
                "" => format!("{code}: {words}"),
                text => format!("{code}: {text}"),
            },
            (false, None) => return Err("Choose a reason for the denial."),
        };
        if reason.len() > REASON_MAX {
            return Err("The reason is too long: use at most 500 characters.");
        }
        let suggested = match self.suggests.as_str() {
            "yes" if !approves => Some(
                json::read_object(self.suggested.as_bytes())
                    .map_err(|_| "The suggested arguments are no JSON object.")?,
            ),
            _ => None,
        };
        let digest = unhex(&self.digest).ok_or("The form is damaged. Open the page again.")?;
        Ok(ToReview { id, approves, reason, suggested, display_digest: digest })
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    data_encoding::HEXLOWER.decode(text.as_bytes()).ok()
}

pub(super) async fn review(
    State(desk): State<Arc<Desk>>,
    Path(id): Path<String>,
    human: Human,
    Form(review): Form<Review>,
) -> Response {
    if !human.session.made(&review.form) {
        return page::stale_form();
    }
    let to = format!("/requests/{}", encoded(&id));
    let review = match review.read(id) {
        Ok(review) => review,
        Err(why) => return page::failure(StatusCode::BAD_REQUEST, "This review can't be used", why),
    };
    let (pdp, origin) = (Arc::clone(&desk.pdp), human.origin.clone());
    match run_to_completion(async move { pdp.review_approval(&origin, Ok(review)).await }).await {
        Ok(_) => (StatusCode::SEE_OTHER, [(header::LOCATION, to)]).into_response(),
        Err(fault) => refused(&fault),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_view_has_a_place_and_arguments_show_the_record_s_value() {
        let display = "approval: credit (Credit an account)\ncase: C-1 version 3\ncase customer: \"c: 1\"\nAccount plan: \"basic\"\n\
                       argument plan: \"pro\"\nargument amount_minor at most: 400\nrisk: low 0\nfor: rep-1\nsomething new: x\n";
        let all = lines(display);
        assert_eq!(all.len(), 9);
        assert_eq!(all[2], Line { name: "case customer", value: "\"c: 1\"" });
        let titles: Vec<&str> = all.iter().map(|line| PARTS[part(line.name)].0).collect();
        assert_eq!(titles[0], "What would happen");
        assert_eq!(&titles[1..4], ["Case and record"; 3]);
        assert_eq!((titles[4], titles[6], titles[7]), ("What would happen", "Risk and evidence", "Who asks"));
        assert_eq!(titles[8], "Case and record", "an unknown line is shown, too");
        assert_eq!(current(&all, "argument plan", "Account"), Some("\"basic\""));
        assert_eq!(current(&all, "argument amount_minor at most", "Account"), None);
        assert!(weighty("argument amount_minor at most") && !weighty("case plan"));
    }

    #[test]
    fn a_review_needs_a_decision_a_reason_of_a_denial_and_arguments_that_are_an_object() {
        let review = |decision: &str, reason: &str, suggested: &str| Review {
            form: String::new(),
            digest: "00ff".into(),
            decision: decision.into(),
            reason: reason.into(),
            text: " too much ".into(),
            suggested: suggested.into(),
            suggests: "yes".into(),
        };
        let denied = review("deny", "wrong_amount", r#"{"amount_minor":5}"#).read("apr".into()).expect("read");
        assert_eq!((denied.approves, denied.reason.as_str()), (false, "wrong_amount: too much"));
        assert!(denied.suggested.is_some());
        assert_eq!(denied.display_digest, [0, 255]);
        for (decision, reason, suggested) in
            [("", "other", "{}"), ("deny", "", "{}"), ("deny", "made_up", "{}"), ("deny", "other", "[1]")]
        {
            assert!(review(decision, reason, suggested).read("apr".into()).is_err(), "{decision} {reason}");
        }
        assert!(review("approve", "", "[1]").read("apr".into()).expect("read").suggested.is_none());
    }
}
