//! Answers to calls, and the values that they consist of.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::approval::{GivenConsent, Giver, UsedApproval};
use crate::model::signals::Signals;
use crate::model::time::Timestamp;
use crate::model::verdict::Verdict;

/// Reason for a denial, from the protocol's closed set. The order is alphabetical; [`Reason::LIFTABLE`] has
/// the order of precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The approval token has expired.
    ApprovalExpired,
    /// The approval covers another call.
    ApprovalOutOfScope,
    /// Only an approval is missing.
    ApprovalRequired,
    ApprovalRevoked,
    /// The approval token can't be verified.
    ApprovalUnverifiable,
    /// Another operation consumed the approval.
    ApprovalUsed,
    /// The case's version changed after the approval.
    CaseChanged,
    /// A named check is missing.
    CheckRequired,
    /// The customer's consent is missing, and perhaps an approval too.
    ConsentRequired,
    /// A text that a customer will read is not a released draft.
    DraftRequired,
    /// The call is not permitted, is forbidden, or names something unknown or of another tenant.
    NotPermitted,
    /// A policy could not be evaluated.
    PolicyError,
    /// A rate window is full.
    RateLimited,
    RiskTooHigh,
    /// Untrusted content was not screened.
    ScreeningRequired,
    /// State that the policies need can't be read.
    StateUnavailable,
    /// The workflow step does not cover the action.
    StepNotAllowed,
}

impl Reason {
    /// Reasons that a change of circumstances can lift, in order of precedence: the first that applies is
    /// reported.
    pub const LIFTABLE: [Self; 8] = [
        Self::StepNotAllowed,
        Self::RiskTooHigh,
        Self::RateLimited,
        Self::ScreeningRequired,
        Self::DraftRequired,
        Self::CheckRequired,
        Self::ConsentRequired,
        Self::ApprovalRequired,
    ];

    /// Every reason, in alphabetical order.
    pub const ALL: [Self; 17] = [
        Self::ApprovalExpired,
        Self::ApprovalOutOfScope,
        Self::ApprovalRequired,
        Self::ApprovalRevoked,
        Self::ApprovalUnverifiable,
        Self::ApprovalUsed,
        Self::CaseChanged,
        Self::CheckRequired,
        Self::ConsentRequired,
        Self::DraftRequired,
        Self::NotPermitted,
        Self::PolicyError,
        Self::RateLimited,
        Self::RiskTooHigh,
        Self::ScreeningRequired,
        Self::StateUnavailable,
        Self::StepNotAllowed,
    ];

    /// Name of the reason in bundles, records and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::ApprovalExpired => "approval_expired",
            Self::ApprovalOutOfScope => "approval_out_of_scope",
            Self::ApprovalRequired => "approval_required",
            Self::ApprovalRevoked => "approval_revoked",
            Self::ApprovalUnverifiable => "approval_unverifiable",
            Self::ApprovalUsed => "approval_used",
            Self::CaseChanged => "case_changed",
            Self::CheckRequired => "check_required",
            Self::ConsentRequired => "consent_required",
            Self::DraftRequired => "draft_required",
            Self::NotPermitted => "not_permitted",
            Self::PolicyError => "policy_error",
            Self::RateLimited => "rate_limited",
            Self::RiskTooHigh => "risk_too_high",
            Self::ScreeningRequired => "screening_required",
            Self::StateUnavailable => "state_unavailable",
            Self::StepNotAllowed => "step_not_allowed",
        }
    }

    /// Looks up a reason by its name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.name() == name)
    }

    /// Returns a constant message that is safe for agent and customer.
    pub fn text(self) -> &'static str {
        match self {
            Self::ApprovalExpired => {
                "The token of the approval or consent has expired. The tool service can fetch a new one."
            }
            Self::ApprovalOutOfScope => "The approval or consent does not cover this call.",
            Self::ApprovalRequired => "This action needs human approval. Do not retry it with other arguments.",
            Self::ApprovalRevoked => "The approval or consent was revoked.",
            Self::ApprovalUnverifiable => "The approval or consent can't be verified.",
            Self::ApprovalUsed => "The approval or consent has already been used.",
            Self::CaseChanged => "The case has changed since the approval or consent. Read it again.",
            Self::CheckRequired => "A check must be done before this action.",
            Self::ConsentRequired => {
                "The customer must agree to this action first. The tool service asks the customer. Do not ask in other words."
            }
            Self::DraftRequired => {
                "Text for the customer must be a released draft. Request an evaluation of the draft, then repeat the call with its digest."
            }
            Self::NotPermitted => "This action is not permitted. Do not retry it.",
            Self::PolicyError => "This action can't be decided. Do not retry it.",
            Self::RateLimited => "Too many actions of this kind. Wait before retrying.",
            Self::RiskTooHigh => "This action is not available for this case now. Do not retry it.",
            Self::ScreeningRequired => "The case's content must be screened before this action.",
            Self::StateUnavailable => "This action can't be decided now. Retry later.",
            Self::StepNotAllowed => "This action does not belong to the current workflow step.",
        }
    }

    /// Returns what the agent may do next.
    pub fn next_action(self) -> NextAction {
        match self {
            Self::ApprovalOutOfScope
            | Self::ApprovalRequired
            | Self::CheckRequired
            | Self::ConsentRequired
            | Self::DraftRequired => NextAction::Request,
            Self::ApprovalExpired
            | Self::CaseChanged
            | Self::RateLimited
            | Self::ScreeningRequired
            | Self::StateUnavailable => NextAction::Retry,
            Self::ApprovalRevoked
            | Self::ApprovalUnverifiable
            | Self::ApprovalUsed
            | Self::NotPermitted
            | Self::PolicyError
            | Self::RiskTooHigh
            | Self::StepNotAllowed => NextAction::None,
        }
    }
}

