//! Errors of the state store.

use crate::model::refusal::Refusal;

/// The store can't be asked, or must not be believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// What it holds can't be read.
    #[error("the state store holds a row that can't be read")]
    Damaged,
    /// It does not answer, or refuses.
    #[error("the state store does not answer: {0}")]
    Unreachable(String),
    /// It came into another lineage or generation, and this replica does not know yet what that means.
    #[error("the state store is another one than before: nothing is written until it is known whether it lost anything")]
    Unsettled,
    /// It lacks what was seen of it.
    #[error("the state store went back: it lacks what was written to it")]
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
            // Never the query's values: the statements have parameters alone.
            // PostgreSQL's own words, without those around them.
            sqlx::Error::Database(error) => Self::Unreachable(error.message().to_owned()),
            sqlx::Error::PoolTimedOut => Self::Unreachable("no connection in time".to_owned()),
            error => Self::Unreachable(error.to_string()),
        }
    }
}

/// The store can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It is of a version that this program does not know.
    #[error("the state store's tables are of version {0}, newer than this program's: use the newer program, or another store")]
    Newer(i64),
    /// This replica's notes can't be used.
    #[error("the notes beside the state store, in `state/` of the data folder, can't be used: {0}")]
    Notes(#[from] std::io::Error),
    /// It can't be reached.
    #[error("the state store can't be opened: {0}: see `store` in the settings")]
    Unreachable(#[from] StoreError),
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
