//! Verification of the approval, consent or release tokens that came with a call, before Cedar: whether it covers this
//! call and can be used. Nothing is consumed here; `consumption.rs` does that after Cedar.

mod evaluation_id;
mod signing;

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::approvals::binding::{self, APPROVAL_TOKEN, call_digest, is_supervisor};
use crate::approvals::release::{RELEASE, Release, ReleaseClaims, is_draft_digest, open_release};
use crate::approvals::store::Store;
use crate::approvals::store::transitions::{Receipt, ReceiptKey};
use crate::entities::direct::{OfRequest, On};
use crate::entropy::Entropy;
use crate::jose::{LEEWAY_OWN, TokenFault};
use crate::json::Value;
use crate::model::answer::Reason;
use crate::model::approval::{Approval, BoundCall, GivenConsent, Giver, Review, State, Subject};
use crate::model::call::Call;
use crate::model::chain::{Caller, Chain};
use crate::model::halt::Halted;
use crate::model::number::to_u32;
use crate::model::right::Right;
use crate::model::roles::Roles;
use crate::pdp::consent_report::may_report;
use crate::pdp::keys::Keys;
use crate::pdp::origin::CallInChain;
use crate::pdp::rights::may;
use crate::pdp::scoring::{approval as context_approval, limits};
use crate::pdp::services::Services;
use crate::pdp::snapshot::{Moment, Options};
use crate::telemetry::export::Telemetry;

/// State of a token that came with a call.
#[derive(Clone, Debug)]
pub(super) enum TokenState {
    /// The token can't be used, and the call is denied with this reason.
    Denied(Reason),
    /// There is no token, or its approval has expired; policies determine what is missing.
    None,
    /// The release token is valid for this call.
    Released(Box<ReleaseClaims>),
    /// The same operation consumed the approval or release before.
    Repeated(Receipt),
    /// The approval or consent is valid for this call.
    Usable(Box<Approval>),
}

/// States of the tokens that came with a call.
#[derive(Clone, Debug)]
pub(super) struct Presented {
    /// State of the approval token or release token.
    pub(super) token: TokenState,
    /// State of the consent token.
    pub(super) consent: TokenState,
}

impl Presented {
    /// Returns the states for a call without tokens.
    pub(super) fn none() -> Self {
        Self { token: TokenState::None, consent: TokenState::None }
    }

    pub(super) fn states(&self) -> [&TokenState; 2] {
        [&self.token, &self.consent]
    }

    /// Returns the reason for which a token can't be used.
    pub(super) fn denied(&self) -> Option<Reason> {
        self.states().into_iter().find_map(|state| match state {
            TokenState::Denied(reason) => Some(*reason),
            TokenState::None | TokenState::Released(_) | TokenState::Repeated(_) | TokenState::Usable(_) => None,
        })
    }

    /// Returns the receipt of the operation that consumed a token before.
    pub(super) fn receipt(&self) -> Option<&Receipt> {
        self.states().into_iter().find_map(|state| match state {
            TokenState::Repeated(receipt) => Some(receipt),
            TokenState::Denied(_) | TokenState::None | TokenState::Released(_) | TokenState::Usable(_) => None,
        })
    }

    /// Returns the customer's consent to the call, if it brings one.
    pub(super) fn consent(&self) -> Option<GivenConsent> {
        match &self.consent {
            TokenState::Usable(consent) => consent.consent(),
            TokenState::Denied(_) | TokenState::None | TokenState::Released(_) | TokenState::Repeated(_) => None,
        }
    }
}

/// Verifies and signs tokens, and proves evaluation ids.
#[derive(Debug)]
pub(super) struct Tokens {
    options: Arc<Options>,
    store: Arc<Store>,
    entropy: Arc<dyn Entropy>,
    telemetry: Arc<Telemetry>,
    keys: ArcSwap<Keys>,
}

impl Tokens {
    pub(super) fn new(services: &Services, keys: Keys) -> Self {
        Self {
            options: Arc::clone(&services.options),
            store: Arc::clone(&services.store),
            entropy: Arc::clone(&services.entropy),
            telemetry: Arc::clone(&services.telemetry),
            keys: ArcSwap::from_pointee(keys),
        }
    }

    /// Returns the keys in use.
    pub(super) fn keys(&self) -> Arc<Keys> {
        self.keys.load_full()
    }

    pub(super) fn replace_keys(&self, keys: Keys) {
        self.keys.store(Arc::new(keys));
    }

