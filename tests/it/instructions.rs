//! Instructions that the steps of a decision execute, counted by Valgrind's callgrind. Counts don't depend on how
//! fast the machine is, so a change that makes a step dearer fails here.

use std::path::Path;
use std::process::Command;

use countersign::api::{self, v1};
use countersign::audit::key::DigestKey;
use countersign::bundle::{Bundle, Reading};
use countersign::delegation::asserted_chain;
use countersign::model::call::Call;
use countersign::model::chain::{Chain, Credential};
use countersign::model::roles::Roles;
use countersign::model::time::Timestamp;
use countersign::model::trusted_context::TrustedContext;
use countersign::pdp::evaluation::Evaluator;
use countersign::pdp::origin::Request;
use countersign::pdp::scoring::calm;

use crate::harness::{asserted, order_check, policies};

/// Thousands of instructions of one call in the test profile, which inlines little and lets Cedar validate each
/// converted request. A step may deviate from its budget by a tenth. Enter the new count after a deliberate
/// change, or for a new compiler.
const BUDGET: [(&str, u64); 4] =
    [("read_message", 93), ("keyed_digest", 166), ("decide_allow", 1275), ("decide_denial", 3335)];
const CALLS: u64 = 20;

/// What the steps work on.
struct Given {
    bundle: Bundle,
    roles: Roles,
    trusted: TrustedContext,
    now: Timestamp,
    messages: [v1::AuthorizeRequest; 2],
}

impl Given {
    fn new() -> Self {
        let bundle = Bundle::load(&policies(), Reading::default()).unwrap();
        let messages = ["enrichment", "intake"]
            .map(|step| v1::AuthorizeRequest { delegation: asserted("support-bot", "rep-1", step), ..order_check() });
        let (roles, trusted) = (bundle.roles.clone().unwrap(), calm(&bundle.policies.shapes));
        Self { bundle, roles, trusted, now: Timestamp::parse("2026-11-23T09:00:00Z").unwrap(), messages }
    }

    fn call(&self, message: usize) -> (Chain, Call) {
        let Request::Call(call) = api::convert::request(self.messages[message].clone()).unwrap() else {
            panic!("not a plain request")
        };
        let Credential::Asserted(asserted) = &call.credential else { panic!("the chain is asserted") };
        let defaults = self.bundle.manifest.development.as_ref().unwrap();
        (asserted_chain(&defaults.tool_service, asserted, defaults), *call)
    }

    fn is_allowed(&self, chain: &Chain, call: &Call) -> bool {
        let evaluator = Evaluator { bundle: &self.bundle, roles: &self.roles, now: self.now };
        evaluator.evaluate(chain, call, &self.trusted).unwrap().outcome.denied.is_none()
    }
}

#[inline(never)]
fn read_message(given: &Given) {
    (0..CALLS).for_each(|_| drop(std::hint::black_box(given.call(0))));
}

#[inline(never)]
fn keyed_digest(key: &DigestKey, call: &Call) {
    (0..CALLS).for_each(|_| drop(std::hint::black_box(key.digest(&call.digest_input()))));
}

#[inline(never)]
fn decide_allow(given: &Given, chain: &Chain, call: &Call) {
    (0..CALLS).for_each(|_| assert!(given.is_allowed(chain, call)));
}

#[inline(never)]
fn decide_denial(given: &Given, chain: &Chain, call: &Call) {
    (0..CALLS).for_each(|_| assert!(!given.is_allowed(chain, call)));
}

/// Runs the steps; started by the test below under Valgrind.
#[test]
#[ignore = "started by the test below"]
fn steps_for_the_count_of_instructions() {
    let given = Given::new();
    let (allowed, denied) = (given.call(0), given.call(1));
    read_message(&given);
    keyed_digest(&DigestKey::new([7; 32]), &allowed.1);
    decide_allow(&given, &allowed.0, &allowed.1);
    decide_denial(&given, &denied.0, &denied.1);
}

/// Returns the instructions of a function and everything that it calls.
fn counted(report: &str, function: &str) -> u64 {
    let name = format!("it::instructions::{function}");
    let line = report.lines().find(|line| line.split(['[', ' ']).any(|word| word.ends_with(&name)));
    let line = line.unwrap_or_else(|| panic!("no count of {function}: {report}"));
    let digits: String =
        line.trim_start().chars().take_while(|sign| *sign != ' ').filter(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

fn run(command: &mut Command) -> std::process::Output {
    let done = command
        .output()
        .unwrap_or_else(|error| panic!("valgrind can't be started: {error} (Debian: apt-get install valgrind)"));
    assert!(done.status.success(), "{done:?}");
    done
}

#[test]
fn no_step_of_a_decision_executes_more_instructions_than_its_budget() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("counts");
    let mut valgrind = Command::new("valgrind");
    valgrind.arg("--tool=callgrind").arg(format!("--callgrind-out-file={}", out.display()));
    let program: &Path = &std::env::current_exe().unwrap();
    let child = "instructions::steps_for_the_count_of_instructions";
    run(valgrind.arg(program).args([child, "--exact", "--ignored", "--test-threads", "1"]));
    let report = run(Command::new("callgrind_annotate").args(["--inclusive=yes", "--threshold=100"]).arg(&out)).stdout;
    let report = String::from_utf8(report).unwrap();
    let counts = BUDGET.map(|(step, budget)| (step, budget, counted(&report, step) / CALLS / 1000));
    for (step, budget, count) in counts {
        assert!(
            count.abs_diff(budget) * 10 <= budget,
            "{step} takes {count} thousand instructions, not {budget}: {counts:?}"
        );
    }
}
