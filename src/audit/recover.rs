//! Reads the last segment at start. Bytes that were never durable may be torn: they are cut, kept in another
//! file and recorded. A damaged durable line is an error. Of the segments before, only the ends are read: each must begin with the
//! line after the last one of the segment before it. `countersign audit verify` reads every line.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::audit::NotedHead;
use crate::audit::chain::{GENESIS, ZEROS, hash};
use crate::audit::error::OpenError;
use crate::audit::key::DigestKey;
use crate::audit::operations::RecoveredRecord;
use crate::audit::record::LINE_MAX;
use crate::model::number::{to_u64, to_usize};
use crate::model::part::Part;
use crate::model::time::Timestamp;

/// Format version, the `v` of a line.
pub(super) const FORMAT: u8 = 2;
/// Type of a line that accepts the loss of the lines before it.
pub(super) const LOSS: &str = "log.loss_accepted";

/// Torn bytes that were cut.
pub type Recovered = RecoveredRecord;

/// Place where the writer continues.
#[derive(Debug, Default)]
pub(super) struct Tail {
    pub(super) segment: Option<PathBuf>,
    pub(super) length: u64,
    pub(super) next: u64,
    pub(super) prev: Option<String>,
    pub(super) opened: Option<Timestamp>,
    pub(super) last: Option<Timestamp>,
    pub(super) recovered: Option<Recovered>,
    /// Whether the log has the line before `next`, so that this line can be noted as the head.
    pub(super) segment_is_whole: bool,
    /// State store's generation, revision and head, from the line with the highest revision in the segment.
    pub(super) transition: Option<(String, i64, String)>,
}

/// The members of a line that recovery reads.
#[derive(Deserialize)]
struct Place {
    v: u8,
    seq: u64,
    prev: String,
    r#type: String,
    ts: String,
    durable: Option<u64>,
    generation: Option<String>,
    transition: Option<i64>,
    head: Option<String>,
}

/// Reads the tail of a log and cuts torn bytes.
pub(super) fn read_tail(folder: &Path, key: &DigestKey, now: Timestamp) -> Result<Tail, OpenError> {
    let io = |error| OpenError::Io(folder.to_owned(), error);
    let segments = segments(folder).map_err(io)?;
    let Some((first, path)) = segments.last().cloned() else { return Ok(Tail::default()) };
    check_ends(folder, &segments, key)?;
    let mut tail = Tail { segment: Some(path.clone()), next: first, segment_is_whole: true, ..Tail::default() };
    let bytes = fs::read(&path).map_err(io)?;
    let begins = bytes.split(|byte| *byte == b'\n').next().and_then(|line| serde_json::from_slice::<Place>(line).ok());
    if begins.as_ref().is_some_and(|place| place.v != FORMAT) {
        return Err(OpenError::Format(folder.display().to_string()));
    }
    if let Some(place) = begins.filter(|place| place.r#type == LOSS) {
        // This segment follows lost lines, so `prev` has no line to match. The MAC, checked below, shows that
        // the server wrote it.
        tail.prev = Some(place.prev);
    } else if first > 0 {
        // In strict mode a segment begins only after the one before it is durable. Without that one's last
        // line, nothing in this segment can be verified.
        let before = segments.iter().rev().nth(1).map(|(_, path)| path);
        let end = before.map(|path| last_line(path)).transpose().map_err(io)?.flatten();
        let (line, place) = end.filter(|(_, place)| place.seq + 1 == first).ok_or_else(|| damaged(folder, &path, 1))?;
        tail.prev = Some(hash(&line));
        tail.last = Timestamp::parse(&place.ts);
    }
    let mut durable = None;
    let mut starts = vec![];
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let Some(place) = intact(line, tail.next, tail.prev.as_deref().unwrap_or(GENESIS)) else { break };
        if !is_own(line.strip_suffix(b"\n").unwrap_or(line), key) {
            return Err(OpenError::Foreign { place: format!("{}:{}", path.display(), starts.len() + 1) });
        }
        starts.push((tail.next, tail.length));
        durable = place.durable;
        tail.prev = Some(hash(line.strip_suffix(b"\n").unwrap_or(line)));
        tail.next += 1;
        tail.length += length(line);
        tail.last = Timestamp::parse(&place.ts);
        tail.opened = tail.opened.or(tail.last);
        // Signals have negative revisions and don't count, and lines may be out of order.
        let counted = place.generation.zip(place.transition.filter(|revision| *revision > 0));
        if let Some((generation, revision)) = counted
            && tail.transition.as_ref().is_none_or(|(known, highest, _)| *known != generation || *highest < revision)
        {
            // Some lines have no head.
            tail.transition = Some((generation, revision, place.head.unwrap_or_default()));
        }
    }
    let whole = to_usize(tail.length);
    let rest = bytes.part(whole..);
    if !rest.is_empty() {
        // A later line whose `durable` includes the damaged line proves that this is not a torn write.
        let proof = rest
            .split(|byte| *byte == b'\n')
            .filter_map(|line| serde_json::from_slice::<Place>(line).ok()?.durable)
            .max();
        if proof.is_some_and(|durable| durable >= tail.next) {
            return Err(damaged(folder, &path, starts.len() + 1));
        }
        tail.recovered = Some(cut(folder, &path, tail.length, rest, (tail.next, now)).map_err(io)?);
    }
    let unsure = starts.iter().find(|(seq, _)| durable.is_none_or(|durable| *seq > durable)).map(|(_, start)| *start);
    if let Some(start) = unsure {
        make_durable(&path, start, bytes.part(to_usize(start)..whole)).map_err(io)?;
    }
    Ok(tail)
}

