//! Tokens of humans and agents, calls that need an approval, and the requests of tool services and reviewers.

use std::path::Path;

use countersign::api::v1;
use countersign::api::v1::approval_service_client::ApprovalServiceClient;
use countersign::api::v1::decision_service_client::DecisionServiceClient;
use countersign::config::resolve::DEVELOPMENT_ISSUER;
use countersign::jose::keyring::{Keyring, Purpose};
use serde_json::{Value, json};
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::{CASE, asserted};

/// Issuer of a development server, which signs with the server's own development key.
pub(crate) struct Issuer(Keyring);

/// Returns the current time in seconds since the epoch.
pub(crate) fn seconds() -> i64 {
    countersign::clock::Clock::now(&countersign::clock::SystemClock).seconds()
}

impl Issuer {
    pub(crate) fn of(data: &Path) -> Self {
        Self::at(&data.join("keys"))
    }

    pub(crate) fn at(keys: &Path) -> Self {
        Self(Keyring::read(keys, Purpose::Development).unwrap())
    }

    pub(crate) fn sign(&self, claims: &Value) -> String {
        self.0.sign("at+jwt", claims).unwrap()
    }

    /// Signs a human's own token, with some claims replaced.
    pub(crate) fn human_with(&self, id: &str, more: Value) -> String {
        self.sign(&merged(human_claims(id, seconds()), more))
    }

    pub(crate) fn human(&self, id: &str) -> String {
        self.human_with(id, json!({}))
    }

    /// Signs a delegation token for the action step of `case-1`, with some claims replaced.
    pub(crate) fn delegation_with(&self, agent: &str, supervisor: &str, more: Value) -> String {
        self.sign(&merged(delegation_claims(agent, supervisor, seconds()), more))
    }

    pub(crate) fn delegation(&self, agent: &str, supervisor: &str) -> String {
        self.delegation_with(agent, supervisor, json!({}))
    }
}

pub(crate) fn human_claims(id: &str, now: i64) -> Value {
    json!({
        "iss": DEVELOPMENT_ISSUER, "aud": "countersign:development", "sub": id, "sub_profile": "user", "person": format!("person-{id}"),
        "amr": ["hwk"], "iat": now, "nbf": now, "exp": now + 900,
    })
}

pub(crate) fn delegation_claims(agent: &str, supervisor: &str, now: i64) -> Value {
    json!({
        "iss": DEVELOPMENT_ISSUER, "aud": "countersign:development", "sub": supervisor, "sub_profile": "user",
        "person": format!("person-{supervisor}"), "act": {"iss": DEVELOPMENT_ISSUER, "sub": agent, "sub_profile": "ai_agent"},
        "step": "action", "scope": "tickets knowledge orders verification refunds accounts replies", "case": "case-1",
        "iat": now, "nbf": now, "exp": now + 900,
    })
}

/// Replaces some of the claims; `null` removes a claim.
pub(crate) fn merged(mut claims: Value, more: Value) -> Value {
    for (name, value) in more.as_object().unwrap() {
        match value {
            Value::Null => claims.as_object_mut().unwrap().remove(name),
            value => claims.as_object_mut().unwrap().insert(name.clone(), value.clone()),
        };
    }
    claims
}

pub(crate) fn token(token: impl Into<String>) -> Option<v1::Delegation> {
    Some(v1::Delegation { credential: Some(v1::delegation::Credential::Token(token.into())), ..Default::default() })
}

