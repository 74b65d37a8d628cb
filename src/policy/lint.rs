//! Lint rules that keep a bundle readable and provable and that Cedar's validator does not check, one
//! function for each rule.

mod content;
mod derived;
mod direct;
mod obligations;
mod paths;
mod tenancy;
mod types;
mod wiring;

use std::collections::{BTreeMap, HashSet};
use std::fmt::Display;

use cedar_policy_core::ast::{self, Effect};

use crate::model::fault::Fault;
use crate::model::fault::code::Code;
use crate::model::roles::{Roles, Supplier};
use crate::model::text::known;
use crate::policy::rule::{AnnotationFault, Requirement};
use crate::policy::scope::{self, Constraint};
use crate::policy::shape::{Action, Shape, Shapes};
use crate::policy::store::Store;
use crate::policy::{ReadPolicies, ReadPolicy, Rule, Sources, parse};

/// Inputs that the rules read.
struct Bundle<'a> {
    read: &'a ReadPolicies,
    sources: &'a Sources,
    shapes: &'a Shapes,
    store: &'a Store,
    roles: &'a Roles,
}

impl<'a> Bundle<'a> {
    /// Returns the actions on behalf of a case: all except direct ones.
    fn case_actions(&self) -> impl Iterator<Item = (&'a String, &'a Action)> {
        self.shapes.actions.iter().filter(|(id, _)| !self.roles.is_direct(id))
    }
}

/// A policy that rules are applied to.
struct Subject<'a> {
    policy: &'a ast::Policy,
    rule: &'a Rule,
    /// All expressions of the policy's conditions.
    expressions: Vec<&'a ast::Expr>,
}

/// Applies every rule to the schema, the manifest and the policies.
pub(super) fn lint(
    read: &ReadPolicies,
    sources: &Sources,
    shapes: &Shapes,
    store: &Store,
    roles: &Roles,
) -> Vec<Fault> {
    let bundle = Bundle { read, sources, shapes, store, roles };
    let mut faults: Vec<Fault> = wiring::faults(&bundle);
    for read in &read.policies {
        let Some(rule) = &read.rule else { continue };
        let subject = Subject { policy: &read.policy, rule, expressions: conditions(&read.policy) };
        let found = [
            (Code::PolicyPermitContext, permits_read_no_context(&subject)),
            (Code::PolicyPrincipal, principals_are_typed(&subject)),
            (Code::PolicyEntity, entities_exist(&subject, &bundle)),
            (Code::PolicyRequirement, requirements_exist(&subject, &bundle)),
            (Code::PolicyObligation, obligations::are_declared(&subject, &bundle)),
            (Code::PolicyReturnOnly, obligations::reads_return_only(&subject, &bundle)),
            (Code::PolicyAttribute, paths::members_are_declared(&subject, &bundle)),
            (Code::PolicyContext, paths::vouched_members_are_used_as_paths(&subject)),
        ];
        let found = found.into_iter().flat_map(|(code, found)| found.into_iter().map(move |found| (code, found)));
        faults.extend(found.map(|(code, found)| found.fault(code, read)));
    }
    faults.sort_by_key(Fault::line);
    faults
}

/// Returns for each of these members of `context` the actions whose policies read it, or use `context` as a
/// whole.
pub(super) fn readers<const N: usize>(
    read: &ReadPolicies,
    shapes: &Shapes,
    members: [&'static str; N],
) -> BTreeMap<&'static str, HashSet<String>> {
    let mut readers: BTreeMap<_, HashSet<String>> =
        members.into_iter().map(|member| (member, HashSet::new())).collect();
    for ReadPolicy { policy, .. } in &read.policies {
        let expressions = conditions(policy);
        let mut actions = None;
        for (member, readers) in &mut readers {
            if expressions.iter().any(|expression| paths::reads(expression, member)) {
                let actions = actions.get_or_insert_with(|| scope::covered(policy, shapes));
                let new = actions.iter().map(|action| action.uid.id().unescaped()).filter(|id| !readers.contains(*id));
                let new: Vec<String> = new.map(str::to_owned).collect();
                readers.extend(new);
            }
        }
    }
    readers
}

