//! Lint rules for the schema and the manifest: every gate must find what it needs.

use crate::policy::lint::direct::is_check;
use std::collections::BTreeMap;

use cedar_policy::{EntityUid, EvalResult};

use super::{Bundle, content, direct, paths};
use crate::model::chain::Link;
use crate::model::fault::Fault;
use crate::model::roles::Supplier;
use crate::model::trusted_context::{CLAIMED, DERIVED, REMEMBERED};
use crate::policy::engine::id_text;
use crate::policy::rule::Requirement;
use crate::policy::shape::{Action, Member, Record, Shape, Shapes};
use crate::policy::source::Source;

/// Returns all faults of the schema and the manifest.
pub(super) fn faults(bundle: &Bundle<'_>) -> Vec<Fault> {
    let mut messages = roles(bundle);
    messages.extend(suppliers(bundle));
    messages.extend(supplied(bundle));
    messages.extend(entities(bundle));
    messages.extend(links(bundle));
    messages.extend(contexts(bundle));
    messages.extend(steps(bundle));
    messages.extend(templates(bundle));
    messages.extend(case_read(bundle));
    messages.extend(content::faults(bundle));
    messages.extend(direct::faults(bundle));
    messages.into_iter().map(|message| place(bundle.schema, message)).collect()
}

/// Locates a fault at the first name from its message that occurs in the schema.
fn place(schema: &Source, message: String) -> Fault {
    let mut named = message.split('`').skip(1).step_by(2);
    let at = named.find_map(|name| schema.text.find(name).map(|at| (at, name.len()))).unwrap_or((0, 0));
    Fault::new(&schema.file, &schema.text, at, message)
}

/// Checks the types and attributes that gates in code read.
fn roles(bundle: &Bundle<'_>) -> Vec<String> {
    let roles = bundle.roles;
    let mut faults = vec![];
    let is_tenant = |shape: &Shape| matches!(shape, Shape::Entity(entity) if entity.name.to_string() == roles.tenant);
    let mut needs =
        vec![(roles.agent.as_str(), "tenant"), (&roles.supervisor, "tenant"), (&roles.case, "tenant"), (&roles.tool_service, "tenants")];
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
            faults.push(format!("type `{kind}` must have the required attribute `{attribute}` of type `{}`", roles.tenant));
        }
    }
    if !bundle.shapes.entities.contains_key(&roles.tenant) {
        faults.push(format!("the schema does not declare the tenant type `{}`", roles.tenant));
    }
    if bundle.shapes.choices(&roles.step).is_empty() {
        faults.push(format!("the step type `{}` must be an enumerated entity type", roles.step));
    }
    faults
}

/// Checks that every standard type has exactly one supplier, and that a resource type has a tenant or is
/// shared.
fn suppliers(bundle: &Bundle<'_>) -> Vec<String> {
    let mut faults = vec![];
    let listed: Vec<&String> = bundle.roles.supplied_by.values().flatten().collect();
    for (name, kind) in &bundle.shapes.entities {
        if kind.shape.choices.is_some() {
            continue;
        }
        let times = listed.iter().filter(|listed| **listed == name).count();
        if times != 1 {
            faults.push(format!("type `{name}` must be listed exactly once under `supplied_by`; found {times} entries"));
        }
        let owned = kind.attributes.contains_key("tenant");
        let shared = bundle.roles.shared.contains(name);
        let resource = bundle.case_actions().any(|(_, action)| action.resources.iter().any(|kind| kind.to_string() == *name));
        if resource && owned == shared {
            faults.push(format!("type `{name}` must either have the attribute `tenant` or be listed under `shared`, but not both"));
        }
    }
    for name in listed.into_iter().chain(&bundle.roles.shared) {
        if bundle.shapes.entities.get(name).is_none_or(|kind| kind.shape.choices.is_some()) {
            faults.push(format!("`{name}` is not a standard (not enumerated) entity type of the schema"));
        }
    }
    faults.sort();
    faults
}

