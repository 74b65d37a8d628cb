//! Explains a result to people: which policies are about a request, whether each applies, and which clause of its condition
//! prevents it.

use cedar_policy::{Entities, Request};
use cedar_policy_core::ast::{self, Effect};
use cedar_policy_core::entities::Dereference;
use cedar_policy_core::evaluator::Evaluator;
use cedar_policy_core::extensions::Extensions;

use crate::policy::engine::{Engine, id_text, is_true};
use crate::policy::scope;

/// Policy whose scope matches a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    pub policy: String,
    pub forbids: bool,
    /// The clauses of its conditions, in order, up to the first one that prevents the policy from applying.
    pub clauses: Vec<Clause>,
}

/// Part of a condition: of a `when`, what is between two `&&`; of an `unless`, the first such part that is false, or all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clause {
    /// The clause as it is written.
    pub text: String,
    /// Whether it is true, or the class of its error.
    pub result: Result<bool, &'static str>,
    /// Whether it is of an `unless`, so that the policy applies only if it is false.
    pub is_unless: bool,
}

impl Clause {
    /// Returns whether the policy may apply.
    fn is_met(&self) -> bool {
        self.result == Ok(!self.is_unless)
    }
}

impl Explained {
    /// Returns whether the policy applies.
    pub fn applies(&self) -> bool {
        self.clauses.iter().all(Clause::is_met)
    }
}

impl Engine {
    /// Returns the policies whose scope matches a request, in the order of the bundle. Every policy is looked at, so it is not for
    /// live decisions.
    pub fn explain(&self, request: &Request, entities: &Entities) -> Vec<Explained> {
        let (request, entities): (&ast::Request, &cedar_policy_core::entities::Entities) =
            (request.as_ref(), entities.as_ref());
        let (Some(principal), Some(action), Some(resource)) =
            (request.principal().uid(), request.action().uid(), request.resource().uid())
        else {
            return vec![];
        };
        let entity = |uid| match entities.entity(uid) {
            Dereference::Data(entity) => Some(entity),
            Dereference::NoSuchEntity | Dereference::Residual(_) => None,
        };
        let evaluator = Evaluator::new(request.clone(), entities, Extensions::all_available());
        let is_about = |policy: &&ast::Policy| {
            scope::matches(scope::principal(policy), principal, entity(principal))
                && scope::action_matches(policy, action, entity(action))
                && scope::matches(scope::resource(policy), resource, entity(resource))
        };
        let explained = |policy: &ast::Policy| {
            let mut clauses = vec![];
            let value = |part| is_true(&evaluator, part, policy);
            for part in policy.non_scope_constraints().into_iter().flat_map(parts) {
                let clause = match of_unless(part) {
                    None => Clause { text: written(part), result: value(part), is_unless: false },
                    Some(all) => {
                        let part = parts(all).into_iter().find(|part| value(part) != Ok(true)).unwrap_or(all);
                        Clause { text: written(part), result: value(part), is_unless: true }
                    }
                };
                let is_last = !clause.is_met();
                clauses.push(clause);
                if is_last {
                    break;
                }
            }
            Explained { policy: id_text(policy), forbids: policy.effect() == Effect::Forbid, clauses }
        };
        self.policies().iter().filter(is_about).map(explained).collect()
    }
}

/// Returns what is between the `&&` of an expression, in order.
fn parts(expression: &ast::Expr) -> Vec<&ast::Expr> {
    let (mut open, mut parts) = (vec![expression], vec![]);
    while let Some(next) = open.pop() {
        match next.expr_kind() {
            ast::ExprKind::And { left, right } => open.extend([right.as_ref(), left.as_ref()]),
            // The condition of a policy without `when` and `unless`.
            ast::ExprKind::Lit(ast::Literal::Bool(true)) if next.source_loc().is_none() => {}
            _ => parts.push(next),
        }
    }
    parts
}

