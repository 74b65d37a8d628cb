//! Evaluates requests with Cedar's evaluator, using only the policies whose scope matches the request.
//!
//! Cedar's own authorizer evaluates every policy, and builds each policy's condition again for each request.
//! This engine finds the policies by an index, compares their scopes without the evaluator, and evaluates only
//! the conditions of those that match. A policy whose scope is false adds neither a reason nor an error, and a scope
//! can't fail, so the answer is the same; `tests/it/engine.rs` compares the two.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use cedar_policy::{Entities, EvaluationError, Request};
use cedar_policy_core::ast::{self, Effect, Literal, ValueKind};
use cedar_policy_core::authorizer::{AuthorizationError, Authorizer, Decision};
use cedar_policy_core::entities::Dereference;
use cedar_policy_core::evaluator::Evaluator;
use cedar_policy_core::extensions::Extensions;
use rustc_hash::FxHashMap;

use crate::model::call::EntityReference;
use crate::model::chain::Link;
use crate::model::verdict::{LinkVerdict, PolicyFault};
use crate::policy::index::{Index, Name, Named, Position};
use crate::policy::{parse, scope};

/// Results that requests share if they differ only in their principals.
#[derive(Debug, Default)]
struct Shared {
    /// Results of conditions that don't read the principal, by position of the policy.
    results: FxHashMap<Position, Result<bool, &'static str>>,
    /// Names of the action and of the resource in the index.
    names: Option<(Vec<Name>, Vec<Name>)>,
}

/// Whether live decisions are compared with those of Cedar's authorizer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verify {
    #[default]
    Off,
    /// One in 1,024 calls is compared.
    Sample,
}

/// Result of the comparison since the bundle was loaded, as numbers of calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    pub verified: u64,
    pub differences: u64,
}

/// Number of calls of which one is compared. Cedar's authorizer takes a few microseconds for each policy of the
/// bundle.
const SAMPLE: u64 = 1024;

/// Indexed policies.
#[derive(Debug)]
pub struct Engine {
    verify: Verify,
    /// Numbers of calls: all if some are compared, those that were compared, and those that differed.
    calls: AtomicU64,
    verified: AtomicU64,
    differences: AtomicU64,
    policies: Vec<ast::Policy>,
    /// For each policy, whether its condition reads the principal.
    read_principal: Vec<bool>,
    index: Index,
    /// All policies in Cedar's own form; made when [`Engine::evaluate_all`] first needs it.
    set: OnceLock<ast::PolicySet>,
}

impl From<&cedar_policy::PolicySet> for Engine {
    fn from(set: &cedar_policy::PolicySet) -> Self {
        let set: &ast::PolicySet = set.as_ref();
        Self::new(set.policies().cloned().collect())
    }
}

impl Engine {
    /// Indexes policies. Their ids must be unique.
    pub(super) fn new(policies: Vec<ast::Policy>) -> Self {
        let read_principal = policies.iter().map(reads_principal).collect();
        Self {
            verify: Verify::Off,
            calls: AtomicU64::new(0),
            verified: AtomicU64::new(0),
            differences: AtomicU64::new(0),
            index: Index::new(&policies),
            read_principal,
            policies,
            set: OnceLock::new(),
        }
    }

    /// Sets whether live decisions are compared.
    pub fn verify(&mut self, verify: Verify) {
        self.verify = verify;
        if verify == Verify::Sample {
            // No call should wait for this.
            self.set();
        }
    }

    pub fn verification(&self) -> Verification {
        Verification {
            verified: self.verified.load(Ordering::Relaxed),
            differences: self.differences.load(Ordering::Relaxed),
        }
    }

    pub(super) fn policies(&self) -> &[ast::Policy] {
        &self.policies
    }

    /// Returns the number of policies.
    pub fn count(&self) -> usize {
        self.policies.len()
    }

    /// Evaluates one link's request.
    pub fn evaluate(&self, link: Link, request: &Request, entities: &Entities) -> LinkVerdict {
        self.evaluate_sharing(&mut Shared::default(), link, request, entities)
    }

