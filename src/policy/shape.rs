//! The schema's types as conversion and the linter use them: resolved, closed, and without Cedar's internals.

use std::collections::{BTreeMap, HashMap};
use std::str::FromStr;

use cedar_policy::{EntityId, EntityTypeName, EntityUid, Schema};
use cedar_policy_core::ast;
use cedar_policy_core::validator::types::{EntityKind, Type};
use cedar_policy_core::validator::{ValidatorEntityTypeKind, ValidatorSchema};

use crate::json::Value;

/// The type of a value.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    Bool,
    /// `datetime`; RFC 3339 text in JSON.
    Datetime,
    /// `decimal`; text in JSON.
    Decimal,
    /// `duration`; text in JSON.
    Duration,
    /// A reference to an entity; its id as text in JSON.
    Entity(EntityShape),
    /// `ipaddr`; text in JSON.
    Ip,
    /// `Long`; an integer in JSON.
    Long,
    /// A closed record.
    Record(Record),
    /// A set; an array in JSON.
    Set(Box<Shape>),
    String,
}

impl Shape {
    /// Returns whether no value of this shape is a free text: a truth value, an integer, or a value of an enumerated type.
    pub fn has_no_text(&self) -> bool {
        matches!(self, Self::Bool | Self::Long) || !self.choices().is_empty() && matches!(self, Self::Entity(_))
    }

    /// Returns whether a value is one of a shape without text.
    pub fn fits_without_text(&self, value: &Value) -> bool {
        match (self, value) {
            (Self::Bool, Value::Bool(_)) | (Self::Long, Value::Integer(_)) => true,
            (Self::Entity(_), Value::String(text)) => self.choices().contains(text),
            (_, _) => false,
        }
    }

    /// Returns the members of an enumerated type or of a set of one; empty for other types.
    pub fn choices(&self) -> &[String] {
        match self {
            Self::Entity(entity) => entity.choices.as_deref().unwrap_or(&[]),
            Self::Set(element) => element.choices(),
            Self::Bool
            | Self::Datetime
            | Self::Decimal
            | Self::Duration
            | Self::Ip
            | Self::Long
            | Self::Record(_)
            | Self::String => &[],
        }
    }
}

/// Name of an entity type, with the members if it is enumerated.
#[derive(Clone, Debug, PartialEq)]
pub struct EntityShape {
    pub name: EntityTypeName,
    /// Members in the order of declaration; `None` if the type is not enumerated.
    pub choices: Option<Vec<String>>,
}

/// Members of a record by name.
pub type Record = BTreeMap<String, Member>;

/// A member of a record.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    pub shape: Shape,
    /// Whether the member must be present.
    pub required: bool,
}

/// An entity type with its attributes.
#[derive(Clone, Debug)]
pub struct EntityType {
    pub shape: EntityShape,
    pub attributes: Record,
    /// Whether entities of the type may have parents.
    pub has_parents: bool,
    /// Type of the values of tags; `None` if entities of the type have no tags.
    pub tags: Option<Shape>,
}

/// An action that requests may name.
#[derive(Clone, Debug)]
pub struct Action {
    pub uid: EntityUid,
    /// Principal types that the action applies to.
    pub principals: Vec<EntityTypeName>,
    /// Resource types that the action applies to.
    pub resources: Vec<EntityTypeName>,
    pub context: Record,
    /// Ids of the groups that contain the action, directly or indirectly.
    pub groups: Vec<String>,
}

impl Action {
    /// Whether a step covers the action. The step gate is this test, and no policy can open it.
    pub fn is_in_step(&self, step: &str) -> bool {
        self.groups.iter().any(|group| group.strip_prefix("in_") == Some(step))
    }
}

/// All of a schema's types.
#[derive(Clone, Debug, Default)]
pub struct Shapes {
    /// Entity types by name.
    pub entities: HashMap<String, EntityType>,
    /// Actions by id.
    pub actions: BTreeMap<String, Action>,
}

/// Features of a schema that are not supported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// Two namespaces declare the same action id.
    #[error("action `{0}` is declared in two namespaces: requests name actions only by id")]
    AmbiguousAction(String),
    /// A type has no JSON form for arguments.
    #[error("{0} has a type that is not supported")]
    Type(String),
}

