//! Reads the last segment at start. What was never durable may be torn and is cut, kept aside and recorded; what was durable may
//! not be damaged.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::audit::record::RecoveredRecord;
use crate::audit::{GENESIS, OpenError, hash};
use crate::model::time::Timestamp;

/// What was cut.
pub type Recovered = RecoveredRecord;

/// Where to go on.
#[derive(Debug, Default)]
pub(super) struct Tail {
    pub(super) segment: Option<PathBuf>,
    pub(super) length: u64,
    pub(super) next: u64,
    pub(super) prev: Option<String>,
    pub(super) opened: Option<Timestamp>,
    pub(super) last: Option<Timestamp>,
    pub(super) recovered: Option<Recovered>,
}

/// The members of a line that recovery reads.
#[derive(Deserialize)]
struct Place {
    seq: u64,
    prev: String,
    ts: String,
    durable: Option<u64>,
}

/// Reads the tail of a log.
pub(super) fn read_tail(folder: &Path, now: Timestamp) -> Result<Tail, OpenError> {
    let io = |error| OpenError::Io(folder.to_owned(), error);
    let segments = segments(folder).map_err(io)?;
    let Some((first, path)) = segments.last().cloned() else { return Ok(Tail::default()) };
    let bytes = fs::read(&path).map_err(io)?;
    let mut tail = Tail { segment: Some(path.clone()), next: first, ..Tail::default() };
    if let Some((_, before)) = segments.iter().rev().nth(1) {
        let closed = fs::read(before).map_err(io)?;
        tail.prev = closed.strip_suffix(b"\n").and_then(|text| text.rsplit(|byte| *byte == b'\n').next()).map(hash);
    }
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let Some(place) = intact(line, tail.next, tail.prev.as_deref().unwrap_or(GENESIS)) else { break };
        tail.prev = Some(hash(line.strip_suffix(b"\n").unwrap_or(line)));
        tail.next += 1;
        tail.length += u64::try_from(line.len()).unwrap_or(0);
        tail.last = Timestamp::parse(&place.ts);
        tail.opened = tail.opened.or(tail.last);
    }
    let whole = usize::try_from(tail.length).unwrap_or(usize::MAX);
    let rest = bytes.get(whole..).unwrap_or_default();
    if rest.is_empty() {
        return Ok(tail);
    }
    // A later line that calls the damaged one durable proves that it is no torn write.
    let durable = rest.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Place>(line).ok()?.durable).max();
    if durable.is_some_and(|durable| durable >= tail.next) {
        let line = bytes.iter().take(whole).filter(|byte| **byte == b'\n').count() + 1;
        let place = format!("{}:{line}", path.display());
        return Err(OpenError::Damaged { place, folder: folder.display().to_string() });
    }
    tail.recovered = Some(cut(folder, &path, tail.length, rest, (tail.next, now)).map_err(io)?);
    Ok(tail)
}

fn intact(line: &[u8], seq: u64, prev: &str) -> Option<Place> {
    let place: Place = serde_json::from_slice(line.strip_suffix(b"\n")?).ok()?;
    (place.seq == seq && place.prev == prev).then_some(place)
}

/// Moves the torn bytes into a file of their own, so that nothing is lost, and cuts the segment.
fn cut(folder: &Path, path: &Path, length: u64, rest: &[u8], (seq, now): (u64, Timestamp)) -> io::Result<Recovered> {
    let kept_in = format!("torn-{seq:020}-{}.bin", now.micros());
    let mut kept = fs::File::create(folder.join(&kept_in))?;
    kept.write_all(rest)?;
    kept.sync_all()?;
    let segment = fs::OpenOptions::new().write(true).open(path)?;
    segment.set_len(length)?;
    segment.sync_all()?;
    fs::File::open(folder)?.sync_all()?;
    Ok(Recovered { kept_in, bytes: u64::try_from(rest.len()).unwrap_or(u64::MAX), digest: hash(rest) })
}

/// The segments and the number of their first line, in order.
fn segments(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut segments = vec![];
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let first = name.strip_prefix("seg-").and_then(|name| name.strip_suffix(".jsonl")).and_then(|number| number.parse().ok());
        segments.extend(first.map(|first| (first, path)));
    }
    segments.sort();
    Ok(segments)
}
