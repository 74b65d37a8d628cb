//! Detectors at work on corpora: read them, train the linear model, measure what is found.

pub mod corpus;
pub mod evaluate;
pub mod train;
