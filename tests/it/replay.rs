//! Evidence of decisions, `countersign replay`, and the erasure of a person's data, on the data of a real server.

use std::path::Path;

use countersign::api::v1;
use countersign::api::v1::admin_service_client::AdminServiceClient;
use countersign::api::v1::decision_service_client::DecisionServiceClient;
use countersign::audit::key::DigestKey;
use serde_json::Value;
use tonic::transport::Channel;

use crate::harness::content::{to_evaluate, to_prepare, to_send};
use crate::harness::people::{Desk, Issuer, bearer, credit, with_token};
use crate::harness::{Process, channel, command, copy, lines, open_root, order_check, refund_request, temp, verify};

const CALM: &str = "Thank you for your message. We look into it and come back to you.";

/// Runs `countersign replay` on the data of a server; returns the exit code and what it printed as JSON.
fn replay(data: &Path, more: &[&str]) -> (Option<i32>, Value) {
    let mut replay = command(&[&["replay", "-o", "json"], more].concat());
    replay.env("COUNTERSIGN__DATA", data).env("COUNTERSIGN__DEVELOPMENT", "true");
    let output = replay.output().unwrap();
    let printed = serde_json::from_slice(&output.stdout);
    (output.status.code(), printed.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr))))
}

/// Makes decisions of every kind: allowed, denied, refused, by an approval and its retry, hypothetical, contexts and drafts.
async fn decide(server: &Process, data: &Path) {
    let mut desk = Desk::new(channel(server.grpc).await);
    let mut client = DecisionServiceClient::new(channel(server.grpc).await);
    for request in [order_check(), refund_request()] {
        assert_eq!(desk.ask(&request).await.decision(), v1::Decision::Allow);
    }
    let dry = v1::AuthorizeRequest { dry_run: true, ..refund_request() };
    assert_eq!(desk.ask(&dry).await.mode(), v1::Mode::DryRun);
    let step = v1::AuthorizeRequest {
        delegation: crate::harness::asserted("support-bot", "rep-1", "drafting"),
        ..order_check()
    };
    assert_eq!(desk.ask(&step).await.decision(), v1::Decision::Deny);
    let other = v1::AuthorizeRequest {
        case: order_check().case.map(|case| v1::Case { tenant: "globex".into(), ..case }),
        ..order_check()
    };
    assert_eq!(desk.ask(&other).await.decision(), v1::Decision::Deny);
    let (_, token) = desk.approved(&credit(400), &Issuer::of(data)).await;
    for _ in 0..2 {
        assert_eq!(desk.ask(&with_token(&credit(400), &token, "op-1")).await.decision(), v1::Decision::Allow);
    }
    assert_eq!(desk.ask(&with_token(&credit(400), &token, "op-2")).await.decision(), v1::Decision::Deny);
    let prepared = client.prepare_context(to_prepare("The phone does not charge.")).await.unwrap().into_inner();
    let released = client.evaluate_output(to_evaluate(CALM, &prepared)).await.unwrap().into_inner();
    assert_eq!(released.disposition(), v1::Disposition::Release);
    let claims = client.evaluate_output(to_evaluate("We refunded you.", &prepared)).await.unwrap().into_inner();
    assert_ne!(claims.disposition(), v1::Disposition::Release);
    let send = to_send(&released.draft_digest, &released.release_token, "op-3");
    assert_eq!(desk.ask(&send).await.decision(), v1::Decision::Allow);
}

