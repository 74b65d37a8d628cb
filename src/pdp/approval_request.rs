//! Requests for approval: the tool service that was denied turns the denial into a pending approval of
//! exactly that call.

use crate::approvals::binding::{self, open_binding};
use crate::approvals::release::draft_digest;
use crate::approvals::store::transitions::{NewApproval, Requested, with_state};
use crate::approvals::template::Template;
use crate::approvals::view;
use crate::audit::events::{self, Actor, Happened};
use crate::json;
use crate::model::approval::{Approval, Binding, Evidence, Giver, Justification, REPEATS_MAX, State};
use crate::model::refusal::Refusal;
use crate::model::time::Timestamp;
use crate::pdp::Pdp;
use crate::pdp::admission::Party;
use crate::pdp::approval_access::Seen;
use crate::pdp::origin::Origin;
use crate::pdp::refused::Refused;
use crate::pdp::snapshot::{Moment, computed};

/// A request for approval, as it was read.
#[derive(Clone, Debug)]
pub struct ToRequest {
    /// Evaluation id of the denial.
    pub evaluation_id: String,
    pub binding_token: String,
    pub justification: Justification,
    /// Draft that the call sends, for reviewers to read; may be empty.
    pub draft: String,
}

impl Pdp {
    /// Turns a denial into a pending approval, if its binding token proves that it can be requested.
    ///
    /// # Errors
    /// If the request is refused; the refusal is already recorded or counted.
    pub async fn request_approval(&self, origin: &Origin, read: Result<ToRequest, Refusal>) -> Result<Seen, Refused> {
        let moment = self.moment();
        let caller = self.admission.service(&moment, origin)?;
        let _share = self.admission.share(&moment, origin, &caller.tool_service).await?;
        let by = Actor::service(&caller).in_trace(origin.trace.id());
        let party = Party::Service(caller);
        let requested = self.requested(&moment, &party, &by, read).await;
        self.or_refused(&moment, origin, by, requested).await
    }

    async fn requested(
        &self,
        moment: &Moment,
        party: &Party,
        by: &Actor,
        read: Result<ToRequest, Refusal>,
    ) -> Result<Seen, Refusal> {
        let asked = read?;
        let keys = self.tokens.keys();
        let binding = open_binding(&keys.binding, &self.options.environment, &asked.binding_token, moment.now);
        let binding = binding.map_err(|fault| Refusal::Precondition(fault.message()))?;
        let ours = matches!(party, Party::Service(caller)
            if caller.tool_service == binding.call.audience && caller.speaks_for(&binding.call.tenant));
        if !ours || binding.evaluation_id != asked.evaluation_id {
            return Err(Refusal::Forbidden("the binding token belongs to another caller or another evaluation"));
        }
        if binding.giver == Giver::Customer {
            return Err(Refusal::Precondition(
                "the denial lacks the customer's consent, which no reviewer can give: report the customer's answer with `ReportConsent`",
            ));
        }
        if !asked.draft.is_empty() && draft_digest(&asked.draft) != binding.call.draft_digest() {
            return Err(Refusal::invalid("draft", "is not the draft that the denied call sends"));
        }
        let template = self.template(moment, &binding)?;
        justified(&asked.justification, template)?;
        let evidence = self.known_evidence(moment, &binding, &asked.justification)?;
        self.not_halted(moment, &binding)?;
        let templates = &moment.snapshot.bundle.approvals;
        let approval = self.pending(moment, binding, asked.justification, &evidence, template)?;
        let mut more =
            vec![("justification_digest", self.audit.digest(&justification_value(&approval.justification)).into())];
        let sealed = self.evidence.of_display(&approval).await;
        more.extend(sealed.as_ref().map(|sealed| ("evidence", sealed.digest().into())));
        let (case, agent, queue) = (templates.pending.case, templates.pending.agent, templates.pending.queue);
        let new = NewApproval {
            record: events::about(Happened::Requested, by, &approval, &more),
            caps: (i64::from(case), i64::from(agent), i64::from(queue)),
            cool_down: templates.cool_down(),
            approval: approval.clone(),
            draft: asked.draft.clone(),
        };
        let record = new.record.clone();
        let approval = match self.store.request(new).await? {
            Requested::New(transition) => {
                let record = with_state(record, transition.state);
                self.recorder.record_with_evidence(moment.now, &transition.revision, record, sealed).await?;
                self.telemetry.metrics.approval("requested");
                Approval { revision: transition.revision.number, ..approval }
            }
            Requested::Same(waiting) => {
                if waiting.repeats >= REPEATS_MAX && asked.draft.is_empty() {
                    return Ok(self.seen(moment, *waiting));
                }
                self.store.repeat(&waiting.id, asked.draft).await?;
                let approval = Approval { repeats: waiting.repeats.saturating_add(1).min(REPEATS_MAX), ..*waiting };
                self.inbox.note_repeats(&approval);
                approval
            }
            refused => return Err(why_not(&refused)),
        };
        Ok(self.seen(moment, approval))
    }

