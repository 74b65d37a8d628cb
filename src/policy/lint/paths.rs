//! Lint rules for the attribute paths in conditions.

use cedar_policy::EntityTypeName;
use cedar_policy_core::ast;

use super::{Bundle, PolicyLint, Subject};
use crate::policy::shape::{Action, Record, Shapes};
use crate::policy::{parse, scope};

/// Members of `context` that the PDP raises as risk grows. They may be used only as paths, so that a proof of
/// monotonicity can replace them.
const RAISED: [&str; 3] = ["findings", "rates", "risk"];

/// Rejects `has` on a member that no type declares as optional. Cedar's validator accepts such a test, but
/// its result is constant: if the member is undeclared, `context has aproval` never lifts, and `principal has
/// tenant && …` fails open.
pub(super) fn members_are_declared<'a>(subject: &Subject<'a>, bundle: &Bundle<'_>) -> Vec<PolicyLint<'a>> {
    let mut faults = vec![];
    for expression in &subject.expressions {
        let tested = match expression.expr_kind() {
            ast::ExprKind::HasAttr { expr, attr } => path(expr).map(|(variable, mut steps)| {
                steps.push(attr.to_string());
                (variable, vec![steps])
            }),
            ast::ExprKind::ExtHasAttr { expr, attrs } => path(expr).map(|(variable, mut steps)| {
                let prefixes = attrs.iter().map(|attr| {
                    steps.push(attr.to_string());
                    steps.clone()
                });
                (variable, prefixes.collect())
            }),
            _ => continue,
        };
        let Some((variable, tested)) = tested else {
            let message = "`has` must test a path that starts at `principal`, `resource` or `context`";
            faults.push(PolicyLint::at(expression, message));
            continue;
        };
        // In `a has b.c`, at least one step must be optional, and each must be declared.
        let mut declared = true;
        let mut optional = false;
        for record in records(variable, subject, bundle) {
            let members = tested.iter().map(|steps| {
                let steps: Vec<&str> = steps.iter().map(String::as_str).collect();
                bundle.shapes.follow(record, &steps).map(|member| !member.required)
            });
            let members: Vec<Option<bool>> = members.collect();
            declared &= members.iter().all(Option::is_some);
            optional |= members.contains(&Some(true));
        }
        if !declared || !optional {
            let steps = tested.last().map_or_else(String::new, |steps| steps.join("."));
            let message = format!(
                "`{variable} has {steps}` must test a member that is declared optional wherever the policy applies"
            );
            faults.push(PolicyLint::at(expression, message));
        }
    }
    faults
}

/// Rejects uses of `context` as a whole, and uses of risk, rates and findings other than by member,
/// `contains…` or `isEmpty`.
pub(super) fn vouched_members_are_used_as_paths<'a>(subject: &Subject<'a>) -> Vec<PolicyLint<'a>> {
    let mut faults = vec![];
    for expression in &subject.expressions {
        let steps_into = matches!(
            expression.expr_kind(),
            ast::ExprKind::GetAttr { .. } | ast::ExprKind::HasAttr { .. } | ast::ExprKind::ExtHasAttr { .. }
        );
        let first = match expression.expr_kind() {
            ast::ExprKind::BinaryApp {
                op: ast::BinaryOp::Contains | ast::BinaryOp::ContainsAll | ast::BinaryOp::ContainsAny,
                arg1,
                ..
            } => Some(arg1.as_ref()),
            ast::ExprKind::UnaryApp { op: ast::UnaryOp::IsEmpty, arg } => Some(arg.as_ref()),
            _ => None,
        };
        for child in parse::children(expression) {
            let searched = first.is_some_and(|first| std::ptr::eq(first, child));
            match path(child) {
                Some((ast::Var::Context, steps)) => match steps.as_slice() {
                    [] if !steps_into => {
                        faults.push(PolicyLint::at(expression, "`context` must not be used as a whole"));
                    }
                    [member] if RAISED.contains(&member.as_str()) && !steps_into && !searched => {
                        let message = format!("`context.{member}` must be read by member, `contains…` or `isEmpty`");
                        faults.push(PolicyLint::at(expression, message));
                    }
                    _ => {}
                },
                _ => continue,
            }
        }
    }
    faults
}

