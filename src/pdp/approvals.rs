//! The life of an approval: requested by the tool service that was denied, reviewed by humans, fetched by the tool service. Each
//! transition is recorded before anything follows from it. Its use is in `burn.rs`.

use crate::approvals::binding::{self, open_binding};
use crate::approvals::store::{Filter, Left, Moved, NewApproval, NewReview, Requested, Transition, with_state};
use crate::approvals::template::Template;
use crate::approvals::view;
use crate::audit::Recorded;
use crate::audit::events::{self, Actor};
use crate::entities::direct::{OfRequest, On};
use crate::jose;
use crate::json::{self, Object};
use crate::model::approval::{Approval, Binding, Justification, Review, State, Subject};
use crate::model::chain::Human;
use crate::model::halt::Halted;
use crate::model::refusal::Refusal;
use crate::model::right::Right;
use crate::model::time::Timestamp;
use crate::pdp::authorize::{Origin, no_entropy};
use crate::pdp::rights::Party;
use crate::pdp::state::unavailable;
use crate::pdp::{Moment, Pdp, Refused};

/// A request for an approval, as it was read.
#[derive(Clone, Debug)]
pub struct ToRequest {
    /// Evaluation id of the denial.
    pub evaluation_id: String,
    /// The denial's binding token.
    pub binding_token: String,
    /// Why.
    pub justification: Justification,
}

/// A review, as it was read.
#[derive(Clone, Debug)]
pub struct ToReview {
    /// Approval id.
    pub id: String,
    /// Yes or no.
    pub approves: bool,
    /// Why.
    pub reason: String,
    /// Arguments that would be approved.
    pub suggested: Option<Object>,
    /// SHA-256 of what was shown.
    pub display_digest: Vec<u8>,
}

/// An approval as one party may see it.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// The approval.
    pub approval: Approval,
    /// Where it stands now.
    pub state: State,
    /// Its token and the token's end, for the one it is addressed to.
    pub token: Option<(String, Timestamp)>,
}

impl Pdp {
    /// Turns a requestable denial into a pending approval.
    ///
    /// # Errors
    /// A refusal, recorded or counted.
    pub async fn request_approval(&self, origin: &Origin, read: Result<ToRequest, Refusal>) -> Result<Seen, Refused> {
        let moment = self.moment();
        let caller = self.service(&moment, origin)?;
        let by = Actor::service(&caller);
        let party = Party::Service(caller);
        match self.requested(&moment, &party, &by, read).await {
            Ok(seen) => Ok(seen),
            Err(refusal) => Err(self.refused(&moment, origin, by, refusal).await),
        }
    }

    async fn requested(&self, moment: &Moment, party: &Party, by: &Actor, read: Result<ToRequest, Refusal>) -> Result<Seen, Refusal> {
        let asked = read?;
        let keys = self.keys.load();
        let binding = open_binding(&keys.binding, &self.options.environment, &asked.binding_token, moment.now);
        let binding = binding.map_err(|fault| Refusal::Precondition(fault.words()))?;
        let ours = matches!(party, Party::Service(caller) if caller.tool_service == binding.call.audience);
        if !ours || binding.evaluation_id != asked.evaluation_id {
            return Err(Refusal::Forbidden("the binding token is another caller's, or another evaluation's"));
        }
        let template = self.template(moment, &binding)?;
        justified(&asked.justification, template)?;
        self.not_halted(moment, &binding)?;
        let templates = &moment.snapshot.bundle.approvals;
        let approval = self.pending(moment, binding, asked.justification, template)?;
        let more = [("justification_digest", self.audit.digest(&justification_value(&approval.justification)).into())];
        let (case, agent, queue) = (templates.pending.case, templates.pending.agent, templates.pending.queue);
        let new = NewApproval {
            record: events::event("approval.requested", by, Some(&approval), &more),
            caps: (i64::from(case), i64::from(agent), i64::from(queue)),
            cool_down: templates.cool_down(),
            approval: approval.clone(),
        };
        let record = new.record.clone();
        let approval = match self.store.request(new).await.map_err(unavailable)? {
            Requested::New(transition) => {
                self.follow(moment, transition, record).await?;
                self.telemetry.metrics.approval("requested");
                Approval { revision: transition.revision, ..approval }
            }
            Requested::Same(waiting) => *waiting,
            Requested::AgentFull => return Err(Refusal::Exhausted("the agent has as many pending requests as it may have")),
            Requested::CaseFull => return Err(Refusal::Exhausted("the case has as many pending requests as it may have")),
            Requested::QueueFull => return Err(Refusal::Exhausted("the reviewers have as many pending requests as they may have")),
            Requested::CoolDown => return Err(Refusal::Precondition("the same call was denied a short while ago: do not ask again")),
        };
        Ok(Seen { state: approval.state_at(moment.now), approval, token: None })
    }

