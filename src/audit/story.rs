//! Reads the lines of one or more logs, such as those of several replicas, by case, agent, decision, time or policy, in the order of
//! their times. It checks nothing: `verify` does.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use memchr::memmem::{self, Finder};
use serde_json::Value;

use crate::audit::index::{Index, Key};
use crate::audit::recover::segments;
use crate::model::time::Timestamp;

/// Which lines are wanted. A member that is absent takes every line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub case: Option<String>,
    pub tenant: Option<String>,
    pub agent: Option<String>,
    /// Supervisor, reviewer or other human.
    pub human: Option<String>,
    /// Evaluation id: of a decision, and of what followed from it.
    pub evaluation: Option<String>,
    /// Type of the line, or its beginning, such as `approval`.
    pub kind: Option<String>,
    /// `allow` or `deny`.
    pub decision: Option<String>,
    pub reason: Option<String>,
    /// Policy that determined the decision.
    pub policy: Option<String>,
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
}

/// A line of a log.
#[derive(Clone, Debug)]
pub struct Entry {
    pub at: Timestamp,
    /// Number of the line in its log.
    pub seq: u64,
    /// Folder of the log.
    pub folder: PathBuf,
    pub value: Value,
    /// The line as it is written.
    pub line: String,
}

impl Entry {
    fn read(folder: &Path, line: String) -> Option<Self> {
        let value: Value = serde_json::from_str(&line).ok()?;
        let at = Timestamp::parse(value.get("ts")?.as_str()?)?;
        let seq = value.get("seq")?.as_u64()?;
        Some(Self { at, seq, folder: folder.to_owned(), value, line })
    }

    /// Returns the text at a JSON pointer, or an empty one.
    pub fn text(&self, pointer: &str) -> &str {
        self.value.pointer(pointer).and_then(Value::as_str).unwrap_or("")
    }

    /// Returns the texts of a list at a JSON pointer.
    pub fn texts(&self, pointer: &str) -> Vec<&str> {
        let list = self.value.pointer(pointer).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(Value::as_str).collect()
    }

    /// Returns the policies that determined a decision.
    pub fn policies(&self) -> Vec<&str> {
        let links = self.value.get("links").and_then(Value::as_array).into_iter().flatten();
        let all = links.filter_map(|link| link.pointer("/determining/items")?.as_array());
        let mut all: Vec<&str> = all.flatten().filter_map(Value::as_str).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    pub fn kind(&self) -> &str {
        self.text("/type")
    }
}

impl Filter {
    fn takes(&self, entry: &Entry) -> bool {
        let is = |wanted: &Option<String>, places: &[&str]| {
            wanted.as_ref().is_none_or(|wanted| places.iter().any(|place| entry.text(place) == wanted))
        };
        is(&self.case, &["/case/id"])
            && is(&self.tenant, &["/case/tenant", "/tenant"])
            && is(&self.agent, &["/chain/agent", "/approval/agent", "/consent/agent"])
            && is(&self.evaluation, &["/evaluation_id", "/approval/evaluation_id", "/consent/evaluation_id"])
            && is(&self.decision, &["/decision"])
            && is(&self.reason, &["/reason"])
            && self.human.as_ref().is_none_or(|human| {
                is(
                    &self.human,
                    &["/chain/supervisor", "/approval/supervisor", "/consent/supervisor", "/by/human", "/caller/human"],
                ) || entry.texts("/approval/approvers").contains(&human.as_str())
            })
            && self.kind.as_ref().is_none_or(|kind| entry.kind().starts_with(kind.as_str()))
            && self.policy.as_ref().is_none_or(|policy| entry.policies().contains(&policy.as_str()))
            && self.since.is_none_or(|since| since <= entry.at)
            && self.until.is_none_or(|until| entry.at < until)
    }

    /// Returns what a line must contain, if it is wanted.
    fn needles(&self) -> Vec<Finder<'static>> {
        let texts = [&self.case, &self.tenant, &self.agent, &self.human, &self.evaluation, &self.reason, &self.policy];
        let quoted = texts.into_iter().flatten().filter_map(|text| serde_json::to_string(text).ok());
        quoted.map(|text| Finder::new(&text).into_owned()).collect()
    }

