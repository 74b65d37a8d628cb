//! Settings. They come from a YAML file, then `COUNTERSIGN__A__B` variables, then flags; later sources
//! override earlier ones. Unknown keys are refused, and every setting has a safe default.

pub mod identity;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::audit::Durability;
use crate::bundle::{Gates, Reading};
use crate::config::identity::{Callers, Events, Store, Tls, Windows};
use crate::delegation::issuers::Issuer;
use crate::pdp::snapshot::OnError;
use crate::policy::Validation;
use crate::telemetry::export;

const PREFIX: &str = "COUNTERSIGN__";

/// All settings, in the structure of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Deployment environment, e.g. `production`. Tokens, the audit log's name and the trace resource contain
    /// it.
    pub environment: String,
    /// Whether every process on the loopback interface is trusted.
    pub development: bool,
    pub tls: Tls,
    pub callers: Callers,
    /// Issuers whose delegation and human tokens are accepted.
    pub issuers: Vec<Issuer>,
    /// Required `aud` of those tokens; by default `countersign:<environment>`.
    pub audience: Option<String>,
    /// Folder of the signing keys; by default `keys` in the data folder.
    pub keys: Option<PathBuf>,
    /// State store: approvals, receipts, checks and kill switches.
    pub store: Store,
    pub listen: Listen,
    pub bundle: BundleConfig,
    /// Folder of the audit log, the state and the keys.
    pub data: PathBuf,
    pub engine: Engine,
    pub audit: Audit,
    pub limits: Limits,
    /// Risk store: rates, probing and the memory of cases.
    pub windows: Windows,
    /// Security events from other systems.
    pub events: Events,
    /// Content of traces. OpenTelemetry's own variables set their destination.
    pub telemetry: Traces,
    /// Log filter: a level, or directives such as `info,countersign=debug`.
    pub log: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Traces {
    pub case_ids: CaseIds,
}

/// Form in which spans name cases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CaseIds {
    /// The ids themselves.
    #[default]
    Clear,
    /// Digests under the key of the audit log, for deployments in which case ids are personal data.
    Digest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    pub grpc: SocketAddr,
    /// Address of `/livez`, `/readyz`, `/metrics` and `/jwks.json`.
    pub admin: SocketAddr,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BundleConfig {
    pub path: PathBuf,
    /// Interval at which the folder is checked for changes, in seconds; 0 disables the check.
    pub poll_seconds: u64,
}

/// Evaluation mode. Conformance mode behaves like plain Cedar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Engine {
    /// `all`, or `none` for conformance mode.
    pub gates: Gates,
    /// `deny`, or `skip` for conformance mode.
    pub on_error: OnError,
    /// `strict`, or `off` for conformance mode.
    pub validate: Validation,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    /// `strict`: no answer leaves without a durable record. `best_effort`: it may, and every line and answer
    /// says so.
    pub mode: Durability,
    /// Size at which a segment is closed, in MiB; 1 to 4096.
    pub segment_mib: u64,
    /// Age at which a segment is closed, in hours; 1 to 720.
    pub segment_hours: u64,
    /// Path of a file, or `https://` URL, to which the log's head is appended every ten seconds. The witness
    /// reveals that a whole data folder was restored to an earlier state, so users who can write the data
    /// folder must not be able to change it.
    pub witness: Option<String>,
}

/// Load limits. None of them can be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Maximum number of requests in flight; 1 to 100,000.
    pub concurrent_requests: usize,
    /// Maximum number of HTTP/2 streams of one connection; 1 to 10,000.
    pub streams_per_connection: u32,
    /// Time limit of a request, in milliseconds; 10 to 60,000.
    pub request_timeout_ms: u64,
    /// Maximum age of a connection, in seconds; 60 to 86,400.
    pub connection_age_seconds: u64,
    /// Time for which a stopping server still answers while it reports that it is not ready, so that load
    /// balancers notice, in seconds; 0 to 300. In development mode the server stops at once.
    pub drain_seconds: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            environment: "development".into(),
            development: false,
            tls: Tls::default(),
            callers: Callers::default(),
            issuers: vec![],
            audience: None,
            keys: None,
            store: Store::default(),
            listen: Listen::default(),
            bundle: BundleConfig::default(),
            data: "data".into(),
            engine: Engine::default(),
            audit: Audit::default(),
            limits: Limits::default(),
            windows: Windows::default(),
            events: Events::default(),
            telemetry: Traces::default(),
            log: "info".into(),
        }
    }
}

