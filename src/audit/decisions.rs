//! Reads the decisions of a log with their evidence.

use std::fs;
use std::io::{self, BufRead as _, BufReader};
use std::path::Path;

use memchr::memmem::Finder;
use serde::Deserialize;
use serde_json::Value;

use crate::audit::evidence::EXTENSION;
use crate::audit::recover::segments;
use crate::model::time::Timestamp;
use crate::sealing::Sealed;

/// Reads the evidence of a segment's lines, in their order.
#[derive(Debug)]
struct Reader {
    lines: Option<BufReader<fs::File>>,
    next: Option<(u64, Sealed)>,
}

impl Reader {
    /// Opens the evidence file of a segment. A missing file counts as an empty one.
    fn open(segment: &Path) -> Self {
        Self { lines: fs::File::open(segment.with_extension(EXTENSION)).ok().map(BufReader::new), next: None }
    }

    /// Returns the evidence with this digest of a line. Call it with increasing numbers.
    fn take(&mut self, seq: u64, digest: &str) -> Option<Sealed> {
        loop {
            if self.next.is_none() {
                self.next = self.read();
            }
            let (of, sealed) = self.next.as_ref()?;
            if *of > seq {
                return None;
            }
            let is_wanted = *of == seq && sealed.digest() == digest;
            let (_, sealed) = self.next.take()?;
            if is_wanted {
                return Some(sealed);
            }
        }
    }

    fn read(&mut self) -> Option<(u64, Sealed)> {
        let file = self.lines.as_mut()?;
        let mut line = String::new();
        loop {
            line.clear();
            match file.read_line(&mut line) {
                Ok(0) => return None,
                Ok(_) => {}
                // A line that is not text was damaged; the next one may be whole.
                Err(error) if error.kind() == io::ErrorKind::InvalidData => continue,
                Err(_) => return None,
            }
            if let Some((seq, sealed)) = line.trim_end().split_once(' ')
                && let (Ok(seq), Some(sealed)) = (seq.parse(), Sealed::read(sealed))
            {
                return Some((seq, sealed));
            }
        }
    }
}

/// Line of a decision, as far as a replay compares it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Decided {
    pub seq: u64,
    ts: String,
    r#type: String,
    pub evaluation_id: String,
    pub action: String,
    pub purpose: String,
    pub decision: String,
    /// Decision of a hypothetical evaluation; empty for others.
    pub hypothetical: String,
    pub reason: String,
    pub gate: String,
    pub links: Vec<DecidedLink>,
    pub obligations: Listed,
    pub requires: Listed,
    pub policy: DecidedBy,
    pub evidence: String,
}

/// Verdict on one link of the chain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct DecidedLink {
    pub link: String,
    pub permitted: bool,
    pub determining: Listed,
}

/// Policies, obligations or other items; `more` counts those that the line has no room for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Listed {
    pub items: Vec<String>,
    pub more: usize,
}

/// Bundle that decided.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct DecidedBy {
    pub digest: String,
}

/// Returns the lines of an evaluation or approval that have evidence, each with its evidence if it is still there.
///
/// # Errors
/// When the folder or a segment can't be read.
pub fn with_evidence(folder: &Path, id: &str) -> io::Result<Vec<(Value, Option<Sealed>)>> {
    let needle = Finder::new(id.as_bytes());
    let mut found = vec![];
    for (_, segment) in segments(folder)? {
        let mut evidence = Reader::open(&segment);
        for line in BufReader::new(fs::File::open(&segment)?).split(b'\n') {
            let line = line?;
            if needle.find(&line).is_none() {
                continue;
            }
            let Ok(value) = serde_json::from_slice::<Value>(&line) else { continue };
            let text = |place: &str| value.pointer(place).and_then(Value::as_str).unwrap_or("");
            let digest = text("/evidence");
            let is_wanted = [text("/evaluation_id"), text("/approval/id")].contains(&id);
            if let (true, false, Some(seq)) = (is_wanted, digest.is_empty(), value.get("seq").and_then(Value::as_u64)) {
                let sealed = evidence.take(seq, digest);
                found.push((value, sealed));
            }
        }
    }
    Ok(found)
}

/// Returns the evidence with this digest of one line; `None` if it is not kept any longer.
///
/// # Errors
/// When the folder can't be read.
pub fn evidence_of(folder: &Path, seq: u64, digest: &str) -> io::Result<Option<Sealed>> {
    let segments = segments(folder)?;
    let segment = segments.iter().rev().find(|(first, _)| *first <= seq);
    Ok(segment.and_then(|(_, segment)| Reader::open(segment).take(seq, digest)))
}

/// Calls `take` with each decision of a log in a span of time, and with its evidence if there is any.
///
/// # Errors
/// When the folder or a segment can't be read.
pub fn decisions(
    folder: &Path,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    mut take: impl FnMut(Decided, Option<Sealed>),
) -> io::Result<()> {
    let is_decision = Finder::new(r#""type":"decision""#);
    for (_, segment) in segments(folder)? {
        let mut evidence = Reader::open(&segment);
        for line in BufReader::new(fs::File::open(&segment)?).split(b'\n') {
            let line = line?;
            if is_decision.find(&line).is_none() {
                continue;
            }
            // A line that can't be read is a fault that `verify` reports.
            let Ok(decided) = serde_json::from_slice::<Decided>(&line) else { continue };
            let at = Timestamp::parse(&decided.ts).unwrap_or_default();
            let is_wanted = since.is_none_or(|since| since <= at) && until.is_none_or(|until| at < until);
            if decided.r#type == "decision" && is_wanted {
                let sealed = evidence.take(decided.seq, &decided.evidence);
                take(decided, sealed);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::audit::disk::SystemDisk;
    use crate::audit::evidence::EvidenceWriter;
    use crate::sealing::DeploymentKeys;

    #[test]
    fn evidence_is_found_by_line_and_digest_past_torn_lines_and_repeated_numbers() {
        let folder = tempfile::tempdir().expect("a folder");
        let segment = folder.path().join("seg-00000000000000000000.jsonl");
        let key = DeploymentKeys::new([[7; 32]]).of_subject("k", "s").expect("a key");
        let sealed: Vec<Sealed> = (0..4).map(|number| key.seal(vec![number; 9]).expect("sealed")).collect();
        let mut writer = EvidenceWriter::new(Arc::new(SystemDisk));
        writer.append(&segment, &[(3, sealed[0].clone()), (5, sealed[1].clone())]);
        let file = segment.with_extension(EXTENSION);
        let torn = [fs::read(&file).expect("written"), b"6 k AAAA\xff".to_vec()].concat();
        fs::write(&file, torn).expect("writable");
        let mut writer = EvidenceWriter::new(Arc::new(SystemDisk));
        writer.append(&segment, &[(6, sealed[2].clone()), (6, sealed[3].clone())]);

        let mut reader = Reader::open(&segment);
        assert_eq!(reader.take(2, &sealed[0].digest()), None);
        assert_eq!(reader.take(3, &sealed[0].digest()).as_ref(), Some(&sealed[0]));
        assert_eq!(reader.take(4, &sealed[1].digest()), None);
        assert_eq!(reader.take(5, &sealed[0].digest()), None);
        assert_eq!(reader.take(6, &sealed[3].digest()).as_ref(), Some(&sealed[3]));
        assert_eq!(reader.take(7, &sealed[3].digest()), None);
        assert_eq!(Reader::open(&folder.path().join("seg-1.jsonl")).take(0, ""), None);
    }
}
