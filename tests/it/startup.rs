//! What a server says when it can't start: wrong settings, wrong certificates, dead back ends, telemetry.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::harness::pki::{Authority, server, svid, write};
use crate::harness::{Process, command, copy, policies, program, temp, unprivileged};

/// A deployment outside of development mode, whose files are all valid.
struct Deployment {
    folder: tempfile::TempDir,
    settings: Value,
}

impl Deployment {
    fn new() -> Self {
        let folder = temp();
        let (path, authority) = (folder.path(), Authority::new());
        let (own, other) = (authority.sign(&server()), authority.sign(&svid("spiffe://acme.example/other")));
        for (name, text) in [
            ("ca.pem", authority.pem()),
            ("server.pem", own.certificate),
            ("server.key", own.key),
            ("other.key", other.key),
            ("empty", String::new()),
        ] {
            write(path, name, &text);
        }
        copy(&policies(), &path.join("policies"));
        let (_, keys) = crate::identity::provider(path, "idp");
        let settings = json!({
            "environment": "test",
            "listen": {"grpc": "127.0.0.1:0", "admin": "127.0.0.1:0"},
            "tls": {"certificate": "server.pem", "key": "server.key"},
            "callers": {
                "trust_domains": [{"name": "acme.example", "bundle": "ca.pem", "tenants": ["acme"]}],
                "identities": [{"id": "spiffe://acme.example/tool/crm", "tool_service": "crm-tools"}],
            },
            "issuers": [{"issuer": "https://idp.example", "tenant": "acme", "keys": keys, "algorithm": "ES256"}],
            "store": {"start_seconds": 0},
        });
        let deployment = Self { folder, settings };
        let generated = deployment.run(&["keys", "generate"], &deployment.settings, &[]);
        assert!(generated.status.success(), "{}", said(&generated));
        deployment
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the settings with these members changed; `null` removes one.
    fn with(&self, changes: &[(&str, Value)]) -> Value {
        let mut settings = self.settings.clone();
        for (path, value) in changes {
            let mut at = &mut settings;
            let mut steps: Vec<&str> = path.split('.').collect();
            let last = steps.pop().unwrap();
            for step in steps {
                at = match step.parse::<usize>() {
                    Ok(index) => &mut at[index],
                    Err(_) => &mut at[step],
                };
            }
            match value {
                Value::Null => {
                    at.as_object_mut().unwrap().remove(last);
                }
                value => at[last] = value.clone(),
            }
        }
        settings
    }

    /// Runs a command with these settings and variables in the deployment's folder.
    fn run(&self, arguments: &[&str], settings: &Value, variables: &[(&str, &str)]) -> Output {
        write(self.path(), "countersign.yaml", &settings.to_string());
        // A start that should fail ends after a minute anyway.
        let mut command = Command::new("timeout");
        command.arg("60").arg(program()).args(arguments).env_clear();
        unprivileged(&mut command);
        command.env("COUNTERSIGN__DATA", "data").env("COUNTERSIGN__BUNDLE__PATH", "policies");
        command.envs(variables.iter().copied()).current_dir(self.path());
        command.output().unwrap()
    }

    /// Returns exit code and error of a start, without what differs from run to run.
    fn start(&self, changes: &[(&str, Value)]) -> String {
        let output = self.run(&["serve"], &self.with(changes), &[]);
        let errors = String::from_utf8_lossy(&output.stderr);
        let errors = errors.lines().filter(|line| !line.starts_with("{\"")).collect::<Vec<_>>().join("\n");
        assert_eq!(errors.lines().count(), 1, "{}: {errors}", written(changes));
        format!("exit {}: {}", output.status.code().unwrap(), self.shown(&errors))
    }

    /// Returns the faults that `config check` finds, and what it says of telemetry.
    fn check(&self, changes: &[(&str, Value)], variables: &[(&str, &str)]) -> String {
        let output = self.run(&["config", "check"], &self.with(changes), variables);
        let is_told = |line: &&str| line.starts_with("FAULTY") || line.contains(" telemetry ") && !variables.is_empty();
        let text = said(&output);
        let told: Vec<&str> = match text.starts_with("countersign: ") {
            true => vec![text.trim_end()],
            false => text.lines().filter(is_told).collect(),
        };
        format!("exit {}: {}", output.status.code().unwrap(), self.shown(&told.join("; ")))
    }

    fn shown(&self, text: &str) -> String {
        text.replace(&self.path().display().to_string(), "FOLDER")
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_start_that_fails_says_why_in_one_line() {
    let deployment = Deployment::new();
    let mut shown = String::new();
    let mut tell = |title: &str, rows: Vec<(String, String)>| {
        shown.push_str(&format!("{title}\n"));
        rows.into_iter().for_each(|(what, told)| shown.push_str(&format!("  {what}\n    {told}\n")));
    };
    let remote = "postgres://db.example/countersign";
    let settings: Vec<Vec<(&str, Value)>> = vec![
        vec![("listn", json!({}))],
        vec![("limits", json!({"concurrent_requests": "many"}))],
        vec![("limits", json!({"request_timeout_ms": 5}))],
        vec![("limits", json!({"clock_leeway_seconds": 500}))],
        vec![("environment", Value::Null)],
        vec![("environment", json!("Production!"))],
        vec![("tls", Value::Null)],
        vec![("tls.key", Value::Null)],
        vec![("development", json!(true)), ("tls", Value::Null), ("listen.grpc", json!("0.0.0.0:0"))],
        vec![("callers.trust_domains", json!([]))],
        vec![("callers.identities.0.tool_service", json!("crm-tool"))],
        vec![("callers.trust_domains.0.tenants", json!(["acmee"]))],
        vec![("callers.unix_socket", json!({"path": "socket"}))],
        vec![("issuers.0.keys", json!("http://idp.example/keys"))],
        vec![("issuers.0.issuer", json!("countersign:dev-token"))],
        vec![("store.url", json!("mysql://db.example/countersign"))],
        vec![("store.url", json!(remote))],
        vec![("windows", json!({"urls": ["redis://a.example:1"]}))],
        vec![("windows", json!({"urls": ["rediss://a.example:1", "rediss://b.example:1"]}))],
        vec![("events", json!({"listen": "127.0.0.1:0"}))],
        vec![("engine", json!({"on_error": "skip"}))],
        vec![("log", json!("loud=="))],
    ];
    let rows = settings.iter().map(|changes| (written(changes), deployment.start(changes)));
    tell("Wrong settings", rows.collect());

    write(deployment.path(), "no-keys.jwks", "{}");
    let certificates: Vec<Vec<(&str, Value)>> = vec![
        vec![("tls.certificate", json!("missing.pem"))],
        vec![("tls.key", json!("missing.key"))],
        vec![("tls.certificate", json!("empty"))],
        vec![("tls.key", json!("empty"))],
        vec![("tls.key", json!("other.key"))],
        vec![("tls.certificate", json!("server.key"))],
        vec![("callers.trust_domains.0.bundle", json!("missing.pem"))],
        vec![("callers.trust_domains.0.bundle", json!("empty"))],
        vec![("callers.trust_domains.0.jwt_keys", json!("no-keys.jwks"))],
        vec![("issuers.0.keys", json!("missing.jwks"))],
        vec![("issuers.0.keys", json!("no-keys.jwks"))],
        vec![("keys", json!("no-keys"))],
    ];
    let rows = certificates.iter().map(|changes| (written(changes), deployment.start(changes)));
    tell("Wrong certificates and keys", rows.collect());

    std::fs::create_dir(deployment.path().join("folder")).unwrap();
    let transmitter = json!({
        "listen": "127.0.0.1:0",
        "transmitters": [{"issuer": "https://events.example", "keys": "https://127.0.0.1:1/keys", "algorithm": "ES256", "tenant": "acme", "tool_service": "session-manager"}],
    });
    let dead: Vec<Vec<(&str, Value)>> = vec![
        vec![("store.url", json!("postgres://127.0.0.1:1/countersign"))],
        vec![("windows", json!({"urls": ["redis://127.0.0.1:1"]}))],
        vec![("issuers.0.keys", json!("https://127.0.0.1:1/keys"))],
        vec![("events", transmitter)],
        vec![("audit", json!({"witness": "folder"}))],
        vec![("data", json!("/proc/nowhere"))],
    ];
    let rows = dead.iter().map(|changes| {
        let data = if changes[0].0 == "data" { vec![("COUNTERSIGN__DATA", "/proc/nowhere")] } else { vec![] };
        (written(changes), deployment.check(changes, &data))
    });
    tell("Dead back ends, by `config check`", rows.collect());

    const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    const COLLECTOR: (&str, &str) = (ENDPOINT, "http://127.0.0.1:4317");
    let telemetry: &[&[(&str, &str)]] = &[
        &[COLLECTOR],
        &[(ENDPOINT, "collector:4317")],
        &[(ENDPOINT, " http://127.0.0.1:4317 ")],
        &[(ENDPOINT, "https://collector.example")],
        &[(ENDPOINT, "https://collector.example"), ("OTEL_EXPORTER_OTLP_CERTIFICATE", "missing.pem")],
        &[(ENDPOINT, "https://collector.example"), ("OTEL_EXPORTER_OTLP_CERTIFICATE", "empty")],
        &[(ENDPOINT, "https://collector.example"), ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "server.key")],
        &[(ENDPOINT, "http://one:1"), ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://two:1")],
        &[COLLECTOR, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")],
        &[COLLECTOR, ("OTEL_TRACES_EXPORTER", "console")],
        &[COLLECTOR, ("OTEL_TRACES_EXPORTER", "none")],
        &[COLLECTOR, ("OTEL_TRACES_SAMPLER", "allways_on")],
        &[COLLECTOR, ("OTEL_SDK_DISABLED", "TRUE")],
        &[COLLECTOR, ("OTEL_SDK_DISABLED", "no")],
        &[COLLECTOR, ("OTEL_RESOURCE_ATTRIBUTES", "service.name=pdp")],
        &[("OTEL_SDK_DISABLED", "true")],
    ];
    let rows = telemetry.iter().map(|variables| {
        let name = variables.iter().map(|(name, value)| format!("{name}={value:?}")).collect::<Vec<_>>().join(" ");
        (name, deployment.check(&[], variables))
    });
    tell("Telemetry, by `config check`", rows.collect());
    insta::assert_snapshot!("startup", shown);
}

fn written(changes: &[(&str, Value)]) -> String {
    let change = |(path, value): &(&str, Value)| match value {
        Value::Null => format!("without {path}"),
        value => format!("{path}: {value}"),
    };
    changes.iter().map(change).collect::<Vec<_>>().join(", ").replace(char::is_control, "")
}

/// `config check` does all of a start but listening, and changes nothing.
#[test]
fn config_check_agrees_with_a_start_and_changes_nothing() {
    let deployment = Deployment::new();
    let entries = || {
        let mut entries: Vec<_> = walk(deployment.path());
        entries.retain(|name| name != "countersign.yaml");
        entries.sort();
        entries
    };
    let before = entries();
    let checked = deployment.run(&["config", "check", "-o", "json"], &deployment.settings, &[]);
    assert!(checked.status.success(), "{}", said(&checked));
    let found: Value = serde_json::from_slice(&checked.stdout).unwrap();
    let names: Vec<&str> =
        found["checks"].as_array().unwrap().iter().map(|check| check["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        ["settings", "bundle", "callers", "issuers", "keys", "data", "store", "windows", "audit.witness", "telemetry"]
    );
    assert_eq!(found["valid"], json!(true));
    assert_eq!(entries(), before);
    // A start with the same settings works, also the line that it prints.
    let mut serve = command(&["serve", "-o", "json"]);
    serve.env("COUNTERSIGN__DATA", "data").env("COUNTERSIGN__BUNDLE__PATH", "policies").current_dir(deployment.path());
    let server = Process::spawn(serve);
    let ready = command(&["config", "check"])
        .current_dir(deployment.path())
        .env("COUNTERSIGN__DATA", "data")
        .env("COUNTERSIGN__BUNDLE__PATH", "policies")
        .output()
        .unwrap();
    assert!(ready.status.success(), "a running server does not disturb it: {}", said(&ready));
    assert!(server.stop().success());

    // Each faulty step is named, and the first one sets the exit code.
    let mut faulty =
        deployment.with(&[("callers.identities.0.tool_service", json!("crm-tool")), ("tls.key", json!("other.key"))]);
    faulty["keys"] = json!("no-keys");
    let checked = deployment.run(&["config", "check"], &faulty, &[]);
    let text = said(&checked);
    for name in ["bundle", "callers", "keys"] {
        assert!(text.lines().any(|line| line.starts_with(&format!("FAULTY  {name} "))), "{name}: {text}");
    }
    assert_eq!(checked.status.code(), Some(64), "{text}");
}

/// Returns the names of all files below a folder.
fn walk(folder: &Path) -> Vec<String> {
    let mut names = vec![];
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => open.push(path),
                false => names.push(path.strip_prefix(folder).unwrap().display().to_string()),
            }
        }
    }
    names
}
