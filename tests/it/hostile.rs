//! Bad input over the wire: each kind gets a typed error that names the field and never echoes the value.

mod shapes;

use bytes::Bytes;
use countersign::api::v1;
use countersign::content::drafts::Draft;
use countersign::content::normalise::{GROWTH_MAX, Views};
use countersign::content::values::{ValueKey, Values};
use countersign::model::call::Untrusted;
use countersign::model::finding::SensitiveKind;
use prost::Message;
use rustix::time::{ClockId, clock_gettime};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::harness::{App, CASE, ORDER, asserted, lines, order_check, refund_request};

/// Part of the bad values; no error may contain it.
const VALUE: &str = "s3cr3t-value";

fn field(status: &Status) -> String {
    let details = status.get_error_details();
    details.bad_request().map(|bad| bad.field_violations[0].field.clone()).unwrap_or_default()
}

fn arguments(json: &str) -> v1::AuthorizeRequest {
    v1::AuthorizeRequest { arguments_json: Bytes::copy_from_slice(json.as_bytes()), ..refund_request() }
}

fn resource(change: impl FnOnce(&mut v1::Resource)) -> v1::AuthorizeRequest {
    let mut request = order_check();
    change(request.resource.as_mut().unwrap());
    request
}

fn case(change: impl FnOnce(&mut v1::Case)) -> v1::AuthorizeRequest {
    let mut request = order_check();
    change(request.case.as_mut().unwrap());
    request
}

