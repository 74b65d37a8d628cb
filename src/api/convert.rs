//! Conversion from request messages to the model. Every member is either used or makes the request refused.

use prost::Message;

use crate::api::v1;
use crate::json::{self, Object};
use crate::model::call::{Call, Case, Correlation, EntityReference, Model, PlainCall, Resource, Tokens, Untrusted};
use crate::model::chain::{Asserted, Credential};
use crate::model::refusal::Refusal;
use crate::model::text::{hex, is_unprintable};
use crate::pdp::origin::Request;
use crate::pdp::reports::Outcome;

/// Largest call in bytes.
const CALL_MAX: usize = 1024 * 1024;
const ID_MAX: usize = 128;
/// Maximum number of consecutive digits in a label.
const LABEL_DIGITS_MAX: usize = 5;
const TOKEN_MAX: usize = 16 * 1024;
const SCOPES_MAX: usize = 64;
const FIELDS_MAX: usize = 256;
/// Maximum size of all field names as JSON, because one audit line contains them.
const FIELDS_BYTES_MAX: usize = 16 * 1024;
const UNTRUSTED_MAX: usize = 32;

/// Converts one call.
///
/// # Errors
/// Returns INVALID_ARGUMENT with the first faulty field, or RESOURCE_EXHAUSTED for a call over 1 MiB.
pub fn request(message: v1::AuthorizeRequest) -> Result<Request, Refusal> {
    if message.encoded_len() > CALL_MAX {
        return Err(Refusal::Exhausted("the call is larger than 1 MiB"));
    }
    let correlation = Correlation {
        request: id(&message.request_id, "request_id")?,
        conversation: correlation_id(&message.conversation_id, "conversation_id")?,
        tool_call: correlation_id(&message.tool_call_id, "tool_call_id")?,
    };
    if let Some(plain) = &message.plain {
        let alone = v1::AuthorizeRequest {
            request_id: message.request_id.clone(),
            plain: Some(plain.clone()),
            ..Default::default()
        };
        if message != alone {
            return Err(Refusal::invalid("plain", "must be sent without other fields, except `request_id`"));
        }
        return plain_call(plain, correlation).map(|call| Request::Plain(Box::new(call)));
    }
    let tokens = tokens(&message)?;
    let call = Call {
        credential: credential(message.delegation)?,
        action: some_id(&message.action, "action")?,
        resource: resource(message.resource)?,
        case: case(message.case)?,
        arguments: object(&message.arguments_json, "arguments_json")?,
        facts: optional_object(&message.facts_json, "facts_json")?,
        untrusted: untrusted(message.untrusted)?,
        tokens,
        model: message.model.map(model).transpose()?,
        correlation,
        dry_run: message.dry_run,
    };
    Ok(Request::Call(Box::new(call)))
}

/// Converts the reported outcome of an allowed call.
///
/// # Errors
/// Returns INVALID_ARGUMENT with the first faulty field.
pub fn outcome(message: v1::ReportOutcomeRequest) -> Result<Outcome, Refusal> {
    let status = match message.status() {
        v1::OutcomeStatus::Failed => "failed",
        v1::OutcomeStatus::NotExecuted => "not_executed",
        v1::OutcomeStatus::Succeeded => "succeeded",
        v1::OutcomeStatus::Unspecified => {
            return Err(Refusal::invalid("status", "is missing, or not known to this version"));
        }
    };
    if message.fields_returned.len() > FIELDS_MAX {
        return Err(Refusal::invalid("fields_returned", "has more than 256 items"));
    }
    let fields: Result<Vec<String>, Refusal> = message
        .fields_returned
        .iter()
        .enumerate()
        .map(|(index, name)| some_id(name, &format!("fields_returned[{index}]")))
        .collect();
    let fields = fields?;
    if json::canonical(&fields).len() > FIELDS_BYTES_MAX {
        return Err(Refusal::invalid("fields_returned", "is longer than 16 KiB"));
    }
    let hex = |digest: Option<[u8; 32]>| hex(digest.iter().flatten());
    let members = vec![
        ("status", status.into()),
        ("fields_returned", fields.into()),
        ("output_digest", hex(optional_digest(&message.output_digest, "output_digest")?).into()),
        ("message_digest", hex(optional_digest(&message.message_digest, "message_digest")?).into()),
        ("external_reference", id(&message.external_reference, "external_reference")?.into()),
    ];
    Ok(Outcome {
        evaluation_id: some_id(&message.evaluation_id, "evaluation_id")?,
        token: bounded(&message.outcome_token, TOKEN_MAX, "outcome_token")?,
        succeeded: status == "succeeded",
        failed: status == "failed",
        members,
    })
}

