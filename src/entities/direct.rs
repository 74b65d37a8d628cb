//! Builds the Cedar request for an action that a principal performs on its own behalf: one principal, one
//! resource, and a context of `now` and `own`.

use cedar_policy::{Context, Entities, Entity, Request, RestrictedExpression};

use crate::entities::convert::Converter;
use crate::json::{self, Object, Value};
use crate::model::approval::{Approval, Binding};
use crate::model::number::to_u32;
use crate::model::right::Right;
use crate::model::roles::Roles;
use crate::model::time::Timestamp;
use crate::policy::Policies;

/// Resource of a direct action.
#[derive(Clone, Copy, Debug)]
pub enum On<'a> {
    /// A request for approval, by its binding.
    Approval(&'a Binding, OfRequest),
    /// The server, by its environment.
    Server(&'a str),
    /// A tenant of the bundle.
    Tenant(&'a str),
}

/// Facts about a request for approval that its binding does not contain.
#[derive(Clone, Copy, Debug, Default)]
pub struct OfRequest {
    /// Number of reviewers who have approved.
    pub approvers: u32,
    /// Whether the template requires a reviewer other than the supervisor.
    pub four_eyes: bool,
    /// Whether the principal is the person who supervises the call.
    pub own: bool,
}

impl OfRequest {
    /// Collects the facts of a stored approval.
    pub fn of(approval: &Approval, four_eyes: bool, own: bool) -> Self {
        Self { approvers: to_u32(approval.approvers().count()), four_eyes, own }
    }
}

/// Returns the request and its entities. `None` means denied: the schema has no such right, or an entity that
/// the request names does not exist.
pub fn request(
    policies: &Policies,
    roles: &Roles,
    right: Right,
    principal: &str,
    on: On<'_>,
    now: Timestamp,
) -> Option<(Request, Entities)> {
    let action = policies.shapes.actions.get(right.name()).filter(|_| roles.is_direct(right.name()))?;
    let principal = policies.store.get(&policies.shapes.uid(roles.of(right.of()), principal)?)?;
    let (resource, own) = match on {
        On::Approval(binding, of) => (approval_request(policies, roles, binding, of)?, of.own),
        On::Server(environment) => (bare(policies, &roles.server, environment)?, false),
        On::Tenant(tenant) => (policies.store.get(&policies.shapes.uid(&roles.tenant, tenant)?)?.clone(), false),
    };
    if resource.uid().type_name().to_string() != roles.on(right.on()) {
        return None;
    }
    let members =
        [("now", RestrictedExpression::new_datetime(now.cedar())), ("own", RestrictedExpression::new_bool(own))];
    let declared = members.into_iter().filter(|(name, _)| action.context.contains_key(*name));
    let context = Context::from_pairs(declared.map(|(name, value)| (name.to_owned(), value))).ok()?;
    let request =
        Request::new(principal.uid(), action.uid.clone(), resource.uid(), context, policies.schema.as_ref()).ok()?;
    let mut entities = vec![principal.clone(), resource];
    entities.extend(policies.store.action(&action.uid).cloned());
    Some((request, Entities::from_entities(entities, None).ok()?))
}

fn bare(policies: &Policies, kind: &str, id: &str) -> Option<Entity> {
    Entity::new(policies.shapes.uid(kind, id)?, std::iter::empty().collect(), std::iter::empty().collect()).ok()
}

fn approval_request(policies: &Policies, roles: &Roles, binding: &Binding, of: OfRequest) -> Option<Entity> {
    let call = &binding.call;
    let declared = &policies.shapes.entities.get(&roles.approval_request)?.attributes;
    let limits: Object = match policies.shapes.follow(declared, &["limits"]).map(|member| &member.shape) {
        Some(crate::policy::shape::Shape::Record(limits)) => {
            call.arguments().into_iter().filter(|(name, _)| limits.contains_key(name)).collect()
        }
        _ => Object::new(),
    };
    let text = |text: &str| Value::from(text);
    let all = json::object([
        ("action", text(&call.action)),
        ("agent", text(&call.agent.sub)),
        ("approvers", Value::Integer(i64::from(of.approvers))),
        ("four_eyes", Value::Bool(of.four_eyes)),
        ("limits", Value::Object(limits)),
        ("supervisor", text(&call.supervisor.sub)),
        ("template", text(&binding.template)),
        ("tenant", text(&call.tenant)),
    ]);
    let members = Converter::default().known_members(all.as_object()?, declared, "approval").ok()?;
    let uid = policies.shapes.uid(&roles.approval_request, &binding.evaluation_id)?;
    Entity::new(uid, members.into_iter().collect(), std::iter::empty().collect()).ok()
}
