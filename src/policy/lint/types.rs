//! Lint rules for entity types: what gates read of them, who supplies them, and what their entities refer to.

use cedar_policy::EntityUid;

use crate::model::chain::Link;
use crate::model::fault::Fault;
use crate::model::fault::code::Code;
use crate::model::roles::{LEVEL_MAX, Supplier, TAGS};
use crate::model::text::known;
use crate::model::trusted_context::CLAIMED;
use crate::policy::lint::{Bundle, Lint};
use crate::policy::shape::{Member, Shape};
use crate::policy::store::Places;

/// Returns the types of roles that the schema does not declare.
pub(super) fn undeclared(bundle: &Bundle<'_>) -> Vec<Lint> {
    let roles = bundle.roles;
    let named = [
        ("agent", &roles.agent),
        ("supervisor", &roles.supervisor),
        ("tool_service", &roles.tool_service),
        ("tenant", &roles.tenant),
        ("case", &roles.case),
        ("step", &roles.step),
        ("approval_request", &roles.approval_request),
        ("server", &roles.server),
    ];
    let types = || bundle.shapes.entities.keys().map(String::as_str);
    let unknown = named.into_iter().filter(|(_, name)| !name.is_empty() && !bundle.shapes.entities.contains_key(*name));
    unknown
        .map(|(role, name)| {
            let message = format!("`{role}` names `{name}`, which the schema does not declare{}", known(name, types()));
            Lint::in_manifest([name, &role], message)
        })
        .collect()
}

/// Checks the types and attributes that gates in code read.
pub(super) fn roles(bundle: &Bundle<'_>) -> Vec<Lint> {
    let roles = bundle.roles;
    let mut faults = vec![];
    let is_tenant = |shape: &Shape| matches!(shape, Shape::Entity(entity) if entity.name.to_string() == roles.tenant);
    let mut needs = vec![
        (roles.agent.as_str(), "tenant"),
        (&roles.supervisor, "tenant"),
        (&roles.case, "tenant"),
        (&roles.tool_service, "tenants"),
    ];
    let standard = bundle.shapes.entities.iter().filter(|(_, kind)| kind.shape.choices.is_none());
    for (name, kind) in standard {
        if kind.attributes.contains_key("tenant") {
            needs.push((name, "tenant"));
        }
    }
    for (kind, attribute) in needs {
        let member = bundle.shapes.entities.get(kind).and_then(|kind| kind.attributes.get(attribute));
        let fits = match member.map(|member| &member.shape) {
            Some(Shape::Set(element)) => attribute == "tenants" && is_tenant(element),
            Some(shape) => attribute == "tenant" && is_tenant(shape),
            None => false,
        };
        if !fits || member.is_some_and(|member| !member.required) {
            faults.push(Lint::new(
                [&kind, &attribute, &roles.tenant],
                format!("type `{kind}` must have the required attribute `{attribute}` of type `{}`", roles.tenant),
            ));
        }
    }
    let agent = bundle.shapes.entities.get(&roles.agent);
    if agent.is_some_and(|agent| !agent.attributes.get("scopes").is_some_and(is_scopes)) {
        let agent = &roles.agent;
        faults.push(Lint::new(
            [agent, &"scopes"],
            format!("type `{agent}` must have the required attribute `scopes`, a set of an enumerated type: an agent uses the scopes that both its entity and its token name"),
        ));
    }
    if !(1..=LEVEL_MAX).contains(&roles.level) {
        faults.push(Lint::in_manifest([&"level"], format!("`level` must be 1 to {LEVEL_MAX}")));
    }
    if bundle.shapes.choices(&roles.step).is_empty() {
        faults.push(Lint::in_manifest(
            [&roles.step],
            format!("the step type `{}` must be an enumerated entity type", roles.step),
        ));
    }
    faults
}

/// Returns whether a member is a required set of an enumerated type, as the scopes of an agent are.
pub(super) fn is_scopes(member: &Member) -> bool {
    member.required
        && matches!(&member.shape, Shape::Set(element)
            if matches!(&**element, Shape::Entity(entity) if entity.choices.is_some()))
}

