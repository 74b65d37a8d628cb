//! Services that several parts of the PDP use.

use std::sync::Arc;

use crate::approvals::store::Store;
use crate::approvals::store::replica::Replica;
use crate::audit::Audit;
use crate::entropy::Entropy;
use crate::pdp::snapshot::{Options, PdpClock};
use crate::telemetry::export::Telemetry;
use crate::text_pool::TextPool;

/// Services that the parts of the PDP are built from. Each part keeps only those that it uses.
#[derive(Clone, Debug)]
pub(super) struct Services {
    pub(super) options: Arc<Options>,
    pub(super) clock: PdpClock,
    pub(super) entropy: Arc<dyn Entropy>,
    pub(super) audit: Arc<Audit>,
    pub(super) store: Arc<Store>,
    pub(super) replica: Arc<Replica>,
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) texts: Arc<TextPool>,
}
