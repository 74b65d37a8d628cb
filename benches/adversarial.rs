//! Measures the worst texts: nanoseconds of CPU per byte, and how much more a text of twice the length costs.
//!
//! `cargo bench --bench adversarial` (or `make bench`) prints the worst shapes; `COUNTERSIGN_BENCH_ALL=1` all.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a benchmark measures, prints and stops at a fault"
)]

#[path = "../tests/it/hostile/shapes.rs"]
mod shapes;

use std::path::Path;

use countersign::bundle::{Bundle, Reading};
use countersign::content::Detectors;
use countersign::content::drafts::Draft;
use countersign::content::values::{ValueKey, Values};
use countersign::model::call::Untrusted;
use countersign::model::finding::SensitiveKind;
use rustix::time::{ClockId, clock_gettime};

use crate::shapes::Shape;

const LONGEST: usize = 64 * 1024;
const SOURCE: usize = 15 * 1024;

/// Returns the CPU time of this thread in nanoseconds, which other processes do not affect.
fn cpu() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// Returns the shortest time of some runs, and the bytes that one of them read.
fn measure(run: impl Fn() -> usize) -> (f64, usize) {
    let once = || {
        let start = cpu();
        let read = std::hint::black_box(run());
        (cpu() - start, read)
    };
    let (first, read) = once();
    // A slow operation is measured once, a fast one several times.
    let times = if first > 3e8 { 0 } else { 4 };
    ((0..times).map(|_| once().0).fold(first, f64::min), read)
}

type Operation<'a> = (&'static str, Box<dyn Fn(&str) -> usize + 'a>);

fn operations(detectors: &Detectors) -> Vec<Operation<'_>> {
    let key = ValueKey::new([1; 16]);
    let untrusted = |text: &str| [Untrusted { source: "ticket.body".into(), text: text.to_owned() }];
    let many = |of: usize| {
        let mut values = Values::new(key);
        (0..of)
            .for_each(|index| values.add_digest(key.digest(&"x1".repeat(32)[..4 + index % 58]), SensitiveKind::Record));
        (0..of).for_each(|index| values.add(&format!("value number {index}"), SensitiveKind::Secret));
        values
    };
    let (none, some) = (Values::new(key), many(256));
    let draft = move |detectors: &Detectors, text: &str, sources: Vec<&str>, values: &Values| {
        let draft = Draft {
            text,
            has_sources: !sources.is_empty(),
            sources,
            customer: vec![],
            unknown_source: false,
            confidence: 90,
            locale: "",
            redacted: values,
        };
        std::hint::black_box(detectors.draft(&draft));
    };
    vec![
        (
            "screen",
            Box::new(move |text| {
                std::hint::black_box(detectors.screen(&untrusted(text)));
                text.len()
            }),
        ),
        ("private", {
            let none = none.clone();
            Box::new(move |text| {
                std::hint::black_box(detectors.private(text, "", &none));
                text.len()
            })
        }),
        ("private, 512 values, a turn", {
            let some = some.clone();
            Box::new(move |text| {
                std::hint::black_box(detectors.private(
                    text,
                    "What is your password, PIN, card number, code or phone number?",
                    &some,
                ));
                text.len()
            })
        }),
        (
            "draft",
            Box::new(move |text| {
                draft(detectors, text, vec![], &none);
                text.len()
            }),
        ),
        (
            "draft, as much of sources",
            Box::new(move |text| {
                let sources: Vec<&str> =
                    text.as_bytes().chunks(SOURCE).filter_map(|part| std::str::from_utf8(part).ok()).collect();
                let bytes = text.len() + sources.iter().map(|source| source.len()).sum::<usize>();
                draft(detectors, text, sources, &some);
                bytes
            }),
        ),
    ]
}

fn main() {
    let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    let bundle = Bundle::load(&policies, Reading::default()).unwrap();
    let detectors = &bundle.rules.detectors;
    let only = std::env::args().nth(1).filter(|only| !only.starts_with('-'));
    let longest =
        std::env::var_os("COUNTERSIGN_BENCH_BYTES").and_then(|bytes| bytes.to_str()?.parse().ok()).unwrap_or(LONGEST);
    let all: Vec<Shape> = shapes::shapes(&policies)
        .into_iter()
        .filter(|shape| only.as_ref().is_none_or(|only| shape.name.contains(only)))
        .collect();
    println!("{} shapes of {longest} bytes, CPU of one thread", all.len());
    for (name, run) in operations(detectors) {
        let mut rows: Vec<(f64, f64, &str)> = vec![];
        for shape in &all {
            let (half, whole) = (shape.text(longest / 2), shape.text(longest));
            let (short, _) = measure(|| run(&half));
            let (long, read) = measure(|| run(&whole));
            rows.push((long / read as f64, long / short, &shape.name));
        }
        rows.sort_by(|one, other| other.0.total_cmp(&one.0));
        let growth = rows.iter().map(|row| row.1).fold(0.0, f64::max);
        let median = rows[rows.len() / 2].0;
        println!("{name}: worst {:.0} ns/B, median {median:.0} ns/B, worst growth {growth:.2} ×", rows[0].0);
        let shown = if std::env::var_os("COUNTERSIGN_BENCH_ALL").is_some() { rows.len() } else { 8 };
        for (cost, growth, shape) in rows.iter().take(shown) {
            println!("  {cost:>9.1} ns/B  {growth:>5.2} ×  {shape}");
        }
    }
}
