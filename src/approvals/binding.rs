//! The call that an approval is bound to, and its tokens: the binding token of a denial, the approval token,
//! and the outcome token of an allowed call. Claims follow ARAP (AuthZEN, draft 1) and
//! draft-rosomakho-oauth-txn-challenge-00; only this file contains their names.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::jose::keyring::Keyring;
use crate::jose::mac::MacKey;
use crate::jose::{self, Expected, Opened, SignFault, TokenFault};
use crate::json::{Object, Value, canonical};
use crate::model::approval::{Approval, Binding, BoundCall, Giver, Subject};
use crate::model::call::Call;
use crate::model::chain::Chain;
use crate::model::roles::Roles;
use crate::model::time::Timestamp;

/// Time within which an approval can be requested after the denial.
pub const REQUESTABLE: Duration = Duration::from_secs(15 * 60);
/// Maximum lifetime of an approval token.
pub const APPROVAL_TOKEN: Duration = Duration::from_secs(120);
/// Time within which the outcome of an allowed call can be reported.
pub const REPORTABLE: Duration = Duration::from_secs(3600);
/// Value of `v` in a [`BoundCall`].
const FORMAT: &str = "countersign.call/2";

const BINDING_TYPE: &str = "countersign-binding+jwt";

/// Returns the type (`typ`) of the token of an approval or consent.
fn token_type(giver: Giver) -> &'static str {
    match giver {
        Giver::Customer => "countersign-consent+jwt",
        Giver::Reviewers => "countersign-approval+jwt",
    }
}

/// Returns the call as a binding contains it. Integer arguments that are listed in `at_most` are separated
/// from those that must be equal.
pub fn bound_call(environment: &str, chain: &Chain, call: &Call, at_most: &[String]) -> BoundCall {
    let bounded = |name: &String, value: &Value| at_most.contains(name) && matches!(value, Value::Integer(_));
    let split = |wanted: bool| -> Object {
        let arguments = call.arguments.iter().filter(|(name, value)| bounded(name, value) == wanted);
        arguments.map(|(name, value)| (name.clone(), value.clone())).collect()
    };
    BoundCall {
        v: FORMAT.to_owned(),
        environment: environment.to_owned(),
        tenant: call.case.tenant.clone(),
        case: call.case.id.clone(),
        case_version: call.case.version.clone(),
        step: chain.step.clone(),
        supervisor: Subject { iss: chain.token.supervisor_issuer.clone(), sub: chain.supervisor.clone() },
        agent: Subject { iss: chain.token.agent_issuer.clone(), sub: chain.agent.clone() },
        audience: chain.tool_service.clone(),
        action: call.action.clone(),
        resource_type: call.resource.reference.kind.clone(),
        resource_id: call.resource.reference.id.clone(),
        resource_version: call.resource.version.clone(),
        exact: split(false),
        at_most: split(true),
        case_attributes: call.case.attributes.clone(),
        // A call without attributes or facts is bound to none.
        resource_attributes: call.resource.attributes.clone().unwrap_or_default(),
        facts: call.facts.clone().unwrap_or_default(),
    }
}

/// Digests a call, so that a retry of an operation can be distinguished from another call with the same
/// operation id. Attributes and facts are left out, except the case's owner, because the operation itself may
/// have changed them before its retry.
pub fn call_digest(environment: &str, roles: &Roles, chain: &Chain, call: &Call) -> String {
    let bound = bound_call(environment, chain, call, &[]);
    let attribute = roles.owners.get(&roles.case);
    let owner = attribute.and_then(|attribute| bound.case_attributes.get_key_value(attribute));
    let owner = owner.map(|(name, value)| (name.clone(), value.clone()));
    let (resource_attributes, facts) = (Object::new(), Object::new());
    digest(&BoundCall { case_attributes: owner.into_iter().collect(), resource_attributes, facts, ..bound })
}

/// Returns whether a human is the supervisor of the call, or the person behind the supervisor.
pub fn is_supervisor(binding: &Binding, id: &str, person: Option<&str>) -> bool {
    id == binding.call.supervisor.sub || (person.is_some() && person == binding.supervisor_person.as_deref())
}

/// Returns the SHA-256 of the canonical form (RFC 8785) of a bound call, in base64url.
pub fn digest(call: &BoundCall) -> String {
    jose::digest(&canonical(call))
}

