//! Kill switches that are in force, and how humans set and lift them.

use std::time::Duration;

use crate::approvals::store::lifting::{Asked, Lift, LiftTaken};
use crate::audit::events::{self, Actor};
use crate::audit::{AuditDown, Recorded};
use crate::entities::direct::On;
use crate::entropy::nonce;
use crate::json::Value;
use crate::model::halt::{Halt, HaltKind, Halted, Severity, SignalKind, SubjectKind};
use crate::model::refusal::Refusal;
use crate::model::right::Right;
use crate::model::time::Timestamp;
use crate::pdp::Pdp;
use crate::pdp::admission::Party;
use crate::pdp::origin::Origin;
use crate::pdp::refused::Refused;
use crate::pdp::reports::Signal;
use crate::pdp::rights::may;
use crate::pdp::snapshot::Moment;

/// A request to lift a kill switch, as it was read.
#[derive(Clone, Debug)]
pub struct ToLift {
    /// Tenant of the subject; empty for the server.
    pub tenant: String,
    pub subject_kind: SubjectKind,
    pub subject: String,
    pub reason: String,
}

/// A kill switch that a human sets, as it was read.
#[derive(Clone, Debug)]
pub struct KillSwitch {
    /// Tenant of a case or customer; may be empty for other subjects, because it follows from them.
    pub tenant: String,
    pub subject_kind: SubjectKind,
    pub subject: String,
    pub ttl: Duration,
    pub reason: String,
}

/// Progress of a lifting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub is_lifted: bool,
    /// Number of humans who have asked for it.
    pub humans: u32,
    /// Number of humans who must ask.
    pub quorum: u32,
}

/// Maximum number of listed signals.
pub const LISTED_MAX: usize = 1000;

/// Returns what a listing is sorted by: signals that stop calls come first.
fn key(halt: &Halt) -> (bool, &str, SubjectKind, &str, HaltKind) {
    (!halt.kind.stops(), &halt.tenant, halt.subject_kind, &halt.subject, halt.kind)
}

impl Pdp {
    /// Returns the signals that are in force for a tenant and for everything, those that stop calls first.
    ///
    /// # Errors
    /// If the request is refused; the refusal is already recorded or counted.
    pub async fn list_signals(&self, origin: &Origin, read: Result<String, Refusal>) -> Result<Vec<Halt>, Refused> {
        let moment = self.moment();
        let party = self.admission.lifter(&moment, origin).await?;
        let _share = self.admission.party_share(&moment, origin, &party).await?;
        let by = party.actor().in_trace(origin.trace.id());
        let listed = read.and_then(|tenant| {
            if !self.may_list(&moment, &party, &tenant) {
                return Err(Refusal::Forbidden(
                    "no policy lets the caller see the signals of this tenant (`signal.report` or `server.observe`; for humans `signal.lift`)",
                ));
            }
            self.replicas.can_tell_stops(moment.now)?;
            Ok(self.active_signals(&moment, &tenant))
        });
        self.or_refused(&moment, origin, by, listed).await
    }

    /// Returns signals in force, of one tenant and of everything, one more than [`LISTED_MAX`] at most.
    fn active_signals(&self, moment: &Moment, tenant: &str) -> Vec<Halt> {
        let halts = self.store.halts();
        let is_meant = |halt: &&Halt| halt.tenant == tenant || halt.subject_kind == SubjectKind::Server;
        let mut active: Vec<&Halt> =
            halts.halts.iter().filter(|halt| halt.is_active(moment.now)).filter(is_meant).collect();
        active.sort_unstable_by(|one, other| key(one).cmp(&key(other)).then(other.until.cmp(&one.until)));
        active.dedup_by(|next, kept| key(next) == key(kept));
        active.into_iter().take(LISTED_MAX + 1).cloned().collect()
    }

    fn may_list(&self, moment: &Moment, party: &Party, tenant: &str) -> bool {
        match party {
            Party::Human(human) => {
                human.tenant == tenant && may(moment, Right::SignalLift, &human.id, On::Tenant(tenant))
            }
            Party::Service(caller) => {
                let (service, environment) = (&caller.tool_service, &self.options.environment);
                // Signals name customers, so an observer of the server sees only tenants that it may speak for.
                caller.speaks_for(tenant)
                    && (may(moment, Right::SignalReport, service, On::Tenant(tenant))
                        || may(moment, Right::ServerObserve, service, On::Server(environment)))
            }
        }
    }

    /// Sets a kill switch on behalf of a human, who may do so if she may lift it.
    ///
    /// # Errors
    /// If the request is refused; the refusal is already recorded or counted.
    pub async fn set_kill_switch(
        &self,
        origin: &Origin,
        read: Result<KillSwitch, Refusal>,
    ) -> Result<Recorded<()>, Refused> {
        let moment = self.moment();
        let party = self.admission.lifter(&moment, origin).await?;
        let _share = self.admission.party_share(&moment, origin, &party).await?;
        let by = party.actor().in_trace(origin.trace.id());
        let set = match (&party, read) {
            (Party::Human(_), Ok(switch)) => self.switched(&moment, &party, &by, switch).await,
            (Party::Service(_), Ok(_)) => Err(Refusal::Forbidden("a tool service reports a signal instead")),
            (_, Err(refusal)) => Err(refusal),
        };
        self.or_refused(&moment, origin, by, set).await
    }

