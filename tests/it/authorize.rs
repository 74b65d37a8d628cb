//! Authorize over gRPC: the responses, and their audit lines.

use countersign::api::v1;
use countersign::api::v1::decision_service_client::DecisionServiceClient;
use tonic::Code;

use crate::harness::{App, ORDER, asserted, get, lines, order_check, refund_request, without_hint};

#[tokio::test(flavor = "multi_thread")]
async fn an_allowed_call_returns_obligations_and_is_recorded() {
    let app = App::start().await;
    let request = v1::AuthorizeRequest {
        request_id: "r-1".into(),
        conversation_id: "conv-1".into(),
        tool_call_id: "call-1".into(),
        ..order_check()
    };
    let response = app.decisions().await.authorize(request).await.unwrap().into_inner();
    assert_eq!(response.decision(), v1::Decision::Allow);
    assert_eq!(response.mode(), v1::Mode::Enforce);
    assert_eq!(response.request_id, "r-1");
    assert_eq!(response.obligations.len(), 1);
    assert_eq!(response.obligations[0].r#type, "return_only");
    assert_eq!(response.obligations[0].properties["value"], "order_id,status,paid_minor,refunded_minor,currency");
    assert_eq!((response.reason(), response.reason_user.as_str()), (v1::Reason::Unspecified, ""));
    assert_eq!(response.warnings, ["development_mode"]);
    assert_eq!(response.valid_until, response.evaluated_at);
    let audit = response.audit.clone().unwrap();
    assert_eq!(audit.log, "countersign/development");
    let lines = lines(&app.data);
    let line = &lines[usize::try_from(audit.index).unwrap()];
    assert_eq!(line["evaluation_id"], response.evaluation_id.as_str());
    assert_eq!(line["decision"], "allow");
    assert_eq!(line["input_digest"], response.call_digest.as_str());
    assert_eq!(line["policy"]["digest"], response.policy.unwrap().digest.as_str());
    assert_eq!(line["correlation"]["tool_call"], "call-1");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn development_mode_uses_defaults_for_a_missing_credential() {
    let app = App::start().await;
    let ticket = v1::AuthorizeRequest {
        delegation: None,
        action: "ticket.read".into(),
        resource: Some(v1::Resource {
            r#ref: Some(v1::EntityReference { r#type: "Case".into(), id: "case-1".into() }),
            ..Default::default()
        }),
        ..order_check()
    };
    let response = app.decisions().await.authorize(ticket).await.unwrap().into_inner();
    assert_eq!(response.decision(), v1::Decision::Allow);
    let line = lines(&app.data).pop().unwrap();
    assert_eq!(
        (line["chain"]["agent"].as_str(), line["chain"]["step"].as_str()),
        (Some("support-bot"), Some("intake"))
    );
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_liftable_denial_lists_the_missing_approvals_and_checks() {
    let app = App::start().await;
    let case = crate::harness::CASE.replace(r#""refund_status":"none""#, r#""refund_status":"requested""#);
    let request = v1::AuthorizeRequest {
        delegation: asserted("refund-bot", "rep-1", "action"),
        action: "refund.issue".into(),
        case: Some(v1::Case { attributes_json: case.into(), ..refund_request().case.unwrap() }),
        ..refund_request()
    };
    let response = app.decisions().await.authorize(request).await.unwrap().into_inner();
    assert_eq!(response.decision(), v1::Decision::Deny);
    assert_eq!(response.reason(), v1::Reason::CheckRequired);
    assert_eq!(response.next_action(), v1::NextAction::Request);
    let missing = response.access_request.unwrap();
    assert_eq!(missing.requires, ["approval:refund", "check:identity_verification"]);
    assert_eq!((missing.template.as_str(), missing.quorum), ("refund", 1));
    assert_eq!(missing.display, "refund.issue on Order order-1 of case case-1");
    app.stop().await;
}

/// Threats 3 and 19: a response must not reveal whether a resource is foreign, missing or forbidden.
#[tokio::test(flavor = "multi_thread")]
async fn foreign_missing_and_forbidden_resources_give_identical_responses() {
    let app = App::start().await;
    let mut client = app.decisions().await;
    let base = order_check();
    let foreign_case = v1::AuthorizeRequest {
        case: base.case.clone().map(|case| v1::Case { tenant: "globex".into(), ..case }),
        ..base.clone()
    };
    let missing_tenant = v1::AuthorizeRequest {
        case: base.case.clone().map(|case| v1::Case { tenant: "initech".into(), ..case }),
        ..base.clone()
    };
    let order = |attributes: String| v1::AuthorizeRequest {
        resource: base.resource.clone().map(|resource| v1::Resource { attributes_json: attributes.into(), ..resource }),
        ..base.clone()
    };
    let foreign_order = order(ORDER.replace("acme", "globex"));
    let other_customer = order(ORDER.replace("customer-1", "customer-2"));
    let unknown_action = v1::AuthorizeRequest { action: "order.steal".into(), ..base.clone() };
    let unknown_agent = v1::AuthorizeRequest { delegation: asserted("nobody", "rep-1", "enrichment"), ..base.clone() };
    let unknown_rep =
        v1::AuthorizeRequest { delegation: asserted("support-bot", "nobody", "enrichment"), ..base.clone() };
    let missing_field = v1::AuthorizeRequest {
        delegation: asserted("support-bot", "rep-1", "intake"),
        action: "field.read".into(),
        resource: Some(v1::Resource {
            r#ref: Some(v1::EntityReference { r#type: "Field".into(), id: "nope".into() }),
            ..Default::default()
        }),
        ..base.clone()
    };
    let forbidden_field = v1::AuthorizeRequest {
        resource: Some(v1::Resource {
            r#ref: Some(v1::EntityReference { r#type: "Field".into(), id: "card_number".into() }),
            ..Default::default()
        }),
        ..missing_field.clone()
    };
    let forbidden = v1::AuthorizeRequest { delegation: asserted("trainee-bot", "rep-1", "action"), ..refund_request() };
    let mut seen = vec![];
    for request in [
        foreign_case,
        missing_tenant,
        foreign_order,
        other_customer,
        unknown_action,
        unknown_agent,
        unknown_rep,
        missing_field,
        forbidden_field,
        forbidden,
    ] {
        let mut response = client.authorize(request).await.unwrap().into_inner();
        response.evaluation_id.clear();
        response.evaluated_at = None;
        response.valid_until = None;
        response.call_digest.clear();
        response.audit.as_mut().unwrap().index = 0;
        without_hint(&mut response.warnings);
        assert_eq!(response.decision(), v1::Decision::Deny);
        seen.push(response);
    }
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{seen:#?}");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_tokens_of_any_kind_are_refused() {
    let app = App::start().await;
    let mut client = app.decisions().await;
    let approval =
        v1::AuthorizeRequest { approval_token: "x.y.z".into(), operation_id: "op-1".into(), ..refund_request() };
    let response = client.authorize(approval.clone()).await.unwrap().into_inner();
    assert_eq!((response.decision(), response.reason()), (v1::Decision::Deny, v1::Reason::ApprovalUnverifiable));
    let release =
        v1::AuthorizeRequest { release_token: "x.y.z".into(), operation_id: "op-1".into(), ..refund_request() };
    assert_eq!(client.authorize(release).await.unwrap().into_inner().decision(), v1::Decision::Deny);
    // The tenant gate comes before the token, so a token can't be used to probe other tenants.
    let foreign = v1::AuthorizeRequest {
        case: approval.case.clone().map(|case| v1::Case { tenant: "globex".into(), ..case }),
        ..approval
    };
    assert_eq!(client.authorize(foreign).await.unwrap().into_inner().reason(), v1::Reason::NotPermitted);
    let credential = Some(v1::Delegation {
        credential: Some(v1::delegation::Credential::Token("x.y.z".into())),
        ..Default::default()
    });
    let error = client.authorize(v1::AuthorizeRequest { delegation: credential, ..order_check() }).await.unwrap_err();
    assert_eq!(error.code(), Code::Unauthenticated);
    let refusals: Vec<_> = lines(&app.data).into_iter().filter(|line| line["type"] == "refusal").collect();
    assert_eq!((refusals.len(), refusals[0]["kind"].as_str()), (1, Some("unauthenticated")));
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_never_permits() {
    let app = App::start().await;
    let response = app
        .decisions()
        .await
        .authorize(v1::AuthorizeRequest { dry_run: true, ..order_check() })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (response.decision(), response.hypothetical(), response.mode()),
        (v1::Decision::Deny, v1::Decision::Allow, v1::Mode::DryRun)
    );
    let line = lines(&app.data).pop().unwrap();
    assert_eq!((line["decision"].as_str(), line["hypothetical"].as_str()), (Some("deny"), Some("allow")));
    app.stop().await;
}

/// In development mode, and only there, the answer says what denied the call.
#[tokio::test(flavor = "multi_thread")]
async fn a_development_server_says_what_denied_a_call() {
    let development = App::start().await;
    let mut client = development.decisions().await;
    let unknown = v1::AuthorizeRequest { action: "order.chek".into(), ..order_check() };
    let trainee = v1::AuthorizeRequest { delegation: asserted("trainee-bot", "rep-1", "action"), ..refund_request() };
    let foreign = v1::AuthorizeRequest {
        case: order_check().case.map(|case| v1::Case { tenant: "globex".into(), ..case }),
        ..order_check()
    };
    for (call, hint) in [
        (&unknown, "development: the bundle has no such action: did you mean `order.check`?"),
        (&trainee, "development: agent.restricted-reads-only forbids it to the agent"),
        (&foreign, "development: the gate `tenant` denied the call"),
    ] {
        let denied = client.authorize(call.clone()).await.unwrap().into_inner();
        assert_eq!(denied.reason(), v1::Reason::NotPermitted, "{hint}");
        assert!(denied.warnings.iter().any(|warning| warning.starts_with(hint)), "{hint}: {:?}", denied.warnings);
    }
    let allowed = client.authorize(order_check()).await.unwrap().into_inner();
    assert!(!allowed.warnings.iter().any(|warning| warning.starts_with("development:")), "{:?}", allowed.warnings);
    assert!(!lines(&development.data).iter().any(|line| line.to_string().contains("development: ")));
    development.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_names_the_policies_of_each_link_and_never_permits() {
    let app = App::start().await;
    let mut client = app.operations().await;
    let explain = |request| v1::ExplainDecisionRequest { request: Some(request) };
    let wrong_step = v1::AuthorizeRequest { delegation: asserted("support-bot", "rep-1", "intake"), ..order_check() };
    let found = client.explain_decision(explain(wrong_step)).await.unwrap().into_inner();
    assert_eq!(found.response.as_ref().unwrap().mode(), v1::Mode::DryRun);
    assert_eq!(found.links.len(), 3);
    for link in &found.links {
        assert_eq!(link.decision(), v1::Decision::Deny);
        assert_eq!((link.determining[0].id.as_str(), link.determining[0].effect.as_str()), ("step.intake", "forbid"));
        assert_eq!(link.determining[0].location, "steps.cedar:3");
    }
    assert_eq!(found.links[1].principal.as_ref().unwrap().id, "support-bot");
    let allowed = client.explain_decision(explain(order_check())).await.unwrap().into_inner();
    let response = allowed.response.unwrap();
    assert_eq!((response.decision(), response.hypothetical()), (v1::Decision::Deny, v1::Decision::Allow));
    let foreign = v1::AuthorizeRequest {
        case: order_check().case.map(|case| v1::Case { tenant: "globex".into(), ..case }),
        ..order_check()
    };
    let gate = client.explain_decision(explain(foreign)).await.unwrap().into_inner();
    assert_eq!((gate.gate.as_str(), gate.links.len()), ("tenant", 0));
    assert_eq!(
        client.explain_decision(v1::ExplainDecisionRequest { request: None }).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    app.stop().await;
}

/// Threat 20: a response consists of constant texts, without a policy id, an attribute or an error text.
#[tokio::test(flavor = "multi_thread")]
async fn responses_contain_no_policy_ids() {
    let app = App::start().await;
    let mut client = app.decisions().await;
    let ids: Vec<String> = app.pdp.moment().snapshot.bundle.policies.rules().into_keys().map(str::to_owned).collect();
    let trainee = v1::AuthorizeRequest { delegation: asserted("trainee-bot", "rep-1", "action"), ..refund_request() };
    let wrong_step =
        v1::AuthorizeRequest { delegation: asserted("support-bot", "rep-1", "intake"), ..refund_request() };
    for request in [order_check(), refund_request(), trainee, wrong_step] {
        let mut response = client.authorize(request).await.unwrap().into_inner();
        without_hint(&mut response.warnings);
        let text = format!("{response:?}");
        let leaked: Vec<&String> = ids.iter().filter(|id| text.contains(id.as_str())).collect();
        assert!(leaked.is_empty(), "{leaked:?} in {text}");
    }
    app.stop().await;
}

/// Threat 15: a `forbid` that errors must not fail open.
#[tokio::test(flavor = "multi_thread")]
async fn a_policy_evaluation_error_denies_with_policy_error() {
    let folder = crate::harness::temp();
    crate::harness::copy(&crate::harness::policies(), folder.path());
    let overflow = "@id(\"overflow\") forbid (principal, action == Action::\"refund.create_request\", resource) \
                    when { context.args.amount_minor * 9223372036854775807 > 0 };";
    std::fs::write(folder.path().join("overflow.cedar"), overflow).unwrap();
    let bundle = folder.path().to_owned();
    let app = App::start_with(move |config, _| config.bundle.path = bundle).await;
    let response = app.decisions().await.authorize(refund_request()).await.unwrap().into_inner();
    assert_eq!((response.decision(), response.reason()), (v1::Decision::Deny, v1::Reason::PolicyError));
    let line = lines(&app.data).pop().unwrap();
    assert_eq!(line["links"][1]["errors"]["items"][0], "overflow: overflow");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_readiness_and_reflection_answer() {
    let app = App::start().await;
    for service in ["", "countersign.v1.DecisionService", "countersign.v1.AdminService"] {
        let target = countersign::api::client::Target { server: format!("http://{}", app.grpc), ..Default::default() };
        assert!(countersign::api::client::healthy(&target, service).await.unwrap(), "{service}");
    }
    assert_eq!(get(app.admin, "/livez").await, (200, "ok\n".into()));
    assert_eq!(get(app.admin, "/readyz").await, (200, "ok\n".into()));
    let status = app.operations().await.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
    assert!(status.ready && status.not_ready.is_empty());
    assert_eq!(status.bundle.unwrap().policies, 141);
    assert_eq!(status.audit.unwrap().mode, "strict");
    assert_eq!(status.warnings, ["development_mode"]);
    app.pdp.drain();
    assert_eq!(get(app.admin, "/readyz").await, (503, "draining\n".into()));
    app.stop().await;
}

/// The step gate is in code, so a bundle without its step policies still denies.
#[tokio::test(flavor = "multi_thread")]
async fn the_step_gate_denies_without_step_policies_in_the_bundle() {
    let folder = crate::harness::temp();
    crate::harness::copy(&crate::harness::policies(), folder.path());
    std::fs::remove_file(folder.path().join("steps.cedar")).unwrap();
    let bundle = folder.path().to_owned();
    let app = App::start_with(move |config, _| config.bundle.path = bundle).await;
    let mut client = app.decisions().await;
    for step in ["intake", "drafting", "verification", "action"] {
        let request = v1::AuthorizeRequest { delegation: asserted("support-bot", "rep-1", step), ..order_check() };
        let response = client.authorize(request).await.unwrap().into_inner();
        assert_eq!(
            (response.decision(), response.reason()),
            (v1::Decision::Deny, v1::Reason::StepNotAllowed),
            "{step}"
        );
    }
    assert_eq!(lines(&app.data).pop().unwrap()["gate"], "step");
    assert_eq!(client.authorize(order_check()).await.unwrap().into_inner().decision(), v1::Decision::Allow);
    app.stop().await;
}

/// The audit line of a call with invalid input names its chain, case and resource, and the attempt adds to
/// the risk as a denial does, also after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_call_is_recorded_with_chain_and_case_and_counts_as_a_denial() {
    let folder = crate::harness::temp();
    let data = folder.path().join("data");
    let app = App::start_in(&data, |_, _| {}).await;
    let mut client = app.decisions().await;
    let update = v1::AuthorizeRequest {
        action: "ticket.update".into(),
        resource: Some(v1::Resource {
            r#ref: Some(v1::EntityReference { r#type: "Case".into(), id: "case-1".into() }),
            ..Default::default()
        }),
        arguments_json: r#"{"status":"solved","refund_issued":true}"#.into(),
        conversation_id: "conversation-7".into(),
        ..refund_request()
    };
    for _ in 0..12 {
        assert_eq!(client.authorize(update.clone()).await.unwrap_err().code(), Code::InvalidArgument);
    }
    let refusal = lines(&data).into_iter().rfind(|line| line["type"] == "refusal").unwrap();
    assert_eq!((&refusal["chain"]["agent"], &refusal["chain"]["step"]), (&"support-bot".into(), &"action".into()));
    assert_eq!((&refusal["case"]["id"], &refusal["case"]["tenant"]), (&"case-1".into(), &"acme".into()));
    assert_eq!((&refusal["action"], &refusal["resource"]["id"]), (&"ticket.update".into(), &"case-1".into()));
    assert_eq!(refusal["correlation"]["conversation"], "conversation-7");
    assert_eq!(refusal["field"], "arguments_json");
    let factors = async |client: &mut DecisionServiceClient<tonic::transport::Channel>| {
        client.authorize(order_check()).await.unwrap();
        lines(&data).into_iter().rfind(|line| line["type"] == "decision").unwrap()["signals"]["risk"]["factors"]
            .to_string()
    };
    assert!(factors(&mut client).await.contains("denials:40"));
    app.stop().await;
    let app = App::start_in(&data, |_, _| {}).await;
    assert!(factors(&mut app.decisions().await).await.contains("denials:40"));
    app.stop().await;
}
