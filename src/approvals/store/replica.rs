//! Notes of a replica in `replica.json`: its id, the highest revision of the store that it has seen, and the
//! head of its audit log. At the next start they reveal a store that went back or a log that lost its end.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use crate::approvals::store::location::Seen;
use crate::model::head::Head;

/// Name of the file that exists while updates have not been sent to the risk store.
const UNSENT: &str = "windows-unsent";

/// The file `replica.json` of this replica.
#[derive(Debug)]
pub struct Replica {
    path: PathBuf,
    id: String,
    noted: Mutex<Noted>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Noted {
    seen: Option<Seen>,
    head: Option<Head>,
}

/// Name of the file in the state folder.
pub const FILE: &str = "replica.json";

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    replica: String,
    seen: Option<Seen>,
    #[serde(default)]
    head: Option<Head>,
}

impl Replica {
    /// Reads the file, or creates one with this id.
    ///
    /// # Errors
    /// When the file can't be read or written, or is damaged. Starting with a new file instead could hide
    /// that the store went back.
    pub fn read_or_create(folder: &Path, fresh: &str) -> io::Result<Self> {
        let path = folder.join(FILE);
        match fs::read(&path) {
            Ok(text) => {
                let written: Written = serde_json::from_slice(&text)
                    .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "`replica.json` is damaged"))?;
                let noted = Noted { seen: written.seen, head: written.head };
                Ok(Self { path, id: written.replica, noted: Mutex::new(noted) })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let replica = Self { path, id: fresh.to_owned(), noted: Mutex::default() };
                replica.write(&Noted::default())?;
                Ok(replica)
            }
            Err(error) => Err(error),
        }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the highest noted revision.
    pub fn seen(&self) -> Option<Seen> {
        self.noted().seen.clone()
    }

    /// Returns the last noted head of the audit log.
    pub fn head(&self) -> Option<Head> {
        self.noted().head.clone()
    }

    /// Returns the path of the file, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Notes a revision of the store.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn note(&self, seen: &Seen) -> io::Result<()> {
        self.change(|noted| noted.seen = Some(seen.clone()))
    }

    /// Notes the head of the audit log.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn note_head(&self, head: &Head) -> io::Result<()> {
        self.change(|noted| noted.head = Some(head.clone()))
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Noted)) -> io::Result<()> {
        let mut noted = self.noted();
        let mut changed = noted.clone();
        change(&mut changed);
        if *noted != changed {
            self.write(&changed)?;
            *noted = changed;
        }
        Ok(())
    }

    /// Returns whether updates were not yet sent to the risk store when this replica last stopped.
    pub fn has_unsent(&self) -> bool {
        self.path.with_file_name(UNSENT).exists()
    }

    /// Notes whether there are updates that were not sent to the risk store.
    pub fn note_unsent(&self, unsent: bool) {
        let path = self.path.with_file_name(UNSENT);
        let noted = match unsent {
            true => File::create(&path).and_then(|file| file.sync_all()),
            false => fs::remove_file(&path),
        };
        match noted {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::error!(name: "windows.unsent_not_noted", error = %error, "could not note that updates of the risk store are unsent: a restart now may lose them");
            }
            Ok(()) | Err(_) => {}
        }
    }

    fn write(&self, noted: &Noted) -> io::Result<()> {
        let written = Written { replica: self.id.clone(), seen: noted.seen.clone(), head: noted.head.clone() };
        let new = self.path.with_extension("new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(&written)?)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        File::open(self.path.parent().unwrap_or(&self.path))?.sync_all()
    }
}
