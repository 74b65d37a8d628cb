//! Kill switches: what is in force, setting one, and lifting one.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Form, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};
use serde::Deserialize;

use crate::desk::session::Session;
use crate::desk::{Desk, Human, page, refused};
use crate::model::halt::{Halt, HaltKind, SubjectKind};
use crate::model::text::visible;
use crate::model::time::Timestamp;
use crate::pdp::refused::run_to_completion;
use crate::pdp::signal_lifting::{KillSwitch, ToLift};

/// Longest id and longest reason, in bytes.
const ID_MAX: usize = 128;
const REASON_MAX: usize = 1024;
/// Hours for which a kill switch may be set.
const HOURS: [(u64, &str); 4] = [(1, "1 hour"), (8, "8 hours"), (24, "1 day"), (24 * 30, "30 days")];

pub(super) async fn show(State(desk): State<Arc<Desk>>, human: Human) -> Response {
    let tenant = desk.pdp.tenant_of_human(&human.session.human);
    let active = match desk.pdp.list_signals(&human.origin, Ok(tenant.clone())).await {
        Ok(active) => active,
        Err(fault) => return refused(&fault),
    };
    let (stops, others): (Vec<&Halt>, Vec<&Halt>) = active.iter().partition(|halt| halt.kind.stops());
    let now = desk.pdp.moment().now;
    let body = html! {
        p role="status" {
            @match stops.len() {
                0 => "Nothing is stopped.",
                1 => "1 kill switch or revoked session is in force.",
                some => { (some) " kill switches and revoked sessions are in force." }
            }
        }
        @for halt in &stops { (stopped(&human.session, halt, now)) }
        @if !others.is_empty() {
            section class="panel" {
                h2 { "Raised risk" }
                ul { @for halt in others { li { (halt.kind.name()) ": " (halt.subject_kind.name()) " " bdi { (visible(&halt.subject)) } ", for " (page::distance(now, halt.until)) } } }
            }
        }
        (set_form(&human.session, &desk.options.environment))
    };
    page::of(&desk, &human.session, "/stops", "Kill switches", &body)
}

fn stopped(session: &Session, halt: &Halt, now: Timestamp) -> Markup {
    html! {
        section class="panel stopped" {
            h2 { (halt.subject_kind.name()) " " bdi { (visible(&halt.subject)) } }
            p { (halt.kind.name().replace('_', " ")) " since " (page::time(halt.since)) ", ends in " (page::distance(now, halt.until)) }
            @if halt.kind == HaltKind::KillSwitch {
                form method="post" action="/stops/lift" {
                    (page::form_token(session))
                    input type="hidden" name="kind" value=(halt.subject_kind.name());
                    input type="hidden" name="subject" value=(halt.subject);
                    input type="hidden" name="tenant" value=(halt.tenant);
                    @let field = format!("lift-{}-{}", halt.subject_kind.name(), halt.subject);
                    label for=(field) { "Why it may be lifted" }
                    input id=(field) name="reason" required maxlength="500";
                    button type="submit" { "Lift" }
                }
            }
        }
    }
}

fn set_form(session: &Session, environment: &str) -> Markup {
    html! {
        section class="panel" {
            h2 { "Stop something" }
            form method="post" {
                (page::form_token(session))
                label for="kind" { "What" }
                select id="kind" name="kind" {
                    @for kind in [SubjectKind::Agent, SubjectKind::Supervisor, SubjectKind::Case, SubjectKind::Customer, SubjectKind::Tenant, SubjectKind::Server] {
                        option value=(kind.name()) { (words(kind)) }
                    }
                }
                label for="subject" { "Id (of everything: " (environment) ")" }
                input id="subject" name="subject" required maxlength="128" autocapitalize="off" autocomplete="off";
                label for="hours" { "For" }
                select id="hours" name="hours" { @for (hours, words) in HOURS { option value=(hours) selected[hours == 8] { (words) } } }
                label for="reason" { "Why" }
                input id="reason" name="reason" required maxlength="500";
                button type="submit" class="deny" { "Stop" }
            }
        }
    }
}

