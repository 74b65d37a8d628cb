//! The server as a process of its own that is killed, or whose disk is full.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use countersign::api::v1;
use countersign::api::v1::decision_service_client::DecisionServiceClient;
use rustix::process::Signal;
use tonic::Code;

use crate::harness::{Process, channel, is_root, lines, open_root, order_check, program, temp, verify};

/// Returns the number of rounds of kill and restart; a soak runs more.
fn rounds() -> usize {
    if std::env::var_os("COUNTERSIGN_SOAK").is_some() { 200 } else { 10 }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_decision_survives_a_kill_under_load() {
    let folder = temp();
    let data = folder.path().join("data");
    let mut acknowledged = BTreeSet::new();
    for round in 0..rounds() {
        let server = Process::serve(&data, &[], |_| {});
        let client = DecisionServiceClient::new(channel(server.grpc).await);
        let callers: Vec<_> = (0..8)
            .map(|_| {
                let mut client = client.clone();
                tokio::spawn(async move {
                    let mut seen = vec![];
                    while let Ok(response) = client.authorize(order_check()).await {
                        seen.push(response.into_inner().evaluation_id);
                    }
                    seen
                })
            })
            .collect();
        // The server is killed after a number of answers, not after a time.
        let mut probe = client.clone();
        for _ in 0..20 + round % 10 * 7 {
            acknowledged.insert(probe.authorize(order_check()).await.unwrap().into_inner().evaluation_id);
        }
        server.signal(Signal::KILL);
        for caller in callers {
            acknowledged.extend(caller.await.unwrap());
        }
        drop(server);
    }
    // A last start cuts torn lines, and the server then stops gracefully.
    assert!(Process::serve(&data, &[], |_| {}).stop().success());
    let report = verify(&data.join("audit")).unwrap();
    assert_eq!(report.unfinished, 0);
    let recorded: BTreeSet<String> =
        lines(&data).iter().filter_map(|line| line["evaluation_id"].as_str().map(str::to_owned)).collect();
    let lost: Vec<_> = acknowledged.difference(&recorded).collect();
    assert!(lost.is_empty(), "{} acknowledged decisions are not in the log", lost.len());
    assert!(acknowledged.len() > rounds() * 20);
}

/// Builds a shell command that gives the server a disk of 384 KiB: a small tmpfs in its own mount namespace.
/// Where namespaces are not allowed, it limits file sizes, and ignores SIGXFSZ so that writes fail.
fn small_disk(mount: &Path) -> Command {
    let namespace = |command: &mut Command| {
        command.arg("--mount").args(if is_root() { &[][..] } else { &["--user", "--map-root-user"] });
    };
    let mut probe = Command::new("unshare");
    namespace(&mut probe);
    let allowed = probe
        .args(["mount", "-t", "tmpfs", "tmpfs", mount.to_str().unwrap()])
        .output()
        .is_ok_and(|output| output.status.success());
    let serve = format!(
        "{drop} {program} serve --development --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 -o json --data {mount}/data --bundle {bundle}",
        mount = mount.display(),
        drop = if is_root() { "setpriv --reuid 65534 --regid 65534 --clear-groups --" } else { "" },
        program = program().display(),
        bundle = open_root().join("policies").display(),
    );
    let mut command = Command::new(if allowed { "unshare" } else { "sh" });
    if allowed {
        namespace(&mut command);
        command.args([
            "sh",
            "-c",
            &format!("mount -t tmpfs -o size=384k,mode=777 tmpfs {} && exec {serve}", mount.display()),
        ]);
    } else {
        command.args(["-c", &format!("trap '' XFSZ; ulimit -f 768; exec {serve}")]);
    }
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").process_group(0);
    command
}

/// Threat 26: a server whose disk is really full gives no answers.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_file_system_stops_answers() {
    let folder = temp();
    let mount = folder.path().join("small");
    std::fs::create_dir(&mount).unwrap();
    std::fs::set_permissions(&mount, std::fs::Permissions::from_mode(0o777)).unwrap();
    let server = Process::spawn(small_disk(&mount));
    let mut client = DecisionServiceClient::new(channel(server.grpc).await);
    let mut answered = 0;
    let refused = loop {
        match client.authorize(order_check()).await {
            Ok(response) => {
                answered += 1;
                // The newest record is the one of the newest answer.
                assert_eq!(response.into_inner().audit.unwrap().index, answered + 1);
                assert!(answered < 2000, "the disk never became full");
            }
            Err(status) => break status,
        }
    };
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(answered > 10, "{answered}");
    for _ in 0..20 {
        assert_eq!(client.authorize(order_check()).await.unwrap_err().code(), Code::Unavailable);
    }
    assert_eq!(crate::harness::get(server.admin, "/readyz").await, (503, "audit\n".into()));
    let said = |log: &str| log.lines().filter(|line| line.contains("server.not_ready")).count();
    crate::harness::within("the error in the log", async {
        while said(&server.log_text()) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let log = server.log_text();
    assert!(log.contains("free space in the data folder") && said(&log) == 1, "{log}");
    // The log, read through the server's namespace, is intact and contains exactly the answers.
    let root = format!("/proc/{}/root{}/data/audit", server.child.id(), mount.display());
    let report = verify(Path::new(&root)).unwrap();
    assert_eq!(report.decisions, answered);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_stops_gracefully_and_closes_the_log() {
    let folder = temp();
    let data = folder.path().join("data");
    let server = Process::serve(&data, &[], |_| {});
    let mut client = DecisionServiceClient::new(channel(server.grpc).await);
    let response = client.authorize(order_check()).await.unwrap().into_inner();
    assert_eq!(response.decision(), v1::Decision::Allow);
    assert!(server.stop().success());
    let lines = lines(&data);
    assert_eq!(lines.last().unwrap()["type"], "server.stopped");
    let key = std::fs::metadata(data.join("keys/audit-digest.key")).unwrap();
    assert_eq!(key.permissions().mode() & 0o777, 0o600);
}

/// Idle connections must leave file descriptors for readiness, reloads and the audit log.
#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_leave_file_descriptors_for_admin_and_audit() {
    let folder = temp();
    let data = folder.path().join("data");
    let server = Process::serve(&data, &[], |command| {
        let arguments: Vec<_> = command.get_args().map(std::ffi::OsStr::to_owned).collect();
        let program = command.get_program().to_owned();
        *command = std::process::Command::new("/bin/sh");
        command.args(["-c", "ulimit -n 400; exec \"$0\" \"$@\""]).arg(program).args(arguments).env_clear();
        crate::harness::unprivileged(command);
    });
    let mut idle = vec![];
    for _ in 0..450 {
        idle.push(tokio::net::TcpStream::connect(server.grpc).await.unwrap());
    }
    let (status, _) = crate::harness::get(server.admin, "/readyz").await;
    assert_eq!(status, 200);
    let mut client = DecisionServiceClient::new(channel(server.grpc).await);
    assert_eq!(client.authorize(order_check()).await.unwrap().into_inner().decision(), v1::Decision::Allow);
    let mut admin = v1::admin_service_client::AdminServiceClient::new(channel(server.grpc).await);
    let reloaded = admin.reload_bundle(v1::ReloadBundleRequest {}).await.unwrap().into_inner();
    assert_eq!(reloaded.outcome(), v1::ReloadOutcome::Unchanged);
    drop(idle);
    assert!(server.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_does_not_wait_for_open_streams() {
    let folder = temp();
    let data = folder.path().join("data");
    let server = Process::serve(&data, &[], |_| {});
    let channel = channel(server.grpc).await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    let mut watch = health.watch(tonic_health::pb::HealthCheckRequest::default()).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().is_some());
    let (open, items) = tokio::sync::mpsc::channel(1);
    let items = tokio_stream::wrappers::ReceiverStream::new(items);
    let item =
        v1::AuthorizeStreamRequest { request: Some(v1::AuthorizeRequest { request_id: "r".into(), ..order_check() }) };
    open.send(item).await.unwrap();
    let mut answers = DecisionServiceClient::new(channel).authorize_stream(items).await.unwrap().into_inner();
    assert!(answers.message().await.unwrap().is_some());
    assert!(tokio::task::spawn_blocking(move || server.stop()).await.unwrap().success());
    assert_eq!(lines(&data).last().unwrap()["type"], "server.stopped");
    drop(open);
}
