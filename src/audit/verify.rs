//! Verifies a log without trusting the writer: these files use no other file of `audit` and share no code
//! with them.

mod canonical;
mod notes;
mod trimmed;

use std::collections::VecDeque;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::ops::Range;
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit, Mac};
use serde::de::IgnoredAny;
use sha2::{Digest, Sha256};

use canonical::Members;
use notes::Notes;
pub use notes::Verifier;
use trimmed::Deleted;

/// Prefix of the HMAC input of a line.
const MAC_PREFIX: &[u8] = b"countersign audit line\0";
const MAC_LENGTH: usize = 64;
/// Bytes that are read at once.
const BUFFER: usize = 256 * 1024;
/// Bytes after which progress is told.
const MEBIBYTE: u64 = 1024 * 1024;
/// File of the checkpoints.
const CHECKPOINTS: &str = "checkpoints.txt";

/// Evidence from outside the log that the log is checked against.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Keys of the deployment, the oldest first. Without one, a log that was rewritten and hashed again can't be told from the
    /// original.
    pub keys: Vec<[u8; 32]>,
    /// Hashes in hex of lines that were noted earlier; the log must contain each of them.
    pub heads: Vec<String>,
    /// Public key of the checkpoints. Without it, their signatures are not checked.
    pub verifier: Option<Verifier>,
    /// Checkpoints that were noted elsewhere, as signed notes.
    pub checkpoints: Vec<String>,
}

/// Lines that a human accepted as lost.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Loss {
    /// Number of the first missing line.
    pub from: u64,
    /// Number of the line that records the loss, the first one after the gap.
    pub until: u64,
    /// Time when the loss was accepted.
    pub at: String,
}

/// Result for an intact log.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    pub segments: usize,
    pub lines: u64,
    /// Number of the first line. It is not 0 if older lines were deleted.
    pub from: u64,
    /// Time of the first line.
    pub first: String,
    /// Time of the last line.
    pub last: String,
    /// SHA-256 of the last line. An auditor notes it, to check later that nothing before it changed.
    pub head: String,
    /// Number of lines of type `decision`.
    pub decisions: u64,
    /// Number of lines that were written in best-effort mode.
    pub best_effort: u64,
    /// Bytes of an unfinished last line: a write in progress, or a tail that the next start will cut.
    pub unfinished: usize,
    /// Whether every line's MAC was checked with the deployment's key.
    pub keyed: bool,
    /// Whether a replaced key made the last line: no server has started since, or who has that key rewrote lines.
    pub replaced_key: bool,
    /// Number of checkpoints, which all agree with the lines.
    pub checkpoints: u64,
    /// Whether the signatures of the checkpoints were checked.
    pub signed: bool,
    /// Gaps that a human accepted.
    pub losses: Vec<Loss>,
}

/// First fault of a log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {problem}")]
pub struct Broken {
    pub file: String,
    /// Number of the line, counted from 1; 0 for the file as a whole.
    pub line: usize,
    pub problem: String,
}

/// Reason why a log could not be verified to its end.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The log is not intact.
    #[error("{0}")]
    Broken(Broken),
    /// The folder has no log.
    #[error("no audit log found in `{0}`: pass the folder that contains the seg-*.jsonl files")]
    Missing(PathBuf),
    /// A file or the folder can't be read.
    #[error("`{0}` can't be read: {1}")]
    Unreadable(PathBuf, io::Error),
}

/// Verifies every line of every segment.
///
/// # Errors
/// Returns the first fault.
pub fn verify(folder: &Path, expected: &Expected) -> Result<Report, VerifyError> {
    verify_with_progress(folder, expected, |_, _| {})
}

