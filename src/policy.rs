//! Policies, schema and the bundle's entities. They are loaded as a whole and read-only afterwards.

pub mod engine;
pub mod lint;
pub mod rule;
pub mod shape;
pub mod source;
pub mod store;

use std::collections::{BTreeMap, HashMap, HashSet};

use cedar_policy::{
    EvalResult, Policy, PolicyId, PolicySet, Schema, SchemaFragment, ValidationError, ValidationMode, Validator,
};
use miette::Diagnostic;

use crate::model::fault::Fault;
use crate::model::roles::Roles;
use crate::model::trusted_context::REMEMBERED;
use crate::policy::engine::{Engine, id_text};
use crate::policy::rule::Rule;
use crate::policy::shape::Shapes;
use crate::policy::source::{Placed, Source};
use crate::policy::store::Store;

/// Maximum number of attribute steps from an entity in a policy: `resource.tenant` is allowed,
/// `resource.owner.tenant` is not.
const DEREFERENCE_MAX: u32 = 1;

/// Source texts of a bundle's policies, schema and entities.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    pub schema: Option<Source>,
    pub policies: Vec<Source>,
    pub entities: Vec<Source>,
}

/// Strictness of policy validation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Validation {
    /// No validation, and ids by position where `@id` is absent; for conformance mode only.
    Off,
    /// Cedar's strict validator and the linter of this crate.
    #[default]
    Strict,
}

/// Everything in a bundle that an evaluation reads.
#[derive(Debug)]
pub struct Policies {
    /// The schema; absent only in conformance mode.
    pub schema: Option<Schema>,
    pub shapes: Shapes,
    pub store: Store,
    pub engine: Engine,
    rules: HashMap<String, Rule>,
    /// For each `context` member from the PDP's state, the actions whose policies read the member.
    readers: BTreeMap<&'static str, HashSet<String>>,
}

impl Policies {
    /// Returns the tenant of an entity of the bundle; `None` if the entity or its tenant does not exist.
    pub fn tenant_of(&self, kind: &str, id: &str) -> Option<String> {
        let entity = self.store.get(&self.shapes.uid(kind, id)?)?;
        match entity.attr("tenant")?.ok()? {
            EvalResult::EntityUid(tenant) => Some(tenant.id().unescaped().to_owned()),
            _ => None,
        }
    }

    /// Reads, validates and indexes the policies. Without `roles`, which gates need, the linter does not run.
    ///
    /// # Errors
    /// All faults that can be found at once, each with its position.
    pub fn load(sources: &Sources, roles: Option<&Roles>, validation: Validation) -> Result<Self, Vec<Fault>> {
        let (schema, shapes) = read_schema(sources, validation)?;
        let mut faults = Vec::new();
        let mut take = |found: Result<_, Vec<Fault>>| found.map_err(|mut found| faults.append(&mut found)).ok();
        let read = take(read_policies(&sources.policies, validation));
        let store =
            Store::load(&sources.entities, schema.as_ref(), roles).map_err(|mut found| faults.append(&mut found)).ok();
        let (Some(read), Some(store)) = (read, store) else { return Err(faults) };
        if validation == Validation::Strict
            && let Some(schema) = &schema
        {
            let (unrecognized, found) = validate(schema, &read);
            if unrecognized {
                // An unknown name causes further faults that mislead, so return only the unknown names.
                return Err(found);
            }
            faults.extend(found);
            if let (Some(source), Some(roles)) = (&sources.schema, roles) {
                faults.extend(lint::lint(&read, source, &shapes, &store, roles));
            }
            if !faults.is_empty() {
                return Err(faults);
            }
        }
        let readers = REMEMBERED.into_iter().map(|member| (member, lint::readers(&read, &shapes, member))).collect();
        Ok(Self { schema, engine: Engine::new(read.set, &shapes), shapes, store, rules: read.rules, readers })
    }

    /// Returns whether a policy that covers this action reads a `context` member from the PDP's state. If
    /// none does, the member need not be looked up.
    pub fn reads(&self, action: &str, member: &str) -> bool {
        self.readers.get(member).is_some_and(|actions| actions.contains(action))
    }

    /// Returns a policy's annotations.
    pub fn rule(&self, id: &str) -> Option<&Rule> {
        self.rules.get(id)
    }

    /// Returns every policy's annotations, by id.
    pub fn rules(&self) -> BTreeMap<&str, &Rule> {
        self.rules.iter().map(|(id, rule)| (id.as_str(), rule)).collect()
    }
}

/// Policies as read from their files, before validation.
#[derive(Debug)]
pub struct ReadPolicies {
    set: PolicySet,
    rules: HashMap<String, Rule>,
    placed: HashMap<String, (Source, Placed)>,
}

impl ReadPolicies {
    /// Creates a fault at the position of a policy.
    fn fault(&self, id: &str, message: impl Into<String>) -> Fault {
        match self.placed.get(id) {
            Some((source, placed)) => Fault::new(&source.file, &source.text, (placed.span.0, 1), message),
            None => Fault::whole("policies", "", message),
        }
    }
}

