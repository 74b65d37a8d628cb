//! Loads a policy bundle from a folder into a [`Bundle`]. A folder with any fault is rejected as a whole.

mod approvals;
pub mod constraints;
pub mod folder;
pub mod manifest;
pub mod rules;

use std::path::Path;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::approvals::template::Templates;
use crate::bundle::folder::Folder;
use crate::bundle::manifest::{Manifest, yaml_fault};
use crate::bundle::rules::Rules;
use crate::model::answer::PolicyVersion;
use crate::model::call::Case;
use crate::model::chain::DevelopmentDefaults;
use crate::model::fault::code::Code;
use crate::model::fault::{Fault, FaultReport};
use crate::model::roles::Roles;
use crate::model::source::Source;
use crate::policy::engine::Verify;
use crate::policy::{Policies, STACK_BYTES, Sources, Validation};

/// Gates that a bundle must support. They are a server setting, so editing the bundle can't remove a gate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gates {
    /// The chain, tenant, case and step gates.
    #[default]
    All,
    /// No gates: plain Cedar (conformance mode).
    None,
}

/// Settings for loading a bundle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    pub gates: Gates,
    pub validation: Validation,
    /// Whether live decisions are compared with those of Cedar's authorizer.
    pub verify: Verify,
}

/// The parsed contents of a bundle's folder.
#[derive(Debug)]
pub struct Bundle {
    pub manifest: Manifest,
    /// Roles that entity types play; `None` when gates are off.
    pub roles: Option<Roles>,
    /// Digest of the folder, and version number from the manifest.
    pub version: PolicyVersion,
    /// Policies, schema and entities.
    pub policies: Policies,
    /// Templates from `approvals.yaml`.
    pub approvals: Templates,
    /// Rules for risk, rates, text detection and model instructions.
    pub rules: Rules,
    /// Test files: decision tables (`.yaml`) and Cedar's JSON tests (`.json`).
    pub tests: Vec<Source>,
}

/// Reasons why a bundle can't be loaded.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LoadError {
    /// The contents have faults.
    #[error("the bundle has {} fault(s), the first at {}", .faults.len(), .faults.first().map_or_else(String::new, Fault::line))]
    Faulty {
        /// Digest of the rejected folder.
        digest: String,
        faults: Vec<Fault>,
    },
    /// The folder can't be read, or the parsing thread failed.
    #[error("{0}")]
    Unreadable(String),
}

impl LoadError {
    /// Returns each fault, or the read error, as one line.
    pub fn lines(&self) -> Vec<String> {
        match self {
            Self::Faulty { faults, .. } => faults.iter().map(Fault::line).collect(),
            Self::Unreadable(message) => vec![message.clone()],
        }
    }

    /// Returns each fault for programs; a folder that can't be read has one without a place.
    pub fn reports(&self) -> Vec<FaultReport> {
        match self {
            Self::Faulty { faults, .. } => faults.iter().map(Fault::report).collect(),
            Self::Unreadable(message) => {
                vec![Fault::missing(Code::FileMissing, "", message.clone()).report()]
            }
        }
    }

    /// Returns the digest of the rejected folder, or an empty string if the folder can't be read.
    pub fn digest(&self) -> &str {
        match self {
            Self::Faulty { digest, .. } => digest,
            Self::Unreadable(_) => "",
        }
    }
}

