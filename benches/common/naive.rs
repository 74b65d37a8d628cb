//! Cedar as it is used without preparation: JSON entities and context, every policy, each link.

use cedar_policy::{Authorizer, Context, Entities, EntityId, EntityTypeName, EntityUid, PolicySet, Request};
use countersign::api::v1;
use countersign::bundle::folder::Folder;
use countersign::bundle::{Bundle, Reading};

use crate::calls::policies;

/// A service that hands each request to Cedar unprepared: JSON entities and context, every policy, each link.
pub(crate) struct Naive {
    bundle: Bundle,
    policies: PolicySet,
    /// The reference bundle's own entities in Cedar's JSON form.
    entities: Vec<serde_json::Value>,
}

impl Naive {
    pub(crate) fn new() -> Self {
        let mut entities = vec![];
        for file in ["agents", "fields", "reps", "roles", "tenants", "tool_services"] {
            let text = std::fs::read_to_string(policies().join(format!("entities/{file}.json"))).unwrap();
            entities.extend(serde_json::from_str::<Vec<serde_json::Value>>(&text).unwrap());
        }
        let mut texts = String::new();
        for (name, bytes) in Folder::read(&policies()).unwrap().files() {
            if name.ends_with(".cedar") {
                texts.push_str(std::str::from_utf8(bytes).unwrap());
            }
        }
        let bundle = Bundle::load(&policies(), Reading::default()).unwrap();
        Self { bundle, policies: texts.parse().unwrap(), entities }
    }

    pub(crate) fn authorize(&self, request: &v1::AuthorizeRequest) -> bool {
        let schema = self.bundle.policies.schema.as_ref().unwrap();
        let uid = |kind: &str, id: &str| {
            EntityUid::from_type_name_and_id(kind.parse::<EntityTypeName>().unwrap(), EntityId::new(id))
        };
        let (case, resource) = (request.case.as_ref().unwrap(), request.resource.as_ref().unwrap());
        let Some(v1::delegation::Credential::Asserted(chain)) =
            request.delegation.as_ref().and_then(|delegation| delegation.credential.as_ref())
        else {
            return false;
        };
        let id = |kind: &str, id: &str| serde_json::json!({"type": kind, "id": id});
        let mut facts: serde_json::Value = serde_json::from_slice(&case.attributes_json).unwrap();
        facts["tenant"] = id("Tenant", &case.tenant);
        let mut order: serde_json::Value = serde_json::from_slice(&resource.attributes_json).unwrap();
        for (member, kind) in [
            ("product", "Product"),
            ("region", "Region"),
            ("policy_set", "PolicySet"),
            ("currency", "Currency"),
            ("status", "CaseStatus"),
            ("refund_status", "RefundStatus"),
            ("identity_check", "IdentityCheck"),
            ("fraud_check", "FraudCheck"),
        ] {
            facts[member] = id(kind, facts[member].as_str().unwrap());
        }
        order["tenant"] = id("Tenant", order["tenant"].as_str().unwrap());
        order["currency"] = id("Currency", order["currency"].as_str().unwrap());
        let mut entities = self.entities.clone();
        entities.push(serde_json::json!({"uid": id("Case", &case.id), "attrs": facts, "parents": []}));
        entities.push(serde_json::json!({"uid": id("Order", "order-1"), "attrs": order, "parents": []}));
        let entities = Entities::from_json_value(entities.into(), Some(schema)).unwrap();
        let action = uid("Action", &request.action);
        let scopes = ["tickets", "knowledge", "orders", "verification", "refunds", "accounts", "replies"]
            .map(|scope| id("Scope", scope));
        let context = serde_json::json!({
            "args": {}, "case": id("Case", &case.id), "step": id("Step", &chain.step), "now": "2026-11-23T09:00:00Z",
            "chain": {"agent": id("Agent", &chain.agent), "supervisor": id("Rep", &chain.supervisor), "tool_service": id("ToolService", "support-tools"), "scopes": scopes, "asserted": true},
            "risk": {"tier": id("RiskTier", "low"), "score": 0, "signals": []}, "rates": [], "findings": [], "checks": {},
        });
        [("ToolService", "support-tools"), ("Agent", chain.agent.as_str()), ("Rep", chain.supervisor.as_str())]
            .iter()
            .all(|(kind, name)| {
                let context = Context::from_json_value(context.clone(), Some((schema, &action))).unwrap();
                let request =
                    Request::new(uid(kind, name), action.clone(), uid("Order", "order-1"), context, Some(schema))
                        .unwrap();
                let response = Authorizer::new().is_authorized(&request, &self.policies, &entities);
                response.decision() == cedar_policy::Decision::Allow
            })
    }
}
