//! Traces, metrics and logs. This file defines the names of all spans, attributes and metrics; [`metrics`]
//! adds the labels of metrics.
//!
//! Only names from closed sets, ids and digests are exported, never arguments, attributes, texts, tokens or
//! the text of an error. Spans may be dropped, which is counted; the audit log is the complete record. The
//! SDK does not support exemplars.

pub mod events;
pub mod export;
pub mod guard;
pub mod logs;
pub mod metrics;
pub mod spans;

/// Instrumentation scope of all spans and metrics.
pub const SCOPE: &str = "countersign";
/// Schema of the semantic conventions that the `rpc.*` names follow.
pub const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.44.0";

/// Attributes that may leave the process on spans, events and links. All others are removed before export.
pub const ATTRIBUTES: [&str; 29] = [
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
    CONSENT_ID,
    REFUSAL_FIELD,
    RISK_SCORE,
    RISK_TIER,
    AGENT_ID,
    CONVERSATION_ID,
    TOOL_CALL_ID,
];

/// RPC system, which is always `grpc`.
pub const RPC_SYSTEM: &str = "rpc.system.name";
/// Fully-qualified method, or `_OTHER`.
pub const RPC_METHOD: &str = "rpc.method";
/// Name of the gRPC status code.
pub const RPC_STATUS: &str = "rpc.response.status_code";
/// Name of the gRPC status code if it is a fault of the server.
pub const ERROR_TYPE: &str = "error.type";
pub const PEER_ADDRESS: &str = "network.peer.address";
pub const PEER_PORT: &str = "network.peer.port";
/// Decision: `allow` or `deny`.
pub const DECISION: &str = "countersign.decision";
/// UUIDv7 of the evaluation.
pub const EVALUATION_ID: &str = "countersign.evaluation.id";
/// Reason of a denial, or kind of a refusal.
pub const REASON: &str = "countersign.reason";
/// Gate that denied the call outside of Cedar.
pub const GATE: &str = "countersign.gate";
/// Kill switch or revoked session that stopped the call.
pub const HALTED_BY: &str = "countersign.halted_by";
/// Ids of the determining policies.
pub const POLICY_IDS: &str = "countersign.policy.ids";
/// Digest of the bundle.
pub const POLICY_DIGEST: &str = "countersign.policy.digest";
/// Digest of the previous bundle.
pub const POLICY_PREVIOUS: &str = "countersign.policy.previous";
/// Cedar action, which is the name of the tool.
pub const ACTION: &str = "countersign.action";
/// Entity type of the resource.
pub const RESOURCE_TYPE: &str = "countersign.resource.type";
/// Entity type of the agent.
pub const PRINCIPAL_TYPE: &str = "countersign.principal.type";
/// Tenant of a call that passed the tenant gate.
pub const TENANT: &str = "countersign.tenant";
/// Case of a call that passed the tenant gate: its id, or a keyed digest of it.
pub const CASE_ID: &str = "countersign.case.id";
/// Mode: `enforce` or `dry_run`.
pub const MODE: &str = "countersign.mode";
pub const STEP: &str = "countersign.step";
/// Outcome of a reload.
pub const OUTCOME: &str = "countersign.outcome";
/// Id of the approval that a call consumed.
pub const APPROVAL_ID: &str = "countersign.approval.id";
pub const CONSENT_ID: &str = "countersign.consent.id";
/// Faulty field of a refused request.
pub const REFUSAL_FIELD: &str = "countersign.refusal.field";
/// Risk score of the call, 0 to 100.
pub const RISK_SCORE: &str = "countersign.risk.score";
/// Tier of the risk score.
pub const RISK_TIER: &str = "countersign.risk.tier";
pub const AGENT_ID: &str = "gen_ai.agent.id";
pub const CONVERSATION_ID: &str = "gen_ai.conversation.id";
/// Id of the model's tool call.
pub const TOOL_CALL_ID: &str = "gen_ai.tool.call.id";

/// Span of a reload.
pub const SPAN_RELOAD: &str = "reload_policies";
/// First part of the name of a decision's span; the action follows.
pub const SPAN_AUTHORIZE: &str = "authorize";
/// Event on a decision's span for each determining policy.
pub const EVENT_MATCHED: &str = "countersign.policy.matched";

