//! Spans of RPCs, decisions and reloads. The OpenTelemetry API makes them directly, so no log filter can drop
//! one.

use http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{Span as _, SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value};
use opentelemetry_sdk::propagation::TraceContextPropagator;

use crate::model::answer::Answer;
use crate::model::refusal::Refusal;
use crate::telemetry::export::Telemetry;
use crate::telemetry::{
    ACTION, AGENT_ID, APPROVAL_ID, CASE_ID, CONSENT_ID, CONVERSATION_ID, DECISION, ERROR_TYPE, EVALUATION_ID,
    EVENT_MATCHED, GATE, HALTED_BY, MODE, OUTCOME, PEER_ADDRESS, PEER_PORT, POLICY_DIGEST, POLICY_IDS, POLICY_PREVIOUS,
    PRINCIPAL_TYPE, REASON, REFUSAL_FIELD, RESOURCE_TYPE, RISK_SCORE, RISK_TIER, RPC_METHOD, RPC_STATUS, RPC_SYSTEM,
    SPAN_AUTHORIZE, SPAN_RELOAD, STEP, TENANT, TOOL_CALL_ID,
};

/// Maximum number of policies that a span names.
const POLICIES_MAX: usize = 16;

/// Position in a trace, which is the parent of the spans that follow.
#[derive(Clone, Debug, Default)]
pub struct Trace(Context);

impl Trace {
    /// Returns the position that the current task was given.
    pub fn current() -> Self {
        Self(Context::current())
    }

    /// Returns the W3C trace id in hex; the string is empty outside of a trace.
    pub fn id(&self) -> String {
        let span = self.0.span();
        let context = span.span_context();
        if context.is_valid() { context.trace_id().to_string() } else { String::new() }
    }

    /// Returns the OpenTelemetry context, to be attached to a future.
    pub fn context(&self) -> Context {
        self.0.clone()
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        // Ignore `tracestate`, because it is free text of the caller that would be exported unchanged.
        self.0.get(key).filter(|_| key == "traceparent").and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

impl Telemetry {
    /// Starts the server span of an RPC as a child of the caller's W3C context (`traceparent`, but neither
    /// `tracestate` nor baggage). A path that is not a method is not exported, because an unauthenticated
    /// peer may have chosen it.
    pub fn start_rpc(&self, method: &'static str, headers: &HeaderMap, peer: Option<std::net::SocketAddr>) -> Trace {
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers));
        let Some(tracer) = &self.tracer else { return Trace(parent) };
        // Leave out the package to keep the name short in trace viewers; `rpc.method` contains it.
        let name = method.strip_prefix("countersign.v1.").unwrap_or(method);
        let mut attributes = vec![KeyValue::new(RPC_SYSTEM, "grpc"), KeyValue::new(RPC_METHOD, method)];
        if let Some(peer) = peer {
            attributes.push(KeyValue::new(PEER_ADDRESS, peer.ip().to_string()));
            attributes.push(KeyValue::new(PEER_PORT, i64::from(peer.port())));
        }
        let span = tracer
            .span_builder(name)
            .with_kind(SpanKind::Server)
            .with_attributes(attributes)
            .start_with_context(tracer, &parent);
        Trace(parent.with_span(span))
    }

    /// Ends an RPC's span. Only a fault of the server is marked as an error; a denial or a caller's fault is
    /// not.
    pub fn end_rpc(&self, trace: &Trace, status: &'static str) {
        let span = trace.0.span();
        span.set_attribute(KeyValue::new(RPC_STATUS, status));
        if ["UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"].contains(&status) {
            span.set_attribute(KeyValue::new(ERROR_TYPE, status));
            span.set_status(Status::error(""));
        }
        span.end();
    }

    /// Starts a decision's span. `action` must come from a closed set: an action of the schema, a method, or
    /// `_OTHER`.
    pub fn start_decision(&self, parent: &Trace, action: &str) -> Option<DecisionSpan> {
        let tracer = self.tracer.as_ref()?;
        let name = format!("{SPAN_AUTHORIZE} {action}");
        let span = tracer.span_builder(name).with_kind(SpanKind::Internal).start_with_context(tracer, &parent.0);
        Some(DecisionSpan(span))
    }

