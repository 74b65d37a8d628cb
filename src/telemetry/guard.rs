//! The last step before export. The guard removes attributes that are not listed, and counts the spans and log events of
//! failed exports, because the SDK counts those as processed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::Counter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{LogBatch, LogExporter};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

use crate::model::number::to_u64;
use crate::telemetry::ATTRIBUTES;

/// Exporter that filters the attributes of spans, and counts what is lost.
#[derive(Debug)]
pub struct Guard<E> {
    below: E,
    /// Name of the exported signals, for messages.
    what: &'static str,
    /// Endpoint of the collector, for messages.
    endpoint: String,
    lost: Counter<u64>,
    failing: AtomicBool,
}

impl<E> Guard<E> {
    pub fn new(below: E, what: &'static str, endpoint: String, lost: Counter<u64>) -> Self {
        Self { below, what, endpoint, lost, failing: AtomicBool::new(false) }
    }

    /// Logs once that exports fail and once that they work again. Otherwise an unreachable collector would
    /// fill the log.
    fn note(&self, result: &OTelSdkResult) {
        let was_failing = self.failing.swap(result.is_err(), Ordering::Relaxed);
        match result {
            Err(error) if !was_failing => {
                // The error names the gRPC status of the collector.
                tracing::warn!(
                    name: "telemetry.export_failed", what = self.what, endpoint = self.endpoint, error = %error,
                    "telemetry can't be exported to the collector of OTEL_EXPORTER_OTLP_ENDPOINT; it is dropped and counted"
                );
            }
            Ok(()) if was_failing => {
                tracing::info!(name: "telemetry.export_recovered", what = self.what, endpoint = self.endpoint, "telemetry is exported again");
            }
            Err(_) | Ok(()) => {}
        }
    }
}

impl<E: SpanExporter> SpanExporter for Guard<E> {
    async fn export(&self, mut batch: Vec<SpanData>) -> OTelSdkResult {
        let count = to_u64(batch.len());
        for span in &mut batch {
            span.attributes.retain(listed);
            for event in &mut span.events.events {
                event.attributes.retain(listed);
            }
            for link in &mut span.links.links {
                link.attributes.retain(listed);
            }
        }
        let result = self.below.export(batch).await;
        if result.is_err() {
            self.lost.add(count, &[]);
        }
        self.note(&result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.below.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.below.set_resource(resource);
    }
}

impl<E: LogExporter> LogExporter for Guard<E> {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        let count = to_u64(batch.iter().count());
        let result = self.below.export(batch).await;
        if result.is_err() {
            self.lost.add(count, &[]);
        }
        self.note(&result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.below.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.below.set_resource(resource);
    }
}

fn listed(attribute: &KeyValue) -> bool {
    ATTRIBUTES.contains(&attribute.key.as_str())
}
