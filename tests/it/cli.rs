//! The command line as users see it: exit codes, errors of one line with a remedy, JSON output.

use std::process::Output;

use serde_json::Value;

use crate::harness::{Process, command, copy, open_root, policies, temp, within};

fn run(arguments: &[&str]) -> Output {
    let mut command = command(arguments);
    command.current_dir(open_root()).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn reference() -> tempfile::TempDir {
    let folder = temp();
    copy(&policies(), folder.path());
    folder
}

#[test]
fn usage_errors_exit_with_64_and_help_with_0() {
    for arguments in [&["--frobnicate"][..], &["serve", "--listen", "here"], &["authorise"], &["authorize"], &[]] {
        assert_eq!(code(&run(arguments)), 64, "{arguments:?}");
    }
    assert_eq!(code(&run(&["--help"])), 0);
    assert_eq!(code(&run(&["--version"])), 0);
}

/// Digests and key ids are base64url, so that one in 64 begins with a hyphen.
#[test]
fn digests_and_key_ids_may_begin_with_a_hyphen() {
    let digest = format!("-{}", "A".repeat(42));
    let folder = temp();
    let keys = folder.path().to_str().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "token").unwrap();
    let token = token.to_str().unwrap();
    for arguments in [
        &[
            "approvals",
            "approve",
            "apr_1",
            "--display-digest",
            &digest,
            "--server",
            "http://127.0.0.1:1",
            "--token",
            token,
        ][..],
        &["keys", "revoke", &digest, "--keys", keys],
    ] {
        let said = error(&run(arguments));
        let expected = ["can't reach a server", "no key has this id"];
        assert!(expected.iter().any(|expected| said.contains(expected)), "{said}");
    }
}

#[test]
fn check_describes_a_bundle_or_locates_its_faults() {
    let bundle = reference();
    let path = bundle.path().to_str().unwrap();
    let valid = run(&["check", path, "-o", "json"]);
    let found: Value = serde_json::from_str(&out(&valid)).unwrap();
    assert_eq!((code(&valid), found["valid"].as_bool(), found["policies"].as_u64()), (0, Some(true), Some(141)));
    std::fs::write(bundle.path().join("steps.cedar"), "permit (principal, action,, resource);").unwrap();
    let broken = run(&["check", path]);
    assert_eq!(code(&broken), 3);
    // The fault is drawn with its source line.
    assert!(
        error(&broken).contains("steps.cedar:1:27")
            && error(&broken).contains("permit (principal, action,, resource);"),
        "{}",
        error(&broken)
    );
    let faults: Value = serde_json::from_str(&out(&run(&["check", path, "-o", "json"]))).unwrap();
    let fault = &faults["faults"][0];
    let members = ["file", "line", "column", "code", "source"].map(|name| fault[name].clone());
    let source = "permit (principal, action,, resource);";
    assert_eq!(serde_json::json!(members), serde_json::json!(["steps.cedar", 1, 27, "policy.syntax", source]));
    assert!(fault["message"].is_string() && fault["help"].is_string(), "{fault}");
    let missing = run(&["check", "/nowhere"]);
    assert_eq!((code(&missing), error(&missing).lines().count()), (3, 1));
    std::fs::write(bundle.path().join("steps.cedar"), "").unwrap();
    std::fs::write(bundle.path().join("tests/typo.yaml"), "now: 2026-03-02T09:00:00Z\ncasses: []\n").unwrap();
    let table = run(&["check", path]);
    assert!(code(&table) == 3 && error(&table).contains("tests/typo.yaml:2:1"), "{}", error(&table));
}

#[test]
fn the_test_command_runs_the_tables_and_exits_with_3_on_failure() {
    let bundle = reference();
    let path = bundle.path().to_str().unwrap();
    let passed = run(&["test", path, "--strict"]);
    assert_eq!(code(&passed), 0, "{}", out(&passed));
    assert!(out(&passed).contains("decisions as expected"));
    let steps = std::fs::read_to_string(bundle.path().join("steps.cedar")).unwrap();
    std::fs::write(bundle.path().join("steps.cedar"), steps.replace("Step::\"drafting\"", "Step::\"verification\""))
        .unwrap();
    let failed = run(&["test", path]);
    assert_eq!(code(&failed), 3);
    assert!(out(&failed).contains("FAILED tests/steps.yaml"), "{}", out(&failed));
}

