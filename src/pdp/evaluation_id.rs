//! Evaluation ids that prove what they are of. A justification names evaluations as evidence, and any replica must be able to refuse a
//! made-up id, and to tell the reviewer what an id stands for, without a store of all evaluations. So the last 40 bits of an id are a keyed
//! digest of the bits before them, the tenant, the case, the action and the answer: the few actions of a bundle are tried. An id is known
//! only to who was given an answer, and no answer is given before its record is durable.

use uuid::Uuid;

use crate::content::values::ValueKey;
use crate::entropy;
use crate::model::approval::Evidence;
use crate::model::call::Call;
use crate::model::refusal::Refusal;
use crate::model::time::Timestamp;
use crate::pdp::Pdp;
use crate::pdp::keys::Keys;
use crate::pdp::snapshot::Moment;

/// The bytes of an id that hold time and randomness; the other five hold the digest.
const FREE: usize = 11;

impl Pdp {
    /// Makes the id of an evaluation, a UUIDv7 (RFC 9562). `call` is absent where the evaluation is no evidence: it is of no case, or
    /// hypothetical.
    ///
    /// # Errors
    /// UNAVAILABLE, when there is no randomness.
    pub(super) fn evaluation_id(&self, call: Option<&Call>, allowed: bool, now: Timestamp) -> Result<String, Refusal> {
        let id = entropy::evaluation_id(self.entropy.as_ref(), now)?;
        let marked = call.map(|call| Marks::of(&self.keys.load(), id, &call.case.tenant, &call.case.id).marked(&call.action, allowed));
        Ok(marked.unwrap_or(id).to_string())
    }

    /// What the evaluation of this id was; `None` if it is none of this case.
    pub(super) fn evidence(&self, moment: &Moment, id: &str, tenant: &str, case: &str) -> Option<Evidence> {
        let uuid = Uuid::parse_str(id).ok().filter(|uuid| uuid.to_string() == id)?;
        let marks = Marks::of(&self.keys.load(), uuid, tenant, case);
        let actions = moment.snapshot.bundle.policies.shapes.actions.keys();
        let mut tried = actions.flat_map(|action| [(action, true), (action, false)]);
        let (action, allowed) = tried.find(|(action, allowed)| marks.marked(action, *allowed) == uuid)?;
        let seconds = uuid.get_timestamp().map_or(0, |timestamp| timestamp.to_unix().0);
        let at = Timestamp::from_seconds(i64::try_from(seconds).unwrap_or_default());
        Some(Evidence { id: id.to_owned(), action: action.clone(), allowed, at })
    }
}

/// Puts digests into an id of a case.
struct Marks {
    id: Uuid,
    key: ValueKey,
}

impl Marks {
    fn of(keys: &Keys, id: Uuid, tenant: &str, case: &str) -> Self {
        let free: String = id.as_bytes().iter().take(FREE).map(|byte| format!("{byte:02x}")).collect();
        // Ids hold no control characters, so the parts can't run together.
        Self { id, key: ValueKey::new(keys.values.derived(&format!("evaluation\0{free}\0{tenant}\0{case}"))) }
    }

    fn marked(&self, action: &str, allowed: bool) -> Uuid {
        let digest = self.key.digest(&format!("{action}\0{allowed}"));
        let mut bytes = self.id.into_bytes();
        bytes.iter_mut().skip(FREE).zip(digest.hash.to_le_bytes()).for_each(|(byte, made)| *byte = made);
        Uuid::from_bytes(bytes)
    }
}
