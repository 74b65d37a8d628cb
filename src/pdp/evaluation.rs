//! Evaluation of a call without I/O: gates, entities, Cedar, obligations, step gate. Authorize,
//! ExplainDecision and the bundle's tests share it.

use std::collections::HashSet;
use std::time::Duration;

use crate::approvals::consent::Values;
use crate::bundle::Bundle;
use crate::decision::{WhatIf, decide};
use crate::entities::{Asked, ResolvedCall, Stop};
use crate::json::{self, Object, Value};
use crate::model::answer::{Gate, Outcome, Reason};
use crate::model::approval::Giver;
use crate::model::call::{Call, Tokens};
use crate::model::chain::{Chain, Link};
use crate::model::refusal::Refusal;
use crate::model::roles::Roles;
use crate::model::time::Timestamp;
use crate::model::trusted_context::TrustedContext;
use crate::model::verdict::Verdict;
use crate::obligations::{Lift, settle};
use crate::pdp::gates;
use crate::pdp::scoring::{approval, calm, consent, limits};
use crate::pdp::snapshot::computed;
use crate::policy::Policies;
use crate::policy::explain::Explained;
use crate::policy::shape::Shapes;
use crate::policy::store::StoredEntity;

/// Validity of the approvals, checks and releases that a what-if evaluation grants.
const HYPOTHETICAL: Duration = Duration::from_secs(60);

/// Result of evaluating a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evaluation {
    pub outcome: Outcome,
    /// Gate in code that denied the call. The step gate denies after Cedar, so only it leaves a verdict.
    pub gate: Option<Gate>,
    /// Cedar's verdict; empty if Cedar was not asked.
    pub verdict: Verdict,
}

impl Evaluation {
    /// Creates a denial by a gate, without a verdict of Cedar.
    pub(super) fn stopped(gate: Gate, reason: Reason) -> Self {
        Self { outcome: Outcome::denied(reason), gate: Some(gate), verdict: Verdict::default() }
    }

    /// Returns whether full windows are the reason for the denial.
    pub(super) fn is_limited(&self) -> bool {
        self.outcome.denied == Some(Reason::RateLimited)
    }

    /// Returns whether the call is allowed, or denied for a reason that circumstances can lift.
    pub fn could_be_allowed(&self) -> bool {
        self.outcome.denied.is_none_or(|reason| Reason::LIFTABLE.contains(&reason))
    }

    /// Returns whether the chain may release drafts of the case at all: no gate stops the call, the chain's
    /// step covers the action, and every link that is denied is denied by a `forbid`.
    pub(super) fn is_entitled(&self, policies: &Policies, chain: &Chain, call: &Call) -> bool {
        let covers_step =
            policies.shapes.actions.get(&call.action).is_some_and(|action| action.is_in_step(&chain.step));
        covers_step
            && self.gate.is_none()
            && self.verdict.links.iter().all(|link| link.permitted || !link.determining.is_empty())
    }

    /// Returns whether the tool service is the only link that is denied, for lack of a permit. Such a denial
    /// is no evidence against the agent or the supervisor.
    pub(super) fn is_service_alone(&self) -> bool {
        let lacks = |link: Link| {
            self.verdict
                .links
                .iter()
                .any(|verdict| verdict.link == link && !verdict.permitted && verdict.determining.is_empty())
        };
        let others = [Link::Agent, Link::Supervisor]
            .into_iter()
            .any(|link| self.verdict.links.iter().any(|verdict| verdict.link == link && !verdict.permitted));
        lacks(Link::ToolService) && !others
    }
}

/// Evaluates calls by one bundle at one instant. It has no other input and no effects.
#[derive(Clone, Copy, Debug)]
pub struct Evaluator<'a> {
    pub bundle: &'a Bundle,
    pub roles: &'a Roles,
    pub now: Timestamp,
}

