//! Client of the command line, which speaks plaintext, for a server on this machine, or TLS. Every call
//! returns a [`ClientError`] if it gets no answer.

use std::time::Duration;

use prost::bytes::Bytes;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::api::v1::admin_service_client::AdminServiceClient;
use crate::api::v1::approval_service_client::ApprovalServiceClient;
use crate::api::v1::decision_service_client::DecisionServiceClient;
use crate::api::v1::signal_service_client::SignalServiceClient;
use crate::api::{front, v1};
pub use crate::approvals::release::draft_digest;
use crate::json::{Object, Value, canonical};
use crate::model::call::{Call, EntityReference};
use crate::model::chain::Credential;
use crate::model::number::to_i64;
use crate::model::time::Timestamp;

const TIMEOUT: Duration = Duration::from_secs(10);

/// Reason why a call got no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("{code}: {message}")]
    Refused {
        /// Name of the gRPC status code.
        code: String,
        /// Message of the gRPC status.
        message: String,
    },
    #[error("can't reach a server at `{server}`: {problem}")]
    Unreachable {
        server: String,
        /// Cause, and what to do about it.
        problem: String,
    },
    #[error("`{0}` is not an address: use one such as `http://127.0.0.1:7070`, or `https://…` for TLS")]
    Address(String),
    #[error("the certificates can't be used: {0}")]
    Tls(String),
    #[error("the token is malformed: it must be one line of text")]
    Token,
}

/// A server's address, its certificate authorities, and the client's own credentials.
#[derive(Clone, Debug, Default)]
pub struct Target {
    /// URL of the server; `https://` selects TLS.
    pub server: String,
    /// PEM of the server's certificate authorities. If empty, the public ones are used.
    pub authorities: Vec<u8>,
    /// PEM of the client's certificate chain and private key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// Bearer token of a human.
    pub token: Option<String>,
}

/// Asks the server to evaluate one call.
pub async fn authorize(target: &Target, request: v1::AuthorizeRequest) -> Result<v1::AuthorizeResponse, ClientError> {
    let answered = DecisionServiceClient::new(connect(target).await?).authorize(request).await;
    answered.map(tonic::Response::into_inner).map_err(|status| refused(&target.server, &status))
}

/// Requests the approval that a denial names.
pub async fn request_approval(
    target: &Target,
    request: v1::RequestApprovalRequest,
) -> Result<v1::Approval, ClientError> {
    let answered = ApprovalServiceClient::new(connect(target).await?).request_approval(request).await;
    let answer = answered.map_err(|status| refused(&target.server, &status))?.into_inner();
    Ok(answer.approval.unwrap_or_default())
}

/// Returns whether a service is serving; the empty name is the server as a whole.
pub async fn healthy(target: &Target, service: &str) -> Result<bool, ClientError> {
    let asked =
        HealthClient::new(connect(target).await?).check(HealthCheckRequest { service: service.to_owned() }).await;
    let answered = asked.map_err(|status| refused(&target.server, &status))?;
    Ok(answered.into_inner().status() == ServingStatus::Serving)
}

/// Fetches an approval that the token's human may see.
pub async fn approval(target: &Target, id: &str) -> Result<v1::Approval, ClientError> {
    let request = with_token(target, v1::GetApprovalRequest { id: id.to_owned() })?;
    let answered = ApprovalServiceClient::new(connect(target).await?).get_approval(request).await;
    Ok(whole(answered.map_err(|status| refused(&target.server, &status))?.into_inner().approval))
}

/// Fetches every approval of a state that the token's human may see, oldest first.
pub async fn approvals(target: &Target, state: v1::ApprovalState) -> Result<Vec<v1::Approval>, ClientError> {
    let mut client = ApprovalServiceClient::new(connect(target).await?);
    let mut found = vec![];
    let mut page_token = String::new();
    loop {
        let request =
            v1::ListApprovalsRequest { state: state.into(), page_size: 200, page_token, ..Default::default() };
        let answered = client.list_approvals(with_token(target, request)?).await;
        let page = answered.map_err(|status| refused(&target.server, &status))?.into_inner();
        found.extend(page.approvals);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(found);
        }
    }
}

