//! Authentication of tool services and humans, and their shares of the server: requests that are decided at
//! the same time, open streams, and ids of requests in flight.

pub(super) mod concurrency;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::approvals::store::Store;
use crate::audit::events::Actor;
use crate::audit::refusals::RefusalCounter;
use crate::caller::{Callers, Peer};
use crate::clock::Seldom;
use crate::delegation::Delegations;
use crate::jose;
use crate::model::chain::{Caller, Human};
use crate::model::halt::Halted;
use crate::model::refusal::Refusal;
use crate::model::text::{short_digest, visible};
use crate::pdp::admission::concurrency::{Share, Shares};
use crate::pdp::origin::Origin;
use crate::pdp::refused::Refused;
use crate::pdp::replicas::Replicas;
use crate::pdp::services::Services;
use crate::pdp::snapshot::Moment;
use crate::telemetry::export::Telemetry;

/// A principal that acts on its own behalf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Party {
    /// A human, authenticated by her own token.
    Human(Human),
    Service(Caller),
}

impl Party {
    /// Returns the id of the entity that acts.
    pub(super) fn id(&self) -> &str {
        match self {
            Self::Human(human) => &human.id,
            Self::Service(caller) => &caller.tool_service,
        }
    }

    /// Returns whether what was proven of the party lets it act for a tenant.
    pub(super) fn speaks_for(&self, tenant: &str) -> bool {
        match self {
            Self::Human(human) => human.tenant == tenant,
            Self::Service(caller) => caller.speaks_for(tenant),
        }
    }

    /// Returns the party as records name it.
    pub(super) fn actor(&self) -> Actor {
        match self {
            Self::Human(human) => Actor::human(human),
            Self::Service(caller) => Actor::service(caller),
        }
    }
}

/// An authenticated caller and its permit.
pub(super) struct Admitted {
    pub(super) caller: Caller,
    pub(super) share: Share,
}

/// Lets authenticated callers in, each with its share, and counts the others.
#[derive(Debug)]
pub(super) struct Admission {
    pub(super) callers: Arc<Callers>,
    pub(super) delegations: Delegations,
    store: Arc<Store>,
    telemetry: Arc<Telemetry>,
    replicas: Arc<Replicas>,
    shares: Shares,
    streams: Shares,
    watches: Shares,
    readers: Shares,
    /// Refusals of unauthenticated peers that are not recorded yet.
    pub(super) unauthenticated: RefusalCounter,
    rejected_logged: Seldom,
}

/// Maximum number of watches of one human or tool service. Each asks the state store several times a second.
const WATCHES_MAX: usize = 32;

/// Maximum number of humans who search the audit log at the same time, each once. A search may read all of it.
const READERS_MAX: usize = 4;

const STOPPED: Refusal = Refusal::Unauthenticated("a kill switch or a revoked session stops this human");

impl Admission {
    pub(super) fn new(
        services: &Services,
        callers: Arc<Callers>,
        delegations: Delegations,
        replicas: Arc<Replicas>,
    ) -> Self {
        let most = services.options.concurrent_requests;
        Self {
            callers,
            delegations,
            store: Arc::clone(&services.store),
            telemetry: Arc::clone(&services.telemetry),
            replicas,
            shares: Shares::new(most),
            streams: Shares::new(most),
            readers: Shares::with_share(READERS_MAX, 1),
            watches: Shares::with_share(most, most.div_ceil(2).min(WATCHES_MAX)),
            unauthenticated: RefusalCounter::default(),
            rejected_logged: Seldom::default(),
        }
    }

    /// Authenticates the caller and takes one of its permits.
    pub(super) async fn admit(&self, moment: &Moment, origin: &Origin) -> Result<Admitted, Refusal> {
        let development = moment.snapshot.bundle.manifest.development.as_ref();
        let caller = self.callers.identify(&origin.peer, development, moment.now)?;
        let share = self.shares.take(&caller.tool_service, origin.waits).await?;
        Ok(Admitted { caller, share })
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
            .map_err(|refusal| self.unauthenticated(moment, origin, refusal))
    }

    /// Takes a permit for the request of an authenticated caller.
    ///
    /// # Errors
    /// If no permit is free (RESOURCE_EXHAUSTED). The refusal is only counted, because a caller can send
    /// requests faster than the log is written.
    pub(super) async fn share(&self, moment: &Moment, origin: &Origin, caller: &str) -> Result<Share, Refused> {
        self.shares.take(caller, origin.waits).await.map_err(|refusal| self.unauthenticated(moment, origin, refusal))
    }

    /// Takes a permit for the request of an authenticated party.
    ///
    /// # Errors
    /// If no permit is free (RESOURCE_EXHAUSTED); the refusal is already counted.
    pub(super) async fn party_share(&self, moment: &Moment, origin: &Origin, party: &Party) -> Result<Share, Refused> {
        self.share(moment, origin, party.id()).await
    }

    /// Waits until a human may search the audit log.
    ///
    /// # Errors
    /// Never in practice: the permits are not closed.
    pub(super) async fn reader(&self, human: &str) -> Result<Share, Refusal> {
        self.readers.take(human, true).await
    }

    /// Takes one of the places for open streams, for an authenticated party. A stream of calls must come from
    /// a tool service.
    ///
    /// # Errors
    /// If the party is not authenticated or no place is free (UNAUTHENTICATED, RESOURCE_EXHAUSTED); the
    /// refusal is already counted.
    pub(super) async fn open_stream(&self, moment: &Moment, origin: &Origin, of_calls: bool) -> Result<Share, Refused> {
        let party =
            if of_calls { Party::Service(self.service(moment, origin)?) } else { self.party(moment, origin).await? };
        let streams = if of_calls { &self.streams } else { &self.watches };
        streams.take(party.id(), false).await.map_err(|refusal| self.unauthenticated(moment, origin, refusal))
    }

