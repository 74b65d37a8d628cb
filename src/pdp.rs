//! The policy decision point: its state, its construction and its modules. `authorize.rs` shows one request
//! from top to bottom; `pipeline.rs` has the steps that several RPCs share.

mod admission;
mod answers;
pub mod approval_access;
pub mod approval_request;
pub mod approval_review;
pub mod audit_reading;
pub mod authorize;
pub mod conformance;
pub mod consent_report;
mod consumption;
pub mod draft;
pub mod erasure;
pub mod evaluate_output;
pub mod evaluation;
pub mod evidence;
pub mod explanation;
mod gates;
mod housekeeping;
pub mod inbox;
pub mod kept_bundles;
pub mod keys;
pub mod origin;
mod pipeline;
pub mod prepare_context;
mod recorder;
mod redacted_values;
pub mod refused;
pub mod reload;
mod replicas;
pub mod reports;
pub mod rights;
pub mod risk_clearing;
mod risk_state;
pub mod scoring;
mod services;
pub mod signal_lifting;
pub mod snapshot;
mod span_facts;
pub mod status;
mod tokens;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwapOption;

use crate::approvals::store::Store;
use crate::approvals::store::replica::Replica;
use crate::audit::Audit;
use crate::audit::witness::Witness;
use crate::bundle::Bundle;
use crate::caep::Transmitters;
use crate::caller::{Callers, Peer};
use crate::clock::{Clock, Monotonic, Seldom};
use crate::delegation::Delegations;
use crate::entropy::Entropy;
use crate::model::time::Timestamp;
use crate::pdp::admission::Admission;
use crate::pdp::admission::concurrency::Share;
use crate::pdp::evidence::EvidenceMaker;
use crate::pdp::inbox::Inbox;
use crate::pdp::keys::Keys;
use crate::pdp::origin::Origin;
use crate::pdp::recorder::Recorder;
use crate::pdp::refused::Refused;
use crate::pdp::replicas::Replicas;
use crate::pdp::risk_state::RiskState;
use crate::pdp::services::Services;
use crate::pdp::snapshot::{ActiveBundle, Moment, Options, PdpClock, Rejected};
use crate::pdp::tokens::Tokens;
use crate::risk_store::RiskStore;
use crate::telemetry::export::Telemetry;
use crate::text_pool::TextPool;

/// The policy decision point, which all requests share. Each part has its own state and its own methods; the
/// methods of `Pdp` itself are the steps that need several parts.
#[derive(Debug)]
pub struct Pdp {
    // Parts.
    active: Arc<ActiveBundle>,
    admission: Admission,
    evidence: EvidenceMaker,
    inbox: Inbox,
    recorder: Recorder,
    replicas: Arc<Replicas>,
    risk: Arc<RiskState>,
    tokens: Tokens,
    // Services, which the parts use, too.
    options: Arc<Options>,
    clock: PdpClock,
    entropy: Arc<dyn Entropy>,
    audit: Arc<Audit>,
    store: Arc<Store>,
    replica: Arc<Replica>,
    telemetry: Arc<Telemetry>,
    texts: Arc<TextPool>,
    transmitters: Transmitters,
    witness: Option<Witness>,
    // State of the server.
    rejected: ArcSwapOption<Rejected>,
    /// Locked during a reload. Contains the digest of new content that only the last poll has seen; a poll
    /// activates content only if the previous poll saw it, too.
    reloading: tokio::sync::Mutex<String>,
    lost_logged: Seldom,
    started_at: Timestamp,
    draining: AtomicBool,
    /// Reasons for which the server was not ready when this was last logged.
    unready_logged: Mutex<Vec<&'static str>>,
}

/// Components that a [`Pdp`] is built from.
#[derive(Debug)]
pub struct Parts {
    pub clock: Monotonic<Box<dyn Clock>>,
    pub entropy: Box<dyn Entropy>,
    pub audit: Audit,
    /// Authenticates tool services.
    pub callers: Arc<Callers>,
    /// Verifies delegation tokens and the tokens of humans.
    pub delegations: Delegations,
    /// Verifies security events (CAEP) and their senders.
    pub transmitters: Transmitters,
    pub keys: Keys,
    /// State store: approvals, receipts, checks, kill switches and sums.
    pub store: Store,
    /// Rate windows, case risk and distinct counts.
    pub risk_store: RiskStore,
    /// Notes of this replica in a file outside the state store.
    pub replica: Replica,
    /// Receives the heads of the audit log; `None` if no witness is configured.
    pub witness: Option<Witness>,
    pub telemetry: Telemetry,
}

