//! Arguments with which a command reaches a server.

use std::path::{Path, PathBuf};

use super::{Environment, Exit, Failure};
use crate::api::client::Target;

/// Address of the server, and the certificates of both sides.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Connection {
    /// URL of the server; `https://` selects TLS [default: the variable COUNTERSIGN_SERVER, or `listen.grpc` of the settings]
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// PEM file of the authorities that vouch for the server [default: the public ones]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// PEM file of this tool service's certificate chain (X.509-SVID)
    #[arg(long, value_name = "FILE", requires = "private_key")]
    certificate: Option<PathBuf>,
    /// PEM file of its private key
    #[arg(long, value_name = "FILE", requires = "certificate")]
    private_key: Option<PathBuf>,
}

/// Argument that names a human's own token.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct HumanToken {
    /// File with your token; `-` reads standard input [default: the variable COUNTERSIGN_TOKEN]
    #[arg(long, value_name = "FILE")]
    token: Option<PathBuf>,
}

impl Connection {
    pub(super) fn target(&self, environment: &Environment) -> Result<Target, Failure> {
        let identity = match (&self.certificate, &self.private_key) {
            (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
            (Some(_) | None, _) => None,
        };
        let authorities = self.ca.as_ref().map(|path| read(path)).transpose()?.unwrap_or_default();
        Ok(Target { server: self.server(environment)?, authorities, identity, token: None })
    }

    /// Returns the URL of the argument or the variable, otherwise that of the server that the settings describe.
    fn server(&self, environment: &Environment) -> Result<String, Failure> {
        let variable = environment.variables.get("COUNTERSIGN_SERVER").filter(|url| !url.is_empty());
        if let Some(url) = self.server.as_ref().or(variable) {
            return Ok(url.clone());
        }
        let config = environment.config()?;
        let mut address = config.listen.grpc;
        if address.ip().is_unspecified() {
            address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        }
        let scheme = if config.tls.certificate.is_some() { "https" } else { "http" };
        Ok(format!("{scheme}://{address}"))
    }
}

impl HumanToken {
    /// Reads the token like [`Self::read`] if one is named; a tool service needs none.
    pub(super) fn read_if_named(&self, environment: &Environment) -> Result<Option<String>, Failure> {
        let is_named = self.token.is_some()
            || environment.variables.get("COUNTERSIGN_TOKEN").is_some_and(|token| !token.is_empty());
        is_named.then(|| self.read(environment)).transpose()
    }

    /// Reads the token from the file, from standard input or from `COUNTERSIGN_TOKEN`.
    pub(super) fn read(&self, environment: &Environment) -> Result<String, Failure> {
        match &self.token {
            Some(path) => read_token(path),
            None => environment.variables.get("COUNTERSIGN_TOKEN").filter(|token| !token.is_empty()).cloned().ok_or_else(|| {
                Failure::new(
                    Exit::Usage,
                    "your token is required: pass it with `--token FILE` or in COUNTERSIGN_TOKEN. On a development server, \
                     `countersign keys dev-token --principal YOU` makes one",
                )
            }),
        }
    }
}

/// Reads a token from a file or standard input. Other users could read a token on the command line.
pub(super) fn read_token(path: &Path) -> Result<String, Failure> {
    let text = match path.to_str() {
        Some("-") => std::io::read_to_string(std::io::stdin()).map_err(|error| unreadable(path, &error))?,
        _ => read_text(path)?,
    };
    Ok(text.trim().to_owned())
}

/// Reads a UTF-8 text file.
pub(super) fn read_text(path: &Path) -> Result<String, Failure> {
    String::from_utf8(read(path)?).map_err(|_| Failure::new(Exit::Usage, format!("`{}` is not text", path.display())))
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Exit::Usage, format!("`{}` can't be read: {error}", path.display()))
}
