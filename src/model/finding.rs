//! What detectors find: kinds and places, never the text.

use crate::model::halt::Severity;

/// Something that a detector found. It is no verdict: policies judge it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Its kind: a member of the schema's type of findings.
    pub kind: String,
    /// The rule that found it.
    pub code: String,
    /// How bad it is.
    pub severity: Severity,
    /// How sure the detector is, in percent; 100 where it does not guess.
    pub confidence: u8,
    /// Which text it is in.
    pub source: String,
    /// Where in the text it begins and ends, in bytes; `None` when it has no place.
    pub span: Option<(usize, usize)>,
}

/// What came of screening untrusted texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Screened {
    /// Whether there was text that could be screened.
    pub screened: bool,
    /// Whether there was text that could not.
    pub unscreened: bool,
    /// What was found.
    pub findings: Vec<Finding>,
}

impl Screened {
    /// The kinds that were found, sorted, each once.
    pub fn kinds(&self) -> Vec<String> {
        let mut kinds: Vec<String> = self.findings.iter().map(|finding| finding.kind.clone()).collect();
        kinds.sort();
        kinds.dedup();
        kinds
    }
}

/// What must not be passed on: secrets, and data by which a person is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Private {
    /// A bank account's number.
    AccountNumber,
    /// A code that stands in for a second factor.
    BackupCode,
    /// A payment card's number (ISO/IEC 7812).
    CardNumber,
    /// A payment card's security code.
    CardSecurityCode,
    /// A date of birth.
    DateOfBirth,
    /// An e-mail address.
    Email,
    /// A bank account's number (ISO 13616).
    Iban,
    /// An IP address.
    IpAddress,
    /// A link that logs in who has it.
    MagicLink,
    /// A password in prose.
    Password,
    /// A telephone number.
    Phone,
    /// A PIN.
    Pin,
    /// A value of the case's record that policy keeps from the model.
    Record,
    /// A key or token that is known by its shape.
    Secret,
    /// The answer to a security question.
    SecurityAnswer,
    /// A social security number.
    Ssn,
    /// A one-time code.
    VerificationCode,
}

impl Private {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::AccountNumber,
        Self::BackupCode,
        Self::CardNumber,
        Self::CardSecurityCode,
        Self::DateOfBirth,
        Self::Email,
        Self::Iban,
        Self::IpAddress,
        Self::MagicLink,
        Self::Password,
        Self::Phone,
        Self::Pin,
        Self::Record,
        Self::Secret,
        Self::SecurityAnswer,
        Self::Ssn,
        Self::VerificationCode,
    ];

    /// The name in answers and records.
    pub fn name(self) -> &'static str {
        match self {
            Self::AccountNumber => "account_number",
            Self::BackupCode => "backup_code",
            Self::CardNumber => "card_number",
            Self::CardSecurityCode => "card_security_code",
            Self::DateOfBirth => "date_of_birth",
            Self::Email => "email",
            Self::Iban => "iban",
            Self::IpAddress => "ip_address",
            Self::MagicLink => "magic_link",
            Self::Password => "password",
            Self::Phone => "phone",
            Self::Pin => "pin",
            Self::Record => "record",
            Self::Secret => "secret",
            Self::SecurityAnswer => "security_answer",
            Self::Ssn => "ssn",
            Self::VerificationCode => "verification_code",
        }
    }

    /// What a placeholder calls it.
    pub fn words(self) -> &'static str {
        match self {
            Self::AccountNumber => "account number",
            Self::BackupCode => "backup code",
            Self::CardNumber => "card number",
            Self::CardSecurityCode => "card security code",
            Self::DateOfBirth => "date of birth",
            Self::Email => "email",
            Self::Iban => "IBAN",
            Self::IpAddress => "IP address",
            Self::MagicLink => "login link",
            Self::Password => "password",
            Self::Phone => "phone number",
            Self::Pin => "PIN",
            Self::Record => "customer detail",
            Self::Secret => "secret",
            Self::SecurityAnswer => "security answer",
            Self::Ssn => "social security number",
            Self::VerificationCode => "verification code",
        }
    }

    /// The kind of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether who has it can act with it: nothing of it may be told, not even that two are the same.
    pub fn is_secret(self) -> bool {
        match self {
            Self::BackupCode
            | Self::CardNumber
            | Self::CardSecurityCode
            | Self::MagicLink
            | Self::Password
            | Self::Pin
            | Self::Secret
            | Self::SecurityAnswer
            | Self::Ssn
            | Self::VerificationCode => true,
            Self::AccountNumber | Self::DateOfBirth | Self::Email | Self::Iban | Self::IpAddress | Self::Phone | Self::Record => false,
        }
    }
}
