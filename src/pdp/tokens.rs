//! A token that came with a call: whether it is what a human or the output check said of this call, and can be used. Nothing is used here.

use crate::approvals::binding::{self, APPROVAL_TOKEN};
use crate::approvals::binding::{call_digest, is_supervisor};
use crate::approvals::release::{RELEASE, Release, ReleaseClaims, is_draft_digest, open_release};
use crate::approvals::store::transitions::{Receipt, ReceiptKey};
use crate::entities::direct::{OfRequest, On};
use crate::jose::{LEEWAY_OWN, TokenFault};
use crate::json::Value;
use crate::model::answer::Reason;
use crate::model::approval::{Approval, State, Subject};
use crate::model::call::Call;
use crate::model::chain::{Caller, Chain};
use crate::model::right::Right;
use crate::pdp::Pdp;
use crate::pdp::origin::CallInChain;
use crate::pdp::scoring::{approval as context_approval, limits};
use crate::pdp::snapshot::Moment;

/// What became of a token that came with a call.
#[derive(Clone, Debug)]
pub(super) enum TokenState {
    /// It can't be used.
    Denied(Reason),
    /// None came, or its approval is over: policies say what is missing.
    None,
    /// A draft was released, and can be sent.
    Released(Box<ReleaseClaims>),
    /// The same operation used it before.
    Repeated(Receipt),
    /// It can be used.
    Usable(Box<Approval>),
}

impl Pdp {
    /// Verifies the approval token that came with a call. Nothing is used yet.
    pub(super) async fn present(&self, moment: &Moment, caller: &Caller, chain: &Chain, call: &Call, token: &str) -> TokenState {
        let environment = &self.options.environment;
        if chain.asserted && !self.options.development {
            return TokenState::Denied(Reason::ApprovalUnverifiable);
        }
        let keys = self.keys.load();
        let opened = match binding::open_approval(&keys.approval, environment, &caller.tool_service, token) {
            Ok(opened) => opened,
            Err(TokenFault::Audience) => return TokenState::Denied(Reason::ApprovalOutOfScope),
            Err(_) => return TokenState::Denied(Reason::ApprovalUnverifiable),
        };
        let claims = opened.claims().clone();
        let unavailable = TokenState::Denied(Reason::StateUnavailable);
        // In this order: if it is used by now, then the use's receipt is there, too.
        let Ok(found) = self.store.approval(&claims.jti).await else { return unavailable };
        let Ok(receipt) = self.store.receipt(&receipt_key(caller, call, &claims.jti)).await else { return unavailable };
        if let Some(receipt) = receipt {
            return match receipt.call_digest == call_digest(environment, chain, call) {
                true => TokenState::Repeated(receipt),
                false => TokenState::Denied(Reason::ApprovalOutOfScope),
            };
        }
        let generation = self.store.seen().generation;
        let known = |approval: &Approval| {
            approval.generation == generation && claims.approval.generation == generation && approval.digest == claims.approval.digest
        };
        let Some(approval) = found.filter(known) else { return TokenState::Denied(Reason::ApprovalUnverifiable) };
        let in_time = opened.at(moment.now, LEEWAY_OWN, APPROVAL_TOKEN);
        match (approval.state_at(moment.now), in_time) {
            (State::Approved, Ok(_)) => {}
            (State::Approved, Err(TokenFault::Expired)) => return TokenState::Denied(Reason::ApprovalExpired),
            (State::Consumed, _) => {
                self.alert_replay(&approval, caller);
                return TokenState::Denied(Reason::ApprovalUsed);
            }
            (State::Revoked, _) => return TokenState::Denied(Reason::ApprovalRevoked),
            // Not by its time, but since the store went back.
            (State::Expired, _) if approval.expires_at() > moment.now => return TokenState::Denied(Reason::ApprovalUnverifiable),
            (State::Expired, _) => return TokenState::None,
            (State::Approved | State::Cancelled | State::Denied | State::Pending, _) => {
                return TokenState::Denied(Reason::ApprovalUnverifiable);
            }
        }
        self.in_scope(moment, chain, call, approval)
    }