/// A policy that can never apply, and an obligation that no table holds, fail only a strict run.
#[test]
fn a_strict_test_run_fails_if_a_policy_decides_no_test_or_no_test_states_its_obligations() {
    let run_both = |file: &str, edit: &dyn Fn(String) -> String, told: &str| {
        let bundle = reference();
        let path = bundle.path().to_str().unwrap();
        let before = std::fs::read_to_string(bundle.path().join(file)).unwrap_or_default();
        std::fs::write(bundle.path().join(file), edit(before)).unwrap();
        let (loose, strict) = (run(&["test", path]), run(&["test", path, "--strict"]));
        assert!(out(&strict).contains(told), "{}", out(&strict));
        assert_eq!((code(&loose), code(&strict)), (0, 3));
        assert_eq!(out(&loose), out(&strict));
    };
    let never = "@id(\"never\") forbid (principal, action, resource) when { context.now < context.now };";
    run_both("never.cedar", &|_| never.to_owned(), "no test is decided by: never\n");
    let unstated = |table: String| table.replace("[risk.nothing], obligations: [\"route:fraud\"]", "[risk.nothing]");
    run_both("tests/risk.yaml", &unstated, "no test states the obligations of: risk.nothing\n");
}

#[test]
fn authorize_local_evaluates_without_a_server() {
    let allowed = run(&["authorize", "--local", "examples/authorize.yaml", "-o", "json"]);
    let found: Value = serde_json::from_str(&out(&allowed)).unwrap();
    assert_eq!((code(&allowed), found["decision"].as_str()), (0, Some("allow")), "{}", error(&allowed));
    let dry = std::fs::read_to_string(open_root().join("examples/authorize.yaml")).unwrap() + "dry_run: true\n";
    let folder = temp();
    let file = folder.path().join("dry.yaml");
    std::fs::write(&file, dry).unwrap();
    let dry = run(&["authorize", "--local", file.to_str().unwrap()]);
    assert!(code(&dry) == 2 && out(&dry).starts_with("DENY (dry run: it would be ALLOW)"), "{}", out(&dry));
    let settings = folder.path().join("settings.yaml");
    std::fs::write(&settings, "listn: {}\n").unwrap();
    let typo = run(&["check", "--config", settings.to_str().unwrap()]);
    assert!(
        code(&typo) == 64 && error(&typo).contains("settings.yaml") && error(&typo).contains("listn"),
        "{}",
        error(&typo)
    );
    let late = run(&["authorize", "--local", "--at", "2031-01-01T00:00:00Z", "examples/authorize.yaml"]);
    assert_eq!(code(&late), 2, "the agent is no longer valid");
    assert!(out(&late).starts_with("DENY\nreason        not_permitted"), "{}", out(&late));
    for (arguments, expected) in [
        (&["authorize", "--local", "--at", "soon", "examples/authorize.yaml"][..], "--at"),
        (&["authorize", "--local", "nowhere.yaml"], "nowhere.yaml"),
        (&["authorize", "--at", "2031-01-01T00:00:00Z", "examples/authorize.yaml"], "--local"),
        (&["authorize", "--server", "not a url", "examples/authorize.yaml"], "address"),
    ] {
        let failed = run(arguments);
        assert!(code(&failed) == 64 && error(&failed).contains(expected), "{arguments:?}: {}", error(&failed));
    }
    let unreachable = run(&["authorize", "--server", "http://127.0.0.1:1", "examples/authorize.yaml"]);
    assert_eq!((code(&unreachable), error(&unreachable).lines().count()), (1, 1));
    assert!(error(&unreachable).contains("countersign serve --development"));
}

