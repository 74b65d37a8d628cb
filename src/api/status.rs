//! The only place that maps refusals to gRPC statuses. Callers get a code, a field and constant words, never
//! the text of an inner error.

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::api::v1;
use crate::model::refusal::Refusal;

/// Value of `google.rpc.ErrorInfo.domain`.
const DOMAIN: &str = "countersign";

/// Delay after which a caller may retry a request that a limit refused.
const RETRY_AFTER: std::time::Duration = std::time::Duration::from_secs(1);

/// Converts a refusal to a gRPC status.
pub fn status(refusal: &Refusal) -> Status {
    let mut details =
        ErrorDetails::with_error_info(refusal.kind().to_uppercase(), DOMAIN, std::collections::HashMap::new());
    if let Some(field) = field(refusal) {
        details.add_bad_request_violation(field, words(refusal));
    }
    if matches!(refusal, Refusal::Exhausted(_)) {
        details.set_retry_info(Some(RETRY_AFTER));
    }
    let message = match field(refusal) {
        Some(field) => format!("`{field}` {}", words(refusal)),
        None => refusal.to_string(),
    };
    Status::with_error_details(code(refusal), message, details)
}

/// Converts a refusal to the error of a batch or stream item.
pub fn item_error(refusal: &Refusal, request_id: &str) -> v1::ItemError {
    let field = field(refusal).unwrap_or_default();
    v1::ItemError {
        request_id: request_id.to_owned(),
        code: code(refusal) as i32,
        field,
        message: status(refusal).message().to_owned(),
    }
}

fn code(refusal: &Refusal) -> Code {
    match refusal {
        Refusal::Deadline => Code::DeadlineExceeded,
        Refusal::Exhausted(_) => Code::ResourceExhausted,
        Refusal::Forbidden(_) => Code::PermissionDenied,
        Refusal::Invalid { .. } => Code::InvalidArgument,
        Refusal::NotFound => Code::NotFound,
        Refusal::Precondition(_) => Code::FailedPrecondition,
        Refusal::Unauthenticated(_) => Code::Unauthenticated,
        Refusal::Unavailable(_) => Code::Unavailable,
    }
}

/// Returns the full path of the faulty field.
fn field(refusal: &Refusal) -> Option<String> {
    let Refusal::Invalid { field, below, .. } = refusal else { return None };
    Some(format!("{field}{below}"))
}

/// Describes what is wrong. The text may name an unknown member, because the caller itself sent that name.
fn words(refusal: &Refusal) -> String {
    let Refusal::Invalid { problem, unknown, .. } = refusal else { return refusal.to_string() };
    match unknown {
        Some(unknown) => format!("{problem}: `{unknown}`"),
        None => (*problem).to_owned(),
    }
}
