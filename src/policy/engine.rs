//! Evaluates requests with Cedar, using only the policies whose scope can match the request's types.
//!
//! A policy whose scope is false adds neither a reason nor an error, so leaving it out gives the same answer
//! as evaluating all policies. `tests/it/engine.rs` compares the two.

use std::collections::HashMap;

use cedar_policy::{
    ActionConstraint, AuthorizationError, Authorizer, Decision, Entities, EntityTypeName, EntityUid, EvaluationError,
    Policy, PolicyId, PolicySet, PrincipalConstraint, Request, ResourceConstraint,
};

use crate::model::call::EntityReference;
use crate::model::chain::Link;
use crate::model::verdict::{LinkVerdict, PolicyFault};
use crate::policy::shape::Shapes;

/// The types of a request: principal type, action, resource type.
type Environment = (EntityTypeName, EntityUid, EntityTypeName);

/// Cedar's authorizer with the policies indexed by environment.
#[derive(Debug)]
pub struct Engine {
    authorizer: Authorizer,
    all: PolicySet,
    by_environment: HashMap<Environment, PolicySet>,
}

impl Engine {
    /// Indexes policies by the environments of the schema in which their scope can match.
    pub fn new(all: PolicySet, shapes: &Shapes) -> Self {
        let mut by_environment = HashMap::new();
        for action in shapes.actions.values() {
            for principal in &action.principals {
                for resource in &action.resources {
                    let candidates = all.policies().filter(|policy| {
                        principal_can_match(policy, principal)
                            && action_can_match(policy, &action.uid, &action.groups)
                            && resource_can_match(policy, resource)
                    });
                    // Ids are unique in `all`, so this can't fail.
                    let set = PolicySet::from_policies(candidates.cloned()).unwrap_or_else(|_| all.clone());
                    by_environment.insert((principal.clone(), action.uid.clone(), resource.clone()), set);
                }
            }
        }
        Self { authorizer: Authorizer::new(), all, by_environment }
    }

    pub fn policies(&self) -> &PolicySet {
        &self.all
    }

    /// Evaluates one link's request, against every policy if its types are not an environment of the schema.
    pub fn evaluate(&self, link: Link, request: &Request, entities: &Entities) -> LinkVerdict {
        let environment = match (request.principal(), request.action(), request.resource()) {
            (Some(principal), Some(action), Some(resource)) => {
                Some((principal.type_name().clone(), action.clone(), resource.type_name().clone()))
            }
            _ => None,
        };
        let candidates = environment.and_then(|environment| self.by_environment.get(&environment)).unwrap_or(&self.all);
        self.evaluate_set(link, request, candidates, entities)
    }

    /// Evaluates one link's request against every policy. [`Engine::evaluate`] must return the same.
    pub fn evaluate_all(&self, link: Link, request: &Request, entities: &Entities) -> LinkVerdict {
        self.evaluate_set(link, request, &self.all, entities)
    }

    fn evaluate_set(&self, link: Link, request: &Request, policies: &PolicySet, entities: &Entities) -> LinkVerdict {
        let response = self.authorizer.is_authorized(request, policies, entities);
        let mut determining: Vec<String> = response.diagnostics().reason().map(id_text).collect();
        determining.sort_unstable();
        let mut errors: Vec<PolicyFault> = response.diagnostics().errors().map(policy_fault).collect();
        errors.sort_unstable();
        // Only a request for partial evaluation has no principal. None is made here, and one would be denied.
        let uid = request.principal();
        let permitted = uid.is_some() && response.decision() == Decision::Allow;
        let principal = EntityReference {
            kind: uid.map_or_else(String::new, |uid| uid.type_name().to_string()),
            id: uid.map_or_else(String::new, |uid| uid.id().unescaped().to_owned()),
        };
        LinkVerdict { link, principal, permitted, determining, errors }
    }
}

/// Returns a policy's id as it was given; its `Display` would escape quotes.
pub fn id_text(id: &PolicyId) -> String {
    AsRef::<str>::as_ref(id).to_owned()
}

fn principal_can_match(policy: &Policy, kind: &EntityTypeName) -> bool {
    match policy.principal_constraint() {
        // The type of a group does not determine the types of its members.
        PrincipalConstraint::Any | PrincipalConstraint::In(_) => true,
        PrincipalConstraint::Eq(uid) => uid.type_name() == kind,
        PrincipalConstraint::Is(only) | PrincipalConstraint::IsIn(only, _) => only == *kind,
    }
}

fn resource_can_match(policy: &Policy, kind: &EntityTypeName) -> bool {
    match policy.resource_constraint() {
        ResourceConstraint::Any | ResourceConstraint::In(_) => true,
        ResourceConstraint::Eq(uid) => uid.type_name() == kind,
        ResourceConstraint::Is(only) | ResourceConstraint::IsIn(only, _) => only == *kind,
    }
}

fn action_can_match(policy: &Policy, action: &EntityUid, groups: &[String]) -> bool {
    let covers = |named: &EntityUid| named == action || groups.iter().any(|group| group == named.id().unescaped());
    match policy.action_constraint() {
        ActionConstraint::Any => true,
        ActionConstraint::Eq(named) => named == *action,
        ActionConstraint::In(named) => named.iter().any(covers),
    }
}

fn policy_fault(error: &AuthorizationError) -> PolicyFault {
    let AuthorizationError::PolicyEvaluationError(error) = error;
    PolicyFault { policy: id_text(error.policy_id()), class: class(error.inner()) }
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
