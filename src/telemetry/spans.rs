//! The spans of an RPC, a decision and a reload. Made by the OpenTelemetry API directly: no log filter can drop one.

use http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{Span as _, SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value};
use opentelemetry_sdk::propagation::TraceContextPropagator;

use crate::model::answer::Answer;
use crate::model::refusal::Refusal;
use crate::telemetry::export::Telemetry;
use crate::telemetry::{
    ACTION, AGENT_ID, APPROVAL_ID, CASE_ID, CONVERSATION_ID, DECISION, ERROR_TYPE, EVALUATION_ID, EVENT_MATCHED, GATE, MODE, OUTCOME,
    PEER_ADDRESS, PEER_PORT, POLICY_DIGEST, POLICY_IDS, POLICY_PREVIOUS, PRINCIPAL_TYPE, REASON, REFUSAL_FIELD, RESOURCE_TYPE, RISK_SCORE,
    RISK_TIER, RPC_METHOD, RPC_STATUS, RPC_SYSTEM, SPAN_AUTHORIZE, SPAN_RELOAD, STEP, TENANT, TOOL_CALL_ID,
};

/// The most policies that a span names.
const POLICIES_MAX: usize = 16;

/// A trace's place: the parent of what follows.
#[derive(Clone, Debug, Default)]
pub struct Trace(Context);

impl Trace {
    /// The place that the current task was given.
    pub fn current() -> Self {
        Self(Context::current())
    }

    /// The W3C trace id in hex; empty if there is none.
    pub fn id(&self) -> String {
        let span = self.0.span();
        let context = span.span_context();
        if context.is_valid() { context.trace_id().to_string() } else { String::new() }
    }

    /// The OpenTelemetry context, to be attached to a future.
    pub fn context(&self) -> Context {
        self.0.clone()
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        // `tracestate` is free text of whoever calls, and would be exported as it came.
        self.0.get(key).filter(|_| key == "traceparent").and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

impl Telemetry {
    /// Starts the server span of an RPC below the caller's W3C context (`traceparent`; neither `tracestate` nor baggage). A path that is
    /// no method's is not exported: a stranger chose it.
    pub fn start_rpc(&self, method: &'static str, headers: &HeaderMap, peer: Option<std::net::SocketAddr>) -> Trace {
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers));
        let Some(tracer) = &self.tracer else { return Trace(parent) };
        // Short, for a tree's column: the package is in `rpc.method`.
        let name = method.strip_prefix("countersign.v1.").unwrap_or(method);
        let mut attributes = vec![KeyValue::new(RPC_SYSTEM, "grpc"), KeyValue::new(RPC_METHOD, method)];
        if let Some(peer) = peer {
            attributes.push(KeyValue::new(PEER_ADDRESS, peer.ip().to_string()));
            attributes.push(KeyValue::new(PEER_PORT, i64::from(peer.port())));
        }
        let span = tracer.span_builder(name).with_kind(SpanKind::Server).with_attributes(attributes).start_with_context(tracer, &parent);
        Trace(parent.with_span(span))
    }

    /// Ends an RPC's span. Only faults of the server are errors; a denial or a caller's fault is not.
    pub fn end_rpc(&self, trace: &Trace, status: &'static str) {
        let span = trace.0.span();
        span.set_attribute(KeyValue::new(RPC_STATUS, status));
        if ["UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"].contains(&status) {
            span.set_attribute(KeyValue::new(ERROR_TYPE, status));
            span.set_status(Status::error(""));
        }
        span.end();
    }

    /// Starts a decision's span; `action` must be a name of the schema, or `_OTHER`.
    pub fn start_decision(&self, parent: &Trace, action: &str) -> Option<DecisionSpan> {
        let tracer = self.tracer.as_ref()?;
        let name = format!("{SPAN_AUTHORIZE} {action}");
        let span = tracer.span_builder(name).with_kind(SpanKind::Internal).start_with_context(tracer, &parent.0);
        Some(DecisionSpan(span))
    }

    /// Records a reload as a trace of its own.
    pub fn reload(&self, outcome: &'static str, digest: &str, previous: &str) {
        self.metrics.reload(outcome);
        let Some(tracer) = &self.tracer else { return };
        let mut span = tracer.span_builder(SPAN_RELOAD).with_kind(SpanKind::Internal).start_with_context(tracer, &Context::new());
        span.set_attribute(KeyValue::new(OUTCOME, outcome));
        span.set_attribute(KeyValue::new(POLICY_DIGEST, digest.to_owned()));
        span.set_attribute(KeyValue::new(POLICY_PREVIOUS, previous.to_owned()));
        if outcome == "rejected" {
            span.set_status(Status::error(""));
        }
        span.end();
    }
}

/// What a decision's span says of the call: names of the schema, ids of the bundle and correlation ids.
#[derive(Clone, Debug, Default)]
pub struct CallFacts {
    /// Action of the schema, or `_OTHER`.
    pub action: String,
    /// Type of the schema, or `_OTHER`.
    pub resource_type: String,
    /// The agent's type.
    pub principal_type: String,
    /// The agent, once it is known to exist.
    pub agent: String,
    /// The tenant, once it passed the gate.
    pub tenant: String,
    /// The case, by its id or a keyed digest of it, once the tenant passed the gate.
    pub case: String,
    /// Workflow step.
    pub step: String,
    /// Conversation id.
    pub conversation: String,
    /// The model's tool call id.
    pub tool_call: String,
}

/// The span of one decision.
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
        let ids: Vec<StringValue> = policies.iter().take(POLICIES_MAX).map(|id| StringValue::from((*id).to_owned())).collect();
        self.0.set_attributes([
            KeyValue::new(DECISION, decision),
            KeyValue::new(EVALUATION_ID, answer.evaluation_id.clone()),
            KeyValue::new(REASON, answer.outcome.denied.map_or("", |reason| reason.name())),
            KeyValue::new(GATE, answer.gate.map_or("", |gate| gate.name())),
            KeyValue::new(POLICY_IDS, Value::Array(Array::String(ids))),
            KeyValue::new(POLICY_DIGEST, answer.policy.digest.clone()),
            KeyValue::new(MODE, answer.mode.name()),
        ]);
        if let Some(used) = &answer.approval {
            self.0.set_attribute(KeyValue::new(APPROVAL_ID, used.id.clone()));
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
