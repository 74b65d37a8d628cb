//! End-to-end over mTLS: two servers on one PostgreSQL, tool services in Python and Rust, and humans.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use countersign::api::v1;
use countersign::api::v1::approval_service_client::ApprovalServiceClient;
use countersign::jose::keyring::{self, Keyring, Purpose};
use countersign::model::time::Timestamp;
use serde_json::{Value, json};
use tonic::Code;
use tonic::transport::Channel;

use crate::harness::people::{Desk, Issuer, bearer, credit, merged, seconds};
use crate::harness::pki::{Authority, Svid, connect, server, svid, write};
use crate::harness::postgres::Postgres;
use crate::harness::{App, Process, copy, get, is_open, lines, open_root, policies, temp, unprivileged};

/// A running tool service; killed when dropped.
struct Tool {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// Returns the Python of the tests' virtual environment.
fn python() -> PathBuf {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-venv/bin/python");
    assert!(python.exists(), "the test environment is missing: run `scripts/setup-tests`, or `make test`");
    python
}

impl Tool {
    fn start(language: &str, folder: &Path, arguments: &[String]) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut command = match language {
            "python" => {
                let script = folder.join("tool_service.py");
                std::fs::copy(root.join("examples/tool_service/tool_service.py"), &script).unwrap();
                let proto = folder.join("proto/countersign/v1");
                std::fs::create_dir_all(&proto).unwrap();
                for name in ["decision", "approval"] {
                    let name = format!("{name}.proto");
                    std::fs::copy(root.join("proto/countersign/v1").join(&name), proto.join(&name)).unwrap();
                }
                let mut command = Command::new(python());
                command.arg(script).arg("--proto").arg(folder.join("proto"));
                if is_open(&python()) && is_open(&root.join("target/test-venv")) {
                    unprivileged(&mut command);
                }
                command
            }
            _ => {
                let built = std::env::current_exe().unwrap();
                let example = built.parent().unwrap().parent().unwrap().join("examples/tool_service");
                assert!(example.exists(), "the example is not built: run `cargo build --examples`");
                let mut command = Command::new(&example);
                if is_open(&example) {
                    unprivileged(&mut command);
                }
                command
            }
        };
        let mut child =
            command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).current_dir("/").spawn().unwrap();
        let (ask, answers) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, ask, answers }
    }

    fn say(&mut self, asked: &Value) -> Value {
        writeln!(self.ask, "{asked}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("no answer to {asked}: {line}"))
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        // Ignore errors: the process may have ended already.
        let _ended = self.child.kill();
        let _waited = self.child.wait();
    }
}

/// Two servers that trust only one authority and the identity providers of two tenants.
struct World {
    postgres: Postgres,
    folder: tempfile::TempDir,
    authority: Authority,
    providers: [Keyring; 2],
    servers: Vec<Process>,
}

const TENANTS: [&str; 2] = ["acme", "globex"];