    /// Evaluates the requests of a call's links. If they differ only in their principals, conditions that don't
    /// read the principal are evaluated once.
    pub fn evaluate_links(&self, requests: &[(Link, Request)], entities: &Entities) -> Vec<LinkVerdict> {
        let mut shared = Shared::default();
        let mut before = None;
        let mut verdicts = Vec::with_capacity(requests.len());
        for (link, request) in requests {
            if !before.replace(request).is_some_and(|before| differ_at_most_in_principal(before, request)) {
                shared = Shared::default();
            }
            verdicts.push(self.evaluate_sharing(&mut shared, *link, request, entities));
        }
        if self.verify == Verify::Sample && self.calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(SAMPLE) {
            return self.compared(verdicts, requests, entities);
        }
        verdicts
    }

    /// Compares the verdicts with those of Cedar's authorizer, and returns the latter.
    fn compared(
        &self,
        verdicts: Vec<LinkVerdict>,
        requests: &[(Link, Request)],
        entities: &Entities,
    ) -> Vec<LinkVerdict> {
        let of_cedar = |(link, request): &(Link, Request)| self.evaluate_all(*link, request, entities);
        let of_cedar: Vec<LinkVerdict> = requests.iter().map(of_cedar).collect();
        self.verified.fetch_add(1, Ordering::Relaxed);
        if of_cedar != verdicts {
            self.differences.fetch_add(1, Ordering::Relaxed);
            tracing::error!(
                name: "engine.differs",
                "the policy index gave another result than Cedar's authorizer, whose result is used: report this as a fault"
            );
        }
        of_cedar
    }

    fn evaluate_sharing(&self, shared: &mut Shared, link: Link, request: &Request, entities: &Entities) -> LinkVerdict {
        let request: &ast::Request = request.as_ref();
        // Only a request for partial evaluation lacks a part. None is made here, and one would be denied.
        let (Some(principal), Some(found)) =
            (request.principal().uid(), self.satisfied(shared, request, entities.as_ref()))
        else {
            return nobody(link);
        };
        let Satisfied { permits, forbids, errors } = found;
        let permitted = forbids.is_empty() && !permits.is_empty();
        let deciding = if forbids.is_empty() { permits } else { forbids };
        verdict(link, principal, permitted, deciding.into_iter().map(id_text).collect(), errors)
    }

    /// Returns whether a `permit` applies to a request, whatever forbids it.
    pub fn has_permit(&self, request: &Request, entities: &Entities) -> bool {
        let found = self.satisfied(&mut Shared::default(), request.as_ref(), entities.as_ref());
        found.is_some_and(|found| !found.permits.is_empty())
    }

