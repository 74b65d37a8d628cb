//! Holds the JSON Schemas of a bundle's YAML files (`schemas/`) against the types that read them.

use std::collections::BTreeMap;
use std::path::Path;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};

use crate::approvals::template::Templates;
use crate::bundle::constraints::Constraint;
use crate::bundle::manifest::Manifest;
use crate::content::claims::ClaimFile;
use crate::content::{Settings, rules};
use crate::rates::Rates;
use crate::risk::RiskRules;
use crate::workbench::tables::form;

/// Returns the schema of what a file contains.
fn of<T: JsonSchema>() -> Schema {
    SchemaSettings::draft2020_12().for_deserialize().into_generator().into_root_schema_for::<T>()
}

#[test]
fn the_schemas_are_those_of_the_types_that_read_the_files() {
    let schemas = BTreeMap::from([
        ("approvals", of::<Templates>()),
        ("bundle", of::<Manifest>()),
        ("constraints", of::<Vec<Constraint>>()),
        ("claims", of::<ClaimFile>()),
        ("detectors", of::<rules::File>()),
        ("rates", of::<Rates>()),
        ("risk", of::<RiskRules>()),
        ("settings", of::<Settings>()),
        ("tests", of::<form::File>()),
    ]);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut stale = vec![];
    for (name, schema) in schemas {
        let file = format!("schemas/{name}.json");
        let text = serde_json::to_string_pretty(&schema).expect("a schema is JSON") + "\n";
        if std::fs::read_to_string(root.join(&file)).ok().as_ref() != Some(&text) {
            let new = root.join("target").join(&file);
            std::fs::create_dir_all(new.parent().expect("a folder")).expect("target/ is writable");
            std::fs::write(new, text).expect("target/ is writable");
            stale.push(file);
        }
    }
    assert!(stale.is_empty(), "{stale:?} are out of date: cp target/schemas/* schemas/");
}
