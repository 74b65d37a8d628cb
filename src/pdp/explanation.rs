//! Explains a recorded decision: its evidence is evaluated again by the bundle that decided, policy by policy.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use crate::audit::decisions::evidence_of;
use crate::audit::story::Entry;
use crate::bundle::{Bundle, Reading};
use crate::model::chain::Link;
use crate::model::refusal::Refusal;
use crate::pdp::Pdp;
use crate::pdp::evaluation::Evaluator;
use crate::pdp::evidence::Evaluated;
use crate::pdp::kept_bundles;
use crate::pdp::origin::Origin;
use crate::pdp::refused::Refused;
use crate::pdp::snapshot::Snapshot;
use crate::policy::explain::Explained;
use crate::policy::rule::Rule;
use crate::sealing::Sealed;

/// Explanation of a recorded decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Explanation {
    Of {
        /// The policies about each link of the chain.
        links: Vec<(Link, Vec<Explained>)>,
        /// These policies, as the bundle that decided has them.
        rules: Vec<Rule>,
    },
    /// The decision can't be evaluated again, and why.
    Missing(&'static str),
}

/// Bundle that made a decision.
enum Deciding {
    InForce(Arc<Snapshot>),
    Kept(Box<Bundle>),
}

impl Deciding {
    fn explain(&self, Evaluated { now, chain, call, trusted, .. }: &Evaluated) -> Result<Explanation, Refusal> {
        let bundle = match self {
            Self::InForce(snapshot) => &snapshot.bundle,
            Self::Kept(bundle) => bundle,
        };
        let Some(roles) = &bundle.roles else { return Ok(Explanation::Missing("its bundle has no roles")) };
        let links = Evaluator { bundle, roles, now: *now }.explain(chain, call, trusted)?;
        let known = bundle.policies.rules();
        let ids: BTreeSet<&str> = links.iter().flat_map(|(_, all)| all).map(|one| one.policy.as_str()).collect();
        let rules = ids.into_iter().filter_map(|id| known.get(id).map(|rule| Rule::clone(rule))).collect();
        Ok(Explanation::Of { links, rules })
    }
}

impl Pdp {
    /// Explains a decision that [`Pdp::read_audit`] returned to the same human.
    ///
    /// # Errors
    /// If the request is refused; the refusal is already recorded or counted.
    pub async fn explain_recorded(&self, origin: &Origin, decision: &Entry) -> Result<Explanation, Refused> {
        let (_, reader) = self.audit_reader(origin).await?;
        let digest = decision.text("/evidence");
        if digest.is_empty() {
            return Ok(Explanation::Missing("no evidence of it was kept"));
        }
        // The permit goes to the threads that read, so that a client which goes away does not free it.
        let (folder, seq, wanted) = (decision.folder.clone(), decision.seq, digest.to_owned());
        let found = tokio::task::spawn_blocking(move || (evidence_of(&folder, seq, &wanted), reader)).await;
        let Ok((Ok(Some(sealed)), reader)) = found else {
            return Ok(Explanation::Missing("its evidence is not kept any longer, or can't be read"));
        };
        let Some(evaluated) = self.opened(&sealed).await else {
            return Ok(Explanation::Missing("the key of its evidence was erased, has expired or can't be read"));
        };
        let (current, digest) = (self.active.snapshot(), decision.text("/policy/digest").to_owned());
        let (folder, reading) = (self.audit.folder().to_owned(), self.options.reading);
        let explaining = tokio::task::spawn_blocking(move || {
            let _reader = reader;
            let deciding = deciding(current, &folder, reading, &digest);
            deciding.map_or(Ok(Explanation::Missing("the bundle that decided is not kept any longer")), |deciding| {
                deciding.explain(&evaluated)
            })
        });
        Ok(match explaining.await {
            Ok(Ok(explanation)) => explanation,
            Ok(Err(_)) | Err(_) => Explanation::Missing("this version can't evaluate it"),
        })
    }

    /// Decrypts evidence. `None` if its key is gone or the state store does not answer, or if it has another form.
    async fn opened(&self, sealed: &Sealed) -> Option<Evaluated> {
        let secret = self.store.subject_secret(sealed.key()).await.ok().flatten()?;
        let key = self.store.sealing()?.of_subject(sealed.key(), &secret)?;
        Evaluated::read(&key.open(sealed)?)
    }
}

/// Returns the bundle with this digest: the one in force, or a kept copy.
fn deciding(current: Arc<Snapshot>, log: &Path, reading: Reading, digest: &str) -> Option<Deciding> {
    if current.bundle.version.digest == digest {
        return Some(Deciding::InForce(current));
    }
    let kept = Bundle::load(&kept_bundles::place(log, digest), reading).ok();
    kept.filter(|bundle| bundle.version.digest == digest).map(|bundle| Deciding::Kept(Box::new(bundle)))
}
