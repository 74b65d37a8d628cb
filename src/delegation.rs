//! Derives the delegation chain from a credential: the supervising human whose authority is used, the agent
//! that uses it, and the workflow step.
//!
//! A token's `sub` is the human, and its outermost `act` is the agent (RFC 8693;
//! draft-mcguinness-oauth-actor-profile). Inner `act`s are history and decide nothing. A token never names
//! approvers, because a tool that acted with an approver's rights would be a confused deputy.

pub mod issuers;

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Seldom;
use crate::delegation::issuers::{Issuer, Issuers};
use crate::jose;
use crate::json::{Object, Value};
use crate::model::chain::{Asserted, Caller, Chain, Credential, DevelopmentDefaults, Human, TokenFacts};
use crate::model::refusal::Refusal;
use crate::model::text::{short_digest, visible};
use crate::model::time::Timestamp;

/// Maximum life of a delegation token.
const DELEGATION_MAX: Duration = Duration::from_secs(15 * 60);
/// Maximum life of a human's own token.
const HUMAN_MAX: Duration = Duration::from_secs(60 * 60);
/// Maximum number of actors in a token, including the acting one.
const ACTORS_MAX: usize = 4;
/// Longest id in a token, in bytes.
const ID_MAX: usize = 128;

/// A caller that may assert chains, and what these chains may contain. An empty list allows nothing.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asserting {
    pub tool_service: String,
    /// Agents that the caller may name.
    pub agents: Vec<String>,
    /// Supervisors that the caller may name.
    pub supervisors: Vec<String>,
    /// Workflow steps that the caller may name.
    pub steps: Vec<String>,
}

/// Verifies the credentials of calls, and the tokens of humans.
#[derive(Debug)]
pub struct Delegations {
    /// Issuers whose tokens are accepted.
    pub issuers: Issuers,
    /// Callers that may assert chains.
    pub asserting: Vec<Asserting>,
    /// Tool services whose reports of agents' certificates are accepted.
    pub certificate_reporters: Vec<String>,
    /// Whether every caller may assert any chain.
    pub development: bool,
    /// Limits the log lines about rejected tokens.
    pub rejected_logged: Seldom,
}

impl Delegations {
    /// Returns the chain of a call. In development mode, absent members of an asserted chain take the
    /// bundle's development defaults.
    ///
    /// # Errors
    /// Returns UNAUTHENTICATED if the credential is not accepted.
    pub async fn chain(
        &self,
        caller: &Caller,
        credential: &Credential,
        development: Option<&DevelopmentDefaults>,
        now: Timestamp,
    ) -> Result<Chain, Refusal> {
        match credential {
            Credential::Asserted(asserted) => self.asserted(caller, asserted, development),
            Credential::None if self.development => self.asserted(caller, &Asserted::default(), development),
            Credential::None => Err(Refusal::Unauthenticated("the call names no delegation")),
            Credential::Token { token, agent_certificate } => {
                let trusted = self.development || self.certificate_reporters.contains(&caller.tool_service);
                let presenter = Presenter { reported: agent_certificate.as_ref(), trusted };
                let chain = self.claims(token, now, DELEGATION_MAX).await;
                let chain = chain.and_then(|(issuer, claims)| delegated(caller, &issuer, &claims, presenter));
                chain.inspect_err(|refusal| self.log_rejected(token, refusal, now))
            }
        }
    }

    /// Returns the issuer and the claims of a token that is valid now, for at most `longest`.
    async fn claims(&self, token: &str, now: Timestamp, longest: Duration) -> Result<(Arc<Issuer>, Object), Refusal> {
        let (issuer, opened) = self.issuers.open(token, now).await?;
        let claims = opened.at(now, self.issuers.leeway(), longest);
        Ok((issuer, claims.map_err(|fault| Refusal::Unauthenticated(fault.message()))?))
    }

    /// Logs whose token was rejected: a digest of the subject, because it is not proven and may be personal data, and
    /// the subject itself only at debug level.
    fn log_rejected(&self, token: &str, refusal: &Refusal, now: Timestamp) {
        let (issuer, subject) = jose::claimed_subject(token).unwrap_or_default();
        tracing::debug!(name: "token.rejected", issuer = visible(&issuer), subject = visible(&subject), error = %refusal);
        if self.rejected_logged.is_due(now) {
            let subject_digest = short_digest(&subject);
            tracing::info!(name: "token.rejected", subject_digest, error = %refusal, "a token was rejected; further ones of this second are not logged");
        }
    }

