//! The scope of a policy: principal, action and resource. All of it is compared with literal entities and
//! types, so it never fails to evaluate.

use cedar_policy::EntityTypeName;
use cedar_policy_core::ast::{
    ActionConstraint, Entity, EntityReference, EntityUID, Policy, PrincipalOrResourceConstraint,
};

use crate::policy::shape::{Action, Shapes};

/// Constraint of a scope's principal or resource.
pub(super) type Constraint = PrincipalOrResourceConstraint;

pub(super) fn principal(policy: &Policy) -> &Constraint {
    policy.template().principal_constraint().as_inner()
}

pub(super) fn resource(policy: &Policy) -> &Constraint {
    policy.template().resource_constraint().as_inner()
}

/// Returns whether an entity of this type can match.
pub(super) fn can_match(constraint: &Constraint, kind: &EntityTypeName) -> bool {
    match constraint {
        Constraint::Any | Constraint::In(_) => true,
        Constraint::Eq(EntityReference::EUID(uid)) => uid.entity_type() == kind.as_ref(),
        Constraint::Is(only) | Constraint::IsIn(only, _) => **only == *kind.as_ref(),
        // A template's slot; the bundle has no templates.
        Constraint::Eq(EntityReference::Slot(_)) => false,
    }
}

/// Returns whether an entity matches. Its ancestors are those of `entity`, its record in the request's
/// entities; without a record it has none.
pub(super) fn matches(constraint: &Constraint, uid: &EntityUID, entity: Option<&Entity>) -> bool {
    match constraint {
        Constraint::Any => true,
        Constraint::Eq(EntityReference::EUID(only)) => **only == *uid,
        Constraint::Is(kind) => **kind == *uid.entity_type(),
        Constraint::In(EntityReference::EUID(group)) => is_in(uid, entity, group),
        Constraint::IsIn(kind, EntityReference::EUID(group)) => {
            **kind == *uid.entity_type() && is_in(uid, entity, group)
        }
        Constraint::Eq(EntityReference::Slot(_))
        | Constraint::In(EntityReference::Slot(_))
        | Constraint::IsIn(_, EntityReference::Slot(_)) => false,
    }
}

/// Returns whether an action matches, like [`matches`].
pub(super) fn action_matches(policy: &Policy, uid: &EntityUID, entity: Option<&Entity>) -> bool {
    match policy.action_constraint() {
        ActionConstraint::Any => true,
        ActionConstraint::Eq(only) => **only == *uid,
        ActionConstraint::In(groups) => groups.iter().any(|group| is_in(uid, entity, group)),
    }
}

fn is_in(uid: &EntityUID, entity: Option<&Entity>, group: &EntityUID) -> bool {
    uid == group || entity.is_some_and(|entity| entity.is_descendant_of(group))
}

/// Returns the schema's actions that a policy's scope covers.
pub(super) fn covered<'a>(policy: &Policy, shapes: &'a Shapes) -> Vec<&'a Action> {
    let names = |action: &Action, uid: &EntityUID| {
        let id: &str = uid.eid().as_ref();
        uid == action.uid.as_ref() || action.groups.iter().any(|group| group == id)
    };
    let covers = |action: &&Action| match policy.action_constraint() {
        ActionConstraint::Any => true,
        ActionConstraint::Eq(uid) => **uid == *action.uid.as_ref(),
        ActionConstraint::In(uids) => uids.iter().any(|uid| names(action, uid)),
    };
    shapes.actions.values().filter(covers).collect()
}
