//! Why a request got no decision.

/// No decision was made. Carries field names and constant words, never what the caller sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The decision was not made, or not recorded, in time.
    #[error("the deadline passed before the decision was recorded")]
    Deadline,
    /// The caller may not do this.
    #[error("{0}")]
    Forbidden(&'static str),
    /// The request can't be read.
    #[error("`{field}` {problem}")]
    Invalid {
        /// The field at fault, as a path of names of the protocol and the schema.
        field: String,
        /// The path below it in the caller's own names, for the caller alone.
        below: String,
        /// What is wrong with it, for the audit log.
        problem: &'static str,
        /// The name of an unknown member, for the caller alone.
        unknown: Option<String>,
    },
    /// There is none, or none that the caller may know of.
    #[error("there is no such approval")]
    NotFound,
    /// What is asked can't be done as things stand.
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
    /// A field that can't be read.
    pub fn invalid(field: impl Into<String>, problem: &'static str) -> Self {
        Self::Invalid { field: field.into(), below: String::new(), problem, unknown: None }
    }

    /// The same of a field that stands elsewhere in the request.
    pub fn below(self, own: &str, place: &str) -> Self {
        match self {
            Self::Invalid { field, below, problem, unknown } => {
                let field = field.strip_prefix(own).map_or(field.clone(), |rest| format!("{place}{rest}"));
                Self::Invalid { field, below, problem, unknown }
            }
            other => other,
        }
    }

    /// The words with the name of an unknown member, for whoever wrote the request.
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

    /// The kind's name in records and metrics.
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
