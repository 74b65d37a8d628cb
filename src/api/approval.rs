//! Handlers of ApprovalService. Each converts its message and calls the pipeline.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::api::convert::{correlation_id, id, optional_object, some_id};
use crate::api::front::{closes, origin};
use crate::api::texts::TEXT_MAX;
use crate::api::v1::approval_service_server::{ApprovalService, ApprovalServiceServer};
use crate::api::{respond, status, v1};
use crate::approvals::store::reads::Filter;
use crate::model::approval::{Approval, Giver, Justification, State};
use crate::model::refusal::Refusal;
use crate::pdp::Pdp;
use crate::pdp::approval_access::{Seen, display_digest};
use crate::pdp::approval_request::ToRequest;
use crate::pdp::approval_review::ToReview;
use crate::pdp::consent_report::ToReport;
use crate::pdp::origin::{Origin, Purpose};
use crate::pdp::refused::{Refused, run_to_completion};

/// Longest binding token in bytes. The token contains a call's arguments, attributes and facts.
const BINDING_MAX: usize = 400 * 1024;
/// Longest reason in bytes.
const REASON_MAX: usize = 2000;
/// Maximum number of evaluation ids given as evidence.
const EVIDENCE_MAX: usize = 32;
/// Maximum number of approvals that a watch may name.
const WATCHED_MAX: usize = 200;
/// Largest page size.
const PAGE_MAX: u32 = 200;
const PAGE_DEFAULT: u32 = 50;
/// Maximum size of a page in bytes, half of what gRPC clients accept by default.
const PAGE_BYTES: usize = 2 * 1024 * 1024;
/// Interval at which a watch polls for changes.
const WATCH_PERIOD: Duration = Duration::from_millis(500);
/// Maximum age of a watch.
const WATCH_AGE: Duration = Duration::from_secs(3600);

pub(super) fn service(pdp: Arc<Pdp>) -> ApprovalServiceServer<Approvals> {
    ApprovalServiceServer::new(Approvals { pdp })
}

#[derive(Debug)]
pub(super) struct Approvals {
    pdp: Arc<Pdp>,
}

type Watched = Pin<Box<dyn Stream<Item = Result<v1::WatchApprovalsResponse, Status>> + Send>>;

fn refused(refused: Refused) -> Status {
    status::status(refused.refusal())
}

#[tonic::async_trait]
impl ApprovalService for Approvals {
    async fn request_approval(
        &self,
        request: Request<v1::RequestApprovalRequest>,
    ) -> Result<Response<v1::RequestApprovalResponse>, Status> {
        let origin = origin(&request, Purpose::Authorize);
        let (pdp, read) = (Arc::clone(&self.pdp), to_request(request.into_inner()));
        let seen =
            run_to_completion(async move { pdp.request_approval(&origin, read).await }).await.map_err(refused)?;
        Ok(Response::new(v1::RequestApprovalResponse { approval: Some(approval(&seen)) }))
    }

    async fn review_approval(
        &self,
        request: Request<v1::ReviewApprovalRequest>,
    ) -> Result<Response<v1::ReviewApprovalResponse>, Status> {
        let origin = origin(&request, Purpose::Authorize);
        let (pdp, read) = (Arc::clone(&self.pdp), to_review(request.into_inner()));
        let seen = run_to_completion(async move { pdp.review_approval(&origin, read).await }).await.map_err(refused)?;
        Ok(Response::new(v1::ReviewApprovalResponse { approval: Some(approval(&seen)) }))
    }

    async fn report_consent(
        &self,
        request: Request<v1::ReportConsentRequest>,
    ) -> Result<Response<v1::ReportConsentResponse>, Status> {
        let origin = origin(&request, Purpose::Authorize);
        let (pdp, read) = (Arc::clone(&self.pdp), to_report(request.into_inner()));
        let seen = run_to_completion(async move { pdp.report_consent(&origin, read).await }).await.map_err(refused)?;
        Ok(Response::new(v1::ReportConsentResponse { consent: Some(approval(&seen)) }))
    }

    async fn get_approval(
        &self,
        request: Request<v1::GetApprovalRequest>,
    ) -> Result<Response<v1::GetApprovalResponse>, Status> {
        let origin = origin(&request, Purpose::Authorize);
        let read = some_id(&request.into_inner().id, "id");
        let seen = self.pdp.get_approval(&origin, read).await.map_err(refused)?;
        let (token, expires) = seen.token.clone().unzip();
        Ok(Response::new(v1::GetApprovalResponse {
            approval: Some(approval(&seen)),
            token: token.unwrap_or_default(),
            token_expires_at: expires.map(respond::time),
        }))
    }