fn read_schema(sources: &Sources, validation: Validation) -> Result<(Option<Schema>, Shapes), Vec<Fault>> {
    let Some(source) = &sources.schema else {
        return match validation {
            Validation::Off => Ok((None, Shapes::default())),
            Validation::Strict => Err(vec![Fault::whole("schema.cedarschema", "", "the bundle has no schema")]),
        };
    };
    source::refuse_nesting(source).map_err(|fault| vec![fault])?;
    let (fragment, _) =
        SchemaFragment::from_cedarschema_str(&source.text).map_err(|error| source::faults(source, &error))?;
    if fragment.to_json_value().map_or(true, |fragment| shape::is_too_large(&fragment)) {
        return Err(vec![Fault::whole(
            &source.file,
            &source.text,
            "the schema has more than 1000000 parts after its aliases are expanded",
        )]);
    }
    let (schema, warnings) =
        Schema::from_cedarschema_str(&source.text).map_err(|error| source::faults(source, &error))?;
    let warnings: Vec<Fault> = warnings.flat_map(|warning| source::faults(source, &warning)).collect();
    if validation == Validation::Strict && !warnings.is_empty() {
        return Err(warnings);
    }
    match (Shapes::of(&schema), validation) {
        (Ok(shapes), _) => Ok((Some(schema), shapes)),
        (Err(_), Validation::Off) => Ok((Some(schema), Shapes::default())),
        (Err(error), Validation::Strict) => Err(vec![Fault::whole(&source.file, &source.text, error.to_string())]),
    }
}

fn read_policies(sources: &[Source], validation: Validation) -> Result<ReadPolicies, Vec<Fault>> {
    let mut read = ReadPolicies { set: PolicySet::new(), rules: HashMap::new(), placed: HashMap::new() };
    let mut faults = Vec::new();
    let mut position = 0;
    for source in sources {
        let placed = match source::parse(source) {
            Ok(placed) => placed,
            Err(mut found) => {
                faults.append(&mut found);
                continue;
            }
        };
        for placed in placed {
            let fault = |message: String| Fault::new(&source.file, &source.text, (placed.span.0, 1), message);
            let id = placed.policy.annotation("id").map(str::to_owned);
            let id = match (id, validation) {
                (Some(id), Validation::Strict) if !is_id(&id) => {
                    faults.push(fault("`@id` must be 1 to 128 of `a-z`, `0-9`, `.`, `_` and `-`".into()));
                    continue;
                }
                (Some(id), _) => id,
                (None, Validation::Off) => format!("policy{position}"),
                (None, Validation::Strict) => {
                    faults.push(fault("the policy has no `@id`".into()));
                    continue;
                }
            };
            position += 1;
            faults.extend(add(&mut read, source, &placed, &id, validation).into_iter().map(fault));
        }
    }
    if faults.is_empty() { Ok(read) } else { Err(faults) }
}

fn add(read: &mut ReadPolicies, source: &Source, placed: &Placed, id: &str, validation: Validation) -> Vec<String> {
    if let Some((other, at)) = read.placed.get(id) {
        let place = Fault::new(&other.file, &other.text, (at.span.0, 1), "").place();
        return vec![format!("the id `{id}` is already used by the policy at {place}")];
    }
    let policy: Policy = placed.policy.new_id(PolicyId::new(id));
    let place = Fault::new(&source.file, &source.text, (placed.span.0, 1), "").place();
    let place = place.rsplit_once(':').map_or(place.clone(), |(line, _column)| line.to_owned());
    match Rule::read(&policy, place) {
        Ok(rule) => {
            read.rules.insert(id.to_owned(), rule);
        }
        Err(found) if validation == Validation::Strict => return found,
        Err(_) => {}
    }
    read.placed.insert(id.to_owned(), (source.clone(), placed.clone()));
    read.set.add(policy).err().map(|error| error.to_string()).into_iter().collect()
}

fn is_id(id: &str) -> bool {
    (1..=128).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte))
}

/// Runs Cedar's strict validator. A warning counts as a fault, because an impossible policy protects nothing.
/// If names are not recognized, returns true and only the faults of those names.
fn validate(schema: &Schema, read: &ReadPolicies) -> (bool, Vec<Fault>) {
    let result = Validator::new(schema.clone()).validate_with_level(&read.set, ValidationMode::Strict, DEREFERENCE_MAX);
    let at = |id: &PolicyId, error: &dyn Diagnostic| match read.placed.get(&id_text(id)) {
        Some((source, _)) => source::faults(source, error),
        None => vec![Fault::whole("policies", "", error.to_string())],
    };
    let is_name = |error: &&ValidationError| {
        matches!(error, ValidationError::UnrecognizedActionId(_) | ValidationError::UnrecognizedEntityType(_))
    };
    let mut names: Vec<Fault> =
        result.validation_errors().filter(is_name).flat_map(|error| at(error.policy_id(), error)).collect();
    names.sort_by_key(Fault::line);
    if !names.is_empty() {
        return (true, names);
    }
    let errors = result.validation_errors().flat_map(|error| at(error.policy_id(), error));
    let warnings = result.validation_warnings().flat_map(|warning| at(warning.policy_id(), warning));
    let mut faults: Vec<Fault> = errors.chain(warnings).collect();
    faults.sort_by_key(Fault::line);
    (false, faults)
}
