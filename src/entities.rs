//! Converts a call into a Cedar request for each link of the chain, with the entities that policies may read.

pub mod convert;
pub mod direct;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use cedar_policy::{Entities, EntityUid, Request, Schema};
use cedar_policy_core::ast::{self, Context, Entity, EntityUID, EntityUIDEntry, PartialValue, Value as CedarValue};
use smol_str::SmolStr;

use crate::entities::convert::{Converter, Members, record_of, time};
use crate::json::{Object, Value};
use crate::model::answer::Gate;
use crate::model::call::Call;
use crate::model::chain::{Chain, Link};
use crate::model::derivation::Named;
use crate::model::refusal::Refusal;
use crate::model::roles::{Roles, Supplier, TAGS};
use crate::model::time::Timestamp;
use crate::model::trusted_context::{COMPUTED, REMEMBERED, TrustedContext};
use crate::policy::Policies;
use crate::policy::shape::{Action, EntityType, Record, Shape};
use crate::policy::store::{StoredEntity, shared};

/// Reasons why a call does not reach Cedar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A gate in code denies the call.
    Denied(Gate),
    /// The call is refused, for example because it is invalid.
    Refused(Refusal),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// The resolved entities of a call. Those that the bundle supplies exist.
#[derive(Clone, Debug)]
pub struct ResolvedCall<'a> {
    pub action: &'a Action,
    pub principals: Vec<(Link, &'a StoredEntity)>,
    pub resource: EntityUid,
    pub attributes: Attributes<'a>,
    pub case: EntityUid,
}

/// Sources of a resource's attributes.
#[derive(Clone, Debug)]
pub enum Attributes<'a> {
    /// An entity of the bundle.
    Bundle(&'a StoredEntity),
    /// The resource is the case itself.
    Case,
    /// Attributes that the tool service sent with the call.
    Sent(&'a Object),
}

/// A call that is ready for evaluation, also repeatedly with other `context` members from the PDP (what-if).
#[derive(Debug)]
pub struct Asked<'a> {
    policies: &'a Policies,
    resolved: ResolvedCall<'a>,
    /// The members of `context` that follow from the call.
    fixed: Members,
    /// All entities except one that the bundle defines and that only the resource names.
    others: Vec<Arc<Entity>>,
    pub entities: Entities,
}

/// The `context` of a call's requests.
pub type SharedContext = Arc<BTreeMap<SmolStr, CedarValue>>;

impl<'a> Asked<'a> {
    /// Converts the call's values to the schema's types.
    ///
    /// # Errors
    /// If a value doesn't fit the schema, or refers to an entity that the bundle should define but doesn't.
    pub fn prepare(
        policies: &'a Policies,
        roles: &Roles,
        resolved: ResolvedCall<'a>,
        chain: &Chain,
        call: &Call,
        now: Timestamp,
    ) -> Result<Self, Stop> {
        let mut converter = Converter::default();
        let mut entities: Vec<Arc<Entity>> =
            resolved.principals.iter().map(|(_, entity)| Arc::clone(entity.shared())).collect();
        entities.extend(policies.store.action(&resolved.action.uid).map(|action| Arc::clone(action.shared())));
        entities.push(case_entity(&mut converter, policies, roles, &resolved, call)?);
        if let Attributes::Sent(attributes) = resolved.attributes {
            let kind = type_of(policies, &call.resource.reference.kind)?;
            entities.push(supplied(&mut converter, &resolved.resource, kind, attributes, "resource.attributes_json")?);
        }
        names_agree(roles, chain, call)?;
        let mut fixed = claimed(&mut converter, &resolved, call)?;
        fixed.extend(computed(roles, &resolved, call)?);
        fixed.extend(derived(&resolved, chain, now)?);
        for uid in converter.references {
            match (policies.store.get(&uid), roles.supplier(&uid.type_name().to_string())) {
                (Some(known), _) => entities.push(Arc::clone(known.shared())),
                (None, Some(Supplier::Bundle)) => return Err(Stop::Denied(Gate::Existence)),
                (None, Some(Supplier::ToolService)) if uid != resolved.resource && uid != resolved.case => {
                    let problem = "refers to an entity that is neither the call's resource nor its case";
                    return Err(Refusal::invalid("arguments_json", problem).into());
                }
                (None, _) => {}
            }
        }
        // A resource may be the case, and a value may refer to a principal.
        let mut seen = HashSet::with_capacity(entities.len());
        entities.retain(|entity| seen.insert(entity.uid().clone()));
        Self::assembled(policies, resolved, fixed, entities)
    }

