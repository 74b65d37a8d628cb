//! Signs the tokens of answers: the binding of a denial that can be requested, and the outcome token of an
//! allow.

use crate::approvals::binding::{self, Allowed};
use crate::json::{self, Value};
use crate::model::answer::{Answer, Missing, Mode};
use crate::model::approval::{Binding, GivenConsent, Giver};
use crate::model::call::Call;
use crate::model::refusal::Refusal;
use crate::pdp::origin::CallInChain;
use crate::pdp::snapshot::Moment;
use crate::pdp::tokens::Tokens;

impl Tokens {
    /// Signs the token that the caller sends back later: the binding of a denial that can be requested, or
    /// the outcome token of an allow. `consent` is the one that the call brought.
    pub(in crate::pdp) fn sign(
        &self,
        moment: &Moment,
        CallInChain { caller, chain, call }: CallInChain<'_>,
        answer: &mut Answer,
        consent: Option<GivenConsent>,
    ) -> Result<(), Refusal> {
        if answer.mode != Mode::Enforce {
            return Ok(());
        }
        let keys = self.keys.load();
        let signed = match (&answer.outcome.missing, answer.outcome.denied) {
            (Some(missing), Some(_)) if !missing.template.is_empty() => {
                match self.binding(moment, CallInChain { caller, chain, call }, missing, answer) {
                    Some(binding) => binding::sign_binding(&keys.binding, Binding { consent, ..binding }, moment.now)
                        .map(|token| answer.binding_token = token),
                    None => Ok(()),
                }
            }
            (_, None) => {
                let allowed = Allowed {
                    evaluation_id: answer.evaluation_id.clone(),
                    tenant: call.case.tenant.clone(),
                    case: call.case.id.clone(),
                    conversation: call.correlation.conversation.clone(),
                    customer: moment.snapshot.bundle.case_owner(&call.case).to_owned(),
                    action: call.action.clone(),
                    checks: checks_of(moment, call),
                    approval: answer.approval.as_ref().map_or_else(String::new, |used| used.id.clone()),
                    consent: answer.consent.as_ref().map_or_else(String::new, |used| used.id.clone()),
                };
                let environment = &self.options.environment;
                let token =
                    binding::seal_outcome(&keys.outcome, environment, &caller.tool_service, allowed, moment.now);
                token.map(|token| answer.outcome_token = token)
            }
            (_, Some(_)) => Ok(()),
        };
        signed.map_err(|_| Refusal::Unavailable("the answer could not be signed"))
    }

    /// Returns the binding of a denied call; `None` if the bundle lacks the template or the case has no
    /// version.
    pub(in crate::pdp) fn binding(
        &self,
        moment: &Moment,
        CallInChain { chain, call, .. }: CallInChain<'_>,
        missing: &Missing,
        answer: &Answer,
    ) -> Option<Binding> {
        let bundle = &moment.snapshot.bundle;
        // Without a version, a change of the case after the denial could not be detected.
        if call.case.version.is_empty() {
            return None;
        }
        let (quorum, at_most) = match missing.giver {
            Giver::Customer => bundle.approvals.consents.get(&missing.template).map(|_| (1, &[][..]))?,
            Giver::Reviewers => {
                let template = bundle.approvals.templates.get(&missing.template)?;
                (template.quorum.max(missing.quorum), template.at_most.as_slice())
            }
        };
        Some(Binding {
            evaluation_id: answer.evaluation_id.clone(),
            template: missing.template.clone(),
            giver: missing.giver,
            quorum,
            requires: missing.requires.clone(),
            policy: bundle.version.digest.clone(),
            supervisor_person: chain.token.supervisor_person.clone(),
            customer: moment.snapshot.bundle.case_owner(&call.case).to_owned(),
            conversation: call.correlation.conversation.clone(),
            risk: answer
                .signals
                .risk
                .as_ref()
                .map_or(String::new(), |risk| format!("{}, {} of 100", risk.tier, risk.score)),
            findings: None,
            generation: self.store.seen().generation,
            consent: None,
            call: binding::bound_call(&self.options.environment, chain, call, at_most),
        })
    }

    /// Returns the public keys of tokens as a JWK set (RFC 7517).
    pub(in crate::pdp) fn jwks(&self) -> String {
        let keys = self.keys.load();
        let all: Vec<_> = keys.approval.jwks().into_iter().chain(keys.binding.jwks()).collect();
        let set = json::object([("keys", Value::Array(all))]);
        String::from_utf8_lossy(&json::canonical(&set)).into_owned()
    }
}

/// Returns the checks that a call creates when its success is reported.
fn checks_of(moment: &Moment, call: &Call) -> Vec<String> {
    let made = moment.snapshot.bundle.roles.as_ref().and_then(|roles| roles.checks.get(&call.action));
    made.map_or_else(Vec::new, |made| made.made(&call.arguments).into_iter().map(str::to_owned).collect())
}
