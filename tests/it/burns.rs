//! An approval is consumed once: under concurrency, and through kills, restored backups and failovers.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use countersign::api::v1;
use countersign::approvals::store::Store;
use countersign::approvals::store::location::{Location, Options};
use countersign::approvals::store::transitions::{
    Consumed, Consumption, Moved, NewApproval, NewReview, ReceiptKey, Requested, SingleUse, UsedToken,
};
use countersign::audit::disk::{Disk, Segment, SystemDisk};
use countersign::model::approval::{Approval, Binding, BoundCall, Giver, Justification, Review, State, Subject};
use countersign::model::time::Timestamp;
use proptest::prelude::*;
use serde_json::json;

use crate::approvals::signal;
use crate::harness::people::{Desk, Issuer, credit, with_token};
use crate::harness::postgres::Postgres;
use crate::harness::within;
use crate::harness::{
    App, Process, cases, channel, copy, is_open, lift_limits, lines, order_check, policies, temp, unprivileged,
};

/// Threat 5: a replayed approval must not allow a second call.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_concurrent_consumptions_on_two_servers_give_exactly_one_allow() {
    let (postgres, folder) = (Postgres::database(), temp());
    let (keys, bundle) = (folder.path().join("keys"), folder.path().join("bundle"));
    // Lift the rate limits, so that consumption decides and not the case's rate window.
    copy(&policies(), &bundle);
    lift_limits(&bundle);
    let serve = |name: &str| {
        Process::serve(&folder.path().join(name), &["--bundle", bundle.to_str().unwrap()], |command| {
            command
                .env("COUNTERSIGN__STORE__URL", postgres.url())
                .env("COUNTERSIGN__KEYS", &keys)
                .env("COUNTERSIGN__LOG", "off");
            command
                .env("COUNTERSIGN__LIMITS__REQUEST_TIMEOUT_MS", "60000")
                .env("COUNTERSIGN__STORE__TIMEOUT_MS", "10000");
            command.env("COUNTERSIGN__LIMITS__STREAMS_PER_CONNECTION", "1000");
        })
    };
    let servers = [serve("one"), serve("two")];
    let issuer = Issuer::at(&keys);
    let mut desk = Desk::new(channel(servers[0].grpc).await);
    let (approval, token) = desk.approved(&credit(400), &issuer).await;
    let clients = [desk.decisions.clone(), Desk::new(channel(servers[1].grpc).await).decisions];
    let burns = (0..1000).map(|index| {
        let (mut client, call) = (clients[index % 2].clone(), with_token(&credit(400), &token, &format!("op-{index}")));
        tokio::spawn(async move { client.authorize(call).await.unwrap().into_inner() })
    });
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for burn in burns.collect::<Vec<_>>() {
        let answer = burn.await.unwrap();
        let what = if answer.decision() == v1::Decision::Allow {
            "allow".to_owned()
        } else {
            format!("{:?}", answer.reason())
        };
        *reasons.entry(what).or_default() += 1;
    }
    assert_eq!(reasons.get("allow"), Some(&1), "{reasons:?}");
    // The other calls came too late; on a busy machine some of them get no answer from the store in time.
    assert_eq!(reasons.values().sum::<usize>(), 1000, "{reasons:?}");
    assert!(
        reasons.keys().all(|what| ["allow", "ApprovalUsed", "StateUnavailable"].contains(&what.as_str())),
        "{reasons:?}"
    );
    assert!(reasons.get("ApprovalUsed") > Some(&100), "{reasons:?}");
    let allows = ["one", "two"].map(|name| {
        lines(&folder.path().join(name))
            .iter()
            .filter(|line| line["approval"]["id"] == approval.id.as_str() && line["decision"] == "allow")
            .count()
    });
    assert_eq!(allows.iter().sum::<usize>(), 1);
    for server in servers {
        assert!(server.stop().success());
    }
}

