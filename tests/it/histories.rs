//! Random histories of three replicas over one PostgreSQL and one Redis: failovers to a backup that lacks the
//! last writes, cut connections, clock steps, restarts, other bundles, an empty or old Redis. A plain model
//! checks what was acknowledged: approvals are used once, kill switches stay in force, windows and sums hold.

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use countersign::api::v1::{self, Decision, SignalSubjectKind};
use countersign::clock::{Clock, SystemClock};
use countersign::model::time::Timestamp;
use proptest::prelude::*;
use proptest::test_runner::{Config as ProptestConfig, TestRunner};
use sqlx::Connection as _;
use tempfile::TempDir;

use crate::approvals::signal;
use crate::harness::people::{Desk, Issuer, credit, with_token};
use crate::harness::postgres::Postgres;
use crate::harness::redis::Redis;
use crate::harness::relay::{Leads, Relay};
use crate::harness::{App, cases, copy, order_check, policies, refund_request, temp, within};

/// Limits of the reference bundle: credits to a customer per day, and refund requests in a case at once.
const CREDITS_MOST: i64 = 10_000;
const REFUNDS_MOST: usize = 10;

#[derive(Clone, Debug)]
enum Step {
    /// Requests an approval, which a human grants.
    Approve(usize),
    /// Uses one of the approvals in one of two operations.
    Use(usize, usize, usize),
    /// Requests a refund in the one case whose rate window is checked.
    Refund(usize),
    /// Sets a kill switch on a new case.
    Stop(usize),
    /// Copies the database, as the state of a backup or of a lagging standby.
    BackUp,
    /// Replaces the database with the backup.
    FailOver,
    Cut(usize),
    Heal(usize),
    Restart(usize, bool),
    SetClock(usize, i64),
    /// Makes Redis save its data. `LoseWindows` restarts Redis with the saved data, or empty.
    SaveWindows,
    LoseWindows(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let node = 0_usize..3;
    prop_oneof![
        6 => node.clone().prop_map(Step::Approve),
        10 => (node.clone(), 0_usize..8, 0_usize..2).prop_map(|(node, which, operation)| Step::Use(node, which, operation)),
        6 => node.clone().prop_map(Step::Refund),
        3 => node.clone().prop_map(Step::Stop),
        3 => Just(Step::BackUp),
        2 => Just(Step::FailOver),
        2 => node.clone().prop_map(Step::Cut),
        3 => node.clone().prop_map(Step::Heal),
        1 => (node.clone(), any::<bool>()).prop_map(|(node, newer)| Step::Restart(node, newer)),
        1 => (node, prop_oneof![Just(0_i64), Just(-300), Just(5), Just(900)]).prop_map(|(node, seconds)| Step::SetClock(node, seconds)),
        1 => Just(Step::SaveWindows),
        1 => any::<bool>().prop_map(Step::LoseWindows),
    ]
}

#[derive(Clone, Debug)]
struct Steps(Arc<AtomicI64>);

impl Steps {
    fn set(&self, seconds: i64) {
        self.0.store(seconds * 1_000_000, Ordering::SeqCst);
    }
}

impl Clock for Steps {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(SystemClock.now().micros() + self.0.load(Ordering::SeqCst))
    }
}

/// A replica, its relay to PostgreSQL, and its clock.
struct Node {
    app: Option<App>,
    data: PathBuf,
    relay: Relay,
    cut: bool,
    clock: Steps,
    /// The furthest ahead that the clock was. A replica does not start if its clock is behind its log.
    furthest: i64,
    newer: bool,
}

/// A granted approval, and the operation that has used it according to an answer.
struct Given {
    call: v1::AuthorizeRequest,
    token: String,
    amount: i64,
    used_by: Option<usize>,
    /// Operations without a definite answer, which may have used the approval.
    unsure: HashSet<usize>,
}

