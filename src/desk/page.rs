//! The frame of every page, and pages that say what went wrong.

use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use maud::{DOCTYPE, Markup, html};

use crate::desk::Desk;
use crate::desk::session::Session;
use crate::model::text::visible;
use crate::model::time::Timestamp;

/// Pages in the navigation: address and name.
const PAGES: [(&str, &str); 4] =
    [("/", "Requests"), ("/decisions", "Decisions"), ("/stops", "Kill switches"), ("/bundle", "Bundle")];

/// Returns a page of a signed-in human. `at` is its address in the navigation.
pub(super) fn of(desk: &Desk, session: &Session, at: &str, title: &str, body: &Markup) -> Response {
    let stops = desk.pdp.stops_of(&desk.pdp.tenant_of_human(&session.human));
    let top = html! {
        nav aria-label="Pages" {
            @for (address, name) in PAGES {
                @if address == at { a href=(address) aria-current="page" { (name) } } @else { a href=(address) { (name) } }
            }
        }
        form method="post" action="/logout" class="who" {
            (form_token(session))
            span { (visible(&session.human)) }
            button type="submit" class="quiet" { "Sign out" }
        }
    };
    let notice = (stops > 0).then(|| {
        let what = if stops == 1 {
            "1 kill switch or revoked session is in force."
        } else {
            "Kill switches or revoked sessions are in force."
        };
        html! { p class="notice" role="status" { (what) " " a href="/stops" { "Show them" } } }
    });
    Html(frame(&desk.options.environment, title, &top, &html! { (notice.unwrap_or_default()) (body) })).into_response()
}

/// Returns a page that needs no session.
pub(super) fn of_nobody(desk: &Desk, title: &str, body: &Markup) -> Response {
    Html(frame(&desk.options.environment, title, &html! {}, body)).into_response()
}

/// Returns a page that says what went wrong and what to do.
pub(super) fn failure(status: StatusCode, title: &str, text: &str) -> Response {
    let body = html! {
        div class="panel" role="alert" { p { (visible(text)) } }
        p { a href="/" { "To the requests" } }
    };
    (status, Html(frame("", title, &html! {}, &body))).into_response()
}

pub(super) fn unavailable(why: &str) -> Response {
    failure(StatusCode::SERVICE_UNAVAILABLE, "The server can't answer now", &format!("{why}. Try again in a moment."))
}

pub(super) fn stale_form() -> Response {
    failure(
        StatusCode::FORBIDDEN,
        "This form is of another session",
        "Nothing was changed. Open the page again and repeat what you did.",
    )
}

fn frame(environment: &str, title: &str, top: &Markup, body: &Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · Countersign" }
                link rel="stylesheet" href="/desk.css";
                script src="/desk.js" defer {}
            }
            body {
                a class="skip" href="#main" { "Skip to the content" }
                header {
                    p class="brand" { "Countersign" @if !environment.is_empty() { " " span { (environment) } } }
                    (top)
                }
                main id="main" tabindex="-1" { h1 { (title) } (body) }
            }
        }
    };
    page.into_string()
}

/// Returns the field that every form of a session has.
pub(super) fn form_token(session: &Session) -> Markup {
    html! { input type="hidden" name="form" value=(session.form); }
}

/// Returns a time for people: in UTC, to the second.
pub(super) fn time(at: Timestamp) -> Markup {
    let text = at.to_string();
    let (date, rest) = text.split_once('T').unwrap_or((&text, ""));
    let clock = rest.get(..8).unwrap_or(rest);
    html! { time datetime=(text) { (date) " " (clock) " UTC" } }
}

/// Returns how long it is until a time, or since it, in the largest unit.
pub(super) fn distance(from: Timestamp, to: Timestamp) -> String {
    let seconds = to.seconds().saturating_sub(from.seconds()).unsigned_abs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}
