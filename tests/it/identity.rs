//! Authentication by certificates, sockets, bearer tokens and delegation tokens, and attempts to spoof each.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use countersign::api::v1;
use countersign::api::v1::approval_service_client::ApprovalServiceClient;
use countersign::api::v1::decision_service_client::DecisionServiceClient;
use countersign::caller::TrustDomain;
use countersign::config::Config;
use countersign::config::{Identity, JwtSvid, UnixPeer};
use countersign::delegation::Asserting;
use countersign::delegation::issuers::Issuer;
use countersign::jose::Algorithm;
use countersign::jose::keyring::{self, Keyring, Purpose};
use countersign::model::time::Timestamp;
use countersign::pdp::reload::Trigger;
use serde_json::{Value, json};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::harness::people::{bearer, merged, seconds, token};
use crate::harness::pki::{Authority, Svid, connect, server, svid, write};
use crate::harness::within;
use crate::harness::{App, Hands, asserted, lines, order_check, temp, unix};

const CRM: &str = "spiffe://acme.example/tool/crm";

/// A server with TLS that trusts one authority, and the issuer of tokens for its humans and agents.
struct Secure {
    app: App,
    folder: tempfile::TempDir,
    authority: Authority,
    issuer: Keyring,
    hands: Hands,
}

/// Creates the key ring of an identity provider, and its JWKS file.
pub(crate) fn provider(folder: &Path, name: &str) -> (Keyring, String) {
    let keys = folder.join(name);
    keyring::generate(&keys, Purpose::Development, Timestamp::from_seconds(seconds())).unwrap();
    let ring = Keyring::read(&keys, Purpose::Development).unwrap();
    let jwks = json!({"keys": ring.jwks().iter().map(|jwk| serde_json::to_value(jwk).unwrap()).collect::<Vec<_>>()});
    (ring, write(folder, &format!("{name}.jwks"), &jwks.to_string()).to_str().unwrap().to_owned())
}

pub(crate) fn issuer(name: &str, keys: String) -> Issuer {
    Issuer {
        issuer: name.into(),
        tenant: "acme".into(),
        keys,
        algorithm: Algorithm::Es256,
        typ: "at+jwt".into(),
        person_claim: Some("person".into()),
        actor_issuers: vec!["https://agents.acme.example".into()],
        subject_prefix: String::new(),
        bound: true,
    }
}

/// Configures a server outside of development mode: TLS, one trust domain, two tool services, one issuer.
fn secure(config: &mut Config, folder: &Path, authority: &Authority, keys: String) {
    let own = authority.sign(&server());
    config.development = false;
    config.limits.drain_seconds = 0;
    config.environment = "test".into();
    config.tls.certificate = Some(write(folder, "server.pem", &own.certificate));
    config.tls.key = Some(write(folder, "server.key", &own.key));
    config.callers.trust_domains = vec![TrustDomain {
        name: "acme.example".into(),
        bundle: write(folder, "ca.pem", &authority.pem()),
        tenants: vec!["acme".into()],
        jwt_keys: None,
    }];
    config.callers.identities = vec![
        Identity { id: CRM.into(), tool_service: "crm-tools".into() },
        Identity { id: "spiffe://acme.example/tool/support".into(), tool_service: "support-tools".into() },
    ];
    config.issuers = vec![issuer("https://idp.acme.example", keys)];
    let keys = config.keys();
    for purpose in Purpose::DEPLOYED {
        keyring::generate(&keys, purpose, Timestamp::from_seconds(seconds())).unwrap();
    }
    countersign::audit::key::DigestKey::read_or_create(&keys.join(countersign::pdp::keys::Keys::VALUES), [7; 32])
        .unwrap();
}

impl Secure {
    async fn start(change: impl FnOnce(&mut Config, &Path)) -> Self {
        let folder = temp();
        let (authority, hands) = (Authority::new(), Hands::now());
        let (issuer, keys) = provider(folder.path(), "idp");
        let app = App::start_with(|config, seams| {
            secure(config, folder.path(), &authority, keys);
            seams.clock = Box::new(hands.clone());
            change(config, folder.path());
        })
        .await;
        Self { app, folder, authority, issuer, hands }
    }

    async fn as_(&self, svid: &Svid) -> Channel {
        connect(self.app.grpc, &self.authority.pem(), Some(svid)).await.unwrap()
    }

    fn crm(&self) -> Svid {
        self.authority.sign(&svid(CRM))
    }

    /// Signs a delegation token that is bound to a certificate, with some claims replaced.
    fn delegation(&self, bound: &Svid, more: Value) -> String {
        self.issuer.sign("at+jwt", &merged(claims(bound), more)).unwrap()
    }

    async fn reload(&self) {
        self.app.pdp.reload(Trigger::Asked).await.unwrap();
    }
}

fn claims(bound: &Svid) -> Value {
    let now = seconds();
    json!({
        "iss": "https://idp.acme.example", "aud": "countersign:test", "sub": "rep-1", "sub_profile": "user", "person": "p-1",
        "act": {"iss": "https://agents.acme.example", "sub": "support-bot", "sub_profile": "ai_agent"},
        "step": "intake", "case": "case-1", "scope": "tickets", "iat": now, "nbf": now, "exp": now + 600, "jti": "1",
        "cnf": {"x5t#S256": countersign::jose::encode(&bound.digest)},
    })
}

fn ticket(delegation: Option<v1::Delegation>) -> v1::AuthorizeRequest {
    v1::AuthorizeRequest {
        delegation,
        action: "ticket.read".into(),
        resource: Some(v1::Resource {
            r#ref: Some(v1::EntityReference { r#type: "Case".into(), id: "case-1".into() }),
            ..Default::default()
        }),
        ..order_check()
    }
}

