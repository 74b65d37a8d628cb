//! Lint rules that keep a bundle readable and provable and that Cedar's validator does not check, one
//! function for each rule.

mod content;
mod direct;
mod paths;
mod types;
mod wiring;

use std::collections::HashSet;
use std::fmt::Display;

use cedar_policy::{Effect, Policy, PrincipalConstraint, ResourceConstraint};
use cedar_policy_core::ast;

use crate::model::fault::Fault;
use crate::model::roles::{Roles, Supplier};
use crate::policy::engine::id_text;
use crate::policy::rule::Requirement;
use crate::policy::shape::{Action, Shape, Shapes};
use crate::policy::source::{self, Source};
use crate::policy::store::Store;
use crate::policy::{ReadPolicies, Rule};

/// Inputs that the rules read.
struct Bundle<'a> {
    read: &'a ReadPolicies,
    schema: &'a Source,
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
    policy: &'a Policy,
    rule: &'a Rule,
    /// All expressions of the policy's conditions.
    expressions: Vec<&'a ast::Expr>,
}

/// Applies every rule to the schema, the manifest and the policies.
pub(super) fn lint(read: &ReadPolicies, schema: &Source, shapes: &Shapes, store: &Store, roles: &Roles) -> Vec<Fault> {
    let bundle = Bundle { read, schema, shapes, store, roles };
    let mut faults: Vec<Fault> = wiring::faults(&bundle);
    for policy in read.set.policies() {
        let id = id_text(policy.id());
        let Some(rule) = read.rules.get(&id) else { continue };
        let Some((_, placed)) = read.placed.get(&id) else { continue };
        let core: &ast::Policy = placed.policy.as_ref();
        let subject = Subject { policy, rule, expressions: conditions(core) };
        let words = [
            permits_read_no_context(&subject),
            principals_are_typed(&subject),
            entities_exist(&subject, &bundle),
            requirements_exist(&subject, &bundle),
            reads_return_only(&subject, &bundle),
            paths::members_are_declared(&subject, &bundle),
            paths::vouched_members_are_used_as_paths(&subject),
        ];
        faults.extend(words.into_iter().flatten().map(|message| read.fault(&id, message)));
    }
    faults.sort_by_key(Fault::line);
    faults
}

