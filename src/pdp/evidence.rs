//! Evidence of decisions: what policies were evaluated with, so that a replay can evaluate them again. It has everything that the
//! evaluation depends on, and no text of a customer and no token. Each decision's evidence is encrypted under the key of its data
//! subject, which is the owner of the case, or the case itself if it has no owner.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use serde::{Deserialize, Serialize};

use crate::approvals::store::Store;
use crate::approvals::store::subjects::{NewSubjectKey, Subject, SubjectOf};
use crate::audit::evidence::{Sealed, SubjectKey};
use crate::audit::key::DigestKey;
use crate::clock::Seldom;
use crate::entropy::{Entropy, nonce};
use crate::json::{Object, canonical};
use crate::model::approval::Approval;
use crate::model::call::{Call, Case, Correlation, EntityReference, Model, Resource, Tokens};
use crate::model::chain::{Chain, Credential, TokenFacts};
use crate::model::time::Timestamp;
use crate::model::trusted_context::TrustedContext;
use crate::pdp::services::Services;

/// Version of the form of evidence.
const FORM: u32 = 1;
/// Time for which a key is used. A new one is made after that, so that each key expires with its evidence.
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Time after which a key is read from the store again. Another replica may have erased it.
const FRESH: Duration = Duration::from_secs(60);
/// Maximum number of keys in memory.
const KEYS_MAX: usize = 16_384;

/// What one decision was evaluated with.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Inputs<'a> {
    v: u32,
    now: Timestamp,
    tool_service: Cow<'a, str>,
    tool_tenants: Cow<'a, Option<Vec<String>>>,
    agent: Cow<'a, str>,
    supervisor: Cow<'a, str>,
    step: Cow<'a, str>,
    scopes: Cow<'a, Option<Vec<String>>>,
    asserted: bool,
    token_tenant: Cow<'a, Option<String>>,
    token_case: Cow<'a, Option<String>>,
    action: Cow<'a, str>,
    resource_type: Cow<'a, str>,
    resource_id: Cow<'a, str>,
    resource_version: Cow<'a, str>,
    resource_attributes: Cow<'a, Option<Object>>,
    case_id: Cow<'a, str>,
    case_version: Cow<'a, str>,
    case_tenant: Cow<'a, str>,
    case_attributes: Cow<'a, Object>,
    arguments: Cow<'a, Object>,
    facts: Cow<'a, Option<Object>>,
    model: Cow<'a, Option<Model>>,
    trusted: Cow<'a, TrustedContext>,
    /// Whether the call was the retry of an operation that was allowed before.
    repeated: bool,
}

/// A decision as it was evaluated, read from its evidence.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluated {
    pub now: Timestamp,
    pub chain: Chain,
    pub call: Call,
    pub trusted: TrustedContext,
    /// Whether the call was the retry of an operation that was allowed before.
    pub repeated: bool,
}

/// Returns the evidence of an evaluation, before it is encrypted.
fn inputs(now: Timestamp, chain: &Chain, call: &Call, trusted: &TrustedContext, repeated: bool) -> Vec<u8> {
    let (resource, case) = (&call.resource, &call.case);
    canonical(&Inputs {
        v: FORM,
        now,
        tool_service: Cow::Borrowed(&chain.tool_service),
        tool_tenants: Cow::Borrowed(&chain.tool_tenants),
        agent: Cow::Borrowed(&chain.agent),
        supervisor: Cow::Borrowed(&chain.supervisor),
        step: Cow::Borrowed(&chain.step),
        scopes: Cow::Borrowed(&chain.scopes),
        asserted: chain.asserted,
        token_tenant: Cow::Borrowed(&chain.token.tenant),
        token_case: Cow::Borrowed(&chain.token.case),
        action: Cow::Borrowed(&call.action),
        resource_type: Cow::Borrowed(&resource.reference.kind),
        resource_id: Cow::Borrowed(&resource.reference.id),
        resource_version: Cow::Borrowed(&resource.version),
        resource_attributes: Cow::Borrowed(&resource.attributes),
        case_id: Cow::Borrowed(&case.id),
        case_version: Cow::Borrowed(&case.version),
        case_tenant: Cow::Borrowed(&case.tenant),
        case_attributes: Cow::Borrowed(&case.attributes),
        arguments: Cow::Borrowed(&call.arguments),
        facts: Cow::Borrowed(&call.facts),
        model: Cow::Borrowed(&call.model),
        trusted: Cow::Borrowed(trusted),
        repeated,
    })
}