async fn ask(channel: Channel, request: v1::AuthorizeRequest) -> Result<v1::AuthorizeResponse, Status> {
    Ok(DecisionServiceClient::new(channel).authorize(request).await?.into_inner())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authenticated_caller_with_a_bound_token_is_answered_and_recorded() {
    let it = Secure::start(|config, _| config.callers.certificate_reporters = vec!["crm-tools".into()]).await;
    let (crm, agent) = (it.crm(), it.authority.sign(&svid("spiffe://acme.example/agent/support")));
    // A token is bound to the agent's certificate, which the tool service reports, or (an exchanged token) to
    // the tool service's own.
    let reported = token(it.delegation(&agent, json!({}))).map(|mut delegation| {
        delegation.agent_certificate_sha256 = agent.digest.clone().into();
        delegation
    });
    for delegation in [reported, token(it.delegation(&crm, json!({})))] {
        let answer = ask(it.as_(&crm).await, ticket(delegation)).await.unwrap();
        assert_eq!(answer.decision(), v1::Decision::Allow, "{answer:?}");
        assert_eq!(answer.warnings, Vec::<String>::new());
    }
    let line = lines(&it.app.data).pop().unwrap();
    assert_eq!(line["caller"], json!({"tool_service": "crm-tools", "by": "mtls"}));
    assert_eq!((&line["chain"]["supervisor"], &line["chain"]["agent"]), (&json!("rep-1"), &json!("support-bot")));
    assert_eq!(line["chain"]["agent_issuer"], "https://agents.acme.example");
    assert_eq!((&line["chain"]["asserted"], &line["chain"]["scopes"]["items"]), (&json!(false), &json!(["tickets"])));
    // Policies limit each tool service: the ticket system may not check orders or use admin methods.
    let refund = v1::AuthorizeRequest { action: "order.check".into(), ..order_check() };
    let delegation = token(it.delegation(&crm, json!({"step": "enrichment", "scope": "orders"})));
    assert_eq!(
        ask(it.as_(&crm).await, v1::AuthorizeRequest { delegation, ..refund }).await.unwrap().reason(),
        v1::Reason::NotPermitted
    );
    let mut admin = v1::admin_service_client::AdminServiceClient::new(it.as_(&crm).await);
    assert_eq!(admin.get_status(v1::GetStatusRequest {}).await.unwrap_err().code(), Code::PermissionDenied);
    let explained = v1::ExplainDecisionRequest { request: Some(ticket(token(it.delegation(&crm, json!({}))))) };
    assert_eq!(admin.explain_decision(explained).await.unwrap_err().code(), Code::PermissionDenied);
    let dry = v1::AuthorizeRequest { dry_run: true, ..ticket(token(it.delegation(&crm, json!({})))) };
    assert_eq!(ask(it.as_(&crm).await, dry).await.unwrap_err().code(), Code::PermissionDenied);
    it.app.stop().await;
}

/// An issuer's subject prefix applies to its own agents, too, so that it can't name the agents of others.
#[tokio::test(flavor = "multi_thread")]
async fn the_subject_prefix_applies_to_an_issuers_own_agents() {
    let it = Secure::start(|config, _| config.issuers[0].subject_prefix = "rep-".into()).await;
    let crm = it.crm();
    for (agent_issuer, decision) in
        [("https://agents.acme.example", v1::Decision::Allow), ("https://idp.acme.example", v1::Decision::Deny)]
    {
        let act = json!({"iss": agent_issuer, "sub": "support-bot", "sub_profile": "ai_agent"});
        let delegation = token(it.delegation(&crm, json!({"sub": "1", "act": act})));
        assert_eq!(ask(it.as_(&crm).await, ticket(delegation)).await.unwrap().decision(), decision, "{agent_issuer}");
    }
    let line = lines(&it.app.data).pop().unwrap();
    assert_eq!((&line["chain"]["supervisor"], &line["chain"]["agent"]), (&json!("rep-1"), &json!("rep-support-bot")));
    it.app.stop().await;
}

/// Two trust domains may share a tool service, but neither can act for a tenant of the other through it.
#[tokio::test(flavor = "multi_thread")]
async fn a_trust_domain_cannot_act_for_another_domains_tenant() {
    const FOREIGN: &str = "spiffe://globex.example/tool/crm";
    let it = Secure::start(|config, _| {
        let own = config.callers.trust_domains[0].clone();
        let foreign = TrustDomain { name: "globex.example".into(), tenants: vec!["globex".into()], ..own };
        config.callers.trust_domains.push(foreign);
        config.callers.identities.push(Identity { id: FOREIGN.into(), tool_service: "crm-tools".into() });
    })
    .await;
    let crm = it.crm();
    let allowed = ask(it.as_(&crm).await, ticket(token(it.delegation(&crm, json!({}))))).await.unwrap();
    assert_eq!(allowed.decision(), v1::Decision::Allow);
    let outcome = v1::ReportOutcomeRequest {
        evaluation_id: allowed.evaluation_id,
        status: v1::OutcomeStatus::Succeeded.into(),
        outcome_token: allowed.outcome_token,
        ..Default::default()
    };
    let report =
        async |svid: &Svid| DecisionServiceClient::new(it.as_(svid).await).report_outcome(outcome.clone()).await;
    let foreign = it.authority.sign(&svid(FOREIGN));
    assert_eq!(report(&foreign).await.unwrap_err().code(), Code::PermissionDenied);
    report(&crm).await.unwrap();
    it.app.stop().await;
}

/// Threat 11: no caller can spoof an identity with a certificate that does not prove it.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_without_a_valid_spiffe_identity_is_refused() {
    let it = Secure::start(|_, _| {}).await;
    let delegation = || token(it.delegation(&it.crm(), json!({})));
    let mut two = svid(CRM);
    two.subject_alt_names.push(rcgen::SanType::URI("spiffe://acme.example/tool/support".try_into().unwrap()));
    let mut authority_of_its_own = svid(CRM);
    authority_of_its_own.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let mut for_signing = svid(CRM);
    for_signing.key_usages.push(rcgen::KeyUsagePurpose::CrlSign);
    let mut unsaid = svid(CRM);
    unsaid.key_usages.clear();
    let mut nameless = svid(CRM);
    nameless.subject_alt_names = vec![rcgen::SanType::DnsName("acme.example".try_into().unwrap())];
    for (what, params) in [
        ("two URI names", two),
        ("no URI name", nameless),
        ("an authority", authority_of_its_own),
        ("a key with other usages", for_signing),
        ("a key without usages", unsaid),
        ("another kind of URI", svid("https://acme.example/tool/crm")),
        ("a trust domain without a path", svid("spiffe://acme.example")),
        ("an identity that is not a tool service", svid("spiffe://acme.example/tool/unknown")),
        ("a foreign trust domain, by an authority that is trusted", svid("spiffe://globex.example/tool/crm")),
    ] {
        let refused = ask(it.as_(&it.authority.sign(&params)).await, ticket(delegation())).await.unwrap_err();
        // TLS itself refuses a CA certificate as a client certificate.
        let by_tls = what == "an authority" && matches!(refused.code(), Code::Cancelled | Code::Unknown);
        assert!(by_tls || refused.code() == Code::Unauthenticated, "{what}: {refused:?}");
    }
    // A certificate of an unknown authority fails the handshake; without one the call is unauthenticated.
    let foreign = Authority::new().sign(&svid(CRM));
    assert!(match connect(it.app.grpc, &it.authority.pem(), Some(&foreign)).await {
        Ok(channel) => ask(channel, ticket(delegation())).await.is_err(),
        Err(_) => true,
    });
    let bare = connect(it.app.grpc, &it.authority.pem(), None).await.unwrap();
    assert_eq!(ask(bare, ticket(delegation())).await.unwrap_err().code(), Code::Unauthenticated);
    // A plaintext connection gets no answer.
    assert!(
        Channel::from_shared(format!("http://{}", it.app.grpc)).unwrap().connect().await.is_err_and(|_| true) || {
            let plain = Channel::from_shared(format!("http://{}", it.app.grpc)).unwrap().connect_lazy();
            ask(plain, ticket(delegation())).await.is_err()
        }
    );
    assert_eq!(lines(&it.app.data).iter().filter(|line| line["type"] == "decision").count(), 0);
    it.app.stop().await;
}

