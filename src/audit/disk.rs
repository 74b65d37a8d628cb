//! The seam to the file system: tests put a disk here that is full, fails or stalls.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

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
        let file = OpenOptions::new().create(true).append(true).open(path)?;
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
}
