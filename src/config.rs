//! Settings of the server, from a YAML file, then `COUNTERSIGN__A__B` variables, then flags; later sources
//! override earlier ones. Unknown keys are refused, and every setting has a safe default.

mod desk;
mod desk_options;
mod error;
pub mod resolve;
mod sections;
mod telemetry;

use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::audit::Durability;
use crate::bundle::manifest::yaml_line;
use crate::bundle::{Gates, Reading};
pub use crate::config::desk::{Desk, Oidc};
pub use crate::config::desk_options::LINK;
pub use crate::config::error::ConfigError;
pub use crate::config::sections::{
    Audit, BundleConfig, Callers, CaseIds, Config, Engine, Events, Identity, JwtSvid, Limits, Listen, RiskStore, Store,
    Tls, Traces, UnixPeer, UnixSocket,
};
pub use crate::config::telemetry::telemetry;
use crate::pdp::snapshot::OnError;
use crate::policy::Validation;

const PREFIX: &str = "COUNTERSIGN__";

impl Config {
    /// Reads a file and the environment. Without a file, `countersign.yaml` is read if it exists.
    ///
    /// # Errors
    /// Returns an error if the file can't be read, or a setting is unknown, mistyped or out of bounds.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let default = Path::new("countersign.yaml");
        let path = file.or_else(|| default.exists().then_some(default));
        let text = match path {
            Some(path) => std::fs::read_to_string(path)
                .map_err(|error| ConfigError::Unreadable(path.to_owned(), error.to_string()))?,
            None => String::new(),
        };
        Self::read(&text, environment).map_err(|error| match (error, path) {
            (ConfigError::File(message), Some(path)) => {
                ConfigError::Faulty(format!("the settings file `{}`: {message}", path.display()))
            }
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
            serde_saphyr::from_str(text).map_err(|error| ConfigError::File(yaml_line(&error)))?
        };
        let mut tree = serde_json::to_value(&from_file).map_err(|error| faulty(&error))?;
        for (name, value) in environment.into_iter().filter(|(name, _)| name.starts_with(PREFIX)) {
            let path: Vec<String> = name.trim_start_matches(PREFIX).split("__").map(str::to_lowercase).collect();
            put(&mut tree, &path, scalar(&value))
                .ok_or_else(|| ConfigError::Faulty(format!("`{name}` does not name a setting")))?;
            // Check after each variable, so that an error names the variable that caused it.
            serde_json::from_value::<Self>(tree.clone())
                .map_err(|error| ConfigError::Faulty(format!("`{name}`: {error}")))?;
        }
        let config: Self = serde_json::from_value(tree).map_err(|error| faulty(&error))?;
        config.check().map(|()| config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let bounds = [
            ("audit.segment_mib", self.audit.segment_mib, 1, 4096),
            ("audit.segment_hours", self.audit.segment_hours, 1, 720),
            ("audit.evidence_days", self.audit.evidence_days.into(), 0, 3650),
            ("bundle.poll_seconds", self.bundle.poll_seconds, 0, 3600),
            (
                "limits.concurrent_requests",
                u64::try_from(self.limits.concurrent_requests).unwrap_or(u64::MAX),
                1,
                100_000,
            ),
            ("limits.streams_per_connection", u64::from(self.limits.streams_per_connection), 1, 10_000),
            ("limits.request_timeout_ms", self.limits.request_timeout_ms, 10, 60_000),
            ("store.timeout_ms", self.store.timeout_ms, 100, 10_000),
            ("store.start_seconds", self.store.start_seconds, 0, 600),
            ("store.stops_age_ms", self.store.stops_age_ms, 1000, 60_000),
            ("limits.drain_seconds", self.limits.drain_seconds, 0, 300),
            ("store.connections", u64::from(self.store.connections), 1, 100),
            ("events.ttl_hours", self.events.ttl_hours, 1, 720),
            ("windows.timeout_ms", self.windows.timeout_ms, 5, 5000),
            (
                "windows.entries_per_tenant",
                u64::try_from(self.windows.entries_per_tenant).unwrap_or(u64::MAX),
                1000,
                100_000_000,
            ),
            ("limits.clock_leeway_seconds", self.limits.clock_leeway_seconds, 0, 120),
            ("limits.connection_age_seconds", self.limits.connection_age_seconds, 60, 86_400),
        ];
        // What happened within 30 days is risk of today, and is read from the log.
        if (1..=30).contains(&self.audit.keep_days) || self.audit.keep_days > 3650 {
            return Err(ConfigError::Refused {
                setting: "audit.keep_days",
                problem: "must be 0, or 31 to 3650".into(),
            });
        }
        for (setting, value, lowest, highest) in bounds {
            if !(lowest..=highest).contains(&value) {
                return Err(ConfigError::Refused { setting, problem: format!("must be {lowest} to {highest}") });
            }
        }
        let named = (1..=64).contains(&self.environment.len())
            && self.environment.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        if !named {
            return Err(ConfigError::Refused {
                setting: "environment",
                problem: "must be 1 to 64 of `a-z`, `0-9` and `-`".into(),
            });
        }
        let conforming = self.engine.on_error == OnError::Skip || self.engine.validate == Validation::Off;
        if conforming && self.engine.gates == Gates::All {
            let problem =
                "must be `none` with `on_error: skip` or `validate: off`: the gates rely on validated policies".into();
            return Err(ConfigError::Refused { setting: "engine.gates", problem });
        }
        Ok(())
    }

    /// Returns the options for reading bundles.
    pub fn reading(&self) -> Reading {
        Reading { gates: self.engine.gates, validation: self.engine.validate, verify: self.engine.verify }
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

    /// Returns how far the clocks of issuers may differ from the server's.
    pub fn clock_leeway(&self) -> Duration {
        Duration::from_secs(self.limits.clock_leeway_seconds)
    }

    pub fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.limits.request_timeout_ms)
    }
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
        let config = read("audit: {segment_mib: 8, segment_hours: 2}", &[("COUNTERSIGN__AUDIT__SEGMENT_MIB", "9")])
            .expect("valid");
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
        refused(
            &format!("{{environment: production, callers: {{{domain}, jwt_svid: {{behind_tls_proxy: true}}}}}}"),
            "jwt_keys",
        );
        let socket = "unix_socket: {path: s, peers: [{user: 1, tool_service: crm-tools}]}";
        refused(
            &format!("{{environment: production, listen: {{grpc: '192.0.2.1:1'}}, callers: {{{socket}}}}}"),
            "tls.certificate",
        );
        refused("{environment: production, callers: {unix_socket: {path: s}}}", "callers.unix_socket.peers");
        refused(
            "{development: true, issuers: [{issuer: i, tenant: t, keys: 'http://i/k', algorithm: ES256}]}",
            "https://",
        );
        refused("{development: true, store: {url: 'postgres://db.example/x'}}", "sslmode");
        refused("{development: true, store: {url: 'mysql://db.example/x'}}", "postgres://");
        let two =
            "{issuer: i, tenant: t, keys: k, algorithm: ES256}, {issuer: j, tenant: t, keys: k, algorithm: RS256}";
        refused(&format!("{{development: true, issuers: [{two}]}}"), "subject_prefix");
        let tls =
            format!("{{environment: production, tls: {{certificate: c.pem, key: k.pem}}, callers: {{{domain}}}}}");
        assert_eq!(read(&tls, &[]).expect("valid").check_callers(), Ok(()));
        assert_eq!(
            read(&format!("{{environment: production, callers: {{{socket}}}}}"), &[]).expect("valid").check_callers(),
            Ok(())
        );
        for address in ["0.0.0.0:7070", "192.0.2.1:7070", "[::]:7070"] {
            for setting in ["COUNTERSIGN__LISTEN__GRPC", "COUNTERSIGN__LISTEN__ADMIN"] {
                assert!(
                    read("development: true", &[(setting, address)]).expect("valid").check_callers().is_err(),
                    "{setting} {address}"
                );
            }
        }
    }
}
