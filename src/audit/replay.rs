//! What happened, read back from the log: by it, what is remembered in process is made anew after a start.

use std::io;
use std::path::Path;

use serde::Deserialize;

use crate::audit::recover::segments;
use crate::model::time::Timestamp;

/// A line, as far as it is of interest here; members that it lacks are empty.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Line {
    ts: String,
    /// What the line records.
    pub r#type: String,
    /// A decision's: allow or deny. A review's: approve or deny.
    pub decision: String,
    /// A denial's reason.
    pub reason: String,
    /// The gate that denied.
    pub gate: String,
    /// The action.
    pub action: String,
    /// The caller.
    pub caller: CallerLine,
    /// The chain.
    pub chain: ChainLine,
    /// The resource.
    pub resource: ResourceLine,
    /// The case.
    pub case: serde_json::Value,
    /// How unusual the call was.
    pub signals: SignalsLine,
    /// What was cleared.
    pub cleared: ClearedLine,
    /// The evaluation.
    pub evaluation_id: String,
    /// What a decision was for.
    pub purpose: String,
    /// What a context was made of.
    pub context: ContextLine,
    /// What was found in a draft.
    pub output: OutputLine,
    /// Redacted values, by what they are known again by.
    pub values: Vec<String>,
}

/// A context.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ContextLine {
    /// Which secret its values are known again by.
    pub secret: String,
}

/// A draft.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct OutputLine {
    /// Whether the chain may let drafts of the case go at all.
    pub entitled: bool,
    /// Whether it was remembered that it repeated a redacted value.
    pub repeats: bool,
}

/// Who called.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct CallerLine {
    /// The tool service.
    pub tool_service: String,
}

/// On whose behalf.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ChainLine {
    /// The agent.
    pub agent: String,
    /// The supervising human.
    pub supervisor: String,
}

/// On what.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ResourceLine {
    /// Its type.
    pub r#type: String,
    /// Its id.
    pub id: String,
}

/// How unusual a call was.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SignalsLine {
    /// Kinds that were found in this call's texts.
    pub found: Vec<String>,
    /// Whether a text was screened.
    pub screened: bool,
    /// Whether one could not be.
    pub unscreened: bool,
    /// Whether the case's text tries to steer the agent.
    pub hostile: bool,
    /// Whether the call was counted in its windows.
    pub counted: bool,
    /// Whether what came of it was remembered.
    pub remembered: bool,
    /// Whether the chain may read the case.
    pub reads_case: bool,
    /// Whether the call is a draft in which something was found that no mistake explains.
    pub unsafe_draft: bool,
}

/// What a human cleared.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ClearedLine {
    /// The tenant.
    pub tenant: String,
    /// The case; empty: none.
    pub case: String,
    /// The customer; empty: none.
    pub customer: String,
    /// The agent; empty: none.
    pub agent: String,
    /// The supervisor; empty: none.
    pub supervisor: String,
}

impl Line {
    /// When it was written.
    pub fn at(&self) -> Timestamp {
        Timestamp::parse(&self.ts).unwrap_or_default()
    }

    /// A member of a decision's case; empty if it has none.
    pub fn case(&self, member: &str) -> &str {
        self.case.get(member).and_then(serde_json::Value::as_str).unwrap_or_default()
    }
}

/// Reads the lines since a time, in order.
///
/// # Errors
/// When the folder, a segment or a line can't be read: what is missing then is not known.
pub(super) fn lines_since(folder: &Path, since: Timestamp, mut take: impl FnMut(Line)) -> io::Result<()> {
    let all = segments(folder)?;
    // A segment is of interest if the one after it begins late enough.
    let begins = |path: &Path| -> io::Result<Option<Timestamp>> {
        let mut first = String::new();
        io::BufRead::read_line(&mut io::BufReader::new(std::fs::File::open(path)?), &mut first)?;
        Ok(serde_json::from_str::<Line>(&first).ok().map(|line| line.at()))
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
            if line.at() >= since {
                take(line);
            }
        }
    }
    Ok(())
}
