//! Bundle reloads: by polling, SIGHUP and ReloadBundle, with good and bad bundles, under load.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use countersign::api::v1;
use countersign::api::v1::admin_service_client::AdminServiceClient;
use countersign::api::v1::decision_service_client::DecisionServiceClient;
use countersign::pdp::reload::{Reloaded, Trigger};
use rustix::process::Signal;

use crate::harness::{App, Process, channel, copy, lines, order_check, policies, temp};

fn set_version(bundle: &Path, version: u64, permits: bool) {
    let manifest = std::fs::read_to_string(policies().join("bundle.yaml")).unwrap();
    let manifest = manifest.replace("version: 1", &format!("version: {version}"));
    // One policy makes the two bundles answer differently: orders can be checked, or not.
    let extra =
        if permits { "" } else { "@id(\"closed\") forbid (principal, action == Action::\"order.check\", resource);" };
    write(bundle, "bundle.yaml", &manifest);
    write(bundle, "extra.cedar", extra);
}

/// Replaces a file atomically, as editors and git do.
fn write(bundle: &Path, name: &str, text: &str) {
    let new = bundle.join(format!(".{name}.new"));
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, bundle.join(name)).unwrap();
}

fn rounds() -> u64 {
    if std::env::var_os("COUNTERSIGN_SOAK").is_some() { 10_000 } else { 200 }
}

#[tokio::test(flavor = "multi_thread")]
async fn reloads_under_load_fail_no_request_and_mix_no_bundles() {
    let folder = temp();
    copy(&policies(), folder.path());
    crate::harness::lift_limits(folder.path());
    set_version(folder.path(), 2, true);
    let bundle = folder.path().to_owned();
    let app = App::start_with(move |config, _| config.bundle.path = bundle).await;
    let done = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..2)
        .map(|_| {
            let (channel, done) = (app.grpc, Arc::clone(&done));
            tokio::spawn(async move {
                let mut client = DecisionServiceClient::new(crate::harness::channel(channel).await);
                let mut count = 0;
                while !done.load(Ordering::Relaxed) {
                    let response = client.authorize(order_check()).await.expect("no request fails").into_inner();
                    // Even versions permit and odd ones forbid, so an answer that mixed two would fail here.
                    let version = response.policy.as_ref().unwrap().version;
                    let expected = if version % 2 == 0 { v1::Decision::Allow } else { v1::Decision::Deny };
                    assert_eq!(response.decision(), expected, "version {version}");
                    count += 1;
                }
                count
            })
        })
        .collect();
    let mut admin = app.operations().await;
    let mut in_force = 2;
    for round in 0..rounds() {
        // A good bundle and a bad one, which must change nothing, take turns.
        let version = 3 + round / 2;
        let bad = round % 2 == 1;
        if bad {
            write(folder.path(), "extra.cedar", &format!("@id(\"broken{round}\") forbid (principal, action,"));
        } else {
            set_version(folder.path(), version, version % 2 == 0);
            in_force = version;
        }
        let reloaded = admin.reload_bundle(v1::ReloadBundleRequest {}).await.unwrap().into_inner();
        let expected = if bad { v1::ReloadOutcome::Rejected } else { v1::ReloadOutcome::Activated };
        assert_eq!(reloaded.outcome(), expected, "round {round}: {:?}", reloaded.rejected);
        assert_eq!(reloaded.bundle.unwrap().policy.unwrap().version, in_force, "round {round}");
    }
    done.store(true, Ordering::Relaxed);
    let mut answered = 0;
    for caller in callers {
        answered += caller.await.unwrap();
    }
    assert!(answered > rounds(), "{answered} answers");
    app.stop().await;
}