    /// Returns the policies that apply to a request. `None`: it lacks a part.
    fn satisfied(
        &self,
        shared: &mut Shared,
        request: &ast::Request,
        entities: &cedar_policy_core::entities::Entities,
    ) -> Option<Satisfied<'_>> {
        let (principal, action, resource) =
            (request.principal().uid()?, request.action().uid()?, request.resource().uid()?);
        let named = |uid| match entities.entity(uid) {
            Dereference::Data(entity) => Named { uid, entity: Some(entity) },
            Dereference::NoSuchEntity | Dereference::Residual(_) => Named { uid, entity: None },
        };
        let (principal, action, resource) = (named(principal), named(action), named(resource));
        let evaluator = Evaluator::new(request.clone(), entities, Extensions::all_available());
        let (mut permits, mut forbids, mut errors) = (vec![], vec![], vec![]);
        let (actions, resources) =
            shared.names.get_or_insert_with(|| (self.index.names(action), self.index.names(resource)));
        let candidates = self.index.candidates(&self.index.names(principal), actions, resources);
        for position in candidates {
            let at = position as usize;
            let (Some(policy), Some(reads_principal)) = (self.policies.get(at), self.read_principal.get(at)) else {
                continue;
            };
            let matches = scope::matches(scope::principal(policy), principal.uid, principal.entity)
                && scope::action_matches(policy, action.uid, action.entity)
                && scope::matches(scope::resource(policy), resource.uid, resource.entity);
            if !matches {
                continue;
            }
            let satisfied = match reads_principal {
                true => is_satisfied(&evaluator, policy),
                false => *shared.results.entry(position).or_insert_with(|| is_satisfied(&evaluator, policy)),
            };
            match (satisfied, policy.effect()) {
                (Ok(true), Effect::Permit) => permits.push(policy),
                (Ok(true), Effect::Forbid) => forbids.push(policy),
                (Ok(false), _) => {}
                (Err(class), _) => errors.push(PolicyFault { policy: id_text(policy), class }),
            }
        }
        Some(Satisfied { permits, forbids, errors })
    }

    /// Evaluates one link's request as Cedar's authorizer does, with every policy. [`Engine::evaluate`] must
    /// return the same.
    pub fn evaluate_all(&self, link: Link, request: &Request, entities: &Entities) -> LinkVerdict {
        let request: &ast::Request = request.as_ref();
        let Some(principal) = request.principal().uid() else {
            return nobody(link);
        };
        let response = Authorizer::new().is_authorized(request.clone(), self.set(), entities.as_ref());
        let errors =
            response.diagnostics.errors.iter().map(|AuthorizationError::PolicyEvaluationError { id, error }| {
                PolicyFault { policy: AsRef::<str>::as_ref(id).to_owned(), class: class(error) }
            });
        let reasons = response.diagnostics.reason.iter().map(|id| AsRef::<str>::as_ref(id).to_owned());
        verdict(link, principal, response.decision == Decision::Allow, reasons.collect(), errors.collect())
    }

    fn set(&self) -> &ast::PolicySet {
        // The ids are unique, so this can't fail.
        self.set.get_or_init(|| ast::PolicySet::try_from_iter(self.policies.iter().cloned()).unwrap_or_default())
    }
}

/// Policies that apply to a request.
struct Satisfied<'e> {
    permits: Vec<&'e ast::Policy>,
    forbids: Vec<&'e ast::Policy>,
    errors: Vec<PolicyFault>,
}

/// Evaluates a policy's condition; its scope must match. Returns the class of an error.
fn is_satisfied(evaluator: &Evaluator<'_>, policy: &ast::Policy) -> Result<bool, &'static str> {
    policy.non_scope_constraints().map_or(Ok(true), |condition| is_true(evaluator, condition, policy))
}

/// Evaluates an expression of a policy. Returns the class of an error.
pub(super) fn is_true(
    evaluator: &Evaluator<'_>,
    expression: &ast::Expr,
    policy: &ast::Policy,
) -> Result<bool, &'static str> {
    match evaluator.interpret(expression, policy.env()).map(|value| value.value) {
        Ok(ValueKind::Lit(Literal::Bool(satisfied))) => Ok(satisfied),
        Ok(_) => Err("type"),
        Err(error) => Err(class(&error)),
    }
}

fn reads_principal(policy: &ast::Policy) -> bool {
    let mut open: Vec<&ast::Expr> = policy.non_scope_constraints().into_iter().collect();
    while let Some(expression) = open.pop() {
        if matches!(expression.expr_kind(), ast::ExprKind::Var(ast::Var::Principal)) {
            return true;
        }
        open.extend(parse::children(expression));
    }
    false
}

/// Returns whether two requests have the same action, resource and context.
fn differ_at_most_in_principal(one: &Request, other: &Request) -> bool {
    let (one, other): (&ast::Request, &ast::Request) = (one.as_ref(), other.as_ref());
    let same_context = match (one.context(), other.context()) {
        (Some(ast::Context::Value(one)), Some(ast::Context::Value(other))) => Arc::ptr_eq(one, other),
        _ => false,
    };
    same_context && one.action().uid() == other.action().uid() && one.resource().uid() == other.resource().uid()
}