/// A certificate's validity is checked with each request, not only in the handshake.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_expires_during_the_connection_is_refused_from_then_on() {
    let it = Secure::start(|_, _| {}).await;
    let now = time::OffsetDateTime::now_utc();
    let mut short = svid(CRM);
    short.not_before = now - time::Duration::minutes(1);
    short.not_after = now + time::Duration::minutes(5);
    let crm = it.authority.sign(&short);
    let channel = it.as_(&crm).await;
    let call = ticket(token(it.delegation(&crm, json!({}))));
    assert_eq!(ask(channel.clone(), call.clone()).await.unwrap().decision(), v1::Decision::Allow);
    it.hands.forward(400);
    it.app.pdp.refresh().await;
    let refused = ask(channel, call).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::Unauthenticated, "the caller's certificate has expired, or is not valid yet")
    );
    it.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn authorities_and_the_servers_certificate_are_reloaded_live() {
    let it = Secure::start(|_, _| {}).await;
    let crm = it.crm();
    let call = || ticket(token(it.delegation(&crm, json!({}))));
    let old = it.as_(&crm).await;
    assert_eq!(ask(old.clone(), call()).await.unwrap().decision(), v1::Decision::Allow);
    // A new authority replaces the old one, whose certificates are then refused on open connections, too.
    let next = Authority::new();
    let own = next.sign(&server());
    write(it.folder.path(), "ca.pem", &next.pem());
    write(it.folder.path(), "server.pem", &own.certificate);
    write(it.folder.path(), "server.key", &own.key);
    it.reload().await;
    assert_eq!(ask(old, call()).await.unwrap_err().code(), Code::Unauthenticated);
    assert!(
        connect(it.app.grpc, &it.authority.pem(), Some(&crm)).await.is_err(),
        "the server shows its new certificate"
    );
    let renewed = next.sign(&svid(CRM));
    let channel = connect(it.app.grpc, &next.pem(), Some(&renewed)).await.unwrap();
    let delegation = token(it.delegation(&renewed, json!({})));
    assert_eq!(ask(channel.clone(), ticket(delegation.clone())).await.unwrap().decision(), v1::Decision::Allow);
    // A broken file changes nothing.
    write(it.folder.path(), "ca.pem", "nothing");
    it.reload().await;
    assert_eq!(ask(channel, ticket(delegation)).await.unwrap().decision(), v1::Decision::Allow);
    it.app.stop().await;
}

/// Threats 12 and 13: each row is a token that must not be accepted.
#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_delegation_token_is_refused() {
    let it = Secure::start(|_, _| {}).await;
    let crm = it.crm();
    let channel = it.as_(&crm).await;
    let now = seconds();
    let deep = |depth: usize| {
        (1..depth).fold(
            json!({"iss": "https://agents.acme.example", "sub": "support-bot", "sub_profile": "ai_agent"}),
            |inner, _| json!({"iss": "https://agents.acme.example", "sub": "support-bot", "sub_profile": "ai_agent", "act": inner}),
        )
    };
    let agent = |name: &str, value: Value| json!({"act": merged(deep(1), json!({name: value}))});
    let rows = [
        ("another audience", json!({"aud": "countersign:production"})),
        ("two audiences", json!({"aud": ["countersign:test", "another"]})),
        ("no audience", json!({"aud": null})),
        ("no issuer", json!({"iss": null})),
        ("an issuer that is not trusted", json!({"iss": "https://idp.globex.example"})),
        ("no subject", json!({"sub": null})),
        ("an agent as the supervisor", json!({"sub_profile": "ai_agent"})),
        ("no profile", json!({"sub_profile": null})),
        ("no agent", json!({"act": null})),
        ("an agent without issuer", agent("iss", Value::Null)),
        ("an agent of an issuer that this one may not name", agent("iss", json!("https://agents.globex.example"))),
        ("an agent without profile", agent("sub_profile", Value::Null)),
        ("a human as the agent", agent("sub_profile", json!("user"))),
        ("a chain of five", json!({"act": deep(5)})),
        ("no step", json!({"step": null})),
        ("no expiry", json!({"exp": null})),
        ("no beginning", json!({"nbf": null})),
        ("no time of issue", json!({"iat": null})),
        ("a time that is text", json!({"exp": (now + 600).to_string()})),
        ("over", json!({"exp": now - 91, "iat": now - 600, "nbf": now - 600})),
        ("not valid yet", json!({"nbf": now + 45})),
        ("issued in the future", json!({"iat": now + 45})),
        ("a day long", json!({"exp": now + 86_400})),
        ("bound to nothing", json!({"cnf": null})),
        ("bound to another certificate", json!({"cnf": {"x5t#S256": countersign::jose::encode(&[0; 32])}})),
        ("bound without a certificate thumbprint", json!({"cnf": {"jkt": "x"}})),
        ("the action step, bound to no case", json!({"step": "action", "case": null})),
        ("a reading step, bound to no case", json!({"case": null})),
    ];
    for (what, more) in rows {
        let refused =
            ask(channel.clone(), ticket(token(it.delegation(&crm, more)))).await.map_err(|status| status.code());
        assert_eq!(refused.as_ref().err(), Some(&Code::Unauthenticated), "{what}: {refused:?}");
    }
    // A claim that is missing is named.
    for claim in ["aud", "exp", "iat", "nbf", "sub"] {
        let refused = ask(channel.clone(), ticket(token(it.delegation(&crm, json!({claim: null}))))).await.unwrap_err();
        assert_eq!(refused.message(), format!("the token's `{claim}` is missing or has the wrong type"));
    }
    // RFC 9068 names two forms of the type.
    for typ in ["at+jwt", "AT+JWT", "application/at+jwt", "Application/AT+jwt"] {
        let named = token(it.issuer.sign(typ, &claims(&crm)).unwrap());
        assert_eq!(ask(channel.clone(), ticket(named)).await.unwrap().decision(), v1::Decision::Allow, "{typ}");
    }
    let refused =
        ask(channel.clone(), ticket(token(it.delegation(&crm, json!({"act": deep(10_000 / 100)}))))).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "a bomb");
    // A token that is bound to another case gets an ordinary denial.
    let other_case = ask(channel.clone(), ticket(token(it.delegation(&crm, json!({"case": "case-9"}))))).await.unwrap();
    assert_eq!(other_case.reason(), v1::Reason::NotPermitted);
    // These tokens have another type or an unknown key, or are malformed.
    let by = |typ: &str| it.issuer.sign(typ, &claims(&crm)).unwrap();
    let (_, strange) = (0, provider(it.folder.path(), "stranger").0);
    for (what, token_) in [
        ("another type", by("JWT")),
        ("an approval's type", by("countersign-approval+jwt")),
        ("an unknown key", strange.sign("at+jwt", &claims(&crm)).unwrap()),
        ("no token", "x".to_owned()),
        ("only two dots", "..".to_owned()),
        ("four parts", format!("{}.x", by("at+jwt"))),
        ("cut", by("at+jwt")[..200].to_owned()),
    ] {
        assert_eq!(
            ask(channel.clone(), ticket(token(token_))).await.unwrap_err().code(),
            Code::Unauthenticated,
            "{what}"
        );
    }
    for chain in [None, asserted("support-bot", "rep-1", "intake")] {
        assert_eq!(
            ask(channel.clone(), ticket(chain)).await.unwrap_err().code(),
            Code::Unauthenticated,
            "the chain is unsigned"
        );
    }
    assert_eq!(
        ask(channel, ticket(token(it.delegation(&crm, json!({}))))).await.unwrap().decision(),
        v1::Decision::Allow
    );
    it.app.stop().await;
}