impl Default for Listen {
    fn default() -> Self {
        Self { grpc: SocketAddr::from(([127, 0, 0, 1], 7070)), admin: SocketAddr::from(([127, 0, 0, 1], 7071)) }
    }
}

impl Default for BundleConfig {
    fn default() -> Self {
        Self { path: "policies".into(), poll_seconds: 2 }
    }
}

impl Default for Audit {
    fn default() -> Self {
        Self { mode: Durability::Strict, segment_mib: 256, segment_hours: 24, witness: None }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            concurrent_requests: 1024,
            streams_per_connection: 256,
            request_timeout_ms: 5000,
            connection_age_seconds: 3600,
            drain_seconds: 5,
        }
    }
}

/// Reason why settings are refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("the settings file `{0}` can't be read: {1}")]
    Unreadable(PathBuf, String),
    /// The file's text is faulty. [`Config::load`] adds the file's path.
    #[error("{0}")]
    File(String),
    /// The file or a variable is faulty.
    #[error("{0}")]
    Faulty(String),
    /// A value is out of bounds, or two values contradict each other.
    #[error("`{setting}` {problem}")]
    Refused {
        setting: &'static str,
        /// Description of the problem and its solution.
        problem: String,
    },
}

impl Config {
    /// Reads a file and the environment. Without a file, `countersign.yaml` is read if it exists.
    ///
    /// # Errors
    /// Returns an error if the file can't be read, or a setting is unknown, mistyped or out of bounds.
    pub fn load(file: Option<&Path>, environment: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let default = Path::new("countersign.yaml");
        let path = file.or_else(|| default.exists().then_some(default));
        let text = match path {
            Some(path) => std::fs::read_to_string(path).map_err(|error| ConfigError::Unreadable(path.to_owned(), error.to_string()))?,
            None => String::new(),
        };
        Self::read(&text, environment).map_err(|error| match (error, path) {
            (ConfigError::File(message), Some(path)) => ConfigError::Faulty(format!("the settings file `{}`: {message}", path.display())),
            (error, _) => error,
        })
    }

    /// Reads the text of a file and the environment.
    ///
    /// # Errors
    /// Returns an error if a setting is unknown, mistyped or out of bounds.
    pub fn read(text: &str, environment: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let faulty = |error: &dyn std::fmt::Display| ConfigError::Faulty(error.to_string());
        // Read an empty file as an empty mapping, because serde refuses it.
        let from_file = if text.trim().is_empty() {
            Self::default()
        } else {
            serde_saphyr::from_str(text).map_err(|error| ConfigError::File(error.to_string()))?
        };
        let mut tree = serde_json::to_value(&from_file).map_err(|error| faulty(&error))?;
        for (name, value) in environment.into_iter().filter(|(name, _)| name.starts_with(PREFIX)) {
            let path: Vec<String> = name.trim_start_matches(PREFIX).split("__").map(str::to_lowercase).collect();
            put(&mut tree, &path, scalar(&value)).ok_or_else(|| ConfigError::Faulty(format!("`{name}` names no setting")))?;
            // Check after each variable, so that an error names the variable that caused it.
            serde_json::from_value::<Self>(tree.clone()).map_err(|error| ConfigError::Faulty(format!("`{name}`: {error}")))?;
        }
        let config: Self = serde_json::from_value(tree).map_err(|error| faulty(&error))?;
        config.check().map(|()| config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let bounds = [
            ("audit.segment_mib", self.audit.segment_mib, 1, 4096),
            ("audit.segment_hours", self.audit.segment_hours, 1, 720),
            ("bundle.poll_seconds", self.bundle.poll_seconds, 0, 3600),
            ("limits.concurrent_requests", u64::try_from(self.limits.concurrent_requests).unwrap_or(u64::MAX), 1, 100_000),
            ("limits.streams_per_connection", u64::from(self.limits.streams_per_connection), 1, 10_000),
            ("limits.request_timeout_ms", self.limits.request_timeout_ms, 10, 60_000),
            ("store.timeout_ms", self.store.timeout_ms, 100, 10_000),
            ("store.start_seconds", self.store.start_seconds, 0, 600),
            ("store.stops_age_ms", self.store.stops_age_ms, 1000, 60_000),
            ("limits.drain_seconds", self.limits.drain_seconds, 0, 300),
            ("store.connections", u64::from(self.store.connections), 1, 100),
            ("events.ttl_hours", self.events.ttl_hours, 1, 720),
            ("windows.timeout_ms", self.windows.timeout_ms, 5, 5000),
            ("windows.entries_per_tenant", u64::try_from(self.windows.entries_per_tenant).unwrap_or(u64::MAX), 1000, 100_000_000),
            ("limits.connection_age_seconds", self.limits.connection_age_seconds, 60, 86_400),
        ];
        for (setting, value, lowest, highest) in bounds {
            if !(lowest..=highest).contains(&value) {
                return Err(ConfigError::Refused { setting, problem: format!("must be {lowest} to {highest}") });
            }
        }
        let named = (1..=64).contains(&self.environment.len())
            && self.environment.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        if !named {
            return Err(ConfigError::Refused { setting: "environment", problem: "must be 1 to 64 of `a-z`, `0-9` and `-`".into() });
        }
        let conforming = self.engine.on_error == OnError::Skip || self.engine.validate == Validation::Off;
        if conforming && self.engine.gates == Gates::All {
            let problem = "must be `none` with `on_error: skip` or `validate: off`: gates hold only with validated policies".into();
            return Err(ConfigError::Refused { setting: "engine.gates", problem });
        }
        Ok(())
    }

    /// Returns the options for reading bundles.
    pub fn reading(&self) -> Reading {
        Reading { gates: self.engine.gates, validation: self.engine.validate }
    }

    /// Returns the names of the protections that the deployment runs without, sorted.
    pub fn warnings(&self) -> Vec<&'static str> {
        let all = [
            ("audit_best_effort", self.audit.mode == Durability::BestEffort),
            ("conformance_errors_skipped", self.engine.on_error == OnError::Skip),
            ("conformance_gates_off", self.engine.gates == Gates::None),
            ("conformance_unvalidated", self.engine.validate == Validation::Off),
            ("development_mode", self.development),
            ("plaintext_behind_proxy", self.callers.jwt_svid.behind_tls_proxy && self.tls.certificate.is_none()),
        ];
        all.into_iter().filter(|(_, applies)| *applies).map(|(name, _)| name).collect()
    }

