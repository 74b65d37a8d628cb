//! AuthorizeBatch and AuthorizeStream over gRPC.

use std::collections::BTreeSet;
use std::sync::Arc;

use countersign::api::v1;
use countersign::api::v1::authorize_result::Result as Item;
use countersign::api::v1::decision_service_client::DecisionServiceClient;
use tokio_stream::StreamExt;
use tonic::Code;

use crate::audit::Disk;
use crate::harness::{App, asserted, lines, order_check, refund_request};

/// Gives the request an id and a case of its own, because the writes of one case are limited.
fn named(id: &str, request: v1::AuthorizeRequest) -> v1::AuthorizeRequest {
    let case = request.case.clone().map(|case| v1::Case { id: format!("case-{id}"), ..case });
    v1::AuthorizeRequest { request_id: id.into(), case, ..request }
}

fn denied() -> v1::AuthorizeRequest {
    v1::AuthorizeRequest { delegation: asserted("support-bot", "rep-1", "intake"), ..order_check() }
}

fn unreadable() -> v1::AuthorizeRequest {
    v1::AuthorizeRequest { case: None, ..order_check() }
}

fn outcome(result: &v1::AuthorizeResult) -> String {
    match result.result.as_ref().unwrap() {
        Item::Response(response) => format!("{} {}", response.request_id, response.decision().as_str_name()),
        Item::Error(error) => format!("{} {} {}", error.request_id, error.code, error.field),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_answered_in_order_with_one_timestamp_despite_a_failing_item() {
    let app = App::start().await;
    let requests =
        vec![named("a", order_check()), named("b", denied()), named("c", unreadable()), named("d", refund_request())];
    let batch =
        v1::AuthorizeBatchRequest { requests: requests.clone(), semantic: v1::BatchSemantic::ExecuteAll.into() };
    let results = app.decisions().await.authorize_batch(batch).await.unwrap().into_inner().results;
    let outcomes: Vec<String> = results.iter().map(outcome).collect();
    assert_eq!(outcomes, ["a DECISION_ALLOW", "b DECISION_DENY", "c 3 case", "d DECISION_ALLOW"]);
    let times: BTreeSet<String> = lines(&app.data)[2..].iter().map(|line| line["ts"].to_string()).collect();
    assert_eq!(times.len(), 1, "one instant");
    let batch = v1::AuthorizeBatchRequest { requests, semantic: v1::BatchSemantic::DenyOnFirstDeny.into() };
    let results = app.decisions().await.authorize_batch(batch).await.unwrap().into_inner().results;
    assert_eq!(results.iter().map(outcome).collect::<Vec<_>>(), ["a DECISION_ALLOW", "b DECISION_DENY"]);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_that_are_empty_too_long_or_ambiguous_are_refused() {
    let app = App::start().await;
    let mut client = app.decisions().await;
    let batch = |requests, semantic| v1::AuthorizeBatchRequest { requests, semantic };
    for (wrong, batch) in [
        ("empty", batch(vec![], 1)),
        ("51 items", batch(vec![order_check(); 51], 1)),
        ("the same id twice", batch(vec![named("a", order_check()), named("a", order_check())], 1)),
        ("an unknown semantic", batch(vec![order_check()], 7)),
    ] {
        assert_eq!(client.authorize_batch(batch).await.expect_err(wrong).code(), Code::InvalidArgument, "{wrong}");
    }
    assert_eq!(client.authorize_batch(batch(vec![order_check(); 50], 0)).await.unwrap().into_inner().results.len(), 50);
    let token = v1::AuthorizeRequest { approval_token: "t".into(), operation_id: "o".into(), ..order_check() };
    let results = client.authorize_batch(batch(vec![token], 1)).await.unwrap().into_inner().results;
    assert_eq!(outcome(&results[0]), " 3 approval_token");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_answers_each_item_and_survives_failing_items() {
    let app = App::start().await;
    let kinds = [order_check(), denied(), unreadable(), refund_request()];
    let items: Vec<_> = (0..200).map(|index| named(&format!("r{index}"), kinds[index % 4].clone())).collect();
    let nameless = order_check();
    let requests =
        items.into_iter().chain([nameless]).map(|request| v1::AuthorizeStreamRequest { request: Some(request) });
    let requests = tokio_stream::iter(requests.chain([v1::AuthorizeStreamRequest { request: None }]));
    let mut answers = app.decisions().await.authorize_stream(requests).await.unwrap().into_inner();
    let mut seen = std::collections::BTreeMap::new();
    let mut nameless = 0;
    while let Some(answer) = answers.message().await.unwrap() {
        let text = outcome(&answer.result.unwrap());
        let (id, rest) = text.split_once(' ').unwrap();
        if id.is_empty() {
            assert_eq!(rest, "3 request_id");
            nameless += 1;
            continue;
        }
        assert!(seen.insert(id.to_owned(), rest.to_owned()).is_none(), "{id} twice");
    }
    assert_eq!((seen.len(), nameless), (200, 2));
    for (id, found) in seen {
        let expected = match id[1..].parse::<usize>().unwrap() % 4 {
            0 | 3 => "DECISION_ALLOW",
            1 => "DECISION_DENY",
            _ => "3 case",
        };
        assert_eq!(found, expected, "{id}");
    }
    app.stop().await;
}

/// Answers on a stream are matched by their ids, so they differ there. Elsewhere, processes of one tool service may
/// number their calls alike.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_id_in_flight_is_refused_on_its_stream_and_nowhere_else() {
    let disk = Arc::new(Disk::default());
    let seam = Arc::clone(&disk);
    let app = App::start_with(move |_, seams| seams.disk = seam).await;
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    let mut client = app.decisions().await;
    let item = || v1::AuthorizeStreamRequest { request: Some(named("same", order_check())) };
    let mut answers =
        client.authorize_stream(tokio_stream::wrappers::ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let mut refused = None;
    // The second request of a pair may arrive after the first one was answered, so several pairs are tried.
    for _ in 0..100 {
        disk.stall();
        sender.send(item()).await.unwrap();
        sender.send(item()).await.unwrap();
        // Unary calls with this id wait only for the disk.
        let mut client = app.decisions().await;
        let alike = [(); 2].map(|()| {
            let mut client = client.clone();
            tokio::spawn(async move { client.authorize(named("same", order_check())).await })
        });
        disk.go_on();
        for _ in 0..2 {
            match answers.next().await.unwrap().unwrap().result.unwrap().result.unwrap() {
                v1::authorize_result::Result::Error(error) => refused = Some(error.message),
                v1::authorize_result::Result::Response(response) => {
                    assert_eq!(response.decision(), v1::Decision::Allow);
                }
            }
        }
        for call in alike {
            assert_eq!(call.await.unwrap().unwrap().get_ref().decision(), v1::Decision::Allow);
        }
        assert!(client.authorize(named("same", order_check())).await.is_ok());
        if refused.is_some() {
            break;
        }
    }
    assert!(refused.unwrap().contains("belongs to a request of this stream that is still in flight"));
    sender.send(item()).await.unwrap();
    let after = answers.next().await.unwrap().unwrap().result.unwrap().result.unwrap();
    assert!(matches!(after, v1::authorize_result::Result::Response(_)), "the id is free again: {after:?}");
    drop(sender);
    app.stop().await;
}

/// Connections and streams without a call under way don't delay a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_server_waits_for_calls_and_for_nothing_else() {
    let data = crate::harness::temp();
    let server = crate::harness::Process::serve(data.path(), &[], |_| {});
    let channel = || crate::harness::channel(server.grpc);
    let silent = tokio::net::TcpStream::connect(server.grpc).await.unwrap();
    let mut idle = DecisionServiceClient::new(channel().await);
    assert_eq!(idle.authorize(order_check()).await.unwrap().get_ref().decision(), v1::Decision::Allow);
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let mut streaming = DecisionServiceClient::new(channel().await);
    let answers = streaming.authorize_stream(tokio_stream::wrappers::ReceiverStream::new(receiver)).await.unwrap();
    sender.send(v1::AuthorizeStreamRequest { request: Some(named("one", order_check())) }).await.unwrap();
    let mut answers = answers.into_inner();
    assert!(answers.next().await.unwrap().is_ok());
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel().await);
    let mut watch = health.watch(tonic_health::pb::HealthCheckRequest::default()).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().is_some());
    let log = tokio::task::spawn_blocking(move || server.log_of_stop()).await.unwrap();
    assert!(log.contains("server.draining") && !log.contains("server.cut"), "{log}");
    assert!(answers.next().await.is_none(), "the stream ended as one that its server ends");
    drop((silent, sender));
}
