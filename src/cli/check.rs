//! The `countersign check` command.

use std::path::PathBuf;

use super::{Environment, Exit, Failure};
use crate::bundle::folder::Folder;
use crate::bundle::{Bundle, LoadError};
use crate::workbench::tables;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Folder of the policy bundle [default: policies, or that of the settings]
    bundle: Option<PathBuf>,
}

pub(super) fn run(environment: &Environment, arguments: &Arguments) -> Result<Exit, Failure> {
    let config = environment.config()?;
    let path = arguments.bundle.as_ref().unwrap_or(&config.bundle.path);
    let folder = Folder::read(path).map_err(|error| Failure::new(Exit::Invalid, error))?;
    let checked = match (Bundle::from_folder(folder.clone(), config.reading()), tables::check(&folder)) {
        (Ok(bundle), Ok(())) => Ok(bundle),
        (Ok(_), Err(faults)) => Err(LoadError::Faulty { digest: folder.digest(), faults }),
        (Err(LoadError::Faulty { digest, mut faults }), Err(more)) => {
            faults.extend(more);
            Err(LoadError::Faulty { digest, faults })
        }
        (Err(error), _) => Err(error),
    };
    let bundle = match (checked, environment.output) {
        (Ok(bundle), _) => bundle,
        (Err(error), super::Output::Json) => {
            let report = serde_json::json!({"valid": false, "digest": error.digest(), "faults": error.reports()});
            super::print(&report.to_string());
            return Ok(Exit::Invalid);
        }
        (Err(error), super::Output::Text) => return Err(error.into()),
    };
    let (policies, actions) = (bundle.policies.engine.count(), bundle.policies.shapes.actions.len());
    let found = serde_json::json!({
        "valid": true, "name": bundle.manifest.name, "version": bundle.version.version, "digest": bundle.version.digest,
        "policies": policies, "actions": actions,
    });
    let text = format!(
        "{} {} is valid: {policies} policies, {actions} actions\n{}",
        bundle.manifest.name, bundle.version.version, bundle.version.digest
    );
    environment.print(&found, &text);
    Ok(Exit::Ok)
}
