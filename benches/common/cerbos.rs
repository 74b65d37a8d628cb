//! Cerbos as a peer: its server, a policy with the rules of an order check, and the request for it. Messages are
//! those of `cerbos.request.v1` and `cerbos.response.v1`, with the fields that are used here.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use prost_types::value::Kind;
use prost_types::{ListValue, Value};

const VERSION: &str = "0.55.0";
/// `EFFECT_ALLOW`.
pub(crate) const ALLOW: i32 = 1;
pub(crate) const METHOD: &str = "/cerbos.svc.v1.CerbosService/CheckResources";

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct CheckResources {
    #[prost(string, tag = "1")]
    request_id: String,
    #[prost(message, optional, tag = "3")]
    principal: Option<Principal>,
    #[prost(message, repeated, tag = "4")]
    resources: Vec<ResourceEntry>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResourceEntry {
    #[prost(string, repeated, tag = "1")]
    actions: Vec<String>,
    #[prost(message, optional, tag = "2")]
    resource: Option<Resource>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Principal {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, repeated, tag = "3")]
    roles: Vec<String>,
    #[prost(btree_map = "string, message", tag = "4")]
    attr: BTreeMap<String, Value>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Resource {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(string, tag = "3")]
    id: String,
    #[prost(btree_map = "string, message", tag = "4")]
    attr: BTreeMap<String, Value>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Checked {
    #[prost(message, repeated, tag = "2")]
    results: Vec<ResultEntry>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResultEntry {
    #[prost(map = "string, int32", tag = "2")]
    actions: HashMap<String, i32>,
}

impl Checked {
    pub(crate) fn effect(&self) -> Option<i32> {
        self.results.first()?.actions.get("order.check").copied()
    }
}

fn text(text: &str) -> Value {
    Value { kind: Some(Kind::StringValue(text.into())) }
}

fn list(items: &[&str]) -> Value {
    Value { kind: Some(Kind::ListValue(ListValue { values: items.iter().map(|item| text(item)).collect() })) }
}

fn record(pairs: &[(&str, Value)]) -> BTreeMap<String, Value> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
}

/// Returns the request with the facts that Countersign's call has.
pub(crate) fn check_order(step: &str) -> CheckResources {
    let number = |number: f64| Value { kind: Some(Kind::NumberValue(number)) };
    let agent = [
        ("tenant", text("acme")),
        ("supervisor", text("rep-1")),
        ("step", text(step)),
        ("scopes", list(&["tickets", "knowledge", "orders", "verification", "refunds", "accounts", "replies"])),
        ("risk", text("low")),
        ("case_customer", text("customer-1")),
        ("case_status", text("open")),
        ("case_tenant", text("acme")),
        ("fraud_check", text("none")),
        ("identity_check", text("none")),
    ];
    let order = [
        ("tenant", text("acme")),
        ("customer", text("customer-1")),
        ("currency", text("EUR")),
        ("paid_minor", number(9000.0)),
        ("refunded_minor", number(0.0)),
    ];
    CheckResources {
        request_id: "request-1".into(),
        principal: Some(Principal { id: "support-bot".into(), roles: vec!["agent".into()], attr: record(&agent) }),
        resources: vec![ResourceEntry {
            actions: vec!["order.check".into()],
            resource: Some(Resource { kind: "order".into(), id: "order-1".into(), attr: record(&order) }),
        }],
    }
}

/// Returns a policy of 30 rules: three for each of ten actions, of which one allows and two deny.
fn policy() -> String {
    let actions = ["check", "read", "list", "track", "refund", "cancel", "change", "note", "label", "return"];
    let mut policy =
        "apiVersion: api.cerbos.dev/v1\nresourcePolicy:\n  resource: order\n  version: default\n  rules:\n".to_owned();
    let mut rule = |action: &str, effect: &str, conditions: &[&str]| {
        write!(policy, "  - actions: [order.{action}]\n    roles: [agent]\n    effect: EFFECT_{effect}\n    condition:\n      match:\n        all:\n          of:\n").unwrap();
        conditions.iter().for_each(|condition| writeln!(policy, "          - expr: '{condition}'").unwrap());
    };
    for action in actions {
        let same = ["P.attr.case_tenant == P.attr.tenant", "R.attr.tenant == P.attr.tenant"];
        let owned = ["R.attr.customer == P.attr.case_customer", "P.attr.step == \"enrichment\""];
        rule(action, "ALLOW", &[&same[..], &owned, &["\"orders\" in P.attr.scopes"]].concat());
        rule(action, "DENY", &["P.attr.risk == \"high\""]);
        rule(action, "DENY", &["P.attr.case_status == \"legal_hold\""]);
    }
    policy
}

/// Downloads the server into `folder` unless it is there, and returns its path.
fn program(folder: &Path) -> PathBuf {
    let program = folder.join("package/cerbos-linux-x64");
    if !program.exists() {
        std::fs::create_dir_all(folder).unwrap();
        let script = format!("npm pack @cerbos/cerbos-linux-x64@{VERSION} && tar xzf *.tgz");
        let done = Command::new("sh").args(["-c", &script]).current_dir(folder).output();
        let done = done.unwrap();
        assert!(done.status.success(), "npm can't download Cerbos (Debian: apt-get install npm): {done:?}");
    }
    program
}

/// Writes the server's files into `folder`. Returns the program and its arguments. It audits into a file.
pub(crate) fn prepare(folder: &Path, grpc: SocketAddr, http: SocketAddr) -> (PathBuf, Vec<String>) {
    let policies = folder.join("policies");
    std::fs::create_dir_all(&policies).unwrap();
    std::fs::write(policies.join("order.yaml"), policy()).unwrap();
    let config = serde_json::json!({
        "server": {"grpcListenAddr": grpc.to_string(), "httpListenAddr": http.to_string()},
        "storage": {"driver": "disk", "disk": {"directory": policies, "watchForChanges": false}},
        "audit": {"enabled": true, "backend": "file", "file": {"path": folder.join("audit.log")}, "accessLogsEnabled": true, "decisionLogsEnabled": true},
        "telemetry": {"disabled": true},
    });
    let path = folder.join("config.yaml");
    // YAML contains JSON.
    std::fs::write(&path, config.to_string()).unwrap();
    let downloaded = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cerbos-{VERSION}"));
    (program(&downloaded), vec!["server".into(), format!("--config={}", path.display()), "--log-level=error".into()])
}
