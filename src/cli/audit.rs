//! `countersign audit`

use std::path::PathBuf;

use super::{Environment, Exit, Failure};
use crate::audit::verify::{VerifyError, verify};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Check every line: format, order, hash chain
    Verify {
        /// Folder of the log [default: audit/ in the data folder of the settings]
        folder: Option<PathBuf>,
    },
}

pub(super) fn run(environment: &Environment, command: &Command) -> Result<Exit, Failure> {
    let Command::Verify { folder } = command;
    let folder = match folder {
        Some(folder) => folder.clone(),
        None => environment.config()?.audit().folder,
    };
    let report = verify(&folder).map_err(|error| match error {
        VerifyError::Broken(_) => Failure::new(Exit::Invalid, error),
        VerifyError::Missing(_) | VerifyError::Unreadable(..) => Failure::new(Exit::Failure, error),
    })?;
    let mut text = format!(
        "intact: {} lines in {} segments, {} decisions\nfirst  {}\nlast   {}\nhead   sha256:{}",
        report.lines, report.segments, report.decisions, report.first, report.last, report.head
    );
    if report.best_effort > 0 {
        text.push_str(&format!("\n{} lines were written in best-effort mode: others may have been lost", report.best_effort));
    }
    if report.unfinished > 0 {
        text.push_str(&format!(
            "\nthe last line is unfinished ({} bytes): a write under way, or a tail that the next start cuts",
            report.unfinished
        ));
    }
    environment.print(&report, &text);
    Ok(Exit::Ok)
}
