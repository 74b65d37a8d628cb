//! What other systems reported: kill switches and revoked sessions, which stop a chain before any policy is read, and raised risk.

use std::collections::HashMap;

use crate::model::chain::{Chain, Human};
use crate::model::time::Timestamp;

/// How bad, rising.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// For the record.
    Info,
    /// Of little weight.
    Low,
    /// Of some weight.
    Medium,
    /// Of much weight.
    High,
    /// Decisive.
    Critical,
}

impl Severity {
    /// The severities, rising.
    pub const ALL: [Self; 5] = [Self::Info, Self::Low, Self::Medium, Self::High, Self::Critical];

    /// The name in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::High => "high",
            Self::Info => "info",
            Self::Low => "low",
            Self::Medium => "medium",
        }
    }

    /// The severity of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|severity| severity.name() == name)
    }
}

/// What a report does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HaltKind {
    /// Stops everything, until it ends.
    KillSwitch,
    /// Stops nothing by itself: raises the score.
    Risk(Severity),
    /// Stops credentials that were issued before.
    SessionRevoked,
}

impl HaltKind {
    /// The name in the store and in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::KillSwitch => "kill_switch",
            Self::Risk(Severity::Critical) => "risk_critical",
            Self::Risk(Severity::High) => "risk_high",
            Self::Risk(Severity::Info) => "risk_info",
            Self::Risk(Severity::Low) => "risk_low",
            Self::Risk(Severity::Medium) => "risk_medium",
            Self::SessionRevoked => "session_revoked",
        }
    }

    /// The kind of this name.
    pub fn named(name: &str) -> Option<Self> {
        let raising = Severity::ALL.into_iter().map(Self::Risk);
        [Self::KillSwitch, Self::SessionRevoked].into_iter().chain(raising).find(|kind| kind.name() == name)
    }

    /// Whether it stops, so that nothing takes it back before its end.
    pub fn stops(self) -> bool {
        match self {
            Self::KillSwitch | Self::SessionRevoked => true,
            Self::Risk(_) => false,
        }
    }

    /// Whether it ends the approvals of its subject: whatever stops, and high risk.
    pub fn ends_approvals(self) -> bool {
        match self {
            Self::KillSwitch | Self::SessionRevoked => true,
            Self::Risk(severity) => severity >= Severity::High,
        }
    }
}

/// What was reported; CAEP's names (OpenID CAEP 1.0) where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SignalKind {
    /// Somebody authenticates less, or more, strongly than before.
    AssuranceLevelChange,
    /// A password, passkey or key was changed, revoked or added.
    CredentialChange,
    /// A device no longer complies.
    DeviceComplianceChange,
    /// A fraud system's suspicion.
    FraudSuspected,
    /// Stop.
    KillSwitch,
    /// A risk engine's opinion.
    RiskLevelChange,
    /// A session ended.
    SessionRevoked,
    /// What tokens say of somebody is no longer so.
    TokenClaimsChange,
}

impl SignalKind {
    /// The kinds, in alphabetical order.
    pub const ALL: [Self; 8] = [
        Self::AssuranceLevelChange,
        Self::CredentialChange,
        Self::DeviceComplianceChange,
        Self::FraudSuspected,
        Self::KillSwitch,
        Self::RiskLevelChange,
        Self::SessionRevoked,
        Self::TokenClaimsChange,
    ];

    /// The name on the wire and in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::AssuranceLevelChange => "assurance_level_change",
            Self::CredentialChange => "credential_change",
            Self::DeviceComplianceChange => "device_compliance_change",
            Self::FraudSuspected => "fraud_suspected",
            Self::KillSwitch => "kill_switch",
            Self::RiskLevelChange => "risk_level_change",
            Self::SessionRevoked => "session_revoked",
            Self::TokenClaimsChange => "token_claims_change",
        }
    }

    /// The kind of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// What it does.
    pub fn effect(self, severity: Severity) -> HaltKind {
        match self {
            Self::AssuranceLevelChange | Self::DeviceComplianceChange | Self::FraudSuspected | Self::RiskLevelChange => {
                HaltKind::Risk(severity)
            }
            Self::KillSwitch => HaltKind::KillSwitch,
            // Tokens from before no longer say what is so.
            Self::CredentialChange | Self::SessionRevoked | Self::TokenClaimsChange => HaltKind::SessionRevoked,
        }
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
    /// Everything that this deployment decides.
    Server,
    /// A supervising human.
    Supervisor,
    /// A tenant.
    Tenant,
}

