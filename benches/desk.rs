//! The approval desk: how long its pages take while many requests wait, and what watching browsers cost decisions.
//!
//! Run with `cargo bench --bench desk` (or `make bench`). Set `COUNTERSIGN_BENCH_REQUESTS` for another number of requests. Server and
//! clients are in one process, so CPU times are of both; they are compared within one run.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a benchmark measures, prints and stops at a fault"
)]

#[path = "common/bundles.rs"]
mod bundles;
#[path = "common/calls.rs"]
mod calls;

use std::path::Path;
use std::time::{Duration, Instant};

use bundles::unlimited;
use calls::{CASE, delegation, order_check};
use countersign::api::v1;
use countersign::api::v1::approval_service_client::ApprovalServiceClient;
use countersign::api::v1::decision_service_client::DecisionServiceClient;
use countersign::app::{self, Seams};
use countersign::audit::Durability;
use countersign::config::Config;
use reqwest::header;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::oneshot;
use tonic::transport::{Channel, Endpoint};

/// Number of browsers that watch.
const WATCHERS: usize = 50;
/// Number of decisions that are timed at once, and how often.
const DECISIONS: usize = 4000;
const ROUNDS: usize = 5;
/// Number of times that each page is read.
const READS: usize = 20;

/// CPU time of this process.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap())
}

