//! Reads a bundle together with its tables.

use std::sync::Arc;

use crate::bundle::folder::Folder;
use crate::bundle::{LoadError, Reading};
use crate::model::fault::Fault;
use crate::model::source::Source;
use crate::model::time::Timestamp;
use crate::pdp::scoring::calm;
use crate::pdp::snapshot::Snapshot;
use crate::workbench::tables::form::{File, Fixtures};
use crate::workbench::tables::{fixtures, names, read};

/// A bundle with its tables.
pub(super) struct Loaded {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) fixtures: Fixtures,
    pub(super) files: Vec<(Source, File)>,
}

/// Reads a bundle with these tables. Returns `None` for a bundle without roles.
pub(super) fn load(folder: &Folder, sources: &[Source], reading: Reading) -> Result<Option<Loaded>, LoadError> {
    let digest = folder.digest();
    let faulty = |faults: Vec<Fault>| LoadError::Faulty { digest: digest.clone(), faults };
    let files = read(sources).map_err(faulty)?;
    let mut fixtures = Fixtures::default();
    for (_, file) in &files {
        let more = file.fixtures.clone();
        fixtures.principals.extend(more.principals);
        fixtures.resources.extend(more.resources);
        fixtures.contexts.extend(more.contexts);
        fixtures.calls.extend(more.calls);
    }
    let bundle = fixtures::load(folder, &fixtures, &files, reading)?;
    let faults = names::check(&bundle, &fixtures, &files);
    if !faults.is_empty() {
        return Err(faulty(faults));
    }
    let nothing = calm(&bundle.policies.shapes);
    let snapshot = Arc::new(Snapshot { bundle, activated_at: Timestamp::default(), nothing });
    Ok(snapshot.bundle.roles.is_some().then_some(Loaded { snapshot, fixtures, files }))
}
