//! Costs of the steps of one Authorize in process, beside naive Cedar. Rounds are interleaved, so that the ratios
//! hold on any machine. `server.rs` measures whole servers.
//!
//! Run with `cargo bench` (or `make bench`). Set `COUNTERSIGN_BENCH_ROUNDS` for more rounds.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a benchmark measures, prints and stops at a fault"
)]

#[path = "common/calls.rs"]
mod calls;
#[path = "common/naive.rs"]
mod naive;

use std::time::{Duration, Instant};

use calls::{order_check, policies};
use countersign::api;
use countersign::api::v1;
use countersign::bundle::{Bundle, Reading};
use countersign::delegation::asserted_chain;
use countersign::jose::keyring::{self, Keyring, Purpose};
use countersign::jose::{self, Expected};
use countersign::model::chain::Credential;
use countersign::model::time::Timestamp;
use countersign::pdp::evaluation::Evaluator;
use countersign::pdp::origin::Request as Read;
use countersign::pdp::scoring::calm;
use naive::Naive;

/// Calls of one round.
const CALLS: usize = 500;

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

/// Measures one Authorize in process, and its steps.
fn in_process() {
    let bundle = Bundle::load(&policies(), Reading::default()).unwrap();
    let roles = bundle.roles.clone().unwrap();
    let now = Timestamp::parse("2026-11-23T09:00:00Z").unwrap();
    let trusted = calm(&bundle.policies.shapes);
    let (allowed, denied) = (order_check(1, "enrichment"), order_check(1, "intake"));
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
            for _ in 0..CALLS {
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
        CALLS,
    );
    println!("in process, µs a call (ratio to `decide (allow)`)");
    for (name, time) in names.iter().zip(&times) {
        println!("  {name:<30} {time:>8.1}  ({:.2})", time / times[2]);
    }
}

fn main() {
    // `cargo test --benches` must not take minutes, so it only shows that the benchmark builds.
    if std::env::args().any(|argument| argument == "--bench") {
        in_process();
    }
}
