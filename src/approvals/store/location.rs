//! Which engine keeps the state, and where.

use std::path::PathBuf;

use crate::approvals::store::{OpenError, StoreError};

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

/// The same error, with the place that could not be reached.
pub(super) fn named(error: OpenError, place: &str) -> OpenError {
    match error {
        OpenError::Unreachable(StoreError::Unreachable(why)) => {
            OpenError::Unreachable(StoreError::Unreachable(format!("`{place}`: {why}")))
        }
        error => error,
    }
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
