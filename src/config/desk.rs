//! Settings of the approval desk, as the file has them.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::jose::Algorithm;

/// The approval desk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Desk {
    /// Address of the pages; if it is absent, the server has no desk. Off the loopback interface it needs the server's TLS certificate.
    pub listen: Option<SocketAddr>,
    /// URL under which browsers reach the pages, such as `https://desk.example.com`. Required with `oidc`.
    pub url: Option<String>,
    /// OpenID provider at which humans sign in; required outside of development mode.
    pub oidc: Option<Oidc>,
    /// Time after which a human must sign in again, in minutes; 5 to 60.
    pub session_minutes: u64,
    /// Receivers of events about requests for approval.
    pub webhooks: Vec<Webhook>,
    /// URL of a trace, with `{trace_id}`, such as `http://127.0.0.1:16686/trace/{trace_id}`.
    pub trace_url: String,
    /// URL of a case in your system of tickets, with `{case}`.
    pub case_url: String,
}

/// An OpenID provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Oidc {
    /// `iss` of its ID tokens. Below it is `/.well-known/openid-configuration`.
    pub issuer: String,
    pub client_id: String,
    /// File with the client's secret; absent for a public client.
    #[serde(default)]
    pub client_secret_file: Option<PathBuf>,
    /// The only algorithm that its ID tokens may use.
    pub algorithm: Algorithm,
    /// Tenant of all humans who sign in here. If it is absent, each human's tenant in the bundle counts.
    #[serde(default)]
    pub tenant: String,
    /// Claim that names the human in the bundle: `sub`, `email` or `preferred_username`, for example.
    #[serde(default = "sub")]
    pub subject_claim: String,
    /// Prefix that turns that claim into an entity id.
    #[serde(default)]
    pub subject_prefix: String,
    /// Claim that is the same for all subjects of one person. Without it, humans can't review where four eyes are required.
    #[serde(default)]
    pub person_claim: Option<String>,
    /// Scopes besides `openid`, such as `email`.
    #[serde(default)]
    pub scopes: Vec<String>,
}

fn sub() -> String {
    "sub".to_owned()
}

impl Default for Desk {
    fn default() -> Self {
        Self {
            listen: None,
            url: None,
            oidc: None,
            session_minutes: 60,
            webhooks: vec![],
            trace_url: String::new(),
            case_url: String::new(),
        }
    }
}

/// A receiver of events about requests for approval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// Tenant whose requests it is told of.
    pub tenant: String,
    /// `https://` URL to which events are posted.
    pub url: String,
    /// File with the secret that signs them, of at least 24 bytes.
    pub secret_file: PathBuf,
}
