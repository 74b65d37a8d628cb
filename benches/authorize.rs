//! Costs of one Authorize: in process, step by step, and over gRPC, beside an empty RPC with the same message
//! and naive Cedar behind the same RPC. Rounds are interleaved, so that the ratios hold on any machine.
//!
//! Run with `cargo bench` (or `make bench`). Set `COUNTERSIGN_BENCH_ROUNDS` for more rounds.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a benchmark measures, prints and stops at a fault"
)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cedar_policy::{Authorizer, Context, Entities, EntityId, EntityTypeName, EntityUid, Request};
use countersign::api;
use countersign::api::v1;
use countersign::api::v1::decision_service_client::DecisionServiceClient;
use countersign::api::v1::decision_service_server::{DecisionService, DecisionServiceServer};
use countersign::app::{self, Seams};
use countersign::audit::Durability;
use countersign::bundle::{Bundle, Reading};
use countersign::config::Config;
use countersign::delegation::asserted_chain;
use countersign::jose::keyring::{self, Keyring, Purpose};
use countersign::jose::{self, Expected};
use countersign::model::chain::Credential;
use countersign::model::time::Timestamp;
use countersign::pdp::evaluation::Evaluator;
use countersign::pdp::origin::Request as Read;
use countersign::pdp::scoring::calm;
use tonic::transport::Channel;

const CASE: &str = r#"{"customer":"customer-1","product":"phone","region":"eu","policy_set":"standard","currency":"EUR","status":"open","refund_status":"none","identity_check":"none","fraud_check":"none"}"#;
const ORDER: &str =
    r#"{"tenant":"acme","customer":"customer-1","currency":"EUR","paid_minor":9000,"refunded_minor":0}"#;
/// Calls in flight over one connection.
const IN_FLIGHT: usize = 16;
const CALLS: usize = 2000;

fn call(step: &str) -> v1::AuthorizeRequest {
    let chain = v1::AssertedChain {
        agent: "support-bot".into(),
        supervisor: "rep-1".into(),
        step: step.into(),
        scopes: vec![],
    };
    v1::AuthorizeRequest {
        delegation: Some(v1::Delegation {
            credential: Some(v1::delegation::Credential::Asserted(chain)),
            ..Default::default()
        }),
        action: "order.check".into(),
        resource: Some(v1::Resource {
            r#ref: Some(v1::EntityReference { r#type: "Order".into(), id: "order-1".into() }),
            attributes_json: ORDER.into(),
            ..Default::default()
        }),
        case: Some(v1::Case {
            id: "case-1".into(),
            version: "3".into(),
            tenant: "acme".into(),
            attributes_json: CASE.into(),
        }),
        ..Default::default()
    }
}

fn policies() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("policies")
}

/// Writes the reference bundle with rates that allow every call of the run, and returns its path.
fn unlimited(folder: &Path) -> std::path::PathBuf {
    let bundle = folder.join("policies");
    for (name, bytes) in countersign::bundle::folder::Folder::read(&policies()).unwrap().files() {
        let file = bundle.join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, bytes).unwrap();
    }
    let rates = std::fs::read_to_string(bundle.join("rates.yaml")).unwrap();
    let lifted = rates.lines().map(|line| match line.split_once("sustained:") {
        Some((before, _)) => format!("{before}sustained: 1000000, minutes: 1, burst: 1000000}}\n"),
        None => format!("{line}\n"),
    });
    std::fs::write(bundle.join("rates.yaml"), lifted.collect::<String>()).unwrap();
    bundle
}

