//! Records of the server itself: bundles, starts and stops, the log's own recovery, refusals of strangers.

use serde::Serialize;

use crate::audit::record::{Capped, Engine};
use crate::model::answer::PolicyVersion;
use crate::model::head::Head;

/// Refusals of peers that were not authenticated, within one second.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct RefusalsRecord {
    /// The peer's address without its port; `other` once too many peers are counted.
    pub peer: String,
    /// The kind of refusal.
    pub kind: &'static str,
    /// How many.
    pub count: u64,
}

/// A bundle came into force, or was refused.
#[derive(Debug, Serialize)]
pub struct PolicyRecord {
    name: String,
    digest: String,
    version: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    previous: String,
    faults: Capped<String>,
    engine: Engine,
}

impl PolicyRecord {
    /// A bundle came into force after `previous`, which is empty at start.
    pub fn activated(name: &str, policy: &PolicyVersion, previous: &str) -> Self {
        Self {
            name: name.to_owned(),
            digest: policy.digest.clone(),
            version: policy.version,
            previous: previous.to_owned(),
            faults: Capped::default(),
            engine: Engine::default(),
        }
    }

    /// A bundle was refused; `previous` stays.
    pub fn rejected(digest: &str, faults: &[String], previous: &str) -> Self {
        let short = |fault: &String| fault.chars().take(256).collect::<String>();
        Self {
            name: String::new(),
            digest: digest.to_owned(),
            version: 0,
            previous: previous.to_owned(),
            faults: faults.iter().map(short).collect(),
            engine: Engine::default(),
        }
    }
}

/// The log was cut behind the last durable batch.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct RecoveredRecord {
    /// The file into which the cut bytes were moved.
    pub kept_in: String,
    /// How many bytes were cut.
    pub bytes: u64,
    /// SHA-256 of them, in hex.
    pub digest: String,
}

/// Lines that were noted elsewhere are lost.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct LossRecord {
    /// Why it was accepted, in a human's words.
    pub reason: String,
    /// The last line that the log still had; `None` if it had none.
    pub found: Option<Head>,
    /// The heads that it lacked.
    pub noted: Vec<Head>,
}

/// The log can be written again.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct ResumedRecord {
    /// Failed commits since the server started.
    pub failures: u64,
}

/// The server started or stopped.
#[derive(Debug, Serialize)]
pub struct ServerRecord {
    environment: String,
    mode: &'static str,
    engine: Engine,
    warnings: Vec<&'static str>,
}

impl ServerRecord {
    /// Of a server with these settings.
    pub fn new(environment: &str, mode: &'static str, warnings: &[&'static str]) -> Self {
        Self { environment: environment.to_owned(), mode, engine: Engine::default(), warnings: warnings.to_vec() }
    }
}
