//! Evaluation ids that prove where they come from. A justification names evaluations as evidence, and any replica must be able to
//! refuse a made-up id without a store of all ids. So the last 40 bits of an id are a keyed digest of the bits before them, the tenant
//! and the case. An id is known only to who was given an answer, and no answer is given before its record is durable.

use uuid::Uuid;

use crate::entropy;
use crate::model::call::Case;
use crate::model::refusal::Refusal;
use crate::model::time::Timestamp;
use crate::pdp::authorize::no_entropy;
use crate::pdp::{Keys, Pdp};

/// The bytes of an id that hold time and randomness; the other five hold the digest.
const FREE: usize = 11;

impl Pdp {
    /// Makes the id of an evaluation, a UUIDv7 (RFC 9562). `case` is absent where a request names none.
    ///
    /// # Errors
    /// UNAVAILABLE, when there is no randomness.
    pub(super) fn evaluation_id(&self, case: Option<&Case>, now: Timestamp) -> Result<String, Refusal> {
        let id = entropy::evaluation_id(self.entropy.as_ref(), now).map_err(no_entropy)?;
        let (tenant, case) = case.map_or(("", ""), |case| (case.tenant.as_str(), case.id.as_str()));
        Ok(marked(&self.keys.load(), id, tenant, case).to_string())
    }

    /// Returns whether an id is that of an evaluation of this case.
    pub(super) fn is_evaluation_of(&self, id: &str, tenant: &str, case: &str) -> bool {
        Uuid::parse_str(id).is_ok_and(|uuid| uuid.to_string() == id && marked(&self.keys.load(), uuid, tenant, case) == uuid)
    }
}

/// Puts the digest into an id.
fn marked(keys: &Keys, id: Uuid, tenant: &str, case: &str) -> Uuid {
    let mut bytes = id.into_bytes();
    let (free, mark) = bytes.split_at_mut(FREE);
    let free: String = free.iter().map(|byte| format!("{byte:02x}")).collect();
    // Ids hold no control characters, so the parts can't run together.
    let digest = keys.values.derived(&format!("evaluation\0{free}\0{tenant}\0{case}"));
    mark.iter_mut().zip(digest).for_each(|(byte, made)| *byte = made);
    Uuid::from_bytes(bytes)
}