    /// Returns whether a line that is not parsed yet may be wanted.
    fn may_take(&self, line: &[u8], needles: &[Finder<'static>]) -> bool {
        needles.iter().all(|needle| needle.find(line).is_some())
            && (self.since.is_none() && self.until.is_none()
                || time_of(line).is_none_or(|at| {
                    self.since.is_none_or(|since| since <= at) && self.until.is_none_or(|until| at < until)
                }))
    }

    /// Returns what the index finds lines by, the most selective first.
    fn key(&self) -> Option<(Key, &str)> {
        let evaluation = self.evaluation.as_deref().map(|id| (Key::Evaluation, id));
        let case = || self.case.as_deref().map(|id| (Key::Case, id));
        evaluation.or_else(case).or_else(|| self.agent.as_deref().map(|id| (Key::Agent, id)))
    }
}

/// Returns the time of a line that is not parsed. Quotes in strings are escaped, so no value can look like the member.
fn time_of(line: &[u8]) -> Option<Timestamp> {
    const MEMBER: &[u8] = b"\"ts\":\"";
    let rest = line.get(memmem::find(line, MEMBER)? + MEMBER.len()..)?;
    let end = memchr::memchr(b'"', rest)?;
    Timestamp::parse(std::str::from_utf8(rest.get(..end)?).ok()?)
}

/// Calls `take` with each wanted line of the logs in these folders, in the order of their times, until it returns false.
///
/// # Errors
/// When a folder or a segment can't be read.
pub fn read(folders: &[PathBuf], filter: &Filter, mut take: impl FnMut(Entry) -> bool) -> io::Result<()> {
    let mut logs: Vec<Log<'_>> = folders.iter().map(|folder| Log::open(folder, filter)).collect::<io::Result<_>>()?;
    let mut heads: Vec<Option<Entry>> = logs.iter_mut().map(Log::next).collect::<io::Result<_>>()?;
    loop {
        let earliest = heads.iter().enumerate().filter_map(|(log, head)| Some((head.as_ref()?.at, log))).min();
        let Some((_, log)) = earliest else { return Ok(()) };
        let next = logs.get_mut(log).map_or(Ok(None), Log::next)?;
        let head = heads.get_mut(log).and_then(|head| std::mem::replace(head, next));
        if !head.is_none_or(&mut take) {
            return Ok(());
        }
    }
}

/// A log that is read from one wanted line to the next.
struct Log<'f> {
    folder: PathBuf,
    filter: &'f Filter,
    needles: Vec<Finder<'static>>,
    /// Segments that are still to be read, the next one last.
    segments: Vec<(PathBuf, bool)>,
    open: Option<BufReader<fs::File>>,
    /// Offsets of the lines that the index found in the open segment, the next one last; `None` to read all of it.
    offsets: Option<Vec<u64>>,
}

impl<'f> Log<'f> {
    fn open(folder: &Path, filter: &'f Filter) -> io::Result<Self> {
        let all = segments(folder)?;
        let last = all.len().saturating_sub(1);
        // The last segment is still written, so it has no index.
        let segments = all.into_iter().enumerate().rev().map(|(at, (_, path))| (path, at < last)).collect();
        Ok(Self { folder: folder.to_owned(), filter, needles: filter.needles(), segments, open: None, offsets: None })
    }

    fn next(&mut self) -> io::Result<Option<Entry>> {
        loop {
            let Some(reader) = &mut self.open else {
                match self.segments.pop() {
                    Some((path, is_closed)) => self.begin(&path, is_closed)?,
                    None => return Ok(None),
                }
                continue;
            };
            let place = match &mut self.offsets {
                Some(offsets) => {
                    offsets.pop().map(|offset| reader.seek(SeekFrom::Start(offset))).transpose()?.is_some()
                }
                None => true,
            };
            let mut line = vec![];
            // A line without its newline is still being written.
            if !place || reader.read_until(b'\n', &mut line)? == 0 || line.pop() != Some(b'\n') {
                self.open = None;
                continue;
            }
            if !self.filter.may_take(&line, &self.needles) {
                continue;
            }
            let entry = String::from_utf8(line).ok().and_then(|line| Entry::read(&self.folder, line));
            if let Some(entry) = entry.filter(|entry| self.filter.takes(entry)) {
                return Ok(Some(entry));
            }
        }
    }

    /// Opens a segment, unless its times or its index show that it has no wanted line.
    fn begin(&mut self, path: &Path, is_closed: bool) -> io::Result<()> {
        let needs = self.filter.key().is_some() || self.filter.since.is_some() || self.filter.until.is_some();
        // Without an index, such as in a folder that can't be written, the segment is read.
        let index = if is_closed && needs { Index::open(path).ok() } else { None };
        self.offsets = None;
        if let Some(index) = index {
            let is_before = self.filter.since.is_some_and(|since| index.last < since);
            if is_before || self.filter.until.is_some_and(|until| until <= index.first) {
                return Ok(());
            }
            if let Some((key, value)) = self.filter.key() {
                let mut offsets = index.find(key, value)?;
                offsets.reverse();
                self.offsets = Some(offsets);
            }
        }
        self.open = Some(BufReader::with_capacity(1 << 16, fs::File::open(path)?));
        Ok(())
    }
}