    /// Returns whether a peer is authenticated as a tool service or a human. Failures are not counted,
    /// because the services that depend on this are not audited.
    pub(super) async fn knows(&self, moment: &Moment, peer: &Peer) -> bool {
        match self.human_token(peer) {
            Some(token) => {
                let is_known = self.human(moment, token).await.is_ok();
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
        if let Some(human) = &origin.peer.human {
            let human = self.known(moment, Human::clone(human)).and_then(|human| self.not_stopped(moment, human));
            return human.map(Party::Human).map_err(|refusal| self.unauthenticated(moment, origin, refusal));
        }
        if let Some(token) = self.human_token(&origin.peer) {
            let human =
                self.human(moment, token).await.map_err(|refusal| self.unauthenticated(moment, origin, refusal))?;
            origin.peer.known.store(true, Ordering::Release);
            return Ok(Party::Human(human));
        }
        // Reject a bearer token of an unknown issuer. Falling back to the connection's identity would hide a
        // misconfiguration.
        if origin.peer.bearer.is_some() && !self.callers.takes_jwt_svids() {
            return Err(self.unauthenticated(
                moment,
                origin,
                Refusal::Unauthenticated("the issuer of the bearer token is not trusted"),
            ));
        }
        self.service(moment, origin).map(Party::Service)
    }

    /// Authenticates the caller like [`Self::party`], for liftings: a kill switch on a tenant or on everything stops
    /// no human from lifting it, but one on the human herself, and a revoked session, do.
    ///
    /// # Errors
    /// If the caller can't be authenticated (UNAUTHENTICATED); the refusal is already counted.
    pub(super) async fn lifter(&self, moment: &Moment, origin: &Origin) -> Result<Party, Refused> {
        let human = match (&origin.peer.human, self.human_token(&origin.peer)) {
            (Some(human), _) => self.known(moment, Human::clone(human)),
            (None, Some(token)) => self.known_human(moment, token).await,
            (None, None) => return self.party(moment, origin).await,
        };
        let human =
            human.and_then(|human| match Halted::human(&human).may_lift(&self.store.halts().halts, moment.now) {
                true => Ok(human),
                false => Err(STOPPED),
            });
        let human = human.map_err(|refusal| self.unauthenticated(moment, origin, refusal))?;
        origin.peer.known.store(true, Ordering::Release);
        Ok(Party::Human(human))
    }

    /// Returns the human of a token, whom nothing may stop.
    async fn human(&self, moment: &Moment, token: &str) -> Result<Human, Refusal> {
        let human = self.known_human(moment, token).await?;
        self.not_stopped(moment, human)
    }

    fn not_stopped(&self, moment: &Moment, human: Human) -> Result<Human, Refusal> {
        match Halted::human(&human).stopped_by(&self.store.halts().halts, moment.now) {
            true => Err(STOPPED),
            false => Ok(human),
        }
    }

    /// Returns the human of a token.
    async fn known_human(&self, moment: &Moment, token: &str) -> Result<Human, Refusal> {
        let human = self.delegations.human(token, moment.now).await?;
        self.known(moment, human)
    }

    /// Returns a human with her tenant. She must be an entity of the bundle, and belong to the tenant that her issuer speaks
    /// for.
    fn known(&self, moment: &Moment, mut human: Human) -> Result<Human, Refusal> {
        let unknown = Refusal::Unauthenticated(
            "the human of the token is not in the bundle, or belongs to another tenant than the issuer",
        );
        let bundle = &moment.snapshot.bundle;
        let roles = bundle.roles.as_ref().ok_or(unknown.clone())?;
        let tenant = bundle.policies.tenant_of(&roles.supervisor, &human.id).ok_or(unknown.clone())?;
        if human.tenant.is_empty() {
            human.tenant = tenant;
        } else if human.tenant != tenant {
            return Err(unknown);
        }
        self.replicas.can_tell_stops(moment.now)?;
        Ok(human)
    }

    /// Counts a refusal without recording it, so that an unauthenticated peer can't fill the log.
    pub(super) fn unauthenticated(&self, moment: &Moment, origin: &Origin, refusal: Refusal) -> Refused {
        if matches!(refusal, Refusal::Unauthenticated(_)) {
            self.log_rejected(moment, &origin.peer, &refusal);
        }
        self.count_unauthenticated(origin.peer.host(), refusal.kind());
        Refused(refusal)
    }

    /// Logs which caller was rejected: a digest of its id, and the id itself only at debug level.
    fn log_rejected(&self, moment: &Moment, peer: &Peer, refusal: &Refusal) {
        let id = peer.claimed_id();
        tracing::debug!(name: "caller.rejected", id = visible(&id), error = %refusal);
        if self.rejected_logged.is_due(moment.now) {
            let (id_digest, host) = (short_digest(&id), peer.host());
            tracing::info!(name: "caller.rejected", id_digest, peer = host, error = %refusal, "a caller was rejected; further ones of this second are not logged");
        }
    }

    /// Counts a refused request whose peer was not authenticated or whose message could not be read.
    pub(super) fn count_unauthenticated(&self, peer: String, kind: &'static str) {
        self.telemetry.metrics.refusal(kind);
        self.unauthenticated.count(peer, kind);
    }
}
