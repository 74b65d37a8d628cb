//! The bundle's entities: agents, humans, tool services, tenants, roles and fields.

use std::collections::{HashMap, HashSet};

use cedar_policy::{Entities, Entity, EntityUid, Schema};
use serde_json::value::RawValue;

use crate::json;
use crate::model::fault::Fault;
use crate::model::roles::{Roles, Supplier};
use crate::policy::source::Source;

/// Entities defined in the bundle's folder.
#[derive(Debug, Default)]
pub struct Store {
    by_uid: HashMap<EntityUid, Entity>,
    actions: HashMap<EntityUid, Entity>,
    all: Entities,
}

impl Store {
    /// Reads files against the schema. Each file is a JSON array of entities in Cedar's form.
    ///
    /// # Errors
    /// All faults found, each at the entity that has it.
    pub fn load(sources: &[Source], schema: Option<&Schema>, roles: Option<&Roles>) -> Result<Self, Vec<Fault>> {
        let mut faults = Vec::new();
        let mut by_uid = HashMap::new();
        for source in sources {
            match read(source, schema) {
                Ok(entities) => {
                    for (at, entity) in entities {
                        let kind = entity.uid().type_name().to_string();
                        if roles.is_some_and(|roles| roles.supplier(&kind) != Some(Supplier::Bundle)) {
                            let message = format!("entities of type `{kind}` must not be defined in the bundle");
                            faults.push(
                                Fault::new(&source.file, &source.text, at, message)
                                    .help("see `supplied_by` in bundle.yaml"),
                            );
                        }
                        if by_uid.insert(entity.uid(), entity).is_some() {
                            faults.push(Fault::new(&source.file, &source.text, at, "this entity is already defined"));
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
            faults.push(Fault::whole(&source.file, &source.text, message));
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let actions = schema.map(Schema::action_entities).transpose();
        let all = Entities::from_entities(by_uid.values().cloned(), schema);
        match (actions, all) {
            (Ok(actions), Ok(all)) => {
                let actions =
                    actions.iter().flat_map(Entities::iter).map(|entity| (entity.uid(), entity.clone())).collect();
                // Entities taken from `all` include their transitive ancestors.
                let by_uid =
                    by_uid.into_keys().filter_map(|uid| all.get(&uid).cloned().map(|entity| (uid, entity))).collect();
                Ok(Self { by_uid, actions, all })
            }
            (Err(error), _) | (_, Err(error)) => {
                let source =
                    sources.first().cloned().unwrap_or(Source { file: "entities".into(), text: String::new() });
                Err(vec![Fault::whole(&source.file, &source.text, chain(&error))])
            }
        }
    }

    pub fn get(&self, uid: &EntityUid) -> Option<&Entity> {
        self.by_uid.get(uid)
    }

    /// Returns the action's entity, whose ancestors are its groups.
    pub fn action(&self, uid: &EntityUid) -> Option<&Entity> {
        self.actions.get(uid)
    }

    /// Returns the bundle's entities in arbitrary order.
    pub fn entities(&self) -> impl Iterator<Item = &Entity> {
        self.by_uid.values()
    }

    /// Returns all entities, including the schema's actions.
    pub fn all(&self) -> &Entities {
        &self.all
    }
}

/// Maximum length of a chain of parents, which Cedar walks by recursion.
const CHAIN_MAX: usize = 64;

/// Returns whether a chain of parents is cyclic or longer than [`CHAIN_MAX`], following it level by level.
fn is_too_deep(entities: &HashMap<EntityUid, Entity>) -> bool {
    let parents = |entity: &Entity| entity.clone().into_inner().2;
    let mut level: HashSet<EntityUid> = entities.keys().cloned().collect();
    for _ in 0..CHAIN_MAX {
        level = level.iter().filter_map(|uid| entities.get(uid)).flat_map(parents).collect();
        if level.is_empty() {
            return false;
        }
    }
    true
}

type Found = ((usize, usize), Entity);

fn read(source: &Source, schema: Option<&Schema>) -> Result<Vec<Found>, Vec<Fault>> {
    let raw: Vec<&RawValue> = serde_json::from_str(&source.text).map_err(|error| {
        let at = offset(&source.text, error.line(), error.column());
        vec![Fault::new(&source.file, &source.text, (at, 1), "is not a JSON array of entities")]
    })?;
    let mut found = Vec::new();
    let mut faults = Vec::new();
    for raw in raw {
        // The raw value borrows from the text, so the difference of their addresses is its offset.
        let at = raw.get().as_ptr().addr().saturating_sub(source.text.as_ptr().addr());
        let span = (at, raw.get().lines().next().map_or(1, str::len));
        if let Err(fault) = json::check_members(raw.get()) {
            faults.push(Fault::new(&source.file, &source.text, span, format!("`{}` {}", fault.path, fault.problem)));
            continue;
        }
        let value = serde_json::from_str(raw.get()).map_err(|error| error.to_string());
        match value
            .and_then(|value: serde_json::Value| Entity::from_json_value(value, schema).map_err(|error| chain(&error)))
        {
            Ok(entity) => found.push((span, entity)),
            Err(message) => faults.push(Fault::new(&source.file, &source.text, span, message)),
        }
    }
    if faults.is_empty() { Ok(found) } else { Err(faults) }
}

/// Returns the byte offset of a line and column, both counted from 1.
pub fn offset(text: &str, line: usize, column: usize) -> usize {
    let before: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    (before + column.saturating_sub(1)).min(text.len())
}

/// Formats an error and its causes in one line, because Cedar's outermost message has little information.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string);
    causes.collect::<Vec<_>>().join(": ").replace('\n', " ")
}
/// Attribute of a field's entity: whether a person writes the field.
pub const FREE_TEXT: &str = "free_text";

/// Returns whether a person writes the field.
pub fn is_free_text(field: &Entity) -> bool {
    matches!(field.attr(FREE_TEXT), Some(Ok(cedar_policy::EvalResult::Bool(true))))
}
