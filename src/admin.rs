//! The admin HTTP port: `/livez`, `/readyz`, `/metrics`, `/jwks.json`. Not audited, and says nothing of requests.

use std::future::Future;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::pdp::Pdp;

/// Serves until `shutdown` resolves.
///
/// # Errors
/// When the listener fails.
pub async fn serve(pdp: Arc<Pdp>, listener: TcpListener, shutdown: impl Future<Output = ()> + Send + 'static) -> std::io::Result<()> {
    let routes = Router::new().route("/livez", get(|| async { "ok\n" })).route("/readyz", get(ready)).route("/metrics", get(metrics));
    let routes = routes.route("/jwks.json", get(jwks));
    axum::serve(listener, routes.with_state(pdp)).with_graceful_shutdown(shutdown).await
}

/// 200 when requests are answered; else 503 and why not, a word a line.
async fn ready(State(pdp): State<Arc<Pdp>>) -> impl IntoResponse {
    let faults = pdp.not_ready();
    match faults.as_slice() {
        [] => (StatusCode::OK, "ok\n".to_owned()),
        faults => (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", faults.join("\n"))),
    }
}

async fn metrics(State(pdp): State<Arc<Pdp>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], pdp.telemetry().metrics_text())
}

/// The public keys of approval and binding tokens (RFC 7517); kept by readers for at most five minutes.
async fn jwks(State(pdp): State<Arc<Pdp>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/jwk-set+json"), (header::CACHE_CONTROL, "max-age=300")], pdp.jwks())
}
