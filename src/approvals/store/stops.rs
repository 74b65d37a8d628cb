//! Notes of kill switches and revoked sessions, which each replica keeps in a file, one per line. A line is
//! appended before the signal is acknowledged. The notes are needed because a store that went back may lack a
//! kill switch, and the audit log contains customers' ids only as digests.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::model::halt::{Halt, HaltKind, Halts, SubjectKind};
use crate::model::time::Timestamp;

/// Name of the file in the state folder.
const FILE: &str = "stops.jsonl";
/// Lines that may be appended before the file is rewritten, in addition to as many as the last rewrite wrote.
const SLACK: usize = 1000;

/// Kill switches and revoked sessions that this replica has noted.
#[derive(Debug)]
pub(super) struct StopNotes {
    path: PathBuf,
    noted: Mutex<Noted>,
}

#[derive(Debug)]
struct Noted {
    file: File,
    halts: Halts,
    /// Number of lines that may still be appended; 0 after a failure, which may have left a partial line.
    room: usize,
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    tenant: String,
    subject_kind: String,
    subject: String,
    kind: String,
    since: Timestamp,
    until: Timestamp,
    /// Absent in lines of earlier versions.
    #[serde(default)]
    lifted: Timestamp,
}

impl StopNotes {
    /// Reads the file, or creates it. An unfinished last line is dropped, because it was never acknowledged.
    ///
    /// # Errors
    /// When the file can't be read or written, or another line is damaged.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        let path = folder.join(FILE);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            read => read?,
        };
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, format!("`{FILE}` is damaged"));
        let halts = whole.lines().map(|line| read(line).ok_or_else(damaged)).collect::<io::Result<Vec<Halt>>>()?;
        let noted = rewrite(&path, halts.iter(), Timestamp::default())?;
        Ok(Self { path, noted: Mutex::new(noted) })
    }

    /// Returns everything that is noted, including entries that have ended.
    pub(super) fn noted(&self) -> Vec<Halt> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner).halts.iter().cloned().collect()
    }

    /// Notes those of these entries that stop calls and are not noted yet, and syncs the file.
    ///
    /// # Errors
    /// When the file can't be written.
    pub(super) fn note<'h>(&self, halts: impl Iterator<Item = &'h Halt>, now: Timestamp) -> io::Result<()> {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        let new: Vec<&Halt> =
            halts.filter(|halt| halt.kind.stops() && halt.until > now && !noted.halts.has(halt)).collect();
        if new.is_empty() {
            return Ok(());
        }
        if noted.room < new.len() {
            *noted = rewrite(&self.path, noted.halts.iter().chain(new), now)?;
            return Ok(());
        }
        let room = std::mem::take(&mut noted.room) - new.len();
        let text = new.iter().map(|halt| line(halt)).collect::<Result<String, _>>()?;
        noted.file.write_all(text.as_bytes())?;
        noted.file.sync_all()?;
        new.into_iter().for_each(|halt| noted.halts.add(halt.clone()));
        noted.room = room;
        Ok(())
    }
}

/// Replaces the file with one that contains only entries that have not ended.
fn rewrite<'h>(path: &Path, halts: impl Iterator<Item = &'h Halt>, now: Timestamp) -> io::Result<Noted> {
    let standing: Vec<Halt> = halts.filter(|halt| halt.until > now).cloned().collect();
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(standing.iter().map(line).collect::<Result<String, _>>()?.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(path.parent().unwrap_or(path))?.sync_all()?;
    Ok(Noted { file, room: standing.len() + SLACK, halts: standing.into_iter().collect() })
}

fn line(halt: &Halt) -> Result<String, serde_json::Error> {
    let Halt { tenant, subject_kind, subject, kind, since, until, lifted } = halt.clone();
    let (subject_kind, kind) = (subject_kind.name().to_owned(), kind.name().to_owned());
    Ok(serde_json::to_string(&Line { tenant, subject_kind, subject, kind, since, until, lifted })? + "\n")
}

fn read(line: &str) -> Option<Halt> {
    let Line { tenant, subject_kind, subject, kind, since, until, lifted } = serde_json::from_str(line).ok()?;
    Some(Halt {
        tenant,
        subject_kind: SubjectKind::from_name(&subject_kind)?,
        subject,
        kind: HaltKind::from_name(&kind)?,
        since,
        until,
        lifted,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn halt(subject: &str, kind: HaltKind, until: i64) -> Halt {
        let (since, until) = (Timestamp::from_micros(1), Timestamp::from_micros(until));
        let (tenant, subject_kind, lifted) = ("acme".into(), SubjectKind::Customer, Timestamp::default());
        Halt { tenant, subject_kind, subject: subject.into(), kind, since, until, lifted }
    }

    #[test]
    fn stops_are_there_after_a_start_and_what_is_over_goes() {
        let folder = tempfile::tempdir().expect("a folder");
        let text = || fs::read_to_string(folder.path().join(FILE)).expect("there");
        let now = Timestamp::from_micros(10);
        let journal = StopNotes::open(folder.path()).expect("made");
        let stops = [halt("c-1", HaltKind::KillSwitch, 100), halt("c-2", HaltKind::SessionRevoked, 20)];
        let report = halt("c-3", HaltKind::Risk(crate::model::halt::Severity::High), 100);
        journal.note(stops.iter().chain([&report]), now).expect("written");
        journal.note(stops.iter(), now).expect("nothing to write");
        assert_eq!(text().lines().count(), 2, "{}", text());

        // A crash left a partial line.
        OpenOptions::new()
            .append(true)
            .open(folder.path().join(FILE))
            .and_then(|mut file| file.write_all(b"{\"ten"))
            .expect("written");
        let journal = StopNotes::open(folder.path()).expect("read");
        let mut noted = journal.noted();
        noted.sort_by(|one, other| one.subject.cmp(&other.subject));
        assert_eq!(noted, stops);

        // When many lines are added, the file keeps only entries that have not ended.
        let later = Timestamp::from_micros(50);
        let many: Vec<Halt> =
            (0..2000).map(|index| halt(&format!("d-{index}"), HaltKind::KillSwitch, 51 + index)).collect();
        for some in many.chunks(100) {
            journal.note(some.iter(), later).expect("written");
        }
        assert!(!text().contains("c-2") && text().contains("c-1") && text().contains("d-1999"));

        fs::write(folder.path().join(FILE), "{}\n{}\n").expect("written");
        assert_eq!(StopNotes::open(folder.path()).expect_err("damaged").kind(), io::ErrorKind::InvalidData);
    }
}
