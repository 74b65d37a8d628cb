//! Checks of the approval desk's settings, and the options that they give.

use std::net::SocketAddr;
use std::time::Duration;

use crate::config::desk::{Desk, Webhook};
use crate::config::error::ConfigError;
use crate::config::sections::Config;
use crate::desk::oidc::is_private;
use crate::desk::{self, Provider};

/// File of the link that signs a developer in, in the data folder.
pub const LINK: &str = "desk-link";

impl Config {
    /// Checks the settings of the desk.
    pub(super) fn check_desk(&self) -> Result<(), ConfigError> {
        let refused = |setting, problem: &str| Err(ConfigError::Refused { setting, problem: problem.into() });
        let Desk { listen, url, oidc, session_minutes, trace_url, case_url, .. } = &self.desk;
        let Some(listen) = listen else { return Ok(()) };
        if !listen.ip().is_loopback() && (self.development || self.tls.certificate.is_none()) {
            return refused(
                "desk.listen",
                "must be a loopback address without `tls.certificate`, and in development mode",
            );
        }
        if !self.development && oidc.is_none() {
            return refused("desk.oidc", "is required outside of development mode: humans sign in at a provider");
        }
        if !(5..=60).contains(session_minutes) {
            return refused("desk.session_minutes", "must be 5 to 60");
        }
        if oidc.is_some() && url.is_none() {
            return refused("desk.url", "is required with `desk.oidc`: the provider sends browsers back to it");
        }
        if url.as_ref().is_some_and(|url| !is_private(url) || url.ends_with('/')) {
            return refused("desk.url", "must be `https://…`, or `http://…` of this machine, without `/` at its end");
        }
        if self.desk.webhooks.iter().any(|webhook| webhook.tenant.is_empty() || !is_private(&webhook.url)) {
            return refused(
                "desk.webhooks",
                "must each have a `tenant` and a `url` that is `https://…`, or `http://…` of this machine",
            );
        }
        let is_link = |text: &str| text.is_empty() || text.starts_with("https://") || text.starts_with("http://");
        if !is_link(trace_url) || !is_link(case_url) {
            return refused("desk", "`trace_url` and `case_url` must be `https://…` or `http://…`");
        }
        match oidc {
            Some(oidc) if !is_private(&oidc.issuer) => {
                refused("desk.oidc", "`issuer` must be `https://…`, or `http://…` of this machine")
            }
            Some(oidc) if [&oidc.client_id, &oidc.subject_claim].iter().any(|text| text.is_empty()) => {
                refused("desk.oidc", "`client_id` and `subject_claim` must not be empty")
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Returns the options of the desk, which listens on this address.
    ///
    /// # Errors
    /// If the client's secret can't be read.
    pub fn desk(&self, bound: SocketAddr) -> Result<desk::Options, ConfigError> {
        let provider = self.desk.oidc.as_ref().map(|oidc| {
            let secret = oidc.client_secret_file.as_ref().map(|path| {
                std::fs::read_to_string(path).map_err(|error| ConfigError::Refused {
                    setting: "desk.oidc",
                    problem: format!("`client_secret_file` can't be read: `{}`: {error}", path.display()),
                })
            });
            Ok::<_, ConfigError>(Provider {
                issuer: oidc.issuer.clone(),
                client_id: oidc.client_id.clone(),
                client_secret: secret.transpose()?.map(|secret| secret.trim().to_owned()),
                algorithm: oidc.algorithm,
                tenant: oidc.tenant.clone(),
                subject_claim: oidc.subject_claim.clone(),
                subject_prefix: oidc.subject_prefix.clone(),
                person_claim: oidc.person_claim.clone(),
                scopes: oidc.scopes.clone(),
            })
        });
        let webhooks = self.desk.webhooks.iter().map(webhook).collect::<Result<_, _>>()?;
        Ok(desk::Options {
            webhooks,
            environment: self.environment.clone(),
            url: self.desk.url.clone().unwrap_or_else(|| format!("http://{bound}")),
            provider: provider.transpose()?,
            link: self.data.join(LINK),
            session: Duration::from_secs(self.desk.session_minutes * 60),
            trace_url: self.desk.trace_url.clone(),
            case_url: self.desk.case_url.clone(),
        })
    }
}

/// Shortest secret of a webhook, in bytes.
const SECRET_MIN: usize = 24;

fn webhook(written: &Webhook) -> Result<desk::Webhook, ConfigError> {
    let refused = |problem: String| ConfigError::Refused { setting: "desk.webhooks", problem };
    let path = &written.secret_file;
    let secret = std::fs::read_to_string(path)
        .map_err(|error| refused(format!("`secret_file` can't be read: `{}`: {error}", path.display())))?;
    let secret = secret.trim().as_bytes().to_vec();
    if secret.len() < SECRET_MIN {
        return Err(refused(format!("`secret_file` must have at least {SECRET_MIN} bytes: `{}`", path.display())));
    }
    Ok(desk::Webhook { tenant: written.tenant.clone(), url: written.url.clone(), secret })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_need_a_provider_and_tls_unless_they_are_a_developer_s() {
        let read = |text: &str| {
            let config = Config::read(text, []).expect("read");
            config.check_desk().map_err(|error| error.to_string())
        };
        let oidc = "  oidc: {issuer: 'https://id.example', client_id: desk, algorithm: ES256}\n";
        assert_eq!(read("development: true\ndesk:\n  listen: 127.0.0.1:7072\n"), Ok(()));
        assert_eq!(read(&format!("desk:\n  listen: 127.0.0.1:7072\n  url: https://desk.example\n{oidc}")), Ok(()));
        for (text, problem) in [
            ("desk:\n  listen: 127.0.0.1:7072\n".to_owned(), "`desk.oidc` is required"),
            (
                format!("desk:\n  listen: 0.0.0.0:7072\n  url: https://desk.example\n{oidc}"),
                "`desk.listen` must be a loopback",
            ),
            ("development: true\ndesk:\n  listen: 0.0.0.0:7072\n".to_owned(), "`desk.listen` must be a loopback"),
            (format!("desk:\n  listen: 127.0.0.1:7072\n{oidc}"), "`desk.url` is required"),
            (format!("desk:\n  listen: 127.0.0.1:7072\n  url: http://desk.example\n{oidc}"), "`desk.url` must be"),
            (format!("desk:\n  listen: 127.0.0.1:7072\n  url: https://d.example/\n{oidc}"), "`desk.url` must be"),
            ("development: true\ndesk:\n  listen: 127.0.0.1:7072\n  session_minutes: 600\n".to_owned(), "5 to 60"),
            (
                "development: true\ndesk:\n  listen: 127.0.0.1:7072\n  case_url: 'javascript:x'\n".to_owned(),
                "must be `https",
            ),
        ] {
            let error = read(&text).expect_err(&text);
            assert!(error.contains(problem), "{text}: {error}");
        }
    }
}
