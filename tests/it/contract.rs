//! Snapshots of what others rely on: the wire format, the help, audit lines, metric and span names, the texts
//! of reasons. A change here changes the contract: make it deliberately (`INSTA_UPDATE=always cargo test`)
//! and note it in CHANGELOG.md.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use countersign::api::front::METHODS;
use countersign::api::{DESCRIPTORS, v1};
use countersign::model::answer::Reason;
use prost::Message;
use prost_types::FileDescriptorSet;
use serde_json::Value;
use tonic::Code;

use crate::harness::{App, asserted, lines, order_check, refund_request};

fn descriptors() -> FileDescriptorSet {
    FileDescriptorSet::decode(DESCRIPTORS).unwrap()
}

#[test]
fn the_protocol_is_unchanged() {
    let mut text = String::new();
    for file in descriptors().file.iter().filter(|file| file.package() == "countersign.v1") {
        for service in &file.service {
            for method in &service.method {
                let stream = |streams| if streams { "stream " } else { "" };
                let (from, to) = (stream(method.client_streaming()), stream(method.server_streaming()));
                writeln!(
                    text,
                    "{}/{} {from}{} -> {to}{}",
                    service.name(),
                    method.name(),
                    method.input_type(),
                    method.output_type()
                )
                .unwrap();
            }
        }
        for message in &file.message_type {
            for field in &message.field {
                let kind = if field.type_name().is_empty() {
                    format!("{:?}", field.r#type())
                } else {
                    field.type_name().to_owned()
                };
                writeln!(text, "{}.{} = {} {kind} {:?}", message.name(), field.name(), field.number(), field.label())
                    .unwrap();
            }
        }
        for enumeration in &file.enum_type {
            for value in &enumeration.value {
                writeln!(text, "{} = {}", value.name(), value.number()).unwrap();
            }
        }
    }
    insta::assert_snapshot!("wire", text);
}

#[test]
fn every_method_is_known_to_spans_and_metrics() {
    let found: BTreeSet<String> = descriptors()
        .file
        .iter()
        .flat_map(|file| {
            file.service.iter().flat_map(|service| {
                service.method.iter().map(|method| format!("{}.{}/{}", file.package(), service.name(), method.name()))
            })
        })
        .collect();
    assert_eq!(found, METHODS.map(str::to_owned).into());
}

#[test]
fn the_help_texts_are_unchanged() {
    insta::assert_snapshot!("help", countersign::cli::help());
}

#[test]
fn the_reasons_are_unchanged_and_match_the_protocol() {
    let rows = Reason::ALL.map(|reason| format!("{} {} {}", reason.name(), reason.next_action().name(), reason.text()));
    insta::assert_snapshot!("reasons", rows.join("\n"));
    // Each reason has its counterpart in the protocol.
    assert_eq!(Reason::ALL.len(), (1..).take_while(|number| v1::Reason::try_from(*number).is_ok()).count());
    for reason in Reason::ALL {
        assert!(v1::Reason::from_str_name(&format!("REASON_{}", reason.name().to_uppercase())).is_some());
    }
}

/// `docs/reasons.md` has a row for each reason, gate, built-in obligation and gRPC code.
#[test]
fn every_reason_obligation_and_code_is_documented() {
    let page =
        std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reasons.md")).unwrap();
    let mut names: Vec<String> = Reason::ALL.map(|reason| format!("| `{}` |", reason.name())).to_vec();
    names.extend(countersign::model::roles::OBLIGATIONS.map(|(kind, _)| format!("| `{kind}` |")));
    names.extend(countersign::model::answer::Gate::ALL.map(|gate| format!("`{}`:", gate.name())));
    let refusals = [
        "INVALID_ARGUMENT",
        "UNAUTHENTICATED",
        "PERMISSION_DENIED",
        "NOT_FOUND",
        "FAILED_PRECONDITION",
        "RESOURCE_EXHAUSTED",
        "DEADLINE_EXCEEDED",
        "UNAVAILABLE",
    ];
    names.extend(refusals.map(|code| format!("| `{code}` |")));
    let missing: Vec<&String> = names.iter().filter(|name| !page.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_is_implemented() {
    let app = App::start().await;
    let mut grpc = tonic::client::Grpc::new(app.channel().await);
    let mut unbuilt = vec![];
    for method in METHODS {
        grpc.ready().await.unwrap();
        let path = format!("/{method}").parse::<http::uri::PathAndQuery>().unwrap();
        let codec = tonic_prost::ProstCodec::<v1::GetStatusRequest, v1::GetStatusRequest>::default();
        let answering =
            grpc.unary::<_, v1::GetStatusRequest, _>(tonic::Request::new(v1::GetStatusRequest {}), path, codec);
        // A stream that stays open is implemented, too.
        let answered = tokio::time::timeout(std::time::Duration::from_secs(2), answering).await;
        if answered.is_ok_and(|answered| answered.is_err_and(|status| status.code() == Code::Unimplemented)) {
            unbuilt.push(method);
        }
    }
    assert_eq!(unbuilt, Vec::<&str>::new());
    app.stop().await;
}

/// Replaces the members of a line that differ between runs with constants.
fn still(line: &Value) -> Value {
    let mut line = line.clone();
    if let Some(customer) = line.get_mut("case").and_then(|case| case.get_mut("customer")) {
        *customer = "<digest>".into();
    }
    for (member, constant) in [
        ("ts", "<time>"),
        ("prev", "<hash>"),
        ("mac", "<mac>"),
        ("evaluation_id", "<uuid>"),
        ("nonce", "<nonce>"),
        ("input_digest", "<digest>"),
        ("evidence", "<digest>"),
        ("digest", "<digest>"),
    ] {
        if line.get(member).is_some() {
            line[member] = constant.into();
        }
    }
    if line["policy"].get("digest").is_some() {
        line["policy"]["digest"] = "<digest>".into();
    }
    line
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_lines_are_unchanged() {
    let app = App::start().await;
    let mut client = app.decisions().await;
    let full = v1::AuthorizeRequest {
        request_id: "r-1".into(),
        conversation_id: "conv-1".into(),
        tool_call_id: "call-1".into(),
        model: Some(v1::Model { provider: "p".into(), name: "m".into(), version: "1".into() }),
        untrusted: vec![v1::UntrustedText { source: "ticket.body".into(), text: "hello".into() }],
        ..order_check()
    };
    client.authorize(full).await.unwrap();
    client
        .authorize(v1::AuthorizeRequest { delegation: asserted("support-bot", "rep-1", "intake"), ..refund_request() })
        .await
        .unwrap();
    client.authorize(v1::AuthorizeRequest { action: "order.steal".into(), ..order_check() }).await.unwrap();
    client.authorize(v1::AuthorizeRequest { case: None, ..order_check() }).await.unwrap_err();
    app.pdp.count_unauthenticated("192.0.2.1".into(), "unauthenticated");
    app.pdp.tick().await;
    let data = app.data.clone();
    let _folder = app.stop().await;
    let text: Vec<String> =
        lines(&data).iter().map(|line| serde_json::to_string_pretty(&still(line)).unwrap()).collect();
    insta::assert_snapshot!("audit", text.join("\n"));
}

/// The audit lines of an approval's life, in which members that differ between runs are constants.
#[tokio::test(flavor = "multi_thread")]
async fn the_audit_lines_of_an_approval_are_unchanged() {
    use crate::harness::people::{Desk, Issuer, credit, with_token};
    let app = App::start().await;
    let issuer = Issuer::of(&app.data);
    let mut desk = Desk::new(app.channel().await);
    let (_, token) = desk.approved(&credit(400), &issuer).await;
    let allowed = desk.ask(&with_token(&credit(400), &token, "op-1")).await;
    desk.ask(&with_token(&credit(400), &token, "op-1")).await;
    let outcome = v1::ReportOutcomeRequest {
        evaluation_id: allowed.evaluation_id,
        status: v1::OutcomeStatus::Succeeded.into(),
        fields_returned: vec!["balance".into()],
        outcome_token: allowed.outcome_token,
        ..Default::default()
    };
    desk.decisions.report_outcome(outcome).await.unwrap();
    let cancelled = desk.request(&credit(300)).await.unwrap();
    let revoke = v1::RevokeApprovalRequest { id: cancelled.id, reason: "no longer needed".into() };
    desk.approvals.revoke_approval(revoke).await.unwrap();
    let waiting = desk.request(&credit(200)).await.unwrap();
    desk.review(&waiting, true, &issuer.human("rep-1")).await.unwrap_err();
    let data = app.data.clone();
    let _folder = app.stop().await;
    fn constant(value: &mut Value, name: &str) {
        match value {
            Value::Object(members) => members.iter_mut().for_each(|(name, member)| constant(member, name)),
            Value::Array(items) => items.iter_mut().for_each(|item| constant(item, name)),
            _ => {
                let varies = [
                    "id",
                    "evaluation_id",
                    "customer",
                    "digest",
                    "evidence",
                    "generation",
                    "nonce",
                    "head",
                    "check_expires",
                    "expires",
                    "approved_at",
                    "approval_used",
                    "ts",
                    "prev",
                    "mac",
                ]
                .contains(&name);
                if varies || name.ends_with("_digest") && !value.as_str().is_some_and(str::is_empty) {
                    *value = format!("<{name}>").into();
                }
            }
        }
    }
    let of_life = |line: &&Value| {
        let kind = line["type"].as_str().unwrap();
        !(kind.starts_with("server.") || kind.starts_with("policy."))
            && (kind != "decision" || line["approval"].is_object())
    };
    let lines = lines(&data);
    let text = lines.iter().filter(of_life).map(|line| {
        let mut line = line.clone();
        constant(&mut line, "");
        serde_json::to_string_pretty(&line).unwrap()
    });
    insta::assert_snapshot!("audit_approval", text.collect::<Vec<_>>().join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metric_names_are_unchanged() {
    let app = App::start().await;
    let mut client = app.decisions().await;
    client.authorize(order_check()).await.unwrap();
    client.authorize(v1::AuthorizeRequest { case: None, ..order_check() }).await.unwrap_err();
    app.operations().await.reload_bundle(v1::ReloadBundleRequest {}).await.unwrap();
    app.pdp.telemetry().reload("activated", "", "");
    let text = app.pdp.telemetry().metrics_text().unwrap();
    let names: BTreeSet<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    insta::assert_snapshot!("metrics", names.into_iter().collect::<Vec<_>>().join("\n"));
    app.stop().await;
}

#[test]
fn the_span_attributes_are_unchanged() {
    insta::assert_snapshot!("attributes", countersign::telemetry::ATTRIBUTES.join("\n"));
}

/// Limits the memory that each call in progress holds.
#[test]
fn answers_and_records_stay_small() {
    assert!(
        std::mem::size_of::<countersign::model::answer::Answer>() <= 512,
        "{}",
        std::mem::size_of::<countersign::model::answer::Answer>()
    );
    assert!(
        std::mem::size_of::<countersign::audit::record::Record>() <= 256,
        "{}",
        std::mem::size_of::<countersign::audit::record::Record>()
    );
}
