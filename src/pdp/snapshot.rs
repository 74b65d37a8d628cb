//! The settings of the pipelines, the bundle in force, and the moment that a request sees: one snapshot and
//! one instant.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::bundle::{Bundle, Reading};
use crate::clock::{Clock, Monotonic};
use crate::entities::computed_values;
use crate::json::Object;
use crate::model::chain::Chain;
use crate::model::refusal::Refusal;
use crate::model::roles::{ContentRoles, Roles};
use crate::model::time::Timestamp;
use crate::model::trusted_context::TrustedContext;
use crate::pdp::scoring::calm;

/// Time without an answer of the state store or the risk store after which the server is not ready.
pub(super) const UNREACHED: Duration = Duration::from_secs(5);

/// Effect of an error in the evaluation of a policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// The call is denied, because a `forbid` that errors must not fail open.
    #[default]
    Deny,
    /// The policy is skipped, as Cedar does. Only conformance mode uses this.
    Skip,
}

/// Settings of the pipelines.
#[derive(Clone, Debug)]
pub struct Options {
    pub environment: String,
    pub bundle: PathBuf,
    pub reading: Reading,
    /// Effect of an error in the evaluation of a policy.
    pub on_error: OnError,
    /// Warnings about the deployment, which every answer repeats; sorted.
    pub warnings: Vec<&'static str>,
    /// Whether every process on the loopback interface is trusted.
    pub development: bool,
    /// Folder of the signing keys.
    pub keys: PathBuf,
    /// Time that a security event counts for.
    pub event_ttl: Duration,
    /// Maximum age of the copy of the kill switches when a call is decided, if replicas share the state
    /// store.
    pub stops_age: Duration,
    /// Maximum number of requests that are decided at the same time.
    pub concurrent_requests: usize,
    /// Time for which the lines of the audit log are kept, in days; 0 keeps all.
    pub log_days: u32,
    /// Time for which the evidence of decisions is kept, in days; 0 keeps none.
    pub evidence_days: u32,
    /// Whether spans identify cases by keyed digests instead of ids.
    pub digests_case_ids: bool,
}

/// The bundle in force.
#[derive(Debug)]
pub struct Snapshot {
    pub bundle: Bundle,
    pub activated_at: Timestamp,
    /// Trusted members of `context` for a case without history.
    pub nothing: TrustedContext,
}

/// Returns the values that the PDP computes from the arguments of a call; empty for an action that declares none.
///
/// # Errors
/// If a sum of arguments is too large.
pub fn computed(bundle: &Bundle, action: &str, arguments: &Object) -> Result<Object, Refusal> {
    match (&bundle.roles, bundle.policies.shapes.actions.get(action)) {
        (Some(roles), Some(action)) => computed_values(roles, action, arguments),
        (_, _) => Ok(Object::new()),
    }
}

/// One snapshot and one instant, which a request sees from its first step to its last.
#[derive(Clone, Debug)]
pub struct Moment {
    /// The bundle in force.
    pub snapshot: Arc<Snapshot>,
    pub now: Timestamp,
}

/// Clock of the PDP. It follows the state store's clock, if replicas share the store.
pub(super) type PdpClock = Arc<Monotonic<Box<dyn Clock>>>;

/// The bundle in force. A reload replaces it.
#[derive(Debug)]
pub(super) struct ActiveBundle {
    snapshot: ArcSwap<Snapshot>,
    clock: PdpClock,
}

impl ActiveBundle {
    pub(super) fn new(bundle: Bundle, clock: PdpClock) -> Self {
        Self { snapshot: ArcSwap::from_pointee(Snapshot::new(bundle, clock.now())), clock }
    }

    /// Reads the snapshot and the clock. Each request does this once, at its beginning.
    pub(super) fn moment(&self) -> Moment {
        Moment { snapshot: self.snapshot(), now: self.clock.now() }
    }

    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    pub(super) fn replace(&self, snapshot: Snapshot) {
        self.snapshot.store(Arc::new(snapshot));
    }
}

impl Options {
    /// Returns whether a chain may lead to approvals and releases: it is signed, or development mode accepts
    /// assertions.
    pub(super) fn accepts(&self, chain: &Chain) -> bool {
        !chain.asserted || self.development
    }
}

impl Snapshot {
    pub(super) fn new(bundle: Bundle, activated_at: Timestamp) -> Self {
        let nothing = calm(&bundle.policies.shapes);
        Self { bundle, activated_at, nothing }
    }

    /// Returns the roles that govern texts.
    ///
    /// # Errors
    /// If the bundle governs no texts (FAILED_PRECONDITION).
    pub(super) fn content_roles(&self) -> Result<(&Roles, &ContentRoles), Refusal> {
        let roles = self.bundle.roles.as_ref();
        let found = roles.and_then(|roles| Some((roles, roles.content.as_ref()?)));
        found.ok_or(Refusal::Precondition("the bundle does not govern texts: its manifest has no `content`"))
    }

    /// Time that redacted values and prepared contexts are stored for, in microseconds.
    pub(super) fn retention_micros(&self) -> i64 {
        let minutes = self.bundle.rules.risk.as_ref().map_or(1440, |risk| risk.screening_minutes);
        i64::from(minutes) * 60_000_000
    }

    /// Ids of the bundle's tool services.
    pub(super) fn tool_services(&self) -> Vec<String> {
        let Some(roles) = &self.bundle.roles else { return vec![] };
        let uids = self.bundle.policies.store.entities().map(|entity| entity.uid());
        let services = uids.filter(|uid| uid.type_name().to_string() == roles.tool_service);
        services.map(|uid| uid.id().unescaped().to_owned()).collect()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Digest of the refused folder; empty if it could not be read.
    pub digest: String,
    pub at: Timestamp,
    /// Faults of the bundle, each with its place.
    pub faults: Vec<String>,
}

/// State of the state store and of the other replicas, for operators.
#[derive(Clone, Debug, Default)]
pub(super) struct Shared {
    /// Time at which a data loss of the state store was found; `None` after an operator confirmed it.
    pub(super) went_back_at: Option<Timestamp>,
    /// Digests of the bundles that replicas have in force; sorted.
    pub(super) bundles: Vec<String>,
}