/// Rejects entities whose parents or attributes refer to an entity that no file defines, such as a role
/// without holders or a tenant that does not exist.
fn entities(bundle: &Bundle<'_>) -> Vec<String> {
    let mut faults = vec![];
    for entity in bundle.store.entities() {
        let mut named: Vec<EntityUid> = entity.clone().into_inner().2.into_iter().collect();
        let attributes = bundle.shapes.entities.get(&entity.uid().type_name().to_string()).map(|kind| kind.attributes.keys());
        for value in attributes.into_iter().flatten().filter_map(|name| entity.attr(name)?.ok()) {
            collect(&value, &mut named);
        }
        let from_bundle = |uid: &EntityUid| bundle.roles.supplier(&uid.type_name().to_string()) == Some(Supplier::Bundle);
        for uid in named.iter().filter(|uid| from_bundle(uid) && bundle.store.get(uid).is_none()) {
            faults.push(format!("entity `{}` refers to `{uid}`, which no file of `entities/` defines", entity.uid()));
        }
    }
    faults.sort();
    faults
}

fn collect(value: &EvalResult, named: &mut Vec<EntityUid>) {
    match value {
        EvalResult::EntityUid(uid) => named.push(uid.clone()),
        EvalResult::Set(items) => items.iter().for_each(|item| collect(item, named)),
        EvalResult::Record(members) => members.iter().for_each(|(_, member)| collect(member, named)),
        EvalResult::Bool(_) | EvalResult::ExtensionValue(_) | EvalResult::Long(_) | EvalResult::String(_) => {}
    }
}

/// Rejects parents and tags on types that tool services supply, and references to such types in arguments and
/// facts. Tool services send only attributes, so a policy on parents or tags would never match and a
/// reference would lead nowhere. Also rejects writes to shared types, which are read-only.
fn supplied(bundle: &Bundle<'_>) -> Vec<String> {
    let mut faults = vec![];
    let sent = |name: &str| bundle.roles.supplier(name) == Some(Supplier::ToolService);
    for (name, kind) in bundle.shapes.entities.iter().filter(|(name, _)| sent(name)) {
        if kind.has_parents || kind.has_tags {
            faults.push(format!("type `{name}` is supplied by tool services, which send neither parents nor tags: use attributes instead"));
        }
    }
    for (id, action) in &bundle.shapes.actions {
        let claimed = action.context.iter().filter(|(name, _)| CLAIMED.contains(&name.as_str()));
        for (name, kind) in claimed.flat_map(|(name, member)| references(&member.shape).into_iter().map(move |kind| (name, kind))) {
            if sent(&kind) {
                faults.push(format!(
                    "`{name}` of action `{id}` refers to a `{kind}`, which the PDP can't resolve: declare its id as a `String`"
                ));
            }
        }
        let writes = bundle.roles.is_write(&action.groups);
        for kind in action.resources.iter().map(ToString::to_string).filter(|kind| writes && bundle.roles.shared.contains(kind)) {
            faults.push(format!("action `{id}` writes the shared type `{kind}`, which is read only"));
        }
    }
    faults.sort();
    faults
}

/// Returns the entity types that a shape refers to.
fn references(shape: &Shape) -> Vec<String> {
    match shape {
        Shape::Entity(entity) => vec![entity.name.to_string()],
        Shape::Set(element) => references(element),
        Shape::Record(record) => record.values().flat_map(|member| references(&member.shape)).collect(),
        Shape::Bool | Shape::Datetime | Shape::Decimal | Shape::Duration | Shape::Ip | Shape::Long | Shape::String => vec![],
    }
}

/// Checks that every link of the chain can be the principal of every action on a case.
fn links(bundle: &Bundle<'_>) -> Vec<String> {
    let mut faults = vec![];
    for (id, action) in bundle.case_actions() {
        for link in Link::CHAIN {
            let kind = bundle.roles.of(link);
            if !action.principals.iter().any(|principal| principal.to_string() == kind) {
                faults.push(format!("action `{id}` does not apply to principals of type `{kind}`"));
            }
        }
    }
    faults
}

