//! The bundle's entities: agents, humans, tool services, tenants, roles and fields.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use cedar_policy::{Entities, EntityUid, Schema};
use cedar_policy_core::ast::{Entity, EntityUID, Literal, PartialValue, Value, ValueKind};
use cedar_policy_core::entities::err::EntitiesError;
use cedar_policy_core::entities::{NoEntitiesSchema, TCComputation};
use cedar_policy_core::extensions::Extensions;
use serde_json::value::RawValue;

use crate::json;
use crate::model::fault::Fault;
use crate::model::fault::code::Code;
use crate::model::roles::{Roles, Supplier};
use crate::model::source::Source;
use crate::policy::parse::rfc3339_offset;
use crate::policy::shape::{Shape, Shapes};

/// An entity of the bundle or an action of the schema, with all its ancestors. Clones share it.
#[derive(Clone, Debug)]
pub struct StoredEntity(Arc<Entity>);

impl StoredEntity {
    pub fn uid(&self) -> EntityUid {
        self.0.uid().clone().into()
    }

    /// Returns the entity's id.
    pub fn id(&self) -> &str {
        self.0.uid().eid().as_ref()
    }

    /// Returns whether the entity is of this type.
    pub fn is_of(&self, kind: &str) -> bool {
        self.0.uid().entity_type().to_string() == kind
    }

    /// Returns the entity that an attribute refers to.
    pub fn reference(&self, attribute: &str) -> Option<EntityUid> {
        reference(self.value(attribute)?)
    }

    /// Returns the entities that an attribute, which is a set, refers to.
    pub fn references(&self, attribute: &str) -> Vec<EntityUid> {
        match self.value(attribute).map(Value::value_kind) {
            Some(ValueKind::Set(items)) => items.iter().filter_map(reference).collect(),
            Some(ValueKind::Lit(_) | ValueKind::Record(_) | ValueKind::ExtensionValue(_)) | None => vec![],
        }
    }

    /// Returns an attribute that is a set of entities, restricted to these ids if there are any; the empty set
    /// if there is no such attribute.
    pub(crate) fn subset(&self, attribute: &str, ids: Option<&[String]>) -> Value {
        let Some((value, ValueKind::Set(items))) = self.value(attribute).map(|value| (value, value.value_kind()))
        else {
            return Value::empty_set(None);
        };
        let Some(ids) = ids else { return value.clone() };
        let is_named = |item: &&Value| match item.value_kind() {
            ValueKind::Lit(Literal::EntityUID(uid)) => ids.iter().any(|id| AsRef::<str>::as_ref(uid.eid()) == id),
            ValueKind::Lit(_) | ValueKind::Set(_) | ValueKind::Record(_) | ValueKind::ExtensionValue(_) => false,
        };
        Value::set(items.iter().filter(is_named).cloned(), None)
    }

    /// Returns all entities that an attribute refers to, at any depth.
    pub fn all_references(&self, attribute: &str) -> HashSet<EntityUid> {
        let all = self.value(attribute).map(Value::all_literal_uids).unwrap_or_default();
        all.into_iter().map(EntityUid::from).collect()
    }

    /// Returns the entities that this one is directly in.
    pub fn parents(&self) -> impl Iterator<Item = EntityUid> {
        self.0.parents().map(|uid| uid.clone().into())
    }

    pub fn has(&self, attribute: &str) -> bool {
        self.0.get(attribute).is_some()
    }

    /// Returns whether an attribute is `true`.
    pub fn is_true(&self, attribute: &str) -> bool {
        matches!(self.value(attribute).map(Value::value_kind), Some(ValueKind::Lit(Literal::Bool(true))))
    }

    /// Returns the entity in the form that evaluations share.
    pub(crate) fn shared(&self) -> &Arc<Entity> {
        &self.0
    }

    fn value(&self, attribute: &str) -> Option<&Value> {
        match self.0.get(attribute)? {
            PartialValue::Value(value) => Some(value),
            PartialValue::Residual(_) => None,
        }
    }
}

fn reference(value: &Value) -> Option<EntityUid> {
    match value.value_kind() {
        ValueKind::Lit(Literal::EntityUID(uid)) => Some(uid.as_ref().clone().into()),
        ValueKind::Lit(_) | ValueKind::Set(_) | ValueKind::Record(_) | ValueKind::ExtensionValue(_) => None,
    }
}

