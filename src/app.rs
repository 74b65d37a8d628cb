//! Builds the server from its settings and its replaceable dependencies ([`Seams`]), and runs it.

mod beside;
pub mod check;
pub mod log;
pub mod names;
mod ports;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::admin;
use crate::api;
use crate::api::listen::Listeners;
use crate::app::ports::Ports;
use crate::approvals::store::location::Seen;
use crate::approvals::store::replica::Replica;
use crate::approvals::store::{Store, error, location};
use crate::audit::disk::{Disk, SystemDisk};
use crate::audit::key::DigestKey;
use crate::audit::recover::Recovered;
use crate::audit::witness::Witness;
use crate::audit::{Audit, OpenError};
use crate::bundle::{Bundle, LoadError};
use crate::caep::Transmitters;
use crate::caller::Callers;
use crate::caller::tls::TrustError;
use crate::clock::{Clock, Monotonic, Seldom, Stopwatch, SystemClock};
use crate::config::{CaseIds, Config, ConfigError};
use crate::delegation::Delegations;
use crate::delegation::issuers::{IssuerError, Issuers};
use crate::desk;
use crate::entropy::{Entropy, SystemEntropy, nonce};
use crate::events;
use crate::jose::keyring::{self, Keyring, KeyringError, Purpose};
use crate::model::time::Timestamp;
use crate::pdp::kept_bundles;
use crate::pdp::keys::Keys;
use crate::pdp::snapshot::Options;
use crate::pdp::{Parts, Pdp};
use crate::risk_store::address::AddressError;
use crate::risk_store::{RiskStore, RiskStoreError};
use crate::telemetry::export::{self, SetUpError, Telemetry};

/// Dependencies that tests replace.
#[derive(Debug)]
pub struct Seams {
    pub clock: Box<dyn Clock>,
    pub entropy: Box<dyn Entropy>,
    /// File system of the audit log.
    pub disk: Arc<dyn Disk>,
    /// Destination of telemetry.
    pub telemetry: export::Options,
}

impl Seams {
    /// Returns the operating system's clock, random source and file system.
    pub fn system(telemetry: export::Options) -> Self {
        Self { clock: Box::new(SystemClock), entropy: Box::new(SystemEntropy), disk: Arc::new(SystemDisk), telemetry }
    }
}

