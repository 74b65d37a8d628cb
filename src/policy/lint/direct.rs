//! Lint rules for the actions that principals perform on their own behalf, and for checks.

use super::Bundle;
use crate::model::right::{Right, RightOn};
use crate::model::roles::Supplier;
use crate::policy::lint::Lint;
use crate::policy::shape::{Member, Record, Shape};

/// Attributes of a request for approval that the PDP can fill.
const REQUEST_ATTRIBUTES: [&str; 8] =
    ["action", "agent", "approvers", "four_eyes", "limits", "supervisor", "template", "tenant"];

/// Returns faults for actions that have the name of a right and are not listed in `direct`, and for rights on requests for
/// approval without their type.
pub(super) fn unlisted(bundle: &Bundle<'_>) -> Vec<Lint> {
    let roles = bundle.roles;
    let ids = bundle.shapes.actions.keys().filter(|id| Right::from_name(id).is_some() && !roles.is_direct(id));
    let ids: Vec<String> = ids.map(|id| format!("`{id}`")).collect();
    let mut faults = vec![];
    // A misspelt name in `direct` is the cause, and a fault of its own.
    let are_rights =
        roles.direct.iter().all(|id| Right::from_name(id).is_some() && bundle.shapes.actions.contains_key(id));
    if are_rights && !ids.is_empty() {
        let problem = "are done on one's own behalf, without a case: list them in the manifest's `direct`";
        faults.push(Lint::in_manifest([&"direct", &"roles"], format!("{} {problem}", ids.join(", "))));
    }
    let on_requests = |name: &&String| Right::from_name(name).is_some_and(|right| right.on() == RightOn::Approval);
    if roles.approval_request.is_empty()
        && let Some(name) = roles.direct.iter().find(on_requests)
    {
        let message =
            format!("`direct` lists `{name}`, which needs the type of requests for approval: set `approval_request`");
        faults.push(Lint::in_manifest([name], message));
    }
    faults
}

/// Checks the rights that principals have on their own behalf.
pub(super) fn rights(bundle: &Bundle<'_>) -> Vec<Lint> {
    let mut faults = vec![];
    for name in &bundle.roles.direct {
        let (Some(right), Some(action)) = (Right::from_name(name), bundle.shapes.actions.get(name)) else {
            let known: Vec<&str> = Right::ALL.iter().map(|right| right.name()).collect();
            faults.push(Lint::in_manifest(
                [&name],
                format!(
                    "`direct` names `{name}`, which is not both an action of the schema and one of {}",
                    known.join(", ")
                ),
            ));
            continue;
        };
        let (principal, resource) = (bundle.roles.of(right.of()), bundle.roles.on(right.on()));
        let applies = action.principals.iter().any(|kind| kind.to_string() == principal)
            && action.resources.iter().map(ToString::to_string).eq([resource.to_owned()]);
        if !applies {
            faults
                .push(Lint::new([&name, &principal, &resource], format!("action `{name}` must apply to principals of type `{principal}` and only to the resource type `{resource}`")));
        }
        let own = right.on() == RightOn::Approval;
        let fits = |(member, declared): (&String, &Member)| match member.as_str() {
            "now" => declared.shape == Shape::Datetime,
            "own" => own && declared.shape == Shape::Bool,
            _ => false,
        };
        if !action.context.iter().all(fits) {
            let members = if own { "`now: datetime` and `own: Bool`" } else { "`now: datetime`" };
            faults.push(Lint::new([&name], format!("the context of action `{name}` may declare only {members}")));
        }
    }
    faults
}

