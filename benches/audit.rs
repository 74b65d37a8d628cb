//! The audit log: how fast a log is verified, and what records and evidence cost a decision.
//!
//! Run with `cargo bench --bench audit` (or `make bench`). Set `COUNTERSIGN_BENCH_LINES` for a longer log.
#![expect(
    clippy::unwrap_used,
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
use calls::order_check;
use countersign::api::v1::decision_service_client::DecisionServiceClient;
use countersign::app::{self, Seams};
use countersign::audit;
use countersign::audit::checkpoint::CheckpointKey;
use countersign::audit::disk::{Disk, Segment, SystemDisk};
use countersign::audit::key::DigestKey;
use countersign::audit::record::{Record, StoredRecord};
use countersign::audit::verify::{Expected, Verifier};
use countersign::audit::{Audit, Durability, Keys, Options};
use countersign::bundle::Bundle;
use countersign::config::Config;
use countersign::model::time::Timestamp;
use countersign::sealing::{DeploymentKeys, SubjectKey};
use countersign::workbench::replay::{self, Bundles, Report};
use tokio::sync::oneshot;
use tonic::transport::Endpoint;

const KEY: [u8; 32] = [7; 32];

/// A disk that keeps nothing, for the cost of a log without its disk.
#[derive(Debug)]
struct Sink;

#[derive(Debug)]
struct Sunk;

impl Disk for Sink {
    fn open(&self, path: &Path) -> std::io::Result<Box<dyn Segment>> {
        // A reader of the folder must find the file.
        SystemDisk.open(path)?;
        Ok(Box::new(Sunk))
    }

    fn sync_folder(&self, _path: &Path) -> std::io::Result<()> {
        Ok(())
    }

    fn free(&self, _path: &Path) -> Option<(u64, u64)> {
        None
    }
}

impl Segment for Sunk {
    fn write_all(&mut self, _bytes: &[u8]) -> std::io::Result<()> {
        Ok(())
    }

    fn sync(&mut self) -> std::io::Result<()> {
        Ok(())
    }

    fn set_len(&mut self, _length: u64) -> std::io::Result<()> {
        Ok(())
    }

    fn is_at(&self, _path: &Path, _length: u64) -> std::io::Result<bool> {
        Ok(true)
    }
}

/// A record as large as that of a usual decision.
fn record(index: u64, evidence: Option<&SubjectKey>) -> Record {
    let link = |name: &str| serde_json::json!({"determining": {"items": ["agent.enriches", "order.own"]}, "errors": {"items": []}, "link": name, "permitted": true, "principal": "support-bot"});
    let record = serde_json::json!({
        "type": "decision", "action": "order.check", "decision": "allow", "evaluation_id": format!("0190{index:028x}"),
        "caller": {"tool_service": "order-tools", "by": "mtls"}, "mode": "enforce", "purpose": "authorize", "reason": "",
        "case": {"id": format!("case-{}", index % 5000), "version": "3", "tenant": "acme", "customer": format!("hmac-sha256:{}", "c".repeat(64))},
        "chain": {"agent": "support-bot", "supervisor": "rep-1", "step": "enrichment", "asserted": false},
        "links": [link("tool_service"), link("agent"), link("supervisor")], "input_digest": format!("hmac-sha256:{}", "d".repeat(64)),
        "policy": {"digest": format!("sha256:{}", "e".repeat(64)), "version": 1}, "engine": {"cedar": "4.14.1"},
        "correlation": {"conversation": "conv-1", "request": "r-1", "tool_call": "call-1"}, "trace_id": "0".repeat(32),
        "nonce": format!("{index:032x}"), "resource": {"type": "Order", "id": "order-1"}, "untrusted": 0, "warnings": [],
        "obligations": {"items": []}, "requires": {"items": []},
    });
    let sealed = evidence.and_then(|key| key.seal(vec![b'x'; 1100]));
    Record::Stored(StoredRecord::read(record).unwrap().with_evidence(sealed))
}

fn open(folder: &Path, disk: Arc<dyn Disk>, durability: Durability) -> Audit {
    let options = Options {
        folder: folder.to_owned(),
        log: "bench".into(),
        durability,
        segment_bytes: 256 << 20,
        segment_seconds: 86_400,
    };
    let keys = Keys { digest: DigestKey::new(KEY), checkpoint: CheckpointKey::new([9; 32]).unwrap() };
    Audit::open(options, keys, disk, &[], Timestamp::from_seconds(0)).unwrap().0
}

/// CPU time of this process.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap())
}

