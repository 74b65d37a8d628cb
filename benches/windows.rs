//! Costs of risk and rates: a decision whose action reads them beside one that does not, in process and in
//! one interleaved run; and the memory for a million cases and ten thousand agents, in bytes.
//!
//! Run with `cargo bench --bench windows` (or `make bench`). Set `COUNTERSIGN_BENCH_ROUNDS` for more rounds.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a benchmark measures, prints and stops at a fault"
)]

#[path = "common/bundles.rs"]
mod bundles;
#[path = "common/calls.rs"]
mod calls;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bundles::unlimited;
use calls::{order_check, policies};
use countersign::api;
use countersign::app::{self, Bound, Seams};
use countersign::audit::Durability;
use countersign::bundle::folder::Folder;
use countersign::caller::Peer;
use countersign::config::Config;
use countersign::model::time::Timestamp;
use countersign::pdp::Pdp;
use countersign::pdp::origin::{Origin, Purpose};
use countersign::risk_store::{Acquire, Batch, Change, Key, Observation, Options, RiskStore, Tenant, Update};

const CALLS: usize = 2000;
const CASES: u64 = 1_000_000;
const AGENTS: u64 = 10_000;

/// Writes the reference bundle without limits of rates, and a bundle without risk, rates and text rules.
fn bundles(folder: &Path) -> [std::path::PathBuf; 2] {
    let without = folder.join("without");
    for (name, bytes) in Folder::read(&policies()).unwrap().files() {
        let files = ["risk.cedar", "risk.yaml", "rates.yaml", "constraints.yaml", "replies.cedar"];
        if !files.contains(&name.as_str()) && !name.starts_with("detectors/") && !name.starts_with("tests/") {
            let text = String::from_utf8(bytes.clone()).unwrap();
            let content = text.find("  content:\n").zip(text.find("  approval_request:"));
            let text = content.map_or(text.clone(), |(from, to)| text[..from].to_owned() + &text[to..]);
            let text = text.replace("risk: Risk, rates: Set<RateWindow>, findings: Set<FindingKind>, ", "");
            write(&without, name, &text.replace("claims: Set<Claim>, draft: Set<DraftFinding>, ", ""));
        }
    }
    [unlimited(&folder.join("with")), without]
}

fn write(folder: &Path, name: &str, text: &str) {
    let file = folder.join(name);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, text).unwrap();
}

async fn server(bundle: &Path, data: &Path) -> Bound {
    let mut config = Config { development: true, data: data.to_owned(), ..Config::default() };
    config.listen.grpc.set_port(0);
    config.listen.admin.set_port(0);
    config.bundle.path = bundle.to_owned();
    config.audit.mode = Durability::BestEffort;
    app::build(&config, Seams::system(Default::default())).await.unwrap()
}

async fn burst(pdp: &Arc<Pdp>, origin: &Origin) -> Duration {
    let start = Instant::now();
    for index in 0..CALLS {
        let moment = pdp.moment();
        let recorded =
            pdp.authorize(&moment, origin, api::convert::request(order_check(index % 50, "enrichment"))).await.unwrap();
        assert!(recorded.value().allows());
    }
    start.elapsed()
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn decisions() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(8 << 20).build().unwrap();
    let servers =
        bundles(folder.path()).map(|bundle| runtime.block_on(server(&bundle, &bundle.with_extension("data"))));
    let origin = Origin {
        peer: Peer { address: Some("127.0.0.1:1".parse().unwrap()), ..Peer::default() },
        trace: countersign::telemetry::spans::Trace::default(),
        purpose: Purpose::Authorize,
        waits: false,
    };
    let rounds =
        std::env::var_os("COUNTERSIGN_BENCH_ROUNDS").and_then(|rounds| rounds.to_str()?.parse().ok()).unwrap_or(15);
    let mut times = [vec![], vec![]];
    for round in 0..=rounds {
        for (server, times) in servers.iter().zip(&mut times) {
            let took = runtime.block_on(burst(&server.pdp(), &origin));
            // The first round warms up.
            if round > 0 {
                times.push(took.as_secs_f64() * 1e6 / CALLS as f64);
            }
        }
    }
    let [with, without] = times.map(median);
    println!("one Authorize in process, best-effort audit, µs a call");
    println!("  reads neither risk nor rates   {without:>8.1}");
    println!("  reads both                     {with:>8.1}  ({:.2}; goal: at most 1.25)", with / without);
}

/// Returns the resident memory of this process in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

fn memory() {
    let options = Options {
        server: None,
        authorities: None,
        timeout: Duration::from_secs(1),
        entries_per_tenant: 8_000_000,
        boot: String::new(),
    };
    let windows = RiskStore::open(options).unwrap();
    let tenant = Tenant::of("bench", "acme");
    let now = Timestamp::from_seconds(1_000_000);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let batch = |batch: &Batch| runtime.block_on(windows.batch(tenant, now, batch)).unwrap();
    let minute = 60_000_000;
    let before = resident();
    for case in 0..CASES {
        let id = case.to_string();
        let add = Change::Add { step: minute, reach: minute };
        let notes = ["injection", "denials"].map(|name| Update {
            key: tenant.key("case", &[&id]),
            name: name.into(),
            change: add,
        });
        batch(&Batch { updates: notes.into(), ..Batch::default() });
    }
    let after_cases = resident();
    for agent in 0..AGENTS {
        let id = agent.to_string();
        // A day's work has 100 cases, 100 resources and 5 different denials.
        for (what, things) in [("cases", 100), ("resources", 100), ("denied", 5)] {
            let key = tenant.key("agent", &[what, &id]);
            for thing in 0..things {
                let item = Some(Key::of(&[&id, &thing.to_string()]).short());
                batch(&Batch {
                    observations: vec![Observation { key, item, within: minute, most: None }],
                    ..Batch::default()
                });
            }
        }
    }
    let after_agents = resident();
    println!("in process, {CASES} cases with two findings each, {AGENTS} agents with a day's work");
    println!("  bytes a case                   {:>8}", (after_cases - before) / CASES as usize);
    println!("  bytes an agent                 {:>8}", (after_agents - after_cases) / AGENTS as usize);
    println!("  at most, of an agent           {:>8}", 3 * 2 * 512 * 16);
    // Measure the batch of one request while all of the data is in memory.
    let start = Instant::now();
    for index in 0..100_000_u64 {
        let (case, agent) = ((index * 7919 % CASES).to_string(), (index % AGENTS).to_string());
        let key = |what: &str| tenant.key("agent", &[what, &agent]);
        let touch = |what: &str, item| Observation { key: key(what), item, within: minute, most: None };
        batch(&Batch {
            acquires: vec![Acquire { key: tenant.key("rate", &[&agent]), every: 1, room: minute }],
            observations: vec![touch("cases", Some(index)), touch("resources", Some(index)), touch("denied", None)],
            reads: vec![tenant.key("case", &[&case])],
            ..Batch::default()
        });
    }
    println!("  µs a batch                     {:>8.1}", start.elapsed().as_secs_f64() * 1e6 / 1e5);
}

fn main() {
    // `cargo test --benches` must not take minutes, so it only shows that the benchmark builds.
    if std::env::args().any(|argument| argument == "--bench") {
        decisions();
        memory();
    }
}