fn words(kind: SubjectKind) -> &'static str {
    match kind {
        SubjectKind::Agent => "an agent",
        SubjectKind::Case => "a case",
        SubjectKind::Customer => "a customer",
        SubjectKind::Server => "everything",
        SubjectKind::Supervisor => "a human",
        SubjectKind::Tenant => "the tenant",
    }
}

/// A kill switch as a form has it.
#[derive(Debug, Deserialize)]
pub(super) struct Asked {
    form: String,
    kind: String,
    subject: String,
    #[serde(default)]
    tenant: String,
    #[serde(default)]
    hours: u64,
    reason: String,
}

impl Asked {
    /// Returns kind, subject and reason.
    fn read(&self) -> Result<(SubjectKind, String, String), &'static str> {
        let kind = SubjectKind::from_name(&self.kind).ok_or("Choose what is meant.")?;
        let (subject, reason) = (self.subject.trim(), self.reason.trim());
        if !(1..=ID_MAX).contains(&subject.len()) || subject.contains(char::is_control) {
            return Err("Give the id of what is meant: 1 to 128 characters.");
        }
        if !(1..=REASON_MAX).contains(&reason.len()) {
            return Err("Say why, in at most 500 characters.");
        }
        Ok((kind, subject.to_owned(), reason.to_owned()))
    }
}

pub(super) async fn set(State(desk): State<Arc<Desk>>, human: Human, Form(asked): Form<Asked>) -> Response {
    if !human.session.made(&asked.form) {
        return page::stale_form();
    }
    let hours = HOURS.iter().find(|(hours, _)| *hours == asked.hours).map(|(hours, _)| *hours);
    let (kind, subject, reason, hours) = match (asked.read(), hours) {
        (Ok((kind, subject, reason)), Some(hours)) => (kind, subject, reason, hours),
        (Err(why), _) => return page::failure(StatusCode::BAD_REQUEST, "Nothing was stopped", why),
        (_, None) => return page::failure(StatusCode::BAD_REQUEST, "Nothing was stopped", "Choose for how long."),
    };
    let tenant = match kind {
        SubjectKind::Server => String::new(),
        _ => desk.pdp.tenant_of_human(&human.session.human),
    };
    let ttl = Duration::from_secs(hours * 3600);
    let switch = KillSwitch { tenant, subject_kind: kind, subject, ttl, reason };
    let (pdp, origin) = (Arc::clone(&desk.pdp), human.origin.clone());
    match run_to_completion(async move { pdp.set_kill_switch(&origin, Ok(switch)).await }).await {
        Ok(_) => (StatusCode::SEE_OTHER, [(header::LOCATION, "/stops")]).into_response(),
        Err(fault) => refused(&fault),
    }
}

pub(super) async fn lift(State(desk): State<Arc<Desk>>, human: Human, Form(asked): Form<Asked>) -> Response {
    if !human.session.made(&asked.form) {
        return page::stale_form();
    }
    let (subject_kind, subject, reason) = match asked.read() {
        Ok(read) => read,
        Err(why) => return page::failure(StatusCode::BAD_REQUEST, "Nothing was lifted", why),
    };
    let tenant = if subject_kind == SubjectKind::Server { String::new() } else { asked.tenant };
    let lift = ToLift { tenant, subject_kind, subject, reason };
    let (pdp, origin) = (Arc::clone(&desk.pdp), human.origin.clone());
    let lifted = run_to_completion(async move { pdp.lift_signal(&origin, Ok(lift)).await }).await;
    let progress = match lifted {
        Ok(recorded) => *recorded.value(),
        Err(fault) => return refused(&fault),
    };
    if progress.is_lifted {
        return (StatusCode::SEE_OTHER, [(header::LOCATION, "/stops")]).into_response();
    }
    let body = html! {
        p role="status" {
            strong { (progress.humans) " of " (progress.quorum) " humans have asked to lift it." }
            " It stays in force until another one does the same."
        }
        p { a href="/stops" { "To the kill switches" } }
    };
    page::of(&desk, &human.session, "/stops", "Not lifted yet", &body)
}
