//! `countersign config check`: the steps of a start, without opening a port and without changing anything.

use std::path::Path;

use crate::app::{StartError, names};
use crate::approvals::store::Store;
use crate::approvals::store::error::OpenError;
use crate::approvals::store::location::Location;
use crate::audit::disk::check_writable;
use crate::audit::witness::Witness;
use crate::bundle::Bundle;
use crate::caep::Transmitters;
use crate::caller::Callers;
use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::delegation::issuers::{IssuerError, Issuers};
use crate::pdp::keys::Keys;
use crate::risk_store::RiskStore;
use crate::telemetry::export::{self, Telemetry};

/// Result of one step.
#[derive(Debug)]
pub struct Check {
    /// Section of the settings, or part of the server.
    pub name: &'static str,
    /// Description of the part as found, or the error that would stop a start or keep the part from working.
    pub found: Result<String, StartError>,
}

/// Runs every step, also after a failed one.
pub async fn check(config: &Config, telemetry: &export::Options) -> Vec<Check> {
    let named = |name, found| Check { name, found };
    vec![
        named("settings", config.check_callers().map(|()| config.warnings().join(", ")).map_err(StartError::from)),
        named("bundle", bundle(config)),
        named("callers", callers(config)),
        named("issuers", issuers(config).await),
        named("keys", keys(config)),
        named("data", data(&config.data)),
        named("store", store(config).await),
        named("windows", windows(config).await),
        named("audit.witness", witness(config)),
        named("telemetry", spans(telemetry)),
    ]
}

fn bundle(config: &Config) -> Result<String, StartError> {
    let bundle = tokio::task::block_in_place(|| Bundle::load(&config.bundle.path, config.reading()))?;
    names::check(config, &bundle)?;
    Ok(format!("{} {} {}", bundle.manifest.name, bundle.version.version, bundle.version.digest))
}

fn callers(config: &Config) -> Result<String, StartError> {
    Callers::new(config.trusted())?;
    let count = config.callers.identities.len() + config.callers.unix_socket.peers.len();
    Ok(format!("{count} tool services"))
}

/// Reads or fetches the keys of each issuer. A server starts without those of a URL, and would refuse its tokens.
async fn issuers(config: &Config) -> Result<String, StartError> {
    let issuers = Issuers::new(config.issuers.clone(), config.audience(), config.clock_leeway())?;
    let transmitters = Transmitters::new(config.events.transmitters.clone(), config.audience(), config.clock_leeway())?;
    let now = SystemClock.now();
    issuers.refresh(now).await;
    transmitters.refresh(now).await;
    if let Some(missing) = issuers.without_keys().into_iter().chain(transmitters.without_keys()).next() {
        return Err(IssuerError::NotFetched(missing).into());
    }
    Ok(format!("{} issuers, {} transmitters", config.issuers.len(), config.events.transmitters.len()))
}

fn keys(config: &Config) -> Result<String, StartError> {
    let folder = config.keys();
    if config.development && !folder.exists() {
        return Ok("are made at the first start".to_owned());
    }
    Keys::read(&folder)?;
    Ok(folder.display().to_string())
}

fn data(folder: &Path) -> Result<String, StartError> {
    check_writable(folder).map_err(|error| StartError::Data(folder.to_owned(), error))?;
    Ok(folder.display().to_string())
}

async fn store(config: &Config) -> Result<String, StartError> {
    let location = config.location();
    Store::reach(&location, std::time::Duration::from_millis(config.store.timeout_ms))
        .await
        .map_err(OpenError::from)?;
    Ok(match location {
        Location::Postgres(_) => format!("postgresql {}", location.place()),
        Location::Sqlite(_) => format!("sqlite {}", location.place()),
    })
}

async fn windows(config: &Config) -> Result<String, StartError> {
    let store = RiskStore::open(config.windows(String::new())?)?;
    store.reach().await.map_err(StartError::Windows)?;
    Ok(store.engine().to_owned())
}

fn witness(config: &Config) -> Result<String, StartError> {
    let Some(place) = config.audit.witness.as_deref() else { return Ok("none".to_owned()) };
    let witness = Witness::new(place)?;
    // The name of this replica is not known before the first start; the file must be readable anyway.
    witness.last("").map_err(|error| StartError::WitnessFile(place.into(), error))?;
    Ok(place.to_owned())
}

fn spans(telemetry: &export::Options) -> Result<String, StartError> {
    Telemetry::start(telemetry)?;
    Ok(telemetry.endpoint.clone().unwrap_or_else(|| "spans are not exported".to_owned()))
}
