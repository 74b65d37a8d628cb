//! A line of the audit log that can be noted elsewhere, to see later whether the log still has it.

/// The line.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Its sequence number.
    pub index: u64,
    /// SHA-256 of it, in hex.
    pub hash: String,
}
