//! The settings of the pipelines, and the bundle in force: a request reads one snapshot and one instant, at its top.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::bundle::{Bundle, Reading};
use crate::model::refusal::Refusal;
use crate::model::roles::{ContentRoles, Roles};
use crate::model::time::Timestamp;
use crate::model::trusted_context::TrustedContext;
use crate::pdp::scoring::calm;

/// How long the state store or the risk store may not answer before the server is not ready.
pub(super) const UNREACHED: Duration = Duration::from_secs(5);

/// What an evaluation error means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// The call is denied: an erroring `forbid` must not fail open.
    #[default]
    Deny,
    /// The policy is skipped, as Cedar does: for conformance mode alone.
    Skip,
}

/// What the pipelines are told by the settings.
#[derive(Clone, Debug)]
pub struct Options {
    /// Deployment environment.
    pub environment: String,
    /// The bundle's folder.
    pub bundle: PathBuf,
    /// How it is read.
    pub reading: Reading,
    /// What an evaluation error means.
    pub on_error: OnError,
    /// What the deployment runs without; sorted.
    pub warnings: Vec<&'static str>,
    /// Trust every process on the loopback interface.
    pub development: bool,
    /// Folder of the signing keys.
    pub keys: PathBuf,
    /// How long a security event counts.
    pub event_ttl: Duration,
    /// How old what is known of kill switches may be when a call is decided, of a store that replicas share.
    pub stops_age: Duration,
    /// How many requests are decided at the same time.
    pub concurrent_requests: usize,
    /// Whether spans name cases by keyed digests, not by their ids.
    pub digests_case_ids: bool,
}

/// The bundle in force.
#[derive(Debug)]
pub struct Snapshot {
    /// The bundle.
    pub bundle: Bundle,
    /// Since when.
    pub activated_at: Timestamp,
    /// What is trusted for when nothing is remembered.
    pub nothing: TrustedContext,
}

/// One snapshot and one instant: what a request sees from its first step to its last.
#[derive(Clone, Debug)]
pub struct Moment {
    /// The bundle in force.
    pub snapshot: Arc<Snapshot>,
    /// The instant.
    pub now: Timestamp,
}

impl Snapshot {
    pub(super) fn new(bundle: Bundle, activated_at: Timestamp) -> Self {
        let nothing = calm(&bundle.policies.shapes);
        Self { bundle, activated_at, nothing }
    }

    /// The roles that govern texts.
    ///
    /// # Errors
    /// FAILED_PRECONDITION, when the bundle governs none.
    pub(super) fn content_roles(&self) -> Result<(&Roles, &ContentRoles), Refusal> {
        let roles = self.bundle.roles.as_ref();
        let found = roles.and_then(|roles| Some((roles, roles.content.as_ref()?)));
        found.ok_or(Refusal::Precondition("the bundle governs no texts: its manifest has no `content`"))
    }

    /// How long redacted values and prepared contexts are kept, in microseconds.
    pub(super) fn retention_micros(&self) -> i64 {
        let minutes = self.bundle.rules.risk.as_ref().map_or(1440, |risk| risk.screening_minutes);
        i64::from(minutes) * 60_000_000
    }

    /// Names of the bundle's tool services.
    pub(super) fn tool_services(&self) -> Vec<String> {
        let Some(roles) = &self.bundle.roles else { return vec![] };
        let uids = self.bundle.policies.store.entities().map(|entity| entity.uid());
        let services = uids.filter(|uid| uid.type_name().to_string() == roles.tool_service);
        services.map(|uid| uid.id().unescaped().to_owned()).collect()
    }
}

/// A bundle that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Digest of the refused folder; empty when it could not be read.
    pub digest: String,
    /// When.
    pub at: Timestamp,
    /// Why: each fault with its place.
    pub faults: Vec<String>,
}

/// What is known of the store and of the other replicas, for operators.
#[derive(Clone, Debug, Default)]
pub(super) struct Shared {
    /// When it was found that the store went back, until an operator confirms it.
    pub(super) went_back_at: Option<Timestamp>,
    /// Digests of the bundles that replicas have in force; sorted.
    pub(super) bundles: Vec<String>,
}
