//! The `countersign serve` command.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::{Environment, Exit, Failure, print, runtime};
use crate::app::{self, Bound, Seams, StartError};
use crate::config::{self, Config, ConfigError, LINK};
use crate::telemetry::logs;

/// The request that the README begins with.
const EXAMPLE: &str = "examples/authorize.yaml";

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Trust every process on the loopback interface without authentication; every answer carries a warning
    #[arg(long)]
    development: bool,
    /// gRPC address [default: 127.0.0.1:7070]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Admin HTTP address: /livez, /readyz, /metrics, /jwks.json [default: 127.0.0.1:7071]
    #[arg(long, value_name = "ADDRESS")]
    admin_listen: Option<SocketAddr>,
    /// Address of the approval desk, where humans review requests in a browser [default: none]
    #[arg(long, value_name = "ADDRESS")]
    desk_listen: Option<SocketAddr>,
    /// Folder of the policy bundle [default: policies]
    #[arg(long, value_name = "FOLDER")]
    bundle: Option<PathBuf>,
    /// Folder of the audit log, the state and the keys [default: data]
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
}

impl Arguments {
    /// Returns the settings with those of the arguments.
    pub(super) fn settings(self, environment: &Environment) -> Result<Config, ConfigError> {
        let mut config = environment.config()?;
        config.development |= self.development;
        config.listen.grpc = self.listen.unwrap_or(config.listen.grpc);
        config.listen.admin = self.admin_listen.unwrap_or(config.listen.admin);
        config.desk.listen = self.desk_listen.or(config.desk.listen);
        config.bundle.path = self.bundle.unwrap_or(config.bundle.path);
        config.data = self.data.unwrap_or(config.data);
        Ok(config)
    }
}

pub(super) fn run(environment: &Environment, arguments: Arguments) -> Result<Exit, Failure> {
    let config = arguments.settings(environment)?;
    logs::start(&config.log).map_err(|error| Failure::new(Exit::Usage, error))?;
    let telemetry = config::telemetry(&config.environment, &environment.variables)?;
    let spans =
        telemetry.endpoint.clone().unwrap_or_else(|| "not exported: set OTEL_EXPORTER_OTLP_ENDPOINT".to_owned());
    runtime()?.block_on(async {
        let bound = app::build(&config, Seams::system(telemetry)).await.map_err(start_failure)?;
        let (reload, reloads) = mpsc::channel(1);
        let signals = signals(reload).map_err(|error| Failure::new(Exit::Failure, format!("signals can't be received: {error}")))?;
        // Print this only once signals are handled, because its reader may send one at once.
        greet(environment, &config, &spans, &bound);
        if config.development {
            tracing::warn!(name: "server.development", "every process on the loopback interface is trusted: no caller is authenticated");
        }
        bound.run(signals, reloads).await.map_err(|error| Failure::new(Exit::Failure, error))?;
        tracing::info!(name: "server.stopped", "the audit log is closed");
        Ok(Exit::Ok)
    })
}

/// Converts a reason why a server can't start; the exit code tells faults of the settings and of the bundle apart.
pub(super) fn start_failure(error: StartError) -> Failure {
    match error {
        StartError::Bundle(error) => error.into(),
        StartError::Config(error) => error.into(),
        StartError::Address { .. }
        | StartError::Audit(_)
        | StartError::Data(..)
        | StartError::Entropy(_)
        | StartError::Issuers(_)
        | StartError::Keys(_)
        | StartError::Record
        | StartError::Socket(..)
        | StartError::Store(_)
        | StartError::Telemetry(_)
        | StartError::Threads(_)
        | StartError::Trust(_)
        | StartError::Unnoted(_)
        | StartError::RiskStore(_)
        | StartError::Windows(_)
        | StartError::Witness(_)
        | StartError::WitnessFile(..) => Failure::new(Exit::Failure, error),
    }
}

/// Returns where humans sign in: the link that works once, or the pages.
fn sign_in(config: &Config, desk: SocketAddr) -> String {
    match std::fs::read_to_string(config.data.join(LINK)) {
        Ok(link) if config.desk.oidc.is_none() => {
            format!("{} (works once; the next one is in {})", link.trim(), config.data.join(LINK).display())
        }
        Ok(_) | Err(_) => config.desk.url.clone().unwrap_or_else(|| format!("http://{desk}")),
    }
}

/// Prints where the server listens, what it serves, what stops calls now, and one command to try.
fn greet(environment: &Environment, config: &Config, spans: &str, bound: &Bound) {
    let pdp = bound.pdp();
    let moment = pdp.moment();
    let bundle = &moment.snapshot.bundle;
    let (warnings, stops) = (config.warnings(), pdp.stops());
    tracing::info!(
        name: "server.started", grpc = %bound.grpc, admin = %bound.admin, bundle = bundle.manifest.name, digest = bundle.version.digest,
        warnings = warnings.join(","), spans, stops,
    );
    let started = serde_json::json!({
        "grpc": bound.grpc.to_string(),
        "admin": bound.admin.to_string(),
        "events": bound.events.map(|address| address.to_string()),
        "desk": bound.desk.map(|address| address.to_string()),
        "bundle": {"name": bundle.manifest.name, "version": bundle.version.version, "digest": bundle.version.digest},
        "data": config.data.display().to_string(),
        "environment": config.environment,
        "spans": spans,
        "stops": stops,
        "warnings": warnings,
    });
    let mode = if warnings.is_empty() { config.environment.clone() } else { warnings.join(", ") };
    let mut text = format!(
        "gRPC     {}\nadmin    http://{} (/livez, /readyz, /metrics, /jwks.json)\nbundle   {} {} {}\ndata     {}\nmode     {mode}\nspans    {spans}\n",
        bound.grpc,
        bound.admin,
        bundle.manifest.name,
        bundle.version.version,
        bundle.version.digest,
        config.data.display(),
    );
    if let Some(desk) = bound.desk {
        text.push_str(&format!("desk     {}\n", sign_in(config, desk)));
    }
    if stops > 0 {
        text.push_str(&format!(
            "stops    {stops} kill switches and revoked sessions stop calls: see `countersign signals list`\n"
        ));
    }
    let program = std::env::args().next().unwrap_or_else(|| "countersign".into());
    // Outside of development mode a call needs certificates and tokens, which only its caller has.
    let tried = match config.development && Path::new(EXAMPLE).exists() {
        true => format!("{program} authorize --server http://{} {EXAMPLE}", bound.grpc),
        false => format!("curl http://{}/readyz", bound.admin),
    };
    text.push_str(&format!("try      {tried}"));
    match environment.output {
        super::Output::Json => print(&started.to_string()),
        super::Output::Text => print(&text),
    }
}

/// Returns a future that resolves on SIGTERM and SIGINT; each SIGHUP requests a reload.
fn signals(reload: mpsc::Sender<()>) -> std::io::Result<impl Future<Output = ()> + Send> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        loop {
            tokio::select! {
                _ = hangup.recv() => {
                    // If the queue is full, the reload in it will read this change, too.
                    let _asked = reload.try_send(());
                }
                _ = terminate.recv() => return,
                _ = interrupt.recv() => return,
            }
        }
    })
}