/// Concurrent calls have one operation id and different amounts that the approval covers: one is allowed.
#[tokio::test(flavor = "multi_thread")]
async fn of_concurrent_calls_with_one_operation_id_only_one_is_allowed() {
    let postgres = Postgres::database();
    for url in [None, Some(postgres.url())] {
        let app = App::start_with(|config, _| config.store.url = url.clone()).await;
        let issuer = Issuer::of(&app.data);
        let mut desk = Desk::new(app.channel().await);
        let (_, token) = desk.approved(&credit(400), &issuer).await;
        let calls = (0..16).map(|index| {
            let (mut client, call) = (desk.decisions.clone(), with_token(&credit(400 - index), &token, "op-1"));
            tokio::spawn(async move { client.authorize(call).await.unwrap().into_inner() })
        });
        let mut allowed = 0;
        for call in calls.collect::<Vec<_>>() {
            let answer = call.await.unwrap();
            allowed += usize::from(answer.decision() == v1::Decision::Allow);
            let denied = [v1::Reason::ApprovalOutOfScope, v1::Reason::Unspecified];
            assert!(denied.contains(&answer.reason()), "{:?}", answer.reason());
        }
        assert_eq!(allowed, 1);
        assert_eq!(uses(&app.data).len(), 1);
        app.stop().await;
    }
}

/// A disk that kills the process before or after the audit line of a consumption is written.
#[derive(Debug)]
struct KillingDisk {
    before: bool,
}

#[derive(Debug)]
struct KillingSegment {
    below: Box<dyn Segment>,
    before: bool,
    armed: bool,
}

impl Disk for KillingDisk {
    fn open(&self, path: &Path) -> std::io::Result<Box<dyn Segment>> {
        Ok(Box::new(KillingSegment { below: SystemDisk.open(path)?, before: self.before, armed: false }))
    }

    fn sync_folder(&self, path: &Path) -> std::io::Result<()> {
        SystemDisk.sync_folder(path)
    }

    fn free(&self, path: &Path) -> Option<(u64, u64)> {
        SystemDisk.free(path)
    }
}

fn kill_myself() {
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
    std::thread::sleep(Duration::from_secs(60));
}

impl Segment for KillingSegment {
    fn write_all(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let text = String::from_utf8_lossy(bytes);
        self.armed = text.contains(r#""decision":"allow""#) && text.contains(r#""approval":{"#);
        if self.armed && self.before {
            kill_myself();
        }
        self.below.write_all(bytes)
    }

    fn sync(&mut self) -> std::io::Result<()> {
        self.below.sync()?;
        if self.armed {
            kill_myself();
        }
        Ok(())
    }

    fn set_len(&mut self, length: u64) -> std::io::Result<()> {
        self.below.set_len(length)
    }

    fn is_at(&self, path: &Path, length: u64) -> std::io::Result<bool> {
        self.below.is_at(path, length)
    }
}

/// Runs a server, started by the tests below, in a process that dies when it first consumes an approval.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "started by the tests below"]
async fn server_process_for_kill_tests() {
    let variable = |name: &str| Some(std::env::var_os(name)?.into_string().unwrap());
    let (data, kill, url) = (variable("CHILD_DATA").unwrap(), variable("CHILD_KILL").unwrap(), variable("CHILD_STORE"));
    let before = kill == "before";
    let app = App::start_in(Path::new(&data), |config, seams| {
        config.store.url = url;
        seams.disk = Arc::new(KillingDisk { before });
    })
    .await;
    // Begin with a newline, because the test runner has already begun a line.
    writeln!(std::io::stdout(), "\n{}", json!({"grpc": app.grpc.to_string(), "admin": app.admin.to_string()})).unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
}

fn start_child(data: &Path, kill: &str, url: Option<String>) -> Process {
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new(&program);
    command.args(["burns::server_process_for_kill_tests", "--exact", "--ignored", "--nocapture"]);
    command.env("CHILD_DATA", data).env("CHILD_KILL", kill);
    command.envs(url.map(|url| ("CHILD_STORE", url))).stdout(Stdio::piped()).stderr(Stdio::null());
    // Another user can't start a program in a closed folder; in that case the child runs as the current user.
    if is_open(&program) && is_open(&crate::harness::policies().join("bundle.yaml")) {
        unprivileged(&mut command);
    }
    let mut child = command.spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let started: serde_json::Value =
        lines.filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(&line).unwrap()).next().unwrap();
    let address = |name: &str| started[name].as_str().unwrap().parse().unwrap();
    Process::of(child, address("grpc"), address("admin"))
}