/// How far an issuer's clock may differ is a setting.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_accepted_within_the_clock_leeway_of_the_settings() {
    for (leeway, accepted) in [(120, true), (60, false)] {
        let it = Secure::start(|config, _| config.limits.clock_leeway_seconds = leeway).await;
        let (crm, now) = (it.crm(), seconds());
        let ahead = it.delegation(&crm, json!({"iat": now + 90, "nbf": now + 90, "exp": now + 600}));
        let answer = ask(it.as_(&crm).await, ticket(token(ahead))).await;
        assert_eq!(answer.is_ok(), accepted, "{leeway}: {answer:?}");
        it.app.stop().await;
    }
}

/// The log has a digest of the subject of a rejected token, and the subject only at debug level.
#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_token_is_logged_by_digest_and_at_debug_level_by_its_subject() {
    for (level, shows) in [("info", false), ("info,countersign=debug", true)] {
        let folder = temp();
        let data = folder.path().join("data");
        let server = crate::harness::Process::serve(&data, &[], |command| {
            command.env("COUNTERSIGN__LOG", level);
        });
        let keys = crate::harness::people::Issuer::of(&data);
        let late = keys.delegation_with("support-bot", "rep-1", json!({"exp": seconds() - 300}));
        let channel = crate::harness::channel(server.grpc).await;
        let refused = ask(channel.clone(), ticket(token(late))).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
        let mut approvals = v1::approval_service_client::ApprovalServiceClient::new(channel);
        let own = keys.human_with("lead-1", json!({"act": {"sub": "support-bot"}}));
        let refused = approvals.list_approvals(bearer(v1::ListApprovalsRequest::default(), &own)).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
        let log = server.log_of_stop();
        let rejected: Vec<Value> = log
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .filter(|line| line["name"] == "token.rejected" || line["name"] == "caller.rejected")
            .collect();
        let at = |level: &str| rejected.iter().filter(|line| line["level"] == level).collect::<Vec<_>>();
        assert!(!at("INFO").is_empty() && at("INFO").len() <= 4, "{log}");
        assert_eq!(at("INFO")[0]["error"], "the token has expired");
        assert_eq!(at("INFO")[0]["subject_digest"], countersign::model::text::short_digest("rep-1"));
        let subjects: Vec<&Value> = at("DEBUG").iter().map(|line| &line["subject"]).collect();
        assert_eq!(subjects.contains(&&json!("rep-1")) && subjects.contains(&&json!("lead-1")), shows, "{log}");
        assert_eq!(log.contains("rep-1"), shows, "{log}");
    }
}

