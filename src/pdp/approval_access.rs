//! Reading of approvals, single or listed or as a stream of changes, and the token that a tool service
//! fetches. Also the steps that requests and reviews share.

use sha2::{Digest as _, Sha256};

use crate::approvals::binding;
use crate::approvals::binding::is_supervisor;
use crate::approvals::store::reads::Filter;
use crate::approvals::store::transitions::{Transition, with_state};
use crate::approvals::template::Template;
use crate::audit::Recorded;
use crate::audit::events::{self, Actor, Happened};
use crate::entities::direct::{OfRequest, On};
use crate::model::approval::{Approval, Binding, State};
use crate::model::chain::Human;
use crate::model::halt::Halted;
use crate::model::number::to_u64;
use crate::model::refusal::Refusal;
use crate::model::right::Right;
use crate::model::time::Timestamp;
use crate::pdp::Pdp;
use crate::pdp::admission::Party;
use crate::pdp::origin::Origin;
use crate::pdp::refused::Refused;
use crate::pdp::rights::may;
use crate::pdp::snapshot::Moment;

/// An approval as one party may see it.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub approval: Approval,
    /// Current state of the approval.
    pub state: State,
    /// Approval token and its end, only for the tool service that the approval is addressed to.
    pub token: Option<(String, Timestamp)>,
    /// Number of reviewers who must approve.
    pub quorum: u32,
    /// Whether replicas have different bundles in force.
    pub bundles_differ: bool,
    /// Draft that the call sends, for a human who reads one open approval; empty if the tool service did not pass it.
    pub draft: String,
}

impl Pdp {
    /// Returns one approval. Its token goes only to the tool service that the approval is addressed to.
    ///
    /// # Errors
    /// If the request is refused; the refusal is already recorded or counted.
    pub async fn get_approval(&self, origin: &Origin, read: Result<String, Refusal>) -> Result<Seen, Refused> {
        let moment = self.moment();
        let party = self.admission.party(&moment, origin).await?;
        let _share = self.admission.party_share(&moment, origin, &party).await?;
        let by = party.actor().in_trace(origin.trace.id());
        let found = match read {
            Ok(id) => self.read_one(&moment, &party, &by, &id).await,
            Err(refusal) => Err(refusal),
        };
        self.or_refused(&moment, origin, by, found).await
    }

    async fn read_one(&self, moment: &Moment, party: &Party, by: &Actor, id: &str) -> Result<Seen, Refusal> {
        let approval = self.readable(moment, party, id).await?;
        let seen = self.seen_by(moment, party, by, approval).await?;
        let is_open = matches!(seen.state, State::Pending | State::Approved);
        let draft = match party {
            Party::Human(_) if is_open => self.store.draft(id).await?,
            // An approval that has expired may still have its draft. A tool service has passed it.
            Party::Human(_) | Party::Service(_) => String::new(),
        };
        Ok(Seen { draft, ..seen })
    }

    /// Returns a page of the approvals that a party may see, oldest first, and the start of the next page if
    /// there may be one.
    ///
    /// # Errors
    /// If the request is refused; the refusal is already recorded or counted.
    pub async fn list_approvals(
        &self,
        origin: &Origin,
        read: Result<Filter, Refusal>,
    ) -> Result<(Vec<Seen>, Option<(i64, String)>), Refused> {
        let moment = self.moment();
        let party = self.admission.party(&moment, origin).await?;
        let _share = self.admission.party_share(&moment, origin, &party).await?;
        let listed = match read {
            Ok(filter) => self.listed(&party, filter).await,
            Err(refusal) => Err(refusal),
        };
        let (approvals, full) = match listed {
            Ok(listed) => listed,
            Err(refusal) => return Err(self.refused(&moment, origin, party.actor(), refusal.into()).await),
        };
        let next = approvals.last().filter(|_| full).map(|last| (last.requested_at.micros(), last.id.clone()));
        let visible = approvals.into_iter().filter(|approval| self.may_read(&moment, &party, approval));
        Ok((visible.map(|approval| self.seen(&moment, approval)).collect(), next))
    }

    /// Returns the approvals that changed after a revision and that a party may see, with tokens for the tool
    /// service that they are addressed to, and the revision to continue from. The party's credentials are
    /// checked again each time.
    ///
    /// # Errors
    /// If the request is refused; the refusal is already recorded or counted.
    pub async fn changed_approvals(&self, origin: &Origin, after: i64, most: i64) -> Result<(Vec<Seen>, i64), Refused> {
        let moment = self.moment();
        let party = self.admission.party(&moment, origin).await?;
        let _share = self.admission.party_share(&moment, origin, &party).await?;
        let filter = Filter { changed_after: Some(after), most, ..Filter::default() };
        let (mut approvals, is_full) = self.listed(&party, filter).await.map_err(Refused)?;
        // A call that uses an approval and a consent gives both one revision, so they must be on one page.
        let (first, last) = (approvals.first().map(|one| one.revision), approvals.last().map(|one| one.revision));
        if is_full && first != last {
            approvals.retain(|approval| Some(approval.revision) != last);
        }
        let highest = approvals.last().map_or(after, |last| last.revision);
        let by = party.actor().in_trace(origin.trace.id());
        let mut seen = vec![];
        for approval in approvals.into_iter().filter(|approval| self.may_read(&moment, &party, approval)) {
            match self.seen_by(&moment, &party, &by, approval).await {
                Ok(one) => seen.push(one),
                Err(refusal) => return Err(self.refused(&moment, origin, by, refusal.into()).await),
            }
        }
        Ok((seen, highest))
    }