/// Returns the evaluation ids of an audit log's consumptions.
fn uses(data: &Path) -> Vec<String> {
    let used = |line: &serde_json::Value| line["decision"] == "allow" && line["approval"]["id"].is_string();
    lines(data)
        .iter()
        .filter(|line| used(line))
        .map(|line| line["evaluation_id"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_around_the_audit_write_gives_the_same_answer_after_a_restart() {
    let postgres = Postgres::database();
    for (kill, url) in
        [("before", None), ("after", None), ("before", Some(postgres.url())), ("after", Some(postgres.url()))]
    {
        let folder = temp();
        let data = folder.path().join("data");
        let mut server = start_child(&data, kill, url.clone());
        let issuer = Issuer::of(&data);
        let mut desk = Desk::new(channel(server.grpc).await);
        let (_, token) = desk.approved(&credit(400), &issuer).await;
        assert!(desk.decisions.authorize(with_token(&credit(400), &token, "op-1")).await.is_err(), "no answer: {kill}");
        assert!(!server.child.wait().unwrap().success());
        let recorded = uses(&data);
        assert_eq!(recorded.len(), usize::from(kill == "after"), "{kill}");

        let app = App::start_in(&data, |config, _| config.store.url = url.clone()).await;
        let mut desk = Desk::new(app.channel().await);
        let answer = desk.ask(&with_token(&credit(400), &token, "op-1")).await;
        assert_eq!((answer.decision(), answer.repeated), (v1::Decision::Allow, true), "{kill}: {answer:?}");
        let other = desk.ask(&with_token(&credit(400), &token, "op-2")).await;
        assert_eq!((other.decision(), other.reason()), (v1::Decision::Deny, v1::Reason::ApprovalUsed), "{kill}");
        let again = desk.ask(&with_token(&credit(400), &token, "op-1")).await;
        assert_eq!((again.evaluation_id.as_str(), &again.audit), (answer.evaluation_id.as_str(), &answer.audit));
        assert_eq!(uses(&data), [answer.evaluation_id], "one record: {kill}");
        crate::harness::verify(&data.join("audit")).unwrap();
        app.stop().await;
    }
}

/// If a replica never comes back, another one records its outbox entry once, and gives the answer.
#[tokio::test(flavor = "multi_thread")]
async fn another_replica_drains_the_outbox_of_a_killed_replica() {
    let (postgres, folder) = (Postgres::database(), temp());
    let data = folder.path().join("data");
    let mut server = start_child(&data, "before", Some(postgres.url()));
    let issuer = Issuer::of(&data);
    let mut desk = Desk::new(channel(server.grpc).await);
    let (_, token) = desk.approved(&credit(400), &issuer).await;
    assert!(desk.decisions.authorize(with_token(&credit(400), &token, "op-1")).await.is_err());
    assert!(!server.child.wait().unwrap().success());
    // Set the dead replica's last heartbeat into the future, and later into the past.
    sqlx::any::install_default_drivers();
    let mut connection = <sqlx::AnyConnection as sqlx::Connection>::connect(&postgres.url()).await.unwrap();
    let beat = "UPDATE replicas SET at = CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)";
    let dead = format!("{beat} + 3600000000");
    assert_eq!(sqlx::query(sqlx::AssertSqlSafe(dead)).execute(&mut connection).await.unwrap().rows_affected(), 1);
    let app = App::start_with(|config, _| {
        config.store.url = Some(postgres.url());
        config.keys = Some(data.join("keys"));
        config.limits.request_timeout_ms = 1000;
    })
    .await;
    let mut desk = Desk::new(app.channel().await);
    // As long as the other replica may be alive, the operation gets no answer.
    assert!(desk.decisions.authorize(with_token(&credit(400), &token, "op-1")).await.is_err());
    assert_eq!(uses(&app.data), Vec::<String>::new());
    let gone = format!("{beat} - 4000001");
    sqlx::query(sqlx::AssertSqlSafe(gone)).execute(&mut connection).await.unwrap();
    let answer = desk.ask(&with_token(&credit(400), &token, "op-1")).await;
    assert_eq!((answer.decision(), answer.repeated), (v1::Decision::Allow, true));
    assert_eq!(uses(&app.data), [answer.evaluation_id]);
    let line = lines(&app.data)
        .into_iter()
        .find(|line| line["approval"]["id"].is_string() && line["decision"] == "allow")
        .unwrap();
    assert!(line["left_by"].is_string());
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_database_voids_earlier_approvals() {
    for stopped_in_order in [true, false] {
        let folder = temp();
        let data = folder.path().join("data");
        let app = App::start_in(&data, |_, _| {}).await;
        let issuer = Issuer::of(&data);
        let mut desk = Desk::new(app.channel().await);
        let (approval, token) = desk.approved(&credit(400), &issuer).await;
        app.stop().await;
        let backup = folder.path().join("backup");
        let state = data.join("state");
        std::fs::create_dir(&backup).unwrap();
        for file in std::fs::read_dir(&state)
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|file| file.file_name() != "replica.json")
        {
            std::fs::copy(file.path(), backup.join(file.file_name())).unwrap();
        }
        let noted = std::fs::read(state.join("replica.json")).unwrap();
        let app = App::start_in(&data, |_, _| {}).await;
        let mut desk = Desk::new(app.channel().await);
        assert_eq!(desk.ask(&with_token(&credit(400), &token, "op-1")).await.decision(), v1::Decision::Allow);
        app.stop().await;
        if !stopped_in_order {
            // Restore an older note, as after a crash: the audit log still contains what the note lacks.
            std::fs::write(state.join("replica.json"), noted).unwrap();
        }
        for old in std::fs::read_dir(&state)
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|file| file.file_name() != "replica.json")
        {
            std::fs::remove_file(old.path()).unwrap();
        }
        for file in std::fs::read_dir(&backup).unwrap().map(|entry| entry.unwrap()) {
            std::fs::copy(file.path(), state.join(file.file_name())).unwrap();
        }
        let app = App::start_in(&data, |_, _| {}).await;
        let mut desk = Desk::new(app.channel().await);
        let answer = desk.ask(&with_token(&credit(400), &token, "op-2")).await;
        assert_eq!(
            (answer.decision(), answer.reason()),
            (v1::Decision::Deny, v1::Reason::ApprovalUnverifiable),
            "{stopped_in_order}"
        );
        assert_eq!(desk.fetch(&approval.id).await.unwrap(), "", "no new token either");
        // Approvals that are granted from now on are valid.
        let (_, token) = desk.approved(&credit(300), &issuer).await;
        assert_eq!(desk.ask(&with_token(&credit(300), &token, "op-3")).await.decision(), v1::Decision::Allow);
        app.stop().await;
    }
}

/// PostgreSQL fails over to an older state while the server runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_failover_to_an_older_state_voids_earlier_approvals() {
    let (mut postgres, folder) = (Postgres::start(), temp());
    let start = || App::start_with(|config, _| config.store.url = Some(postgres.url()));
    let app = start().await;
    let issuer = Issuer::of(&app.data);
    let mut desk = Desk::new(app.channel().await);
    let (approval, token) = desk.approved(&credit(400), &issuer).await;
    assert_eq!(desk.ask(&order_check()).await.decision(), v1::Decision::Allow);
    postgres.stop();
    postgres.back_up(&folder.path().join("backup"));
    postgres.resume();
    let used = within("new connection", async {
        loop {
            // The pool's connections are closed; retry until it has new ones.
            let answer = desk.ask(&with_token(&credit(400), &token, "op-1")).await;
            if answer.reason() != v1::Reason::StateUnavailable {
                break answer;
            }
        }
    })
    .await;
    assert_eq!(used.decision(), v1::Decision::Allow);
    signal(&app, v1::SignalSubjectKind::Agent, "support-bot", "kill_switch", "event-1").await.unwrap();
    postgres.stop();
    postgres.restore(&folder.path().join("backup"));
    postgres.resume();
    for operation in ["op-2", "op-3", "op-4"] {
        let answer = desk.ask(&with_token(&credit(400), &token, operation)).await;
        assert_eq!(answer.decision(), v1::Decision::Deny, "{answer:?}");
        app.pdp.refresh().await;
    }
    let answer = within("settled store", async {
        loop {
            let answer = desk.ask(&with_token(&credit(400), &token, "op-5")).await;
            if answer.reason() != v1::Reason::StateUnavailable {
                break answer;
            }
            app.pdp.refresh().await;
        }
    })
    .await;
    assert_eq!((answer.decision(), answer.reason()), (v1::Decision::Deny, v1::Reason::ApprovalUnverifiable));
    assert_eq!(desk.fetch(&approval.id).await.unwrap(), "");
    // The kill switch stays in force, although the restored state lacks it.
    app.pdp.refresh().await;
    assert_eq!(desk.ask(&order_check()).await.reason(), v1::Reason::NotPermitted);
    // The case can request approvals again, also for the same call as before.
    app.pdp.sweep().await;
    for (amount, operation) in [(300, "op-6"), (400, "op-7")] {
        let (_, token) = desk.approved(&credit(amount), &issuer).await;
        assert_eq!(desk.ask(&with_token(&credit(amount), &token, operation)).await.decision(), v1::Decision::Allow);
    }
    app.stop().await;
}

/// Threat 24: a revoked key verifies nothing after the next reload.
#[tokio::test(flavor = "multi_thread")]
async fn rotated_keys_still_verify_their_tokens_and_revoked_keys_do_not() {
    use countersign::jose::keyring::{self, Purpose, Status};
    let app = App::start().await;
    let keys = app.data.join("keys");
    let issuer = Issuer::of(&app.data);
    let mut desk = Desk::new(app.channel().await);
    let (_, first) = desk.approved(&credit(400), &issuer).await;
    let (_, second) = desk.approved(&credit(300), &issuer).await;
    let published = |text: &str| {
        let set: serde_json::Value = serde_json::from_str(text).unwrap();
        set["keys"].as_array().unwrap().iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let before = published(&crate::harness::get(app.admin, "/jwks.json").await.1);
    assert_eq!(before.len(), 4, "a current and a next key for each of two purposes");
    let now = Timestamp::from_seconds(crate::harness::people::seconds());
    assert!(keyring::rotate(&keys, Purpose::Approval, now, false).is_err(), "the next key is too young");
    keyring::rotate(&keys, Purpose::Approval, now.plus(Duration::from_secs(601)), false).unwrap();
    let reload = || async { app.pdp.reload(countersign::pdp::reload::Trigger::Asked).await.unwrap() };
    reload().await;
    let after = published(&crate::harness::get(app.admin, "/jwks.json").await.1);
    assert_eq!(after.len(), 5);
    assert!(
        before.iter().all(|kid| after.contains(kid)),
        "the next key was published before it signed, and the previous one still is"
    );
    assert_eq!(
        desk.ask(&with_token(&credit(400), &first, "op-1")).await.decision(),
        v1::Decision::Allow,
        "by the previous key"
    );
    let previous = keyring::list(&keys, Purpose::Approval)
        .unwrap()
        .into_iter()
        .find(|key| key.status == Status::Previous)
        .unwrap();
    keyring::revoke(&keys, &previous.kid).unwrap();
    reload().await;
    assert_eq!(desk.ask(&with_token(&credit(300), &second, "op-2")).await.reason(), v1::Reason::ApprovalUnverifiable);
    assert!(!published(&crate::harness::get(app.admin, "/jwks.json").await.1).contains(&previous.kid));
    // Without a current key nothing can be signed.
    let current =
        keyring::list(&keys, Purpose::Binding).unwrap().into_iter().find(|key| key.status == Status::Current).unwrap();
    keyring::revoke(&keys, &current.kid).unwrap();
    reload().await;
    assert_eq!(desk.decisions.authorize(credit(200)).await.unwrap_err().code(), tonic::Code::Unavailable);
    app.stop().await;
}

/// The name of a data folder may contain characters that are special in URLs.
#[tokio::test(flavor = "multi_thread")]
async fn a_data_folder_name_with_url_characters_works() {
    let folder = temp();
    let data = folder.path().join("a b%20c?d#e=ü&mode=memory");
    let app = App::start_in(&data, |_, _| {}).await;
    let issuer = Issuer::of(&data);
    let (_, token) = Desk::new(app.channel().await).approved(&credit(400), &issuer).await;
    app.stop().await;
    assert!(std::fs::metadata(data.join("state/state.db")).unwrap().len() > 0);
    let app = App::start_in(&data, |_, _| {}).await;
    let used = Desk::new(app.channel().await).ask(&with_token(&credit(400), &token, "op-1")).await;
    assert_eq!(used.decision(), v1::Decision::Allow, "the approval was stored");
    app.stop().await;
}

// ---- the store against a plain model --------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
enum Step {
    Consumption(usize, usize, u8),
    End(usize),
    Request(usize),
    Review(usize, u8, bool),
    Wait(i64),
}

fn step() -> impl Strategy<Value = Step> {
    let index = 0..4_usize;
    prop_oneof![
        3 => index.clone().prop_map(Step::Request),
        4 => (index.clone(), 0..3_u8, prop::bool::weighted(0.8)).prop_map(|(index, person, approves)| Step::Review(index, person, approves)),
        4 => (index.clone(), 0..3_usize, 0..2_u8).prop_map(|(index, operation, digest)| Step::Consumption(index, operation, digest)),
        1 => index.prop_map(Step::End),
        2 => (1..40_i64).prop_map(Step::Wait),
    ]
}

/// The plain model of one approval.
#[derive(Clone, Debug, Default)]
struct Model {
    state: Option<State>,
    approvers: Vec<u8>,
    until: i64,
    receipts: BTreeMap<usize, u8>,
}

const QUORUM: u32 = 2;
const REVIEW: i64 = 100;
const USE: i64 = 50;

impl Model {
    fn at(&self, now: i64) -> Option<State> {
        match self.state {
            Some(State::Pending | State::Approved) if self.until <= now => Some(State::Expired),
            state => state,
        }
    }
}

pub(crate) fn pending(index: usize, now: i64) -> Approval {
    let call: BoundCall = serde_json::from_value(json!({
        "v": "", "environment": "", "tenant": "acme", "case": "c", "case_version": "", "step": "", "supervisor": {"iss": "", "sub": "s"},
        "agent": {"iss": "", "sub": "a"}, "audience": "t", "action": "x", "resource_type": "", "resource_id": "", "resource_version": "",
        "exact": {}, "at_most": {},
    }))
    .unwrap();
    let binding = Binding {
        evaluation_id: String::new(),
        template: "t".into(),
        giver: Giver::Reviewers,
        quorum: QUORUM,
        requires: vec![],
        policy: String::new(),
        supervisor_person: None,
        customer: String::new(),
        conversation: String::new(),
        risk: String::new(),
        findings: None,
        generation: String::new(),
        consent: None,
        call,
    };
    Approval {
        id: format!("apr_{index}"),
        state: State::Pending,
        generation: String::new(),
        revision: 0,
        digest: format!("digest-{index}"),
        binding,
        justification: Justification::default(),
        display: String::new(),
        reversibility: String::new(),
        reviews: vec![],
        requested_at: Timestamp::from_seconds(now),
        review_until: Timestamp::from_seconds(now + REVIEW),
        approved_at: Timestamp::default(),
        approved_until: Timestamp::default(),
        denial_reason: String::new(),
        suggested: String::new(),
        repeats: 0,
    }
}

async fn walk(store: &Store, steps: &[Step]) -> Result<(), TestCaseError> {
    let mut models: BTreeMap<usize, Model> = BTreeMap::new();
    let mut now = 1_800_000_000;
    for step in steps {
        match step {
            Step::Wait(seconds) => now += seconds,
            Step::Request(index) => {
                if models.contains_key(index) {
                    continue;
                }
                let new = NewApproval {
                    approval: pending(*index, now),
                    draft: String::new(),
                    caps: (99, 99, 99),
                    cool_down: Duration::ZERO,
                    record: json!({}),
                };
                prop_assert!(matches!(store.request(new).await.unwrap(), Requested::New(_)));
                models.insert(*index, Model { state: Some(State::Pending), until: now + REVIEW, ..Model::default() });
            }
            Step::Review(index, person, approves) => {
                let review = Review {
                    reviewer: Subject { iss: String::new(), sub: format!("h{person}") },
                    person: format!("p{person}"),
                    approves: *approves,
                    at: Timestamp::from_seconds(now),
                    reason: String::new(),
                };
                let usable = Duration::from_secs(USE.unsigned_abs());
                let new = NewReview {
                    id: format!("apr_{index}"),
                    review,
                    suggested: String::new(),
                    usable,
                    quorum: QUORUM,
                    record: json!({}),
                };
                let moved = store.review(new).await.unwrap();
                let Some(model) = models.get_mut(index) else {
                    prop_assert_eq!(moved, Moved::Missing);
                    continue;
                };
                match model.at(now) {
                    Some(State::Pending) if model.approvers.contains(person) => prop_assert_eq!(moved, Moved::Twice),
                    Some(State::Pending) => {
                        model.approvers.extend(approves.then_some(*person));
                        let complete = model.approvers.len() >= usize::try_from(QUORUM).unwrap();
                        let state = match (approves, complete) {
                            (false, _) => State::Denied,
                            (true, true) => State::Approved,
                            (true, false) => State::Pending,
                        };
                        model.state = Some(state);
                        model.until = if state == State::Approved { now + USE } else { model.until };
                        prop_assert!(
                            matches!(&moved, Moved::Done(transition) if transition.state == state),
                            "{:?} {:?}",
                            moved,
                            state
                        );
                    }
                    other => prop_assert_eq!(moved, Moved::Late(other.unwrap())),
                }
            }
            Step::End(index) => {
                let moved = store
                    .end(format!("apr_{index}"), String::new(), Timestamp::from_seconds(now), json!({}))
                    .await
                    .unwrap();
                let Some(model) = models.get_mut(index) else {
                    prop_assert_eq!(moved, Moved::Missing);
                    continue;
                };
                let ended = match model.at(now) {
                    Some(State::Approved) => Some(State::Revoked),
                    Some(State::Pending) => Some(State::Cancelled),
                    _ => None,
                };
                match ended {
                    Some(state) => {
                        prop_assert!(matches!(&moved, Moved::Done(transition) if transition.state == state));
                        model.state = Some(state);
                    }
                    None => prop_assert_eq!(moved, Moved::Late(model.at(now).unwrap())),
                }
            }
            Step::Consumption(index, operation, digest) => {
                let key = ReceiptKey {
                    tenant: "acme".into(),
                    caller: "t".into(),
                    approval: format!("apr_{index}"),
                    operation: format!("op{operation}"),
                };
                let burn = Consumption {
                    tokens: vec![UsedToken { what: SingleUse::Approval, key, generation: String::new() }],
                    call_digest: format!("call{digest}"),
                    answer: format!("answer {operation}"),
                    record: json!({}),
                    halted: Default::default(),
                    issued_at: None,
                    reservations: vec![],
                    evaluation_id: String::new(),
                    at: Timestamp::from_seconds(now),
                };
                let burned = store.consume(burn).await.unwrap();
                let Some(model) = models.get_mut(index) else {
                    prop_assert_eq!(burned, Consumed::Lost);
                    continue;
                };
                match (model.receipts.get(operation), model.at(now)) {
                    (Some(first), _) => {
                        let expected = (format!("call{first}"), format!("answer {operation}"));
                        prop_assert!(
                            matches!(&burned, Consumed::Repeated(receipt) if (receipt.call_digest.clone(), receipt.answer.clone()) == expected)
                        );
                    }
                    (None, Some(State::Approved)) => {
                        prop_assert!(matches!(burned, Consumed::Now(_)), "{:?}", burned);
                        model.state = Some(State::Consumed);
                        model.receipts.insert(*operation, *digest);
                    }
                    (None, _) => prop_assert_eq!(burned, Consumed::Lost),
                }
            }
        }
        for (index, model) in &models {
            let found = store.approval(&format!("apr_{index}")).await.unwrap().unwrap();
            prop_assert_eq!(Some(found.state_at(Timestamp::from_seconds(now))), model.at(now));
            prop_assert!(model.receipts.len() <= 1, "consumed by one operation");
        }
    }
    Ok(())
}

fn histories(location: impl Fn(&Path) -> Location, count: u32) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build().unwrap();
    let config = ProptestConfig { cases: count, max_shrink_iters: 200, ..ProptestConfig::default() };
    proptest!(config, |(steps in prop::collection::vec(step(), 1..60))| {
        let folder = temp();
        let options = Options {
            location: location(folder.path()),
            timeout: Duration::from_secs(5),
            connections: 2,
            replica: "r".into(),
            boot: "b".into(),
            generation: "g".into(),
            seen: None,
            sealing: Some(countersign::sealing::DeploymentKeys::new([[7; 32]])),
            notes: folder.path().to_owned(),
        };
        runtime.block_on(async {
            let store = Store::open(options).await.unwrap();
            let walked = walk(&store, &steps).await;
            store.close().await;
            walked
        })?;
    });
}

#[test]
fn random_histories_on_sqlite_match_the_model() {
    histories(|folder| Location::Sqlite(folder.join("state.db")), cases(64));
}

#[test]
fn random_histories_on_postgresql_match_the_model() {
    let postgres = Postgres::database();
    let made = std::sync::atomic::AtomicUsize::new(0);
    let database = |_: &Path| {
        // Each history gets its own database.
        let name = format!("d{}", made.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        postgres.create(&name);
        Location::Postgres(postgres.url_of(&name))
    };
    histories(database, cases(16).min(200));
}
