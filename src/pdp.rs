//! The pipelines: the one place that knows the order of the steps. `pdp/authorize.rs` reads top to bottom.

pub mod approvals;
pub mod authorize;
mod burn;
mod call_facts;
pub mod clear;
pub mod context;
pub mod draft;
mod evidence;
mod gates;
pub mod judge;
mod limits;
mod memory;
pub mod output;
pub mod plain;
mod present;
mod recover;
mod release;
pub mod reload;
pub mod request;
pub mod review;
pub mod rights;
mod shared;
pub mod shares;
pub mod signal;
mod state;
pub mod status;
mod weigh;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use dashmap::DashSet;

use crate::approvals::store::Store;
use crate::approvals::store::replica::Replica;
use crate::audit::key::DigestKey;
use crate::audit::refusals::RefusalCounter;
use crate::audit::witness::Witness;
use crate::audit::{Audit, AuditDown};
use crate::bundle::{Bundle, Reading};
use crate::caep::Transmitters;
use crate::caller::Callers;
use crate::clock::{Clock, Monotonic, Seldom};
use crate::delegation::Delegations;
use crate::entropy::Entropy;
use crate::jose::keyring::Keyring;
use crate::model::refusal::Refusal;
use crate::model::time::Timestamp;
use crate::model::vouched::Vouched;
use crate::pdp::memory::unsent::Memory;
use crate::pdp::reload::Rejected;
use crate::pdp::shared::Shared;
use crate::pdp::shares::Shares;
use crate::telemetry::export::Telemetry;
use crate::text_pool::TextPool;
use crate::windows::Windows;

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

/// The rings that sign tokens, each for its own purpose.
#[derive(Debug)]
pub struct Keys {
    /// Approval tokens.
    pub approval: Keyring,
    /// Binding tokens of denials, outcome tokens of allows, releases.
    pub binding: Keyring,
    /// By what values and sources are known again, on every replica.
    pub values: DigestKey,
}

/// The bundle in force.
#[derive(Debug)]
pub struct Snapshot {
    /// The bundle.
    pub bundle: Bundle,
    /// Since when.
    pub activated_at: Timestamp,
    /// What is vouched for when nothing is remembered.
    pub nothing: Vouched,
}

/// One snapshot and one instant: what a request sees from its first step to its last.
#[derive(Clone, Debug)]
pub struct Moment {
    /// The bundle in force.
    pub snapshot: Arc<Snapshot>,
    /// The instant.
    pub now: Timestamp,
}

/// A refusal that was recorded, counted, or can't be recorded since the log is down. Only the pipelines make one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(Refusal);

impl Refused {
    /// The refusal.
    pub fn refusal(&self) -> &Refusal {
        &self.0
    }
}

/// Runs what changes state to its end, whether or not its caller waits for it: a transition that happened is recorded.
pub(crate) async fn to_its_end<T: Send + 'static>(
    changing: impl Future<Output = Result<T, Refused>> + Send + 'static,
) -> Result<T, Refused> {
    let changed = tokio::spawn(changing).await;
    changed.unwrap_or(Err(Refused(Refusal::Unavailable("the request failed: it may have had its effect; ask again"))))
}

impl From<AuditDown> for Refused {
    fn from(down: AuditDown) -> Self {
        Self(match down {
            AuditDown::Failed => Refusal::Unavailable("the audit log can't be written: no decision is given without its record"),
            AuditDown::Full => Refusal::Exhausted("too many decisions wait for the audit log"),
        })
    }
}

