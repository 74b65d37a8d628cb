//! Head of the audit log: a line that is noted elsewhere, to check later whether the log still has it.

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Sequence number of the line.
    pub index: u64,
    /// SHA-256 of the line, in hex.
    pub hash: String,
}
