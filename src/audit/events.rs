//! Records of events other than decisions: transitions of approvals, issued tokens, outcomes, signals. They
//! contain ids, names and digests, but nothing that agents or reviewers wrote.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::model::approval::{Approval, Giver};
use crate::model::chain::{Caller, Human};

/// Party that caused an event, and the trace of its request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Actor {
    #[serde(skip_serializing_if = "String::is_empty")]
    tool_service: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    human: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    issuer: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    amr: Vec<String>,
    by: &'static str,
    /// Becomes a member of the line, not of its `by`.
    #[serde(skip)]
    trace_id: String,
}

impl Actor {
    /// Creates the actor for a human, who used her own token.
    pub fn human(human: &Human) -> Self {
        let amr = human.amr.iter().take(8).map(|amr| amr.chars().take(32).collect()).collect();
        Self { human: human.id.clone(), issuer: human.issuer.clone(), amr, by: "token", ..Self::default() }
    }

    /// Creates the actor for a tool service.
    pub fn service(caller: &Caller) -> Self {
        Self { tool_service: caller.tool_service.clone(), by: caller.by.name(), ..Self::default() }
    }

    /// Creates the actor for the server itself, for example when an approval expires.
    pub fn server() -> Self {
        Self { by: "server", ..Self::default() }
    }

    /// Adds the W3C trace id; empty if the request is not traced.
    #[must_use]
    pub fn in_trace(self, trace_id: String) -> Self {
        Self { trace_id, ..self }
    }
}

/// Returns the members by which the lines of a case are found: `case` and `correlation`, as in a decision's
/// line.
pub fn about_case(tenant: &str, case: &str, version: &str, conversation: &str) -> [(&'static str, Value); 2] {
    let mut members = Map::from_iter([("id".to_owned(), case.into()), ("tenant".to_owned(), tenant.into())]);
    if !version.is_empty() {
        members.insert("version".to_owned(), version.into());
    }
    let mut correlation = Map::new();
    if !conversation.is_empty() {
        correlation.insert("conversation".to_owned(), conversation.into());
    }
    [("case", Value::Object(members)), ("correlation", Value::Object(correlation))]
}

#[derive(Serialize)]
struct ApprovalMember<'a> {
    id: &'a str,
    template: &'a str,
    digest: &'a str,
    evaluation_id: &'a str,
    action: &'a str,
    resource: String,
    agent: &'a str,
    supervisor: &'a str,
    tool_service: &'a str,
    quorum: u32,
    approvers: Vec<&'a str>,
}

/// What happened to an approval or consent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    Ended,
    Expired,
    Reported,
    Requested,
    Reviewed,
    TokenIssued,
}

impl Happened {
    /// Returns the type of the line.
    fn kind(self, giver: Giver) -> &'static str {
        match (giver, self) {
            (Giver::Customer, Self::Ended) => "consent.ended",
            (Giver::Customer, Self::Expired) => "consent.expired",
            (Giver::Customer, Self::TokenIssued) => "consent.token_issued",
            (_, Self::Reported) => "consent.reported",
            (Giver::Reviewers, Self::Ended) => "approval.ended",
            (Giver::Reviewers, Self::Expired) => "approval.expired",
            (Giver::Reviewers, Self::TokenIssued) => "approval.token_issued",
            (_, Self::Requested) => "approval.requested",
            (_, Self::Reviewed) => "approval.reviewed",
        }
    }
}

/// Creates the record of what happened to an approval or consent, with the members in `more`.
pub fn about(happened: Happened, by: &Actor, approval: &Approval, more: &[(&'static str, Value)]) -> Value {
    members(happened.kind(approval.binding.giver), by, Some(approval), more)
}

/// Creates a record of type `kind` by an actor, with the members in `more`.
pub fn event(kind: &'static str, by: &Actor, more: &[(&'static str, Value)]) -> Value {
    members(kind, by, None, more)
}

fn members(kind: &'static str, by: &Actor, approval: Option<&Approval>, more: &[(&'static str, Value)]) -> Value {
    let mut members = Map::new();
    members.insert("type".to_owned(), kind.into());
    members.insert("by".to_owned(), json(by));
    let mut add = |(name, value): (&str, Value)| {
        members.insert(name.to_owned(), value);
    };
    if !by.trace_id.is_empty() {
        add(("trace_id", by.trace_id.as_str().into()));
    }
    if let Some(approval) = approval {
        let call = &approval.binding.call;
        let member = ApprovalMember {
            id: &approval.id,
            template: &approval.binding.template,
            digest: &approval.digest,
            evaluation_id: &approval.binding.evaluation_id,
            action: &call.action,
            resource: format!("{}::{}", call.resource_type, call.resource_id),
            agent: &call.agent.sub,
            supervisor: &call.supervisor.sub,
            tool_service: &call.audience,
            quorum: approval.binding.quorum,
            approvers: approval.reviewers().map(|reviewer| reviewer.sub.as_str()).collect(),
        };
        add((approval.binding.giver.gives(), json(&member)));
        about_case(&call.tenant, &call.case, &call.case_version, &approval.binding.conversation)
            .into_iter()
            .for_each(&mut add);
    }
    more.iter().for_each(|(name, value)| add((name, value.clone())));
    Value::Object(members)
}

#[expect(clippy::expect_used, reason = "a record without its actor or approval would be believed")]
fn json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).expect("the structs contain only strings, numbers and lists")
}
