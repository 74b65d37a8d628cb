//! Lint rules for the schema and the manifest: every gate must find what it needs.

use std::collections::{BTreeMap, HashSet};

use cedar_policy::EntityUid;
use cedar_policy_core::ast::{Effect, Var};

use super::{Bundle, content, derived, direct, obligations, paths, tenancy, types};
use crate::model::fault::Fault;
use crate::model::fault::code::Code;
use crate::model::text::known;
use crate::model::trusted_context::{CLAIMED, COMPUTED, DERIVED, REMEMBERED};
use crate::policy::ReadPolicy;
use crate::policy::lint::Lint;
use crate::policy::lint::direct::is_check;
use crate::policy::rule::Requirement;
use crate::policy::scope::{self, Constraint};
use crate::policy::shape::{Action, Member, Record, Shape, Shapes};

/// Returns all faults of the schema and the manifest.
pub(super) fn faults(bundle: &Bundle<'_>) -> Vec<Fault> {
    // What follows from one of these is no fault of its own.
    let first = [
        (Code::ManifestRoles, types::undeclared(bundle)),
        (Code::ManifestRights, direct::unlisted(bundle)),
        (Code::ManifestSteps, unknown_groups(bundle)),
    ];
    let first: Vec<Fault> = first
        .into_iter()
        .flat_map(|(code, found)| found.into_iter().map(move |found| found.fault(code, bundle.sources)))
        .collect();
    if !first.is_empty() {
        return first;
    }
    let found = [
        (Code::ManifestRoles, types::roles(bundle)),
        (Code::ManifestSuppliers, types::suppliers(bundle)),
        (Code::ManifestSuppliers, types::supplied(bundle)),
        (Code::ManifestOwners, types::owners(bundle)),
        (Code::SchemaContext, types::links(bundle)),
        (Code::SchemaContext, contexts(bundle)),
        (Code::ManifestSteps, steps(bundle)),
        (Code::ManifestArguments, derived::members(bundle)),
        (Code::ManifestArguments, derived::unused(bundle)),
        (Code::ManifestArguments, derived::names(bundle)),
        (Code::ManifestArguments, derived::recorded(bundle)),
        (Code::PolicyRequirement, templates(bundle)),
        (Code::ManifestRoles, case_read(bundle)),
        (Code::ManifestObligations, obligations::actions_are_classified(bundle)),
        (Code::SchemaTenancy, tenancy::faults(bundle)),
        (Code::ManifestContent, content::faults(bundle)),
        (Code::ManifestRights, direct::rights(bundle)),
        (Code::ManifestSuppliers, direct::types(bundle)),
        (Code::ManifestChecks, direct::checks(bundle)),
    ];
    let mut faults = types::entities(bundle);
    let found = found.into_iter().flat_map(|(code, found)| found.into_iter().map(move |found| (code, found)));
    faults.extend(found.map(|(code, found)| found.fault(code, bundle.sources)));
    let mut told = HashSet::new();
    faults.retain(|fault| told.insert(fault.line()));
    faults
}

/// Checks that each `context` member from the PDP has one type in all actions, and that `context` has no
/// members besides these, `args` and `facts`.
fn contexts(bundle: &Bundle<'_>) -> Vec<Lint> {
    let mut faults = undeclared_members(bundle);
    let mut first: BTreeMap<&str, (&str, &Member)> = BTreeMap::new();
    for (id, action) in bundle.case_actions() {
        for (name, member) in &action.context {
            if CLAIMED.contains(&name.as_str()) {
                if !matches!(member.shape, Shape::Record(_)) {
                    faults.push(Lint::new([&name, &id], format!("`{name}` of action `{id}` must be a record")));
                }
                continue;
            }
            if name == COMPUTED {
                continue;
            }
            if !DERIVED.contains(&name.as_str()) && !REMEMBERED.contains(&name.as_str()) {
                faults.push(Lint::new(
                    [&id, &name],
                    format!(
                        "the context of action `{id}` declares `{name}`, which neither the caller nor the PDP fills"
                    ),
                ));
                continue;
            }
            let (other, expected) = first.entry(name).or_insert((id, member));
            if *expected != member {
                faults.push(Lint::new(
                    [&name, &id, &other],
                    format!("`{name}` has one type in action `{id}` and another in `{other}`"),
                ));
            }
            // The same wrong type in all actions is one mistake.
            let is_first = *other == id;
            if let Some(problem) = shape_of(name, member, bundle).filter(|_| is_first || *expected != member) {
                faults.push(Lint::new(
                    [&name, &id],
                    format!("`{name}` in the context of action `{id}` must be {problem}"),
                ));
            }
        }
    }
    faults
}