    /// Returns the current state of an approval, without its token.
    pub(super) fn seen(&self, moment: &Moment, approval: Approval) -> Seen {
        let quorum = moment.snapshot.bundle.approvals.quorum(&approval.binding);
        let bundles_differ = self.replicas.shared().bundles.len() > 1;
        Seen {
            state: approval.state_at(moment.now),
            token: None,
            quorum,
            bundles_differ,
            draft: String::new(),
            approval,
        }
    }

    /// Returns the approvals that the store has for a party, and whether there may be more.
    async fn listed(&self, party: &Party, filter: Filter) -> Result<(Vec<Approval>, bool), Refusal> {
        let filter = match party {
            Party::Human(human) => Filter { tenant: human.tenant.clone(), ..filter },
            Party::Service(caller) => Filter { tool_service: caller.tool_service.clone(), ..filter },
        };
        let most = filter.most.unsigned_abs();
        let found = self.store.list(filter).await?;
        let full = to_u64(found.len()) >= most;
        Ok((found, full))
    }

    pub(super) async fn readable(&self, moment: &Moment, party: &Party, id: &str) -> Result<Approval, Refusal> {
        let found = self.store.approval(id).await?;
        found.filter(|approval| self.may_read(moment, party, approval)).ok_or(Refusal::NotFound)
    }

    pub(super) async fn visible_to(&self, moment: &Moment, human: &Human, id: &str) -> Result<Approval, Refusal> {
        self.readable(moment, &Party::Human(human.clone()), id).await
    }

    pub(super) fn may_read(&self, moment: &Moment, party: &Party, approval: &Approval) -> bool {
        match party {
            Party::Human(human) => {
                let own = is_supervisor(&approval.binding, &human.id, human.person.as_deref());
                let of = OfRequest::of(approval, false, own);
                human.tenant == approval.binding.call.tenant
                    && may(moment, Right::ApprovalRead, &human.id, On::Approval(&approval.binding, of))
            }
            Party::Service(caller) => {
                caller.tool_service == approval.binding.call.audience
                    && caller.speaks_for(&approval.binding.call.tenant)
            }
        }
    }

    /// Returns the approval, with its token if it is approved and addressed to this party. The token is
    /// issued only if the approval is recorded, and that it was issued is recorded, too.
    async fn seen_by(&self, moment: &Moment, party: &Party, by: &Actor, approval: Approval) -> Result<Seen, Refusal> {
        let state = approval.state_at(moment.now);
        let current = approval.generation == self.store.seen().generation;
        let stopped = match self.not_halted(moment, &approval.binding) {
            Err(Refusal::Precondition(_)) => true,
            other => other.map(|()| false)?,
        };
        let token = match party {
            Party::Service(_) if state == State::Approved && current && !stopped => {
                if self.store.has_outbox_entry(&approval.id).await? {
                    return Err(Refusal::Unavailable("the approval is not recorded yet: try again"));
                }
                let keys = self.tokens.keys();
                let signed = binding::sign_approval(&keys.approval, &approval, moment.now);
                let token = signed.map_err(|_| Refusal::Unavailable("the token could not be signed"))?;
                let event =
                    events::about(Happened::TokenIssued, by, &approval, &[("expires", token.1.to_string().into())]);
                self.recorder.record_event(moment.now, event).await?;
                Some(token)
            }
            Party::Human(_) | Party::Service(_) => None,
        };
        Ok(Seen { token, ..self.seen(moment, approval) })
    }

    pub(super) fn template<'a>(&self, moment: &'a Moment, binding: &Binding) -> Result<&'a Template, Refusal> {
        let template = moment.snapshot.bundle.approvals.templates.get(&binding.template);
        template.ok_or(Refusal::Precondition("the bundle no longer has the approval's template"))
    }

    /// Refuses a stopped chain, which may not request approvals and gets no token.
    pub(super) fn not_halted(&self, moment: &Moment, binding: &Binding) -> Result<(), Refusal> {
        self.replicas.can_tell_stops(moment.now)?;
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
            true => Err(Refusal::Precondition(
                "a kill switch or a revoked session stops the agent, its supervisor, the case, the customer, the tenant or the server",
            )),
            false => Ok(()),
        }
    }

    /// Records a transition, before anything follows from it.
    pub(super) async fn follow(
        &self,
        moment: &Moment,
        transition: &Transition,
        record: serde_json::Value,
    ) -> Result<Recorded<()>, Refusal> {
        let recorded =
            self.recorder.record_entry(moment.now, &transition.revision, with_state(record, transition.state)).await;
        let receipt = recorded?;
        Ok(receipt.seal(()))
    }
}

/// Returns the SHA-256 of what a reviewer is shown.
pub fn display_digest(display: &str) -> Vec<u8> {
    Sha256::digest(display).to_vec()
}