/// Checks that no closed segment is missing, cut off or another's. Before an accepted loss lines may be missing, and the segment may
/// be empty.
fn check_ends(folder: &Path, segments: &[(u64, PathBuf)], key: &DigestKey) -> Result<(), OpenError> {
    let io = |error| OpenError::Io(folder.to_owned(), error);
    // The caller checks that the last segment follows the one before it.
    let closed = segments.get(..segments.len().saturating_sub(1)).unwrap_or_default();
    let mut before: Option<&PathBuf> = None;
    for (first, path) in closed {
        if fs::metadata(path).map_err(io)?.len() == 0 {
            continue;
        }
        let (line, place) = first_line(path).map_err(io)?.ok_or_else(|| damaged(folder, path, 1))?;
        if !is_own(&line, key) {
            return Err(OpenError::Foreign { place: format!("{}:1", path.display()) });
        }
        let follows = match before {
            None => true,
            Some(before) => last_line(before).map_err(io)?.is_some_and(|(line, end)| {
                let is_next = end.seq.checked_add(1) == Some(*first) || place.r#type == LOSS && end.seq < *first;
                is_next && place.prev == hash(&line)
            }),
        };
        if place.seq != *first || !follows {
            return Err(damaged(folder, path, 1));
        }
        before = Some(path);
    }
    Ok(())
}

/// Returns the first line of a closed segment if it is complete.
fn first_line(path: &Path) -> io::Result<Option<(Vec<u8>, Place)>> {
    let mut start = vec![];
    fs::File::open(path)?.take(to_u64(LINE_MAX + 1)).read_to_end(&mut start)?;
    let line = memchr::memchr(b'\n', &start).and_then(|end| start.get(..end));
    Ok(line.and_then(|line| Some((line.to_vec(), serde_json::from_slice(line).ok()?))))
}

/// Returns the noted heads that the log does not contain.
pub(super) fn missing(folder: &Path, noted: &[NotedHead]) -> io::Result<Vec<NotedHead>> {
    let mut missing = vec![];
    for noted in noted {
        if hash_of(folder, noted.head.index)?.as_deref() != Some(noted.head.hash.as_str()) {
            missing.push(noted.clone());
        }
    }
    Ok(missing)
}

/// Returns the tail of a log that lost lines: it continues in a new segment, after every noted and every
/// existing line, and after every line that a checkpoint covers (`signed` is the last one). At least one number is skipped, which
/// shows that another tree begins.
pub(super) fn after_loss(
    folder: &Path,
    noted: &[NotedHead],
    signed: Option<u64>,
    tail: Tail,
) -> Result<Tail, OpenError> {
    let missing = missing(folder, noted).map_err(|error| OpenError::Io(folder.to_owned(), error))?;
    let unsigned = signed.filter(|signed| *signed >= tail.next);
    let Some(last) = missing.iter().map(|noted| noted.head.index).chain(unsigned).max() else {
        return Err(OpenError::Complete(folder.display().to_string()));
    };
    let next = (tail.next + 1).max(last + 1);
    Ok(Tail { segment: None, length: 0, next, opened: None, segment_is_whole: false, ..tail })
}

fn damaged(folder: &Path, path: &Path, line: usize) -> OpenError {
    OpenError::Damaged { place: format!("{}:{line}", path.display()), folder: folder.display().to_string() }
}

fn length(bytes: &[u8]) -> u64 {
    to_u64(bytes.len())
}

fn intact(line: &[u8], seq: u64, prev: &str) -> Option<Place> {
    let place: Place = serde_json::from_slice(line.strip_suffix(b"\n")?).ok()?;
    (place.seq == seq && place.prev == prev).then_some(place)
}

