//! Reports that come back after a decision: outcomes of allowed calls, and signals and security events of
//! other systems.

use std::time::Duration;

use crate::approvals::binding;
use crate::approvals::binding::Allowed;
use crate::approvals::store::signals::{NewSignal, SignalTaken, TTL_MAX};
use crate::approvals::store::transitions::{Check, NewOutcome};
use crate::audit::events::Actor;
use crate::audit::{Recorded, events};
use crate::caep::Event;
use crate::caller::Peer;
use crate::entities::direct::On;
use crate::model::chain::{Authentication, Caller};
use crate::model::halt::{Halt, HaltKind, Severity, SignalKind, SubjectKind};
use crate::model::refusal::Refusal;
use crate::model::right::Right;
use crate::model::time::Timestamp;
use crate::pdp::Pdp;
use crate::pdp::admission::Party;
use crate::pdp::origin::{Origin, Purpose};
use crate::pdp::refused::Refused;
use crate::pdp::rights::may;
use crate::pdp::snapshot::Moment;
use crate::telemetry::spans::Trace;

/// The same message for subjects that the caller may not report on and for those that do not exist.
const MAY_NOT_REPORT: &str = "no policy lets the caller report signals for this subject (`signal.report`; for everything: \
                              `server.operate`), or there is no such agent, human, tenant or environment";
/// Maximum time that an event may be ahead of the server's clock.
const AHEAD: Duration = Duration::from_secs(30);

/// Outcome of an allowed call, as it was read.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Evaluation id of the allow.
    pub evaluation_id: String,
    /// Outcome token that the allow contained.
    pub token: String,
    pub succeeded: bool,
    /// Whether the call was made and failed.
    pub failed: bool,
    /// Members of the record: status, digests, names.
    pub members: Vec<(&'static str, serde_json::Value)>,
}

/// A signal, as it was read.
#[derive(Clone, Debug)]
pub struct Signal {
    pub kind: SignalKind,
    pub severity: Severity,
    /// Effect of the signal. The tenant may be empty if it follows from the subject.
    pub halt: Halt,
    /// Time that the signal counts for.
    pub ttl: Duration,
    /// The reporter's id of the event.
    pub event_id: String,
    /// Owner of the event ids, if it is not the caller.
    pub reporter: Option<String>,
    /// Reason in a human's words; empty for other systems.
    pub reason: String,
}

impl Pdp {
    /// Returns all checks that an action can create.
    fn checks_by(&self, moment: &Moment, action: &str) -> Vec<String> {
        let made = moment.snapshot.bundle.roles.as_ref().and_then(|roles| roles.checks.get(action));
        made.map_or_else(Vec::new, |made| made.makes().cloned().collect())
    }

    /// Records the outcome of an allowed call, once, from the caller that was allowed. The success of a
    /// verification creates its check.
    ///
    /// # Errors
    /// If the request is refused; the refusal is already recorded or counted.
    pub async fn report_outcome(
        &self,
        origin: &Origin,
        read: Result<Outcome, Refusal>,
    ) -> Result<Recorded<Option<(String, Timestamp)>>, Refused> {
        let moment = self.moment();
        let caller = self.admission.service(&moment, origin)?;
        let _share = self.admission.share(&moment, origin, &caller.tool_service).await?;
        let by = Actor::service(&caller).in_trace(origin.trace.id());
        let reported = match read {
            Ok(outcome) => self.reported(&moment, &caller, &by, outcome).await,
            Err(refusal) => Err(refusal),
        };
        self.or_refused(&moment, origin, by, reported).await
    }

