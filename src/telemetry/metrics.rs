//! Instruments of all metrics. All label values come from closed sets.

use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter};

use crate::model::number::to_u64;
use crate::telemetry::{
    METRIC_APPROVALS, METRIC_APPROVALS_PENDING, METRIC_AUDIT_FAILURES, METRIC_AUDIT_LOST, METRIC_AUDIT_SUPPRESSED,
    METRIC_BUNDLES, METRIC_CHECKPOINT_AGE, METRIC_CLOCK_SKEW, METRIC_DECISION_DURATION, METRIC_DECISIONS,
    METRIC_ENGINE_DIFFERENCES, METRIC_ENGINE_VERIFIED, METRIC_EVENTS_FAILED, METRIC_EXPORT_FAILED, METRIC_LAST_SUCCESS,
    METRIC_POLICY_REJECTED, METRIC_REFUSALS, METRIC_RELOADS, METRIC_RPC, METRIC_STOPS, METRIC_STORE_FAILURES,
    METRIC_STORE_WENT_BACK, METRIC_WINDOWS_ENTRIES, METRIC_WINDOWS_FAILURES, METRIC_WITNESS_FAILURES,
};

/// Bucket boundaries from 10 µs to 100 ms, because those of the semantic conventions begin at 5 ms.
const DECISION_SECONDS: [f64; 12] = [1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 1e-1];
const RPC_SECONDS: [f64; 12] = [1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 1e-1, 1.0, 10.0];

#[derive(Clone, Debug)]
pub struct Metrics {
    rpc: Histogram<f64>,
    decisions: Counter<u64>,
    refusals: Counter<u64>,
    decision_duration: Histogram<f64>,
    reloads: Counter<u64>,
    last_success: Gauge<i64>,
    audit_failures: Gauge<u64>,
    audit_lost: Gauge<u64>,
    checkpoint_age: Gauge<f64>,
    engine_verified: Gauge<u64>,
    engine_differences: Gauge<u64>,
    audit_suppressed: Counter<u64>,
    witness_failures: Counter<u64>,
    approvals: Counter<u64>,
    approvals_pending: Gauge<u64>,
    store_failures: Gauge<u64>,
    store_went_back: Gauge<u64>,
    clock_skew: Gauge<f64>,
    bundles: Gauge<u64>,
    windows_failures: Counter<u64>,
    windows_entries: Gauge<u64>,
    pub(super) export_failed: Counter<u64>,
    pub(super) events_failed: Counter<u64>,
    stops: Gauge<u64>,
    policy_rejected: Gauge<u64>,
}

fn checkpoint_age(meter: &Meter) -> Gauge<f64> {
    let what = "age of the last checkpoint of the audit log, if lines wait for one";
    meter.f64_gauge(METRIC_CHECKPOINT_AGE).with_unit("s").with_description(what).build()
}

fn decision_duration(meter: &Meter) -> Histogram<f64> {
    let what = "time to decide, without the wait for the audit log";
    let seconds = meter.f64_histogram(METRIC_DECISION_DURATION).with_unit("s").with_description(what);
    seconds.with_boundaries(DECISION_SECONDS.to_vec()).build()
}

