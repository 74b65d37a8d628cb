//! Corpora, JSON Lines in folders. A line's members say what it is:
//!
//! - `text` and `label` (1: it tries to steer an agent, 0: it does not);
//! - `text` and `spans` (`type`, `start`, `end` in Unicode code points): what must not be passed on; `previous_turn`, if it is known;
//! - `text` alone: a benign message;
//! - `knowledge`, `question`, `right_answer`, `hallucinated_answer`: answers with their sources;
//! - `text` and `status` (`success` or `failure`): what an assistant said after a call.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};

/// A labelled value in a text.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Span {
    /// What it is, as the corpus calls it.
    pub r#type: String,
    /// Its first code point.
    pub start: usize,
    /// One past its last.
    pub end: usize,
}

/// A line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Row {
    /// The text.
    pub text: String,
    /// Where the corpus has it from.
    pub src: String,
    /// Whether it tries to steer an agent.
    pub label: Option<u8>,
    /// What must not be passed on.
    pub spans: Option<Vec<Span>>,
    /// The turn before.
    pub previous_turn: String,
    /// How the call before ended.
    pub status: String,
    /// What the answers are from.
    pub knowledge: String,
    /// What was asked.
    pub question: String,
    /// A right answer.
    pub right_answer: String,
    /// A wrong one.
    pub hallucinated_answer: String,
}

/// A part of a corpus: lines are in one half or the other by a hash of their own, whatever stands beside them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    #[default]
    All,
    /// One half.
    First,
    /// The other.
    Second,
}

impl Part {
    fn has(self, line: &str) -> bool {
        let second = Sha256::digest(line.as_bytes()).first().is_some_and(|byte| byte % 2 == 1);
        match self {
            Self::All => true,
            Self::First => !second,
            Self::Second => second,
        }
    }
}

/// Why a corpus can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// The operating system refuses.
    #[error("`{0}` can't be read: {1}")]
    Io(PathBuf, io::Error),
    /// A line is of none of the shapes.
    #[error("`{0}`, line {1}: is no line of a corpus: see docs/detectors.md")]
    Line(PathBuf, usize),
    /// There is nothing in it.
    #[error("`{0}` has no file that ends in .jsonl")]
    Nothing(PathBuf),
}

/// Reads the lines of every `.jsonl` file of a folder, in the order of the files' names.
///
/// # Errors
/// When there is none, or one can't be read.
pub fn read(folder: &Path, part: Part) -> Result<Vec<Row>, CorpusError> {
    let failed = |path: &Path, error| CorpusError::Io(path.to_owned(), error);
    let entries = std::fs::read_dir(folder).map_err(|error| failed(folder, error))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    files.sort();
    if files.is_empty() {
        return Err(CorpusError::Nothing(folder.to_owned()));
    }
    let mut rows = vec![];
    for file in files {
        let text = std::fs::read_to_string(&file).map_err(|error| failed(&file, error))?;
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let row: Row = serde_json::from_str(line).map_err(|_| CorpusError::Line(file.clone(), index + 1))?;
            if row.text.is_empty() && row.right_answer.is_empty() {
                return Err(CorpusError::Line(file.clone(), index + 1));
            }
            if part.has(line) {
                rows.push(row);
            }
        }
    }
    Ok(rows)
}