    async fn reported(
        &self,
        moment: &Moment,
        caller: &Caller,
        by: &Actor,
        outcome: Outcome,
    ) -> Result<Recorded<Option<(String, Timestamp)>>, Refusal> {
        const NOT_YOURS: Refusal = Refusal::Forbidden(
            "no call allowed to this caller within the last hour has this outcome token, or it was already reported",
        );
        let keys = self.tokens.keys();
        let allowed = binding::open_outcome(
            &keys.outcome,
            &self.options.environment,
            &caller.tool_service,
            &outcome.token,
            moment.now,
        );
        let allowed = allowed.map_err(|_| NOT_YOURS).and_then(|allowed| {
            match allowed.evaluation_id == outcome.evaluation_id && caller.speaks_for(&allowed.tenant) {
                true => Ok(allowed),
                false => Err(NOT_YOURS),
            }
        })?;
        let checks = if outcome.succeeded { made(moment, &allowed) } else { vec![] };
        // A failed verification ends the checks that an earlier success created.
        let ends = outcome
            .failed
            .then(|| (allowed.tenant.clone(), allowed.case.clone(), self.checks_by(moment, &allowed.action)));
        let mut more = outcome.members;
        more.push(("evaluation_id", allowed.evaluation_id.clone().into()));
        more.push(("action", allowed.action.clone().into()));
        more.extend(events::about_case(&allowed.tenant, &allowed.case, "", &allowed.conversation));
        if !allowed.approval.is_empty() {
            more.push(("approval_used", allowed.approval.clone().into()));
        }
        if !allowed.consent.is_empty() {
            more.push(("consent_used", allowed.consent.clone().into()));
        }
        let strongest = checks.last().map(|check| (check.kind.clone(), check.expires));
        if let Some((_, expires)) = &strongest {
            more.push(("makes_checks", checks.iter().map(|check| check.kind.as_str()).collect()));
            more.push(("check_expires", expires.to_string().into()));
        }
        let record = events::event("outcome.reported", by, &more);
        let new =
            NewOutcome { evaluation_id: allowed.evaluation_id, checks, ends, at: moment.now, record: record.clone() };
        let revision = self.store.outcome(new).await?.ok_or(NOT_YOURS)?;
        let receipt = self.recorder.record_entry(moment.now, &revision, record).await?;
        Ok(receipt.seal(strongest))
    }

    /// Takes a signal. It takes effect on this replica at once, and on others within a second. Returns `None`
    /// if the event was already known.
    ///
    /// # Errors
    /// If the request is refused; the refusal is already recorded or counted.
    pub async fn report_signal(
        &self,
        origin: &Origin,
        read: Result<Signal, Refusal>,
    ) -> Result<Option<Recorded<()>>, Refused> {
        let moment = self.moment();
        let caller = self.admission.service(&moment, origin)?;
        let _share = self.admission.share(&moment, origin, &caller.tool_service).await?;
        let by = Actor::service(&caller).in_trace(origin.trace.id());
        let taken = match read {
            Ok(signal) => self.taken(&moment, &Party::Service(caller.clone()), &by, signal).await,
            Err(refusal) => Err(refusal),
        };
        self.or_refused(&moment, origin, by, taken).await
    }

    /// Takes a security event of a transmitter.
    ///
    /// # Errors
    /// If the request is refused; the refusal is already recorded or counted.
    pub async fn take_event(&self, from: std::net::SocketAddr, token: &str) -> Result<(), Refused> {
        let moment = self.moment();
        let peer = Peer { address: Some(from), ..Peer::default() };
        let origin = Origin { peer, trace: Trace::default(), purpose: Purpose::Authorize, waits: false };
        let event = match self.transmitters.open(token, moment.now).await {
            Ok(event) => event,
            // The sender is not authenticated, so the refusal is only counted; otherwise it could fill the
            // log.
            Err(refusal) => return Err(self.admission.unauthenticated(&moment, &origin, refusal)),
        };
        let transmitter = &event.transmitter;
        let caller = Caller {
            tool_service: transmitter.tool_service.clone(),
            by: Authentication::EventToken,
            tenants: Some(vec![transmitter.tenant.clone()]),
            certificate: None,
        };
        let by = Actor::service(&caller);
        let taken = match &event.says {
            Some(says) => {
                let halt = Halt {
                    tenant: transmitter.tenant.clone(),
                    subject_kind: says.subject_kind,
                    subject: says.subject.clone(),
                    kind: says.kind.effect(says.severity),
                    since: says.at,
                    until: Timestamp::default(),
                    lifted: Timestamp::default(),
                };
                let (kind, severity) = (says.kind, says.severity);
                let signal = Signal {
                    kind,
                    severity,
                    halt,
                    ttl: self.options.event_ttl,
                    event_id: event.id.clone(),
                    reporter: Some(transmitter.issuer.clone()),
                    reason: String::new(),
                };
                self.taken(&moment, &Party::Service(caller.clone()), &by, signal).await.map(|_| ())
            }
            None => self.noted_event(&moment, &by, &event).await,
        };
        self.or_refused(&moment, &origin, by, taken).await
    }

