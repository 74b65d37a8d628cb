//! Handlers of SignalService, by which other systems report kill switches, revoked sessions and raised risk.

use std::sync::Arc;
use std::time::Duration;

use tonic::{Request, Response, Status};

use crate::api::convert::{id, some_id};
use crate::api::front::origin;
use crate::api::v1::signal_service_server::{SignalService, SignalServiceServer};
use crate::api::{respond, status, v1};
use crate::model::halt::{Halt, HaltKind, Severity, SignalKind, SubjectKind};
use crate::model::refusal::Refusal;
use crate::model::time::Timestamp;
use crate::pdp::Pdp;
use crate::pdp::origin::Purpose;
use crate::pdp::refused::run_to_completion;
use crate::pdp::reports::Signal;
use crate::pdp::risk_clearing::Clear;
use crate::pdp::signal_lifting::{LISTED_MAX, ToLift};

const REASON_MAX: usize = 1024;

pub(super) fn service(pdp: Arc<Pdp>) -> SignalServiceServer<Signals> {
    SignalServiceServer::new(Signals { pdp })
}

#[derive(Debug)]
pub(super) struct Signals {
    pdp: Arc<Pdp>,
}

#[tonic::async_trait]
impl SignalService for Signals {
    async fn report_signal(
        &self,
        request: Request<v1::ReportSignalRequest>,
    ) -> Result<Response<v1::ReportSignalResponse>, Status> {
        let origin = origin(&request, Purpose::Authorize);
        let (pdp, read) = (Arc::clone(&self.pdp), read(request.into_inner()));
        let taken = run_to_completion(async move { pdp.report_signal(&origin, read).await }).await;
        let recorded = taken.map_err(|refused| status::status(refused.refusal()))?;
        Ok(Response::new(v1::ReportSignalResponse {
            duplicate: recorded.is_none(),
            audit: recorded.as_ref().and_then(|recorded| respond::reference(recorded, self.pdp.audit_log())),
        }))
    }

    async fn clear_risk(
        &self,
        request: Request<v1::ClearRiskRequest>,
    ) -> Result<Response<v1::ClearRiskResponse>, Status> {
        let origin = origin(&request, Purpose::Authorize);
        let (pdp, read) = (Arc::clone(&self.pdp), clear(request.into_inner()));
        let cleared = run_to_completion(async move { pdp.clear_risk(&origin, read).await }).await;
        let recorded = cleared.map_err(|refused| status::status(refused.refusal()))?;
        Ok(Response::new(v1::ClearRiskResponse { audit: respond::reference(&recorded, self.pdp.audit_log()) }))
    }

    async fn lift_signal(
        &self,
        request: Request<v1::LiftSignalRequest>,
    ) -> Result<Response<v1::LiftSignalResponse>, Status> {
        let origin = origin(&request, Purpose::Authorize);
        let (pdp, read) = (Arc::clone(&self.pdp), to_lift(request.into_inner()));
        let lifted = run_to_completion(async move { pdp.lift_signal(&origin, read).await }).await;
        let recorded = lifted.map_err(|refused| status::status(refused.refusal()))?;
        let progress = recorded.value();
        Ok(Response::new(v1::LiftSignalResponse {
            lifted: progress.is_lifted,
            humans: progress.humans,
            quorum: progress.quorum,
            audit: respond::reference(&recorded, self.pdp.audit_log()),
        }))
    }

    async fn list_signals(
        &self,
        request: Request<v1::ListSignalsRequest>,
    ) -> Result<Response<v1::ListSignalsResponse>, Status> {
        let origin = origin(&request, Purpose::Authorize);
        let tenant = some_id(&request.into_inner().tenant, "tenant");
        let active = self.pdp.list_signals(&origin, tenant).await;
        Ok(Response::new(listed(&active.map_err(|refused| status::status(refused.refusal()))?)))
    }
}

fn listed(halts: &[Halt]) -> v1::ListSignalsResponse {
    let signal = |halt: &Halt| v1::ActiveSignal {
        subject_kind: wire_kind(halt.subject_kind).into(),
        subject_id: halt.subject.clone(),
        tenant: halt.tenant.clone(),
        effect: halt.kind.name().to_owned(),
        since: Some(respond::time(halt.since)),
        until: Some(respond::time(halt.until)),
    };
    v1::ListSignalsResponse {
        signals: halts.iter().take(LISTED_MAX).map(signal).collect(),
        truncated: halts.len() > LISTED_MAX,
    }
}

fn wire_kind(kind: SubjectKind) -> v1::SignalSubjectKind {
    match kind {
        SubjectKind::Agent => v1::SignalSubjectKind::Agent,
        SubjectKind::Case => v1::SignalSubjectKind::Case,
        SubjectKind::Customer => v1::SignalSubjectKind::Customer,
        SubjectKind::Server => v1::SignalSubjectKind::Server,
        SubjectKind::Supervisor => v1::SignalSubjectKind::Supervisor,
        SubjectKind::Tenant => v1::SignalSubjectKind::Tenant,
    }
}

