//! Records that are kept as JSON before they become lines: events, and the outbox entries of transitions.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::sealing::Sealed;

/// Record with a `type` of its own, and the members that place it: in the state store's history and in the log of a replica.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StoredRecord {
    /// Keeps the record from being guessed from the line's hash.
    #[serde(skip_serializing_if = "Option::is_none")]
    nonce: Option<String>,
    /// Replica that committed the transition, if another one records it.
    #[serde(skip_serializing_if = "Option::is_none")]
    left_by: Option<String>,
    /// Generation of the state store that the transition belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<String>,
    /// Revision of the transition.
    #[serde(skip_serializing_if = "Option::is_none")]
    transition: Option<i64>,
    /// Head of that revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    head: Option<String>,
    /// Evidence of a decision, which is written beside the line.
    #[serde(skip)]
    sealed: Option<Sealed>,
    #[serde(flatten)]
    members: Map<String, Value>,
}

impl StoredRecord {
    /// Reads the JSON of an event or of an outbox entry.
    ///
    /// # Errors
    /// When it is not an object, or one of the members above has another type.
    pub fn read(record: Value) -> Result<Self, serde_json::Error> {
        serde_json::from_value(record)
    }

    /// Creates a record from its members.
    pub fn new(members: Map<String, Value>) -> Self {
        Self { members, ..Self::default() }
    }

    /// Adds the evidence whose digest the record has.
    #[must_use]
    pub fn with_evidence(self, sealed: Option<Sealed>) -> Self {
        Self { sealed, ..self }
    }

    pub(in crate::audit) fn take_evidence(&mut self) -> Option<Sealed> {
        self.sealed.take()
    }

    /// Adds a nonce, unless the record has one.
    #[must_use]
    pub fn with_nonce(self, nonce: String) -> Self {
        Self { nonce: Some(self.nonce.unwrap_or(nonce)), ..self }
    }

    /// Adds the transition that the record belongs to. `head` is empty if it is not known.
    #[must_use]
    pub fn with_transition(self, generation: &str, revision: i64, head: &str) -> Self {
        let head = Some(head).filter(|head| !head.is_empty()).map(str::to_owned);
        Self { generation: Some(generation.to_owned()), transition: Some(revision), head: head.or(self.head), ..self }
    }

    /// Adds the replica that committed the transition.
    #[must_use]
    pub fn with_left_by(self, replica: String) -> Self {
        Self { left_by: Some(replica), ..self }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written_and_only_gets_members() {
        let event =
            json!({"type": "approval.reviewed", "nonce": "first", "by": {"by": "token"}, "approval": {"id": "apr_1"}});
        let record = StoredRecord::read(event.clone()).expect("an object");
        assert_eq!(serde_json::to_value(&record).expect("JSON"), event);
        let placed = record.with_nonce("second".into()).with_transition("g1", 7, "").with_left_by("one".into());
        let mut expected = event;
        for (name, value) in [("generation", json!("g1")), ("transition", json!(7)), ("left_by", json!("one"))] {
            expected[name] = value;
        }
        assert_eq!(serde_json::to_value(&placed).expect("JSON"), expected);
        assert!(StoredRecord::read(json!("approval.reviewed")).is_err());
        assert!(StoredRecord::read(json!({"transition": "seven"})).is_err());
    }
}
