//! Policy authors' tools: they run the pipeline's own steps on the bundle's own tests.

pub mod cedar_json;
pub mod detectors;
pub mod request;
pub mod tables;
