//! The policy decision point: its state, its construction and its modules. `authorize.rs` shows one request
//! from top to bottom; `pipeline.rs` has the steps that several RPCs share.

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
use crate::pdp::snapshot::{Moment, Options, Rejected, Shared, Snapshot};
use crate::pdp::write_backlog::WriteBacklog;
use crate::risk_store::RiskStore;
use crate::telemetry::export::Telemetry;
use crate::text_pool::TextPool;

/// The policy decision point, which all requests share.
#[derive(Debug)]
pub struct Pdp {
    options: Options,
    snapshot: ArcSwap<Snapshot>,
    rejected: ArcSwapOption<Rejected>,
    /// Locked during a reload. Contains the digest of new content that only the last poll has seen; a poll
    /// activates content only if the previous poll saw it, too.
    reloading: tokio::sync::Mutex<String>,
    /// Locked while an outbox entry of another request or an earlier start is recorded, so that it is
    /// recorded once.
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
    /// Locked during [`Pdp::refresh`], so that each change is detected once.
    refreshing: tokio::sync::Mutex<()>,
    /// Time of the last successful heartbeat to the state store, in microseconds.
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

    /// Reads the snapshot and the clock. Each request does this once, at its beginning.
    pub fn moment(&self) -> Moment {
        Moment { snapshot: self.snapshot.load_full(), now: self.clock.now() }
    }

    pub fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// Counts a refused request whose peer was not authenticated or whose message could not be read.
    pub fn count_unauthenticated(&self, peer: String, kind: &'static str) {
        self.telemetry.metrics.refusal(kind);
        self.unauthenticated.count(peer, kind);
    }

    /// Marks the server as not ready. Requests are answered until the ports close.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }
}