    /// Returns the same call on another resource, which the bundle defines.
    ///
    /// # Errors
    /// If the entities can't be assembled.
    pub fn on(&self, resource: &'a StoredEntity) -> Result<Self, Stop> {
        let attributes = Attributes::Bundle(resource);
        let resolved = ResolvedCall { resource: resource.uid(), attributes, ..self.resolved.clone() };
        Self::assembled(self.policies, resolved, self.fixed.clone(), self.others.clone())
    }

    fn assembled(
        policies: &'a Policies,
        resolved: ResolvedCall<'a>,
        fixed: Members,
        others: Vec<Arc<Entity>>,
    ) -> Result<Self, Stop> {
        let of_bundle = match &resolved.attributes {
            Attributes::Bundle(resource) => Some(resource.shared()),
            Attributes::Case | Attributes::Sent(_) => None,
        };
        let of_bundle = of_bundle.filter(|resource| others.iter().all(|other| other.uid() != resource.uid()));
        let entities = others.iter().chain(of_bundle).cloned();
        let entities = match policies.level {
            1 => shared(entities),
            level => shared(policies.store.reachable(entities.collect(), level - 1)),
        };
        let entities = entities.map_err(|_| Refusal::Unavailable("the entities could not be assembled"))?;
        Ok(Self { policies, resolved, fixed, others, entities })
    }

    /// Returns the resolved entities of the call.
    pub fn resolved(&self) -> &ResolvedCall<'a> {
        &self.resolved
    }

    /// Returns one request for each link, at this step and with these `context` members from the PDP.
    ///
    /// # Errors
    /// If a member doesn't fit the schema. Only the bundle's tests can cause this; requests can't.
    pub fn requests(&self, step: &str, trusted: &TrustedContext) -> Result<Vec<(Link, Request)>, Refusal> {
        Ok(self.requests_in(&self.context(step, trusted)?))
    }

    /// Returns the `context` of the call, at this step and with these members from the PDP.
    ///
    /// # Errors
    /// If a member doesn't fit the schema. Only the bundle's tests can cause this; requests can't.
    pub fn context(&self, step: &str, trusted: &TrustedContext) -> Result<SharedContext, Refusal> {
        let mut members = Object::new();
        members.insert("step".to_owned(), Value::from(step));
        let remembered = REMEMBERED.into_iter().filter(|name| self.resolved.action.context.contains_key(*name));
        members.extend(remembered.filter_map(|name| Some((name.to_owned(), trusted.get(name)?.clone()))));
        let remembers = |name: &str| name == "step" || REMEMBERED.contains(&name);
        let record = self.resolved.action.context.iter().filter(|(name, _)| remembers(name));
        let mut converter = Converter { takes_repetitions: true, ..Converter::default() };
        let trusted = converter.known_members(&members, record, "context")?;
        let context: BTreeMap<_, _> =
            self.fixed.iter().map(|(name, value)| (name.clone(), value.clone())).chain(trusted).collect();
        Ok(Arc::new(context))
    }

    /// Returns one request for each link, with this `context`.
    pub fn requests_in(&self, context: &SharedContext) -> Vec<(Link, Request)> {
        let (action, resource) = (known(&self.resolved.action.uid), known(&self.resolved.resource));
        let request = |principal: &StoredEntity| {
            let context = Context::Value(Arc::clone(context));
            let principal = known(&principal.uid());
            let request =
                ast::Request::new_unchecked(principal, action.clone(), resource.clone(), Some(context)).into();
            // The conversion proves what Cedar's validation of a request would check, so only tests run it.
            debug_assert!(self.policies.schema.as_ref().is_none_or(|schema| is_valid(&request, schema)));
            request
        };
        self.resolved.principals.iter().map(|(link, principal)| (*link, request(principal))).collect()
    }
}

