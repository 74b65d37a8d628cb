//! Review and revocation of approvals by humans. Cedar decides each time who may do so; four eyes are also
//! enforced in code.

use crate::approvals::binding::is_supervisor;
use crate::approvals::store::transitions::{Moved, NewReview};
use crate::approvals::template::Template;
use crate::audit::events::{self, Actor, Happened};
use crate::entities::direct::{OfRequest, On};
use crate::jose;
use crate::json::{self, Object};
use crate::model::approval::{Approval, Review, State, Subject};
use crate::model::chain::Human;
use crate::model::refusal::Refusal;
use crate::model::right::Right;
use crate::pdp::Pdp;
use crate::pdp::admission::Party;
use crate::pdp::approval_access::{Seen, display_digest};
use crate::pdp::origin::Origin;
use crate::pdp::refused::Refused;
use crate::pdp::rights::may;
use crate::pdp::risk_state::risk_recovery::denied_approval;
use crate::pdp::snapshot::Moment;

/// A review, as it was read.
#[derive(Clone, Debug)]
pub struct ToReview {
    /// Id of the approval.
    pub id: String,
    pub approves: bool,
    pub reason: String,
    /// Arguments that the reviewer would approve instead.
    pub suggested: Option<Object>,
    /// SHA-256 of what the reviewer was shown.
    pub display_digest: Vec<u8>,
}

impl Pdp {
    /// Approves or denies a request, on behalf of a human who may review it.
    ///
    /// # Errors
    /// If the request is refused; the refusal is already recorded or counted.
    pub async fn review_approval(&self, origin: &Origin, read: Result<ToReview, Refusal>) -> Result<Seen, Refused> {
        let moment = self.moment();
        let party = self.admission.party(&moment, origin).await?;
        let _share = self.admission.party_share(&moment, origin, &party).await?;
        let by = party.actor().in_trace(origin.trace.id());
        let reviewed = match (&party, read) {
            (Party::Human(human), Ok(review)) => self.reviewed(&moment, human, &by, review).await,
            (Party::Service(_), _) => {
                Err(Refusal::Forbidden("only a human may review, authenticated by her own token"))
            }
            (Party::Human(_), Err(refusal)) => Err(refusal),
        };
        self.or_refused(&moment, origin, by, reviewed).await
    }

