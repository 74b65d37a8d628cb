//! The pipelines: the one place that knows the order of the steps. `pdp/authorize.rs` reads top to bottom.

mod answers;
pub mod approval_access;
pub mod approval_request;
pub mod approval_review;
pub mod authorize;
pub mod concurrency;
pub mod conformance;
mod consumption;
pub mod draft;
pub mod evaluate_output;
pub mod evaluation;
mod evaluation_id;
mod gates;
mod housekeeping;
pub mod keys;
pub mod origin;
mod pipeline;
pub mod prepare_context;
mod rate_limits;
mod recording;
mod redacted_values;
pub mod refused;
pub mod reload;
mod replicas;
pub mod reports;
pub mod rights;
mod risk_access;
pub mod risk_clearing;
mod risk_keys;
mod risk_recovery;
mod risk_signals;
pub mod scoring;
pub mod snapshot;
mod span_facts;
pub mod status;
mod tokens;
mod write_backlog;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use dashmap::DashSet;

use crate::approvals::store::Store;
use crate::approvals::store::replica::Replica;
use crate::audit::Audit;
use crate::audit::refusals::RefusalCounter;
use crate::audit::witness::Witness;
use crate::bundle::Bundle;
use crate::caep::Transmitters;
use crate::caller::Callers;
use crate::clock::{Clock, Monotonic, Seldom};
use crate::delegation::Delegations;
use crate::entropy::Entropy;
use crate::model::time::Timestamp;
use crate::pdp::concurrency::Shares;
use crate::pdp::keys::Keys;
use crate::pdp::snapshot::Rejected;
use crate::pdp::snapshot::Shared;
use crate::pdp::snapshot::{Moment, Options, Snapshot};
use crate::pdp::write_backlog::WriteBacklog;
use crate::risk_store::RiskStore;
use crate::telemetry::export::Telemetry;
use crate::text_pool::TextPool;

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
    risk_store: RiskStore,
    texts: TextPool,
    shares: Shares,
    streams: Shares,
    backlog: WriteBacklog,
    replica: Replica,
    shared: ArcSwap<Shared>,
    /// Held while what is shared is read anew.
    refreshing: tokio::sync::Mutex<()>,
    /// When the state store could be written last.
    written_at: AtomicI64,
    store_logged: Seldom,
    lost_logged: Seldom,
    witness: Option<Witness>,
    unauthenticated: RefusalCounter,
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
    pub risk_store: RiskStore,
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
            risk_store: parts.risk_store,
            texts,
            shares,
            streams,
            backlog: WriteBacklog::default(),
            replica: parts.replica,
            shared: ArcSwap::default(),
            refreshing: tokio::sync::Mutex::default(),
            written_at: AtomicI64::new(0),
            store_logged: Seldom::default(),
            lost_logged: Seldom::default(),
            witness: parts.witness,
            unauthenticated: RefusalCounter::default(),
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
    pub fn count_unauthenticated(&self, peer: String, kind: &'static str) {
        self.telemetry.metrics.refusal(kind);
        self.unauthenticated.count(peer, kind);
    }

    /// Takes no more requests: readiness ends, those under way are answered.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }
}
