//! Policies, schema and the bundle's entities. They are loaded as a whole and read-only afterwards.

pub mod engine;
pub mod explain;
mod index;
pub mod lint;
pub mod parse;
pub mod rule;
mod scope;
pub mod shape;
pub mod store;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use cedar_policy::{PolicyId, Schema, SchemaFragment, ValidationError, ValidationWarning};
use cedar_policy_core::ast::{Policy, PolicyID, PolicySet};
use cedar_policy_core::validator::{ValidationMode, Validator, ValidatorSchema};
use miette::Diagnostic;

use crate::model::fault::Fault;
use crate::model::fault::code::Code;
use crate::model::roles::{LEVEL_MAX, Roles};
use crate::model::source::Source;
use crate::model::trusted_context::REMEMBERED;
use crate::policy::engine::Engine;
use crate::policy::parse::{POLICIES_MAX, Placed};
use crate::policy::rule::{AnnotationFault, Requirement, Rule};
use crate::policy::shape::Shapes;
use crate::policy::store::{Store, StoredEntity};

/// Stack of threads that parse or validate policies, in bytes. Cedar recurses with the depth of a text.
pub const STACK_BYTES: usize = 64 * 1024 * 1024;

/// Source texts of a bundle's policies, schema and entities.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    pub schema: Option<Source>,
    pub policies: Vec<Source>,
    pub entities: Vec<Source>,
    pub manifest: Option<Source>,
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
    /// Maximum number of attribute steps from an entity in a policy.
    pub level: u32,
    rules: HashMap<String, Rule>,
    /// For each consent template, the actions whose policies require it.
    pub consents: BTreeMap<String, BTreeSet<String>>,
    /// For each `context` member from the PDP's state, the actions whose policies read the member.
    readers: BTreeMap<&'static str, HashSet<String>>,
}

impl Policies {
    /// Returns the tenant of an entity of the bundle; `None` if the entity or its tenant does not exist.
    pub fn tenant_of(&self, kind: &str, id: &str) -> Option<String> {
        let tenant = self.store.get(&self.shapes.uid(kind, id)?)?.reference("tenant")?;
        Some(tenant.id().unescaped().to_owned())
    }

    /// Returns whether the bundle defines an entity.
    pub fn has(&self, kind: &str, id: &str) -> bool {
        self.shapes.uid(kind, id).is_some_and(|uid| self.store.get(&uid).is_some())
    }

    /// Returns the ids of the bundle's entities of a type.
    pub fn ids<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a str> {
        let of_kind = self.store.entities().filter(move |entity| entity.is_of(kind));
        of_kind.map(StoredEntity::id)
    }