impl Pdp {
    /// Creates a PDP that serves this bundle. Call [`Pdp::start`] before the first request, because it
    /// records the bundle's activation.
    ///
    /// # Errors
    /// If the operating system can't start the threads for texts.
    pub fn new(options: Options, bundle: Bundle, parts: Parts) -> std::io::Result<Self> {
        let services = Services {
            options: Arc::new(options),
            clock: Arc::new(parts.clock),
            entropy: Arc::from(parts.entropy),
            audit: Arc::new(parts.audit),
            store: Arc::new(parts.store),
            replica: Arc::new(parts.replica),
            telemetry: Arc::new(parts.telemetry),
            texts: Arc::new(TextPool::start()?),
        };
        let active = Arc::new(ActiveBundle::new(bundle, Arc::clone(&services.clock)));
        let replicas = Arc::new(Replicas::new(&services, Arc::clone(&active)));
        Ok(Self {
            admission: Admission::new(&services, parts.callers, parts.delegations, Arc::clone(&replicas)),
            evidence: EvidenceMaker::new(&services),
            inbox: Inbox::default(),
            recorder: Recorder::new(&services),
            replicas,
            risk: Arc::new(RiskState::new(&services, Arc::clone(&active), parts.risk_store)),
            tokens: Tokens::new(&services, parts.keys),
            active,
            transmitters: parts.transmitters,
            witness: parts.witness,
            rejected: ArcSwapOption::empty(),
            reloading: tokio::sync::Mutex::default(),
            lost_logged: Seldom::default(),
            started_at: services.clock.now(),
            draining: AtomicBool::new(false),
            unready_logged: Mutex::default(),
            options: services.options,
            clock: services.clock,
            entropy: services.entropy,
            audit: services.audit,
            store: services.store,
            replica: services.replica,
            telemetry: services.telemetry,
            texts: services.texts,
        })
    }

    /// Reads the bundle in force and the clock. Each request does this once, at its beginning.
    pub fn moment(&self) -> Moment {
        self.active.moment()
    }

    pub fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// Derives a key of the deployment for a named purpose, which all replicas have.
    pub fn derived_key(&self, purpose: &str) -> [u8; 32] {
        self.tokens.keys().values.derived_key(purpose)
    }

    /// Returns the tenant of a human; empty if the bundle does not have her.
    pub fn tenant_of_human(&self, id: &str) -> String {
        let moment = self.moment();
        let bundle = &moment.snapshot.bundle;
        let roles = bundle.roles.as_ref();
        roles.and_then(|roles| bundle.policies.tenant_of(&roles.supervisor, id)).unwrap_or_default()
    }

    /// Counts a refused request whose peer was not authenticated or whose message could not be read.
    pub fn count_unauthenticated(&self, peer: String, kind: &'static str) {
        self.admission.count_unauthenticated(peer, kind);
    }

    /// Returns whether a peer is authenticated as a tool service or a human. Failures are not counted,
    /// because the services that depend on this are not audited.
    pub async fn knows(&self, peer: &Peer) -> bool {
        self.admission.knows(&self.moment(), peer).await
    }

    /// Takes one of the places for open streams, for an authenticated party. A stream of calls must come from
    /// a tool service.
    ///
    /// # Errors
    /// If the party is not authenticated or no place is free (UNAUTHENTICATED, RESOURCE_EXHAUSTED); the
    /// refusal is already counted.
    pub async fn open_stream(&self, origin: &Origin, of_calls: bool) -> Result<Share, Refused> {
        self.admission.open_stream(&self.moment(), origin, of_calls).await
    }

    /// Returns the public keys of tokens as a JWK set (RFC 7517).
    pub fn jwks(&self) -> String {
        self.tokens.jwks()
    }

    /// Replays what happened before this start: in process always; for Redis only if updates were still
    /// unsent.
    pub async fn rebuild(&self) {
        self.risk.rebuild().await;
    }

    /// Replays this replica's log for tenants whose data Redis lost. Call it every second.
    pub fn replay_lost(&self) {
        self.risk.replay_lost();
    }

    /// Checks whether Redis answers. Call it every second.
    pub async fn watch_windows(&self) {
        self.risk.watch_windows().await;
    }

    /// Checks each tenant's data on Redis. Call it every ten seconds.
    pub async fn tend_windows(&self) {
        self.risk.tend_windows().await;
    }

    /// Reads the kill switches and the state of the store again. Call it twice a second.
    pub async fn refresh(&self) {
        self.replicas.refresh(&self.recorder).await;
    }

    /// Marks the server as not ready. Requests are answered until the ports close.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }
}