/// An allowed payment, and whether its replica was cut off when the store failed over.
struct Spent {
    amount: i64,
    node: usize,
    lost: bool,
}

/// An acknowledged kill switch, and the replicas that have read it.
struct Stopped {
    case: String,
    known: BTreeSet<usize>,
}

struct World {
    folder: TempDir,
    postgres: Postgres,
    redis: Redis,
    nodes: Vec<Node>,
    newer: PathBuf,
    given: Vec<Given>,
    spent: Vec<Spent>,
    stopped: Vec<Stopped>,
    refunds: usize,
    backup: bool,
    count: usize,
}

impl World {
    async fn start() -> Self {
        let (folder, postgres, redis) = (temp(), Postgres::start(), Redis::start());
        postgres.create("live");
        let newer = folder.path().join("newer");
        copy(&policies(), &newer);
        let file = newer.join("approvals.yaml");
        let text = std::fs::read_to_string(&file).unwrap();
        let changed = text
            .replace("reversibility: reversible\n    at_most", "reversibility: reversible\n    quorum: 2\n    at_most");
        assert_ne!(text, changed);
        std::fs::write(file, changed).unwrap();
        let mut nodes = vec![];
        for name in ["one", "two", "three"] {
            let (data, relay) = (folder.path().join(name), Relay::to(postgres.port()).await);
            nodes.push(Node {
                app: None,
                data,
                relay,
                cut: false,
                clock: Steps(Arc::default()),
                furthest: 0,
                newer: false,
            });
        }
        let (given, spent, stopped) = (vec![], vec![], vec![]);
        let mut world =
            Self { folder, postgres, redis, nodes, newer, given, spent, stopped, refunds: 0, backup: false, count: 0 };
        for node in 0..3 {
            world.start_node(node).await;
        }
        world
    }

    async fn start_node(&mut self, node: usize) {
        let Node { data, relay, clock, newer, .. } = &self.nodes[node];
        let url = self
            .postgres
            .url()
            .replace("/postgres?", "/live?")
            .replace(&self.postgres.port().to_string(), &relay.port.to_string());
        let (windows, keys, clock) = (self.redis.url(), self.folder.path().join("keys"), clock.clone());
        let bundle = newer.then(|| self.newer.clone());
        let app = App::start_in(data, |config, seams| {
            config.store.url = Some(url);
            config.store.timeout_ms = 500;
            config.windows.urls = vec![windows];
            config.keys = Some(keys);
            config.bundle.path = bundle.unwrap_or_else(policies);
            seams.clock = Box::new(clock);
        })
        .await;
        self.nodes[node].app = Some(app);
    }

    async fn desk(&self, node: usize) -> Desk {
        Desk::new(self.app(node).channel().await)
    }

    fn app(&self, node: usize) -> &App {
        self.nodes[node].app.as_ref().unwrap()
    }

    fn connected(&self) -> Vec<usize> {
        (0..3).filter(|node| !self.nodes[*node].cut).collect()
    }