/// Checks that each `context` member from the PDP has one type in all actions, and that `context` has no
/// members besides these, `args` and `facts`.
fn contexts(bundle: &Bundle<'_>) -> Vec<String> {
    let mut faults = vec![];
    let mut first: BTreeMap<&str, (&str, &Member)> = BTreeMap::new();
    for (id, action) in bundle.case_actions() {
        for required in ["args"].into_iter().chain(DERIVED) {
            if action.context.get(required).is_none_or(|member| !member.required) {
                faults.push(format!("the context of action `{id}` must declare `{required}`"));
            }
        }
        for (name, member) in &action.context {
            if CLAIMED.contains(&name.as_str()) {
                if !matches!(member.shape, Shape::Record(_)) {
                    faults.push(format!("`{name}` of action `{id}` must be a record"));
                }
                continue;
            }
            if !DERIVED.contains(&name.as_str()) && !REMEMBERED.contains(&name.as_str()) {
                faults.push(format!("the context of action `{id}` declares `{name}`, which neither the caller nor the PDP fills"));
                continue;
            }
            let (other, expected) = first.entry(name).or_insert((id, member));
            if *expected != member {
                faults.push(format!("`{name}` has one type in action `{id}` and another in `{other}`"));
            }
            if let Some(problem) = shape_of(name, member, bundle) {
                faults.push(format!("`{name}` in the context of action `{id}` must be {problem}"));
            }
        }
    }
    faults
}