/// Reason why a server can't start. Each message says in one line what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is in use, or is not one of this machine's.
    #[error(
        "can't listen on `{address}`: {error}: stop the program that listens there, or set another address with `{setting}`"
    )]
    Address {
        address: SocketAddr,
        error: io::Error,
        /// Flag or setting that changes the address.
        setting: &'static str,
    },
    #[error(transparent)]
    Audit(#[from] OpenError),
    #[error(transparent)]
    Bundle(#[from] LoadError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("the data folder `{0}` can't be used: {1}: make it writable, or give another with `--data`")]
    Data(PathBuf, io::Error),
    /// The client that fetches key sets can't be built, or an issuer's key file can't be used.
    #[error(transparent)]
    Issuers(#[from] IssuerError),
    #[error(transparent)]
    Keys(#[from] KeyringError),
    #[error(transparent)]
    Store(#[from] error::OpenError),
    /// The address of the risk store can't be used.
    #[error(transparent)]
    RiskStore(#[from] AddressError),
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The risk store does not answer. A server starts without it, and uses worst-case values.
    #[error("{0}: see `windows.urls`")]
    Windows(RiskStoreError),
    #[error("can't listen on the socket `{0}`: {1}: remove the file there, or set another `callers.unix_socket.path`")]
    Socket(PathBuf, io::Error),
    #[error(transparent)]
    Entropy(#[from] crate::entropy::NoEntropy),
    /// The audit log did not accept the first records.
    #[error("the audit log can't be written: free some space, or give another folder with `--data`")]
    Record,
    /// The replica's file is missing although the audit log has lines.
    #[error(
        "`{0}` is missing although the audit log has lines, so lost lines could not be detected. Restore the file; if it is lost, move \
         the log's folder to a safe place and begin a new log"
    )]
    Unnoted(PathBuf),
    #[error("the threads that read texts can't be started: {0}")]
    Threads(io::Error),
    #[error(transparent)]
    Telemetry(#[from] SetUpError),
    #[error("the client of the audit log's witness can't be built: {0}: see `audit.witness`")]
    Witness(#[from] reqwest::Error),
    #[error("the file of the audit log's witness, `{0}`, can't be read: {1}: see `audit.witness`")]
    WitnessFile(PathBuf, io::Error),
}

/// Reason why a running server failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("the admin port failed: {0}")]
    Admin(#[from] io::Error),
    #[error(transparent)]
    Grpc(#[from] api::ServeError),
}

/// A server whose ports are bound. [`Bound::run`] serves them.
#[derive(Debug)]
pub struct Bound {
    pub grpc: SocketAddr,
    pub admin: SocketAddr,
    /// Address of `POST /events`, if security events are accepted.
    pub events: Option<SocketAddr>,
    pdp: Arc<Pdp>,
    listeners: Listeners,
    admin_listener: TcpListener,
    events_listener: Option<TcpListener>,
    /// Address of the approval desk, if there is one.
    pub desk: Option<SocketAddr>,
    desk_pages: Option<(TcpListener, desk::Pages)>,
    callers: Arc<Callers>,
    options: api::Options,
    poll: Duration,
    drain: Duration,
}

/// Builds a server: reads the bundle, binds the ports, opens the audit log and the stores, and records the
/// start.
///
/// # Errors
/// Returns an error if any of these steps fails; nothing is left running then.
pub async fn build(config: &Config, seams: Seams) -> Result<Bound, StartError> {
    config.check_callers()?;
    let load = || Bundle::load_with_folder(&config.bundle.path, config.reading());
    let (folder, bundle) = tokio::task::block_in_place(load)?;
    names::check(config, &bundle)?;
    let callers = Arc::new(Callers::new(config.trusted())?);
    let ports = Ports::bind(config).await?;
    let clock = Monotonic::new(seams.clock);
    let log_keys = log::keys(config, seams.entropy.as_ref())?;
    let replica = log::replica(config, seams.entropy.as_ref())?;
    let witness = config.audit.witness.as_deref().map(Witness::new).transpose()?;
    let noted = log::noted(config, &replica, witness.as_ref())?;
    let (audit, recovered) =
        tokio::task::block_in_place(|| Audit::open(config.audit(), log_keys, seams.disk, &noted, clock.now()))?;
    kept_bundles::keep(&config.audit().folder, &folder, config.audit.evidence_days);
    drop(folder);
    let (keys, delegations) = identity(config, seams.entropy.as_ref(), clock.now()).await?;
    let store = state(config, seams.entropy.as_ref(), &audit, &replica).await?;
    log::check(config, &audit, &store).await?;
    let risk_store = RiskStore::open(config.windows(nonce(seams.entropy.as_ref())?)?)?;
    let telemetry = Telemetry::start(&seams.telemetry)?;
    log::export_events(config, &audit, &telemetry);
    let transmitters = Transmitters::new(config.events.transmitters.clone(), config.audience(), config.clock_leeway())?;
    let _faults = transmitters.refresh(clock.now()).await;
    let parts = Parts {
        clock,
        entropy: seams.entropy,
        audit,
        callers: Arc::clone(&callers),
        delegations,
        transmitters,
        keys,
        store,
        risk_store,
        replica,
        witness,
        telemetry,
    };
    let pdp = Arc::new(Pdp::new(options(config), bundle, parts).map_err(StartError::Threads)?);
    start(&pdp, recovered).await?;
    pdp.rebuild().await;
    let desk = ports.desk.as_ref().map(|(_, address)| *address);
    let pages = desk.map(|address| pages(config, &pdp, address)).transpose()?;
    let options = api::Options {
        reflects_to_all: config.development,
        streams_per_connection: config.limits.streams_per_connection,
        request_timeout: config.request_timeout(),
        connection_age: Duration::from_secs(config.limits.connection_age_seconds),
        bearer_in_plaintext: config.development || config.callers.jwt_svid.behind_tls_proxy,
    };
    let poll = Duration::from_secs(config.bundle.poll_seconds);
    let listeners = Listeners { tcp: ports.grpc.0, unix: ports.socket, callers: Arc::clone(&callers) };
    Ok(Bound {
        grpc: ports.grpc.1,
        admin: ports.admin.1,
        events: ports.events.as_ref().map(|(_, address)| *address),
        pdp,
        listeners,
        admin_listener: ports.admin.0,
        events_listener: ports.events.map(|(listener, _)| listener),
        desk,
        desk_pages: ports.desk.map(|(listener, _)| listener).zip(pages),
        callers,
        options,
        poll,
        drain: Duration::from_secs(if config.development { 0 } else { config.limits.drain_seconds }),
    })
}

/// Returns the options of the pipelines.
fn options(config: &Config) -> Options {
    Options {
        environment: config.environment.clone(),
        bundle: config.bundle.path.clone(),
        reading: config.reading(),
        on_error: config.engine.on_error,
        warnings: config.warnings(),
        development: config.development,
        keys: config.keys(),
        event_ttl: Duration::from_secs(config.events.ttl_hours * 3600),
        stops_age: Duration::from_millis(config.store.stops_age_ms),
        concurrent_requests: config.limits.concurrent_requests,
        log_days: config.audit.keep_days,
        evidence_days: config.audit.evidence_days,
        digests_case_ids: config.telemetry.case_ids == CaseIds::Digest,
    }
}

/// Reads the signing keys and the trusted issuers. A development server generates its own keys, and trusts
/// the issuer of its own tokens.
async fn identity(config: &Config, entropy: &dyn Entropy, now: Timestamp) -> Result<(Keys, Delegations), StartError> {
    let folder = config.keys();
    let mut issuers = Issuers::new(config.issuers.clone(), config.audience(), config.clock_leeway())?;
    if config.development {
        for purpose in [Purpose::Approval, Purpose::Binding, Purpose::Development] {
            keyring::generate(&folder, purpose, now)?;
        }
        let mut fresh = [0; 32];
        entropy.fill(&mut fresh)?;
        DigestKey::read_or_create(&folder.join(Keys::VALUES), fresh)
            .map_err(|error| KeyringError::Io(folder.join(Keys::VALUES), error))?;
        issuers.add(Config::development_issuer(), Keyring::read(&folder, Purpose::Development)?.set);
    }
    // A key set that can't be fetched now is fetched again when a token needs it.
    let _faults = issuers.refresh(now).await;
    let delegations = Delegations {
        issuers,
        asserting: config.callers.asserting.clone(),
        certificate_reporters: config.callers.certificate_reporters.clone(),
        development: config.development,
        rejected_logged: Seldom::default(),
    };
    Ok((Keys::read(&folder)?, delegations))
}

/// Opens the state store. The newest revision that this replica has seen, by its own file or its audit log,
/// is passed on, so that a store that lost data is detected.
async fn state(config: &Config, entropy: &dyn Entropy, audit: &Audit, replica: &Replica) -> Result<Store, StartError> {
    let logged =
        audit.last_transition().cloned().map(|(generation, revision, head)| Seen { generation, revision, head });
    let seen = match (replica.seen(), logged) {
        (Some(noted), Some(logged)) if noted.generation == logged.generation && logged.revision > noted.revision => {
            Some(logged)
        }
        (Some(noted), _) => Some(noted),
        (None, logged) => logged,
    };
    let sealing = Some(log::sealing(config)?);
    let options = location::Options { seen, sealing, ..log::store_options(config, entropy, replica)? };
    let waiting = Stopwatch::start();
    let store = loop {
        match Store::open(options.clone()).await {
            // The store may be starting at the same time or failing over, so wait for it.
            Err(error @ error::OpenError::Unreachable(_))
                if waiting.elapsed() < Duration::from_secs(config.store.start_seconds) =>
            {
                tracing::warn!(name: "store.awaited", error = %error);
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            opened => break opened?,
        }
    };
    if !store.durability().is_empty() {
        tracing::info!(name: "store.durability", synchronous_commit = store.durability(), "commits also wait for a standby");
    } else if store.is_shared() {
        tracing::info!(
            name: "store.durability", synchronous_commit = "local",
            "a failover may lose the last commits; the server detects this and voids earlier approvals"
        );
    }
    Ok(store)
}

fn pages(config: &Config, pdp: &Arc<Pdp>, address: SocketAddr) -> Result<desk::Pages, StartError> {
    let pages = desk::pages(Arc::clone(pdp), config.desk(address)?);
    pages.map_err(|error| StartError::Data(config.data.clone(), error))
}

async fn start(pdp: &Pdp, recovered: Option<Recovered>) -> Result<(), StartError> {
    pdp.start(recovered).await.map_err(|_| StartError::Record)
}

impl Bound {
    /// Returns the PDP, for benchmarks and in-process tests.
    pub fn pdp(&self) -> Arc<Pdp> {
        Arc::clone(&self.pdp)
    }

    /// Serves until `shutdown` resolves. The server then reports that it is not ready, closes its ports after
    /// `limits.drain_seconds`, finishes the requests in flight, records its end and exports the last spans.
    /// Each message on `reload` makes it read the bundle at once.
    ///
    /// # Errors
    /// Returns an error if a port fails.
    pub async fn run(
        self,
        shutdown: impl Future<Output = ()> + Send + 'static,
        reload: tokio::sync::mpsc::Receiver<()>,
    ) -> Result<(), RunError> {
        let (pdp, drain) = (Arc::clone(&self.pdp), self.drain);
        let (stop, stopped) = watch::channel(false);
        let until = |mut stopped: watch::Receiver<bool>| async move {
            // A dropped sender means that the server is stopping, too.
            let _ended = stopped.wait_for(|stopped| *stopped).await;
        };
        let draining = tokio::spawn({
            let pdp = Arc::clone(&pdp);
            async move {
                shutdown.await;
                pdp.drain();
                // Keep the ports open until load balancers have noticed that the server is not ready.
                tokio::time::sleep(drain).await;
                stop.send_replace(true);
            }
        });
        let watching = tokio::spawn(beside::watch_bundle(Arc::clone(&pdp), self.poll, reload));
        let ticking = tokio::spawn(beside::tick(Arc::clone(&pdp)));
        let refreshing = tokio::spawn(beside::refresh(Arc::clone(&pdp)));
        let witnessing = tokio::spawn(beside::witness(Arc::clone(&pdp)));
        let tending = tokio::spawn(beside::tend(Arc::clone(&pdp)));
        let admin = tokio::spawn(admin::serve(Arc::clone(&pdp), self.admin_listener, until(stopped.clone())));
        let events = self.events_listener.map(|listener| {
            let serving = events::serve(Arc::clone(&pdp), listener, Arc::clone(&self.callers), until(stopped.clone()));
            tokio::spawn(beside::logged("events", serving))
        });
        let desk = self.desk_pages.map(|(listener, pages)| {
            let serving = desk::serve(pages, listener, self.callers, until(stopped.clone()));
            tokio::spawn(beside::logged("desk", serving))
        });
        let served = api::serve(Arc::clone(&pdp), self.listeners, self.options, until(stopped)).await;
        for task in [watching, ticking, refreshing, witnessing, tending].into_iter().chain(events).chain(desk) {
            task.abort();
        }
        draining.abort();
        // Do not wait for connections to the admin port that stay open.
        let admin = match tokio::time::timeout(Duration::from_secs(1), admin).await {
            Ok(admin) if served.is_ok() => admin,
            Ok(_) | Err(_) => Ok(Ok(())),
        };
        let runtime = tokio::runtime::Handle::current();
        let ended = tokio::task::spawn_blocking(move || pdp.stop(&runtime)).await;
        served?;
        admin.map_err(io::Error::other)??;
        Ok(ended.map_err(io::Error::other)?)
    }
}