    /// Records an event that changes nothing.
    async fn noted_event(&self, moment: &Moment, by: &Actor, event: &Event) -> Result<(), Refusal> {
        let more = [("kind", event.name.into()), ("event_id", event.id.clone().into())];
        let record = events::event("event.acknowledged", by, &more);
        self.recorder.record_event(moment.now, record).await.map(|_| ())
    }

    pub(super) async fn taken(
        &self,
        moment: &Moment,
        party: &Party,
        by: &Actor,
        signal: Signal,
    ) -> Result<Option<Recorded<()>>, Refusal> {
        check(&signal, moment.now)?;
        let tenant = self.tenant_of(moment, &signal.halt)?;
        if !self.may_report(moment, party, &signal.halt, &tenant) {
            return Err(Refusal::Forbidden(MAY_NOT_REPORT));
        }
        let event_time = signal.halt.since.min(moment.now);
        // A kill switch begins when it is taken, so that it is later than the lifting of an earlier one.
        let since = if signal.halt.kind == HaltKind::KillSwitch { moment.now } else { event_time };
        let halt = Halt { tenant, since, until: moment.now.plus(signal.ttl), ..signal.halt.clone() };
        let more = self.members(&signal, &halt, event_time);
        let record = events::event("signal.reported", by, &more);
        let (stops, effect, until) = (halt.kind.stops(), halt.words(), halt.until.to_string());
        let new = NewSignal {
            reporter: signal.reporter.unwrap_or_else(|| party.id().to_owned()),
            event_id: signal.event_id,
            kind: signal.kind,
            halt,
            at: moment.now,
            record: record.clone(),
        };
        let revision = match self.store.signal(new).await? {
            SignalTaken::Stored(revision) => {
                if stops {
                    tracing::warn!(name: "signal.stops", effect, until, by = party.id(), "calls are stopped: see `countersign signals list`");
                }
                revision
            }
            SignalTaken::Full => {
                return Err(Refusal::Exhausted(
                    "10,000 reports of this tenant are in force, and each is more severe than this one",
                ));
            }
            SignalTaken::Known => {
                // Another replica took the signal. This one must know it, too, before it acknowledges it.
                self.refresh().await;
                return self.replicas.can_tell_stops(self.clock.now()).map(|()| None);
            }
            SignalTaken::Old => {
                return Err(Refusal::invalid("event_time", "is earlier than that of an event reported before"));
            }
        };
        let receipt = self.recorder.record_entry(moment.now, &revision, record).await?;
        self.recorder.end_halted(moment.now).await;
        Ok(Some(receipt.seal(())))
    }

    /// Returns the members of a signal's record.
    fn members(&self, signal: &Signal, halt: &Halt, event_time: Timestamp) -> Vec<(&'static str, serde_json::Value)> {
        // The log identifies customers by a keyed digest everywhere.
        let subject = match halt.subject_kind {
            SubjectKind::Customer => self.audit.customer(halt.subject.as_str()),
            _ => halt.subject.clone(),
        };
        let mut more = vec![
            ("kind", signal.kind.name().into()),
            ("effect", halt.kind.name().into()),
            ("subject_kind", halt.subject_kind.name().into()),
            ("subject", subject.into()),
            ("tenant", halt.tenant.clone().into()),
            ("severity", signal.severity.name().into()),
            ("event_id", signal.event_id.clone().into()),
            ("event_time", event_time.to_string().into()),
            ("until", halt.until.to_string().into()),
        ];
        if !signal.reason.is_empty() {
            more.push(("reason_digest", self.audit.digest(&crate::json::Value::from(&*signal.reason)).into()));
        }
        if halt.subject_kind == SubjectKind::Case {
            more.extend(events::about_case(&halt.tenant, &halt.subject, "", ""));
        }
        more
    }