impl Bundle {
    /// Returns the owner of a call's case; empty if the case has none, or gates are off.
    pub fn case_owner<'o>(&self, case: &'o Case) -> &'o str {
        self.roles.as_ref().map_or("", |roles| roles.case_owner(case))
    }

    /// Loads a bundle from a folder.
    ///
    /// # Errors
    /// If the folder can't be read, or anything in it is faulty.
    pub fn load(path: &Path, reading: Reading) -> Result<Self, LoadError> {
        Self::load_with_folder(path, reading).map(|(_, bundle)| bundle)
    }

    /// Loads a bundle from a folder, and returns the folder's contents, too.
    ///
    /// # Errors
    /// If the folder can't be read, or anything in it is faulty.
    pub fn load_with_folder(path: &Path, reading: Reading) -> Result<(Arc<Folder>, Self), LoadError> {
        let folder = Folder::read(path).map_err(|error| LoadError::Unreadable(error.to_string()))?;
        let folder = Arc::new(folder);
        let bundle = Self::from_folder(Arc::clone(&folder), reading)?;
        Ok((folder, bundle))
    }

    /// Loads a bundle from a folder's contents.
    ///
    /// # Errors
    /// If anything in them is faulty.
    pub fn from_folder(folder: impl Into<Arc<Folder>>, reading: Reading) -> Result<Self, LoadError> {
        let folder = folder.into();
        let digest = folder.digest();
        let parsing = std::thread::Builder::new().name("bundle".into()).stack_size(STACK_BYTES).spawn({
            let digest = digest.clone();
            move || parse(&folder, digest, reading)
        });
        let parsed =
            parsing.map_err(|_| LoadError::Unreadable("no thread could be started to read the bundle".into()))?.join();
        match parsed {
            Ok(parsed) => parsed.map_err(|faults| LoadError::Faulty { digest, faults }),
            Err(_) => Err(LoadError::Unreadable("reading the bundle failed; it is refused".into())),
        }
    }
}

/// The files of a bundle by their kind. Those in YAML are read; their values are not checked yet.
#[derive(Default)]
struct Files {
    manifest: Option<(Source, Manifest)>,
    approvals: Option<(Source, Templates)>,
    rules: rules::Files,
    sources: Sources,
    tests: Vec<Source>,
}

impl Files {
    /// Sorts a folder's files, and reads those in YAML. Adds the faults of all of them.
    fn read(folder: &Folder, faults: &mut Vec<Fault>) -> Self {
        let mut files = Self::default();
        for (file, bytes) in folder.files() {
            match String::from_utf8(bytes.clone()) {
                Ok(text) => files.add(Source::new(file.clone(), text), faults),
                Err(_) => faults.push(Fault::missing(Code::FileNotText, file, "is not UTF-8")),
            }
        }
        files
    }

    fn add(&mut self, source: Source, faults: &mut Vec<Fault>) {
        let rules = &mut self.rules;
        match source.file.clone().rsplit_once('/').unwrap_or(("", &source.file)) {
            ("", "approvals.yaml") => self.approvals = yaml(source, faults),
            ("", "rates.yaml") => rules.rates = yaml(source, faults),
            ("", "risk.yaml") => rules.risk = yaml(source, faults),
            ("", "constraints.yaml") => rules.constraints = yaml(source, faults),
            ("detectors", "settings.yaml") => rules.settings = yaml(source, faults),
            ("detectors", name) if name.ends_with(".model") => rules.models.push(source),
            ("detectors", name) if name.starts_with("claims-") && name.ends_with(".yaml") => {
                rules.claims.extend(yaml(source, faults));
            }
            ("detectors", name) if name.ends_with(".yaml") => rules.detectors.extend(yaml(source, faults)),
            ("", "bundle.yaml") => {
                self.sources.manifest = Some(source.clone());
                self.manifest = Manifest::read(&source).map(|manifest| (source, manifest)).map_err(|fault| faults.push(fault)).ok();
            }
            ("", "schema.cedarschema") => self.sources.schema = Some(source),
            ("", name) if name.ends_with(".cedar") => self.sources.policies.push(source),
            ("entities", name) if name.ends_with(".json") => self.sources.entities.push(source),
            ("tests", name) if name.ends_with(".yaml") || name.ends_with(".json") => self.tests.push(source),
            ("", "README.md") => {}
            _ => faults.push(Fault::whole(Code::FileUnknown, &source, "is not a file of a bundle").help(
                "a bundle has bundle.yaml, schema.cedarschema, *.cedar, approvals.yaml, constraints.yaml, rates.yaml, risk.yaml, \
                 detectors/*.yaml, detectors/*.model, entities/*.json and tests/*.yaml: move other files away, or \
                 begin their names with a dot",
            )),
        }
    }
}

