//! Properties that hold for every call, tested with generated calls against the reference bundle.

use std::sync::OnceLock;

use countersign::bundle::Bundle;
use countersign::json::{Object, Value, read_object};
use countersign::model::call::{Call, Case, Correlation, EntityReference, Model, Resource, Tokens};
use countersign::model::chain::{Chain, Credential};
use countersign::model::halt::Severity;
use countersign::model::time::Timestamp;
use countersign::model::trusted_context::TrustedContext;
use countersign::pdp::evaluation::{Evaluation, Evaluator};
use countersign::pdp::scoring::calm;
use countersign::risk::Known;
use proptest::prelude::*;
use proptest::sample::select;

use crate::harness::{CASE, ORDER, bundle_with};

/// Copies of the reference principals without roles.
const ROLELESS: &str = r#"[
  {"uid":{"type":"Agent","id":"roleless"},"attrs":{"tenant":{"type":"Tenant","id":"acme"},"class":{"type":"AgentClass","id":"trusted"},
   "scopes":[{"type":"Scope","id":"tickets"},{"type":"Scope","id":"orders"},{"type":"Scope","id":"refunds"},{"type":"Scope","id":"knowledge"},
   {"type":"Scope","id":"verification"},{"type":"Scope","id":"accounts"},{"type":"Scope","id":"replies"}],"suspended":false,
   "valid_from":"2026-01-01","valid_until":"2030-01-01"},"parents":[]},
  {"uid":{"type":"Rep","id":"roleless"},"attrs":{"tenant":{"type":"Tenant","id":"acme"},"active":true,"refund_limit_minor":100000,
   "credit_limit_minor":10000},"parents":[]},
  {"uid":{"type":"ToolService","id":"roleless"},"attrs":{"tenants":[{"type":"Tenant","id":"acme"}]},"parents":[]}
]"#;

fn bundle() -> &'static Bundle {
    static BUNDLE: OnceLock<Bundle> = OnceLock::new();
    BUNDLE.get_or_init(|| bundle_with(&[("entities/roleless.json", ROLELESS)]))
}

fn object(text: &str) -> Object {
    read_object(text.as_bytes()).unwrap()
}

#[derive(Clone, Debug)]
struct Asked {
    chain: Chain,
    call: Call,
    trusted: TrustedContext,
}

