//! A client for the command line: plaintext, to a server on this machine.

use std::time::Duration;

use tonic::transport::Endpoint;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::api::front;
use crate::api::v1;
use crate::api::v1::decision_service_client::DecisionServiceClient;
use crate::json::{Object, Value, canonical};
use crate::model::call::{Call, EntityReference};
use crate::model::chain::Credential;

const TIMEOUT: Duration = Duration::from_secs(10);

/// A call that got no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server refused it.
    #[error("{code}: {message}")]
    Refused {
        /// gRPC code by name.
        code: String,
        /// The server's words.
        message: String,
    },
    /// No server was reached.
    #[error("no server answers at `{0}`: start one with `countersign serve --development`, or name another with `--server`")]
    Unreachable(String),
    /// The address is none.
    #[error("`{0}` is no address: use one such as `http://127.0.0.1:7070`")]
    Address(String),
}

/// Decides one call.
///
/// # Errors
/// When there is no answer.
pub async fn authorize(server: &str, request: v1::AuthorizeRequest) -> Result<v1::AuthorizeResponse, ClientError> {
    let channel = connect(server).await?;
    let answered = DecisionServiceClient::new(channel).authorize(request).await;
    answered.map(tonic::Response::into_inner).map_err(|status| refused(server, &status))
}

/// True when a service is serving; the empty name asks for the server.
///
/// # Errors
/// When there is no answer.
pub async fn healthy(server: &str, service: &str) -> Result<bool, ClientError> {
    let channel = connect(server).await?;
    let asked = HealthClient::new(channel).check(HealthCheckRequest { service: service.to_owned() }).await;
    let answered = asked.map_err(|status| refused(server, &status))?;
    Ok(answered.into_inner().status() == ServingStatus::Serving)
}

async fn connect(server: &str) -> Result<tonic::transport::Channel, ClientError> {
    let endpoint = Endpoint::from_shared(server.to_owned()).map_err(|_| ClientError::Address(server.to_owned()))?;
    endpoint.connect_timeout(TIMEOUT).timeout(TIMEOUT).connect().await.map_err(|_| ClientError::Unreachable(server.to_owned()))
}

fn refused(server: &str, status: &Status) -> ClientError {
    if status.code() == Code::Unavailable && status.message().is_empty() {
        return ClientError::Unreachable(server.to_owned());
    }
    ClientError::Refused { code: front::name(status.code()).to_owned(), message: status.message().to_owned() }
}

/// A call as a message.
pub fn message(call: &Call) -> v1::AuthorizeRequest {
    let object = |object: &Object| canonical(&Value::Object(object.clone())).into();
    let reference = |reference: &EntityReference| v1::EntityReference { r#type: reference.kind.clone(), id: reference.id.clone() };
    let credential = match &call.credential {
        Credential::Asserted(asserted) => Some(v1::delegation::Credential::Asserted(v1::AssertedChain {
            agent: asserted.agent.clone(),
            supervisor: asserted.supervisor.clone(),
            step: asserted.step.clone(),
            scopes: asserted.scopes.clone(),
        })),
        Credential::None => None,
        Credential::Token { token, .. } => Some(v1::delegation::Credential::Token(token.clone())),
    };
    let agent = match &call.credential {
        Credential::Token { agent_certificate: Some(digest), .. } => digest.to_vec().into(),
        Credential::Asserted(_) | Credential::None | Credential::Token { .. } => prost::bytes::Bytes::new(),
    };
    let model = call.model.as_ref();
    v1::AuthorizeRequest {
        request_id: call.correlation.request.clone(),
        delegation: credential.map(|credential| v1::Delegation { credential: Some(credential), agent_certificate_sha256: agent }),
        action: call.action.clone(),
        resource: Some(v1::Resource {
            r#ref: Some(reference(&call.resource.reference)),
            version: call.resource.version.clone(),
            attributes_json: call.resource.attributes.as_ref().map(object).unwrap_or_default(),
        }),
        case: Some(v1::Case {
            id: call.case.id.clone(),
            version: call.case.version.clone(),
            tenant: call.case.tenant.clone(),
            attributes_json: object(&call.case.attributes),
        }),
        arguments_json: object(&call.arguments),
        facts_json: call.facts.as_ref().map(object).unwrap_or_default(),
        untrusted: call.untrusted.iter().map(|item| v1::UntrustedText { source: item.source.clone(), text: item.text.clone() }).collect(),
        approval_token: call.tokens.approval.clone().unwrap_or_default(),
        release_token: call.tokens.release.clone().unwrap_or_default(),
        operation_id: call.tokens.operation.clone(),
        model: model.map(|model| v1::Model { provider: model.provider.clone(), name: model.name.clone(), version: model.version.clone() }),
        conversation_id: call.correlation.conversation.clone(),
        tool_call_id: call.correlation.tool_call.clone(),
        dry_run: call.dry_run,
        plain: None,
    }
}
