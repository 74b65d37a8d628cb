//! Cases of direct actions: a human or a tool service acts on a request for approval, a tenant or the server.

use super::form::{Case, Names};
use super::{Decided, Runner};
use crate::entities::direct::{OfRequest, On};
use crate::json::{Object, Value};
use crate::model::answer::{Outcome, Reason};
use crate::model::approval::{Binding, BoundCall, Giver, Subject};
use crate::model::chain::Link;
use crate::model::refusal::Refusal;
use crate::model::right::{Right, RightOn};
use crate::model::time::Timestamp;
use crate::model::verdict::Verdict;
use crate::pdp::evaluation::Evaluation;
use crate::pdp::rights;
use crate::workbench::request::Written;

impl Runner<'_> {
    /// Returns every decision of a case whose actions are direct.
    pub(super) fn direct(&self, case: &Case) -> Vec<Decided> {
        let none = Names::default();
        let mut decided = vec![];
        for action in &case.action.0 {
            let Some(right) = Right::from_name(action) else { continue };
            let (principals, missing) = match right.of() {
                Link::Supervisor => (&case.reviewer, "reviewer"),
                Link::Agent | Link::Plain | Link::ToolService => (&case.caller, "caller"),
            };
            let principals = principals.as_ref().unwrap_or(&none);
            let resources = case.resource.as_ref().unwrap_or(&none);
            for (names, field) in [(principals, missing), (resources, "resource")] {
                if names.0.is_empty() {
                    let evaluation = Err(Refusal::invalid(field, "is missing"));
                    decided.push(Decided {
                        name: case.name.clone(),
                        action: action.clone(),
                        step: String::new(),
                        evaluation,
                        draft: None,
                        context: None,
                    });
                }
            }
            for principal in &principals.0 {
                for resource in &resources.0 {
                    let name = format!("{} [{principal} {action} {resource}]", case.name);
                    let evaluation = self.evaluate_direct(case, right, principal, resource);
                    decided.push(Decided {
                        name,
                        action: action.clone(),
                        step: String::new(),
                        evaluation,
                        draft: None,
                        context: None,
                    });
                }
            }
        }
        decided
    }

    fn evaluate_direct(
        &self,
        case: &Case,
        right: Right,
        principal: &str,
        resource: &str,
    ) -> Result<Evaluation, Refusal> {
        let now = case.now.as_ref().unwrap_or(&self.file.now);
        let now = Timestamp::parse(now).ok_or_else(|| Refusal::invalid("now", "is not an RFC 3339 time"))?;
        let asked;
        let on = match right.on() {
            RightOn::Approval => {
                let fixture = self
                    .fixtures
                    .resources
                    .get(resource)
                    .ok_or_else(|| Refusal::invalid("resource", "is not a defined fixture"))?;
                let attributes = fixture.attributes.clone().unwrap_or_default();
                asked = binding(fixture, &attributes);
                let four_eyes = attributes.get("four_eyes") == Some(&Value::Bool(true));
                On::Approval(&asked, OfRequest { approvers: 0, four_eyes, own: case.own })
            }
            RightOn::Server => On::Server(resource),
            RightOn::Tenant => On::Tenant(resource),
        };
        let verdict = rights::verdict(self.bundle, self.roles, right, principal, on, now);
        let verdict = Verdict { links: verdict.into_iter().collect() };
        let denied = match (verdict.has_errors(), verdict.permits()) {
            (true, _) => Some(Reason::PolicyError),
            (false, true) => None,
            (false, false) => Some(Reason::NotPermitted),
        };
        Ok(Evaluation { outcome: Outcome { denied, ..Outcome::default() }, gate: None, verdict })
    }
}

/// Builds the binding of a request for approval from a fixture with the attributes of the schema's type.
fn binding(fixture: &Written, attributes: &Object) -> Binding {
    let text = |name: &str| attributes.get(name).and_then(Value::as_str).unwrap_or("").to_owned();
    let limits = attributes.get("limits").and_then(Value::as_object).map_or_else(Object::new, Object::clone);
    let call = BoundCall {
        v: String::new(),
        environment: String::new(),
        tenant: text("tenant"),
        case: String::new(),
        case_version: String::new(),
        step: String::new(),
        supervisor: Subject { iss: String::new(), sub: text("supervisor") },
        agent: Subject { iss: String::new(), sub: text("agent") },
        audience: String::new(),
        action: text("action"),
        resource_type: String::new(),
        resource_id: String::new(),
        resource_version: String::new(),
        exact: Object::new(),
        at_most: limits,
        case_attributes: Object::new(),
        resource_attributes: Object::new(),
        facts: Object::new(),
    };
    Binding {
        evaluation_id: fixture.id.clone(),
        template: text("template"),
        giver: Giver::Reviewers,
        quorum: 1,
        requires: vec![],
        policy: String::new(),
        supervisor_person: None,
        customer: String::new(),
        conversation: String::new(),
        risk: String::new(),
        findings: None,
        generation: String::new(),
        consent: None,
        call,
    }
}
