//! Completes the cases of a table: by the defaults of their file, by the case that they change a part of, and to one case
//! for each value of `each`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::json::{self, Object};
use crate::model::fault::Fault;
use crate::model::fault::code::Code;
use crate::model::source::Source;
use crate::workbench::tables::form::{Case, File};

/// Maximum number of cases that one case may become by `each`.
const EACH_MAX: usize = 1000;

/// Members that are merged with those of the defaults; the others replace them.
const MERGED: [&str; 3] = ["arguments", "attributes", "facts"];

/// Completes the cases of a file.
///
/// # Errors
/// A fault for each case that refers to no earlier one, or can't be completed.
pub(super) fn complete(source: &Source, file: File) -> Result<File, Vec<Fault>> {
    let is_complete = |case: &Case| case.same.is_none() && case.each.is_empty();
    if file.defaults.is_none() && file.cases.iter().all(is_complete) {
        return Ok(file);
    }
    // The typed form can't distinguish an absent member from an empty one, so the cases are read once more.
    let Ok(Raw { defaults, cases, .. }) = serde_saphyr::from_str::<Raw>(&source.text) else {
        return Err(vec![Fault::whole(Code::TestsInvalid, source, "the cases must be a list")]);
    };
    let mut known: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    let (mut completed, mut faults) = (vec![], vec![]);
    for (typed, raw) in file.cases.iter().zip(cases) {
        match one(&known, &defaults, typed, raw) {
            Ok((base, all)) => {
                known.insert(typed.name.clone(), base);
                completed.extend(all);
            }
            Err(problem) => {
                let at = source.find(&typed.name).unwrap_or((0, 0));
                faults.push(Fault::new(Code::TestsInvalid, source, at, format!("case \"{}\": {problem}", typed.name)));
            }
        }
    }
    if faults.is_empty() { Ok(File { cases: completed, ..file }) } else { Err(faults) }
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    defaults: Map<String, Value>,
    #[serde(default)]
    cases: Vec<Map<String, Value>>,
}

/// Completes one case. Returns it before `each`, for the cases that refer to it, and all that it becomes.
fn one(
    known: &BTreeMap<String, Map<String, Value>>,
    defaults: &Map<String, Value>,
    typed: &Case,
    raw: Map<String, Value>,
) -> Result<(Map<String, Value>, Vec<Case>), String> {
    let base = match &typed.same {
        Some(name) => known.get(name).ok_or_else(|| format!("`same` names \"{name}\", which is no earlier case"))?,
        None => defaults,
    };
    let mut complete = base.clone();
    // A case that changes a part of another one makes its own choice of values.
    complete.remove("each");
    complete.remove("same");
    for (name, value) in raw {
        match (complete.get_mut(&name), value) {
            (Some(Value::Object(members)), Value::Object(more)) if MERGED.contains(&name.as_str()) => {
                members.extend(more);
            }
            (_, value) => {
                complete.insert(name, value);
            }
        }
    }
    let mut all = vec![complete.clone()];
    for (path, values) in &typed.each {
        if all.len().saturating_mul(values.len()) > EACH_MAX {
            return Err(format!("`each` makes more than {EACH_MAX} cases"));
        }
        if values.is_empty() {
            return Err(format!("`each` lists no value of `{path}`: the case decides nothing"));
        }
        let values: Vec<Value> = values.iter().filter_map(|value| serde_json::to_value(value).ok()).collect();
        let with = |case: &Map<String, Value>, value: &Value| {
            let mut case = case.clone();
            set(&mut case, path, value.clone())?;
            let name = case.get("name").and_then(Value::as_str).unwrap_or("");
            let name = format!("{name} ({path}: {value})");
            case.insert("name".to_owned(), name.into());
            Some(case)
        };
        let made: Option<Vec<_>> =
            all.iter().flat_map(|case| values.iter().map(move |value| with(case, value))).collect();
        all = made.ok_or_else(|| format!("`each` names `{path}`, which is no member of an object"))?;
    }
    let read = |case| serde_json::from_value::<Case>(Value::Object(case)).map_err(|error| error.to_string());
    let all: Result<Vec<Case>, String> = all.into_iter().map(read).collect();
    Ok((complete, all?))
}

