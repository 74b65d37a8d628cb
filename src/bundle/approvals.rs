//! Checks `approvals.yaml` against the policies and the schema.

use crate::approvals::consent::{ConsentTemplate, Place, Usage};
use crate::approvals::template::Templates;
use crate::model::fault::Fault;
use crate::model::fault::code::Code;
use crate::model::roles::{Roles, Supplier};
use crate::model::source::Source;
use crate::policy::Policies;
use crate::policy::rule::Requirement;
use crate::policy::shape::{Action, Member, Shape};

/// Returns the templates of `approvals.yaml`. Every template that a policy requires must be defined, each `at_most`
/// argument must be an integer of `context.approval.limits` in some action, because otherwise no policy could enforce the
/// limit, and each text for a customer may name only values that every call has.
pub(super) fn templates(
    policies: &Policies,
    roles: Option<&Roles>,
    read: Option<(Source, Templates)>,
) -> Result<Templates, Vec<Fault>> {
    let mut faults = read.as_ref().map_or_else(Vec::new, |(_, read)| read.faults());
    let (source, read) = read.unwrap_or_else(|| (Source::new("approvals.yaml", ""), Templates::default()));
    if let Some(roles) = roles {
        faults.extend(undefined(policies, &read));
        faults.extend(unmeetable(policies, roles));
        faults.extend(read.consents.iter().flat_map(|(name, consent)| unshown(policies, roles, name, consent)));
    }
    for (name, template) in &read.templates {
        for argument in &template.at_most {
            let bounded = policies.shapes.actions.values().any(|action| {
                policies
                    .shapes
                    .follow(&action.context, &["approval", "limits", argument])
                    .is_some_and(|member| member.shape == Shape::Long)
            });
            if !bounded {
                let message = format!(
                    "`{argument}` is not an integer member of `context.approval.limits`, so no policy could enforce its limit"
                );
                faults.push((name.clone(), message));
            }
        }
    }
    let at = |name: &str| source.find(name).unwrap_or((0, 0));
    let fault = |(name, message): (String, String)| Fault::new(Code::ApprovalsInvalid, &source, at(&name), message);
    let faults: Vec<Fault> = faults.into_iter().map(fault).collect();
    if faults.is_empty() { Ok(read) } else { Err(faults) }
}

/// Returns the templates that policies require and `approvals.yaml` lacks: for each, its name and the message.
fn undefined(policies: &Policies, read: &Templates) -> Vec<(String, String)> {
    let mut faults = vec![];
    for (id, rule) in policies.rules() {
        let (what, template, is_defined) = match &rule.requires {
            Some(Requirement::Approval(template)) => ("an approval", template, read.templates.contains_key(template)),
            Some(Requirement::Consent(template)) => ("a consent", template, read.consents.contains_key(template)),
            Some(Requirement::Check(_)) | None => continue,
        };
        if !is_defined {
            let message = format!(
                "policy `{id}` requires {what} with template `{template}`, which `approvals.yaml` does not define"
            );
            faults.push((template.clone(), message));
        }
    }
    faults
}

/// Returns the consents that nobody could give: for actions on texts, which take no consent, or with a template that
/// requests for approval can't have.
fn unmeetable(policies: &Policies, roles: &Roles) -> Vec<(String, String)> {
    let mut faults = vec![];
    let declared = policies.shapes.entities.get(&roles.approval_request);
    let templates = declared.and_then(|kind| kind.attributes.get("template")).map(|member| member.shape.choices());
    for (template, actions) in &policies.consents {
        let of_texts = roles.content.iter().flat_map(|content| [&content.send, &content.release]);
        for action in of_texts.filter(|action| actions.contains(*action)) {
            let message = format!("the consent `{template}` is required for action `{action}`, which can't bring one");
            faults.push((template.clone(), message));
        }
        if templates.is_some_and(|choices| !choices.is_empty() && !choices.contains(template)) {
            let message = format!("`template` of type `{}` does not declare `{template}`", roles.approval_request);
            faults.push((template.clone(), message));
        }
    }
    faults
}

/// Returns the values that the texts of a consent name and that a call, for which a policy requires the consent, may lack
/// or that can't be shown.
fn unshown(policies: &Policies, roles: &Roles, name: &str, consent: &ConsentTemplate) -> Vec<(String, String)> {
    let mut faults = vec![];
    let actions = policies.consents.get(name).into_iter().flatten();
    for action in actions.filter_map(|id| policies.shapes.actions.get(id)) {
        for (place, usage) in consent.text.values().flat_map(|text| text.places()) {
            let problem = match of_call(policies, roles, action, place).as_slice() {
                [] => Some(
                    "which every call must have as an attribute or argument that the tool service sends".to_owned(),
                ),
                members => members.iter().find(|member| !fits(&member.shape, usage)).map(|_| {
                    match usage {
                        Usage::Amount => "which must be a `Long`: an amount in the minor unit of its currency",
                        Usage::Currency => "which must be a `String` or an enumerated type: a currency code",
                        Usage::Value => "which must be a text, a number, an enumerated type or a set of these",
                    }
                    .to_owned()
                }),
            };
            if let Some(problem) = problem {
                let id = action.uid.id().unescaped();
                let message = format!("the text of `{name}` for action `{id}` names `{}`, {problem}", place.path());
                if !faults.iter().any(|(_, told)| *told == message) {
                    faults.push((name.to_owned(), message));
                }
            }
        }
    }
    faults
}

/// Returns the members that a place names in the calls of an action, one for each type of resource; empty if a call may
/// lack it.
fn of_call(policies: &Policies, roles: &Roles, action: &Action, place: &Place) -> Vec<Member> {
    let shapes = &policies.shapes;
    let (root, names) = place.split();
    let text = || Member { shape: Shape::String, required: true };
    let required = |path: &[&str]| {
        let ends = (1..=path.len()).filter_map(|end| path.get(..end));
        let all: Option<Vec<&Member>> = ends.map(|path| shapes.follow(&action.context, path)).collect();
        all.filter(|all| all.iter().all(|member| member.required))
            .and_then(|all| all.last().map(|last| (*last).clone()))
    };
    let of_type = |kind: &str| {
        let attribute = names.first().filter(|name| names.len() == 1 && **name != "tenant")?;
        let is_sent = roles.supplier(kind) == Some(Supplier::ToolService);
        shapes.entities.get(kind)?.attributes.get(*attribute).filter(|member| is_sent && member.required).cloned()
    };
    match (root, names.as_slice()) {
        ("case" | "resource", ["id"]) => vec![text()],
        ("case", _) => of_type(&roles.case).into_iter().collect(),
        ("resource", _) => {
            let all: Option<Vec<Member>> = action.resources.iter().map(|kind| of_type(&kind.to_string())).collect();
            all.unwrap_or_default()
        }
        _ => {
            let path: Vec<&str> = std::iter::once(root).chain(names.iter().copied()).collect();
            required(&path).into_iter().collect()
        }
    }
}

fn fits(shape: &Shape, usage: Usage) -> bool {
    match (shape, usage) {
        (Shape::Long, Usage::Amount | Usage::Value) | (Shape::String | Shape::Entity(_), Usage::Currency) => true,
        (Shape::Datetime | Shape::Decimal | Shape::Entity(_) | Shape::String, Usage::Value) => true,
        (Shape::Set(element), Usage::Value) => !matches!(**element, Shape::Set(_)) && fits(element, usage),
        _ => false,
    }
}
