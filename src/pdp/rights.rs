//! Authentication of tool services and humans, rights that a principal has on its own behalf (one Cedar
//! evaluation with one principal), and the recording of refusals.

use std::sync::atomic::Ordering;

use crate::audit::events::Actor;
use crate::audit::record::{Record, RefusalRecord};
use crate::bundle::Bundle;
use crate::caller::Peer;
use crate::entities::direct::{self, On};
use crate::jose;
use crate::model::chain::{Caller, Human};
use crate::model::halt::Halted;
use crate::model::refusal::Refusal;
use crate::model::right::Right;
use crate::model::roles::Roles;
use crate::model::time::Timestamp;
use crate::model::verdict::LinkVerdict;
use crate::pdp::Pdp;
use crate::pdp::concurrency::Share;
use crate::pdp::origin::{Origin, Stopped};
use crate::pdp::refused::Refused;
use crate::pdp::snapshot::Moment;
use crate::pdp::span_facts::OpenSpan;

/// A principal that acts on its own behalf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Party {
    /// A human, authenticated by her own token.
    Human(Human),
    Service(Caller),
}

impl Party {
    /// Returns the party as records name it.
    pub fn actor(&self) -> Actor {
        match self {
            Self::Human(human) => Actor::human(human),
            Self::Service(caller) => Actor::service(caller),
        }
    }
}

/// Returns Cedar's verdict on one principal's own right; `None` if the bundle has no such right, or lacks an
/// entity that the request names.
pub fn verdict(
    bundle: &Bundle,
    roles: &Roles,
    right: Right,
    principal: &str,
    on: On<'_>,
    now: Timestamp,
) -> Option<LinkVerdict> {
    let (request, entities) = direct::request(&bundle.policies, roles, right, principal, on, now)?;
    Some(bundle.policies.engine.evaluate(right.of(), &request, &entities))
}

impl Pdp {
    /// Returns whether a principal has a right: Cedar permits it, and no policy failed.
    pub(super) fn may(&self, moment: &Moment, right: Right, principal: &str, on: On<'_>) -> bool {
        let bundle = &moment.snapshot.bundle;
        let verdict = bundle.roles.as_ref().and_then(|roles| verdict(bundle, roles, right, principal, on, moment.now));
        verdict.is_some_and(|verdict| verdict.permitted && verdict.errors.is_empty())
    }

    /// Returns the calling tool service, if it has this right on the server.
    ///
    /// # Errors
    /// If the caller is not authenticated or lacks the right (UNAUTHENTICATED, PERMISSION_DENIED); the
    /// refusal is already counted or recorded.
    pub async fn admit(&self, origin: &Origin, right: Right) -> Result<Caller, Refused> {
        let moment = self.moment();
        let caller = self.service(&moment, origin)?;
        let development = moment.snapshot.bundle.roles.is_none() && self.options.development;
        if development || self.may(&moment, right, &caller.tool_service, On::Server(&self.options.environment)) {
            return Ok(caller);
        }
        let refusal = Refusal::Forbidden("the caller may not do this: no policy grants it");
        Err(self.refused(&moment, origin, Actor::service(&caller), refusal.into()).await)
    }

    /// Authenticates the calling tool service.
    ///
    /// # Errors
    /// If the caller can't be authenticated (UNAUTHENTICATED). The refusal is only counted, so that an
    /// unauthenticated peer can't fill the log.
    pub(super) fn service(&self, moment: &Moment, origin: &Origin) -> Result<Caller, Refused> {
        let development = moment.snapshot.bundle.manifest.development.as_ref();
        self.callers
            .identify(&origin.peer, development, moment.now)
            .map_err(|refusal| self.unauthenticated(origin, refusal))
    }

    /// Takes a permit for the request of an authenticated caller.
    ///
    /// # Errors
    /// If no permit is free (RESOURCE_EXHAUSTED). The refusal is only counted, because a caller can send
    /// requests faster than the log is written.
    pub(super) async fn share(&self, origin: &Origin, caller: &str) -> Result<Share, Refused> {
        self.shares.take(caller, origin.waits).await.map_err(|refusal| self.unauthenticated(origin, refusal))
    }

    /// Takes a permit for the request of an authenticated party.
    ///
    /// # Errors
    /// If no permit is free (RESOURCE_EXHAUSTED); the refusal is already counted.
    pub(super) async fn party_share(&self, origin: &Origin, party: &Party) -> Result<Share, Refused> {
        match party {
            Party::Human(human) => self.share(origin, &human.id).await,
            Party::Service(caller) => self.share(origin, &caller.tool_service).await,
        }
    }

    /// Takes one of the places for open streams, for an authenticated party. A stream of calls must come from
    /// a tool service.
    ///
    /// # Errors
    /// If the party is not authenticated or no place is free (UNAUTHENTICATED, RESOURCE_EXHAUSTED); the
    /// refusal is already counted.
    pub async fn open_stream(&self, origin: &Origin, of_calls: bool) -> Result<Share, Refused> {
        let moment = self.moment();
        let party =
            if of_calls { Party::Service(self.service(&moment, origin)?) } else { self.party(&moment, origin).await? };
        let id = match &party {
            Party::Human(human) => &human.id,
            Party::Service(caller) => &caller.tool_service,
        };
        self.streams.take(id, false).await.map_err(|refusal| self.unauthenticated(origin, refusal))
    }