impl Unsupported {
    /// Returns the name of the action, or of the member that has the type.
    pub fn name(&self) -> &str {
        match self {
            Self::AmbiguousAction(name) => name,
            Self::Type(place) => place.trim_matches('`').rsplit('.').next().unwrap_or(place),
        }
    }
}

impl Shapes {
    /// Reads a schema.
    ///
    /// # Errors
    /// If the schema uses a feature that is not supported.
    pub fn of(schema: &Schema) -> Result<Self, Unsupported> {
        let core: &ValidatorSchema = schema.as_ref();
        let mut shapes = Self::default();
        for kind in core.entity_types() {
            let name = kind.name().to_string();
            let attributes = record(core, kind.attributes().iter(), &name)?;
            let shape = entity_shape(core, kind.name());
            let has_parents = core.entity_types().any(|other| other.descendants.contains(kind.name()));
            let tags = kind.tag_type().map(|tag| self::shape(core, tag, &format!("`{name}.tags`"))).transpose()?;
            shapes.entities.insert(name, EntityType { shape, attributes, has_parents, tags });
        }
        for id in core.action_ids().filter(|id| id.applies_to_principals().next().is_some()) {
            let uid = EntityUid::from(id.name().clone());
            let name = uid.id().unescaped().to_owned();
            let context = match id.context_type() {
                Some(Type::Record { attrs, .. }) => record(core, attrs.iter(), &name)?,
                _ => Record::new(),
            };
            let types = |types: Vec<&ast::EntityType>| {
                let mut names: Vec<EntityTypeName> = types.into_iter().map(|kind| kind.clone().into()).collect();
                names.sort();
                names
            };
            let mut groups: Vec<String> = core
                .action_ids()
                .filter(|group| group.descendants().any(|member| member == id.name()))
                .map(|group| EntityUid::from(group.name().clone()).id().unescaped().to_owned())
                .collect();
            groups.sort();
            let action = Action {
                uid,
                principals: types(id.applies_to_principals().collect()),
                resources: types(id.applies_to_resources().collect()),
                context,
                groups,
            };
            if shapes.actions.insert(name.clone(), action).is_some() {
                return Err(Unsupported::AmbiguousAction(name));
            }
        }
        Ok(shapes)
    }

    /// Returns the uid of an entity, or `None` if the schema does not declare its type.
    pub fn uid(&self, kind: &str, id: &str) -> Option<EntityUid> {
        let name = self.entities.get(kind)?.shape.name.clone();
        Some(EntityUid::from_type_name_and_id(name, EntityId::new(id)))
    }

    /// Returns the members of an enumerated type; empty if the type is unknown or not enumerated.
    pub fn choices(&self, name: &str) -> &[String] {
        self.entities.get(name).and_then(|kind| kind.shape.choices.as_deref()).unwrap_or(&[])
    }

    /// Returns the member at the end of an attribute path from a record. The path may pass through entity
    /// types.
    pub fn follow<'a>(&'a self, from: &'a Record, path: &[&str]) -> Option<&'a Member> {
        let (first, rest) = path.split_first()?;
        let member = from.get(*first)?;
        if rest.is_empty() {
            return Some(member);
        }
        match &member.shape {
            Shape::Record(record) => self.follow(record, rest),
            Shape::Entity(entity) => self.follow(&self.entities.get(&entity.name.to_string())?.attributes, rest),
            Shape::Bool
            | Shape::Datetime
            | Shape::Decimal
            | Shape::Duration
            | Shape::Ip
            | Shape::Long
            | Shape::Set(_)
            | Shape::String => None,
        }
    }
}

type Attribute<'a> = (&'a smol_str::SmolStr, &'a cedar_policy_core::validator::types::AttributeType);

/// Maximum number of parts of a schema with its aliases expanded. Cedar expands them, so a schema doubles in
/// size with each alias that contains the one before it twice.
const PARTS_MAX: u64 = 1_000_000;