    /// Whether the approval is of this call, and its approvers may still approve it.
    fn in_scope(&self, moment: &Moment, chain: &Chain, call: &Call, approval: Approval) -> TokenState {
        let Some(template) = moment.snapshot.bundle.approvals.templates.get(&approval.binding.template) else {
            return TokenState::Denied(Reason::ApprovalRevoked);
        };
        let bound = &approval.binding.call;
        let at_most: Vec<String> = bound.at_most.keys().cloned().collect();
        let now = binding::bound_call(&self.options.environment, chain, call, &at_most);
        if !bound.covers(&now) {
            return TokenState::Denied(Reason::ApprovalOutOfScope);
        }
        if bound.case_version != now.case_version {
            return TokenState::Denied(Reason::CaseChanged);
        }
        // The tool service reports the case and the person behind the supervisor with each call. Under the same version and subject
        // both must be what the reviewer was shown.
        if bound.case_attributes != now.case_attributes || approval.binding.supervisor_person != chain.token.supervisor_person {
            return TokenState::Denied(Reason::ApprovalOutOfScope);
        }
        let eligible = self.eligible(moment, &approval);
        if eligible < approval.binding.quorum {
            return TokenState::Denied(Reason::ApprovalRevoked);
        }
        // It was approved under a bundle that asked for less than the one in force.
        if eligible < moment.snapshot.bundle.approvals.quorum(&approval.binding) || !bound.stays_within(&now, &template.at_most) {
            return TokenState::Denied(Reason::ApprovalOutOfScope);
        }
        if approval.approved_at.plus(template.usable()) <= moment.now {
            return TokenState::None;
        }
        TokenState::Usable(Box::new(approval))
    }

    /// How many of those who approved may still approve: who was dismissed since then approves nothing.
    fn eligible(&self, moment: &Moment, approval: &Approval) -> u32 {
        let Some(template) = moment.snapshot.bundle.approvals.templates.get(&approval.binding.template) else { return 0 };
        let may = |reviewer: &Subject, person: &str| {
            let own = is_supervisor(&approval.binding, &reviewer.sub, Some(person));
            let of = OfRequest::of(approval, template.four_eyes, own);
            self.may(moment, Right::ApprovalReview, &reviewer.sub, On::Approval(&approval.binding, of)) && !(own && template.four_eyes)
        };
        let eligible = approval.approvers().filter(|review| may(&review.reviewer, &review.person)).count();
        u32::try_from(eligible).unwrap_or(0)
    }

    /// `context.approval` of an approval that was presented.
    pub(super) fn context_of(&self, moment: &Moment, approval: &Approval) -> Value {
        let bounded = limits(&moment.snapshot.bundle.policies.shapes, &approval.binding.call.arguments());
        let expires = Value::String(approval.approved_until.to_string());
        context_approval(&approval.binding.template, self.eligible(moment, approval), expires, bounded)
    }

    fn alert_replay(&self, approval: &Approval, caller: &Caller) {
        tracing::error!(
            name: "approval.replayed", approval = approval.id, caller = caller.tool_service,
            "a used approval was presented by another operation"
        );
        self.telemetry.metrics.approval("replayed");
    }

    /// What became of the token that came with a call.
    pub(super) async fn presented(
        &self,
        moment: &Moment,
        CallInChain { caller, chain, call }: CallInChain<'_>,
        hypothetical: bool,
    ) -> TokenState {
        match (&call.tokens.approval, &call.tokens.release) {
            (Some(token), None) if !hypothetical => self.present(moment, caller, chain, call, token).await,
            (None, Some(token)) if !hypothetical => self.present_release(moment, CallInChain { caller, chain, call }, token).await,
            // Both: refused when the request was read.
            (Some(_), Some(_)) => TokenState::Denied(Reason::ApprovalUnverifiable),
            (None | Some(_), None) | (None, Some(_)) => TokenState::None,
        }
    }

