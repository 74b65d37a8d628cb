//! Evaluates requests with Cedar's evaluator, using only the policies whose scope matches the request.
//!
//! Cedar's own authorizer evaluates every policy, and builds each policy's condition anew for each request.
//! Here the index finds the policies, their scope is compared without the evaluator, and only their
//! conditions are evaluated. A policy whose scope is false adds neither a reason nor an error, and a scope
//! can't fail, so the answer is the same; `tests/it/engine.rs` compares the two.

use std::sync::OnceLock;

use cedar_policy::{Entities, EvaluationError, Request};
use cedar_policy_core::ast::{self, Effect, Literal, ValueKind};
use cedar_policy_core::authorizer::{AuthorizationError, Authorizer, Decision};
use cedar_policy_core::entities::Dereference;
use cedar_policy_core::evaluator::Evaluator;
use cedar_policy_core::extensions::Extensions;

use crate::model::call::EntityReference;
use crate::model::chain::Link;
use crate::model::verdict::{LinkVerdict, PolicyFault};
use crate::policy::index::{Index, Named};
use crate::policy::scope;

/// Indexed policies.
#[derive(Debug)]
pub struct Engine {
    policies: Vec<ast::Policy>,
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
        Self { index: Index::new(&policies), policies, set: OnceLock::new() }
    }

    /// Returns the number of policies.
    pub fn len(&self) -> usize {
        self.policies.len()
    }

    /// Evaluates one link's request.
    pub fn evaluate(&self, link: Link, request: &Request, entities: &Entities) -> LinkVerdict {
        let (request, entities): (&ast::Request, &cedar_policy_core::entities::Entities) =
            (request.as_ref(), entities.as_ref());
        // Only a request for partial evaluation lacks one of these. None is made here, and one would be denied.
        let (Some(principal), Some(action), Some(resource)) =
            (request.principal().uid(), request.action().uid(), request.resource().uid())
        else {
            return nobody(link);
        };
        let named = |uid| match entities.entity(uid) {
            Dereference::Data(entity) => Named { uid, entity: Some(entity) },
            Dereference::NoSuchEntity | Dereference::Residual(_) => Named { uid, entity: None },
        };
        let (principal, action, resource) = (named(principal), named(action), named(resource));
        let evaluator = Evaluator::new(request.clone(), entities, Extensions::all_available());
        let (mut permits, mut forbids, mut errors) = (vec![], vec![], vec![]);
        let candidates = self.index.candidates(principal, action, resource);
        for policy in candidates.into_iter().filter_map(|position| self.policies.get(position as usize)) {
            let matches = scope::matches(scope::principal(policy), principal.uid, principal.entity)
                && scope::action_matches(policy, action.uid, action.entity)
                && scope::matches(scope::resource(policy), resource.uid, resource.entity);
            if !matches {
                continue;
            }
            match (is_satisfied(&evaluator, policy), policy.effect()) {
                (Ok(true), Effect::Permit) => permits.push(policy),
                (Ok(true), Effect::Forbid) => forbids.push(policy),
                (Ok(false), _) => {}
                (Err(class), _) => errors.push(PolicyFault { policy: id_text(policy), class }),
            }
        }
        let permitted = forbids.is_empty() && !permits.is_empty();
        let deciding = if forbids.is_empty() { permits } else { forbids };
        verdict(link, principal.uid, permitted, deciding.into_iter().map(id_text).collect(), errors)
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

/// Evaluates a policy's condition; its scope must match. Returns the class of an error.
fn is_satisfied(evaluator: &Evaluator<'_>, policy: &ast::Policy) -> Result<bool, &'static str> {
    let Some(condition) = policy.non_scope_constraints() else { return Ok(true) };
    match evaluator.interpret(condition, policy.env()).map(|value| value.value) {
        Ok(ValueKind::Lit(Literal::Bool(satisfied))) => Ok(satisfied),
        Ok(_) => Err("type"),
        Err(error) => Err(class(&error)),
    }
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
