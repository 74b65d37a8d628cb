//! Records of the server itself: bundles, starts and stops, recovery of the log, refusals of unauthenticated
//! peers.

use serde::Serialize;

use crate::audit::record::parts::{Capped, Engine};
use crate::model::answer::PolicyVersion;
use crate::model::head::Head;

/// Refusals of one kind for one unauthenticated peer within a second.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct RefusalsRecord {
    /// Address of the peer without its port; `other` once too many peers are counted.
    pub peer: String,
    pub kind: &'static str,
    pub count: u64,
}

/// Bundle that came into force or was rejected.
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
    /// Creates the record of a bundle that replaced `previous`, which is empty at start.
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

    /// Creates the record of a rejected bundle; `previous` stays in force.
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

/// Torn tail that was cut from the log at start.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct RecoveredRecord {
    /// File that holds the cut bytes.
    pub kept_in: String,
    /// Number of cut bytes.
    pub bytes: u64,
    /// SHA-256 of the cut bytes, in hex.
    pub digest: String,
}

/// Accepted loss of lines that were noted elsewhere.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct LossRecord {
    /// Reason for accepting the loss, in a human's words.
    pub reason: String,
    /// Last line that the log still had; `None` for an empty log.
    pub found: Option<Head>,
    /// All heads that were noted; the log lacked at least one of them.
    pub noted: Vec<Head>,
}

/// Deletion of segments that are older than the log is kept.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct TrimmedRecord {
    /// Number of the first line that stays.
    pub before: u64,
    /// SHA-256 of the last line that was deleted, in hex.
    pub hash: String,
    /// Number of the line with which the tree begins.
    pub tree: u64,
    /// Root of the tree of the deleted lines, in hex.
    pub root: String,
}

/// Return of the log to service after failed commits.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct ResumedRecord {
    /// Number of failed commits since the server started.
    pub failures: u64,
}

/// Start or stop of the server.
#[derive(Debug, Serialize)]
pub struct ServerRecord {
    environment: String,
    mode: &'static str,
    engine: Engine,
    warnings: Vec<&'static str>,
}

impl ServerRecord {
    /// Creates the record of a server with these settings.
    pub fn new(environment: &str, mode: &'static str, warnings: &[&'static str]) -> Self {
        Self { environment: environment.to_owned(), mode, engine: Engine::default(), warnings: warnings.to_vec() }
    }
}
