//! The requests that wait for reviewers, and the stream that tells a watching browser to read them again.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};
use serde::Deserialize;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use crate::desk::{Desk, Human, page, refused};
use crate::model::approval::repeated;
use crate::model::text::visible;
use crate::model::time::Timestamp;
use crate::pdp::approval_access::Seen;
use crate::pdp::inbox::{COUNTED_MAX, Waiting, Wanted};

/// Interval at which a watching browser is told that nothing changed.
pub(super) const BEAT: Duration = Duration::from_secs(15);
/// Interval at which the server looks for changes.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Asked {
    #[serde(default)]
    q: String,
    #[serde(default)]
    page: usize,
}

pub(super) async fn show(State(desk): State<Arc<Desk>>, human: Human, Query(asked): Query<Asked>) -> Response {
    let wanted = Wanted { text: asked.q.trim().to_owned(), page: asked.page };
    match desk.pdp.inbox(&human.origin, &wanted).await {
        Ok(waiting) => {
            let body = body(&asked, &waiting, desk.pdp.moment().now);
            page::of(&desk, &human.session, "/", "Requests for approval", &body)
        }
        Err(fault) => refused(&fault),
    }
}

fn body(asked: &Asked, waiting: &Waiting, now: Timestamp) -> Markup {
    html! {
        form method="get" class="search" role="search" {
            label for="q" { "Case, action, agent or template" }
            input id="q" name="q" value=(asked.q) maxlength="128";
            button type="submit" { "Search" }
        }
        div id="live" data-changes="/changes" {
            p role="status" { (summary(asked, waiting)) }
            @if !waiting.rows.is_empty() { (table(waiting, now)) }
            (pages(asked, waiting))
        }
    }
}

fn summary(asked: &Asked, waiting: &Waiting) -> String {
    match (waiting.rows.len(), waiting.matching) {
        (0, 0) if asked.q.trim().is_empty() => "Nothing that you may see waits for approval.".to_owned(),
        (0, 0) => "No request that you may see matches.".to_owned(),
        (0, _) => "This page is empty.".to_owned(),
        (_, 1) => "1 request waits.".to_owned(),
        (_, all) if all >= COUNTED_MAX => format!("{COUNTED_MAX} requests or more wait, the riskiest first."),
        (_, all) => format!("{all} requests wait, the riskiest first."),
    }
}

fn table(waiting: &Waiting, now: Timestamp) -> Markup {
    html! {
        table class="rows" {
            thead { tr { th scope="col" { "Action" } th scope="col" { "Case" } th scope="col" { "Risk" } th scope="col" { "For" }
                th scope="col" { "Waits" } th scope="col" { "Expires in" } th scope="col" { "Approved" } } }
            tbody { @for (seen, may_review) in &waiting.rows { (row(seen, *may_review, now)) } }
        }
    }
}

fn row(seen: &Seen, may_review: bool, now: Timestamp) -> Markup {
    let (approval, call) = (&seen.approval, &seen.approval.binding.call);
    html! {
        tr {
            th scope="row" data-label="Action" {
                a href=(format!("/requests/{}", approval.id)) { (visible(&call.action)) }
                @if !may_review { " " span class="mark" { "not yours to review" } }
            }
            td data-label="Case" { (visible(&call.case)) }
            td data-label="Risk" { (visible(&approval.binding.risk)) @if approval.binding.risk.is_empty() { "not read" } }
            td data-label="For" { (visible(&call.supervisor.sub)) }
            td data-label="Waits" {
                (page::distance(approval.requested_at, now))
                @if approval.repeats > 0 { " " span class="mark" { (repeated(approval.repeats)) } }
            }
            td data-label="Expires in" { (page::distance(now, approval.expires_at())) }
            td data-label="Approved" { (approval.approvers().count()) " of " (seen.quorum) }
        }
    }
}

fn pages(asked: &Asked, waiting: &Waiting) -> Markup {
    let to = |page: usize| {
        let page = page.to_string();
        let mut query = oauth2::url::form_urlencoded::Serializer::new(String::new());
        query.extend_pairs([("q", asked.q.as_str()), ("page", page.as_str())]);
        format!("/?{}", query.finish())
    };
    html! {
        @if asked.page > 0 || waiting.has_more {
            nav class="pages" aria-label="Pages of requests" {
                @if asked.page > 0 { a rel="prev" href=(to(asked.page - 1)) { "Earlier page" } }
                @if waiting.has_more { a rel="next" href=(to(asked.page.saturating_add(1))) { "Next page" } }
            }
        }
    }
}

/// Streams an event whenever requests may have changed (server-sent events). The event says nothing more: the page is read again, with the
/// rights that the human has then.
pub(super) async fn changes(State(desk): State<Arc<Desk>>, human: Human) -> Response {
    // Each human has a share of the watches, as over gRPC.
    let share = match desk.pdp.open_stream(&human.origin, false).await {
        Ok(share) => share,
        Err(fault) => return refused(&fault),
    };
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let (session, in_flight) = (human.session, human.connection.map(|connection| connection.standing.begin()));
    tokio::spawn(async move {
        let _held = (share, in_flight);
        // Changes before the first look are unknown, so the browser reads the page again once.
        let mut last = Some(u64::MAX);
        let mut period = tokio::time::interval(LOOK);
        period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            period.tick().await;
            if sender.is_closed() || !desk.sessions.lasts(&session, desk.pdp.moment().now) {
                return;
            }
            // A state store that does not answer now may answer later.
            let Ok(revision) = desk.pdp.inbox_revision().await else { continue };
            if last.replace(revision).is_some_and(|last| last != revision) && sender.send(()).await.is_err() {
                return;
            }
        }
    });
    // A browser ignores an event without data.
    let changed = || Event::default().event("changed").data("requests");
    let events = ReceiverStream::new(receiver).map(move |()| Ok::<_, Infallible>(changed()));
    Sse::new(events).keep_alive(KeepAlive::new().interval(BEAT)).into_response()
}