/// Action that the agent may take next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextAction {
    None,
    /// Ask for what is missing: an approval, a consent, a check or a released draft.
    Request,
    Retry,
}

impl NextAction {
    /// The name in output.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Request => "request",
            Self::Retry => "retry",
        }
    }
}

/// Binding force of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The answer is hypothetical.
    DryRun,
    /// The answer is binding.
    Enforce,
}

impl Mode {
    /// Name of the mode in records and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::DryRun => "dry_run",
            Self::Enforce => "enforce",
        }
    }
}

/// Obligation or advice: something that a PEP must or may do with the decision.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Obligation {
    /// Kind, such as `return_only`.
    pub kind: String,
    /// Text after the colon of the annotation.
    pub value: String,
}

/// Requirements that a denied call lacks and that a request may supply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Template of the approval or consent that can be requested; empty if only checks are missing.
    pub template: String,
    /// Whether reviewers or the customer must approve. The customer comes first, so that reviewers see the consent.
    pub giver: Giver,
    /// Text to show to the customer, by language; empty if no consent is missing.
    pub texts: BTreeMap<String, String>,
    /// Everything that is missing, sorted.
    pub requires: Vec<String>,
    /// Number of humans who must approve; 0 if no approval of reviewers can be requested.
    pub quorum: u32,
}

/// Outcome of evaluating a call by the policies. The default denies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Reason for the denial; `None` allows the call.
    pub denied: Option<Reason>,
    /// Obligations that the PEP must meet.
    pub obligations: Vec<Obligation>,
    /// Obligations that the PEP may ignore.
    pub advice: Vec<Obligation>,
    /// Requirements that a request could supply; only with a reason whose next action is to request.
    pub missing: Option<Missing>,
    /// Text of the denying policies for the agent and the customer; empty if they have none.
    pub user: String,
}

impl Outcome {
    /// Returns the text for the agent and the customer: that of the policies, or of the reason; empty for an allow.
    pub fn text(&self) -> &str {
        if self.user.is_empty() { self.denied.map_or("", Reason::text) } else { &self.user }
    }

    /// Creates a denial without obligations and advice.
    pub fn denied(reason: Reason) -> Self {
        Self { denied: Some(reason), obligations: vec![], advice: vec![], missing: None, user: String::new() }
    }
}

impl Default for Outcome {
    fn default() -> Self {
        Self::denied(Reason::NotPermitted)
    }
}

/// Gate in code that denied a call, rather than a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gate {
    /// The action is not in the schema, or does not take this type of resource.
    Action,
    /// The resource or the token belongs to another case.
    Case,
    /// A principal, resource or reference is unknown.
    Existence,
    /// A kill switch or a revoked session stops the call.
    Halt,
    /// Other calls filled a sum while this call was evaluated.
    Rate,
    /// Kill switches, checks, approvals or windows can't be read, and the decision depends on them.
    State,
    /// The step does not cover the action, although the policies allowed the call.
    Step,
    /// A tenant is unknown, or not that of the case.
    Tenant,
    /// A token can't be verified or used.
    Token,
}

