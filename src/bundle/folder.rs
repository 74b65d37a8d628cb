//! The bundle's folder as bytes. Its digest identifies the policy version in every answer and record.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::model::number::to_u64;
use crate::model::text::hex;

/// Maximum total size of a bundle's files, in bytes.
const BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Maximum number of files in a bundle.
const FILES_MAX: usize = 10_000;

/// U+FEFF in UTF-8.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// Files by path relative to the folder, with `/` as separator, without byte-order marks. Files that editors,
/// file managers and Kubernetes create are skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder(BTreeMap<String, Vec<u8>>);

/// Reasons why a folder can't be read.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The path is not a directory.
    #[error(
        "there is no bundle at `{0}`: name the folder that contains bundle.yaml (`serve --bundle FOLDER`, `check FOLDER`)"
    )]
    Missing(PathBuf),
    /// The folder has too many bytes or files, or more than one level of subfolders.
    #[error("the bundle at `{0}` is larger than 256 MiB or 10,000 files, or has folders in its subfolders")]
    TooLarge(PathBuf),
    /// The operating system returned an error, or an entry is neither a file nor a directory.
    #[error("`{0}` can't be read: {1}")]
    Unreadable(PathBuf, io::Error),
}

impl Folder {
    /// Reads every file in the folder and in its immediate subfolders.
    ///
    /// # Errors
    /// If the folder is missing, too large, nested deeper or unreadable.
    pub fn read(path: &Path) -> Result<Self, FolderError> {
        if !path.is_dir() {
            return Err(FolderError::Missing(path.to_owned()));
        }
        let mut files = BTreeMap::new();
        let mut bytes = 0;
        let mut open = vec![(path.to_owned(), String::new())];
        while let Some((folder, prefix)) = open.pop() {
            let entries = fs::read_dir(&folder).map_err(|error| FolderError::Unreadable(folder.clone(), error))?;
            for entry in entries {
                let entry = entry.map_err(|error| FolderError::Unreadable(folder.clone(), error))?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if is_litter(&name) {
                    tracing::debug!(name: "bundle.file_ignored", file = name);
                    continue;
                }
                let file = entry.path();
                let below = format!("{prefix}{name}");
                let metadata = fs::metadata(&file).map_err(|error| FolderError::Unreadable(file.clone(), error))?;
                if metadata.is_dir() {
                    if !prefix.is_empty() || open.len() + files.len() >= FILES_MAX {
                        return Err(FolderError::TooLarge(file));
                    }
                    open.push((file, format!("{below}/")));
                    continue;
                }
                if !metadata.is_file() {
                    return Err(FolderError::Unreadable(file, io::ErrorKind::InvalidInput.into()));
                }
                let mut text = vec![];
                let open = fs::File::open(&file).map_err(|error| FolderError::Unreadable(file.clone(), error))?;
                let read = open.take(BYTES_MAX + 1 - bytes).read_to_end(&mut text);
                bytes += read.map_err(|error| FolderError::Unreadable(file.clone(), error))? as u64;
                if bytes > BYTES_MAX || files.len() >= FILES_MAX {
                    return Err(FolderError::TooLarge(path.to_owned()));
                }
                // Editors of some systems begin a text with a byte-order mark.
                if text.starts_with(BYTE_ORDER_MARK) {
                    text.drain(..BYTE_ORDER_MARK.len());
                }
                files.insert(below, text);
            }
        }
        Ok(Self(files))
    }

    /// Writes the files to a new folder.
    ///
    /// # Errors
    /// If the folder exists, or can't be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)?;
        for (name, bytes) in &self.0 {
            let file = path.join(name);
            if let Some(parent) = file.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(file, bytes)?;
        }
        Ok(())
    }

    /// Creates a folder from files in memory.
    pub fn of(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        Self(files.into_iter().collect())
    }

    pub fn files(&self) -> &BTreeMap<String, Vec<u8>> {
        &self.0
    }

    /// Returns `sha256:` and the hex digest over all names and contents. The length of each is hashed before
    /// it, so that no two folders have the same hash input.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for (name, bytes) in &self.0 {
            for part in [name.as_bytes(), bytes] {
                hash.update(to_u64(part.len()).to_be_bytes());
                hash.update(part);
            }
        }
        format!("sha256:{}", hex(hash.finalize()))
    }
}

/// Returns whether the name is of a hidden file or of an editor's copy: `.DS_Store`, `.x.swp`, `x~`, `#x#`.
fn is_litter(name: &str) -> bool {
    name.starts_with('.') || name.ends_with('~') || name.starts_with('#') && name.ends_with('#')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_bytes_do_not_run_together_in_the_digest() {
        let folder = |name: &str, bytes: &str| Folder::of([(name.to_owned(), bytes.as_bytes().to_vec())]).digest();
        assert_ne!(folder("ab", "c"), folder("a", "bc"));
        assert_eq!(folder("a", "b"), folder("a", "b"));
    }
}
