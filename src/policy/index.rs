//! Finds the policies whose scope can match a request, in a time that does not depend on how many policies
//! there are.
//!
//! Each policy is in a bucket, whose key has the names in the policy's scope: the action or action group, and the
//! entity or type of the principal and of the resource. A request looks only into the buckets of its own action, principal and
//! resource, their types and their ancestors. A policy whose scope names none of these is false for it.

use cedar_policy_core::ast::{ActionConstraint, Entity, EntityType, EntityUID, Policy};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::policy::scope::{self, Constraint};

/// Number of a type or an entity that a scope names.
pub(super) type Name = u32;

/// Stands for a scope's part without a constraint.
const ANY: Name = 0;

/// Position of a policy in the list that was indexed.
pub(super) type Position = u32;

#[derive(Debug, Default)]
pub(super) struct Index {
    types: FxHashMap<EntityType, Name>,
    entities: FxHashMap<EntityUID, Name>,
    /// Policies by action, principal and resource.
    buckets: FxHashMap<(Name, Name, Name), Vec<Position>>,
}

/// An entity of a request, with its record if the request's entities contain one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Named<'a> {
    pub(super) uid: &'a EntityUID,
    pub(super) entity: Option<&'a Entity>,
}

impl Index {
    pub(super) fn new(policies: &[Policy]) -> Self {
        let mut index = Self::default();
        for (position, policy) in (0..).zip(policies) {
            let (principal, resource) = (index.name(scope::principal(policy)), index.name(scope::resource(policy)));
            let mut actions = match policy.action_constraint() {
                ActionConstraint::Any => vec![ANY],
                ActionConstraint::Eq(uid) => vec![index.name_of(uid)],
                ActionConstraint::In(uids) => uids.iter().map(|uid| index.name_of(uid)).collect(),
            };
            actions.sort_unstable();
            actions.dedup();
            for action in actions {
                index.buckets.entry((action, principal, resource)).or_default().push(position);
            }
        }
        index
    }

    /// Returns the number of what a constraint names: its entity if it names one, otherwise its type.
    fn name(&mut self, constraint: &Constraint) -> Name {
        match (constraint, constraint.get_euid()) {
            (_, Some(uid)) => self.name_of(uid),
            (Constraint::Is(kind), None) => {
                let next = self.next();
                *self.types.entry(EntityType::clone(kind)).or_insert(next)
            }
            (_, None) => ANY,
        }
    }

    fn name_of(&mut self, uid: &EntityUID) -> Name {
        let next = self.next();
        *self.entities.entry(uid.clone()).or_insert(next)
    }

    /// Returns the first number that is not in use.
    fn next(&self) -> Name {
        Name::try_from(self.types.len() + self.entities.len() + 1).unwrap_or(Name::MAX)
    }

    /// Returns the positions of the policies whose scope can match entities with these names, each once, in
    /// rising order. Not all of them match: `is … in` and `==` are not checked fully.
    pub(super) fn candidates(&self, principals: &[Name], actions: &[Name], resources: &[Name]) -> Vec<Position> {
        let mut found = vec![];
        if actions.len() * principals.len() * resources.len() > self.buckets.len() {
            // If scopes name many groups on both sides, there are more combinations than buckets.
            let set = |names: &[Name]| names.iter().copied().collect::<FxHashSet<_>>();
            let (actions, principals, resources) = (set(actions), set(principals), set(resources));
            let buckets = self.buckets.iter().filter(|((action, principal, resource), _)| {
                actions.contains(action) && principals.contains(principal) && resources.contains(resource)
            });
            found.extend(buckets.flat_map(|(_, bucket)| bucket).copied());
        } else {
            for action in actions {
                for principal in principals {
                    for resource in resources {
                        found
                            .extend(self.buckets.get(&(*action, *principal, *resource)).into_iter().flatten().copied());
                    }
                }
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Returns the numbers of everything that a scope can name of an entity.
    pub(super) fn names(&self, Named { uid, entity }: Named<'_>) -> Vec<Name> {
        let mut names = vec![ANY];
        names.extend(self.types.get(uid.entity_type()));
        names.extend(self.entities.get(uid));
        let Some(entity) = entity else { return names };
        // An entity may have far more ancestors than scopes name entities.
        if entity.ancestors().nth(self.entities.len()).is_some() {
            names.extend(self.entities.iter().filter(|(uid, _)| entity.is_descendant_of(uid)).map(|(_, name)| *name));
        } else {
            names.extend(entity.ancestors().filter_map(|ancestor| self.entities.get(ancestor)));
        }
        names
    }
}
