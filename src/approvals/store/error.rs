//! Errors of the state store.

use crate::model::refusal::Refusal;

/// The store does not answer, or its content must not be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// A stored row can't be parsed.
    #[error("the state store contains a row that can't be parsed")]
    Damaged,
    /// The store does not answer, or refuses the operation.
    #[error("the state store does not answer: {0}")]
    Unreachable(String),
    /// The store is in another lineage or generation, and this replica does not know yet whether it lost
    /// anything.
    #[error("another state store answered: nothing is written until it is clear whether data was lost")]
    Unsettled,
    /// The store lacks a revision that this replica has seen.
    #[error("the state store went back: it lacks data that was written to it")]
    WentBack,
}

impl From<StoreError> for Refusal {
    fn from(_: StoreError) -> Self {
        Self::Unavailable("the state store does not answer: try again")
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::ColumnNotFound(_) => Self::Damaged,
            // Only the server's message, without the context that sqlx adds. It contains no values of the
            // query, because all values are parameters.
            sqlx::Error::Database(error) => Self::Unreachable(error.message().to_owned()),
            sqlx::Error::PoolTimedOut => Self::Unreachable("no connection in time".to_owned()),
            error => Self::Unreachable(error.to_string()),
        }
    }
}

/// Reason for which the store can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The tables have a version that this program does not know.
    #[error(
        "the state store's tables have version {0}, which is newer than this program supports: use the newer program, or another store"
    )]
    Newer(i64),
    #[error("the files in `state/` of the data folder can't be used: {0}")]
    Notes(#[from] std::io::Error),
    /// The store can't be reached.
    #[error("the state store can't be opened: {0}: see `store` in the settings")]
    Unreachable(#[from] StoreError),
}

/// Adds the place that could not be reached to the error.
pub(super) fn named(error: OpenError, place: &str) -> OpenError {
    match error {
        OpenError::Unreachable(StoreError::Unreachable(why)) => {
            OpenError::Unreachable(StoreError::Unreachable(format!("`{place}`: {why}")))
        }
        error => error,
    }
}