#[tokio::test(flavor = "multi_thread")]
async fn authorize_healthcheck_and_verify_work_with_a_running_server() {
    let folder = temp();
    let data = folder.path().join("data");
    let server = Process::serve(&data, &[], |_| {});
    let url = format!("http://{}", server.grpc);
    let allowed = run(&["authorize", "--server", &url, "examples/authorize.yaml"]);
    assert_eq!(code(&allowed), 0, "{}", error(&allowed));
    assert!(out(&allowed).starts_with("ALLOW\n") && out(&allowed).contains("development_mode"), "{}", out(&allowed));
    let request =
        std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/authorize.yaml"))
            .unwrap();
    let denied = folder.path().join("denied.yaml");
    std::fs::write(&denied, request.replace("step: enrichment", "step: intake")).unwrap();
    let found = run(&["authorize", "--server", &url, denied.to_str().unwrap(), "-o", "json"]);
    let shown: Value = serde_json::from_str(&out(&found)).unwrap();
    assert_eq!(
        (code(&found), shown["reason"].as_str(), shown["next_action"].as_str()),
        (2, Some("step_not_allowed"), Some("none"))
    );
    std::fs::write(&denied, request.replace("paid_minor: 9000", "paid_minor: many")).unwrap();
    let refused = run(&["authorize", "--server", &url, denied.to_str().unwrap()]);
    assert!(
        code(&refused) == 1 && error(&refused).contains("`resource.attributes_json.paid_minor` is not an integer"),
        "{}",
        error(&refused)
    );
    assert_eq!(code(&run(&["healthcheck", "--server", &url])), 0);
    assert_eq!(code(&run(&["healthcheck", "--server", &url, "--service", "countersign.v1.DecisionService"])), 0);
    assert_eq!(code(&run(&["healthcheck", "--server", &url, "--service", "no.such.Service"])), 1);
    assert_eq!(code(&run(&["healthcheck", "--server", "http://127.0.0.1:1"])), 1);
    let audit = data.join("audit");
    let verified = run(&["audit", "verify", audit.to_str().unwrap(), "-o", "json"]);
    let report: Value = serde_json::from_str(&out(&verified)).unwrap();
    assert_eq!((code(&verified), report["decisions"].as_u64()), (0, Some(2)));
    // A taken port and a locked data folder each give one line with the remedy.
    let address = server.grpc.to_string();
    let other = folder.path().join("other");
    let taken = run(&[
        "serve",
        "--development",
        "--listen",
        &address,
        "--admin-listen",
        "127.0.0.1:0",
        "--data",
        other.to_str().unwrap(),
    ]);
    assert_eq!((code(&taken), error(&taken).lines().count()), (1, 1), "{}", error(&taken));
    assert!(error(&taken).contains("--listen"), "{}", error(&taken));
    let locked = run(&[
        "serve",
        "--development",
        "--listen",
        "127.0.0.1:0",
        "--admin-listen",
        "127.0.0.1:0",
        "--data",
        data.to_str().unwrap(),
    ]);
    assert_eq!((code(&locked), error(&locked).lines().count()), (1, 1), "{}", error(&locked));
    assert!(error(&locked).contains("--data"), "{}", error(&locked));
    assert!(server.stop().success());
    // A changed log is detected.
    let segment = audit.join("seg-00000000000000000000.jsonl");
    let text = std::fs::read_to_string(&segment).unwrap();
    std::fs::write(&segment, text.replacen("\"allow\"", "\"ALLOW\"", 1)).unwrap();
    let broken = run(&["audit", "verify", audit.to_str().unwrap()]);
    assert!(
        code(&broken) == 3 && error(&broken).contains("seg-00000000000000000000.jsonl:3: `mac`"),
        "{}",
        error(&broken)
    );
    assert_eq!(code(&run(&["audit", "verify", "/nowhere"])), 1);
}

#[test]
fn a_failed_start_prints_one_line_with_the_cause() {
    let folder = temp();
    let data = folder.path().join("data");
    let data = data.to_str().unwrap();
    for (arguments, expected, exit) in [
        (vec!["serve", "--data", data], "--development", 64),
        (vec!["serve", "--development", "--listen", "0.0.0.0:0", "--data", data], "loopback", 64),
        (vec!["serve", "--development", "--admin-listen", "0.0.0.0:0", "--data", data], "loopback", 64),
        (
            vec!["serve", "--development", "--listen", "127.0.0.1:0", "--bundle", "/nowhere", "--data", data],
            "--bundle",
            3,
        ),
        (vec!["serve", "--development", "--config", "/nowhere.yaml"], "/nowhere.yaml", 64),
        (
            vec![
                "serve",
                "--development",
                "--listen",
                "127.0.0.1:0",
                "--admin-listen",
                "127.0.0.1:0",
                "--data",
                "/proc/nowhere",
            ],
            "--data",
            1,
        ),
    ] {
        let failed = run(&arguments);
        assert_eq!(code(&failed), exit, "{arguments:?}: {}", error(&failed));
        assert!(
            error(&failed).contains(expected) && error(&failed).trim_end().lines().count() == 1,
            "{arguments:?}: {}",
            error(&failed)
        );
    }
}

