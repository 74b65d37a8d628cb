//! Reads past events back from the log, to rebuild the risk store after a start or a loss of its data.

use std::io;
use std::path::Path;

use serde::Deserialize;

use crate::audit::recover::segments;
use crate::model::time::Timestamp;

/// Members of a line that the rebuild needs; members that the line lacks are empty.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Line {
    ts: String,
    pub r#type: String,
    /// `allow` or `deny` for a decision, `approve` or `deny` for a review.
    pub decision: String,
    pub reason: String,
    pub gate: String,
    pub action: String,
    pub caller: CallerLine,
    pub chain: ChainLine,
    pub resource: ResourceLine,
    pub case: serde_json::Value,
    pub signals: SignalsLine,
    pub cleared: ClearedLine,
    pub evaluation_id: String,
    /// Purpose of a decision, such as `prepare_context`.
    pub purpose: String,
    pub context: ContextLine,
    pub output: OutputLine,
    /// Redacted values, each with its keyed hash, as the risk store names them.
    pub values: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ContextLine {
    /// Id of the key that the value digests were made with.
    pub secret: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct OutputLine {
    /// Whether the chain may release drafts of the case at all.
    pub entitled: bool,
    /// Whether the risk store was told that the draft repeated a redacted value.
    pub repeats: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct CallerLine {
    pub tool_service: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ChainLine {
    pub agent: String,
    pub supervisor: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ResourceLine {
    pub r#type: String,
    pub id: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SignalsLine {
    /// Kinds of findings in this call's texts.
    pub found: Vec<String>,
    /// Whether a text was screened.
    pub screened: bool,
    /// Whether a text could not be screened.
    pub unscreened: bool,
    /// Whether text of the case tries to steer the agent.
    pub hostile: bool,
    /// Whether the call was counted in its windows.
    pub counted: bool,
    /// Whether the result of the call was added to the risk store.
    pub remembered: bool,
    /// Whether the chain may read the case.
    pub reads_case: bool,
    /// Whether the call is a draft with a finding that the bundle's risk rules list as unsafe.
    pub unsafe_draft: bool,
}

/// Subjects whose risk history a human cleared; empty members were not cleared.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ClearedLine {
    pub tenant: String,
    pub case: String,
    pub customer: String,
    pub agent: String,
    pub supervisor: String,
}

impl Line {
    /// Returns the time when the line was written.
    ///
    /// # Errors
    /// When the line has no readable time, because the caller could not tell whether the line still counts.
    fn at(&self) -> io::Result<Timestamp> {
        Timestamp::parse(&self.ts)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a line of the audit log has no readable time"))
    }

    /// Returns a member of a decision's case; empty if the case lacks it.
    pub fn case(&self, member: &str) -> &str {
        self.case.get(member).and_then(serde_json::Value::as_str).unwrap_or("")
    }
}

/// Reads the lines since a time, in order, each with its time.
///
/// # Errors
/// When the folder, a segment or a line can't be read, because the caller could not tell what is missing.
pub(super) fn lines_since(folder: &Path, since: Timestamp, mut take: impl FnMut(Timestamp, Line)) -> io::Result<()> {
    let all = segments(folder)?;
    // Start with the last segment whose first line is older than `since`; earlier segments contain only older
    // lines.
    let begins = |path: &Path| -> io::Result<Option<Timestamp>> {
        let mut first = String::new();
        io::BufRead::read_line(&mut io::BufReader::new(std::fs::File::open(path)?), &mut first)?;
        Ok(serde_json::from_str::<Line>(&first).ok().and_then(|line| line.at().ok()))
    };
    let mut from = all.len().saturating_sub(1);
    while let Some((_, path)) = all.get(from).filter(|_| from > 0) {
        if begins(path)?.is_some_and(|begins| begins < since) {
            break;
        }
        from -= 1;
    }
    for (_, path) in all.iter().skip(from) {
        for text in io::BufRead::split(io::BufReader::new(std::fs::File::open(path)?), b'\n') {
            let line: Line = serde_json::from_slice(&text?)?;
            let at = line.at()?;
            if at >= since {
                take(at, line);
            }
        }
    }
    Ok(())
}
