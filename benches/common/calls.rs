//! Calls that the benchmarks share.

use std::path::{Path, PathBuf};

use countersign::api::v1;

pub(crate) const CASE: &str = r#"{"customer":"customer-1","product":"phone","region":"eu","policy_set":"standard","currency":"EUR","status":"open","refund_status":"requested","identity_check":"none","fraud_check":"none"}"#;
pub(crate) const ORDER: &str =
    r#"{"tenant":"acme","customer":"customer-1","currency":"EUR","paid_minor":9000,"refunded_minor":0}"#;

pub(crate) fn policies() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("policies")
}

pub(crate) fn delegation(agent: &str, step: &str) -> Option<v1::Delegation> {
    let chain =
        v1::AssertedChain { agent: agent.into(), supervisor: "rep-1".into(), step: step.into(), scopes: vec![] };
    Some(v1::Delegation { credential: Some(v1::delegation::Credential::Asserted(chain)), ..Default::default() })
}

pub(crate) fn case(index: usize) -> Option<v1::Case> {
    let id = format!("case-{index}");
    Some(v1::Case { id, version: "3".into(), tenant: "acme".into(), attributes_json: CASE.into() })
}

pub(crate) fn resource(kind: &str, id: &str, attributes: &'static str) -> Option<v1::Resource> {
    let r#ref = Some(v1::EntityReference { r#type: kind.into(), id: id.into() });
    Some(v1::Resource { r#ref, attributes_json: attributes.into(), ..Default::default() })
}

/// An `order.check` for one of many cases.
pub(crate) fn order_check(index: usize, step: &str) -> v1::AuthorizeRequest {
    v1::AuthorizeRequest {
        delegation: delegation("support-bot", step),
        action: "order.check".into(),
        resource: resource("Order", &format!("order-{index}"), ORDER),
        case: case(index),
        ..Default::default()
    }
}
