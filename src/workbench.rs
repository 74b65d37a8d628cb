//! Tools for policy authors. They run the pipeline's own steps on the bundle's tests.

pub mod cedar_json;
pub mod detectors;
pub mod replay;
pub mod request;
pub mod tables;
