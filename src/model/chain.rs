//! Callers, and the chains of principals on whose behalf they call.

use crate::model::time::Timestamp;

/// Link of a delegation chain. Each link is evaluated as principal of the same action and resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Link {
    Agent,
    /// The only principal in conformance mode.
    Plain,
    /// The supervising human.
    Supervisor,
    ToolService,
}

impl Link {
    /// Links of every call where gates are on, in the order of evaluation.
    pub const CHAIN: [Self; 3] = [Self::ToolService, Self::Agent, Self::Supervisor];

    /// Name of the link in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Plain => "plain",
            Self::Supervisor => "supervisor",
            Self::ToolService => "tool_service",
        }
    }
}

/// Authenticated caller, a tool service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Entity id of the tool service.
    pub tool_service: String,
    /// Method by which the caller was authenticated.
    pub by: Authentication,
    /// Tenants that the caller's trust domain may speak for; if `None`, the tool service's entity decides.
    pub tenants: Option<Vec<String>>,
    /// SHA-256 of the caller's certificate.
    pub certificate: Option<[u8; 32]>,
}

impl Caller {
    /// Returns true unless the trust domain may speak only for other tenants.
    pub fn speaks_for(&self, tenant: &str) -> bool {
        self.tenants.as_ref().is_none_or(|tenants| tenants.iter().any(|own| own == tenant))
    }
}

/// Method by which a caller was authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authentication {
    /// No authentication: in development mode only, every process on the loopback interface is trusted.
    Development,
    /// Security event token of a transmitter.
    EventToken,
    /// JWT-SVID, behind a proxy that terminates TLS.
    JwtSvid,
    /// X.509-SVID, by mTLS.
    Mtls,
    /// Peer of a Unix socket, as the operating system reports it.
    UnixPeer,
}

impl Authentication {
    /// Name of the method in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Development => "development",
            Self::EventToken => "event_token",
            Self::JwtSvid => "jwt_svid",
            Self::Mtls => "mtls",
            Self::UnixPeer => "unix_peer",
        }
    }
}

/// Credential that came with the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// Chain that the caller asserts itself.
    Asserted(Asserted),
    None,
    /// JWT, and the agent's certificate as the caller saw it in its own handshake with the agent.
    Token {
        /// JWT as a compact JWS.
        token: String,
        /// SHA-256 of the certificate; `None` if the caller does not report it.
        agent_certificate: Option<[u8; 32]>,
    },
}

/// Chain that the caller asserts itself; empty members mean the defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asserted {
    pub agent: String,
    pub supervisor: String,
    pub step: String,
    /// Scopes that narrow the agent's own; empty means all of the agent's scopes.
    pub scopes: Vec<String>,
}

/// Delegation chain of one call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    pub tool_service: String,
    /// Tenants that the tool service may speak for; if `None`, its entity decides.
    pub tool_tenants: Option<Vec<String>>,
    pub agent: String,
    pub supervisor: String,
    pub step: String,
    /// Scopes that narrow the agent's own; `None` means all of the agent's scopes.
    pub scopes: Option<Vec<String>>,
    /// Whether the caller asserted the chain itself.
    pub asserted: bool,
    /// Facts from the delegation token; empty for an asserted chain.
    pub token: TokenFacts,
}

/// Facts in a delegation token beyond the chain's members.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenFacts {
    /// Issuer of the supervisor's subject.
    pub supervisor_issuer: String,
    /// Person behind the supervisor, by the issuer's stable claim.
    pub supervisor_person: Option<String>,
    /// Issuer of the agent's subject.
    pub agent_issuer: String,
    /// Tenant that the issuer speaks for.
    pub tenant: Option<String>,
    /// Case that the token is bound to.
    pub case: Option<String>,
    /// Time when the token was issued.
    pub issued_at: Option<Timestamp>,
}

/// Authenticated human who acts for herself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Human {
    /// Issuer of the subject.
    pub issuer: String,
    /// Subject as the issuer writes it.
    pub subject: String,
    /// Entity id of the supervisor.
    pub id: String,
    /// Person behind the subject, by the issuer's stable claim.
    pub person: Option<String>,
    /// Tenant that the issuer speaks for.
    pub tenant: String,
    /// Methods by which she authenticated (RFC 8176).
    pub amr: Vec<String>,
    /// Strength of the authentication.
    pub acr: String,
    /// Time when the token was issued.
    pub issued_at: Timestamp,
}

impl Human {
    /// Returns what identifies the person, who may have several subjects: the issuer's claim, or the subject.
    pub fn person_key(&self) -> String {
        self.person.clone().unwrap_or_else(|| format!("{}#{}", self.issuer, self.subject))
    }
}

impl Chain {
    /// Returns whether what was proven of caller and token speaks for a tenant. Both may only narrow what the entities of the chain say.
    pub fn speaks_for(&self, tenant: &str) -> bool {
        self.token.tenant.as_ref().is_none_or(|proven| proven == tenant)
            && self.tool_tenants.as_ref().is_none_or(|tenants| tenants.iter().any(|proven| proven == tenant))
    }

    /// Returns the id of a link's principal.
    pub fn principal(&self, link: Link) -> &str {
        match link {
            Link::Agent => &self.agent,
            Link::Plain => "",
            Link::Supervisor => &self.supervisor,
            Link::ToolService => &self.tool_service,
        }
    }
}

/// Manifest's substitutes for an absent credential in development mode.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DevelopmentDefaults {
    /// Tool service id of every loopback caller.
    pub tool_service: String,
    pub agent: String,
    pub supervisor: String,
    pub step: String,
}