/// Checks that every standard type has exactly one supplier, and that a resource type has a tenant or is
/// shared.
pub(super) fn suppliers(bundle: &Bundle<'_>) -> Vec<Lint> {
    let mut faults = vec![];
    let listed: Vec<&String> = bundle.roles.supplied_by.values().flatten().collect();
    for (name, kind) in &bundle.shapes.entities {
        if kind.shape.choices.is_some() {
            continue;
        }
        let times = listed.iter().filter(|listed| **listed == name).count();
        if times != 1 {
            faults.push(Lint::in_manifest(
                [&"supplied_by"],
                format!("type `{name}` must be listed exactly once under `supplied_by`; found {times} entries"),
            ));
        }
        let owned = kind.attributes.contains_key("tenant");
        let shared = bundle.roles.shared.contains(name);
        let resource =
            bundle.case_actions().any(|(_, action)| action.resources.iter().any(|kind| kind.to_string() == *name));
        if resource && owned == shared {
            faults.push(Lint::new(
                [&name],
                format!(
                    "type `{name}` must either have the attribute `tenant` or be listed under `shared`, but not both"
                ),
            ));
        }
    }
    let roles = bundle.roles;
    for (role, name) in [
        ("agent", &roles.agent),
        ("supervisor", &roles.supervisor),
        ("tool_service", &roles.tool_service),
        ("tenant", &roles.tenant),
    ] {
        if matches!(roles.supplier(name), Some(Supplier::Pdp | Supplier::ToolService)) {
            faults.push(Lint::in_manifest(
                [name],
                format!("`{role}` is the type `{name}`, which the bundle must supply: principals and tenants are never sent with a call"),
            ));
        }
    }
    for name in listed.into_iter().chain(&bundle.roles.shared) {
        if bundle.shapes.entities.get(name).is_none_or(|kind| kind.shape.choices.is_some()) {
            faults.push(Lint::in_manifest(
                [&name],
                format!("`{name}` is not a standard (not enumerated) entity type of the schema"),
            ));
        }
    }
    faults.sort();
    faults
}

/// Maximum number of references to entities that don't exist which are reported.
const DANGLING_MAX: usize = 100;

/// Rejects entities whose parents or attributes refer to an entity that no file defines, such as a role
/// without holders or a tenant that does not exist.
pub(super) fn entities(bundle: &Bundle<'_>) -> Vec<Fault> {
    let mut dangling: Vec<(EntityUid, EntityUid)> = vec![];
    for entity in bundle.store.entities() {
        let mut named: Vec<EntityUid> = entity.parents().collect();
        let attributes =
            bundle.shapes.entities.get(&entity.uid().type_name().to_string()).map(|kind| kind.attributes.keys());
        named.extend(attributes.into_iter().flatten().flat_map(|name| entity.all_references(name)));
        let from_bundle =
            |uid: &EntityUid| bundle.roles.supplier(&uid.type_name().to_string()) == Some(Supplier::Bundle);
        named.retain(|uid| from_bundle(uid) && bundle.store.get(uid).is_none());
        dangling.extend(named.into_iter().map(|uid| (entity.uid(), uid)));
    }
    dangling.sort();
    let more = dangling.len().saturating_sub(DANGLING_MAX);
    dangling.truncate(DANGLING_MAX);
    let places = Places::of(&bundle.sources.entities, dangling.iter().map(|(entity, _)| entity));
    let fault = |(entity, uid): &(EntityUid, EntityUid)| {
        let message = format!("entity `{entity}` refers to `{uid}`, which no file of `entities/` defines");
        match places.reference(entity, uid) {
            Some((source, at)) => Fault::new(Code::EntityReference, source, at, message),
            None => Fault::missing(Code::EntityReference, "entities", message),
        }
    };
    let mut faults: Vec<Fault> = dangling.iter().map(fault).collect();
    if let (Some(last), 1..) = (faults.last_mut(), more) {
        last.message.push_str(&format!("; {more} more references lead nowhere"));
    }
    faults
}