/// The banner says where spans go and what stops calls, and the command that it ends with works.
#[tokio::test(flavor = "multi_thread")]
async fn the_command_of_the_banner_works_as_printed() {
    let folder = temp();
    let data = folder.path().join("data");
    let server = Process::serve(&data, &[], |_| {});
    let url = format!("http://{}", server.grpc);
    let stopped =
        run(&["signals", "report", "kill_switch", "--agent", "refund-bot", "--tenant", "acme", "--server", &url]);
    assert_eq!(code(&stopped), 0, "{}", error(&stopped));
    assert!(server.stop().success());
    for (root, tried) in [(open_root(), "authorize"), (folder.path(), "curl")] {
        let mut serve = command(&[
            "serve",
            "--development",
            "--listen",
            "127.0.0.1:0",
            "--admin-listen",
            "127.0.0.1:0",
            "--data",
            data.to_str().unwrap(),
            "--bundle",
            open_root().join("policies").to_str().unwrap(),
        ]);
        serve
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
            .env("OTEL_BSP_SCHEDULE_DELAY", "50")
            .current_dir(root);
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut child = serve.stdout(std::process::Stdio::piped()).stderr(log.reopen().unwrap()).spawn().unwrap();
        let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
        let mut banner = vec![];
        for line in lines {
            banner.push(line.unwrap());
            if banner.last().is_some_and(|line| line.starts_with("try")) {
                break;
            }
        }
        let address = |name: &str| {
            let line = banner.iter().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{banner:#?}"));
            line.split_whitespace().nth(1).unwrap().trim_start_matches("http://").parse().unwrap()
        };
        let server = Process::of(child, address("gRPC"), address("admin"));
        assert!(banner.contains(&"spans    http://127.0.0.1:1".to_owned()), "{banner:#?}");
        let stops = "stops    1 kill switches and revoked sessions stop calls: see `countersign signals list`";
        assert!(banner.contains(&stops.to_owned()), "{banner:#?}");
        let printed = banner.last().unwrap().strip_prefix("try      ").unwrap();
        assert!(printed.contains(tried), "{printed}");
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", printed]).current_dir(root);
        crate::harness::unprivileged(&mut shell);
        let output = shell.output().unwrap();
        assert!(output.status.success(), "{printed}: {}{}", out(&output), error(&output));
        // The failed export names the collector and the status.
        let told = || std::fs::read_to_string(log.path()).unwrap();
        let failed = || told().lines().find(|line| line.contains("telemetry.export_failed")).map(str::to_owned);
        within("failed export in the log", async {
            while tried == "authorize" && failed().is_none() {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        })
        .await;
        if let Some(line) = failed() {
            let line: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(line["endpoint"], "http://127.0.0.1:1");
            assert!(line["error"].as_str().unwrap().to_lowercase().contains("unavailable"), "{line}");
        }
        assert!(server.stop().success());
    }
}

/// With `-o json`, errors are JSON, too: message, exit code, the status of a refusal, the faults of a bundle.
#[test]
fn errors_are_json_where_output_is() {
    let parsed =
        |output: &Output| serde_json::from_str::<Value>(&error(output)).unwrap_or_else(|_| panic!("{}", error(output)));
    let unreachable = run(&["authorize", "--server", "http://127.0.0.1:1", "examples/authorize.yaml", "-o", "json"]);
    let told = parsed(&unreachable);
    assert_eq!((code(&unreachable), &told["error"]["exit"]), (1, &serde_json::json!(1)));
    assert!(told["error"]["message"].as_str().unwrap().contains("nothing listens there"), "{told}");
    let bundle = reference();
    std::fs::write(bundle.path().join("steps.cedar"), "permit (principal, action,, resource);").unwrap();
    let faulty = run(&["test", bundle.path().to_str().unwrap(), "-o", "json"]);
    let told = parsed(&faulty);
    assert_eq!((code(&faulty), &told["error"]["faults"][0]["code"]), (3, &serde_json::json!("policy.syntax")));
    let folder = temp();
    let server = Process::serve(&folder.path().join("data"), &[], |_| {});
    let request = folder.path().join("request.yaml");
    let example = std::fs::read_to_string(open_root().join("examples/authorize.yaml")).unwrap();
    std::fs::write(&request, example.replace("paid_minor: 9000", "paid_minor: many")).unwrap();
    let url = format!("http://{}", server.grpc);
    let refused = run(&["authorize", "--server", &url, request.to_str().unwrap(), "-o", "json"]);
    assert_eq!(parsed(&refused)["error"]["status"], "INVALID_ARGUMENT");
    assert!(server.stop().success());
}

/// A client says why it can't reach a server, and what to do.
#[test]
fn a_client_says_why_it_reaches_no_server() {
    let folder = temp();
    let server = crate::harness::Process::serve(&folder.path().join("data"), &[], |_| {});
    for (url, expected, exit) in [
        (
            "http://127.0.0.1:1".to_owned(),
            "nothing listens there: start a server with `countersign serve --development`",
            1,
        ),
        (format!("https://{}", server.grpc), "it does not speak TLS: use `http://`", 1),
        (server.grpc.to_string(), "is not an address: use one such as `http://127.0.0.1:7070`", 64),
        ("http://name.invalid:7070".to_owned(), "its host name can't be resolved: check `--server`", 1),
        (format!("http://{}", server.admin), "it is no gRPC server: give the address of `listen.grpc`", 1),
    ] {
        let failed = run(&["healthcheck", "--server", &url]);
        assert!(error(&failed).contains(expected), "{url}: {}", error(&failed));
        assert_eq!((code(&failed), error(&failed).lines().count()), (exit, 1), "{url}");
    }
    // The variable, or the settings, name the server for every command.
    let url = format!("http://{}", server.grpc);
    let by_variable = crate::harness::command(&["healthcheck"]).env("COUNTERSIGN_SERVER", &url).output().unwrap();
    assert_eq!(out(&by_variable), "serving\n", "{}", error(&by_variable));
    let settings = folder.path().join("settings.yaml");
    std::fs::write(&settings, format!("listen: {{grpc: '{}'}}", server.grpc)).unwrap();
    let by_settings = run(&["healthcheck", "--config", settings.to_str().unwrap()]);
    assert_eq!(out(&by_settings), "serving\n", "{}", error(&by_settings));
    assert!(server.stop().success());
}

/// A misspelt name would otherwise only show in denials.
#[test]
fn settings_that_name_what_the_bundle_lacks_stop_the_start() {
    let folder = temp();
    let file = folder.path().join("settings.yaml");
    for (settings, expected) in [
        (
            "callers: {identities: [{id: 'spiffe://acme.example/b', tool_service: biling-tools}]}",
            "`callers.identities` names `biling-tools`, which is no ToolService of the bundle: did you mean `billing-tools`?",
        ),
        (
            "callers: {unix_socket: {peers: [{user: 4711, tool_service: crm}]}}",
            "`callers.unix_socket.peers` names `crm`, which is no ToolService of the bundle",
        ),
        (
            "callers: {certificate_reporters: [crm-toolz]}",
            "`callers.certificate_reporters` names `crm-toolz`, which is no ToolService of the bundle: did you mean `crm-tools`?",
        ),
        (
            "callers: {asserting: [{tool_service: crm-toolz, agents: [support-bot], supervisors: [rep-1], steps: [intake]}]}",
            "`callers.asserting` names `crm-toolz`",
        ),
        (
            "callers: {trust_domains: [{name: acme.example, bundle: ca.pem, tenants: [acmee]}]}",
            "`callers.trust_domains` names `acmee`, which is no Tenant of the bundle: did you mean `acme`?",
        ),
        (
            "issuers: [{issuer: 'https://idp.example', keys: keys.json, algorithm: ES256, tenant: acmee}]",
            "`issuers` names `acmee`, which is no Tenant of the bundle: did you mean `acme`?",
        ),
    ] {
        std::fs::write(&file, settings).unwrap();
        let config = countersign::config::Config::load(Some(&file), []);
        let bundle = countersign::bundle::Bundle::load(&crate::harness::policies(), config.as_ref().unwrap().reading());
        let error = countersign::app::names::check(&config.unwrap(), &bundle.unwrap()).unwrap_err().to_string();
        assert!(error.contains(expected), "{settings}: {error}");
    }
    std::fs::write(&file, "callers: {certificate_reporters: [crm-toolz]}").unwrap();
    let (data, file) = (folder.path().join("data"), file.to_str().unwrap());
    let failed =
        run(&["serve", "--development", "--listen", "127.0.0.1:0", "--config", file, "--data", data.to_str().unwrap()]);
    assert_eq!(code(&failed), 64, "{}", error(&failed));
    assert!(error(&failed).contains("did you mean `crm-tools`?"), "{}", error(&failed));
}

#[test]
fn the_sample_settings_are_read() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/countersign.yaml");
    let config = countersign::config::Config::load(Some(&path), []).unwrap();
    config.check_callers().unwrap();
    assert_eq!(config.limits, countersign::config::Limits::default());
}

#[test]
fn the_production_sample_settings_are_valid() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/production.yaml");
    let config = countersign::config::Config::load(Some(&path), []).unwrap();
    config.check_callers().unwrap();
    let bundle = countersign::bundle::Bundle::load(&crate::harness::policies(), config.reading()).unwrap();
    countersign::app::names::check(&config, &bundle).unwrap();
    assert_eq!((config.audience().as_str(), config.warnings()), ("countersign:production", vec![]));
}

