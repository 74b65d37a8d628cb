//! Texts, and the requests that prepare and evaluate them.

use countersign::api::v1;

use crate::calls::{case, delegation};

const SENTENCES: [&str; 8] = [
    "Hello, I bought the phone three weeks ago in your shop in Berlin and it does not charge any more.",
    "I tried another cable and another socket, as your article says, but nothing changes.",
    "The order number is 48213 and I paid 499 EUR by card.",
    "Please tell me whether I have to send it in, and how long that takes.",
    "My address has not changed since then, and you reach me at jane.doe@example.org.",
    "I would rather have a new one than wait for weeks.",
    "A friend of mine had the same problem and it was the battery.",
    "Thank you for your help, and have a nice day.",
];
pub(crate) fn text(bytes: usize) -> String {
    let mut text = String::new();
    for sentence in SENTENCES.iter().cycle() {
        if text.len() + sentence.len() > bytes {
            return text;
        }
        text.push_str(sentence);
        text.push(' ');
    }
    text
}

fn model() -> Option<v1::Model> {
    Some(v1::Model { name: "m".into(), ..Default::default() })
}

pub(crate) fn to_prepare(index: usize, bytes: usize) -> v1::PrepareContextRequest {
    v1::PrepareContextRequest {
        delegation: delegation("support-bot", "drafting"),
        case: case(index),
        model: model(),
        record_json: r#"{"product":"phone","status":"open","customer":{"name":"Jane Doe","email":"jane.doe@example.org"},"orders":[{"order_id":"48213","total":"499 EUR"}]}"#.into(),
        untrusted: vec![v1::UntrustedText { source: "ticket.body".into(), text: text(bytes) }],
        ..Default::default()
    }
}

pub(crate) fn to_evaluate(
    prepared: &v1::PrepareContextResponse,
    index: usize,
    bytes: usize,
) -> v1::EvaluateOutputRequest {
    let sources = prepared.segments.iter().filter(|segment| segment.channel() != v1::Channel::Constraint);
    v1::EvaluateOutputRequest {
        delegation: delegation("support-bot", "drafting"),
        case: case(index),
        model: model(),
        draft: text(bytes),
        channel: "email".into(),
        recipient: "customer-1".into(),
        model_confidence: 90,
        context_evaluation_id: prepared.evaluation_id.clone(),
        sources: sources
            .map(|segment| v1::Source { id: segment.source_id.clone(), text: segment.text.clone() })
            .collect(),
        ..Default::default()
    }
}
