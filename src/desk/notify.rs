//! Webhooks: tells other systems, such as a chat, that a request for approval waits, was decided, or has expired. An event has no
//! personal data and approves nothing; its link opens the page of the request.
//!
//! Events are CloudEvents 1.0 in JSON (structured mode), signed as Standard Webhooks 1.0 says: `webhook-signature` is `v1,` and the base64
//! of HMAC-SHA256 over `webhook-id`, `webhook-timestamp` and the body, joined by dots. Each replica sends each event, with the same id.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::jose::mac::MacKey;
use crate::model::approval::State;
use crate::model::time::Timestamp;
use crate::pdp::Pdp;
use crate::pdp::approval_access::Seen;

/// Interval at which changes are looked for.
const LOOK: Duration = Duration::from_secs(1);
/// Maximum number of events that wait for a receiver. Further ones are dropped, and logged.
const QUEUE_MAX: usize = 1024;
/// Time limit of one attempt.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pauses between the attempts to deliver an event, in seconds.
const PAUSES: [u64; 4] = [1, 4, 15, 60];

/// A receiver of events.
#[derive(Clone)]
pub struct Webhook {
    /// Tenant whose requests it is told of.
    pub tenant: String,
    pub url: String,
    /// Secret that signs the events.
    pub secret: Vec<u8>,
}

impl std::fmt::Debug for Webhook {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Webhook").field("url", &self.url).finish_non_exhaustive()
    }
}

/// An event with its id.
type Event = (String, Value);

/// Tells the receivers of changes from now on, until it is aborted.
pub(super) async fn run(pdp: Arc<Pdp>, webhooks: Vec<Webhook>, desk: String) {
    if webhooks.is_empty() {
        return;
    }
    let Ok(client) = reqwest::Client::builder().timeout(PATIENCE).redirect(reqwest::redirect::Policy::none()).build()
    else {
        tracing::error!(name: "desk.no_webhooks", "the client of the webhooks can't be built");
        return;
    };
    let mut queues = vec![];
    for webhook in webhooks {
        let (sender, events) = mpsc::channel(QUEUE_MAX);
        queues.push((webhook.tenant.clone(), sender));
        tokio::spawn(deliver(client.clone(), webhook, events));
    }
    let mut period = tokio::time::interval(LOOK);
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut after = None;
    loop {
        period.tick().await;
        // A state store that does not answer now may answer later; nothing is lost meanwhile.
        let Ok((changed, revision)) = pdp.changed_requests(after).await else { continue };
        after = Some(revision);
        for seen in &changed {
            let (id, event) = event(seen, &desk, pdp.moment().now);
            let tenant = &seen.approval.binding.call.tenant;
            for (_, queue) in queues.iter().filter(|(of, _)| of == tenant) {
                if queue.try_send((id.clone(), event.clone())).is_err() {
                    tracing::warn!(name: "desk.event_dropped", event = id, "a receiver of events is too slow: an event was dropped");
                }
            }
        }
    }
}

/// Returns the event of a request's present state, and its id.
fn event(seen: &Seen, desk: &str, now: Timestamp) -> Event {
    let approval = &seen.approval;
    let kind = match seen.state {
        State::Pending if approval.reviews.is_empty() => "requested",
        State::Pending => "reviewed",
        state => state.name(),
    };
    let id = format!("{}.{}", approval.id, approval.revision);
    let event = json!({
        "specversion": "1.0",
        "id": id,
        "source": desk,
        "type": format!("countersign.approval.{kind}"),
        "subject": approval.id,
        "time": now.to_string(),
        "datacontenttype": "application/json",
        "data": {
            "approval": approval.id,
            "state": seen.state.name(),
            "tenant": approval.binding.call.tenant,
            "template": approval.binding.template,
            "action": approval.binding.call.action,
            "risk": approval.binding.risk,
            "approvals": approval.approvers().count(),
            "quorum": seen.quorum,
            "expires": approval.expires_at().to_string(),
            "link": format!("{desk}/requests/{}", approval.id),
        },
    });
    (id, event)
}

/// Delivers events in their order, each with a few attempts.
async fn deliver(client: reqwest::Client, webhook: Webhook, mut events: mpsc::Receiver<Event>) {
    use crate::clock::{Clock as _, SystemClock};
    while let Some((id, event)) = events.recv().await {
        let body = event.to_string();
        let mut pauses = PAUSES.iter();
        loop {
            let at = SystemClock.now().seconds().to_string();
            let request = client
                .post(&webhook.url)
                .header("content-type", "application/cloudevents+json")
                .header("webhook-signature", signature(&webhook.secret, &id, &at, &body))
                .header("webhook-id", &id)
                .header("webhook-timestamp", at);
            let answered = request.body(body.clone()).send().await;
            if answered.is_ok_and(|answer| answer.status().is_success()) {
                break;
            }
            let Some(pause) = pauses.next() else {
                tracing::warn!(name: "desk.webhook_failed", event = id, "an event could not be delivered, and is not tried again: see `desk.webhooks`");
                break;
            };
            tokio::time::sleep(Duration::from_secs(*pause)).await;
        }
    }
}

/// Returns the signature of Standard Webhooks.
fn signature(secret: &[u8], id: &str, at: &str, body: &str) -> String {
    format!("v1,{}", MacKey::sign_webhook(secret, &format!("{id}.{at}.{body}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_that_of_standard_webhooks() {
        // The example of the specification's reference implementations.
        let secret =
            base64::Engine::decode(&base64::engine::general_purpose::STANDARD, "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
                .expect("base64");
        let signed = signature(&secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", r#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }
}