/// Returns the expressions of a policy's conditions; empty for a policy without conditions.
fn conditions(policy: &ast::Policy) -> Vec<&ast::Expr> {
    policy.non_scope_constraints().map_or_else(Vec::new, flatten)
}

fn flatten(root: &ast::Expr) -> Vec<&ast::Expr> {
    let mut all = vec![];
    let mut open = vec![root];
    while let Some(expression) = open.pop() {
        all.push(expression);
        open.extend(parse::children(expression));
    }
    all
}

fn is_variable(expression: &ast::Expr, variable: ast::Var) -> bool {
    matches!(expression.expr_kind(), ast::ExprKind::Var(found) if *found == variable)
}

/// Rejects a `permit` that reads `context`. A default denial names no policy, so a condition that a
/// circumstance can lift must be in a `forbid`, whose denial can report what is missing.
fn permits_read_no_context<'a>(subject: &Subject<'a>) -> Vec<PolicyLint<'a>> {
    let read = subject.expressions.iter().find(|expression| is_variable(expression, ast::Var::Context));
    let read = read.filter(|_| subject.policy.effect() == Effect::Permit);
    let message = "a `permit` must not read `context`: write the condition as a `forbid … unless`";
    read.map(|read| PolicyLint::at(read, message)).into_iter().collect()
}

/// Requires a principal type in scopes that name a group or whose conditions depend on the principal:
/// `principal in Role::"x"` also matches other types that hold the role, and attributes differ between types.
fn principals_are_typed<'a>(subject: &Subject<'a>) -> Vec<PolicyLint<'a>> {
    let constraint = scope::principal(subject.policy);
    let typed = matches!(constraint, Constraint::Is(_) | Constraint::IsIn(..) | Constraint::Eq(_));
    let reads_attributes = subject.expressions.iter().any(|expression| match expression.expr_kind() {
        ast::ExprKind::GetAttr { expr, .. }
        | ast::ExprKind::HasAttr { expr, .. }
        | ast::ExprKind::ExtHasAttr { expr, .. } => is_variable(expr, ast::Var::Principal),
        ast::ExprKind::BinaryApp { op: ast::BinaryOp::In, arg1, .. } => is_variable(arg1, ast::Var::Principal),
        _ => false,
    });
    if !typed && (matches!(constraint, Constraint::In(_)) || reads_attributes) {
        let message = "the scope must contain `principal is <type>`, because the policy uses groups or attributes of the principal";
        return vec![PolicyLint::whole(message)];
    }
    vec![]
}

/// Rejects references to bundle entities that no file defines: an undefined role matches no principal, so a
/// `forbid` on it fails open.
fn entities_exist<'a>(subject: &Subject<'a>, bundle: &Bundle<'_>) -> Vec<PolicyLint<'a>> {
    let in_conditions = subject.expressions.iter().filter_map(|expression| match expression.expr_kind() {
        ast::ExprKind::Lit(ast::Literal::EntityUID(uid)) => Some((At::Expression(expression), uid)),
        _ => None,
    });
    let scoped = [scope::principal(subject.policy), scope::resource(subject.policy)];
    let scoped = scoped.into_iter().filter_map(Constraint::get_euid).map(|uid| (At::Policy, uid));
    let named = in_conditions.chain(scoped).map(|(at, uid)| (at, cedar_policy::EntityUid::from(uid.as_ref().clone())));
    let from_bundle =
        |uid: &cedar_policy::EntityUid| bundle.roles.supplier(&uid.type_name().to_string()) == Some(Supplier::Bundle);
    let unknown = named.filter(|(_, uid)| from_bundle(uid) && bundle.store.get(uid).is_none());
    unknown.map(|(at, uid)| PolicyLint { at, message: format!("no file of `entities/` defines `{uid}`") }).collect()
}

