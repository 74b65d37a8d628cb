//! Traces, metrics and logs. This file is the one list of names; nothing else spells one.
//!
//! Exported are names from closed sets, ids and digests. Never arguments, attributes, texts, tokens, or an error's own words.
//! Traces may be dropped, and drops are counted; the audit log is the record. Exemplars are not supported by the SDK.

pub mod export;
pub mod guard;
pub mod logs;
pub mod metrics;
pub mod spans;

/// Instrumentation scope of all spans and metrics.
pub const SCOPE: &str = "countersign";
/// Schema of the semantic conventions that `rpc.*` names follow.
pub const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.44.0";

/// Attributes that may leave the process on spans and events; others are removed before export.
pub const ATTRIBUTES: [&str; 28] = [
    RPC_SYSTEM,
    RPC_METHOD,
    RPC_STATUS,
    ERROR_TYPE,
    PEER_ADDRESS,
    PEER_PORT,
    DECISION,
    EVALUATION_ID,
    REASON,
    GATE,
    POLICY_IDS,
    POLICY_DIGEST,
    POLICY_PREVIOUS,
    ACTION,
    RESOURCE_TYPE,
    PRINCIPAL_TYPE,
    TENANT,
    CASE_ID,
    MODE,
    STEP,
    OUTCOME,
    APPROVAL_ID,
    REFUSAL_FIELD,
    RISK_SCORE,
    RISK_TIER,
    AGENT_ID,
    CONVERSATION_ID,
    TOOL_CALL_ID,
];

/// `grpc`.
pub const RPC_SYSTEM: &str = "rpc.system.name";
/// Fully-qualified method, or `_OTHER`.
pub const RPC_METHOD: &str = "rpc.method";
/// gRPC status by name.
pub const RPC_STATUS: &str = "rpc.response.status_code";
/// Class of an error.
pub const ERROR_TYPE: &str = "error.type";
/// The peer's address.
pub const PEER_ADDRESS: &str = "network.peer.address";
/// The peer's port.
pub const PEER_PORT: &str = "network.peer.port";
/// `allow` or `deny`.
pub const DECISION: &str = "countersign.decision";
/// UUIDv7 of the evaluation.
pub const EVALUATION_ID: &str = "countersign.evaluation.id";
/// Reason of a denial, or kind of a refusal.
pub const REASON: &str = "countersign.reason";
/// Gate that denied before Cedar.
pub const GATE: &str = "countersign.gate";
/// Determining policies.
pub const POLICY_IDS: &str = "countersign.policy.ids";
/// Digest of the bundle.
pub const POLICY_DIGEST: &str = "countersign.policy.digest";
/// Digest of the bundle before.
pub const POLICY_PREVIOUS: &str = "countersign.policy.previous";
/// Cedar action: the tool's name.
pub const ACTION: &str = "countersign.action";
/// Type of the resource.
pub const RESOURCE_TYPE: &str = "countersign.resource.type";
/// Type of the agent.
pub const PRINCIPAL_TYPE: &str = "countersign.principal.type";
/// Tenant of a decision that passed the tenant gate.
pub const TENANT: &str = "countersign.tenant";
/// Case of a decision that passed the tenant gate: its id, or a keyed digest of it.
pub const CASE_ID: &str = "countersign.case.id";
/// `enforce` or `dry_run`.
pub const MODE: &str = "countersign.mode";
/// Workflow step.
pub const STEP: &str = "countersign.step";
/// What came of a reload.
pub const OUTCOME: &str = "countersign.outcome";
/// The approval that a call used.
pub const APPROVAL_ID: &str = "countersign.approval.id";
/// The field at fault in a refused request.
pub const REFUSAL_FIELD: &str = "countersign.refusal.field";
/// The score of the call, 0 to 100.
pub const RISK_SCORE: &str = "countersign.risk.score";
/// The tier that it is in.
pub const RISK_TIER: &str = "countersign.risk.tier";
/// The agent.
pub const AGENT_ID: &str = "gen_ai.agent.id";
/// The conversation.
pub const CONVERSATION_ID: &str = "gen_ai.conversation.id";
/// The model's tool call.
pub const TOOL_CALL_ID: &str = "gen_ai.tool.call.id";

/// Span of a reload.
pub const SPAN_RELOAD: &str = "reload_policies";
/// Prefix of a decision's span; the action follows.
pub const SPAN_AUTHORIZE: &str = "authorize";
/// Event on a decision's span for each determining policy.
pub const EVENT_MATCHED: &str = "countersign.policy.matched";

/// Histogram of RPC durations, seconds.
pub const METRIC_RPC: &str = "rpc.server.call.duration";
/// Counter of decisions by decision, reason and mode.
pub const METRIC_DECISIONS: &str = "countersign.decisions";
/// Counter of refusals by kind.
pub const METRIC_REFUSALS: &str = "countersign.refusals";
/// Histogram of a decision's own time, without the wait for the disk, seconds.
pub const METRIC_DECISION_DURATION: &str = "countersign.decision.duration";
/// Counter of reloads by outcome.
pub const METRIC_RELOADS: &str = "countersign.policy.reloads";
/// Gauge: when the bundle in force came into force, unix seconds.
pub const METRIC_LAST_SUCCESS: &str = "countersign.policy.last_success";
/// Gauge: failed audit commits since start.
pub const METRIC_AUDIT_FAILURES: &str = "countersign.audit.failures";
/// Gauge: best-effort records lost since start.
pub const METRIC_AUDIT_LOST: &str = "countersign.audit.lost";
/// Counter of refusals that were counted and not written, to keep the last fifth of the disk.
pub const METRIC_AUDIT_SUPPRESSED: &str = "countersign.audit.suppressed";
/// Counter of transitions and uses of approvals by outcome.
pub const METRIC_APPROVALS: &str = "countersign.approvals";
/// Gauge: approvals that wait for reviewers.
pub const METRIC_APPROVALS_PENDING: &str = "countersign.approvals.pending";
/// Gauge: failed operations of the state store since start.
pub const METRIC_STORE_FAILURES: &str = "countersign.store.failures";
/// Gauge: 1 from when the state store was found to have gone back until an operator confirms it.
pub const METRIC_STORE_WENT_BACK: &str = "countersign.store.went_back";
/// Gauge: how far the machine's clock is ahead of the state store's, seconds.
pub const METRIC_CLOCK_SKEW: &str = "countersign.clock.skew";
/// Gauge: how many different bundles replicas have in force.
pub const METRIC_BUNDLES: &str = "countersign.policy.bundles";
/// Counter of requests for which windows could not be asked.
pub const METRIC_WINDOWS_FAILURES: &str = "countersign.windows.failures";
/// Heads of the audit log that its witness did not take.
pub const METRIC_WITNESS_FAILURES: &str = "countersign.audit.witness_failures";
/// Gauge: entries of windows kept in process.
pub const METRIC_WINDOWS_ENTRIES: &str = "countersign.windows.entries";
/// Counter of spans that an export lost.
pub const METRIC_EXPORT_FAILED: &str = "countersign.telemetry.spans.export_failed";