/// Returns whether a request passes Cedar's own validation.
fn is_valid(request: &Request, schema: &Schema) -> bool {
    let uids = (request.principal().cloned(), request.action().cloned(), request.resource().cloned());
    match (uids, request.context().cloned()) {
        ((Some(principal), Some(action), Some(resource)), Some(context)) => {
            Request::new(principal, action, resource, context, Some(schema)).is_ok()
        }
        _ => false,
    }
}

pub(crate) fn known(uid: &EntityUid) -> EntityUIDEntry {
    EntityUIDEntry::known(uid.clone().into(), None)
}

/// Checks that an action could take these arguments.
///
/// # Errors
/// The first argument that doesn't fit, as a field below `path`.
pub fn arguments_fit(action: &Action, arguments: &Object, path: &str) -> Result<(), Refusal> {
    match action.context.get("args").map(|member| &member.shape) {
        Some(Shape::Record(record)) => Converter::default().members(arguments, record, path).map(|_| ()),
        _ => Err(Refusal::invalid(path, "is not accepted by this action")),
    }
}

fn case_entity(
    converter: &mut Converter,
    policies: &Policies,
    roles: &Roles,
    resolved: &ResolvedCall<'_>,
    call: &Call,
) -> Result<Arc<Entity>, Stop> {
    let path = "case.attributes_json";
    if call.case.attributes.contains_key("tenant") {
        let problem = "must not be sent: the tenant belongs in `case.tenant`";
        return Err(Refusal::invalid(format!("{path}.tenant"), problem).into());
    }
    let mut attributes = call.case.attributes.clone();
    attributes.insert("tenant".to_owned(), Value::from(call.case.tenant.as_str()));
    Ok(supplied(converter, &resolved.case, type_of(policies, &roles.case)?, &attributes, path)?)
}

fn type_of<'a>(policies: &'a Policies, kind: &str) -> Result<&'a EntityType, Stop> {
    policies.shapes.entities.get(kind).ok_or(Stop::Denied(Gate::Existence))
}

/// Returns an entity that a tool service sent. If its type has tags, they are the member [`TAGS`] of the attributes.
fn supplied(
    converter: &mut Converter,
    uid: &EntityUid,
    kind: &EntityType,
    attributes: &Object,
    path: &str,
) -> Result<Arc<Entity>, Refusal> {
    match (&kind.tags, attributes.get(TAGS)) {
        (Some(shape), Some(tags)) => {
            let mut attributes = attributes.clone();
            attributes.remove(TAGS);
            let members = converter.members(&attributes, &kind.attributes, path)?;
            let tags =
                tags.as_object().ok_or_else(|| Refusal::invalid(format!("{path}.{TAGS}"), "is not an object"))?;
            Ok(entity_with_tags(uid, members, converter.tags(tags, shape, &format!("{path}.{TAGS}"))?))
        }
        (Some(_) | None, _) => Ok(entity(uid, converter.members(attributes, &kind.attributes, path)?)),
    }
}

pub(crate) fn entity(uid: &EntityUid, members: Members) -> Arc<Entity> {
    entity_with_tags(uid, members, vec![])
}

fn entity_with_tags(uid: &EntityUid, members: Members, tags: Members) -> Arc<Entity> {
    let values = |members: Members| members.into_iter().map(|(name, value)| (name, PartialValue::Value(value)));
    let (none, parents) = (HashSet::new(), HashSet::new());
    Arc::new(Entity::new_with_attr_partial_value(uid.clone().into(), values(members), none, parents, values(tags)))
}

/// Converts `args` and `facts`, the members of `context` that callers control.
fn claimed(converter: &mut Converter, resolved: &ResolvedCall<'_>, call: &Call) -> Result<Members, Stop> {
    let mut pairs = vec![];
    let sent = [("args", "arguments_json", Some(&call.arguments)), ("facts", "facts_json", call.facts.as_ref())];
    for (name, path, object) in sent {
        let none = Object::new();
        match (resolved.action.context.get(name).map(|member| (&member.shape, member.required)), object) {
            (Some((Shape::Record(record), required)), object) if required || object.is_some() => {
                let members = converter.members(object.unwrap_or(&none), record, path)?;
                pairs.push((SmolStr::new_static(name), record_of(members)));
            }
            (Some(_), _) | (None, None) => {}
            (None, Some(object)) if object.is_empty() => {}
            (None, Some(_)) => return Err(Refusal::invalid(path, "is not accepted by this action").into()),
        }
    }
    Ok(pairs)
}

