//! Integration tests of the app, run in the test process or as a process of its own. One file per feature.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod harness;

mod approvals;
mod attack;
mod audit;
mod authorize;
mod browser;
mod bundle;
mod burns;
mod claims;
mod cli;
mod compromised;
mod conformance;
mod consents;
mod contract;
mod crash;
mod deploy;
mod desk;
mod docs;
mod domains;
mod engine;
mod histories;
mod hostile;
mod identity;
mod instructions;
mod layers;
mod messages;
mod production;
mod proofs;
mod properties;
mod prose;
mod python;
mod queues;
mod reading;
mod reload;
mod replay;
mod replicas;
mod risk;
mod startup;
mod story;
mod stream;
mod texts;
mod traces;
mod windows;