    fn pending(&self, moment: &Moment, binding: Binding, justification: Justification, template: &Template) -> Result<Approval, Refusal> {
        let id = crate::entropy::evaluation_id(self.entropy.as_ref(), moment.now).map_err(no_entropy)?;
        Ok(Approval {
            id: format!("apr_{}", id.simple()),
            state: State::Pending,
            generation: String::new(),
            revision: 0,
            digest: binding::digest(&binding.call),
            display: view::display(&binding, template),
            reversibility: template.reversibility.name().to_owned(),
            justification: view::unverified(&justification),
            reviews: vec![],
            requested_at: moment.now,
            review_until: moment.now.plus(template.review()),
            approved_at: Timestamp::default(),
            approved_until: Timestamp::default(),
            denial_reason: String::new(),
            suggested: String::new(),
            binding,
        })
    }

    /// Approves or denies, by a human who may.
    ///
    /// # Errors
    /// A refusal, recorded or counted.
    pub async fn review_approval(&self, origin: &Origin, read: Result<ToReview, Refusal>) -> Result<Seen, Refused> {
        let moment = self.moment();
        let party = self.party(&moment, origin).await?;
        let by = party.actor();
        let reviewed = match (&party, read) {
            (Party::Human(human), Ok(review)) => self.reviewed(&moment, human, &by, review).await,
            (Party::Service(_), _) => Err(Refusal::Forbidden("only a human reviews, by a token of her own")),
            (Party::Human(_), Err(refusal)) => Err(refusal),
        };
        match reviewed {
            Ok(seen) => Ok(seen),
            Err(refusal) => Err(self.refused(&moment, origin, by, refusal).await),
        }
    }

    async fn reviewed(&self, moment: &Moment, human: &Human, by: &Actor, asked: ToReview) -> Result<Seen, Refusal> {
        let approval = self.visible_to(moment, human, &asked.id).await?;
        let template = self.template(moment, &approval.binding)?;
        let person = self.eligible_person(moment, human, &approval, template)?;
        if asked.display_digest != display_digest(&approval.display) {
            return Err(Refusal::Precondition("`display_digest` is not that of the request as it is shown: read it again"));
        }
        self.fits(moment, &approval, asked.suggested.as_ref())?;
        let suggested = asked.suggested.map(|object| String::from_utf8_lossy(&json::canonical(&object)).into_owned());
        let review = Review {
            reviewer: Subject { iss: human.issuer.clone(), sub: human.id.clone() },
            person,
            approves: asked.approves,
            at: moment.now,
            reason: asked.reason,
        };
        let more = [
            ("decision", if review.approves { "approve" } else { "deny" }.into()),
            ("display_digest", jose::digest(approval.display.as_bytes()).into()),
            ("reason_digest", self.audit.digest(&json::Value::from(review.reason.as_str())).into()),
            ("suggests_arguments", suggested.is_some().into()),
        ];
        let record = events::event("approval.reviewed", by, Some(&approval), &more);
        let new = NewReview {
            id: approval.id.clone(),
            review,
            suggested: suggested.unwrap_or_default(),
            usable: template.usable(),
            record: record.clone(),
        };
        let moved = self.store.review(new).await.map_err(unavailable)?;
        self.moved(moment, moved, &approval.id, record).await
    }

