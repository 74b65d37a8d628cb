//! The seam to the file system: tests put a disk here that is full, fails or stalls.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Permissions of a segment that is written, and of the folders of the data: readable by the group, by nobody else.
const SEGMENT_MODE: u32 = 0o640;
const FOLDER_MODE: u32 = 0o750;

/// A segment that is being written.
pub trait Segment: fmt::Debug + Send {
    /// Appends bytes.
    ///
    /// # Errors
    /// As the operating system says; some of the bytes may be written.
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Makes what was written durable (fdatasync).
    ///
    /// # Errors
    /// When it is not known to be durable; a repeated sync would lie.
    fn sync(&mut self) -> io::Result<()>;
    /// Cuts the file to a length.
    ///
    /// # Errors
    /// As the operating system says.
    fn set_len(&mut self, length: u64) -> io::Result<()>;
    /// Returns whether the file at this path is still the one that is written, and has this length. A file that was deleted, replaced
    /// or cut by somebody else goes on taking writes that nobody will find.
    ///
    /// # Errors
    /// As the operating system says.
    fn is_at(&self, path: &Path, length: u64) -> io::Result<bool>;
}

/// A file system.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Opens a file for appending; creates it if it is not there.
    ///
    /// # Errors
    /// As the operating system says.
    fn open(&self, path: &Path) -> io::Result<Box<dyn Segment>>;
    /// Makes a folder's entries durable.
    ///
    /// # Errors
    /// As the operating system says.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
    /// Bytes free and in total; `None` if it can't be told.
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

/// Makes a folder of the data, and those above it, unless they are there.
///
/// # Errors
/// As the operating system says.
pub fn create_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(path)
}