pub(super) fn credential(delegation: Option<v1::Delegation>) -> Result<Credential, Refusal> {
    // In protobuf, an absent message equals an empty one.
    let v1::Delegation { agent_certificate_sha256, credential } = delegation.unwrap_or_default();
    let agent_certificate = optional_digest(&agent_certificate_sha256, "delegation.agent_certificate_sha256")?;
    match credential {
        None => Ok(Credential::None),
        Some(v1::delegation::Credential::Token(token)) => {
            Ok(Credential::Token { token: bounded(&token, TOKEN_MAX, "delegation.token")?, agent_certificate })
        }
        Some(v1::delegation::Credential::Asserted(asserted)) => {
            if asserted.scopes.len() > SCOPES_MAX {
                return Err(Refusal::invalid("delegation.asserted.scopes", "has more than 64 items"));
            }
            let scopes: Result<Vec<String>, Refusal> = asserted
                .scopes
                .iter()
                .enumerate()
                .map(|(index, scope)| some_id(scope, &format!("delegation.asserted.scopes[{index}]")))
                .collect();
            Ok(Credential::Asserted(Asserted {
                agent: id(&asserted.agent, "delegation.asserted.agent")?,
                supervisor: id(&asserted.supervisor, "delegation.asserted.supervisor")?,
                step: id(&asserted.step, "delegation.asserted.step")?,
                scopes: scopes?,
            }))
        }
    }
}

