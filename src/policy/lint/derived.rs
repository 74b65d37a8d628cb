//! Lint rules for what the manifest says of arguments: values that the PDP computes from them, and those that name an
//! entity of the call.

use super::{Bundle, Lint};
use crate::model::derivation::{Derivation, Function};
use crate::model::text::known;
use crate::model::trusted_context::COMPUTED;
use crate::policy::shape::{Action, Member, Record, Shape};

/// Maximum number of arguments of an action that a line has in plain text.
const RECORDED_MAX: usize = 16;

/// Checks `context.derived` of each action.
pub(super) fn members(bundle: &Bundle<'_>) -> Vec<Lint> {
    let declared = bundle.case_actions().filter_map(|(id, action)| Some((id, action.context.get(COMPUTED)?)));
    declared.flat_map(|(id, derived)| faults(bundle, id, derived)).collect()
}

/// Checks `context.derived` of an action: the manifest computes each member, from arguments that the action has.
fn faults(bundle: &Bundle<'_>, id: &str, derived: &Member) -> Vec<Lint> {
    let Shape::Record(record) = &derived.shape else {
        return vec![Lint::new([&COMPUTED, &id], format!("`{COMPUTED}` of action `{id}` must be a record"))];
    };
    let mut faults = vec![];
    if !derived.required {
        faults.push(Lint::new([&COMPUTED, &id], format!("`{COMPUTED}` of action `{id}` must be required")));
    }
    let action = bundle.shapes.actions.get(id);
    for (name, member) in record {
        let Some(derivation) = bundle.roles.derive.get(name) else {
            let names = known(name, bundle.roles.derive.keys().map(String::as_str));
            faults.push(Lint::new(
                [name, &id],
                format!("`{COMPUTED}` of action `{id}` declares `{name}`, which the manifest's `derive` does not compute{names}"),
            ));
            continue;
        };
        if let Some(problem) = action.and_then(|action| misfit(action, derivation, member)) {
            faults.push(Lint::in_manifest([name, &id], format!("`{COMPUTED}.{name}` of action `{id}` {problem}")));
        }
    }
    faults
}

/// Returns why a computed value does not fit its declaration.
fn misfit(action: &Action, derivation: &Derivation, member: &Member) -> Option<String> {
    let path = derivation.path.join(".");
    let Some(found) = arguments(action).and_then(|arguments| follow(arguments, &derivation.path)) else {
        return Some(format!("is computed from `{path}`, which is no argument of the action"));
    };
    // The smallest and the largest of no values don't exist.
    let may_lack = matches!(derivation.function, Function::Max | Function::Min);
    let (fits, expected) = match derivation.function {
        Function::Count | Function::CountDistinct => (member.shape == Shape::Long, "Long"),
        Function::Distinct => (member.shape == Shape::Set(Box::new(found.clone())), "a set of what the argument has"),
        Function::Max | Function::Min | Function::Sum => {
            if *found != Shape::Long {
                return Some(format!("is computed from `{path}`, which is not of type Long"));
            }
            (member.shape == Shape::Long, "Long")
        }
    };
    match fits && member.required != may_lack {
        true => None,
        false if may_lack => Some(format!("must be optional and of type {expected}")),
        false => Some(format!("must be required and of type {expected}")),
    }
}

/// Returns the shape of the values at a path. Each set on the way stands for its elements.
fn follow<'a>(record: &'a Record, path: &[String]) -> Option<&'a Shape> {
    let (first, rest) = path.split_first()?;
    let shape = match &record.get(first)?.shape {
        Shape::Set(element) => &**element,
        shape => shape,
    };
    match (shape, rest) {
        (shape, []) => Some(shape),
        (Shape::Record(record), rest) => follow(record, rest),
        (_, _) => None,
    }
}

fn arguments(action: &Action) -> Option<&Record> {
    match action.context.get("args").map(|member| &member.shape) {
        Some(Shape::Record(arguments)) => Some(arguments),
        Some(_) | None => None,
    }
}

/// Rejects computed values that no action declares.
pub(super) fn unused(bundle: &Bundle<'_>) -> Vec<Lint> {
    let declares = |name: &String| {
        bundle.case_actions().any(|(_, action)| match action.context.get(COMPUTED).map(|member| &member.shape) {
            Some(Shape::Record(record)) => record.contains_key(name),
            Some(_) | None => false,
        })
    };
    let unused = bundle.roles.derive.keys().filter(|name| !declares(name));
    unused
        .map(|name| {
            Lint::in_manifest(
                [name],
                format!("`derive` computes `{name}`, which no action declares in `context.{COMPUTED}`"),
            )
        })
        .collect()
}

/// Checks that arguments which the audit log has as plain text exist, and can't contain a text.
pub(super) fn recorded(bundle: &Bundle<'_>) -> Vec<Lint> {
    let mut faults = vec![];
    for (id, recorded) in &bundle.roles.recorded {
        if recorded.len() > RECORDED_MAX || recorded.iter().any(|argument| argument == "mac") {
            faults.push(Lint::in_manifest(
                [id],
                format!("`recorded` of `{id}` may list {RECORDED_MAX} arguments at most, and none called `mac`, which is a member of each line"),
            ));
        }
        let action = bundle.case_actions().find(|(known, _)| *known == id).map(|(_, action)| action);
        for argument in recorded {
            let member = action.and_then(arguments).and_then(|arguments| arguments.get(argument));
            if !member.is_some_and(|member| member.shape.has_no_text()) {
                faults.push(Lint::in_manifest(
                    [argument, id],
                    format!("`recorded` lists `{argument}` of `{id}`, which must be an argument of an action on a case, of type Bool, Long or an enumerated type"),
                ));
            }
        }
    }
    faults
}

/// Checks that arguments which name an entity of the call exist, and are text.
pub(super) fn names(bundle: &Bundle<'_>) -> Vec<Lint> {
    let mut faults = vec![];
    for (id, names) in &bundle.roles.names {
        let action = bundle.case_actions().find(|(known, _)| *known == id).map(|(_, action)| action);
        for argument in names.keys() {
            let is_text = action
                .and_then(arguments)
                .and_then(|arguments| arguments.get(argument))
                .is_some_and(|member| matches!(member.shape, Shape::String | Shape::Entity(_)));
            if !is_text {
                faults.push(Lint::in_manifest(
                    [argument, id],
                    format!(
                        "`names` lists `{argument}` of `{id}`, which is not a text argument of an action on a case"
                    ),
                ));
            }
        }
    }
    faults
}
