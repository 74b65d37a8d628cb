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
use crate::sealing::DeploymentKeys;

/// Prefix of the HMAC input of a line.
const LINE_PREFIX: &[u8] = b"countersign audit line\0";

/// Number of bytes of a key.
const LENGTH: usize = 32;

/// 256-bit HMAC key, and the keys that it replaced. Its `Debug` output contains no byte of them.
#[derive(Clone)]
pub struct DigestKey {
    current: [u8; LENGTH],
    /// The oldest first.
    earlier: Vec<[u8; LENGTH]>,
}

impl std::fmt::Debug for DigestKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("DigestKey")
    }
}

impl DigestKey {
    pub fn new(bytes: [u8; LENGTH]) -> Self {
        Self { current: bytes, earlier: vec![] }
    }

    /// Reads the key file, and the keys that it replaced, which lie beside it with the extension `earlier`.
    ///
    /// # Errors
    /// When a file can't be read, the key's does not hold 32 bytes, or the other a multiple of that.
    pub fn read(path: &Path) -> io::Result<Self> {
        let wrong = |problem: &str| io::Error::new(io::ErrorKind::InvalidData, problem.to_owned());
        let current = fs::read(path)?.try_into().map_err(|_| wrong("does not contain exactly 32 bytes"))?;
        let earlier = match fs::read(earlier(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => vec![],
            bytes => bytes?,
        };
        let (earlier, rest) = earlier.as_chunks::<LENGTH>();
        if !rest.is_empty() {
            return Err(wrong("has earlier keys (extension `earlier`) that are not 32 bytes each"));
        }
        // A rotation that was interrupted leaves the current key among the earlier ones.
        let earlier = earlier.iter().filter(|key| **key != current).copied().collect();
        Ok(Self { current, earlier })
    }

    /// Puts a fresh key in place of the one in a file, which is kept among the earlier ones.
    ///
    /// # Errors
    /// When a file can't be read or written.
    pub fn rotate(path: &Path, fresh: [u8; LENGTH]) -> io::Result<()> {
        let replaced = Self::read(path)?;
        let earlier_keys: Vec<u8> = replaced.earlier.iter().chain([&replaced.current]).flatten().copied().collect();
        // The replaced key is durable among the earlier ones before the fresh one takes its place.
        for (path, bytes) in [(earlier(path), earlier_keys.as_slice()), (path.to_owned(), fresh.as_slice())] {
            let new = path.with_extension(format!("new-{}", std::process::id()));
            let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            fs::File::open(path.parent().unwrap_or(&path))?.sync_all()?;
        }
        Ok(())
    }

    /// Returns the keys, the oldest first and the current one last.
    pub fn all(&self) -> impl Iterator<Item = &[u8; LENGTH]> {
        self.earlier.iter().chain([&self.current])
    }

    /// Reads the key file, or creates it from `fresh`, readable only by its owner.
    ///
    /// # Errors
    /// When the file can't be read or written, or does not hold 32 bytes.
    pub fn read_or_create(path: &Path, fresh: [u8; LENGTH]) -> io::Result<Self> {
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
    pub fn derived_key(&self, purpose: &str) -> [u8; LENGTH] {
        mac(&self.current, &[purpose.as_bytes()])
    }

    /// Derives the keys from which those of data subjects are derived.
    pub fn sealing(&self) -> DeploymentKeys {
        let derived = |key: &[u8; LENGTH]| mac(key, &[b"countersign data subjects"]);
        DeploymentKeys::new([&self.current].into_iter().chain(self.earlier.iter().rev()).map(derived))
    }

    /// Returns `hmac-sha256:` and hex over the value's canonical form.
    pub fn digest(&self, value: &impl serde::Serialize) -> String {
        format!("hmac-sha256:{}", hex(mac(&self.current, &[&json::canonical(value)])))
    }

    /// Returns the digest of a customer's id: like [`Self::digest`], under the oldest key, because a customer's risk is found by
    /// this digest for longer than a key is in use.
    pub fn customer(&self, id: &str) -> String {
        let key = self.earlier.first().unwrap_or(&self.current);
        format!("hmac-sha256:{}", hex(mac(key, &[&json::canonical(&id)])))
    }

    /// Returns the MAC of a log line in hex. The prefix separates it from digests, whose input is JSON.
    pub(super) fn line(&self, line: &[u8]) -> String {
        hex(mac(&self.current, &[LINE_PREFIX, line]))
    }

    /// Returns whether one of the keys made the MAC of a log line.
    pub(super) fn has_made(&self, found: &[u8], line: &[u8]) -> bool {
        self.all().any(|key| hex(mac(key, &[LINE_PREFIX, line])).as_bytes() == found)
    }
}

/// Returns the file of the keys that the key of a file replaced.
fn earlier(path: &Path) -> std::path::PathBuf {
    path.with_extension("earlier")
}

#[expect(clippy::expect_used, reason = "an empty digest would be believed, and a key of zeros be used")]
fn mac(key: &[u8; LENGTH], parts: &[&[u8]]) -> [u8; LENGTH] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_key_still_proves_its_lines_and_names_customers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit-digest.key");
        let first = DigestKey::read_or_create(&path, [1; LENGTH]).unwrap();
        DigestKey::rotate(&path, [2; LENGTH]).unwrap();
        DigestKey::rotate(&path, [3; LENGTH]).unwrap();
        let last = DigestKey::read(&path).unwrap();
        assert_eq!(last.all().map(|key| key[0]).collect::<Vec<_>>(), [1, 2, 3]);
        let line = first.line(b"line");
        assert!(last.has_made(line.as_bytes(), b"line") && !last.has_made(line.as_bytes(), b"lime"));
        assert!(!DigestKey::new([3; LENGTH]).has_made(line.as_bytes(), b"line"));
        assert_ne!(last.line(b"line"), line);
        assert_ne!(last.digest(&"c-1"), first.digest(&"c-1"));
        assert_eq!(last.customer("c-1"), first.digest(&"c-1"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "no temporary file is left");
    }

    #[test]
    fn an_interrupted_rotation_changes_nothing_and_damaged_keys_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit-digest.key");
        DigestKey::read_or_create(&path, [1; LENGTH]).unwrap();
        fs::write(earlier(&path), [1; LENGTH]).unwrap();
        assert_eq!(DigestKey::read(&path).unwrap().all().count(), 1);
        fs::write(earlier(&path), [1; LENGTH + 1]).unwrap();
        assert!(DigestKey::read(&path).unwrap_err().to_string().contains("earlier keys"));
        assert!(DigestKey::rotate(&path, [2; LENGTH]).is_err());
        assert_eq!(fs::read(&path).unwrap(), [1; LENGTH]);
    }
}