/// Sends a review. Its `display_digest` must be that of the display that the reviewer read.
pub async fn review(target: &Target, request: v1::ReviewApprovalRequest) -> Result<v1::Approval, ClientError> {
    let answered =
        ApprovalServiceClient::new(connect(target).await?).review_approval(with_token(target, request)?).await;
    Ok(whole(answered.map_err(|status| refused(&target.server, &status))?.into_inner().approval))
}

/// Cancels a pending approval, or revokes an approved one.
pub async fn revoke(target: &Target, id: &str, reason: &str) -> Result<v1::Approval, ClientError> {
    let request = with_token(target, v1::RevokeApprovalRequest { id: id.to_owned(), reason: reason.to_owned() })?;
    let answered = ApprovalServiceClient::new(connect(target).await?).revoke_approval(request).await;
    Ok(whole(answered.map_err(|status| refused(&target.server, &status))?.into_inner().approval))
}

/// Reports a signal. The caller must be a tool service.
pub async fn report(
    target: &Target,
    request: v1::ReportSignalRequest,
) -> Result<v1::ReportSignalResponse, ClientError> {
    let answered = SignalServiceClient::new(connect(target).await?).report_signal(request).await;
    Ok(answered.map_err(|status| refused(&target.server, &status))?.into_inner())
}

/// Clears risk state. The caller must be a human.
pub async fn clear(target: &Target, request: v1::ClearRiskRequest) -> Result<v1::ClearRiskResponse, ClientError> {
    let request = with_token(target, request)?;
    let answered = SignalServiceClient::new(connect(target).await?).clear_risk(request).await;
    Ok(answered.map_err(|status| refused(&target.server, &status))?.into_inner())
}

/// Lifts a kill switch, with a human's token.
pub async fn lift(target: &Target, request: v1::LiftSignalRequest) -> Result<v1::LiftSignalResponse, ClientError> {
    let request = with_token(target, request)?;
    let answered = SignalServiceClient::new(connect(target).await?).lift_signal(request).await;
    Ok(answered.map_err(|status| refused(&target.server, &status))?.into_inner())
}

/// Lists the signals in force, with a human's token if the target has one.
pub async fn signals(target: &Target, tenant: String) -> Result<v1::ListSignalsResponse, ClientError> {
    let request = v1::ListSignalsRequest { tenant };
    let client = SignalServiceClient::new(connect(target).await?);
    let mut client = client.max_decoding_message_size(64 << 20);
    let answered = match &target.token {
        Some(_) => client.list_signals(with_token(target, request)?).await,
        None => client.list_signals(request).await,
    };
    Ok(answered.map_err(|status| refused(&target.server, &status))?.into_inner())
}

/// Returns when a signal begins and ends, in RFC 3339.
pub fn period(signal: &v1::ActiveSignal) -> (String, String) {
    let text = |time: Option<prost_types::Timestamp>| {
        let time = time.unwrap_or_default();
        let micros = time.seconds.saturating_mul(1_000_000).saturating_add(i64::from(time.nanos) / 1000);
        Timestamp::from_micros(micros).to_string()
    };
    (text(signal.since), text(signal.until))
}

/// Fetches the server's status.
pub async fn status(target: &Target) -> Result<v1::GetStatusResponse, ClientError> {
    let answered = AdminServiceClient::new(connect(target).await?).get_status(v1::GetStatusRequest {}).await;
    Ok(answered.map_err(|status| refused(&target.server, &status))?.into_inner())
}

/// Confirms that an operator has dealt with a loss in the state store.
pub async fn confirm_store(target: &Target) -> Result<v1::ConfirmStoreResponse, ClientError> {
    let answered = AdminServiceClient::new(connect(target).await?).confirm_store(v1::ConfirmStoreRequest {}).await;
    Ok(answered.map_err(|status| refused(&target.server, &status))?.into_inner())
}

