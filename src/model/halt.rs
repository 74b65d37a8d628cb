//! Signals from other systems: kill switches and revoked sessions, which stop a chain before any policy is
//! evaluated, and reports that raise the risk.

use std::collections::HashMap;

use crate::model::chain::{Chain, Human};
use crate::model::time::Timestamp;

/// Severity of a finding or a report, in rising order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Severity {
    /// Recorded only; as a report it does not raise the risk.
    Info,
    Low,
    #[default]
    Medium,
    High,
    Critical,
}

impl Severity {
    /// All severities, in rising order.
    pub const ALL: [Self; 5] = [Self::Info, Self::Low, Self::Medium, Self::High, Self::Critical];

    /// Name of the severity in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::High => "high",
            Self::Info => "info",
            Self::Low => "low",
            Self::Medium => "medium",
        }
    }

    /// Looks up a severity by its name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|severity| severity.name() == name)
    }
}

/// Effect of a report on its subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HaltKind {
    /// Stops every call of its subject until the switch ends.
    KillSwitch,
    /// Stops nothing by itself, but raises the risk score.
    Risk(Severity),
    /// Stops credentials that were issued no later than the revocation.
    SessionRevoked,
}

impl HaltKind {
    /// Name in the store and in records.
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

    /// Looks up a kind by its name.
    pub fn from_name(name: &str) -> Option<Self> {
        let raising = Severity::ALL.into_iter().map(Self::Risk);
        [Self::KillSwitch, Self::SessionRevoked].into_iter().chain(raising).find(|kind| kind.name() == name)
    }

    /// Returns whether the kind stops calls. Only humans who lift a kill switch end such an entry before its time.
    pub fn stops(self) -> bool {
        match self {
            Self::KillSwitch | Self::SessionRevoked => true,
            Self::Risk(_) => false,
        }
    }

    /// Returns whether the kind ends its subject's approvals: everything that stops calls, and high or
    /// critical risk.
    pub fn ends_approvals(self) -> bool {
        match self {
            Self::KillSwitch | Self::SessionRevoked => true,
            Self::Risk(severity) => severity >= Severity::High,
        }
    }
}

/// Kind of report, named as in CAEP (OpenID CAEP 1.0) if CAEP has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SignalKind {
    /// A person authenticates less, or more, strongly than before.
    AssuranceLevelChange,
    /// A password, passkey or key was changed, revoked or added.
    CredentialChange,
    /// A device no longer complies.
    DeviceComplianceChange,
    /// A fraud system reports a suspicion.
    FraudSuspected,
    KillSwitch,
    /// A risk engine reports its assessment.
    RiskLevelChange,
    SessionRevoked,
    /// Claims in a person's tokens are no longer true.
    TokenClaimsChange,
}

impl SignalKind {
    /// All kinds, in alphabetical order.
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

    /// Name on the wire and in records.
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

    /// Looks up a kind by its name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Returns the effect of such a report with this severity.
    pub fn effect(self, severity: Severity) -> HaltKind {
        match self {
            Self::AssuranceLevelChange
            | Self::DeviceComplianceChange
            | Self::FraudSuspected
            | Self::RiskLevelChange => HaltKind::Risk(severity),
            Self::KillSwitch => HaltKind::KillSwitch,
            // Tokens that were issued before no longer state the facts, so they are treated as revoked.
            Self::CredentialChange | Self::SessionRevoked | Self::TokenClaimsChange => HaltKind::SessionRevoked,
        }
    }
}

/// Kind of subject that a report is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SubjectKind {
    Agent,
    Case,
    Customer,
    /// Everything that this deployment decides.
    Server,
    Supervisor,
    Tenant,
}

impl SubjectKind {
    /// All kinds, in alphabetical order.
    pub const ALL: [Self; 6] = [Self::Agent, Self::Case, Self::Customer, Self::Server, Self::Supervisor, Self::Tenant];

    /// Name in the store and in records.
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

    /// Looks up a kind by its name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// Kill switch, revoked session or raised risk of one subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Halt {
    /// Tenant of the subject; empty for the server.
    pub tenant: String,
    pub subject_kind: SubjectKind,
    /// Id of the subject.
    pub subject: String,
    pub kind: HaltKind,
    /// Time when the effect begins, as the reporter states it.
    pub since: Timestamp,
    /// Time when the effect ends.
    pub until: Timestamp,
    /// Time when humans last lifted a kill switch of this subject; 0 if they never did. A switch that is reported later
    /// is in force again.
    pub lifted: Timestamp,
}

impl Halt {
    /// Returns whether the entry is in force.
    pub fn is_active(&self, now: Timestamp) -> bool {
        let is_lifted = self.lifted > Timestamp::default() && self.lifted >= self.since;
        now < self.until && !is_lifted
    }

    /// Returns effect and kind of subject, such as `kill_switch of tenant`, for those who may know why a call was
    /// denied. The ids of a call's subjects are known to them.
    pub fn words(&self) -> String {
        format!("{} of {}", self.kind.name(), self.subject_kind.name())
    }
}

/// Kill switches, revoked sessions and raised risks by subject. A call looks up only those of its own
/// subjects, so their total number does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Halts {
    by_subject: HashMap<(SubjectKind, String), Vec<Halt>>,
    everything: Vec<Halt>,
}

