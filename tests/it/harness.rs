//! Starts the app in the test process or as a process of its own, each in a temporary folder on free ports,
//! and builds the requests that tests vary.

pub(crate) mod content;
pub(crate) mod people;
pub(crate) mod pki;
pub(crate) mod postgres;
pub(crate) mod redis;
pub(crate) mod relay;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use countersign::api::v1;
use countersign::api::v1::admin_service_client::AdminServiceClient;
use countersign::api::v1::decision_service_client::DecisionServiceClient;
use countersign::app::{self, Seams};
use countersign::audit::disk::{Disk, Segment, SystemDisk};
use countersign::audit::key::DigestKey;
use countersign::audit::verify::{Expected, Report, Verifier, VerifyError};
use countersign::bundle::folder::Folder;
use countersign::bundle::{Bundle, Reading};
use countersign::config::Config;
use countersign::pdp::Pdp;
use countersign::telemetry::export;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};
use tonic::transport::Channel;

/// Uid of `nobody`, which servers run as when the tests run as root.
pub(crate) const NOBODY: u32 = 65534;

/// Request timeout of test servers, long enough for a slow disk. Tests of timeouts set their own.
const REQUEST_TIMEOUT_MS: u64 = 60_000;

/// Maximum age of kill switches, so high that a busy machine denies nothing. Tests of the age set their own.
const STOPS_AGE_MS: u64 = 60_000;

/// Returns how many cases a property test runs: `PROPTEST_CASES` (`make soak` sets it), or `default`.
pub(crate) fn cases(default: u32) -> u32 {
    std::env::var_os("PROPTEST_CASES").and_then(|cases| cases.to_str()?.parse().ok()).unwrap_or(default)
}

/// Path of the reference bundle.
pub(crate) fn policies() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("policies")
}

/// Creates a temporary folder that every user may enter and write to.
pub(crate) fn temp() -> TempDir {
    let folder = tempfile::Builder::new().prefix("countersign-").tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    folder
}

/// Copies a bundle to a folder where a test can change it.
pub(crate) fn copy(from: &Path, to: &Path) {
    for (name, bytes) in Folder::read(from).unwrap().files() {
        let file = to.join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, bytes).unwrap();
    }
}

/// Raises the call rates of a bundle, for tests that make more calls than the reference rates allow.
pub(crate) fn lift_limits(bundle: &Path) {
    let file = bundle.join("rates.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    let lifted = text.lines().map(|line| match line.split_once("sustained:") {
        Some((before, _)) => format!("{before}sustained: 1000000, minutes: 1, burst: 1000000}}\n"),
        None => format!("{line}\n"),
    });
    std::fs::write(file, lifted.collect::<String>()).unwrap();
}

/// Loads the reference bundle with additional or replaced files.
pub(crate) fn bundle_with(more: &[(&str, &str)]) -> Bundle {
    let mut files = Folder::read(&policies()).unwrap().files().clone();
    for (name, text) in more {
        files.insert((*name).to_owned(), text.as_bytes().to_vec());
    }
    Bundle::from_folder(Folder::of(files), Reading::default()).unwrap()
}

/// Returns settings for a test: development mode, free ports, the reference bundle, the given data folder.
pub(crate) fn config(data: &Path) -> Config {
    let mut config = Config { development: true, data: data.to_owned(), ..Config::default() };
    config.listen.grpc.set_port(0);
    config.listen.admin.set_port(0);
    config.bundle.path = policies();
    config.bundle.poll_seconds = 0;
    config.limits.request_timeout_ms = REQUEST_TIMEOUT_MS;
    config.store.stops_age_ms = STOPS_AGE_MS;
    config
}

/// The app, running in the test process.
pub(crate) struct App {
    pub(crate) grpc: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) events: Option<SocketAddr>,
    pub(crate) pdp: Arc<Pdp>,
    pub(crate) data: PathBuf,
    _reload: mpsc::Sender<()>,
    stop: oneshot::Sender<()>,
    running: tokio::task::JoinHandle<Result<(), app::RunError>>,
    _folder: Option<TempDir>,
}

/// The system's disk, except that it always reports free space, so that a full machine fails no test.
#[derive(Debug)]
pub(crate) struct RoomyDisk;

impl Disk for RoomyDisk {
    fn open(&self, path: &Path) -> std::io::Result<Box<dyn Segment>> {
        SystemDisk.open(path)
    }

