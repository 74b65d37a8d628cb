//! `bundle.yaml`: the bundle's name and version, and the roles that its entity types play.

use crate::model::chain::DevelopmentDefaults;
use crate::model::fault::Fault;
use crate::model::number::to_usize;
use crate::model::roles::Roles;
use crate::model::source::Source;

/// Contents of `bundle.yaml`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub name: String,
    /// Version number, incremented with every release.
    pub version: u64,
    /// Roles that entity types play; not needed when gates are off.
    pub roles: Option<Roles>,
    /// Defaults for an absent credential in development mode.
    pub development: Option<DevelopmentDefaults>,
}

impl Manifest {
    /// Reads and validates `bundle.yaml`.
    ///
    /// # Errors
    /// The first fault, with its position.
    pub fn read(source: &Source) -> Result<Self, Fault> {
        let manifest: Self = serde_saphyr::from_str(&source.text).map_err(|error| yaml_fault(source, &error))?;
        let named = (1..=64).contains(&manifest.name.len()) && !manifest.name.contains(char::is_control);
        if !named {
            let at = source.text.find("name").unwrap_or(0);
            return Err(Fault::new(source, (at, 4), "`name` must be 1 to 64 bytes without control characters"));
        }
        Ok(manifest)
    }
}

/// Converts a YAML error into a fault at its position.
pub fn yaml_fault(source: &Source, error: &serde_saphyr::Error) -> Fault {
    let at =
        error.location().map_or(0, |location| source.offset(to_usize(location.line()), to_usize(location.column())));
    let message = error.without_snippet().to_string();
    Fault::new(source, (at, 1), message)
}
