//! Exports spans and log events to an OTLP collector, if one is configured, and metrics through `/metrics`.

use std::path::PathBuf;
use std::time::Duration;

use opentelemetry::logs::LoggerProvider as _;
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{InstrumentationScope, KeyValue, global};
use opentelemetry_otlp::tonic_types::transport::{Certificate, ClientTlsConfig, Identity};
use opentelemetry_otlp::{WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::{BatchLogProcessor, SdkLoggerProvider};
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::{BatchSpanProcessor, SdkTracer, SdkTracerProvider};
use prometheus::{Registry, TextEncoder};

use crate::telemetry::events::Events;
use crate::telemetry::guard::Guard;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::{SCHEMA_URL, SCOPE};

/// Destination of telemetry, and the attributes of its resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// OTLP/gRPC endpoint for spans, e.g. `http://127.0.0.1:4317`; `https://` selects TLS. If it is `None`, no
    /// spans are made.
    pub endpoint: Option<String>,
    /// The same for log events.
    pub events: Option<String>,
    /// PEM file of the collector's certificate authorities; by default the public ones.
    pub authorities: Option<PathBuf>,
    /// PEM files of the client's certificate chain and private key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Resource attribute `service.name`.
    pub service_name: String,
    /// Resource attribute `deployment.environment.name`.
    pub environment: String,
}

#[derive(Debug, thiserror::Error)]
#[error("telemetry can't be set up: {0}")]
pub struct SetUpError(String);

/// Makes spans, log events and metrics. Callers never block, because the queues are bounded; what does not fit is dropped and
/// counted.
#[derive(Debug)]
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
    logs: Option<SdkLoggerProvider>,
    pub(super) tracer: Option<SdkTracer>,
    meters: SdkMeterProvider,
    registry: Registry,
    pub metrics: Metrics,
}

/// Beginning of a certificate in PEM form (RFC 7468).
const PEM: &[u8] = b"-----BEGIN CERTIFICATE-----";

fn tls(options: &Options) -> Result<ClientTlsConfig, SetUpError> {
    let read = |path: &PathBuf| {
        std::fs::read(path).map_err(|error| SetUpError(format!("`{}` can't be read: {error}", path.display())))
    };
    let tls = match &options.authorities {
        Some(path) => {
            let authorities = read(path)?;
            if !authorities.windows(PEM.len()).any(|part| part == PEM) {
                let problem = "contains no certificate in PEM form: see OTEL_EXPORTER_OTLP_CERTIFICATE";
                return Err(SetUpError(format!("`{}` {problem}", path.display())));
            }
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authorities))
        }
        None => ClientTlsConfig::new().with_enabled_roots(),
    };
    Ok(match &options.identity {
        Some((certificate, key)) => tls.identity(Identity::from_pem(read(certificate)?, read(key)?)),
        None => tls,
    })
}

fn scope() -> InstrumentationScope {
    InstrumentationScope::builder(SCOPE).with_version(env!("CARGO_PKG_VERSION")).with_schema_url(SCHEMA_URL).build()
}

fn traces(
    options: &Options,
    endpoint: &str,
    resource: &Resource,
    metrics: &Metrics,
) -> Result<SdkTracerProvider, SetUpError> {
    let exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(endpoint);
    let exporter = match endpoint.starts_with("https://") {
        true => exporter.with_tls_config(tls(options)?),
        false => exporter,
    };
    let exporter = exporter.build().map_err(|error| SetUpError(error.to_string()))?;
    let guard = Guard::new(exporter, "spans", endpoint.to_owned(), metrics.export_failed.clone());
    let processor = BatchSpanProcessor::builder(guard).build();
    Ok(SdkTracerProvider::builder().with_resource(resource.clone()).with_span_processor(processor).build())
}

fn logs(
    options: &Options,
    endpoint: &str,
    resource: &Resource,
    metrics: &Metrics,
) -> Result<SdkLoggerProvider, SetUpError> {
    let exporter = opentelemetry_otlp::LogExporter::builder().with_tonic().with_endpoint(endpoint);
    let exporter = match endpoint.starts_with("https://") {
        true => exporter.with_tls_config(tls(options)?),
        false => exporter,
    };
    let exporter = exporter.build().map_err(|error| SetUpError(error.to_string()))?;
    let guard = Guard::new(exporter, "log events", endpoint.to_owned(), metrics.events_failed.clone());
    let processor = BatchLogProcessor::builder(guard).build();
    Ok(SdkLoggerProvider::builder().with_resource(resource.clone()).with_log_processor(processor).build())
}

impl Telemetry {
    /// Sets up telemetry; must run inside the Tokio runtime. The SDK reads the other `OTEL_*` variables
    /// itself.
    ///
    /// # Errors
    /// Returns an error if the endpoint is not a URL, or the registry refuses the exporter.
    pub fn start(options: &Options) -> Result<Self, SetUpError> {
        let failed = |error: &dyn std::fmt::Display| SetUpError(error.to_string());
        let resource = Resource::builder()
            .with_service_name(options.service_name.clone())
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("deployment.environment.name", options.environment.clone()))
            .build();
        let registry = Registry::new();
        let reader = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .build()
            .map_err(|error| failed(&error))?;
        let meters = SdkMeterProvider::builder().with_resource(resource.clone()).with_reader(reader).build();
        let metrics = Metrics::new(&meters.meter(SCOPE));
        if options.endpoint.is_some() || options.events.is_some() {
            // A processor takes its counter of what it drops from the global meter provider when it is built, so set the
            // provider first.
            global::set_meter_provider(meters.clone());
        }
        let traces =
            options.endpoint.as_ref().map(|endpoint| traces(options, endpoint, &resource, &metrics)).transpose()?;
        let logs = options.events.as_ref().map(|endpoint| logs(options, endpoint, &resource, &metrics)).transpose()?;
        let tracer = traces.as_ref().map(|traces| traces.tracer_with_scope(scope()));
        Ok(Self { tracer, traces, logs, meters, registry, metrics })
    }

    /// Returns what emits log events; `None` if they are not exported.
    pub fn events(&self) -> Option<Events> {
        self.logs.as_ref().map(|logs| Events(logs.logger_with_scope(scope())))
    }

    /// Returns all metrics in Prometheus's text format.
    ///
    /// # Errors
    /// Returns an error if a metric has no such form.
    pub fn metrics_text(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// Exports the queued spans within the timeout. This function blocks, so call it from a blocking thread.
    pub fn shut_down(&self, timeout: Duration) {
        if let Some(Err(error)) = self.traces.as_ref().map(|traces| traces.shutdown_with_timeout(timeout)) {
            tracing::warn!(name: "telemetry.shutdown_failed", error = %error, "not every span was exported");
        }
        if let Some(Err(error)) = self.logs.as_ref().map(|logs| logs.shutdown_with_timeout(timeout)) {
            tracing::warn!(name: "telemetry.shutdown_failed", error = %error, "not every log event was exported");
        }
        if let Err(error) = self.meters.shutdown() {
            tracing::warn!(name: "telemetry.shutdown_failed", error = %error, "metrics did not shut down");
        }
    }
}