    fn sync_folder(&self, path: &Path) -> std::io::Result<()> {
        SystemDisk.sync_folder(path)
    }

    fn free(&self, _path: &Path) -> Option<(u64, u64)> {
        Some((1 << 30, 1 << 30))
    }
}

impl App {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_, _| {}).await
    }

    /// Starts the app after `change` has altered its settings and seams.
    pub(crate) async fn start_with(change: impl FnOnce(&mut Config, &mut Seams)) -> Self {
        let folder = temp();
        let data = folder.path().join("data");
        let mut app = Self::start_in(&data, change).await;
        app._folder = Some(folder);
        app
    }

    /// Starts the app on a data folder that outlives the app.
    pub(crate) async fn start_in(data: &Path, change: impl FnOnce(&mut Config, &mut Seams)) -> Self {
        let mut config = config(data);
        let mut seams =
            Seams::system(export::Options { service_name: "countersign".into(), ..export::Options::default() });
        seams.disk = Arc::new(RoomyDisk);
        change(&mut config, &mut seams);
        let bound = app::build(&config, seams).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let (reload, reloads) = mpsc::channel(1);
        let (grpc, admin, events, pdp) = (bound.grpc, bound.admin, bound.events, bound.pdp());
        let shutdown = async {
            let _dropped = stopped.await;
        };
        let running = tokio::spawn(bound.run(shutdown, reloads));
        Self { grpc, admin, events, pdp, data: data.to_owned(), _reload: reload, stop, running, _folder: None }
    }

    pub(crate) async fn channel(&self) -> Channel {
        channel(self.grpc).await
    }

    pub(crate) async fn decisions(&self) -> DecisionServiceClient<Channel> {
        DecisionServiceClient::new(self.channel().await).max_encoding_message_size(64 << 20)
    }

    pub(crate) async fn operations(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel().await)
    }

    /// Shuts the app down gracefully. The temporary folder exists until the returned handle is dropped.
    pub(crate) async fn stop(self) -> Option<TempDir> {
        self.stop.send(()).unwrap();
        self.running.await.unwrap().unwrap();
        self._folder
    }
}

pub(crate) async fn channel(address: SocketAddr) -> Channel {
    Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

/// Connects to a Unix socket.
pub(crate) async fn unix(path: PathBuf) -> Channel {
    let connector = tower::service_fn(move |_: http::Uri| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(tokio::net::UnixStream::connect(path).await?)) }
    });
    tonic::transport::Endpoint::from_static("http://socket").connect_with_connector(connector).await.unwrap()
}

/// A clock that only the test moves, in microseconds since the epoch.
#[derive(Clone, Debug)]
pub(crate) struct Hands(pub(crate) Arc<std::sync::atomic::AtomicI64>);

impl Hands {
    /// Starts the clock at the current time.
    pub(crate) fn now() -> Self {
        Self(Arc::new(std::sync::atomic::AtomicI64::new(people::seconds() * 1_000_000)))
    }

    pub(crate) fn forward(&self, seconds: i64) {
        self.0.fetch_add(seconds * 1_000_000, std::sync::atomic::Ordering::SeqCst);
    }
}

impl countersign::clock::Clock for Hands {
    fn now(&self) -> countersign::model::time::Timestamp {
        countersign::model::time::Timestamp::from_micros(self.0.load(std::sync::atomic::Ordering::SeqCst))
    }

    fn follows(&self) -> bool {
        false
    }
}

/// Sends a GET over HTTP/1.1 and returns status and body.
pub(crate) async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    (status, text.split_once("\r\n\r\n").unwrap().1.to_owned())
}

