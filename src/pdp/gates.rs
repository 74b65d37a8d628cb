//! The gates in code, before Cedar: they check that everything that a call names exists and belongs together.
//!
//! INVARIANT: the tenant comes from the chain's own entities, never from the request. Unknown entities and
//! those of another tenant get the same answer.

use cedar_policy::EntityUid;

use crate::entities::{Attributes, ResolvedCall, Stop};
use crate::json::{Object, Value};
use crate::model::answer::Gate;
use crate::model::call::Call;
use crate::model::chain::{Chain, Link};
use crate::model::refusal::Refusal;
use crate::model::roles::{Roles, Supplier};
use crate::policy::Policies;
use crate::policy::store::StoredEntity;

const NOTHING: &Object = &Object::new();

/// Resolves what the call names, and checks that it belongs together.
///
/// # Errors
/// The gate that denies the call, or the refusal of an invalid call.
pub(super) fn check<'a>(
    policies: &'a Policies,
    roles: &Roles,
    chain: &Chain,
    call: &'a Call,
) -> Result<ResolvedCall<'a>, Stop> {
    let resolved = resolve(policies, roles, chain, call)?;
    belong_together(policies, roles, chain, &resolved, call)?;
    Ok(resolved)
}

/// Checks that what a call names belongs together.
///
/// # Errors
/// The gate that denies the call.
pub(super) fn belong_together(
    policies: &Policies,
    roles: &Roles,
    chain: &Chain,
    resolved: &ResolvedCall<'_>,
    call: &Call,
) -> Result<(), Stop> {
    tenant_gate(policies, roles, chain, resolved, call)?;
    case_gate(roles, resolved, call)
}

/// Resolves what the call names, without checking that it belongs together.
///
/// # Errors
/// The gate that denies the call, for example because an entity does not exist, or the refusal of an invalid
/// call.
pub(super) fn resolve<'a>(
    policies: &'a Policies,
    roles: &Roles,
    chain: &Chain,
    call: &'a Call,
) -> Result<ResolvedCall<'a>, Stop> {
    let action = policies.shapes.actions.get(&call.action).filter(|_| !roles.is_direct(&call.action));
    let action = action.ok_or(Stop::Denied(Gate::Action))?;
    let kind = &call.resource.reference.kind;
    let taken = policies.shapes.entities.get(kind).map(|kind| &kind.shape.name);
    if !taken.is_some_and(|taken| action.resources.contains(taken)) {
        return Err(Stop::Denied(Gate::Action));
    }
    if call.model.is_none() && roles.is_write(&action.groups) {
        return Err(Refusal::invalid("model", "is required for this action").into());
    }
    if !policies.shapes.choices(&roles.step).contains(&chain.step) {
        let field = if chain.asserted { "delegation.asserted.step" } else { "delegation.token" };
        return Err(Refusal::invalid(field, "names a step that is not in the bundle").into());
    }
    token_gate(roles, chain, call)?;
    let principals = principals(policies, roles, chain)?;
    let case = policies.shapes.uid(&roles.case, &call.case.id).ok_or(Stop::Denied(Gate::Existence))?;
    let resource = policies.shapes.uid(kind, &call.resource.reference.id).ok_or(Stop::Denied(Gate::Existence))?;
    let attributes = attributes(policies, roles, call, &resource)?;
    Ok(ResolvedCall { action, principals, resource, attributes, case })
}

/// Checks that a delegation token that is bound to a case serves that case. Steps in `case_bound_steps`
/// require such a token.
fn token_gate(roles: &Roles, chain: &Chain, call: &Call) -> Result<(), Stop> {
    match &chain.token.case {
        Some(case) if *case == call.case.id => Ok(()),
        Some(_) => Err(Stop::Denied(Gate::Case)),
        None if chain.asserted || !roles.case_bound_steps.contains(&chain.step) => Ok(()),
        None => {
            Err(Refusal::Unauthenticated("the token must be bound to a case for this step: it has no `case`").into())
        }
    }
}