#[test]
fn keys_can_be_generated_listed_rotated_and_revoked_without_showing_private_keys() {
    let folder = crate::harness::temp();
    let data = folder.path().join("data");
    let run = |arguments: &[&str]| {
        let output =
            crate::harness::command(arguments).env("COUNTERSIGN__DATA", &data).current_dir("/").output().unwrap();
        (code(&output), out(&output), error(&output))
    };
    let (exit, _, said) = run(&["keys", "list"]);
    assert!(exit == 1 && said.contains("countersign keys generate"), "{said}");
    let (exit, made, said) = run(&["keys", "generate"]);
    assert_eq!(exit, 0, "{said}");
    assert_eq!(
        made.lines().map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")).collect::<Vec<_>>(),
        ["approval current", "approval next", "binding current", "binding next", "audit current", "values current"]
    );
    assert_eq!(run(&["keys", "generate"]).1, made, "existing keys are kept");
    let (exit, _, said) = run(&["keys", "rotate"]);
    assert!(exit == 1 && said.contains("less than 10 minutes ago"), "{said}");
    assert_eq!(run(&["keys", "list"]).1, made, "nothing was rotated");
    let rotated = run(&["keys", "rotate", "--now"]).1;
    assert!(rotated.contains("approval    previous") && rotated.contains("binding     previous"), "{rotated}");
    let kid = made.split_whitespace().nth(2).unwrap();
    assert!(run(&["keys", "revoke", kid]).1.lines().any(|line| line.contains(kid) && line.contains("revoked")));
    assert_eq!(run(&["keys", "revoke", "nobody"]).0, 64);
    for name in ["approval", "binding"] {
        let file = data.join(format!("keys/{name}.json"));
        let private: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        for key in private["keys"].as_array().unwrap() {
            assert!(!run(&["keys", "list", "-o", "json"]).1.contains(key["private"].as_str().unwrap()));
        }
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let (exit, _, said) = run(&["keys", "revoke", "-abc"]);
    assert!(exit == 64 && said.contains("no key has this id"), "an id may begin with a hyphen: {said}");
    // Only a development server has the key of development tokens.
    let (exit, _, said) = run(&["keys", "dev-token", "--principal", "rep-1"]);
    assert!(exit == 1 && said.contains("serve --development"), "{said}");
    // A development token has the agent's own scopes unless others are named.
    let served = folder.path().join("served");
    let server = crate::harness::Process::serve(&served, &[], |_| {});
    let keys = served.join("keys");
    let of = |more: &[&str]| {
        let token = ["keys", "dev-token", "--principal", "rep-1", "--step", "intake", "--keys", keys.to_str().unwrap()];
        let output = crate::harness::command(&[&token[..], more].concat()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let scope = |token: &str| {
        let claims =
            base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, token.split('.').nth(1).unwrap());
        serde_json::from_slice::<Value>(&claims.unwrap()).unwrap()["scope"].as_str().unwrap().to_owned()
    };
    let (_, token, said) = of(&["--agent", "support-bot"]);
    assert!(scope(&token).split(' ').any(|scope| scope == "tickets"), "{token}{said}");
    assert_eq!(scope(&of(&["--agent", "support-bot", "--scopes", "orders"]).1), "orders");
    let (exit, _, said) = of(&["--agent", "suport-bot"]);
    assert!(exit == Some(64) && said.contains("no agent `suport-bot`: did you mean `support-bot`?"), "{said}");
    assert!(server.stop().success());
    // A server without keys does not start.
    let empty = folder.path().join("empty");
    let output = crate::harness::command(&["serve"])
        .env("COUNTERSIGN__DATA", empty)
        .env("COUNTERSIGN__ENVIRONMENT", "test")
        .env("COUNTERSIGN__CALLERS__UNIX_SOCKET__PATH", folder.path().join("socket"))
        .current_dir("/")
        .output()
        .unwrap();
    assert_eq!(code(&output), 64, "{}", error(&output));
}