/// Rejects requirements whose template or check the covered actions do not declare. A requirement that
/// nothing can meet denies forever, and one with the wrong template would be lifted by the wrong approval.
fn requirements_exist<'a>(subject: &Subject<'a>, bundle: &Bundle<'_>) -> Vec<PolicyLint<'a>> {
    let mut faults = vec![];
    if let Some(required @ (Requirement::Approval(_) | Requirement::Consent(_))) = &subject.rule.requires
        && bundle.roles.approval_request.is_empty()
    {
        faults.push(format!("`@requires(\"{required}\")` needs the type of requests for approval: set `approval_request` in the manifest's `roles`"));
    }
    for action in scope::covered(subject.policy, bundle.shapes) {
        let id = action.uid.id().unescaped();
        faults.extend(match &subject.rule.requires {
            Some(Requirement::Approval(template)) => undeclared(bundle, action, "approval", template),
            Some(Requirement::Consent(template)) => undeclared(bundle, action, "consent", template),
            Some(Requirement::Check(name)) => {
                let checks = bundle.shapes.follow(&action.context, &["checks"]).map(|member| &member.shape);
                let declared: Vec<&str> = match checks {
                    Some(Shape::Record(checks)) => checks.keys().map(String::as_str).collect(),
                    Some(_) | None => vec![],
                };
                let known = || known(name, declared.iter().copied());
                (!declared.contains(&name.as_str()))
                    .then(|| format!("`context.checks` of action `{id}` does not declare check `{name}`{}", known()))
            }
            None => None,
        });
    }
    faults.into_iter().map(|message| PolicyLint { at: At::Annotation("requires"), message }).collect()
}

/// Returns the fault of a template that `context.approval` or `context.consent` of an action does not declare.
fn undeclared(bundle: &Bundle<'_>, action: &Action, member: &str, template: &String) -> Option<String> {
    let declared = bundle.shapes.follow(&action.context, &[member, "template"]);
    let choices = declared.map_or(&[][..], |member| member.shape.choices());
    let known = || known(template, choices.iter().map(String::as_str));
    let id = action.uid.id().unescaped();
    (!choices.contains(template))
        .then(|| format!("`context.{member}` of action `{id}` does not declare template `{template}`{}", known()))
}

/// Part of a policy that has a fault.
#[derive(Clone, Copy)]
enum At<'a> {
    Policy,
    /// Annotation with this name.
    Annotation(&'static str),
    Expression(&'a ast::Expr),
}

/// Fault of a policy.
struct PolicyLint<'a> {
    at: At<'a>,
    message: String,
}

impl<'a> PolicyLint<'a> {
    fn whole(message: impl Into<String>) -> Self {
        Self { at: At::Policy, message: message.into() }
    }

    fn at(expression: &'a ast::Expr, message: impl Into<String>) -> Self {
        Self { at: At::Expression(expression), message: message.into() }
    }

    fn fault(self, code: Code, read: &ReadPolicy) -> Fault {
        match self.at {
            At::Annotation(name) => {
                read.fault_of(AnnotationFault { code, annotation: name.to_owned(), message: self.message })
            }
            At::Expression(expression) => match expression.source_loc() {
                Some(loc) => Fault::new(code, &read.source, parse::span(Some(loc)), self.message),
                None => read.fault(code, self.message),
            },
            At::Policy => read.fault(code, self.message),
        }
    }
}

/// Fault of the schema or the manifest, with the names to locate it by, most precise first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Lint {
    message: String,
    names: Vec<String>,
    is_in_manifest: bool,
}

impl Lint {
    /// Creates a fault of the schema.
    fn new<const N: usize>(names: [&dyn Display; N], message: String) -> Self {
        Self { names: names.map(ToString::to_string).to_vec(), message, is_in_manifest: false }
    }

    /// Creates a fault of the manifest.
    fn in_manifest<const N: usize>(names: [&dyn Display; N], message: String) -> Self {
        Self { is_in_manifest: true, ..Self::new(names, message) }
    }

    /// Locates the fault at the first of its names that occurs in its file.
    fn fault(self, code: Code, sources: &Sources) -> Fault {
        let source = if self.is_in_manifest { &sources.manifest } else { &sources.schema };
        let Some(source) = source else { return Fault::missing(code, "schema.cedarschema", self.message) };
        let at = self.names.iter().find_map(|name| source.find(name)).unwrap_or((0, 0));
        Fault::new(code, source, at, self.message)
    }
}
