//! Which engine keeps the state, and where.

use std::path::PathBuf;
use std::time::Duration;

/// Which engine keeps the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A file of our own.
    Sqlite(PathBuf),
    /// A server that replicas share: a connection URL.
    Postgres(String),
}

impl Location {
    /// The file, or the server's host and port: what may be said of it.
    pub(super) fn place(&self) -> String {
        match self {
            Self::Sqlite(path) => path.display().to_string(),
            Self::Postgres(url) => {
                // Behind the last `@`, whatever a password holds.
                let url = url.split('?').next().unwrap_or_default();
                let rest = url.rsplit(['@']).next().unwrap_or_default();
                let rest = rest.split_once("://").map_or(rest, |(_, rest)| rest);
                rest.split('/').next().unwrap_or_default().to_owned()
            }
        }
    }
}

/// How the store is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which engine, where.
    pub location: Location,
    /// How long an operation may take.
    pub timeout: Duration,
    /// Connections of a pool.
    pub connections: u32,
    /// This replica's own id: whose audit log records what it left in the outbox.
    pub replica: String,
    /// Unique to this start of the process.
    pub boot: String,
    /// A fresh generation, should one be needed.
    pub generation: String,
    /// The highest generation and revision ever seen here; `None` if none was.
    pub seen: Option<Seen>,
    /// The folder in which this replica notes what the store might lose: what stops, and what calls added to sums.
    pub notes: PathBuf,
}

/// A generation of the store and the highest revision seen in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// Generation.
    pub generation: String,
    /// Revision.
    pub revision: i64,
    /// Its head; empty where none was noted.
    #[serde(default)]
    pub head: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_tells_no_password() {
        let place = |url: &str| Location::Postgres(url.to_owned()).place();
        for url in ["postgres://db:5432/state?sslmode=disable", "postgres://u:p@db:5432/state", "postgres://u:p/a@s@db:5432/state?x=a@b"] {
            assert_eq!(place(url), "db:5432", "{url}");
        }
        assert_eq!(place("postgres://db"), "db");
    }
}
