//! The `countersign audit` command.

use std::path::{Path, PathBuf};

use super::{Environment, Exit, Failure};
use crate::app::{self, Seams};
use crate::audit::verify::{Expected, Report, VerifyError, verify};
use crate::audit::witness;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Accept that the log lost lines which were noted elsewhere, and record the loss in the log. Stop the server first
    AcceptLoss {
        /// Reason, which the record contains
        #[arg(long)]
        reason: String,
    },
    /// Check every line: format, order, hash chain, and the MAC by the deployment's key
    Verify {
        /// Folder of the log [default: audit/ in the data folder of the settings]
        folder: Option<PathBuf>,
        /// The deployment's key [default: ../keys/audit-digest.key beside the folder, if it exists]
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        /// A hash that was noted earlier, which a line of the log must have; may be repeated
        #[arg(long, value_name = "SHA256")]
        expect_head: Vec<String>,
        /// File of the witness; the log must contain the heads that the file has for this replica
        #[arg(long, value_name = "FILE", requires = "replica")]
        witness: Option<PathBuf>,
        /// Id of the replica: `replica` in state/replica.json
        #[arg(long, value_name = "ID", requires = "witness")]
        replica: Option<String>,
    },
}

pub(super) fn run(environment: &Environment, command: Command) -> Result<Exit, Failure> {
    match command {
        Command::AcceptLoss { reason } => accept_loss(environment, &reason),
        Command::Verify { folder, key, expect_head, witness, replica } => {
            let folder = match folder {
                Some(folder) => folder,
                None => environment.config()?.audit().folder,
            };
            let mut expected =
                Expected { key: read_key(&folder, key)?, heads: expect_head.iter().map(|head| plain(head)).collect() };
            if let (Some(file), Some(replica)) = (&witness, &replica) {
                let heads = witness::read(file).map_err(|error| {
                    Failure::new(Exit::Failure, format!("the witness `{}` can't be read: {error}", file.display()))
                })?;
                expected.heads.extend(heads.into_iter().filter(|(of, _)| of == replica).map(|(_, head)| head.hash));
            }
            let report = verify(&folder, &expected).map_err(|error| match error {
                VerifyError::Broken(_) => Failure::new(Exit::Invalid, error),
                VerifyError::Missing(_) | VerifyError::Unreadable(..) => Failure::new(Exit::Failure, error),
            })?;
            environment.print(&report, &text(&report));
            Ok(Exit::Ok)
        }
    }
}

fn accept_loss(environment: &Environment, reason: &str) -> Result<Exit, Failure> {
    let config = environment.config()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Exit::Failure, error))?;
    let seams = Seams::system(crate::telemetry::export::Options::default());
    let index = runtime
        .block_on(app::log::accept_loss(&config, seams, reason))
        .map_err(|error| Failure::new(Exit::Failure, error))?;
    let line = index.map_or_else(String::new, |index| format!(" as line {index}"));
    environment.print(&serde_json::json!({"index": index}), &format!("recorded{line}; the server can be started"));
    Ok(Exit::Ok)
}

/// Removes the prefix `sha256:` from a hash, and lower-cases it.
fn plain(head: &str) -> String {
    head.strip_prefix("sha256:").unwrap_or(head).to_ascii_lowercase()
}

fn read_key(folder: &Path, named: Option<PathBuf>) -> Result<Option<[u8; 32]>, Failure> {
    let beside = folder.parent().map(|data| data.join("keys").join("audit-digest.key")).filter(|path| path.exists());
    let Some(path) = named.or(beside) else { return Ok(None) };
    let failed = |problem: &str| Failure::new(Exit::Failure, format!("the key `{}` {problem}", path.display()));
    let bytes = std::fs::read(&path).map_err(|error| failed(&format!("can't be read: {error}")))?;
    bytes.try_into().map(Some).map_err(|_| failed("does not contain exactly 32 bytes"))
}

fn text(report: &Report) -> String {
    let mut text = format!(
        "intact: {} lines in {} segments, {} decisions\nfirst  {}\nlast   {}\nhead   sha256:{}",
        report.lines, report.segments, report.decisions, report.first, report.last, report.head
    );
    if !report.keyed {
        text.push_str(
            "\nthe MACs were not checked, because no key was given: anyone who can write the files could have rewritten all lines (see `--key`)",
        );
    }
    for loss in &report.losses {
        text.push_str(&format!(
            "\nlines {} to {} are lost; the loss was accepted at {}",
            loss.from,
            loss.until.saturating_sub(1),
            loss.at
        ));
    }
    if report.best_effort > 0 {
        text.push_str(&format!(
            "\n{} lines were written in best-effort mode: others may have been lost",
            report.best_effort
        ));
    }
    if report.unfinished > 0 {
        text.push_str(&format!(
            "\nthe last line is unfinished ({} bytes): a write in progress, or a torn tail that the next start moves aside",
            report.unfinished
        ));
    }
    text
}
