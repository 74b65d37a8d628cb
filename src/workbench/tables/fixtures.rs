//! Loads a bundle with the fixtures of its tables as further entities.

use crate::bundle::folder::Folder;
use crate::bundle::{Bundle, LoadError, Reading};
use crate::json::{self, Value};
use crate::model::fault::Fault;
use crate::model::source::Source;
use crate::workbench::tables::form::{File, Fixtures, Principal};

/// Beginning of the names of the entity files that hold the fixtures, one each, when the bundle is loaded for its
/// tests.
const FIXTURES: &str = "entities/test-fixture-";

/// Loads the bundle with an entity for each fixture.
///
/// # Errors
/// If the bundle or a fixture is faulty.
pub(super) fn load(
    folder: &Folder,
    fixtures: &Fixtures,
    files: &[(Source, File)],
    reading: Reading,
) -> Result<Bundle, LoadError> {
    let own = folder.files().iter().map(|(name, bytes)| (name.clone(), bytes.clone()));
    let entities = fixtures.principals.iter().enumerate().map(|(index, (id, principal))| {
        (format!("{FIXTURES}{index}.json"), json::canonical(&Value::Array(vec![entity(id, principal)])))
    });
    let ids: Vec<&String> = fixtures.principals.keys().collect();
    Bundle::from_folder(Folder::of(own.chain(entities)), reading).map_err(|error| in_tables(error, &ids, files))
}

/// Moves the faults of fixtures to the tables that define them.
fn in_tables(error: LoadError, ids: &[&String], files: &[(Source, File)]) -> LoadError {
    let LoadError::Faulty { digest, faults } = error else { return error };
    let moved = |fault: Fault| {
        let index = fault.file().strip_prefix(FIXTURES).and_then(|name| name.strip_suffix(".json")?.parse().ok());
        let id = index.and_then(|index: usize| ids.get(index));
        let table = id.and_then(|id| files.iter().find(|(_, file)| file.fixtures.principals.contains_key(*id)));
        match id.zip(table) {
            Some((id, (source, _))) => fault.moved(source, source.find(id).unwrap_or((0, 0))),
            None => fault,
        }
    };
    LoadError::Faulty { digest, faults: faults.into_iter().map(moved).collect() }
}

/// Converts a fixture to Cedar's JSON form. Its parents are written as `Type::id`.
fn entity(id: &str, principal: &Principal) -> Value {
    let uid = |kind: &str, id: &str| json::object([("id", Value::from(id)), ("type", Value::from(kind))]);
    let parents = principal.parents.iter().map(|parent| {
        let (kind, id) = parent.rsplit_once("::").unwrap_or(("", parent));
        uid(kind, id)
    });
    json::object([
        ("attrs", Value::Object(principal.attributes.clone())),
        ("parents", Value::Array(parents.collect())),
        ("uid", uid(&principal.kind, id)),
    ])
}
