//! A refusal that was recorded or counted, and changes that are finished whether or not their caller waits.

use crate::audit::AuditDown;
use crate::model::refusal::Refusal;

/// A refusal that was recorded, counted, or can't be recorded since the log is down. Only the pipelines make one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(pub(super) Refusal);

impl Refused {
    /// The refusal.
    pub fn refusal(&self) -> &Refusal {
        &self.0
    }
}

impl From<AuditDown> for Refused {
    fn from(down: AuditDown) -> Self {
        Self(down.into())
    }
}

/// Runs what changes state to its end, whether or not its caller waits for it: a transition that happened is recorded.
pub(crate) async fn run_to_completion<T: Send + 'static>(
    changing: impl Future<Output = Result<T, Refused>> + Send + 'static,
) -> Result<T, Refused> {
    let changed = tokio::spawn(changing).await;
    changed.unwrap_or(Err(Refused(Refusal::Unavailable("the request failed: it may have had its effect; ask again"))))
}
