//! Index beside a closed segment, `seg-<first>.index`: where the lines of a case, an agent or an evaluation are. It only saves reading:
//! each line that it names is read and compared, and what can't be read or does not belong to its segment is made anew.
//!
//! Form: `CSINDEX2`, the length of the segment, the earliest and the latest time of its lines in microseconds, the number of pairs, and
//! then pairs of a key and the
//! offset of a line, sorted; all numbers are unsigned or signed 64-bit, little-endian.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::model::number::to_u64;
use crate::model::time::Timestamp;

const MAGIC: &[u8; 8] = b"CSINDEX2";
/// Bytes before the pairs.
const HEADER: u64 = 40;
/// Bytes of a pair.
const PAIR: u64 = 16;

/// What lines are found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    Agent,
    Case,
    Evaluation,
}

impl Key {
    /// Returns the beginning of the SHA-256 of the key's name and its value.
    fn of(self, value: &str) -> u64 {
        let name: &[u8] = match self {
            Self::Agent => b"agent\0",
            Self::Case => b"case\0",
            Self::Evaluation => b"evaluation\0",
        };
        let hash = Sha256::new().chain_update(name).chain_update(value).finalize();
        hash.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }
}

/// The members of a line that it is found by.
#[derive(Debug, Deserialize)]
struct Line {
    ts: String,
    #[serde(default)]
    evaluation_id: Option<String>,
    #[serde(default)]
    case: Option<Named>,
    #[serde(default)]
    chain: Option<Chain>,
    #[serde(default)]
    approval: Option<Approval>,
    #[serde(default)]
    consent: Option<Approval>,
}

#[derive(Debug, Deserialize)]
struct Named {
    id: String,
}

#[derive(Debug, Deserialize)]
struct Chain {
    agent: String,
}

#[derive(Debug, Deserialize)]
struct Approval {
    #[serde(default)]
    agent: Option<String>,
    #[serde(default)]
    evaluation_id: Option<String>,
}

impl Line {
    fn keys(&self) -> impl Iterator<Item = u64> {
        let given = || self.approval.iter().chain(&self.consent);
        let agents =
            self.chain.iter().map(|chain| &chain.agent).chain(given().filter_map(|given| given.agent.as_ref()));
        let evaluations = self.evaluation_id.iter().chain(given().filter_map(|given| given.evaluation_id.as_ref()));
        let agents = agents.map(|agent| Key::Agent.of(agent));
        let evaluations = evaluations.map(|id| Key::Evaluation.of(id));
        agents.chain(evaluations).chain(self.case.iter().map(|case| Key::Case.of(&case.id)))
    }
}

/// Index of a segment, which is read where it is needed.
#[derive(Debug)]
pub struct Index {
    file: fs::File,
    pairs: u64,
    pub first: Timestamp,
    pub last: Timestamp,
}

impl Index {
    /// Opens the index of a closed segment, and makes it if it is missing or stale.
    ///
    /// # Errors
    /// When the segment can't be read or no index can be written.
    pub fn open(segment: &Path) -> io::Result<Self> {
        let path = segment.with_extension("index");
        let length = fs::metadata(segment)?.len();
        match Self::read(&path, length) {
            Ok(Some(index)) => Ok(index),
            Ok(None) | Err(_) => {
                build(segment, &path)?;
                Self::read(&path, length)?.ok_or_else(|| io::Error::other("the index does not belong to its segment"))
            }
        }
    }

    /// Returns `None` for an index of a segment of another length.
    fn read(path: &Path, length: u64) -> io::Result<Option<Self>> {
        let file = fs::File::open(path)?;
        let mut header = [0; 40];
        file.read_exact_at(&mut header, 0)?;
        let number = |at: usize| header.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
        let [Some(of), Some(first), Some(last), Some(pairs)] = [8, 16, 24, 32].map(number) else { return Ok(None) };
        let rest = file.metadata()?.len().saturating_sub(HEADER);
        if !header.starts_with(MAGIC) || of != length || Some(rest) != pairs.checked_mul(PAIR) {
            return Ok(None);
        }
        let time = |micros: u64| Timestamp::from_micros(micros.cast_signed());
        Ok(Some(Self { file, pairs, first: time(first), last: time(last) }))
    }

    fn pair(&self, at: u64) -> io::Result<(u64, u64)> {
        let (mut key, mut offset) = ([0; 8], [0; 8]);
        self.file.read_exact_at(&mut key, HEADER + at * PAIR)?;
        self.file.read_exact_at(&mut offset, HEADER + at * PAIR + 8)?;
        Ok((u64::from_le_bytes(key), u64::from_le_bytes(offset)))
    }