/// Checks that the types that the PDP supplies have only attributes that it can fill.
pub(super) fn types(bundle: &Bundle<'_>) -> Vec<Lint> {
    let roles = bundle.roles;
    let mut faults = vec![];
    for (part, name) in [("approval_request", &roles.approval_request), ("server", &roles.server)] {
        if !name.is_empty() && roles.supplier(name) != Some(Supplier::Pdp) {
            faults.push(Lint::in_manifest(
                [&part, &name],
                format!("`{part}` is the type `{name}`, which must be listed under `pdp` in `supplied_by`"),
            ));
        }
    }
    for name in roles.supplied_by.get(&Supplier::Pdp).into_iter().flatten() {
        if *name != roles.approval_request && *name != roles.server {
            faults.push(Lint::in_manifest(
                [&name],
                format!("the PDP can't supply `{name}`; it supplies only requests for approval and the server"),
            ));
        }
    }
    if let Some(kind) = bundle.shapes.entities.get(&roles.approval_request) {
        for unknown in kind.attributes.keys().filter(|name| !REQUEST_ATTRIBUTES.contains(&name.as_str())) {
            faults.push(Lint::new(
                [&roles.approval_request, &unknown],
                format!(
                    "`{}` declares `{unknown}`; the PDP can fill only {}",
                    roles.approval_request,
                    REQUEST_ATTRIBUTES.join(", ")
                ),
            ));
        }
    }
    if bundle.shapes.entities.get(&roles.server).is_some_and(|kind| !kind.attributes.is_empty()) {
        faults.push(Lint::new(
            [&roles.server],
            format!("the server's type `{}` must not have attributes, because the PDP fills none", roles.server),
        ));
    }
    faults
}

/// Checks that an action makes each declared check, and that each check that the manifest lists is declared.
pub(super) fn checks(bundle: &Bundle<'_>) -> Vec<Lint> {
    let mut faults = vec![];
    let contexts =
        || bundle.case_actions().filter_map(|(_, action)| bundle.shapes.follow(&action.context, &["checks"]));
    for (name, made) in &bundle.roles.checks {
        if !bundle.case_actions().any(|(id, _)| id == name) {
            faults
                .push(Lint::in_manifest([&name], format!("`checks` names `{name}`, which is not an action on a case")));
        }
        for makes in made.makes() {
            let declared = contexts().any(
                |checks| matches!(&checks.shape, Shape::Record(checks) if checks.get(makes).is_some_and(is_check)),
            );
            if !declared {
                faults.push(Lint::in_manifest(
                    [&name, &makes],
                    format!("`checks` says that `{name}` makes `{makes}`, but `context.checks` does not declare it"),
                ));
            }
        }
        if !(1..=1440).contains(&made.minutes) {
            faults.push(Lint::in_manifest(
                [&made.makes],
                format!("`minutes` of the check `{}` must be 1 to 1440", made.makes),
            ));
        }
        if let Some(stronger) = &made.stronger {
            let argument = bundle
                .shapes
                .actions
                .get(name)
                .and_then(|action| bundle.shapes.follow(&action.context, &["args", &stronger.by]));
            if !argument.is_some_and(|argument| argument.required) {
                faults.push(Lint::in_manifest(
                    [&name, &stronger.by],
                    format!(
                        "`stronger.by` of `{name}` names `{}`, which is not a required argument of the action",
                        stronger.by
                    ),
                ));
            }
            let choices = argument.map_or([].as_slice(), |argument| argument.shape.choices());
            for unknown in stronger.values.iter().filter(|value| !choices.contains(value)) {
                faults.push(Lint::in_manifest(
                    [&name, &unknown, &stronger.by],
                    format!(
                        "`stronger.values` of `{name}` contains `{unknown}`, which is not a value of `{}`",
                        stronger.by
                    ),
                ));
            }
        }
    }
    let declared = contexts().filter_map(|checks| match &checks.shape {
        Shape::Record(checks) => Some(checks.keys()),
        _ => None,
    });
    let mut unmade: Vec<&String> = declared
        .flatten()
        .filter(|name| !bundle.roles.checks.values().any(|made| made.makes().any(|makes| makes == *name)))
        .collect();
    unmade.sort();
    unmade.dedup();
    faults.extend(unmade.into_iter().map(|name| {
        Lint::new([&name], format!("no action in the manifest's `checks` makes the declared check `{name}`"))
    }));
    faults
}

pub(super) fn is_check(check: &Member) -> bool {
    let expires = |record: &Record| {
        record.len() == 1 && record.get("expires") == Some(&Member { shape: Shape::Datetime, required: true })
    };
    !check.required && matches!(&check.shape, Shape::Record(record) if expires(record))
}