/// A large bundle takes longer to load than a request may take, and no request waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_policies_are_loaded_under_load_and_no_request_fails() {
    let folder = temp();
    copy(&policies(), folder.path());
    crate::harness::lift_limits(folder.path());
    let bundle = folder.path().to_owned();
    let app = App::start_with(move |config, _| {
        config.bundle.path = bundle;
        config.limits.request_timeout_ms = 1000;
    })
    .await;
    let done = Arc::new(AtomicBool::new(false));
    let caller = {
        let (mut client, done) = (app.decisions().await, Arc::clone(&done));
        tokio::spawn(async move {
            let mut count = 0_u64;
            while !done.load(Ordering::Relaxed) {
                let response = client.authorize(order_check()).await.expect("no request fails").into_inner();
                assert_eq!(response.decision(), v1::Decision::Allow);
                count += 1;
            }
            count
        })
    };
    let policy = |index: u64| {
        format!(
            "@id(\"more.{index}\")\nforbid (principal is Agent, action == Action::\"order.check\", resource == \
             Order::\"other-{index}\") when {{ resource.paid_minor > {index} }};\n"
        )
    };
    write(folder.path(), "more.cedar", &(0..10_000).map(policy).collect::<String>());
    let mut admin = app.operations().await;
    let reloaded = admin.reload_bundle(v1::ReloadBundleRequest {}).await.unwrap().into_inner();
    assert_eq!(reloaded.outcome(), v1::ReloadOutcome::Activated, "{:?}", reloaded.rejected);
    done.store(true, Ordering::Relaxed);
    assert!(caller.await.unwrap() > 0);
    app.stop().await;
}

