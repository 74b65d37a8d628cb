//! Key of the audit log, for digests of inputs and MACs of lines. With the key an auditor can prove that a
//! record belongs to an input; without it a digest reveals nothing.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::json::{self};
use crate::model::text::hex;

/// Prefix of the HMAC input of a line.
const LINE_PREFIX: &[u8] = b"countersign audit line\0";

/// 256-bit HMAC key. Its `Debug` output contains no byte of it.
#[derive(Clone)]
pub struct DigestKey([u8; 32]);

impl std::fmt::Debug for DigestKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("DigestKey")
    }
}

impl DigestKey {
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Reads the key file.
    ///
    /// # Errors
    /// When the file can't be read or does not hold 32 bytes.
    pub fn read(path: &Path) -> io::Result<Self> {
        let bytes = fs::read(path)?.try_into();
        Ok(Self(bytes.map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "does not contain exactly 32 bytes"))?))
    }

    /// Reads the key file, or creates it from `fresh`, readable only by its owner.
    ///
    /// # Errors
    /// When the file can't be read or written, or does not hold 32 bytes.
    pub fn read_or_create(path: &Path, fresh: [u8; 32]) -> io::Result<Self> {
        match Self::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // The complete file is hard-linked into place. So a crash can't leave a truncated key, and if
                // two processes start at once, both use the key that was linked first.
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

    /// Derives 128 bits from the key for a named purpose.
    pub fn derived(&self, purpose: &str) -> [u8; 16] {
        let mut derived = [0; 16];
        derived.iter_mut().zip(self.derived_key(purpose)).for_each(|(byte, made)| *byte = made);
        derived
    }

    /// Derives a key of 256 bits for a named purpose.
    #[expect(clippy::expect_used, reason = "a key of zeros would be used")]
    pub fn derived_key(&self, purpose: &str) -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(purpose.as_bytes());
        mac.finalize().into_bytes().into()
    }

    /// Derives the key with which those of data subjects are derived.
    pub fn sealing(&self) -> [u8; 32] {
        self.derived_key("countersign data subjects")
    }

    /// Returns `hmac-sha256:` and hex over the value's canonical form.
    pub fn digest(&self, value: &impl serde::Serialize) -> String {
        format!("hmac-sha256:{}", self.hex(b"", &json::canonical(value)))
    }

    /// Returns the MAC of a log line in hex. The prefix separates it from digests, whose input is JSON.
    pub(super) fn line(&self, line: &[u8]) -> String {
        self.hex(LINE_PREFIX, line)
    }

    #[expect(clippy::expect_used, reason = "an empty digest would be believed")]
    fn hex(&self, prefix: &[u8], bytes: &[u8]) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(prefix);
        mac.update(bytes);
        hex(mac.finalize().into_bytes())
    }
}
