//! Admission of requests by their connections: unauthenticated peers may have few in flight.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tonic::Status;

use crate::api::front::Options;
use crate::caller::Peer;
use crate::connections::{InFlight, Standing};
use crate::pdp::Pdp;

const HEALTH_CHECK: &str = "grpc.health.v1.Health/Check";
/// Maximum number of requests in flight on one connection of an unauthenticated peer. Such requests count
/// from their headers on; requests of authenticated callers take a permit later, when their message was read.
const UNKNOWN_PER_CONNECTION: usize = 16;
/// Maximum number of requests in flight on all connections of unauthenticated peers together.
const UNKNOWN_MAX: usize = 256;

/// Decides which requests of unauthenticated peers are admitted.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    pub(super) pdp: Arc<Pdp>,
    pub(super) options: Options,
    pub(super) unknown: Arc<AtomicUsize>,
}

impl Gate {
    /// Counts a request on its connection and, if its peer is unauthenticated, among the requests of such
    /// peers. Returns `None` if such peers have too many requests. A bearer token is verified before a
    /// request is refused, so that unauthenticated peers can't keep out a caller that authenticates by token.
    pub(super) async fn admit(&self, standing: &Standing, path: &str, caller: &Peer) -> Option<UnderWay> {
        if let Some(under_way) = self.begin(standing, path) {
            return Some(under_way);
        }
        let proves = caller.bearer.is_some() && !standing.is_known() && self.pdp.knows(caller).await;
        if proves { self.begin(standing, path) } else { None }
    }

    /// Checks whether a caller may use health or reflection. Health checks are open to every peer; reflection
    /// and health watches need an authenticated caller unless `reflects_to_all` is set.
    pub(super) async fn may_watch(
        &self,
        path: &str,
        caller: &Peer,
        under_way: Option<UnderWay>,
    ) -> Result<UnderWay, Status> {
        if !(self.options.reflects_to_all || path == HEALTH_CHECK || self.pdp.knows(caller).await) {
            return Err(Status::unauthenticated("only authenticated callers may use reflection and health watches"));
        }
        under_way.ok_or_else(too_many)
    }

    fn begin(&self, standing: &Standing, path: &str) -> Option<UnderWay> {
        let call = || (!path.starts_with("grpc.")).then(|| standing.call());
        // Health checks are exempt from the limit on all unauthenticated peers together. Otherwise an
        // orchestrator would restart a server that such peers keep busy.
        if path == HEALTH_CHECK && standing.in_flight() < UNKNOWN_PER_CONNECTION {
            return Some(UnderWay { _in_flight: standing.begin(), _unknown: None, _call: call() });
        }
        let unknown = (!standing.is_known()).then(|| Unknown::begin(&self.unknown));
        let is_over = unknown.is_some()
            && (standing.in_flight() >= UNKNOWN_PER_CONNECTION || self.unknown.load(Ordering::Acquire) > UNKNOWN_MAX);
        (!is_over).then(|| UnderWay { _in_flight: standing.begin(), _unknown: unknown, _call: call() })
    }
}

/// Guard of a request in flight, held until the response body has ended.
pub(super) struct UnderWay {
    _in_flight: InFlight,
    _unknown: Option<Unknown>,
    /// `None` for health and reflection, which a stopping server does not wait for.
    _call: Option<InFlight>,
}

struct Unknown(Arc<AtomicUsize>);

impl Unknown {
    fn begin(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(count))
    }
}

impl Drop for Unknown {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

pub(super) fn too_many() -> Status {
    Status::resource_exhausted("too many requests of unauthenticated callers are in flight")
}