fn asked() -> impl Strategy<Value = Asked> {
    let actions: Vec<String> = bundle().policies.shapes.actions.keys().cloned().collect();
    let who = (
        select(&["support-bot", "refund-bot", "trainee-bot", "globex-bot"][..]),
        select(&["rep-1", "rep-2", "globex-rep"][..]),
    );
    let tools = select(&["support-tools", "crm-tools", "billing-tools", "globex-tools"][..]);
    let step = select(&["intake", "enrichment", "drafting", "verification", "action"][..]);
    let facts = (
        select(&["none", "requested", "approved"][..]),
        select(&["open", "closed"][..]),
        select(&["none", "suspected"][..]),
    );
    let tenants = (select(&["acme", "globex"][..]), select(&["acme", "acme", "globex"][..]));
    let state =
        (select(&["low", "low", "medium", "high", "critical"][..]), any::<bool>(), any::<bool>(), any::<bool>());
    (who, tools, step, select(actions), facts, tenants, state, 1i64..100_000).prop_map(
        |((agent, supervisor), tool, step, action, (refund, status, fraud), (case_tenant, order_tenant), (tier, checked, approved, full), amount)| {
            let chain = Chain {
                tool_service: tool.into(),
                agent: agent.into(),
                supervisor: supervisor.into(),
                step: step.into(),
                scopes: None,
                asserted: true,
                ..Chain::default()
            };
            let mut trusted = calm(&bundle().policies.shapes);
            trusted.set("screening", Value::Object(object(r#"{"tainted":false,"unscreened":false}"#)));
            let mut set = |text: String| object(&text).into_iter().for_each(|(name, value)| trusted.set(&name, value));
            set(format!(r#"{{"risk":{{"tier":"{tier}"}}}}"#));
            if checked {
                set(r#"{"checks":{"identity_verification":{"expires":"2026-03-02T09:30:00Z"},"fraud_review":{"expires":"2026-03-02T09:30:00Z"}}}"#.into());
                set(r#"{"release":{"expires":"2026-03-02T09:30:00Z"}}"#.into());
            }
            if approved {
                let template = match action.as_str() {
                    "refund.issue" => "refund",
                    "account.credit" => "credit",
                    "billing.change_plan" => "billing_change",
                    _ => "reply",
                };
                set(format!(r#"{{"approval":{{"template":"{template}","approvers":2,"expires":"2026-03-02T09:30:00Z","limits":{{"amount_minor":{amount}}}}}}}"#));
            }
            if full {
                set(r#"{"rates":["writes_per_case"]}"#.into());
            }
            let case = CASE.replace(r#""refund_status":"none""#, &format!(r#""refund_status":"{refund}""#));
            let case = case.replace(r#""status":"open""#, &format!(r#""status":"{status}""#));
            let case = case.replace(r#""fraud_check":"none""#, &format!(r#""fraud_check":"{fraud}""#));
            let call = call(&action, order_tenant, amount, Case {
                id: "case-1".into(),
                version: "1".into(),
                tenant: case_tenant.into(),
                attributes: object(&case),
            });
            Asked { chain, call, trusted }
        },
    )
}

/// Builds a call of this action that conforms to the schema.
fn call(action: &str, tenant: &str, amount: i64, case: Case) -> Call {
    let order = ORDER.replace("acme", tenant).replace("9000", "90000");
    let account = format!(r#"{{"tenant":"{tenant}","customer":"customer-1"}}"#);
    let article = r#"{"product":"phone","region":"eu","policy_set":"standard"}"#;
    let (kind, id, attributes) = match action {
        "order.check" | "refund.create_request" | "refund.issue" => ("Order", "order-1", Some(order.as_str())),
        "account.credit" | "account.change_email" | "billing.change_plan" => {
            ("Account", "account-1", Some(account.as_str()))
        }
        "knowledge.search" | "knowledge.read" => ("Article", "article-1", Some(article)),
        "field.read" | "field.read_masked" => ("Field", "product", None),
        _ => ("Case", "case-1", None),
    };
    let arguments = match action {
        "refund.create_request" | "refund.issue" | "account.credit" => {
            format!(r#"{{"amount_minor":{amount},"currency":"EUR"}}"#)
        }
        "account.change_email" => r#"{"new_email":"a@example.com"}"#.into(),
        "billing.change_plan" => r#"{"plan":"plus"}"#.into(),
        "reply.release" => r#"{"channel":"email","recipient":"r"}"#.into(),
        "reply.send" => r#"{"channel":"email","recipient":"r","draft_digest":"x"}"#.into(),
        "verification.run" => r#"{"fact":"delivery_postcode"}"#.into(),
        "knowledge.search" => r#"{"query":"x"}"#.into(),
        "ticket.update" => r#"{"status":"pending"}"#.into(),
        _ => "{}".into(),
    };
    Call {
        credential: Credential::None,
        action: action.into(),
        resource: Resource {
            reference: EntityReference { kind: kind.into(), id: id.into() },
            version: String::new(),
            attributes: attributes.map(object),
        },
        case,
        arguments: object(&arguments),
        facts: None,
        untrusted: vec![],
        tokens: Tokens::default(),
        model: Some(Model { name: "m".into(), ..Model::default() }),
        correlation: Correlation::default(),
        dry_run: false,
    }
}

fn now() -> Timestamp {
    Timestamp::parse("2026-03-02T09:00:00Z").unwrap()
}

fn evaluator() -> Evaluator<'static> {
    Evaluator { bundle: bundle(), roles: bundle().roles.as_ref().unwrap(), now: now() }
}

fn judged(asked: &Asked) -> Evaluation {
    evaluator().evaluate(&asked.chain, &asked.call, &asked.trusted).unwrap()
}

fn allowed(asked: &Asked) -> bool {
    judged(asked).outcome.denied.is_none()
}

/// Generates anything that may be known of a call, in any amount.
fn known() -> impl Strategy<Value = Known> {
    let mut names: Vec<String> = bundle().rules.risk.as_ref().unwrap().findings.keys().cloned().collect();
    names.extend(["denials", "provoked_denials", "approvals_denied", "unsafe_drafts"].map(str::to_owned));
    let events = proptest::collection::btree_map(select(names), 0_u64..1000, 0..6);
    let counts = || prop_oneof![0_u64..200, 0_u64..100_000];
    let breadth = || [counts(), counts(), counts()];
    let reported =
        select(vec![None, Some(Severity::Low), Some(Severity::Medium), Some(Severity::High), Some(Severity::Critical)]);
    let groups = proptest::collection::vec(select(vec!["moves_money".to_owned(), "write".to_owned()]), 0..3);
    (events, breadth(), breadth(), reported, groups).prop_map(|(events, agent, supervisor, reported, groups)| Known {
        events,
        agent,
        supervisor,
        reported,
        groups,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: crate::harness::cases(1500), ..ProptestConfig::default() })]

    #[test]
    fn an_unknown_principal_is_never_allowed(asked in asked(), link in 0..3, name in "[a-z0-9_-]{1,20}") {
        let mut asked = asked;
        let chain = &mut asked.chain;
        let name = format!("unknown-{name}");
        match link { 0 => chain.tool_service = name, 1 => chain.agent = name, _ => chain.supervisor = name }
        prop_assert!(!allowed(&asked));
    }

    #[test]
    fn a_link_without_roles_is_never_allowed(asked in asked(), link in 0..3) {
        let mut weaker = asked.clone();
        let chain = &mut weaker.chain;
        match link { 0 => chain.tool_service = "roleless".into(), 1 => chain.agent = "roleless".into(), _ => chain.supervisor = "roleless".into() }
        prop_assert!(!allowed(&weaker), "a link without a role was allowed");
        prop_assert!(allowed(&asked) || !allowed(&weaker));
    }

    /// Threat 1: an injected goal must not lead to a write.
    #[test]
    fn nothing_is_written_or_sent_outside_the_action_step(asked in asked()) {
        let writes = ["ticket.update", "refund.create_request", "refund.issue", "account.credit", "account.change_email", "billing.change_plan", "reply.send"];
        if asked.chain.step != "action" && writes.contains(&asked.call.action.as_str()) {
            prop_assert!(!allowed(&asked));
        }
    }

    /// Threat 3: the gate in code and the policies each keep tenants apart without the other.
    #[test]
    fn gate_and_policies_each_keep_tenants_apart(asked in asked()) {
        let own = |name: &str| if name.starts_with("globex") { "globex" } else { "acme" };
        let tenant = asked.call.case.tenant.as_str();
        let sent = asked.call.resource.attributes.as_ref().and_then(|attributes| attributes.get("tenant")).and_then(|tenant| tenant.as_str());
        let serves = match asked.chain.tool_service.as_str() { "support-tools" => true, tool => own(tool) == tenant };
        let together = own(&asked.chain.agent) == tenant && own(&asked.chain.supervisor) == tenant && serves && sent.is_none_or(|sent| sent == tenant);
        if !together {
            prop_assert!(!allowed(&asked));
            let alone = evaluator().evaluate_policies_only(&asked.chain, &asked.call, &asked.trusted).unwrap();
            prop_assert!(alone.outcome.denied.is_some(), "the policies do not keep tenants apart");
        }
    }

    #[test]
    fn more_risk_never_permits_more(asked in asked(), tier in select(&["medium", "high", "critical"][..])) {
        let order = ["low", "medium", "high", "critical"];
        let rank = |trusted: &TrustedContext| {
            let tier = trusted.get("risk").unwrap().as_object().unwrap()["tier"].as_str().unwrap().to_owned();
            order.iter().position(|known| *known == tier).unwrap()
        };
        let mut riskier = asked.clone();
        riskier.trusted.set("risk", object(&format!(r#"{{"tier":"{tier}"}}"#)).into_iter().collect());
        riskier.trusted.set("findings", countersign::json::Value::Array(vec!["injection".into()]));
        riskier.trusted.set("rates", countersign::json::Value::Array(["refunds_per_case", "writes_per_case", "calls_per_agent"].map(Into::into).into()));
        if rank(&riskier.trusted) >= rank(&asked.trusted) {
            prop_assert!(allowed(&asked) || !allowed(&riskier));
        }
    }

    /// Threat 28: what the PDP remembers, or fails to read, only takes permissions away. A missing or tainted
    /// screening, unscreened text and full windows never permit more.
    #[test]
    fn remembered_or_lost_risk_state_never_permits_more(
        asked in asked(), tainted in any::<bool>(), unscreened in any::<bool>(), lost in any::<bool>(), windows in any::<u32>()
    ) {
        let mut worse = asked.clone();
        if lost {
            worse.trusted.remove("screening");
        } else {
            let screening = format!(r#"{{"tainted":{tainted},"unscreened":{unscreened}}}"#);
            worse.trusted.set("screening", Value::Object(object(&screening)));
        }
        let names = &bundle().rules.rates;
        let full = names.names().enumerate().filter(|(index, _)| windows >> index & 1 == 1).map(|(_, name)| Value::from(name.as_str()));
        let before = asked.trusted.get("rates").and_then(|rates| match rates { Value::Array(rates) => Some(rates.clone()), _ => None });
        worse.trusted.set("rates", Value::Array(full.chain(before.unwrap_or_default()).collect()));
        prop_assert!(allowed(&asked) || !allowed(&worse));
    }

    /// More of anything never gives a lower score or tier.
    #[test]
    fn the_risk_score_is_monotone(known in known(), more in known()) {
        let rules = bundle().rules.risk.as_ref().unwrap();
        let mut raised = known.clone();
        for (name, count) in more.events {
            *raised.events.entry(name).or_default() += count;
        }
        for index in 0..3 {
            raised.agent[index] += more.agent[index];
            raised.supervisor[index] += more.supervisor[index];
        }
        raised.reported = raised.reported.max(more.reported);
        raised.groups.extend(more.groups);
        let (before, after) = (rules.score(&known), rules.score(&raised));
        prop_assert!(before.score <= after.score && after.score <= 100, "{before:?} {after:?}");
        let rank = |risk: &countersign::model::signals::Risk| rules.tiers.iter().position(|tier| tier.tier == risk.tier).unwrap();
        prop_assert!(rank(&before) <= rank(&after) && rank(&after) <= rank(&rules.worst()));
        let parts: u32 = after.parts.iter().map(|part| part.points).sum();
        prop_assert_eq!(after.score, parts.min(100), "the parts add up to the score");
    }

    /// Probing stays below the highest tier in any amount, and so do other factors that are not decisive.
    #[test]
    fn no_single_signal_reaches_the_highest_tier(known in known(), only in 0..4_usize) {
        let rules = bundle().rules.risk.as_ref().unwrap();
        let none = Known::default();
        let alone = match only {
            0 => Known { agent: known.agent, supervisor: known.supervisor, ..none },
            1 => Known { events: known.events.into_iter().take(1).collect(), ..none },
            2 => Known { reported: known.reported.min(Some(Severity::High)), ..none },
            _ => Known { groups: known.groups, ..none },
        };
        prop_assert!(rules.score(&alone).tier != "critical", "{alone:?}");
    }

    /// A denial as not permitted says nothing of missing approvals, and carries no obligations or advice.
    #[test]
    fn a_not_permitted_denial_carries_no_details(asked in asked()) {
        let judged = judged(&asked);
        if judged.outcome.denied == Some(countersign::model::answer::Reason::NotPermitted) {
            prop_assert!(judged.outcome.missing.is_none() && judged.outcome.obligations.is_empty() && judged.outcome.advice.is_empty());
        }
    }
}