/// Returns the actions whose policies read this member of `context`, or use `context` as a whole.
pub(super) fn readers(read: &ReadPolicies, shapes: &Shapes, member: &str) -> HashSet<String> {
    let mut readers = HashSet::new();
    for policy in read.set.policies() {
        let Some((_, placed)) = read.placed.get(&id_text(policy.id())) else { continue };
        let core: &ast::Policy = placed.policy.as_ref();
        if conditions(core).into_iter().any(|expression| paths::reads(expression, member)) {
            readers.extend(covered(policy, shapes).into_iter().map(|action| action.uid.id().unescaped().to_owned()));
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
        open.extend(source::children(expression));
    }
    all
}

fn is_variable(expression: &ast::Expr, variable: ast::Var) -> bool {
    matches!(expression.expr_kind(), ast::ExprKind::Var(found) if *found == variable)
}

/// Rejects a `permit` that reads `context`. A default denial names no policy, so a condition that a
/// circumstance can lift must be in a `forbid`, whose denial can report what is missing.
fn permits_read_no_context(subject: &Subject<'_>) -> Vec<String> {
    let reads = subject.expressions.iter().any(|expression| is_variable(expression, ast::Var::Context));
    if subject.policy.effect() == Effect::Permit && reads {
        return vec!["a `permit` must not read `context`: write the condition as a `forbid … unless`".into()];
    }
    vec![]
}

/// Requires a principal type in scopes that name a group or whose conditions depend on the principal:
/// `principal in Role::"x"` also matches other types that hold the role, and attributes differ between types.
fn principals_are_typed(subject: &Subject<'_>) -> Vec<String> {
    let constraint = subject.policy.principal_constraint();
    let typed =
        matches!(constraint, PrincipalConstraint::Is(_) | PrincipalConstraint::IsIn(..) | PrincipalConstraint::Eq(_));
    let reads_attributes = subject.expressions.iter().any(|expression| match expression.expr_kind() {
        ast::ExprKind::GetAttr { expr, .. }
        | ast::ExprKind::HasAttr { expr, .. }
        | ast::ExprKind::ExtHasAttr { expr, .. } => is_variable(expr, ast::Var::Principal),
        ast::ExprKind::BinaryApp { op: ast::BinaryOp::In, arg1, .. } => is_variable(arg1, ast::Var::Principal),
        _ => false,
    });
    if !typed && (matches!(constraint, PrincipalConstraint::In(_)) || reads_attributes) {
        return vec!["the scope must contain `principal is <type>`, because the policy uses groups or attributes of the principal".into()];
    }
    vec![]
}

/// Rejects references to bundle entities that no file defines: an undefined role matches no principal, so a
/// `forbid` on it fails open.
fn entities_exist(subject: &Subject<'_>, bundle: &Bundle<'_>) -> Vec<String> {
    let mut named: Vec<cedar_policy::EntityUid> = subject
        .expressions
        .iter()
        .filter_map(|expression| match expression.expr_kind() {
            ast::ExprKind::Lit(ast::Literal::EntityUID(uid)) => Some(uid.as_ref().clone().into()),
            _ => None,
        })
        .collect();
    match subject.policy.principal_constraint() {
        PrincipalConstraint::In(uid) | PrincipalConstraint::Eq(uid) | PrincipalConstraint::IsIn(_, uid) => {
            named.push(uid)
        }
        PrincipalConstraint::Any | PrincipalConstraint::Is(_) => {}
    }
    match subject.policy.resource_constraint() {
        ResourceConstraint::In(uid) | ResourceConstraint::Eq(uid) | ResourceConstraint::IsIn(_, uid) => named.push(uid),
        ResourceConstraint::Any | ResourceConstraint::Is(_) => {}
    }
    let from_bundle =
        |uid: &cedar_policy::EntityUid| bundle.roles.supplier(&uid.type_name().to_string()) == Some(Supplier::Bundle);
    let unknown = named.iter().filter(|uid| from_bundle(uid) && bundle.store.get(uid).is_none());
    unknown.map(|uid| format!("no file of `entities/` defines `{uid}`")).collect()
}

/// Rejects requirements whose template or check the covered actions do not declare. A requirement that
/// nothing can meet denies forever, and one with the wrong template would be lifted by the wrong approval.
fn requirements_exist(subject: &Subject<'_>, bundle: &Bundle<'_>) -> Vec<String> {
    let mut faults = vec![];
    for action in covered(subject.policy, bundle.shapes) {
        let id = action.uid.id().unescaped();
        faults.extend(match &subject.rule.requires {
            Some(Requirement::Approval(template)) => {
                let known = match bundle
                    .shapes
                    .follow(&action.context, &["approval", "template"])
                    .map(|member| &member.shape)
                {
                    Some(Shape::Entity(entity)) => entity.choices.iter().flatten().any(|choice| choice == template),
                    _ => false,
                };
                (!known).then(|| format!("`context.approval` of action `{id}` does not declare template `{template}`"))
            }
            Some(Requirement::Check(name)) => {
                let known = bundle.shapes.follow(&action.context, &["checks", name]).is_some();
                (!known).then(|| format!("`context.checks` of action `{id}` does not declare check `{name}`"))
            }
            None => None,
        });
    }
    faults
}

/// Requires `return_only` on permits of reads and verifications for agents, so that an agent gets named
/// fields and never a whole record.
fn reads_return_only(subject: &Subject<'_>, bundle: &Bundle<'_>) -> Vec<String> {
    let agent = |kind: &cedar_policy::EntityTypeName| kind.to_string() == bundle.roles.agent;
    let for_agents = match subject.policy.principal_constraint() {
        PrincipalConstraint::Any | PrincipalConstraint::In(_) => true,
        PrincipalConstraint::Eq(uid) => agent(uid.type_name()),
        PrincipalConstraint::Is(kind) | PrincipalConstraint::IsIn(kind, _) => agent(&kind),
    };
    let returns = subject
        .rule
        .obligations
        .iter()
        .any(|obligation| obligation.kind == "return_only" && !obligation.value.is_empty());
    let is_read = |action: &&Action| {
        action.uid.id().unescaped().ends_with(".read") || action.uid.id().unescaped().starts_with("verification.")
    };
    match covered(subject.policy, bundle.shapes).into_iter().find(is_read) {
        Some(action) if subject.policy.effect() == Effect::Permit && for_agents && !returns => {
            vec![format!(
                "a `permit` of `{}` for agents must carry `@obligation(\"return_only:<fields>\")`",
                action.uid.id().unescaped()
            )]
        }
        _ => vec![],
    }
}

/// Returns the actions that a policy's scope covers.
fn covered<'a>(policy: &Policy, shapes: &'a Shapes) -> Vec<&'a Action> {
    use cedar_policy::ActionConstraint;
    let names = |action: &Action, uid: &cedar_policy::EntityUid| {
        *uid == action.uid || action.groups.iter().any(|group| group == uid.id().unescaped())
    };
    let covers = |action: &&Action| match policy.action_constraint() {
        ActionConstraint::Any => true,
        ActionConstraint::Eq(uid) => uid == action.uid,
        ActionConstraint::In(uids) => uids.iter().any(|uid| names(action, uid)),
    };
    shapes.actions.values().filter(covers).collect()
}

/// Fault of the schema or the manifest, with the names to locate it by, most precise first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Lint {
    message: String,
    names: Vec<String>,
}

impl Lint {
    fn new<const N: usize>(names: [&dyn Display; N], message: String) -> Self {
        Self { names: names.map(ToString::to_string).to_vec(), message }
    }
}
