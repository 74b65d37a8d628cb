//! Access to randomness. Ids, nonces and digest keys are drawn from an [`Entropy`] that is passed in.

use std::fmt;

use uuid::Uuid;

use crate::model::refusal::Refusal;
use crate::model::time::Timestamp;

/// A source of unpredictable bytes.
pub trait Entropy: fmt::Debug + Send + Sync {
    /// Fills the buffer with random bytes.
    ///
    /// # Errors
    /// If the operating system provides no randomness.
    fn fill(&self, buffer: &mut [u8]) -> Result<(), NoEntropy>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the operating system's random source failed")]
pub struct NoEntropy;

impl From<NoEntropy> for Refusal {
    fn from(_: NoEntropy) -> Self {
        Self::Unavailable("the operating system's random source failed")
    }
}

/// The operating system's random number generator.
#[derive(Debug, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&self, buffer: &mut [u8]) -> Result<(), NoEntropy> {
        getrandom::fill(buffer).map_err(|_| NoEntropy)
    }
}

/// Returns a UUIDv7 (RFC 9562) for this instant.
///
/// # Errors
/// If no randomness is available.
pub fn evaluation_id(entropy: &dyn Entropy, now: Timestamp) -> Result<Uuid, NoEntropy> {
    let mut random = [0; 10];
    entropy.fill(&mut random)?;
    // A UUIDv7 holds no time before 1970.
    let millis = now.micros().max(0).unsigned_abs() / 1000;
    Ok(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
}

/// Returns 128 random bits in lower-case hex.
///
/// # Errors
/// If no randomness is available.
pub fn nonce(entropy: &dyn Entropy) -> Result<String, NoEntropy> {
    let mut random = [0; 16];
    entropy.fill(&mut random)?;
    Ok(format!("{:032x}", u128::from_be_bytes(random)))
}