    /// Returns the evaluations that a justification names.
    fn known_evidence(
        &self,
        moment: &Moment,
        binding: &Binding,
        justification: &Justification,
    ) -> Result<Vec<Evidence>, Refusal> {
        let of_case = |(index, id): (usize, &String)| {
            let known = self.tokens.evidence(moment, id, &binding.call.tenant, &binding.call.case);
            known.ok_or_else(|| {
                Refusal::invalid(format!("justification.evidence[{index}]"), "is not an evaluation of this case")
            })
        };
        justification.evidence.iter().enumerate().map(of_case).collect()
    }

    fn pending(
        &self,
        moment: &Moment,
        binding: Binding,
        justification: Justification,
        evidence: &[Evidence],
        template: &Template,
    ) -> Result<Approval, Refusal> {
        let id = crate::entropy::evaluation_id(self.entropy.as_ref(), moment.now)?;
        Ok(Approval {
            id: format!("apr_{}", id.simple()),
            state: State::Pending,
            generation: String::new(),
            revision: 0,
            digest: binding::digest(&binding.call),
            display: view::display(
                &binding,
                &computed(&moment.snapshot.bundle, &binding.call.action, &binding.call.arguments())?,
                evidence,
                template,
            ),
            reversibility: template.reversibility.name().to_owned(),
            justification: view::unverified(&justification),
            reviews: vec![],
            requested_at: moment.now,
            review_until: moment.now.plus(template.review()),
            approved_at: Timestamp::default(),
            approved_until: Timestamp::default(),
            denial_reason: String::new(),
            suggested: String::new(),
            repeats: 0,
            binding,
        })
    }
}

/// Returns the refusal of a request that the store did not take.
fn why_not(refused: &Requested) -> Refusal {
    match refused {
        Requested::AgentFull => Refusal::Exhausted("the agent has reached its maximum number of pending requests"),
        Requested::CaseFull => Refusal::Exhausted("the case has reached its maximum number of pending requests"),
        Requested::QueueFull => {
            Refusal::Exhausted("the reviewers' queue has reached its maximum number of pending requests")
        }
        Requested::CoolDown | Requested::New(_) | Requested::Same(_) => {
            Refusal::Precondition("the same call was denied a short while ago: do not ask again")
        }
    }
}

fn justified(justification: &Justification, template: &Template) -> Result<(), Refusal> {
    let bounded = |text: &str, most: usize, field| match text.len() {
        0 => Err(Refusal::invalid(field, "is missing")),
        length if length > most => Err(Refusal::invalid(field, "is too long")),
        _ => Ok(()),
    };
    bounded(&justification.customer_request, 2000, "justification.customer_request")?;
    bounded(&justification.expected_effect, 2000, "justification.expected_effect")?;
    if template.needs_policy_clause || !justification.policy_clause.is_empty() {
        bounded(&justification.policy_clause, 500, "justification.policy_clause")?;
    }
    if template.needs_evidence && justification.evidence.is_empty() {
        return Err(Refusal::invalid("justification.evidence", "is missing: the template requires it"));
    }
    Ok(())
}

fn justification_value(justification: &Justification) -> json::Value {
    let text = |text: &str| json::Value::from(text);
    json::object([
        ("customer_request", text(&justification.customer_request)),
        ("evidence", json::Value::Array(justification.evidence.iter().map(|id| text(id)).collect())),
        ("expected_effect", text(&justification.expected_effect)),
        ("policy_clause", text(&justification.policy_clause)),
    ])
}
