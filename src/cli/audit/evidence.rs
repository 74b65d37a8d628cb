//! `countersign audit evidence`.

use std::path::PathBuf;

use super::{log_folder, unreadable};
use crate::app::log::evidence_keys;
use crate::audit::decisions::with_evidence;
use crate::audit::told::plain;
use crate::audit::verify::first_line;
use crate::cli::{Environment, Exit, Failure, Output, print, runtime};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    /// Id of an evaluation or an approval
    id: String,
    /// Folder of the log [default: audit/ in the data folder of the settings]
    folder: Option<PathBuf>,
}

pub(super) fn run(environment: &Environment, arguments: &Arguments) -> Result<Exit, Failure> {
    let folder = log_folder(environment, arguments.folder.clone())?;
    first_line(&folder).map_err(|error| Failure::new(Exit::Failure, error))?;
    let found = with_evidence(&folder, &arguments.id).map_err(|error| unreadable(&folder, &error))?;
    let config = environment.config()?;
    let keys = runtime()?.block_on(evidence_keys(&config)).map_err(|error| Failure::new(Exit::Failure, error))?;
    let (deployment, secrets) = keys;
    let mut shown = 0;
    for (line, sealed) in &found {
        let opened = sealed
            .as_ref()
            .and_then(|sealed| deployment.of_subject(sealed.key(), secrets.get(sealed.key())?)?.open(sealed));
        let Some(opened) = opened else { continue };
        shown += 1;
        let text = String::from_utf8_lossy(&opened);
        // The evidence of a decision is JSON, and what reviewers were shown is text.
        let value = serde_json::from_str(&text).unwrap_or_else(|_| serde_json::Value::from(text.as_ref()));
        match environment.output {
            Output::Json => {
                print(&serde_json::json!({"seq": line["seq"], "type": line["type"], "evidence": value}).to_string())
            }
            Output::Text => {
                print(&plain(&format!(
                    "{}  #{} {}",
                    line["ts"].as_str().unwrap_or(""),
                    line["seq"],
                    line["type"].as_str().unwrap_or("")
                )));
                let text = if value.is_string() { text.into_owned() } else { format!("{value:#}") };
                text.lines().for_each(|line| print(&plain(line)));
            }
        }
    }
    match (shown, found.len()) {
        (0, 0) => Err(Failure::new(
            Exit::Failure,
            "the log has no line of this evaluation or approval with evidence: see `audit.evidence_days` in the settings",
        )),
        (0, _) => Err(Failure::new(
            Exit::Failure,
            "the evidence is not there any more, or it can't be decrypted because its key was erased or has expired, or because keys/values.key is another one",
        )),
        _ => Ok(Exit::Ok),
    }
}
