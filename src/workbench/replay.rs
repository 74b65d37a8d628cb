//! Evaluates recorded decisions again, by the bundle that made them or by another one, and compares the results.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::Serialize;

use crate::audit::decisions::{Decided, Listed};
use crate::bundle::Bundle;
use crate::model::answer::Obligation;
use crate::pdp::evaluation::{Evaluation, Evaluator};
use crate::pdp::evidence::Evaluated;
use crate::sealing::{DeploymentKeys, Sealed, SubjectKey};

/// Maximum number of decisions that a change names.
const EXAMPLES_MAX: usize = 5;

/// Maximum length of an id in a line, in characters.
const ID_MAX: usize = 128;

/// Gate that denies after the policies; the other gates deny without asking them.
const STEP: &str = "step";

/// Bundle that recorded decisions are evaluated by.
pub trait Bundles {
    /// Returns the bundle for decisions that the bundle of this digest made; `None` if there is none.
    fn bundle(&mut self, digest: &str) -> Option<Arc<Bundle>>;
}

/// Keys of the evidence, which are derived when a decision first needs them.
#[derive(Debug)]
pub struct Keys {
    deployment: DeploymentKeys,
    secrets: HashMap<String, String>,
    derived: HashMap<String, Option<SubjectKey>>,
}

impl Keys {
    /// `secrets` are those of the state store, by id.
    pub fn new(deployment: DeploymentKeys, secrets: HashMap<String, String>) -> Self {
        Self { deployment, secrets, derived: HashMap::new() }
    }

    /// Returns the key of some evidence; `None` if it was erased or has expired.
    fn key(&mut self, sealed: &Sealed) -> Option<&SubjectKey> {
        let Self { deployment, secrets, derived } = self;
        let id = sealed.key();
        let key = derived.entry(id.to_owned()).or_insert_with(|| deployment.of_subject(id, secrets.get(id)?));
        key.as_ref()
    }
}

/// Decisions that can't be evaluated again, by the reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NotReplayable {
    /// No evidence was kept, or it has expired.
    pub without_evidence: u64,
    /// The key was erased, or has expired.
    pub without_key: u64,
    /// The evidence can't be decrypted: the deployment's key is another one.
    pub undecryptable: u64,
    /// The bundle that decided is not kept.
    pub without_bundle: u64,
    /// The evidence has another form.
    pub unreadable: u64,
}

impl NotReplayable {
    /// Returns their number.
    pub fn all(self) -> u64 {
        self.without_evidence + self.without_key + self.undecryptable + self.without_bundle + self.unreadable
    }
}

/// Decisions of one action that change in the same way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Change {
    pub action: String,
    /// `allow`, `deny` and the reason, or `refused`.
    pub was: String,
    pub now: String,
    /// Policies that determine the decision now and did not before.
    pub added: Vec<String>,
    /// Policies that determined the decision before and do not now.
    pub removed: Vec<String>,
}

/// Number of decisions that change in one way, and some of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Changed {
    pub decisions: u64,
    /// Evaluation ids of the first decisions.
    pub examples: Vec<String>,
}

/// Result of a replay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Number of decisions that were evaluated again.
    pub replayed: u64,
    /// Number of these with another result.
    pub different: u64,
    /// Decisions that were denied before policies were asked: by kill switches, tokens, gates, or an unavailable store.
    pub before_policies: u64,
    pub not_replayable: NotReplayable,
    pub changes: BTreeMap<Change, Changed>,
}

/// What is compared of a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Result {
    /// `allow`, or `deny` and the reason; empty if something else than policies changed the decision afterwards.
    decision: String,
    /// Obligations; empty as above.
    obligations: Vec<String>,
    /// What would turn the denial; empty as above.
    requires: Vec<String>,
    /// Name, verdict and determining policies of each link.
    links: Vec<(String, bool, Vec<String>)>,
}

impl Result {
    fn recorded(decided: &Decided) -> Self {
        // An evaluated draft is also decided by its findings. A late denial is that of a token or a sum.
        let is_of_policies = decided.purpose != "evaluate_output" && (decided.gate.is_empty() || decided.gate == STEP);
        let decision = if decided.hypothetical.is_empty() { &decided.decision } else { &decided.hypothetical };
        let decision = if is_of_policies { words(decision == "allow", &decided.reason) } else { String::new() };
        let links = decided.links.iter();
        let links = links.map(|link| (link.link.clone(), link.permitted, link.determining.items.clone())).collect();
        let listed = |list: &Listed| if is_of_policies { list.items.clone() } else { vec![] };
        Self { decision, obligations: listed(&decided.obligations), requires: listed(&decided.requires), links }
    }

