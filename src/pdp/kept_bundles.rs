//! Copies of the bundles that were in force, by digest, in `bundles/` beside the segments. A replay evaluates decisions by the bundle
//! that made them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::bundle::folder::Folder;
use crate::model::time::Timestamp;

/// Folder of the copies in the folder of the log.
const FOLDER: &str = "bundles";

/// Returns the place of a bundle's copy.
pub fn place(log: &Path, digest: &str) -> PathBuf {
    let name: String = digest.trim_start_matches("sha256:").chars().filter(char::is_ascii_hexdigit).collect();
    log.join(FOLDER).join(name)
}

/// Keeps a copy of a bundle, unless no evidence is kept for any day. A failure is logged: the bundle's decisions can't be replayed
/// then, and are valid.
pub fn keep(log: &Path, bundle: &Folder, days: u32) {
    if days > 0
        && let Err(error) = write(&place(log, &bundle.digest()), bundle)
    {
        tracing::error!(name: "bundle.not_kept", error = %error, "the bundle can't be kept: its decisions can't be replayed");
    }
}

fn write(place: &Path, bundle: &Folder) -> io::Result<()> {
    // A crash may have left a copy that is not whole.
    if Folder::read(place).is_ok_and(|kept| kept == *bundle) {
        return Ok(());
    }
    if place.exists() {
        fs::remove_dir_all(place)?;
    }
    fs::create_dir_all(place.parent().unwrap_or(place))?;
    let new = place.with_extension("new");
    if new.exists() {
        fs::remove_dir_all(&new)?;
    }
    let written = bundle.write(&new).and_then(|()| fs::rename(&new, place));
    if written.is_err() {
        // The log may need the space of a half copy.
        let _gone = fs::remove_dir_all(&new);
    }
    written
}

/// Deletes copies of bundles that have not been in force for this time.
///
/// # Errors
/// If a copy can't be read or deleted.
pub(super) fn purge(log: &Path, in_force: &str, now: Timestamp, kept: Duration) -> io::Result<()> {
    let time = |at: Timestamp| SystemTime::UNIX_EPOCH + Duration::from_micros(at.micros().max(0).unsigned_abs());
    let in_force = place(log, in_force);
    let entries = match fs::read_dir(log.join(FOLDER)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if path == in_force {
            // The time of a copy is the last time at which it was seen in force.
            fs::File::open(&path)?.set_modified(time(now))?;
        } else if fs::metadata(&path)?.modified()? < time(now.minus(kept)) {
            fs::remove_dir_all(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_whole_and_is_deleted_when_it_was_not_in_force_for_long() {
        let log = tempfile::tempdir().expect("a folder");
        let bundle = |text: &str| {
            Folder::of([("bundle.yaml".to_owned(), text.into()), ("tests/a.yaml".to_owned(), b"b".to_vec())])
        };
        let (old, new) = (bundle("old"), bundle("new"));
        let day = Duration::from_secs(24 * 3600);
        let now = Timestamp::from_seconds(4_000_000_000);
        let is_kept = |bundle: &Folder| {
            let place = place(log.path(), &bundle.digest());
            place.exists() && Folder::read(&place).expect("a folder").digest() == bundle.digest()
        };
        purge(log.path(), &new.digest(), now, day).expect("nothing to do");
        keep(log.path(), &old, 0);
        assert!(!is_kept(&old));
        keep(log.path(), &old, 1);
        keep(log.path(), &old, 1);
        purge(log.path(), &old.digest(), now, day).expect("purged");
        keep(log.path(), &new, 1);
        purge(log.path(), &new.digest(), now.plus(day / 2), day).expect("purged");
        assert!(is_kept(&old) && is_kept(&new));
        purge(log.path(), &new.digest(), now.plus(day * 2), day).expect("purged");
        assert!(!is_kept(&old) && is_kept(&new));
    }
}
