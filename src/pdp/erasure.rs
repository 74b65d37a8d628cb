//! Erasure of a person's data at a human's request: the keys of the evidence, and what the state store has about the person.
//! Risk state stays until its time, because only `risk.clear` may lower a score.

use crate::approvals::store::subjects::{Erased, Subject, SubjectOf};
use crate::audit::events::{self, Actor};
use crate::audit::{AuditDown, Recorded};
use crate::entities::direct::On;
use crate::json::Value;
use crate::model::refusal::Refusal;
use crate::model::right::Right;
use crate::pdp::Pdp;
use crate::pdp::admission::Party;
use crate::pdp::origin::Origin;
use crate::pdp::refused::Refused;
use crate::pdp::rights::may;
use crate::pdp::snapshot::Moment;

/// A request to erase a subject, as it was read.
#[derive(Clone, Debug)]
pub struct Erase {
    pub subject: Subject,
    pub reason: String,
}

impl Pdp {
    /// Erases a subject. Returns the number of deleted keys.
    ///
    /// # Errors
    /// If the request is refused; the refusal is already recorded or counted.
    pub async fn erase(&self, origin: &Origin, read: Result<Erase, Refusal>) -> Result<Recorded<u64>, Refused> {
        let moment = self.moment();
        let party = self.admission.party(&moment, origin).await?;
        let _share = self.admission.party_share(&moment, origin, &party).await?;
        let by = party.actor().in_trace(origin.trace.id());
        let erased = match read {
            Ok(erase) => self.erased(&moment, &party, &by, erase).await,
            Err(refusal) => Err(refusal),
        };
        self.or_refused(&moment, origin, by, erased).await
    }

    async fn erased(
        &self,
        moment: &Moment,
        party: &Party,
        by: &Actor,
        Erase { subject, reason }: Erase,
    ) -> Result<Recorded<u64>, Refusal> {
        const FORBIDDEN: Refusal =
            Refusal::Forbidden("only a human may erase a subject, and no policy grants this one `subject.erase` here");
        let Party::Human(human) = party else { return Err(FORBIDDEN) };
        if human.tenant != subject.tenant || !may(moment, Right::SubjectErase, &human.id, On::Tenant(&subject.tenant)) {
            return Err(FORBIDDEN);
        }
        // The store commits before the log is written.
        if !self.audit.healthy() {
            return Err(AuditDown::Failed.into());
        }
        let mut more = vec![
            ("tenant", subject.tenant.clone().into()),
            ("subject_kind", subject.kind.name().into()),
            // The log identifies customers by a keyed digest everywhere.
            ("subject", self.audit.customer(&subject.id).into()),
            ("reason_digest", self.audit.digest(&Value::from(&*reason)).into()),
        ];
        if subject.kind == SubjectOf::Case {
            more.extend(events::about_case(&subject.tenant, &subject.id, "", ""));
        }
        let record = events::event("subject.erased", by, &more);
        let (keys, revision) = match self.store.erase(subject.clone(), moment.now, record.clone()).await? {
            Erased::Done(keys, revision) => (keys, revision),
            Erased::Open => {
                return Err(Refusal::Precondition(
                    "an approval or consent of this subject is pending or approved: revoke it, or wait until it expires",
                ));
            }
        };
        let receipt = self.recorder.record_entry(moment.now, &revision, record).await?;
        self.evidence.forget(&subject);
        // Deleted rows are overwritten, but earlier versions of them are in the journal.
        self.store.empty_journal().await.map_err(|_| {
            Refusal::Unavailable(
                "the subject is erased, but the state store's journal, which still has its data, is in use: ask again",
            )
        })?;
        Ok(receipt.seal(keys))
    }
}
