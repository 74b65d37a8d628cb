//! What principals do on their own behalf, outside of any case: Cedar decides these, too, one principal alone.

use crate::model::chain::Link;

/// A right that Cedar grants: an action of the bundle's schema that stands in the manifest's `direct`. One that the schema lacks is
/// granted to nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Right {
    /// A human reads a request for approval.
    ApprovalRead,
    /// A human reviews a request for approval.
    ApprovalReview,
    /// A human revokes an approval.
    ApprovalRevoke,
    /// A tool service asks hypothetically, and why.
    DecisionExplain,
    /// A human clears what is remembered of somebody.
    RiskClear,
    /// A tool service reads the server's status.
    ServerObserve,
    /// A tool service reloads the bundle.
    ServerOperate,
    /// A tool service reports a signal.
    SignalReport,
}

/// What a right is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RightOn {
    /// A request for approval.
    Approval,
    /// The server.
    Server,
    /// A tenant.
    Tenant,
}

impl Right {
    /// Every right.
    pub const ALL: [Self; 8] = [
        Self::ApprovalRead,
        Self::ApprovalReview,
        Self::ApprovalRevoke,
        Self::DecisionExplain,
        Self::RiskClear,
        Self::ServerObserve,
        Self::ServerOperate,
        Self::SignalReport,
    ];

    /// The action's id.
    pub fn name(self) -> &'static str {
        match self {
            Self::ApprovalRead => "approval.read",
            Self::ApprovalReview => "approval.review",
            Self::ApprovalRevoke => "approval.revoke",
            Self::DecisionExplain => "decision.explain",
            Self::RiskClear => "risk.clear",
            Self::ServerObserve => "server.observe",
            Self::ServerOperate => "server.operate",
            Self::SignalReport => "signal.report",
        }
    }

    /// The right of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|right| right.name() == name)
    }

    /// Whose it is: a human's or a tool service's.
    pub fn of(self) -> Link {
        match self {
            Self::ApprovalRead | Self::ApprovalReview | Self::ApprovalRevoke | Self::RiskClear => Link::Supervisor,
            Self::DecisionExplain | Self::ServerObserve | Self::ServerOperate | Self::SignalReport => Link::ToolService,
        }
    }

    /// What it is on.
    pub fn on(self) -> RightOn {
        match self {
            Self::ApprovalRead | Self::ApprovalReview | Self::ApprovalRevoke => RightOn::Approval,
            Self::ServerObserve | Self::ServerOperate => RightOn::Server,
            Self::DecisionExplain | Self::RiskClear | Self::SignalReport => RightOn::Tenant,
        }
    }
}