/// Erases a subject. The caller must be a human.
pub async fn erase(target: &Target, request: v1::EraseSubjectRequest) -> Result<v1::EraseSubjectResponse, ClientError> {
    let request = with_token(target, request)?;
    let answered = AdminServiceClient::new(connect(target).await?).erase_subject(request).await;
    Ok(answered.map_err(|status| refused(&target.server, &status))?.into_inner())
}

/// Converts a duration to its protobuf form, in whole seconds.
pub fn duration(length: Duration) -> prost_types::Duration {
    prost_types::Duration { seconds: to_i64(length.as_secs()), nanos: 0 }
}

/// Returns the approval of a response. In protobuf, an absent message equals an empty one.
fn whole(approval: Option<v1::Approval>) -> v1::Approval {
    approval.unwrap_or_default()
}

/// Passes each change of an approval to `see` until the server ends the watch.
pub async fn watch(target: &Target, mut see: impl FnMut(v1::Approval)) -> Result<(), ClientError> {
    let request = with_token(target, v1::WatchApprovalsRequest::default())?;
    let mut client = ApprovalServiceClient::new(connect_for(target, None).await?);
    let failed = |status: Status| refused(&target.server, &status);
    let mut changes = client.watch_approvals(request).await.map_err(failed)?.into_inner();
    while let Some(change) = changes.message().await.map_err(failed)? {
        see(whole(change.approval));
    }
    Ok(())
}

fn with_token<T>(target: &Target, message: T) -> Result<tonic::Request<T>, ClientError> {
    let mut request = tonic::Request::new(message);
    if let Some(token) = &target.token {
        let value = format!("Bearer {token}").parse().map_err(|_| ClientError::Token)?;
        request.metadata_mut().insert("authorization", value);
    }
    Ok(request)
}

async fn connect(target: &Target) -> Result<tonic::transport::Channel, ClientError> {
    connect_for(target, Some(TIMEOUT)).await
}

async fn connect_for(target: &Target, timeout: Option<Duration>) -> Result<tonic::transport::Channel, ClientError> {
    let not_an_address = || ClientError::Address(target.server.clone());
    if !["http://", "https://"].iter().any(|scheme| target.server.starts_with(scheme)) {
        return Err(not_an_address());
    }
    let mut endpoint = Endpoint::from_shared(target.server.clone()).map_err(|_| not_an_address())?;
    if target.server.starts_with("https://") {
        let tls = match target.authorities.as_slice() {
            [] => ClientTlsConfig::new().with_webpki_roots(),
            pem => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
        };
        let tls = match &target.identity {
            Some((certificate, key)) => tls.identity(Identity::from_pem(certificate, key)),
            None => tls,
        };
        endpoint = endpoint.tls_config(tls).map_err(|error| ClientError::Tls(error.to_string()))?;
    }
    let endpoint = endpoint.connect_timeout(TIMEOUT);
    let endpoint = match timeout {
        Some(timeout) => endpoint.timeout(timeout),
        None => endpoint,
    };
    endpoint.connect().await.map_err(|error| {
        let problem = problem(&causes(&error));
        ClientError::Unreachable { server: target.server.clone(), problem }
    })
}

/// Returns an error's message with those of its causes.
fn causes(error: &dyn std::error::Error) -> String {
    let all = std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string);
    all.collect::<Vec<_>>().join(": ")
}

