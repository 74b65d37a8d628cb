//! Requests that prepare contexts, evaluate drafts and send replies with the reference bundle.

use countersign::api::v1;
use countersign::api::v1::decision_service_client::DecisionServiceClient;
use tonic::transport::Channel;

use crate::harness::{CASE, asserted};

/// Returns the reference case with some attributes set, given as pairs of name and value.
pub(crate) fn case_with(more: &[(&str, &str)]) -> Option<v1::Case> {
    let mut attributes: serde_json::Map<String, serde_json::Value> = serde_json::from_str(CASE).unwrap();
    attributes.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())));
    let attributes_json = serde_json::to_vec(&attributes).unwrap().into();
    Some(v1::Case { id: "case-1".into(), version: "3".into(), tenant: "acme".into(), attributes_json })
}

pub(crate) fn text(source: &str, text: &str) -> v1::UntrustedText {
    v1::UntrustedText { source: source.into(), text: text.into() }
}

/// A PrepareContext request with one untrusted text.
pub(crate) fn to_prepare(body: &str) -> v1::PrepareContextRequest {
    v1::PrepareContextRequest {
        delegation: asserted("support-bot", "rep-1", "drafting"),
        case: case_with(&[]),
        model: Some(v1::Model { name: "test".into(), ..Default::default() }),
        untrusted: vec![text("ticket.body", body)],
        ..Default::default()
    }
}

/// An EvaluateOutput request for a draft that was written from a prepared context.
pub(crate) fn to_evaluate(draft: &str, prepared: &v1::PrepareContextResponse) -> v1::EvaluateOutputRequest {
    v1::EvaluateOutputRequest {
        delegation: asserted("support-bot", "rep-1", "drafting"),
        case: case_with(&[]),
        model: Some(v1::Model { name: "test".into(), ..Default::default() }),
        draft: draft.into(),
        channel: "email".into(),
        recipient: "customer-1".into(),
        model_confidence: 90,
        context_evaluation_id: prepared.evaluation_id.clone(),
        ..Default::default()
    }
}

/// The `reply.send` call that sends a draft.
pub(crate) fn to_send(draft_digest: &str, release_token: &str, operation: &str) -> v1::AuthorizeRequest {
    v1::AuthorizeRequest {
        delegation: asserted("support-bot", "rep-1", "action"),
        action: "reply.send".into(),
        resource: Some(v1::Resource {
            r#ref: Some(v1::EntityReference { r#type: "Case".into(), id: "case-1".into() }),
            ..Default::default()
        }),
        case: case_with(&[]),
        arguments_json: format!(r#"{{"channel":"email","recipient":"customer-1","draft_digest":"{draft_digest}"}}"#)
            .into(),
        model: Some(v1::Model { name: "test".into(), ..Default::default() }),
        release_token: release_token.into(),
        operation_id: operation.into(),
        ..Default::default()
    }
}

pub(crate) async fn prepare(
    client: &mut DecisionServiceClient<Channel>,
    request: v1::PrepareContextRequest,
) -> v1::PrepareContextResponse {
    client.prepare_context(request).await.unwrap().into_inner()
}

pub(crate) async fn evaluate(
    client: &mut DecisionServiceClient<Channel>,
    request: v1::EvaluateOutputRequest,
) -> v1::EvaluateOutputResponse {
    client.evaluate_output(request).await.unwrap().into_inner()
}

/// Joins the texts of all segments of a context.
pub(crate) fn shown(prepared: &v1::PrepareContextResponse) -> String {
    prepared.segments.iter().map(|segment| segment.text.as_str()).collect::<Vec<_>>().join("\n")
}

/// Returns the sorted kinds of a draft's findings without duplicates; claims are given by their code.
pub(crate) fn found(evaluated: &v1::EvaluateOutputResponse) -> Vec<String> {
    let names = evaluated
        .findings
        .iter()
        .map(|finding| if finding.kind == "claim" { finding.code.clone() } else { finding.kind.clone() });
    let mut names: Vec<String> = names.collect();
    names.sort();
    names.dedup();
    names
}
