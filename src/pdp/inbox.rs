//! The requests for approval that wait for reviewers, in memory, so that many humans who watch them cost the state store one
//! query a second.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Mutex;

use crate::approvals::store::Store;
use crate::approvals::store::error::StoreError;
use crate::approvals::store::reads::Filter;
use crate::model::approval::{Approval, Giver, State};
use crate::model::number::to_u64;
use crate::model::refusal::Refusal;
use crate::model::time::Timestamp;
use crate::pdp::Pdp;
use crate::pdp::admission::Party;
use crate::pdp::approval_access::Seen;
use crate::pdp::origin::Origin;
use crate::pdp::refused::Refused;

/// Age at which the list is read again.
const FRESH: Duration = Duration::from_millis(500);
/// Age at which all of it is read again.
const WHOLE: Duration = Duration::from_secs(60);
/// Number of approvals that are read at once.
const PAGE: i64 = 500;
/// Maximum number of requests on a page.
pub const ROWS_MAX: usize = 50;
/// Number up to which the requests that match are counted, because policies are asked about each of them.
pub const COUNTED_MAX: usize = 1000;

/// Requests that wait, the riskiest first and then the oldest.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    known: Mutex<Known>,
    list: ArcSwap<Listing>,
}

/// Requests as the state store had them.
#[derive(Debug, Default)]
struct Known {
    pending: BTreeMap<String, Arc<Approval>>,
    generation: String,
    revision: i64,
    read_at: Timestamp,
    /// Time when all of it was read.
    loaded_at: Timestamp,
    /// Whether the list has all of it. A failure, or a browser that leaves, may end a refresh in between.
    is_listed: bool,
}

#[derive(Debug, Default)]
struct Listing {
    pending: Vec<Arc<Approval>>,
    /// Revision of the last change.
    revision: i64,
}

/// Which requests a human wants to see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Part of the id of the case, the action, the agent or the template; empty for every request.
    pub text: String,
    /// Page, counted from 0.
    pub page: usize,
}

/// A page of requests.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Waiting {
    /// Each with whether the human may review it.
    pub rows: Vec<(Seen, bool)>,
    /// Number of requests that match and that this human may see; [`COUNTED_MAX`] or more are not counted further than this page.
    pub matching: usize,
    pub has_more: bool,
}

impl Inbox {
    /// Reads what changed since the last call, if that was some time ago.
    async fn refresh(&self, store: &Store, now: Timestamp) -> Result<(), StoreError> {
        let mut known = self.known.lock().await;
        let seen = store.seen();
        // An erased row leaves no change, so all rows are read again from time to time.
        if known.generation != seen.generation || known.loaded_at.plus(WHOLE) <= now {
            let pending = all_pending(store).await?;
            let (generation, revision) = (seen.generation, seen.revision);
            *known = Known { pending, generation, revision, read_at: now, loaded_at: now, is_listed: false };
        } else if now < known.read_at.plus(FRESH) {
            return Ok(());
        }
        while let Some(changed) = next_changes(store, known.revision).await? {
            known.is_listed = false;
            for approval in changed {
                known.revision = known.revision.max(approval.revision);
                match approval.state == State::Pending && approval.binding.giver == Giver::Reviewers {
                    true => drop(known.pending.insert(approval.id.clone(), Arc::new(approval))),
                    false => drop(known.pending.remove(&approval.id)),
                }
            }
        }
        known.read_at = now;
        if known.is_listed {
            return Ok(());
        }
        let mut pending: Vec<Arc<Approval>> = known.pending.values().cloned().collect();
        pending.sort_by_cached_key(|one| (std::cmp::Reverse(score(one)), one.requested_at, one.id.clone()));
        self.list.store(Arc::new(Listing { pending, revision: known.revision }));
        known.is_listed = true;
        Ok(())
    }

    /// Updates the count of a request that was made again, because that changes no revision. If the list is being read, or on another
    /// replica, the count is updated when the whole list is read again.
    pub(super) fn note_repeats(&self, approval: &Approval) {
        let Ok(mut known) = self.known.try_lock() else { return };
        if let Some(waiting) = known.pending.get_mut(&approval.id) {
            *waiting = Arc::new(Approval { repeats: approval.repeats, ..Approval::clone(waiting) });
            known.is_listed = false;
        }
    }
}

