//! The `countersign audit` command.

mod erase;
mod evidence;
mod reading;

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

pub(super) use self::reading::{folders, time};
use super::{Environment, Exit, Failure};
use crate::app::{self, Seams};
use crate::audit::checkpoint::{Checkpoint, VERIFIER_FILE, VerifierKey};
use crate::audit::key::DigestKey;
use crate::audit::prove::{ProveError, Wanted, check, prove, prove_consistency};
use crate::audit::verify::{Expected, Report, Verifier, VerifyError, first_line, verify_with_progress};
use crate::audit::witness;
use crate::model::head::Head;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Tell the story of a case, line by line
    Case(reading::Case),
    /// List what the logs lack: outcomes of allowed calls, allows of outcomes, bundles that nothing activated
    Check(reading::Check),
    /// Show the evidence of an evaluation, or what the reviewers of an approval were shown
    Evidence(evidence::Arguments),
    /// Write lines for another system
    Export(reading::Export),
    /// Show lines by case, agent, decision, time or policy
    Show(reading::Show),
    /// Accept that the log lost lines which were noted elsewhere, and record the loss in the log. Stop the server first
    AcceptLoss {
        /// Reason, which the record contains
        #[arg(long)]
        reason: String,
    },
    /// Erase what is kept about a person, as a human with your own token: the keys of the evidence, ended approvals and checks
    Erase(erase::Arguments),
    /// Prove that a line is in the log, to someone who has only the public key of its checkpoints
    Prove {
        /// Folder of the log [default: audit/ in the data folder of the settings]
        folder: Option<PathBuf>,
        /// Evaluation id of the decision
        #[arg(long, value_name = "ID", required_unless_present_any = ["index", "older"])]
        evaluation: Option<String>,
        /// Number of the line, `seq`
        #[arg(long, value_name = "N", conflicts_with = "evaluation")]
        index: Option<u64>,
        /// File with an earlier checkpoint: print the proof that nothing before it changed
        #[arg(long, value_name = "FILE", conflicts_with_all = ["evaluation", "index"])]
        older: Option<PathBuf>,
        /// Folder for the files <N>.json (the line) and <N>.tlog-proof
        #[arg(long, value_name = "FOLDER", default_value = ".")]
        out: PathBuf,
    },
    /// Check the proof of a line
    CheckProof {
        /// The line, as `prove` wrote it
        line: PathBuf,
        /// The proof
        proof: PathBuf,
        /// The public key of the checkpoints: keys/audit-checkpoint.vkey of the deployment
        #[arg(long, value_name = "FILE")]
        checkpoint_key: PathBuf,
    },
    /// Check every line: format, order, hash chain, and the MAC by the deployment's key
    Verify {
        /// Folder of the log [default: audit/ in the data folder of the settings]
        folder: Option<PathBuf>,
        /// The deployment's key [default: ../keys/audit-digest.key beside the folder, if it exists]
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        /// File with the public key of the checkpoints, from a place that whoever can write the log can't [default: the key of
        /// the deployment, if it is beside the folder]
        #[arg(long, value_name = "FILE")]
        checkpoint_key: Option<PathBuf>,
        /// File with a checkpoint that was noted earlier, with which the log must agree; may be repeated
        #[arg(long, value_name = "FILE")]
        checkpoint: Vec<PathBuf>,
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
        Command::Case(arguments) => reading::case(environment, &arguments),
        Command::Check(arguments) => reading::check(environment, &arguments),
        Command::Export(arguments) => reading::export(environment, &arguments),
        Command::Show(arguments) => reading::show(environment, &arguments),
        Command::Evidence(arguments) => evidence::run(environment, &arguments),
        Command::Erase(arguments) => erase::run(environment, &arguments),
        Command::AcceptLoss { reason } => accept_loss(environment, &reason),
        Command::Prove { folder, evaluation, index, older, out } => {
            let folder = log_folder(environment, folder)?;
            let failed = |error: ProveError| Failure::new(Exit::Failure, error);
            if let Some(older) = older {
                let proof = prove_consistency(&folder, &read_text(&older)?).map_err(failed)?;
                environment.print(&serde_json::json!({ "proof": proof }), proof.trim_end());
                return Ok(Exit::Ok);
            }
            let wanted = index.map(Wanted::Index).or(evaluation.map(Wanted::Evaluation));
            let wanted = wanted.ok_or_else(|| Failure::new(Exit::Usage, "name a decision or a line"))?;
            let proof = prove(&folder, &wanted).map_err(failed)?;
            let (line, text) =
                (out.join(format!("{}.json", proof.index)), out.join(format!("{}.tlog-proof", proof.index)));
            std::fs::create_dir_all(&out)
                .map_err(|error| Failure::new(Exit::Failure, format!("`{}` can't be made: {error}", out.display())))?;
            write(&line, &proof.line)?;
            write(&text, proof.text.as_bytes())?;
            let shown = serde_json::json!({"index": proof.index, "line": line, "proof": text});
            environment.print(&shown, &format!("{}\n{}", line.display(), text.display()));
            Ok(Exit::Ok)
        }
        Command::CheckProof { line, proof, checkpoint_key } => check_proof(environment, &line, &proof, &checkpoint_key),
        Command::Verify { folder, key, checkpoint_key, checkpoint, expect_head, witness, replica } => {
            let folder = log_folder(environment, folder)?;
            let mut expected = Expected {
                keys: read_keys(&folder, key)?,
                heads: expect_head.iter().map(|head| plain(head)).collect(),
                verifier: verifier(&folder, checkpoint_key)?,
                checkpoints: checkpoint.iter().map(|file| read_text(file)).collect::<Result<_, _>>()?,
            };
            if let (Some(file), Some(replica)) = (&witness, &replica) {
                let heads = witness::read(file).map_err(|error| {
                    Failure::new(Exit::Failure, format!("the witness `{}` can't be read: {error}", file.display()))
                })?;
                // Heads of lines that were deleted because of their age can't be compared.
                let first = first_line(&folder).map_err(|error| Failure::new(Exit::Failure, error))?;
                let is_there = |(of, head): &(String, Head)| of == replica && head.index >= first;
                expected.heads.extend(heads.into_iter().filter(is_there).map(|(_, head)| head.hash));
            }
            let report = verify_with_progress(&folder, &expected, progress()).map_err(|error| match error {
                VerifyError::Broken(_) => Failure::new(Exit::Invalid, error),
                VerifyError::Missing(_) | VerifyError::Unreadable(..) => Failure::new(Exit::Failure, error),
            })?;
            environment.print(&report, &text(&report));
            Ok(Exit::Ok)
        }
    }
}

