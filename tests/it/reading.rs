//! `countersign audit show`, `case`, `export`, `check` and `prove`, on the log of a real server.

use std::path::Path;

use countersign::api::v1;
use countersign::api::v1::decision_service_client::DecisionServiceClient;
use countersign::audit::complete;
use countersign::audit::story::{Entry, Filter, read};
use countersign::model::time::Timestamp;
use serde_json::Value;

use crate::harness::people::{Desk, credit};
use crate::harness::{App, Process, channel, command, lines, order_check, refund_request, temp};

/// Whether a line is one that a filter takes.
type Takes<'a> = &'a dyn Fn(&Value) -> bool;

/// Runs a command on a log; returns its exit code and what it printed.
fn audit(arguments: &[&str]) -> (Option<i32>, String) {
    let output = command(&[&["audit"], arguments].concat()).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code(), text)
}

fn found(folders: &[std::path::PathBuf], filter: &Filter) -> Vec<Entry> {
    let mut all = vec![];
    read(folders, filter, |entry| {
        all.push(entry);
        true
    })
    .unwrap();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_case_is_told_in_one_command_and_every_filter_takes_its_lines_alone() {
    let folder = temp();
    let data = folder.path().join("data");
    let server = Process::serve(&data, &[], |_| {});
    let mut desk = Desk::new(channel(server.grpc).await);
    let mut client = DecisionServiceClient::new(channel(server.grpc).await);
    let allowed = client.authorize(order_check()).await.unwrap().into_inner();
    let report = v1::ReportOutcomeRequest {
        evaluation_id: allowed.evaluation_id.clone(),
        status: v1::OutcomeStatus::Succeeded.into(),
        outcome_token: allowed.outcome_token.clone(),
        ..Default::default()
    };
    client.report_outcome(report).await.unwrap();
    let denied = client.authorize(refund_request()).await.unwrap().into_inner();
    let approval = desk.request(&credit(400)).await.unwrap();
    let other = order_check();
    let case = other.case.clone().map(|case| v1::Case { id: "case-77".into(), ..case });
    client.authorize(v1::AuthorizeRequest { case, ..other }).await.unwrap();
    assert!(server.stop().success());
    let log = data.join("audit");
    let log = log.to_str().unwrap();

    let (code, told) = audit(&["case", "case-1", log]);
    assert_eq!(code, Some(0), "{told}");
    for words in [
        "allow, order.check on Order::order-1",
        "outcome.reported",
        "approval.requested, credit",
        "decided by: ",
        "from support-tools",
        allowed.evaluation_id.as_str(),
        approval.id.as_str(),
    ] {
        assert!(told.contains(words), "{words} in {told}");
    }
    assert!(!told.contains("case-77") && !told.contains("no outcome was reported of order.check"), "{told}");
    let (code, told) = audit(&["case", "case-none", log]);
    assert_eq!((code, told.trim()), (Some(1), "0 lines about case case-none"));

    let written = lines(&data);
    let filters: [(&[&str], Takes<'_>); 8] = [
        (&["--case", "case-77"], &|line| line["case"]["id"] == "case-77"),
        (&["--evaluation", &denied.evaluation_id], &|line| line["evaluation_id"] == denied.evaluation_id.as_str()),
        (&["--decision", "deny"], &|line| line["decision"] == "deny"),
        (&["--type", "approval"], &|line| line["type"].as_str().unwrap().starts_with("approval")),
        (&["--agent", "refund-bot"], &|line| {
            line["chain"]["agent"] == "refund-bot" || line["approval"]["agent"] == "refund-bot"
        }),
        (&["--policy", "agent.checks-orders"], &|line| line.to_string().contains("\"agent.checks-orders\"")),
        (&["--tenant", "acme", "--decision", "allow"], &|line| {
            line["case"]["tenant"] == "acme" && line["decision"] == "allow"
        }),
        (&["--since", "2020-01-01T00:00:00Z", "--until", "2020-01-02T00:00:00Z"], &|_| false),
    ];
    for (filter, takes) in filters {
        let (code, shown) = audit(&[&["show", log, "-o", "json"], filter].concat());
        assert_eq!(code, Some(0), "{shown}");
        let shown: Vec<Value> = shown.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let expected: Vec<&Value> = written.iter().filter(|line| takes(line)).collect();
        assert_eq!(shown.iter().collect::<Vec<_>>(), expected, "{filter:?}");
        assert_eq!(expected.is_empty(), filter[0] == "--since", "{filter:?}");
    }
    let (_, first) = audit(&["show", log, "--limit", "2"]);
    assert_eq!(first.lines().count(), 2, "{first}");
    let (code, wrong) = audit(&["show", log, "--since", "yesterday"]);
    assert!(code == Some(64) && wrong.contains("no RFC 3339 time"), "{wrong}");

    let (_, rows) = audit(&["export", log, "--form", "csv"]);
    assert_eq!(rows.lines().count(), written.len() + 1, "{rows}");
    let header = rows.lines().next().unwrap();
    assert!(header.starts_with("time,log,seq,type,decision"), "{header}");
    let (_, events) = audit(&["export", log, "--form", "ocsf", "--type", "decision"]);
    for event in events.lines() {
        let event: Value = serde_json::from_str(event).unwrap();
        assert_eq!((event["class_uid"].as_u64(), event["type_uid"].as_u64()), (Some(6003), Some(600_399)));
        assert!([1, 2].contains(&event["action_id"].as_u64().unwrap()), "{event}");
        assert!(event["metadata"]["uid"].is_string() && event["api"]["operation"].is_string(), "{event}");
    }
    let (_, events) = audit(&["export", log, "--form", "ocsf", "--type", "approval"]);
    let event: Value = serde_json::from_str(events.lines().next().unwrap()).unwrap();
    assert_eq!((event["class_uid"].as_u64(), event["category_uid"].as_u64()), (Some(3005), Some(3)));
    let (_, same) = audit(&["export", log]);
    let text: String = std::fs::read_to_string(Path::new(log).join("seg-00000000000000000000.jsonl")).unwrap();
    assert_eq!(same, text);

    let out = folder.path().join("evidence");
    std::fs::create_dir(&out).unwrap();
    std::fs::set_permissions(&out, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let (code, proven) = audit(&["prove", log, "--evaluation", &denied.evaluation_id, "--out", out.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{proven}");
    let files: Vec<&str> = proven.lines().collect();
    let key = data.join("keys/audit-checkpoint.vkey");
    let (code, text) = audit(&["check-proof", files[0], files[1], "--checkpoint-key", key.to_str().unwrap()]);
    assert!(code == Some(0) && text.starts_with("proven: the line is in countersign/"), "{text}");
    let (code, text) = audit(&["check-proof", files[1], files[1], "--checkpoint-key", key.to_str().unwrap()]);
    assert!(code == Some(3) && text.contains("the proof does not hold"), "{text}");
    let (code, verified) = audit(&["verify", log]);
    assert!(code == Some(0) && verified.contains("checkpoints agree with the lines"), "{verified}");
    assert!(!verified.contains("were not checked"), "{verified}");
    let (code, complete) = audit(&["check", log]);
    assert!(code == Some(0) && complete.contains("decisions"), "{complete}");
}

/// Lines of several replicas are one story, in the order of their times, whether or not there is an index.
#[tokio::test(flavor = "multi_thread")]
async fn lines_of_several_logs_are_merged_by_time() {
    let mut folders = vec![];
    let mut kept = vec![];
    for _ in 0..2 {
        let app = App::start_in(
            &{
                let folder = temp();
                let data = folder.path().join("data");
                kept.push(folder);
                data
            },
            |config, _| config.audit.segment_mib = 1,
        )
        .await;
        let mut client = app.decisions().await;
        for _ in 0..12 {
            let batch = v1::AuthorizeBatchRequest { requests: vec![order_check(); 50], semantic: 0 };
            client.authorize_batch(batch).await.unwrap();
        }
        folders.push(app.data.join("audit"));
        app.stop().await;
    }
    let all = found(&folders, &Filter::default());
    assert!(all.is_sorted_by_key(|entry| entry.at));
    assert_eq!(all.iter().filter(|entry| entry.kind() == "decision").count(), 1200);
    let of =
        |folder: &Path| all.iter().filter(|entry| entry.folder == folder).map(|entry| entry.seq).collect::<Vec<_>>();
    for folder in &folders {
        let seqs = of(folder);
        assert_eq!(seqs, (0..seqs.len() as u64).collect::<Vec<_>>());
    }
    let decisions: Vec<&Entry> = all.iter().filter(|entry| entry.kind() == "decision").collect();
    let middle = decisions[decisions.len() / 2].clone();
    let evaluation = Filter { evaluation: Some(middle.text("/evaluation_id").to_owned()), ..Filter::default() };
    for _ in 0..2 {
        // The first run makes the indexes, the second one uses them.
        let one = found(&folders, &evaluation);
        assert!(one.len() == 1 && one[0].line == middle.line, "{} lines", one.len());
        let since = Filter { case: Some("case-1".into()), since: Some(middle.at), ..Filter::default() };
        let later = found(&folders, &since);
        assert_eq!(
            later.len(),
            all.iter().filter(|entry| entry.at >= middle.at && entry.text("/case/id") == "case-1").count()
        );
    }
    assert!(
        std::fs::read_dir(&folders[0]).unwrap().any(|file| file
            .unwrap()
            .path()
            .extension()
            .is_some_and(|end| end == "index"))
    );
}

/// What a log lacks is listed, once it is too late for it to come.
#[tokio::test(flavor = "multi_thread")]
async fn an_allow_without_an_outcome_is_listed_after_an_hour() {
    let app = App::start().await;
    let mut client = app.decisions().await;
    let [one, other] = [0, 1].map(|_| order_check());
    let reported = client.authorize(one).await.unwrap().into_inner();
    let forgotten = client.authorize(other).await.unwrap().into_inner();
    let report = v1::ReportOutcomeRequest {
        evaluation_id: reported.evaluation_id,
        status: v1::OutcomeStatus::Failed.into(),
        outcome_token: reported.outcome_token,
        ..Default::default()
    };
    client.report_outcome(report).await.unwrap();
    let folders = [app.data.join("audit")];
    let data = app.data.clone();
    let _kept = app.stop().await;
    let last = found(&folders, &Filter::default()).pop().unwrap().at;
    let soon = complete::check(&folders, None, last).unwrap();
    assert!(soon.is_complete() && soon.decisions == 2, "{soon:?}");
    let later = last.plus(std::time::Duration::from_secs(2 * 3600));
    let late = complete::check(&folders, None, later).unwrap();
    assert_eq!(
        late.without_outcome.iter().map(|lacking| &lacking.about).collect::<Vec<_>>(),
        [&forgotten.evaluation_id]
    );
    assert!(
        late.without_allow.is_empty() && late.unknown_bundles.is_empty() && late.without_stop.is_empty(),
        "{late:?}"
    );
    // A log without its beginning: the bundle and the allows are unknown.
    let segment = data.join("audit/seg-00000000000000000000.jsonl");
    let text = std::fs::read_to_string(&segment).unwrap();
    let outcome = text.lines().find(|line| line.contains("outcome.reported")).unwrap();
    let decision = text.lines().rfind(|line| line.contains("\"type\":\"decision\"")).unwrap();
    std::fs::write(&segment, format!("{decision}\n{outcome}\n")).unwrap();
    let partial = complete::check(&folders, None, later).unwrap();
    assert_eq!((partial.without_allow.len(), partial.unknown_bundles.len()), (1, 1), "{partial:?}");
    assert!(Timestamp::parse(&partial.without_allow[0].at).is_some());
}
