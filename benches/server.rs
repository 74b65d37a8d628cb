//! CPU time that servers need for one request: Countersign in several configurations, beside an empty RPC with
//! the same message on three runtimes, naive Cedar behind the same RPC, and Cerbos with its audit log in a file and all traces, which
//! is downloaded with npm. Each server is a process of its own, pinned to one
//! core; the load generator runs on the others. Rounds are interleaved, so that the ratios hold on any machine.
//! Every answer is checked.
//!
//! Run it with `cargo bench --bench server`. Settings: `COUNTERSIGN_BENCH_ROUNDS` (3), `COUNTERSIGN_BENCH_SECONDS`
//! of one round (3), `COUNTERSIGN_BENCH_ONLY`, a part of the names of the servers to measure, and
//! `COUNTERSIGN_BENCH_PLOT`, an SVG file for a plot of the first table.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a benchmark measures, prints and stops at a fault"
)]

#[path = "common/bundles.rs"]
mod bundles;
#[path = "common/calls.rs"]
mod calls;
#[path = "common/cerbos.rs"]
mod cerbos;
#[path = "common/naive.rs"]
mod naive;
#[path = "common/texts.rs"]
mod texts;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Result as IoResult};
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bundles::unlimited;
use calls::{ORDER, case, delegation, order_check, resource};
use countersign::api::v1;
use countersign::api::v1::decision_service_client::DecisionServiceClient;
use countersign::api::v1::decision_service_server::{DecisionService, DecisionServiceServer};
use countersign::connections::batched::Batched;
use futures_util::StreamExt;
use naive::Naive;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::Channel;
use tonic::transport::server::Connected;

/// The yardsticks run as Countersign does: with the same allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CONNECTIONS: usize = 8;
const IN_FLIGHT: usize = 8;

type Items =
    std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<v1::AuthorizeStreamResponse, tonic::Status>> + Send>>;
type Answer<T> = Result<tonic::Response<T>, tonic::Status>;

/// The service without an evaluation, or with naive Cedar.
struct Yardstick(Option<Naive>);

