//! Location and options of the state store, and the last revision that a process has seen of it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::sealing::DeploymentKeys;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A file that only this process uses.
    Sqlite(PathBuf),
    /// Connection URL of a server that replicas share.
    Postgres(String),
}

impl Location {
    /// Returns the file, or the server's host and port. The rest of the URL may contain a password.
    pub fn place(&self) -> String {
        match self {
            Self::Sqlite(path) => path.display().to_string(),
            Self::Postgres(url) => {
                // A password may contain `@`, so the host follows the last one.
                let url = url.split_once('?').map_or(url.as_str(), |(url, _)| url);
                let rest = url.rsplit_once('@').map_or(url, |(_, rest)| rest);
                let rest = rest.split_once("://").map_or(rest, |(_, rest)| rest);
                rest.split_once('/').map_or(rest, |(server, _)| server).to_owned()
            }
        }
    }
}

/// Options for opening the store.
#[derive(Clone, Debug)]
pub struct Options {
    pub location: Location,
    /// Time limit of an operation.
    pub timeout: Duration,
    /// Number of connections of the pool for calls.
    pub connections: u32,
    /// Id of this replica, whose audit log records its outbox entries.
    pub replica: String,
    /// Id that is unique to this start of the process.
    pub boot: String,
    /// New generation id, used if the store is new.
    pub generation: String,
    /// Highest generation and revision that this replica has noted; `None` before the first note.
    pub seen: Option<Seen>,
    /// Key with which those of data subjects are derived, which all replicas have. Without it, no approval can be written or read.
    pub sealing: Option<DeploymentKeys>,
    /// Folder in which this replica notes data that the store might lose: kill switches, revoked sessions and
    /// additions to sums.
    pub notes: PathBuf,
}

/// A generation of the store, and the highest revision seen in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    pub generation: String,
    pub revision: i64,
    /// Head of the revision; empty if none was noted.
    #[serde(default)]
    pub head: String,
}

/// Returns SQLite's URL of a file: absolute, with all bytes escaped that have a meaning in a URL.
pub(super) fn url(path: &Path) -> std::io::Result<String> {
    use std::os::unix::ffi::OsStrExt;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/.-_".contains(&byte);
    let path = std::path::absolute(path)?;
    let encoded = path
        .as_os_str()
        .as_bytes()
        .iter()
        .map(|byte| if plain(*byte) { char::from(*byte).to_string() } else { format!("%{byte:02X}") });
    Ok(format!("sqlite://{}", encoded.collect::<String>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_tells_no_password() {
        let place = |url: &str| Location::Postgres(url.to_owned()).place();
        for url in [
            "postgres://db:5432/state?sslmode=disable",
            "postgres://u:p@db:5432/state",
            "postgres://u:p/a@s@db:5432/state?x=a@b",
        ] {
            assert_eq!(place(url), "db:5432", "{url}");
        }
        assert_eq!(place("postgres://db"), "db");
    }
}
