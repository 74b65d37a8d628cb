//! Methods that are defined and not built: each answers UNIMPLEMENTED and is counted. `tests/it/contract.rs` lists them.

use tonic::{Request, Status};

use crate::api::front;
use crate::pdp::Pdp;

/// Counts the request, and says that the method is not built.
pub(super) fn answer<T>(pdp: &Pdp, request: &Request<T>) -> Status {
    let origin = front::origin(request, crate::pdp::authorize::Purpose::Authorize);
    pdp.count_stranger(origin.peer.host(), "unimplemented");
    Status::unimplemented("this method is defined and not built yet")
}