fn number(report: &Value, pointer: &str) -> u64 {
    report.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("{pointer} of {report}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_by_the_same_bundle_finds_no_difference_and_a_changed_policy_changes_its_own_decisions_alone() {
    let folder = temp();
    let data = folder.path().join("data");
    let server = Process::serve(&data, &[], |_| {});
    decide(&server, &data).await;
    let decisions = lines(&data).iter().filter(|line| line["type"] == "decision").count();

    // The server may run meanwhile.
    let (code, report) = replay(&data, &[]);
    assert_eq!((code, number(&report, "/different")), (Some(0), 0), "{report:#}");
    assert_eq!(report["not_replayable"].as_object().unwrap().values().filter(|number| **number != 0).count(), 0);
    // The call of another tenant's case and the used token were denied before policies were asked.
    assert_eq!(number(&report, "/before_policies"), 2, "{report:#}");
    assert_eq!(number(&report, "/replayed") + 2, u64::try_from(decisions).unwrap());
    assert!(server.stop().success());

    // One policy forbids what was allowed twice, once in earnest and once hypothetically.
    let candidate = folder.path().join("candidate");
    copy(&open_root().join("policies"), &candidate);
    let policy =
        r#"@id("refund.none") forbid (principal is Agent, action == Action::"refund.create_request", resource);"#;
    std::fs::write(candidate.join("more.cedar"), policy).unwrap();
    let (code, report) = replay(&data, &["--bundle", candidate.to_str().unwrap()]);
    assert_eq!((code, number(&report, "/different")), (Some(3), 2), "{report:#}");
    let changes = report["changes"].as_array().unwrap();
    assert_eq!(changes.len(), 1, "{report:#}");
    assert_eq!(
        (changes[0]["action"].as_str(), changes[0]["was"].as_str()),
        (Some("refund.create_request"), Some("allow"))
    );
    assert_eq!(changes[0]["now"], "deny not_permitted");
    assert_eq!(changes[0]["added"], serde_json::json!(["refund.none"]));
    // The same policies decide, but one has another obligation.
    let other = folder.path().join("other");
    copy(&open_root().join("policies"), &other);
    for file in std::fs::read_dir(&other).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
        let text = std::fs::read_to_string(&file).unwrap();
        let id = r#"@id("agent.proposes")"#;
        std::fs::write(&file, text.replace(id, &format!("{id} @obligation(\"notify:risk\")"))).unwrap();
    }
    let (code, obliged) = replay(&data, &["--bundle", other.to_str().unwrap()]);
    // The policy decided two refunds and the reply that was sent.
    assert_eq!((code, number(&obliged, "/different")), (Some(3), 3), "{obliged:#}");
    assert!(obliged["changes"][0]["now"].as_str().unwrap().contains("notify:risk"), "{obliged:#}");
    let (code, report) = replay(&data, &["--bundle", candidate.to_str().unwrap(), "--until", "2020-01-01T00:00:00Z"]);
    assert_eq!((code, number(&report, "/replayed")), (Some(0), 0));

    let shown =
        command(&["replay", "--bundle", candidate.to_str().unwrap()]).env("COUNTERSIGN__DATA", &data).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    let change = "2  refund.create_request: allow -> deny not_permitted\n         now decided by refund.none\n";
    assert!(shown.contains(change), "{shown}");
    assert!(shown.contains("2 were denied before policies were asked"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_replayed_is_counted_by_its_cause() {
    let folder = temp();
    let data = folder.path().join("data");
    let server = Process::serve(&data, &[], |_| {});
    let mut client = DecisionServiceClient::new(channel(server.grpc).await);
    client.authorize(order_check()).await.unwrap();
    client.authorize(refund_request()).await.unwrap();
    assert!(server.stop().success());
    let audit = data.join("audit");
    let evidence = audit.join("seg-00000000000000000000.evidence");
    let written = std::fs::read_to_string(&evidence).unwrap();
    let counts = |(code, report): (Option<i32>, Value)| {
        // Without any decision that can be replayed, the command fails.
        assert_eq!(code, Some(if report["replayed"] == 0 { 1 } else { 0 }), "{report:#}");
        [
            "/replayed",
            "/not_replayable/without_evidence",
            "/not_replayable/without_key",
            "/not_replayable/without_bundle",
            "/not_replayable/undecryptable",
        ]
        .map(|pointer| number(&report, pointer))
    };
    assert_eq!(counts(replay(&data, &[])), [2, 0, 0, 0, 0]);
    // One is changed, so that its line has another digest.
    let changed = written.replacen("AAAA", "AAAB", 1);
    let last = written.trim_end().rfind(' ').unwrap();
    let changed = if changed == written {
        format!("{}A{}\n", &written[..last + 1], &written[last + 2..].trim_end())
    } else {
        changed
    };
    assert_ne!(changed, written);
    std::fs::write(&evidence, changed).unwrap();
    assert_eq!(counts(replay(&data, &[])), [1, 1, 0, 0, 0]);
    std::fs::write(&evidence, "").unwrap();
    assert_eq!(counts(replay(&data, &[])), [0, 2, 0, 0, 0]);
    std::fs::write(&evidence, &written).unwrap();
    std::fs::rename(audit.join("bundles"), audit.join("moved")).unwrap();
    assert_eq!(counts(replay(&data, &[])), [0, 0, 0, 2, 0]);
    std::fs::rename(audit.join("moved"), audit.join("bundles")).unwrap();
    assert_eq!(counts(replay(&data, &[])), [2, 0, 0, 0, 0]);
    std::fs::write(data.join("keys/values.key"), [9; 32]).unwrap();
    assert_eq!(counts(replay(&data, &[])), [0, 0, 0, 0, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_keeps_no_evidence_writes_none() {
    let folder = temp();
    let data = folder.path().join("data");
    let server = Process::serve(&data, &[], |command| {
        command.env("COUNTERSIGN__AUDIT__EVIDENCE_DAYS", "0");
    });
    let mut client = DecisionServiceClient::new(channel(server.grpc).await);
    client.authorize(order_check()).await.unwrap();
    assert!(server.stop().success());
    let names: Vec<_> = std::fs::read_dir(data.join("audit"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(names.iter().all(|name| !name.ends_with(".evidence") && name != "bundles"), "{names:?}");
    let (code, report) = replay(&data, &[]);
    assert_eq!((code, number(&report, "/not_replayable/without_evidence")), (Some(1), 1), "{report:#}");
}

/// Many decisions, of which a candidate changes a known number; `make soak` makes 100,000.
#[tokio::test(flavor = "multi_thread")]
async fn exactly_the_decisions_that_a_candidate_changes_differ() {
    let all: usize = if std::env::var_os("COUNTERSIGN_SOAK").is_some() { 100_000 } else { 600 };
    let folder = temp();
    let (data, bundle) = (folder.path().join("data"), folder.path().join("bundle"));
    copy(&open_root().join("policies"), &bundle);
    crate::harness::lift_limits(&bundle);
    let server = Process::serve(&data, &["--bundle", bundle.to_str().unwrap()], |_| {});
    let calls = |from: usize, channel: Channel| async move {
        let mut client = DecisionServiceClient::new(channel);
        for index in (from..all).step_by(16) {
            // Each seventh call asks for more than the candidate permits.
            let amount = if index % 7 == 0 { 3100 } else { 1000 };
            let arguments_json = format!(r#"{{"amount_minor":{amount},"currency":"EUR"}}"#).into();
            client.authorize(v1::AuthorizeRequest { arguments_json, ..refund_request() }).await.unwrap();
        }
    };
    let callers: Vec<_> = {
        let channel = channel(server.grpc).await;
        (0..16).map(|from| tokio::spawn(calls(from, channel.clone()))).collect()
    };
    for caller in callers {
        caller.await.unwrap();
    }
    assert!(server.stop().success());
    let (code, report) = replay(&data, &[]);
    assert_eq!((code, number(&report, "/different")), (Some(0), 0), "{report:#}");
    assert_eq!(number(&report, "/replayed"), u64::try_from(all).unwrap(), "{report:#}");
    let allowed_then: Vec<Value> = lines(&data).into_iter().filter(|line| line["decision"] == "allow").collect();
    let policy = r#"@id("refund.small-alone") forbid (principal is Agent, action == Action::"refund.create_request", resource) when { context.args.amount_minor > 3000 };"#;
    std::fs::write(bundle.join("more.cedar"), policy).unwrap();
    let (code, changed) = replay(&data, &["--bundle", bundle.to_str().unwrap()]);
    assert_eq!((code, number(&changed, "/replayed")), (Some(3), u64::try_from(all).unwrap()));
    assert_eq!(
        number(&changed, "/different"),
        u64::try_from(all.div_ceil(7)).unwrap(),
        "{} allowed: {changed:#}",
        allowed_then.len()
    );
}

/// Returns the files below a folder that contain these bytes.
pub(crate) fn containing(folder: &Path, bytes: &[u8]) -> Vec<String> {
    let mut found = vec![];
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(containing(&path, bytes));
        } else if std::fs::read(&path).unwrap().windows(bytes.len()).any(|window| window == bytes) {
            found.push(path.display().to_string());
        }
    }
    found
}

async fn erase(
    channel: Channel,
    by: &str,
    customer: &str,
    tenant: &str,
) -> Result<v1::EraseSubjectResponse, tonic::Status> {
    let request = v1::EraseSubjectRequest {
        tenant: tenant.into(),
        customer_id: customer.into(),
        reason: "asked for it".into(),
        ..Default::default()
    };
    let erased = AdminServiceClient::new(channel).erase_subject(bearer(request, by)).await;
    erased.map(tonic::Response::into_inner)
}

/// A call of another customer's case.
fn of_another() -> v1::AuthorizeRequest {
    let other = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap().replace("customer-1", "customer-2");
    let call = order_check();
    let case = call.case.clone().map(|case| v1::Case {
        id: "case-2".into(),
        attributes_json: other(&case.attributes_json).into(),
        ..case
    });
    let resource = call
        .resource
        .clone()
        .map(|resource| v1::Resource { attributes_json: other(&resource.attributes_json).into(), ..resource });
    v1::AuthorizeRequest { case, resource, ..call }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erased_customer_is_on_no_disk_and_every_proof_holds() {
    let folder = temp();
    let data = folder.path().join("data");
    let server = Process::serve(&data, &[], |_| {});
    let mut desk = Desk::new(channel(server.grpc).await);
    let issuer = Issuer::of(&data);
    let (approval, token) = desk.approved(&credit(437), &issuer).await;
    let lead = issuer.human("lead-1");
    let open = erase(channel(server.grpc).await, &lead, "customer-1", "acme").await.unwrap_err();
    assert_eq!(open.code(), tonic::Code::FailedPrecondition, "{open}");
    assert_eq!(desk.ask(&with_token(&credit(437), &token, "op-1")).await.decision(), v1::Decision::Allow);
    desk.ask(&of_another()).await;
    let before = replay(&data, &[]).1;
    assert_eq!(number(&before, "/not_replayable/without_key"), 0);
    assert!(!containing(&data, approval.id.as_bytes()).is_empty());
    let id = std::fs::read_to_string(data.join("audit/seg-00000000000000000000.evidence")).unwrap();
    let key = id.split_ascii_whitespace().nth(1).unwrap().to_owned();
    assert!(!containing(&data.join("state"), key.as_bytes()).is_empty());

    // What the reviewer saw, and what the call was, can be shown until then.
    let evidence = |id: &str| {
        let output = command(&["audit", "evidence", id]).env("COUNTERSIGN__DATA", &data).output().unwrap();
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    };
    let shown = evidence(&approval.id);
    assert!(shown.contains(" approval.requested\n") && shown.contains("argument amount_minor at most: 437"), "{shown}");
    // After it comes the call that used the approval.
    assert!(shown.split_once("\n").unwrap().1.starts_with(&approval.display), "{shown}");
    let last = lines(&data).into_iter().rfind(|line| line["action"] == "account.credit").unwrap();
    let used = evidence(last["evaluation_id"].as_str().unwrap());
    assert!(used.contains(r#""amount_minor": 437"#) && used.contains(r#""approval": {"#), "{used}");

    // Nobody but a privacy lead of the tenant may do it.
    for (by, tenant) in [("rep-1", "acme"), ("lead-2", "acme"), ("globex-lead", "acme"), ("lead-1", "globex")] {
        let refused = erase(channel(server.grpc).await, &issuer.human(by), "customer-1", tenant).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{by}: {refused}");
    }
    let unnamed = erase(channel(server.grpc).await, &lead, "", "acme").await.unwrap_err();
    assert_eq!(unnamed.code(), tonic::Code::InvalidArgument);
    let erased = erase(channel(server.grpc).await, &lead, "customer-1", "acme").await.unwrap();
    // One is that of the evidence of today, the other that of approvals.
    assert_eq!(erased.keys, 2);

    // The server still runs: neither database nor journal has the key or the approval's call.
    assert_eq!(
        containing(&data, key.as_bytes()),
        [data.join("audit/seg-00000000000000000000.evidence").display().to_string()]
    );
    // Amounts are in the lines, since the bundle has them recorded.
    for value in ["The customer asks for a credit.", "The account is credited."] {
        assert_eq!(containing(&data, value.as_bytes()), Vec::<String>::new(), "{value}");
    }
    assert!(evidence(&approval.id).contains("its key was erased or has expired"), "{}", evidence(&approval.id));
    // The next decision has a new key, and decisions of others can still be replayed.
    desk.ask(&order_check()).await;
    let after = replay(&data, &[]).1;
    assert_eq!(number(&after, "/replayed"), 2, "{after:#}");
    assert_eq!(number(&after, "/not_replayable/without_key"), number(&before, "/replayed") - 1, "{after:#}");
    assert_eq!(erase(channel(server.grpc).await, &lead, "customer-1", "acme").await.unwrap().keys, 1);
    assert!(server.stop().success());

    verify(&data.join("audit")).unwrap();
    let record = lines(&data).into_iter().find(|line| line["type"] == "subject.erased").unwrap();
    assert_eq!((record["by"]["human"].as_str(), record["tenant"].as_str()), (Some("lead-1"), Some("acme")), "{record}");
    assert!(!record.to_string().contains("customer-1"));
}

/// A case without a customer is a subject of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_case_without_a_customer_is_erased_by_its_id() {
    let folder = temp();
    let data = folder.path().join("data");
    let server = Process::serve(&data, &[], |_| {});
    let mut desk = Desk::new(channel(server.grpc).await);
    let nobody = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap().replace("customer-1", "");
    let call = order_check();
    let case = call.case.clone().map(|case| v1::Case {
        id: "case-7".into(),
        attributes_json: nobody(&case.attributes_json).into(),
        ..case
    });
    let resource = call
        .resource
        .clone()
        .map(|resource| v1::Resource { attributes_json: nobody(&resource.attributes_json).into(), ..resource });
    desk.ask(&v1::AuthorizeRequest { case, resource, ..call }).await;
    desk.ask(&order_check()).await;
    assert_eq!(number(&replay(&data, &[]).1, "/not_replayable/without_key"), 0);
    let token = Issuer::of(&data).human("lead-1");
    let url = format!("http://{}", server.grpc);
    let erase = |id: &str| {
        let arguments =
            ["audit", "erase", "--tenant", "acme", "--case", id, "--reason", "closed", "--server", &url, "-o", "json"];
        let output = command(&arguments).env("COUNTERSIGN_TOKEN", &token).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["keys"].as_u64().unwrap()
    };
    // The data of a case with a customer is the customer's.
    assert_eq!(erase("case-1"), 0);
    assert_eq!(erase("case-7"), 1);
    let after = replay(&data, &[]).1;
    assert_eq!(number(&after, "/not_replayable/without_key"), 1, "{after:#}");
    assert_eq!(number(&after, "/replayed"), 1, "{after:#}");
    assert!(server.stop().success());
    verify(&data.join("audit")).unwrap();
}

/// Evidence has a maximum size, so that a caller who sends much fills no disk. The decision is recorded all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_decision_with_more_than_32_kib_of_inputs_is_recorded_without_evidence() {
    let folder = temp();
    let data = folder.path().join("data");
    let server = Process::serve(&data, &[], |_| {});
    let mut desk = Desk::new(channel(server.grpc).await);
    for size in [20_000, 40_000] {
        let arguments = serde_json::json!({"query": "x".repeat(size)}).to_string();
        let resource = order_check().resource.map(|resource| v1::Resource {
            r#ref: Some(v1::EntityReference { r#type: "Article".into(), id: "article-1".into() }),
            attributes_json: r#"{"product":"phone","region":"eu","policy_set":"standard"}"#.into(),
            ..resource
        });
        let search = v1::AuthorizeRequest {
            action: "knowledge.search".into(),
            arguments_json: arguments.into(),
            resource,
            ..order_check()
        };
        desk.ask(&search).await;
    }
    let decisions: Vec<Value> = lines(&data).into_iter().filter(|line| line["type"] == "decision").collect();
    assert_eq!(decisions.len(), 2);
    assert!(decisions[0]["evidence"].is_string() && decisions[1]["evidence"].is_null(), "{decisions:#?}");
    let report = replay(&data, &[]).1;
    assert_eq!(
        (number(&report, "/replayed"), number(&report, "/not_replayable/without_evidence")),
        (1, 1),
        "{report:#}"
    );
    let kept = std::fs::metadata(data.join("audit/seg-00000000000000000000.evidence")).unwrap().len();
    assert!(kept < 40_000, "{kept} bytes");
    assert!(server.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn replaced_digest_keys_verify_decrypt_and_find_customers_and_make_no_later_line() {
    let folder = temp();
    let data = folder.path().join("data");
    let server = Process::serve(&data, &[], |_| {});
    let issuer = Issuer::of(&data);
    let mut desk = Desk::new(channel(server.grpc).await);
    desk.ask(&order_check()).await;
    let waiting = desk.request(&credit(400)).await.unwrap();
    assert!(server.stop().success());
    let rotate = command(&["keys", "rotate-digests", "--values"]).env("COUNTERSIGN__DATA", &data).output().unwrap();
    assert!(rotate.status.success(), "{}", String::from_utf8_lossy(&rotate.stderr));
    for file in ["audit-digest.earlier", "values.earlier"] {
        let earlier = std::fs::metadata(data.join("keys").join(file)).unwrap();
        assert_eq!(
            (earlier.len(), std::os::unix::fs::PermissionsExt::mode(&earlier.permissions()) & 0o777),
            (32, 0o600)
        );
    }

    let server = Process::serve(&data, &[], |_| {});
    let mut desk = Desk::new(channel(server.grpc).await);
    desk.ask(&order_check()).await;
    // The call that waits was encrypted under the key that was replaced.
    let given = desk.review(&waiting, true, &issuer.human("lead-1")).await.unwrap();
    assert_eq!(given.state(), v1::ApprovalState::Approved);
    let token = desk.fetch(&waiting.id).await.unwrap();
    assert_eq!(desk.ask(&with_token(&credit(400), &token, "op-1")).await.decision(), v1::Decision::Allow);
    assert!(server.stop().success());

    let audit = data.join("audit");
    assert!(verify(&audit).unwrap().keyed);
    let key = DigestKey::read(&data.join("keys/audit-digest.key")).unwrap();
    let keys: Vec<[u8; 32]> = key.all().copied().collect();
    assert_eq!(keys.len(), 2);
    // The first line of the second start is not by the first key, and no later line may be.
    for wrong in [vec![keys[0]], vec![keys[1]], vec![keys[1], keys[0]]] {
        let expected = countersign::audit::verify::Expected { keys: wrong, ..Default::default() };
        let fault = countersign::audit::verify::verify(&audit, &expected).unwrap_err().to_string();
        assert!(fault.contains("was not made with this key"), "{fault}");
    }
    let checks: Vec<Value> = lines(&data).into_iter().filter(|line| line["action"] == "order.check").collect();
    assert_eq!(checks.len(), 2);
    assert_eq!(checks[0]["case"]["customer"], checks[1]["case"]["customer"]);
    assert_ne!(checks[0]["input_digest"], checks[1]["input_digest"]);
    let (code, report) = replay(&data, &[]);
    assert_eq!((code, number(&report, "/not_replayable/undecryptable")), (Some(0), 0), "{report:#}");
}