/// Signs in the causes of a failed connection, with the problem and its remedy. The libraries below don't say it in
/// any other form.
const PROBLEMS: [(&str, &str); 12] = [
    // First, because an alert may say that the server found the client's certificate expired.
    ("alert", "it refuses the TLS handshake: it may require `--certificate` and `--private-key`"),
    ("dns error", "its host name can't be resolved: check `--server`"),
    (
        "Connection refused",
        "nothing listens there: start a server with `countersign serve --development`, or give another address with `--server`",
    ),
    ("UnknownIssuer", "its certificate is of no trusted authority: give the PEM file of its authorities with `--ca`"),
    ("BadSignature", "its certificate is of no trusted authority: give the PEM file of its authorities with `--ca`"),
    ("not valid for name", "its certificate is for another name: use that name in `--server`"),
    ("NotValidForName", "its certificate is for another name: use that name in `--server`"),
    ("expired", "its certificate has expired: renew it"),
    ("Expired", "its certificate has expired: renew it"),
    ("NotValidYet", "its certificate is not valid yet: check the clocks"),
    ("corrupt message", "it does not speak TLS: use `http://`"),
    ("deadline has elapsed", "it does not answer in time: check the address and the network"),
];

fn problem(causes: &str) -> String {
    let known = PROBLEMS.into_iter().find(|(sign, _)| causes.contains(sign));
    known.map_or_else(|| causes.to_owned(), |(_, problem)| problem.to_owned())
}

fn refused(server: &str, status: &Status) -> ClientError {
    let unreachable =
        |problem: &str| ClientError::Unreachable { server: server.to_owned(), problem: problem.to_owned() };
    let message = status.message();
    if message.starts_with("grpc-status header missing") {
        return unreachable("it is no gRPC server: give the address of `listen.grpc`, by default port 7070");
    }
    if message.contains("Timeout expired") {
        return unreachable("it does not answer in time: check the address and the network");
    }
    // The client made this status itself, because the connection failed.
    if std::error::Error::source(status).is_some() || status.code() == Code::Unavailable && message.is_empty() {
        return unreachable(match server.starts_with("https://") {
            true => "it ended the connection: it may require `--certificate` and `--private-key`",
            false => "it does not speak gRPC in plaintext, or ended the connection: use `https://` if it has TLS",
        });
    }
    ClientError::Refused { code: front::name(status.code()).to_owned(), message: status.message().to_owned() }
}

/// Converts a call to its message.
pub fn message(call: &Call) -> v1::AuthorizeRequest {
    let object = |object: &Object| canonical(&Value::Object(object.clone())).into();
    let reference =
        |reference: &EntityReference| v1::EntityReference { r#type: reference.kind.clone(), id: reference.id.clone() };
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
        Credential::Asserted(_) | Credential::None | Credential::Token { .. } => Bytes::new(),
    };
    let model = call.model.as_ref();
    v1::AuthorizeRequest {
        request_id: call.correlation.request.clone(),
        delegation: credential
            .map(|credential| v1::Delegation { credential: Some(credential), agent_certificate_sha256: agent }),
        action: call.action.clone(),
        resource: Some(v1::Resource {
            r#ref: Some(reference(&call.resource.reference)),
            version: call.resource.version.clone(),
            attributes_json: call.resource.attributes.as_ref().map_or_else(Bytes::new, object),
        }),
        case: Some(v1::Case {
            id: call.case.id.clone(),
            version: call.case.version.clone(),
            tenant: call.case.tenant.clone(),
            attributes_json: object(&call.case.attributes),
        }),
        arguments_json: object(&call.arguments),
        facts_json: call.facts.as_ref().map_or_else(Bytes::new, object),
        untrusted: call
            .untrusted
            .iter()
            .map(|item| v1::UntrustedText { source: item.source.clone(), text: item.text.clone() })
            .collect(),
        approval_token: call.tokens.approval.clone().unwrap_or_default(),
        consent_token: call.tokens.consent.clone().unwrap_or_default(),
        release_token: call.tokens.release.clone().unwrap_or_default(),
        operation_id: call.tokens.operation.clone(),
        model: model.map(|model| v1::Model {
            provider: model.provider.clone(),
            name: model.name.clone(),
            version: model.version.clone(),
        }),
        conversation_id: call.correlation.conversation.clone(),
        tool_call_id: call.correlation.tool_call.clone(),
        dry_run: call.dry_run,
        plain: None,
    }
}
