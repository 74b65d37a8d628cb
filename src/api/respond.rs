//! Conversion from the model to response messages.

use std::time::Duration;

use prost_types::Timestamp as WireTime;

use crate::api::v1;
use crate::approvals::binding::REQUESTABLE;
use crate::audit::Recorded;
use crate::model::answer::{Answer, Mode, NextAction, Obligation, PolicyVersion, Reason};
use crate::model::number::to_i64;
use crate::model::time::Timestamp;

/// Builds the response to Authorize. The function takes a [`Recorded`] answer, so no answer leaves the server
/// without its record.
pub fn response(recorded: &Recorded<Answer>, log: &str) -> v1::AuthorizeResponse {
    let answer = recorded.value();
    let denied = answer.outcome.denied;
    let decision = |allowed| if allowed { v1::Decision::Allow } else { v1::Decision::Deny };
    v1::AuthorizeResponse {
        request_id: answer.request_id.clone(),
        decision: decision(answer.allows()).into(),
        evaluation_id: answer.evaluation_id.clone(),
        evaluated_at: Some(time(answer.evaluated_at)),
        reason: denied.map_or(v1::Reason::Unspecified, reason).into(),
        reason_user: answer.outcome.text().to_owned(),
        obligations: obligations(&answer.outcome.obligations),
        advice: obligations(&answer.outcome.advice),
        access_request: access_request(answer),
        next_action: next_action(answer.next_action()).into(),
        retry_after: retry_after(answer),
        approval: answer.approval.as_ref().map(|used| v1::UsedApproval {
            id: used.id.clone(),
            approvers: used.approvers.iter().map(|subject| subject.sub.clone()).collect(),
            approved_at: Some(time(used.approved_at)),
        }),
        consent: answer.consent.as_ref().map(|used| v1::UsedConsent {
            id: used.id.clone(),
            reported_by: used.reported_by.clone(),
            given_at: Some(time(used.given_at)),
        }),
        repeated: answer.repeats.is_some(),
        outcome_token: answer.outcome_token.clone(),
        policy: Some(policy(&answer.policy)),
        audit: match &answer.repeats {
            Some(first) => Some(v1::AuditReference { log: first.0.clone(), index: first.1 }),
            None => reference(recorded, log),
        },
        call_digest: answer.call_digest.clone(),
        valid_until: Some(time(answer.evaluated_at)),
        mode: match answer.mode {
            Mode::DryRun => v1::Mode::DryRun,
            Mode::Enforce => v1::Mode::Enforce,
        }
        .into(),
        hypothetical: match answer.mode {
            Mode::DryRun => decision(denied.is_none()),
            Mode::Enforce => v1::Decision::Unspecified,
        }
        .into(),
        warnings: warnings(answer),
    }
}

/// Returns the answer's warnings, and in development mode what denied the call.
pub(super) fn warnings(answer: &Answer) -> Vec<String> {
    let hint = Some(answer.hint.clone()).filter(|hint| !hint.is_empty());
    answer.warnings.iter().map(ToString::to_string).chain(hint).collect()
}

/// Builds the request for missing approvals, consents and checks; `None` if asking can't lift the denial.
pub(super) fn access_request(answer: &Answer) -> Option<v1::AccessRequest> {
    let missing = answer.outcome.missing.as_ref()?;
    Some(v1::AccessRequest {
        template: missing.template.clone(),
        expires_at: Some(time(answer.evaluated_at.plus(REQUESTABLE))),
        binding_token: answer.binding_token.clone(),
        display: answer.display.clone(),
        requires: missing.requires.clone(),
        quorum: missing.quorum,
        consent_texts: missing
            .texts
            .iter()
            .map(|(language, text)| v1::ConsentText { language: language.clone(), text: text.clone() })
            .collect(),
    })
}

/// Returns the wait before a retry, rounded up, because a retry a moment too early is denied again.
pub(super) fn retry_after(answer: &Answer) -> Option<prost_types::Duration> {
    let wait = answer.retry_after()?;
    Some(prost_types::Duration { seconds: to_i64(wait.as_millis().div_ceil(1000)), nanos: 0 })
}

/// Returns the reference to a record; `None` in best-effort mode, where the record is not written yet.
pub fn reference<T>(recorded: &Recorded<T>, log: &str) -> Option<v1::AuditReference> {
    recorded.index().map(|index| v1::AuditReference { log: log.to_owned(), index })
}

/// Converts a bundle's version to its message.
pub fn policy(version: &PolicyVersion) -> v1::PolicyVersion {
    v1::PolicyVersion { digest: version.digest.clone(), version: version.version }
}

/// Converts a timestamp to its protobuf form.
pub fn time(time: Timestamp) -> WireTime {
    let (seconds, nanos) = time.seconds_and_nanos();
    WireTime { seconds, nanos }
}

/// Converts a number of microseconds, which may be negative, to its protobuf form.
pub(super) fn span(micros: i64) -> prost_types::Duration {
    let nanos = Duration::from_micros(micros.unsigned_abs()).subsec_nanos().cast_signed();
    prost_types::Duration { seconds: micros / 1_000_000, nanos: if micros < 0 { -nanos } else { nanos } }
}

pub(super) fn obligations(obligations: &[Obligation]) -> Vec<v1::Obligation> {
    let numbered = obligations.iter().enumerate();
    numbered
        .map(|(index, obligation)| v1::Obligation {
            id: format!("{}-{}", obligation.kind, index + 1),
            r#type: obligation.kind.clone(),
            properties: [("value".to_owned(), obligation.value.clone())].into(),
        })
        .collect()
}

fn next_action(action: NextAction) -> v1::NextAction {
    match action {
        NextAction::None => v1::NextAction::None,
        NextAction::Request => v1::NextAction::Request,
        NextAction::Retry => v1::NextAction::Retry,
    }
}

pub(super) fn reason(reason: Reason) -> v1::Reason {
    match reason {
        Reason::ApprovalExpired => v1::Reason::ApprovalExpired,
        Reason::ApprovalOutOfScope => v1::Reason::ApprovalOutOfScope,
        Reason::ApprovalRequired => v1::Reason::ApprovalRequired,
        Reason::ApprovalRevoked => v1::Reason::ApprovalRevoked,
        Reason::ApprovalUnverifiable => v1::Reason::ApprovalUnverifiable,
        Reason::ApprovalUsed => v1::Reason::ApprovalUsed,
        Reason::CaseChanged => v1::Reason::CaseChanged,
        Reason::CheckRequired => v1::Reason::CheckRequired,
        Reason::ConsentRequired => v1::Reason::ConsentRequired,
        Reason::DraftRequired => v1::Reason::DraftRequired,
        Reason::NotPermitted => v1::Reason::NotPermitted,
        Reason::PolicyError => v1::Reason::PolicyError,
        Reason::RateLimited => v1::Reason::RateLimited,
        Reason::RiskTooHigh => v1::Reason::RiskTooHigh,
        Reason::ScreeningRequired => v1::Reason::ScreeningRequired,
        Reason::StateUnavailable => v1::Reason::StateUnavailable,
        Reason::StepNotAllowed => v1::Reason::StepNotAllowed,
    }
}