/// Returns the issuer of the PDP's own tokens, which is different for each environment.
pub fn issuer(environment: &str) -> String {
    format!("countersign:{environment}")
}

#[derive(Clone, Serialize, Deserialize)]
struct BindingClaims {
    iss: String,
    aud: String,
    sub: String,
    jti: String,
    iat: i64,
    nbf: i64,
    exp: i64,
    binding: Binding,
}

/// Signs the binding token of a denial.
///
/// # Errors
/// When signing fails.
pub fn sign_binding(keys: &Keyring, binding: Binding, now: Timestamp) -> Result<String, SignFault> {
    let ours = issuer(&binding.call.environment);
    let claims = BindingClaims {
        iss: ours.clone(),
        aud: ours,
        sub: binding.call.audience.clone(),
        jti: binding.evaluation_id.clone(),
        iat: now.seconds(),
        nbf: now.seconds(),
        exp: now.plus(REQUESTABLE).seconds(),
        binding,
    };
    keys.sign(BINDING_TYPE, &claims)
}

/// Verifies a binding token of this environment and returns its content.
///
/// # Errors
/// When it is not a valid binding token of this environment, or has expired.
pub fn open_binding(keys: &Keyring, environment: &str, token: &str, now: Timestamp) -> Result<Binding, TokenFault> {
    let opened = open_claims(keys, environment, token)?;
    bound_to(environment, opened.at(now, jose::LEEWAY_OWN, REQUESTABLE)?)
}

/// Verifies a binding token of this environment, which may have expired: a customer may take a consent back later.
///
/// # Errors
/// When it is not a binding token of this environment.
pub fn open_old_binding(keys: &Keyring, environment: &str, token: &str) -> Result<Binding, TokenFault> {
    bound_to(environment, open_claims(keys, environment, token)?.claims().clone())
}

fn open_claims(keys: &Keyring, environment: &str, token: &str) -> Result<Opened<BindingClaims>, TokenFault> {
    let ours = issuer(environment);
    jose::open(token, &keys.set, &Expected::own(&[BINDING_TYPE], &ours, &ours))
}

