//! Start, readiness, status and stop of the PDP, and the confirmation of a data loss by an operator.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::audit::Recorded;
use crate::audit::events::{self, Actor};
use crate::audit::operations::{RecoveredRecord, ResumedRecord, ServerRecord};
use crate::audit::record::Record;
use crate::audit::record::parts::CEDAR_VERSION;
use crate::model::halt::{Halt, SubjectKind};
use crate::model::number::to_u32;
use crate::model::refusal::Refusal;
use crate::model::time::Timestamp;
use crate::pdp::Pdp;
use crate::pdp::origin::Origin;
use crate::pdp::refused::Refused;
use crate::pdp::snapshot::{Rejected, Snapshot};

/// Maximum step back of the clock. Beyond it, the server is not ready.
const STEP_BACK_MAX: Duration = Duration::from_secs(5);
/// Maximum time for sending the last spans.
const FLUSH: Duration = Duration::from_secs(5);

/// Status of the server, for operators.
#[derive(Debug)]
pub struct Status {
    /// Version of the Cedar library.
    pub cedar_version: &'static str,
    pub environment: String,
    pub started_at: Timestamp,
    /// Reasons for which the server is not ready; empty if it is ready.
    pub not_ready: Vec<&'static str>,
    /// The bundle in force.
    pub snapshot: Arc<Snapshot>,
    /// The last bundle that was refused after the one in force was activated.
    pub rejected: Option<Arc<Rejected>>,
    /// Name of the audit log.
    pub log: String,
    /// Index of the last durable record.
    pub last_index: u64,
    /// `strict` or `best_effort`.
    pub durability: &'static str,
    /// Warnings about the deployment, which every answer repeats.
    pub warnings: Vec<&'static str>,
    /// Engine of the state store.
    pub store: &'static str,
    /// Whether the state store answers. If not, calls that need it are denied, and others continue.
    pub store_healthy: bool,
    /// Time at which a data loss of the state store was found; `None` after an operator confirmed it.
    pub store_went_back_at: Option<Timestamp>,
    /// Level that a commit waits for beyond the server's own disk; empty if it waits for nothing else.
    pub store_durability: String,
    /// Digests of the bundles that replicas have in force; sorted.
    pub bundles: Vec<String>,
    /// Time by which the machine's clock is ahead of the store's, in microseconds; negative if it is behind.
    pub clock_skew: i64,
    /// Engine of the risk store.
    pub windows: &'static str,
    /// Whether the risk store answered recently and has all updates.
    pub windows_healthy: bool,
    /// Number of kill switches and revoked sessions in force.
    pub stops: u32,
}

impl Pdp {
    /// Records the start: the recovery of the log, the server, its bundle. No request is served before.
    ///
    /// # Errors
    /// If the audit log can't be written.
    pub async fn start(&self, recovered: Option<RecoveredRecord>) -> Result<(), Refused> {
        let now = self.clock.now();
        if let Some(recovered) = recovered {
            tracing::warn!(name: "audit.recovered", bytes = recovered.bytes, kept_in = recovered.kept_in);
            self.audit.append(now, Record::Recovered(recovered)).await?;
        }
        self.audit.append(now, Record::Started(self.server_record())).await?;
        self.record_first_bundle().await?;
        self.refresh().await;
        if self.store.is_shared() && !self.clock.is_shared() {
            // The first query may take too long to set the clock, because it connects.
            self.refresh().await;
        }
        self.recorder.drain_at_start(now).await?;
        let stops = self.stops();
        if stops > 0 {
            tracing::warn!(name: "signals.in_force", stops, "kill switches or revoked sessions stop calls: see `countersign signals list`");
        }
        Ok(())
    }

    /// Returns the number of kill switches and revoked sessions in force.
    pub fn stops(&self) -> u32 {
        let (halts, now) = (self.store.halts(), self.clock.now());
        to_u32(halts.halts.iter().filter(|halt| halt.kind.stops() && halt.is_active(now)).count())
    }

    /// Returns the number of kill switches and revoked sessions in force for a tenant and for everything.
    pub fn stops_of(&self, tenant: &str) -> u32 {
        let (halts, now) = (self.store.halts(), self.clock.now());
        let is_meant = |halt: &&Halt| halt.tenant == tenant || halt.subject_kind == SubjectKind::Server;
        to_u32(halts.halts.iter().filter(is_meant).filter(|halt| halt.kind.stops() && halt.is_active(now)).count())
    }

    /// Records the stop, writes what is queued, and sends the last spans. It blocks, so call it from a
    /// blocking thread.
    pub fn stop(&self, runtime: &tokio::runtime::Handle) {
        let now = self.clock.now();
        let stopped = runtime.block_on(async {
            self.tick().await;
            self.risk.send_unsent().await;
            self.risk.note_written().await;
            self.refresh().await;
            let stopped = self.audit.append(now, Record::Stopped(self.server_record())).await;
            self.note_head().await;
            self.tell_witness().await;
            // The store logs its own failures.
            let _left = self.store.leave().await;
            self.store.close().await;
            stopped
        });
        if let Err(error) = stopped {
            tracing::error!(name: "audit.stop_not_recorded", error = %error);
        }
        self.audit.close();
        self.telemetry.shut_down(FLUSH);
    }