/// The policy decision point.
#[derive(Debug)]
pub struct Pdp {
    options: Options,
    snapshot: ArcSwap<Snapshot>,
    rejected: ArcSwapOption<Rejected>,
    /// Held while a reload runs; the digest that the last poll saw first.
    reloading: tokio::sync::Mutex<String>,
    /// Held while a record is made that another request or start left.
    settling: tokio::sync::Mutex<()>,
    clock: Monotonic<Box<dyn Clock>>,
    entropy: Box<dyn Entropy>,
    audit: Audit,
    callers: Arc<Callers>,
    delegations: Delegations,
    transmitters: Transmitters,
    keys: ArcSwap<Keys>,
    store: Store,
    windows: Windows,
    texts: TextPool,
    shares: Shares,
    streams: Shares,
    memory: Memory,
    replica: Replica,
    shared: ArcSwap<Shared>,
    /// Held while what is shared is read anew.
    refreshing: tokio::sync::Mutex<()>,
    /// When the state store could be written last.
    written_at: AtomicI64,
    store_logged: Seldom,
    lost_logged: Seldom,
    witness: Option<Witness>,
    strangers: RefusalCounter,
    in_flight: DashSet<(String, String)>,
    telemetry: Telemetry,
    started_at: Timestamp,
    draining: AtomicBool,
}

/// The seams and stores that the pipelines are built on.
#[derive(Debug)]
pub struct Parts {
    /// Time.
    pub clock: Monotonic<Box<dyn Clock>>,
    /// Randomness.
    pub entropy: Box<dyn Entropy>,
    /// The audit log.
    pub audit: Audit,
    /// Who calls.
    pub callers: Arc<Callers>,
    /// On whose behalf.
    pub delegations: Delegations,
    /// Who sends security events.
    pub transmitters: Transmitters,
    /// The signing keys.
    pub keys: Keys,
    /// Approvals, receipts, checks, kill switches.
    pub store: Store,
    /// What was seen a short while ago.
    pub windows: Windows,
    /// What this replica notes outside of the store.
    pub replica: Replica,
    /// Where heads of the audit log are appended.
    pub witness: Option<Witness>,
    /// Traces and metrics.
    pub telemetry: Telemetry,
}

impl Pdp {
    /// A PDP that serves this bundle. Its activation must be recorded before the first call: see [`Pdp::start`].
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn new(options: Options, bundle: Bundle, parts: Parts) -> std::io::Result<Self> {
        let now = parts.clock.now();
        let texts = TextPool::start()?;
        let (shares, streams) = (Shares::new(options.concurrent_requests), Shares::new(options.concurrent_requests));
        Ok(Self {
            options,
            snapshot: ArcSwap::from_pointee(Snapshot::new(bundle, now)),
            rejected: ArcSwapOption::empty(),
            reloading: tokio::sync::Mutex::default(),
            settling: tokio::sync::Mutex::default(),
            clock: parts.clock,
            entropy: parts.entropy,
            audit: parts.audit,
            callers: parts.callers,
            delegations: parts.delegations,
            transmitters: parts.transmitters,
            keys: ArcSwap::from_pointee(parts.keys),
            store: parts.store,
            windows: parts.windows,
            texts,
            shares,
            streams,
            memory: Memory::default(),
            replica: parts.replica,
            shared: ArcSwap::default(),
            refreshing: tokio::sync::Mutex::default(),
            written_at: AtomicI64::new(0),
            store_logged: Seldom::default(),
            lost_logged: Seldom::default(),
            witness: parts.witness,
            strangers: RefusalCounter::default(),
            in_flight: DashSet::new(),
            telemetry: parts.telemetry,
            started_at: now,
            draining: AtomicBool::new(false),
        })
    }

    /// Reads the snapshot and the clock: once a request, at its top.
    pub fn moment(&self) -> Moment {
        Moment { snapshot: self.snapshot.load_full(), now: self.clock.now() }
    }

    /// Traces and metrics.
    pub fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// Counts a request of a peer that was never authenticated, or never read.
    pub fn count_stranger(&self, peer: String, kind: &'static str) {
        self.telemetry.metrics.refusal(kind);
        self.strangers.count(peer, kind);
    }

    /// Takes no more requests: readiness ends, those under way are answered.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }
}

impl Snapshot {
    fn new(bundle: Bundle, activated_at: Timestamp) -> Self {
        let nothing = judge::calm(&bundle.policies.shapes);
        Self { bundle, activated_at, nothing }
    }
}