/// Returns whether an expanded schema would exceed `PARTS_MAX`, measured on its unresolved form.
pub fn is_too_large(fragment: &serde_json::Value) -> bool {
    let mut aliases = HashMap::new();
    for namespace in fragment.as_object().into_iter().flat_map(serde_json::Map::values) {
        let common = namespace.get("commonTypes").and_then(serde_json::Value::as_object);
        aliases.extend(common.into_iter().flatten().map(|(name, shape)| (name.as_str(), shape)));
    }
    parts(fragment, &aliases, &mut HashMap::new()) > PARTS_MAX
}

type Aliases<'a> = HashMap<&'a str, &'a serde_json::Value>;

/// Counts the parts of a piece of a schema; each alias counts as often as it is named.
fn parts<'a>(piece: &'a serde_json::Value, aliases: &Aliases<'a>, known: &mut HashMap<&'a str, u64>) -> u64 {
    let below = match piece {
        serde_json::Value::Array(items) => {
            items.iter().map(|item| parts(item, aliases, known)).fold(0, u64::saturating_add)
        }
        serde_json::Value::Object(members) => {
            members.values().map(|member| parts(member, aliases, known)).fold(0, u64::saturating_add)
        }
        serde_json::Value::String(name) => {
            let name = name.rsplit("::").next().unwrap_or(name);
            match (known.get(name), aliases.get_key_value(name)) {
                (Some(count), _) => *count,
                (None, Some((name, shape))) => {
                    // Cedar rejects recursive aliases; here the count only has to terminate.
                    known.insert(name, 1);
                    let count = parts(shape, aliases, known);
                    known.insert(name, count);
                    count
                }
                (None, None) => 0,
            }
        }
        serde_json::Value::Bool(_) | serde_json::Value::Null | serde_json::Value::Number(_) => 0,
    };
    below.saturating_add(1)
}

fn record<'a>(
    schema: &ValidatorSchema,
    attributes: impl Iterator<Item = Attribute<'a>>,
    of: &str,
) -> Result<Record, Unsupported> {
    attributes
        .map(|(name, attribute)| {
            let shape = shape(schema, &attribute.attr_type, &format!("`{of}.{name}`"))?;
            Ok((name.to_string(), Member { shape, required: attribute.is_required }))
        })
        .collect()
}

fn shape(schema: &ValidatorSchema, of: &Type, place: &str) -> Result<Shape, Unsupported> {
    let unsupported = || Unsupported::Type(place.to_owned());
    match of {
        Type::Bool(_) => Ok(Shape::Bool),
        Type::Long => Ok(Shape::Long),
        Type::String => Ok(Shape::String),
        Type::Entity(EntityKind::Entity(lub)) => {
            let name = lub.get_single_entity().ok_or_else(unsupported)?;
            Ok(Shape::Entity(entity_shape(schema, name)))
        }
        Type::Set { element_type: Some(element) } => Ok(Shape::Set(Box::new(shape(schema, element, place)?))),
        Type::Record { attrs, .. } => Ok(Shape::Record(record(schema, attrs.iter(), place.trim_matches('`'))?)),
        Type::ExtensionType { name } => match name.to_string().as_str() {
            "datetime" => Ok(Shape::Datetime),
            "decimal" => Ok(Shape::Decimal),
            "duration" => Ok(Shape::Duration),
            "ipaddr" => Ok(Shape::Ip),
            _ => Err(unsupported()),
        },
        Type::Never | Type::Entity(EntityKind::AnyEntity) | Type::Set { element_type: None } => Err(unsupported()),
    }
}

fn entity_shape(schema: &ValidatorSchema, name: &ast::EntityType) -> EntityShape {
    let choices = match schema.get_entity_type(name).map(|kind| &kind.kind) {
        Some(ValidatorEntityTypeKind::Enum(ids)) => {
            Some(ids.iter().map(|id| AsRef::<str>::as_ref(id).to_owned()).collect())
        }
        Some(ValidatorEntityTypeKind::Standard(_) | ValidatorEntityTypeKind::External) | None => None,
    };
    EntityShape { name: name.clone().into(), choices }
}

/// Parses the name of an entity type; `None` if it is malformed.
pub fn type_name(text: &str) -> Option<EntityTypeName> {
    EntityTypeName::from_str(text).ok()
}