fn rounds() -> usize {
    std::env::var_os("COUNTERSIGN_BENCH_ROUNDS").and_then(|rounds| rounds.to_str()?.parse().ok()).unwrap_or(7)
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Runs the contenders in turn, and returns the median of microseconds per call for each.
fn interleave(names: &[&str], mut run: impl FnMut(usize) -> Duration, calls: usize) -> Vec<f64> {
    let mut times = vec![vec![]; names.len()];
    for round in 0..=rounds() {
        for (index, times) in times.iter_mut().enumerate() {
            let took = run(index);
            // The first round warms up.
            if round > 0 {
                times.push(took.as_secs_f64() * 1e6 / calls as f64);
            }
        }
    }
    times.into_iter().map(median).collect()
}

/// A service that hands each request to Cedar unprepared: JSON entities and context, every policy, each link.
struct Naive {
    bundle: Bundle,
    /// The reference bundle's own entities in Cedar's JSON form.
    entities: Vec<serde_json::Value>,
}

impl Naive {
    fn new() -> Self {
        let mut entities = vec![];
        for file in ["agents", "fields", "reps", "roles", "tenants", "tool_services"] {
            let text = std::fs::read_to_string(policies().join(format!("entities/{file}.json"))).unwrap();
            entities.extend(serde_json::from_str::<Vec<serde_json::Value>>(&text).unwrap());
        }
        Self { bundle: Bundle::load(&policies(), Reading::default()).unwrap(), entities }
    }

    fn authorize(&self, request: &v1::AuthorizeRequest) -> bool {
        let schema = self.bundle.policies.schema.as_ref().unwrap();
        let uid = |kind: &str, id: &str| {
            EntityUid::from_type_name_and_id(kind.parse::<EntityTypeName>().unwrap(), EntityId::new(id))
        };
        let (case, resource) = (request.case.as_ref().unwrap(), request.resource.as_ref().unwrap());
        let Some(v1::delegation::Credential::Asserted(chain)) =
            request.delegation.as_ref().and_then(|delegation| delegation.credential.as_ref())
        else {
            return false;
        };
        let id = |kind: &str, id: &str| serde_json::json!({"type": kind, "id": id});
        let mut facts: serde_json::Value = serde_json::from_slice(&case.attributes_json).unwrap();
        facts["tenant"] = id("Tenant", &case.tenant);
        let mut order: serde_json::Value = serde_json::from_slice(&resource.attributes_json).unwrap();
        for (member, kind) in [
            ("product", "Product"),
            ("region", "Region"),
            ("policy_set", "PolicySet"),
            ("currency", "Currency"),
            ("status", "CaseStatus"),
            ("refund_status", "RefundStatus"),
            ("identity_check", "IdentityCheck"),
            ("fraud_check", "FraudCheck"),
        ] {
            facts[member] = id(kind, facts[member].as_str().unwrap());
        }
        order["tenant"] = id("Tenant", order["tenant"].as_str().unwrap());
        order["currency"] = id("Currency", order["currency"].as_str().unwrap());
        let mut entities = self.entities.clone();
        entities.push(serde_json::json!({"uid": id("Case", &case.id), "attrs": facts, "parents": []}));
        entities.push(serde_json::json!({"uid": id("Order", "order-1"), "attrs": order, "parents": []}));
        let entities = Entities::from_json_value(entities.into(), Some(schema)).unwrap();
        let action = uid("Action", &request.action);
        let scopes = ["tickets", "knowledge", "orders", "verification", "refunds", "accounts", "replies"]
            .map(|scope| id("Scope", scope));
        let context = serde_json::json!({
            "args": {}, "case": id("Case", &case.id), "step": id("Step", &chain.step), "now": "2026-11-23T09:00:00Z",
            "chain": {"agent": id("Agent", &chain.agent), "supervisor": id("Rep", &chain.supervisor), "tool_service": id("ToolService", "support-tools"), "scopes": scopes, "asserted": true},
            "risk": {"tier": id("RiskTier", "low"), "score": 0, "signals": []}, "rates": [], "findings": [], "checks": {},
        });
        [("ToolService", "support-tools"), ("Agent", chain.agent.as_str()), ("Rep", chain.supervisor.as_str())]
            .iter()
            .all(|(kind, name)| {
                let context = Context::from_json_value(context.clone(), Some((schema, &action))).unwrap();
                let request =
                    Request::new(uid(kind, name), action.clone(), uid("Order", "order-1"), context, Some(schema))
                        .unwrap();
                let response =
                    Authorizer::new().is_authorized(&request, self.bundle.policies.engine.policies(), &entities);
                response.decision() == cedar_policy::Decision::Allow
            })
    }
}

/// Measures one Authorize in process, and its steps.
fn in_process() {
    let bundle = Bundle::load(&policies(), Reading::default()).unwrap();
    let roles = bundle.roles.clone().unwrap();
    let now = Timestamp::parse("2026-11-23T09:00:00Z").unwrap();
    let trusted = calm(&bundle.policies.shapes);
    let (allowed, denied) = (call("enrichment"), call("intake"));
    let read = |message: &v1::AuthorizeRequest| match api::convert::request(message.clone()).unwrap() {
        Read::Call(call) => call,
        Read::Plain(_) => unreachable!("no plain request is made here"),
    };
    let defaults = bundle.manifest.development.clone().unwrap();
    let whole = |message: &v1::AuthorizeRequest| {
        let call = read(message);
        let Credential::Asserted(asserted) = &call.credential else {
            unreachable!("every call here asserts its chain")
        };
        let chain = asserted_chain(&defaults.tool_service, asserted, &defaults);
        Evaluator { bundle: &bundle, roles: &roles, now }.evaluate(&chain, &call, &trusted).unwrap()
    };
    assert!(whole(&allowed).outcome.denied.is_none() && whole(&denied).outcome.denied.is_some());
    let key = countersign::audit::key::DigestKey::new([7; 32]);
    let asked = read(&allowed);
    let naive = Naive::new();
    assert!(naive.authorize(&allowed) && !naive.authorize(&denied));
    let folder = tempfile::tempdir().unwrap();
    keyring::generate(folder.path(), Purpose::Binding, now).unwrap();
    let ring = Keyring::read(folder.path(), Purpose::Binding).unwrap();
    let claims = serde_json::json!({"iss": "us", "aud": "us", "sub": "rep-1", "iat": 1, "nbf": 1, "exp": 2, "act": {"sub": "support-bot"}});
    let token = ring.sign("at+jwt", &claims).unwrap();
    let expected = Expected::own(&["at+jwt"], "us", "us");
    let verify = || jose::open::<countersign::json::Object>(&token, &ring.set, &expected).unwrap();
    let names = [
        "read the message",
        "keyed digest",
        "decide (allow)",
        "decide (deny, with what-if)",
        "naive Cedar (allow)",
        "verify a token (ES256)",
        "sign a token (ES256)",
    ];
    let times = interleave(
        &names,
        |index| {
            let start = Instant::now();
            for _ in 0..CALLS / 4 {
                match index {
                    0 => drop(std::hint::black_box(read(&allowed))),
                    1 => drop(std::hint::black_box(key.digest(&asked.digest_input()))),
                    2 => drop(std::hint::black_box(whole(&allowed))),
                    3 => drop(std::hint::black_box(whole(&denied))),
                    5 => drop(std::hint::black_box(verify())),
                    6 => drop(std::hint::black_box(ring.sign("at+jwt", &claims).unwrap())),
                    _ => assert!(std::hint::black_box(naive.authorize(&allowed))),
                }
            }
            start.elapsed()
        },
        CALLS / 4,
    );
    println!("in process, µs a call (ratio to `decide (allow)`)");
    for (name, time) in names.iter().zip(&times) {
        println!("  {name:<30} {time:>8.1}  ({:.2})", time / times[2]);
    }
}

/// The same service without an evaluation, or with naive Cedar.
struct Other(Option<Arc<Naive>>);

type Items =
    std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<v1::AuthorizeStreamResponse, tonic::Status>> + Send>>;
type Answer<T> = Result<tonic::Response<T>, tonic::Status>;

#[tonic::async_trait]
impl DecisionService for Other {
    async fn authorize(&self, request: tonic::Request<v1::AuthorizeRequest>) -> Answer<v1::AuthorizeResponse> {
        let allowed = self.0.as_ref().is_none_or(|naive| naive.authorize(request.get_ref()));
        let decision = if allowed { v1::Decision::Allow } else { v1::Decision::Deny };
        Ok(tonic::Response::new(v1::AuthorizeResponse { decision: decision.into(), ..Default::default() }))
    }

    async fn authorize_batch(
        &self,
        _: tonic::Request<v1::AuthorizeBatchRequest>,
    ) -> Answer<v1::AuthorizeBatchResponse> {
        Err(tonic::Status::unimplemented(""))
    }

    type AuthorizeStreamStream = Items;

    async fn authorize_stream(&self, _: tonic::Request<tonic::Streaming<v1::AuthorizeStreamRequest>>) -> Answer<Items> {
        Err(tonic::Status::unimplemented(""))
    }

    async fn prepare_context(
        &self,
        _: tonic::Request<v1::PrepareContextRequest>,
    ) -> Answer<v1::PrepareContextResponse> {
        Err(tonic::Status::unimplemented(""))
    }

    async fn evaluate_output(
        &self,
        _: tonic::Request<v1::EvaluateOutputRequest>,
    ) -> Answer<v1::EvaluateOutputResponse> {
        Err(tonic::Status::unimplemented(""))
    }

    async fn report_outcome(&self, _: tonic::Request<v1::ReportOutcomeRequest>) -> Answer<v1::ReportOutcomeResponse> {
        Err(tonic::Status::unimplemented(""))
    }
}

async fn connect(address: std::net::SocketAddr) -> DecisionServiceClient<Channel> {
    DecisionServiceClient::connect(format!("http://{address}")).await.unwrap()
}

async fn other(naive: Option<Arc<Naive>>) -> DecisionServiceClient<Channel> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = DecisionServiceServer::new(Other(naive));
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    connect(address).await
}

