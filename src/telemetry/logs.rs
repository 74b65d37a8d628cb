//! Logs: one JSON object per line on standard error, with the ids of trace and span. Each line is
//! understandable by itself, a failure is logged once, where it is handled, and payloads and tokens are never
//! logged.

use std::fmt;

use opentelemetry::Context;
use opentelemetry::trace::TraceContextExt;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::clock::{Clock, SystemClock};

/// Directives that every filter starts with. Transport libraries log much without useful content, and
/// OpenTelemetry logs an error each second while the collector is unreachable.
const QUIET: &str =
    "h2=warn,hyper=warn,tonic=warn,tower=warn,opentelemetry=off,opentelemetry_sdk=off,opentelemetry_otlp=off";

#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a log filter: use a level such as `info`, or directives such as `info,countersign=debug`")]
pub struct BadFilter(String);

/// Starts logging to standard error.
///
/// # Errors
/// Returns an error if the filter can't be parsed.
pub fn start(filter: &str) -> Result<(), BadFilter> {
    let filter = EnvFilter::try_new(format!("{QUIET},{filter}")).map_err(|_| BadFilter(filter.to_owned()))?;
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).event_format(Json);
    // In tests several servers share a process, and the first one's filter stays in force.
    let _already = logs.try_init();
    Ok(())
}

struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        let mut line = Map::new();
        line.insert("ts".into(), SystemClock.now().to_string().into());
        line.insert("level".into(), metadata.level().as_str().into());
        // An event without a name of its own is named after its module.
        let name = if metadata.name().starts_with("event ") { metadata.target() } else { metadata.name() };
        line.insert("name".into(), name.into());
        let context = Context::current();
        let span = context.span();
        if span.span_context().is_valid() {
            line.insert("trace_id".into(), span.span_context().trace_id().to_string().into());
            line.insert("span_id".into(), span.span_context().span_id().to_string().into());
        }
        event.record(&mut Members(&mut line));
        writeln!(writer, "{}", Value::Object(line))
    }
}

struct Members<'a>(&'a mut Map<String, Value>);

impl Visit for Members<'_> {
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().into(), format!("{value:?}").into());
    }
}
