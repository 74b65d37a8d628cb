//! Abstraction of the file system, so that tests can substitute a disk that is full, fails or stalls.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::audit::error::OpenError;

/// Permissions of an open segment and of the data folders: the owner writes, the group reads, others have no
/// access.
const SEGMENT_MODE: u32 = 0o640;
const FOLDER_MODE: u32 = 0o750;

/// Segment that is open for writing.
pub trait Segment: fmt::Debug + Send {
    /// Appends bytes to the segment.
    ///
    /// # Errors
    /// On any I/O error; some of the bytes may have been written.
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Makes the written bytes durable (fdatasync).
    ///
    /// # Errors
    /// When it is unknown whether the bytes are durable. A repeated sync could succeed without them, so don't
    /// repeat it.
    fn sync(&mut self) -> io::Result<()>;
    /// Truncates the file to a length.
    ///
    /// # Errors
    /// On any I/O error.
    fn set_len(&mut self, length: u64) -> io::Result<()>;
    /// Returns whether the file at this path is still the open one and has this length. A file that another
    /// process deleted, replaced or truncated still accepts writes, but no reader would find them.
    ///
    /// # Errors
    /// On any I/O error.
    fn is_at(&self, path: &Path, length: u64) -> io::Result<bool>;
}

/// File system that holds the log.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Opens a file for appending and creates it if it is missing.
    ///
    /// # Errors
    /// On any I/O error.
    fn open(&self, path: &Path) -> io::Result<Box<dyn Segment>>;
    /// Makes a folder's entries durable.
    ///
    /// # Errors
    /// On any I/O error.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
    /// Returns free and total bytes; `None` if they are unknown.
    fn free(&self, path: &Path) -> Option<(u64, u64)>;
}

/// The operating system's file system.
#[derive(Debug, Default)]
pub struct SystemDisk;

impl Disk for SystemDisk {
    fn open(&self, path: &Path) -> io::Result<Box<dyn Segment>> {
        let file = OpenOptions::new().create(true).append(true).mode(SEGMENT_MODE).open(path)?;
        Ok(Box::new(SystemSegment(file)))
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        fs::File::open(path)?.sync_all()
    }

    fn free(&self, path: &Path) -> Option<(u64, u64)> {
        let found = rustix::fs::statvfs(path).ok()?;
        Some((found.f_bavail.saturating_mul(found.f_frsize), found.f_blocks.saturating_mul(found.f_frsize)))
    }
}

#[derive(Debug)]
struct SystemSegment(File);

impl Segment for SystemSegment {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn set_len(&mut self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn is_at(&self, path: &Path, length: u64) -> io::Result<bool> {
        let (own, named) = match (self.0.metadata(), fs::symlink_metadata(path)) {
            (own, Ok(named)) => (own?, named),
            (_, Err(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            (_, Err(error)) => return Err(error),
        };
        Ok((own.dev(), own.ino(), own.len()) == (named.dev(), named.ino(), length))
    }
}

/// Checks that files can be made in a folder, or in the one that it would be made in.
///
/// # Errors
/// If they can't.
pub fn check_writable(path: &Path) -> io::Result<()> {
    let path = std::path::absolute(path)?;
    let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    Ok(rustix::fs::access(existing, access)?)
}

/// Creates a data folder and its missing parents.
///
/// # Errors
/// On any I/O error.
pub fn create_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(path)
}

/// Takes the lock of the log's folder, which no two servers have.
///
/// # Errors
/// When another process has it, or its file can't be used.
pub(super) fn lock(folder: &Path) -> Result<fs::File, OpenError> {
    let io = |error| OpenError::Io(folder.to_owned(), error);
    let lock = fs::OpenOptions::new().create(true).append(true).open(folder.join("lock")).map_err(io)?;
    lock.try_lock().map_err(|error| match error {
        fs::TryLockError::WouldBlock => OpenError::Locked(folder.parent().unwrap_or(folder).to_owned()),
        fs::TryLockError::Error(error) => OpenError::Io(folder.to_owned(), error),
    })?;
    Ok(lock)
}