impl World {
    fn start() -> Self {
        let (postgres, folder, authority) = (Postgres::database(), temp(), Authority::new());
        let own = authority.sign(&server());
        let provider = |tenant: &str| {
            let keys = folder.path().join(tenant);
            keyring::generate(&keys, Purpose::Development, Timestamp::from_seconds(seconds())).unwrap();
            let ring = Keyring::read(&keys, Purpose::Development).unwrap();
            let jwks: Vec<Value> = ring.jwks().iter().map(|jwk| serde_json::to_value(jwk).unwrap()).collect();
            write(folder.path(), &format!("{tenant}.jwks"), &json!({"keys": jwks}).to_string());
            ring
        };
        let providers = TENANTS.map(provider);
        let issuer = |tenant: &str| {
            json!({"issuer": format!("https://idp.{tenant}.example"), "tenant": tenant, "keys": folder.path().join(format!("{tenant}.jwks")),
                   "algorithm": "ES256", "person_claim": "employee"})
        };
        let settings = json!({
            "environment": "production",
            "tls": {"certificate": write(folder.path(), "server.pem", &own.certificate), "key": write(folder.path(), "server.key", &own.key)},
            "callers": {
                "trust_domains": [{"name": "acme.example", "bundle": write(folder.path(), "ca.pem", &authority.pem()), "tenants": ["acme"]}],
                "identities": [
                    {"id": "spiffe://acme.example/tool/billing", "tool_service": "billing-tools"},
                    {"id": "spiffe://acme.example/tool/crm", "tool_service": "crm-tools"},
                    {"id": "spiffe://acme.example/sessions", "tool_service": "session-manager"},
                ],
                "certificate_reporters": ["billing-tools", "crm-tools"],
            },
            "issuers": TENANTS.map(issuer),
            "keys": folder.path().join("keys"),
            "store": {"url": postgres.url()},
            "bundle": {"path": open_root().join("policies")},
            "log": "off",
        });
        write(folder.path(), "countersign.yaml", &settings.to_string());
        let mut world = Self { postgres, folder, authority, providers, servers: vec![] };
        assert!(world.command(&["keys", "generate"], "one").output().unwrap().status.success());
        for name in ["one", "two"] {
            let serve = world
                .command(&["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "-o", "json"], name);
            world.servers.push(Process::spawn(serve));
        }
        world
    }

    fn command(&self, arguments: &[&str], data: &str) -> Command {
        let config = self.folder.path().join("countersign.yaml");
        let mut command = crate::harness::command(&[arguments, &["--config", config.to_str().unwrap()]].concat());
        command.env("COUNTERSIGN__DATA", self.folder.path().join(data));
        command
    }

    fn svid(&self, path: &str) -> Svid {
        self.authority.sign(&svid(&format!("spiffe://acme.example/{path}")))
    }

    async fn channel(&self, server: usize, svid: Option<&Svid>) -> Channel {
        connect(self.servers[server].grpc, &self.authority.pem(), svid).await.unwrap()
    }

    /// Signs a human's token, as her tenant's provider does.
    fn human(&self, tenant: usize, id: &str, employee: &str) -> String {
        let now = seconds();
        let claims = json!({
            "iss": format!("https://idp.{}.example", TENANTS[tenant]), "aud": "countersign:production", "sub": id, "sub_profile": "user",
            "employee": employee, "amr": ["hwk"], "iat": now, "nbf": now, "exp": now + 600,
        });
        self.providers[tenant].sign("at+jwt", &claims).unwrap()
    }

    /// Signs the agent's delegation token, which is bound to its certificate.
    fn delegation(&self, agent: &Svid, step: &str) -> String {
        let now = seconds();
        let claims = json!({
            "iss": "https://idp.acme.example", "aud": "countersign:production", "sub": "rep-1", "sub_profile": "user", "employee": "e-1",
            "act": {"iss": "https://idp.acme.example", "sub": "refund-bot", "sub_profile": "ai_agent"}, "step": step,
            "scope": "accounts", "case": "case-1", "iat": now, "nbf": now, "exp": now + 600,
            "cnf": {"x5t#S256": countersign::jose::encode(&agent.digest)},
        });
        self.providers[0].sign("at+jwt", &claims).unwrap()
    }

    fn tool(&self, language: &str) -> Tool {
        let own = self.svid("tool/billing");
        let path = |name: &str, text: &str| write(self.folder.path(), name, text).to_str().unwrap().to_owned();
        let mut arguments: Vec<String> =
            self.servers.iter().flat_map(|server| ["--server".to_owned(), server.grpc.to_string()]).collect();
        arguments.extend(["--ca".into(), path("ca.pem", &self.authority.pem())]);
        arguments.extend(["--certificate".into(), path("tool.pem", &own.certificate)]);
        arguments.extend(["--private-key".into(), path("tool.key", &own.key)]);
        Tool::start(language, self.folder.path(), &arguments)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approved_credit_is_executed_exactly_once() {
    for language in ["python", "rust"] {
        let world = World::start();
        let agent = world.svid("agent/refunds");
        let mut tool = world.tool(language);
        let call = |operation: &str, amount: i64| {
            json!({
                "op": "call", "operation": operation, "action": "account.credit", "case": "case-1",
                "arguments": {"amount_minor": amount, "currency": "EUR"},
                "delegation": world.delegation(&agent, "action"), "agent_certificate": hex(&agent.digest),
            })
        };
        // In the drafting step the agent can't act; in the action step a human is asked.
        let drafting = merged(call("op-0", 400), json!({"delegation": world.delegation(&agent, "drafting")}));
        let told = tool.say(&drafting);
        assert_eq!(
            (&told["allowed"], &told["next"]),
            (&json!(false), &json!("NEXT_ACTION_NONE")),
            "{language}: {told}"
        );
        let told = tool.say(&call("op-1", 400));
        assert_eq!((&told["allowed"], &told["next"]), (&json!(false), &json!("NEXT_ACTION_REQUEST")), "{told}");
        assert_eq!(told["reason"], "This action needs human approval. Do not retry it with other arguments.");
        let said = json!({"customer_request": "The customer asks for a credit.", "policy_clause": "4.2", "expected_effect": "A credit of 4 EUR."});
        let asked = tool.say(&json!({"op": "ask", "operation": "op-1", "justification": said}));
        let id = asked["requested"].as_str().unwrap_or_else(|| panic!("{asked}")).to_owned();

        // The humans use the other server.
        let mut humans = ApprovalServiceClient::new(world.channel(1, None).await);
        let read = |token: &str| bearer(v1::GetApprovalRequest { id: id.clone() }, token);
        let lead = world.human(0, "lead-1", "e-7");
        let shown = humans.get_approval(read(&lead)).await.unwrap().into_inner().approval.unwrap();
        assert!(shown.display.contains("argument amount_minor at most: 400\n"), "{}", shown.display);
        assert_eq!(shown.unverified_justification.clone().unwrap().policy_clause, "4.2");
        let approve = |token: &str| {
            let decision = v1::ReviewDecision::Approve.into();
            let display_digest = shown.display_digest.clone();
            bearer(v1::ReviewApprovalRequest { id: id.clone(), decision, display_digest, ..Default::default() }, token)
        };
        for (who, token, expected) in [
            ("the supervisor who asks", world.human(0, "rep-1", "e-1"), Code::PermissionDenied),
            ("an approver who is the same person", world.human(0, "lead-2", "e-1"), Code::PermissionDenied),
            ("a rep of another tenant", world.human(1, "globex-lead", "e-7"), Code::NotFound),
            ("an approver under the limit", world.human(0, "junior-lead", "e-8"), Code::PermissionDenied),
        ] {
            assert_eq!(humans.review_approval(approve(&token)).await.unwrap_err().code(), expected, "{who}");
        }
        assert_eq!(tool.say(&call("op-1", 400))["allowed"], false, "no one has approved");
        let approved = humans.review_approval(approve(&lead)).await.unwrap().into_inner().approval.unwrap();
        assert_eq!(approved.state(), v1::ApprovalState::Approved);
        // Another tool service gets no token, and does not even learn that there is one.
        let crm = world.svid("tool/crm");
        let mut other = ApprovalServiceClient::new(world.channel(0, Some(&crm)).await);
        assert_eq!(
            other.get_approval(v1::GetApprovalRequest { id: id.clone() }).await.unwrap_err().code(),
            Code::NotFound
        );

        let told = tool.say(&call("op-1", 400));
        assert_eq!(told, json!({"allowed": true, "result": {"credited": 400, "balance": 400}}), "{language}");
        assert_eq!(tool.say(&call("op-1", 400)), told, "a retry gets the same answer");
        assert_eq!(tool.say(&call("op-1", 399))["allowed"], false, "the same operation with another amount");
        assert_eq!(
            tool.say(&call("op-2", 400))["next"],
            "NEXT_ACTION_REQUEST",
            "another operation needs a new approval"
        );
        assert_eq!(tool.say(&json!({"op": "state"})), json!({"credited": 400, "version": 4, "executions": 1}));

        // The audit lines name the human and the time of each step, on whichever server it happened.
        let data = ["one", "two"].map(|name| lines(&world.folder.path().join(name)));
        let all: Vec<&Value> = data.iter().flatten().filter(|line| line["approval"]["id"] == id.as_str()).collect();
        let of = |kind: &str| all.iter().filter(|line| line["type"] == kind).copied().collect::<Vec<_>>();
        assert_eq!(of("approval.requested")[0]["by"], json!({"tool_service": "billing-tools", "by": "mtls"}));
        let reviewed = of("approval.reviewed");
        assert_eq!(
            (reviewed.len(), &reviewed[0]["by"]["human"], &reviewed[0]["by"]["issuer"]),
            (1, &json!("lead-1"), &json!("https://idp.acme.example"))
        );
        assert!(reviewed[0]["ts"].as_str().unwrap().starts_with("20"));
        let uses: Vec<_> = of("decision").into_iter().filter(|line| line["decision"] == "allow").collect();
        assert_eq!(
            (uses.len(), &uses[0]["chain"]["supervisor"], &uses[0]["approval"]["approvers"]),
            (1, &json!("rep-1"), &json!(["lead-1"]))
        );
        let outcomes: usize = data.iter().flatten().filter(|line| line["type"] == "outcome.reported").count();
        assert_eq!(outcomes, 1);
        drop(tool);
        for (server, name) in world.servers.into_iter().zip(["one", "two"]) {
            assert!(server.stop().success());
            crate::harness::verify(&world.folder.path().join(name).join("audit")).unwrap();
        }
        drop(world.postgres);
    }
}

/// Further duties of a PEP: it denies on an unknown obligation, on no answer, and if the case has changed.
#[tokio::test(flavor = "multi_thread")]
async fn the_reference_tool_services_deny_when_they_cannot_meet_an_answer() {
    for language in ["python", "rust"] {
        let folder = temp();
        let bundle = folder.path().join("bundle");
        copy(&policies(), &bundle);
        // In this bundle credits below 100 need no approval.
        let accounts = std::fs::read_to_string(bundle.join("accounts.cedar")).unwrap();
        let accounts = accounts.replace(
            "forbid (principal, action == Action::\"account.credit\", resource)\nunless {\n",
            "forbid (principal, action == Action::\"account.credit\", resource)\nwhen { context.args.amount_minor >= 100 }\nunless {\n",
        );
        std::fs::write(bundle.join("accounts.cedar"), accounts).unwrap();
        let app = App::start_with(|config, _| config.bundle.path = bundle.clone()).await;
        let issuer = Issuer::of(&app.data);
        let mut tool = Tool::start(language, folder.path(), &["--server".into(), app.grpc.to_string()]);
        let call = |operation: &str, amount: i64, more: Value| {
            let call = json!({
                "op": "call", "operation": operation, "action": "account.credit", "case": "case-1",
                "arguments": {"amount_minor": amount, "currency": "EUR"}, "delegation": issuer.delegation("refund-bot", "rep-1"),
            });
            merged(call, more)
        };
        assert_eq!(tool.say(&call("op-1", 50, json!({})))["allowed"], true, "{language}");
        let told = tool.say(&call("op-2", 50, json!({"interleaved": true})));
        assert_eq!(
            (&told["allowed"], &told["next"]),
            (&json!(false), &json!("NEXT_ACTION_RETRY")),
            "the case changed before the effect"
        );
        assert_eq!(
            tool.say(&call("op-3", 50, json!({"delegation": "x.y.z"})))["error"].as_str().map(str::to_uppercase),
            Some("UNAUTHENTICATED".into())
        );
        let callers = std::fs::read_to_string(bundle.join("callers.cedar")).unwrap();
        let callers = callers.replace("@id(\"agent.acts\")", "@id(\"agent.acts\") @obligation(\"dance:tango\")");
        std::fs::write(bundle.join("callers.cedar"), callers).unwrap();
        let manifest = std::fs::read_to_string(bundle.join("bundle.yaml")).unwrap();
        let manifest = manifest.replace("  returns_nothing:", "  obligations: {dance: name}\n  returns_nothing:");
        std::fs::write(bundle.join("bundle.yaml"), manifest).unwrap();
        app.pdp.reload(countersign::pdp::reload::Trigger::Asked).await.unwrap();
        let told = tool.say(&call("op-4", 50, json!({})));
        assert_eq!(
            (&told["allowed"], &told["next"]),
            (&json!(false), &json!("NEXT_ACTION_NONE")),
            "an unknown obligation: {told}"
        );
        assert_eq!(tool.say(&json!({"op": "state"}))["credited"], 50);
        app.stop().await;
        let told = tool.say(&call("op-5", 50, json!({})));
        assert_eq!(
            (&told["allowed"], told["error"].is_string()),
            (&json!(false), true),
            "no answer is a denial: {told}"
        );
        assert_eq!(tool.say(&json!({"op": "state"}))["credited"], 50);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_key_set_verify_with_another_jose_implementation() {
    let app = App::start().await;
    let issuer = Issuer::of(&app.data);
    let mut desk = Desk::new(app.channel().await);
    let denied = desk.ask(&credit(300)).await;
    let (_, approval) = desk.approved(&credit(400), &issuer).await;
    let jwks: Value = serde_json::from_str(&get(app.admin, "/jwks.json").await.1).unwrap();
    let tokens = json!([
        [denied.access_request.unwrap().binding_token, "countersign-binding+jwt"],
        [approval, "countersign-approval+jwt"],
    ]);
    let mut command = Command::new(python());
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/jose.py"));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(json!({"jwks": jwks, "tokens": tokens}).to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    insta::assert_snapshot!("claims", String::from_utf8_lossy(&output.stdout));
    app.stop().await;
}
