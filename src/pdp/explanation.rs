//! Explains a recorded decision: its evidence is evaluated again by the bundle that decided, policy by policy.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::audit::decisions::evidence_of;
use crate::audit::story::Entry;
use crate::bundle::Bundle;
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
        let (folder, seq, wanted) = (decision.folder.clone(), decision.seq, digest.to_owned());
        let found = tokio::task::spawn_blocking(move || evidence_of(&folder, seq, &wanted)).await;
        let unreadable = || Refused(Refusal::Unavailable("the audit log can't be read"));
        let Some(sealed) = found.map_err(|_| unreadable())?.map_err(|_| unreadable())? else {
            return Ok(Explanation::Missing("its evidence is not kept any longer"));
        };
        let Some(evaluated) = self.opened(&sealed).await? else {
            return Ok(Explanation::Missing("its evidence was erased, has expired or is damaged"));
        };
        let Some(deciding) = self.deciding(decision.text("/policy/digest")).await else {
            return Ok(Explanation::Missing("the bundle that decided is not kept any longer"));
        };
        let explaining = tokio::task::spawn_blocking(move || {
            let _reader = reader;
            deciding.explain(&evaluated)
        });
        explaining.await.map_err(|_| unreadable())?.map_err(Refused)
    }

    /// Decrypts evidence. `None` if its key is gone, or if it has another form.
    async fn opened(&self, sealed: &Sealed) -> Result<Option<Evaluated>, Refused> {
        let secret = self.store.subject_secret(sealed.key()).await.map_err(|error| Refused(Refusal::from(error)))?;
        let key = self.store.sealing().zip(secret).and_then(|(keys, secret)| keys.of_subject(sealed.key(), &secret));
        Ok(key.and_then(|key| key.open(sealed)).and_then(|evidence| Evaluated::read(&evidence)))
    }

    /// Returns the bundle with this digest: the one in force, or a kept copy.
    async fn deciding(&self, digest: &str) -> Option<Deciding> {
        let current = self.active.snapshot();
        if current.bundle.version.digest == digest {
            return Some(Deciding::InForce(current));
        }
        let (place, reading) = (kept_bundles::place(self.audit.folder(), digest), self.options.reading);
        let loading = tokio::task::spawn_blocking(move || Bundle::load(&place, reading).ok());
        loading.await.ok().flatten().map(|bundle| Deciding::Kept(Box::new(bundle)))
    }
}
