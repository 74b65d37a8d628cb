//! Lint rules for obligations: types and values that every tool service understands, and the fields that an
//! agent's reads return.

use cedar_policy_core::ast::Effect;

use super::{At, Bundle, PolicyLint, Subject};
use crate::model::text::known;
use crate::policy::lint::Lint;
use crate::policy::scope;
use crate::policy::shape::{Action, type_name};

/// The obligation that names the fields which may be returned to the agent.
const RETURN_ONLY: &str = "return_only";

/// Rejects obligations and advice that a tool service would not understand, and would therefore have to treat as
/// a denial.
pub(super) fn are_declared<'a>(subject: &Subject<'a>, bundle: &Bundle<'_>) -> Vec<PolicyLint<'a>> {
    let annotated = [("obligation", &subject.rule.obligations), ("advice", &subject.rule.advice)];
    let mut faults = vec![];
    let mut fault = |annotation, message| faults.push(PolicyLint { at: At::Annotation(annotation), message });
    for (annotation, obligation) in annotated.iter().flat_map(|(name, all)| all.iter().map(move |one| (*name, one))) {
        let kind = obligation.kind.as_str();
        match bundle.roles.obligation_types().find(|(known, _)| *known == kind) {
            None => fault(
                annotation,
                format!(
                    "`@{annotation}` names the type `{kind}`, which is neither built in nor declared in the manifest's `obligations`{}",
                    known(kind, bundle.roles.obligation_types().map(|(known, _)| known))
                ),
            ),
            Some((_, form)) if !form.fits(&obligation.value) => {
                fault(annotation, format!("`@{annotation}(\"{kind}:…\")` must have {}", form.words()));
            }
            Some(_) => {}
        }
    }
    faults
}

/// Requires `return_only` on permits of reads for agents, so that an agent gets named fields and never a whole
/// record.
pub(super) fn reads_return_only<'a>(subject: &Subject<'a>, bundle: &Bundle<'_>) -> Vec<PolicyLint<'a>> {
    let agent = type_name(&bundle.roles.agent);
    let for_agents = agent.is_some_and(|agent| scope::can_match(scope::principal(subject.policy), &agent));
    if subject.policy.effect() != Effect::Permit
        || !for_agents
        || subject.rule.obligations.iter().any(|obligation| obligation.kind == RETURN_ONLY)
    {
        return vec![];
    }
    // Actions with these names return data, so the manifest can't exempt them.
    let is_read = |action: &&Action| {
        let id = action.uid.id().unescaped();
        bundle.roles.is_read(id, &action.groups) || id.ends_with(".read") || id.starts_with("verification.")
    };
    let read = scope::covered(subject.policy, bundle.shapes).into_iter().find(is_read);
    read.map(|action| {
        PolicyLint::whole(format!(
            "a `permit` of `{}` for agents must have `@obligation(\"return_only:<fields>\")`",
            action.uid.id().unescaped()
        ))
    })
    .into_iter()
    .collect()
}

/// Requires that the manifest says of each action on a case whether it writes, returns data, or does neither.
pub(super) fn actions_are_classified(bundle: &Bundle<'_>) -> Vec<Lint> {
    let roles = bundle.roles;
    let mut faults = vec![];
    for (id, action) in bundle.case_actions() {
        let is_read = roles.is_read(id, &action.groups);
        let is_without_data = roles.is_without_data(id, &action.groups);
        if is_read && is_without_data {
            faults
                .push(Lint::in_manifest([&id], format!("action `{id}` is listed in `reads` and in `returns_nothing`")));
        } else if !is_read && !is_without_data && !roles.is_write(&action.groups) {
            faults.push(Lint::new([&id], format!(
                "action `{id}` is in no group of the manifest's `writes`: list it in `reads` if an agent gets data by it, otherwise in `returns_nothing`"
            )));
        }
    }
    let names = || bundle.shapes.actions.iter().flat_map(|(id, action)| std::iter::once(id).chain(&action.groups));
    for (list, listed) in [("reads", &roles.reads), ("returns_nothing", &roles.returns_nothing)] {
        for name in listed.iter().filter(|name| !names().any(|known| known == *name)) {
            faults.push(Lint::in_manifest(
                [name],
                format!(
                    "`{list}` names `{name}`, which is neither an action nor a group of actions{}",
                    known(name, names().map(String::as_str))
                ),
            ));
        }
    }
    faults
}
