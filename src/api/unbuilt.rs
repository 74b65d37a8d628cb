//! Methods that are defined and not built: each answers UNIMPLEMENTED and is counted. `tests/it/contract.rs` lists them.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use tonic::{Request, Response, Status};

use crate::api::front;
use crate::api::v1;
use crate::api::v1::approval_service_server::{ApprovalService, ApprovalServiceServer};
use crate::api::v1::signal_service_server::{SignalService, SignalServiceServer};
use crate::pdp::Pdp;

/// Approvals.
pub(super) fn approval(pdp: Arc<Pdp>) -> ApprovalServiceServer<Unbuilt> {
    ApprovalServiceServer::new(Unbuilt(pdp))
}

/// Signals.
pub(super) fn signal(pdp: Arc<Pdp>) -> SignalServiceServer<Unbuilt> {
    SignalServiceServer::new(Unbuilt(pdp))
}

/// Counts the request, and says that the method is not built.
pub(super) fn answer<T>(pdp: &Pdp, request: &Request<T>) -> Status {
    let origin = front::origin(request, crate::pdp::authorize::Purpose::Authorize);
    pdp.count_stranger(origin.peer.host(), "unimplemented");
    Status::unimplemented("this method is defined and not built yet")
}

/// The services of which no method is built.
#[derive(Debug)]
pub(super) struct Unbuilt(Arc<Pdp>);

type Watched = Pin<Box<dyn Stream<Item = Result<v1::WatchApprovalsResponse, Status>> + Send>>;

#[tonic::async_trait]
impl ApprovalService for Unbuilt {
    async fn request_approval(
        &self,
        request: Request<v1::RequestApprovalRequest>,
    ) -> Result<Response<v1::RequestApprovalResponse>, Status> {
        Err(answer(&self.0, &request))
    }

    async fn review_approval(&self, request: Request<v1::ReviewApprovalRequest>) -> Result<Response<v1::ReviewApprovalResponse>, Status> {
        Err(answer(&self.0, &request))
    }

    async fn get_approval(&self, request: Request<v1::GetApprovalRequest>) -> Result<Response<v1::GetApprovalResponse>, Status> {
        Err(answer(&self.0, &request))
    }

    async fn list_approvals(&self, request: Request<v1::ListApprovalsRequest>) -> Result<Response<v1::ListApprovalsResponse>, Status> {
        Err(answer(&self.0, &request))
    }

    type WatchApprovalsStream = Watched;

    async fn watch_approvals(&self, request: Request<v1::WatchApprovalsRequest>) -> Result<Response<Watched>, Status> {
        Err(answer(&self.0, &request))
    }

    async fn revoke_approval(&self, request: Request<v1::RevokeApprovalRequest>) -> Result<Response<v1::RevokeApprovalResponse>, Status> {
        Err(answer(&self.0, &request))
    }
}

#[tonic::async_trait]
impl SignalService for Unbuilt {
    async fn report_signal(&self, request: Request<v1::ReportSignalRequest>) -> Result<Response<v1::ReportSignalResponse>, Status> {
        Err(answer(&self.0, &request))
    }
}
