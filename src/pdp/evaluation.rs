//! From a read call to its outcome: gates, entities, Cedar, obligations. Pure; Authorize, Explain and the bundle's tests share it.

use crate::pdp::scoring::calm;
use crate::pdp::scoring::limits;
use std::time::Duration;

use crate::bundle::Bundle;
use crate::decision::{WhatIf, decide};
use crate::entities::{Asked, ResolvedCall, Stop};
use crate::json::{self, Object, Value};
use crate::model::answer::{Gate, Outcome, Reason};
use crate::model::call::Call;
use crate::model::chain::{Chain, Link};
use crate::model::refusal::Refusal;
use crate::model::roles::Roles;
use crate::model::time::Timestamp;
use crate::model::trusted_context::TrustedContext;
use crate::model::verdict::Verdict;
use crate::obligations::{Lift, settle};
use crate::pdp::gates;
use crate::pdp::scoring::approval;
use crate::policy::Policies;
use crate::policy::shape::{Action, Shapes};

/// How long what a what-if grants would last.
const HYPOTHETICAL: Duration = Duration::from_secs(60);

/// What became of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evaluation {
    /// The outcome; the default denies.
    pub outcome: Outcome,
    /// The gate that denied before Cedar.
    pub gate: Option<Gate>,
    /// Cedar's verdict.
    pub verdict: Verdict,
}

impl Evaluation {
    /// Denied before Cedar.
    pub(super) fn stopped(gate: Gate, reason: Reason) -> Self {
        Self { outcome: Outcome::denied(reason), gate: Some(gate), verdict: Verdict::default() }
    }

    /// True when a rate alone stands in the way.
    pub(super) fn is_limited(&self) -> bool {
        self.outcome.denied == Some(Reason::RateLimited)
    }

    /// True when it is allowed, or only circumstances stand in the way.
    pub(super) fn could_be_allowed(&self) -> bool {
        self.outcome.denied.is_none_or(|reason| Reason::LIFTABLE.contains(&reason))
    }

    /// Whether the chain may let drafts of the case go: no gate stops the call, the chain's step covers it, and every link has a permit.
    pub(super) fn is_entitled(&self, policies: &Policies, chain: &Chain, call: &Call) -> bool {
        let covers_step = policies.shapes.actions.get(&call.action).is_some_and(|action| covers(action, &chain.step));
        covers_step && self.gate.is_none() && self.verdict.links.iter().all(|link| link.permitted || !link.determining.is_empty())
    }

    /// Whether only the tool service lacks a permit. Such a denial is no evidence against the agent or the supervisor.
    pub(super) fn is_service_alone(&self) -> bool {
        let lacks = |link: Link| {
            self.verdict.links.iter().any(|verdict| verdict.link == link && !verdict.permitted && verdict.determining.is_empty())
        };
        let others = [Link::Agent, Link::Supervisor]
            .into_iter()
            .any(|link| self.verdict.links.iter().any(|verdict| verdict.link == link && !verdict.permitted));
        lacks(Link::ToolService) && !others
    }
}

/// Judges a call at one instant by one bundle. Tokens are the pipelines' to verify: a call that brings one is denied here.
///
/// # Errors
/// When the call can't be read.
pub fn evaluate(
    bundle: &Bundle,
    roles: &Roles,
    chain: &Chain,
    call: &Call,
    trusted: &TrustedContext,
    now: Timestamp,
) -> Result<Evaluation, Refusal> {
    match gates::check(&bundle.policies, roles, chain, call) {
        Ok(_) if call.tokens.approval.is_some() || call.tokens.release.is_some() => {
            Ok(Evaluation::stopped(Gate::Token, Reason::ApprovalUnverifiable))
        }
        Ok(resolved) => evaluate_resolved(bundle, roles, resolved, chain, call, trusted, now),
        Err(stop) => stopped(stop),
    }
}

/// As [`evaluate`], but without the tenant and case gates in code: so that a bundle's tests show that its policies hold alone.
///
/// # Errors
/// When the call can't be read.
pub fn evaluate_policies_only(
    bundle: &Bundle,
    roles: &Roles,
    chain: &Chain,
    call: &Call,
    trusted: &TrustedContext,
    now: Timestamp,
) -> Result<Evaluation, Refusal> {
    match gates::resolve(&bundle.policies, roles, chain, call) {
        Ok(resolved) => evaluate_resolved(bundle, roles, resolved, chain, call, trusted, now),
        Err(stop) => stopped(stop),
    }
}

