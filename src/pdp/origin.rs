//! The input of the pipelines: a request, its origin and purpose, and the call in its chain of principals.
//! Also the refusal of a request whose chain was proven.

use crate::caller::Peer;
use crate::model::call::{Call, PlainCall};
use crate::model::chain::{Caller, Chain};
use crate::model::refusal::Refusal;
use crate::pdp::snapshot::Moment;
use crate::telemetry::spans::Trace;

#[derive(Clone, Debug)]
pub enum Request {
    Call(Box<Call>),
    /// A plain Cedar request, in conformance mode.
    Plain(Box<PlainCall>),
}

impl Request {
    pub(super) fn has_texts(&self) -> bool {
        matches!(self, Self::Call(call) if !call.untrusted.is_empty())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The caller acts on the answer.
    Authorize,
    /// The answer determines whether a draft may be sent.
    EvaluateOutput,
    /// The answer is an explanation, and never permits.
    Explain,
    /// The answer contains what a model may see.
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

/// Source and purpose of a request.
#[derive(Clone, Debug)]
pub struct Origin {
    pub peer: Peer,
    pub trace: Trace,
    pub purpose: Purpose,
    /// Whether the request waits for a permit, as requests of a stream or a batch do.
    pub waits: bool,
}

/// A tool call, its chain of principals, and the tool service that sent it.
#[derive(Clone, Copy, Debug)]
pub(super) struct CallInChain<'a> {
    pub(super) caller: &'a Caller,
    pub(super) chain: &'a Chain,
    pub(super) call: &'a Call,
}

/// A refused request, with what was proven before the refusal.
#[derive(Debug)]
pub(super) struct Stopped {
    pub(super) refusal: Refusal,
    /// Chain and call, if the chain was proven.
    pub(super) proven: Option<Box<(Chain, Call)>>,
}

impl From<Refusal> for Stopped {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, proven: None }
    }
}

impl Stopped {
    /// Creates the refusal of a call whose chain was proven. A step that is not in the bundle is removed,
    /// because it could be any text and must not appear in records.
    pub(super) fn after(refusal: Refusal, moment: &Moment, chain: &Chain, call: &Call) -> Self {
        let bundle = &moment.snapshot.bundle;
        let steps = bundle.roles.as_ref().map_or([].as_slice(), |roles| bundle.policies.shapes.choices(&roles.step));
        let step = if steps.contains(&chain.step) { chain.step.clone() } else { String::new() };
        Self { refusal, proven: Some(Box::new((Chain { step, ..chain.clone() }, call.clone()))) }
    }
}
