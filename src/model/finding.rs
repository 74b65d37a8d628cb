//! Findings of detectors: kinds and places, never the text.

use crate::model::halt::Severity;

/// Place in a text: byte offsets of the start and of the end, which is not included.
pub type Span = (usize, usize);

/// Finding of a detector. It is not a verdict; policies evaluate it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Kind of finding: a member of the schema's type of findings.
    pub kind: String,
    /// Rule that produced the finding.
    pub code: String,
    pub severity: Severity,
    /// Confidence of the detector, in percent; 100 for a detector that does not guess.
    pub confidence: u8,
    /// Source of the text that contains the finding.
    pub source: String,
    /// Byte range in the text; `None` if the finding has no place.
    pub span: Option<(usize, usize)>,
}

/// Result of screening untrusted texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Screened {
    /// Whether there was text that could be screened.
    pub screened: bool,
    /// Whether there was text that could not be screened.
    pub unscreened: bool,
    pub findings: Vec<Finding>,
}

impl Screened {
    /// Returns the kinds of the findings, sorted and without duplicates.
    pub fn kinds(&self) -> Vec<String> {
        let mut kinds: Vec<String> = self.findings.iter().map(|finding| finding.kind.clone()).collect();
        kinds.sort();
        kinds.dedup();
        kinds
    }
}

/// Kinds of sensitive values: secrets, and data that identifies a person. They must not be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SensitiveKind {
    /// Number of a bank account.
    AccountNumber,
    /// Code that replaces a second factor.
    BackupCode,
    /// Payment card number (ISO/IEC 7812).
    CardNumber,
    /// Security code of a payment card.
    CardSecurityCode,
    DateOfBirth,
    Email,
    /// Number of a bank account (ISO 13616).
    Iban,
    IpAddress,
    /// Link that logs in anyone who has it.
    MagicLink,
    /// Password in running text.
    Password,
    Phone,
    Pin,
    /// Value of the case's record that policy withholds from the model.
    Record,
    /// Key or token in a known format.
    Secret,
    SecurityAnswer,
    /// Social security number.
    Ssn,
    /// Code that is valid once.
    VerificationCode,
}

impl SensitiveKind {
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

    /// Name of the kind in answers and records.
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

    /// Words for the kind in a placeholder.
    pub fn message(self) -> &'static str {
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

    /// Looks up a kind by its name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Returns whether someone who has the value can act with it. Nothing about such a value may be revealed,
    /// not even that two values are the same.
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
            Self::AccountNumber
            | Self::DateOfBirth
            | Self::Email
            | Self::Iban
            | Self::IpAddress
            | Self::Phone
            | Self::Record => false,
        }
    }
}
