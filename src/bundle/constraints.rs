//! `constraints.yaml`: instructions for the model, selected by workflow step and case attributes. They come
//! first in every prepared context and are never truncated.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::json::{Object, Value};
use crate::model::fault::Fault;
use crate::model::fault::code::Code;
use crate::model::roles::Roles;
use crate::model::source::Source;
use crate::policy::Policies;

/// Maximum length of a constraint's text, in bytes.
const TEXT_MAX: usize = 2000;
/// Maximum number of constraints in a bundle.
const CONSTRAINTS_MAX: usize = 256;

/// An instruction for the model.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Constraint {
    /// Name, unique in the file.
    pub id: String,
    /// Steps in which the constraint applies; empty means all steps.
    #[serde(default)]
    steps: Vec<String>,
    /// Case attributes and the values that each may have for the constraint to apply.
    #[serde(default)]
    when: BTreeMap<String, Vec<String>>,
    pub text: String,
}

impl Constraint {
    /// Returns whether the constraint applies to a case with these attributes in this step.
    pub fn applies(&self, step: &str, case: &Object) -> bool {
        let has = |(attribute, values): (&String, &Vec<String>)| {
            case.get(attribute).and_then(Value::as_str).is_some_and(|value| values.iter().any(|listed| listed == value))
        };
        (self.steps.is_empty() || self.steps.iter().any(|listed| listed == step)) && self.when.iter().all(has)
    }
}

/// Checks the file against the schema.
///
/// # Errors
/// All faults found.
pub(super) fn check(
    policies: &Policies,
    roles: &Roles,
    read: Option<(Source, Vec<Constraint>)>,
) -> Result<Vec<Constraint>, Vec<Fault>> {
    let Some((source, read)) = read else { return Ok(vec![]) };
    let mut faults = vec![];
    let mut fault = |name: &str, problem: String| {
        faults.push(Fault::new(Code::ConstraintsInvalid, &source, source.find(name).unwrap_or((0, 0)), problem));
    };
    if read.len() > CONSTRAINTS_MAX {
        fault("", format!("has more than {CONSTRAINTS_MAX} constraints"));
    }
    let (steps, case) = (policies.shapes.choices(&roles.step), policies.shapes.entities.get(&roles.case));
    for (index, constraint) in read.iter().enumerate() {
        let id = constraint.id.as_str();
        if read.iter().take(index).any(|other| other.id == id) {
            fault(id, format!("constraint `{id}` is listed twice"));
        }
        if constraint.text.trim().is_empty() || constraint.text.len() > TEXT_MAX {
            fault(id, format!("constraint `{id}`: `text` must have 1 to {TEXT_MAX} bytes"));
        }
        for step in constraint.steps.iter().filter(|step| !steps.contains(step)) {
            fault(step, format!("constraint `{id}`: `{step}` is not a workflow step"));
        }
        for (attribute, values) in &constraint.when {
            let member = case.and_then(|case| case.attributes.get(attribute));
            let choices = member.map_or([].as_slice(), |member| member.shape.choices());
            if choices.is_empty() {
                fault(
                    attribute,
                    format!("constraint `{id}`: `{attribute}` is not an enumerated attribute of `{}`", roles.case),
                );
            }
            for value in values.iter().filter(|value| !choices.is_empty() && !choices.contains(value)) {
                fault(value, format!("constraint `{id}`: `{value}` is not a value of `{attribute}`"));
            }
        }
    }
    if faults.is_empty() { Ok(read) } else { Err(faults) }
}
