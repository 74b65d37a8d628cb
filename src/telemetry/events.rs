//! Log events: one OTLP log record for each line of the audit log, as a live view of it. Records may be dropped; the audit log
//! itself is complete.

use std::time::SystemTime;

use opentelemetry::logs::{AnyValue, LogRecord as _, Logger as _, Severity};
use opentelemetry::{TraceFlags, TraceId};
use opentelemetry_sdk::logs::SdkLogger;
use serde_json::Value;

use crate::model::answer::Gate;
use crate::model::time::Timestamp;
use crate::telemetry::{
    ACTION, AGENT_ID, APPROVAL_ID, AUDIT_INDEX, AUDIT_TYPE, CASE_ID, CONSENT_ID, CONVERSATION_ID, DECISION,
    EVALUATION_ID, EVENT_AUDIT, GATE, HALTED_BY, MODE, POLICY_DIGEST, POLICY_IDS, REASON, REFUSAL_FIELD, RESOURCE_TYPE,
    RISK_SCORE, RISK_TIER, STEP, TENANT, TOOL_CALL_ID,
};

/// Members of a line that have names from closed sets, ids or digests, and the attributes that they become.
const ALWAYS: [(&str, &str); 15] = [
    ("/type", AUDIT_TYPE),
    ("/decision", DECISION),
    ("/evaluation_id", EVALUATION_ID),
    ("/reason", REASON),
    ("/kind", REASON),
    ("/gate", GATE),
    ("/mode", MODE),
    ("/halted_by", HALTED_BY),
    ("/field", REFUSAL_FIELD),
    ("/policy/digest", POLICY_DIGEST),
    ("/digest", POLICY_DIGEST),
    ("/approval/id", APPROVAL_ID),
    ("/consent/id", CONSENT_ID),
    ("/correlation/conversation", CONVERSATION_ID),
    ("/correlation/tool_call", TOOL_CALL_ID),
];
/// The same for members that the caller wrote, and that the gates have confirmed.
const CONFIRMED: [(&str, &str); 10] = [
    ("/action", ACTION),
    ("/approval/action", ACTION),
    ("/resource/type", RESOURCE_TYPE),
    ("/chain/agent", AGENT_ID),
    ("/approval/agent", AGENT_ID),
    ("/chain/step", STEP),
    ("/case/tenant", TENANT),
    ("/case/id", CASE_ID),
    ("/signals/risk/score", RISK_SCORE),
    ("/signals/risk/tier", RISK_TIER),
];
/// Maximum number of policies that an event names.
const POLICIES_MAX: usize = 16;

/// Emits log events.
#[derive(Clone, Debug)]
pub struct Events(pub(super) SdkLogger);

impl Events {
    /// Emits the event of a line. `case` turns the id of a case into the form in which it may leave the process.
    pub fn emit(&self, line: &[u8], case: impl Fn(&str) -> String) {
        let Ok(line) = serde_json::from_slice::<Value>(line) else { return };
        let mut record = self.0.create_log_record();
        record.set_event_name(EVENT_AUDIT);
        record.set_severity_number(Severity::Info);
        if let Some(at) = text(&line, "/ts").and_then(Timestamp::parse) {
            let micros = u64::try_from(at.micros()).unwrap_or(0);
            record.set_timestamp(SystemTime::UNIX_EPOCH + std::time::Duration::from_micros(micros));
        }
        if let Some(trace) = text(&line, "/trace_id").and_then(|id| TraceId::from_hex(id).ok()) {
            // The line has no id of a span; the event belongs to its trace.
            record.set_trace_context(trace, opentelemetry::SpanId::INVALID, Some(TraceFlags::SAMPLED));
        }
        for (name, value) in attributes(&line, case) {
            record.add_attribute(name, value);
        }
        self.0.emit(record);
    }
}

/// Returns the attributes of a line's event.
fn attributes(line: &Value, case: impl Fn(&str) -> String) -> Vec<(&'static str, AnyValue)> {
    let is_refusal = text(line, "/type") == Some("refusal");
    let is_confirmed = !is_refusal && Gate::confirms(text(line, "/gate").unwrap_or(""));
    let listed = ALWAYS.iter().chain(CONFIRMED.iter().filter(|_| is_confirmed));
    let mut attributes: Vec<(&str, AnyValue)> = listed
        .filter_map(|(member, name)| {
            let value = match line.pointer(member)? {
                Value::String(text) if text.is_empty() => return None,
                Value::String(text) if *name == CASE_ID => AnyValue::from(case(text)),
                Value::String(text) => AnyValue::from(text.clone()),
                Value::Number(number) => AnyValue::from(number.as_i64()?),
                _ => return None,
            };
            Some((*name, value))
        })
        .collect();
    attributes.extend(line.pointer("/seq").and_then(Value::as_i64).map(|index| (AUDIT_INDEX, AnyValue::from(index))));
    let links = line.pointer("/links").and_then(Value::as_array).into_iter().flatten();
    let determining = links.filter_map(|link| link.pointer("/determining/items")?.as_array()).flatten();
    let policies: Vec<AnyValue> =
        determining.filter_map(|id| id.as_str().map(|id| AnyValue::from(id.to_owned()))).take(POLICIES_MAX).collect();
    if !policies.is_empty() {
        attributes.push((POLICY_IDS, AnyValue::ListAny(Box::new(policies))));
    }
    attributes
}

fn text<'l>(line: &'l Value, member: &str) -> Option<&'l str> {
    line.pointer(member)?.as_str()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_that_no_gate_confirmed_stay_in_the_log() {
        let line = |gate: &str, kind: &str| {
            json!({
                "type": kind, "seq": 7, "gate": gate, "action": "order.check", "chain": {"agent": "bot", "supervisor": "rep-1"},
                "case": {"id": "case-1", "tenant": "acme", "customer": "hmac-sha256:1"}, "correlation": {"tool_call": "t-1"},
                "links": [{"determining": {"items": ["one", "two"]}}], "arguments": {"amount_minor": 5},
            })
        };
        let names = |line: &Value| {
            let all = attributes(line, |case| format!("digest of {case}"));
            all.into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        };
        let all = attributes(&line("", "decision"), |case| format!("digest of {case}"));
        assert!(all.contains(&(CASE_ID, AnyValue::from("digest of case-1"))), "{all:?}");
        assert_eq!(
            names(&line("", "decision")),
            [AUDIT_TYPE, TOOL_CALL_ID, ACTION, AGENT_ID, TENANT, CASE_ID, AUDIT_INDEX, POLICY_IDS]
        );
        for unconfirmed in [line("tenant", "decision"), line("", "refusal")] {
            let names = names(&unconfirmed);
            assert!(![ACTION, AGENT_ID, TENANT, CASE_ID].iter().any(|name| names.contains(name)), "{names:?}");
        }
    }
}
