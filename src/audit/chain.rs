//! The hash chain of the log.

use sha2::{Digest, Sha256};

use crate::model::text::hex;

/// `prev` of the first line.
pub(super) const GENESIS: &str = ZEROS;

/// Zeros in place of a line's MAC while the MAC is computed.
pub(super) const ZEROS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Returns SHA-256 in lower-case hex.
pub(super) fn hash(bytes: &[u8]) -> String {
    hex(Sha256::digest(bytes))
}
