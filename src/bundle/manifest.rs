//! `bundle.yaml`: what the bundle is called, and which of its types play which part.

use crate::model::chain::DevelopmentDefaults;
use crate::model::fault::Fault;
use crate::model::roles::Roles;
use crate::policy::source::Source;
use crate::policy::store::offset;

/// The manifest.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Name of the bundle.
    pub name: String,
    /// Its version, counted up with every release.
    pub version: u64,
    /// The parts that types play. Not needed where gates are off.
    pub roles: Option<Roles>,
    /// What stands in for an absent credential in development mode.
    pub development: Option<DevelopmentDefaults>,
}

impl Manifest {
    /// Reads `bundle.yaml`.
    ///
    /// # Errors
    /// The first fault, with its place.
    pub fn read(source: &Source) -> Result<Self, Fault> {
        let manifest: Self = serde_saphyr::from_str(&source.text).map_err(|error| yaml_fault(source, &error))?;
        let named = (1..=64).contains(&manifest.name.len()) && !manifest.name.contains(char::is_control);
        if !named {
            let at = source.text.find("name").unwrap_or(0);
            return Err(Fault::new(&source.file, &source.text, (at, 4), "`name` must be 1 to 64 bytes without control characters"));
        }
        Ok(manifest)
    }
}

/// A fault of a YAML file.
pub fn yaml_fault(source: &Source, error: &serde_saphyr::Error) -> Fault {
    let number = |number: u64| usize::try_from(number).unwrap_or(1);
    let at = error.location().map_or(0, |location| offset(&source.text, number(location.line()), number(location.column())));
    let message = error.without_snippet().to_string();
    Fault::new(&source.file, &source.text, (at, 1), message)
}
