//! Clearing of stored risk by a human, the only way in which a score falls before its time.

use crate::approvals::store::signals::Cleared;
use crate::audit::Recorded;
use crate::audit::events::{self, Actor};
use crate::entities::direct::On;
use crate::json::Value;
use crate::model::halt::SubjectKind;
use crate::model::refusal::Refusal;
use crate::model::right::Right;
use crate::pdp::Pdp;
use crate::pdp::admission::Party;
use crate::pdp::origin::Origin;
use crate::pdp::refused::Refused;
use crate::pdp::rights::may;
use crate::pdp::risk_state::risk_keys::{RiskKeys, RiskSubject};
use crate::pdp::snapshot::Moment;

/// A request to clear risk, as it was read. Empty members select nothing.
#[derive(Clone, Debug, Default)]
pub struct Clear {
    pub tenant: String,
    pub case: String,
    pub customer: String,
    pub agent: String,
    pub supervisor: String,
    pub reason: String,
}

impl Pdp {
    /// Deletes what is stored about the named subjects.
    ///
    /// # Errors
    /// If the request is refused; the refusal is already recorded or counted.
    pub async fn clear_risk(&self, origin: &Origin, read: Result<Clear, Refusal>) -> Result<Recorded<()>, Refused> {
        let moment = self.moment();
        let party = self.admission.party(&moment, origin).await?;
        let _share = self.admission.party_share(&moment, origin, &party).await?;
        let by = party.actor().in_trace(origin.trace.id());
        let cleared = match read {
            Ok(clear) => self.cleared(&moment, &party, &by, clear).await,
            Err(refusal) => Err(refusal),
        };
        self.or_refused(&moment, origin, by, cleared).await
    }

    async fn cleared(&self, moment: &Moment, party: &Party, by: &Actor, clear: Clear) -> Result<Recorded<()>, Refusal> {
        const FORBIDDEN: Refusal =
            Refusal::Forbidden("only a human may clear risk, and no policy grants this one `risk.clear` here");
        let Party::Human(human) = party else { return Err(FORBIDDEN) };
        if human.tenant != clear.tenant || !may(moment, Right::RiskClear, &human.id, On::Tenant(&clear.tenant)) {
            return Err(FORBIDDEN);
        }
        let customer = match clear.customer.as_str() {
            "" => String::new(),
            customer => self.risk.remembered_as(customer),
        };
        let subject = RiskSubject {
            case: &clear.case,
            customer: &customer,
            agent: &clear.agent,
            supervisor: &clear.supervisor,
            ..RiskSubject::nobody(&clear.tenant)
        };
        let reason =
            if clear.reason.is_empty() { String::new() } else { self.audit.digest(&Value::from(&*clear.reason)) };
        let named_customer =
            if clear.customer.is_empty() { String::new() } else { self.audit.customer(&clear.customer) };
        let named = serde_json::json!({
            "tenant": clear.tenant, "case": clear.case, "customer": named_customer, "agent": clear.agent,
            "supervisor": clear.supervisor,
        });
        let mut more = vec![("cleared", named), ("reason_digest", reason.into())];
        if !clear.case.is_empty() {
            more.extend(events::about_case(&clear.tenant, &clear.case, "", ""));
        }
        let record = events::event("risk.cleared", by, &more);
        let subjects = [
            (SubjectKind::Agent, clear.agent.clone()),
            (SubjectKind::Case, clear.case.clone()),
            (SubjectKind::Customer, clear.customer.clone()),
            (SubjectKind::Supervisor, clear.supervisor.clone()),
        ];
        let subjects = subjects.into_iter().filter(|(_, subject)| !subject.is_empty()).collect();
        let cleared = Cleared { tenant: clear.tenant.clone(), subjects, at: moment.now, record: record.clone() };
        let revision = self.store.clear(cleared).await?;
        // Record first, so that no score falls without a record.
        let receipt = self.recorder.record_entry(moment.now, &revision, record).await?;
        let keys = RiskKeys::of(&self.options.environment, subject);
        // Never queue this for later, because it would also delete what is added in between.
        let forgotten = self
            .risk
            .ask(keys.tenant, moment, &keys.forget(subject, moment.snapshot.tool_services().iter().map(String::as_str)))
            .await;
        forgotten.map_err(|_| Refusal::Unavailable("the stored risk can't be cleared now: try again"))?;
        self.refresh().await;
        Ok(receipt.seal(()))
    }
}