/// Rights intersect: the token's scopes with the agent's, the issuer's tenant with each principal's.
#[tokio::test(flavor = "multi_thread")]
async fn scopes_and_tenants_of_a_token_narrow_and_never_widen() {
    let it = Secure::start(|_, _| {}).await;
    let crm = it.crm();
    let channel = it.as_(&crm).await;
    for (more, reason) in [
        (json!({"scope": ""}), v1::Reason::NotPermitted),
        (json!({"scope": null}), v1::Reason::NotPermitted),
        (json!({"scope": "orders replies"}), v1::Reason::NotPermitted),
        (json!({"scope": "tickets gold"}), v1::Reason::Unspecified),
        (json!({"scope": ["tickets", "gold"]}), v1::Reason::Unspecified),
        (json!({"scope": ["orders"]}), v1::Reason::NotPermitted),
        (json!({"step": "drafting"}), v1::Reason::Unspecified),
        (json!({"step": "verification"}), v1::Reason::StepNotAllowed),
        (json!({"sub": "globex-rep"}), v1::Reason::NotPermitted),
        (json!({"sub": "nobody"}), v1::Reason::NotPermitted),
        (
            json!({"act": {"iss": "https://agents.acme.example", "sub": "globex-bot", "sub_profile": "ai_agent"}}),
            v1::Reason::NotPermitted,
        ),
    ] {
        let answer = ask(channel.clone(), ticket(token(it.delegation(&crm, more.clone())))).await.unwrap();
        assert_eq!(answer.reason(), reason, "{more}");
        assert!(answer.warnings.is_empty(), "only a development server says what denied a call: {:?}", answer.warnings);
    }
    // The chain is globex's but the issuer acme's, so the call is denied whatever case is reported.
    let foreign = it.delegation(
        &crm,
        json!({
            "sub": "globex-rep", "act": {"iss": "https://agents.acme.example", "sub": "globex-bot", "sub_profile": "ai_agent"},
        }),
    );
    let case = order_check().case.map(|case| v1::Case { tenant: "globex".into(), ..case });
    let support = it.authority.sign(&svid("spiffe://acme.example/tool/support"));
    let rebound = it
        .issuer
        .sign(
            "at+jwt",
            &merged(
                claims(&support),
                json!({
                    "sub": "globex-rep", "act": {"iss": "https://agents.acme.example", "sub": "globex-bot", "sub_profile": "ai_agent"},
                }),
            ),
        )
        .unwrap();
    for (channel, delegation) in [(channel, foreign), (it.as_(&support).await, rebound)] {
        let answer =
            ask(channel, v1::AuthorizeRequest { case: case.clone(), ..ticket(token(delegation)) }).await.unwrap();
        assert_eq!(answer.reason(), v1::Reason::NotPermitted);
    }
    assert_eq!(lines(&it.app.data).pop().unwrap()["gate"], "tenant");
    it.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn issuers_keys_and_revoked_keys_are_reloaded() {
    let it = Secure::start(|_, _| {}).await;
    let crm = it.crm();
    let channel = it.as_(&crm).await;
    let (rotated, jwks) = provider(it.folder.path(), "rotated");
    let by = |ring: &Keyring| ticket(token(ring.sign("at+jwt", &claims(&crm)).unwrap()));
    assert_eq!(ask(channel.clone(), by(&rotated)).await.unwrap_err().code(), Code::Unauthenticated);
    std::fs::copy(&jwks, it.folder.path().join("idp.jwks")).unwrap();
    it.reload().await;
    assert_eq!(ask(channel.clone(), by(&rotated)).await.unwrap().decision(), v1::Decision::Allow);
    assert_eq!(ask(channel.clone(), by(&it.issuer)).await.unwrap_err().code(), Code::Unauthenticated);
    // If a key set can't be read, the previous one stays in force.
    write(it.folder.path(), "idp.jwks", "{");
    it.reload().await;
    assert_eq!(ask(channel, by(&rotated)).await.unwrap().decision(), v1::Decision::Allow);
    it.app.stop().await;
}

/// A human authenticates with her own token and without a certificate. A delegation token does not pass as
/// hers, and hers gives no access to a tool service's methods.
#[tokio::test(flavor = "multi_thread")]
async fn a_human_authenticates_with_her_own_token() {
    let it = Secure::start(|_, _| {}).await;
    let bare = connect(it.app.grpc, &it.authority.pem(), None).await.unwrap();
    let human = |more: Value| {
        let own = json!({"act": null, "step": null, "scope": null, "cnf": null, "amr": ["hwk"]});
        it.issuer.sign("at+jwt", &merged(merged(claims(&it.crm()), own), more)).unwrap()
    };
    let mut client = ApprovalServiceClient::new(bare.clone());
    let list = v1::ListApprovalsRequest::default;
    assert_eq!(client.list_approvals(bearer(list(), &human(json!({})))).await.unwrap().into_inner().approvals.len(), 0);
    for (what, token) in [
        ("another tenant's human", human(json!({"sub": "globex-rep"}))),
        ("nobody", human(json!({"sub": "nobody"}))),
        ("an agent", it.delegation(&it.crm(), json!({}))),
        ("no token", "x".into()),
    ] {
        assert_eq!(
            client.list_approvals(bearer(list(), &token)).await.unwrap_err().code(),
            Code::Unauthenticated,
            "{what}"
        );
    }
    assert_eq!(client.list_approvals(list()).await.unwrap_err().code(), Code::Unauthenticated);
    // Her token gives no access to a tool service's methods.
    let refused = DecisionServiceClient::new(bare)
        .authorize(bearer(ticket(token(it.delegation(&it.crm(), json!({})))), &human(json!({}))))
        .await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
    it.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_peer_is_identified_by_uid_and_asserts_only_listed_chains() {
    let user = rustix::process::getuid().as_raw();
    for (peer, trusted) in [(user, true), (user + 1, false)] {
        let it = Secure::start(|config, folder| {
            config.callers.unix_socket.path = Some(folder.join("socket"));
            config.callers.unix_socket.peers = vec![UnixPeer { user: peer, tool_service: "crm-tools".into() }];
            let list = |name: &str| vec![name.to_owned()];
            config.callers.asserting = vec![Asserting {
                tool_service: "crm-tools".into(),
                agents: list("support-bot"),
                supervisors: list("rep-1"),
                steps: list("intake"),
            }];
        })
        .await;
        let channel = unix(it.folder.path().join("socket")).await;
        let answer = ask(channel.clone(), ticket(asserted("support-bot", "rep-1", "intake"))).await;
        if trusted {
            assert_eq!(answer.unwrap().decision(), v1::Decision::Allow);
            assert_eq!(lines(&it.app.data).pop().unwrap()["caller"]["by"], "unix_peer");
        } else {
            assert_eq!(answer.unwrap_err().code(), Code::Unauthenticated);
        }
        for (agent, supervisor, step) in [
            ("refund-bot", "rep-1", "intake"),
            ("support-bot", "rep-2", "intake"),
            ("support-bot", "rep-1", "drafting"),
            ("", "", ""),
        ] {
            let refused = ask(channel.clone(), ticket(asserted(agent, supervisor, step))).await.unwrap_err();
            assert_eq!(refused.code(), Code::Unauthenticated, "{agent} {supervisor} {step}");
        }
        it.app.stop().await;
    }
}

/// Behind a proxy that ends TLS, which must be configured explicitly, a JWT-SVID identifies the caller.
#[tokio::test(flavor = "multi_thread")]
async fn behind_a_tls_proxy_a_jwt_svid_identifies_the_caller() {
    let folder = temp();
    let authority = Authority::new();
    let (issuer, keys) = provider(folder.path(), "idp");
    let (spire, spire_keys) = provider(folder.path(), "spire");
    let app = App::start_with(|config, _| {
        secure(config, folder.path(), &authority, keys);
        config.tls = Default::default();
        config.callers.jwt_svid = JwtSvid { behind_tls_proxy: true };
        config.callers.trust_domains[0].jwt_keys = Some(spire_keys.into());
        config.issuers[0].bound = false;
    })
    .await;
    let channel = app.channel().await;
    let now = seconds();
    let svid_claims = json!({"sub": CRM, "aud": "countersign:test", "exp": now + 300, "iat": now});
    let call = || {
        ticket(token(
            issuer.sign("at+jwt", &merged(claims(&authority.sign(&svid(CRM))), json!({"cnf": null}))).unwrap(),
        ))
    };
    let mut client = DecisionServiceClient::new(channel);
    let jwt = |more: Value| spire.sign("JWT", &merged(svid_claims.clone(), more)).unwrap();
    let answer = client.authorize(bearer(call(), &jwt(json!({})))).await.unwrap().into_inner();
    assert_eq!((answer.decision(), answer.warnings), (v1::Decision::Allow, vec!["plaintext_behind_proxy".to_owned()]));
    assert_eq!(lines(&app.data).pop().unwrap()["caller"]["by"], "jwt_svid");
    for (what, token) in [
        ("another audience", jwt(json!({"aud": "countersign:production"}))),
        ("two audiences", jwt(json!({"aud": ["countersign:test", "x"]}))),
        ("over", jwt(json!({"exp": now - 31}))),
        ("no expiry", jwt(json!({"exp": null}))),
        ("a day long", jwt(json!({"exp": now + 86_400}))),
        ("another trust domain", jwt(json!({"sub": "spiffe://globex.example/tool/crm"}))),
        ("an identity that is not a tool service", jwt(json!({"sub": "spiffe://acme.example/tool/x"}))),
        ("another type", spire.sign("at+jwt", &svid_claims).unwrap()),
        ("another's key", issuer.sign("JWT", &svid_claims).unwrap()),
        ("nothing", "x".into()),
    ] {
        assert_eq!(client.authorize(bearer(call(), &token)).await.unwrap_err().code(), Code::Unauthenticated, "{what}");
    }
    assert_eq!(client.authorize(call()).await.unwrap_err().code(), Code::Unauthenticated, "no token");
    app.stop().await;
}

/// An issuer's keys are fetched from its URL when a token needs an unknown one, at most once a minute.
#[tokio::test(flavor = "multi_thread")]
async fn unknown_keys_cause_at_most_one_fetch_of_the_key_set() {
    let folder = temp();
    let authority = Authority::new();
    let (ring, jwks) = provider(folder.path(), "idp");
    let own = authority.sign(&server());
    let requests = Requests::default();
    let address = https_server(&own, std::fs::read_to_string(jwks).unwrap(), Arc::clone(&requests)).await;
    let asked = || requests.lock().unwrap().len();
    // The process trusts the test's authority. It fetches the keys at start, and again for an unknown key.
    let config = write(folder.path(), "countersign.yaml", &json!({
        "environment": "test",
        "tls": {"certificate": write(folder.path(), "server.pem", &own.certificate), "key": write(folder.path(), "server.key", &own.key)},
        "callers": {
            "trust_domains": [{"name": "acme.example", "bundle": write(folder.path(), "ca.pem", &authority.pem()), "tenants": ["acme"]}],
            "identities": [{"id": CRM, "tool_service": "crm-tools"}],
        },
        "issuers": [{"issuer": "https://idp.acme.example", "tenant": "acme", "keys": format!("https://{address}/jwks"), "algorithm": "ES256",
                     "actor_issuers": ["https://agents.acme.example"]}],
    }).to_string());
    let data = folder.path().join("data");
    let arguments = |more: &[&str]| {
        [&["--config", config.to_str().unwrap()], more].concat().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let run = |more: &[&str], data: &Path| {
        let mut command = crate::harness::command(&arguments(more).iter().map(String::as_str).collect::<Vec<_>>());
        command.env("COUNTERSIGN__DATA", data).env("SSL_CERT_FILE", folder.path().join("ca.pem"));
        command
    };
    assert!(run(&["keys", "generate"], &data).output().unwrap().status.success());
    let bundle = crate::harness::open_root().join("policies");
    let server = crate::harness::Process::spawn(run(
        &[
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--admin-listen",
            "127.0.0.1:0",
            "-o",
            "json",
            "--bundle",
            bundle.to_str().unwrap(),
        ],
        &data,
    ));
    let crm = authority.sign(&svid(CRM));
    let channel = connect(server.grpc, &authority.pem(), Some(&crm)).await.unwrap();
    let good = ring.sign("at+jwt", &claims(&crm)).unwrap();
    assert_eq!(ask(channel.clone(), ticket(token(good))).await.unwrap().decision(), v1::Decision::Allow);
    let before = asked();
    let (stranger, _) = provider(folder.path(), "stranger");
    for _ in 0..20 {
        let refused =
            ask(channel.clone(), ticket(token(stranger.sign("at+jwt", &claims(&crm)).unwrap()))).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
    }
    assert!(asked() <= before + 1, "forged tokens must not cause more requests");
}

/// A witness may be a service. It is sent the heads of the log, and the last one when the server stops.
#[tokio::test(flavor = "multi_thread")]
async fn audit_heads_are_posted_to_a_witness_url() {
    let folder = temp();
    let authority = Authority::new();
    let own = authority.sign(&server());
    let requests = Arc::default();
    let address = https_server(&own, String::new(), Arc::clone(&requests)).await;
    let roots = write(folder.path(), "ca.pem", &authority.pem());
    let data = folder.path().join("data");
    let server = crate::harness::Process::serve(&data, &[], |command| {
        command.env("SSL_CERT_FILE", roots).env("COUNTERSIGN__AUDIT__WITNESS", format!("https://{address}/heads"));
    });
    let mut client = DecisionServiceClient::new(crate::harness::channel(server.grpc).await);
    client.authorize(crate::harness::order_check()).await.unwrap();
    assert!(tokio::task::spawn_blocking(move || server.stop()).await.unwrap().success());
    let last = lines(&data).pop().unwrap()["seq"].as_u64().unwrap();
    let requests = requests.lock().unwrap();
    let (head, body) = requests.last().unwrap().split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /heads HTTP/1.1"), "{head}");
    let statement: Value = serde_json::from_str(body).unwrap();
    assert_eq!(statement["index"].as_u64(), Some(last));
    let expected = countersign::audit::verify::Expected {
        heads: vec![statement["hash"].as_str().unwrap().into()],
        ..Default::default()
    };
    countersign::audit::verify::verify(&data.join("audit"), &expected).unwrap();
}

/// The requests that an HTTPS server received.
type Requests = Arc<std::sync::Mutex<Vec<String>>>;

/// Starts an HTTPS server that records requests and answers each with `body`.
async fn https_server(own: &Svid, body: String, requests: Requests) -> SocketAddr {
    use rustls::pki_types::pem::PemObject;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let chain = vec![rustls::pki_types::CertificateDer::from_pem_slice(own.certificate.as_bytes()).unwrap()];
    let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(countersign::caller::tls::provider());
    let config = config
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut text = String::new();
            let mut buffer = [0; 4096];
            // A GET ends with its head, and a POST with its JSON body.
            while !(text.starts_with("GET") && text.ends_with("\r\n\r\n") || text.ends_with('}')) {
                let Ok(length @ 1..) = stream.read(&mut buffer).await else { break };
                text.push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
            if !text.is_empty() {
                requests.lock().unwrap().push(text);
                let answer =
                    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
                // Ignore errors: the client may have disconnected.
                let _gone = stream.write_all(answer.as_bytes()).await;
                let _closed = stream.shutdown().await;
            }
        }
    });
    address
}

/// A server with an unsafe configuration does not start, and reports why in one line.
#[test]
fn a_server_with_insecure_settings_does_not_start() {
    let folder = temp();
    for (arguments, variables, expected) in [
        (
            &["serve", "--development", "--listen", "0.0.0.0:0"][..],
            &[][..],
            "`listen.grpc` must be on the loopback interface in development mode",
        ),
        (
            &["serve", "--development", "--admin-listen", "192.0.2.1:0"],
            &[],
            "`listen.admin` must be on the loopback interface",
        ),
        (&["serve"], &[], "`environment` must be set outside of development mode"),
        (
            &["serve", "--listen", "127.0.0.1:0"],
            &[("COUNTERSIGN__ENVIRONMENT", "test")],
            "without it tokens would travel in plaintext",
        ),
        (
            &["serve"],
            &[("COUNTERSIGN__ENVIRONMENT", "test"), ("COUNTERSIGN__CALLERS__JWT_SVID__BEHIND_TLS_PROXY", "true")],
            "needs a trust domain",
        ),
        (&["serve", "--development"], &[("COUNTERSIGN__TLS__CERTIFICATE", "/nowhere")], "must have both"),
    ] {
        let mut command = crate::harness::command(arguments);
        command.envs(variables.iter().copied()).current_dir(folder.path());
        let output = command.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{error}");
        assert!(error.contains(expected) && error.lines().count() == 1, "{error}");
    }
}

/// A token shows its certificate digest, so only listed tool services may report an agent's certificate.
#[tokio::test(flavor = "multi_thread")]
async fn only_listed_tool_services_may_report_an_agents_certificate() {
    let it = Secure::start(|config, _| config.callers.certificate_reporters = vec!["support-tools".into()]).await;
    let (crm, agent) = (it.crm(), it.authority.sign(&svid("spiffe://acme.example/agent/support")));
    let support = it.authority.sign(&svid("spiffe://acme.example/tool/support"));
    let reporting = |bound: &Svid, seen: &Svid| {
        token(it.delegation(bound, json!({}))).map(|mut delegation| {
            delegation.agent_certificate_sha256 = seen.digest.clone().into();
            delegation
        })
    };
    for (caller, delegation, code) in [
        (&crm, reporting(&agent, &agent), Some(Code::Unauthenticated)),
        (&crm, reporting(&support, &support), Some(Code::Unauthenticated)),
        (&crm, token(it.delegation(&support, json!({}))), Some(Code::Unauthenticated)),
        (&crm, reporting(&crm, &crm), None),
        (&support, reporting(&agent, &agent), None),
        (&support, reporting(&agent, &crm), Some(Code::Unauthenticated)),
    ] {
        let answer = ask(it.as_(caller).await, ticket(delegation)).await;
        assert_eq!(answer.err().map(|status| status.code()), code);
    }
    it.app.stop().await;
}

/// Unauthenticated peers take no permits, streams or connections from known callers.
#[tokio::test(flavor = "multi_thread")]
async fn unauthenticated_peers_do_not_delay_known_callers() {
    let it = Secure::start(|config, _| config.limits.concurrent_requests = 4).await;
    let crm = it.crm();
    // These connections open streams and send only headers.
    let mut waiting = vec![];
    for _ in 0..6 {
        let channel = connect(it.app.grpc, &it.authority.pem(), None).await.unwrap();
        for _ in 0..12 {
            let mut client = tonic::client::Grpc::new(channel.clone());
            waiting.push(tokio::spawn(async move {
                client.ready().await.unwrap();
                let codec = tonic_prost::ProstCodec::<v1::AuthorizeRequest, v1::AuthorizeResponse>::default();
                let path = http::uri::PathAndQuery::from_static("/countersign.v1.DecisionService/Authorize");
                client.client_streaming(Request::new(futures_util::stream::pending()), path, codec).await.map(|_| ())
            }));
        }
    }
    // These connections send nothing.
    let mut silent = vec![];
    for _ in 0..100 {
        silent.push(tokio::net::TcpStream::connect(it.app.grpc).await.unwrap());
    }
    // Only known callers may open a stream of calls.
    let stranger = connect(it.app.grpc, &it.authority.pem(), None).await.unwrap();
    let opened = DecisionServiceClient::new(stranger.clone()).authorize_stream(futures_util::stream::pending()).await;
    assert_eq!(opened.unwrap_err().code(), Code::Unauthenticated);
    for round in 0..20 {
        let channel = it.as_(&crm).await;
        let answer = ask(channel, ticket(token(it.delegation(&crm, json!({}))))).await;
        assert_eq!(answer.unwrap().decision(), v1::Decision::Allow, "{round}");
    }
    for waiting in waiting {
        waiting.abort();
    }
    drop(silent);
    it.app.stop().await;
}

/// Even if unauthenticated peers hold all the requests that they may, a valid token gets in.
#[tokio::test(flavor = "multi_thread")]
async fn unauthenticated_load_does_not_block_callers_with_tokens() {
    let it = Secure::start(|_, _| {}).await;
    let mut waiting = vec![];
    for _ in 0..17 {
        let channel = connect(it.app.grpc, &it.authority.pem(), None).await.unwrap();
        for _ in 0..16 {
            let mut client = tonic::client::Grpc::new(channel.clone());
            waiting.push(tokio::spawn(async move {
                client.ready().await.unwrap();
                let codec = tonic_prost::ProstCodec::<v1::AuthorizeRequest, v1::AuthorizeResponse>::default();
                let path = http::uri::PathAndQuery::from_static("/countersign.v1.DecisionService/Authorize");
                client.client_streaming(Request::new(futures_util::stream::pending()), path, codec).await.map(|_| ())
            }));
        }
    }
    let bare = async || ApprovalServiceClient::new(connect(it.app.grpc, &it.authority.pem(), None).await.unwrap());
    let list = v1::ListApprovalsRequest::default;
    // The limit is reached when an unauthenticated request is refused for it, and not for its missing token.
    within("refusal for the limit", async {
        while bare().await.list_approvals(list()).await.unwrap_err().code() != Code::ResourceExhausted {}
    })
    .await;
    let own = json!({"act": null, "step": null, "scope": null, "cnf": null, "amr": ["hwk"]});
    let human = it.issuer.sign("at+jwt", &merged(claims(&it.crm()), own)).unwrap();
    assert_eq!(bare().await.list_approvals(bearer(list(), &human)).await.unwrap().into_inner().approvals.len(), 0);
    let forged = bare().await.list_approvals(bearer(list(), "x.y.z")).await;
    assert_eq!(forged.unwrap_err().code(), Code::ResourceExhausted);
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    it.app.stop().await;
}

/// A stopping server is not ready but still answers for a while, so that load balancers notice in time.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_server_is_not_ready_but_still_answers_while_draining() {
    let it = Secure::start(|config, _| config.limits.drain_seconds = 3).await;
    let (admin, crm) = (it.app.admin, it.crm());
    let delegation = token(it.delegation(&crm, json!({})));
    let (grpc, pem) = (it.app.grpc, it.authority.pem());
    assert_eq!(crate::harness::get(admin, "/readyz").await.0, 200);
    let stopping = tokio::spawn(it.app.stop());
    within("end of readiness", async { while crate::harness::get(admin, "/readyz").await.0 == 200 {} }).await;
    let channel = connect(grpc, &pem, Some(&crm)).await.unwrap();
    assert_eq!(ask(channel, ticket(delegation)).await.unwrap().decision(), v1::Decision::Allow);
    stopping.await.unwrap();
    assert!(connect(grpc, &pem, Some(&crm)).await.is_err(), "the port is closed");
}