    fn may_report(&self, moment: &Moment, party: &Party, halt: &Halt, tenant: &str) -> bool {
        let may = |right, on: On<'_>| may(moment, right, party.id(), on);
        let (on_server, on_tenant) = match party {
            Party::Human(_) => (Right::ServerLift, Right::SignalLift),
            Party::Service(_) => (Right::ServerOperate, Right::SignalReport),
        };
        match halt.subject_kind {
            // The subject must be this environment's name, so that no one stops another deployment by
            // mistake.
            SubjectKind::Server => {
                let environment = &self.options.environment;
                halt.subject == *environment && may(on_server, On::Server(environment))
            }
            SubjectKind::Agent
            | SubjectKind::Case
            | SubjectKind::Customer
            | SubjectKind::Supervisor
            | SubjectKind::Tenant => party.speaks_for(tenant) && may(on_tenant, On::Tenant(tenant)),
        }
    }

    /// Returns the tenant of a signal's subject. For agents, supervisors and tenants it is known; for cases
    /// and customers, which the PDP does not store, the reporter names it.
    fn tenant_of(&self, moment: &Moment, halt: &Halt) -> Result<String, Refusal> {
        let bundle = &moment.snapshot.bundle;
        let unknown = || Refusal::Forbidden(MAY_NOT_REPORT);
        let roles = bundle.roles.as_ref().ok_or_else(unknown)?;
        let own = match halt.subject_kind {
            SubjectKind::Agent => bundle.policies.tenant_of(&roles.agent, &halt.subject).ok_or_else(unknown)?,
            SubjectKind::Supervisor => {
                bundle.policies.tenant_of(&roles.supervisor, &halt.subject).ok_or_else(unknown)?
            }
            // The right `server.operate` decides who may stop everything, so there is no tenant.
            SubjectKind::Server => return Ok(String::new()),
            SubjectKind::Tenant => halt.subject.clone(),
            SubjectKind::Case | SubjectKind::Customer if halt.tenant.is_empty() => {
                return Err(Refusal::invalid("tenant", "is required for this kind of subject"));
            }
            SubjectKind::Case | SubjectKind::Customer => halt.tenant.clone(),
        };
        if halt.tenant.is_empty() || halt.tenant == own { Ok(own) } else { Err(unknown()) }
    }
}

/// Returns the checks that the success of an allowed call creates, the strongest last.
fn made(moment: &Moment, allowed: &Allowed) -> Vec<Check> {
    let Some(made) = moment.snapshot.bundle.roles.as_ref().and_then(|roles| roles.checks.get(&allowed.action)) else {
        return vec![];
    };
    let check = |kind: &String| Check {
        kind: kind.clone(),
        tenant: allowed.tenant.clone(),
        case: allowed.case.clone(),
        customer: allowed.customer.clone(),
        expires: moment.now.plus(Duration::from_secs(u64::from(made.minutes) * 60)),
    };
    // The bundle in force may create fewer checks than the one that allowed the call.
    allowed.checks.iter().filter(|kind| made.makes().any(|makes| makes == *kind)).map(check).collect()
}

/// Checks the time, the lifetime and the subject of a signal.
fn check(signal: &Signal, now: Timestamp) -> Result<(), Refusal> {
    // A kill switch or revocation takes effect when it is taken, even if the sender's clock is ahead.
    let ahead = signal.halt.since > now.plus(AHEAD);
    if ahead && !signal.halt.kind.stops() {
        return Err(Refusal::invalid("event_time", "is more than 30 s ahead of the server's time"));
    }
    if signal.ttl.is_zero() || signal.ttl > TTL_MAX {
        return Err(Refusal::invalid("ttl", "must be more than 0 and at most 30 days"));
    }
    if signal.halt.kind == HaltKind::SessionRevoked
        && !matches!(signal.halt.subject_kind, SubjectKind::Agent | SubjectKind::Supervisor)
    {
        return Err(Refusal::invalid(
            "subject_kind",
            "has no sessions: only an agent or a supervisor can have its session revoked",
        ));
    }
    Ok(())
}
