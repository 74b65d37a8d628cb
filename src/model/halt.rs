//! Kill switches and revoked sessions: what stops a chain before any policy is read.

use crate::model::chain::{Chain, Human};
use crate::model::time::Timestamp;

/// What a halt stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HaltKind {
    /// Everything, until it ends.
    KillSwitch,
    /// Credentials that were issued before.
    SessionRevoked,
}

impl HaltKind {
    /// The kinds, in alphabetical order.
    pub const ALL: [Self; 2] = [Self::KillSwitch, Self::SessionRevoked];

    /// The name on the wire and in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::KillSwitch => "kill_switch",
            Self::SessionRevoked => "session_revoked",
        }
    }

    /// The kind of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// Whom or what a halt is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SubjectKind {
    /// An agent.
    Agent,
    /// A case.
    Case,
    /// A customer.
    Customer,
    /// A supervising human.
    Supervisor,
    /// A tenant.
    Tenant,
}

impl SubjectKind {
    /// The kinds, in alphabetical order.
    pub const ALL: [Self; 5] = [Self::Agent, Self::Case, Self::Customer, Self::Supervisor, Self::Tenant];

    /// The name in the store and in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Case => "case",
            Self::Customer => "customer",
            Self::Supervisor => "supervisor",
            Self::Tenant => "tenant",
        }
    }

    /// The kind of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// One halt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Halt {
    /// The tenant that it is in.
    pub tenant: String,
    /// What kind of subject.
    pub subject_kind: SubjectKind,
    /// Its id.
    pub subject: String,
    /// What it stops.
    pub kind: HaltKind,
    /// When it was meant to begin.
    pub since: Timestamp,
    /// When it ends.
    pub until: Timestamp,
}

/// What of a call a halt may be about.
#[derive(Clone, Copy, Debug)]
pub struct Halted<'a> {
    /// The call's tenant.
    pub tenant: &'a str,
    /// The agent.
    pub agent: &'a str,
    /// The supervisor.
    pub supervisor: &'a str,
    /// The case.
    pub case: &'a str,
    /// The customer; empty if the case names none.
    pub customer: &'a str,
    /// When the credential was issued; `None` of an asserted chain, which a revoked session stops as long as it lasts.
    pub issued_at: Option<Timestamp>,
}

impl<'a> Halted<'a> {
    /// A call's.
    pub fn call(chain: &'a Chain, tenant: &'a str, case: &'a str, customer: &'a str) -> Self {
        Self { tenant, agent: &chain.agent, supervisor: &chain.supervisor, case, customer, issued_at: chain.token.issued_at }
    }

    /// A human's own.
    pub fn human(human: &'a Human) -> Self {
        let issued_at = Some(human.issued_at);
        Self { tenant: &human.tenant, agent: "", supervisor: &human.id, case: "", customer: "", issued_at }
    }

    /// Whether one of these halts stops it at this instant.
    pub fn stopped_by(&self, halts: &[Halt], now: Timestamp) -> bool {
        halts.iter().any(|halt| {
            let subject = match halt.subject_kind {
                SubjectKind::Agent => self.agent,
                SubjectKind::Case => self.case,
                SubjectKind::Customer => self.customer,
                SubjectKind::Supervisor => self.supervisor,
                SubjectKind::Tenant => self.tenant,
            };
            let counts = match halt.kind {
                HaltKind::KillSwitch => true,
                HaltKind::SessionRevoked => self.issued_at.is_none_or(|issued| issued <= halt.since),
            };
            now < halt.until && halt.tenant == self.tenant && !subject.is_empty() && halt.subject == subject && counts
        })
    }
}