    /// Reads policies and schema without anything that they refer to, to find their faults.
    ///
    /// # Errors
    /// All faults that can be found at once, each with its position.
    pub fn read_syntax(sources: &Sources, validation: Validation) -> Result<(), Vec<Fault>> {
        let mut faults = Vec::new();
        let mut take = |mut found: Vec<Fault>| faults.append(&mut found);
        let _read = read_policies(&sources.policies, validation).map_err(&mut take);
        let _schema = read_schema(sources, validation).map_err(&mut take);
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    /// Reads, validates and indexes the policies. Without `roles`, which gates need, the linter does not run.
    ///
    /// # Errors
    /// All faults that can be found at once, each with its position.
    pub fn load(sources: &Sources, roles: Option<&Roles>, validation: Validation) -> Result<Self, Vec<Fault>> {
        let mut faults = Vec::new();
        let level = roles.map_or(1, |roles| roles.level.clamp(1, LEVEL_MAX));
        let read = read_policies(&sources.policies, validation).map_err(|mut found| faults.append(&mut found));
        let schema = read_schema(sources, validation).map_err(|mut found| faults.append(&mut found));
        // Entities can't be read without the schema.
        let Ok((schema, shapes)) = schema else { return Err(faults) };
        let store = Store::load(&sources.entities, schema.as_ref(), &shapes, roles)
            .map_err(|mut found| faults.append(&mut found));
        let (Ok(read), Ok(store)) = (read, store) else { return Err(faults) };
        if validation == Validation::Strict
            && let Some(schema) = &schema
        {
            let (unrecognized, found) = validate(schema, &read, level);
            if unrecognized {
                // An unknown name causes further faults that mislead, so return only the unknown names.
                return Err(found);
            }
            faults.extend(found);
            if let Some(roles) = roles {
                faults.extend(lint::lint(&read, sources, &shapes, &store, roles));
            }
            if !faults.is_empty() {
                return Err(faults);
            }
        }
        let readers = lint::readers(&read, &shapes, REMEMBERED);
        let consents = required_consents(&read, &shapes);
        let rules = read.policies.iter().filter_map(|read| read.rule.clone()).map(|rule| (rule.id.clone(), rule));
        let rules = rules.collect();
        let engine = Engine::new(read.policies.into_iter().map(|read| read.policy).collect());
        Ok(Self { schema, engine, shapes, store, rules, consents, readers, level })
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

fn required_consents(read: &ReadPolicies, shapes: &Shapes) -> BTreeMap<String, BTreeSet<String>> {
    let mut required: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for ReadPolicy { policy, rule, .. } in &read.policies {
        if let Some(Requirement::Consent(template)) = rule.as_ref().and_then(|rule| rule.requires.as_ref()) {
            let actions =
                scope::covered(policy, shapes).into_iter().map(|action| action.uid.id().unescaped().to_owned());
            required.entry(template.clone()).or_default().extend(actions);
        }
    }
    required
}

/// Policies as read from their files, before validation.
#[derive(Debug, Default)]
pub struct ReadPolicies {
    policies: Vec<ReadPolicy>,
    /// Positions in `policies` by id.
    by_id: HashMap<String, usize>,
}

/// A policy and its place.
#[derive(Debug)]
struct ReadPolicy {
    policy: Policy,
    /// The policy's annotations; absent only in conformance mode, if they can't be read.
    rule: Option<Rule>,
    source: Source,
    /// Offset of the policy in its file.
    at: usize,
}

impl ReadPolicies {
    fn get(&self, id: &str) -> Option<&ReadPolicy> {
        self.policies.get(*self.by_id.get(id)?)
    }
}

impl ReadPolicy {
    /// Creates a fault at the position of the policy.
    fn fault(&self, code: Code, message: impl Into<String>) -> Fault {
        Fault::new(code, &self.source, (self.at, 1), message)
    }

    /// Creates a fault at an annotation of the policy.
    fn fault_of(&self, AnnotationFault { code, annotation, message }: AnnotationFault) -> Fault {
        let at = annotation_place(&self.policy, &annotation).unwrap_or((self.at, 1));
        Fault::new(code, &self.source, at, message)
    }
}

fn read_schema(sources: &Sources, validation: Validation) -> Result<(Option<Schema>, Shapes), Vec<Fault>> {
    let Some(source) = &sources.schema else {
        return match validation {
            Validation::Off => Ok((None, Shapes::default())),
            Validation::Strict => {
                Err(vec![Fault::missing(Code::FileMissing, "schema.cedarschema", "the bundle has no schema")])
            }
        };
    };
    parse::measure(source).map_err(|fault| vec![fault])?;
    let (fragment, _) = SchemaFragment::from_cedarschema_str(&source.text)
        .map_err(|error| parse::faults(Code::SchemaInvalid, source, &error))?;
    if fragment.to_json_value().map_or(true, |fragment| shape::is_too_large(&fragment)) {
        return Err(vec![Fault::whole(
            Code::SchemaTooLarge,
            source,
            "the schema has more than 1000000 parts after its aliases are expanded",
        )]);
    }
    let (schema, warnings) = Schema::from_cedarschema_str(&source.text)
        .map_err(|error| parse::faults(Code::SchemaInvalid, source, &error))?;
    let warnings = warnings.flat_map(|warning| parse::faults(Code::SchemaInvalid, source, &warning));
    let warnings: Vec<Fault> = warnings.collect();
    if validation == Validation::Strict && !warnings.is_empty() {
        return Err(warnings);
    }
    match (Shapes::of(&schema), validation) {
        (Ok(shapes), _) => Ok((Some(schema), shapes)),
        (Err(_), Validation::Off) => Ok((Some(schema), Shapes::default())),
        (Err(error), Validation::Strict) => {
            let at = source.find(error.name()).unwrap_or((0, 0));
            Err(vec![Fault::new(Code::SchemaUnsupported, source, at, error.to_string())])
        }
    }
}

fn read_policies(sources: &[Source], validation: Validation) -> Result<ReadPolicies, Vec<Fault>> {
    let mut read = ReadPolicies::default();
    let mut faults = Vec::new();
    let mut position = 0;
    for source in sources {
        let placed = match parse::parse(source, POLICIES_MAX - read.policies.len()) {
            Ok(placed) => placed,
            Err(mut found) => {
                faults.append(&mut found);
                continue;
            }
        };
        for placed in placed {
            let fault = |message: &str| {
                let at = annotation_place(&placed.policy, "id").unwrap_or((placed.span.0, 1));
                Fault::new(Code::PolicyId, source, at, message)
            };
            let id =
                placed.policy.annotations().find(|(name, _)| name.as_ref() == "id").map(|(_, id)| id.val.to_string());
            let id = match (id, validation) {
                (Some(id), Validation::Strict) if !is_id(&id) => {
                    faults.push(fault("`@id` must be 1 to 128 of `a-z`, `0-9`, `.`, `_` and `-`"));
                    continue;
                }
                (Some(id), _) => id,
                (None, Validation::Off) => format!("policy{position}"),
                (None, Validation::Strict) => {
                    faults.push(fault("the policy has no `@id`"));
                    continue;
                }
            };
            position += 1;
            faults.extend(add(&mut read, source, &placed, &id, validation));
        }
    }
    if faults.is_empty() { Ok(read) } else { Err(faults) }
}

fn add(read: &mut ReadPolicies, source: &Source, placed: &Placed, id: &str, validation: Validation) -> Vec<Fault> {
    let at = placed.span.0;
    let policy = placed.policy.new_id(PolicyID::from_string(id));
    let mut new = ReadPolicy { policy, rule: None, source: source.clone(), at };
    if let Some(other) = read.get(id) {
        let other = other.fault(Code::PolicyId, "").place();
        let message = format!("the id `{id}` is already used by the policy at {other}");
        return vec![new.fault_of(AnnotationFault { code: Code::PolicyId, annotation: "id".to_owned(), message })];
    }
    new.rule = match Rule::read(&new.policy, format!("{}:{}", source.file, source.position(at).0)) {
        Err(found) if validation == Validation::Strict => {
            return found.into_iter().map(|found| new.fault_of(found)).collect();
        }
        rule => rule.ok(),
    };
    read.by_id.insert(id.to_owned(), read.policies.len());
    read.policies.push(new);
    vec![]
}

/// Returns where an annotation stands in the policy's file.
fn annotation_place(policy: &Policy, annotation: &str) -> Option<(usize, usize)> {
    let (_, found) = policy.annotations().find(|(name, _)| name.as_ref() == annotation)?;
    Some(parse::span(Some(found.loc.as_ref()?)))
}

fn is_id(id: &str) -> bool {
    (1..=128).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte))
}

/// Runs Cedar's strict validator. A warning counts as a fault, because an impossible policy protects nothing.
/// If names are not recognized, returns true and only the faults of those names.
fn validate(schema: &Schema, read: &ReadPolicies, level: u32) -> (bool, Vec<Fault>) {
    let schema: &ValidatorSchema = schema.as_ref();
    let validator = Validator::new(schema.clone());
    let validate = |policies: &[ReadPolicy]| {
        let set = PolicySet::try_from_iter(policies.iter().map(|read| read.policy.clone())).ok()?;
        Some(validator.validate_with_level(&set, ValidationMode::Strict, level))
    };
    // Each policy is validated by itself, so two threads share the work.
    let (first, second) = read.policies.split_at(read.policies.len() / 2);
    let results = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("validator".into()).stack_size(STACK_BYTES);
        match thread.spawn_scoped(scope, || validate(second)) {
            Ok(other) => [validate(first), other.join().ok().flatten()],
            Err(_) => [validate(first), validate(second)],
        }
    });
    let at = |id: &PolicyId, error: &dyn Diagnostic| match read.get(id.as_ref()) {
        Some(read) => parse::faults(Code::PolicyType, &read.source, error),
        None => vec![Fault::missing(Code::PolicyType, "policies", error.to_string())],
    };
    let (mut names, mut faults) = (vec![], vec![]);
    for result in results {
        let Some(result) = result else {
            return (true, vec![Fault::missing(Code::PolicyType, "policies", "the validator failed")]);
        };
        let (errors, warnings) = result.into_errors_and_warnings();
        for error in errors.map(ValidationError::from) {
            let is_name =
                matches!(error, ValidationError::UnrecognizedActionId(_) | ValidationError::UnrecognizedEntityType(_));
            if is_name { &mut names } else { &mut faults }.extend(at(error.policy_id(), &error));
        }
        for warning in warnings.map(ValidationWarning::from) {
            faults.extend(at(warning.policy_id(), &warning));
        }
    }
    let unrecognized = !names.is_empty();
    let mut found = if unrecognized { names } else { faults };
    found.sort_by_key(Fault::line);
    (unrecognized, found)
}
