//! Reads corpora, which are folders of JSON Lines files. The members of a line determine its kind:
//!
//! - `text` and `label` (1: the text tries to steer an agent, 0: it does not);
//! - `text` and `spans` (`type`, `start`, `end` in Unicode code points): values that must not be passed on,
//!   with `previous_turn` if it is known;
//! - `text` and `kind`, such as `fraud`: a message in which this kind of finding is wanted; an empty `kind`: a calm one;
//! - only `text`: a benign message;
//! - `knowledge`, `question`, `right_answer`, `hallucinated_answer`: answers with their sources;
//! - `text` and `status` (`success` or `failure`): an assistant's message after a call;
//! - `text` and `when` (`after_write` or `before_any_write`): a draft after a call that changed something, or before any.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};

/// A labelled value in a text.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Span {
    /// Type of the value as the corpus names it.
    pub r#type: String,
    /// Index of the first code point.
    pub start: usize,
    /// Index after the last code point.
    pub end: usize,
}

/// A line of a corpus.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Row {
    pub text: String,
    /// Origin of the text, as the corpus names it.
    pub src: String,
    /// 1 if the text tries to steer an agent, otherwise 0.
    pub label: Option<u8>,
    /// Kind of finding that is wanted; empty if a calm message must have none.
    pub kind: Option<String>,
    /// Values that must not be passed on.
    pub spans: Option<Vec<Span>>,
    /// Turn of the conversation before the text.
    pub previous_turn: String,
    /// Result of the call before the text.
    pub status: String,
    /// What was done before the text was written: `after_write` or `before_any_write`.
    pub when: String,
    /// Source of the answers.
    pub knowledge: String,
    pub question: String,
    pub right_answer: String,
    pub hallucinated_answer: String,
}

/// Part of a corpus. A hash of each line decides which half contains the line, independently of other lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Part {
    /// The whole corpus.
    #[default]
    All,
    First,
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

/// Reasons why a corpus can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// The operating system returned an error.
    #[error("`{0}` can't be read: {1}")]
    Io(PathBuf, io::Error),
    /// A line does not have a known form.
    #[error("`{0}`, line {1}: is not a valid line of a corpus: see docs/detectors.md")]
    Line(PathBuf, usize),
    /// The folder has no `.jsonl` file.
    #[error("`{0}` has no file that ends in .jsonl")]
    Nothing(PathBuf),
}

/// Reads the lines of every `.jsonl` file of a folder, in the order of the files' names.
///
/// # Errors
/// If the folder has no such file, or a file or line can't be read.
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