/// Checks that the case, and each type that tool services supply for resources, names its owner or is exempted. Without
/// an owner, the case gate could not keep the resources of two persons apart.
pub(super) fn owners(bundle: &Bundle<'_>) -> Vec<Lint> {
    let roles = bundle.roles;
    let is_bound = |name: &String| {
        *name == roles.case || roles.supplier(name) == Some(Supplier::ToolService) && !roles.shared.contains(name)
    };
    let mut faults = vec![];
    for (name, kind) in bundle.shapes.entities.iter().filter(|(name, _)| is_bound(name)) {
        let owner = roles.owners.get(name);
        let is_text = |attribute: &String| {
            kind.attributes.get(attribute) == Some(&Member { shape: Shape::String, required: true })
        };
        let message = match (owner, roles.ownerless.contains(name)) {
            (Some(_), true) => format!("type `{name}` is listed in `owners` and in `ownerless`"),
            (None, false) => format!(
                "type `{name}` must name the attribute of its owner in `owners`, or be listed in `ownerless` if it belongs to nobody"
            ),
            (Some(attribute), false) if !is_text(attribute) => format!(
                "`owners`: type `{name}` must have the required attribute `{attribute}` of type String{}",
                known(attribute, kind.attributes.keys().map(String::as_str))
            ),
            (Some(_), false) if !roles.owners.contains_key(&roles.case) => {
                format!("`owners` names the owner of `{name}`, but the case has none to compare it with")
            }
            (Some(_), false) | (None, true) => continue,
        };
        faults.push(Lint::in_manifest([&"owners", &"roles"], message));
    }
    for name in roles.owners.keys().chain(&roles.ownerless).filter(|name| !is_bound(name)) {
        faults.push(Lint::in_manifest(
            [&name],
            format!("`{name}` has no owner: it is neither the case's type nor one that tool services supply and tenants don't share"),
        ));
    }
    faults.sort();
    faults
}

/// Rejects parents on types that tool services supply, and references to such types in arguments and facts. Tool
/// services send only attributes and tags, so a policy on parents would never match and a reference would lead nowhere. Also rejects writes to shared types, which are read-only.
pub(super) fn supplied(bundle: &Bundle<'_>) -> Vec<Lint> {
    let mut faults = vec![];
    let sent = |name: &str| bundle.roles.supplier(name) == Some(Supplier::ToolService);
    for (name, kind) in bundle.shapes.entities.iter().filter(|(name, _)| sent(name)) {
        if kind.tags.is_some() && kind.attributes.contains_key(TAGS) {
            let message = format!(
                "type `{name}` has tags, which tool services send as `{TAGS}`: give the attribute `{TAGS}` another name"
            );
            faults.push(Lint::new([&name], message));
        }
        if kind.has_parents {
            let message = format!(
                "type `{name}` is supplied by tool services, which send no parents: use attributes or tags instead"
            );
            faults.push(Lint::new([&name], message));
        }
    }
    for (id, action) in &bundle.shapes.actions {
        let claimed = action.context.iter().filter(|(name, _)| CLAIMED.contains(&name.as_str()));
        for (name, kind) in
            claimed.flat_map(|(name, member)| references(&member.shape).into_iter().map(move |kind| (name, kind)))
        {
            // An argument may refer to the resource or the case of its call.
            let is_of_call = *name == "args"
                && (kind == bundle.roles.case || action.resources.iter().any(|taken| taken.to_string() == kind));
            if sent(&kind) && !is_of_call {
                faults.push(Lint::new([&name, &id, &kind], format!(
                    "`{name}` of action `{id}` refers to a `{kind}`, which the PDP can't resolve: declare its id as a `String`"
                )));
            }
        }
        let writes = bundle.roles.is_write(&action.groups);
        for kind in
            action.resources.iter().map(ToString::to_string).filter(|kind| writes && bundle.roles.shared.contains(kind))
        {
            faults.push(Lint::new(
                [&id, &kind],
                format!("action `{id}` writes the shared type `{kind}`, which is read only"),
            ));
        }
    }
    faults.sort();
    faults
}

/// Checks that every link of the chain can be the principal of every action on a case.
pub(super) fn links(bundle: &Bundle<'_>) -> Vec<Lint> {
    let mut faults = vec![];
    for (id, action) in bundle.case_actions() {
        for link in Link::CHAIN {
            let kind = bundle.roles.of(link);
            if !action.principals.iter().any(|principal| principal.to_string() == kind) {
                faults.push(Lint::new(
                    [&id, &kind],
                    format!("action `{id}` does not apply to principals of type `{kind}`"),
                ));
            }
        }
    }
    faults
}

/// Returns the entity types that a shape refers to.
fn references(shape: &Shape) -> Vec<String> {
    match shape {
        Shape::Entity(entity) => vec![entity.name.to_string()],
        Shape::Set(element) => references(element),
        Shape::Record(record) => record.values().flat_map(|member| references(&member.shape)).collect(),
        Shape::Bool | Shape::Datetime | Shape::Decimal | Shape::Duration | Shape::Ip | Shape::Long | Shape::String => {
            vec![]
        }
    }
}