/// Log event of a line of the audit log.
pub const EVENT_AUDIT: &str = "countersign.audit.line";
/// Number of the line in the audit log.
pub const AUDIT_INDEX: &str = "countersign.audit.index";
/// Type of the line, such as `decision` or `approval.requested`.
pub const AUDIT_TYPE: &str = "countersign.audit.type";

/// Histogram of the durations of RPCs, in seconds.
pub const METRIC_RPC: &str = "rpc.server.call.duration";
/// Counter of decisions by decision, reason and mode.
pub const METRIC_DECISIONS: &str = "countersign.decisions";
/// Counter of refusals by kind.
pub const METRIC_REFUSALS: &str = "countersign.refusals";
/// Histogram of the time to decide, without the wait for the audit log, in seconds.
pub const METRIC_DECISION_DURATION: &str = "countersign.decision.duration";
/// Counter of reloads by outcome.
pub const METRIC_RELOADS: &str = "countersign.policy.reloads";
/// Gauge of the time at which the bundle in force was activated, in Unix seconds.
pub const METRIC_LAST_SUCCESS: &str = "countersign.policy.last_success";
/// Gauge of the failed commits of the audit log since start.
pub const METRIC_AUDIT_FAILURES: &str = "countersign.audit.failures";
/// Gauge of the age of the last checkpoint of the audit log, in seconds.
pub const METRIC_CHECKPOINT_AGE: &str = "countersign.audit.checkpoint_age";
/// Gauge of the best-effort records lost since start.
pub const METRIC_AUDIT_LOST: &str = "countersign.audit.lost";
/// Gauge of the sampled calls for which Cedar's authorizer gave another result than the policy index.
pub const METRIC_ENGINE_DIFFERENCES: &str = "countersign.engine.differences";
/// Whether the folder's bundle was refused.
pub const METRIC_POLICY_REJECTED: &str = "countersign.policy.rejected";
/// Kill switches and revoked sessions in force.
pub const METRIC_STOPS: &str = "countersign.signals.stops";
/// Gauge of the sampled calls that Cedar's authorizer evaluated, too.
pub const METRIC_ENGINE_VERIFIED: &str = "countersign.engine.verified";
/// Counter of refusals that were not written to the audit log, because less than a fifth of the disk is free
/// or the log can't be written.
pub const METRIC_AUDIT_SUPPRESSED: &str = "countersign.audit.suppressed";
/// Counter of transitions and consumptions of approvals by outcome.
pub const METRIC_APPROVALS: &str = "countersign.approvals";
/// Gauge of the approvals that wait for reviewers.
pub const METRIC_APPROVALS_PENDING: &str = "countersign.approvals.pending";
/// Gauge of the failed operations of the state store since start.
pub const METRIC_STORE_FAILURES: &str = "countersign.store.failures";
/// Gauge that is 1 after the state store was found to have lost data, until an operator confirms the loss.
pub const METRIC_STORE_WENT_BACK: &str = "countersign.store.went_back";
/// Gauge of the time by which this machine's clock is ahead of the state store's or the risk store's, in
/// seconds.
pub const METRIC_CLOCK_SKEW: &str = "countersign.clock.skew";
/// Gauge of the number of different bundles that replicas have in force.
pub const METRIC_BUNDLES: &str = "countersign.policy.bundles";
/// Counter of requests for which the risk store could not be asked.
pub const METRIC_WINDOWS_FAILURES: &str = "countersign.windows.failures";
/// Counter of heads of the audit log that its witness did not accept.
pub const METRIC_WITNESS_FAILURES: &str = "countersign.audit.witness_failures";
/// Gauge of the entries in the in-process risk store.
pub const METRIC_WINDOWS_ENTRIES: &str = "countersign.windows.entries";
/// Counter of spans that an export lost.
pub const METRIC_EXPORT_FAILED: &str = "countersign.telemetry.spans.export_failed";
/// Counter of log events that a failed export lost.
pub const METRIC_EVENTS_FAILED: &str = "countersign.telemetry.events.export_failed";
