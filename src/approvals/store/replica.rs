//! What a replica notes in a file of its own: its name, the highest revision of the store that it has seen, and the head of its audit
//! log. A store that went back in time, and a log that lost its end, are recognized at the next start by what is noted here.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use crate::approvals::store::location::Seen;
use crate::model::head::Head;

/// The file that stands while the windows' server was not told all.
const UNSENT: &str = "windows-unsent";

/// A replica's own file, `replica.json`.
#[derive(Debug)]
pub struct Replica {
    path: PathBuf,
    id: String,
    noted: Mutex<Noted>,
}

/// What is noted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Noted {
    seen: Option<Seen>,
    head: Option<Head>,
}

/// The file's name, in the folder of the state.
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
    /// Reads the file, or writes a new one with this id.
    ///
    /// # Errors
    /// When it can't be read or written, or is damaged: then nobody could tell whether the store went back in time.
    pub fn read_or_create(folder: &Path, fresh: &str) -> io::Result<Self> {
        let path = folder.join(FILE);
        match fs::read(&path) {
            Ok(text) => {
                let written: Written =
                    serde_json::from_slice(&text).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "`replica.json` is damaged"))?;
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

    /// The replica's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The highest revision that it has seen.
    pub fn seen(&self) -> Option<Seen> {
        self.noted().seen.clone()
    }

    /// The head of the audit log that was noted last.
    pub fn head(&self) -> Option<Head> {
        self.noted().head.clone()
    }

    /// The file's path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Notes a revision of the store.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn note(&self, seen: &Seen) -> io::Result<()> {
        self.change(|noted| noted.seen = Some(seen.clone()))
    }

    /// Notes the head of the audit log.
    ///
    /// # Errors
    /// When it can't be written.
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

    /// Whether the windows' server had not been told all when this replica ended.
    pub fn has_unsent(&self) -> bool {
        self.path.with_file_name(UNSENT).exists()
    }

    /// Notes whether there is something that the windows' server was not told.
    pub fn note_unsent(&self, unsent: bool) {
        let path = self.path.with_file_name(UNSENT);
        let noted = match unsent {
            true => File::create(&path).and_then(|file| file.sync_all()),
            false => fs::remove_file(&path),
        };
        match noted {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::error!(name: "windows.unsent_not_noted", error = %error, "a restart now might forget what the windows were not told");
            }
            Ok(()) | Err(_) => {}
        }
    }

    fn write(&self, noted: &Noted) -> io::Result<()> {
        let written = Written { replica: self.id.clone(), seen: noted.seen.clone(), head: noted.head.clone() };
        let new = self.path.with_extension("new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(&written).unwrap_or_default())?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        File::open(self.path.parent().unwrap_or(&self.path))?.sync_all()
    }
}
