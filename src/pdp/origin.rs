//! Requests as the pipelines get them: what is asked, where it came from, and in which chain of principals.

use crate::caller::Peer;
use crate::model::call::{Call, PlainCall};
use crate::model::chain::{Caller, Chain};
use crate::model::refusal::Refusal;
use crate::pdp::snapshot::Moment;
use crate::telemetry::spans::Trace;

/// A request as it was read.
#[derive(Clone, Debug)]
pub enum Request {
    /// A tool call.
    Call(Box<Call>),
    /// A plain Cedar request.
    Plain(Box<PlainCall>),
}

impl Request {
    pub(super) fn has_texts(&self) -> bool {
        matches!(self, Self::Call(call) if !call.untrusted.is_empty())
    }

    /// Id of the request; empty when the caller sent none.
    pub(super) fn id(&self) -> &str {
        match self {
            Self::Call(call) => &call.correlation.request,
            Self::Plain(call) => &call.correlation.request,
        }
    }
}

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To be acted on.
    Authorize,
    /// To say whether a draft may be sent.
    EvaluateOutput,
    /// To be understood; its answer never permits.
    Explain,
    /// To say what a model may see.
    PrepareContext,
}

impl Purpose {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Authorize => "authorize",
            Self::EvaluateOutput => "evaluate_output",
            Self::Explain => "explain",
            Self::PrepareContext => "prepare_context",
        }
    }
}

/// Where a request came from, and what it is for.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The other end of the connection.
    pub peer: Peer,
    /// The trace that it belongs to.
    pub trace: Trace,
    /// What it is for.
    pub purpose: Purpose,
    /// Whether it waits for its permit, as what comes on a stream or in a batch does.
    pub waits: bool,
}

/// A tool call, its chain of principals, and the tool service that sent it.
#[derive(Clone, Copy, Debug)]
pub(super) struct CallInChain<'a> {
    pub(super) caller: &'a Caller,
    pub(super) chain: &'a Chain,
    pub(super) call: &'a Call,
}

/// A request that got no answer: why, and what was proven of it before.
#[derive(Debug)]
pub(super) struct Stopped {
    /// Why.
    pub(super) refusal: Refusal,
    /// On whose behalf it came, and what it asked for.
    pub(super) proven: Option<Box<(Chain, Call)>>,
}

impl From<Refusal> for Stopped {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, proven: None }
    }
}

impl Stopped {
    /// A call was refused whose chain was proven. A step that is none of the bundle's is no name, and stands in no record.
    pub(super) fn after(refusal: Refusal, moment: &Moment, chain: &Chain, call: &Call) -> Self {
        let bundle = &moment.snapshot.bundle;
        let steps = bundle.roles.as_ref().map(|roles| bundle.policies.shapes.choices(&roles.step)).unwrap_or_default();
        let step = if steps.contains(&chain.step) { chain.step.clone() } else { String::new() };
        Self { refusal, proven: Some(Box::new((Chain { step, ..chain.clone() }, call.clone()))) }
    }
}
