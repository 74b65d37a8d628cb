//! What a replica remembers outside of the store: its own name, and the highest revision that it has seen. So a store that went back
//! in time is recognized, even if every server was stopped meanwhile.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::approvals::store::Seen;

/// The file that stands while the windows' server was not told all.
const UNSENT: &str = "windows-unsent";

/// A replica's own file, `replica.json`.
#[derive(Debug)]
pub struct Replica {
    path: PathBuf,
    id: String,
    seen: Mutex<Option<Seen>>,
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    replica: String,
    seen: Option<Seen>,
}

impl Replica {
    /// Reads the file, or writes a new one with this id.
    ///
    /// # Errors
    /// When it can't be read or written, or is damaged: then nobody could tell whether the store went back in time.
    pub fn read_or_create(folder: &Path, fresh: &str) -> io::Result<Self> {
        let path = folder.join("replica.json");
        match fs::read(&path) {
            Ok(text) => {
                let written: Written =
                    serde_json::from_slice(&text).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "`replica.json` is damaged"))?;
                Ok(Self { path, id: written.replica, seen: Mutex::new(written.seen) })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let replica = Self { path, id: fresh.to_owned(), seen: Mutex::default() };
                replica.write(None)?;
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
        self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Notes what was seen.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn note(&self, seen: &Seen) -> io::Result<()> {
        let mut noted = self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if noted.as_ref() != Some(seen) {
            self.write(Some(seen))?;
            *noted = Some(seen.clone());
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

    fn write(&self, seen: Option<&Seen>) -> io::Result<()> {
        let written = Written { replica: self.id.clone(), seen: seen.cloned() };
        let new = self.path.with_extension("new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(&written).unwrap_or_default())?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        File::open(self.path.parent().unwrap_or(&self.path))?.sync_all()
    }
}