    async fn reviewed(&self, moment: &Moment, human: &Human, by: &Actor, asked: ToReview) -> Result<Seen, Refusal> {
        let approval = self.visible_to(moment, human, &asked.id).await?;
        let template = self.template(moment, &approval.binding)?;
        let person = self.eligible_person(moment, human, &approval, template)?;
        if asked.display_digest != display_digest(&approval.display) {
            return Err(Refusal::Precondition("`display_digest` does not match the request: read the request again"));
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
        let record = events::about(Happened::Reviewed, by, &approval, &more);
        let new = NewReview {
            id: approval.id.clone(),
            review,
            suggested: suggested.unwrap_or_default(),
            usable: template.usable(),
            quorum: moment.snapshot.bundle.approvals.quorum(&approval.binding),
            record: record.clone(),
        };
        let denies = !new.review.approves;
        let moved = self.store.review(new).await?;
        let seen = self.moved(moment, moved, &approval.id, record).await?;
        let call = &approval.binding.call;
        if let Some((tenant, batch)) =
            denied_approval(moment, &self.options.environment, &call.tenant, &call.case).filter(|_| denies)
        {
            self.risk.say(tenant, moment, batch).await;
        }
        Ok(seen)
    }

    /// Checks that a human may review a request now.
    pub(super) fn may_review(&self, moment: &Moment, human: &Human, approval: &Approval) -> Result<(), Refusal> {
        let template = self.template(moment, &approval.binding)?;
        let person = self.eligible_person(moment, human, approval, template)?;
        match approval.reviews.iter().any(|review| review.person == person || review.reviewer.sub == human.id) {
            true => Err(Refusal::Precondition("the reviewer has reviewed this request already")),
            false => Ok(()),
        }
    }

    /// Returns the person whose review this is, if the human may review the approval now.
    fn eligible_person(
        &self,
        moment: &Moment,
        human: &Human,
        approval: &Approval,
        template: &Template,
    ) -> Result<String, Refusal> {
        let supervisor = &approval.binding;
        let unknown = supervisor.supervisor_person.is_none() && !supervisor.call.supervisor.iss.is_empty();
        if template.four_eyes && (human.person.is_none() || unknown) {
            let words = "the token of the reviewer or of the supervisor names no person, so it can't be verified that they are different persons: see `person_claim`";
            return Err(Refusal::Forbidden(words));
        }
        let own = is_supervisor(&approval.binding, &human.id, human.person.as_deref());
        if own && template.four_eyes {
            return Err(Refusal::Forbidden("the reviewer supervises this call herself: another person must review it"));
        }
        let named = |wanted: &[String], has: &dyn Fn(&String) -> bool| wanted.is_empty() || wanted.iter().any(has);
        if !named(&template.amr, &|amr| human.amr.contains(amr)) || !named(&template.acr, &|acr| human.acr == *acr) {
            return Err(Refusal::Forbidden(
                "the reviewer's token lacks the authentication (`amr`, `acr`) that the template requires",
            ));
        }
        let of = OfRequest::of(approval, template.four_eyes, own);
        if !may(moment, Right::ApprovalReview, &human.id, On::Approval(&approval.binding, of)) {
            return Err(Refusal::Forbidden(
                "the reviewer may not review this request: no policy grants `approval.review`",
            ));
        }
        Ok(human.person_key())
    }

    /// Checks that the action could take the suggested arguments.
    fn fits(&self, moment: &Moment, approval: &Approval, suggested: Option<&Object>) -> Result<(), Refusal> {
        let policies = &moment.snapshot.bundle.policies;
        match (suggested, policies.shapes.actions.get(&approval.binding.call.action)) {
            (Some(arguments), Some(action)) => {
                crate::entities::arguments_fit(action, arguments, "suggested_arguments_json")
            }
            (Some(_), None) => Err(Refusal::Precondition("the action is no longer in the bundle")),
            (None, _) => Ok(()),
        }
    }

    /// Cancels a pending approval, or revokes an approved one. The tool service that it is addressed to and a
    /// human with the right may do so; a supervisor may always withdraw a pending request for her own call.
    ///
    /// # Errors
    /// If the request is refused; the refusal is already recorded or counted.
    pub async fn revoke_approval(
        &self,
        origin: &Origin,
        read: Result<(String, String), Refusal>,
    ) -> Result<Seen, Refused> {
        let moment = self.moment();
        let party = self.admission.party(&moment, origin).await?;
        let _share = self.admission.party_share(&moment, origin, &party).await?;
        let by = party.actor().in_trace(origin.trace.id());
        let revoked = match read {
            Ok((id, reason)) => self.revoked(&moment, &party, &by, id, reason).await,
            Err(refusal) => Err(refusal),
        };
        self.or_refused(&moment, origin, by, revoked).await
    }

    async fn revoked(
        &self,
        moment: &Moment,
        party: &Party,
        by: &Actor,
        id: String,
        reason: String,
    ) -> Result<Seen, Refusal> {
        let approval = match party {
            Party::Service(_) => self.readable(moment, party, &id).await?,
            Party::Human(human) => {
                let approval = self.visible_to(moment, human, &id).await?;
                let own = is_supervisor(&approval.binding, &human.id, human.person.as_deref());
                let withdraws = own && approval.state_at(moment.now) == State::Pending;
                let of = OfRequest::of(&approval, false, own);
                if !withdraws && !may(moment, Right::ApprovalRevoke, &human.id, On::Approval(&approval.binding, of)) {
                    return Err(Refusal::Forbidden(
                        "the human may not revoke this approval: no policy grants `approval.revoke`",
                    ));
                }
                approval
            }
        };
        let more = [("reason_digest", self.audit.digest(&json::Value::from(reason.as_str())).into())];
        let record = events::about(Happened::Ended, by, &approval, &more);
        let moved = self.store.end(id, reason, moment.now, record.clone()).await?;
        self.moved(moment, moved, &approval.id, record).await
    }

    async fn moved(&self, moment: &Moment, moved: Moved, id: &str, record: serde_json::Value) -> Result<Seen, Refusal> {
        match moved {
            Moved::Done(transition) => {
                self.follow(moment, &transition, record).await?;
                self.telemetry.metrics.approval(transition.state.name());
                let approval = self.store.approval(id).await?.ok_or(Refusal::NotFound)?;
                Ok(self.seen(moment, approval))
            }
            Moved::Late(_) => Err(Refusal::Precondition(
                "the approval is no longer pending or approved: it was decided, consumed, ended, or has expired",
            )),
            Moved::Missing => Err(Refusal::NotFound),
            Moved::Twice => Err(Refusal::Precondition("this person has reviewed the request before")),
        }
    }
}
