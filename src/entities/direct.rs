//! Builds the Cedar request for an action that a principal performs on its own behalf: one principal, one
//! resource, and a context of `now` and `own`.

use std::sync::Arc;

use cedar_policy::{Entities, EntityUid, Request};
use cedar_policy_core::ast::{self, Context, Entity};

use crate::entities::convert::Converter;
use crate::entities::{entity, known};
use crate::json::{self, Object, Value};
use crate::model::approval::{Approval, Binding};
use crate::model::number::to_u32;
use crate::model::right::Right;
use crate::model::roles::Roles;
use crate::model::time::Timestamp;
use crate::policy::Policies;
use crate::policy::store::shared;

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
        On::Server(environment) => (entity(&policies.shapes.uid(&roles.server, environment)?, vec![]), false),
        On::Tenant(tenant) => {
            let tenant = policies.store.get(&policies.shapes.uid(&roles.tenant, tenant)?)?;
            (Arc::clone(tenant.shared()), false)
        }
    };
    if resource.uid().entity_type().to_string() != roles.on(right.on()) {
        return None;
    }
    let members = json::object([("now", Value::String(now.to_string())), ("own", Value::Bool(own))]);
    let members = Converter::default().known_members(members.as_object()?, &action.context, "context").ok()?;
    let context = Context::Value(Arc::new(members.into_iter().collect()));
    let uid = EntityUid::from(resource.uid().clone());
    let request = ast::Request::new_unchecked(known(&principal.uid()), known(&action.uid), known(&uid), Some(context));
    let mut entities = vec![Arc::clone(principal.shared()), resource];
    entities.extend(policies.store.action(&action.uid).map(|action| Arc::clone(action.shared())));
    Some((request.into(), shared(entities).ok()?))
}

fn approval_request(policies: &Policies, roles: &Roles, binding: &Binding, of: OfRequest) -> Option<Arc<Entity>> {
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
    Some(entity(&uid, members))
}