/// Returns the risk score that a request shows, or 0.
fn score(approval: &Approval) -> u32 {
    let digits = approval.binding.risk.split(|sign: char| !sign.is_ascii_digit()).find(|part| !part.is_empty());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

async fn all_pending(store: &Store) -> Result<BTreeMap<String, Arc<Approval>>, StoreError> {
    let mut pending = BTreeMap::new();
    let mut after = (0, String::new());
    loop {
        let page = store.list(Filter { state: Some(State::Pending), after, most: PAGE, ..Filter::default() }).await?;
        let is_last = to_u64(page.len()) < PAGE.unsigned_abs();
        after = page.last().map(|last| (last.requested_at.micros(), last.id.clone())).unwrap_or_default();
        let reviewed = page.into_iter().filter(|one| one.binding.giver == Giver::Reviewers);
        pending.extend(reviewed.map(|one| (one.id.clone(), Arc::new(one))));
        if is_last {
            return Ok(pending);
        }
    }
}

/// Returns the approvals that changed next after a revision; `None` if none did.
async fn next_changes(store: &Store, revision: i64) -> Result<Option<Vec<Approval>>, StoreError> {
    let mut page = store.list(Filter { changed_after: Some(revision), most: PAGE, ..Filter::default() }).await?;
    let (first, last) = (page.first().map(|one| one.revision), page.last().map(|one| one.revision));
    // Two approvals may have one revision, so a full page may lack the second one of its last revision.
    if to_u64(page.len()) == PAGE.unsigned_abs() && first != last {
        page.retain(|one| Some(one.revision) != last);
    }
    Ok(Some(page).filter(|page| !page.is_empty()))
}

impl Pdp {
    /// Returns a page of the requests that wait and that a human may see.
    ///
    /// # Errors
    /// If the request is refused; the refusal is already recorded or counted.
    pub async fn inbox(&self, origin: &Origin, wanted: &Wanted) -> Result<Waiting, Refused> {
        let moment = self.moment();
        let party = self.admission.party(&moment, origin).await?;
        let _share = self.admission.party_share(&moment, origin, &party).await?;
        let by = party.actor().in_trace(origin.trace.id());
        let Party::Human(human) = &party else {
            let refusal = Refusal::Forbidden("only a human has an inbox");
            return Err(self.refused(&moment, origin, by, refusal.into()).await);
        };
        if let Err(error) = self.inbox.refresh(&self.store, moment.now).await {
            return Err(self.refused(&moment, origin, by, Refusal::from(error).into()).await);
        }
        let list = self.inbox.list.load_full();
        let is_here = |one: &&Arc<Approval>| {
            one.binding.call.tenant == human.tenant && one.state_at(moment.now) == State::Pending
        };
        let text = wanted.text.to_lowercase();
        let is_meant = |one: &&Arc<Approval>| {
            let call = &one.binding.call;
            let places = [&call.case, &call.action, &call.agent.sub, &one.binding.template, &call.supervisor.sub];
            text.is_empty() || places.iter().any(|place| place.to_lowercase().contains(&text))
        };
        let visible = list.pending.iter().filter(is_here).filter(is_meant);
        let first = wanted.page.min(list.pending.len()).saturating_mul(ROWS_MAX);
        let counted = COUNTED_MAX.max(first.saturating_add(ROWS_MAX + 1));
        let visible: Vec<&Arc<Approval>> =
            visible.filter(|one| self.may_read(&moment, &party, one)).take(counted).collect();
        let rows: Vec<(Seen, bool)> = visible
            .iter()
            .skip(first)
            .take(ROWS_MAX)
            .map(|one| (self.seen(&moment, Approval::clone(one)), self.may_review(&moment, human, one).is_ok()))
            .collect();
        let has_more = first.saturating_add(rows.len()) < visible.len();
        Ok(Waiting { rows, matching: visible.len(), has_more })
    }

    /// Returns a number that changes whenever a request may have been added, reviewed or used.
    ///
    /// # Errors
    /// If the state store does not answer.
    pub async fn inbox_revision(&self) -> Result<u64, Refusal> {
        self.inbox.refresh(&self.store, self.moment().now).await?;
        Ok(self.inbox.list.load().revision.unsigned_abs())
    }

    /// Returns the requests that changed after a revision, as they are now, and the revision to continue from. Without a revision it
    /// returns only where to begin. It is for the server itself, which sees every tenant.
    ///
    /// # Errors
    /// If the state store does not answer.
    pub async fn changed_requests(&self, after: Option<i64>) -> Result<(Vec<Seen>, i64), Refusal> {
        let Some(after) = after else { return Ok((vec![], self.store.seen().revision)) };
        let moment = self.moment();
        let changed = next_changes(&self.store, after).await?.unwrap_or_default();
        let last = changed.last().map_or(after, |last| last.revision);
        let reviewed = changed.into_iter().filter(|one| one.binding.giver == Giver::Reviewers);
        Ok((reviewed.map(|one| self.seen(&moment, one)).collect(), last))
    }

    /// Returns a request with why the human may not review it, if she may not.
    ///
    /// # Errors
    /// If the request is refused; the refusal is already recorded or counted.
    pub async fn request_for_review(
        &self,
        origin: &Origin,
        id: String,
    ) -> Result<(Seen, Option<&'static str>), Refused> {
        let seen = self.get_approval(origin, Ok(id)).await?;
        let moment = self.moment();
        let Party::Human(human) = self.admission.party(&moment, origin).await? else {
            return Ok((seen, Some("only a human may review")));
        };
        let why_not = match self.may_review(&moment, &human, &seen.approval) {
            Err(Refusal::Forbidden(why) | Refusal::Precondition(why)) => Some(why),
            Err(_) => Some("this can't be told now: try again"),
            Ok(()) => None,
        };
        Ok((seen, why_not))
    }
}