/// Entities defined in the bundle's folder.
#[derive(Debug, Default)]
pub struct Store {
    by_uid: HashMap<EntityUID, StoredEntity>,
    actions: HashMap<EntityUID, StoredEntity>,
    all: Entities,
}

impl Store {
    /// Reads files against the schema. Each file is a JSON array of entities in Cedar's form.
    ///
    /// # Errors
    /// All faults found, each at the entity that has it.
    pub fn load(
        sources: &[Source],
        schema: Option<&Schema>,
        shapes: &Shapes,
        roles: Option<&Roles>,
    ) -> Result<Self, Vec<Fault>> {
        let mut faults = Vec::new();
        let mut by_uid: HashMap<EntityUID, Entity> = HashMap::new();
        for source in sources {
            match read(source, schema, shapes) {
                Ok(entities) => {
                    for (at, entity) in entities {
                        let kind = entity.uid().entity_type().to_string();
                        if roles.is_some_and(|roles| roles.supplier(&kind) != Some(Supplier::Bundle)) {
                            let message = format!("entities of type `{kind}` must not be defined in the bundle");
                            faults.push(
                                Fault::new(Code::EntitySupplier, source, at, message)
                                    .help("see `supplied_by` in bundle.yaml"),
                            );
                        }
                        if by_uid.insert(entity.uid().clone(), entity).is_some() {
                            faults.push(Fault::new(
                                Code::EntityDuplicate,
                                source,
                                at,
                                "this entity is already defined",
                            ));
                        }
                    }
                }
                Err(mut found) => faults.append(&mut found),
            }
        }
        if faults.is_empty()
            && let Some(source) = sources.first()
            && is_too_deep(&by_uid)
        {
            let message = format!("the entities' parents form a chain of more than {CHAIN_MAX}");
            faults.push(Fault::whole(Code::EntityParents, source, message));
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let unreadable = |error: &dyn std::error::Error| {
            vec![match sources.first() {
                Some(source) => Fault::whole(Code::EntityInvalid, source, chain(error)),
                None => Fault::missing(Code::EntityInvalid, "entities", chain(error)),
            }]
        };
        let actions = schema.map(Schema::action_entities).transpose().map_err(|error| unreadable(&error))?;
        let share = |entity: Entity| (entity.uid().clone(), StoredEntity(Arc::new(entity)));
        let core = |entity: &cedar_policy::Entity| AsRef::<Entity>::as_ref(entity).clone();
        let actions: HashMap<_, _> = actions.iter().flat_map(Entities::iter).map(core).map(share).collect();
        let by_uid: HashMap<_, _> = with_ancestors(by_uid).into_iter().map(share).collect();
        let everything = by_uid.values().chain(actions.values()).map(|entity| Arc::clone(&entity.0));
        let all = shared(everything).map_err(|error| unreadable(&error))?;
        Ok(Self { by_uid, actions, all })
    }

    pub fn get(&self, uid: &EntityUid) -> Option<&StoredEntity> {
        self.by_uid.get(uid.as_ref())
    }

    /// Returns the action's entity, whose ancestors are its groups.
    pub fn action(&self, uid: &EntityUid) -> Option<&StoredEntity> {
        self.actions.get(uid.as_ref())
    }

    /// Returns the bundle's entities in arbitrary order.
    pub fn entities(&self) -> impl Iterator<Item = &StoredEntity> {
        self.by_uid.values()
    }

    /// Returns all entities, including the schema's actions.
    pub fn all(&self) -> &Entities {
        &self.all
    }
}

impl Store {
    /// Returns these entities, and those of the bundle to which their attributes lead within so many steps.
    pub(crate) fn reachable(&self, mut entities: Vec<Arc<Entity>>, steps: u32) -> Vec<Arc<Entity>> {
        let mut seen: HashSet<EntityUID> = entities.iter().map(|entity| entity.uid().clone()).collect();
        let mut start = 0;
        for _ in 0..steps {
            let named = entities.iter().skip(start).flat_map(|entity| entity.attrs());
            let named = named.filter_map(|(_, value)| match value {
                PartialValue::Value(value) => Some(value.all_literal_uids()),
                PartialValue::Residual(_) => None,
            });
            let new = named.flatten().filter(|uid| seen.insert(uid.clone()));
            let new = new.filter_map(|uid| self.by_uid.get(&uid)).map(|found| Arc::clone(found.shared()));
            let new: Vec<Arc<Entity>> = new.collect();
            start = entities.len();
            entities.extend(new);
        }
        entities
    }
}

/// Puts entities that have all their ancestors together for an evaluation, which shares them.
///
/// # Errors
/// If two different entities have the same uid.
pub(crate) fn shared(entities: impl IntoIterator<Item = Arc<Entity>>) -> Result<Entities, Box<EntitiesError>> {
    let (none, extensions) = (None::<&NoEntitiesSchema>, Extensions::all_available());
    let empty = cedar_policy_core::entities::Entities::new();
    Ok(empty.add_entities(entities, none, TCComputation::AssumeAlreadyComputed, extensions).map_err(Box::new)?.into())
}

/// Adds to each entity the ancestors of its parents. The parents form no cycle.
fn with_ancestors(mut entities: HashMap<EntityUID, Entity>) -> Vec<Entity> {
    let parents: HashMap<EntityUID, Vec<EntityUID>> = entities
        .iter()
        .map(|(uid, entity)| (uid.clone(), entity.parents().cloned().collect::<Vec<_>>()))
        .filter(|(_, parents)| !parents.is_empty())
        .collect();
    for (uid, direct) in &parents {
        let Some(entity) = entities.get_mut(uid) else { continue };
        let mut open: Vec<&EntityUID> = direct.iter().filter_map(|parent| parents.get(parent)).flatten().collect();
        while let Some(ancestor) = open.pop() {
            if !entity.is_descendant_of(ancestor) {
                entity.add_indirect_ancestor(ancestor.clone());
                open.extend(parents.get(ancestor).into_iter().flatten());
            }
        }
    }
    entities.into_values().collect()
}

/// Maximum length of a chain of parents, which Cedar walks by recursion.
const CHAIN_MAX: usize = 64;

/// Returns whether a chain of parents is cyclic or longer than [`CHAIN_MAX`], following it level by level.
fn is_too_deep(entities: &HashMap<EntityUID, Entity>) -> bool {
    let mut level: HashSet<&EntityUID> = entities.keys().collect();
    for _ in 0..CHAIN_MAX {
        level = level.iter().filter_map(|uid| entities.get(*uid)).flat_map(Entity::parents).collect();
        if level.is_empty() {
            return false;
        }
    }
    true
}

type Found = ((usize, usize), Entity);

fn read(source: &Source, schema: Option<&Schema>, shapes: &Shapes) -> Result<Vec<Found>, Vec<Fault>> {
    let raw: Vec<&RawValue> = serde_json::from_str(&source.text).map_err(|error| {
        let at = source.offset(error.line(), error.column());
        vec![Fault::new(Code::EntityInvalid, source, (at, 1), "is not a JSON array of entities")]
    })?;
    let mut found = Vec::new();
    let mut faults = Vec::new();
    for raw in raw {
        let span = (offset(source, raw), raw.get().lines().next().map_or(1, str::len));
        if let Err(fault) = json::check_members(raw.get()) {
            faults.push(Fault::new(Code::EntityInvalid, source, span, format!("`{}` {}", fault.path, fault.problem)));
            continue;
        }
        let value = serde_json::from_str(raw.get()).map_err(|error| error.to_string());
        match value.and_then(|mut value: serde_json::Value| {
            with_cedar_times(&mut value, shapes);
            cedar_policy::Entity::from_json_value(value, schema).map_err(|error| chain(&error))
        }) {
            Ok(entity) => found.push((span, AsRef::<Entity>::as_ref(&entity).clone())),
            Err(message) => faults.push(Fault::new(Code::EntityInvalid, source, span, message)),
        }
    }
    if faults.is_empty() { Ok(found) } else { Err(faults) }
}

/// Returns where a value that borrows from the text begins in it: the difference of their addresses.
fn offset(source: &Source, raw: &RawValue) -> usize {
    raw.get().as_ptr().addr().saturating_sub(source.text.as_ptr().addr())
}

/// Positions of entities in their files, for messages.
#[derive(Debug, Default)]
pub struct Places<'a>(HashMap<EntityUid, (&'a Source, &'a str, usize)>);

#[derive(serde::Deserialize)]
struct Defined<'a> {
    #[serde(borrow)]
    uid: &'a RawValue,
}

