//! The admin HTTP port: `/livez`, `/readyz`, `/metrics`, `/jwks.json`. Its requests are not audited, and its
//! answers reveal nothing about single gRPC requests.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::serve::Listener;
use tokio::net::{TcpListener, TcpStream};

use crate::connections::{Bounded, Bounds, Connections};
use crate::pdp::Pdp;

/// Pause after `accept` failed, so that a lack of descriptors causes no busy loop.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves until `shutdown` resolves.
///
/// # Errors
/// Returns an error if the listener fails.
pub async fn serve(
    pdp: Arc<Pdp>,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let routes = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics));
    let routes = routes.route("/jwks.json", get(jwks));
    let listener = Port { listener, connections: Connections::new(Bounds::of_port()) };
    axum::serve(listener, routes.with_state(pdp)).with_graceful_shutdown(shutdown).await
}

/// The admin port. When it has too many connections it closes the oldest one, so that idle clients can't
/// block `/readyz`.
struct Port {
    listener: TcpListener,
    connections: Connections,
}

impl Listener for Port {
    type Io = Bounded<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    if let Some(place) = self.connections.admit() {
                        return (Bounded::new(stream, place), address);
                    }
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Answers 200 if the server is ready, otherwise 503 with one fault per line.
async fn ready(State(pdp): State<Arc<Pdp>>) -> impl IntoResponse {
    let faults = pdp.not_ready();
    match faults.as_slice() {
        [] => match pdp.stops() {
            0 => (StatusCode::OK, "ok\n".to_owned()),
            stops => (StatusCode::OK, format!("ok\nkill switches and revoked sessions in force: {stops}\n")),
        },
        faults => (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", faults.join("\n"))),
    }
}

/// Answers with the metrics, or with 500 and the error.
async fn metrics(State(pdp): State<Arc<Pdp>>) -> impl IntoResponse {
    let (status, text) = match pdp.telemetry().metrics_text() {
        Ok(text) => (StatusCode::OK, text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("the metrics can't be written: {error}\n")),
    };
    (status, [(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}

/// Answers with the public keys of approval and binding tokens (RFC 7517), which readers may cache for five
/// minutes.
async fn jwks(State(pdp): State<Arc<Pdp>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/jwk-set+json"), (header::CACHE_CONTROL, "max-age=300")], pdp.jwks())
}