    /// Whose review this would be: a person who may review it now.
    fn eligible_person(&self, moment: &Moment, human: &Human, approval: &Approval, template: &Template) -> Result<String, Refusal> {
        if template.four_eyes && human.person.is_none() {
            return Err(Refusal::Forbidden("the reviewer's issuer tells no person: it can't be seen that she is another one"));
        }
        let own = self.is_own(&approval.binding, &human.id, human.person.as_deref());
        if own && template.four_eyes {
            return Err(Refusal::Forbidden("the reviewer supervises this call herself: another person must review it"));
        }
        let named = |wanted: &[String], has: &dyn Fn(&String) -> bool| wanted.is_empty() || wanted.iter().any(has);
        if !named(&template.amr, &|amr| human.amr.contains(amr)) || !named(&template.acr, &|acr| human.acr == *acr) {
            return Err(Refusal::Forbidden("the reviewer's token shows no authentication of the strength that the template asks for"));
        }
        let of = OfRequest::of(approval, template.four_eyes, own);
        if !self.may(moment, Right::ApprovalReview, &human.id, On::Approval(&approval.binding, of)) {
            return Err(Refusal::Forbidden("the reviewer may not review this request: no policy grants `approval.review`"));
        }
        Ok(human.person.clone().unwrap_or_else(|| format!("{}#{}", human.issuer, human.subject)))
    }

    /// Whether a human is the person who supervises the call.
    pub(super) fn is_own(&self, binding: &Binding, id: &str, person: Option<&str>) -> bool {
        id == binding.call.supervisor.sub || (person.is_some() && person == binding.supervisor_person.as_deref())
    }

    /// Suggested arguments are ones that the action could take.
    fn fits(&self, moment: &Moment, approval: &Approval, suggested: Option<&Object>) -> Result<(), Refusal> {
        let policies = &moment.snapshot.bundle.policies;
        match (suggested, policies.shapes.actions.get(&approval.binding.call.action)) {
            (Some(arguments), Some(action)) => crate::entities::arguments_fit(action, arguments, "suggested_arguments_json"),
            (Some(_), None) => Err(Refusal::Precondition("the action is no longer in the bundle")),
            (None, _) => Ok(()),
        }
    }

    /// Cancels a pending approval, or revokes an approved one: by whom it is addressed to, or by a human who may.
    ///
    /// # Errors
    /// A refusal, recorded or counted.
    pub async fn revoke_approval(&self, origin: &Origin, read: Result<(String, String), Refusal>) -> Result<Seen, Refused> {
        let moment = self.moment();
        let party = self.party(&moment, origin).await?;
        let by = party.actor();
        let revoked = match read {
            Ok((id, reason)) => self.revoked(&moment, &party, &by, id, reason).await,
            Err(refusal) => Err(refusal),
        };
        match revoked {
            Ok(seen) => Ok(seen),
            Err(refusal) => Err(self.refused(&moment, origin, by, refusal).await),
        }
    }

    async fn revoked(&self, moment: &Moment, party: &Party, by: &Actor, id: String, reason: String) -> Result<Seen, Refusal> {
        let approval = match party {
            Party::Service(_) => self.readable(moment, party, &id).await?,
            Party::Human(human) => {
                let approval = self.visible_to(moment, human, &id).await?;
                let own = self.is_own(&approval.binding, &human.id, human.person.as_deref());
                let withdraws = own && approval.state_at(moment.now) == State::Pending;
                let of = OfRequest::of(&approval, false, own);
                if !withdraws && !self.may(moment, Right::ApprovalRevoke, &human.id, On::Approval(&approval.binding, of)) {
                    return Err(Refusal::Forbidden("the human may not revoke this approval: no policy grants `approval.revoke`"));
                }
                approval
            }
        };
        let more = [("reason_digest", self.audit.digest(&json::Value::from(reason.as_str())).into())];
        let record = events::event("approval.ended", by, Some(&approval), &more);
        let moved = self.store.end(id, reason, moment.now, record.clone()).await.map_err(unavailable)?;
        self.moved(moment, moved, &approval.id, record).await
    }