    /// Returns the human whose own token this is.
    ///
    /// # Errors
    /// Returns UNAUTHENTICATED if the token is not accepted, or names an acting agent.
    pub async fn human(&self, token: &str, now: Timestamp) -> Result<Human, Refusal> {
        let human = self.claims(token, now, HUMAN_MAX).await.and_then(|(issuer, claims)| human(&issuer, &claims));
        human.inspect_err(|refusal| self.log_rejected(token, refusal, now))
    }

    fn asserted(
        &self,
        caller: &Caller,
        asserted: &Asserted,
        development: Option<&DevelopmentDefaults>,
    ) -> Result<Chain, Refusal> {
        let none = DevelopmentDefaults::default();
        let defaults = match (self.development, development) {
            (true, Some(defaults)) => defaults,
            (true, None) => return Err(Refusal::Unauthenticated("the bundle has no development defaults")),
            (false, _) => &none,
        };
        let chain =
            Chain { tool_tenants: caller.tenants.clone(), ..asserted_chain(&caller.tool_service, asserted, defaults) };
        let trusted = |asserting: &Asserting| {
            asserting.tool_service == caller.tool_service
                && asserting.agents.contains(&chain.agent)
                && asserting.supervisors.contains(&chain.supervisor)
                && asserting.steps.contains(&chain.step)
        };
        if !self.development && !self.asserting.iter().any(trusted) {
            return Err(Refusal::Unauthenticated(
                "the settings do not allow this caller to assert this chain: send a delegation token",
            ));
        }
        Ok(chain)
    }
}

/// Builds the human that a token's claims describe.
fn human(issuer: &Issuer, claims: &Object) -> Result<Human, Refusal> {
    if claims.contains_key("act") || claims.contains_key("step") || text(claims, "sub_profile") != Some("user") {
        return Err(Refusal::Unauthenticated(
            "the token is not a human's own: it must have `sub_profile` `user` and no `act`",
        ));
    }
    let amr = match claims.get("amr") {
        Some(Value::Array(items)) => items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect(),
        _ => vec![],
    };
    Ok(Human {
        issuer: issuer.issuer.clone(),
        subject: required(claims, "sub")?.to_owned(),
        id: issuer.entity_id(required(claims, "sub")?),
        person: issuer.person(claims),
        tenant: issuer.tenant.clone(),
        amr,
        acr: text(claims, "acr").unwrap_or("").to_owned(),
        issued_at: issued_at(claims),
    })
}

/// Builds an asserted chain; absent members take the defaults.
pub fn asserted_chain(tool_service: &str, asserted: &Asserted, defaults: &DevelopmentDefaults) -> Chain {
    let or = |given: &str, default: &str| if given.is_empty() { default.to_owned() } else { given.to_owned() };
    Chain {
        tool_service: tool_service.to_owned(),
        tool_tenants: None,
        agent: or(&asserted.agent, &defaults.agent),
        supervisor: or(&asserted.supervisor, &defaults.supervisor),
        step: or(&asserted.step, &defaults.step),
        scopes: (!asserted.scopes.is_empty()).then(|| asserted.scopes.clone()),
        asserted: true,
        token: TokenFacts::default(),
    }
}

/// The agent's certificate as the caller reports it, and whether the settings trust this caller's reports.
#[derive(Clone, Copy, Debug)]
struct Presenter<'a> {
    reported: Option<&'a [u8; 32]>,
    trusted: bool,
}