impl Gate {
    /// Returns whether agent, tenant and case were confirmed before this gate.
    pub fn is_late(self) -> bool {
        matches!(self, Self::Halt | Self::State | Self::Step | Self::Token)
    }

    /// Returns whether agent, tenant and case of a record were confirmed. `gate` is the name in the record; empty if no gate denied the call.
    pub fn confirms(gate: &str) -> bool {
        gate.is_empty() || Self::ALL.into_iter().any(|known| known.is_late() && known.name() == gate)
    }

    /// Every gate, in alphabetical order.
    pub const ALL: [Self; 9] = [
        Self::Action,
        Self::Case,
        Self::Existence,
        Self::Halt,
        Self::Rate,
        Self::State,
        Self::Step,
        Self::Tenant,
        Self::Token,
    ];

    /// Name of the gate in records and explanations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Action => "action",
            Self::Case => "case",
            Self::Existence => "existence",
            Self::Halt => "halt",
            Self::Rate => "rate",
            Self::State => "state",
            Self::Step => "step",
            Self::Tenant => "tenant",
            Self::Token => "token",
        }
    }
}

/// Policy bundle that decided.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PolicyVersion {
    /// `sha256:` and the digest in hex.
    pub digest: String,
    /// Version in the manifest.
    pub version: u64,
}

/// Decision on one call before it is recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Caller's id of the request.
    pub request_id: String,
    /// Evaluation id, a UUIDv7.
    pub evaluation_id: String,
    /// Instant at which the whole evaluation takes place.
    pub evaluated_at: Timestamp,
    /// Outcome by the policies or by a gate.
    pub outcome: Outcome,
    /// Gate that denied, if one did.
    pub gate: Option<Gate>,
    /// Cedar's verdict; without links if a gate other than [`Gate::Step`] denied.
    pub verdict: Verdict,
    pub mode: Mode,
    /// Risk signals of the call.
    pub signals: Box<Signals>,
    /// The call in plain words.
    pub display: String,
    /// Keyed digest of the call.
    pub call_digest: String,
    pub policy: PolicyVersion,
    /// Names of the protections that the deployment runs without, and of what the caller should know, such as
    /// [`SCREENING_NOT_STORED`].
    pub warnings: Vec<&'static str>,
    /// Gate or policies that denied the call, for developers. Empty outside of development mode, where callers must
    /// not learn them.
    pub hint: String,
    /// Approval that the call used.
    pub approval: Option<Box<UsedApproval>>,
    /// Consent that the call used.
    pub consent: Option<Box<GivenConsent>>,
    /// Token that binds a denial to this call, so that an approval can be requested; empty otherwise.
    pub binding_token: String,
    /// Token with which the outcome of the allowed call is reported; empty otherwise.
    pub outcome_token: String,
    /// Log and line of the first answer's record, if this answer repeats an operation.
    pub repeats: Option<Box<(String, u64)>>,
}

/// Warning that the texts of this call did not screen the case: the chain may not read the case in any step, or
/// the call has no version of the case.
pub const SCREENING_NOT_STORED: &str = "screening_not_stored";

impl Answer {
    /// Returns what the agent may do next. Texts can't help a chain that can't screen the case.
    pub fn next_action(&self) -> NextAction {
        match self.outcome.denied {
            None => NextAction::None,
            Some(Reason::ScreeningRequired) if self.warnings.contains(&SCREENING_NOT_STORED) => NextAction::None,
            Some(reason) => reason.next_action(),
        }
    }

    /// Returns how long to wait before a retry, if that is known.
    pub fn retry_after(&self) -> Option<Duration> {
        let waits = matches!(self.outcome.denied, Some(Reason::RateLimited | Reason::StateUnavailable));
        self.signals.retry_after.filter(|_| waits)
    }

    /// Returns true if the call may be made: nothing denies it, and the answer is binding.
    pub fn allows(&self) -> bool {
        self.outcome.denied.is_none() && self.mode == Mode::Enforce
    }
}
