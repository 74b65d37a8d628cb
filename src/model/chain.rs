//! Who calls, and on whose behalf.

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
}

/// How a caller was authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authentication {
    /// Not at all: any process on the loopback interface is trusted, in development mode alone.
    Development,
}

impl Authentication {
    /// The name in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Development => "development",
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
    /// A JWT.
    Token(String),
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Tool service id.
    pub tool_service: String,
    /// Agent id.
    pub agent: String,
    /// Supervisor id.
    pub supervisor: String,
    /// Workflow step.
    pub step: String,
    /// Scopes to narrow the agent's own to; empty: all of the agent's.
    pub scopes: Vec<String>,
    /// True when the caller asserted it.
    pub asserted: bool,
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
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
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