impl Evaluator<'_> {
    /// Evaluates a call with the gates. Only the pipelines can verify tokens, so a call that brings one is
    /// denied here.
    ///
    /// # Errors
    /// If the call is refused, for example because a value does not fit the schema.
    pub fn evaluate(self, chain: &Chain, call: &Call, trusted: &TrustedContext) -> Result<Evaluation, Refusal> {
        match gates::check(&self.bundle.policies, self.roles, chain, call) {
            Ok(_) if call.tokens != Tokens::default() => {
                Ok(Evaluation::stopped(Gate::Token, Reason::ApprovalUnverifiable))
            }
            Ok(resolved) => {
                let evaluation = self.evaluate_resolved(resolved, chain, call, trusted)?;
                self.with_texts(call, evaluation)
            }
            Err(stop) => stopped(stop),
        }
    }

    /// Evaluates like [`Self::evaluate`], but ignores tokens and the tenant and case gates. With it a
    /// bundle's tests show that the policies isolate tenants and cases without the gates.
    ///
    /// # Errors
    /// If the call is refused, for example because a value does not fit the schema.
    pub fn evaluate_policies_only(
        self,
        chain: &Chain,
        call: &Call,
        trusted: &TrustedContext,
    ) -> Result<Evaluation, Refusal> {
        match gates::resolve(&self.bundle.policies, self.roles, chain, call) {
            Ok(resolved) => {
                let evaluation = self.evaluate_resolved(resolved, chain, call, trusted)?;
                self.with_texts(call, evaluation)
            }
            Err(stop) => stopped(stop),
        }
    }

    /// Evaluates a call that passed the gates. The texts for the customer are left to [`Self::with_texts`].
    pub(super) fn evaluate_resolved(
        self,
        resolved: ResolvedCall<'_>,
        chain: &Chain,
        call: &Call,
        trusted: &TrustedContext,
    ) -> Result<Evaluation, Refusal> {
        let policies = &self.bundle.policies;
        let covers_step = resolved.action.is_in_step(&chain.step);
        let asked = match Asked::prepare(policies, self.roles, resolved, chain, call, self.now) {
            Ok(asked) => asked,
            Err(stop) => return stopped(stop),
        };
        let requests = asked.requests(&chain.step, trusted)?;
        let verdict = decide(&policies.engine, &requests, &asked.entities);
        let is_granted =
            || covers_step && requests.iter().all(|(_, request)| policies.engine.has_permit(request, &asked.entities));
        let outcome = settle(policies, &verdict, is_granted, |lift| self.what_if(&asked, lift, chain, call, trusted));
        // The step gate holds whatever the policies permit. It comes last, so that its denial reveals no more
        // than the policies do.
        if outcome.denied.is_none() && !covers_step {
            return Ok(Evaluation {
                outcome: Outcome::denied(Reason::StepNotAllowed),
                gate: Some(Gate::Step),
                verdict,
            });
        }
        Ok(Evaluation { outcome, gate: None, verdict })
    }

    /// Adds the texts that the customer is to be shown, if the customer's consent is missing.
    ///
    /// # Errors
    /// If a value of the call can't be shown (INVALID_ARGUMENT).
    pub(super) fn with_texts(self, call: &Call, mut evaluation: Evaluation) -> Result<Evaluation, Refusal> {
        let missing = evaluation.outcome.missing.as_mut();
        let Some(missing) = missing.filter(|missing| missing.giver == Giver::Customer) else { return Ok(evaluation) };
        // `check` refuses a bundle without the template.
        if let Some(template) = self.bundle.approvals.consents.get(&missing.template) {
            let derived = computed(self.bundle, &call.action, &call.arguments)?;
            missing.texts = template.texts(Values::of(call, &derived))?;
        }
        Ok(evaluation)
    }

    /// Returns whether a call is permitted. There is no what-if evaluation, because no caller of this
    /// function needs to know what is missing.
    ///
    /// # Errors
    /// If the call is refused, for example because a value does not fit the schema.
    pub(super) fn permits(self, chain: &Chain, call: &Call, trusted: &TrustedContext) -> Result<bool, Refusal> {
        let policies = &self.bundle.policies;
        let asked = gates::check(policies, self.roles, chain, call).and_then(|resolved| {
            let covers_step = resolved.action.is_in_step(&chain.step);
            Ok((covers_step, Asked::prepare(policies, self.roles, resolved, chain, call, self.now)?))
        });
        match asked {
            Ok((covers_step, asked)) => {
                let verdict = decide(&policies.engine, &asked.requests(&chain.step, trusted)?, &asked.entities);
                Ok(covers_step && verdict.permits() && !verdict.has_errors())
            }
            Err(Stop::Denied(_)) => Ok(false),
            Err(Stop::Refused(refusal)) => Err(refusal),
        }
    }

    /// Explains the verdict on each link of a call that passed the gates; empty if a gate stops it.
    ///
    /// # Errors
    /// If the call is refused, for example because a value does not fit the schema.
    pub fn explain(
        self,
        chain: &Chain,
        call: &Call,
        trusted: &TrustedContext,
    ) -> Result<Vec<(Link, Vec<Explained>)>, Refusal> {
        let policies = &self.bundle.policies;
        let asked = gates::check(policies, self.roles, chain, call)
            .and_then(|resolved| Asked::prepare(policies, self.roles, resolved, chain, call, self.now));
        let asked = match asked {
            Ok(asked) => asked,
            Err(Stop::Denied(_)) => return Ok(vec![]),
            Err(Stop::Refused(refusal)) => return Err(refusal),
        };
        let requests = asked.requests(&chain.step, trusted)?;
        let explain = |(link, request): &(Link, _)| (*link, policies.engine.explain(request, &asked.entities));
        Ok(requests.iter().map(explain).collect())
    }

    /// Returns the ids of those entities of the bundle that a call is permitted on, each as its resource. What does
    /// not depend on the resource is converted once.
    ///
    /// # Errors
    /// If the call is refused, for example because a value does not fit the schema.
    pub(super) fn permitted_on<'i>(
        self,
        chain: &Chain,
        call: &Call,
        ids: &[&'i str],
        trusted: &TrustedContext,
    ) -> Result<HashSet<&'i str>, Refusal> {
        let policies = &self.bundle.policies;
        let stored = |id: &&'i str| policies.store.get(&policies.shapes.uid(&call.resource.reference.kind, id)?);
        let known: Vec<_> = ids.iter().filter_map(|id| Some((*id, stored(id)?))).collect();
        let Some((first, _)) = known.first() else { return Ok(HashSet::new()) };
        let mut call = call.clone();
        (*first).clone_into(&mut call.resource.reference.id);
        let permitted = self.permitted_among(&known, chain, &call, trusted);
        permitted.or_else(|stop| match stop {
            Stop::Denied(_) => Ok(HashSet::new()),
            Stop::Refused(refusal) => Err(refusal),
        })
    }

    fn permitted_among<'i>(
        self,
        known: &[(&'i str, &StoredEntity)],
        chain: &Chain,
        call: &Call,
        trusted: &TrustedContext,
    ) -> Result<HashSet<&'i str>, Stop> {
        let policies = &self.bundle.policies;
        let resolved = gates::resolve(policies, self.roles, chain, call)?;
        if !resolved.action.is_in_step(&chain.step) {
            return Ok(HashSet::new());
        }
        let asked = Asked::prepare(policies, self.roles, resolved, chain, call, self.now)?;
        let context = asked.context(&chain.step, trusted)?;
        let mut permitted = HashSet::new();
        for (id, resource) in known {
            let asked = asked.on(resource)?;
            match gates::belong_together(policies, self.roles, chain, asked.resolved(), call) {
                Ok(()) => {}
                Err(Stop::Denied(_)) => continue,
                Err(refused) => return Err(refused),
            }
            let verdict = decide(&policies.engine, &asked.requests_in(&context), &asked.entities);
            if verdict.permits() && !verdict.has_errors() {
                permitted.insert(*id);
            }
        }
        Ok(permitted)
    }

    /// Evaluates the call with everything in `lift` granted. If the step is an obstacle, every step is tried.
    fn what_if(self, asked: &Asked<'_>, lift: &Lift, chain: &Chain, call: &Call, trusted: &TrustedContext) -> WhatIf {
        let policies = &self.bundle.policies;
        let granted = grant(&policies.shapes, lift, &call.arguments, trusted, self.now);
        let own = [chain.step.clone()];
        let any_step = lift.classes.contains(&Reason::StepNotAllowed);
        let steps = if any_step { policies.shapes.choices(&self.roles.step) } else { &own };
        let mut tried = steps.iter().filter_map(|step| asked.requests(step, &granted).ok());
        let turned = tried.find_map(|requests| {
            let what_if = WhatIf::of(&policies.engine, &requests, &asked.entities);
            what_if.would_permit().then_some(what_if)
        });
        // The default permits nothing: no step helps.
        turned.unwrap_or_default()
    }
}

/// Converts a stop into a denial or a refusal.
pub(super) fn stopped(stop: Stop) -> Result<Evaluation, Refusal> {
    match stop {
        Stop::Denied(gate) => Ok(Evaluation::stopped(gate, Reason::NotPermitted)),
        Stop::Refused(refusal) => Err(refusal),
    }
}

/// Returns the trusted members as they would be if everything in `lift` were granted.
fn grant(shapes: &Shapes, lift: &Lift, arguments: &Object, trusted: &TrustedContext, now: Timestamp) -> TrustedContext {
    let mut granted = trusted.clone();
    let calm = calm(shapes);
    let expires = Value::String(now.plus(HYPOTHETICAL).to_string());
    if let Some((template, quorum)) = &lift.approval {
        let limits = limits(shapes, arguments);
        granted.remove("approval");
        granted.set("approval", approval(template, *quorum, expires.clone(), limits));
    }
    if let Some(template) = &lift.consent {
        granted.remove("consent");
        granted.set("consent", consent(template, expires.clone()));
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