    /// Reads one; its token goes to the tool service that it is addressed to, and to nobody else.
    ///
    /// # Errors
    /// A refusal, recorded or counted.
    pub async fn get_approval(&self, origin: &Origin, read: Result<String, Refusal>) -> Result<Seen, Refused> {
        let moment = self.moment();
        let party = self.party(&moment, origin).await?;
        let found = match read {
            Ok(id) => match self.readable(&moment, &party, &id).await {
                Ok(approval) => self.seen_by(&moment, &party, approval).await,
                Err(refusal) => Err(refusal),
            },
            Err(refusal) => Err(refusal),
        };
        match found {
            Ok(seen) => Ok(seen),
            Err(refusal) => Err(self.refused(&moment, origin, party.actor(), refusal).await),
        }
    }

    /// A page of those that a party may see, oldest first.
    ///
    /// # Errors
    /// A refusal, recorded or counted.
    pub async fn list_approvals(&self, origin: &Origin, read: Result<Filter, Refusal>) -> Result<Vec<Seen>, Refused> {
        let moment = self.moment();
        let party = self.party(&moment, origin).await?;
        let listed = match read {
            Ok(filter) => self.listed(&moment, &party, filter).await,
            Err(refusal) => Err(refusal),
        };
        match listed {
            Ok(approvals) => {
                Ok(approvals.into_iter().map(|approval| Seen { state: approval.state_at(moment.now), approval, token: None }).collect())
            }
            Err(refusal) => Err(self.refused(&moment, origin, party.actor(), refusal).await),
        }
    }

    /// The changes of those that a party may see after a revision, with tokens for whom they are addressed to. The party's
    /// credentials are judged anew each time.
    ///
    /// # Errors
    /// A refusal, recorded or counted.
    pub async fn changed_approvals(&self, origin: &Origin, filter: Filter) -> Result<Vec<Seen>, Refused> {
        let moment = self.moment();
        let party = self.party(&moment, origin).await?;
        let mut seen = vec![];
        let listed = self.listed(&moment, &party, filter).await;
        for approval in listed.map_err(Refused)? {
            match self.seen_by(&moment, &party, approval).await {
                Ok(one) => seen.push(one),
                Err(refusal) => return Err(self.refused(&moment, origin, party.actor(), refusal).await),
            }
        }
        Ok(seen)
    }

    async fn listed(&self, moment: &Moment, party: &Party, filter: Filter) -> Result<Vec<Approval>, Refusal> {
        let filter = match party {
            Party::Human(human) => Filter { tenant: human.tenant.clone(), ..filter },
            Party::Service(caller) => Filter { tool_service: caller.tool_service.clone(), ..filter },
        };
        let found = self.store.list(filter).await.map_err(unavailable)?;
        Ok(found.into_iter().filter(|approval| self.may_read(moment, party, approval)).collect())
    }

    async fn readable(&self, moment: &Moment, party: &Party, id: &str) -> Result<Approval, Refusal> {
        let found = self.store.approval(id).await.map_err(unavailable)?;
        found.filter(|approval| self.may_read(moment, party, approval)).ok_or(Refusal::NotFound)
    }

    async fn visible_to(&self, moment: &Moment, human: &Human, id: &str) -> Result<Approval, Refusal> {
        self.readable(moment, &Party::Human(human.clone()), id).await
    }

    fn may_read(&self, moment: &Moment, party: &Party, approval: &Approval) -> bool {
        match party {
            Party::Human(human) => {
                let own = self.is_own(&approval.binding, &human.id, human.person.as_deref());
                let of = OfRequest::of(approval, false, own);
                human.tenant == approval.binding.call.tenant
                    && self.may(moment, Right::ApprovalRead, &human.id, On::Approval(&approval.binding, of))
            }
            Party::Service(caller) => caller.tool_service == approval.binding.call.audience,
        }
    }