    pub fn audit(&self) -> crate::audit::Options {
        crate::audit::Options {
            folder: self.data.join("audit"),
            log: format!("countersign/{}", self.environment),
            durability: self.audit.mode,
            segment_bytes: self.audit.segment_mib * 1024 * 1024,
            segment_seconds: self.audit.segment_hours * 3600,
        }
    }

    pub fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.limits.request_timeout_ms)
    }
}

/// Reads the destination of telemetry from OpenTelemetry's own variables.
///
/// # Errors
/// Returns an error if the variables request a protocol other than gRPC.
pub fn telemetry(environment: &str, variables: &BTreeMap<String, String>) -> Result<export::Options, ConfigError> {
    let set = |name: &str| variables.get(name).map(String::as_str).filter(|value| !value.is_empty());
    let off = set("OTEL_SDK_DISABLED") == Some("true") || set("OTEL_TRACES_EXPORTER") == Some("none");
    let endpoint = set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").or_else(|| set("OTEL_EXPORTER_OTLP_ENDPOINT")).filter(|_| !off);
    let protocol = set("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL").or_else(|| set("OTEL_EXPORTER_OTLP_PROTOCOL")).unwrap_or("grpc");
    if endpoint.is_some() && protocol != "grpc" {
        let problem = "must be `grpc`: OTLP over HTTP is not supported".into();
        return Err(ConfigError::Refused { setting: "OTEL_EXPORTER_OTLP_PROTOCOL", problem });
    }
    let service_name = set("OTEL_SERVICE_NAME").unwrap_or("countersign").to_owned();
    Ok(export::Options { endpoint: endpoint.map(str::to_owned), service_name, environment: environment.to_owned() })
}

fn put(tree: &mut Value, path: &[String], value: Value) -> Option<()> {
    let (first, rest) = path.split_first()?;
    let members: &mut Map<String, Value> = tree.as_object_mut()?;
    let member = members.get_mut(first)?;
    if rest.is_empty() {
        if member.is_object() {
            return None;
        }
        *member = value;
        return Some(());
    }
    put(member, rest, value)
}