    fn of(evaluation: &Evaluation, repeated: bool) -> Self {
        // The retry of an operation is allowed although its token is used.
        let denied = evaluation.outcome.denied.filter(|_| !(repeated && evaluation.could_be_allowed()));
        let links = evaluation.verdict.links.iter();
        // A line has no longer ids.
        let short = |id: &String| id.chars().take(ID_MAX).collect::<String>();
        let links = links
            .map(|link| (link.link.name().to_owned(), link.permitted, link.determining.iter().map(short).collect()))
            .collect();
        let obligations = evaluation.outcome.obligations.iter();
        let obligations = obligations.map(|Obligation { kind, value }| format!("{kind}:{value}")).collect();
        let missing = evaluation.outcome.missing.iter().filter(|_| denied.is_some());
        let requires = missing.flat_map(|missing| missing.requires.iter().cloned()).collect();
        Self {
            obligations,
            requires,
            decision: words(denied.is_none(), denied.map_or("", |reason| reason.name())),
            links,
        }
    }

    /// Returns the policies of all links, sorted.
    fn policies(&self) -> Vec<&String> {
        let mut all: Vec<&String> = self.links.iter().flat_map(|(_, _, determining)| determining).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Returns the decision in words, with obligations and requirements if those of the other result differ.
    fn shown(&self, other: &Self) -> String {
        let follows = [self.obligations.as_slice(), &self.requires].concat();
        let is_same = self.obligations == other.obligations && self.requires == other.requires;
        match self.decision.is_empty() {
            false if !is_same && !follows.is_empty() => format!("{} ({})", self.decision, follows.join(", ")),
            false => self.decision.clone(),
            true => words(!self.links.is_empty() && self.links.iter().all(|(_, permitted, _)| *permitted), ""),
        }
    }
}

fn words(is_allowed: bool, reason: &str) -> String {
    match (is_allowed, reason) {
        (true, _) => "allow".to_owned(),
        (false, "") => "deny".to_owned(),
        (false, reason) => format!("deny {reason}"),
    }
}

impl Report {
    /// Evaluates one decision again.
    pub fn add(&mut self, decided: &Decided, sealed: Option<&Sealed>, keys: &mut Keys, bundles: &mut impl Bundles) {
        if decided.links.is_empty() && decided.evidence.is_empty() {
            self.before_policies += 1;
            return;
        }
        let lacking = &mut self.not_replayable;
        let Some(sealed) = sealed else { return lacking.without_evidence += 1 };
        let Some(key) = keys.key(sealed) else { return lacking.without_key += 1 };
        let Some(evidence) = key.open(sealed) else { return lacking.undecryptable += 1 };
        let Some(evaluated) = Evaluated::read(&evidence) else { return lacking.unreadable += 1 };
        let Some(bundle) = bundles.bundle(&decided.policy.digest) else { return lacking.without_bundle += 1 };
        let mut recorded = Result::recorded(decided);
        let mut again = again(&bundle, &evaluated);
        self.replayed += 1;
        if recorded.decision.is_empty() {
            again.decision.clear();
            again.obligations.clear();
            again.requires.clear();
        }
        // A call that sends a draft, or whose chain is not proven, can't be requested, so its line requires nothing.
        if decided.requires.items.is_empty() || decided.requires.more > 0 {
            again.requires.truncate(recorded.requires.len());
        }
        if decided.obligations.more > 0 {
            again.obligations.truncate(recorded.obligations.len());
        }
        // A line has no room for very many policies.
        for ((_, _, then), link) in
            recorded.links.iter_mut().zip(&decided.links).filter(|(_, link)| link.determining.more > 0)
        {
            then.truncate(link.determining.items.len());
            again
                .links
                .iter_mut()
                .filter(|(name, ..)| *name == link.link)
                .for_each(|(_, _, now)| now.truncate(then.len()));
        }
        if recorded != again {
            self.different += 1;
            let changed = self.changes.entry(change(&decided.action, &recorded, &again)).or_default();
            changed.decisions += 1;
            if changed.examples.len() < EXAMPLES_MAX {
                changed.examples.push(decided.evaluation_id.clone());
            }
        }
    }
}

fn again(bundle: &Bundle, Evaluated { now, chain, call, trusted, repeated }: &Evaluated) -> Result {
    let refused = || Result { decision: "refused".to_owned(), obligations: vec![], requires: vec![], links: vec![] };
    let Some(roles) = &bundle.roles else { return refused() };
    let evaluator = Evaluator { bundle, roles, now: *now };
    // A call that does not fit the bundle's schema is refused.
    evaluator.evaluate(chain, call, trusted).map_or_else(|_| refused(), |evaluation| Result::of(&evaluation, *repeated))
}

fn change(action: &str, recorded: &Result, again: &Result) -> Change {
    let (then, now) = (recorded.policies(), again.policies());
    let only = |these: &[&String], others: &[&String]| -> Vec<String> {
        these.iter().filter(|policy| !others.contains(policy)).map(|policy| (*policy).clone()).collect()
    };
    Change {
        action: action.to_owned(),
        was: recorded.shown(again),
        now: again.shown(recorded),
        added: only(&now, &then),
        removed: only(&then, &now),
    }
}