    /// Lets the audit log sign a checkpoint if one is due, tries to write the log again after a failure, and records the
    /// refusals of unauthenticated peers since the last call: one line for each peer and kind, if there is room. Call it
    /// every second.
    pub async fn tick(&self) {
        let now = self.clock.now();
        self.audit.checkpoint(now);
        self.telemetry.metrics.audit(self.audit.failures(), self.audit.lost(), now.since(self.audit.checkpointed()));
        let verification = self.active.snapshot().bundle.policies.engine.verification();
        self.telemetry.metrics.engine(verification.verified, verification.differences);
        self.telemetry.metrics.standing(self.stops(), self.rejected.load().is_some());
        if !self.audit.healthy() {
            let resumed = ResumedRecord { failures: self.audit.failures() };
            // If this fails, too, the server stays unready.
            let _still_failing = self.audit.append(now, Record::Resumed(resumed)).await;
        }
        let drained = self.admission.unauthenticated.drain();
        if drained.is_empty() {
            return;
        }
        let room = self.audit.has_room_for_unauthenticated();
        for record in drained {
            let count = record.count;
            if !room || self.audit.append(now, Record::Refusals(record)).await.is_err() {
                self.telemetry.metrics.suppressed(count);
            }
        }
    }

    /// Logs each reason for which the server is not ready once when it begins, with the remedy, and once when it has
    /// ended. Call it every second.
    pub fn log_readiness(&self) {
        let now: Vec<&'static str> = self.not_ready().into_iter().filter(|reason| *reason != "draining").collect();
        let mut logged = self.unready_logged.lock().unwrap_or_else(PoisonError::into_inner);
        for reason in now.iter().filter(|reason| !logged.contains(reason)) {
            tracing::error!(name: "server.not_ready", reason, remedy = remedy(reason));
        }
        for reason in logged.iter().filter(|reason| !now.contains(reason)) {
            tracing::info!(name: "server.ready_again", reason);
        }
        *logged = now;
    }

    /// Returns the reasons for which the server is not ready; empty if it is ready.
    pub fn not_ready(&self) -> Vec<&'static str> {
        let now = self.clock.now();
        let faults = [
            ("audit", !self.audit.healthy()),
            ("clock", self.clock.step_back() > STEP_BACK_MAX || self.replicas.is_skewed()),
            ("draining", self.draining.load(Ordering::Acquire)),
            ("store", !self.replicas.has_state(now)),
            ("windows", !self.risk.is_reached(now)),
        ];
        faults.into_iter().filter(|(_, fault)| *fault).map(|(name, _)| name).collect()
    }

    /// Status of the server, for operators.
    pub fn status(&self) -> Status {
        let shared = self.replicas.shared();
        Status {
            cedar_version: &CEDAR_VERSION,
            environment: self.options.environment.clone(),
            started_at: self.started_at,
            not_ready: self.not_ready(),
            snapshot: self.active.snapshot(),
            rejected: self.rejected.load_full(),
            log: self.audit.log().to_owned(),
            last_index: self.audit.last_index(),
            durability: self.audit.durability().name(),
            warnings: self.options.warnings.clone(),
            store: self.store.engine(),
            store_healthy: self.replicas.has_state(self.clock.now()),
            store_went_back_at: shared.went_back_at,
            store_durability: self.store.durability().to_owned(),
            bundles: shared.bundles.clone(),
            clock_skew: self.clock.skew(),
            stops: self.stops(),
            windows: self.risk.engine(),
            windows_healthy: self.risk.is_healthy(self.clock.now()),
        }
    }

    /// Returns the name of the audit log, for references to it.
    pub fn audit_log(&self) -> &str {
        self.audit.log()
    }

    fn server_record(&self) -> ServerRecord {
        ServerRecord::new(&self.options.environment, self.audit.durability().name(), &self.options.warnings)
    }

    /// Confirms that an operator knows of the state store's data loss and has dealt with it.
    ///
    /// # Errors
    /// If the request is refused; the refusal is already recorded or counted.
    pub async fn confirm_store(&self, origin: &Origin) -> Result<Recorded<()>, Refused> {
        let moment = self.moment();
        let caller = self.admit(origin, crate::model::right::Right::ServerOperate).await?;
        let by = Actor::service(&caller).in_trace(origin.trace.id());
        let confirmed = self.confirmed(&by, moment.now).await;
        self.or_refused(&moment, origin, by, confirmed).await
    }

    async fn confirmed(&self, by: &Actor, now: Timestamp) -> Result<Recorded<()>, Refusal> {
        let Some(went_back_at) = self.replicas.shared().went_back_at else {
            return Err(Refusal::Precondition("the state store has no unconfirmed loss of data"));
        };
        let more = [("went_back_at", went_back_at.to_string().into())];
        let receipt = self.recorder.record_event(now, events::event("store.confirmed", by, &more)).await?;
        self.store.confirm(went_back_at).await?;
        self.refresh().await;
        Ok(receipt.seal(()))
    }
}

/// Returns what a reason for not being ready means, and what to do about it.
fn remedy(reason: &str) -> &'static str {
    match reason {
        "audit" => {
            "the audit log can't be written, so no request is answered: free space in the data folder, or repair its disk"
        }
        "clock" => "the clocks of this server and of the state store differ too much: check their time service",
        "store" => "the state store does not answer, so writes are denied, and soon every call: check the database",
        "windows" => "the risk store does not answer, so risk counts as the worst: check Redis",
        _ => "see `GetStatus`",
    }
}
