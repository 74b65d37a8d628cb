//! Evaluation ids that prove their case, action and decision. A justification names evaluations as evidence,
//! so any replica must be able to reject a made-up id, and to tell the reviewer what was evaluated, without a
//! store of all evaluations.

use uuid::Uuid;

use crate::content::values::ValueKey;
use crate::entropy;
use crate::model::approval::Evidence;
use crate::model::call::Call;
use crate::model::number::to_i64;
use crate::model::refusal::Refusal;
use crate::model::text::hex;
use crate::model::time::Timestamp;
use crate::pdp::keys::Keys;
use crate::pdp::snapshot::Moment;
use crate::pdp::tokens::Tokens;

/// Number of bytes of an id that contain time and randomness. The other five contain the digest.
const FREE: usize = 11;

impl Tokens {
    /// Creates the id of an evaluation, a UUIDv7 (RFC 9562). Without a `call` the id is not evidence, for
    /// example because the evaluation has no case or is hypothetical.
    ///
    /// # Errors
    /// If the random source fails (UNAVAILABLE).
    pub(in crate::pdp) fn evaluation_id(
        &self,
        call: Option<&Call>,
        allowed: bool,
        now: Timestamp,
    ) -> Result<String, Refusal> {
        let id = entropy::evaluation_id(self.entropy.as_ref(), now)?;
        let marked = call.map(|call| {
            Marks::of(&self.keys.load(), id, &call.case.tenant, &call.case.id).marked(&call.action, allowed)
        });
        Ok(marked.unwrap_or(id).to_string())
    }

    /// Returns action, decision and time of the evaluation with this id; `None` if the id does not belong to
    /// this case. Only the receiver of an answer knows its id, and no answer is sent before its record is
    /// durable.
    pub(in crate::pdp) fn evidence(&self, moment: &Moment, id: &str, tenant: &str, case: &str) -> Option<Evidence> {
        let uuid = Uuid::parse_str(id).ok().filter(|uuid| uuid.to_string() == id)?;
        let marks = Marks::of(&self.keys.load(), uuid, tenant, case);
        let actions = moment.snapshot.bundle.policies.shapes.actions.keys();
        let mut tried = actions.flat_map(|action| [(action, true), (action, false)]);
        let (action, allowed) = tried.find(|(action, allowed)| marks.marked(action, *allowed) == uuid)?;
        let seconds = uuid.get_timestamp().map_or(0, |timestamp| timestamp.to_unix().0);
        let at = Timestamp::from_seconds(to_i64(seconds));
        Some(Evidence { id: id.to_owned(), action: action.clone(), allowed, at })
    }
}

/// Marks an id of a case: the last 40 bits are a keyed digest of the bits before them, the tenant, the case,
/// the action and the decision. A check tries the few actions of the bundle.
struct Marks {
    id: Uuid,
    key: ValueKey,
}

impl Marks {
    fn of(keys: &Keys, id: Uuid, tenant: &str, case: &str) -> Self {
        let free = hex(id.as_bytes().iter().take(FREE));
        // Ids contain no control characters, so the parts can't run together.
        Self { id, key: ValueKey::new(keys.values.derived(&format!("evaluation\0{free}\0{tenant}\0{case}"))) }
    }

    fn marked(&self, action: &str, allowed: bool) -> Uuid {
        let digest = self.key.digest(&format!("{action}\0{allowed}"));
        let mut bytes = self.id.into_bytes();
        bytes.iter_mut().skip(FREE).zip(digest.hash.to_le_bytes()).for_each(|(byte, made)| *byte = made);
        Uuid::from_bytes(bytes)
    }
}
