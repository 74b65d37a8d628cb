//! Lists what the logs of a deployment do not contain although they should: the outcome of an allowed call, the allow of an
//! outcome, the activation of a bundle, the stop of a server.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::audit::story::{Entry, Filter, read};
use crate::model::time::Timestamp;

/// Time within which a tool service can report the outcome of an allowed call.
const OUTCOME: Duration = Duration::from_secs(60 * 60);

/// A line that lacks its counterpart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lacking {
    pub at: String,
    pub log: PathBuf,
    pub seq: u64,
    /// Evaluation id, digest of a bundle, or type of the line.
    pub about: String,
    /// The action, if the line is a decision's.
    pub action: String,
}

/// Lines without their counterpart, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Completeness {
    pub decisions: u64,
    /// Allows whose outcome was not reported within an hour.
    pub without_outcome: Vec<Lacking>,
    /// Reported outcomes without the decision that allowed the call.
    pub without_allow: Vec<Lacking>,
    /// Decisions by a bundle that no line of the logs activated; one for each digest.
    pub unknown_bundles: Vec<Lacking>,
    /// Starts of a server after which the log goes on with another start: the server did not stop by itself.
    pub without_stop: Vec<Lacking>,
}

impl Completeness {
    pub fn is_complete(&self) -> bool {
        [&self.without_outcome, &self.without_allow, &self.unknown_bundles].iter().all(|list| list.is_empty())
    }
}

/// Reads the logs since a time. Allows of the last hour before `now` may still get an outcome.
///
/// # Errors
/// When a log can't be read.
pub fn check(folders: &[PathBuf], since: Option<Timestamp>, now: Timestamp) -> io::Result<Completeness> {
    let mut found = Completeness::default();
    let mut waiting: BTreeMap<String, Lacking> = BTreeMap::new();
    let mut reported: BTreeMap<String, Lacking> = BTreeMap::new();
    let (mut active, mut used) = (BTreeSet::new(), BTreeMap::new());
    let mut running: BTreeMap<PathBuf, Lacking> = BTreeMap::new();
    let mut is_whole = since.is_none();
    read(folders, &Filter { since, ..Filter::default() }, |entry| {
        let id = entry.text("/evaluation_id");
        match entry.kind() {
            "decision" => {
                found.decisions += 1;
                let digest = entry.text("/policy/digest").to_owned();
                used.entry(digest.clone()).or_insert_with(|| lacking(&entry, &digest));
                let is_call = entry.text("/purpose") == "authorize" && entry.text("/decision") == "allow";
                let may_wait = entry.at.plus(OUTCOME) > now;
                if is_call && !may_wait && reported.remove(id).is_none() {
                    waiting.insert(id.to_owned(), lacking(&entry, id));
                } else if is_call {
                    reported.remove(id);
                }
            }
            "outcome.reported" if waiting.remove(id).is_none() => {
                reported.insert(id.to_owned(), lacking(&entry, id));
            }
            "policy.activated" => {
                active.insert(entry.text("/digest").to_owned());
            }
            "server.started" => {
                found.without_stop.extend(running.insert(entry.folder.clone(), lacking(&entry, entry.kind())));
            }
            // Older lines were deleted.
            "log.trimmed" => is_whole = false,
            "server.stopped" => {
                running.remove(&entry.folder);
            }
            _ => {}
        }
        true
    })?;
    found.without_outcome = sorted(waiting.into_values());
    // The allow of an outcome of the last hour is not kept.
    let is_old = |lacking: &Lacking| Timestamp::parse(&lacking.at).is_some_and(|at| at.plus(OUTCOME) <= now);
    found.without_allow = sorted(reported.into_values().filter(|lacking| is_whole && is_old(lacking)));
    // A bundle may have been activated before the time from which the logs are read.
    let is_unknown = |(digest, _): &(String, Lacking)| is_whole && !active.contains(digest);
    found.unknown_bundles = sorted(used.into_iter().filter(is_unknown).map(|(_, lacking)| lacking));
    Ok(found)
}

fn lacking(entry: &Entry, about: &str) -> Lacking {
    Lacking {
        at: entry.at.to_string(),
        log: entry.folder.clone(),
        seq: entry.seq,
        about: about.to_owned(),
        action: entry.text("/action").to_owned(),
    }
}

fn sorted(all: impl Iterator<Item = Lacking>) -> Vec<Lacking> {
    let mut all: Vec<Lacking> = all.collect();
    all.sort_by(|one, other| (&one.at, &one.log, one.seq).cmp(&(&other.at, &other.log, other.seq)));
    all
}
