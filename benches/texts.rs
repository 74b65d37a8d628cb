//! Costs of checking texts: whole PrepareContext and EvaluateOutput calls over gRPC for texts of 1, 2 and 16
//! KB, beside an Authorize in the same interleaved run; and each detector by itself, in microseconds per KB.
//!
//! Run with `cargo bench --bench texts` (or `make bench`). Set `COUNTERSIGN_BENCH_ROUNDS` for more rounds.
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
#[path = "common/texts.rs"]
mod texts;

use std::time::Instant;

use bundles::unlimited;
use calls::{order_check, policies};

use countersign::api::v1::decision_service_client::DecisionServiceClient;
use countersign::app::{self, Seams};
use countersign::audit::Durability;
use countersign::bundle::{Bundle, Reading};
use countersign::config::Config;
use countersign::content::Detectors;
use countersign::content::drafts::Draft;
use countersign::content::linear::features::Features;
use countersign::content::normalise::Views;
use countersign::content::values::{ValueKey, Values};
use countersign::model::call::Untrusted;
use texts::{text, to_evaluate, to_prepare};
use tokio::sync::oneshot;
use tonic::transport::{Channel, Endpoint};

const CALLS: usize = 100;

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn rounds() -> usize {
    std::env::var_os("COUNTERSIGN_BENCH_ROUNDS").and_then(|rounds| rounds.to_str()?.parse().ok()).unwrap_or(9)
}

async fn calls(mut client: DecisionServiceClient<Channel>) {
    let sizes = [1024, 2048, 16 * 1024];
    let mut times: Vec<Vec<f64>> = vec![vec![]; 1 + 2 * sizes.len()];
    for round in 0..=rounds() {
        let mut took = vec![];
        let start = Instant::now();
        for index in 0..CALLS {
            client.authorize(order_check(index, "enrichment")).await.unwrap();
        }
        took.push(start.elapsed());
        for bytes in sizes {
            let start = Instant::now();
            let mut prepared = vec![];
            for index in 0..CALLS {
                prepared.push(client.prepare_context(to_prepare(index, bytes)).await.unwrap().into_inner());
            }
            took.push(start.elapsed());
            let drafts: Vec<_> =
                prepared.iter().enumerate().map(|(index, prepared)| to_evaluate(prepared, index, bytes)).collect();
            let start = Instant::now();
            for draft in drafts {
                client.evaluate_output(draft).await.unwrap();
            }
            took.push(start.elapsed());
        }
        // The first round warms up.
        if round > 0 {
            times.iter_mut().zip(took).for_each(|(times, took)| times.push(took.as_secs_f64() * 1e6 / CALLS as f64));
        }
    }
    let medians: Vec<f64> = times.into_iter().map(median).collect();
    let names = [
        "Authorize",
        "PrepareContext  1 KB",
        "EvaluateOutput  1 KB",
        "PrepareContext  2 KB",
        "EvaluateOutput  2 KB",
        "PrepareContext 16 KB",
        "EvaluateOutput 16 KB",
    ];
    println!("over gRPC, best effort, one after the other; relative to an Authorize of the same run");
    for (name, took) in names.iter().zip(&medians) {
        println!("  {name:<22} {took:>9.0} µs  {:>6.2} ×", took / medians[0]);
    }
}

fn detectors(detectors: &Detectors) {
    let text = text(16 * 1024);
    let kilobytes = text.len() as f64 / 1024.0;
    let views = Views::of(&text);
    let values = Values::new(ValueKey::new([1; 16]));
    let mut redacted = Values::new(ValueKey::new([1; 16]));
    (0..64).for_each(|index| {
        redacted.add(&format!("value number {index}"), countersign::model::finding::SensitiveKind::Record)
    });
    let untrusted = [Untrusted { source: "ticket.body".into(), text: text.clone() }];
    let folded = views.folded.text();
    let features = Features::of(folded);
    let draft = |sources: Vec<&str>| {
        let has_sources = !sources.is_empty();
        let draft = Draft {
            text: &text,
            sources,
            customer: vec![],
            has_sources,
            unknown_source: false,
            confidence: 90,
            locale: "",
            redacted: &values,
        };
        detectors.draft(&draft).findings.len()
    };
    let stages: [(&str, &dyn Fn() -> usize); 10] = [
        ("views", &|| Views::of(&text).bytes()),
        ("incoming rules", &|| count(|found| detectors.incoming.find(folded, |_| found()))),
        ("injection model", &|| {
            detectors
                .injection
                .as_ref()
                .and_then(|model| model.worst(&Features::of(folded)))
                .map_or(0, |window| window.span.0)
        }),
        ("each further model", &|| {
            detectors.injection.as_ref().and_then(|model| model.worst(&features)).map_or(0, |window| window.span.0)
        }),
        ("incoming, whole", &|| detectors.screen(&untrusted).findings.len()),
        ("private rules", &|| count(|found| detectors.private.find(folded, |_| found()))),
        ("known values (64)", &|| {
            count(|found| {
                let _all = redacted.find(&views.folded, |_| found());
            })
        }),
        ("private, whole", &|| detectors.private(&text, "", &values).len()),
        ("draft rules", &|| count(|found| detectors.draft.find(folded, |_| found()))),
        ("draft, whole", &|| draft(vec![&text])),
    ];
    println!("detectors, a text of 16 KB");
    for (name, stage) in stages {
        let times = (0..=rounds()).map(|_| {
            let start = Instant::now();
            std::hint::black_box(stage());
            start.elapsed().as_secs_f64() * 1e6 / kilobytes
        });
        println!("  {name:<22} {:>7.1} µs/KB", median(times.skip(1).collect()));
    }
}

fn count(run: impl Fn(&mut dyn FnMut())) -> usize {
    let mut all = 0;
    run(&mut || all += 1);
    all
}

fn main() {
    detectors(&Bundle::load(&policies(), Reading::default()).unwrap().rules.detectors);
    let folder = tempfile::tempdir().unwrap();
    let bundle = unlimited(folder.path());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(8 << 20).build().unwrap();
    runtime.block_on(async {
        let mut config = Config { development: true, data: folder.path().join("data"), ..Config::default() };
        config.listen.grpc.set_port(0);
        config.listen.admin.set_port(0);
        config.bundle.path = bundle;
        config.audit.mode = Durability::BestEffort;
        let bound = app::build(&config, Seams::system(Default::default())).await.unwrap();
        let address = bound.grpc;
        let (stop, stopped) = oneshot::channel::<()>();
        let (_reload, reloads) = tokio::sync::mpsc::channel(1);
        let running = tokio::spawn(bound.run(
            async {
                let _dropped = stopped.await;
            },
            reloads,
        ));
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        calls(DecisionServiceClient::new(channel)).await;
        stop.send(()).unwrap();
        running.await.unwrap().unwrap();
    });
}