fn bound_to(environment: &str, claims: BindingClaims) -> Result<Binding, TokenFault> {
    if claims.binding.call.environment == environment && claims.binding.call.v == FORMAT {
        Ok(claims.binding)
    } else {
        Err(TokenFault::Claims(""))
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApprovalClaims {
    iss: String,
    /// Only tool service that may use the token.
    aud: String,
    /// Supervisor whose authority is exercised; never the approver.
    sub: String,
    sub_profile: String,
    act: Actor,
    client_id: String,
    /// Id of the approval.
    pub jti: String,
    /// Evaluation id of the denial.
    txn: String,
    iat: i64,
    nbf: i64,
    exp: i64,
    authorization_details: Vec<Detail>,
    pub approval: ApprovalPart,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Actor {
    iss: String,
    sub: String,
    sub_profile: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Detail {
    r#type: String,
    locations: Vec<String>,
    actions: Vec<String>,
    identifier: String,
    tenant: String,
    case: CasePart,
    step: String,
    limits: Object,
    args: ArgumentsPart,
    max_uses: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CasePart {
    id: String,
    version: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ArgumentsPart {
    mode: String,
    alg: String,
    c14n: String,
    digest: String,
}

/// Facts about the approval in an approval token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApprovalPart {
    /// Generation of the store; in any other generation the token is void.
    pub generation: String,
    /// Digest of the bound call.
    pub digest: String,
    approved_at: String,
    approvers: Vec<Subject>,
    quorum: u32,
    display_digest: String,
    policy_digest: String,
}

/// Signs the token of an approved approval. The token is valid for [`APPROVAL_TOKEN`], but not longer than
/// the approval.
///
/// # Errors
/// When signing fails.
pub fn sign_approval(keys: &Keyring, approval: &Approval, now: Timestamp) -> Result<(String, Timestamp), SignFault> {
    let call = &approval.binding.call;
    let expires = now.plus(APPROVAL_TOKEN).min(approval.approved_until);
    let detail = Detail {
        r#type: "countersign_tool_call".to_owned(),
        locations: vec![call.audience.clone()],
        actions: vec![call.action.clone()],
        identifier: format!("{}/{}", call.resource_type, call.resource_id),
        tenant: call.tenant.clone(),
        case: CasePart { id: call.case.clone(), version: call.case_version.clone() },
        step: call.step.clone(),
        limits: call.at_most.clone(),
        args: ArgumentsPart {
            mode: if call.at_most.is_empty() { "exact" } else { "bounded" }.to_owned(),
            alg: "sha-256".to_owned(),
            c14n: "jcs".to_owned(),
            digest: jose::digest(&canonical(&call.exact)),
        },
        max_uses: 1,
    };
    let claims = ApprovalClaims {
        iss: issuer(&call.environment),
        aud: call.audience.clone(),
        sub: call.supervisor.sub.clone(),
        sub_profile: "user".to_owned(),
        act: Actor { iss: call.agent.iss.clone(), sub: call.agent.sub.clone(), sub_profile: "ai_agent".to_owned() },
        client_id: call.agent.sub.clone(),
        jti: approval.id.clone(),
        txn: approval.binding.evaluation_id.clone(),
        iat: now.seconds(),
        nbf: now.seconds(),
        exp: expires.seconds(),
        authorization_details: vec![detail],
        approval: ApprovalPart {
            generation: approval.generation.clone(),
            digest: approval.digest.clone(),
            approved_at: approval.approved_at.to_string(),
            approvers: approval.reviewers().cloned().collect(),
            quorum: approval.binding.quorum,
            display_digest: jose::digest(approval.display.as_bytes()),
            policy_digest: approval.binding.policy.clone(),
        },
    };
    Ok((keys.sign(token_type(approval.binding.giver), &claims)?, Timestamp::from_seconds(expires.seconds())))
}

/// Verifies an approval token or consent token that is addressed to this tool service. Its times are left to the caller,
/// because a retry of an operation gets its stored answer even after the token has expired.
///
/// # Errors
/// When it is not a token of this kind and environment, or is addressed to another tool service.
pub fn open_approval(
    keys: &Keyring,
    environment: &str,
    audience: &str,
    token: &str,
    giver: Giver,
) -> Result<Opened<ApprovalClaims>, TokenFault> {
    jose::open(token, &keys.set, &Expected::own(&[token_type(giver)], &issuer(environment), audience))
}

/// Facts about an allowed call in its outcome token. The tool service returns the token with the outcome, so
/// the PDP does not have to store every allowed call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allowed {
    /// Evaluation id of the allowed call.
    pub evaluation_id: String,
    pub tenant: String,
    /// Id of the case.
    pub case: String,
    /// Conversation id; empty if the call named none.
    #[serde(default)]
    pub conversation: String,
    /// Customer; empty if the case names none.
    pub customer: String,
    pub action: String,
    /// Id of the consumed approval; empty if none was needed.
    pub approval: String,
    /// Id of the consumed consent; empty if none was needed.
    #[serde(default)]
    pub consent: String,
    /// Checks that a successful outcome creates, the strongest last.
    #[serde(default)]
    pub checks: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OutcomeClaims {
    iss: String,
    sub: String,
    iat: i64,
    exp: i64,
    allowed: Allowed,
}

/// Returns the outcome token of an allowed call for its tool service.
///
/// # Errors
/// When the claims can't be serialized.
pub fn seal_outcome(
    key: &MacKey,
    environment: &str,
    caller: &str,
    allowed: Allowed,
    now: Timestamp,
) -> Result<String, SignFault> {
    let (iat, exp) = (now.seconds(), now.plus(REPORTABLE).seconds());
    key.seal(&OutcomeClaims { iss: issuer(environment), sub: caller.to_owned(), iat, exp, allowed })
}

/// Verifies an outcome token that was issued to this tool service.
///
/// # Errors
/// When it is not an outcome token of this environment, has expired, or was issued to another tool service.
pub fn open_outcome(
    key: &MacKey,
    environment: &str,
    caller: &str,
    token: &str,
    now: Timestamp,
) -> Result<Allowed, TokenFault> {
    let claims: OutcomeClaims = key.open(token)?;
    let (issued, expires) = (Timestamp::from_seconds(claims.iat), Timestamp::from_seconds(claims.exp));
    match () {
        () if claims.iss != issuer(environment) => Err(TokenFault::Issuer),
        () if claims.sub != caller => Err(TokenFault::Audience),
        () if expires.plus(jose::LEEWAY_OWN) <= now => Err(TokenFault::Expired),
        () if issued > now.plus(jose::LEEWAY_OWN) => Err(TokenFault::NotYet),
        () => Ok(claims.allowed),
    }
}