impl Metrics {
    pub(super) fn new(meter: &Meter) -> Self {
        let metrics = Self {
            rpc: meter.f64_histogram(METRIC_RPC).with_unit("s").with_boundaries(RPC_SECONDS.to_vec()).build(),
            decisions: meter.u64_counter(METRIC_DECISIONS).with_description("decisions").build(),
            refusals: meter.u64_counter(METRIC_REFUSALS).with_description("requests that got no decision").build(),
            decision_duration: decision_duration(meter),
            reloads: meter.u64_counter(METRIC_RELOADS).with_description("reloads of the bundle").build(),
            last_success: meter
                .i64_gauge(METRIC_LAST_SUCCESS)
                .with_unit("s")
                .with_description("when the bundle in force was activated, unix time")
                .build(),
            audit_failures: meter.u64_gauge(METRIC_AUDIT_FAILURES).with_description("audit commits that failed since start").build(),
            checkpoint_age: checkpoint_age(meter),
            audit_lost: meter.u64_gauge(METRIC_AUDIT_LOST).with_description("best-effort audit records lost since start").build(),
            engine_verified: meter
                .u64_gauge(METRIC_ENGINE_VERIFIED)
                .with_description("calls of the bundle in force that were also evaluated by Cedar's authorizer")
                .build(),
            engine_differences: meter
                .u64_gauge(METRIC_ENGINE_DIFFERENCES)
                .with_description("those of them for which Cedar's authorizer gave another result, which was used")
                .build(),
            audit_suppressed: meter
                .u64_counter(METRIC_AUDIT_SUPPRESSED)
                .with_description("refusals of unauthenticated peers that were not written to the audit log")
                .build(),
            witness_failures: meter
                .u64_counter(METRIC_WITNESS_FAILURES)
                .with_description("heads of the audit log that its witness did not accept")
                .build(),
            approvals: meter.u64_counter(METRIC_APPROVALS).with_description("transitions and consumptions of approvals").build(),
            approvals_pending: meter
                .u64_gauge(METRIC_APPROVALS_PENDING)
                .with_description("approvals that are waiting for reviewers")
                .build(),
            store_failures: meter
                .u64_gauge(METRIC_STORE_FAILURES)
                .with_description("operations of the state store that failed since start")
                .build(),
            store_went_back: meter
                .u64_gauge(METRIC_STORE_WENT_BACK)
                .with_description("1 while a loss of the state store waits for an operator's confirmation")
                .build(),
            clock_skew: meter
                .f64_gauge(METRIC_CLOCK_SKEW)
                .with_unit("s")
                .with_description("how far this server's clock is ahead of the state store's, whose time is used, or of the risk store's")
                .build(),
            bundles: meter.u64_gauge(METRIC_BUNDLES).with_description("different bundles that replicas have in force").build(),
            windows_failures: meter
                .u64_counter(METRIC_WINDOWS_FAILURES)
                .with_description("requests for which the risk store could not be asked")
                .build(),
            windows_entries: meter.u64_gauge(METRIC_WINDOWS_ENTRIES).with_description("entries in the in-process risk store").build(),
            stops: meter.u64_gauge(METRIC_STOPS).with_description("kill switches and revoked sessions in force").build(),
            policy_rejected: meter
                .u64_gauge(METRIC_POLICY_REJECTED)
                .with_description("1 while the bundle's folder contains a bundle that was refused")
                .build(),
            export_failed: meter.u64_counter(METRIC_EXPORT_FAILED).with_description("spans that a failed export lost").build(),
            events_failed: meter.u64_counter(METRIC_EVENTS_FAILED).with_description("log events that a failed export lost").build(),
        };
        metrics.start_at_zero();
        metrics
    }

    /// Exports zeros from the start. A counter is not exported before it is first incremented, so an alert on it
    /// would have no data until the first loss.
    fn start_at_zero(&self) {
        self.export_failed.add(0, &[]);
        self.events_failed.add(0, &[]);
        self.audit_suppressed.add(0, &[]);
        self.witness_failures.add(0, &[]);
        self.audit(0, 0, Duration::ZERO);
        self.engine(0, 0);
        self.approvals_pending.record(0, &[]);
        self.store_failures(0);
        self.store_went_back(false);
        self.clock_skew("store", 0);
        self.bundles(1);
        self.windows_failures.add(0, &[]);
        self.windows_entries(0);
    }

    /// Records the end of an RPC.
    pub fn rpc(&self, method: &'static str, status: &'static str, took: Duration) {
        let labels = [
            KeyValue::new(super::RPC_SYSTEM, "grpc"),
            KeyValue::new(super::RPC_METHOD, method),
            KeyValue::new(super::RPC_STATUS, status),
        ];
        self.rpc.record(took.as_secs_f64(), &labels);
    }