/// Returns the denial of a request without a principal.
fn nobody(link: Link) -> LinkVerdict {
    let principal = EntityReference { kind: String::new(), id: String::new() };
    LinkVerdict { link, principal, permitted: false, determining: vec![], errors: vec![] }
}

fn verdict(
    link: Link,
    principal: &ast::EntityUID,
    permitted: bool,
    mut determining: Vec<String>,
    mut errors: Vec<PolicyFault>,
) -> LinkVerdict {
    determining.sort_unstable();
    errors.sort_unstable();
    let principal = EntityReference {
        kind: principal.entity_type().to_string(),
        id: AsRef::<str>::as_ref(principal.eid()).to_owned(),
    };
    LinkVerdict { link, principal, permitted, determining, errors }
}

/// Returns a policy's id as it was given; its `Display` would escape quotes.
pub(super) fn id_text(policy: &ast::Policy) -> String {
    AsRef::<str>::as_ref(policy.id()).to_owned()
}

/// Returns an evaluation error's class. The error's text may contain values and must not leave this function.
fn class(error: &EvaluationError) -> &'static str {
    match error {
        EvaluationError::EntityDoesNotExist(_) => "missing_entity",
        EvaluationError::EntityAttrDoesNotExist(_) | EvaluationError::RecordAttrDoesNotExist(_) => "missing_attribute",
        EvaluationError::TypeError(_) => "type",
        EvaluationError::IntegerOverflow(_) => "overflow",
        EvaluationError::RecursionLimit(_) => "recursion",
        EvaluationError::FailedExtensionFunctionExecution(_) | EvaluationError::FailedExtensionFunctionLookup(_) => {
            "extension"
        }
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// [`Engine::evaluate_all`] shows the faults that an index could have.
    #[test]
    fn a_planted_fault_of_the_index_shows_in_the_comparison_with_all_policies() {
        let text = "permit (principal in Group::\"staff\", action, resource);
            forbid (principal, action, resource is File) when { context.n > 1 };";
        let set: cedar_policy::PolicySet = text.parse().expect("policies");
        let entities = serde_json::json!([
            {"uid": {"type": "User", "id": "ann"}, "attrs": {}, "parents": [{"type": "Group", "id": "staff"}]},
        ]);
        let entities = Entities::from_json_value(entities, None).expect("entities");
        let request = |resource: &str| {
            let uid = |text: &str| text.parse::<cedar_policy::EntityUid>().expect("a uid");
            let context = cedar_policy::Context::from_json_value(serde_json::json!({"n": 2}), None).expect("a context");
            Request::new(uid("User::\"ann\""), uid("Action::\"read\""), uid(resource), context, None).expect("valid")
        };
        let differs = |engine: &Engine| {
            ["File::\"f\"", "Folder::\"f\""].map(|resource| {
                let request = request(resource);
                engine.evaluate(Link::Plain, &request, &entities)
                    != engine.evaluate_all(Link::Plain, &request, &entities)
            })
        };
        let mut policies = Engine::from(&set).policies;
        policies.sort_by(|one, other| one.id().cmp(other.id()));
        let with_index = |index| Engine { index, ..Engine::new(policies.clone()) };
        assert_eq!(differs(&with_index(Index::new(&policies))), [false, false]);
        // One index lacks the `forbid`, the other one both policies.
        assert_eq!(differs(&with_index(Index::new(&policies[..1]))), [true, false]);
        assert_eq!(differs(&with_index(Index::default())), [true, true]);

        // The live comparison counts the difference and uses Cedar's result. The index alone would allow the call.
        let mut engine = with_index(Index::new(&policies[..1]));
        engine.verify(Verify::Sample);
        let requests = [(Link::Plain, request("File::\"f\""))];
        assert!(!engine.evaluate_links(&requests, &entities)[0].permitted);
        assert!(engine.evaluate_links(&requests, &entities)[0].permitted, "only one of many calls is compared");
        assert_eq!(engine.verification(), Verification { verified: 1, differences: 1 });
    }
}
