//! Lint rules for the roles that govern texts.

use super::{Bundle, paths};
use crate::model::answer::Reason;
use crate::model::roles::{ContentRoles, Reader, Supplier};
use crate::policy::ReadPolicy;
use crate::policy::lint::Lint;
use crate::policy::scope::{self, Constraint};
use crate::policy::shape::{Action, Member, Shape};
use crate::policy::store::{FREE_TEXT, is_free_text};

/// Requires that the manifest names the reader of every text that a write takes, and that a text for the
/// customer is blocked until it is released.
fn texts(bundle: &Bundle<'_>, content: &ContentRoles) -> Vec<Lint> {
    let mut faults = vec![];
    let arguments = |action: &Action| match action.context.get("args").map(|member| &member.shape) {
        Some(Shape::Record(arguments)) => arguments
            .iter()
            .filter(|(_, argument)| argument.shape == Shape::String)
            .map(|(name, _)| name.clone())
            .collect::<Vec<_>>(),
        Some(_) | None => vec![],
    };
    for (id, action) in
        bundle.case_actions().filter(|(id, action)| bundle.roles.is_write(&action.groups) && **id != content.send)
    {
        for name in arguments(action) {
            if !content.texts.get(id).is_some_and(|texts| texts.contains_key(&name)) {
                faults.push(Lint::new([&name, &id], format!(
                    "`{name}` of action `{id}` is text: set its reader in the manifest's `content.texts` to `customer` or `staff`"
                )));
            }
        }
    }
    for (id, texts) in &content.texts {
        let action = bundle.case_actions().find(|(known, _)| *known == id).map(|(_, action)| action);
        for (name, reader) in texts {
            if !action.is_some_and(|action| arguments(action).contains(name)) {
                faults.push(Lint::in_manifest(
                    [&name, &id],
                    format!("`content.texts` names `{name}` of `{id}`, which is not a text argument of an action"),
                ));
            } else if *reader == Reader::Customer && !waits(bundle, id, name) {
                faults.push(Lint::new([&name, &id], format!(
                    "the customer reads `{name}` of action `{id}`, but no `forbid` on the action with `@reason(\"draft_required\")` reads `context.args.{name}` and `context.release`"
                )));
            }
        }
        if texts.values().filter(|reader| **reader == Reader::Customer).count() > 1 {
            faults.push(Lint::in_manifest([&id], format!(
                "`content.texts`: action `{id}` has several texts for the customer, but a call can carry one release"
            )));
        }
    }
    faults
}

/// Returns whether a `forbid` for all principals blocks a text that was not released.
fn waits(bundle: &Bundle<'_>, id: &str, argument: &str) -> bool {
    bundle.read.policies.iter().any(|ReadPolicy { policy, rule, .. }| {
        rule.as_ref().is_some_and(|rule| rule.class == Reason::DraftRequired)
            && matches!(scope::principal(policy), Constraint::Any)
            && scope::covered(policy, bundle.shapes).iter().any(|action| action.uid.id().unescaped() == id)
            && paths::tests(policy, &["args", argument])
            && paths::tests(policy, &["release"])
    })
}

/// Checks the field type and the five actions that govern texts, with the `context` members that the
/// pipelines fill and read.
pub(super) fn faults(bundle: &Bundle<'_>) -> Vec<Lint> {
    let Some(content) = &bundle.roles.content else { return vec![] };
    let mut faults = vec![];
    let takes = |id: &str| bundle.case_actions().find(|(known, _)| *known == id).map(|(_, action)| action);
    let of = |action: &Action, kind: &str| action.resources.iter().any(|taken| taken.to_string() == kind);
    let arguments = |action: &Action| match action.context.get("args").map(|member| &member.shape) {
        Some(Shape::Record(arguments)) => arguments
            .iter()
            .map(|(name, argument)| if argument.required { name.clone() } else { format!("{name}?") })
            .collect::<Vec<_>>(),
        Some(_) | None => vec![],
    };
    let case = bundle.roles.case.as_str();
    for (part, id, kind, expected) in [
        ("field_read", &content.field_read, content.field.as_str(), vec![]),
        ("field_read_masked", &content.field_read_masked, content.field.as_str(), vec![]),
        ("article_read", &content.article_read, "", vec![]),
        ("release", &content.release, case, vec!["channel", "recipient"]),
        ("send", &content.send, case, vec!["channel", "draft_digest", "recipient"]),
    ] {
        // A release covers these arguments, so the action must not take any others.
        let fits = takes(id).is_some_and(|action| {
            (kind.is_empty() || of(action, kind))
                && arguments(action) == expected
                && !action.context.contains_key("facts")
        });
        if !fits {
            let resource = if kind.is_empty() { "shared articles" } else { kind };
            let list = if expected.is_empty() { "none".to_owned() } else { expected.join(", ") };
            faults.push(Lint::in_manifest([&id, &part], format!(
                "`content.{part}` names `{id}`, which must be an action on `{resource}` without `facts` and with exactly these arguments: {list}"
            )));
        }
    }
    if bundle.roles.supplier(&content.field) != Some(Supplier::Bundle) {
        faults.push(Lint::in_manifest([&content.field], format!(
            "`content.field` names `{}`, which the bundle must supply, because the supplier decides which fields may be seen",
            content.field
        )));
    }
    faults.extend(texts(bundle, content));
    let attribute = bundle.shapes.entities.get(&content.field).and_then(|field| field.attributes.get(FREE_TEXT));
    if attribute != Some(&Member { shape: Shape::Bool, required: true }) {
        faults.push(Lint::new([&content.field, &FREE_TEXT], format!(
            "type `{}` must have the required attribute `{FREE_TEXT}` of type Bool, because text written by a person must not count as a fact",
            content.field
        )));
    } else if !bundle
        .store
        .entities()
        .any(|field| field.uid().type_name().to_string() == content.field && is_free_text(field))
    {
        faults.push(Lint::new([&content.field], format!(
            "no `{}` of the bundle has `{FREE_TEXT}: true`; otherwise text written by a person would count as a fact",
            content.field
        )));
    }
    let reads = |name: &str| takes(&content.release).is_some_and(|action| action.context.contains_key(name));
    for name in ["claims", "confidence", "draft", "grounding", "prepared"].into_iter().filter(|name| !reads(name)) {
        faults.push(Lint::new(
            [&content.release, &name],
            format!(
                "the context of action `{}` must declare `{name}`, which the evaluation of drafts uses",
                content.release
            ),
        ));
    }
    faults
}
