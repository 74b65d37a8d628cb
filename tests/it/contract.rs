//! Snapshots of what others rely on: the wire, the help, the audit line, metric and span names, the words of reasons. A change here
//! is a change of contract: make it on purpose, with `INSTA_UPDATE=always cargo test`, and say so in CHANGELOG.md.

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
fn the_wire() {
    let mut text = String::new();
    for file in descriptors().file.iter().filter(|file| file.package() == "countersign.v1") {
        for service in &file.service {
            for method in &service.method {
                let stream = |streams| if streams { "stream " } else { "" };
                let (from, to) = (stream(method.client_streaming()), stream(method.server_streaming()));
                writeln!(text, "{}/{} {from}{} -> {to}{}", service.name(), method.name(), method.input_type(), method.output_type())
                    .unwrap();
            }
        }
        for message in &file.message_type {
            for field in &message.field {
                let kind = if field.type_name().is_empty() { format!("{:?}", field.r#type()) } else { field.type_name().to_owned() };
                writeln!(text, "{}.{} = {} {kind} {:?}", message.name(), field.name(), field.number(), field.label()).unwrap();
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
            file.service
                .iter()
                .flat_map(|service| service.method.iter().map(|method| format!("{}.{}/{}", file.package(), service.name(), method.name())))
        })
        .collect();
    assert_eq!(found, METHODS.map(str::to_owned).into());
}

#[test]
fn the_help() {
    insta::assert_snapshot!("help", countersign::cli::help());
}

#[test]
fn the_reasons() {
    let rows = Reason::ALL.map(|reason| format!("{} {} {}", reason.name(), reason.next_action().name(), reason.text()));
    insta::assert_snapshot!("reasons", rows.join("\n"));
    // One for one with the wire's.
    assert_eq!(Reason::ALL.len(), (1..).take_while(|number| v1::Reason::try_from(*number).is_ok()).count());
    for reason in Reason::ALL {
        assert!(v1::Reason::from_str_name(&format!("REASON_{}", reason.name().to_uppercase())).is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_methods_that_are_not_built() {
    let app = App::start().await;
    let mut grpc = tonic::client::Grpc::new(app.channel().await);
    let mut unbuilt = vec![];
    for method in METHODS {
        grpc.ready().await.unwrap();
        let path = format!("/{method}").parse::<http::uri::PathAndQuery>().unwrap();
        let codec = tonic_prost::ProstCodec::<v1::GetStatusRequest, v1::GetStatusRequest>::default();
        let answering = grpc.unary::<_, v1::GetStatusRequest, _>(tonic::Request::new(v1::GetStatusRequest {}), path, codec);
        // A stream that stays open is built.
        let answered = tokio::time::timeout(std::time::Duration::from_secs(2), answering).await;
        if answered.is_ok_and(|answered| answered.is_err_and(|status| status.code() == Code::Unimplemented)) {
            unbuilt.push(method);
        }
    }
    insta::assert_snapshot!("unbuilt", unbuilt.join("\n"));
    app.stop().await;
}

/// A line with what differs from run to run made constant.
fn still(line: &Value) -> Value {
    let mut line = line.clone();
    for (member, constant) in [
        ("ts", "<time>"),
        ("prev", "<hash>"),
        ("evaluation_id", "<uuid>"),
        ("nonce", "<nonce>"),
        ("input_digest", "<digest>"),
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
async fn the_audit_lines() {
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
    client.authorize(v1::AuthorizeRequest { delegation: asserted("support-bot", "rep-1", "intake"), ..refund_request() }).await.unwrap();
    client.authorize(v1::AuthorizeRequest { action: "order.steal".into(), ..order_check() }).await.unwrap();
    client.authorize(v1::AuthorizeRequest { case: None, ..order_check() }).await.unwrap_err();
    app.pdp.count_stranger("192.0.2.1".into(), "unauthenticated");
    app.pdp.tick().await;
    let data = app.data.clone();
    let _folder = app.stop().await;
    let text: Vec<String> = lines(&data).iter().map(|line| serde_json::to_string_pretty(&still(line)).unwrap()).collect();
    insta::assert_snapshot!("audit", text.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics() {
    let app = App::start().await;
    let mut client = app.decisions().await;
    client.authorize(order_check()).await.unwrap();
    client.authorize(v1::AuthorizeRequest { case: None, ..order_check() }).await.unwrap_err();
    app.operations().await.reload_bundle(v1::ReloadBundleRequest {}).await.unwrap();
    app.pdp.telemetry().reload("activated", "", "");
    let text = app.pdp.telemetry().metrics_text();
    let names: BTreeSet<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    insta::assert_snapshot!("metrics", names.into_iter().collect::<Vec<_>>().join("\n"));
    app.stop().await;
}

#[test]
fn the_attributes_of_spans() {
    insta::assert_snapshot!("attributes", countersign::telemetry::ATTRIBUTES.join("\n"));
}

/// What is held in memory for each call under way.
#[test]
fn the_sizes_of_what_each_call_holds() {
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