    /// Records a decision and the time that it took.
    pub fn decision(&self, allowed: bool, reason: &'static str, mode: &'static str, took: Duration) {
        let decision = if allowed { "allow" } else { "deny" };
        let labels =
            [KeyValue::new("decision", decision), KeyValue::new("reason", reason), KeyValue::new("mode", mode)];
        self.decisions.add(1, &labels);
        self.decision_duration.record(took.as_secs_f64(), &[]);
    }

    /// Counts a refused request.
    pub fn refusal(&self, kind: &'static str) {
        self.refusals.add(1, &[KeyValue::new("kind", kind)]);
    }

    /// Counts a reload of the bundle.
    pub fn reload(&self, outcome: &'static str) {
        self.reloads.add(1, &[KeyValue::new("outcome", outcome)]);
    }

    /// Records when a bundle was activated.
    pub fn activated(&self, unix_seconds: i64) {
        self.last_success.record(unix_seconds, &[]);
    }

    /// Records the audit log's failed commits and lost records since start, and the age of its last checkpoint.
    pub fn audit(&self, failures: u64, lost: u64, checkpoint_age: Duration) {
        self.checkpoint_age.record(checkpoint_age.as_secs_f64(), &[]);
        self.audit_failures.record(failures, &[]);
        self.audit_lost.record(lost, &[]);
    }

    /// Records how many signals stop calls, and whether the folder's bundle was refused.
    pub fn standing(&self, stops: u32, is_rejected: bool) {
        self.stops.record(u64::from(stops), &[]);
        self.policy_rejected.record(u64::from(is_rejected), &[]);
    }

    /// Records how many calls Cedar's authorizer evaluated, too, and for how many its result differed.
    pub fn engine(&self, verified: u64, differences: u64) {
        self.engine_verified.record(verified, &[]);
        self.engine_differences.record(differences, &[]);
    }

    /// Counts a head of the audit log that the witness did not accept.
    pub fn witness_failed(&self) {
        self.witness_failures.add(1, &[]);
    }

    /// Counts an outcome of an approval or release, e.g. `requested`, `approved`, `consumed`, `sent`,
    /// `repeated`, `replayed`.
    pub fn approval(&self, outcome: &'static str) {
        self.approvals.add(1, &[KeyValue::new("outcome", outcome)]);
    }

    /// Records how many approvals wait for reviewers.
    pub fn pending(&self, count: u64) {
        self.approvals_pending.record(count, &[]);
    }

    /// Records the state store's failed operations since start.
    pub fn store_failures(&self, count: u64) {
        self.store_failures.record(count, &[]);
    }

    /// Records whether the state store lost data and no operator has confirmed the loss yet.
    pub fn store_went_back(&self, went_back: bool) {
        self.store_went_back.record(u64::from(went_back), &[]);
    }

    /// Records by how many microseconds this machine's clock is ahead of that of `store` or `windows`.
    pub fn clock_skew(&self, of: &'static str, micros: i64) {
        let seconds = Duration::from_micros(micros.unsigned_abs()).as_secs_f64();
        self.clock_skew.record(if micros < 0 { -seconds } else { seconds }, &[KeyValue::new("of", of)]);
    }

    /// Records how many different bundles replicas have in force.
    pub fn bundles(&self, count: usize) {
        self.bundles.record(to_u64(count), &[]);
    }

    /// Counts a request for which the risk store could not be asked.
    pub fn windows_failed(&self) {
        self.windows_failures.add(1, &[]);
    }

    /// Records the number of entries in the in-process risk store.
    pub fn windows_entries(&self, count: usize) {
        self.windows_entries.record(to_u64(count), &[]);
    }

    /// Counts refusals that were not written to the audit log.
    pub fn suppressed(&self, count: u64) {
        self.audit_suppressed.add(count, &[]);
    }
}
