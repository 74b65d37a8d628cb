//! The last step before export. The guard removes attributes that are not listed, and counts the spans of
//! failed exports, because the SDK counts those as processed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::Counter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

use crate::model::number::to_u64;
use crate::telemetry::ATTRIBUTES;

/// Exporter that filters attributes and counts lost spans.
#[derive(Debug)]
pub struct Guard<E> {
    below: E,
    lost: Counter<u64>,
    failing: AtomicBool,
}

impl<E> Guard<E> {
    pub fn new(below: E, lost: Counter<u64>) -> Self {
        Self { below, lost, failing: AtomicBool::new(false) }
    }

    /// Logs once that exports fail and once that they work again. Otherwise an unreachable collector would
    /// fill the log.
    fn note(&self, failed: bool) {
        match (self.failing.swap(failed, Ordering::Relaxed), failed) {
            (false, true) => {
                tracing::warn!(name: "telemetry.export_failed", "spans can't be exported; they are dropped and counted")
            }
            (true, false) => tracing::info!(name: "telemetry.export_recovered", "spans are exported again"),
            (true, true) | (false, false) => {}
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
        self.note(result.is_err());
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