/// An account credit that lacks only its approval.
pub(crate) fn credit(amount: i64) -> v1::AuthorizeRequest {
    v1::AuthorizeRequest {
        delegation: asserted("refund-bot", "rep-1", "action"),
        action: "account.credit".into(),
        resource: Some(v1::Resource {
            r#ref: Some(v1::EntityReference { r#type: "Account".into(), id: "account-1".into() }),
            attributes_json: r#"{"tenant":"acme","customer":"customer-1"}"#.into(),
            ..Default::default()
        }),
        case: Some(v1::Case {
            id: "case-1".into(),
            version: "3".into(),
            tenant: "acme".into(),
            attributes_json: CASE.into(),
        }),
        arguments_json: format!(r#"{{"amount_minor":{amount},"currency":"EUR"}}"#).into(),
        model: Some(v1::Model { name: "test".into(), ..Default::default() }),
        untrusted: crate::harness::calm_text(),
        ..Default::default()
    }
}

/// Returns the same call with an approval token and an operation id.
pub(crate) fn with_token(call: &v1::AuthorizeRequest, token: &str, operation: &str) -> v1::AuthorizeRequest {
    v1::AuthorizeRequest { approval_token: token.into(), operation_id: operation.into(), ..call.clone() }
}

pub(crate) fn justification() -> v1::Justification {
    v1::Justification {
        customer_request: "The customer asks for a credit.".into(),
        evidence: vec![],
        policy_clause: "4.2".into(),
        expected_effect: "The account is credited.".into(),
    }
}

/// Clients of a tool service and of reviewers, on one channel.
pub(crate) struct Desk {
    pub(crate) decisions: DecisionServiceClient<Channel>,
    pub(crate) approvals: ApprovalServiceClient<Channel>,
}

impl Desk {
    pub(crate) fn new(channel: Channel) -> Self {
        Self {
            decisions: DecisionServiceClient::new(channel.clone()),
            approvals: ApprovalServiceClient::new(channel).max_decoding_message_size(64 << 20),
        }
    }

    pub(crate) async fn ask(&mut self, call: &v1::AuthorizeRequest) -> v1::AuthorizeResponse {
        self.decisions.authorize(call.clone()).await.unwrap().into_inner()
    }

    /// Makes the call, which must be denied, and requests the approval that the denial names.
    pub(crate) async fn request(&mut self, call: &v1::AuthorizeRequest) -> Result<v1::Approval, Status> {
        let denied = self.ask(call).await;
        self.request_of(denied).await
    }

    /// Requests the approval that a denial names.
    pub(crate) async fn request_of(&mut self, denied: v1::AuthorizeResponse) -> Result<v1::Approval, Status> {
        let request = v1::RequestApprovalRequest {
            evaluation_id: denied.evaluation_id.clone(),
            binding_token: denied
                .access_request
                .unwrap_or_else(|| panic!("not requestable: {:?}", denied.reason))
                .binding_token,
            justification: Some(justification()),
            ..Default::default()
        };
        Ok(self.approvals.request_approval(request).await?.into_inner().approval.unwrap())
    }

    pub(crate) async fn review(
        &mut self,
        approval: &v1::Approval,
        approve: bool,
        by: &str,
    ) -> Result<v1::Approval, Status> {
        let decision = if approve { v1::ReviewDecision::Approve } else { v1::ReviewDecision::Deny };
        let request = v1::ReviewApprovalRequest {
            id: approval.id.clone(),
            decision: decision.into(),
            reason: "because".into(),
            display_digest: approval.display_digest.clone(),
            ..Default::default()
        };
        Ok(self.approvals.review_approval(bearer(request, by)).await?.into_inner().approval.unwrap())
    }

    /// Fetches the token of an approval; it is empty unless the approval can be used.
    pub(crate) async fn fetch(&mut self, id: &str) -> Result<String, Status> {
        Ok(self.approvals.get_approval(v1::GetApprovalRequest { id: id.into() }).await?.into_inner().token)
    }

    /// Makes a call that is denied, requests its approval, approves it as `lead-1` and fetches the token.
    pub(crate) async fn approved(&mut self, call: &v1::AuthorizeRequest, issuer: &Issuer) -> (v1::Approval, String) {
        let approval = self.request(call).await.unwrap();
        let approval = self.review(&approval, true, &issuer.human("lead-1")).await.unwrap();
        assert_eq!(approval.state(), v1::ApprovalState::Approved);
        let token = self.fetch(&approval.id).await.unwrap();
        assert!(!token.is_empty());
        (approval, token)
    }
}

/// Wraps a message in a request that carries a human's token.
pub(crate) fn bearer<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}