/// Returns a fault for each member that every action needs and some lack. What several actions lack is one mistake.
fn undeclared_members(bundle: &Bundle<'_>) -> Vec<Lint> {
    let mut faults = vec![];
    for required in ["args"].into_iter().chain(DERIVED) {
        let declares = |action: &Action| action.context.get(required).is_some_and(|member| member.required);
        let lacking: Vec<&String> =
            bundle.case_actions().filter(|(_, action)| !declares(action)).map(|(id, _)| id).collect();
        let Some((first, rest)) = lacking.split_first() else { continue };
        let others = match rest.len() {
            0 => String::new(),
            more => format!(" and of {more} more"),
        };
        faults.push(Lint::new(
            [first, &required],
            format!("the context of action `{first}`{others} must declare `{required}`"),
        ));
    }
    faults
}

/// Returns the required form of a `context` member from the PDP, if its declared type does not fit.
fn shape_of(name: &str, member: &Member, bundle: &Bundle<'_>) -> Option<&'static str> {
    let is = |shape: &Shape, kind: &str| matches!(shape, Shape::Entity(entity) if entity.name.to_string() == kind);
    let roles = bundle.roles;
    let may_be_absent = ["approval", "consent", "release", "screening"].contains(&name);
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
            "consent" => matches!(&member.shape, Shape::Record(consent) if is_consent(consent, bundle)),
            "sums" => {
                matches!(&member.shape, Shape::Record(sums) if sums.values().all(|sum| !sum.required && sum.shape == Shape::Long))
            }
            "screening" => matches!(&member.shape, Shape::Record(screening) if is_screening(screening)),
            _ => matches!(member.shape, Shape::Record(_)),
        };
    let words = match name {
        "now" => "a required `datetime`",
        "case" => "the required case of the manifest's type",
        "step" => "the required step of the manifest's type",
        "chain" => {
            "the required record {agent, supervisor, tool_service, scopes: Set<enumerated>, asserted: Bool} of the manifest's types"
        }
        "risk" => {
            "the required record {tier: enumerated, lowest first; and optionally score: Long, signals: Set<enumerated>}"
        }
        "claims" | "draft" | "findings" | "rates" => "a required set of enumerated entities",
        "confidence" => "a required `Long`",
        "prepared" => "a required `Bool`",
        "grounding" => "the required record {sources: Long, ungrounded: Long}",
        "checks" => "the required record of optional members {expires: datetime}",
        "approval" => {
            "the optional record {template: enumerated, approvers: Long, expires: datetime, limits: record of optional members}"
        }
        "consent" => "the optional record {template: enumerated, expires: datetime}",
        "sums" => "the required record of optional `Long`s, one for each sum of rates.yaml that policies read",
        "screening" => "the optional record {tainted: Bool, unscreened: Bool}",
        _ => "an optional record",
    };
    (!fits).then_some(words)
}

