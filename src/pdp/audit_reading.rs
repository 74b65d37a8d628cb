//! Reading of this replica's audit log by humans: the lines about their own tenant.

use std::collections::VecDeque;

use crate::audit::prove::{Proof, ProveError, Wanted, prove};
use crate::audit::story::{self, Entry, Filter};
use crate::entities::direct::On;
use crate::model::answer::Gate;
use crate::model::refusal::Refusal;
use crate::model::right::Right;
use crate::pdp::Pdp;
use crate::pdp::admission::Party;
use crate::pdp::admission::concurrency::Share;
use crate::pdp::origin::Origin;
use crate::pdp::refused::Refused;
use crate::pdp::rights::may;

/// Maximum number of lines that an answer has.
pub const LINES_MAX: usize = 200;

const FORBIDDEN: Refusal =
    Refusal::Forbidden("only a human may read the audit log, and no policy grants this one `audit.read` here");

impl Pdp {
    /// Returns the last wanted lines about the tenant of a human, the newest first, at most [`LINES_MAX`].
    ///
    /// # Errors
    /// If the request is refused; the refusal is already recorded or counted.
    pub async fn read_audit(&self, origin: &Origin, filter: Filter) -> Result<Vec<Entry>, Refused> {
        let (tenant, reader) = self.audit_reader(origin).await?;
        self.lines(reader, Filter { tenant: Some(tenant), ..filter }).await.map(|(lines, _)| lines).map_err(Refused)
    }

    /// Reads the last wanted lines. The permit goes to the thread that reads, so that a client which goes away does not free it.
    async fn lines(&self, reader: Share, filter: Filter) -> Result<(Vec<Entry>, Share), Refusal> {
        let folder = self.audit.folder().to_owned();
        let read = tokio::task::spawn_blocking(move || {
            let mut last = VecDeque::new();
            let read = story::read(&[folder], &filter, |entry| {
                if is_confirmed(&entry) {
                    if last.len() == LINES_MAX {
                        last.pop_front();
                    }
                    last.push_back(entry);
                }
                true
            });
            read.map(|()| (last.into_iter().rev().collect(), reader))
        });
        let unreadable = Refusal::Unavailable("the audit log can't be read");
        read.await.map_err(|_| unreadable.clone())?.map_err(|_| unreadable)
    }

    /// Returns the proof that the line of an evaluation is in the log. The line must be about the tenant of the human.
    ///
    /// # Errors
    /// If the request is refused; the refusal is already recorded or counted.
    pub async fn prove_line(&self, origin: &Origin, evaluation: String) -> Result<Proof, Refused> {
        let (tenant, reader) = self.audit_reader(origin).await?;
        let filter = Filter { evaluation: Some(evaluation.clone()), tenant: Some(tenant), ..Filter::default() };
        let (lines, reader) = self.lines(reader, filter).await.map_err(Refused)?;
        if lines.is_empty() {
            return Err(Refused(Refusal::NotFound));
        }
        let folder = self.audit.folder().to_owned();
        let proven = tokio::task::spawn_blocking(move || {
            let _reader = reader;
            prove(&folder, &Wanted::Evaluation(evaluation))
        });
        match proven.await {
            Ok(Ok(proof)) => Ok(proof),
            Ok(Err(ProveError::Missing(_))) => Err(Refused(Refusal::NotFound)),
            Ok(Err(ProveError::Uncovered(_))) => Err(Refused(Refusal::Unavailable(
                "no checkpoint covers the line yet: one is signed within ten seconds",
            ))),
            Ok(Err(error)) => {
                tracing::error!(name: "audit.not_proven", error = %error, "a line of the audit log can't be proven: run `countersign audit verify`");
                Err(Refused(Refusal::Precondition(
                    "the audit log does not agree with its checkpoints, or can't be read: tell who runs the server",
                )))
            }
            Err(_) => Err(Refused(Refusal::Unavailable("the line could not be proven"))),
        }
    }

    /// Returns the tenant of a human who may read the log, as soon as she may search it.
    pub(super) async fn audit_reader(&self, origin: &Origin) -> Result<(String, Share), Refused> {
        let moment = self.moment();
        let party = self.admission.party(&moment, origin).await?;
        // It is not held while the human waits for her turn to search, which has a limit of its own.
        drop(self.admission.party_share(&moment, origin, &party).await?);
        match &party {
            Party::Human(human) if may(&moment, Right::AuditRead, &human.id, On::Tenant(&human.tenant)) => {
                Ok((human.tenant.clone(), self.admission.reader(&human.id).await.map_err(Refused)?))
            }
            Party::Human(_) | Party::Service(_) => {
                let by = party.actor().in_trace(origin.trace.id());
                Err(self.refused(&moment, origin, by, FORBIDDEN.into()).await)
            }
        }
    }
}

/// Returns whether the tenant of a line is confirmed. Before its gate, a call is of the tenant that its caller claims.
fn is_confirmed(entry: &Entry) -> bool {
    Gate::confirms(entry.text("/gate")) && entry.kind() != "refusal"
}