    /// Returns whether a peer is authenticated as a tool service or a human. Failures are not counted,
    /// because the services that depend on this are not audited.
    pub async fn knows(&self, peer: &Peer) -> bool {
        let moment = self.moment();
        match self.human_token(peer) {
            Some(token) => {
                let is_known = self.human(&moment, token).await.is_ok();
                peer.known.fetch_or(is_known, Ordering::AcqRel);
                is_known
            }
            None => {
                self.callers.identify(peer, moment.snapshot.bundle.manifest.development.as_ref(), moment.now).is_ok()
            }
        }
    }

    /// Returns the bearer token, if it claims to be from an issuer of humans' tokens. It is not verified yet.
    fn human_token<'p>(&self, peer: &'p Peer) -> Option<&'p str> {
        let trusts = |token: &&str| {
            jose::claimed_issuer(token).is_some_and(|(issuer, _)| self.delegations.issuers.trusts(&issuer))
        };
        peer.bearer.as_deref().filter(trusts)
    }

    /// Authenticates the caller: a human if the bearer token is of a trusted issuer, otherwise a tool
    /// service.
    ///
    /// # Errors
    /// If the caller can't be authenticated (UNAUTHENTICATED); the refusal is already counted.
    pub(super) async fn party(&self, moment: &Moment, origin: &Origin) -> Result<Party, Refused> {
        if let Some(token) = self.human_token(&origin.peer) {
            let human = self.human(moment, token).await.map_err(|refusal| self.unauthenticated(origin, refusal))?;
            origin.peer.known.store(true, Ordering::Release);
            return Ok(Party::Human(human));
        }
        // Reject a bearer token of an unknown issuer. Falling back to the connection's identity would hide a
        // misconfiguration.
        if origin.peer.bearer.is_some() && !self.callers.takes_jwt_svids() {
            return Err(
                self.unauthenticated(origin, Refusal::Unauthenticated("the issuer of the bearer token is not trusted"))
            );
        }
        self.service(moment, origin).map(Party::Service)
    }

    /// Returns the human of a token. She must be an entity of the bundle, belong to the tenant that her
    /// issuer speaks for, and not be stopped.
    async fn human(&self, moment: &Moment, token: &str) -> Result<Human, Refusal> {
        let unknown = Refusal::Unauthenticated(
            "the human of the token is not in the bundle, or belongs to another tenant than the issuer",
        );
        let mut human = self.delegations.human(token, moment.now).await?;
        let bundle = &moment.snapshot.bundle;
        let roles = bundle.roles.as_ref().ok_or(unknown.clone())?;
        let tenant = bundle.policies.tenant_of(&roles.supervisor, &human.id).ok_or(unknown.clone())?;
        if human.tenant.is_empty() {
            human.tenant = tenant;
        } else if human.tenant != tenant {
            return Err(unknown);
        }
        self.can_tell_stops(moment.now)?;
        if Halted::human(&human).stopped_by(&self.store.halts().halts, moment.now) {
            return Err(Refusal::Unauthenticated("a kill switch or a revoked session stops this human"));
        }
        Ok(human)
    }

    /// Counts a refusal without recording it, so that an unauthenticated peer can't fill the log.
    pub(super) fn unauthenticated(&self, origin: &Origin, refusal: Refusal) -> Refused {
        self.count_unauthenticated(origin.peer.host(), refusal.kind());
        Refused(refusal)
    }

    /// Passes an answer to an authenticated party through, and records a refusal.
    pub(super) async fn or_refused<T>(
        &self,
        moment: &Moment,
        origin: &Origin,
        by: Actor,
        answer: Result<T, Refusal>,
    ) -> Result<T, Refused> {
        match answer {
            Ok(answer) => Ok(answer),
            Err(refusal) => Err(self.refused(moment, origin, by, refusal.into()).await),
        }
    }

    /// Records a refusal of an authenticated party.
    pub(super) async fn refused(&self, moment: &Moment, origin: &Origin, by: Actor, stopped: Stopped) -> Refused {
        let record_metadata = match self.record_metadata(origin) {
            Ok(record_metadata) => record_metadata,
            Err(refusal) => return Refused(refusal),
        };
        let Stopped { refusal, proven } = stopped;
        let mut record = RefusalRecord::of(&refusal, by, &moment.snapshot.bundle.version, record_metadata);
        if let Some(proven) = proven {
            let (chain, call) = *proven;
            let signals = self.remember_refusal(moment, &chain, &call, &refusal).await;
            record = record.with_call(&chain, &call, &signals);
        }
        match self.audit.append(moment.now, Record::Refusal(Box::new(record))).await {
            Ok(_) => {
                self.telemetry.metrics.refusal(refusal.kind());
                Refused(refusal)
            }
            Err(down) => Refused::from(down),
        }
    }

    /// Ends the span of a refused request of an authenticated caller, and records the refusal in a line of
    /// its own.
    pub(super) async fn refuse<T>(
        &self,
        moment: &Moment,
        origin: &Origin,
        caller: &Caller,
        mut open: OpenSpan,
        stopped: Stopped,
    ) -> Result<T, Refused> {
        if let Some((chain, call)) = stopped.proven.as_deref() {
            open.facts.agent.clone_from(&chain.agent);
            open.facts.step.clone_from(&chain.step);
            open.facts.tenant.clone_from(&call.case.tenant);
            open.facts.case = self.case_id(call);
        }
        open.refused(&stopped.refusal);
        Err(self.refused(moment, origin, Actor::service(caller), stopped).await)
    }
}