/// Merges a case's members into those that the calls of its action have by default. A `null` removes a member.
pub(super) fn merged(defaults: &Option<Object>, own: &Option<Object>) -> Option<Object> {
    let mut members = defaults.clone();
    if let Some(own) = own {
        let all = members.get_or_insert_default();
        for (name, value) in own {
            match value {
                json::Value::Null => all.remove(name),
                value => all.insert(name.clone(), value.clone()),
            };
        }
    }
    members
}

/// Sets the member at a path such as `arguments.amount_minor`. `None`: there is a value that is no object on the way.
fn set(object: &mut Map<String, Value>, path: &str, value: Value) -> Option<()> {
    match path.split_once('.') {
        None => {
            object.insert(path.to_owned(), value);
            Some(())
        }
        Some((first, rest)) => {
            let inner = object.entry(first.to_owned()).or_insert_with(|| Value::Object(Map::new()));
            set(inner.as_object_mut()?, rest, value)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(cases: &str) -> Result<Vec<Case>, String> {
        let text = format!("now: 2026-03-02T09:00:00Z\n{cases}");
        let file = serde_saphyr::from_str::<File>(&text).expect("well-formed");
        complete(&Source::new("tests/a.yaml", text), file)
            .map(|file| file.cases)
            .map_err(|faults| faults.iter().map(Fault::line).collect::<Vec<_>>().join("\n"))
    }

    #[test]
    fn arguments_facts_and_attributes_are_merged_with_the_defaults() {
        let cases = completed(
            "defaults: {step: action, arguments: {a: 1, b: 2}, facts: {x: 1}}\n\
             cases:\n\
             \x20 - {name: one, action: act, arguments: {b: 3}, expect: {decision: deny}}\n\
             \x20 - {name: two, action: act, step: intake, attributes: {y: 1}, expect: {decision: deny}}\n\
             \x20 - {name: three, same: one, arguments: {a: 4}, expect: {decision: allow}}\n",
        )
        .unwrap();
        let shown: Vec<String> = cases
            .iter()
            .map(|case| format!("{:?} {:?} {:?} {:?}", case.step, case.arguments, case.facts, case.attributes))
            .collect();
        insta::assert_snapshot!(shown.join("\n"));
    }

    #[test]
    fn each_value_makes_a_case() {
        let cases = completed(
            "cases:\n\
             \x20 - name: amounts\n\
             \x20   action: act\n\
             \x20   arguments: {currency: EUR}\n\
             \x20   each: {arguments.amount: [0, -1], step: [action, intake]}\n\
             \x20   expect: {decision: deny}\n",
        )
        .unwrap();
        let names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "amounts (arguments.amount: 0) (step: \"action\")",
                "amounts (arguments.amount: 0) (step: \"intake\")",
                "amounts (arguments.amount: -1) (step: \"action\")",
                "amounts (arguments.amount: -1) (step: \"intake\")",
            ]
        );
        assert!(cases.iter().all(|case| case.arguments.as_ref().is_some_and(|arguments| arguments.len() == 2)));
    }

    #[test]
    fn a_case_refers_only_to_earlier_ones_and_stays_small() {
        let later =
            "cases:\n  - {name: a, same: b, expect: {decision: deny}}\n  - {name: b, expect: {decision: deny}}\n";
        assert!(completed(later).unwrap_err().contains("no earlier case"));
        let ten = "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]";
        let many = format!(
            "cases:\n  - {{name: a, each: {{a.b: {ten}, a.c: {ten}, a.d: {ten}, a.e: {ten}}}, expect: {{decision: deny}}}}\n"
        );
        assert!(completed(&many).unwrap_err().contains("more than 1000 cases"));
        let none = "cases:\n  - {name: a, each: {step: []}, expect: {decision: deny}}\n";
        assert!(completed(none).unwrap_err().contains("decides nothing"));
        let no_object = "cases:\n  - {name: a, step: action, each: {step.b: [1]}, expect: {decision: deny}}\n";
        assert!(completed(no_object).unwrap_err().contains("no member of an object"));
    }
}