/// Reads the lines of all segments of an audit log.
pub(crate) fn lines(data: &Path) -> Vec<Value> {
    let mut segments: Vec<PathBuf> = std::fs::read_dir(data.join("audit"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"))
        .collect();
    segments.sort();
    let text: String = segments.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Verifies an audit log with the digest key in its data folder, as `countersign audit verify` does.
pub(crate) fn verify(audit: &Path) -> Result<Report, VerifyError> {
    let key = DigestKey::read(&audit.parent().unwrap().join("keys/audit-digest.key")).unwrap();
    let verifier = std::fs::read_to_string(audit.parent().unwrap().join("keys/audit-checkpoint.vkey")).unwrap();
    let verifier = Some(Verifier::parse(&verifier).unwrap());
    let expected = Expected { keys: key.all().copied().collect(), verifier, ..Expected::default() };
    countersign::audit::verify::verify(audit, &expected)
}

/// Attributes of a case under the reference bundle's schema.
pub(crate) const CASE: &str = r#"{"customer":"customer-1","product":"phone","region":"eu","policy_set":"standard","currency":"EUR","status":"open","refund_status":"none","identity_check":"none","fraud_check":"none"}"#;
/// Attributes of an order under the reference bundle's schema.
pub(crate) const ORDER: &str =
    r#"{"tenant":"acme","customer":"customer-1","currency":"EUR","paid_minor":9000,"refunded_minor":0}"#;

/// A call that the reference bundle allows: an assistant checks an order.
pub(crate) fn order_check() -> v1::AuthorizeRequest {
    v1::AuthorizeRequest {
        delegation: asserted("support-bot", "rep-1", "enrichment"),
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

/// A call with arguments that the reference bundle allows: an assistant proposes a refund.
pub(crate) fn refund_request() -> v1::AuthorizeRequest {
    v1::AuthorizeRequest {
        delegation: asserted("support-bot", "rep-1", "action"),
        action: "refund.create_request".into(),
        arguments_json: r#"{"amount_minor":2500,"currency":"EUR"}"#.into(),
        model: Some(v1::Model { name: "test".into(), ..Default::default() }),
        untrusted: calm_text(),
        ..order_check()
    }
}

/// Removes what only a development server tells of a denial.
pub(crate) fn without_hint(warnings: &mut Vec<String>) {
    warnings.retain(|warning| !warning.starts_with("development: "));
}

/// A harmless untrusted text. Sending it marks the case's version as screened.
pub(crate) fn calm_text() -> Vec<v1::UntrustedText> {
    vec![v1::UntrustedText { source: "ticket.body".into(), text: "The phone does not charge any more.".into() }]
}

pub(crate) fn asserted(agent: &str, supervisor: &str, step: &str) -> Option<v1::Delegation> {
    let chain =
        v1::AssertedChain { agent: agent.into(), supervisor: supervisor.into(), step: step.into(), scopes: vec![] };
    Some(v1::Delegation { credential: Some(v1::delegation::Credential::Asserted(chain)), ..Default::default() })
}

/// Returns the path of the program: the build, or a copy if an unprivileged user can't run the build.
pub(crate) fn program() -> &'static Path {
    static COPY: OnceLock<PathBuf> = OnceLock::new();
    COPY.get_or_init(|| {
        let built = Path::new(env!("CARGO_BIN_EXE_countersign"));
        if !is_root() || is_open(built) {
            return built.to_owned();
        }
        // The path is fixed, so later runs replace this copy. A running program can't be written to, so a new
        // file is renamed into place.
        let folder = std::env::temp_dir().join("countersign-tests");
        std::fs::create_dir_all(&folder).unwrap();
        let (new, program) = (folder.join(format!("new-{}", std::process::id())), folder.join("countersign"));
        std::fs::copy(built, &new).unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(&new, &program).unwrap();
        program
    })
}

/// Returns a folder with the reference bundle and the examples that an unprivileged user may read: the
/// project's own, or a copy.
pub(crate) fn open_root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let project = Path::new(env!("CARGO_MANIFEST_DIR"));
        if !is_root() || is_open(&project.join("policies/bundle.yaml")) {
            return project.to_owned();
        }
        let folder = std::env::temp_dir().join("countersign-tests");
        copy(&policies(), &folder.join("policies"));
        std::fs::create_dir_all(folder.join("examples")).unwrap();
        for example in ["examples/authorize.yaml", "examples/credit.yaml", "examples/write.yaml"] {
            std::fs::copy(project.join(example), folder.join(example)).unwrap();
        }
        folder
    })
}

/// Returns whether every user may read the file and enter the folders above it.
pub(crate) fn is_open(path: &Path) -> bool {
    let path = std::fs::canonicalize(path).unwrap();
    path.ancestors().all(|part| std::fs::metadata(part).is_ok_and(|found| found.permissions().mode() & 0o5 == 0o5))
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Builds a command that runs the program unprivileged, with only the settings for tests in its environment.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(arguments).env_clear().env("COUNTERSIGN__LIMITS__REQUEST_TIMEOUT_MS", REQUEST_TIMEOUT_MS.to_string());
    command.env("COUNTERSIGN__STORE__STOPS_AGE_MS", STOPS_AGE_MS.to_string());
    command.env("COUNTERSIGN__LIMITS__DRAIN_SECONDS", "0");
    unprivileged(&mut command);
    command
}

/// Builds a shell that runs a script unprivileged in a folder, with the program in its path.
pub(crate) fn shell(script: &str, folder: &Path) -> Command {
    let bin = folder.join(".bin");
    std::fs::create_dir_all(&bin).unwrap();
    if !bin.join("countersign").exists() {
        std::os::unix::fs::symlink(program(), bin.join("countersign")).unwrap();
    }
    let path = format!("{}:/usr/local/bin:/usr/bin:/bin", bin.display());
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).current_dir(folder).env_clear().env("PATH", path);
    unprivileged(&mut shell);
    shell
}