impl Evaluated {
    /// Reads decrypted evidence. `None` if it has another form.
    pub fn read(evidence: &[u8]) -> Option<Self> {
        let read: Inputs<'_> = serde_json::from_slice(evidence).ok()?;
        if read.v != FORM {
            return None;
        }
        let token = TokenFacts {
            tenant: read.token_tenant.into_owned(),
            case: read.token_case.into_owned(),
            ..TokenFacts::default()
        };
        let chain = Chain {
            tool_service: read.tool_service.into_owned(),
            tool_tenants: read.tool_tenants.into_owned(),
            agent: read.agent.into_owned(),
            supervisor: read.supervisor.into_owned(),
            step: read.step.into_owned(),
            scopes: read.scopes.into_owned(),
            asserted: read.asserted,
            token,
        };
        let reference = EntityReference { kind: read.resource_type.into_owned(), id: read.resource_id.into_owned() };
        let resource = Resource {
            reference,
            version: read.resource_version.into_owned(),
            attributes: read.resource_attributes.into_owned(),
        };
        let case = Case {
            id: read.case_id.into_owned(),
            version: read.case_version.into_owned(),
            tenant: read.case_tenant.into_owned(),
            attributes: read.case_attributes.into_owned(),
        };
        let call = Call {
            credential: Credential::None,
            action: read.action.into_owned(),
            resource,
            case,
            arguments: read.arguments.into_owned(),
            facts: read.facts.into_owned(),
            untrusted: vec![],
            tokens: Tokens::default(),
            model: read.model.into_owned(),
            correlation: Correlation::default(),
            dry_run: false,
        };
        let trusted = read.trusted.into_owned();
        Some(Self { now: read.now, chain, call, trusted, repeated: read.repeated })
    }
}

/// What an evaluation used besides chain and call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Used<'a> {
    pub(super) now: Timestamp,
    pub(super) trusted: &'a TrustedContext,
    pub(super) repeated: bool,
}

/// A key in memory.
#[derive(Clone, Debug)]
struct Cached {
    key: Arc<SubjectKey>,
    day: i64,
    read_at: Timestamp,
}

/// Makes the evidence of decisions.
#[derive(Debug)]
pub(super) struct EvidenceMaker {
    /// Whether evidence is kept.
    is_on: bool,
    store: Arc<Store>,
    deployment: DigestKey,
    entropy: Arc<dyn Entropy>,
    keys: DashMap<Subject, Cached>,
    failed_logged: Seldom,
}

impl EvidenceMaker {
    pub(super) fn new(services: &Services) -> Self {
        Self {
            is_on: services.options.evidence_days > 0,
            store: Arc::clone(&services.store),
            deployment: services.audit.key().clone(),
            entropy: Arc::clone(&services.entropy),
            keys: DashMap::new(),
            failed_logged: Seldom::default(),
        }
    }

    /// Returns the encrypted evidence of an evaluation. `None` if no evidence is kept, or the state store does not give the key;
    /// the decision can't be replayed then.
    pub(super) async fn of(&self, owner: &str, chain: &Chain, call: &Call, used: Used<'_>) -> Option<Sealed> {
        if !self.is_on {
            return None;
        }
        let key = self.key(Subject::of(&call.case, owner), used.now).await?;
        key.seal(inputs(used.now, chain, call, used.trusted, used.repeated))
    }