/// Checks that arguments which name an entity of the call have its id.
fn names_agree(roles: &Roles, chain: &Chain, call: &Call) -> Result<(), Stop> {
    for (argument, named) in roles.names.get(&call.action).into_iter().flatten() {
        let id = match named {
            Named::Agent => &chain.agent,
            Named::Case => &call.case.id,
            Named::Owner => roles.case_owner(&call.case),
            Named::Resource => &call.resource.reference.id,
            Named::Supervisor => &chain.supervisor,
            Named::Tenant => &call.case.tenant,
        };
        if call.arguments.get(argument).is_some_and(|value| value.as_str() != Some(id)) {
            return Err(Refusal::invalid(format!("arguments_json.{argument}"), named.problem()).into());
        }
    }
    Ok(())
}

/// Returns `derived`, whose members the PDP computes from the arguments.
fn computed(roles: &Roles, resolved: &ResolvedCall<'_>, call: &Call) -> Result<Members, Stop> {
    let Some(record) = computed_record(resolved.action) else { return Ok(Members::new()) };
    let members = computed_values(roles, resolved.action, &call.arguments)?;
    let mut converter = Converter { takes_repetitions: true, ..Converter::default() };
    let members = converter.members(&members, record, COMPUTED)?;
    Ok(vec![(SmolStr::new_static(COMPUTED), record_of(members))])
}

fn computed_record(action: &Action) -> Option<&Record> {
    match &action.context.get(COMPUTED)?.shape {
        Shape::Record(record) => Some(record),
        _ => None,
    }
}

/// Computes the values of `context.derived` that an action declares.
///
/// # Errors
/// If a sum of arguments is too large.
pub fn computed_values(roles: &Roles, action: &Action, arguments: &Object) -> Result<Object, Refusal> {
    let mut values = Object::new();
    for name in computed_record(action).into_iter().flat_map(Record::keys) {
        let Some(derivation) = roles.derive.get(name) else { continue };
        let path = || format!("arguments_json.{}", derivation.path.join("."));
        let value = derivation.of(arguments).map_err(|problem| Refusal::invalid(path(), problem))?;
        values.extend(value.map(|value| (name.clone(), value)));
    }
    Ok(values)
}

/// Returns `case`, `chain` and `now`, which follow from identity and time. A bundle declares them with their
/// types, so nothing can be wrong with them.
fn derived(resolved: &ResolvedCall<'_>, chain: &Chain, now: Timestamp) -> Result<Members, Stop> {
    let mut members = Members::new();
    for name in ["case", "chain", "now"] {
        let value = match name {
            _ if !resolved.action.context.contains_key(name) => continue,
            "case" => CedarValue::from(EntityUID::from(resolved.case.clone())),
            "now" => time(now).ok_or(Refusal::Unavailable("the clock's time is not one of Cedar's"))?,
            _ => chain_value(resolved, chain),
        };
        members.push((SmolStr::new_static(name), value));
    }
    Ok(members)
}

fn chain_value(resolved: &ResolvedCall<'_>, chain: &Chain) -> CedarValue {
    let mut members = vec![(SmolStr::new_static("asserted"), CedarValue::from(chain.asserted))];
    for (link, entity) in &resolved.principals {
        let name = match link {
            Link::Agent => "agent",
            Link::Supervisor => "supervisor",
            Link::ToolService => "tool_service",
            Link::Plain => continue,
        };
        members.push((SmolStr::new_static(name), CedarValue::from(entity.shared().uid().clone())));
        if *link == Link::Agent {
            members.push((SmolStr::new_static("scopes"), entity.subset("scopes", chain.scopes.as_deref())));
        }
    }
    record_of(members)
}