/// Verifies like [`verify`]. `progress` is called after each MiB with the number of bytes that were read, and that of all bytes.
///
/// # Errors
/// Returns the first fault.
pub fn verify_with_progress(
    folder: &Path,
    expected: &Expected,
    mut progress: impl FnMut(u64, u64),
) -> Result<Report, VerifyError> {
    let (names, total) = segments(folder)?;
    let file = folder.join(CHECKPOINTS);
    let bytes = match fs::read(&file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => vec![],
        bytes => bytes.map_err(unreadable(&file))?,
    };
    let text = String::from_utf8_lossy(&bytes);
    let broken = |file: &str, problem| VerifyError::Broken(Broken { file: file.to_owned(), line: 0, problem });
    let oldest = names.first().map_or("", |(name, _)| name);
    let before = trimmed::before(folder, &names).map_err(|problem| broken(oldest, problem))?;
    let mut notes = Notes::read(&text, expected.verifier.as_ref()).map_err(|problem| broken(CHECKPOINTS, problem))?;
    for noted in &expected.checkpoints {
        let text = format!("{}\n\n", noted.trim_end());
        notes.add(&text, expected.verifier.as_ref(), true).map_err(|problem| broken("a noted checkpoint", problem))?;
    }
    let first = before.as_ref().map_or(0, |before| before.line);
    let prev = before.as_ref().map_or_else(|| "0".repeat(MAC_LENGTH), |before| before.prev.clone());
    let deleted = before
        .map(|before| Deleted::of(before, &mut notes))
        .transpose()
        .map_err(|problem| broken(CHECKPOINTS, problem))?;
    let mut walk = Walk {
        notes,
        prev,
        next: first,
        deleted,
        format: None,
        keys: macs(&expected.keys).map_err(|problem| broken(oldest, problem))?,
        heads: expected.heads.iter().map(String::as_str).collect(),
        report: Report { segments: names.len(), from: first, ..Report::default() },
        read: 0,
        progress: &mut |read| progress(read, total),
    };
    let last = names.len() - 1;
    for (index, (name, path)) in names.iter().enumerate() {
        let file = fs::File::open(path).map_err(unreadable(path))?;
        walk.segment(name, BufReader::with_capacity(BUFFER, file), index == last).map_err(|fault| match fault {
            Fault::Broken(line, problem) => VerifyError::Broken(Broken { file: name.clone(), line, problem }),
            Fault::Io(error) => VerifyError::Unreadable(path.clone(), error),
        })?;
    }
    if let Some(head) = walk.heads.first() {
        let problem =
            format!("no line has the noted hash {head}: lines were cut off, or the log was replaced or rewritten");
        let file = names.last().map_or_else(String::new, |(name, _)| name.clone());
        return Err(VerifyError::Broken(Broken { file, line: 0, problem }));
    }
    if let Some(problem) = walk.deleted.as_ref().and_then(|deleted| deleted.problem(first, walk.notes.held)) {
        return Err(broken(oldest, problem));
    }
    let losses = &walk.report.losses;
    if let Some(size) = walk.notes.left(|line| losses.iter().any(|loss| (loss.from..loss.until).contains(&line))) {
        let problem = format!("a checkpoint covers {size} lines, and the log has fewer: lines were cut off");
        return Err(broken(CHECKPOINTS, problem));
    }
    if walk.report.lines > 0 {
        walk.report.head = walk.prev;
    }
    walk.report.checkpoints = walk.notes.held;
    walk.report.signed = expected.verifier.is_some() && walk.notes.held > 0;
    walk.report.replaced_key = walk.report.lines > 0 && walk.keys.len() > 1;
    walk.report.keyed = !expected.keys.is_empty() && walk.format == Some(2);
    Ok(walk.report)
}

/// Returns the number of the first line that a log has; 0 unless older lines were deleted.
///
/// # Errors
/// If the folder has no log, or can't be read.
pub fn first_line(folder: &Path) -> Result<u64, VerifyError> {
    let (names, _) = segments(folder)?;
    let first = names.first().and_then(|(name, _)| name.strip_prefix("seg-")?.strip_suffix(".jsonl")?.parse().ok());
    Ok(first.unwrap_or(0))
}

/// Returns the segments of a log by name, and their bytes in all.
fn segments(folder: &Path) -> Result<(Vec<(String, PathBuf)>, u64), VerifyError> {
    let (mut names, mut total): (Vec<(String, PathBuf)>, u64) = (vec![], 0);
    for entry in fs::read_dir(folder).map_err(|_| VerifyError::Missing(folder.to_owned()))? {
        let path = entry.map_err(unreadable(folder))?.path();
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        if name.starts_with("seg-") && name.ends_with(".jsonl") {
            total += fs::metadata(&path).map_err(unreadable(&path))?.len();
            names.push((name, path));
        }
    }
    names.sort();
    if names.is_empty() {
        return Err(VerifyError::Missing(folder.to_owned()));
    }
    Ok((names, total))
}

fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> VerifyError {
    let path = path.to_owned();
    move |error| VerifyError::Unreadable(path, error)
}

enum Fault {
    Broken(usize, String),
    Io(io::Error),
}

struct Walk<'a> {
    prev: String,
    /// Expected number of the next line.
    next: u64,
    /// Lines that were deleted because of their age, if the log lacks some.
    deleted: Option<Deleted>,
    /// `v` of the lines so far. All lines must have the same `v`; otherwise lines without a MAC could be
    /// inserted among lines with one.
    format: Option<u64>,
    /// The key of the line before, and those that replaced it. A key that was replaced makes no later line.
    keys: VecDeque<Hmac<Sha256>>,
    /// Noted hashes that no line has matched so far.
    heads: Vec<&'a str>,
    notes: Notes,
    report: Report,
    /// Number of bytes that were read.
    read: u64,
    progress: &'a mut dyn FnMut(u64),
}

