//! Records of what happens beside decisions: transitions of approvals, tokens handed out, outcomes, signals. Ids, names and digests
//! stand in them; what agents and reviewers wrote does not.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::audit::record::Record;
use crate::model::approval::Approval;
use crate::model::chain::{Caller, Human};

/// Who did it.
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
}

impl Actor {
    /// A human, by her own token.
    pub fn human(human: &Human) -> Self {
        let amr = human.amr.iter().take(8).map(|amr| amr.chars().take(32).collect()).collect();
        Self { human: human.id.clone(), issuer: human.issuer.clone(), amr, by: "token", ..Self::default() }
    }

    /// A tool service.
    pub fn service(caller: &Caller) -> Self {
        Self { tool_service: caller.tool_service.clone(), by: caller.by.name(), ..Self::default() }
    }

    /// The server itself, when a time is over.
    pub fn server() -> Self {
        Self { by: "server", ..Self::default() }
    }
}

#[derive(Serialize)]
struct ApprovalMember<'a> {
    id: &'a str,
    template: &'a str,
    digest: &'a str,
    evaluation_id: &'a str,
    tenant: &'a str,
    case: &'a str,
    case_version: &'a str,
    action: &'a str,
    resource: String,
    agent: &'a str,
    supervisor: &'a str,
    tool_service: &'a str,
    quorum: u32,
    approvers: Vec<&'a str>,
}

/// A record of this type, by this actor, about this approval.
pub fn event(kind: &'static str, by: &Actor, approval: Option<&Approval>, more: &[(&'static str, Value)]) -> Value {
    let mut members = Map::new();
    members.insert("type".to_owned(), kind.into());
    members.insert("by".to_owned(), json(by));
    if let Some(approval) = approval {
        let call = &approval.binding.call;
        let member = ApprovalMember {
            id: &approval.id,
            template: &approval.binding.template,
            digest: &approval.digest,
            evaluation_id: &approval.binding.evaluation_id,
            tenant: &call.tenant,
            case: &call.case,
            case_version: &call.case_version,
            action: &call.action,
            resource: format!("{}::{}", call.resource_type, call.resource_id),
            agent: &call.agent.sub,
            supervisor: &call.supervisor.sub,
            tool_service: &call.audience,
            quorum: approval.binding.quorum,
            approvers: approval.approvers().map(|review| review.reviewer.sub.as_str()).collect(),
        };
        members.insert("approval".to_owned(), json(&member));
    }
    members.extend(more.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    Value::Object(members)
}

fn json(value: &impl Serialize) -> Value {
    // Structs of strings and numbers have a JSON form.
    serde_json::to_value(value).unwrap_or_default()
}

/// A stored record as a line of the log, with its place in the state store and a nonce that blinds its hash.
pub fn stored(mut record: Value, transition: Option<(&str, i64)>, nonce: String) -> Record {
    if let Some(members) = record.as_object_mut() {
        if let Some((generation, revision)) = transition {
            members.insert("generation".to_owned(), generation.into());
            members.insert("transition".to_owned(), revision.into());
        }
        members.entry("nonce").or_insert_with(|| nonce.into());
    }
    Record::Stored(record)
}