    /// Returns the offsets of the lines of a key, in order.
    ///
    /// # Errors
    /// When the index can't be read.
    pub fn find(&self, key: Key, value: &str) -> io::Result<Vec<u64>> {
        let wanted = key.of(value);
        let (mut low, mut high) = (0, self.pairs);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.pair(middle)?.0 < wanted { low = middle + 1 } else { high = middle }
        }
        let mut found = vec![];
        while low < self.pairs {
            let (key, offset) = self.pair(low)?;
            if key != wanted {
                break;
            }
            found.push(offset);
            low += 1;
        }
        found.dedup();
        Ok(found)
    }
}

/// Makes the index of a segment. A line that can't be read is left out: it is a fault that `verify` reports.
fn build(segment: &Path, path: &Path) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(1 << 20, fs::File::open(segment)?);
    let (mut pairs, mut times) = (vec![], (None::<Timestamp>, Timestamp::default()));
    let (mut offset, mut line) = (0_u64, vec![]);
    loop {
        line.clear();
        let read = to_u64(reader.read_until(b'\n', &mut line)?);
        if read == 0 {
            break;
        }
        if let Ok(parsed) = serde_json::from_slice::<Line>(&line) {
            pairs.extend(parsed.keys().map(|key| (key, offset)));
            if let Some(at) = Timestamp::parse(&parsed.ts) {
                // The clock may go back a little between two starts.
                times = (Some(times.0.map_or(at, |first| first.min(at))), times.1.max(at));
            }
        }
        offset += read;
    }
    pairs.sort_unstable();
    pairs.dedup();
    let mut bytes = Vec::with_capacity(pairs.len() * 16 + 40);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&offset.to_le_bytes());
    bytes.extend_from_slice(&times.0.unwrap_or_default().micros().to_le_bytes());
    bytes.extend_from_slice(&times.1.micros().to_le_bytes());
    bytes.extend_from_slice(&to_u64(pairs.len()).to_le_bytes());
    for (key, offset) in pairs {
        bytes.extend_from_slice(&key.to_le_bytes());
        bytes.extend_from_slice(&offset.to_le_bytes());
    }
    // Another reader may make the same index at the same time, so it is written aside and moved into place.
    let aside: PathBuf = path.with_extension(format!("index-{}", std::process::id()));
    let mut file = fs::File::create(&aside)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(&aside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_by_their_keys_and_a_stale_or_damaged_index_is_made_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let segment = folder.path().join("seg-00000000000000000000.jsonl");
        let line = |case: usize, agent: usize| {
            format!(
                r#"{{"case":{{"id":"c-{case}"}},"chain":{{"agent":"a-{agent}"}},"evaluation_id":"e-{case}-{agent}","ts":"2026-03-02T09:00:0{agent}Z"}}"#
            )
        };
        let lines: Vec<String> = (0..30).map(|at| line(at % 7, at % 3)).collect();
        fs::write(&segment, lines.join("\n") + "\nno line\n").expect("a segment");
        let found = |key: Key, value: &str| {
            let index = Index::open(&segment).expect("an index");
            let text = fs::read_to_string(&segment).expect("a segment");
            let offsets = index.find(key, value).expect("offsets");
            let line = |offset: &u64| {
                text.split_at(usize::try_from(*offset).expect("an offset")).1.lines().next().map(str::to_owned)
            };
            offsets.iter().filter_map(line).collect::<Vec<_>>()
        };
        let expected = |part: &str| lines.iter().filter(|line| line.contains(part)).cloned().collect::<Vec<_>>();
        let check = || {
            assert_eq!(found(Key::Case, "c-3"), expected("\"c-3\""));
            assert_eq!(found(Key::Agent, "a-1"), expected("\"a-1\""));
            assert_eq!(found(Key::Evaluation, "e-3-1"), expected("\"e-3-1\""));
            assert_eq!(found(Key::Evaluation, "c-3"), Vec::<String>::new());
        };
        check();
        let path = segment.with_extension("index");
        for damaged in [vec![], b"CSINDEX2 and more than forty bytes of what is no index".to_vec(), vec![0; 4096]] {
            fs::write(&path, damaged).expect("a damaged index");
            check();
        }
        let index = Index::open(&segment).expect("an index");
        assert!(index.first < index.last, "{index:?}");
        fs::write(&segment, format!("{}\n{}\n", lines.join("\n"), line(3, 1))).expect("a longer segment");
        assert_eq!(found(Key::Case, "c-3").len(), expected("\"c-3\"").len() + 1);
    }
}