fn scalar(text: &str) -> Value {
    match (text.parse::<bool>(), text.parse::<u64>()) {
        (Ok(value), _) => Value::Bool(value),
        (_, Ok(value)) => value.into(),
        _ => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, variables: &[(&str, &str)]) -> Result<Config, String> {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::read(text, variables).map_err(|error| error.to_string())
    }

    #[test]
    fn variables_win_over_the_file_and_the_file_over_defaults() {
        let config = read("audit: {segment_mib: 8, segment_hours: 2}", &[("COUNTERSIGN__AUDIT__SEGMENT_MIB", "9")]).expect("valid");
        assert_eq!((config.audit.segment_mib, config.audit.segment_hours, config.bundle.poll_seconds), (9, 2, 2));
    }

    #[test]
    fn what_is_unknown_or_unsafe_is_refused_by_name() {
        let refused = |text: &str, variables: &[(&str, &str)], names: &str| {
            let error = read(text, variables).expect_err("must be refused");
            assert!(error.contains(names), "{error}");
        };
        refused("adit: {}", &[], "adit");
        refused("audit: {mode: never}", &[], "never");
        refused("", &[("COUNTERSIGN__AUDIT__MOOD", "strict")], "COUNTERSIGN__AUDIT__MOOD");
        refused("", &[("COUNTERSIGN__AUDIT", "strict")], "COUNTERSIGN__AUDIT");
        refused("", &[("COUNTERSIGN__LISTEN__GRPC", "here")], "COUNTERSIGN__LISTEN__GRPC");
        refused("limits: {concurrent_requests: 0}", &[], "limits.concurrent_requests");
        refused("engine: {on_error: skip}", &[], "engine.gates");
        refused("engine: {validate: off}", &[], "");
        refused("environment: Prod!", &[], "environment");
    }

    #[test]
    fn development_mode_starts_on_loopback_alone_and_nothing_else_starts_without_proof() {
        let development = read("development: true", &[]).expect("valid");
        assert_eq!(development.check_callers(), Ok(()));
        let refused = |text: &str, names: &str| {
            let error = read(text, &[]).expect("readable").check_callers().expect_err("must be refused").to_string();
            assert!(error.contains(names), "{text}: {error}");
        };
        let domain = "trust_domains: [{name: a.example, bundle: ca.pem, tenants: [acme]}]";
        refused("", "environment");
        refused("environment: production", "tls.certificate");
        refused("{environment: production, tls: {certificate: c.pem}}", "tls");
        refused("{environment: production, tls: {certificate: c.pem, key: k.pem}}", "callers.trust_domains");
        refused("{environment: production, callers: {jwt_svid: {behind_tls_proxy: true}}}", "callers.jwt_svid");
        refused(&format!("{{environment: production, callers: {{{domain}, jwt_svid: {{behind_tls_proxy: true}}}}}}"), "jwt_keys");
        let socket = "unix_socket: {path: s, peers: [{user: 1, tool_service: crm-tools}]}";
        refused(&format!("{{environment: production, listen: {{grpc: '192.0.2.1:1'}}, callers: {{{socket}}}}}"), "tls.certificate");
        refused("{environment: production, callers: {unix_socket: {path: s}}}", "callers.unix_socket.peers");
        refused("{development: true, issuers: [{issuer: i, tenant: t, keys: 'http://i/k', algorithm: ES256}]}", "https://");
        refused("{development: true, store: {url: 'postgres://db.example/x'}}", "sslmode");
        refused("{development: true, store: {url: 'mysql://db.example/x'}}", "postgres://");
        let two = "{issuer: i, tenant: t, keys: k, algorithm: ES256}, {issuer: j, tenant: t, keys: k, algorithm: RS256}";
        refused(&format!("{{development: true, issuers: [{two}]}}"), "subject_prefix");
        let tls = format!("{{environment: production, tls: {{certificate: c.pem, key: k.pem}}, callers: {{{domain}}}}}");
        assert_eq!(read(&tls, &[]).expect("valid").check_callers(), Ok(()));
        assert_eq!(read(&format!("{{environment: production, callers: {{{socket}}}}}"), &[]).expect("valid").check_callers(), Ok(()));
        for address in ["0.0.0.0:7070", "192.0.2.1:7070", "[::]:7070"] {
            for setting in ["COUNTERSIGN__LISTEN__GRPC", "COUNTERSIGN__LISTEN__ADMIN"] {
                assert!(read("development: true", &[(setting, address)]).expect("valid").check_callers().is_err(), "{setting} {address}");
            }
        }
    }
}