    async fn take(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Approve(node) => self.approve(*node).await,
            Step::Use(node, which, operation) => self.use_one(*node, *which, *operation).await?,
            Step::Refund(node) => {
                let answer = self.desk(*node).await.ask(&refund_request()).await;
                self.refunds += usize::from(answer.decision() == Decision::Allow);
                prop_assert!(self.refunds <= REFUNDS_MOST, "the rate window allowed {} requests", self.refunds);
            }
            Step::Stop(node) => {
                let case = format!("stopped-{}", self.count);
                let told = signal(
                    self.app(*node),
                    SignalSubjectKind::Case,
                    &case,
                    "kill_switch",
                    &format!("event-{}", self.count),
                )
                .await;
                if told.is_ok() {
                    self.stopped.push(Stopped { case, known: BTreeSet::from([*node]) });
                }
            }
            Step::BackUp => {
                self.alone(&["DROP DATABASE IF EXISTS backup", "CREATE DATABASE backup TEMPLATE live"]).await;
                self.backup = true;
            }
            Step::FailOver if self.backup => {
                let away = format!("ALTER DATABASE live RENAME TO lost_{}", self.count);
                self.alone(&[&away, "ALTER DATABASE backup RENAME TO live"]).await;
                self.backup = false;
                for spent in &mut self.spent {
                    spent.lost |= self.nodes[spent.node].cut;
                }
            }
            Step::FailOver => {}
            Step::Cut(node) => {
                self.nodes[*node].relay.lead(Leads::Nowhere);
                self.nodes[*node].cut = true;
            }
            Step::Heal(node) => {
                self.nodes[*node].relay.lead(Leads::To(self.postgres.port()));
                self.nodes[*node].cut = false;
            }
            Step::Restart(node, newer) if !self.nodes[*node].cut => {
                self.nodes[*node].app.take().unwrap().stop().await;
                self.nodes[*node].newer = *newer;
                self.nodes[*node].clock.set(self.nodes[*node].furthest);
                self.start_node(*node).await;
            }
            Step::Restart(..) => {}
            Step::SetClock(node, seconds) => {
                let node = &mut self.nodes[*node];
                node.clock.set(*seconds);
                node.furthest = node.furthest.max(*seconds);
            }
            Step::SaveWindows => drop(self.redis.run(&["SAVE"])),
            Step::LoseWindows(emptied) => {
                self.redis.kill();
                if *emptied {
                    self.redis.forget();
                }
                self.redis.resume();
            }
        }
        self.count += 1;
        self.settle().await;
        self.look().await
    }

    async fn approve(&mut self, node: usize) {
        let amount = 2900 + i64::try_from(self.count).unwrap();
        let mut call = credit(amount);
        call.case = call.case.map(|case| v1::Case { id: format!("case-{}", self.count), ..case });
        let mut desk = self.desk(node).await;
        let lead = Issuer::at(&self.folder.path().join("keys")).human("lead-1");
        let denied = desk.ask(&call).await;
        if denied.access_request.is_none() {
            return;
        }
        // Each request may fail while the store is unavailable.
        let Ok(approval) = desk.request_of(denied).await else { return };
        if desk.review(&approval, true, &lead).await.is_err() {
            return;
        }
        let Ok(token) = desk.fetch(&approval.id).await else { return };
        if !token.is_empty() {
            self.given.push(Given { call, token, amount, used_by: None, unsure: HashSet::new() });
        }
    }

    async fn use_one(&mut self, node: usize, which: usize, operation: usize) -> Result<(), TestCaseError> {
        let mut desk = self.desk(node).await;
        let asks_for_two = self.nodes[node].newer;
        let index = if self.given.is_empty() { return Ok(()) } else { which % self.given.len() };
        let given = &mut self.given[index];
        let asked = desk.decisions.authorize(with_token(&given.call, &given.token, &format!("op-{operation}"))).await;
        match asked.map(tonic::Response::into_inner) {
            Ok(answer) if answer.decision() == Decision::Allow => {
                let before = given.used_by.replace(operation);
                let fits = match (answer.repeated, before) {
                    (false, None) => true,
                    (false, Some(_)) => false,
                    (true, None) => given.unsure.contains(&operation),
                    (true, Some(before)) => before == operation,
                };
                prop_assert!(fits, "used twice: {before:?}, then {operation}, repeated: {}", answer.repeated);
                prop_assert!(answer.repeated || !asks_for_two, "one reviewer approved, but two are required");
                if before.is_none() {
                    self.spent.push(Spent { amount: given.amount, node, lost: false });
                    let all: i64 = self.spent.iter().filter(|spent| !spent.lost).map(|spent| spent.amount).sum();
                    prop_assert!(all <= CREDITS_MOST, "{all} credited, more than the limit");
                }
            }
            Ok(answer) if answer.reason() == v1::Reason::StateUnavailable => drop(given.unsure.insert(operation)),
            Ok(_) => {}
            Err(_) => drop(given.unsure.insert(operation)),
        }
        Ok(())
    }

    /// Runs statements while no client is connected to the database.
    async fn alone(&self, statements: &[&str]) {
        let away = "SELECT CAST(COUNT(pg_terminate_backend(pid)) AS TEXT) FROM pg_stat_activity WHERE datname IN ('live', 'backup')";
        let mut connection = sqlx::AnyConnection::connect(&self.postgres.url()).await.unwrap();
        let mut run = async |sql: &str| {
            sqlx::query(sqlx::AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.map(|_| ())
        };
        run("ALTER DATABASE live ALLOW_CONNECTIONS false").await.unwrap();
        for statement in statements {
            // A terminated session may take a moment to end, so try again.
            within("end of the sessions", async {
                loop {
                    run(away).await.unwrap();
                    match run(statement).await {
                        Ok(()) => break,
                        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("55006") => {}
                        Err(error) => panic!("{statement}: {error}"),
                    }
                }
            })
            .await;
        }
        run("ALTER DATABASE live ALLOW_CONNECTIONS true").await.unwrap();
    }

    /// Waits until the connected replicas agree with the store.
    async fn settle(&mut self) {
        for node in self.connected() {
            // A replica that is unsure about the store asks the others, for a few seconds at most.
            within("healthy store", async {
                while !self.app(node).pdp.status().store_healthy {
                    for each in self.connected() {
                        self.app(each).pdp.refresh().await;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            })
            .await;
            self.spent.iter_mut().filter(|spent| spent.node == node).for_each(|spent| spent.lost = false);
        }
        for node in self.connected() {
            self.app(node).pdp.refresh().await;
        }
    }

    /// Checks that a kill switch is in force on all connected replicas if one of them has read it.
    async fn look(&mut self) -> Result<(), TestCaseError> {
        let connected = self.connected();
        for index in self.stopped.len().saturating_sub(4)..self.stopped.len() {
            if !self.stopped[index].known.iter().any(|node| connected.contains(node)) {
                continue;
            }
            for node in &connected {
                let case = order_check().case.map(|case| v1::Case { id: self.stopped[index].case.clone(), ..case });
                let answer = self.desk(*node).await.ask(&v1::AuthorizeRequest { case, ..order_check() }).await;
                prop_assert_eq!(
                    answer.decision(),
                    Decision::Deny,
                    "a kill switch on {} is not in force",
                    self.stopped[index].case
                );
            }
            self.stopped[index].known.extend(&connected);
        }
        Ok(())
    }
}

/// Runs `count` histories on `threads` threads, each history with its own servers.
fn histories(count: u32, threads: u32) {
    sqlx::any::install_default_drivers();
    let run = || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .worker_threads(2)
            .thread_stack_size(8 << 20)
            .build()
            .unwrap();
        let config = ProptestConfig {
            cases: count.div_ceil(threads),
            max_shrink_iters: 20,
            failure_persistence: None,
            ..ProptestConfig::default()
        };
        let walked = TestRunner::new(config).run(&prop::collection::vec(step(), 20..60), |steps| {
            runtime.block_on(async {
                let mut world = World::start().await;
                for step in &steps {
                    world.take(step).await?;
                }
                for node in 0..3 {
                    world.take(&Step::Heal(node)).await?;
                }
                for node in world.nodes {
                    node.app.unwrap().stop().await;
                }
                Ok(())
            })
        });
        walked.map_err(|error| error.to_string())
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        for ended in running {
            if let Err(error) = ended.join().unwrap() {
                panic!("{error}");
            }
        }
    });
}

#[test]
fn acknowledged_results_hold_through_random_failures() {
    let count = cases(2).min(2000);
    histories(count, if count > 100 { 4 } else { 1 });
}