/// Threat 30: if the bundle's files are missing or broken, the last good bundle stays in force.
#[tokio::test(flavor = "multi_thread")]
async fn a_bad_bundle_is_rejected_and_reported_in_status_log_and_metrics() {
    let folder = temp();
    copy(&policies(), folder.path());
    let bundle = folder.path().to_owned();
    let app = App::start_with(move |config, _| config.bundle.path = bundle).await;
    let mut admin = app.operations().await;
    let unchanged = admin.reload_bundle(v1::ReloadBundleRequest {}).await.unwrap().into_inner();
    assert_eq!(unchanged.outcome(), v1::ReloadOutcome::Unchanged);
    write(folder.path(), "tenancy.cedar", "forbid (principal, action, resource)\nunless { true };\n");
    for _ in 0..3 {
        let rejected = admin.reload_bundle(v1::ReloadBundleRequest {}).await.unwrap().into_inner();
        assert_eq!(rejected.outcome(), v1::ReloadOutcome::Rejected);
        assert_eq!(rejected.rejected.unwrap().faults, ["tenancy.cedar:1:1: the policy has no `@id`"]);
    }
    let status = admin.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
    assert!(status.ready, "the last good bundle stays in force");
    let rejected = status.rejected.unwrap();
    let lines = lines(&app.data);
    let recorded: Vec<_> = lines.iter().filter(|line| line["type"] == "policy.rejected").collect();
    assert_eq!(recorded.len(), 1, "the same fault is recorded once");
    assert_eq!(recorded[0]["digest"], rejected.digest.as_str());
    let metrics = app.pdp.telemetry().metrics_text().unwrap();
    assert!(metrics.contains("countersign_policy_reloads_total{outcome=\"rejected\""), "{metrics}");
    app.pdp.tick().await;
    let metrics = app.pdp.telemetry().metrics_text().unwrap();
    let is_gauge = |line: &str| line.starts_with("countersign_policy_rejected") && line.ends_with(" 1");
    assert!(metrics.lines().any(is_gauge), "a refused bundle lies in the folder: {metrics}");
    assert_eq!(
        app.decisions().await.authorize(order_check()).await.unwrap().into_inner().decision(),
        v1::Decision::Allow
    );
    // Without `bundle.yaml` the reload is rejected, and the last good bundle stays in force.
    std::fs::remove_file(folder.path().join("bundle.yaml")).unwrap();
    let gone = admin.reload_bundle(v1::ReloadBundleRequest {}).await.unwrap().into_inner();
    assert_eq!(gone.outcome(), v1::ReloadOutcome::Rejected);
    copy(&policies(), folder.path());
    assert_eq!(
        admin.reload_bundle(v1::ReloadBundleRequest {}).await.unwrap().into_inner().outcome(),
        v1::ReloadOutcome::Unchanged
    );
    assert_eq!(admin.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner().rejected, None);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_activates_a_bundle_only_when_two_polls_found_the_same_content() {
    let folder = temp();
    copy(&policies(), folder.path());
    let bundle = folder.path().to_owned();
    let app = App::start_with(move |config, _| config.bundle.path = bundle).await;
    let in_force = || app.pdp.moment().snapshot.bundle.version.version;
    set_version(folder.path(), 2, true);
    assert_eq!(app.pdp.reload(Trigger::Polled).await.unwrap(), Reloaded::Unchanged);
    // The copy continues between two polls.
    set_version(folder.path(), 3, true);
    assert_eq!(app.pdp.reload(Trigger::Polled).await.unwrap(), Reloaded::Unchanged);
    assert_eq!(in_force(), 1);
    assert_eq!(app.pdp.reload(Trigger::Polled).await.unwrap(), Reloaded::Activated);
    assert_eq!(in_force(), 3);
    set_version(folder.path(), 4, true);
    assert_eq!(app.pdp.reload(Trigger::Asked).await.unwrap(), Reloaded::Activated);
    assert_eq!(in_force(), 4);
    app.stop().await;
}

async fn version(admin: &mut AdminServiceClient<tonic::transport::Channel>) -> u64 {
    let status = admin.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
    status.bundle.unwrap().policy.unwrap().version
}

async fn wait_for(admin: &mut AdminServiceClient<tonic::transport::Channel>, expected: u64) {
    for _ in 0..400 {
        if version(admin).await == expected {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    panic!("version {expected} was never in force");
}

#[tokio::test(flavor = "multi_thread")]
async fn polling_detects_changed_content_and_sighup_reloads_at_once() {
    let folder = temp();
    copy(&policies(), folder.path());
    let bundle = folder.path().to_str().unwrap().to_owned();
    let data = temp();
    let server = Process::serve(&data.path().join("data"), &["--bundle", &bundle], |command| {
        command.env("COUNTERSIGN__BUNDLE__POLL_SECONDS", "1");
    });
    let mut admin = AdminServiceClient::new(channel(server.grpc).await);
    set_version(folder.path(), 2, true);
    wait_for(&mut admin, 2).await;
    assert!(server.stop().success());
    let log = data.path().join("log");
    let server = Process::serve(&data.path().join("data"), &["--bundle", &bundle], |command| {
        command.env("COUNTERSIGN__BUNDLE__POLL_SECONDS", "0").stderr(std::fs::File::create(&log).unwrap());
    });
    let mut admin = AdminServiceClient::new(channel(server.grpc).await);
    set_version(folder.path(), 3, true);
    assert_eq!(version(&mut admin).await, 2, "not reloaded without a request");
    server.signal(Signal::HUP);
    wait_for(&mut admin, 3).await;
    // The log has a line for each reload that was asked for: rejected, rejected again, unchanged.
    let good = std::fs::read_to_string(folder.path().join("steps.cedar")).unwrap();
    write(folder.path(), "steps.cedar", "forbid");
    for _ in 0..2 {
        admin.reload_bundle(v1::ReloadBundleRequest {}).await.unwrap();
    }
    write(folder.path(), "steps.cedar", &good);
    admin.reload_bundle(v1::ReloadBundleRequest {}).await.unwrap();
    assert!(server.stop().success());
    let log = std::fs::read_to_string(log).unwrap();
    let said = |name: &str| log.lines().filter(|line| line.contains(name)).count();
    assert_eq!((said("bundle.activated"), said("bundle.rejected"), said("bundle.unchanged")), (1, 2, 1), "{log}");
}
