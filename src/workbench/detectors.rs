//! Tools for detectors: read corpora, train the linear model, and measure what detectors find.

pub mod corpus;
pub mod evaluate;
pub mod train;
