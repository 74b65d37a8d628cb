//! The release of a draft, when it is used: the token is verified before Cedar, against the very call that sends the draft.

use crate::approvals::release::{RELEASE, Release, is_draft_digest, open_release};
use crate::jose::{LEEWAY_OWN, TokenFault};
use crate::json::Value;
use crate::model::answer::Reason;
use crate::model::approval::Subject;
use crate::model::call::Call;
use crate::model::chain::Chain;
use crate::pdp::burn::{call_digest, receipt_key};
use crate::pdp::present::Presented;
use crate::pdp::weigh::Asking;
use crate::pdp::{Moment, Pdp};

impl Pdp {
    /// Verifies the release token that came with a call. Nothing is used yet.
    pub(super) async fn present_release(&self, moment: &Moment, (caller, chain, call): Asking<'_>, token: &str) -> Presented {
        let environment = &self.options.environment;
        let keys = self.keys.load();
        let opened = match open_release(&keys.binding, environment, &caller.tool_service, token) {
            Ok(opened) => opened,
            Err(TokenFault::Audience) => return Presented::Denied(Reason::ApprovalOutOfScope),
            Err(_) => return Presented::Denied(Reason::ApprovalUnverifiable),
        };
        let claims = opened.claims().clone();
        let Ok(receipt) = self.store.receipt(&receipt_key(caller, call, &claims.jti)).await else {
            return Presented::Denied(Reason::StateUnavailable);
        };
        if let Some(receipt) = receipt {
            return match receipt.call_digest == call_digest(environment, chain, call) {
                true => Presented::Repeated(receipt),
                false => Presented::Denied(Reason::ApprovalOutOfScope),
            };
        }
        let released = &claims.release;
        if released.generation != self.store.seen().generation {
            return Presented::Denied(Reason::ApprovalUnverifiable);
        }
        // What is not sent as a reply has no channel of its own.
        let now = self.released(moment, chain, call).map(|now| match now.channel.is_empty() {
            true => Release { channel: released.channel.clone(), ..now },
            false => now,
        });
        match now {
            Some(now) if now == Release { case_version: now.case_version.clone(), ..released.clone() } => {
                if now.case_version != released.case_version {
                    return Presented::Denied(Reason::CaseChanged);
                }
            }
            Some(_) | None => return Presented::Denied(Reason::ApprovalOutOfScope),
        }
        match opened.at(moment.now, LEEWAY_OWN, RELEASE) {
            Ok(claims) => Presented::Released(Box::new(claims)),
            Err(TokenFault::Expired) => Presented::Denied(Reason::ApprovalExpired),
            Err(_) => Presented::Denied(Reason::ApprovalUnverifiable),
        }
    }

    /// The digest of the draft that a call sends, and the evaluation that let it go, if a release was presented. A digest that is none is
    /// an argument like any other, and stands in no record.
    pub(super) fn draft_of(&self, moment: &Moment, chain: &Chain, call: &Call, presented: &Presented) -> Option<(String, String)> {
        let release = match presented {
            Presented::Released(claims) => claims.jti.clone(),
            Presented::Denied(_) | Presented::None | Presented::Repeated(_) | Presented::Usable(_) => String::new(),
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