    /// Verifies the release token that came with a call. Nothing is used yet.
    pub(super) async fn present_release(
        &self,
        moment: &Moment,
        CallInChain { caller, chain, call }: CallInChain<'_>,
        token: &str,
    ) -> TokenState {
        let environment = &self.options.environment;
        let keys = self.keys.load();
        let opened = match open_release(&keys.binding, environment, &caller.tool_service, token) {
            Ok(opened) => opened,
            Err(TokenFault::Audience) => return TokenState::Denied(Reason::ApprovalOutOfScope),
            Err(_) => return TokenState::Denied(Reason::ApprovalUnverifiable),
        };
        let claims = opened.claims().clone();
        let Ok(receipt) = self.store.receipt(&receipt_key(caller, call, &claims.jti)).await else {
            return TokenState::Denied(Reason::StateUnavailable);
        };
        if let Some(receipt) = receipt {
            return match receipt.call_digest == call_digest(environment, chain, call) {
                true => TokenState::Repeated(receipt),
                false => TokenState::Denied(Reason::ApprovalOutOfScope),
            };
        }
        let released = &claims.release;
        if released.generation != self.store.seen().generation {
            return TokenState::Denied(Reason::ApprovalUnverifiable);
        }
        // What is not sent as a reply has no channel of its own.
        let now = self.released(moment, chain, call).map(|now| match now.channel.is_empty() {
            true => Release { channel: released.channel.clone(), ..now },
            false => now,
        });
        match now {
            Some(now) if now == Release { case_version: now.case_version.clone(), ..released.clone() } => {
                if now.case_version != released.case_version {
                    return TokenState::Denied(Reason::CaseChanged);
                }
            }
            Some(_) | None => return TokenState::Denied(Reason::ApprovalOutOfScope),
        }
        match opened.at(moment.now, LEEWAY_OWN, RELEASE) {
            Ok(claims) => TokenState::Released(Box::new(claims)),
            Err(TokenFault::Expired) => TokenState::Denied(Reason::ApprovalExpired),
            Err(_) => TokenState::Denied(Reason::ApprovalUnverifiable),
        }
    }

    /// The digest of the draft that a call sends, and the evaluation that let it go, if a release was presented. A digest that is none is
    /// an argument like any other, and stands in no record.
    pub(super) fn draft_of(&self, moment: &Moment, chain: &Chain, call: &Call, presented: &TokenState) -> Option<(String, String)> {
        let release = match presented {
            TokenState::Released(claims) => claims.jti.clone(),
            TokenState::Denied(_) | TokenState::None | TokenState::Repeated(_) | TokenState::Usable(_) => String::new(),
        };
        let digest = self.released(moment, chain, call)?.draft_digest;
        is_draft_digest(&digest).then_some((digest, release))
    }

    /// The release that would let this call show its draft to the customer; `None` if it is no call that shows one. Only the call that
    /// sends a reply names channel and recipient: any other shows it to the case's customer.
    pub(super) fn released(&self, moment: &Moment, chain: &Chain, call: &Call) -> Option<Release> {
        let content = moment.snapshot.bundle.roles.as_ref()?.content.as_ref()?;
        let argument = |name: &str| call.arguments.get(name).and_then(Value::as_str).map(str::to_owned);
        let (digest, channel, recipient) = match content.customer_text(&call.action) {
            _ if content.send == call.action => (argument("draft_digest")?, argument("channel")?, argument("recipient")?),
            Some(text) => (argument(text)?, String::new(), call.customer().to_owned()),
            None => return None,
        };
        Some(Release {
            generation: self.store.seen().generation,
            tenant: call.case.tenant.clone(),
            case: call.case.id.clone(),
            customer: call.customer().to_owned(),
            case_version: call.case.version.clone(),
            agent: Subject { iss: chain.token.agent_issuer.clone(), sub: chain.agent.clone() },
            supervisor: Subject { iss: chain.token.supervisor_issuer.clone(), sub: chain.supervisor.clone() },
            draft_digest: digest,
            channel,
            recipient,
        })
    }
}

pub(super) fn receipt_key(caller: &Caller, call: &Call, approval: &str) -> ReceiptKey {
    ReceiptKey {
        tenant: call.case.tenant.clone(),
        caller: caller.tool_service.clone(),
        approval: approval.to_owned(),
        operation: call.tokens.operation.clone(),
    }
}