    /// Verifies the approval token or consent token that came with a call, without consuming the approval.
    async fn present(
        &self,
        moment: &Moment,
        CallInChain { caller, chain, call }: CallInChain<'_>,
        token: &str,
        giver: Giver,
    ) -> TokenState {
        let environment = &self.options.environment;
        let Some(roles) = moment.snapshot.bundle.roles.as_ref().filter(|_| self.options.accepts(chain)) else {
            return TokenState::Denied(Reason::ApprovalUnverifiable);
        };
        let keys = self.keys.load();
        let opened = match binding::open_approval(&keys.approval, environment, &caller.tool_service, token, giver) {
            Ok(opened) => opened,
            Err(TokenFault::Audience) => return TokenState::Denied(Reason::ApprovalOutOfScope),
            Err(_) => return TokenState::Denied(Reason::ApprovalUnverifiable),
        };
        let claims = opened.claims().clone();
        let unavailable = TokenState::Denied(Reason::StateUnavailable);
        // Read the approval before the receipt. Both are written in one transaction, so a consumed approval
        // implies that its receipt is visible.
        let Ok(found) = self.store.approval(&claims.jti).await else { return unavailable };
        let Ok(receipt) = self.store.receipt(&receipt_key(caller, call, &claims.jti)).await else { return unavailable };
        if let Some(receipt) = receipt {
            return match receipt.call_digest == call_digest(environment, roles, chain, call) {
                true => TokenState::Repeated(receipt),
                false => TokenState::Denied(Reason::ApprovalOutOfScope),
            };
        }
        let generation = self.store.seen().generation;
        let known = |approval: &Approval| {
            approval.binding.giver == giver
                && approval.generation == generation
                && claims.approval.generation == generation
                && approval.digest == claims.approval.digest
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
            // The approval's time is not over: it was voided because the state store lost data.
            (State::Expired, _) if approval.expires_at() > moment.now => {
                return TokenState::Denied(Reason::ApprovalUnverifiable);
            }
            (State::Expired, _) => return TokenState::None,
            (State::Approved | State::Cancelled | State::Denied | State::Pending, _) => {
                return TokenState::Denied(Reason::ApprovalUnverifiable);
            }
        }
        self.in_scope(moment, roles, chain, call, approval)
    }

    /// Checks that the approval covers this call, and that enough of its approvers may still approve it.
    fn in_scope(&self, moment: &Moment, roles: &Roles, chain: &Chain, call: &Call, approval: Approval) -> TokenState {
        let Some((usable, at_most_now)) = moment.snapshot.bundle.approvals.usable(&approval.binding) else {
            return TokenState::Denied(Reason::ApprovalRevoked);
        };
        let bound = &approval.binding.call;
        let at_most: Vec<String> = bound.at_most.keys().cloned().collect();
        let now = binding::bound_call(&self.options.environment, chain, call, &at_most);
        let owner = |call: &BoundCall| roles.owner(&roles.case, &call.case_attributes).to_owned();
        let given_by_other = approval.binding.giver == Giver::Customer && approval.binding.customer != owner(&now);
        if !bound.covers(&now) || owner(bound) != owner(&now) || given_by_other {
            return TokenState::Denied(Reason::ApprovalOutOfScope);
        }
        if bound.case_version != now.case_version {
            return TokenState::Denied(Reason::CaseChanged);
        }
        // Each call states the case's attributes again, and its token the person behind the supervisor. Both
        // must be what the reviewer saw, even if the case's version and the supervisor's subject are the
        // same.
        if bound.case_attributes != now.case_attributes
            || approval.binding.supervisor_person != chain.token.supervisor_person
        {
            return TokenState::Denied(Reason::ApprovalOutOfScope);
        }
        let eligible = self.eligible(moment, &approval);
        if eligible < approval.binding.quorum {
            return TokenState::Denied(Reason::ApprovalRevoked);
        }
        // The bundle in force may require more than the one under which the call was approved.
        if eligible < moment.snapshot.bundle.approvals.quorum(&approval.binding)
            || !bound.stays_within(&now, at_most_now)
        {
            return TokenState::Denied(Reason::ApprovalOutOfScope);
        }
        if approval.approved_at.plus(usable) <= moment.now {
            return TokenState::None;
        }
        TokenState::Usable(Box::new(approval))
    }

    /// Returns the number of approvers who may still approve. An approver who has lost that right does not
    /// count, nor does one whom a kill switch stops, or whose session was revoked after the review. A consent counts as
    /// long as the tool service that reported it may report consents.
    fn eligible(&self, moment: &Moment, approval: &Approval) -> u32 {
        if approval.binding.giver == Giver::Customer {
            let may = |consent: &GivenConsent| may_report(moment, &consent.reported_by, &approval.binding);
            return u32::from(approval.consent().is_some_and(|consent| may(&consent)));
        }
        let Some(template) = moment.snapshot.bundle.approvals.templates.get(&approval.binding.template) else {
            return 0;
        };
        let may = |reviewer: &Subject, person: &str| {
            let own = is_supervisor(&approval.binding, &reviewer.sub, Some(person));
            let of = OfRequest::of(approval, template.four_eyes, own);
            may(moment, Right::ApprovalReview, &reviewer.sub, On::Approval(&approval.binding, of))
                && !(own && template.four_eyes)
        };
        let halts = self.store.halts();
        let is_stopped = |review: &Review| {
            let (tenant, reviewer) = (&approval.binding.call.tenant, &review.reviewer.sub);
            Halted::person(tenant, reviewer, review.at).stopped_by(&halts.halts, moment.now)
        };
        let counts = |review: &&Review| may(&review.reviewer, &review.person) && !is_stopped(review);
        to_u32(approval.approvers().filter(counts).count())
    }