/// Reads a file in YAML, without checking its values.
fn yaml<T: DeserializeOwned>(source: Source, faults: &mut Vec<Fault>) -> Option<(Source, T)> {
    let read = serde_saphyr::from_str(&source.text).map_err(|error| faults.push(yaml_fault(&source, &error)));
    read.ok().map(|read| (source, read))
}

/// Reads the files in three stages, each of which needs the results of the one before: the files by themselves, the
/// policies with schema and entities, and the rules that refer to them. A stage collects the faults of all files.
fn parse(folder: &Folder, digest: String, reading: Reading) -> Result<Bundle, Vec<Fault>> {
    let mut faults = vec![];
    let Files { manifest, approvals, rules, sources, tests } = Files::read(folder, &mut faults);
    if sources.manifest.is_none() {
        faults.push(Fault::missing(Code::FileMissing, "bundle.yaml", "the bundle has no manifest"));
    }
    let roles = match (&manifest, reading.gates) {
        (Some((source, manifest)), Gates::All) if manifest.roles.is_none() => {
            let message = "the manifest has no `roles`, and this server requires every gate";
            faults.push(Fault::whole(Code::ManifestRoles, source, message));
            None
        }
        (Some((_, manifest)), Gates::All) => manifest.roles.clone(),
        (Some(_) | None, _) => None,
    };
    let is_readable = manifest.is_some() && (roles.is_some() || reading.gates == Gates::None);
    let policies = match is_readable {
        true => Policies::load(&sources, roles.as_ref(), reading.validation),
        // Without roles, what policies refer to can't be checked.
        false => Err(Policies::read_syntax(&sources, reading.validation).err().unwrap_or_default()),
    };
    let policies = policies.map_err(|mut found| faults.append(&mut found));
    let (Ok(mut policies), Some((source, manifest)), true) = (policies, manifest, faults.is_empty()) else {
        return Err(faults);
    };
    policies.engine.verify(reading.verify);
    let mut take = |mut found: Vec<Fault>| faults.append(&mut found);
    if let (Some(roles), Some(defaults)) = (&roles, &manifest.development) {
        take(unknown_defaults(&policies, roles, defaults, &source));
    }
    let approvals = approvals::templates(&policies, roles.as_ref(), approvals).map_err(&mut take);
    let rules = match &roles {
        Some(roles) => rules::read(&policies, roles, rules).map_err(&mut take),
        None => Ok(Rules::default()),
    };
    let version = PolicyVersion { digest, version: manifest.version };
    let (Ok(approvals), Ok(rules), true) = (approvals, rules, faults.is_empty()) else { return Err(faults) };
    Ok(Bundle { manifest, roles, version, policies, approvals, rules, tests })
}

/// Returns a fault for each development default that the bundle does not define. With such a default, every
/// call without a credential would be denied without a hint at the cause.
fn unknown_defaults(policies: &Policies, roles: &Roles, defaults: &DevelopmentDefaults, source: &Source) -> Vec<Fault> {
    let exists =
        |kind: &str, id: &str| policies.shapes.uid(kind, id).is_some_and(|uid| policies.store.get(&uid).is_some());
    let known = [
        (&defaults.tool_service, exists(&roles.tool_service, &defaults.tool_service)),
        (&defaults.agent, exists(&roles.agent, &defaults.agent)),
        (&defaults.supervisor, exists(&roles.supervisor, &defaults.supervisor)),
        (&defaults.step, policies.shapes.choices(&roles.step).contains(&defaults.step)),
    ];
    let section = source.text.find("development:").unwrap_or(0);
    let unknown = known.into_iter().filter(|(_, known)| !known);
    unknown
        .map(|(name, _)| {
            let at =
                source.text.get(section..).and_then(|text| text.find(name.as_str())).map_or(section, |at| section + at);
            let message = format!("the bundle does not define `{name}`");
            Fault::new(Code::ManifestDevelopment, source, (at, name.len()), message)
        })
        .collect()
}
