//! The gRPC API. Only this module and its submodules name tonic and prost.

mod admin;
mod approval;
pub mod client;
pub mod convert;
mod decision;
pub mod front;
pub mod listen;
pub mod respond;
mod signal;
pub mod status;
mod texts;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use tokio::sync::oneshot;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

pub use crate::api::front::Options;
use crate::api::front::{Front, METADATA_READ_MAX};
use crate::api::listen::Listeners;
use crate::pdp::Pdp;

/// Types and services generated from `proto/countersign/v1`.
#[expect(
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::large_enum_variant,
    reason = "generated; the protocol is documented in its .proto files"
)]
pub mod v1 {
    tonic::include_proto!("countersign.v1");
}

/// Encoded `FileDescriptorSet` of the protocol, which reflection serves.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/countersign.bin"));

/// Largest request message in bytes. A batch may be this large; a single call is limited further.
const MESSAGE_MAX: usize = 4 * 1024 * 1024;

/// Grace period in which a connection past its maximum age may finish its requests.
const GRACE: Duration = Duration::from_secs(30);
/// Time that calls under way get after the ports have closed.
const DRAIN: Duration = Duration::from_secs(10);
/// Interval at which readiness is copied to the health service.
const HEALTH_PERIOD: Duration = Duration::from_millis(250);

/// Services that the health service reports; the empty name is the server as a whole.
const SERVICES: [&str; 5] = [
    "",
    "countersign.v1.AdminService",
    "countersign.v1.ApprovalService",
    "countersign.v1.DecisionService",
    "countersign.v1.SignalService",
];

/// Error of the gRPC server.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("reflection can't be set up: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    #[error("the gRPC server failed: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// Serves until `shutdown` resolves. Then the ports are closed, connections without calls are closed, streams and
/// watches end, and calls under way get 10 seconds to finish.
///
/// # Errors
/// Returns an error if reflection can't be set up or the transport fails.
pub async fn serve(
    pdp: Arc<Pdp>,
    listeners: Listeners,
    options: Options,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let (begin, begun) = oneshot::channel();
    let (health, health_service) = tonic_health::server::health_reporter();
    report(&health, &pdp).await;
    let reporting = tokio::spawn({
        let pdp = Arc::clone(&pdp);
        async move {
            let mut period = tokio::time::interval(HEALTH_PERIOD);
            loop {
                period.tick().await;
                report(&health, &pdp).await;
            }
        }
    });
    let unknown = Arc::new(AtomicUsize::new(0));
    let reflection =
        || tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(DESCRIPTORS);
    let routes = Routes::new(health_service)
        .add_service(reflection().build_v1()?)
        // grpcurl before 1.9 and Python's grpcio-reflection use v1alpha.
        .add_service(reflection().build_v1alpha()?)
        .add_service(decision::service(Arc::clone(&pdp), options))
        .add_service(admin::service(Arc::clone(&pdp)))
        .add_service(approval::service(Arc::clone(&pdp)))
        .add_service(signal::service(Arc::clone(&pdp)));
    let (incoming, connections) = listeners.accept(options.bearer_in_plaintext);
    let shutdown = {
        let connections = connections.clone();
        async move {
            shutdown.await;
            let (open, calls) = (connections.count(), connections.calls());
            tracing::info!(name: "server.draining", connections = open, calls, "the ports are closed: waiting for the calls");
            tokio::spawn(async move { connections.drain().await });
            // The receiver lives as long as the server.
            let _begun = begin.send(());
        }
    };
    let serving = Server::builder()
        .max_concurrent_streams(options.streams_per_connection)
        .http2_max_header_list_size(METADATA_READ_MAX)
        .max_connection_age(options.connection_age)
        .max_connection_age_grace(GRACE)
        .layer(tower::layer::layer_fn(move |inner| Front::new(inner, Arc::clone(&pdp), options, Arc::clone(&unknown))))
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, shutdown);
    let late = async {
        if begun.await.is_ok() {
            tokio::time::sleep(DRAIN).await;
        } else {
            std::future::pending::<()>().await;
        }
    };
    let served = tokio::select! {
        served = serving => served,
        () = late => {
            tracing::warn!(name: "server.cut", calls = connections.calls(), "calls that take longer than 10 s were cut off");
            Ok(())
        }
    };
    reporting.abort();
    Ok(served?)
}

async fn report(health: &HealthReporter, pdp: &Pdp) {
    let status = if pdp.not_ready().is_empty() { ServingStatus::Serving } else { ServingStatus::NotServing };
    for service in SERVICES {
        health.set_service_status(service, status).await;
    }
}