    /// Returns `context.approval` for an approval that was presented.
    pub(super) fn context_of(&self, moment: &Moment, approval: &Approval) -> Value {
        let bounded = limits(&moment.snapshot.bundle.policies.shapes, &approval.binding.call.arguments());
        let expires = Value::String(approval.approved_until.to_string());
        context_approval(&approval.binding.template, self.eligible(moment, approval), expires, bounded)
    }

    fn alert_replay(&self, approval: &Approval, caller: &Caller) {
        tracing::error!(
            name: "approval.replayed", approval = approval.id, caller = caller.tool_service,
            kind = approval.binding.giver.gives(),
            "another operation presented a consumed approval or consent"
        );
        self.telemetry.metrics.approval("replayed");
    }

    /// Verifies the tokens that came with a call. A hypothetical call uses none.
    pub(super) async fn presented(
        &self,
        moment: &Moment,
        CallInChain { caller, chain, call }: CallInChain<'_>,
        hypothetical: bool,
    ) -> Presented {
        if hypothetical {
            return Presented::none();
        }
        let asked = CallInChain { caller, chain, call };
        let token = match (&call.tokens.approval, &call.tokens.release) {
            (Some(token), None) => self.present(moment, asked, token, Giver::Reviewers).await,
            (None, Some(token)) => self.present_release(moment, asked, token).await,
            // A request with both tokens is refused when it is read, so this does not occur.
            (Some(_), Some(_)) => TokenState::Denied(Reason::ApprovalUnverifiable),
            (None, None) => TokenState::None,
        };
        let consent = match &call.tokens.consent {
            Some(token) => self.present(moment, asked, token, Giver::Customer).await,
            None => TokenState::None,
        };
        Presented { token, consent }
    }

    /// Verifies the release token that came with a call, without consuming the release.
    pub(super) async fn present_release(
        &self,
        moment: &Moment,
        CallInChain { caller, chain, call }: CallInChain<'_>,
        token: &str,
    ) -> TokenState {
        let environment = &self.options.environment;
        let Some(roles) = moment.snapshot.bundle.roles.as_ref() else {
            return TokenState::Denied(Reason::ApprovalUnverifiable);
        };
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
            return match receipt.call_digest == call_digest(environment, roles, chain, call) {
                true => TokenState::Repeated(receipt),
                false => TokenState::Denied(Reason::ApprovalOutOfScope),
            };
        }
        let released = &claims.release;
        if released.generation != self.store.seen().generation {
            return TokenState::Denied(Reason::ApprovalUnverifiable);
        }
        // Only the call that sends a reply names a channel; for any other call the release's own channel is
        // assumed.
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

    /// Returns the digest of the draft that a call sends, and the evaluation id of the release if one was
    /// presented. An argument that is not a draft digest is not returned, because arguments must not appear
    /// in records.
    pub(super) fn draft_of(
        &self,
        moment: &Moment,
        chain: &Chain,
        call: &Call,
        presented: &Presented,
    ) -> Option<(String, String)> {
        let release = match &presented.token {
            TokenState::Released(claims) => claims.jti.clone(),
            TokenState::Denied(_) | TokenState::None | TokenState::Repeated(_) | TokenState::Usable(_) => String::new(),
        };
        let digest = self.released(moment, chain, call)?.draft_digest;
        is_draft_digest(&digest).then_some((digest, release))
    }

    /// Returns the release that this call needs to show its draft to the customer; `None` if it shows none.
    /// Only the call that sends a reply names channel and recipient; any other shows the draft to the case's
    /// customer.
    pub(super) fn released(&self, moment: &Moment, chain: &Chain, call: &Call) -> Option<Release> {
        let roles = moment.snapshot.bundle.roles.as_ref()?;
        let content = roles.content.as_ref()?;
        let argument = |name: &str| call.arguments.get(name).and_then(Value::as_str).map(str::to_owned);
        let (digest, channel, recipient) = match content.customer_text(&call.action) {
            _ if content.send == call.action => {
                (argument("draft_digest")?, argument("channel")?, argument("recipient")?)
            }
            Some(text) => (argument(text)?, String::new(), roles.case_owner(&call.case).to_owned()),
            None => return None,
        };
        Some(Release {
            generation: self.store.seen().generation,
            tenant: call.case.tenant.clone(),
            case: call.case.id.clone(),
            customer: roles.case_owner(&call.case).to_owned(),
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