fn is_chain(chain: &Record, bundle: &Bundle<'_>) -> bool {
    let is = |name: &str, kind: &str| matches!(chain.get(name), Some(Member { shape: Shape::Entity(entity), required: true }) if entity.name.to_string() == kind);
    let scopes = chain.get("scopes").is_some_and(types::is_scopes);
    let asserted = matches!(chain.get("asserted"), Some(Member { shape: Shape::Bool, required: true }));
    // An agent without scopes is a fault of its own.
    let of_agent = bundle.shapes.entities.get(&bundle.roles.agent).and_then(|agent| agent.attributes.get("scopes"));
    let are_of_agent = of_agent.is_none_or(|scopes| !types::is_scopes(scopes) || Some(scopes) == chain.get("scopes"));
    let roles = bundle.roles;
    chain.len() == 5
        && is("agent", &roles.agent)
        && is("supervisor", &roles.supervisor)
        && is("tool_service", &roles.tool_service)
        && scopes
        && asserted
        && are_of_agent
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

fn is_consent(consent: &Record, bundle: &Bundle<'_>) -> bool {
    consent.len() == 2
        && enumerated(consent.get("template"), bundle.shapes)
        && consent.get("expires") == Some(&Member { shape: Shape::Datetime, required: true })
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

fn is_group(bundle: &Bundle<'_>, name: &str) -> bool {
    bundle.shapes.actions.values().any(|action| action.groups.iter().any(|group| group == name))
}

/// Returns the names in the manifest's `writes` that are no groups of actions.
fn unknown_groups(bundle: &Bundle<'_>) -> Vec<Lint> {
    let groups = || bundle.shapes.actions.values().flat_map(|action| action.groups.iter().map(String::as_str));
    let unknown = bundle.roles.writes.keys().filter(|name| !is_group(bundle, name));
    let message =
        |name: &String| format!("`writes` names `{name}`, which is not a group of actions{}", known(name, groups()));
    unknown.map(|name| Lint::in_manifest([name], message(name))).collect()
}

/// Checks that every action on a case belongs to a step, and that the groups and steps in the manifest exist.
fn steps(bundle: &Bundle<'_>) -> Vec<Lint> {
    let groups: Vec<String> =
        bundle.shapes.choices(&bundle.roles.step).iter().map(|step| format!("in_{step}")).collect();
    let stepless =
        bundle.case_actions().filter(|(_, action)| !action.groups.iter().any(|group| groups.contains(group)));
    let mut faults: Vec<Lint> = stepless
        .map(|(id, _)| Lint::new([&id], format!("action `{id}` is in no group of {}", groups.join(", "))))
        .collect();
    faults.extend(groups.iter().filter(|group| !is_group(bundle, group)).map(|group| {
        let step = group.trim_start_matches("in_");
        Lint::new(
            [&step, &bundle.roles.step],
            format!("step `{step}` has no actions: no action is in the group `{group}`"),
        )
    }));
    faults.extend(unguarded(bundle));
    let steps = bundle.shapes.choices(&bundle.roles.step);
    let unknown = bundle.roles.case_bound_steps.iter().filter(|step| !steps.contains(step));
    faults.extend(unknown.map(|step| {
        Lint::in_manifest([&step], format!("`case_bound_steps` names `{step}`, which is not a workflow step"))
    }));
    faults
}

/// Returns a fault for each write and case attribute for which no `forbid` reads the attribute although the
/// manifest's `writes` requires one.
fn unguarded(bundle: &Bundle<'_>) -> Vec<Lint> {
    let mut faults = vec![];
    for (group, attributes) in &bundle.roles.writes {
        for attribute in attributes {
            let guards = bundle.read.policies.iter().map(|read| &read.policy).filter(|policy| {
                policy.effect() == Effect::Forbid
                    && matches!(scope::principal(policy), Constraint::Any)
                    && paths::looks_at(policy, Var::Context, &["case", attribute])
            });
            let guarded: HashSet<&EntityUid> =
                guards.flat_map(|policy| scope::covered(policy, bundle.shapes)).map(|action| &action.uid).collect();
            let guarded = |action: &Action| guarded.contains(&action.uid);
            for (id, _) in bundle.case_actions().filter(|(_, action)| action.groups.contains(group) && !guarded(action))
            {
                faults.push(Lint::new([&id, &group], format!(
                    "action `{id}` is in `{group}`, and no `forbid` for all principals reads `context.case.{attribute}` there: \
                     the manifest's `writes` requires one"
                )));
            }
        }
    }
    faults
}

/// Checks `case_read`, the action that allows a chain to update a case's stored history. Without such an
/// action nothing would be stored about cases, and no one would notice.
fn case_read(bundle: &Bundle<'_>) -> Vec<Lint> {
    let roles = bundle.roles;
    let remembers = |name: &str| bundle.case_actions().any(|(_, action)| action.context.contains_key(name));
    if roles.case_read.is_empty() {
        let needed = ["findings", "risk", "screening"].into_iter().find(|name| remembers(name));
        return needed
            .map(|name| Lint::in_manifest([&"roles"], format!("`case_read` is missing in the manifest: set it to the action that reads a case; otherwise no history of a case is stored and `{name}` stays empty")))
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
        false => vec![Lint::in_manifest(
            [&roles.case_read, &"case_read"],
            format!(
                "`case_read` names `{}`, which must be an action on `{}` without required arguments that writes nothing",
                roles.case_read, roles.case
            ),
        )],
    }
}

/// Rejects actions that need several approval templates, or several consent templates: a call brings only one of each.
fn templates(bundle: &Bundle<'_>) -> Vec<Lint> {
    let mut of: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for ReadPolicy { policy, rule, .. } in &bundle.read.policies {
        let Some(rule) = rule else { continue };
        let (kind, template) = match &rule.requires {
            Some(Requirement::Approval(template)) => ("approvals", template),
            Some(Requirement::Consent(template)) => ("consents", template),
            Some(Requirement::Check(_)) | None => continue,
        };
        for action in scope::covered(policy, bundle.shapes) {
            let named = of.entry((action.uid.id().unescaped(), kind)).or_default();
            if !named.contains(&template.as_str()) {
                named.push(template);
            }
        }
    }
    let several = of.into_iter().filter(|(_, templates)| templates.len() > 1);
    several
        .map(|((action, kind), templates)| {
            let message = format!("action `{action}` needs {kind} of several templates: {}", templates.join(", "));
            Lint::new([&action], message)
        })
        .collect()
}