/// A client says which problem a server's certificate has.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_says_what_is_wrong_with_a_certificate() {
    use countersign::api::client::{Target, healthy};
    let it = Secure::start(|_, _| {}).await;
    let said = async |scheme: &str, authorities: Vec<u8>| {
        let server = format!("{scheme}://{}", it.app.grpc);
        healthy(&Target { server, authorities, ..Target::default() }, "").await.map_err(|error| error.to_string())
    };
    assert_eq!(said("https", it.authority.pem().into_bytes()).await, Ok(true));
    let other = Authority::new().pem().into_bytes();
    for (scheme, authorities, expected) in [
        (
            "https",
            other,
            "its certificate is of no trusted authority: give the PEM file of its authorities with `--ca`",
        ),
        (
            "https",
            vec![],
            "its certificate is of no trusted authority: give the PEM file of its authorities with `--ca`",
        ),
        ("http", vec![], "it does not speak gRPC in plaintext, or ended the connection: use `https://` if it has TLS"),
    ] {
        let error = said(scheme, authorities).await.unwrap_err();
        assert!(error.contains(expected), "{scheme}: {error}");
    }
    it.app.stop().await;
}

/// A health watch never ends, so only known callers may open one.
#[tokio::test(flavor = "multi_thread")]
async fn only_known_callers_may_watch_health() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;
    let it = Secure::start(|_, _| {}).await;
    let crm = it.crm();
    let mut stranger = HealthClient::new(connect(it.app.grpc, &it.authority.pem(), None).await.unwrap());
    assert_eq!(stranger.watch(HealthCheckRequest::default()).await.unwrap_err().code(), Code::Unauthenticated);
    assert!(stranger.check(HealthCheckRequest::default()).await.is_ok());
    let mut known =
        HealthClient::new(it.as_(&crm).await).watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert!(known.message().await.unwrap().is_some());
    it.app.stop().await;
}