impl SubjectKind {
    /// The kinds, in alphabetical order.
    pub const ALL: [Self; 6] = [Self::Agent, Self::Case, Self::Customer, Self::Server, Self::Supervisor, Self::Tenant];

    /// The name in the store and in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Case => "case",
            Self::Customer => "customer",
            Self::Server => "server",
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
    /// The tenant that it is in; empty where it is about the server.
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

/// Halts by whom they are about: however many there are, a call looks at its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Halts {
    by_subject: HashMap<(SubjectKind, String), Vec<Halt>>,
    everything: Vec<Halt>,
}

impl Halts {
    /// One more.
    pub fn add(&mut self, halt: Halt) {
        match halt.subject_kind {
            SubjectKind::Server => self.everything.push(halt),
            kind => self.by_subject.entry((kind, halt.subject.clone())).or_default().push(halt),
        }
    }

    /// Whether it has one that stops as much: of this kind, on this subject, as late and as long.
    pub fn has(&self, halt: &Halt) -> bool {
        let same = match halt.subject_kind {
            SubjectKind::Server => self.everything.as_slice(),
            kind => self.of(kind, &halt.subject),
        };
        let covers = |known: &&Halt| known.since >= halt.since && known.until >= halt.until;
        same.iter().filter(|known| known.kind == halt.kind && known.tenant == halt.tenant).any(|known| covers(&known))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Halt> {
        self.by_subject.values().flatten().chain(&self.everything)
    }

    fn of(&self, kind: SubjectKind, subject: &str) -> &[Halt] {
        self.by_subject.get(&(kind, subject.to_owned())).map(Vec::as_slice).unwrap_or_default()
    }
}

impl FromIterator<Halt> for Halts {
    fn from_iter<I: IntoIterator<Item = Halt>>(halts: I) -> Self {
        let mut all = Self::default();
        halts.into_iter().for_each(|halt| all.add(halt));
        all
    }
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
    pub fn stopped_by(&self, halts: &Halts, now: Timestamp) -> bool {
        self.standing(halts, now).any(|halt| match halt.kind {
            HaltKind::KillSwitch => true,
            HaltKind::Risk(_) => false,
            HaltKind::SessionRevoked => self.issued_at.is_none_or(|issued| issued <= halt.since),
        })
    }

    /// The worst that is reported of it at this instant.
    pub fn reported_by(&self, halts: &Halts, now: Timestamp) -> Option<Severity> {
        let severities = self.standing(halts, now).filter_map(|halt| match halt.kind {
            HaltKind::Risk(severity) => Some(severity),
            HaltKind::KillSwitch | HaltKind::SessionRevoked => None,
        });
        severities.max()
    }

    /// The halts that are about it, and not over.
    fn standing<'h>(&self, halts: &'h Halts, now: Timestamp) -> impl Iterator<Item = &'h Halt> {
        let subjects = [
            (SubjectKind::Agent, self.agent),
            (SubjectKind::Case, self.case),
            (SubjectKind::Customer, self.customer),
            (SubjectKind::Supervisor, self.supervisor),
            (SubjectKind::Tenant, self.tenant),
        ];
        let tenant = self.tenant.to_owned();
        let own = subjects.into_iter().filter(|(_, subject)| !subject.is_empty()).flat_map(|(kind, subject)| halts.of(kind, subject));
        let own = own.filter(move |halt| halt.tenant == tenant);
        own.chain(&halts.everything).filter(move |halt| now < halt.until)
    }
}
