//! The error type of the pipelines, and a helper that completes state changes even if the caller disconnects.

use crate::audit::AuditDown;
use crate::model::refusal::Refusal;

/// A refusal that is already recorded or counted, or that can't be recorded because the log is down. Only the
/// pipelines create one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(pub(super) Refusal);

impl Refused {
    pub fn refusal(&self) -> &Refusal {
        &self.0
    }
}

impl From<AuditDown> for Refused {
    fn from(down: AuditDown) -> Self {
        Self(down.into())
    }
}

/// Runs a state change to completion even if its caller disconnects, because a transition that happened must
/// be recorded.
pub(crate) async fn run_to_completion<T: Send + 'static>(
    changing: impl Future<Output = Result<T, Refused>> + Send + 'static,
) -> Result<T, Refused> {
    let changed = tokio::spawn(changing).await;
    changed.unwrap_or(Err(Refused(Refusal::Unavailable("the request failed and may have had its effect: repeat it"))))
}