/// Judges a call that passed the gates.
pub(super) fn evaluate_resolved(
    bundle: &Bundle,
    roles: &Roles,
    resolved: ResolvedCall<'_>,
    chain: &Chain,
    call: &Call,
    trusted: &TrustedContext,
    now: Timestamp,
) -> Result<Evaluation, Refusal> {
    let policies = &bundle.policies;
    let covers_step = covers(resolved.action, &chain.step);
    let asked = match Asked::prepare(policies, roles, resolved, chain, call, now) {
        Ok(asked) => asked,
        Err(stop) => return stopped(stop),
    };
    let verdict = decide(&policies.engine, &asked.requests(&chain.step, trusted)?, &asked.entities);
    let steps = policies.shapes.choices(&roles.step);
    let outcome = settle(policies, &verdict, |lift| what_if(bundle, &asked, lift, (chain, steps), call, trusted, now));
    // Last, so that it tells nobody more than the policies did: the step gate does not depend on the bundle's policies.
    if outcome.denied.is_none() && !covers_step {
        return Ok(Evaluation { outcome: Outcome::denied(Reason::StepNotAllowed), gate: Some(Gate::Step), verdict });
    }
    Ok(Evaluation { outcome, gate: None, verdict })
}

/// Whether a call is permitted; what is missing where it is not, nobody asks.
///
/// # Errors
/// When the call can't be read.
pub(super) fn permits(
    bundle: &Bundle,
    roles: &Roles,
    chain: &Chain,
    call: &Call,
    trusted: &TrustedContext,
    now: Timestamp,
) -> Result<bool, Refusal> {
    let asked = gates::check(&bundle.policies, roles, chain, call).and_then(|resolved| {
        let covers_step = covers(resolved.action, &chain.step);
        Ok((covers_step, Asked::prepare(&bundle.policies, roles, resolved, chain, call, now)?))
    });
    match asked {
        Ok((covers_step, asked)) => {
            let verdict = decide(&bundle.policies.engine, &asked.requests(&chain.step, trusted)?, &asked.entities);
            Ok(covers_step && verdict.permits() && !verdict.has_errors())
        }
        Err(Stop::Denied(_)) => Ok(false),
        Err(Stop::Refused(refusal)) => Err(refusal),
    }
}

/// Whether a step covers an action: the step gate, which no policy can open.
pub(super) fn covers(action: &Action, step: &str) -> bool {
    action.groups.contains(&format!("in_{step}"))
}

/// What a gate's denial means.
pub(super) fn stopped(stop: Stop) -> Result<Evaluation, Refusal> {
    match stop {
        Stop::Denied(gate) => Ok(Evaluation::stopped(gate, Reason::NotPermitted)),
        Stop::Refused(refusal) => Err(refusal),
    }
}

/// Evaluates the call with all of a lift granted; where the step is in the way, in any other step.
fn what_if(
    bundle: &Bundle,
    asked: &Asked<'_>,
    lift: &Lift,
    (chain, steps): (&Chain, &[String]),
    call: &Call,
    trusted: &TrustedContext,
    now: Timestamp,
) -> WhatIf {
    let granted = grant(&bundle.policies.shapes, lift, &call.arguments, trusted, now);
    let own = [chain.step.clone()];
    let steps = if lift.classes.contains(&Reason::StepNotAllowed) { steps } else { &own };
    let mut tried = steps.iter().filter_map(|step| asked.requests(step, &granted).ok());
    let turned = tried.find_map(|requests| {
        let what_if = WhatIf::of(&bundle.policies.engine, &requests, &asked.entities);
        what_if.would_permit().then_some(what_if)
    });
    turned.unwrap_or_default()
}

/// The trusted members as they would be if nothing of the lift stood in the way.
fn grant(shapes: &Shapes, lift: &Lift, arguments: &Object, trusted: &TrustedContext, now: Timestamp) -> TrustedContext {
    let mut granted = trusted.clone();
    let calm = calm(shapes);
    let expires = Value::String(now.plus(HYPOTHETICAL).to_string());
    if let Some((template, quorum)) = &lift.approval {
        let limits = limits(shapes, arguments);
        granted.remove("approval");
        granted.set("approval", approval(template, *quorum, expires.clone(), limits));
    }
    for name in &lift.checks {
        granted.set("checks", json::object([(name, json::object([("expires", expires.clone())]))]));
    }
    let mut calm_down = |names: &[&str]| {
        for name in names {
            granted.remove(name);
            if let Some(value) = calm.get(name) {
                granted.set(name, value.clone());
            }
        }
    };
    if lift.classes.contains(&Reason::RiskTooHigh) {
        calm_down(&["risk", "findings"]);
    }
    if lift.classes.contains(&Reason::RateLimited) {
        calm_down(&["rates"]);
    }
    if lift.classes.contains(&Reason::DraftRequired) {
        granted.set("release", json::object([("expires", expires)]));
    }
    if lift.classes.contains(&Reason::ScreeningRequired) {
        granted.set("screening", json::object([("tainted", Value::Bool(false)), ("unscreened", Value::Bool(false))]));
    }
    granted
}