/// Returns the range of a line's MAC. Quotes in strings are escaped, so no value of a caller can look like
/// the member.
pub(super) fn mac_place(line: &[u8]) -> Option<std::ops::Range<usize>> {
    const MEMBER: &[u8] = b"\"mac\":\"";
    let start = line.windows(MEMBER.len()).position(|bytes| bytes == MEMBER)? + MEMBER.len();
    (line.get(start + ZEROS.len()) == Some(&b'"')).then_some(start..start + ZEROS.len())
}

/// Returns whether a line's MAC was made with this key, or one that it replaced.
pub(super) fn is_own(line: &[u8], key: &DigestKey) -> bool {
    let Some(place) = mac_place(line) else { return false };
    let mut blank = line.to_vec();
    if let Some(mac) = blank.get_mut(place.clone()) {
        mac.copy_from_slice(ZEROS.as_bytes());
    }
    line.get(place).is_some_and(|mac| key.has_made(mac, &blank))
}

/// Returns the hash of a line; `None` if the log has no line of this number.
pub(super) fn hash_of(folder: &Path, index: u64) -> io::Result<Option<String>> {
    let segments = segments(folder)?;
    let Some((first, path)) = segments.iter().rev().find(|(first, _)| *first <= index) else { return Ok(None) };
    let lines = io::BufRead::split(io::BufReader::new(fs::File::open(path)?), b'\n');
    let Some((_, line)) = (*first..).zip(lines).find(|(at, line)| *at == index || line.is_err()) else {
        return Ok(None);
    };
    let line = line?;
    Ok(intact_line(&line, index).then(|| hash(&line)))
}

fn intact_line(line: &[u8], index: u64) -> bool {
    serde_json::from_slice::<Place>(line).is_ok_and(|place| place.seq == index)
}

/// Rewrites in place the lines that no later line marks as durable. After a failed sync they may exist only
/// in the page cache, where a read finds them although the next sync would skip them.
fn make_durable(path: &Path, start: u64, bytes: &[u8]) -> io::Result<()> {
    let segment = fs::OpenOptions::new().write(true).open(path)?;
    segment.write_all_at(bytes, start)?;
    segment.sync_all()
}

/// Returns the last line of a closed segment if it is complete.
fn last_line(path: &Path) -> io::Result<Option<(Vec<u8>, Place)>> {
    let mut file = fs::File::open(path)?;
    let longest = to_u64(LINE_MAX + 2);
    let start = file.metadata()?.len().saturating_sub(longest);
    file.seek(SeekFrom::Start(start))?;
    let mut end = vec![];
    file.read_to_end(&mut end)?;
    let line = end.strip_suffix(b"\n").and_then(|text| text.rsplit(|byte| *byte == b'\n').next());
    Ok(line.and_then(|line| Some((line.to_vec(), serde_json::from_slice(line).ok()?))))
}

/// Moves the torn bytes into a file of their own, so that nothing is lost, and cuts the segment.
fn cut(folder: &Path, path: &Path, length: u64, rest: &[u8], (seq, now): (u64, Timestamp)) -> io::Result<Recovered> {
    let kept_in = format!("torn-{seq:020}-{}.bin", now.micros());
    let mut kept = fs::File::create(folder.join(&kept_in))?;
    kept.write_all(rest)?;
    kept.sync_all()?;
    fs::File::open(folder)?.sync_all()?;
    let segment = fs::OpenOptions::new().write(true).open(path)?;
    segment.set_len(length)?;
    segment.sync_all()?;
    Ok(Recovered { kept_in, bytes: self::length(rest), digest: hash(rest) })
}

/// Returns the number of the line that records a transition and was written at `since` or later, if there is
/// one.
pub(super) fn line_of(folder: &Path, generation: &str, revision: i64, since: Timestamp) -> Option<u64> {
    // The clock of an earlier start of this process may have been slightly off.
    let oldest = since.minus(std::time::Duration::from_secs(60));
    for (_, path) in segments(folder).ok()?.iter().rev() {
        let text = fs::read(path).ok()?;
        let mut places =
            text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Place>(line).ok());
        let first = places.next()?;
        let begins = Timestamp::parse(&first.ts)?;
        let is = |place: &Place| place.transition == Some(revision) && place.generation.as_deref() == Some(generation);
        if let Some(found) = std::iter::once(first).chain(places).find(is) {
            return Some(found.seq);
        }
        if begins < oldest {
            return None;
        }
    }
    None
}

/// Returns the segments with the number of their first line, in order.
pub(super) fn segments(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut segments = vec![];
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("seg-"));
        let first = name.and_then(|name| name.strip_suffix(".jsonl")).and_then(|number| number.parse().ok());
        segments.extend(first.map(|first| (first, path)));
    }
    segments.sort();
    Ok(segments)
}