/// Appends records with this many in flight; returns the CPU time and the time of each, in microseconds.
fn write(folder: &Path, disk: Arc<dyn Disk>, lines: u64, in_flight: u64, key: Option<&Arc<SubjectKey>>) -> (f64, f64) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let audit = Arc::new(open(folder, disk, Durability::Strict));
    let (begun, used) = (Instant::now(), cpu());
    runtime.block_on(async {
        let callers: Vec<_> = (0..in_flight)
            .map(|first| {
                let (audit, key) = (Arc::clone(&audit), key.cloned());
                tokio::spawn(async move {
                    for index in (first..lines).step_by(usize::try_from(in_flight).unwrap()) {
                        let record = record(index, key.as_deref());
                        audit.append(Timestamp::from_seconds(1), record).await.unwrap();
                    }
                })
            })
            .collect();
        for caller in callers {
            caller.await.unwrap();
        }
    });
    let per = |time: Duration| time.as_secs_f64() * 1e6 / lines as f64;
    let took = (per(cpu() - used), per(begun.elapsed()));
    audit.close();
    took
}

/// Makes decisions, and evaluates them again from their evidence.
fn replayed(folder: &Path, decisions: usize) {
    let bundle = unlimited(folder);
    let mut config = Config { development: true, data: folder.join("data"), ..Config::default() };
    config.listen.grpc.set_port(0);
    config.listen.admin.set_port(0);
    config.bundle.path = bundle.clone();
    config.audit.mode = Durability::BestEffort;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(8 << 20).build().unwrap();
    let (key, secrets) = runtime.block_on(async {
        let bound = app::build(&config, Seams::system(Default::default())).await.unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let (_reload, reloads) = tokio::sync::mpsc::channel(1);
        let address = bound.grpc;
        let running = tokio::spawn(bound.run(async { drop(stopped.await) }, reloads));
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        let mut client = DecisionServiceClient::new(channel);
        for index in 0..decisions {
            client.authorize(order_check(index, "enrichment")).await.unwrap();
        }
        stop.send(()).unwrap();
        running.await.unwrap().unwrap();
        app::log::evidence_keys(&config).await.unwrap()
    });
    let mut bundles = One(Arc::new(Bundle::load(&bundle, config.reading()).unwrap()));
    let (mut keys, mut report) = (replay::Keys::new(key, secrets), Report::default());
    let begun = Instant::now();
    audit::decisions::decisions(&config.audit().folder, None, None, |decided, sealed| {
        report.add(&decided, sealed.as_ref(), &mut keys, &mut bundles);
    })
    .unwrap();
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "replayed {} decisions, {} differ: {:.0} a second",
        report.replayed,
        report.different,
        report.replayed as f64 / seconds
    );
}

struct One(Arc<Bundle>);

impl Bundles for One {
    fn bundle(&mut self, _digest: &str) -> Option<Arc<Bundle>> {
        Some(Arc::clone(&self.0))
    }
}

fn main() {
    // `cargo test --benches` must not take minutes, so it only shows that the benchmark builds.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let lines = std::env::var("COUNTERSIGN_BENCH_LINES").ok().and_then(|lines| lines.parse().ok()).unwrap_or(200_000);
    let folder = tempfile::tempdir().unwrap();
    let key = Arc::new(DeploymentKeys::new([KEY]).of_subject("key", "secret").unwrap());
    // Records are made in this process, too, so the first row is what the others must be compared with.
    for in_flight in [64, 1024] {
        println!("{lines} records of a decision, strict, {in_flight} in flight: µs of CPU and of time for each");
        for (name, disk, key) in [
            ("into a sink", Arc::new(Sink) as Arc<dyn Disk>, None),
            ("into a sink, with evidence", Arc::new(Sink), Some(&key)),
            ("on the disk", Arc::new(SystemDisk), None),
            ("on the disk, with evidence", Arc::new(SystemDisk), Some(&key)),
        ] {
            let log = folder.path().join(format!("{name} {in_flight}"));
            let (used, took) = write(&log, disk, lines, in_flight, key);
            println!("  {name:<28} {used:>8.1} {took:>8.1}");
        }
    }
    let log = folder.path().join("on the disk 64");
    let bytes: u64 = std::fs::read_dir(&log)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().extension().is_some_and(|end| end == "jsonl"))
        .map(|entry| entry.metadata().unwrap().len())
        .sum();
    let verifier = CheckpointKey::new([9; 32]).unwrap().verifier().unwrap().to_string();
    let expected = Expected { keys: vec![KEY], verifier: Verifier::parse(&verifier), ..Expected::default() };
    let begun = Instant::now();
    let report = audit::verify::verify(&log, &expected).unwrap();
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "verified {} lines, {:.0} MB, in {seconds:.2} s: {:.0} MB/s",
        report.lines,
        bytes as f64 / 1e6,
        bytes as f64 / 1e6 / seconds
    );
    replayed(folder.path(), 20_000);
}
