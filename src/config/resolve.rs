//! Settings of callers, tokens, the state store, the risk store and security events.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::approvals::store::location::Location;
use crate::caep::Transmitter;
use crate::caller::{self};
use crate::config::error::ConfigError;
use crate::config::sections::{Config, Events, RiskStore};
use crate::delegation::issuers::Issuer;
use crate::jose::Algorithm;
use crate::risk_store;
use crate::risk_store::address::Server;

/// `iss` of the tokens that `countersign keys dev-token` makes.
pub const DEVELOPMENT_ISSUER: &str = "countersign:dev-token";

impl Config {
    /// Returns the options of the risk store.
    ///
    /// # Errors
    /// Returns an error if the authorities can't be read.
    pub fn windows(&self, boot: String) -> Result<risk_store::Options, ConfigError> {
        let authorities = match &self.windows.authorities {
            Some(path) => Some(std::fs::read(path).map_err(|error| ConfigError::Refused {
                setting: "windows.authorities",
                problem: format!("can't be read: `{}`: {error}", path.display()),
            })?),
            None => None,
        };
        let urls = self.windows.urls.clone();
        let server = match (&self.windows.master, self.windows.cluster, urls.first()) {
            (_, _, None) => None,
            (Some(master), _, Some(_)) => Some(Server::Sentinel(urls, master.clone())),
            (None, true, Some(_)) => Some(Server::Cluster(urls)),
            (None, false, Some(url)) => Some(Server::Single(url.clone())),
        };
        Ok(risk_store::Options {
            server,
            authorities,
            timeout: Duration::from_millis(self.windows.timeout_ms),
            entries_per_tenant: self.windows.entries_per_tenant,
            boot,
        })
    }

    fn check_events(&self) -> Result<(), ConfigError> {
        let refused = |problem: &str| Err(ConfigError::Refused { setting: "events", problem: problem.into() });
        let Events { listen, transmitters, .. } = &self.events;
        if listen.is_some() == transmitters.is_empty() {
            return refused("must have both `listen` and `transmitters`");
        }
        if listen.is_some() && self.tls.certificate.is_none() && !self.development {
            return refused("needs `tls.certificate`: events come over TLS");
        }
        for (index, transmitter) in transmitters.iter().enumerate() {
            let Transmitter { issuer, keys, tenant, tool_service, .. } = transmitter;
            if [issuer, keys, tenant, tool_service].iter().any(|member| member.is_empty()) {
                return refused("transmitters must each name `issuer`, `keys`, `tenant` and `tool_service`");
            }
            if keys.contains("://") && !keys.starts_with("https://") {
                return refused("transmitters' `keys` must be a file or an `https://` URL");
            }
            if transmitters.iter().skip(index + 1).any(|other| other.issuer == *issuer) {
                return refused("must not list two transmitters with the same `issuer`");
            }
        }
        Ok(())
    }

    fn check_windows(&self) -> Result<(), ConfigError> {
        let refused = |problem: &str| Err(ConfigError::Refused { setting: "windows.urls", problem: problem.into() });
        let RiskStore { urls, master, cluster, .. } = &self.windows;
        let cluster = *cluster;
        if urls.is_empty() && (master.is_some() || cluster) || master.is_some() && cluster {
            return refused(
                "must name the servers, with `master` for sentinels or `cluster: true` for a cluster, not both",
            );
        }
        if urls.len() > 1 && master.is_none() && !cluster {
            return refused("must contain one URL, unless `master` (sentinels) or `cluster: true` is set");
        }
        for url in urls {
            let plain = url.strip_prefix("redis://");
            let Some(rest) = plain.or_else(|| url.strip_prefix("rediss://")) else {
                return refused("must be `redis://…` or `rediss://…`");
            };
            if plain.is_some() && !is_here(rest) {
                return refused("must be `rediss://…` for a server on another machine");
            }
        }
        Ok(())
    }

    /// Returns the `aud` that tokens of issuers, JWT-SVIDs and security events must have.
    pub fn audience(&self) -> String {
        self.audience.clone().unwrap_or_else(|| format!("countersign:{}", self.environment))
    }

    /// Returns the folder of the signing keys.
    pub fn keys(&self) -> PathBuf {
        self.keys.clone().unwrap_or_else(|| self.data.join("keys"))
    }

    /// Returns the location of the state store.
    pub fn location(&self) -> Location {
        match &self.store.url {
            Some(url) => Location::Postgres(url.clone()),
            None => Location::Sqlite(self.data.join("state/state.db")),
        }
    }

    /// Returns the options of caller authentication.
    pub fn trusted(&self) -> caller::Options {
        let jwt = self.callers.jwt_svid.behind_tls_proxy;
        caller::Options {
            development: self.development,
            trust_domains: self.callers.trust_domains.clone(),
            identities: self
                .callers
                .identities
                .iter()
                .map(|known| (known.id.clone(), known.tool_service.clone()))
                .collect(),
            users: self
                .callers
                .unix_socket
                .peers
                .iter()
                .map(|peer| (peer.user, peer.tool_service.clone()))
                .collect::<HashMap<_, _>>(),
            jwt_audience: jwt.then(|| self.audience()),
            leeway: self.clock_leeway(),
            server: self.tls.certificate.clone().zip(self.tls.key.clone()),
        }
    }

