//! Reading of this replica's audit log by humans: the lines about their own tenant.

use std::collections::VecDeque;

use crate::audit::prove::{Proof, ProveError, Wanted, prove};
use crate::audit::story::{self, Entry, Filter};
use crate::entities::direct::On;
use crate::model::refusal::Refusal;
use crate::model::right::Right;
use crate::pdp::Pdp;
use crate::pdp::admission::Party;
use crate::pdp::origin::Origin;
use crate::pdp::refused::Refused;
use crate::pdp::rights::may;

/// Maximum number of lines that are read for one question, whether or not they are wanted.
pub const LINES_MAX: usize = 200;

const FORBIDDEN: Refusal =
    Refusal::Forbidden("only a human may read the audit log, and no policy grants this one `audit.read` here");

impl Pdp {
    /// Returns the last wanted lines about the tenant of a human, the newest first, at most [`LINES_MAX`].
    ///
    /// # Errors
    /// If the request is refused; the refusal is already recorded or counted.
    pub async fn read_audit(&self, origin: &Origin, filter: Filter) -> Result<Vec<Entry>, Refused> {
        let tenant = self.audit_reader(origin).await?;
        let folder = self.audit.folder().to_owned();
        let filter = Filter { tenant: Some(tenant), ..filter };
        let read = tokio::task::spawn_blocking(move || {
            let mut last = VecDeque::new();
            story::read(&[folder], &filter, |entry| {
                if last.len() == LINES_MAX {
                    last.pop_front();
                }
                last.push_back(entry);
                true
            })
            .map(|()| last.into_iter().rev().collect())
        });
        let read = read.await.map_err(|_| Refusal::Unavailable("the audit log can't be read"));
        read.and_then(|read| read.map_err(|_| Refusal::Unavailable("the audit log can't be read"))).map_err(Refused)
    }

    /// Returns the proof that the line of an evaluation is in the log. The line must be about the tenant of the human.
    ///
    /// # Errors
    /// If the request is refused; the refusal is already recorded or counted.
    pub async fn prove_line(&self, origin: &Origin, evaluation: String) -> Result<Proof, Refused> {
        let filter = Filter { evaluation: Some(evaluation.clone()), ..Filter::default() };
        if self.read_audit(origin, filter).await?.is_empty() {
            return Err(Refused(Refusal::NotFound));
        }
        let folder = self.audit.folder().to_owned();
        let proven = tokio::task::spawn_blocking(move || prove(&folder, &Wanted::Evaluation(evaluation))).await;
        match proven {
            Ok(Ok(proof)) => Ok(proof),
            Ok(Err(ProveError::Missing(_))) => Err(Refused(Refusal::NotFound)),
            Ok(Err(_)) | Err(_) => {
                Err(Refused(Refusal::Unavailable("no checkpoint covers the line yet: try again in ten seconds")))
            }
        }
    }

    /// Returns the tenant of a human who may read the log.
    async fn audit_reader(&self, origin: &Origin) -> Result<String, Refused> {
        let moment = self.moment();
        let party = self.admission.party(&moment, origin).await?;
        let _share = self.admission.party_share(&moment, origin, &party).await?;
        match &party {
            Party::Human(human) if may(&moment, Right::AuditRead, &human.id, On::Tenant(&human.tenant)) => {
                Ok(human.tenant.clone())
            }
            Party::Human(_) | Party::Service(_) => {
                let by = party.actor().in_trace(origin.trace.id());
                Err(self.refused(&moment, origin, by, FORBIDDEN.into()).await)
            }
        }
    }
}
