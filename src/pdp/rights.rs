//! Authentication of tool services and humans, rights that a principal has on its own behalf (one Cedar
//! evaluation with one principal), and the recording of refusals.

use crate::audit::events::Actor;
use crate::audit::record::{Record, RefusalRecord};
use crate::bundle::Bundle;
use crate::entities::direct::{self, On};
use crate::model::chain::Caller;
use crate::model::refusal::Refusal;
use crate::model::right::Right;
use crate::model::roles::Roles;
use crate::model::time::Timestamp;
use crate::model::verdict::LinkVerdict;
use crate::pdp::Pdp;
use crate::pdp::origin::{Origin, Stopped};
use crate::pdp::refused::Refused;
use crate::pdp::snapshot::Moment;
use crate::pdp::span_facts::OpenSpan;

/// Returns Cedar's verdict on one principal's own right; `None` if the bundle has no such right, or lacks an
/// entity that the request names.
pub fn verdict(
    bundle: &Bundle,
    roles: &Roles,
    right: Right,
    principal: &str,
    on: On<'_>,
    now: Timestamp,
) -> Option<LinkVerdict> {
    let (request, entities) = direct::request(&bundle.policies, roles, right, principal, on, now)?;
    Some(bundle.policies.engine.evaluate(right.of(), &request, &entities))
}

/// Returns whether a principal has a right: Cedar permits it, and no policy failed.
pub(super) fn may(moment: &Moment, right: Right, principal: &str, on: On<'_>) -> bool {
    let bundle = &moment.snapshot.bundle;
    let verdict = bundle.roles.as_ref().and_then(|roles| verdict(bundle, roles, right, principal, on, moment.now));
    verdict.is_some_and(|verdict| verdict.permitted && verdict.errors.is_empty())
}

impl Pdp {
    /// Returns the calling tool service, if it has this right on the server.
    ///
    /// # Errors
    /// If the caller is not authenticated or lacks the right (UNAUTHENTICATED, PERMISSION_DENIED); the
    /// refusal is already counted or recorded.
    pub async fn admit(&self, origin: &Origin, right: Right) -> Result<Caller, Refused> {
        let moment = self.moment();
        let caller = self.admission.service(&moment, origin)?;
        let development = moment.snapshot.bundle.roles.is_none() && self.options.development;
        if development || may(&moment, right, &caller.tool_service, On::Server(&self.options.environment)) {
            return Ok(caller);
        }
        let refusal = Refusal::Forbidden("the caller may not do this: no policy grants it");
        Err(self.refused(&moment, origin, Actor::service(&caller), refusal.into()).await)
    }

    /// Passes an answer to an authenticated party through, and records a refusal.
    pub(super) async fn or_refused<T>(
        &self,
        moment: &Moment,
        origin: &Origin,
        by: Actor,
        answer: Result<T, Refusal>,
    ) -> Result<T, Refused> {
        match answer {
            Ok(answer) => Ok(answer),
            Err(refusal) => Err(self.refused(moment, origin, by, refusal.into()).await),
        }
    }

    /// Records a refusal of an authenticated party.
    pub(super) async fn refused(&self, moment: &Moment, origin: &Origin, by: Actor, stopped: Stopped) -> Refused {
        let record_metadata = match self.recorder.record_metadata(origin) {
            Ok(record_metadata) => record_metadata,
            Err(refusal) => return Refused(refusal),
        };
        let Stopped { refusal, proven } = stopped;
        let mut record = RefusalRecord::of(&refusal, by, &moment.snapshot.bundle.version, record_metadata);
        if let Some(proven) = proven {
            let (chain, call) = *proven;
            let signals = self.risk.remember_refusal(moment, &chain, &call, &refusal).await;
            record = record.with_call(&chain, &call, &signals);
        }
        match self.audit.append(moment.now, Record::Refusal(Box::new(record))).await {
            Ok(_) => {
                self.telemetry.metrics.refusal(refusal.kind());
                Refused(refusal)
            }
            Err(down) => Refused::from(down),
        }
    }

    /// Ends the span of a refused request of an authenticated caller, and records the refusal in a line of
    /// its own.
    pub(super) async fn refuse<T>(
        &self,
        moment: &Moment,
        origin: &Origin,
        caller: &Caller,
        mut open: OpenSpan,
        stopped: Stopped,
    ) -> Result<T, Refused> {
        if let Some((chain, call)) = stopped.proven.as_deref() {
            open.facts.agent.clone_from(&chain.agent);
            open.facts.step.clone_from(&chain.step);
            open.facts.tenant.clone_from(&call.case.tenant);
            open.facts.case = self.case_id(call);
        }
        open.refused(&stopped.refusal);
        Err(self.refused(moment, origin, Actor::service(caller), stopped).await)
    }
}
