//! Lint rule for tenants: the policies keep them apart even without the gate in code.

use std::collections::HashSet;

use cedar_policy::EntityUid;
use cedar_policy_core::ast::{Effect, Policy, Var};

use super::{Bundle, paths};
use crate::model::chain::Link;
use crate::policy::lint::Lint;
use crate::policy::scope::{self, Constraint};
use crate::policy::shape::type_name;

/// Requires a `forbid` that reads the tenant of every resource that has one, and of every principal in a chain.
pub(super) fn faults(bundle: &Bundle<'_>) -> Vec<Lint> {
    let mut faults = vec![];
    let policies = bundle.read.policies.iter().map(|read| &read.policy);
    let compare = |policy: &&Policy| {
        policy.effect() == Effect::Forbid
            && matches!(scope::principal(policy), Constraint::Any)
            && paths::looks_at(policy, Var::Resource, &["tenant"])
    };
    let comparing: Vec<&Policy> = policies.filter(compare).collect();
    for (name, kind) in &bundle.shapes.entities {
        // The case's own tenant is that of the call.
        let owned = kind.attributes.contains_key("tenant") && *name != bundle.roles.case;
        let Some(resource) = type_name(name).filter(|_| owned) else { continue };
        // A `forbid` on some entities of the type does not keep the others apart.
        let of_type = comparing.iter().filter(|policy| match scope::resource(policy) {
            Constraint::Any => true,
            Constraint::Is(kind) => **kind == *resource.as_ref(),
            Constraint::Eq(_) | Constraint::In(_) | Constraint::IsIn(..) => false,
        });
        let guarded: HashSet<&EntityUid> =
            of_type.flat_map(|policy| scope::covered(policy, bundle.shapes)).map(|action| &action.uid).collect();
        let open = bundle
            .case_actions()
            .find(|(_, action)| action.resources.contains(&resource) && !guarded.contains(&action.uid));
        if let Some((id, _)) = open {
            faults.push(Lint::new(
                [name],
                format!(
                    "type `{name}` has a tenant, and no `forbid` for all principals reads `resource.tenant` in `{id}`: \
                     a policy must compare it with `context.case.tenant`"
                ),
            ));
        }
    }
    faults.extend(principals(bundle));
    faults.sort();
    faults
}

/// Requires a `forbid` that reads the tenants of each principal in a chain.
fn principals(bundle: &Bundle<'_>) -> Vec<Lint> {
    let mut faults = vec![];
    for link in Link::CHAIN {
        let name = bundle.roles.of(link);
        let Some(kind) = type_name(name) else { continue };
        let attribute = if link == Link::ToolService { "tenants" } else { "tenant" };
        let guards = bundle.read.policies.iter().map(|read| &read.policy).filter(|policy| {
            let of_all = match scope::principal(policy) {
                Constraint::Any => true,
                Constraint::Is(principal) => **principal == *kind.as_ref(),
                Constraint::Eq(_) | Constraint::In(_) | Constraint::IsIn(..) => false,
            };
            of_all && policy.effect() == Effect::Forbid && paths::looks_at(policy, Var::Principal, &[attribute])
        });
        let guarded: HashSet<&EntityUid> =
            guards.flat_map(|policy| scope::covered(policy, bundle.shapes)).map(|action| &action.uid).collect();
        if let Some((id, _)) = bundle.case_actions().find(|(_, action)| !guarded.contains(&action.uid)) {
            faults.push(Lint::new(
                [&name],
                format!(
                    "no `forbid` on all principals of type `{name}` reads `principal.{attribute}` in `{id}`: \
                     a policy must compare it with `context.case.tenant`"
                ),
            ));
        }
    }
    faults
}
