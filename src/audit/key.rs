//! The key of input digests: with it an auditor can show that a record is of this input; without it a digest says nothing.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::json::{self, Value};

/// What stands before a line when its MAC is made.
const LINE_PREFIX: &[u8] = b"countersign audit line\0";

/// A 256-bit HMAC key. Its `Debug` shows no byte of it.
#[derive(Clone)]
pub struct DigestKey([u8; 32]);

impl std::fmt::Debug for DigestKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("DigestKey")
    }
}

impl DigestKey {
    /// A key of these bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Reads the key file.
    ///
    /// # Errors
    /// When the file can't be read, or is not a key.
    pub fn read(path: &Path) -> io::Result<Self> {
        let bytes = fs::read(path)?.try_into();
        Ok(Self(bytes.map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "is not a key of 32 bytes"))?))
    }

    /// Reads the key file, or writes a new one, readable by its owner alone.
    ///
    /// # Errors
    /// When the file can't be read or written, or is not a key.
    pub fn read_or_create(path: &Path, fresh: [u8; 32]) -> io::Result<Self> {
        match Self::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Linked into its place when it is whole: a crash leaves no key that is too short, and whoever comes second, no second
                // key.
                let new = path.with_extension(format!("new-{}", std::process::id()));
                let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
                file.write_all(&fresh)?;
                file.sync_all()?;
                let linked = fs::hard_link(&new, path);
                fs::remove_file(&new)?;
                match linked {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                    Ok(()) | Err(_) => {}
                }
                fs::File::open(path.parent().unwrap_or(path))?.sync_all()?;
                Self::read(path)
            }
            read => read,
        }
    }

    /// 128 bits that follow from the key, for a purpose of this name.
    pub fn derived(&self, purpose: &str) -> [u8; 16] {
        let mut derived = [0; 16];
        if let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.0) {
            mac.update(purpose.as_bytes());
            for (byte, made) in derived.iter_mut().zip(mac.finalize().into_bytes()) {
                *byte = made;
            }
        }
        derived
    }

    /// `hmac-sha256:` and hex over the value's canonical form.
    pub fn digest(&self, value: &Value) -> String {
        format!("hmac-sha256:{}", self.hex(b"", &json::canonical(value)))
    }

    /// The MAC of a log's line, in hex. Its own prefix keeps it apart from digests, which are of JSON.
    pub(super) fn line(&self, line: &[u8]) -> String {
        self.hex(LINE_PREFIX, line)
    }

    fn hex(&self, prefix: &[u8], bytes: &[u8]) -> String {
        let mut text = String::with_capacity(64);
        if let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.0) {
            mac.update(prefix);
            mac.update(bytes);
            for byte in mac.finalize().into_bytes() {
                text.push_str(&format!("{byte:02x}"));
            }
        }
        text
    }
}
