//! Names in the settings that the bundle must have.

use crate::bundle::Bundle;
use crate::config::{Config, ConfigError};
use crate::model::text::known;

/// Checks that the bundle has the tool services and tenants that the settings name: a misspelt name would only show
/// in denials.
///
/// # Errors
/// The first name that the bundle lacks, with the one that it resembles.
pub fn check(config: &Config, bundle: &Bundle) -> Result<(), ConfigError> {
    let Some(roles) = &bundle.roles else { return Ok(()) };
    let named = [
        ("callers.identities", &roles.tool_service, names(&config.callers.identities, |one| Some(&one.tool_service))),
        (
            "callers.unix_socket.peers",
            &roles.tool_service,
            names(&config.callers.unix_socket.peers, |one| Some(&one.tool_service)),
        ),
        ("callers.asserting", &roles.tool_service, names(&config.callers.asserting, |one| Some(&one.tool_service))),
        ("callers.certificate_reporters", &roles.tool_service, names(&config.callers.certificate_reporters, Some)),
        ("events.transmitters", &roles.tool_service, names(&config.events.transmitters, |one| Some(&one.tool_service))),
        ("events.transmitters", &roles.tenant, names(&config.events.transmitters, |one| Some(&one.tenant))),
        ("issuers", &roles.tenant, names(&config.issuers, |one| Some(&one.tenant).filter(|tenant| !tenant.is_empty()))),
    ];
    let domains = config.callers.trust_domains.iter().flat_map(|domain| &domain.tenants);
    let domains = domains.map(|tenant| ("callers.trust_domains", &roles.tenant, tenant.as_str()));
    let all =
        named.into_iter().flat_map(|(setting, kind, names)| names.into_iter().map(move |name| (setting, kind, name)));
    for (setting, kind, name) in all.chain(domains) {
        if !bundle.policies.has(kind, name) {
            let problem =
                format!("names `{name}`, which is no {kind} of the bundle{}", known(name, bundle.policies.ids(kind)));
            return Err(ConfigError::Refused { setting, problem });
        }
    }
    Ok(())
}

fn names<'a, T>(all: &'a [T], name: impl Fn(&'a T) -> Option<&'a String>) -> Vec<&'a str> {
    all.iter().filter_map(name).map(String::as_str).collect()
}