/// Returns the principals of the chain, each of which must be an entity of the bundle.
fn principals<'a>(policies: &'a Policies, roles: &Roles, chain: &Chain) -> Result<Vec<(Link, &'a StoredEntity)>, Stop> {
    Link::CHAIN
        .into_iter()
        .map(|link| {
            let uid = policies.shapes.uid(roles.of(link), chain.principal(link));
            let entity = uid.and_then(|uid| policies.store.get(&uid)).ok_or(Stop::Denied(Gate::Existence))?;
            Ok((link, entity))
        })
        .collect()
}

/// Checks that the case's tenant exists and is that of every principal and of the resource. A resource of a
/// shared type, or one that the bundle supplies without a tenant, may belong to any tenant.
fn tenant_gate(
    policies: &Policies,
    roles: &Roles,
    chain: &Chain,
    resolved: &ResolvedCall<'_>,
    call: &Call,
) -> Result<(), Stop> {
    let denied = Err(Stop::Denied(Gate::Tenant));
    let Some(tenant) =
        policies.shapes.uid(&roles.tenant, &call.case.tenant).filter(|tenant| policies.store.get(tenant).is_some())
    else {
        return denied;
    };
    let serves = |(link, entity): &(Link, &StoredEntity)| match link {
        Link::Agent | Link::Supervisor => is_tenant(entity, &tenant),
        Link::ToolService => has_tenant(entity, &tenant),
        Link::Plain => false,
    };
    let owned = match &resolved.attributes {
        Attributes::Bundle(entity) => !entity.has("tenant") || is_tenant(entity, &tenant),
        Attributes::Case => true,
        Attributes::Sent(sent) => {
            let own = sent.get("tenant").and_then(Value::as_str) == Some(call.case.tenant.as_str());
            own || roles.shared.contains(&call.resource.reference.kind)
        }
    };
    // The tenants that caller and token are proven for restrict those of the entities, and never extend them.
    let proven = chain.speaks_for(&call.case.tenant);
    if owned && proven && resolved.principals.iter().all(serves) { Ok(()) } else { denied }
}

/// Checks that a resource of the case's type is the call's case, and that a resource with an owner has that
/// of the case. The linter requires that every type which tool services supply has an owner, or is exempted by name.
fn case_gate(roles: &Roles, resolved: &ResolvedCall<'_>, call: &Call) -> Result<(), Stop> {
    let together = match &resolved.attributes {
        Attributes::Bundle(_) => true,
        Attributes::Case => resolved.resource == resolved.case,
        Attributes::Sent(sent) => {
            let kind = &call.resource.reference.kind;
            // An owner that is missing or no text does not fit the schema, and is refused for that.
            let owned = roles.owners.contains_key(kind) && roles.owners.contains_key(&roles.case);
            !owned || roles.owner(kind, sent) == roles.case_owner(&call.case)
        }
    };
    if together { Ok(()) } else { Err(Stop::Denied(Gate::Case)) }
}

fn is_tenant(entity: &StoredEntity, tenant: &EntityUid) -> bool {
    entity.reference("tenant").as_ref() == Some(tenant)
}

fn has_tenant(entity: &StoredEntity, tenant: &EntityUid) -> bool {
    entity.references("tenants").contains(tenant)
}

/// Returns the resource's attributes, from the source that the manifest names.
fn attributes<'a>(
    policies: &'a Policies,
    roles: &Roles,
    call: &'a Call,
    resource: &EntityUid,
) -> Result<Attributes<'a>, Stop> {
    let kind = &call.resource.reference.kind;
    let sent = call.resource.attributes.as_ref();
    let must_not_send = |problem| match sent {
        Some(_) => Err(Stop::from(Refusal::invalid("resource.attributes_json", problem))),
        None => Ok(()),
    };
    if *kind == roles.case {
        must_not_send("must be empty: send the case's attributes in `case.attributes_json`")?;
        return Ok(Attributes::Case);
    }
    match roles.supplier(kind) {
        Some(Supplier::Bundle) => {
            must_not_send("must be empty: entities of this type come from the bundle")?;
            policies.store.get(resource).map(Attributes::Bundle).ok_or(Stop::Denied(Gate::Existence))
        }
        Some(Supplier::ToolService) => Ok(Attributes::Sent(sent.unwrap_or(NOTHING))),
        Some(Supplier::Pdp) | None => Err(Stop::Denied(Gate::Existence)),
    }
}
