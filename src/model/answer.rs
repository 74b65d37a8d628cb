//! The answer to a call.

use std::time::Duration;

use crate::model::approval::UsedApproval;
use crate::model::signals::Signals;
use crate::model::time::Timestamp;
use crate::model::verdict::Verdict;

/// Why a call was denied. The contract's closed set; the order is alphabetical, [`Reason::LIFTABLE`] has the order of precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The approval token's time is over.
    ApprovalExpired,
    /// The approval covers another call.
    ApprovalOutOfScope,
    /// Only an approval is missing.
    ApprovalRequired,
    /// The approval was revoked.
    ApprovalRevoked,
    /// The approval token can't be verified.
    ApprovalUnverifiable,
    /// The approval was used by another operation.
    ApprovalUsed,
    /// The case's version moved since the approval.
    CaseChanged,
    /// A named check is missing.
    CheckRequired,
    /// A text that a customer will read is no released draft.
    DraftRequired,
    /// Not permitted, forbidden, unknown or foreign.
    NotPermitted,
    /// A policy could not be evaluated.
    PolicyError,
    /// A rate window is full.
    RateLimited,
    /// The risk is too high.
    RiskTooHigh,
    /// Untrusted content was not screened.
    ScreeningRequired,
    /// State can't be reached, and the policy needs it.
    StateUnavailable,
    /// The step does not cover the action.
    StepNotAllowed,
}

impl Reason {
    /// What a circumstance can lift, in order of precedence: the first that applies is the reason.
    pub const LIFTABLE: [Self; 7] = [
        Self::StepNotAllowed,
        Self::RiskTooHigh,
        Self::RateLimited,
        Self::ScreeningRequired,
        Self::DraftRequired,
        Self::CheckRequired,
        Self::ApprovalRequired,
    ];

    /// Every reason, in alphabetical order.
    pub const ALL: [Self; 16] = [
        Self::ApprovalExpired,
        Self::ApprovalOutOfScope,
        Self::ApprovalRequired,
        Self::ApprovalRevoked,
        Self::ApprovalUnverifiable,
        Self::ApprovalUsed,
        Self::CaseChanged,
        Self::CheckRequired,
        Self::DraftRequired,
        Self::NotPermitted,
        Self::PolicyError,
        Self::RateLimited,
        Self::RiskTooHigh,
        Self::ScreeningRequired,
        Self::StateUnavailable,
        Self::StepNotAllowed,
    ];

    /// The reason's name in bundles, records and metrics.
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

    /// The reason of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.name() == name)
    }

    /// Constant words, safe for agent and customer.
    pub fn text(self) -> &'static str {
        match self {
            Self::ApprovalExpired => "The approval's token has expired. The tool service can fetch a new one.",
            Self::ApprovalOutOfScope => "The approval does not cover this call.",
            Self::ApprovalRequired => "This action needs human approval. Do not retry it with other arguments.",
            Self::ApprovalRevoked => "The approval was revoked.",
            Self::ApprovalUnverifiable => "The approval can't be verified.",
            Self::ApprovalUsed => "The approval has already been used.",
            Self::CaseChanged => "The case has changed since the approval. Read it again.",
            Self::CheckRequired => "A check must be done before this action.",
            Self::DraftRequired => "What the customer will read must be a released draft. Have it checked, and name its digest.",
            Self::NotPermitted => "This action is not permitted. Do not retry it.",
            Self::PolicyError => "This action can't be decided. Do not retry it.",
            Self::RateLimited => "Too many actions of this kind. Wait before retrying.",
            Self::RiskTooHigh => "This action is not available for this case now. Do not retry it.",
            Self::ScreeningRequired => "The case's content must be screened before this action.",
            Self::StateUnavailable => "This action can't be decided now. Retry later.",
            Self::StepNotAllowed => "This action does not belong to the current workflow step.",
        }
    }

    /// What the agent may do next.
    pub fn next_action(self) -> NextAction {
        match self {
            Self::ApprovalOutOfScope | Self::ApprovalRequired | Self::CheckRequired | Self::DraftRequired => NextAction::Request,
            Self::ApprovalExpired | Self::CaseChanged | Self::RateLimited | Self::ScreeningRequired | Self::StateUnavailable => {
                NextAction::Retry
            }
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

/// What the agent may do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextAction {
    /// Nothing.
    None,
    /// Ask a human.
    Request,
    /// Try again.
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

/// How binding an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Hypothetical.
    DryRun,
    /// It binds.
    Enforce,
}

impl Mode {
    /// The mode's name in records and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::DryRun => "dry_run",
            Self::Enforce => "enforce",
        }
    }
}

