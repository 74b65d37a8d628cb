//! What allowed calls added to sums, noted by each replica in a file of its own, since a store that went back may lack it. Not synced: it must
//! outlive the process, and a machine that fails together with the store may lose it. The last 64 MiB are kept.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::approvals::store::transitions::Reservation;
use crate::model::time::Timestamp;

/// The file's name, in the folder of the state; the one before it ends in `.1`.
const FILE: &str = "sums.jsonl";
/// How large a file becomes before the next one is begun, in bytes.
const FILE_MAX: u64 = 32 << 20;

/// What a call added to a sum.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Reserved {
    /// The evaluation that allowed it.
    pub evaluation_id: String,
    /// Whose sum it is.
    pub key: String,
    /// What it added.
    pub amount: i64,
    /// When.
    pub at: Timestamp,
    /// Until when it counts.
    pub until: Timestamp,
}

/// The notes of a replica.
#[derive(Debug)]
pub(super) struct ReservedNotes {
    path: PathBuf,
    file: Mutex<(File, u64)>,
}

impl ReservedNotes {
    /// Goes on with the file in this folder, or begins one.
    ///
    /// # Errors
    /// When it can't be written.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        let path = folder.join(FILE);
        let file = append(&path)?;
        let length = file.metadata()?.len();
        let notes = Self { path, file: Mutex::new((file, length)) };
        // Behind a line that was not finished, another one begins.
        notes.write("\n")?;
        Ok(notes)
    }

    /// Notes what a call added.
    ///
    /// # Errors
    /// When the file can't be written.
    pub(super) fn note(&self, evaluation_id: &str, reservations: &[Reservation], at: Timestamp) -> io::Result<()> {
        let mut text = String::new();
        for reservation in reservations {
            let (evaluation_id, key) = (evaluation_id.to_owned(), reservation.key.clone());
            let reserved = Reserved { evaluation_id, key, amount: reservation.amount, at, until: at.plus(reservation.within) };
            text.push_str(&serde_json::to_string(&reserved)?);
            text.push('\n');
        }
        self.write(&text)
    }

    fn write(&self, text: &str) -> io::Result<()> {
        let mut held = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, length) = &mut *held;
        if *length > FILE_MAX {
            fs::rename(&self.path, self.path.with_extension("jsonl.1"))?;
            (*file, *length) = (append(&self.path)?, 0);
        }
        file.write_all(text.as_bytes())?;
        *length += u64::try_from(text.len()).unwrap_or(u64::MAX);
        Ok(())
    }

    /// What was noted since a time, some at a time. A line that was not finished is left out: its call was not answered. Reads files: call it from a
    /// blocking thread.
    ///
    /// # Errors
    /// When they can't be read.
    pub(super) fn since(&self, since: Timestamp, mut take: impl FnMut(Vec<Reserved>)) -> io::Result<()> {
        const SOME: usize = 500;
        for path in [self.path.with_extension("jsonl.1"), self.path.clone()] {
            let file = match File::open(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                file => file?,
            };
            let mut some = vec![];
            for line in BufReader::new(file).split(b'\n') {
                some.extend(serde_json::from_slice(&line?).ok().filter(|reserved: &Reserved| reserved.at >= since));
                if some.len() >= SOME {
                    take(std::mem::take(&mut some));
                }
            }
            take(some);
        }
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_since_is_read_again_and_half_a_line_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let reservation = |key: &str, seconds| Reservation {
            window: "w".into(),
            key: key.into(),
            amount: 5,
            most: 10,
            within: std::time::Duration::from_secs(seconds),
        };
        let at = Timestamp::from_seconds(100);
        let notes = ReservedNotes::open(folder.path()).expect("made");
        notes.note("e-0", &[reservation("a", 100)], Timestamp::from_seconds(50)).expect("written");
        notes.note("e-1", &[reservation("a", 10), reservation("b", 100)], at).expect("written");
        append(&folder.path().join(FILE)).and_then(|mut file| file.write_all(b"{\"evaluation_id\":\"e-2\"")).expect("written");
        let notes = ReservedNotes::open(folder.path()).expect("there");
        notes.note("e-3", &[reservation("a", 100)], at).expect("written");
        let mut found = vec![];
        notes.since(at, |some| found.extend(some)).expect("read");
        let named: Vec<(&str, &str)> = found.iter().map(|one| (one.evaluation_id.as_str(), one.key.as_str())).collect();
        assert_eq!(named, [("e-1", "a"), ("e-1", "b"), ("e-3", "a")]);
    }
}