impl<'a> Places<'a> {
    /// Finds entities in their files.
    pub fn of<'u>(sources: &'a [Source], uids: impl Iterator<Item = &'u EntityUid>) -> Self {
        let wanted: HashSet<&EntityUid> = uids.collect();
        let mut places = Self::default();
        if wanted.is_empty() {
            return places;
        }
        for source in sources {
            // These files were read before.
            let raw: Vec<&RawValue> = serde_json::from_str(&source.text).unwrap_or_default();
            for raw in raw {
                let defined = serde_json::from_str::<Defined<'_>>(raw.get()).ok();
                let uid = defined.and_then(|defined| serde_json::from_str(defined.uid.get()).ok());
                let uid = uid.and_then(|uid: serde_json::Value| EntityUid::from_json(uid).ok());
                if let Some(uid) = uid.filter(|uid| wanted.contains(uid)) {
                    places.0.insert(uid, (source, raw.get(), offset(source, raw)));
                }
            }
        }
        places
    }

    /// Returns where an entity refers to another one.
    pub fn reference(&self, entity: &EntityUid, to: &EntityUid) -> Option<(&'a Source, (usize, usize))> {
        let (source, text, at) = *self.0.get(entity)?;
        let quoted = serde_json::to_string(to.id().unescaped()).ok()?;
        let within = text.rfind(&quoted).unwrap_or(0);
        Some((source, (at + within, quoted.len())))
    }
}

