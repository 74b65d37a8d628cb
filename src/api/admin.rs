//! Handlers of AdminService. Policies grant the rights that it needs: `server.observe`, `server.operate` and
//! `decision.explain`.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::api::convert::{id, some_id};
use crate::api::front::origin;
use crate::api::v1::admin_service_server::{AdminService, AdminServiceServer};
use crate::api::{convert, respond, status, v1};
use crate::approvals::store::subjects::{Subject, SubjectOf};
use crate::json::{Object, canonical};
use crate::model::answer::Gate;
use crate::model::chain::Link;
use crate::model::number::to_u32;
use crate::model::refusal::Refusal;
use crate::model::right::Right;
use crate::model::signals::Risk;
use crate::model::verdict::LinkVerdict;
use crate::pdp::Pdp;
use crate::pdp::erasure::Erase;
use crate::pdp::origin::{Origin, Purpose, Request as PdpRequest};
use crate::pdp::refused::run_to_completion;
use crate::pdp::reload::{Reloaded, Trigger};
use crate::pdp::snapshot::{Moment, Rejected, Snapshot, computed};

/// Maximum number of faults of a refused bundle in a response.
const FAULTS_MAX: usize = 100;
/// Maximum length of a reason, in bytes.
const REASON_MAX: usize = 1024;

pub(super) fn service(pdp: Arc<Pdp>) -> AdminServiceServer<Admin> {
    AdminServiceServer::new(Admin { pdp })
}

#[derive(Debug)]
pub(super) struct Admin {
    pdp: Arc<Pdp>,
}

impl Admin {
    /// Refuses every caller but a tool service that a policy grants the right.
    async fn admit(&self, origin: &Origin, right: Right) -> Result<(), Status> {
        self.pdp.admit(origin, right).await.map(|_| ()).map_err(|refused| status::status(refused.refusal()))
    }
}

#[tonic::async_trait]
impl AdminService for Admin {
    async fn get_status(
        &self,
        request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        self.admit(&origin(&request, Purpose::Explain), Right::ServerObserve).await?;
        let found = self.pdp.status();
        Ok(Response::new(v1::GetStatusResponse {
            server_version: env!("CARGO_PKG_VERSION").to_owned(),
            cedar_version: found.cedar_version.to_owned(),
            environment: found.environment,
            started_at: Some(respond::time(found.started_at)),
            ready: found.not_ready.is_empty(),
            bundle: Some(bundle(&found.snapshot)),
            rejected: found.rejected.as_deref().map(rejected),
            audit: Some(v1::AuditStatus {
                log: found.log,
                last_index: found.last_index,
                mode: found.durability.to_owned(),
                healthy: !found.not_ready.contains(&"audit"),
            }),
            not_ready: found.not_ready.into_iter().map(str::to_owned).collect(),
            warnings: found.warnings.into_iter().map(str::to_owned).collect(),
            stops: found.stops,
            windows: Some(v1::WindowsStatus { engine: found.windows.to_owned(), healthy: found.windows_healthy }),
            store: Some(v1::StoreStatus {
                engine: found.store.to_owned(),
                healthy: found.store_healthy,
                went_back_at: found.store_went_back_at.map(respond::time),
                durability: found.store_durability,
                bundles: found.bundles,
                clock_skew: Some(respond::span(found.clock_skew)),
            }),
        }))
    }

    async fn reload_bundle(
        &self,
        request: Request<v1::ReloadBundleRequest>,
    ) -> Result<Response<v1::ReloadBundleResponse>, Status> {
        self.admit(&origin(&request, Purpose::Explain), Right::ServerOperate).await?;
        let reloaded = self.pdp.reload(Trigger::Asked).await.map_err(|refused| status::status(refused.refusal()))?;
        let (outcome, refused) = match reloaded {
            Reloaded::Activated => (v1::ReloadOutcome::Activated, None),
            Reloaded::Rejected(refused) => (v1::ReloadOutcome::Rejected, Some(rejected(&refused))),
            Reloaded::Unchanged => (v1::ReloadOutcome::Unchanged, None),
        };
        let response = v1::ReloadBundleResponse {
            outcome: outcome.into(),
            bundle: Some(bundle(&self.pdp.moment().snapshot)),
            rejected: refused,
        };
        Ok(Response::new(response))
    }

    async fn confirm_store(
        &self,
        request: Request<v1::ConfirmStoreRequest>,
    ) -> Result<Response<v1::ConfirmStoreResponse>, Status> {
        let origin = origin(&request, Purpose::Explain);
        let recorded = self.pdp.confirm_store(&origin).await.map_err(|refused| status::status(refused.refusal()))?;
        let audit = respond::reference(&recorded, self.pdp.audit_log());
        Ok(Response::new(v1::ConfirmStoreResponse { audit }))
    }

    async fn erase_subject(
        &self,
        request: Request<v1::EraseSubjectRequest>,
    ) -> Result<Response<v1::EraseSubjectResponse>, Status> {
        let origin = origin(&request, Purpose::Authorize);
        let (pdp, read) = (Arc::clone(&self.pdp), erase(request.into_inner()));
        let erased = run_to_completion(async move { pdp.erase(&origin, read).await }).await;
        let recorded = erased.map_err(|refused| status::status(refused.refusal()))?;
        let audit = respond::reference(&recorded, self.pdp.audit_log());
        Ok(Response::new(v1::EraseSubjectResponse { keys: *recorded.value(), audit }))
    }