/// Builds the chain that a token's claims describe.
fn delegated(caller: &Caller, issuer: &Issuer, claims: &Object, presenter: Presenter<'_>) -> Result<Chain, Refusal> {
    let refused = |words| Err(Refusal::Unauthenticated(words));
    if text(claims, "sub_profile") != Some("user") {
        return refused("the token's `sub` must be a human: `sub_profile` must be `user`");
    }
    let Some(Value::Object(actor)) = claims.get("act") else {
        return refused("the token names no agent in `act`");
    };
    if depth(actor) > ACTORS_MAX {
        return refused("the token's chain of `act` is deeper than 4");
    }
    let agent_issuer = match text(actor, "iss") {
        Some(named) if issuer.may_name_actors_of(named) => named.to_owned(),
        Some(_) => return refused("the token's `act.iss` is not one that its issuer may name"),
        None => return refused("the token's `act` has no `iss`"),
    };
    if text(actor, "sub_profile") != Some("ai_agent") {
        return refused("the token's `act` must be an agent: `act.sub_profile` must be `ai_agent`");
    }
    confirm(caller, issuer, claims, presenter)?;
    let case = match claims.get("case") {
        None => None,
        Some(_) => Some(required(claims, "case")?.to_owned()),
    };
    let scopes = match claims.get("scope") {
        None => vec![],
        Some(Value::String(scopes)) => scopes.split(' ').filter(|scope| !scope.is_empty()).map(str::to_owned).collect(),
        // RFC 9068 has a string with spaces; several identity systems send a list.
        Some(Value::Array(scopes)) => {
            let names: Option<Vec<String>> = scopes.iter().map(|scope| scope.as_str().map(str::to_owned)).collect();
            match names {
                Some(names) => names,
                None => return refused("the token's `scope` must be a string or a list of strings"),
            }
        }
        Some(_) => return refused("the token's `scope` must be a string or a list of strings"),
    };
    Ok(Chain {
        tool_service: caller.tool_service.clone(),
        tool_tenants: caller.tenants.clone(),
        agent: issuer.agent_id(&agent_issuer, required(actor, "sub")?),
        supervisor: issuer.entity_id(required(claims, "sub")?),
        step: required(claims, "step")?.to_owned(),
        scopes: Some(scopes),
        asserted: false,
        token: TokenFacts {
            supervisor_issuer: issuer.issuer.clone(),
            supervisor_person: issuer.person(claims),
            agent_issuer,
            tenant: (!issuer.tenant.is_empty()).then(|| issuer.tenant.clone()),
            case,
            issued_at: Some(issued_at(claims)),
        },
    })
}

/// Compares the token's `cnf` (RFC 8705) with a certificate. Without a report this is the caller's own: a
/// tool service that exchanged the agent's token for its own is itself the bound peer. A tool service may
/// report another certificate, which it saw in its handshake with the agent, only if the settings trust its
/// reports. Otherwise any caller could copy the digest from the token and report it.
fn confirm(caller: &Caller, issuer: &Issuer, claims: &Object, presenter: Presenter<'_>) -> Result<(), Refusal> {
    let bound = match claims.get("cnf") {
        Some(Value::Object(members)) => {
            let digest = text(members, "x5t#S256").and_then(jose::read_digest);
            digest.ok_or(Refusal::Unauthenticated("the token's `cnf` must be `x5t#S256`, a digest of a certificate"))?
        }
        Some(_) => return Err(Refusal::Unauthenticated("the token's `cnf` must be an object")),
        None if issuer.bound => {
            return Err(Refusal::Unauthenticated("the token is bound to no certificate: it has no `cnf`"));
        }
        None => return Ok(()),
    };
    let own = caller.certificate.as_ref();
    if presenter.reported.is_some_and(|reported| Some(reported) != own) && !presenter.trusted {
        return Err(Refusal::Unauthenticated(
            "the caller may not report the agent's certificate: it is not listed in `callers.certificate_reporters`",
        ));
    }
    match presenter.reported.or(own) {
        Some(seen) if *seen == bound => Ok(()),
        Some(_) => Err(Refusal::Unauthenticated("the token is bound to a certificate other than the agent's")),
        None => Err(Refusal::Unauthenticated(
            "the token is bound to a certificate, but the caller reported none of the agent",
        )),
    }
}

fn depth(actor: &Object) -> usize {
    let mut depth = 1;
    let mut at = actor;
    while let Some(Value::Object(inner)) = at.get("act") {
        depth += 1;
        at = inner;
    }
    depth
}

fn text<'a>(claims: &'a Object, name: &str) -> Option<&'a str> {
    claims.get(name).and_then(Value::as_str)
}

/// Returns a claim that must be an id, because records contain it and entities are looked up by it.
fn required<'a>(claims: &'a Object, name: &str) -> Result<&'a str, Refusal> {
    let id = text(claims, name).filter(|id| (1..=ID_MAX).contains(&id.len()) && !id.contains(char::is_control));
    id.ok_or(Refusal::Unauthenticated(match name {
        "case" => "the token's `case` is not a valid id",
        "step" => "the token names no `step`",
        _ => "the token's `sub` or `act.sub` is not a valid id",
    }))
}

fn issued_at(claims: &Object) -> Timestamp {
    match claims.get("iat") {
        Some(Value::Integer(seconds)) => Timestamp::from_seconds(*seconds),
        _ => Timestamp::default(),
    }
}
