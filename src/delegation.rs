//! Credential → delegation chain. In this version only asserted chains, in development mode, can be read.

use crate::model::chain::{Asserted, Caller, Chain, Credential, DevelopmentDefaults};
use crate::model::refusal::Refusal;

/// Says on whose behalf the caller calls. Absent members of an asserted chain take the bundle's development defaults.
///
/// # Errors
/// UNAUTHENTICATED, when the credential can't be accepted.
pub fn chain(caller: &Caller, credential: &Credential, development: Option<&DevelopmentDefaults>) -> Result<Chain, Refusal> {
    let none = Asserted::default();
    let asserted = match credential {
        Credential::Asserted(asserted) => asserted,
        Credential::None => &none,
        Credential::Token(_) => return Err(Refusal::Unauthenticated("no issuer of delegation tokens is configured")),
    };
    let defaults = development.ok_or(Refusal::Unauthenticated("the bundle has no development defaults"))?;
    let or = |given: &str, default: &str| if given.is_empty() { default.to_owned() } else { given.to_owned() };
    Ok(Chain {
        tool_service: caller.tool_service.clone(),
        agent: or(&asserted.agent, &defaults.agent),
        supervisor: or(&asserted.supervisor, &defaults.supervisor),
        step: or(&asserted.step, &defaults.step),
        scopes: asserted.scopes.clone(),
        asserted: true,
    })
}