/// Returns whether an expression reads a member of `context`: by `context.member`, by `context has member`,
/// or by using `context` as a whole.
pub(super) fn reads(expression: &ast::Expr, member: &str) -> bool {
    let is_context = |expression: &ast::Expr| matches!(expression.expr_kind(), ast::ExprKind::Var(ast::Var::Context));
    match expression.expr_kind() {
        ast::ExprKind::GetAttr { expr, attr } | ast::ExprKind::HasAttr { expr, attr } => {
            is_context(expr) && *attr == member
        }
        ast::ExprKind::ExtHasAttr { expr, attrs } => is_context(expr) && attrs.first() == member,
        _ => parse::children(expression).into_iter().any(is_context),
    }
}

/// Returns whether a policy's conditions test this path of `context` with `has`.
pub(super) fn tests(policy: &ast::Policy, steps: &[&str]) -> bool {
    super::conditions(policy).into_iter().any(|expression| {
        let tested = match expression.expr_kind() {
            ast::ExprKind::HasAttr { expr, attr } => {
                path(expr).map(|(variable, steps)| (variable, steps, vec![attr.to_string()]))
            }
            ast::ExprKind::ExtHasAttr { expr, attrs } => {
                path(expr).map(|(variable, steps)| (variable, steps, attrs.iter().map(ToString::to_string).collect()))
            }
            _ => None,
        };
        tested.is_some_and(|(variable, before, more)| {
            variable == ast::Var::Context && before.iter().chain(&more).map(String::as_str).eq(steps.iter().copied())
        })
    })
}

/// Returns whether a policy's conditions read this path of a variable.
pub(super) fn looks_at(policy: &ast::Policy, variable: ast::Var, steps: &[&str]) -> bool {
    super::conditions(policy).into_iter().any(|expression| {
        path(expression)
            .is_some_and(|(read, found)| read == variable && found.iter().map(String::as_str).eq(steps.iter().copied()))
    })
}

/// Returns the variable and the attributes of an expression `variable.a.b`.
fn path(expression: &ast::Expr) -> Option<(ast::Var, Vec<String>)> {
    let mut steps = vec![];
    let mut at = expression;
    loop {
        match at.expr_kind() {
            ast::ExprKind::Var(variable) => {
                steps.reverse();
                return Some((*variable, steps));
            }
            ast::ExprKind::GetAttr { expr, attr } => {
                steps.push(attr.to_string());
                at = expr;
            }
            _ => return None,
        }
    }
}

/// Returns the records that a variable can be, over all environments in which the policy applies.
fn records<'a>(variable: ast::Var, subject: &Subject<'_>, bundle: &Bundle<'a>) -> Vec<&'a Record> {
    let actions = scope::covered(subject.policy, bundle.shapes);
    match variable {
        ast::Var::Context => actions.into_iter().map(|action| &action.context).collect(),
        ast::Var::Principal => {
            let fits = |kind: &EntityTypeName| scope::can_match(scope::principal(subject.policy), kind);
            attributes(&actions, |action| &action.principals, fits, bundle.shapes)
        }
        ast::Var::Resource => {
            let fits = |kind: &EntityTypeName| scope::can_match(scope::resource(subject.policy), kind);
            attributes(&actions, |action| &action.resources, fits, bundle.shapes)
        }
        ast::Var::Action => vec![],
    }
}

fn attributes<'a>(
    actions: &[&Action],
    kinds: impl Fn(&Action) -> &Vec<EntityTypeName>,
    fits: impl Fn(&EntityTypeName) -> bool,
    shapes: &'a Shapes,
) -> Vec<&'a Record> {
    let mut names: Vec<String> =
        actions.iter().flat_map(|action| kinds(action)).filter(|kind| fits(kind)).map(ToString::to_string).collect();
    names.sort();
    names.dedup();
    names.iter().filter_map(|name| shapes.entities.get(name)).map(|kind| &kind.attributes).collect()
}
