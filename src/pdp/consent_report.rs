//! Reports of customers' answers: the tool service that showed a customer the text of a denial reports whether the customer
//! agrees to the call. The customer is the case's own, and the text is one of the bundle's.

use std::time::Duration;

use crate::approvals::binding::{self, open_binding, open_old_binding};
use crate::approvals::consent::{ConsentTemplate, Values};
use crate::approvals::store::transitions::{Answered, NewConsent};
use crate::audit::events::{self, Actor, Happened};
use crate::entities::direct::{OfRequest, On};
use crate::json;
use crate::model::approval::{Approval, Binding, Giver, Justification, Review, State, Subject};
use crate::model::chain::Caller;
use crate::model::refusal::Refusal;
use crate::model::right::Right;
use crate::model::time::Timestamp;
use crate::pdp::Pdp;
use crate::pdp::approval_access::{Seen, display_digest};
use crate::pdp::origin::Origin;
use crate::pdp::refused::Refused;
use crate::pdp::rights::may;
use crate::pdp::snapshot::{Moment, computed};

/// A customer's answer, as it was read.
#[derive(Clone, Debug)]
pub struct ToReport {
    /// Evaluation id of the denial.
    pub evaluation_id: String,
    pub binding_token: String,
    /// Customer who answered, as the reporting tool service authenticated them.
    pub customer: String,
    pub agrees: bool,
    /// SHA-256 of the text that the customer was shown.
    pub text_digest: Vec<u8>,
    /// Id of the message with the answer; empty if there is none.
    pub message: String,
}

impl Pdp {
    /// Stores a customer's answer. If the customer agrees, the tool service of the denied call gets a token, with which
    /// exactly this call can be made once.
    ///
    /// # Errors
    /// If the request is refused; the refusal is already recorded or counted.
    pub async fn report_consent(&self, origin: &Origin, read: Result<ToReport, Refusal>) -> Result<Seen, Refused> {
        let moment = self.moment();
        let caller = self.admission.service(&moment, origin)?;
        let _share = self.admission.share(&moment, origin, &caller.tool_service).await?;
        let by = Actor::service(&caller).in_trace(origin.trace.id());
        let reported = match read {
            Ok(asked) => self.answered(&moment, &caller, &by, asked).await,
            Err(refusal) => Err(refusal),
        };
        self.or_refused(&moment, origin, by, reported).await
    }

    async fn answered(&self, moment: &Moment, caller: &Caller, by: &Actor, asked: ToReport) -> Result<Seen, Refusal> {
        let keys = self.tokens.keys();
        let environment = &self.options.environment;
        let binding = match asked.agrees {
            true => open_binding(&keys.binding, environment, &asked.binding_token, moment.now),
            // A customer may take a consent back for as long as it can be used.
            false => open_old_binding(&keys.binding, environment, &asked.binding_token),
        };
        let binding = binding.map_err(|fault| Refusal::Precondition(fault.message()))?;
        may_answer(moment, caller, &binding, &asked)?;
        let id = consent_id(&binding);
        let given = self.store.approval(&id).await?.filter(|_| !asked.agrees);
        let consent = match given {
            Some(given) => {
                Approval { reviews: vec![review(moment, caller, &asked)], requested_at: moment.now, ..given }
            }
            None => {
                let generation = self.store.seen().generation;
                let current = open_binding(&keys.binding, environment, &asked.binding_token, moment.now);
                current.map_err(|fault| Refusal::Precondition(fault.message()))?;
                if binding.generation != generation {
                    return Err(Refusal::Precondition(
                        "the state store lost data since the denial, perhaps that it was answered: decide the call again",
                    ));
                }
                self.not_halted(moment, &binding)?;
                let (template, text) = shown(moment, &binding, &asked)?;
                let usable = template.usable();
                consent(moment, binding, usable, review(moment, caller, &asked), text)
            }
        };
        let customer = self.audit.customer(&asked.customer);
        let text = self.audit.digest(&json::Value::from(consent.display.as_str()));
        let more = [
            ("customer", customer.into()),
            ("decision", if asked.agrees { "agree" } else { "refuse" }.into()),
            ("message", asked.message.into()),
            ("text_digest", text.into()),
        ];
        let record = events::about(Happened::Reported, by, &consent, &more);
        match self.store.answer(NewConsent { consent, record: record.clone() }).await? {
            Answered::New(transition) => {
                self.follow(moment, &transition, record).await?;
                self.telemetry.metrics.approval(match transition.state {
                    State::Approved => "consent_given",
                    State::Revoked => "consent_withdrawn",
                    State::Cancelled | State::Consumed | State::Denied | State::Expired | State::Pending => {
                        "consent_refused"
                    }
                });
                let stored = self.store.approval(&id).await?.ok_or(Refusal::NotFound)?;
                Ok(self.seen(moment, stored))
            }
            Answered::Known(known) => Ok(self.seen(moment, *known)),
            Answered::Late => Err(Refusal::Precondition(
                "the customer has given another answer before, or the consent was consumed: decide the call again",
            )),
            Answered::Reused => Err(Refusal::Precondition(
                "`message_id` was reported before, for another denial of the same call: ask the customer again",
            )),
        }
    }
}

