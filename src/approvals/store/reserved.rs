//! Notes of additions to sums, which each replica keeps in a file because a store that went back may lack
//! them. The file is not synced: it survives the end of the process, and may be lost only if the machine
//! fails together with the store. Up to 64 MiB are kept.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::approvals::store::transitions::Reservation;
use crate::model::number::to_u64;
use crate::model::time::Timestamp;

/// Name of the file in the state folder; the previous file has the suffix `.1`.
const FILE: &str = "sums.jsonl";
/// Size after which a new file is started, in bytes.
const FILE_MAX: u64 = 32 << 20;

/// Addition of an allowed call to a sum.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Reserved {
    /// Evaluation that allowed the call.
    pub evaluation_id: String,
    /// Key of the sum.
    pub key: String,
    pub amount: i64,
    pub at: Timestamp,
    /// Time until which the addition counts.
    pub until: Timestamp,
}

/// The file of one replica.
#[derive(Debug)]
pub(super) struct ReservedNotes {
    path: PathBuf,
    file: Mutex<(File, u64)>,
}

impl ReservedNotes {
    /// Opens the file in this folder, or creates it.
    ///
    /// # Errors
    /// When the file can't be written.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        let path = folder.join(FILE);
        let file = append(&path)?;
        let length = file.metadata()?.len();
        let notes = Self { path, file: Mutex::new((file, length)) };
        // A crash may have left an unfinished last line, so start a new one.
        notes.write("\n")?;
        Ok(notes)
    }

    /// Notes the additions of one call.
    ///
    /// # Errors
    /// When the file can't be written.
    pub(super) fn note(&self, evaluation_id: &str, reservations: &[Reservation], at: Timestamp) -> io::Result<()> {
        // A write that failed may have left an unfinished line, so start a new one: empty lines are skipped.
        let mut text = "\n".to_owned();
        for reservation in reservations {
            let (evaluation_id, key) = (evaluation_id.to_owned(), reservation.key.clone());
            let reserved =
                Reserved { evaluation_id, key, amount: reservation.amount, at, until: at.plus(reservation.within) };
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
        *length += to_u64(text.len());
        Ok(())
    }

    /// Passes the additions since a time to `take`, in batches. Lines that can't be parsed are skipped: if
    /// the process ended while it wrote a line, the call was not answered. Reads files, so it must run on a
    /// blocking thread.
    ///
    /// # Errors
    /// When a file can't be read.
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
        let half = || {
            let file = append(&folder.path().join(FILE));
            file.and_then(|mut file| file.write_all(b"{\"evaluation_id\":\"e-2\"")).expect("written");
        };
        // A write that failed on a full disk, and a crash.
        half();
        notes.note("e-2", &[reservation("c", 100)], at).expect("written");
        half();
        let notes = ReservedNotes::open(folder.path()).expect("there");
        notes.note("e-3", &[reservation("a", 100)], at).expect("written");
        let mut found = vec![];
        notes.since(at, |some| found.extend(some)).expect("read");
        let named: Vec<(&str, &str)> = found.iter().map(|one| (one.evaluation_id.as_str(), one.key.as_str())).collect();
        assert_eq!(named, [("e-1", "a"), ("e-1", "b"), ("e-2", "c"), ("e-3", "a")]);
    }
}