    async fn list_approvals(
        &self,
        request: Request<v1::ListApprovalsRequest>,
    ) -> Result<Response<v1::ListApprovalsResponse>, Status> {
        let origin = origin(&request, Purpose::Authorize);
        let message = request.into_inner();
        let size = if message.page_size == 0 { PAGE_DEFAULT } else { message.page_size };
        let (seen, next) = self.pdp.list_approvals(&origin, to_filter(&message, size)).await.map_err(refused)?;
        let approvals = page(seen.iter().map(approval));
        let last = seen.get(approvals.len().wrapping_sub(1)).filter(|_| approvals.len() < seen.len());
        let next = last.map(|last| (last.approval.requested_at.micros(), last.approval.id.clone())).or(next);
        let next_page_token = next.map_or_else(String::new, |(at, id)| format!("{at}.{id}"));
        Ok(Response::new(v1::ListApprovalsResponse { approvals, next_page_token }))
    }

    type WatchApprovalsStream = Watched;

    async fn watch_approvals(&self, request: Request<v1::WatchApprovalsRequest>) -> Result<Response<Watched>, Status> {
        let origin = origin(&request, Purpose::Authorize);
        let closes = closes(&request);
        let ids = request.into_inner().ids;
        if ids.len() > WATCHED_MAX {
            let refusal = Refusal::invalid("ids", "has more than 200 items");
            return Err(refused(
                self.pdp
                    .list_approvals(&origin, Err(refusal))
                    .await
                    .err()
                    .ok_or_else(|| Status::internal("unreachable"))?,
            ));
        }
        // Authenticate the caller now, so that a refusal is returned before the stream opens.
        self.pdp.changed_approvals(&origin, i64::MAX, 1).await.map_err(refused)?;
        let share = self.pdp.open_stream(&origin, false).await.map_err(refused)?;
        let (sender, receiver) = mpsc::channel(16);
        let watching = watch(Arc::clone(&self.pdp), origin, ids, sender);
        tokio::spawn(async move {
            tokio::select! {
                () = watching => {}
                () = closes => {}
            }
            // The stream's permit is held until the watch ends.
            drop(share);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn revoke_approval(
        &self,
        request: Request<v1::RevokeApprovalRequest>,
    ) -> Result<Response<v1::RevokeApprovalResponse>, Status> {
        let origin = origin(&request, Purpose::Authorize);
        let message = request.into_inner();
        let read = some_id(&message.id, "id").and_then(|id| Ok((id, text(&message.reason, "reason", true)?)));
        let pdp = Arc::clone(&self.pdp);
        let seen = run_to_completion(async move { pdp.revoke_approval(&origin, read).await }).await.map_err(refused)?;
        Ok(Response::new(v1::RevokeApprovalResponse { approval: Some(approval(&seen)) }))
    }
}

/// Sends all visible approvals, then each change once. The caller's credentials are verified again at each
/// poll.
async fn watch(
    pdp: Arc<Pdp>,
    origin: Origin,
    ids: Vec<String>,
    sender: mpsc::Sender<Result<v1::WatchApprovalsResponse, Status>>,
) {
    let mut sent: HashMap<String, (i64, State)> = HashMap::new();
    let mut highest = 0;
    let mut period = tokio::time::interval(WATCH_PERIOD);
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let until = tokio::time::sleep(WATCH_AGE);
    tokio::pin!(until);
    loop {
        tokio::select! {
            _ = period.tick() => {}
            () = sender.closed() => return,
            () = &mut until => return,
        }
        let changed = match pdp.changed_approvals(&origin, highest, i64::from(PAGE_MAX)).await {
            Ok((changed, next)) => {
                highest = next;
                changed
            }
            // A change that is not recorded yet is sent at a later poll.
            Err(down) if matches!(down.refusal(), Refusal::Unavailable(_)) => continue,
            Err(down) => {
                // Sending fails if the watcher is gone, and then the status is not needed.
                let _gone = sender.send(Err(refused(down))).await;
                return;
            }
        };
        for seen in changed {
            let now = (seen.approval.revision, seen.state);
            let wanted = ids.is_empty() || ids.contains(&seen.approval.id);
            if !wanted || sent.insert(seen.approval.id.clone(), now) == Some(now) {
                continue;
            }
            let token = seen.token.clone().map_or_else(String::new, |(token, _)| token);
            let response = v1::WatchApprovalsResponse { approval: Some(approval(&seen)), token };
            if sender.send(Ok(response)).await.is_err() {
                return;
            }
        }
    }
}

fn text(text: &str, field: &str, required: bool) -> Result<String, Refusal> {
    match text.len() {
        0 if required => Err(Refusal::invalid(field, "is missing")),
        length if length > REASON_MAX => Err(Refusal::invalid(field, "is longer than 2000 bytes")),
        _ => Ok(crate::model::text::visible(text)),
    }
}

fn to_request(message: v1::RequestApprovalRequest) -> Result<ToRequest, Refusal> {
    if message.binding_token.len() > BINDING_MAX {
        return Err(Refusal::invalid("binding_token", "is longer than 409600 bytes"));
    }
    let justification = message.justification.ok_or_else(|| Refusal::invalid("justification", "is missing"))?;
    if justification.evidence.len() > EVIDENCE_MAX {
        return Err(Refusal::invalid("justification.evidence", "has more than 32 items"));
    }
    let evidence: Result<Vec<String>, Refusal> = justification
        .evidence
        .iter()
        .enumerate()
        .map(|(index, id)| some_id(id, &format!("justification.evidence[{index}]")))
        .collect();
    if message.draft.len() > TEXT_MAX {
        return Err(Refusal::invalid("draft", "is longer than 64 KiB"));
    }
    Ok(ToRequest {
        evaluation_id: some_id(&message.evaluation_id, "evaluation_id")?,
        binding_token: message.binding_token,
        justification: Justification {
            customer_request: justification.customer_request,
            evidence: evidence?,
            policy_clause: justification.policy_clause,
            expected_effect: justification.expected_effect,
        },
        draft: message.draft,
    })
}

fn to_report(message: v1::ReportConsentRequest) -> Result<ToReport, Refusal> {
    if message.binding_token.len() > BINDING_MAX {
        return Err(Refusal::invalid("binding_token", "is longer than 409600 bytes"));
    }
    let agrees = match message.answer() {
        v1::ConsentAnswer::Agree => true,
        v1::ConsentAnswer::Refuse => false,
        v1::ConsentAnswer::Unspecified => {
            return Err(Refusal::invalid("answer", "is missing, or not known to this version"));
        }
    };
    if message.text_digest.len() != 32 {
        return Err(Refusal::invalid("text_digest", "must have 32 bytes"));
    }
    Ok(ToReport {
        evaluation_id: some_id(&message.evaluation_id, "evaluation_id")?,
        customer: some_id(&message.customer_id, "customer_id")?,
        message: correlation_id(&message.message_id, "message_id")?,
        binding_token: message.binding_token,
        text_digest: message.text_digest.to_vec(),
        agrees,
    })
}

fn to_review(message: v1::ReviewApprovalRequest) -> Result<ToReview, Refusal> {
    let approves = match message.decision() {
        v1::ReviewDecision::Approve => true,
        v1::ReviewDecision::Deny => false,
        v1::ReviewDecision::Unspecified => {
            return Err(Refusal::invalid("decision", "is missing, or not known to this version"));
        }
    };
    let suggested = optional_object(&message.suggested_arguments_json, "suggested_arguments_json")?;
    if approves && suggested.is_some() {
        return Err(Refusal::invalid(
            "suggested_arguments_json",
            "is allowed only with a denial: a call with other arguments needs a new request",
        ));
    }
    Ok(ToReview {
        id: some_id(&message.id, "id")?,
        approves,
        reason: text(&message.reason, "reason", !approves)?,
        suggested,
        display_digest: message.display_digest.to_vec(),
    })
}

fn to_filter(message: &v1::ListApprovalsRequest, size: u32) -> Result<Filter, Refusal> {
    if size > PAGE_MAX {
        return Err(Refusal::invalid("page_size", "must be at most 200"));
    }
    let state = match v1::ApprovalState::try_from(message.state) {
        Ok(v1::ApprovalState::Unspecified) => None,
        Ok(state) => State::from_name(&state.as_str_name().trim_start_matches("APPROVAL_STATE_").to_lowercase()),
        Err(_) => return Err(Refusal::invalid("state", "is not known to this version")),
    };
    let unreadable = || Refusal::invalid("page_token", "was not returned by an earlier page");
    let after = match message.page_token.split_once('.') {
        Some((at, last)) => (at.parse().map_err(|_| unreadable())?, id(last, "page_token")?),
        None if message.page_token.is_empty() => (0, String::new()),
        None => return Err(unreadable()),
    };
    Ok(Filter { state, case: id(&message.case_id, "case_id")?, after, most: i64::from(size), ..Filter::default() })
}

/// Returns as many approvals as fit a page of [`PAGE_BYTES`], at least one.
fn page(approvals: impl Iterator<Item = v1::Approval>) -> Vec<v1::Approval> {
    let mut bytes = 0;
    let mut fits = |approval: &v1::Approval| {
        let is_first = bytes == 0;
        bytes += approval.encoded_len();
        is_first || bytes <= PAGE_BYTES
    };
    approvals.take_while(|approval| fits(approval)).collect()
}

/// Converts an approval to its message.
fn approval(seen: &Seen) -> v1::Approval {
    let Seen { approval, state, .. } = seen;
    let call = &approval.binding.call;
    let time = |time: crate::model::time::Timestamp| (time.micros() > 0).then(|| respond::time(time));
    v1::Approval {
        id: approval.id.clone(),
        state: match state {
            State::Approved => v1::ApprovalState::Approved,
            State::Cancelled => v1::ApprovalState::Cancelled,
            State::Consumed => v1::ApprovalState::Consumed,
            State::Denied => v1::ApprovalState::Denied,
            State::Expired => v1::ApprovalState::Expired,
            State::Pending => v1::ApprovalState::Pending,
            State::Revoked => v1::ApprovalState::Revoked,
        }
        .into(),
        template: approval.binding.template.clone(),
        evaluation_id: approval.binding.evaluation_id.clone(),
        display: approval.display.clone(),
        display_digest: display_digest(&approval.display).into(),
        unverified_justification: Some(v1::Justification {
            customer_request: approval.justification.customer_request.clone(),
            evidence: approval.justification.evidence.clone(),
            policy_clause: approval.justification.policy_clause.clone(),
            expected_effect: approval.justification.expected_effect.clone(),
        }),
        quorum: seen.quorum,
        approvers: approval.reviewers().map(|reviewer| reviewer.sub.clone()).collect(),
        requested_at: time(approval.requested_at),
        approved_at: time(approval.approved_at),
        expires_at: time(approval.expires_at()),
        denial_reason: approval.denial_reason.clone(),
        suggested_arguments_json: approval.suggested.clone().into_bytes().into(),
        tenant: call.tenant.clone(),
        case_id: call.case.clone(),
        action: call.action.clone(),
        tool_service: call.audience.clone(),
        reversibility: approval.reversibility.clone(),
        draft_digest: call.draft_digest().to_owned(),
        bundles_differ: seen.bundles_differ,
        draft: seen.draft.clone(),
        repeats: approval.repeats,
        customer_answer: customer_answer(approval),
    }
}

fn customer_answer(approval: &Approval) -> Option<v1::CustomerAnswer> {
    let answer = approval.reviews.first().filter(|_| approval.binding.giver == Giver::Customer)?;
    Some(v1::CustomerAnswer {
        customer_id: answer.reviewer.sub.clone(),
        agrees: answer.approves,
        reported_by: answer.reviewer.iss.clone(),
        message_id: answer.reason.clone(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_page_has_at_most_its_bytes_and_at_least_one_approval() {
        let sizes = |displays: &[usize]| {
            let approval = |bytes: &usize| v1::Approval { display: "x".repeat(*bytes), ..Default::default() };
            page(displays.iter().map(approval)).len()
        };
        assert_eq!(sizes(&[]), 0);
        assert_eq!(sizes(&[10; 200]), 200);
        assert_eq!(sizes(&[PAGE_BYTES + 1, 1]), 1);
        assert_eq!(sizes(&[PAGE_BYTES / 2, PAGE_BYTES / 4, PAGE_BYTES / 4, 1]), 2, "each has a few bytes more");
    }

    proptest! {
        // Arbitrary bytes are either converted or refused with the name of a field.
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1024)) {
            if let Ok(message) = v1::RequestApprovalRequest::decode(bytes.as_slice()) {
                let _read = to_request(message);
            }
            if let Ok(message) = v1::ReviewApprovalRequest::decode(bytes.as_slice()) {
                let _read = to_review(message);
            }
            if let Ok(message) = v1::ReportConsentRequest::decode(bytes.as_slice()) {
                let _read = to_report(message);
            }
            if let Ok(message) = v1::ListApprovalsRequest::decode(bytes.as_slice()) {
                let size = message.page_size;
                let _read = to_filter(&message, size);
            }
        }

        #[test]
        fn page_tokens_of_others_are_refused_by_name(text in "\\PC{1,40}") {
            let message = v1::ListApprovalsRequest { page_token: text, ..Default::default() };
            match to_filter(&message, 1) {
                Ok(filter) => prop_assert_eq!(format!("{}.{}", filter.after.0, filter.after.1).len() <= 128 + 21, true),
                Err(Refusal::Invalid { field, .. }) => prop_assert_eq!(field, "page_token"),
                Err(other) => prop_assert!(false, "{other:?}"),
            }
        }
    }
}