/// Checks that the caller may report an answer to this denial, and that it is of the case's customer.
fn may_answer(moment: &Moment, caller: &Caller, binding: &Binding, asked: &ToReport) -> Result<(), Refusal> {
    if binding.evaluation_id != asked.evaluation_id || !caller.speaks_for(&binding.call.tenant) {
        return Err(Refusal::Forbidden("the binding token belongs to another tenant or another evaluation"));
    }
    if !may_report(moment, &caller.tool_service, binding) {
        return Err(Refusal::Forbidden(
            "the caller may not report this customer's answer: no policy grants `consent.report`",
        ));
    }
    if binding.giver != Giver::Customer {
        return Err(Refusal::Precondition(
            "the denial lacks no consent of the customer: request an approval with `RequestApproval`",
        ));
    }
    // The bundle in force may name another owner than the one that denied the call.
    let roles = moment.snapshot.bundle.roles.as_ref();
    let owner = roles.map_or("", |roles| roles.owner(&roles.case, &binding.call.case_attributes));
    if binding.customer.is_empty() || binding.customer != asked.customer || owner != asked.customer {
        return Err(Refusal::Precondition(
            "`customer_id` is not the customer of the case, who alone can agree to the call",
        ));
    }
    Ok(())
}

/// Returns the template of a denial, and the text of it that the customer was shown.
fn shown<'a>(
    moment: &'a Moment,
    binding: &Binding,
    asked: &ToReport,
) -> Result<(&'a ConsentTemplate, String), Refusal> {
    let bundle = &moment.snapshot.bundle;
    let template = bundle.approvals.consents.get(&binding.template);
    let template = template.ok_or(Refusal::Precondition("the bundle no longer has the consent's template"))?;
    let derived = computed(bundle, &binding.call.action, &binding.call.exact)?;
    let texts = template.texts(Values::of_bound(&binding.call, &derived))?;
    let text = texts.into_values().find(|text| display_digest(text) == asked.text_digest);
    let text = text.ok_or(Refusal::Precondition(
        "`text_digest` is of no text that the denial asked to show: show one of its texts unchanged",
    ))?;
    Ok((template, text))
}

/// Returns the id of the consent to a denied call. A denial has at most one.
fn consent_id(binding: &Binding) -> String {
    format!("con_{}", binding.evaluation_id.replace('-', ""))
}

/// Returns whether a tool service may report the customer's answer to this call. Agents are no tool services, so no agent
/// may.
pub(super) fn may_report(moment: &Moment, tool_service: &str, binding: &Binding) -> bool {
    let of = OfRequest { own: tool_service == binding.call.audience, ..OfRequest::default() };
    may(moment, Right::ConsentReport, tool_service, On::Approval(binding, of))
}

fn review(moment: &Moment, caller: &Caller, asked: &ToReport) -> Review {
    Review {
        reviewer: Subject { iss: caller.tool_service.clone(), sub: asked.customer.clone() },
        person: asked.customer.clone(),
        approves: asked.agrees,
        at: moment.now,
        reason: asked.message.clone(),
    }
}

/// Returns the consent, or the refusal of one.
fn consent(moment: &Moment, binding: Binding, usable: Duration, answer: Review, text: String) -> Approval {
    let agrees = answer.approves;
    let (approved_at, approved_until) = match agrees {
        true => (moment.now, moment.now.plus(usable)),
        false => (Timestamp::default(), Timestamp::default()),
    };
    Approval {
        id: consent_id(&binding),
        state: if agrees { State::Approved } else { State::Denied },
        generation: String::new(),
        revision: 0,
        digest: binding::digest(&binding.call),
        binding,
        justification: Justification::default(),
        display: text,
        reversibility: String::new(),
        reviews: vec![answer],
        requested_at: moment.now,
        review_until: moment.now,
        approved_at,
        approved_until,
        denial_reason: String::new(),
        suggested: String::new(),
        repeats: 0,
    }
}
