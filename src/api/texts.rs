//! Conversion between the messages of PrepareContext and EvaluateOutput and the model.

use prost::Message;

use crate::api::convert::{case, correlation_id, credential, id, model, object, optional_object, some_id, untrusted};
use crate::api::{respond, v1};
use crate::audit::Recorded;
use crate::model::answer::{Answer, Reason};
use crate::model::call::EntityReference;
use crate::model::content::{Article, Channel, Disposition, Prepared, Shown};
use crate::model::finding::Span;
use crate::model::halt::Severity;
use crate::model::number::{to_u32, to_usize};
use crate::model::refusal::Refusal;
use crate::model::text::is_unprintable;
use crate::pdp::draft::ToEvaluate;
use crate::pdp::evaluate_output::Evaluated;
use crate::pdp::prepare_context::making::ToPrepare;

/// Largest request in bytes.
const REQUEST_MAX: usize = 1024 * 1024;
pub(super) const TEXT_MAX: usize = 64 * 1024;
const LIST_MAX: usize = 64;
const RECIPIENT_MAX: usize = 320;
const LOCALE_MAX: usize = 35;

/// Converts a PrepareContext request.
///
/// # Errors
/// Returns INVALID_ARGUMENT with the first faulty field, or RESOURCE_EXHAUSTED for a request over 1 MiB.
pub(super) fn to_prepare(message: v1::PrepareContextRequest) -> Result<ToPrepare, Refusal> {
    if message.encoded_len() > REQUEST_MAX {
        return Err(Refusal::Exhausted("the request is larger than 1 MiB"));
    }
    if message.articles.len() > LIST_MAX {
        return Err(Refusal::invalid("articles", "has more than 64 items"));
    }
    let articles = message.articles.into_iter().enumerate().map(|(index, article)| {
        let field = |name: &str| format!("articles[{index}].{name}");
        let reference = article.r#ref.ok_or_else(|| Refusal::invalid(field("ref"), "is missing"))?;
        let reference = EntityReference {
            kind: some_id(&reference.r#type, &field("ref.type"))?,
            id: some_id(&reference.id, &field("ref.id"))?,
        };
        Ok(Article {
            reference,
            attributes: optional_object(&article.attributes_json, &field("attributes_json"))?,
            text: article.text,
        })
    });
    Ok(ToPrepare {
        articles: articles.collect::<Result<_, Refusal>>()?,
        credential: credential(message.delegation)?,
        case: case(message.case)?,
        model: message.model.map(model).transpose()?,
        record: object(&message.record_json, "record_json")?,
        untrusted: untrusted(message.untrusted)?,
        previous_turn: text(message.previous_turn, "previous_turn", TEXT_MAX, "is longer than 64 KiB")?,
        max_bytes: to_usize(message.max_bytes),
        conversation: correlation_id(&message.conversation_id, "conversation_id")?,
    })
}

/// Converts an EvaluateOutput request.
///
/// # Errors
/// Returns the same errors as [`to_prepare`].
pub(super) fn to_evaluate(message: v1::EvaluateOutputRequest) -> Result<ToEvaluate, Refusal> {
    if message.encoded_len() > REQUEST_MAX {
        return Err(Refusal::Exhausted("the request is larger than 1 MiB"));
    }
    if message.draft.is_empty() {
        return Err(Refusal::invalid("draft", "is missing"));
    }
    if message.model_confidence > 100 {
        return Err(Refusal::invalid("model_confidence", "is more than 100"));
    }
    for (field, length) in [("citations", message.citations.len()), ("sources", message.sources.len())] {
        if length > LIST_MAX {
            return Err(Refusal::invalid(field, "has more than 64 items"));
        }
    }
    let sources = message.sources.into_iter().enumerate().map(|(index, source)| {
        let field = |name: &str| format!("sources[{index}].{name}");
        Ok((some_id(&source.id, &field("id"))?, text(source.text, &field("text"), TEXT_MAX, "is longer than 64 KiB")?))
    });
    let citations =
        message.citations.iter().enumerate().map(|(index, cited)| some_id(cited, &format!("citations[{index}]")));
    if message.recipient.is_empty() {
        return Err(Refusal::invalid("recipient", "is missing"));
    }
    let recipient = text(message.recipient, "recipient", RECIPIENT_MAX, "is longer than 320 bytes")?;
    let locale = text(message.locale, "locale", LOCALE_MAX, "is longer than 35 bytes")?;
    for (field, value) in [("recipient", &recipient), ("locale", &locale)] {
        if value.chars().any(is_unprintable) {
            return Err(Refusal::invalid(field, "contains a control or invisible character"));
        }
    }
    Ok(ToEvaluate {
        sources: sources.collect::<Result<_, Refusal>>()?,
        citations: citations.collect::<Result<_, Refusal>>()?,
        credential: credential(message.delegation)?,
        case: case(message.case)?,
        model: model(message.model.ok_or_else(|| Refusal::invalid("model", "is missing"))?)?,
        draft: text(message.draft, "draft", TEXT_MAX, "is longer than 64 KiB")?,
        channel: some_id(&message.channel, "channel")?,
        recipient,
        locale,
        confidence: message.model_confidence,
        context: id(&message.context_evaluation_id, "context_evaluation_id")?,
        conversation: correlation_id(&message.conversation_id, "conversation_id")?,
    })
}

fn text(text: String, field: &str, most: usize, problem: &'static str) -> Result<String, Refusal> {
    if text.len() > most { Err(Refusal::invalid(field, problem)) } else { Ok(text) }
}

/// Builds the response with a prepared context. The function takes a [`Recorded`] value, so no context leaves
/// the server without its record.
pub(super) fn prepared(recorded: &Recorded<(Answer, Prepared)>, log: &str) -> v1::PrepareContextResponse {
    let (answer, prepared) = recorded.value();
    let denied = answer.outcome.denied;
    // If a gate denied the call, the case may not be the chain's, so reveal nothing about its text.
    let found = answer.signals.screened.findings.iter().filter(|_| answer.gate.is_none());
    v1::PrepareContextResponse {
        evaluation_id: answer.evaluation_id.clone(),
        segments: prepared
            .segments
            .iter()
            .map(|segment| v1::Segment {
                channel: match segment.channel {
                    Channel::Article => v1::Channel::Article,
                    Channel::Constraint => v1::Channel::Constraint,
                    Channel::Fact => v1::Channel::Fact,
                    Channel::Untrusted => v1::Channel::Untrusted,
                }
                .into(),
                source: segment.source.clone(),
                text: segment.text.clone(),
                source_id: segment.source_id.clone(),
            })
            .collect(),
        fields: prepared
            .fields
            .iter()
            .map(|field| v1::FieldVerdict {
                path: field.path.clone(),
                disposition: match field.shown {
                    Shown::Excluded => v1::FieldDisposition::Excluded,
                    Shown::Included => v1::FieldDisposition::Included,
                    Shown::Masked => v1::FieldDisposition::Masked,
                }
                .into(),
                rule: field.rule.clone(),
            })
            .collect(),
        redactions: prepared
            .redactions
            .iter()
            .map(|redaction| v1::Redaction {
                kind: redaction.kind.name().to_owned(),
                source: redaction.source.clone(),
                path: redaction.path.clone(),
                span: Some(span(redaction.span)),
                count: 1,
            })
            .collect(),
        signals: found
            .map(|found| v1::ContentSignal {
                kind: found.kind.clone(),
                source: found.source.clone(),
                span: found.span.map(span),
                code: found.code.clone(),
                confidence: u32::from(found.confidence),
            })
            .collect(),
        truncated: prepared.truncated,
        policy: Some(respond::policy(&answer.policy)),
        audit: respond::reference(recorded, log),
        warnings: respond::warnings(answer),
        reason: denied.map_or(v1::Reason::Unspecified, respond::reason).into(),
        reason_user: answer.outcome.text().to_owned(),
        retry_after: respond::retry_after(answer),
    }
}

/// Builds the response with the recorded evaluation of a draft.
pub(super) fn evaluated(recorded: &Recorded<(Answer, Evaluated)>, log: &str) -> v1::EvaluateOutputResponse {
    let (answer, evaluated) = recorded.value();
    let denied = answer.outcome.denied;
    let (release_token, release_expires_at) = evaluated.release.clone().unzip();
    let findings = evaluated.findings.iter().map(|(finding, suggestion)| v1::Finding {
        kind: finding.kind.clone(),
        code: finding.code.clone(),
        severity: severity(finding.severity).into(),
        span: finding.span.map(span),
        message: message(&finding.kind).to_owned(),
        suggestion: suggestion.clone(),
        confidence: u32::from(finding.confidence),
    });
    v1::EvaluateOutputResponse {
        evaluation_id: answer.evaluation_id.clone(),
        disposition: match evaluated.disposition {
            Disposition::Block => v1::Disposition::Block,
            Disposition::HumanReview => v1::Disposition::HumanReview,
            Disposition::Release => v1::Disposition::Release,
            Disposition::Revise => v1::Disposition::Revise,
        }
        .into(),
        findings: findings.collect(),
        obligations: respond::obligations(&answer.outcome.obligations),
        reason: denied.map_or(v1::Reason::Unspecified, respond::reason).into(),
        redacted_draft: evaluated.redacted_draft.clone(),
        release_token: release_token.unwrap_or_default(),
        access_request: respond::access_request(answer),
        policy: Some(respond::policy(&answer.policy)),
        audit: respond::reference(recorded, log),
        warnings: respond::warnings(answer),
        draft_digest: evaluated.draft_digest.clone(),
        release_expires_at: release_expires_at.map(respond::time),
        reason_user: text_for_agent(answer, evaluated.disposition).to_owned(),
        retry_after: respond::retry_after(answer),
    }
}

fn span(span: Span) -> v1::Span {
    let (start, end) = span;
    v1::Span { start: to_u32(start), end: to_u32(end) }
}

fn severity(severity: Severity) -> v1::Severity {
    match severity {
        Severity::Critical => v1::Severity::Critical,
        Severity::High => v1::Severity::High,
        Severity::Info => v1::Severity::Info,
        Severity::Low => v1::Severity::Low,
        Severity::Medium => v1::Severity::Medium,
    }
}

/// Describes a kind of finding in constant words, which never repeat the draft.
fn message(kind: &str) -> &'static str {
    match kind {
        "active_content" => "the draft contains content that a program would run, load or submit",
        "claim" => "the draft claims a fact or a completed action",
        "credential_request" => "the draft asks the customer for a credential",
        "injection_echo" => "the draft contains text that tries to steer a model",
        "internal_identifier" => "the draft names an internal system",
        "low_confidence" => "the model is not sure of the draft",
        "personal_data" => "the draft contains personal data that no source contains",
        "redacted_value_repeated" => "the draft repeats a value that was removed from the context",
        "secret" => "the draft contains a secret",
        "tone" => "the draft's tone may offend the customer",
        "unchecked_language" => "the bundle has no rules for the draft's language",
        "ungrounded" => "the draft states something that no source supports",
        "unplaced_claim" => "the draft may claim a refund, credit or delivery, in words that the rules can't interpret",
        _ => "a rule of the bundle matched",
    }
}

/// Returns what the agent is told of a draft. A reason that names no fault of the draft, such as full windows, goes
/// before the disposition.
fn text_for_agent(answer: &Answer, disposition: Disposition) -> &'static str {
    match answer.outcome.denied {
        None | Some(Reason::NotPermitted | Reason::DraftRequired | Reason::ApprovalRequired) => disposition.text(),
        Some(reason) => reason.text(),
    }
}