    /// Returns the issuer of a development server's own tokens, which speaks for every tenant and is only
    /// trusted by development servers.
    pub fn development_issuer() -> Issuer {
        Issuer {
            issuer: DEVELOPMENT_ISSUER.to_owned(),
            tenant: String::new(),
            keys: String::new(),
            algorithm: Algorithm::Es256,
            typ: "at+jwt".to_owned(),
            person_claim: Some("person".to_owned()),
            actor_issuers: vec![],
            subject_prefix: String::new(),
            bound: false,
        }
    }

    /// Checks whether a server may start with these settings.
    ///
    /// # Errors
    /// Returns an error if callers could not be authenticated, tokens would travel in plaintext, or the
    /// settings of issuers, stores or events are faulty.
    pub fn check_callers(&self) -> Result<(), ConfigError> {
        let refused = |setting, problem: String| Err(ConfigError::Refused { setting, problem });
        self.check_issuers()?;
        self.check_store()?;
        self.check_windows()?;
        self.check_events()?;
        self.check_desk()?;
        if self.tls.certificate.is_some() != self.tls.key.is_some() {
            return refused("tls", "must have both `certificate` and `key`".into());
        }
        if self.development {
            let events = self.events.listen.map(|address| ("events.listen", address));
            for (setting, address) in
                [("listen.grpc", self.listen.grpc), ("listen.admin", self.listen.admin)].into_iter().chain(events)
            {
                if !address.ip().is_loopback() {
                    let problem = format!(
                        "must be on the loopback interface in development mode, and is `{address}`: use `127.0.0.1`"
                    );
                    return refused(setting, problem);
                }
            }
            return Ok(());
        }
        if self.environment == "development" {
            let problem = "must be set outside of development mode, e.g. `production`: tokens, keys and records contain it. \
                           To try the server on this machine, start it with `--development`";
            return refused("environment", problem.into());
        }
        let (has_tls, behind_proxy) = (self.tls.certificate.is_some(), self.callers.jwt_svid.behind_tls_proxy);
        let has_socket = self.callers.unix_socket.path.is_some();
        if behind_proxy && !self.callers.trust_domains.iter().any(|domain| domain.jwt_keys.is_some()) {
            return refused("callers.jwt_svid", "needs a trust domain with `jwt_keys`".into());
        }
        if has_tls && self.callers.trust_domains.is_empty() {
            return refused(
                "callers.trust_domains",
                "is required with `tls`: it lists the authorities of the callers' certificates".into(),
            );
        }
        let for_the_socket_alone = has_socket && self.listen.grpc.ip().is_loopback();
        if !(has_tls || behind_proxy || for_the_socket_alone) {
            let problem = "is required: without it tokens would travel in plaintext. Set `callers.jwt_svid.behind_tls_proxy: true` if a \
                           proxy ends TLS, or start with `--development` on this machine";
            return refused("tls.certificate", problem.into());
        }
        if has_socket && self.callers.unix_socket.peers.is_empty() {
            return refused("callers.unix_socket.peers", "is required with `path`".into());
        }
        Ok(())
    }

    fn check_issuers(&self) -> Result<(), ConfigError> {
        let refused = |problem: String| Err(ConfigError::Refused { setting: "issuers", problem });
        for (index, issuer) in self.issuers.iter().enumerate() {
            let others = self.issuers.iter().skip(index + 1);
            if issuer.issuer.is_empty() || issuer.tenant.is_empty() || issuer.keys.is_empty() {
                return refused("must each name `issuer`, `tenant` and `keys`".into());
            }
            if issuer.issuer == DEVELOPMENT_ISSUER {
                return refused(format!("must not name `{DEVELOPMENT_ISSUER}`: it is the development server's own"));
            }
            if issuer.keys.contains("://") && !issuer.keys.starts_with("https://") {
                return refused(format!("`{}`: `keys` must be a file or an `https://` URL", issuer.issuer));
            }
            if others.clone().any(|other| other.issuer == issuer.issuer) {
                return refused(format!("must not list `{}` twice", issuer.issuer));
            }
            if others
                .clone()
                .any(|other| other.tenant == issuer.tenant && other.subject_prefix == issuer.subject_prefix)
            {
                let problem = format!(
                    "of tenant `{}` must differ in `subject_prefix`: two humans could share one id",
                    issuer.tenant
                );
                return refused(problem);
            }
        }
        Ok(())
    }

    fn check_store(&self) -> Result<(), ConfigError> {
        let refused = |problem: &str| Err(ConfigError::Refused { setting: "store.url", problem: problem.into() });
        let Some(url) = &self.store.url else { return Ok(()) };
        let Some(rest) = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://")) else {
            return refused("must be `postgres://…`");
        };
        if !is_here(rest) && !["sslmode=verify-full", "sslmode=verify-ca"].iter().any(|mode| rest.contains(mode)) {
            return refused("must contain `sslmode=verify-full` (with `sslrootcert`) for a server on another machine");
        }
        Ok(())
    }
}

/// Returns whether the server of a URL, given without its scheme, is on this machine.
fn is_here(rest: &str) -> bool {
    let server = rest.split_once(['/', '?']).map_or(rest, |(server, _)| server);
    let host = server.rsplit_once('@').map_or(server, |(_, host)| host);
    ["localhost", "127.0.0.1", "[::1]", ""].iter().any(|name| host == *name || host.starts_with(&format!("{name}:")))
}