/// Returns what shows the progress of a verification on a terminal, in one line.
fn progress() -> impl FnMut(u64, u64) {
    const MEBIBYTE: u64 = 1024 * 1024;
    /// Size from which on a verification takes long enough to be watched.
    const SHOWN: u64 = 64 * MEBIBYTE;
    let is_shown = std::io::stderr().is_terminal();
    let mut last = 0;
    move |read, total| {
        let percent = read.saturating_mul(100).checked_div(total).unwrap_or(100);
        if is_shown && total >= SHOWN && percent != last {
            last = percent;
            let end = if percent == 100 { "\n" } else { "" };
            // A closed terminal needs no progress.
            let _gone = write!(std::io::stderr(), "\r{percent:>3} % of {} MiB{end}", total / MEBIBYTE);
        }
    }
}

fn check_proof(environment: &Environment, line: &Path, proof: &Path, key: &Path) -> Result<Exit, Failure> {
    let verifier = VerifierKey::parse(&read_text(key)?)
        .ok_or_else(|| Failure::new(Exit::Failure, format!("`{}` is no public key of checkpoints", key.display())))?;
    let line = std::fs::read(line).map_err(|error| unreadable(line, &error))?;
    let Some(checkpoint) = check(&line, &read_text(proof)?, &verifier) else {
        let problem = "the proof does not hold: the line or the proof was changed, or the checkpoint is of another log";
        return Err(Failure::new(Exit::Invalid, problem));
    };
    let Checkpoint { origin, size, .. } = checkpoint;
    let text = format!("proven: the line is in {origin} at {size} lines");
    environment.print(&serde_json::json!({"origin": origin, "size": size}), &text);
    Ok(Exit::Ok)
}

fn log_folder(environment: &Environment, named: Option<PathBuf>) -> Result<PathBuf, Failure> {
    match named {
        Some(folder) => Ok(folder),
        None => Ok(environment.config()?.audit().folder),
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Exit::Failure, format!("`{}` can't be read: {error}", path.display()))
}

fn read_text(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|error| unreadable(path, &error))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let failed = |error| Failure::new(Exit::Failure, format!("`{}` can't be written: {error}", path.display()));
    std::fs::write(path, bytes).map_err(failed)
}

/// Reads the public key of the checkpoints: the named one, or that of the deployment.
fn verifier(folder: &Path, named: Option<PathBuf>) -> Result<Option<Verifier>, Failure> {
    let beside = folder.parent().map(|data| data.join("keys").join(VERIFIER_FILE)).filter(|path| path.exists());
    let Some(path) = named.or(beside) else { return Ok(None) };
    let verifier = Verifier::parse(&read_text(&path)?);
    let wrong = || Failure::new(Exit::Failure, format!("`{}` is no public key of checkpoints", path.display()));
    verifier.map(Some).ok_or_else(wrong)
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

/// Reads the deployment's keys, the oldest first: from the named file or that beside the log, and from the file with the keys that
/// it replaced.
fn read_keys(folder: &Path, named: Option<PathBuf>) -> Result<Vec<[u8; 32]>, Failure> {
    let beside = folder.parent().map(|data| data.join("keys").join("audit-digest.key")).filter(|path| path.exists());
    let Some(path) = named.or(beside) else { return Ok(vec![]) };
    let key = DigestKey::read(&path).map_err(|error| {
        let problem = match error.kind() {
            std::io::ErrorKind::InvalidData => error.to_string(),
            _ => format!("can't be read: {error}"),
        };
        Failure::new(Exit::Failure, format!("the key `{}` {problem}", path.display()))
    })?;
    Ok(key.all().copied().collect())
}

fn text(report: &Report) -> String {
    let mut text = format!(
        "intact: {} lines in {} segments, {} decisions\nfirst  {}\nlast   {}\nhead   sha256:{}",
        report.lines, report.segments, report.decisions, report.first, report.last, report.head
    );
    if report.from > 0 {
        text.push_str(&format!("\nthe lines before {} were deleted, as a later line says", report.from));
    }
    text.push_str(&format!("\n{} checkpoints agree with the lines", report.checkpoints));
    if report.checkpoints > 0 && !report.signed {
        text.push_str("; their signatures were not checked, because no public key was given (see `--checkpoint-key`)");
    }
    if report.replaced_key {
        text.push_str(
            "\nthe last line was made with a key that was replaced: no server has started with the new one, or who has the replaced key rewrote the lines",
        );
    }
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
