//! Who calls, and on whose behalf.

use crate::model::time::Timestamp;

/// A part of the delegation chain; each is evaluated as principal of the same action and resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Link {
    /// The acting agent.
    Agent,
    /// In conformance mode: the one principal.
    Plain,
    /// The supervising human.
    Supervisor,
    /// The calling tool service.
    ToolService,
}

impl Link {
    /// The links of every call where gates are on, in the order of evaluation.
    pub const CHAIN: [Self; 3] = [Self::ToolService, Self::Agent, Self::Supervisor];

    /// The link's name in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Plain => "plain",
            Self::Supervisor => "supervisor",
            Self::ToolService => "tool_service",
        }
    }
}

/// The authenticated caller, a tool service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The tool service's entity id.
    pub tool_service: String,
    /// How it was authenticated.
    pub by: Authentication,
    /// The tenants that its trust domain may speak for; `None` leaves it to the tool service's entity.
    pub tenants: Option<Vec<String>>,
    /// SHA-256 of its certificate.
    pub certificate: Option<[u8; 32]>,
}

impl Caller {
    /// True unless its trust domain speaks for other tenants alone.
    pub fn speaks_for(&self, tenant: &str) -> bool {
        self.tenants.as_ref().is_none_or(|tenants| tenants.iter().any(|own| own == tenant))
    }
}

/// How a caller was authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authentication {
    /// Not at all: any process on the loopback interface is trusted, in development mode alone.
    Development,
    /// A security event token of a transmitter.
    EventToken,
    /// A JWT-SVID, behind a proxy that ends TLS.
    JwtSvid,
    /// An X.509-SVID, by mTLS.
    Mtls,
    /// The operating system's word on the peer of a Unix socket.
    UnixPeer,
}

impl Authentication {
    /// The name in records.
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

/// The credential that came with the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// The caller's own assertion.
    Asserted(Asserted),
    /// None.
    None,
    /// A JWT, and SHA-256 of the agent's certificate as the caller saw it in its own handshake with the agent.
    Token {
        /// The compact JWS.
        token: String,
        /// The digest; `None` if the caller reports none.
        agent_certificate: Option<[u8; 32]>,
    },
}

/// A chain that the caller vouches for; empty members stand for defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asserted {
    /// Agent id.
    pub agent: String,
    /// Supervisor id.
    pub supervisor: String,
    /// Workflow step.
    pub step: String,
    /// Scopes to narrow the agent's own to; empty: all of the agent's.
    pub scopes: Vec<String>,
}

/// The delegation chain of one call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Tool service id.
    pub tool_service: String,
    /// The tenants that the tool service may speak for; `None` leaves it to its entity.
    pub tool_tenants: Option<Vec<String>>,
    /// Agent id.
    pub agent: String,
    /// Supervisor id.
    pub supervisor: String,
    /// Workflow step.
    pub step: String,
    /// Scopes to narrow the agent's own to; `None`: all of the agent's.
    pub scopes: Option<Vec<String>>,
    /// True when the caller asserted it.
    pub asserted: bool,
    /// What the token adds; of an asserted chain there is nothing.
    pub token: TokenFacts,
}

/// What a delegation token says beside the chain's members.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenFacts {
    /// Who issued the supervisor's subject.
    pub supervisor_issuer: String,
    /// The supervisor's person, by the issuer's stable claim.
    pub supervisor_person: Option<String>,
    /// Who issued the agent's subject.
    pub agent_issuer: String,
    /// The tenant that the issuer speaks for.
    pub tenant: Option<String>,
    /// The case that the token is bound to.
    pub case: Option<String>,
    /// When the token was issued.
    pub issued_at: Option<Timestamp>,
}

/// An authenticated human, acting for herself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Human {
    /// Who issued the subject.
    pub issuer: String,
    /// The subject, as the issuer writes it.
    pub subject: String,
    /// The supervisor's entity id.
    pub id: String,
    /// The person behind the subject, by the issuer's stable claim.
    pub person: Option<String>,
    /// The tenant that the issuer speaks for.
    pub tenant: String,
    /// How she authenticated (RFC 8176).
    pub amr: Vec<String>,
    /// How strongly she authenticated.
    pub acr: String,
    /// When the token was issued.
    pub issued_at: Timestamp,
}

impl Chain {
    /// The id of a link's principal.
    pub fn principal(&self, link: Link) -> &str {
        match link {
            Link::Agent => &self.agent,
            Link::Plain => "",
            Link::Supervisor => &self.supervisor,
            Link::ToolService => &self.tool_service,
        }
    }
}

/// What stands in for an absent credential in development mode; from the manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DevelopmentDefaults {
    /// Tool service id of every loopback caller.
    pub tool_service: String,
    /// Agent id.
    pub agent: String,
    /// Supervisor id.
    pub supervisor: String,
    /// Workflow step.
    pub step: String,
}
