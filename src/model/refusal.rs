//! Refusals: the reasons why a request got no decision.

/// Reason why no decision was made. It carries field names and constant messages; only `below` and `unknown`
/// hold names that the caller sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The decision was not made or recorded in time.
    #[error("the deadline passed before the decision was recorded")]
    Deadline,
    #[error("{0}")]
    Forbidden(&'static str),
    /// The request can't be read.
    #[error("`{field}` {problem}")]
    Invalid {
        /// Path of the faulty field, in names of the protocol and the schema.
        field: String,
        /// Rest of the path in the caller's own names, which only the caller may see.
        below: String,
        /// Fault of the field, for the audit log.
        problem: &'static str,
        /// Name of an unknown member, which only the caller may see.
        unknown: Option<String>,
    },
    /// The approval does not exist, or the caller may not know of it.
    #[error("there is no such approval")]
    NotFound,
    /// The request can't be met in the current state.
    #[error("{0}")]
    Precondition(&'static str),
    /// A size or load limit was reached.
    #[error("{0}")]
    Exhausted(&'static str),
    /// The caller or its credential is not accepted.
    #[error("{0}")]
    Unauthenticated(&'static str),
    /// The server can't decide or record now.
    #[error("{0}")]
    Unavailable(&'static str),
}

impl Refusal {
    /// Creates a refusal of a field that can't be read.
    pub fn invalid(field: impl Into<String>, problem: &'static str) -> Self {
        Self::Invalid { field: field.into(), below: String::new(), problem, unknown: None }
    }

    /// Replaces the prefix `own` of the field by `place`, for a field that is elsewhere in the request.
    pub fn below(self, own: &str, place: &str) -> Self {
        match self {
            Self::Invalid { field, below, problem, unknown } => {
                let field = field.strip_prefix(own).map_or(field.clone(), |rest| format!("{place}{rest}"));
                Self::Invalid { field, below, problem, unknown }
            }
            other => other,
        }
    }

    /// Returns the message with the name of an unknown member, for the author of the request.
    pub fn in_full(&self) -> String {
        match self {
            Self::Invalid { unknown: Some(unknown), .. } => format!("{self}: `{unknown}`"),
            Self::Deadline
            | Self::Exhausted(_)
            | Self::Forbidden(_)
            | Self::Invalid { unknown: None, .. }
            | Self::NotFound
            | Self::Precondition(_)
            | Self::Unauthenticated(_)
            | Self::Unavailable(_) => self.to_string(),
        }
    }

    /// Name of the kind in records and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Deadline => "deadline_exceeded",
            Self::Exhausted(_) => "resource_exhausted",
            Self::Forbidden(_) => "permission_denied",
            Self::Invalid { .. } => "invalid_argument",
            Self::NotFound => "not_found",
            Self::Precondition(_) => "failed_precondition",
            Self::Unauthenticated(_) => "unauthenticated",
            Self::Unavailable(_) => "unavailable",
        }
    }
}