    /// Returns the encrypted evidence of what a reviewer is shown. `None` as in [`Self::of`].
    pub(super) async fn of_display(&self, approval: &Approval) -> Option<Sealed> {
        if !self.is_on {
            return None;
        }
        let (call, customer) = (&approval.binding.call, &approval.binding.customer);
        let (kind, id) =
            if customer.is_empty() { (SubjectOf::Case, &call.case) } else { (SubjectOf::Customer, customer) };
        let subject = Subject { tenant: call.tenant.clone(), kind, id: id.clone() };
        self.key(subject, approval.requested_at).await?.seal(approval.display.clone().into_bytes())
    }

    async fn key(&self, subject: Subject, now: Timestamp) -> Option<Arc<SubjectKey>> {
        let day = now.micros().div_euclid(Timestamp::default().plus(DAY).micros());
        let known = self.keys.get(&subject).map(|known| known.clone());
        if let Some(known) = known.filter(|known| known.day == day && now < known.read_at.plus(FRESH)) {
            return Some(known.key);
        }
        let key = self.stored(subject.clone(), day).await;
        if key.is_none() && self.failed_logged.is_due(now) {
            tracing::warn!(name: "evidence.no_key", "the state store gives no key for evidence: these decisions can't be replayed");
        }
        let key = key?;
        if self.keys.len() >= KEYS_MAX {
            self.keys.clear();
        }
        self.keys.insert(subject, Cached { key: Arc::clone(&key), day, read_at: now });
        Some(key)
    }

    async fn stored(&self, subject: Subject, day: i64) -> Option<Arc<SubjectKey>> {
        let fresh = || nonce(self.entropy.as_ref()).ok();
        let new = NewSubjectKey { subject, day, id: fresh()?, secret: format!("{}{}", fresh()?, fresh()?) };
        let (id, secret) = self.store.subject_key(new).await.ok()?;
        SubjectKey::new(&self.deployment, &id, &secret).map(Arc::new)
    }

    /// Forgets the keys of a subject that is erased.
    pub(super) fn forget(&self, subject: &Subject) {
        self.keys.remove(subject);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::{self, Value};

    #[test]
    fn evidence_is_read_as_it_was_written_and_has_no_text_and_no_token() {
        let object = |text: &str| json::read_object(text.as_bytes()).expect("an object");
        let chain = Chain {
            tool_service: "orders".into(),
            tool_tenants: Some(vec!["acme".into()]),
            agent: "bot".into(),
            supervisor: "rep".into(),
            step: "action".into(),
            scopes: Some(vec!["a".into()]),
            asserted: false,
            token: TokenFacts { tenant: Some("acme".into()), case: Some("c".into()), ..TokenFacts::default() },
        };
        let case =
            Case { id: "c".into(), version: "3".into(), tenant: "acme".into(), attributes: object(r#"{"a":1}"#) };
        let mut call = Call::on_case("refund", "Case", case, Credential::None);
        call.arguments = object(r#"{"amount":{"minor":40000,"currency":"EUR"},"text":"ü\u0001"}"#);
        call.facts = Some(object(r#"{"b":[true]}"#));
        call.resource.attributes = Some(object("{}"));
        call.model = Some(Model { provider: "p".into(), name: "m".into(), version: "1".into() });
        let mut trusted = TrustedContext::nothing(Value::Integer(7));
        trusted.set("approval", json::object([("expires", Value::from("2026-01-01T00:00:00Z"))]));
        let now = Timestamp::from_seconds(1_700_000_000);
        let evaluated = Evaluated { now, chain, call, trusted, repeated: true };
        let mut asked = evaluated.call.clone();
        asked.tokens.approval = Some("secret-token".into());
        asked.untrusted = vec![crate::model::call::Untrusted { source: "chat".into(), text: "a hostile text".into() }];
        let written = inputs(now, &evaluated.chain, &asked, &evaluated.trusted, true);
        let text = String::from_utf8_lossy(&written);
        assert!(!text.contains("secret-token") && !text.contains("hostile"), "{text}");
        assert_eq!(Evaluated::read(&written), Some(evaluated));
        assert_eq!(Evaluated::read(text.replace("\"v\":1", "\"v\":2").as_bytes()), None);
        assert_eq!(Evaluated::read(b"{}"), None);
    }
}