/// Starts a Countersign server. The returned folder must be kept while the server is used.
async fn ours(durability: Durability) -> (DecisionServiceClient<Channel>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config { development: true, data: folder.path().join("data"), ..Config::default() };
    config.listen.grpc.set_port(0);
    config.listen.admin.set_port(0);
    config.bundle.path = unlimited(folder.path());
    config.audit.mode = durability;
    let bound = app::build(&config, Seams::system(Default::default())).await.unwrap();
    let address = bound.grpc;
    let (reload, reloads) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        let _keep = reload;
        bound.run(std::future::pending(), reloads).await
    });
    (connect(address).await, folder)
}

async fn burst(client: &DecisionServiceClient<Channel>) -> Duration {
    let start = Instant::now();
    let workers: Vec<_> = (0..IN_FLIGHT)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move {
                for _ in 0..CALLS / IN_FLIGHT {
                    let response = client.authorize(call("enrichment")).await.unwrap().into_inner();
                    assert_eq!(response.decision(), v1::Decision::Allow);
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }
    start.elapsed()
}

fn over_grpc() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(8 << 20).build().unwrap();
    let (empty, naive, strict, best_effort) = runtime.block_on(async {
        (
            other(None).await,
            other(Some(Arc::new(Naive::new()))).await,
            ours(Durability::Strict).await,
            ours(Durability::BestEffort).await,
        )
    });
    let names = [
        "empty RPC, same message",
        "naive Cedar, same RPC",
        "Countersign, durable audit",
        "Countersign, best-effort audit",
    ];
    let clients = [&empty, &naive, &strict.0, &best_effort.0];
    let times = interleave(&names, |index| runtime.block_on(burst(clients[index])), CALLS);
    println!(
        "over gRPC, {IN_FLIGHT} in flight on one connection, µs a call of client and server together (ratio to the empty RPC)"
    );
    for (name, time) in names.iter().zip(&times) {
        println!("  {name:<30} {time:>8.1}  ({:.2})", time / times[0]);
    }
    println!("  naive Cedar over Countersign with a durable record: {:.2}", times[1] / times[2]);
}

fn main() {
    // `cargo test --benches` must not take minutes, so it only shows that the benchmark builds.
    if std::env::args().any(|argument| argument == "--bench") {
        in_process();
        over_grpc();
    }
}