/// Outside of development mode only known callers may use reflection.
#[tokio::test(flavor = "multi_thread")]
async fn only_known_callers_may_use_reflection() {
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    let it = Secure::start(|_, _| {}).await;
    let crm = it.crm();
    let list = || {
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        futures_util::stream::iter([request])
    };
    let stranger = connect(it.app.grpc, &it.authority.pem(), None).await.unwrap();
    let refused = ServerReflectionClient::new(stranger).server_reflection_info(list()).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
    let mut described =
        ServerReflectionClient::new(it.as_(&crm).await).server_reflection_info(list()).await.unwrap().into_inner();
    assert!(described.message().await.unwrap().is_some());
    it.app.stop().await;
}

/// Denials that one tool service causes do not raise an agent's risk in another one's calls.
#[tokio::test(flavor = "multi_thread")]
async fn denials_through_one_tool_service_do_not_lock_the_agent_out_elsewhere() {
    let it = Secure::start(|_, _| {}).await;
    let (crm, support) = (it.crm(), it.authority.sign(&svid("spiffe://acme.example/tool/support")));
    let refund = |caller: &Svid, case: &str| {
        let call = crate::harness::refund_request();
        let claims = json!({"step": "action", "scope": "refunds", "case": case});
        let case = v1::Case { id: case.to_owned(), ..call.case.clone().unwrap() };
        v1::AuthorizeRequest { delegation: token(it.delegation(caller, claims)), case: Some(case), ..call }
    };
    // The ticket system may not ask for refunds, so each of these calls, on invented cases, is denied.
    let channel = it.as_(&crm).await;
    for index in 0..120 {
        let answer = ask(channel.clone(), refund(&crm, &format!("made-up-{index}"))).await.unwrap();
        assert_eq!(answer.decision(), v1::Decision::Deny, "{answer:?}");
    }
    // The denials do not count against the agent's calls through another tool service.
    let answer = ask(it.as_(&support).await, refund(&support, "case-1")).await.unwrap();
    assert_eq!((answer.decision(), answer.reason()), (v1::Decision::Allow, v1::Reason::Unspecified));
    it.app.stop().await;
}