    /// Counts a reload, and records it as a trace of its own.
    pub fn reload(&self, outcome: &'static str, digest: &str, previous: &str) {
        self.metrics.reload(outcome);
        let Some(tracer) = &self.tracer else { return };
        let mut span =
            tracer.span_builder(SPAN_RELOAD).with_kind(SpanKind::Internal).start_with_context(tracer, &Context::new());
        span.set_attribute(KeyValue::new(OUTCOME, outcome));
        span.set_attribute(KeyValue::new(POLICY_DIGEST, digest.to_owned()));
        span.set_attribute(KeyValue::new(POLICY_PREVIOUS, previous.to_owned()));
        if outcome == "rejected" {
            span.set_status(Status::error(""));
        }
        span.end();
    }
}

/// Attributes of the call on a decision's span: names of the schema, ids of the bundle and correlation ids.
#[derive(Clone, Debug, Default)]
pub struct CallFacts {
    /// Action of the schema, or `_OTHER`.
    pub action: String,
    /// Type of the schema, or `_OTHER`.
    pub resource_type: String,
    /// Entity type of the agent.
    pub principal_type: String,
    /// Id of the agent, once it is known to exist.
    pub agent: String,
    /// Id of the tenant, once the call passed the tenant gate.
    pub tenant: String,
    /// Id of the case or a keyed digest of it, once the call passed the tenant gate.
    pub case: String,
    pub step: String,
    pub conversation: String,
    /// Id of the model's tool call.
    pub tool_call: String,
}

#[derive(Debug)]
pub struct DecisionSpan(opentelemetry_sdk::trace::Span);

impl DecisionSpan {
    /// Ends the span with an answer. A denial leaves its status unset.
    pub fn answered(mut self, facts: &CallFacts, answer: &Answer) {
        if !self.0.is_recording() {
            return;
        }
        let decision = if answer.allows() { "allow" } else { "deny" };
        let policies = answer.verdict.determining();
        let ids: Vec<StringValue> =
            policies.iter().take(POLICIES_MAX).map(|id| StringValue::from((*id).to_owned())).collect();
        self.0.set_attributes([
            KeyValue::new(DECISION, decision),
            KeyValue::new(EVALUATION_ID, answer.evaluation_id.clone()),
            KeyValue::new(REASON, answer.outcome.denied.map_or("", |reason| reason.name())),
            KeyValue::new(GATE, answer.gate.map_or("", |gate| gate.name())),
            KeyValue::new(POLICY_IDS, Value::Array(Array::String(ids))),
            KeyValue::new(POLICY_DIGEST, answer.policy.digest.clone()),
            KeyValue::new(MODE, answer.mode.name()),
        ]);
        if !answer.signals.halted_by.is_empty() {
            self.0.set_attribute(KeyValue::new(HALTED_BY, answer.signals.halted_by.clone()));
        }
        if let Some(used) = &answer.approval {
            self.0.set_attribute(KeyValue::new(APPROVAL_ID, used.id.clone()));
        }
        if let Some(used) = &answer.consent {
            self.0.set_attribute(KeyValue::new(CONSENT_ID, used.id.clone()));
        }
        if let Some(risk) = &answer.signals.risk {
            self.0.set_attribute(KeyValue::new(RISK_SCORE, i64::from(risk.score)));
            self.0.set_attribute(KeyValue::new(RISK_TIER, risk.tier.clone()));
        }
        self.facts(facts);
        for id in policies.into_iter().take(POLICIES_MAX) {
            self.0.add_event(EVENT_MATCHED, vec![KeyValue::new(POLICY_IDS, id.to_owned())]);
        }
        self.0.end();
    }

    /// Ends the span with a refusal.
    pub fn refused(mut self, facts: &CallFacts, refusal: &Refusal) {
        self.0.set_attribute(KeyValue::new(REASON, refusal.kind()));
        if let Refusal::Invalid { field, .. } = refusal {
            self.0.set_attribute(KeyValue::new(REFUSAL_FIELD, field.clone()));
        }
        self.facts(facts);
        self.0.end();
    }

    fn facts(&mut self, facts: &CallFacts) {
        for (name, value) in [
            (ACTION, &facts.action),
            (RESOURCE_TYPE, &facts.resource_type),
            (PRINCIPAL_TYPE, &facts.principal_type),
            (AGENT_ID, &facts.agent),
            (TENANT, &facts.tenant),
            (CASE_ID, &facts.case),
            (STEP, &facts.step),
            (CONVERSATION_ID, &facts.conversation),
            (TOOL_CALL_ID, &facts.tool_call),
        ] {
            if !value.is_empty() {
                self.0.set_attribute(KeyValue::new(name, value.clone()));
            }
        }
    }
}