/// Returns the condition of an `unless`, which is the denial of it.
fn of_unless(expression: &ast::Expr) -> Option<&ast::Expr> {
    let ast::ExprKind::UnaryApp { op: ast::UnaryOp::Not, arg } = expression.expr_kind() else { return None };
    let text = expression.source_loc().and_then(|place| place.snippet());
    text.is_none_or(|text| text.starts_with("unless")).then_some(arg)
}

/// Returns an expression as it is written, in one line.
fn written(expression: &ast::Expr) -> String {
    let text = expression.source_loc().and_then(|place| place.snippet());
    let text = text.map_or_else(|| expression.to_string(), str::to_owned);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_clause_that_is_not_true_is_named_as_it_is_written() {
        let policies = r#"
            @id("broad") permit (principal, action, resource);
            @id("clauses") permit (principal, action == Action::"read", resource)
              when { context.a > 1 && (context.b ||
                context.a > 5) } unless { context.b };
            @id("guard") forbid (principal, action, resource) when { context.b };
            @id("fails") permit (principal, action, resource) when { context.missing };
            @id("other") permit (principal, action == Action::"write", resource);
            @id("lacks") forbid (principal, action, resource) unless { context.b && context.a > 5 && context.a > 9 };
            @id("of-another") permit (principal == User::"you", action, resource);
        "#;
        let set: cedar_policy::PolicySet = policies.parse().expect("policies");
        let ids =
            set.policies().map(|policy| policy.new_id(policy.annotation("id").expect("an id").parse().expect("an id")));
        let set = cedar_policy::PolicySet::from_policies(ids).expect("policies");
        let engine = Engine::from(&set);
        let uid = |text: &str| text.parse::<cedar_policy::EntityUid>().expect("a uid");
        let explain = |a: i64, b: bool| {
            let context = serde_json::json!({"a": a, "b": b});
            let context = cedar_policy::Context::from_json_value(context, None).expect("a context");
            let [user, action, file] = [r#"User::"me""#, r#"Action::"read""#, r#"File::"f""#].map(uid);
            let request = Request::new(user, action, file, context, None).expect("a request");
            let mut explained = engine.explain(&request, &Entities::empty());
            explained.sort_by(|one, other| one.policy.cmp(&other.policy));
            explained
        };
        let ids = |explained: &[Explained], applies: bool| {
            let some = explained.iter().filter(|one| one.applies() == applies);
            some.map(|one| one.policy.clone()).collect::<Vec<_>>()
        };
        let found = explain(7, false);
        assert_eq!(
            (ids(&found, true), ids(&found, false)),
            (vec!["broad".into(), "clauses".into(), "lacks".into()], vec!["fails".into(), "guard".into()])
        );
        let last = |id: &str, found: &[Explained]| {
            let clauses = &found.iter().find(|one| one.policy == id).expect(id).clauses;
            clauses.last().map(|clause| (clause.text.clone(), clause.result))
        };
        assert_eq!(last("broad", &found), None);
        assert_eq!(last("fails", &found), Some(("context.missing".into(), Err("missing_attribute"))));
        assert_eq!(last("clauses", &explain(1, false)), Some(("context.a > 1".into(), Ok(false))));
        assert_eq!(last("clauses", &explain(3, false)), Some(("context.b || context.a > 5".into(), Ok(false))));
        assert_eq!(last("clauses", &explain(3, true)), Some(("context.b".into(), Ok(true))));
        assert!(ids(&explain(3, true), true).contains(&"guard".to_owned()));
        // If a policy applies, the false clause of its `unless` is named.
        assert_eq!(last("lacks", &explain(3, true)), Some(("context.a > 5".into(), Ok(false))));
        assert_eq!(last("lacks", &explain(7, false)), Some(("context.b".into(), Ok(false))));
        assert_eq!(
            last("lacks", &explain(10, true)),
            Some(("context.b && context.a > 5 && context.a > 9".into(), Ok(true)))
        );
        assert!(ids(&explain(10, true), false).contains(&"lacks".to_owned()));
    }
}