fn nested(depth: usize) -> String {
    format!(r#"{{"a":{}"{VALUE}"{}}}"#, r#"{"b":"#.repeat(depth - 1), "}".repeat(depth - 1))
}

/// Requests with bad input. Each row: what is wrong, the request, the field that the error must name.
///
/// Threat 21 is among the rows: characters in ids that forge a line, or the look of one.
fn rows() -> Vec<(&'static str, v1::AuthorizeRequest, &'static str)> {
    let long = "x".repeat(129);
    vec![
        (
            "duplicate member",
            arguments(&format!(r#"{{"amount_minor":1,"amount_minor":2,"currency":"{VALUE}"}}"#)),
            "arguments_json.amount_minor",
        ),
        ("2^53+1", arguments(r#"{"amount_minor":9007199254740993,"currency":"EUR"}"#), "arguments_json.amount_minor"),
        ("depth 17", arguments(&nested(17)), "arguments_json.a.b.b.b.b.b.b.b.b.b.b.b.b.b.b.b.b"),
        (
            "unknown argument",
            arguments(&format!(r#"{{"amount_minor":1,"currency":"EUR","note":"{VALUE}"}}"#)),
            "arguments_json",
        ),
        ("missing argument", arguments(r#"{"amount_minor":1}"#), "arguments_json.currency"),
        ("null", arguments(r#"{"amount_minor":null,"currency":"EUR"}"#), "arguments_json.amount_minor"),
        ("float", arguments(r#"{"amount_minor":25.5,"currency":"EUR"}"#), "arguments_json.amount_minor"),
        ("1.0 is no integer", arguments(r#"{"amount_minor":1.0,"currency":"EUR"}"#), "arguments_json.amount_minor"),
        ("Long as string", arguments(r#"{"amount_minor":"2500","currency":"EUR"}"#), "arguments_json.amount_minor"),
        ("boolean for Long", arguments(r#"{"amount_minor":true,"currency":"EUR"}"#), "arguments_json.amount_minor"),
        (
            "unknown enum value",
            arguments(&format!(r#"{{"amount_minor":1,"currency":"{VALUE}"}}"#)),
            "arguments_json.currency",
        ),
        ("array for object", arguments(r#"["s3cr3t-value"]"#), "arguments_json"),
        ("trailing text", arguments(r#"{} s3cr3t-value"#), "arguments_json"),
        ("no JSON", arguments(VALUE), "arguments_json"),
        (
            "unknown fact",
            v1::AuthorizeRequest { facts_json: format!(r#"{{"vip":"{VALUE}"}}"#).into(), ..order_check() },
            "facts_json",
        ),
        (
            "attribute unknown",
            resource(|r| r.attributes_json = ORDER.replace("}", r#","x":"s3cr3t-value"}"#).into()),
            "resource.attributes_json",
        ),
        (
            "attribute mistyped",
            resource(|r| r.attributes_json = ORDER.replace("9000", r#""s3cr3t-value""#).into()),
            "resource.attributes_json.paid_minor",
        ),
        (
            "attribute missing",
            resource(|r| r.attributes_json = ORDER.replace(r#""paid_minor":9000,"#, "").into()),
            "resource.attributes_json.paid_minor",
        ),
        (
            "case fact mistyped",
            case(|c| c.attributes_json = CASE.replace(r#""open""#, r#""s3cr3t-value""#).into()),
            "case.attributes_json.status",
        ),
        (
            "tenant twice",
            case(|c| c.attributes_json = CASE.replace("{", r#"{"tenant":"globex","#).into()),
            "case.attributes_json.tenant",
        ),
        (
            "invalid UTF-8",
            v1::AuthorizeRequest { arguments_json: Bytes::from_static(b"{\"a\":\"\xff\"}"), ..refund_request() },
            "arguments_json",
        ),
        (
            "60,000 deep",
            arguments(&format!(r#"{{"a":{}"#, "[".repeat(60_000))),
            "arguments_json.a[0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0]",
        ),
        ("100,000 deep, over 64 KiB", arguments(&format!(r#"{{"a":{}"#, "[".repeat(100_000))), "arguments_json"),
        ("over 64 KiB", arguments(&format!(r#"{{"a":"{}"}}"#, "x".repeat(65_536))), "arguments_json"),
        ("missing case", v1::AuthorizeRequest { case: None, ..order_check() }, "case"),
        ("case without id", case(|c| c.id.clear()), "case.id"),
        ("missing resource", v1::AuthorizeRequest { resource: None, ..order_check() }, "resource"),
        ("resource without ref", resource(|r| r.r#ref = None), "resource.ref"),
        ("missing action", v1::AuthorizeRequest { action: String::new(), ..order_check() }, "action"),
        ("newline in an id", case(|c| c.id = format!("{VALUE}\n")), "case.id"),
        ("line separator in an id", case(|c| c.id = format!("{VALUE}\u{2028}")), "case.id"),
        (
            "escape in an id",
            v1::AuthorizeRequest { request_id: format!("\u{1b}[31m{VALUE}"), ..order_check() },
            "request_id",
        ),
        (
            "right-to-left in an id",
            resource(|r| r.r#ref.as_mut().unwrap().id = format!("{VALUE}\u{202e}")),
            "resource.ref.id",
        ),
        ("long id", v1::AuthorizeRequest { conversation_id: long.clone(), ..order_check() }, "conversation_id"),
        ("long action", v1::AuthorizeRequest { action: long.clone(), ..order_check() }, "action"),
        (
            "token without operation",
            v1::AuthorizeRequest { approval_token: VALUE.into(), ..order_check() },
            "operation_id",
        ),
        (
            "long token",
            v1::AuthorizeRequest { approval_token: "x".repeat(16_385), operation_id: "o".into(), ..order_check() },
            "approval_token",
        ),
        (
            "33 texts",
            v1::AuthorizeRequest {
                untrusted: vec![v1::UntrustedText { source: "s".into(), text: VALUE.into() }; 33],
                ..order_check()
            },
            "untrusted",
        ),
        (
            "text without source",
            v1::AuthorizeRequest {
                untrusted: vec![v1::UntrustedText { source: String::new(), text: VALUE.into() }],
                ..order_check()
            },
            "untrusted[0].source",
        ),
        ("no model for a write", v1::AuthorizeRequest { model: None, ..refund_request() }, "model"),
        (
            "unknown step",
            v1::AuthorizeRequest { delegation: asserted("support-bot", "rep-1", VALUE), ..order_check() },
            "delegation.asserted.step",
        ),
        (
            "plain beside gates",
            v1::AuthorizeRequest {
                plain: Some(v1::PlainRequest {
                    principal: reference(),
                    action: reference(),
                    resource: reference(),
                    ..Default::default()
                }),
                ..Default::default()
            },
            "plain",
        ),
        (
            "plain beside a call",
            v1::AuthorizeRequest { plain: Some(v1::PlainRequest::default()), ..order_check() },
            "plain",
        ),
        (
            "attributes of a bundle's type",
            v1::AuthorizeRequest {
                action: "field.read".into(),
                ..resource(|r| {
                    r.r#ref = Some(v1::EntityReference { r#type: "Field".into(), id: "email".into() });
                    r.attributes_json = r#"{"classification":"public"}"#.into();
                })
            },
            "resource.attributes_json",
        ),
        (
            "attributes of the case as resource",
            v1::AuthorizeRequest {
                action: "ticket.read".into(),
                ..resource(|r| {
                    r.r#ref = Some(v1::EntityReference { r#type: "Case".into(), id: "case-1".into() });
                    r.attributes_json = CASE.into();
                })
            },
            "resource.attributes_json",
        ),
    ]
}

fn reference() -> Option<v1::EntityReference> {
    Some(v1::EntityReference { r#type: "User".into(), id: VALUE.into() })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_input_is_refused_by_name_recorded_and_never_echoed() {
    let app = App::start().await;
    let mut client = app.decisions().await;
    let rows = rows();
    for (wrong, request, expected) in &rows {
        let status = client.authorize(request.clone()).await.expect_err(wrong);
        assert_eq!(status.code(), Code::InvalidArgument, "{wrong}: {status:?}");
        assert_eq!(field(&status), *expected, "{wrong}");
        assert!(!format!("{status:?}").contains(VALUE), "{wrong}: {status:?}");
    }
    let lines = lines(&app.data);
    let refusals: Vec<_> = lines.iter().filter(|line| line["type"] == "refusal").collect();
    assert_eq!(refusals.len(), rows.len(), "each refusal has an audit line");
    assert!(!format!("{lines:?}").contains(VALUE));
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_over_the_size_limit_are_refused() {
    let app = App::start().await;
    let mut client = app.decisions().await;
    let text = |length| vec![v1::UntrustedText { source: "s".into(), text: "x".repeat(length) }];
    let over_a_call = v1::AuthorizeRequest { untrusted: text(1 << 20), ..order_check() };
    assert_eq!(client.authorize(over_a_call).await.unwrap_err().code(), Code::ResourceExhausted);
    let over_a_message = v1::AuthorizeRequest { untrusted: text(5 << 20), ..order_check() };
    let status = client.authorize(over_a_message).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::ResourceExhausted, "the message is larger than 4 MiB"));
    // The connection stays usable.
    assert_eq!(client.authorize(order_check()).await.unwrap().into_inner().decision(), v1::Decision::Allow);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_requests_are_counted_per_peer_and_second() {
    let app = App::start().await;
    let mut grpc = tonic::client::Grpc::new(app.channel().await);
    for _ in 0..5 {
        grpc.ready().await.unwrap();
        let path = http::uri::PathAndQuery::from_static("/countersign.v1.DecisionService/Authorize");
        // Field 2 is a string here and an embedded message in the real request, so prost refuses it.
        let codec = tonic_prost::ProstCodec::<v1::EntityReference, v1::AuthorizeResponse>::default();
        let garbage = v1::EntityReference { r#type: "r".into(), id: "\u{1}not a delegation".into() };
        let status =
            grpc.unary::<_, v1::AuthorizeResponse, _>(tonic::Request::new(garbage), path, codec).await.unwrap_err();
        assert_ne!(status.code(), Code::Ok);
    }
    grpc.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/countersign.v1.DecisionService/Steal");
    let codec = tonic_prost::ProstCodec::<v1::AuthorizeRequest, v1::AuthorizeResponse>::default();
    let status =
        grpc.unary::<_, v1::AuthorizeResponse, _>(tonic::Request::new(order_check()), path, codec).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    app.pdp.tick().await;
    let lines = lines(&app.data);
    let count = |kind: &str| {
        let counted = lines
            .iter()
            .filter(|line| line["type"] == "refusals" && line["kind"] == kind && line["peer"] == "127.0.0.1");
        counted.map(|line| line["count"].as_u64().unwrap()).sum::<u64>()
    };
    assert_eq!((count("unreadable"), count("unimplemented")), (5, 1), "{lines:?}");
    app.stop().await;
}

/// Threat 17: of 200 concurrent calls on one connection, each is either answered or refused over the limit.
#[tokio::test(flavor = "multi_thread")]
async fn calls_over_the_concurrency_limit_are_refused() {
    let app = App::start_with(|config, _| config.limits.concurrent_requests = 1).await;
    let client = app.decisions().await;
    let calls = (0..200).map(|_| {
        let mut client = client.clone();
        tokio::spawn(async move { client.authorize(order_check()).await })
    });
    let (mut answered, mut refused) = (0, 0);
    for call in calls.collect::<Vec<_>>() {
        match call.await.unwrap() {
            Ok(_) => answered += 1,
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted);
                refused += 1;
            }
        }
    }
    assert_eq!(answered + refused, 200);
    assert!(answered > 0);
    assert_eq!(lines(&app.data).iter().filter(|line| line["type"] == "decision").count(), answered);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn arbitrary_bytes_do_not_stop_the_server() {
    use proptest::strategy::{Strategy, ValueTree};
    let app = App::start().await;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let noise = proptest::collection::vec(proptest::num::u8::ANY, 0..400);
    for round in 0..300 {
        let mut bytes = noise.new_tree(&mut runner).unwrap().current();
        if round % 3 == 0 {
            // Every third message is a valid one with a few bytes changed.
            let mut message = refund_request().encode_to_vec();
            for (index, byte) in bytes.iter().take(4).enumerate() {
                let at = (usize::from(*byte) + index * 97) % message.len();
                message[at] ^= byte.rotate_left(3);
            }
            bytes = message;
        }
        let Ok(request) = v1::AuthorizeRequest::decode(bytes.as_slice()) else { continue };
        let _answer_or_error = app.decisions().await.authorize(request).await;
    }
    assert_eq!(
        app.decisions().await.authorize(order_check()).await.unwrap().into_inner().decision(),
        v1::Decision::Allow
    );
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversized_stream_message_ends_the_stream_and_is_counted() {
    let app = App::start().await;
    let text = vec![v1::UntrustedText { source: "s".into(), text: "x".repeat(5 << 20) }];
    let large = v1::AuthorizeRequest { request_id: "large".into(), untrusted: text, ..order_check() };
    let items = tokio_stream::iter([v1::AuthorizeStreamRequest { request: Some(large) }]);
    let mut answers = app.decisions().await.authorize_stream(items).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap_err().code(), Code::ResourceExhausted);
    app.pdp.tick().await;
    assert!(lines(&app.data).iter().any(|line| line["type"] == "refusals" && line["kind"] == "resource_exhausted"));
    app.stop().await;
}

/// Threat 17: a flood of the largest messages, deepest documents and longest lists has bounded memory.
#[tokio::test(flavor = "multi_thread")]
async fn memory_is_bounded_under_a_flood_of_large_requests() {
    let folder = crate::harness::temp();
    let server = crate::harness::Process::serve(&folder.path().join("data"), &[], |_| {});
    let client = v1::decision_service_client::DecisionServiceClient::new(crate::harness::channel(server.grpc).await);
    let text = vec![v1::UntrustedText { source: "s".into(), text: "x".repeat(900 << 10) }];
    let large = v1::AuthorizeRequest { untrusted: text, ..order_check() };
    let deep = arguments(&"[".repeat(65_536));
    let long = arguments(&format!(r#"{{"a":[{}1]}}"#, "1,".repeat(32_000)));
    for _ in 0..10 {
        let calls: Vec<_> = (0..16)
            .map(|index| {
                let mut client = client.clone();
                let request = [large.clone(), deep.clone(), long.clone(), order_check()][index % 4].clone();
                let batch = v1::AuthorizeBatchRequest { requests: vec![request; 4], semantic: 0 };
                tokio::spawn(async move { client.authorize_batch(batch).await.unwrap().into_inner().results.len() })
            })
            .collect();
        for call in calls {
            assert_eq!(call.await.unwrap(), 4);
        }
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.child.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 400 << 10, "peak memory {kib} KiB");
}

/// Texts with thousands of telephone numbers give a bounded number of redactions, and no number is shown.
#[tokio::test(flavor = "multi_thread")]
async fn texts_with_thousands_of_numbers_have_a_bounded_record_and_show_none() {
    let app = App::start().await;
    let text = "+49 30 1234567, ".repeat(4 * 1024);
    let untrusted = (0..4).map(|_| v1::UntrustedText { source: "ticket.body".into(), text: text.clone() }).collect();
    let request = v1::PrepareContextRequest {
        delegation: asserted("support-bot", "rep-1", "drafting"),
        case: order_check().case,
        model: Some(v1::Model { name: "m".into(), ..Default::default() }),
        untrusted,
        ..Default::default()
    };
    let prepared = app.decisions().await.prepare_context(request).await.unwrap().into_inner();
    assert_eq!(prepared.segments.iter().filter(|segment| segment.channel() == v1::Channel::Untrusted).count(), 4);
    assert!(prepared.segments.iter().all(|segment| !segment.text.contains("1234567")));
    // 512 are listed one by one, and the rest of each text as one redaction.
    assert_eq!(prepared.redactions.len(), 512 + 4);
    let recorded: usize =
        lines(&app.data).iter().filter(|line| line["type"] == "redactions").map(|line| line.to_string().len()).sum();
    assert!(recorded < 128 * 1024, "{recorded}");
    app.stop().await;
}

/// A record with thousands of withheld values has a bounded audit record, too: 512 redactions are listed.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_with_thousands_of_withheld_values_has_a_bounded_audit_record() {
    let app = App::start().await;
    let numbers: Vec<String> = (10_000_000..10_004_090).map(|number: u32| number.to_string()).collect();
    let names: Vec<String> = "abcdefgh".chars().map(|letter| letter.to_string().repeat(60)).collect();
    let opened = names.iter().map(|name| format!(r#"{{"{name}":"#)).collect::<String>();
    let request = v1::PrepareContextRequest {
        delegation: asserted("support-bot", "rep-1", "drafting"),
        case: order_check().case,
        model: Some(v1::Model { name: "m".into(), ..Default::default() }),
        record_json: format!("{opened}[{}]{}", numbers.join(","), "}".repeat(names.len())).into(),
        ..Default::default()
    };
    let prepared = app.decisions().await.prepare_context(request).await.unwrap().into_inner();
    assert_eq!((prepared.fields.len(), prepared.redactions.len()), (4090, 512));
    let recorded: usize = lines(&app.data).iter().map(|line| line.to_string().len()).sum();
    assert!(recorded < 512 * 1024, "{recorded}");
    app.stop().await;
}

/// A text may fill an automaton's cache with states of its own. The next text must be matched as fast as
/// before; otherwise one caller could make the texts of others more expensive.
#[test]
fn random_texts_do_not_slow_down_later_texts() {
    let detectors = crate::texts::detectors();
    let values = Values::new(ValueKey::new([1; 16]));
    let calm = "My order has not come yet, could you please look where it is? ".repeat(1024);
    let took = |text: &str| {
        let start = clock_gettime(ClockId::ThreadCPUTime);
        std::hint::black_box(detectors.private(text, "", &values));
        let end = clock_gettime(ClockId::ThreadCPUTime);
        (end.tv_sec - start.tv_sec) as f64 + (end.tv_nsec - start.tv_nsec) as f64 / 1e9
    };
    let least = |text: &str| (0..3).map(|_| took(text)).fold(f64::MAX, f64::min);
    let before = least(&calm);
    let random: Vec<_> = shapes::shapes(&crate::harness::policies()).into_iter().rev().take(4).collect();
    for shape in random.iter().cycle().take(8) {
        let text = shape.text(calm.len());
        // Each random character leads to a new state, and must not cost as much as a slower engine.
        let random = least(&text);
        assert!(random < 20.0 * before, "{}: {random} s, {before} s of an ordinary text", shape.name);
    }
    let after = least(&calm);
    assert!(after < 5.0 * before, "{before} s before, {after} s after");
}

/// The results for each detector's worst texts are bounded, and their spans are whole characters of the text.
#[test]
fn the_worst_texts_have_bounded_results() {
    let detectors = crate::texts::detectors();
    let key = ValueKey::new([1; 16]);
    let mut values = Values::new(key);
    (4..64).for_each(|length| values.add_digest(key.digest(&"x1".repeat(32)[..length]), SensitiveKind::Secret));
    let shapes = shapes::shapes(&crate::harness::policies());
    assert!(shapes.len() >= 300, "{}", shapes.len());
    for shape in shapes {
        let text = shape.text(512);
        let views = Views::of(&text);
        assert!(views.folded.text().len() <= text.len() * GROWTH_MAX && views.undone.len() <= 2, "{}", shape.name);
        let untrusted = Untrusted { source: "ticket.body".into(), text: text.clone() };
        assert!(detectors.screen(&[untrusted]).findings.len() <= 512, "{}", shape.name);
        let located = detectors.private(&text, "What is your password?", &values);
        assert!(located.windows(2).all(|pair| pair[0].span.1 <= pair[1].span.0), "{}", shape.name);
        assert!(
            located
                .iter()
                .all(|located| text.get(located.span.0..located.span.1).is_some_and(|value| !value.is_empty()))
        );
        let draft = Draft {
            text: &text,
            sources: vec![&text],
            customer: vec![&text],
            has_sources: true,
            unknown_source: false,
            confidence: 90,
            locale: "",
            redacted: &values,
        };
        assert!(detectors.draft(&draft).findings.len() <= 1024, "{}", shape.name);
    }
}

/// Four times the text should cost about four times the CPU time. The limit of 8 is far from both 4 and a
/// quadratic 16, so the machine's speed does not matter. `make soak` tries all shapes, and longer texts.
#[test]
fn no_text_costs_more_than_linear_time() {
    let (step, bytes) = if std::env::var_os("COUNTERSIGN_SOAK").is_some() { (1, 16 * 1024) } else { (16, 2048) };
    let detectors = crate::texts::detectors();
    let values = Values::new(ValueKey::new([1; 16]));
    let cpu = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    };
    for shape in shapes::shapes(&crate::harness::policies()).into_iter().step_by(step) {
        let took = |bytes: usize| {
            let text = shape.text(bytes);
            let once = || {
                let start = cpu();
                let untrusted = Untrusted { source: "ticket.body".into(), text: text.clone() };
                std::hint::black_box((detectors.screen(&[untrusted]), detectors.private(&text, "", &values)));
                cpu() - start
            };
            (0..5).map(|_| once()).fold(f64::MAX, f64::min)
        };
        let growth = took(4 * bytes) / took(bytes);
        assert!(growth < 8.0, "{}: four times the text costs {growth:.1} times as much", shape.name);
    }
}

/// Work that still waits at its caller's deadline is not started: no text is read and no answer is recorded.
#[tokio::test(flavor = "multi_thread")]
async fn queued_work_is_not_started_after_its_deadline() {
    use crate::harness::content::{text, to_prepare};
    const WAITING: usize = 20;
    let app = App::start().await;
    let client = app.decisions().await;
    let long = "a@b.de ".repeat(9000);
    let many = v1::PrepareContextRequest { untrusted: vec![text("ticket.body", &long); 10], ..to_prepare("") };
    // The text threads can't read this much in time on any machine, so each call waits for those before it.
    let calls = (0..WAITING).map(|_| {
        let (mut client, mut request) = (client.clone(), tonic::Request::new(many.clone()));
        request.set_timeout(std::time::Duration::from_millis(1));
        tokio::spawn(async move { client.prepare_context(request).await.map(|_| ()) })
    });
    for call in calls.collect::<Vec<_>>() {
        let code = call.await.unwrap().unwrap_err().code();
        assert!(matches!(code, Code::Cancelled | Code::DeadlineExceeded), "{code:?}");
    }
    // A call without a deadline is answered, and is the only decision.
    let prepared = client.clone().prepare_context(to_prepare("Hello")).await.unwrap().into_inner();
    let decisions: Vec<_> = lines(&app.data).into_iter().filter(|line| line["type"] == "decision").collect();
    assert_eq!(decisions.len(), 1, "{decisions:?}");
    assert_eq!(decisions[0]["evaluation_id"], prepared.evaluation_id.as_str());
    app.stop().await;
}

/// Each row of SECURITY.md must name an existing test, or a source file with unit tests.
#[test]
fn every_attack_of_the_security_policy_has_its_test() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("SECURITY.md")).unwrap();
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| attack")).collect();
    assert!(rows.len() > 15, "{}", rows.len());
    for row in rows {
        let named: Vec<&str> = row.rsplit('|').nth(1).unwrap().split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "no test: {row}");
        for name in named {
            let (file, wanted) = match name.split_once("::") {
                Some((file, test)) => (root.join(format!("tests/it/{file}.rs")), format!("fn {test}(")),
                None => (root.join("src").join(name), "mod tests".to_owned()),
            };
            let code = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            assert!(code.contains(&wanted), "test {name} does not exist");
        }
    }
}

/// Too much metadata gets a status of gRPC, not one of HTTP that clients report as UNKNOWN.
#[tokio::test(flavor = "multi_thread")]
async fn metadata_beyond_its_limit_is_resource_exhausted() {
    let app = App::start().await;
    let mut client = app.decisions().await;
    for (bytes, expected) in [
        (8 * 1024, tonic::Code::Ok),
        (16 * 1024, tonic::Code::ResourceExhausted),
        (60 * 1024, tonic::Code::ResourceExhausted),
    ] {
        let mut request = tonic::Request::new(crate::harness::order_check());
        request.metadata_mut().insert("x-more", "m".repeat(bytes).parse().unwrap());
        let code = client.authorize(request).await.err().map_or(tonic::Code::Ok, |status| status.code());
        assert_eq!(code, expected, "{bytes}");
    }
    app.stop().await;
}
