//! Destination of telemetry, from OpenTelemetry's own variables. The SDK reads those that are not named here itself.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::config::ConfigError;
use crate::telemetry::export;

/// Values of `OTEL_TRACES_SAMPLER`.
const SAMPLERS: [&str; 6] = [
    "always_off",
    "always_on",
    "parentbased_always_off",
    "parentbased_always_on",
    "parentbased_traceidratio",
    "traceidratio",
];

/// Reads the destination of telemetry. Blanks around values are ignored.
///
/// # Errors
/// If a variable has a value that is not supported.
pub fn telemetry(environment: &str, variables: &BTreeMap<String, String>) -> Result<export::Options, ConfigError> {
    let set = |name: &str| variables.get(name).map(|value| value.trim()).filter(|value| !value.is_empty());
    let refused = |setting, problem: &str| Err(ConfigError::Refused { setting, problem: problem.to_owned() });
    let exporter = set("OTEL_TRACES_EXPORTER").unwrap_or("otlp");
    if !["none", "otlp"].contains(&exporter) {
        return refused("OTEL_TRACES_EXPORTER", "must be `otlp` or `none`: no other exporter is supported");
    }
    if set("OTEL_TRACES_SAMPLER").is_some_and(|sampler| !SAMPLERS.contains(&sampler)) {
        return refused("OTEL_TRACES_SAMPLER", &format!("must be one of {}", SAMPLERS.join(", ")));
    }
    // Log events are off by default, because some collectors accept only spans.
    let log_exporter = set("OTEL_LOGS_EXPORTER").unwrap_or("none");
    if !["none", "otlp"].contains(&log_exporter) {
        return refused("OTEL_LOGS_EXPORTER", "must be `otlp` or `none`: no other exporter is supported");
    }
    // Values other than `true` mean false.
    let is_disabled = set("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let off = is_disabled || exporter == "none";
    // A variable for traces has precedence over the one for all signals.
    let otlp = |name: &str| {
        set(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}")).or_else(|| set(&format!("OTEL_EXPORTER_OTLP_{name}")))
    };
    let endpoint = otlp("ENDPOINT").filter(|_| !off);
    let events = set("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT").or_else(|| set("OTEL_EXPORTER_OTLP_ENDPOINT"));
    let events = events.filter(|_| !is_disabled && log_exporter == "otlp");
    let is_url = |url: &str| ["http://", "https://"].iter().any(|scheme| url.starts_with(scheme));
    if endpoint.into_iter().chain(events).any(|url| !is_url(url)) {
        return refused(
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "must be a URL such as `http://127.0.0.1:4317`, or `https://…` for TLS",
        );
    }
    if endpoint.or(events).is_some() && otlp("PROTOCOL").is_some_and(|protocol| protocol != "grpc") {
        return refused("OTEL_EXPORTER_OTLP_PROTOCOL", "must be `grpc`: OTLP over HTTP is not supported");
    }
    let identity = match (otlp("CLIENT_CERTIFICATE"), otlp("CLIENT_KEY")) {
        (Some(certificate), Some(key)) => Some((PathBuf::from(certificate), PathBuf::from(key))),
        (None, None) => None,
        _ => {
            return refused(
                "OTEL_EXPORTER_OTLP_CLIENT_KEY",
                "and OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE must be set together",
            );
        }
    };
    // `OTEL_SERVICE_NAME` has precedence over the resource's attributes, and those over the settings.
    let attributes = set("OTEL_RESOURCE_ATTRIBUTES").unwrap_or("");
    let attribute = |name: &str| {
        let pairs = attributes.split(',').filter_map(|pair| pair.split_once('='));
        pairs.map(|(key, value)| (key.trim(), value.trim())).find(|(key, _)| *key == name).map(|(_, value)| value)
    };
    let service_name = set("OTEL_SERVICE_NAME").or_else(|| attribute("service.name")).unwrap_or("countersign");
    Ok(export::Options {
        endpoint: endpoint.map(str::to_owned),
        events: events.map(str::to_owned),
        authorities: otlp("CERTIFICATE").map(PathBuf::from),
        identity,
        service_name: service_name.to_owned(),
        environment: attribute("deployment.environment.name").unwrap_or(environment).to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<export::Options, String> {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        telemetry("production", &variables).map_err(|error| error.to_string())
    }

    #[test]
    fn variables_of_the_specification_are_honoured_or_refused_by_name() {
        const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
        let endpoint = |variables: &[(&str, &str)]| read(variables).expect("accepted").endpoint;
        assert_eq!(endpoint(&[(ENDPOINT, " http://collector:4317 ")]).as_deref(), Some("http://collector:4317"));
        let own = [(ENDPOINT, "http://all:1"), ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://traces:1")];
        assert_eq!(endpoint(&own).as_deref(), Some("https://traces:1"));
        for off in [("OTEL_SDK_DISABLED", "TRUE"), ("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")] {
            assert_eq!(endpoint(&[(ENDPOINT, "http://collector:4317"), off]), None, "{off:?}");
        }
        assert!(endpoint(&[(ENDPOINT, "http://collector:4317"), ("OTEL_SDK_DISABLED", "0")]).is_some());
        let events = |variables: &[(&str, &str)]| read(variables).expect("accepted").events;
        let (all, on) = ((ENDPOINT, "http://all:1"), ("OTEL_LOGS_EXPORTER", "otlp"));
        assert_eq!(events(&[all]), None);
        assert_eq!(events(&[all, on]).as_deref(), Some("http://all:1"));
        assert_eq!(events(&[all, on, ("OTEL_SDK_DISABLED", "true")]), None);
        let own = ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://logs:1");
        assert_eq!(events(&[all, on, own]).as_deref(), Some("http://logs:1"));
        for (wrong, expected) in [
            ((ENDPOINT, "collector:4317"), "`OTEL_EXPORTER_OTLP_ENDPOINT` must be a URL such as"),
            (("OTEL_TRACES_EXPORTER", "console"), "`OTEL_TRACES_EXPORTER` must be `otlp` or `none`"),
            (("OTEL_LOGS_EXPORTER", "console"), "`OTEL_LOGS_EXPORTER` must be `otlp` or `none`"),
            (("OTEL_TRACES_SAMPLER", "allways_on"), "`OTEL_TRACES_SAMPLER` must be one of always_off, always_on"),
            (("OTEL_EXPORTER_OTLP_CLIENT_KEY", "k.pem"), "must be set together"),
        ] {
            let error = read(&[wrong]).expect_err("refused");
            assert!(error.contains(expected), "{wrong:?}: {error}");
        }
        let error =
            read(&[(ENDPOINT, "http://c:1"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")]).expect_err("refused");
        assert!(error.contains("must be `grpc`"), "{error}");
    }

    #[test]
    fn attributes_of_the_resource_have_precedence_over_the_settings() {
        let names = |variables: &[(&str, &str)]| {
            let options = read(variables).expect("accepted");
            (options.service_name, options.environment)
        };
        assert_eq!(names(&[]), ("countersign".into(), "production".into()));
        let attributes = ("OTEL_RESOURCE_ATTRIBUTES", "service.name=pdp, deployment.environment.name=eu");
        assert_eq!(names(&[attributes]), ("pdp".into(), "eu".into()));
        assert_eq!(names(&[attributes, ("OTEL_SERVICE_NAME", "own")]).0, "own");
    }
}