/// Returns the required form of a `context` member from the PDP, if its declared type does not fit.
fn shape_of(name: &str, member: &Member, bundle: &Bundle<'_>) -> Option<&'static str> {
    let is = |shape: &Shape, kind: &str| matches!(shape, Shape::Entity(entity) if entity.name.to_string() == kind);
    let roles = bundle.roles;
    let may_be_absent = ["approval", "release", "screening"].contains(&name);
    let fits = member.required != may_be_absent
        && match name {
            "now" => member.shape == Shape::Datetime,
            "case" => is(&member.shape, &roles.case),
            "step" => is(&member.shape, &roles.step),
            "chain" => matches!(&member.shape, Shape::Record(chain) if is_chain(chain, bundle)),
            "risk" => matches!(&member.shape, Shape::Record(risk) if is_risk(risk, bundle)),
            "claims" | "draft" | "findings" | "rates" => {
                matches!(&member.shape, Shape::Set(element) if matches!(&**element, Shape::Entity(entity) if entity.choices.is_some()))
            }
            "confidence" => member.shape == Shape::Long,
            "prepared" => member.shape == Shape::Bool,
            "grounding" => matches!(&member.shape, Shape::Record(grounding) if is_grounding(grounding)),
            "checks" => matches!(&member.shape, Shape::Record(checks) if checks.values().all(is_check)),
            "approval" => matches!(&member.shape, Shape::Record(approval) if is_approval(approval, bundle)),
            "sums" => matches!(&member.shape, Shape::Record(sums) if sums.values().all(|sum| !sum.required && sum.shape == Shape::Long)),
            "screening" => matches!(&member.shape, Shape::Record(screening) if is_screening(screening)),
            _ => matches!(member.shape, Shape::Record(_)),
        };
    let words = match name {
        "now" => "a required `datetime`",
        "case" => "the required case of the manifest's type",
        "step" => "the required step of the manifest's type",
        "chain" => "the required record {agent, supervisor, tool_service, scopes: Set<enumerated>, asserted: Bool} of the manifest's types",
        "risk" => "the required record {tier: enumerated, lowest first; and optionally score: Long, signals: Set<enumerated>}",
        "claims" | "draft" | "findings" | "rates" => "a required set of enumerated entities",
        "confidence" => "a required `Long`",
        "prepared" => "a required `Bool`",
        "grounding" => "the required record {sources: Long, ungrounded: Long}",
        "checks" => "the required record of optional members {expires: datetime}",
        "approval" => "the optional record {template: enumerated, approvers: Long, expires: datetime, limits: record of optional members}",
        "sums" => "the required record of optional `Long`s, one for each sum of rates.yaml that policies read",
        "screening" => "the optional record {tainted: Bool, unscreened: Bool}",
        _ => "an optional record",
    };
    (!fits).then_some(words)
}

fn is_chain(chain: &Record, bundle: &Bundle<'_>) -> bool {
    let is = |name: &str, kind: &str| matches!(chain.get(name), Some(Member { shape: Shape::Entity(entity), required: true }) if entity.name.to_string() == kind);
    let scopes = matches!(chain.get("scopes"), Some(Member { shape: Shape::Set(element), required: true })
        if matches!(&**element, Shape::Entity(entity) if entity.choices.is_some()));
    let asserted = matches!(chain.get("asserted"), Some(Member { shape: Shape::Bool, required: true }));
    let agent_has_scopes =
        bundle.shapes.entities.get(&bundle.roles.agent).and_then(|agent| agent.attributes.get("scopes")) == chain.get("scopes");
    let roles = bundle.roles;
    chain.len() == 5
        && is("agent", &roles.agent)
        && is("supervisor", &roles.supervisor)
        && is("tool_service", &roles.tool_service)
        && scopes
        && asserted
        && agent_has_scopes
}

fn enumerated(member: Option<&Member>, shapes: &Shapes) -> bool {
    matches!(member, Some(Member { shape: Shape::Entity(entity), required: true }) if !shapes.choices(&entity.name.to_string()).is_empty())
}

fn is_approval(approval: &Record, bundle: &Bundle<'_>) -> bool {
    let optional = |limits: &Record| limits.values().all(|limit| !limit.required);
    approval.len() == 4
        && enumerated(approval.get("template"), bundle.shapes)
        && approval.get("approvers") == Some(&Member { shape: Shape::Long, required: true })
        && approval.get("expires") == Some(&Member { shape: Shape::Datetime, required: true })
        && matches!(approval.get("limits"), Some(Member { shape: Shape::Record(limits), required: true }) if optional(limits))
}

fn is_risk(risk: &Record, bundle: &Bundle<'_>) -> bool {
    let fits = |(name, member): (&String, &Member)| match name.as_str() {
        "score" => member.required && member.shape == Shape::Long,
        "signals" => member.required && matches!(&member.shape, Shape::Set(element) if !element.choices().is_empty()),
        "tier" => true,
        _ => false,
    };
    enumerated(risk.get("tier"), bundle.shapes) && risk.iter().all(fits)
}

fn is_grounding(grounding: &Record) -> bool {
    let required = Member { shape: Shape::Long, required: true };
    grounding.len() == 2 && ["sources", "ungrounded"].iter().all(|name| grounding.get(*name) == Some(&required))
}

fn is_screening(screening: &Record) -> bool {
    let required = Member { shape: Shape::Bool, required: true };
    screening.len() == 2 && ["tainted", "unscreened"].iter().all(|name| screening.get(*name) == Some(&required))
}

/// Checks that every action on a case belongs to a step, and that the groups and steps in the manifest exist.
fn steps(bundle: &Bundle<'_>) -> Vec<String> {
    let groups: Vec<String> = bundle.shapes.choices(&bundle.roles.step).iter().map(|step| format!("in_{step}")).collect();
    let stepless = bundle.case_actions().filter(|(_, action)| !action.groups.iter().any(|group| groups.contains(group)));
    let mut faults: Vec<String> = stepless.map(|(id, _)| format!("action `{id}` is in no group of {}", groups.join(", "))).collect();
    let known = |group: &String| bundle.shapes.actions.values().any(|action| action.groups.contains(group));
    let unknown = bundle.roles.writes.keys().filter(|group| !known(group));
    faults.extend(unknown.map(|group| format!("`writes` names `{group}`, which is not a group of actions")));
    faults.extend(unguarded(bundle));
    let steps = bundle.shapes.choices(&bundle.roles.step);
    let unknown = bundle.roles.case_bound_steps.iter().filter(|step| !steps.contains(step));
    faults.extend(unknown.map(|step| format!("`case_bound_steps` names `{step}`, which is not a workflow step")));
    faults
}

/// Returns a fault for each write and case attribute for which no `forbid` reads the attribute although the
/// manifest's `writes` requires one.
fn unguarded(bundle: &Bundle<'_>) -> Vec<String> {
    let mut faults = vec![];
    for (group, attributes) in &bundle.roles.writes {
        for attribute in attributes {
            let is_guard = |policy: &&cedar_policy::Policy| {
                let placed = bundle.read.placed.get(&id_text(policy.id())).map(|(_, placed)| placed);
                policy.effect() == cedar_policy::Effect::Forbid
                    && matches!(policy.principal_constraint(), cedar_policy::PrincipalConstraint::Any)
                    && placed.is_some_and(|placed| paths::looks_at(placed.policy.as_ref(), &["case", attribute]))
            };
            let guards: Vec<_> = bundle.read.set.policies().filter(is_guard).collect();
            let guarded = |action: &Action| {
                guards.iter().any(|policy| super::covered(policy, bundle.shapes).iter().any(|covered| covered.uid == action.uid))
            };
            for (id, _) in bundle.case_actions().filter(|(_, action)| action.groups.contains(group) && !guarded(action)) {
                faults.push(format!(
                    "action `{id}` is in `{group}`, and no `forbid` for all principals reads `context.case.{attribute}` there: \
                     the manifest's `writes` requires one"
                ));
            }
        }
    }
    faults
}

/// Checks `case_read`, the action that allows a chain to update a case's stored history. Without such an
/// action nothing would be stored about cases, and no one would notice.
fn case_read(bundle: &Bundle<'_>) -> Vec<String> {
    let roles = bundle.roles;
    let remembers = |name: &str| bundle.case_actions().any(|(_, action)| action.context.contains_key(name));
    if roles.case_read.is_empty() {
        let needed = ["findings", "risk", "screening"].into_iter().find(|name| remembers(name));
        return needed
            .map(|name| format!("`case_read` is missing in the manifest: set it to the action that reads a case; otherwise no history of a case is stored and `{name}` stays empty"))
            .into_iter()
            .collect();
    }
    let reads = bundle.case_actions().find(|(id, _)| **id == roles.case_read).map(|(_, action)| action);
    let fits = reads.is_some_and(|action| {
        let of_cases = action.resources.iter().any(|kind| kind.to_string() == roles.case);
        let asks_nothing = match action.context.get("args").map(|member| &member.shape) {
            Some(Shape::Record(arguments)) => arguments.values().all(|argument| !argument.required),
            Some(_) | None => true,
        };
        of_cases && asks_nothing && !roles.is_write(&action.groups)
    });
    match fits {
        true => vec![],
        false => vec![format!(
            "`case_read` names `{}`, which must be an action on `{}` without required arguments that writes nothing",
            roles.case_read, roles.case
        )],
    }
}

/// Rejects actions that need several approval templates: a what-if evaluation or a human grants only one.
fn templates(bundle: &Bundle<'_>) -> Vec<String> {
    let mut of: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for policy in bundle.read.set.policies() {
        let Some(rule) = bundle.read.rules.get(&id_text(policy.id())) else { continue };
        let Some(Requirement::Approval(template)) = &rule.requires else { continue };
        for action in super::covered(policy, bundle.shapes) {
            let named = of.entry(action.uid.id().unescaped()).or_default();
            if !named.contains(&template.as_str()) {
                named.push(template);
            }
        }
    }
    let several = of.into_iter().filter(|(_, templates)| templates.len() > 1);
    several.map(|(action, templates)| format!("action `{action}` needs approvals of several templates: {}", templates.join(", "))).collect()
}