/// What a PEP must or may do with the decision.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Obligation {
    /// Kind, e.g. `return_only`.
    pub kind: String,
    /// The text after the colon of the annotation.
    pub value: String,
}

/// What is missing, where asking can turn the denial.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// The approval template; empty when only checks are missing.
    pub template: String,
    /// All that is missing, sorted.
    pub requires: Vec<String>,
    /// How many humans must approve.
    pub quorum: u32,
}

/// The outcome of evaluation: what the policies made of a call. The default denies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Why it is denied; `None` allows.
    pub denied: Option<Reason>,
    /// Must be met.
    pub obligations: Vec<Obligation>,
    /// May be ignored.
    pub advice: Vec<Obligation>,
    /// What asking could add; only with a reason whose next action is to request.
    pub missing: Option<Missing>,
}

impl Outcome {
    /// A denial with nothing to add.
    pub fn denied(reason: Reason) -> Self {
        Self { denied: Some(reason), obligations: vec![], advice: vec![], missing: None }
    }
}

impl Default for Outcome {
    fn default() -> Self {
        Self::denied(Reason::NotPermitted)
    }
}

/// The gate in code that denied a call before Cedar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gate {
    /// The action is not in the schema, or does not take this type of resource.
    Action,
    /// Resource and case don't belong together.
    Case,
    /// A principal, resource or reference is unknown.
    Existence,
    /// A kill switch or a revoked session.
    Halt,
    /// A sum was used up while the call was weighed.
    Rate,
    /// Kill switches, checks, approvals or windows can't be read, and what policies say depends on it.
    State,
    /// The step does not cover the action, and no policy said so.
    Step,
    /// A tenant is missing or foreign.
    Tenant,
    /// A token that can't be verified.
    Token,
}

impl Gate {
    /// The gate's name in records and explanations.
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

/// The policy bundle that decided.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PolicyVersion {
    /// `sha256:` and the digest in hex.
    pub digest: String,
    /// The manifest's version.
    pub version: u64,
}

/// The decision on one call, before it is recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The caller's id of the request.
    pub request_id: String,
    /// UUIDv7.
    pub evaluation_id: String,
    /// The one instant of the evaluation.
    pub evaluated_at: Timestamp,
    /// What the policies, or a gate, made of it.
    pub outcome: Outcome,
    /// The gate that denied before Cedar, if one did.
    pub gate: Option<Gate>,
    /// Cedar's verdict; without links if a gate denied.
    pub verdict: Verdict,
    /// How binding it is.
    pub mode: Mode,
    /// How unusual the call is.
    pub signals: Box<Signals>,
    /// The call in plain words.
    pub display: String,
    /// Keyed digest of the call.
    pub call_digest: String,
    /// The policy that decided.
    pub policy: PolicyVersion,
    /// What the deployment runs without.
    pub warnings: Vec<&'static str>,
    /// The approval that was used.
    pub approval: Option<Box<UsedApproval>>,
    /// Binds a requestable denial to this call; empty otherwise.
    pub binding_token: String,
    /// Brings back what was allowed when its outcome is reported; empty otherwise.
    pub outcome_token: String,
    /// The record of the first answer to a repeated operation: log and line.
    pub repeats: Option<Box<(String, u64)>>,
}

impl Answer {
    /// How long to wait before a retry, where that is known.
    pub fn retry_after(&self) -> Option<Duration> {
        let waits = matches!(self.outcome.denied, Some(Reason::RateLimited | Reason::StateUnavailable));
        self.signals.retry_after.filter(|_| waits)
    }

    /// True when the call may be made: nothing denies, and the answer binds.
    pub fn allows(&self) -> bool {
        self.outcome.denied.is_none() && self.mode == Mode::Enforce
    }
}