/// A tool service with hundreds of calls in progress delays another's call by a few of them, not by all.
#[tokio::test(flavor = "multi_thread")]
async fn one_tool_services_streams_delay_another_by_a_few_calls() {
    const STREAMS: usize = 40;
    const ITEMS: usize = 100;
    let it = Secure::start(|_, _| {}).await;
    let (crm, support) = (it.crm(), it.authority.sign(&svid("spiffe://acme.example/tool/support")));
    let call = v1::AuthorizeRequest { delegation: token(it.delegation(&crm, json!({}))), ..ticket(None) };
    let answered = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let seen = || answered.load(std::sync::atomic::Ordering::Relaxed);
    let other = it.as_(&support).await;
    let mut channels = vec![];
    for _ in 0..STREAMS {
        channels.push(it.as_(&crm).await);
    }
    let mut floods = vec![];
    for (stream, channel) in channels.into_iter().enumerate() {
        let (call, answered) = (call.clone(), std::sync::Arc::clone(&answered));
        floods.push(tokio::spawn(async move {
            let item = move |index: usize| {
                let call = v1::AuthorizeRequest { request_id: format!("{stream}-{index}"), ..call.clone() };
                v1::AuthorizeStreamRequest { request: Some(call) }
            };
            let items = futures_util::stream::iter((0..ITEMS).map(item));
            let mut answers = DecisionServiceClient::new(channel).authorize_stream(items).await.unwrap().into_inner();
            while answers.message().await.unwrap().is_some() {
                answered.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
        }));
    }
    let own = v1::AuthorizeRequest { delegation: token(it.delegation(&support, json!({}))), ..ticket(None) };
    within("answer on each stream", async {
        while seen() < STREAMS {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let mut overtaken = vec![];
    while seen() < STREAMS * ITEMS * 3 / 4 {
        let before = seen();
        ask(other.clone(), own.clone()).await.unwrap();
        overtaken.push(seen() - before);
    }
    overtaken.sort_unstable();
    let median = overtaken[overtaken.len() / 2];
    assert!(median < 200, "{overtaken:?}");
    for flood in floods {
        flood.await.unwrap();
    }
    it.app.stop().await;
}