fn resource(resource: Option<v1::Resource>) -> Result<Resource, Refusal> {
    let resource = resource.ok_or_else(|| Refusal::invalid("resource", "is missing"))?;
    let reference = resource.r#ref.ok_or_else(|| Refusal::invalid("resource.ref", "is missing"))?;
    Ok(Resource {
        reference: EntityReference {
            kind: some_id(&reference.r#type, "resource.ref.type")?,
            id: some_id(&reference.id, "resource.ref.id")?,
        },
        version: id(&resource.version, "resource.version")?,
        attributes: optional_object(&resource.attributes_json, "resource.attributes_json")?,
    })
}

pub(super) fn case(case: Option<v1::Case>) -> Result<Case, Refusal> {
    let case = case.ok_or_else(|| Refusal::invalid("case", "is missing"))?;
    Ok(Case {
        id: some_id(&case.id, "case.id")?,
        version: id(&case.version, "case.version")?,
        tenant: id(&case.tenant, "case.tenant")?,
        attributes: object(&case.attributes_json, "case.attributes_json")?,
    })
}

pub(super) fn untrusted(items: Vec<v1::UntrustedText>) -> Result<Vec<Untrusted>, Refusal> {
    if items.len() > UNTRUSTED_MAX {
        return Err(Refusal::invalid("untrusted", "has more than 32 items"));
    }
    let items = items.into_iter().enumerate();
    items
        .map(|(index, item)| {
            Ok(Untrusted { source: label(&item.source, &format!("untrusted[{index}].source"))?, text: item.text })
        })
        .collect()
}

fn tokens(message: &v1::AuthorizeRequest) -> Result<Tokens, Refusal> {
    let token = |text: &str, field| Ok::<_, Refusal>((!text.is_empty()).then_some(bounded(text, TOKEN_MAX, field)?));
    let tokens = Tokens {
        approval: token(&message.approval_token, "approval_token")?,
        consent: token(&message.consent_token, "consent_token")?,
        release: token(&message.release_token, "release_token")?,
        operation: id(&message.operation_id, "operation_id")?,
    };
    let has_token = tokens.approval.is_some() || tokens.consent.is_some() || tokens.release.is_some();
    if tokens.operation.is_empty() && has_token {
        return Err(Refusal::invalid("operation_id", "is required with a token"));
    }
    if tokens.approval.is_some() && tokens.release.is_some() {
        return Err(Refusal::invalid(
            "release_token",
            "can't be sent together with an approval token: the approval suffices",
        ));
    }
    Ok(tokens)
}

pub(super) fn model(model: v1::Model) -> Result<Model, Refusal> {
    Ok(Model {
        provider: id(&model.provider, "model.provider")?,
        name: some_id(&model.name, "model.name")?,
        version: id(&model.version, "model.version")?,
    })
}

fn plain_call(plain: &v1::PlainRequest, correlation: Correlation) -> Result<PlainCall, Refusal> {
    let reference = |reference: &Option<v1::EntityReference>, field| match reference {
        Some(reference) => Ok(EntityReference { kind: reference.r#type.clone(), id: reference.id.clone() }),
        None => Err(Refusal::invalid(field, "is missing")),
    };
    Ok(PlainCall {
        correlation,
        principal: reference(&plain.principal, "plain.principal")?,
        action: reference(&plain.action, "plain.action")?,
        resource: reference(&plain.resource, "plain.resource")?,
        context: plain.context_json.to_vec(),
        entities: plain.entities_json.to_vec(),
    })
}

pub(super) fn object(text: &[u8], field: &str) -> Result<Object, Refusal> {
    json::read_object(text).map_err(|fault| Refusal::Invalid {
        field: field.to_owned(),
        below: fault.path,
        problem: fault.problem,
        unknown: None,
    })
}

pub(super) fn optional_object(text: &[u8], field: &str) -> Result<Option<Object>, Refusal> {
    if text.is_empty() { Ok(None) } else { object(text, field).map(Some) }
}

/// Checks an id that may be empty.
pub(super) fn id(text: &str, field: &str) -> Result<String, Refusal> {
    let text = bounded(text, ID_MAX, field)?;
    if text.chars().any(is_unprintable) {
        return Err(Refusal::invalid(field, "contains a control or invisible character"));
    }
    Ok(text)
}

/// Checks an id that must not be empty.
pub(super) fn some_id(text: &str, field: &str) -> Result<String, Refusal> {
    if text.is_empty() { Err(Refusal::invalid(field, "is missing")) } else { id(text, field) }
}

/// Checks an id that traces export. The id may be empty, and its alphabet admits no free text.
pub(super) fn correlation_id(text: &str, field: &str) -> Result<String, Refusal> {
    let text = bounded(text, ID_MAX, field)?;
    match text.chars().all(|sign| sign.is_ascii_alphanumeric() || "._:#/-".contains(sign)) {
        true => Ok(text),
        false => Err(Refusal::invalid(field, "must be an id: letters, digits and . _ : # / -")),
    }
}

/// Checks the label of a source. The label reaches the model and the audit log unchanged, so it must be a
/// name that the tool service chose and not text that someone else wrote.
fn label(text: &str, field: &str) -> Result<String, Refusal> {
    let text = some_id(text, field)?;
    let fits = text.chars().all(|sign| sign.is_ascii_alphanumeric() || "._:#/-[]".contains(sign));
    let digits = text.split(|sign: char| !sign.is_ascii_digit()).map(str::len).max().unwrap_or(0);
    match fits && digits <= LABEL_DIGITS_MAX {
        true => Ok(text),
        false => {
            Err(Refusal::invalid(field, "must be a label: letters, digits (at most five in a row) and . _ : # / - [ ]"))
        }
    }
}

/// Reads a SHA-256 digest that may be absent.
fn optional_digest(bytes: &[u8], field: &str) -> Result<Option<[u8; 32]>, Refusal> {
    match (bytes.is_empty(), bytes.try_into()) {
        (true, _) => Ok(None),
        (false, Ok(digest)) => Ok(Some(digest)),
        (false, Err(_)) => Err(Refusal::invalid(field, "is not 32 bytes")),
    }
}

fn bounded(text: &str, longest: usize, field: &str) -> Result<String, Refusal> {
    match (text.len() > longest, longest) {
        (true, ID_MAX) => Err(Refusal::invalid(field, "is longer than 128 bytes")),
        (true, _) => Err(Refusal::invalid(field, "is longer than 16384 bytes")),
        (false, _) => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            if let Ok(message) = v1::AuthorizeRequest::decode(bytes.as_slice()) {
                let _read = request(message);
            }
        }

        #[test]
        fn ids_are_refused_or_taken_whole(text in "\\PC{0,140}") {
            match id(&text, "x") {
                Ok(taken) => prop_assert_eq!(taken, text),
                Err(Refusal::Invalid { field, problem, .. }) => {
                    prop_assert_eq!(field, "x");
                    prop_assert!(!problem.contains(&text) || text.is_empty() || text.len() < 3);
                }
                Err(other) => prop_assert!(false, "{other:?}"),
            }
        }
    }
}