/// A credit of its own case and customer that lacks only its approval.
fn credit(index: usize) -> v1::AuthorizeRequest {
    let customer = format!("customer-{index}");
    v1::AuthorizeRequest {
        delegation: delegation("refund-bot", "action"),
        action: "account.credit".into(),
        resource: Some(v1::Resource {
            r#ref: Some(v1::EntityReference { r#type: "Account".into(), id: format!("account-{index}") }),
            attributes_json: format!(r#"{{"tenant":"acme","customer":"{customer}"}}"#).into(),
            ..Default::default()
        }),
        case: Some(v1::Case {
            id: format!("case-{index}"),
            version: "3".into(),
            tenant: "acme".into(),
            attributes_json: CASE.replace("customer-1", &customer).into(),
        }),
        arguments_json: r#"{"amount_minor":400,"currency":"EUR"}"#.into(),
        model: Some(v1::Model { name: "bench".into(), ..Default::default() }),
        untrusted: vec![v1::UntrustedText { source: "ticket.body".into(), text: "Hello, thank you.".into() }],
        ..Default::default()
    }
}

/// Makes requests for approval, some at a time.
async fn request_all(channel: &Channel, count: usize) {
    const AT_ONCE: usize = 8;
    let makers: Vec<_> = (0..AT_ONCE)
        .map(|first| {
            let (mut decisions, mut approvals) =
                (DecisionServiceClient::new(channel.clone()), ApprovalServiceClient::new(channel.clone()));
            tokio::spawn(async move {
                for index in (first..count).step_by(AT_ONCE) {
                    let denied = decisions.authorize(credit(index)).await.unwrap().into_inner();
                    let request = v1::RequestApprovalRequest {
                        evaluation_id: denied.evaluation_id.clone(),
                        binding_token: denied
                            .access_request
                            .unwrap_or_else(|| panic!("{:?}", denied.reason))
                            .binding_token,
                        justification: Some(v1::Justification {
                            customer_request: "The customer asks for a credit.".into(),
                            policy_clause: "4.2".into(),
                            expected_effect: "The account is credited.".into(),
                            ..Default::default()
                        }),
                        ..Default::default()
                    };
                    approvals.request_approval(request).await.unwrap();
                }
            })
        })
        .collect();
    for maker in makers {
        maker.await.unwrap();
    }
}

/// A signed-in browser.
struct Browser {
    url: String,
    cookie: String,
    client: reqwest::Client,
}

impl Browser {
    async fn sign_in(url: &str, data: &Path, human: &str) -> Self {
        let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        let link = std::fs::read_to_string(data.join("desk-link")).unwrap();
        let request = client.post(link.trim()).header(header::ORIGIN, url).body(format!("human={human}"));
        let answer = request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded").send().await.unwrap();
        let cookie = answer.headers()[header::SET_COOKIE].to_str().unwrap().split(';').next().unwrap().to_owned();
        Self { url: url.to_owned(), cookie, client }
    }

    async fn get(&self, path: &str) -> reqwest::Response {
        let asked = self.client.get(format!("{}{path}", self.url)).header(header::COOKIE, &self.cookie);
        asked.send().await.unwrap().error_for_status().unwrap()
    }

    /// Reads a page some times; prints the median and the longest time, and the size.
    async fn time(&self, what: &str, path: &str) {
        let (mut times, mut size) = (vec![], 0);
        for _ in 0..READS {
            let begun = Instant::now();
            size = self.get(path).await.text().await.unwrap().len();
            times.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        times.sort_by(f64::total_cmp);
        let (median, longest) = (times.get(READS / 2).unwrap(), times.last().unwrap());
        println!("  {what:<28} {median:>8.1} {longest:>8.1} {:>8.1}", size as f64 / 1024.0);
    }
}

/// Returns the CPU time of one decision, in microseconds: the least of some rounds.
async fn decide(channel: &Channel) -> f64 {
    let mut least = f64::MAX;
    for _ in 0..ROUNDS {
        let used = cpu();
        let callers: Vec<_> = (0..16)
            .map(|first| {
                let mut client = DecisionServiceClient::new(channel.clone());
                tokio::spawn(async move {
                    for index in (first..DECISIONS).step_by(16) {
                        client.authorize(order_check(index, "enrichment")).await.unwrap();
                    }
                })
            })
            .collect();
        for caller in callers {
            caller.await.unwrap();
        }
        least = least.min((cpu() - used).as_secs_f64() * 1e6 / DECISIONS as f64);
    }
    least
}

/// Returns the share of a core that the process uses without any call.
async fn idle() -> f64 {
    let used = cpu();
    tokio::time::sleep(Duration::from_secs(10)).await;
    (cpu() - used).as_secs_f64() / 10.0
}

async fn run(config: &Config, requests: usize) {
    let bound = app::build(config, Seams::system(Default::default())).await.unwrap();
    let (address, url) = (bound.grpc, format!("http://{}", bound.desk.unwrap()));
    let (stop, stopped) = oneshot::channel::<()>();
    let (_reload, reloads) = tokio::sync::mpsc::channel(1);
    let running = tokio::spawn(bound.run(async { drop(stopped.await) }, reloads));
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();

    let begun = Instant::now();
    request_all(&channel, requests).await;
    println!("{requests} requests made, {:.2} ms each", begun.elapsed().as_secs_f64() * 1e3 / requests as f64);
    let mut humans = vec![];
    for human in ["lead-1", "lead-2", "rep-1", "rep-2"] {
        humans.push(Browser::sign_in(&url, &config.data, human).await);
    }
    let lead = humans.first().unwrap();
    println!("{requests} requests wait: ms of a page (median, longest), KiB");
    lead.time("inbox", "/").await;
    lead.time("inbox, last page", &format!("/?page={}", requests.saturating_sub(1) / 50)).await;
    lead.time("inbox, a case", "/?q=case-77").await;
    lead.time("inbox, nothing found", "/?q=nothing").await;
    let inbox = lead.get("/").await.text().await.unwrap();
    let request = inbox.split("/requests/").nth(1).and_then(|rest| rest.split('"').next()).unwrap().to_owned();
    lead.time("one request", &format!("/requests/{request}")).await;

    let without = decide(&channel).await;
    let mut watches = vec![];
    for index in 0..WATCHERS {
        watches.push(humans.get(index % humans.len()).unwrap().get("/changes").await);
    }
    let with = decide(&channel).await;
    let idle_with = idle().await;
    drop(watches);
    let after = decide(&channel).await;
    println!(
        "µs of CPU of a decision: {without:.1} and {after:.1} without watching browsers, {with:.1} with {WATCHERS}"
    );
    println!("share of a core of an idle server: {:.3} without them, {idle_with:.3} with {WATCHERS}", idle().await);
    stop.send(()).unwrap();
    running.await.unwrap().unwrap();
}

fn main() {
    // `cargo test --benches` must not take minutes, so it only shows that the benchmark builds.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let requests =
        std::env::var("COUNTERSIGN_BENCH_REQUESTS").ok().and_then(|count| count.parse().ok()).unwrap_or(10_000);
    let folder = tempfile::tempdir().unwrap();
    let bundle = unlimited(folder.path());
    let templates = std::fs::read_to_string(bundle.join("approvals.yaml")).unwrap();
    let limits = "pending: {case: 5, agent: 100000, queue: 100000}";
    let lifted: Vec<&str> =
        templates.lines().map(|line| if line.starts_with("pending:") { limits } else { line }).collect();
    std::fs::write(bundle.join("approvals.yaml"), lifted.join("\n")).unwrap();
    let mut config = Config { development: true, data: folder.path().join("data"), ..Config::default() };
    config.listen.grpc.set_port(0);
    config.listen.admin.set_port(0);
    config.desk.listen = Some("127.0.0.1:0".parse().unwrap());
    config.bundle.path = bundle;
    config.audit.mode = Durability::BestEffort;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(8 << 20).build().unwrap();
    runtime.block_on(run(&config, requests));
}