impl Halts {
    pub fn add(&mut self, halt: Halt) {
        match halt.subject_kind {
            SubjectKind::Server => self.everything.push(halt),
            kind => self.by_subject.entry((kind, halt.subject.clone())).or_default().push(halt),
        }
    }

    /// Returns whether an entry of the same kind and subject begins, ends and was lifted no earlier than this one.
    pub fn has(&self, halt: &Halt) -> bool {
        let same = match halt.subject_kind {
            SubjectKind::Server => self.everything.as_slice(),
            kind => self.of(kind, &halt.subject),
        };
        let covers =
            |known: &&Halt| known.since >= halt.since && known.until >= halt.until && known.lifted >= halt.lifted;
        same.iter().filter(|known| known.kind == halt.kind && known.tenant == halt.tenant).any(|known| covers(&known))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Halt> {
        self.by_subject.values().flatten().chain(&self.everything)
    }

    fn of(&self, kind: SubjectKind, subject: &str) -> &[Halt] {
        self.by_subject.get(&(kind, subject.to_owned())).map_or(&[], Vec::as_slice)
    }
}

impl FromIterator<Halt> for Halts {
    fn from_iter<I: IntoIterator<Item = Halt>>(halts: I) -> Self {
        let mut all = Self::default();
        halts.into_iter().for_each(|halt| all.add(halt));
        all
    }
}

/// Subjects of a call that a report may be about.
#[derive(Clone, Copy, Debug)]
pub struct Halted<'a> {
    pub tenant: &'a str,
    pub agent: &'a str,
    pub supervisor: &'a str,
    pub case: &'a str,
    /// Customer of the case; empty if the case names none.
    pub customer: &'a str,
    /// Time when the credential was issued; `None` for an asserted chain, which is stopped for as long as the
    /// revocation of a session lasts.
    pub issued_at: Option<Timestamp>,
}

impl<'a> Halted<'a> {
    /// Returns the subjects of a call.
    pub fn call(chain: &'a Chain, tenant: &'a str, case: &'a str, customer: &'a str) -> Self {
        Self {
            tenant,
            agent: &chain.agent,
            supervisor: &chain.supervisor,
            case,
            customer,
            issued_at: chain.token.issued_at,
        }
    }

    /// Returns the subjects of a human who acts for herself.
    pub fn human(human: &'a Human) -> Self {
        Self::person(&human.tenant, &human.id, human.issued_at)
    }

    /// Returns the subjects of a human with a token that was issued at this time.
    pub fn person(tenant: &'a str, id: &'a str, issued_at: Timestamp) -> Self {
        Self { tenant, agent: "", supervisor: id, case: "", customer: "", issued_at: Some(issued_at) }
    }

    /// Returns whether one of these entries stops the call at this instant.
    pub fn stopped_by(&self, halts: &Halts, now: Timestamp) -> bool {
        self.stop(halts, now).is_some()
    }

    /// Returns an entry that stops the call at this instant.
    pub fn stop<'h>(&self, halts: &'h Halts, now: Timestamp) -> Option<&'h Halt> {
        self.standing(halts, now).find(|halt| match halt.kind {
            HaltKind::KillSwitch => true,
            HaltKind::Risk(_) => false,
            HaltKind::SessionRevoked => self.issued_at.is_none_or(|issued| issued <= halt.since),
        })
    }

    /// Returns whether a human with these subjects may lift kill switches: her session is not revoked, alone or with
    /// all of her tenant, and no kill switch is on herself. Switches on her tenant and on everything don't count.
    pub fn may_lift(&self, halts: &Halts, now: Timestamp) -> bool {
        self.standing(halts, now).all(|halt| match halt.kind {
            HaltKind::KillSwitch => halt.subject_kind != SubjectKind::Supervisor,
            HaltKind::Risk(_) => true,
            HaltKind::SessionRevoked => self.issued_at.is_some_and(|issued| issued > halt.since),
        })
    }

    /// Returns the highest severity that is reported of the subjects at this instant.
    pub fn reported_by(&self, halts: &Halts, now: Timestamp) -> Option<Severity> {
        let severities = self.standing(halts, now).filter_map(|halt| match halt.kind {
            HaltKind::Risk(severity) => Some(severity),
            HaltKind::KillSwitch | HaltKind::SessionRevoked => None,
        });
        severities.max()
    }

    /// Returns the entries about these subjects that have not ended.
    fn standing<'h>(&self, halts: &'h Halts, now: Timestamp) -> impl Iterator<Item = &'h Halt> {
        let subjects = [
            (SubjectKind::Agent, self.agent),
            (SubjectKind::Case, self.case),
            (SubjectKind::Customer, self.customer),
            (SubjectKind::Supervisor, self.supervisor),
            (SubjectKind::Tenant, self.tenant),
        ];
        let tenant = self.tenant.to_owned();
        let own = subjects
            .into_iter()
            .filter(|(_, subject)| !subject.is_empty())
            .flat_map(|(kind, subject)| halts.of(kind, subject));
        let own = own.filter(move |halt| halt.tenant == tenant);
        own.chain(&halts.everything).filter(move |halt| halt.is_active(now))
    }
}
