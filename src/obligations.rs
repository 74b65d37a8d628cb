//! Derives reason, obligations and missing approvals or checks from a verdict. The what-if evaluation is
//! cumulative: it grants everything that circumstances could lift at once, so that a denial is called
//! requestable only if asking would in fact turn it into an allow.

use std::collections::BTreeSet;

use crate::decision::WhatIf;
use crate::model::answer::{Missing, Obligation, Outcome, Reason};
use crate::model::approval::Giver;
use crate::model::content::Disposition;
use crate::model::verdict::Verdict;
use crate::policy::Policies;
use crate::policy::rule::{Requirement, Rule};

/// Liftable obstacles of a denied call, over all links.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lift {
    /// Required approval: template and quorum.
    pub approval: Option<(String, u32)>,
    /// Names of required checks.
    pub checks: BTreeSet<String>,
    /// Template of the required consent of the customer.
    pub consent: Option<String>,
    /// Reasons that the determining forbids give.
    pub classes: BTreeSet<Reason>,
}

/// Determines the outcome of a verdict. `what_if` evaluates the call with everything in a [`Lift`] granted, and `is_granted`
/// says whether some policy permits the call to each link, in this step, whatever forbids it.
pub fn settle(
    policies: &Policies,
    verdict: &Verdict,
    is_granted: impl Fn() -> bool,
    what_if: impl FnOnce(&Lift) -> WhatIf,
) -> Outcome {
    if verdict.has_errors() {
        return Outcome::denied(Reason::PolicyError);
    }
    let rules: Vec<&Rule> = verdict.determining().into_iter().filter_map(|id| policies.rule(id)).collect();
    if verdict.permits() {
        return Outcome { denied: None, ..with_obligations(&rules) };
    }
    // No policy denies this link, so no circumstance can lift the denial.
    let by_default = verdict.links.iter().any(|link| !link.permitted && link.determining.is_empty());
    let forbids: Vec<&Rule> = rules.into_iter().filter(|rule| rule.forbids).collect();
    if by_default || forbids.is_empty() {
        return Outcome::denied(Reason::NotPermitted);
    }
    if forbids.iter().any(|rule| !Reason::LIFTABLE.contains(&rule.class)) {
        return not_permitted(&forbids, is_granted);
    }
    let lift = lift(&forbids);
    let reason = Reason::LIFTABLE.into_iter().find(|reason| lift.classes.contains(reason));
    match reason {
        Some(reason) if what_if(&lift).would_permit() => {
            let user = texts(&forbids);
            Outcome { denied: Some(reason), user, missing: missing(&lift, reason), ..with_obligations(&forbids) }
        }
        Some(_) | None => not_permitted(&forbids, is_granted),
    }
}

/// Returns a denial that nothing can lift. The agent is told the policies' texts, obligations and advice, unless one of them
/// denies for good without a text, or nobody grants the call at all: whatever is silent keeps the others silent, too.
fn not_permitted(forbids: &[&Rule], is_granted: impl Fn() -> bool) -> Outcome {
    let is_silent = |rule: &&Rule| rule.user.is_empty() && !Reason::LIFTABLE.contains(&rule.class);
    let told: Vec<&Rule> = forbids.iter().copied().filter(|rule| !rule.user.is_empty()).collect();
    if told.is_empty() || forbids.iter().any(is_silent) || !is_granted() {
        return Outcome::denied(Reason::NotPermitted);
    }
    Outcome { denied: Some(Reason::NotPermitted), user: texts(&told), ..with_obligations(&told) }
}

/// Returns the texts of policies, each once.
fn texts(rules: &[&Rule]) -> String {
    let mut texts: Vec<&str> = vec![];
    for rule in rules.iter().filter(|rule| !rule.user.is_empty()) {
        if !texts.contains(&rule.user.as_str()) {
            texts.push(&rule.user);
        }
    }
    texts.join(" ")
}

/// Returns the disposition of a draft: the strictest one of the determining forbids. A draft is blocked if no
/// policy permits it or a policy could not be evaluated.
pub fn disposition(policies: &Policies, verdict: &Verdict) -> Disposition {
    if verdict.has_errors() {
        return Disposition::Block;
    }
    if verdict.permits() {
        return Disposition::Release;
    }
    if verdict.links.iter().any(|link| !link.permitted && link.determining.is_empty()) {
        return Disposition::Block;
    }
    let forbids = verdict.determining().into_iter().filter_map(|id| policies.rule(id)).filter(|rule| rule.forbids);
    forbids.map(|rule| rule.disposition).max().unwrap_or(Disposition::Block)
}

fn lift(forbids: &[&Rule]) -> Lift {
    let mut lift = Lift::default();
    for rule in forbids {
        lift.classes.insert(rule.class);
        match &rule.requires {
            Some(Requirement::Approval(template)) => {
                let quorum = lift.approval.as_ref().map_or(0, |(_, quorum)| *quorum).max(rule.quorum);
                lift.approval = Some((template.clone(), quorum));
            }
            Some(Requirement::Check(name)) => {
                lift.checks.insert(name.clone());
            }
            Some(Requirement::Consent(template)) => lift.consent = Some(template.clone()),
            None => {}
        }
    }
    lift
}

/// Returns the missing approval, consent and checks, if nothing else is missing.
fn missing(lift: &Lift, reason: Reason) -> Option<Missing> {
    if !matches!(reason, Reason::CheckRequired | Reason::ConsentRequired | Reason::ApprovalRequired) {
        return None;
    }
    let approval = lift.approval.iter().map(|(template, _)| Requirement::Approval(template.clone()));
    let consent = lift.consent.iter().map(|template| Requirement::Consent(template.clone()));
    let checks = lift.checks.iter().map(|name| Requirement::Check(name.clone()));
    let mut requires: Vec<String> =
        approval.chain(consent).chain(checks).map(|requirement| requirement.to_string()).collect();
    requires.sort();
    let (giver, template, quorum) = match (&lift.consent, lift.approval.clone()) {
        (Some(template), _) => (Giver::Customer, template.clone(), 0),
        (None, Some((template, quorum))) => (Giver::Reviewers, template, quorum),
        (None, None) => (Giver::Reviewers, String::new(), 0),
    };
    Some(Missing { template, giver, requires, quorum, ..Missing::default() })
}

fn with_obligations(rules: &[&Rule]) -> Outcome {
    let united = |of: fn(&Rule) -> &Vec<Obligation>| {
        let mut all: Vec<Obligation> = rules.iter().flat_map(|rule| of(rule).iter().cloned()).collect();
        all.sort();
        all.dedup();
        all
    };
    Outcome { obligations: united(|rule| &rule.obligations), advice: united(|rule| &rule.advice), ..Outcome::default() }
}