/// Gives times with the offset of RFC 3339 (`+01:00`) that of Cedar (`+0100`), where the schema or the value itself
/// says that they are times.
fn with_cedar_times(entity: &mut serde_json::Value, shapes: &Shapes) {
    let uid = entity.get("uid").map(|uid| uid.get("__entity").unwrap_or(uid));
    let kind = uid.and_then(|uid| uid.get("type")).and_then(serde_json::Value::as_str);
    let record = kind.and_then(|kind| shapes.entities.get(kind)).map(|kind| &kind.attributes);
    let attributes = entity.get_mut("attrs").and_then(serde_json::Value::as_object_mut);
    for (name, value) in attributes.into_iter().flatten() {
        rewrite_times(value, record.and_then(|record| record.get(name)).map(|member| &member.shape));
    }
}

fn rewrite_times(value: &mut serde_json::Value, shape: Option<&Shape>) {
    match (value, shape) {
        (serde_json::Value::String(text), Some(Shape::Datetime)) => {
            if let Some(offset) = rfc3339_offset(text) {
                text.remove(offset + 3);
            }
        }
        (serde_json::Value::Array(items), shape) => {
            let element = match shape {
                Some(Shape::Set(element)) => Some(&**element),
                Some(_) | None => None,
            };
            items.iter_mut().for_each(|item| rewrite_times(item, element));
        }
        (serde_json::Value::Object(members), shape) => {
            let call = members.get("__extn").and_then(serde_json::Value::as_object).unwrap_or(members);
            let is_time = call.get("fn").and_then(serde_json::Value::as_str) == Some("datetime");
            for (name, member) in members {
                let of_member = match shape {
                    _ if is_time => Some(&Shape::Datetime),
                    Some(Shape::Record(record)) => record.get(name).map(|member| &member.shape),
                    Some(_) | None => None,
                };
                rewrite_times(member, of_member);
            }
        }
        (_, _) => {}
    }
}

/// Formats an error and its causes in one line, because Cedar's outermost message has little information.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string);
    causes.collect::<Vec<_>>().join(": ").replace('\n', " ")
}
/// Attribute of a field's entity: whether a person writes the field.
pub const FREE_TEXT: &str = "free_text";

/// Returns whether a person writes the field.
pub fn is_free_text(field: &StoredEntity) -> bool {
    field.is_true(FREE_TEXT)
}