pub(crate) fn unprivileged(command: &mut Command) {
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
}

/// Waits for something that happens soon even on a busy machine. Panics after two minutes, naming what did not happen.
pub(crate) async fn within<T>(what: &str, waiting: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(Duration::from_secs(120), waiting).await;
    waited.unwrap_or_else(|_| panic!("after two minutes there is still no {what}"))
}

/// The server as a real process; killed when dropped.
pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) grpc: SocketAddr,
    pub(crate) admin: SocketAddr,
    /// Address of the approval desk, if the server has one.
    pub(crate) desk: Option<SocketAddr>,
    log: tempfile::NamedTempFile,
}

impl Process {
    /// Starts `serve` in development mode on free ports.
    pub(crate) fn serve(data: &Path, more: &[&str], change: impl FnOnce(&mut Command)) -> Self {
        let data = data.to_str().unwrap();
        let bundle = open_root().join("policies");
        let mut arguments = vec![
            "serve",
            "--development",
            "--listen",
            "127.0.0.1:0",
            "--admin-listen",
            "127.0.0.1:0",
            "-o",
            "json",
            "--data",
            data,
        ];
        if !more.contains(&"--bundle") {
            arguments.extend(["--bundle", bundle.to_str().unwrap()]);
        }
        arguments.extend(more);
        let (mut command, log) = (command(&arguments), tempfile::NamedTempFile::new().unwrap());
        command.stderr(log.reopen().unwrap());
        change(&mut command);
        Self::started(command, log)
    }

    pub(crate) fn spawn(mut command: Command) -> Self {
        let log = tempfile::NamedTempFile::new().unwrap();
        command.stderr(log.reopen().unwrap());
        Self::started(command, log)
    }

    /// A server that was started already, whose log is not kept.
    pub(crate) fn of(child: Child, grpc: SocketAddr, admin: SocketAddr) -> Self {
        Self { child, grpc, admin, desk: None, log: tempfile::NamedTempFile::new().unwrap() }
    }

    fn started(mut command: Command, log: tempfile::NamedTempFile) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let started: Value = serde_json::from_str(&line).unwrap_or_else(|_| {
            panic!("the server did not start: {line}{}", std::fs::read_to_string(log.path()).unwrap_or_default())
        });
        let address = |name: &str| started[name].as_str().unwrap().parse().unwrap();
        let desk = started["desk"].as_str().map(|address| address.parse().unwrap());
        Self { grpc: address("grpc"), admin: address("admin"), desk, child, log }
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, signal).unwrap();
    }

    pub(crate) fn log_text(&self) -> String {
        std::fs::read_to_string(self.log.path()).unwrap()
    }

    /// Sends SIGTERM, waits for the exit and returns the log.
    pub(crate) fn log_of_stop(mut self) -> String {
        self.signal(rustix::process::Signal::TERM);
        assert!(self.child.wait().unwrap().success());
        std::fs::read_to_string(self.log.path()).unwrap()
    }

    /// Sends SIGTERM and waits for the exit.
    pub(crate) fn stop(mut self) -> std::process::ExitStatus {
        self.signal(rustix::process::Signal::TERM);
        self.child.wait().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Ignore errors: the process may have ended already.
        let _ended = self.child.kill();
        let _waited = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.log.path()).unwrap_or_default();
            let _written =
                std::io::Write::write_all(&mut std::io::stderr(), format!("the server's log:\n{log}").as_bytes());
        }
    }
}
