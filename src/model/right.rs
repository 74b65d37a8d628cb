//! Rights of principals on their own behalf, outside any case. Cedar evaluates them with a single principal.

use crate::model::chain::Link;

/// Right that Cedar grants: an action of the bundle's schema that is listed in the manifest's `direct`. If
/// the schema lacks the action, no principal has the right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Right {
    /// A human reads a request for approval.
    ApprovalRead,
    /// A human reviews a request for approval.
    ApprovalReview,
    /// A human revokes an approval.
    ApprovalRevoke,
    /// A human reads the audit log's lines about a tenant.
    AuditRead,
    /// A tool service reports a customer's answer to a request for consent.
    ConsentReport,
    /// A tool service evaluates calls hypothetically or asks for explanations.
    DecisionExplain,
    /// A human clears the risk history of a subject.
    RiskClear,
    /// A human lifts the kill switch on everything.
    ServerLift,
    /// A tool service reads the server's status.
    ServerObserve,
    /// A tool service reloads the bundle.
    ServerOperate,
    /// A human lifts a kill switch of a tenant.
    SignalLift,
    /// A tool service reports a signal.
    SignalReport,
    /// A human erases the data of a person.
    SubjectErase,
}

/// Kind of resource that a right applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RightOn {
    /// A request for approval.
    Approval,
    Server,
    Tenant,
}

impl Right {
    pub const ALL: [Self; 13] = [
        Self::ApprovalRead,
        Self::ApprovalReview,
        Self::ApprovalRevoke,
        Self::AuditRead,
        Self::ConsentReport,
        Self::DecisionExplain,
        Self::RiskClear,
        Self::ServerLift,
        Self::ServerObserve,
        Self::ServerOperate,
        Self::SignalLift,
        Self::SignalReport,
        Self::SubjectErase,
    ];

    /// Id of the right's action.
    pub fn name(self) -> &'static str {
        match self {
            Self::ApprovalRead => "approval.read",
            Self::ApprovalReview => "approval.review",
            Self::ApprovalRevoke => "approval.revoke",
            Self::AuditRead => "audit.read",
            Self::ConsentReport => "consent.report",
            Self::DecisionExplain => "decision.explain",
            Self::RiskClear => "risk.clear",
            Self::ServerLift => "server.lift",
            Self::ServerObserve => "server.observe",
            Self::ServerOperate => "server.operate",
            Self::SignalLift => "signal.lift",
            Self::SignalReport => "signal.report",
            Self::SubjectErase => "subject.erase",
        }
    }

    /// Looks up a right by its name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|right| right.name() == name)
    }

    /// Returns the link that holds the right: the supervisor, for a human, or the tool service.
    pub fn of(self) -> Link {
        match self {
            Self::ApprovalRead
            | Self::ApprovalReview
            | Self::ApprovalRevoke
            | Self::AuditRead
            | Self::RiskClear
            | Self::ServerLift
            | Self::SignalLift
            | Self::SubjectErase => Link::Supervisor,
            Self::ConsentReport
            | Self::DecisionExplain
            | Self::ServerObserve
            | Self::ServerOperate
            | Self::SignalReport => Link::ToolService,
        }
    }

    /// Returns the kind of resource that the right applies to.
    pub fn on(self) -> RightOn {
        match self {
            Self::ApprovalRead | Self::ApprovalReview | Self::ApprovalRevoke | Self::ConsentReport => RightOn::Approval,
            Self::ServerLift | Self::ServerObserve | Self::ServerOperate => RightOn::Server,
            Self::AuditRead
            | Self::DecisionExplain
            | Self::RiskClear
            | Self::SignalLift
            | Self::SignalReport
            | Self::SubjectErase => RightOn::Tenant,
        }
    }
}