    async fn explain_decision(
        &self,
        request: Request<v1::ExplainDecisionRequest>,
    ) -> Result<Response<v1::ExplainDecisionResponse>, Status> {
        let origin = origin(&request, Purpose::Explain);
        let moment = self.pdp.moment();
        // An absent request equals an empty one, whose missing fields `convert` names.
        let read = convert::request(request.into_inner().request.unwrap_or_default());
        let derived = match &read {
            Ok(PdpRequest::Call(call)) => computed(&moment.snapshot.bundle, &call.action, &call.arguments),
            Ok(PdpRequest::Plain(_)) | Err(_) => Ok(Object::new()),
        };
        let recorded =
            self.pdp.authorize(&moment, &origin, read).await.map_err(|refused| status::status(refused.refusal()))?;
        // A call whose values can't be computed is refused.
        let derived = derived.unwrap_or_default();
        let links = recorded.value().verdict.links.iter().map(|link| explain(&moment, link)).collect();
        Ok(Response::new(v1::ExplainDecisionResponse {
            response: Some(respond::response(&recorded, self.pdp.audit_log())),
            links,
            gate: recorded.value().gate.map_or("", Gate::name).to_owned(),
            risk: recorded.value().signals.risk.as_ref().map(risk),
            full_windows: recorded.value().signals.full.clone(),
            windows_unknown: recorded.value().signals.unknown,
            findings: recorded.value().signals.kinds.clone(),
            halted_by: recorded.value().signals.halted_by.clone(),
            derived_json: if derived.is_empty() { vec![] } else { canonical(&derived) }.into(),
        }))
    }
}

fn erase(message: v1::EraseSubjectRequest) -> Result<Erase, Refusal> {
    let tenant = some_id(&message.tenant, "tenant")?;
    let (customer, case) = (id(&message.customer_id, "customer_id")?, id(&message.case_id, "case_id")?);
    let (kind, id) = match (customer.is_empty(), case.is_empty()) {
        (false, true) => (SubjectOf::Customer, customer),
        (true, false) => (SubjectOf::Case, case),
        (true, true) => return Err(Refusal::invalid("customer_id", "is missing, as is `case_id`: name one of them")),
        (false, false) => return Err(Refusal::invalid("case_id", "must be empty if `customer_id` is not")),
    };
    if message.reason.is_empty() || message.reason.len() > REASON_MAX {
        return Err(Refusal::invalid("reason", "must be 1 to 1024 bytes"));
    }
    Ok(Erase { subject: Subject { tenant, kind, id }, reason: message.reason })
}

fn risk(risk: &Risk) -> v1::RiskExplanation {
    let factors = risk.parts.iter().map(|part| v1::RiskFactor {
        name: part.name.clone(),
        count: part.count,
        points: part.points,
    });
    v1::RiskExplanation { score: risk.score, tier: risk.tier.clone(), factors: factors.collect() }
}

fn explain(moment: &Moment, verdict: &LinkVerdict) -> v1::LinkExplanation {
    let policies = &moment.snapshot.bundle.policies;
    let principal = v1::EntityReference { r#type: verdict.principal.kind.clone(), id: verdict.principal.id.clone() };
    let determining = verdict.determining.iter().map(|id| match policies.rule(id) {
        Some(rule) => v1::ExplainedPolicy {
            id: id.clone(),
            effect: if rule.forbids { "forbid" } else { "permit" }.to_owned(),
            requires: rule.requires.as_ref().map_or_else(String::new, ToString::to_string),
            doc: rule.doc.clone(),
            location: rule.place.clone(),
        },
        None => v1::ExplainedPolicy { id: id.clone(), ..Default::default() },
    });
    let link = match verdict.link {
        Link::Agent => v1::Link::Agent,
        Link::Plain => v1::Link::Unspecified,
        Link::Supervisor => v1::Link::Supervisor,
        Link::ToolService => v1::Link::ToolService,
    };
    v1::LinkExplanation {
        link: link.into(),
        principal: Some(principal),
        decision: if verdict.permitted { v1::Decision::Allow } else { v1::Decision::Deny }.into(),
        determining: determining.collect(),
        errors: verdict
            .errors
            .iter()
            .map(|fault| v1::PolicyFault { id: fault.policy.clone(), class: fault.class.to_owned() })
            .collect(),
    }
}

fn bundle(snapshot: &Snapshot) -> v1::BundleStatus {
    v1::BundleStatus {
        name: snapshot.bundle.manifest.name.clone(),
        policy: Some(respond::policy(&snapshot.bundle.version)),
        activated_at: Some(respond::time(snapshot.activated_at)),
        policies: to_u32(snapshot.bundle.policies.engine.count()),
    }
}

fn rejected(rejected: &Rejected) -> v1::RejectedBundle {
    v1::RejectedBundle {
        digest: rejected.digest.clone(),
        rejected_at: Some(respond::time(rejected.at)),
        faults: rejected.faults.iter().take(FAULTS_MAX).cloned().collect(),
    }
}