    async fn switched(
        &self,
        moment: &Moment,
        party: &Party,
        by: &Actor,
        switch: KillSwitch,
    ) -> Result<Recorded<()>, Refusal> {
        let KillSwitch { tenant, subject_kind, subject, ttl, reason } = switch;
        let halt = Halt {
            tenant,
            subject_kind,
            subject,
            kind: HaltKind::KillSwitch,
            since: moment.now,
            until: Timestamp::default(),
            lifted: Timestamp::default(),
        };
        let signal = Signal {
            kind: SignalKind::KillSwitch,
            severity: Severity::Critical,
            halt,
            ttl,
            event_id: nonce(self.entropy.as_ref())?,
            reporter: None,
            reason,
        };
        let taken = self.taken(moment, party, by, signal).await?;
        // A random event id is never known.
        taken.ok_or(Refusal::Unavailable("the kill switch was not set: try again"))
    }

    /// Lifts a kill switch, as soon as enough humans have asked for it.
    ///
    /// # Errors
    /// If the request is refused; the refusal is already recorded or counted.
    pub async fn lift_signal(
        &self,
        origin: &Origin,
        read: Result<ToLift, Refusal>,
    ) -> Result<Recorded<Progress>, Refused> {
        let moment = self.moment();
        let party = self.admission.lifter(&moment, origin).await?;
        let _share = self.admission.party_share(&moment, origin, &party).await?;
        let by = party.actor().in_trace(origin.trace.id());
        let lifted = match read {
            Ok(lift) => self.lifted(&moment, &party, &by, lift).await,
            Err(refusal) => Err(refusal),
        };
        self.or_refused(&moment, origin, by, lifted).await
    }

    async fn lifted(
        &self,
        moment: &Moment,
        party: &Party,
        by: &Actor,
        lift: ToLift,
    ) -> Result<Recorded<Progress>, Refusal> {
        const FORBIDDEN: Refusal = Refusal::Forbidden(
            "only a human may lift a kill switch, and no policy grants this one `signal.lift` (for everything: `server.lift`) here",
        );
        let Party::Human(human) = party else { return Err(FORBIDDEN) };
        let is_own = lift.subject_kind == SubjectKind::Server || human.tenant == lift.tenant;
        if !is_own || !self.is_granted(moment, &lift, &human.id) {
            return Err(FORBIDDEN);
        }
        // Without its record no switch may be lifted, and the store commits before the log is written.
        if !self.audit.healthy() {
            return Err(AuditDown::Failed.into());
        }
        let excluded = self.excluded(moment, &lift).await?;
        let quorum = moment.snapshot.bundle.roles.as_ref().map_or(1, |roles| roles.lift_quorum.0.get());
        let digest = |text: &str| self.audit.digest(&Value::from(text));
        // The log identifies customers by a keyed digest everywhere.
        let subject = if lift.subject_kind == SubjectKind::Customer {
            self.audit.customer(&lift.subject)
        } else {
            lift.subject.clone()
        };
        let more = [
            ("subject_kind", lift.subject_kind.name().into()),
            ("subject", subject.into()),
            ("tenant", lift.tenant.clone().into()),
            ("quorum", quorum.into()),
            ("reason_digest", digest(&lift.reason).into()),
        ];
        let (lifted, asked) =
            (events::event("signal.lifted", by, &more), events::event("signal.lift_asked", by, &more));
        let subject_kind = lift.subject_kind.name();
        let new = Lift {
            tenant: lift.tenant,
            subject_kind: lift.subject_kind,
            subject: lift.subject,
            asks: Asked { person: human.person_key(), human: human.id.clone(), issued_at: human.issued_at },
            excluded,
            quorum,
            at: moment.now,
            lifted: lifted.clone(),
            asked: asked.clone(),
        };
        let (is_lifted, humans, revision, record) = match self.store.lift(new).await? {
            LiftTaken::Reported => {
                return Err(Refusal::Unavailable(
                    "the kill switch was reported again meanwhile: ask again if it should still be lifted",
                ));
            }
            LiftTaken::Nothing => return Err(Refusal::Precondition("no kill switch of this subject is in force")),
            LiftTaken::Asked(humans, revision) => (false, humans, revision, asked),
            LiftTaken::Lifted(revision) => (true, quorum, revision, lifted),
        };
        if is_lifted {
            tracing::warn!(name: "signal.lifted", subject_kind, by = human.id, "a kill switch was lifted");
        }
        // Record first, so that no switch is lifted without a record.
        let receipt = self.recorder.record_entry(moment.now, &revision, record).await?;
        self.refresh().await;
        Ok(receipt.seal(Progress { is_lifted, humans, quorum }))
    }

    /// Returns whether policies grant a human the lifting.
    fn is_granted(&self, moment: &Moment, lift: &ToLift, human: &str) -> bool {
        let environment = &self.options.environment;
        match lift.subject_kind {
            SubjectKind::Server => {
                lift.subject == *environment && may(moment, Right::ServerLift, human, On::Server(environment))
            }
            SubjectKind::Agent
            | SubjectKind::Case
            | SubjectKind::Customer
            | SubjectKind::Supervisor
            | SubjectKind::Tenant => may(moment, Right::SignalLift, human, On::Tenant(&lift.tenant)),
        }
    }

    /// Returns the persons who asked before, and have lost the right or been stopped since.
    async fn excluded(&self, moment: &Moment, lift: &ToLift) -> Result<Vec<String>, Refusal> {
        let bundle = &moment.snapshot.bundle;
        let halts = self.store.halts();
        let still_may = |asked: &Asked| {
            let roles = bundle.roles.as_ref();
            let tenant = roles.and_then(|roles| bundle.policies.tenant_of(&roles.supervisor, &asked.human));
            let tenant = tenant.unwrap_or_default();
            self.is_granted(moment, lift, &asked.human)
                && Halted::person(&tenant, &asked.human, asked.issued_at).may_lift(&halts.halts, moment.now)
        };
        let earlier = self.store.lift_asked(&lift.tenant, lift.subject_kind, &lift.subject).await?;
        Ok(earlier.into_iter().filter(|asked| !still_may(asked)).map(|asked| asked.person).collect())
    }
}
