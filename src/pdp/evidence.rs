//! Evidence of decisions: what policies were evaluated with, so that a replay can evaluate them again. It has everything that the
//! evaluation depends on, and no text of a customer and no token. Each decision's evidence is encrypted under the key of its data
//! subject, which is the owner of the case, or the case itself if it has no owner.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use serde::{Deserialize, Serialize};

use crate::approvals::store::Store;
use crate::approvals::store::subjects::{NewSubjectKey, Subject};
use crate::clock::Seldom;
use crate::json::Object;
use crate::model::approval::Approval;
use crate::model::call::{Call, Case, Correlation, EntityReference, Model, Resource, Tokens};
use crate::model::chain::{Chain, Credential, TokenFacts};
use crate::model::time::Timestamp;
use crate::model::trusted_context::TrustedContext;
use crate::pdp::services::Services;
use crate::sealing::{self, DeploymentKeys, Sealed, SubjectKey};

/// Version of the form of evidence.
const FORM: u32 = 1;
/// Time for which a key is used. A new one is made after that, so that each key expires with its evidence.
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Time after which a key is read from the store again. Another replica may have erased it.
const FRESH: Duration = Duration::from_secs(60);
/// Maximum number of keys in memory.
const KEYS_MAX: usize = 16_384;
/// Maximum length of evidence before it is encrypted, in bytes. What is longer is not kept, so that no caller fills the disk.
const BYTES_MAX: usize = 32 * 1024;
/// Number of bytes that most evidence has at most.
const WRITTEN: usize = 2048;
/// Maximum number of keys that the calls of one tool service may need from the state store in a second.
const KEYS_PER_SECOND: u32 = 100;
/// Time that an answer waits for a key, and pause after a failure.
const PATIENCE: Duration = Duration::from_millis(250);
const PAUSE: Duration = Duration::from_secs(1);

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

/// Returns the evidence of an evaluation, before it is encrypted. Its digest is that of the ciphertext, so it needs no canonical form.
fn inputs(now: Timestamp, chain: &Chain, call: &Call, trusted: &TrustedContext, repeated: bool) -> Option<Vec<u8>> {
    let (resource, case) = (&call.resource, &call.case);
    let inputs = Inputs {
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
    };
    let mut written = Vec::with_capacity(WRITTEN);
    serde_json::to_writer(&mut written, &inputs).ok().map(|()| written)
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

/// Second and number of requests for keys, by tool service. Tool services are entities of the bundle, so they are few.
#[derive(Debug, Default)]
struct KeyRequests(DashMap<String, (i64, u32)>);

impl KeyRequests {
    /// Counts a request. Returns false if the tool service has made too many in this second.
    fn admit(&self, by: &str, now: Timestamp) -> bool {
        let mut asked = self.0.entry(by.to_owned()).or_insert((now.seconds(), 0));
        if asked.0 != now.seconds() {
            *asked = (now.seconds(), 0);
        }
        asked.1 = asked.1.saturating_add(1);
        asked.1 <= KEYS_PER_SECOND
    }
}

/// Makes the evidence of decisions.
#[derive(Debug)]
pub(super) struct EvidenceMaker {
    /// Whether evidence is kept.
    is_on: bool,
    store: Arc<Store>,
    /// Key with which those of subjects are derived.
    sealing: Option<DeploymentKeys>,
    keys: DashMap<Subject, Cached>,
    requests: KeyRequests,
    /// Time in microseconds until which the state store is not asked.
    paused_until: AtomicI64,
    failed_logged: Seldom,
}

impl EvidenceMaker {
    pub(super) fn new(services: &Services) -> Self {
        Self {
            is_on: services.options.evidence_days > 0,
            store: Arc::clone(&services.store),
            sealing: services.store.sealing(),
            keys: DashMap::new(),
            requests: KeyRequests::default(),
            paused_until: AtomicI64::new(0),
            failed_logged: Seldom::default(),
        }
    }

    /// Returns the encrypted evidence of an evaluation. `None` if no evidence is kept, or the state store does not give the key;
    /// the decision can't be replayed then.
    pub(super) async fn of(&self, owner: &str, chain: &Chain, call: &Call, used: Used<'_>) -> Option<Sealed> {
        if !self.is_on {
            return None;
        }
        let inputs = inputs(used.now, chain, call, used.trusted, used.repeated)?;
        if inputs.len() > BYTES_MAX {
            return None;
        }
        let key = self.key(&chain.tool_service, Subject::of(&call.case, owner), used.now).await?;
        key.seal(inputs)
    }

    /// Returns the encrypted evidence of what a reviewer is shown. `None` as in [`Self::of`].
    pub(super) async fn of_display(&self, approval: &Approval) -> Option<Sealed> {
        if !self.is_on {
            return None;
        }
        let by = &approval.binding.call.audience;
        self.key(by, Subject::of_approval(approval), approval.requested_at)
            .await?
            .seal(approval.display.clone().into_bytes())
    }

    async fn key(&self, by: &str, subject: Subject, now: Timestamp) -> Option<Arc<SubjectKey>> {
        let day = now.micros().div_euclid(Timestamp::default().plus(DAY).micros());
        let is_fresh = |known: &Cached| known.day == day && now < known.read_at.plus(FRESH);
        if let Some(known) = self.keys.get(&subject).filter(|known| is_fresh(known)) {
            return Some(Arc::clone(&known.key));
        }
        if now.micros() < self.paused_until.load(Ordering::Relaxed) || !self.requests.admit(by, now) {
            return None;
        }
        let Ok(Some(key)) = tokio::time::timeout(PATIENCE, self.stored(subject.clone(), day)).await else {
            self.paused_until.store(now.plus(PAUSE).micros(), Ordering::Relaxed);
            if self.failed_logged.is_due(now) {
                tracing::warn!(name: "evidence.no_key", "the state store gives no key for evidence: these decisions can't be replayed");
            }
            return None;
        };
        if self.keys.len() >= KEYS_MAX {
            self.keys.retain(|_, known| is_fresh(known));
        }
        if self.keys.len() < KEYS_MAX {
            self.keys.insert(subject, Cached { key: Arc::clone(&key), day, read_at: now });
        }
        Some(key)
    }

    async fn stored(&self, subject: Subject, day: i64) -> Option<Arc<SubjectKey>> {
        let (id, secret) = sealing::fresh()?;
        let (id, secret) = self.store.subject_key(NewSubjectKey { subject, day, id, secret }).await.ok()?;
        self.sealing.as_ref()?.of_subject(&id, &secret).map(Arc::new)
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
    fn one_tool_service_uses_up_its_own_keys_of_a_second_alone() {
        let requests = KeyRequests::default();
        let now = Timestamp::from_seconds(1_700_000_000);
        let admitted = (0..3 * KEYS_PER_SECOND).filter(|_| requests.admit("orders", now)).count();
        assert_eq!(admitted, 100);
        assert!(requests.admit("refunds", now) && !requests.admit("orders", now));
        assert!(requests.admit("orders", now.plus(std::time::Duration::from_secs(1))));
    }

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
        let written = inputs(now, &evaluated.chain, &asked, &evaluated.trusted, true).expect("evidence");
        let text = String::from_utf8_lossy(&written);
        assert!(!text.contains("secret-token") && !text.contains("hostile"), "{text}");
        assert_eq!(Evaluated::read(&written), Some(evaluated));
        assert_eq!(Evaluated::read(text.replace("\"v\":1", "\"v\":2").as_bytes()), None);
        assert_eq!(Evaluated::read(b"{}"), None);
    }
}
