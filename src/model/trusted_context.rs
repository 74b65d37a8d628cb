//! Members of `context` that the PDP sets. Callers set only `args` and `facts`.

use crate::json::{self, Object, Value};

/// Members of `context` that callers fill.
pub const CLAIMED: [&str; 2] = ["args", "facts"];

/// Members of `context` that the PDP fills from the request's identity and time.
pub const DERIVED: [&str; 4] = ["case", "chain", "now", "step"];

/// Member of `context` with the values that the PDP computes from the arguments. It is optional.
pub const COMPUTED: &str = "derived";

/// Members of `context` that the PDP fills from its own state.
pub const REMEMBERED: [&str; 14] = [
    "approval",
    "checks",
    "claims",
    "confidence",
    "consent",
    "draft",
    "findings",
    "grounding",
    "prepared",
    "rates",
    "release",
    "risk",
    "screening",
    "sums",
];

/// Facts from the PDP's own state about the case, agent and supervisor, by member of `context`. A member that
/// the action's context does not declare is not passed to Cedar.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct TrustedContext(Object);

impl TrustedContext {
    /// Creates the facts for a case without history: no checks, no findings, no full window, and this risk.
    pub fn nothing(risk: Value) -> Self {
        let mut members = Object::new();
        let none = || Value::Array(vec![]);
        let grounding = json::object([("sources", Value::Integer(0)), ("ungrounded", Value::Integer(0))]);
        for (name, empty) in [
            ("checks", Value::Object(Object::new())),
            ("claims", none()),
            ("confidence", Value::Integer(0)),
            ("draft", none()),
            ("findings", none()),
            ("grounding", grounding),
            ("prepared", Value::Bool(false)),
            ("rates", none()),
            ("sums", Value::Object(Object::new())),
        ] {
            members.insert(name.to_owned(), empty);
        }
        members.insert("risk".to_owned(), risk);
        Self(members)
    }

    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// Sets a member; an object is merged into an existing object.
    pub fn set(&mut self, name: &str, value: Value) {
        match (self.0.get_mut(name), value) {
            (Some(Value::Object(members)), Value::Object(more)) => members.extend(more),
            (_, value) => {
                self.0.insert(name.to_owned(), value);
            }
        }
    }

    pub fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }
}