#[tonic::async_trait]
impl DecisionService for Yardstick {
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

/// Receives spans and forgets them.
struct Collector;

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(&self, _: tonic::Request<ExportTraceServiceRequest>) -> Answer<ExportTraceServiceResponse> {
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A connection whose writes are collected, as those of Countersign are.
struct Collected(Batched<tokio::net::TcpStream>);

impl Connected for Collected {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Collected {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<IoResult<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Collected {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<IoResult<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<IoResult<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<IoResult<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<IoResult<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// Serves a yardstick or the collector until the process is killed.
fn serve(what: &str) {
    let mut builder = match what {
        "multi-thread" | "collected" => tokio::runtime::Builder::new_multi_thread(),
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = builder.enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("{}", serde_json::json!({"grpc": listener.local_addr().unwrap().to_string()}));
        let server = &mut tonic::transport::Server::builder();
        if what == "collected" {
            let accepted = futures_util::stream::unfold(listener, |listener| async {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                Some((Ok::<_, std::io::Error>(Collected(Batched::new(stream))), listener))
            });
            let routes = server.add_service(DecisionServiceServer::new(Yardstick(None)));
            return routes.serve_with_incoming(accepted).await.unwrap();
        }
        let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
        let routes = match what {
            "collector" => server.add_service(TraceServiceServer::new(Collector)),
            "naive" => server.add_service(DecisionServiceServer::new(Yardstick(Some(Naive::new())))),
            _ => server.add_service(DecisionServiceServer::new(Yardstick(None))),
        };
        routes.serve_with_incoming(incoming).await.unwrap();
    });
}

/// A server process; killed when dropped.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    fn spawn(core: &str, program: &Path, arguments: &[&str], settings: &[(&str, String)]) -> Self {
        let mut command = Command::new("taskset");
        command
            .args(["-c", core])
            .arg(program)
            .args(arguments)
            .envs(settings.iter().map(|(name, value)| (name, value)));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let started: serde_json::Value = serde_json::from_str(&line).unwrap();
        Self { address: started["grpc"].as_str().unwrap().parse().unwrap(), child }
    }

    fn yardstick(core: &str, what: &str) -> Self {
        Self::spawn(core, &std::env::current_exe().unwrap(), &["--serve", what], &[])
    }

    fn countersign(data: &Path, bundle: &Path, settings: &[(&str, String)]) -> Self {
        let (data, bundle) = (data.to_str().unwrap(), bundle.to_str().unwrap());
        let mut arguments = vec!["serve", "--development", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
        arguments.extend(["-o", "json", "--data", data, "--bundle", bundle]);
        Self::spawn("0", Path::new(env!("CARGO_BIN_EXE_countersign")), &arguments, settings)
    }

    fn cerbos(folder: &Path, collector: &Server) -> Self {
        let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (address, http) = (free(), free());
        let (program, arguments) = cerbos::prepare(folder, address, http);
        let mut command = Command::new("taskset");
        command.args(["-c", "0"]).arg(program).args(arguments).stdout(Stdio::null());
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", collector.address));
        command.env("OTEL_TRACES_SAMPLER", "always_on").env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
        let server = Self { child: command.spawn().unwrap(), address };
        let deadline = Instant::now() + Duration::from_secs(30);
        while std::net::TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "Cerbos does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    /// CPU time of all threads since the start.
    fn cpu(&self) -> Duration {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let of = |thread: std::path::PathBuf| {
            let text = std::fs::read_to_string(thread.join("schedstat")).unwrap_or_default();
            text.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0)
        };
        Duration::from_nanos(threads.map(|thread| of(thread.unwrap().path())).sum())
    }

    /// Resident memory in MiB: now and at its highest.
    fn memory(&self) -> (u64, u64) {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let of = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
        };
        (of("VmRSS:"), of("VmHWM:"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Kind of call that a contender answers.
#[derive(Clone, Copy)]
enum Work {
    /// `order.check` in this step, which decides whether it is allowed.
    Check(&'static str),
    /// The same over a stream.
    Stream(&'static str),
    /// `refund.issue` that is denied for lack of an approval, with the token to request one.
    Refund,
    /// PrepareContext of a ticket of 2 KiB and a record of five fields.
    Prepare,
    /// EvaluateOutput of a draft of 2 KiB with the sources that it was written from.
    Evaluate,
    Cerbos,
}

/// One of the servers that are compared.
struct Contender {
    name: &'static str,
    server: Server,
    work: Work,
}

/// Result of one round.
struct Round {
    cpu: f64,
    rate: f64,
    latencies: Vec<Duration>,
}

fn check(response: &v1::AuthorizeResponse, step: &str) {
    let expected = if step == "intake" { v1::Decision::Deny } else { v1::Decision::Allow };
    assert_eq!(response.decision(), expected, "{response:?}");
}

/// Makes calls one after the other until the time is over, and returns how long each took.
async fn repeated<T: Future<Output = ()>>(until: Instant, one: impl Fn() -> T) -> Vec<Duration> {
    let mut latencies = vec![];
    while Instant::now() < until {
        let start = Instant::now();
        one().await;
        latencies.push(start.elapsed());
    }
    latencies
}

async fn calls(channel: Channel, work: Work, until: Instant) -> Vec<Duration> {
    let client = DecisionServiceClient::new(channel.clone());
    match work {
        Work::Check(step) | Work::Stream(step) => {
            repeated(until, || {
                let mut client = client.clone();
                async move { check(client.authorize(order_check(1, step)).await.unwrap().get_ref(), step) }
            })
            .await
        }
        Work::Refund => {
            repeated(until, || {
                let mut client = client.clone();
                async move {
                    let denied = client.authorize(refund()).await.unwrap().into_inner();
                    assert!(
                        denied.access_request.as_ref().is_some_and(|request| !request.binding_token.is_empty()),
                        "{denied:?}"
                    );
                }
            })
            .await
        }
        Work::Prepare => {
            repeated(until, || {
                let mut client = client.clone();
                async move {
                    let prepared = client.prepare_context(texts::to_prepare(1, 2048)).await.unwrap().into_inner();
                    assert!(prepared.segments.len() > 5, "{prepared:?}");
                }
            })
            .await
        }
        Work::Evaluate => {
            let prepared = client.clone().prepare_context(texts::to_prepare(1, 2048)).await.unwrap().into_inner();
            repeated(until, || {
                let (mut client, draft) = (client.clone(), texts::to_evaluate(&prepared, 1, 2048));
                async move {
                    let evaluated = client.evaluate_output(draft).await.unwrap().into_inner();
                    assert!(!evaluated.evaluation_id.is_empty(), "{evaluated:?}");
                }
            })
            .await
        }
        Work::Cerbos => {
            repeated(until, || {
                let channel = channel.clone();
                async move {
                    let mut client = tonic::client::Grpc::new(channel);
                    client.ready().await.unwrap();
                    let codec = tonic_prost::ProstCodec::<cerbos::CheckResources, cerbos::Checked>::default();
                    let path = http::uri::PathAndQuery::from_static(cerbos::METHOD);
                    let request = tonic::Request::new(cerbos::check_order("enrichment"));
                    let response = client.unary(request, path, codec).await.unwrap();
                    assert_eq!(response.get_ref().effect(), Some(cerbos::ALLOW), "{response:?}");
                }
            })
            .await
        }
    }
}

fn refund() -> v1::AuthorizeRequest {
    v1::AuthorizeRequest {
        delegation: delegation("refund-bot", "action"),
        action: "refund.issue".into(),
        resource: resource("Order", "order-1", ORDER),
        case: case(1),
        arguments_json: r#"{"amount_minor":2500,"currency":"EUR"}"#.into(),
        model: Some(v1::Model { name: "m".into(), ..Default::default() }),
        ..Default::default()
    }
}

/// Makes the checks of the case that a refund needs, and screens its text.
async fn prepare_refunds(address: SocketAddr) {
    let mut client = DecisionServiceClient::connect(format!("http://{address}")).await.unwrap();
    for (action, arguments) in
        [("verification.run", r#"{"fact":"delivery_postcode"}"#), ("verification.fraud_review", "")]
    {
        let verification = v1::AuthorizeRequest {
            delegation: delegation("support-bot", "verification"),
            action: action.into(),
            resource: resource("Case", "case-1", ""),
            case: case(1),
            arguments_json: arguments.into(),
            untrusted: vec![v1::UntrustedText { source: "ticket.body".into(), text: texts::text(200) }],
            ..Default::default()
        };
        let allowed = client.authorize(verification).await.unwrap().into_inner();
        assert_eq!(allowed.decision(), v1::Decision::Allow, "{allowed:?}");
        let report = v1::ReportOutcomeRequest {
            evaluation_id: allowed.evaluation_id,
            status: v1::OutcomeStatus::Succeeded.into(),
            outcome_token: allowed.outcome_token,
            ..Default::default()
        };
        client.report_outcome(report).await.unwrap();
    }
}

/// Sends calls over one stream, [`IN_FLIGHT`] at a time. `number` is that of the stream.
async fn stream(
    mut client: DecisionServiceClient<Channel>,
    number: usize,
    step: &'static str,
    until: Instant,
) -> Vec<Duration> {
    let (sender, receiver) = tokio::sync::mpsc::channel(IN_FLIGHT);
    let mut responses =
        client.authorize_stream(tokio_stream::wrappers::ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let (mut sent, mut latencies, mut count) = (HashMap::new(), vec![], 0_u64);
    let mut next = || {
        count += 1;
        // No two requests of a caller in flight may have the same id.
        let id = format!("{number}-{count}");
        let call = v1::AuthorizeRequest { request_id: id.clone(), ..order_check(1, step) };
        (id, v1::AuthorizeStreamRequest { request: Some(call) })
    };
    for _ in 0..IN_FLIGHT {
        let (id, request) = next();
        sent.insert(id, Instant::now());
        sender.send(request).await.unwrap();
    }
    while let Some(response) = responses.next().await {
        let result = response.unwrap().result.unwrap().result;
        let Some(v1::authorize_result::Result::Response(response)) = result else { panic!("a refusal") };
        check(&response, step);
        latencies.push(sent.remove(&response.request_id).unwrap().elapsed());
        if Instant::now() < until {
            let (id, request) = next();
            sent.insert(id, Instant::now());
            sender.send(request).await.unwrap();
        } else if sent.is_empty() {
            break;
        }
    }
    latencies
}

async fn round(contender: &Contender, connections: usize, in_flight: usize, length: Duration) -> Round {
    let mut clients = vec![];
    for _ in 0..connections {
        let endpoint = tonic::transport::Endpoint::new(format!("http://{}", contender.server.address)).unwrap();
        clients.push(endpoint.connect().await.unwrap());
    }
    let (before, start) = (contender.server.cpu(), Instant::now());
    let until = start + length;
    let mut workers = vec![];
    for (number, channel) in clients.into_iter().enumerate() {
        match contender.work {
            Work::Stream(step) => {
                workers.push(tokio::spawn(stream(DecisionServiceClient::new(channel), number, step, until)));
            }
            work => workers.extend((0..in_flight).map(|_| tokio::spawn(calls(channel.clone(), work, until)))),
        }
    }
    let mut latencies = vec![];
    for worker in workers {
        latencies.extend(worker.await.unwrap());
    }
    let count = latencies.len() as f64;
    Round {
        cpu: (contender.server.cpu() - before).as_secs_f64() * 1e6 / count,
        rate: count / start.elapsed().as_secs_f64(),
        latencies,
    }
}

fn number(name: &str, or: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(or)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Start of a contender's server.
enum Start {
    Yardstick(&'static str),
    /// Countersign with this audit mode, with all traces or none, and with evidence or without.
    Countersign(&'static str, bool, bool),
    Cerbos,
}

fn contenders(folder: &Path, collector: &Server) -> Vec<Contender> {
    use Start::{Cerbos, Countersign, Yardstick};
    use Work::{Check, Evaluate, Prepare, Refund, Stream};
    let all = [
        ("empty RPC (T)", Yardstick("empty"), Check("enrichment")),
        ("empty RPC, multi-thread", Yardstick("multi-thread"), Check("enrichment")),
        ("empty RPC, multi, writes collected", Yardstick("collected"), Check("enrichment")),
        ("naive Cedar", Yardstick("naive"), Check("enrichment")),
        ("Countersign, best effort", Countersign("best_effort", false, true), Check("enrichment")),
        ("Countersign, best effort, no evidence", Countersign("best_effort", false, false), Check("enrichment")),
        ("Countersign, best effort, stream", Countersign("best_effort", false, true), Stream("enrichment")),
        ("Countersign, denied for the step", Countersign("best_effort", false, true), Check("intake")),
        ("Countersign, refund.issue denied", Countersign("best_effort", false, true), Refund),
        ("Countersign, PrepareContext 2 KiB", Countersign("best_effort", false, true), Prepare),
        ("Countersign, EvaluateOutput 2 KiB", Countersign("best_effort", false, true), Evaluate),
        ("Countersign, strict", Countersign("strict", false, true), Check("enrichment")),
        ("Countersign, strict, no evidence", Countersign("strict", false, false), Check("enrichment")),
        ("Cerbos, file audit, all traces", Cerbos, Work::Cerbos),
        ("Countersign, strict, all traces", Countersign("strict", true, true), Check("enrichment")),
    ];
    let bundle = unlimited(folder);
    let only = std::env::var("COUNTERSIGN_BENCH_ONLY").unwrap_or_default();
    let wanted = |name: &str| name == all[0].0 || name.contains(&only);
    let chosen = all.iter().enumerate().filter(|(_, (name, ..))| wanted(name));
    let started = chosen.map(|(index, (name, start, work))| {
        let server = match start {
            Yardstick(what) => Server::yardstick("0", what),
            Cerbos => Server::cerbos(&folder.join("cerbos"), collector),
            Countersign(mode, traces, evidence) => {
                let data = folder.join(format!("data-{index}"));
                let mut settings = vec![("COUNTERSIGN__AUDIT__MODE", (*mode).to_owned())];
                if !evidence {
                    settings.push(("COUNTERSIGN__AUDIT__EVIDENCE_DAYS", "0".to_owned()));
                }
                if *traces {
                    settings.push(("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", collector.address)));
                }
                Server::countersign(&data, &bundle, &settings)
            }
        };
        Contender { name, server, work: *work }
    });
    started.collect()
}

/// Adds policies that never match to a bundle, and entities that no request names.
fn grow(bundle: &Path, policies: usize, entities: usize) {
    let policy = |index: usize| {
        format!(
            "@id(\"more.{index}\")\nforbid (principal is Agent, action == Action::\"order.check\", resource == \
             Order::\"other-{index}\") when {{ resource.paid_minor > {index} }};\n"
        )
    };
    std::fs::write(bundle.join("more.cedar"), (0..policies).map(policy).collect::<String>()).unwrap();
    let entity = |index: usize| serde_json::json!({"uid": {"type": "Tenant", "id": format!("more-{index}")}, "attrs": {}, "parents": []});
    let entities: Vec<_> = (0..entities).map(entity).collect();
    std::fs::write(bundle.join("entities/more.json"), serde_json::to_vec(&entities).unwrap()).unwrap();
}

/// Starts a server for each size of the bundle.
fn growth(folder: &Path) -> Vec<Contender> {
    let sizes = [
        ("reference bundle", 0, 0),
        ("+ 1,000 policies", 1_000, 0),
        ("+ 10,000 policies", 10_000, 0),
        ("+ 100,000 policies", 100_000, 0),
        ("+ 1,000,000 entities", 0, 1_000_000),
    ];
    let start = |(index, (name, policies, entities)): (usize, &(&'static str, usize, usize))| {
        let folder = folder.join(format!("grown-{index}"));
        std::fs::create_dir(&folder).unwrap();
        let bundle = unlimited(&folder);
        grow(&bundle, *policies, *entities);
        let settings = [("COUNTERSIGN__AUDIT__MODE", "best_effort".to_owned())];
        let server = Server::countersign(&folder.join("data"), &bundle, &settings);
        Contender { name, server, work: Work::Check("enrichment") }
    };
    sizes.iter().enumerate().map(start).collect()
}

/// Measures and prints. Returns the CPU time of each contender in microseconds.
fn measure(contenders: &[Contender], connections: usize, in_flight: usize) -> Vec<f64> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let length = Duration::from_secs(number("COUNTERSIGN_BENCH_SECONDS", 3) as u64);
    let mut rounds: Vec<Vec<Round>> = contenders.iter().map(|_| vec![]).collect();
    for contender in contenders {
        if matches!(contender.work, Work::Refund) {
            runtime.block_on(prepare_refunds(contender.server.address));
        }
        runtime.block_on(round(contender, connections, in_flight, Duration::from_secs(1)));
    }
    for _ in 0..number("COUNTERSIGN_BENCH_ROUNDS", 3) {
        for (contender, rounds) in contenders.iter().zip(&mut rounds) {
            rounds.push(runtime.block_on(round(contender, connections, in_flight, length)));
        }
    }
    println!("{connections} connections, {in_flight} in flight on each");
    println!(
        "  {:<34} {:>7} {:>6} {:>8} {:>7} {:>7} {:>7} {:>9}",
        "", "CPU µs", "× T", "calls/s", "p50 ms", "p99", "p99.9", "RSS MiB"
    );
    let (mut floor, mut costs) = (0.0, vec![]);
    for (contender, rounds) in contenders.iter().zip(rounds) {
        let cpu = median(rounds.iter().map(|round| round.cpu).collect());
        let rate = median(rounds.iter().map(|round| round.rate).collect());
        let mut latencies: Vec<Duration> = rounds.into_iter().flat_map(|round| round.latencies).collect();
        latencies.sort_unstable();
        let at = |part: f64| latencies[((latencies.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
        if floor == 0.0 {
            floor = cpu;
        }
        let (now, most) = contender.server.memory();
        println!(
            "  {:<34} {cpu:>7.1} {:>6.2} {rate:>8.0} {:>7.2} {:>7.2} {:>7.2} {now:>4} ({most})",
            contender.name,
            cpu / floor,
            at(0.5),
            at(0.99),
            at(0.999)
        );
        costs.push(cpu);
    }
    costs
}

/// Draws a bar for each cost, as a multiple of the first. Bars have a logarithmic scale.
fn plot(contenders: &[Contender], costs: &[f64]) -> String {
    let (left, width, height) = (250.0, 640.0, 26.0);
    let scale = |ratio: f64| (1.0 + ratio).log2() / 256_f64.log2() * (width - left - 60.0);
    let bars = contenders.iter().zip(costs).enumerate().map(|(index, (contender, cost))| {
        let (ratio, top) = (cost / costs[0], index as f64 * height + 30.0);
        let (length, base) = (scale(ratio), top + 14.0);
        format!(
            "<text x='{}' y='{base}' text-anchor='end'>{}</text><rect x='{left}' y='{top}' width='{length:.0}' \
             height='18' fill='#3a6ea5'/><text x='{:.0}' y='{base}'>{ratio:.1}</text>\n",
            left - 8.0,
            contender.name,
            left + length + 6.0,
        )
    });
    let total = contenders.len() as f64 * height + 40.0;
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{total}' font-family='sans-serif' \
         font-size='13'>\n<rect width='100%' height='100%' fill='white'/>\n<text x='8' y='18'>Server CPU per call, \
         as multiples of an empty RPC (logarithmic)</text>\n{}</svg>\n",
        bars.collect::<String>()
    )
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--serve") {
        return serve(&arguments[at + 1]);
    }
    // `cargo test --benches` must not take minutes, so it only shows that the benchmark builds.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    let cores = std::thread::available_parallelism().unwrap().get();
    assert!(cores > 1, "the servers need a core of their own");
    // The servers run on core 0, the load generator and the collector on the others.
    let others = format!("1-{}", cores - 1);
    let pinned = Command::new("taskset").args(["-cp", &others, &std::process::id().to_string()]).output().unwrap();
    assert!(pinned.status.success(), "{pinned:?}");
    let folder = tempfile::tempdir().unwrap();
    let collector = Server::yardstick(&others, "collector");
    let contenders = contenders(folder.path(), &collector);
    let costs = measure(&contenders, CONNECTIONS, IN_FLIGHT);
    if let Some(file) = std::env::var_os("COUNTERSIGN_BENCH_PLOT") {
        std::fs::write(file, plot(&contenders, &costs)).unwrap();
    }
    measure(&contenders, 1, 1);
    drop(contenders);
    println!("growth; ratios to the reference bundle");
    measure(&growth(folder.path()), CONNECTIONS, IN_FLIGHT);
}