impl Walk<'_> {
    fn segment(&mut self, name: &str, mut reader: impl BufRead, is_last: bool) -> Result<(), Fault> {
        let named = name
            .strip_prefix("seg-")
            .and_then(|name| name.strip_suffix(".jsonl"))
            .and_then(|first| first.parse::<u64>().ok());
        // A segment may skip numbers only if its first line accepts the loss; `line` checks that.
        if named.is_none_or(|first| first < self.next || name != format!("seg-{first:020}.jsonl")) {
            return Err(Fault::Broken(
                0,
                format!("the segment must start with line {} and be named after that number", self.next),
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
            let before = self.read;
            self.read += bytes.len() as u64;
            if before / MEBIBYTE != self.read / MEBIBYTE {
                (self.progress)(self.read);
            }
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
        let members = Members::read(bytes).ok_or_else(|| match serde_json::from_slice::<IgnoredAny>(bytes) {
            Ok(_) => "the line is not in canonical form (RFC 8785)".to_owned(),
            Err(_) => "the line is not JSON".to_owned(),
        })?;
        let text = |member: &str| members.text(bytes, member).ok_or_else(|| format!("the line has no `{member}`"));
        let number = |member: &str| members.number(bytes, member).ok_or_else(|| format!("the line has no `{member}`"));
        let format = number("v")?;
        if !(1..=2).contains(&format) {
            return Err("this version does not know the line's format".into());
        }
        if *self.format.get_or_insert(format) != format {
            return Err("the line's format differs from the format of the lines before".into());
        }
        match (format, self.keys.is_empty()) {
            (2, _) => self.mac(bytes, members.place("mac"))?,
            (_, false) => {
                return Err("the line's format has no `mac`, so anyone could have rewritten the line".into());
            }
            (_, true) => {}
        }
        let (seq, expected) = (number("seq")?, self.next);
        if text("prev")? != self.prev {
            return Err(
                "`prev` is not the hash of the line before: one of the two was changed, or lines are missing".into()
            );
        }
        if format == 2 && text("type")? == "log.loss_accepted" && seq >= expected {
            self.report.losses.push(Loss { from: expected, until: seq, at: text("ts")?.into_owned() });
        } else if seq != expected {
            return Err(format!("the line has number {seq}, expected {expected}: lines are missing or out of order"));
        }
        if let (Some(deleted), "log.trimmed") = (&mut self.deleted, &*text("type")?) {
            deleted.says(number("before")?, &text("hash")?, number("tree")?, &text("root")?)?;
        }
        if members.number(bytes, "durable").is_some_and(|durable| durable >= seq) {
            return Err("`durable` names this line or a later one".into());
        }
        self.notes.line(bytes, seq, seq != expected)?;
        let time = text("ts")?;
        if self.report.first.is_empty() {
            self.report.first = time.to_string();
        }
        self.report.decisions += u64::from(text("type")? == "decision");
        self.report.best_effort += u64::from(text("durability")? == "best_effort");
        self.report.last.clear();
        self.report.last.push_str(&time);
        self.report.lines += 1;
        self.next = seq + 1;
        self.prev = hex(&Sha256::digest(bytes));
        let own = self.prev.as_str();
        self.heads.retain(|head| *head != own);
        Ok(())
    }

    /// Checks a line's MAC: HMAC-SHA256 over the line with zeros in place of the MAC. Without a key only its
    /// form is checked.
    fn mac(&mut self, bytes: &[u8], place: Option<Range<usize>>) -> Result<(), String> {
        // The value is in quotes.
        let place = place.map(|place| place.start + 1..place.end.saturating_sub(1));
        let is_mac = |found: &&[u8]| found.len() == MAC_LENGTH && found.iter().all(u8::is_ascii_hexdigit);
        let found = place.clone().and_then(|place| bytes.get(place)).filter(is_mac);
        let (Some(place), Some(found)) = (place, found) else { return Err("the line has no `mac`".into()) };
        let (before, after) =
            (bytes.get(..place.start).unwrap_or_default(), bytes.get(place.end..).unwrap_or_default());
        let has_made = |key: &Hmac<Sha256>| {
            let mut mac = key.clone();
            for part in [before, &[b'0'; MAC_LENGTH], after] {
                mac.update(part);
            }
            hex(&mac.finalize().into_bytes()).as_bytes() == found
        };
        match self.keys.iter().position(has_made) {
            Some(replaced) => drop(self.keys.drain(..replaced)),
            None if self.keys.is_empty() => {}
            None => {
                return Err(
                    "`mac` was not made with this key: the line was changed, or this is not the deployment's key"
                        .into(),
                );
            }
        }
        Ok(())
    }
}

/// Returns the beginnings of the MACs of lines, one for each key.
fn macs(keys: &[[u8; 32]]) -> Result<VecDeque<Hmac<Sha256>>, String> {
    let mac = |key: &[u8; 32]| {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).map_err(|_| "the key can't be used".to_owned())?;
        mac.update(MAC_PREFIX);
        Ok(mac)
    };
    keys.iter().map(mac).collect()
}

/// Returns bytes in lower-case hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}
