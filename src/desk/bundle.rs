//! The bundle in force, a bundle that was refused, and how often each policy decided lately.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use maud::html;

use crate::audit::story::Filter;
use crate::desk::{Desk, Human, page, refused};
use crate::model::text::visible;
use crate::pdp::audit_reading::LINES_MAX;

/// Time for which decisions are counted.
const LATELY: Duration = Duration::from_secs(24 * 3600);

pub(super) async fn show(State(desk): State<Arc<Desk>>, human: Human) -> Response {
    let status = desk.pdp.status();
    let now = desk.pdp.moment().now;
    let filter = Filter { kind: Some("decision".into()), since: Some(now.minus(LATELY)), ..Filter::default() };
    let lately = match desk.pdp.read_audit(&human.origin, filter).await {
        Ok(lately) => lately,
        Err(fault) => return refused(&fault),
    };
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    lately.iter().flat_map(|entry| entry.policies()).for_each(|id| *counts.entry(id).or_default() += 1);
    let bundle = &status.snapshot.bundle;
    let rules = bundle.policies.rules();
    let body = html! {
        section class="panel" {
            h2 { "In force" }
            dl {
                div { dt { "Name and version" } dd { (bundle.manifest.name) " " (bundle.version.version) } }
                div { dt { "Digest" } dd { code { (bundle.version.digest) } } }
                div { dt { "Since" } dd { (page::time(status.snapshot.activated_at)) } }
                @for digest in &status.bundles {
                    @if *digest != bundle.version.digest { div { dt { "Another replica has" } dd { code { (digest) } } } }
                }
            }
        }
        @if let Some(rejected) = &status.rejected {
            section class="panel stopped" role="alert" {
                h2 { "Refused" }
                p { "The bundle " code { (rejected.digest) } " was refused at " (page::time(rejected.at)) "; the one above stays in force." }
                ul { @for fault in rejected.faults.iter().take(20) { li { bdi { (visible(fault)) } } } }
            }
        }
        section class="panel" {
            h2 { "Policies" }
            p {
                @if lately.len() == LINES_MAX { "How often each determined one of your tenant's last " (LINES_MAX) " decisions of this replica." }
                @else { "How often each determined one of your tenant's " (lately.len()) " decisions of the last 24 hours on this replica." }
            }
            table class="rows" {
                thead { tr { th scope="col" { "Policy" } th scope="col" { "Effect" } th scope="col" { "Decided" } th scope="col" { "Place" } } }
                tbody { @for (id, rule) in &rules {
                    tr {
                        th scope="row" data-label="Policy" { a href=(format!("/decisions?policy={id}")) { (id) } @if !rule.doc.is_empty() { br; small { (rule.doc) } } }
                        td data-label="Effect" { (if rule.forbids { "forbid" } else { "permit" }) }
                        td data-label="Decided" { (counts.get(id).copied().unwrap_or(0)) }
                        td data-label="Place" { (rule.place) }
                    }
                } }
            }
        }
    };
    page::of(&desk, &human.session, "/bundle", "Bundle", &body)
}
