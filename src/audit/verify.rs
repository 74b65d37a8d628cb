//! Checks a log without trusting the writer: this file names no other file of `audit`, and shares no code with them.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

/// What was found in an intact log.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// Number of segments.
    pub segments: usize,
    /// Number of lines.
    pub lines: u64,
    /// Time of the first line.
    pub first: String,
    /// Time of the last line.
    pub last: String,
    /// SHA-256 of the last line: what an auditor notes down to see later that nothing before it changed.
    pub head: String,
    /// Decisions among the lines.
    pub decisions: u64,
    /// Lines that were written in best-effort mode.
    pub best_effort: u64,
    /// Bytes of an unfinished last line: a write under way, or a tail that the next start will cut.
    pub unfinished: usize,
}

/// The first thing that is wrong with a log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {problem}")]
pub struct Broken {
    /// The segment.
    pub file: String,
    /// The line, counted from 1; 0 for the file as a whole.
    pub line: usize,
    /// What is wrong.
    pub problem: String,
}

/// Why a log could not be checked to its end.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It is not intact.
    #[error("{0}")]
    Broken(Broken),
    /// There is none.
    #[error("there is no audit log in `{0}`: give the folder that holds its seg-*.jsonl files")]
    Missing(PathBuf),
    /// It can't be read.
    #[error("`{0}` can't be read: {1}")]
    Unreadable(PathBuf, io::Error),
}

/// Checks every line of every segment.
///
/// # Errors
/// At the first fault.
pub fn verify(folder: &Path) -> Result<Report, VerifyError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |error| VerifyError::Unreadable(path, error)
    };
    let mut names: Vec<(String, PathBuf)> = vec![];
    for entry in fs::read_dir(folder).map_err(|_| VerifyError::Missing(folder.to_owned()))? {
        let path = entry.map_err(unreadable(folder))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with("seg-") && name.ends_with(".jsonl") {
            names.push((name, path));
        }
    }
    names.sort();
    if names.is_empty() {
        return Err(VerifyError::Missing(folder.to_owned()));
    }
    let mut walk = Walk { prev: "0".repeat(64), report: Report { segments: names.len(), ..Report::default() } };
    let last = names.len() - 1;
    for (index, (name, path)) in names.iter().enumerate() {
        let file = fs::File::open(path).map_err(unreadable(path))?;
        walk.segment(name, BufReader::new(file), index == last).map_err(|fault| match fault {
            Fault::Broken(line, problem) => VerifyError::Broken(Broken { file: name.clone(), line, problem }),
            Fault::Io(error) => VerifyError::Unreadable(path.clone(), error),
        })?;
    }
    Ok(walk.report)
}

enum Fault {
    Broken(usize, String),
    Io(io::Error),
}

struct Walk {
    prev: String,
    report: Report,
}

impl Walk {
    fn segment(&mut self, name: &str, mut reader: impl BufRead, is_last: bool) -> Result<(), Fault> {
        if name != format!("seg-{:020}.jsonl", self.report.lines) {
            return Err(Fault::Broken(
                0,
                format!("the segment must begin with line {} and be named after it: a segment is missing", self.report.lines),
            ));
        }
        let mut number = 0;
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            if reader.read_until(b'\n', &mut bytes).map_err(Fault::Io)? == 0 {
                break;
            }
            number += 1;
            if bytes.pop() != Some(b'\n') {
                if !is_last {
                    return Err(Fault::Broken(number, "the line is cut off".into()));
                }
                self.report.unfinished = bytes.len() + 1;
                break;
            }
            self.line(&bytes).map_err(|problem| Fault::Broken(number, problem))?;
        }
        Ok(())
    }

    fn line(&mut self, bytes: &[u8]) -> Result<(), String> {
        if bytes.len() > 65_535 {
            return Err("the line is longer than 65535 bytes".into());
        }
        let value: Value = serde_json::from_slice(bytes).map_err(|_| "the line is not JSON".to_owned())?;
        let canonical = serde_json_canonicalizer::to_vec(&value).map_err(|_| "the line has no canonical form".to_owned())?;
        if canonical != bytes {
            return Err("the line is not in canonical form (RFC 8785)".into());
        }
        let text = |member: &str| value.get(member).and_then(Value::as_str).ok_or_else(|| format!("the line has no `{member}`"));
        let number = |member: &str| value.get(member).and_then(Value::as_u64).ok_or_else(|| format!("the line has no `{member}`"));
        if number("v")? != 1 {
            return Err("the line's format is not known to this version".into());
        }
        let (seq, expected) = (number("seq")?, self.report.lines);
        if seq != expected {
            return Err(format!("the line says that it is number {seq}, and it is number {expected}: lines are missing or out of order"));
        }
        if text("prev")? != self.prev {
            return Err("`prev` is not the hash of the line before: one of the two was changed".into());
        }
        if value.get("durable").and_then(Value::as_u64).is_some_and(|durable| durable >= seq) {
            return Err("`durable` names this line or a later one".into());
        }
        let time = text("ts")?.to_owned();
        if self.report.first.is_empty() {
            self.report.first.clone_from(&time);
        }
        self.report.decisions += u64::from(text("type")? == "decision");
        self.report.best_effort += u64::from(text("durability")? == "best_effort");
        self.report.last = time;
        self.report.lines += 1;
        self.prev = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        self.report.head.clone_from(&self.prev);
        Ok(())
    }
}