    /// The approval with its token, if it is approved and addressed to this party: only what is recorded is acted on, and handing
    /// the token out is recorded too.
    async fn seen_by(&self, moment: &Moment, party: &Party, approval: Approval) -> Result<Seen, Refusal> {
        let state = approval.state_at(moment.now);
        let current = approval.generation == self.store.seen().generation;
        let token = match party {
            Party::Service(_) if state == State::Approved && current => {
                self.not_halted(moment, &approval.binding)?;
                if self.store.has_left(&approval.id).await.map_err(unavailable)? {
                    return Err(Refusal::Unavailable("the approval is not recorded yet: try again"));
                }
                let keys = self.keys.load();
                let signed = binding::sign_approval(&keys.approval, &approval, moment.now);
                let token = signed.map_err(|_| Refusal::Unavailable("the token could not be signed"))?;
                let event = events::event("approval.token_issued", &party.actor(), Some(&approval), &[("expires", token.1.to_string().into())]);
                let nonce = crate::entropy::nonce(self.entropy.as_ref()).map_err(no_entropy)?;
                let appended = self.audit.append(moment.now, events::stored(event, None, nonce)).await;
                appended.map_err(|down| Refused::from(down).0)?;
                Some(token)
            }
            Party::Human(_) | Party::Service(_) => None,
        };
        Ok(Seen { approval, state, token })
    }

    fn template<'a>(&self, moment: &'a Moment, binding: &Binding) -> Result<&'a Template, Refusal> {
        let template = moment.snapshot.bundle.approvals.templates.get(&binding.template);
        template.ok_or(Refusal::Precondition("the bundle no longer has the approval's template"))
    }

    /// A chain that is stopped asks nobody, and gets no token.
    fn not_halted(&self, moment: &Moment, binding: &Binding) -> Result<(), Refusal> {
        self.fresh_halts(moment.now).map_err(|()| Refusal::Unavailable("kill switches can't be read now"))?;
        let call = &binding.call;
        let halted = Halted {
            tenant: &call.tenant,
            agent: &call.agent.sub,
            supervisor: &call.supervisor.sub,
            case: &call.case,
            customer: &binding.customer,
            issued_at: Some(moment.now),
        };
        match halted.stopped_by(&self.store.halts().halts, moment.now) {
            true => Err(Refusal::Precondition("the agent, its supervisor, the case or the tenant is stopped")),
            false => Ok(()),
        }
    }

    async fn moved(&self, moment: &Moment, moved: Moved, id: &str, record: serde_json::Value) -> Result<Seen, Refusal> {
        match moved {
            Moved::Done(transition) => {
                self.follow(moment, transition, record).await?;
                self.telemetry.metrics.approval(transition.state.name());
                let approval = self.store.approval(id).await.map_err(unavailable)?.ok_or(Refusal::NotFound)?;
                Ok(Seen { state: approval.state_at(moment.now), approval, token: None })
            }
            Moved::Late(_) => Err(Refusal::Precondition("the approval no longer waits: it was decided, used, ended, or its time is over")),
            Moved::Missing => Err(Refusal::NotFound),
            Moved::Twice => Err(Refusal::Precondition("this person has reviewed the request before")),
        }
    }

    /// Records a transition, before anything follows from it.
    pub(super) async fn follow(&self, moment: &Moment, transition: Transition, record: serde_json::Value) -> Result<Recorded<()>, Refusal> {
        let record = with_state(record, transition.state);
        let left = Left { revision: transition.revision, record, replica: String::new(), boot: String::new(), at: moment.now, recorded: None };
        let receipt = self.record_left(moment.now, &left).await.map_err(|down| Refused::from(down).0)?;
        Ok(receipt.seal(()))
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
        return Err(Refusal::invalid("justification.evidence", "is missing: the template asks for it"));
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

/// SHA-256 of what is shown.
pub fn display_digest(display: &str) -> Vec<u8> {
    jose::read_digest(&jose::digest(display.as_bytes())).map(Vec::from).unwrap_or_default()
}
