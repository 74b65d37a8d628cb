//! The settings, section by section, as the file has them.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::audit::Durability;
use crate::bundle::Gates;
use crate::caep::Transmitter;
use crate::caller::TrustDomain;
use crate::config::desk::Desk;
use crate::delegation::Asserting;
use crate::delegation::issuers::Issuer;
use crate::pdp::snapshot::OnError;
use crate::policy::Validation;
use crate::policy::engine::Verify;
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
    pub windows: RiskStore,
    /// Security events from other systems.
    pub events: Events,
    /// The approval desk: pages for humans.
    pub desk: Desk,
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

/// Mode of evaluation; conformance mode behaves like plain Cedar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Engine {
    /// `all`, or `none` for conformance mode.
    pub gates: Gates,
    /// `deny`, or `skip` for conformance mode.
    pub on_error: OnError,
    /// `strict`, or `off` for conformance mode.
    pub validate: Validation,
    /// `sample`: one in 1,024 calls is also evaluated by Cedar's authorizer, whose result is used. `off`: none.
    pub verify: Verify,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    /// `strict`: no answer leaves without a durable record. `best_effort`: answers may leave earlier, and
    /// every line and answer carries a mark of this mode.
    pub mode: Durability,
    /// Size at which a segment is closed, in MiB; 1 to 4096.
    pub segment_mib: u64,
    /// Age at which a segment is closed, in hours; 1 to 720.
    pub segment_hours: u64,
    /// Time for which lines are kept, in days: 31 to 3650. Older segments are deleted. 0 keeps all.
    pub keep_days: u32,
    /// Time for which the evidence of decisions is kept for `countersign replay`, in days; 0 keeps none, at most
    /// 3650.
    pub evidence_days: u32,
    /// Path of a file, or `https://` URL, to which the log's head is appended every ten seconds. The witness
    /// reveals that a whole data folder was restored to an earlier state, so users who can write the data
    /// folder must not be able to change it.
    pub witness: Option<String>,
}

/// Load limits, none of which can be switched off.
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
    /// Maximum difference between the server's clock and those of token issuers, in seconds; 0 to 120.
    pub clock_leeway_seconds: u64,
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
            windows: RiskStore::default(),
            events: Events::default(),
            desk: Desk::default(),
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
        Self {
            mode: Durability::Strict,
            segment_mib: 256,
            segment_hours: 24,
            keep_days: 0,
            evidence_days: 30,
            witness: None,
        }
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
            clock_leeway_seconds: 30,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// PEM file of the server's certificate chain, which is reloaded while the server runs.
    pub certificate: Option<PathBuf>,
    /// PEM file of its private key, which is reloaded while the server runs.
    pub key: Option<PathBuf>,
}

/// Callers that the server accepts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Callers {
    /// Trust domains whose X.509-SVIDs are accepted.
    pub trust_domains: Vec<TrustDomain>,
    /// Tool services by SPIFFE id.
    pub identities: Vec<Identity>,
    /// Unix socket for sidecars, whose peers the operating system identifies.
    pub unix_socket: UnixSocket,
    /// JWT-SVIDs as bearer tokens, for servers behind a proxy that ends TLS.
    pub jwt_svid: JwtSvid,
    /// Callers that may assert chains without a delegation token.
    pub asserting: Vec<Asserting>,
    /// Tool services that may report the certificate that an agent showed them. For all others, a token's
    /// `cnf` must match the caller's own certificate.
    pub certificate_reporters: Vec<String>,
}

/// A SPIFFE id and the tool service that it identifies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// SPIFFE id, e.g. `spiffe://acme.example/tool/billing`.
    pub id: String,
    /// Entity id of the tool service.
    pub tool_service: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UnixSocket {
    /// Path of the socket; if absent, there is no socket.
    pub path: Option<PathBuf>,
    /// Tool services by operating system user.
    pub peers: Vec<UnixPeer>,
}

/// An operating system user and the tool service that it identifies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnixPeer {
    /// Numeric user id.
    pub user: u32,
    /// Entity id of the tool service.
    pub tool_service: String,
}

/// Settings of JWT-SVIDs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JwtSvid {
    /// Whether a proxy ends TLS in front of this server, which then listens in plaintext. The operator must
    /// set this explicitly, because anyone who reaches the port without the proxy can read tokens.
    pub behind_tls_proxy: bool,
}

/// Settings of the state store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// `postgres://…` for replicas; if absent, the store is an SQLite file in the data folder.
    pub url: Option<String>,
    /// Time limit of an operation, in milliseconds; 100 to 10,000.
    pub timeout_ms: u64,
    /// Size of the connection pool; 1 to 100.
    pub connections: u32,
    /// Time for which a start waits for the store, in seconds; 0 to 600.
    pub start_seconds: u64,
    /// Maximum age of the copy of the kill switches when a call is evaluated, in milliseconds; 1000 to
    /// 60,000. The limit applies to a store that replicas share.
    pub stops_age_ms: u64,
}

/// Settings of security events from other systems (RFC 8935).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Events {
    /// Address of `POST /events`; if absent, no events are accepted. The port uses the server's own TLS
    /// certificate.
    pub listen: Option<SocketAddr>,
    /// Transmitters whose events are accepted.
    pub transmitters: Vec<Transmitter>,
    /// Time for which an event stays in force, in hours; 1 to 720.
    pub ttl_hours: u64,
}

/// Settings of the risk store: rates, probing and the memory of cases.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RiskStore {
    /// `redis://…` or `rediss://…` URLs for replicas: of one server, of sentinels or of a cluster's nodes
    /// (Redis 7 or Valkey). If empty, the risk store is in process and rebuilt from the audit log at each
    /// start.
    pub urls: Vec<String>,
    /// Name of the primary at the sentinels; if absent, the URLs are not of sentinels.
    pub master: Option<String>,
    /// Whether the URLs are of a cluster's nodes.
    pub cluster: bool,
    /// PEM file of the server's certificate authorities; by default the system's.
    pub authorities: Option<PathBuf>,
    /// Time limit of an operation, in milliseconds; 5 to 5,000.
    pub timeout_ms: u64,
    /// Maximum number of entries of one tenant in process; 1,000 to 100,000,000. If the table is full, risk
    /// counts as the worst.
    pub entries_per_tenant: usize,
}

impl Default for Store {
    fn default() -> Self {
        Self { url: None, timeout_ms: 2000, connections: 8, start_seconds: 30, stops_age_ms: 2000 }
    }
}

impl Default for Events {
    fn default() -> Self {
        Self { listen: None, transmitters: vec![], ttl_hours: 24 }
    }
}

impl Default for RiskStore {
    fn default() -> Self {
        Self {
            urls: vec![],
            master: None,
            cluster: false,
            authorities: None,
            timeout_ms: 250,
            entries_per_tenant: 2_000_000,
        }
    }
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