fn to_lift(message: v1::LiftSignalRequest) -> Result<ToLift, Refusal> {
    let subject_kind = subject_kind(message.subject_kind())?;
    let lift = ToLift {
        tenant: match subject_kind {
            SubjectKind::Server => String::new(),
            _ => some_id(&message.tenant, "tenant")?,
        },
        subject_kind,
        subject: some_id(&message.subject_id, "subject_id")?,
        reason: message.reason,
    };
    if lift.reason.is_empty() || lift.reason.len() > REASON_MAX {
        return Err(Refusal::invalid("reason", "must be 1 to 1024 bytes"));
    }
    Ok(lift)
}

fn subject_kind(kind: v1::SignalSubjectKind) -> Result<SubjectKind, Refusal> {
    SubjectKind::ALL
        .into_iter()
        .find(|known| wire_kind(*known) == kind)
        .ok_or_else(|| Refusal::invalid("subject_kind", "is missing, or not known to this version"))
}

fn clear(message: v1::ClearRiskRequest) -> Result<Clear, Refusal> {
    let clear = Clear {
        tenant: some_id(&message.tenant, "tenant")?,
        case: id(&message.case_id, "case_id")?,
        customer: id(&message.customer_id, "customer_id")?,
        agent: id(&message.agent_id, "agent_id")?,
        supervisor: id(&message.supervisor_id, "supervisor_id")?,
        reason: message.reason,
    };
    if clear.reason.is_empty() || clear.reason.len() > REASON_MAX {
        return Err(Refusal::invalid("reason", "must be 1 to 1024 bytes"));
    }
    if [&clear.case, &clear.customer, &clear.agent, &clear.supervisor].iter().all(|named| named.is_empty()) {
        return Err(Refusal::invalid(
            "case_id",
            "is missing, as are `customer_id`, `agent_id` and `supervisor_id`: name at least one",
        ));
    }
    Ok(clear)
}

fn read(message: v1::ReportSignalRequest) -> Result<Signal, Refusal> {
    let subject_kind = subject_kind(message.subject_kind())?;
    let kind = SignalKind::from_name(&some_id(&message.kind, "kind")?);
    let kind =
        kind.ok_or_else(|| Refusal::invalid("kind", "is not known to this version: see `ReportSignalRequest.kind`"))?;
    let severity = severity(message.severity)?;
    let effect = kind.effect(severity);
    if effect != HaltKind::KillSwitch && subject_kind == SubjectKind::Server {
        return Err(Refusal::invalid(
            "subject_kind",
            "is the server, for which only the kind `kill_switch` is accepted",
        ));
    }
    let ttl = message.ttl.ok_or_else(|| Refusal::invalid("ttl", "is missing"))?;
    let ttl =
        Duration::try_from(ttl).map_err(|_| Refusal::invalid("ttl", "must be more than 0 and at most 30 days"))?;
    let event_time = message.event_time.ok_or_else(|| Refusal::invalid("event_time", "is missing"))?;
    let micros = event_time
        .seconds
        .checked_mul(1_000_000)
        .and_then(|micros| micros.checked_add(i64::from(event_time.nanos) / 1000));
    let since =
        micros.filter(|micros| *micros > 0).ok_or_else(|| Refusal::invalid("event_time", "is not a valid time"))?;
    let halt = Halt {
        tenant: id(&message.tenant, "tenant")?,
        subject_kind,
        subject: some_id(&message.subject_id, "subject_id")?,
        kind: effect,
        since: Timestamp::from_micros(since),
        until: Timestamp::default(),
        lifted: Timestamp::default(),
    };
    Ok(Signal {
        kind,
        severity,
        halt,
        ttl,
        event_id: some_id(&message.event_id, "event_id")?,
        reporter: None,
        reason: String::new(),
    })
}

/// Reads a severity. The zero value counts as the worst: critical.
fn severity(severity: i32) -> Result<Severity, Refusal> {
    match v1::Severity::try_from(severity) {
        Ok(v1::Severity::Critical | v1::Severity::Unspecified) => Ok(Severity::Critical),
        Ok(v1::Severity::High) => Ok(Severity::High),
        Ok(v1::Severity::Info) => Ok(Severity::Info),
        Ok(v1::Severity::Low) => Ok(Severity::Low),
        Ok(v1::Severity::Medium) => Ok(Severity::Medium),
        Err(_) => Err(Refusal::invalid("severity", "is not known to this version")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    proptest! {
        #[test]
        fn arbitrary_bytes_and_times_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..512), seconds in any::<i64>(), nanos in any::<i32>()
        ) {
            if let Ok(message) = v1::ReportSignalRequest::decode(bytes.as_slice()) {
                let _read = super::read(message);
            }
            let message = v1::ReportSignalRequest {
                subject_kind: v1::SignalSubjectKind::Agent.into(),
                subject_id: "a".into(),
                kind: "kill_switch".into(),
                ttl: Some(prost_types::Duration { seconds, nanos }),
                event_id: "e".into(),
                event_time: Some(prost_types::Timestamp { seconds, nanos }),
                ..Default::default()
            };
            if let Ok(signal) = super::read(message) {
                prop_assert!(signal.halt.since.micros() > 0);
            }
        }
    }
}
