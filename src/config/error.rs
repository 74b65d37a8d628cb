//! Faults of the settings.

use std::path::PathBuf;

/// Reason why settings are refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("the settings file `{0}` can't be read: {1}")]
    Unreadable(PathBuf, String),
    /// The file's text is faulty. `Config::load` adds the file's path.
    #[error("{0}")]
    File(String),
    /// The file or a variable is faulty.
    #[error("{0}")]
    Faulty(String),
    /// A value is out of bounds, or two values contradict each other.
    #[error("`{setting}` {problem}")]
    Refused {
        setting: &'static str,
        /// Description of the problem and its solution.
        problem: String,
    },
}
