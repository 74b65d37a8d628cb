//! The life of an approval on both stores: who requests it, who reviews it, and exactly which call it covers.

use countersign::api::v1;
use countersign::approvals::binding;
use countersign::jose::keyring::{Keyring, Purpose};
use countersign::model::approval::{Binding, BoundCall, Giver};
use countersign::model::time::Timestamp;
use serde_json::{Value, json};
use tonic::Code;

use crate::harness::people::{
    Desk, Issuer, bearer, credit, delegation_claims, justification, merged, seconds, token, with_token,
};
use crate::harness::postgres::Postgres;
use crate::harness::within;
use crate::harness::{App, Hands, asserted, lines, order_check, refund_request, temp};

/// Runs a test's body on an app over SQLite, then over PostgreSQL.
macro_rules! on_both_engines {
    ($app:ident, $body:block) => {{
        let postgres = Postgres::database();
        for url in [None, Some(postgres.url())] {
            let $app = App::start_with(|config, _| config.store.url = url.clone()).await;
            $body
            $app.stop().await;
        }
    }};
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denial_is_requested_reviewed_fetched_and_used_once_and_each_step_is_recorded() {
    on_both_engines!(app, {
        let issuer = Issuer::of(&app.data);
        let mut desk = Desk::new(app.channel().await);
        let call = credit(400);
        let denied = desk.ask(&call).await;
        assert_eq!((denied.reason(), denied.next_action()), (v1::Reason::ApprovalRequired, v1::NextAction::Request));
        let (approval, token) = desk.approved(&call, &issuer).await;
        let allowed = desk.ask(&with_token(&call, &token, "op-1")).await;
        assert_eq!((allowed.decision(), allowed.repeated), (v1::Decision::Allow, false));
        let used = allowed.approval.clone().unwrap();
        assert_eq!((used.id.as_str(), used.approvers.as_slice()), (approval.id.as_str(), &["lead-1".to_owned()][..]));
        // A retry of the same operation gets the same answer; another operation is denied.
        let again = desk.ask(&with_token(&call, &token, "op-1")).await;
        assert!(again.repeated);
        assert_eq!(
            (&again.evaluation_id, &again.audit, again.decision()),
            (&allowed.evaluation_id, &allowed.audit, v1::Decision::Allow)
        );
        assert_eq!((&again.approval, &again.outcome_token), (&allowed.approval, &allowed.outcome_token));
        let other = desk.ask(&with_token(&call, &token, "op-2")).await;
        assert_eq!(
            (other.decision(), other.reason(), other.next_action()),
            (v1::Decision::Deny, v1::Reason::ApprovalUsed, v1::NextAction::None)
        );
        assert_eq!(desk.fetch(&approval.id).await.unwrap(), "");

        let lines = lines(&app.data);
        let of = |kind: &str| lines.iter().filter(|line| line["type"] == kind).collect::<Vec<_>>();
        let (requested, reviewed, issued) =
            (of("approval.requested"), of("approval.reviewed"), of("approval.token_issued"));
        assert_eq!((requested.len(), reviewed.len(), issued.len(), of("operation.repeated").len()), (1, 1, 1, 1));
        assert_eq!(
            (&requested[0]["by"]["tool_service"], &requested[0]["state"]),
            (&json!("support-tools"), &json!("pending"))
        );
        assert_eq!(
            (&reviewed[0]["by"]["human"], &reviewed[0]["state"], &reviewed[0]["decision"]),
            (&json!("lead-1"), &json!("approved"), &json!("approve"))
        );
        let allows: Vec<_> =
            lines.iter().filter(|line| line["type"] == "decision" && line["decision"] == "allow").collect();
        assert_eq!(allows.len(), 1, "one record of the consumption");
        assert_eq!(allows[0]["approval"]["approvers"], json!(["lead-1"]));
        assert_eq!(allows[0]["seq"].as_u64(), allowed.audit.map(|audit| audit.index));
        assert_eq!(allows[0]["approval"]["operation"], "op-1");
        // The justification, the reviewer's reason and the token appear nowhere in clear.
        let text = serde_json::to_string(&lines).unwrap();
        assert!(!text.contains("asks for a credit") && !text.contains("because") && !text.contains(&token), "{text}");
        crate::harness::verify(&app.data.join("audit")).unwrap();
    });
}

/// Threat 9: the supervisor, the agent, services, unknown humans and bearers of invalid tokens try to review.
#[tokio::test(flavor = "multi_thread")]
async fn only_another_authorized_human_of_the_tenant_can_review() {
    on_both_engines!(app, {
        let issuer = Issuer::of(&app.data);
        let mut desk = Desk::new(app.channel().await);
        // The supervisor is an approver, so that it is not her role that stops her.
        let call = v1::AuthorizeRequest { delegation: token(issuer.delegation("refund-bot", "lead-1")), ..credit(400) };
        let approval = desk.request(&call).await.unwrap();
        let human = |id: &str, more| issuer.human_with(id, more);
        let rows = [
            ("the supervisor herself", human("lead-1", json!({})), Code::PermissionDenied),
            (
                "another subject of the supervisor's person",
                human("lead-2", json!({"person": "person-lead-1"})),
                Code::PermissionDenied,
            ),
            ("a token without `person`", human("lead-2", json!({"person": null})), Code::PermissionDenied),
            ("a rep who approves nothing", human("rep-1", json!({})), Code::PermissionDenied),
            ("an approver under the limit", human("junior-lead", json!({})), Code::PermissionDenied),
            ("an approver of another tenant", human("globex-lead", json!({})), Code::NotFound),
            ("an unknown human", human("nobody", json!({})), Code::Unauthenticated),
            (
                "an agent by its own name",
                human("refund-bot", json!({"sub_profile": "ai_agent"})),
                Code::Unauthenticated,
            ),
            ("a service", human("lead-2", json!({"sub_profile": "service"})), Code::Unauthenticated),
            ("an agent in a human's name", issuer.delegation("refund-bot", "lead-2"), Code::Unauthenticated),
            (
                "an expired token",
                human("lead-2", json!({"exp": seconds() - 31, "iat": seconds() - 900, "nbf": seconds() - 900})),
                Code::Unauthenticated,
            ),
            ("a token that is not valid yet", human("lead-2", json!({"nbf": seconds() + 60})), Code::Unauthenticated),
            (
                "a token for another server",
                human("lead-2", json!({"aud": "countersign:staging"})),
                Code::Unauthenticated,
            ),
            (
                "a token that lives for a day",
                human("lead-2", json!({"exp": seconds() + 86_400})),
                Code::Unauthenticated,
            ),
        ];
        for (who, token, expected) in rows {
            let refused = desk.review(&approval, true, &token).await.unwrap_err();
            assert_eq!(refused.code(), expected, "{who}: {refused:?}");
        }
        // If the supervisor's token names no person, no reviewer can be shown to be somebody else.
        let faceless = token(issuer.delegation_with("refund-bot", "rep-2", json!({"person": null})));
        let faceless = desk.request(&v1::AuthorizeRequest { delegation: faceless, ..credit(399) }).await.unwrap();
        assert_eq!(
            desk.review(&faceless, true, &issuer.human("lead-2")).await.unwrap_err().code(),
            Code::PermissionDenied
        );
        // The tool service itself sends the review, without a human's token.
        let request = v1::ReviewApprovalRequest {
            id: approval.id.clone(),
            decision: v1::ReviewDecision::Approve.into(),
            ..Default::default()
        };
        assert_eq!(desk.approvals.review_approval(request).await.unwrap_err().code(), Code::PermissionDenied);
        // A review must carry the digest of the view that was shown.
        let unseen = v1::Approval { display_digest: vec![0; 32].into(), ..approval.clone() };
        assert_eq!(
            desk.review(&unseen, true, &issuer.human("lead-2")).await.unwrap_err().code(),
            Code::FailedPrecondition
        );
        let still = desk
            .approvals
            .get_approval(bearer(v1::GetApprovalRequest { id: approval.id.clone() }, &issuer.human("rep-1")))
            .await
            .unwrap();
        assert_eq!(still.into_inner().approval.unwrap().state(), v1::ApprovalState::Pending);
        let approved = desk.review(&approval, true, &issuer.human("lead-2")).await.unwrap();
        assert_eq!((approved.state(), approved.approvers), (v1::ApprovalState::Approved, vec!["lead-2".to_owned()]));
        // Only the tool service gets the token, and a second review is refused.
        for human in ["lead-1", "lead-2", "rep-1"] {
            let read = bearer(v1::GetApprovalRequest { id: approval.id.clone() }, &issuer.human(human));
            assert_eq!(desk.approvals.get_approval(read).await.unwrap().into_inner().token, "", "{human}");
        }
        assert_eq!(
            desk.review(&approval, false, &issuer.human("lead-2")).await.unwrap_err().code(),
            Code::FailedPrecondition
        );
    });
}

/// Returns a desk after an identity check and a fraud review, and builds refunds of a payment of 90,000.
async fn refunding(app: &App) -> (Desk, impl Fn(i64) -> v1::AuthorizeRequest) {
    let mut desk = Desk::new(app.channel().await);
    let case = crate::harness::CASE.replace(r#""refund_status":"none""#, r#""refund_status":"requested""#);
    let order = crate::harness::ORDER.replace("9000", "90000");
    let case = v1::Case { attributes_json: case.into(), ..refund_request().case.unwrap() };
    for (action, kind) in [("verification.run", r#"{"fact":"delivery_postcode"}"#), ("verification.fraud_review", "")] {
        let verification = v1::AuthorizeRequest {
            delegation: asserted("support-bot", "rep-1", "verification"),
            action: action.into(),
            resource: Some(v1::Resource {
                r#ref: Some(v1::EntityReference { r#type: "Case".into(), id: "case-1".into() }),
                ..Default::default()
            }),
            arguments_json: kind.into(),
            ..order_check()
        };
        let allowed = desk.ask(&verification).await;
        report(&mut desk, &allowed, v1::OutcomeStatus::Succeeded).await.unwrap();
    }
    let refund = move |amount: i64| v1::AuthorizeRequest {
        delegation: asserted("refund-bot", "rep-1", "action"),
        action: "refund.issue".into(),
        arguments_json: format!(r#"{{"amount_minor":{amount},"currency":"EUR"}}"#).into(),
        case: Some(case.clone()),
        resource: refund_request()
            .resource
            .map(|resource| v1::Resource { attributes_json: order.clone().into(), ..resource }),
        ..refund_request()
    };
    (desk, refund)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refund_requires_strong_authentication_and_a_split_refund_two_reviewers() {
    on_both_engines!(app, {
        let issuer = Issuer::of(&app.data);
        let (mut desk, refund) = refunding(&app).await;
        let small = desk.request(&refund(2500)).await.unwrap();
        let weak = issuer.human_with("lead-1", json!({"amr": ["pwd"]}));
        assert_eq!(desk.review(&small, true, &weak).await.unwrap_err().code(), Code::PermissionDenied);
        assert_eq!(
            desk.review(&small, true, &issuer.human("lead-1")).await.unwrap().state(),
            v1::ApprovalState::Approved
        );

        // Splitting a refund does not lower the quorum: the third piece exceeds what one reviewer may
        // approve, although the order system reports each time that nothing was refunded.
        for (piece, approvers) in
            [("one", vec!["lead-1"]), ("two", vec!["lead-1"]), ("three", vec!["lead-1", "lead-2"])]
        {
            let asked = v1::AuthorizeRequest { request_id: piece.into(), ..refund(19_000) };
            let requested = desk.request(&asked).await.unwrap();
            assert_eq!(requested.quorum as usize, approvers.len(), "{piece}");
            for approver in approvers {
                desk.review(&requested, true, &issuer.human(approver)).await.unwrap();
            }
            let token = desk.fetch(&requested.id).await.unwrap();
            let answer = desk.ask(&with_token(&asked, &token, &format!("op-{piece}"))).await;
            assert_eq!(answer.decision(), v1::Decision::Allow, "{piece}: {answer:?}");
        }
        // The rest of the payment bounds the next refund, whatever the order system reports.
        let more = desk.ask(&refund(34_000)).await;
        assert_eq!((more.decision(), more.reason()), (v1::Decision::Deny, v1::Reason::RateLimited));
    });
}

/// A large refund needs two persons; one person with two subjects counts once.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_refund_needs_two_reviewers() {
    on_both_engines!(app, {
        let issuer = Issuer::of(&app.data);
        let (mut desk, refund) = refunding(&app).await;
        let large = desk.request(&refund(60_000)).await.unwrap();
        assert_eq!(large.quorum, 2);
        assert_eq!(
            desk.review(&large, true, &issuer.human("lead-1")).await.unwrap().state(),
            v1::ApprovalState::Pending
        );
        assert_eq!(desk.fetch(&large.id).await.unwrap(), "");
        let twice = issuer.human_with("lead-2", json!({"person": "person-lead-1"}));
        assert_eq!(
            desk.review(&large, true, &twice).await.unwrap_err().code(),
            Code::FailedPrecondition,
            "one person counts once"
        );
        assert_eq!(
            desk.review(&large, true, &issuer.human("lead-2")).await.unwrap().state(),
            v1::ApprovalState::Approved
        );
        let token = desk.fetch(&large.id).await.unwrap();
        assert_eq!(desk.ask(&with_token(&refund(60_000), &token, "op-1")).await.decision(), v1::Decision::Allow);
    });
}

async fn report(
    desk: &mut Desk,
    allowed: &v1::AuthorizeResponse,
    status: v1::OutcomeStatus,
) -> Result<v1::ReportOutcomeResponse, tonic::Status> {
    let request = v1::ReportOutcomeRequest {
        evaluation_id: allowed.evaluation_id.clone(),
        status: status.into(),
        outcome_token: allowed.outcome_token.clone(),
        ..Default::default()
    };
    Ok(desk.decisions.report_outcome(request).await?.into_inner())
}

/// Threats 4, 6 and 7: an approval of one call covers no other call.
#[tokio::test(flavor = "multi_thread")]
async fn an_approval_is_refused_for_any_other_call() {
    on_both_engines!(app, {
        let issuer = Issuer::of(&app.data);
        let mut desk = Desk::new(app.channel().await);
        let delegated = |agent: &str, supervisor: &str, more| token(issuer.delegation_with(agent, supervisor, more));
        let call = v1::AuthorizeRequest { delegation: delegated("refund-bot", "rep-1", json!({})), ..credit(400) };
        let (_, approved) = desk.approved(&call, &issuer).await;
        let arguments = |text: &str| v1::AuthorizeRequest { arguments_json: text.to_owned().into(), ..call.clone() };
        let account = |id: &str, version: &str| v1::AuthorizeRequest {
            resource: call.resource.clone().map(|resource| v1::Resource {
                r#ref: Some(v1::EntityReference { r#type: "Account".into(), id: id.into() }),
                version: version.into(),
                ..resource
            }),
            ..call.clone()
        };
        let case = |id: &str, version: &str| v1::AuthorizeRequest {
            case: call.case.clone().map(|case| v1::Case { id: id.into(), version: version.into(), ..case }),
            delegation: delegated("refund-bot", "rep-1", json!({"case": id})),
            ..call.clone()
        };
        let out = v1::Reason::ApprovalOutOfScope;
        let rows = [
            ("one cent more", arguments(r#"{"amount_minor":401,"currency":"EUR"}"#), out),
            (
                "another currency",
                v1::AuthorizeRequest {
                    case: call.case.clone().map(|case| v1::Case {
                        attributes_json: crate::harness::CASE.replace("EUR", "USD").into(),
                        ..case
                    }),
                    ..arguments(r#"{"amount_minor":400,"currency":"USD"}"#)
                },
                out,
            ),
            ("another resource of the same case", account("account-2", ""), out),
            ("another version of the resource", account("account-1", "2"), out),
            ("another case", case("case-2", "3"), out),
            ("a later version of the case", case("case-1", "4"), v1::Reason::CaseChanged),
            (
                "another supervisor",
                v1::AuthorizeRequest { delegation: delegated("refund-bot", "lead-2", json!({})), ..call.clone() },
                out,
            ),
            (
                "the same subject of another issuer",
                v1::AuthorizeRequest { delegation: asserted("refund-bot", "rep-1", "action"), ..call.clone() },
                out,
            ),
            (
                "another step",
                v1::AuthorizeRequest {
                    delegation: delegated("refund-bot", "rep-1", json!({"step": "drafting"})),
                    ..call.clone()
                },
                out,
            ),
            (
                "another action of the same resource",
                v1::AuthorizeRequest { action: "billing.change_plan".into(), ..arguments(r#"{"plan":"plus"}"#) },
                out,
            ),
            (
                "another agent",
                v1::AuthorizeRequest { delegation: delegated("support-bot", "rep-1", json!({})), ..call.clone() },
                out,
            ),
            (
                "a foreign tenant",
                v1::AuthorizeRequest {
                    case: call.case.clone().map(|case| v1::Case { tenant: "globex".into(), ..case }),
                    ..call.clone()
                },
                v1::Reason::NotPermitted,
            ),
        ];
        for (index, (what, call, reason)) in rows.into_iter().enumerate() {
            let answer = desk.ask(&with_token(&call, &approved, &format!("op-{index}"))).await;
            assert_eq!((answer.decision(), answer.reason()), (v1::Decision::Deny, reason), "{what}");
        }
        // Arguments that two parsers could read differently are refused, or out of the approval's scope.
        for text in [
            r#"{"amount_minor":400,"amount_minor":400,"currency":"EUR"}"#,
            r#"{"amount_minor":9007199254740993,"currency":"EUR"}"#,
            r#"{"amount_minor":400.0,"currency":"EUR"}"#,
            r#"{"amount_minor":"400","currency":"EUR"}"#,
            r#"{"amount_minor":null,"currency":"EUR"}"#,
            r#"{"currency":"EUR"}"#,
        ] {
            match desk.decisions.authorize(with_token(&arguments(text), &approved, "op-x")).await {
                Ok(answer) => assert_eq!(answer.into_inner().reason(), out, "{text}"),
                Err(refused) => assert_eq!(refused.code(), Code::InvalidArgument, "{text}"),
            }
        }
        // Member order and white space make no difference, and an amount below the approved one is covered.
        let less = arguments(r#" {"currency": "EUR", "amount_minor": 399} "#);
        assert_eq!(desk.ask(&with_token(&less, &approved, "op-1")).await.decision(), v1::Decision::Allow);
        // The same operation id with another amount is refused, even within the approved bound.
        let answer =
            desk.ask(&with_token(&arguments(r#"{"amount_minor":398,"currency":"EUR"}"#), &approved, "op-1")).await;
        assert_eq!((answer.decision(), answer.reason()), (v1::Decision::Deny, out));
    });
}

/// Builds the response of EvaluateOutput to a draft of this digest that a human may release.
fn asked_for_reply(app: &App, draft_digest: &str) -> v1::AuthorizeResponse {
    asked_for_reply_by(&app.data.join("keys"), draft_digest)
}

fn asked_for_reply_by(keys: &std::path::Path, draft_digest: &str) -> v1::AuthorizeResponse {
    let attributes: Value = serde_json::from_str(crate::harness::CASE).unwrap();
    let call: BoundCall = serde_json::from_value(json!({
        "v": "countersign.call/2", "environment": "development", "tenant": "acme", "case": "case-1", "case_version": "3",
        "step": "action", "supervisor": {"iss": "", "sub": "rep-1"}, "agent": {"iss": "", "sub": "refund-bot"},
        "audience": "support-tools", "action": "reply.send", "resource_type": "Case", "resource_id": "case-1", "resource_version": "",
        "exact": {"channel": "email", "recipient": "customer-1", "draft_digest": draft_digest}, "at_most": {}, "case_attributes": attributes,
    }))
    .unwrap();
    let binding = Binding {
        evaluation_id: "evaluation-1".into(),
        template: "reply".into(),
        giver: Giver::Reviewers,
        quorum: 1,
        requires: vec!["approval:reply".into()],
        policy: String::new(),
        supervisor_person: None,
        customer: "customer-1".into(),
        conversation: String::new(),
        risk: "low, 0 of 100".into(),
        findings: Some(vec!["tone/hard medium 0..4".into()]),
        generation: String::new(),
        consent: None,
        call,
    };
    let keys = Keyring::read(keys, Purpose::Binding).unwrap();
    let binding_token = binding::sign_binding(&keys, binding, Timestamp::from_seconds(seconds())).unwrap();
    let access_request = Some(v1::AccessRequest { binding_token, ..Default::default() });
    v1::AuthorizeResponse { evaluation_id: "evaluation-1".into(), access_request, ..Default::default() }
}

/// Arguments are not Unicode-normalized: composed and decomposed letters are different texts.
#[tokio::test(flavor = "multi_thread")]
async fn arguments_are_not_unicode_normalized() {
    on_both_engines!(app, {
        let issuer = Issuer::of(&app.data);
        let mut desk = Desk::new(app.channel().await);
        let reply = |digest: &str| v1::AuthorizeRequest {
            action: "reply.send".into(),
            resource: Some(v1::Resource {
                r#ref: Some(v1::EntityReference { r#type: "Case".into(), id: "case-1".into() }),
                ..Default::default()
            }),
            arguments_json: json!({"channel": "email", "recipient": "customer-1", "draft_digest": digest})
                .to_string()
                .into(),
            ..credit(1)
        };
        let approval = desk.request_of(asked_for_reply(&app, "caf\u{e9}")).await.unwrap();
        desk.review(&approval, true, &issuer.human("lead-1")).await.unwrap();
        let token = desk.fetch(&approval.id).await.unwrap();
        for other in ["cafe\u{301}", "CAF\u{c9}", "caf\u{e9} ", "cafe"] {
            let answer = desk.ask(&with_token(&reply(other), &token, "op-1")).await;
            assert_eq!(
                (answer.decision(), answer.reason()),
                (v1::Decision::Deny, v1::Reason::ApprovalOutOfScope),
                "{other}"
            );
        }
        assert_eq!(desk.ask(&with_token(&reply("caf\u{e9}"), &token, "op-1")).await.decision(), v1::Decision::Allow);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_can_be_denied_with_a_suggestion_or_withdrawn_or_revoked_and_expires() {
    let postgres = Postgres::database();
    for url in [None, Some(postgres.url())] {
        let hands = Hands::now();
        let app = App::start_with(|config, seams| {
            config.store.url = url.clone();
            seams.clock = Box::new(hands.clone());
        })
        .await;
        let issuer = Issuer::of(&app.data);
        let mut desk = Desk::new(app.channel().await);
        // Requesting the same call twice leaves one pending request.
        let first = desk.request(&credit(400)).await.unwrap();
        assert_eq!(desk.request(&credit(400)).await.unwrap().id, first.id);
        // A reviewer edits a call by denying it with suggested arguments, which must be valid for the action.
        let edited = |arguments: &str| v1::ReviewApprovalRequest {
            id: first.id.clone(),
            decision: v1::ReviewDecision::Deny.into(),
            reason: "too much\u{202e}".into(),
            suggested_arguments_json: arguments.to_owned().into(),
            display_digest: first.display_digest.clone(),
        };
        let lead = || issuer.human("lead-1");
        for wrong in [r#"{"amount_minor":"1","currency":"EUR"}"#, r#"{"plan":"plus"}"#, "{"] {
            let refused = desk.approvals.review_approval(bearer(edited(wrong), &lead())).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{wrong}");
        }
        let denied = desk
            .approvals
            .review_approval(bearer(edited(r#"{"amount_minor":200,"currency":"EUR"}"#), &lead()))
            .await
            .unwrap();
        let denied = denied.into_inner().approval.unwrap();
        assert_eq!((denied.state(), denied.denial_reason.as_str()), (v1::ApprovalState::Denied, "too much\\u{202e}"));
        assert_eq!(&denied.suggested_arguments_json[..], br#"{"amount_minor":200,"currency":"EUR"}"#);
        // The same call can't be requested again at once; another one can.
        assert_eq!(desk.request(&credit(400)).await.unwrap_err().code(), Code::FailedPrecondition);
        let second = desk.request(&credit(200)).await.unwrap();
        // The tool service withdraws its own request.
        let withdraw = v1::RevokeApprovalRequest { id: second.id.clone(), reason: "no longer needed".into() };
        let withdrawn = desk.approvals.revoke_approval(withdraw.clone()).await.unwrap().into_inner().approval.unwrap();
        assert_eq!(withdrawn.state(), v1::ApprovalState::Cancelled);
        assert_eq!(desk.approvals.revoke_approval(withdraw).await.unwrap_err().code(), Code::FailedPrecondition);
        assert_eq!(desk.review(&second, true, &lead()).await.unwrap_err().code(), Code::FailedPrecondition);
        // An approval that was granted is revoked: a rep may not do that, an approver may.
        let (third, token) = desk.approved(&credit(100), &issuer).await;
        let revoke = v1::RevokeApprovalRequest { id: third.id.clone(), reason: "mistake".into() };
        let refused = desk.approvals.revoke_approval(bearer(revoke.clone(), &issuer.human("rep-2"))).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        desk.approvals.revoke_approval(bearer(revoke, &lead())).await.unwrap();
        assert_eq!(desk.ask(&with_token(&credit(100), &token, "op-1")).await.reason(), v1::Reason::ApprovalRevoked);
        // A token is valid for two minutes, and no longer than its approval.
        let (fourth, token) = desk.approved(&credit(50), &issuer).await;
        hands.forward(126);
        app.pdp.refresh().await;
        let late = desk.ask(&with_token(&credit(50), &token, "op-1")).await;
        assert_eq!((late.reason(), late.next_action()), (v1::Reason::ApprovalExpired, v1::NextAction::Retry));
        let token = desk.fetch(&fourth.id).await.unwrap();
        hands.forward(15 * 60);
        app.pdp.refresh().await;
        assert_eq!(desk.fetch(&fourth.id).await.unwrap(), "", "the approval has expired");
        assert_eq!(desk.ask(&with_token(&credit(50), &token, "op-1")).await.reason(), v1::Reason::ApprovalRequired);
        // A request that no one reviews in time expires.
        let fifth = desk.request(&credit(25)).await.unwrap();
        hands.forward(240 * 60);
        app.pdp.refresh().await;
        app.pdp.sweep().await;
        let read = v1::GetApprovalRequest { id: fifth.id.clone() };
        assert_eq!(
            desk.approvals.get_approval(read).await.unwrap().into_inner().approval.unwrap().state(),
            v1::ApprovalState::Expired
        );
        let states: Vec<String> = lines(&app.data)
            .iter()
            .filter(|line| line["type"].as_str().unwrap().starts_with("approval."))
            .filter_map(|line| Some(format!("{} {}", line["type"].as_str()?, line["state"].as_str()?)))
            .collect();
        for step in [
            "approval.reviewed denied",
            "approval.ended cancelled",
            "approval.ended revoked",
            "approval.expired expired",
        ] {
            assert!(states.iter().any(|state| state == step), "{step}: {states:?}");
        }
        app.stop().await;
    }
}

/// Threat 10: the reviewer's view is complete and contains no characters that mislead.
#[tokio::test(flavor = "multi_thread")]
async fn the_reviewers_view_is_complete_and_escapes_misleading_characters() {
    let app = App::start().await;
    let mut desk = Desk::new(app.channel().await);
    let hostile = "ok\u{202e}\u{200b}\u{1b}[2K\n<b onclick=x>approval: harmless</b>\u{2028}";
    let long = "x".repeat(30_000);
    let approval = desk.request_of(asked_for_reply(&app, &format!("{hostile}{long}"))).await.unwrap();
    let display = &approval.display;
    assert!(display.contains(&long), "nothing is cut");
    assert!(!display.chars().any(|character| character != '\n' && countersign::model::text::is_unprintable(character)));
    let still = display.replace(&long, "<30,000 x>").replace(&approval.evaluation_id, "<evaluation>");
    let policy = still.lines().find(|line| line.starts_with("policy: ")).unwrap().to_owned();
    insta::assert_snapshot!("reviewers_view", still.replace(&policy, "policy: <digest>"));
    use sha2::Digest;
    assert_eq!(&approval.display_digest[..], &sha2::Sha256::digest(display.as_bytes())[..]);
    app.stop().await;
}

/// Threat 8: requests beyond the limits are refused with a reason, and no accepted request is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_approval_requests_is_capped_and_loses_no_accepted_request() {
    let postgres = Postgres::database();
    for (url, requests) in [(None, 10_000_usize), (Some(postgres.url()), 2_000)] {
        let app = App::start_with(|config, _| config.store.url = url.clone()).await;
        let keys = std::sync::Arc::new(Keyring::read(&app.data.join("keys"), Purpose::Binding).unwrap());
        let desk = Desk::new(app.channel().await);
        let mut tasks = vec![];
        for worker in 0..16 {
            let (mut approvals, keys) = (desk.approvals.clone(), std::sync::Arc::clone(&keys));
            tasks.push(tokio::spawn(async move {
                let (mut taken, mut words) = (vec![], std::collections::BTreeMap::<String, usize>::new());
                for index in (worker..requests).step_by(16) {
                    let binding = flood(index);
                    let request = v1::RequestApprovalRequest {
                        evaluation_id: binding.evaluation_id.clone(),
                        binding_token: binding::sign_binding(&keys, binding, Timestamp::from_seconds(seconds()))
                            .unwrap(),
                        justification: Some(crate::harness::people::justification()),
                        ..Default::default()
                    };
                    match approvals.request_approval(request).await {
                        Ok(response) => taken.push(response.into_inner().approval.unwrap().id),
                        Err(status) => {
                            *words.entry(format!("{:?}: {}", status.code(), status.message())).or_default() += 1
                        }
                    }
                }
                (taken, words)
            }));
        }
        let (mut taken, mut words) = (vec![], std::collections::BTreeMap::<String, usize>::new());
        for task in tasks {
            let (some, more) = task.await.unwrap();
            taken.extend(some);
            more.into_iter().for_each(|(word, count)| *words.entry(word).or_default() += count);
        }
        let refused: usize = words.values().sum();
        assert_eq!(taken.len() + refused, requests, "every request was answered");
        // 100 agents with 50 each would be 5,000. A queue takes 500, half of them from one tool service.
        assert_eq!(taken.len(), 250, "{words:?}");
        assert!(words.keys().all(|word| word.starts_with("ResourceExhausted: the ")), "{words:?}");
        let mut listed = vec![];
        let mut page_token = String::new();
        let mut client = desk.approvals.clone();
        loop {
            let page = v1::ListApprovalsRequest {
                page_size: 200,
                page_token,
                state: v1::ApprovalState::Pending.into(),
                ..Default::default()
            };
            let page = client.list_approvals(page).await.unwrap().into_inner();
            listed.extend(page.approvals.into_iter().map(|approval| approval.id));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        taken.sort();
        listed.sort();
        assert_eq!(taken, listed);
        app.stop().await;
    }
}

/// Returns a distinct binding for each index: three per case, from 100 agents.
fn flood(index: usize) -> Binding {
    let call: BoundCall = serde_json::from_value(json!({
        "v": "countersign.call/2", "environment": "development", "tenant": "acme", "case": format!("case-{}", index / 3), "case_version": "1",
        "step": "action", "supervisor": {"iss": "", "sub": "rep-1"}, "agent": {"iss": "", "sub": format!("bot-{}", index % 100)},
        "audience": "support-tools", "action": "account.credit", "resource_type": "Account", "resource_id": format!("account-{index}"),
        "resource_version": "", "exact": {"currency": "EUR"}, "at_most": {"amount_minor": 1},
    }))
    .unwrap();
    Binding {
        evaluation_id: format!("evaluation-{index}"),
        template: "credit".into(),
        giver: Giver::Reviewers,
        quorum: 1,
        requires: vec!["approval:credit".into()],
        policy: String::new(),
        supervisor_person: None,
        customer: "customer-1".into(),
        conversation: String::new(),
        risk: String::new(),
        findings: None,
        generation: String::new(),
        consent: None,
        call,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_binding_token_is_valid_only_for_the_denied_evaluation_and_its_tool_service() {
    on_both_engines!(app, {
        let mut desk = Desk::new(app.channel().await);
        let denied = desk.ask(&credit(400)).await;
        let token = denied.access_request.clone().unwrap().binding_token;
        // Without a case version a later change could not be detected, so no binding token is issued.
        let case = credit(400).case.map(|case| v1::Case { version: String::new(), ..case });
        let unversioned = desk.ask(&v1::AuthorizeRequest { case, ..credit(400) }).await;
        assert_eq!(unversioned.access_request.unwrap().binding_token, "");
        let keys = Keyring::read(&app.data.join("keys"), Purpose::Approval).unwrap();
        let binding = flood(1);
        let sign = |ring: &Keyring, binding: &Binding, at: i64| {
            binding::sign_binding(ring, binding.clone(), Timestamp::from_seconds(at)).unwrap()
        };
        let own = Keyring::read(&app.data.join("keys"), Purpose::Binding).unwrap();
        let elsewhere =
            Binding { call: BoundCall { audience: "crm-tools".into(), ..binding.call.clone() }, ..binding.clone() };
        let staging =
            Binding { call: BoundCall { environment: "staging".into(), ..binding.call.clone() }, ..binding.clone() };
        let rows = [
            (
                "by another key",
                sign(&keys, &binding, seconds()),
                binding.evaluation_id.as_str(),
                Code::FailedPrecondition,
            ),
            ("over", sign(&own, &binding, seconds() - 906), &binding.evaluation_id, Code::FailedPrecondition),
            (
                "of another environment",
                sign(&own, &staging, seconds()),
                &binding.evaluation_id,
                Code::FailedPrecondition,
            ),
            (
                "of another tool service",
                sign(&own, &elsewhere, seconds()),
                &binding.evaluation_id,
                Code::PermissionDenied,
            ),
            ("of another evaluation", token.clone(), "another", Code::PermissionDenied),
            ("none", String::new(), &denied.evaluation_id, Code::FailedPrecondition),
            ("changed", format!("{token}A"), &denied.evaluation_id, Code::FailedPrecondition),
        ];
        for (what, binding_token, evaluation_id, expected) in rows {
            let justification = Some(crate::harness::people::justification());
            let request = v1::RequestApprovalRequest {
                evaluation_id: evaluation_id.into(),
                binding_token,
                justification,
                ..Default::default()
            };
            assert_eq!(desk.approvals.request_approval(request).await.unwrap_err().code(), expected, "{what}");
        }
        // The justification must have what the template requires, and stay within its bounds.
        let said = crate::harness::people::justification();
        for wrong in [
            None,
            Some(v1::Justification { policy_clause: String::new(), ..said.clone() }),
            Some(v1::Justification { customer_request: String::new(), ..said.clone() }),
            Some(v1::Justification { customer_request: "x".repeat(2001), ..said.clone() }),
            Some(v1::Justification { evidence: vec!["e".into(); 33], ..said.clone() }),
        ] {
            let request = v1::RequestApprovalRequest {
                evaluation_id: denied.evaluation_id.clone(),
                binding_token: token.clone(),
                justification: wrong,
                ..Default::default()
            };
            assert_eq!(desk.approvals.request_approval(request).await.unwrap_err().code(), Code::InvalidArgument);
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_reported_successful_verification_creates_a_check() {
    on_both_engines!(app, {
        let mut desk = Desk::new(app.channel().await);
        let verification = verification("delivery_postcode");
        let change = v1::AuthorizeRequest {
            action: "account.change_email".into(),
            arguments_json: r#"{"new_email":"a@example.com"}"#.into(),
            ..credit(1)
        };
        assert_eq!(desk.ask(&change).await.reason(), v1::Reason::CheckRequired);
        // None of these creates a check: a failure, a forged token, the success of another call.
        let allowed = desk.ask(&verification).await;
        assert_eq!(report(&mut desk, &allowed, v1::OutcomeStatus::Failed).await.unwrap().check, "");
        let read = desk.ask(&order_check()).await;
        assert_eq!(report(&mut desk, &read, v1::OutcomeStatus::Succeeded).await.unwrap().check, "");
        let another = desk.ask(&verification).await;
        let forged = v1::AuthorizeResponse { outcome_token: format!("{}x", allowed.outcome_token), ..another.clone() };
        assert_eq!(
            report(&mut desk, &forged, v1::OutcomeStatus::Succeeded).await.unwrap_err().code(),
            Code::PermissionDenied
        );
        let swapped = v1::AuthorizeResponse { evaluation_id: read.evaluation_id.clone(), ..another };
        assert_eq!(
            report(&mut desk, &swapped, v1::OutcomeStatus::Succeeded).await.unwrap_err().code(),
            Code::PermissionDenied
        );
        assert_eq!(desk.ask(&change).await.reason(), v1::Reason::CheckRequired);
        // A denied verification has no outcome to report.
        let denied = desk
            .ask(&v1::AuthorizeRequest {
                delegation: asserted("support-bot", "rep-1", "intake"),
                ..verification.clone()
            })
            .await;
        assert_eq!((denied.decision(), denied.outcome_token.as_str()), (v1::Decision::Deny, ""));
        // The success is accepted once, and not with more fields than an audit line may hold.
        let allowed = desk.ask(&verification).await;
        let endless = v1::ReportOutcomeRequest {
            evaluation_id: allowed.evaluation_id.clone(),
            status: v1::OutcomeStatus::Succeeded.into(),
            outcome_token: allowed.outcome_token.clone(),
            fields_returned: vec!["\"".repeat(128); 256],
            ..Default::default()
        };
        let refused = desk.decisions.report_outcome(endless).await.unwrap_err();
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::InvalidArgument, "`fields_returned` is longer than 16 KiB")
        );
        assert_eq!(
            report(&mut desk, &allowed, v1::OutcomeStatus::Succeeded).await.unwrap().check,
            "identity_verification"
        );
        assert_eq!(
            report(&mut desk, &allowed, v1::OutcomeStatus::Succeeded).await.unwrap_err().code(),
            Code::PermissionDenied
        );
        // A postcode proves less than a code that only the customer has: the strong check is missing.
        assert_eq!(desk.ask(&change).await.reason(), v1::Reason::CheckRequired);
        let strong =
            v1::AuthorizeRequest { arguments_json: r#"{"fact":"one_time_code"}"#.into(), ..verification.clone() };
        let allowed = desk.ask(&strong).await;
        assert_eq!(report(&mut desk, &allowed, v1::OutcomeStatus::Succeeded).await.unwrap().check, "strong_identity");
        // The check holds only for this case and this customer.
        let other = |id: &str, customer: &str| v1::AuthorizeRequest {
            case: change.case.clone().map(|case| v1::Case {
                id: id.into(),
                attributes_json: crate::harness::CASE.replace("customer-1", customer).into(),
                ..case
            }),
            resource: change.resource.clone().map(|resource| v1::Resource {
                attributes_json: format!(r#"{{"tenant":"acme","customer":"{customer}"}}"#).into(),
                ..resource
            }),
            ..change.clone()
        };
        assert_eq!(desk.ask(&other("case-2", "customer-1")).await.reason(), v1::Reason::CheckRequired);
        assert_eq!(desk.ask(&other("case-1", "customer-2")).await.reason(), v1::Reason::CheckRequired);
        // A customer has ten attempts a day, over all cases.
        let on = |case: &str| v1::AuthorizeRequest {
            case: other(case, "customer-1").case,
            resource: Some(v1::Resource {
                r#ref: Some(v1::EntityReference { r#type: "Case".into(), id: case.into() }),
                ..Default::default()
            }),
            ..verification.clone()
        };
        let mut reasons = vec![];
        for attempt in 0..12 {
            reasons.push(desk.ask(&on(&format!("case-{}", 3 + attempt / 4))).await.reason());
        }
        let allowed = reasons.iter().take_while(|reason| **reason == v1::Reason::Unspecified).count();
        assert!((5..10).contains(&allowed), "{reasons:?}");
        assert!(reasons[allowed..].iter().all(|reason| *reason == v1::Reason::RateLimited), "{reasons:?}");
        // After the change the old address is notified, and for a day neither money nor address may move.
        let changed = desk.ask(&change).await;
        assert_eq!((changed.decision(), changed.obligations.len()), (v1::Decision::Allow, 1), "{changed:?}");
        assert_eq!(
            (changed.obligations[0].r#type.as_str(), changed.obligations[0].properties["value"].as_str()),
            ("notify", "previous_contact")
        );
        let money = desk.ask(&credit(1)).await;
        assert_eq!((money.decision(), money.reason()), (v1::Decision::Deny, v1::Reason::NotPermitted));
        assert_eq!(desk.ask(&change).await.reason(), v1::Reason::RateLimited);
    });
}

/// A verification of the customer's identity by one fact.
fn verification(fact: &str) -> v1::AuthorizeRequest {
    v1::AuthorizeRequest {
        delegation: asserted("support-bot", "rep-1", "verification"),
        action: "verification.run".into(),
        arguments_json: format!(r#"{{"fact":"{fact}"}}"#).into(),
        resource: Some(v1::Resource {
            r#ref: Some(v1::EntityReference { r#type: "Case".into(), id: "case-1".into() }),
            ..Default::default()
        }),
        ..order_check()
    }
}

/// A failed verification ends earlier checks, because the person may not be the one who passed them.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_verification_invalidates_earlier_checks_of_the_case() {
    let app = App::start().await;
    let mut desk = Desk::new(app.channel().await);
    let change = v1::AuthorizeRequest {
        action: "account.change_email".into(),
        arguments_json: r#"{"new_email":"a@example.com"}"#.into(),
        ..credit(1)
    };
    for (fact, status, reason) in [
        ("one_time_code", v1::OutcomeStatus::Succeeded, None),
        ("delivery_postcode", v1::OutcomeStatus::Failed, Some(v1::Reason::CheckRequired)),
        ("one_time_code", v1::OutcomeStatus::Succeeded, None),
    ] {
        let allowed = desk.ask(&verification(fact)).await;
        report(&mut desk, &allowed, status).await.unwrap();
        let asked = v1::AuthorizeRequest { dry_run: true, ..change.clone() };
        let request = v1::ExplainDecisionRequest { request: Some(asked) };
        let explained = app.operations().await.explain_decision(request).await.unwrap().into_inner();
        let reason_of = explained.response.unwrap();
        assert_eq!(reason_of.reason(), reason.unwrap_or_default(), "{fact}");
    }
    app.stop().await;
}

pub(crate) async fn signal(
    app: &App,
    kind: v1::SignalSubjectKind,
    subject: &str,
    what: &str,
    event: &str,
) -> Result<v1::ReportSignalResponse, tonic::Status> {
    let mut client = v1::signal_service_client::SignalServiceClient::new(app.channel().await);
    let request = v1::ReportSignalRequest {
        subject_kind: kind.into(),
        subject_id: subject.into(),
        kind: what.into(),
        severity: v1::Severity::Critical.into(),
        ttl: Some(prost_types::Duration { seconds: 600, nanos: 0 }),
        event_id: event.into(),
        event_time: Some(prost_types::Timestamp { seconds: seconds(), nanos: 0 }),
        tenant: if matches!(kind, v1::SignalSubjectKind::Case | v1::SignalSubjectKind::Customer) {
            "acme".into()
        } else {
            String::new()
        },
    };
    Ok(client.report_signal(request).await?.into_inner())
}

/// A kill switch set on one replica also stops the others, including retries of operations that were allowed.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_switch_stops_every_replica_and_retries_of_allowed_operations() {
    use v1::SignalSubjectKind::{Agent, Case, Customer, Supervisor, Tenant};
    for (kind, subject) in
        [(Agent, "refund-bot"), (Supervisor, "rep-1"), (Case, "case-1"), (Customer, "customer-1"), (Tenant, "acme")]
    {
        let postgres = Postgres::database();
        let keys = temp();
        let start = || {
            App::start_with(|config, _| {
                config.store.url = Some(postgres.url());
                config.keys = Some(keys.path().to_owned());
            })
        };
        let (one, two) = (start().await, start().await);
        // Replicas share their keys.
        let issuer = Issuer::at(keys.path());
        let (mut first, mut second) = (Desk::new(one.channel().await), Desk::new(two.channel().await));
        let (_, used) = first.approved(&credit(400), &issuer).await;
        assert_eq!(second.ask(&with_token(&credit(400), &used, "op-1")).await.decision(), v1::Decision::Allow);
        let (_, unused) = first.approved(&credit(300), &issuer).await;
        let waiting = first.request(&credit(200)).await.unwrap();

        assert!(!signal(&one, kind, subject, "kill_switch", "event-1").await.unwrap().duplicate);
        assert!(signal(&one, kind, subject, "kill_switch", "event-1").await.unwrap().duplicate);
        for app in [&one, &two] {
            app.pdp.refresh().await;
        }
        for desk in [&mut first, &mut second] {
            for call in [credit(1), with_token(&credit(400), &used, "op-1"), with_token(&credit(300), &unused, "op-2")]
            {
                let answer = desk.ask(&call).await;
                assert_eq!(
                    (answer.decision(), answer.reason()),
                    (v1::Decision::Deny, v1::Reason::NotPermitted),
                    "{subject}"
                );
            }
        }
        // The pending request is cancelled.
        let read = bearer(v1::GetApprovalRequest { id: waiting.id }, &issuer.human("lead-2"));
        match first.approvals.get_approval(read).await {
            Ok(response) => assert_eq!(response.into_inner().approval.unwrap().state(), v1::ApprovalState::Cancelled),
            // A kill switch on the tenant stops its humans, too.
            Err(status) => assert_eq!((status.code(), kind), (Code::Unauthenticated, Tenant)),
        }
        assert_eq!(lines(&one.data).iter().filter(|line| line["type"] == "signal.reported").count(), 1);
        one.stop().await;
        two.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_session_invalidates_tokens_issued_before() {
    on_both_engines!(app, {
        let issuer = Issuer::of(&app.data);
        let mut desk = Desk::new(app.channel().await);
        let call = |claims| v1::AuthorizeRequest { delegation: token(issuer.sign(&claims)), ..credit(400) };
        let (before, after) = (
            delegation_claims("refund-bot", "rep-1", seconds() - 5),
            delegation_claims("refund-bot", "rep-1", seconds() + 5),
        );
        assert_eq!(desk.ask(&call(before.clone())).await.reason(), v1::Reason::ApprovalRequired);
        signal(&app, v1::SignalSubjectKind::Supervisor, "rep-1", "session_revoked", "event-1").await.unwrap();
        assert_eq!(desk.ask(&call(before)).await.reason(), v1::Reason::NotPermitted);
        assert_eq!(desk.ask(&call(after)).await.reason(), v1::Reason::ApprovalRequired);
        // Her own token from before the signal is refused as well.
        let old = merged(crate::harness::people::human_claims("rep-1", seconds() - 5), json!({}));
        let list = bearer(v1::ListApprovalsRequest::default(), &issuer.sign(&old));
        assert_eq!(desk.approvals.list_approvals(list).await.unwrap_err().code(), Code::Unauthenticated);
        // Malformed signals are refused.
        for (kind, subject, what) in [
            (v1::SignalSubjectKind::Unspecified, "rep-1", "kill_switch"),
            (v1::SignalSubjectKind::Agent, "", "kill_switch"),
            (v1::SignalSubjectKind::Agent, "refund-bot", "mood_changed"),
            (v1::SignalSubjectKind::Tenant, "acme", "session_revoked"),
        ] {
            assert_eq!(
                signal(&app, kind, subject, what, "event-2").await.unwrap_err().code(),
                Code::InvalidArgument,
                "{subject} {what}"
            );
        }
        assert_eq!(
            signal(&app, v1::SignalSubjectKind::Agent, "nobody", "kill_switch", "event-3").await.unwrap_err().code(),
            Code::PermissionDenied
        );
    });
}

/// Without its store the server denies calls that need it, and all calls once its kill switches are too old.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_store_calls_that_need_it_are_denied_and_after_two_seconds_all_calls() {
    let mut postgres = Postgres::start();
    let hands = Hands::now();
    let app = App::start_with(|config, seams| {
        config.store.url = Some(postgres.url());
        config.store.timeout_ms = 300;
        config.store.stops_age_ms = 2000;
        seams.clock = Box::new(hands.clone());
    })
    .await;
    let issuer = Issuer::of(&app.data);
    let mut desk = Desk::new(app.channel().await);
    let (_, token) = desk.approved(&credit(400), &issuer).await;
    let denied = desk.ask(&credit(100)).await;
    postgres.stop();
    let unavailable = v1::Reason::StateUnavailable;
    let used = desk.ask(&with_token(&credit(400), &token, "op-1")).await;
    assert_eq!(
        (used.decision(), used.reason(), used.next_action()),
        (v1::Decision::Deny, unavailable, v1::NextAction::Retry)
    );
    let email = v1::AuthorizeRequest {
        action: "account.change_email".into(),
        arguments_json: r#"{"new_email":"a@example.com"}"#.into(),
        ..credit(1)
    };
    assert_eq!(desk.ask(&email).await.reason(), unavailable, "it reads checks");
    assert_eq!(desk.ask(&order_check()).await.decision(), v1::Decision::Allow);
    assert_eq!(
        desk.ask(&refund_request()).await.decision(),
        v1::Decision::Allow,
        "a write, while kill switches are recent"
    );
    assert_eq!(desk.ask(&credit(100)).await.reason(), unavailable, "its sums can't be read");
    assert_eq!(desk.request_of(denied).await.unwrap_err().code(), Code::Unavailable);
    // After two seconds without reading kill switches the server can't know who was stopped elsewhere.
    assert_eq!(crate::harness::get(app.admin, "/readyz").await.0, 200);
    hands.forward(3);
    assert_eq!(desk.ask(&refund_request()).await.reason(), unavailable);
    assert_eq!(desk.ask(&order_check()).await.reason(), unavailable);
    hands.forward(3);
    assert_eq!(crate::harness::get(app.admin, "/readyz").await, (503, "store\n".to_owned()));
    assert!(
        !app.operations().await.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner().store.unwrap().healthy
    );
    postgres.resume();
    // The server recovers when it next polls the store.
    within("healthy store", async {
        while !app.pdp.status().store_healthy {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(desk.ask(&refund_request()).await.decision(), v1::Decision::Allow);
    assert_eq!(desk.ask(&with_token(&credit(400), &token, "op-1")).await.decision(), v1::Decision::Allow);
    app.stop().await;
}

/// A reviewer whom a kill switch stops after the review no longer counts when the approval is used.
#[tokio::test(flavor = "multi_thread")]
async fn an_approver_who_is_stopped_afterwards_no_longer_counts() {
    for (kind, stops) in [("kill_switch", true), ("session_revoked", true), ("fraud_suspected", false)] {
        let app = App::start().await;
        let issuer = Issuer::of(&app.data);
        let mut desk = Desk::new(app.channel().await);
        let (_, token) = desk.approved(&credit(400), &issuer).await;
        let mut signals = v1::signal_service_client::SignalServiceClient::new(app.channel().await);
        let time = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let signal = v1::ReportSignalRequest {
            kind: kind.into(),
            subject_kind: v1::SignalSubjectKind::Supervisor.into(),
            subject_id: "lead-1".into(),
            severity: v1::Severity::Low.into(),
            ttl: Some(prost_types::Duration { seconds: 600, nanos: 0 }),
            event_id: "event-1".into(),
            event_time: time(seconds()),
            ..Default::default()
        };
        signals.report_signal(signal).await.unwrap();
        let used = desk.ask(&with_token(&credit(400), &token, "op-1")).await;
        let expected = if stops { v1::Reason::ApprovalRevoked } else { v1::Reason::Unspecified };
        assert_eq!(used.reason(), expected, "{kind}: {used:?}");
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_approvals_join_to_the_whole_list() {
    let app = App::start().await;
    let issuer = Issuer::of(&app.data);
    let mut desk = Desk::new(app.channel().await);
    let mut made = std::collections::BTreeSet::new();
    for index in 0..5_u8 {
        let mut call = credit(400 + i64::from(index));
        let case = call.case.as_mut().unwrap();
        case.id = format!("case-{index}");
        made.insert(desk.request(&call).await.unwrap().id);
    }
    // A page is also bounded by bytes, which is tested beside the code.
    let (mut listed, mut page_token, mut pages) = (std::collections::BTreeSet::new(), String::new(), 0);
    loop {
        let request = v1::ListApprovalsRequest { page_size: 2, page_token, ..Default::default() };
        let page = desk.approvals.list_approvals(bearer(request, &issuer.human("lead-1"))).await.unwrap().into_inner();
        listed.extend(page.approvals.into_iter().map(|approval| approval.id));
        (page_token, pages) = (page.next_page_token, pages + 1);
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!((listed, pages), (made, 3));
    app.stop().await;
}

/// Each watch asks the state store several times a second, so nobody may open many.
#[tokio::test(flavor = "multi_thread")]
async fn one_human_may_have_few_watches_and_does_not_use_up_those_of_others() {
    let app = App::start().await;
    let issuer = Issuer::of(&app.data);
    let mut client = v1::approval_service_client::ApprovalServiceClient::new(app.channel().await);
    let (lead, other) = (issuer.human("lead-1"), issuer.human("lead-2"));
    let mut open = vec![];
    let refused = loop {
        match client.watch_approvals(bearer(v1::WatchApprovalsRequest::default(), &lead)).await {
            Ok(watch) => open.push(watch),
            Err(status) => break status,
        }
    };
    assert_eq!((open.len(), refused.code()), (32, Code::ResourceExhausted));
    client.watch_approvals(bearer(v1::WatchApprovalsRequest::default(), &other)).await.unwrap();
    drop(open);
    within("watch after others have ended", async {
        while client.watch_approvals(bearer(v1::WatchApprovalsRequest::default(), &lead)).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_supervisor_lists_shows_approves_denies_and_revokes_on_the_command_line() {
    let folder = temp();
    let data = folder.path().join("data");
    let server = crate::harness::Process::serve(&data, &[], |_| {});
    let url = format!("http://{}", server.grpc);
    let keys = data.join("keys");
    let run = |arguments: &[&str], token: &str| {
        let mut command = crate::harness::command(arguments);
        command.env("COUNTERSIGN_TOKEN", token).current_dir("/");
        let output = command.output().unwrap();
        (
            output.status.code(),
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
        )
    };
    let dev_token = |principal: &str| {
        run(&["keys", "dev-token", "--principal", principal, "--keys", keys.to_str().unwrap()], "").1.trim().to_owned()
    };
    let mut desk = Desk::new(crate::harness::channel(server.grpc).await);
    let lead = dev_token("lead-1");
    assert_eq!(run(&["approvals", "list", "--server", &url], &lead), (Some(0), "none\n".into()));
    assert_eq!(run(&["approvals", "list", "--server", &url], "").0, Some(64));
    let first = desk.request(&credit(400)).await.unwrap();
    let (code, text) = run(&["approvals", "show", &first.id, "--server", &url], &lead);
    assert_eq!(code, Some(0), "{text}");
    for part in [
        "argument amount_minor at most: 400",
        "reversibility: reversible",
        "Written by the agent, not verified:",
        "display digest ",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let digest = text.lines().find_map(|line| line.strip_prefix("display digest ")).unwrap().to_owned();
    let (code, text) = run(&["approvals", "approve", &first.id, "--server", &url], &dev_token("rep-1"));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("PERMISSION_DENIED") && text.lines().count() == 1, "{text}");
    let (code, text) = run(&["approvals", "approve", &first.id, "--display-digest", &digest, "--server", &url], &lead);
    assert!(code == Some(0) && text.contains("approved by 1 of 1: lead-1"), "{text}");
    assert!(
        run(&["approvals", "revoke", &first.id, "--reason", "mistake", "--server", &url], &lead).1.contains("revoked")
    );
    let second = desk.request(&credit(300)).await.unwrap();
    let suggest = r#"{"amount_minor":100,"currency":"EUR"}"#;
    let (code, text) =
        run(&["approvals", "deny", &second.id, "--reason", "too much", "--suggest", suggest, "--server", &url], &lead);
    assert!(code == Some(0) && text.contains("because too much") && text.contains(suggest), "{text}");
    assert!(run(&["approvals", "list", "--all", "--server", &url], &lead).1.contains("denied"));
    // The text of a reply is shown from the draft file whose digest matches, and from no other file.
    let draft = "Hello,\nyour parcel \u{202e}is here.";
    let third = desk
        .request_of(asked_for_reply_by(&keys, &countersign::approvals::release::draft_digest(draft)))
        .await
        .unwrap();
    let draft = crate::harness::pki::write(folder.path(), "draft.txt", draft);
    let show = |id: &str, file: &std::path::Path| {
        run(&["approvals", "show", id, "--draft", file.to_str().unwrap(), "--server", &url], &dev_token("rep-1"))
    };
    let (code, text) = show(&third.id, &draft);
    assert!(code == Some(0) && text.ends_with("by its digest:\n  Hello,\n  your parcel \\u{202e}is here.\n"), "{text}");
    assert!(text.contains("found in the draft: tone/hard medium 0..4"), "{text}");
    let (code, text) = show(&third.id, &crate::harness::pki::write(folder.path(), "other.txt", "Hello."));
    assert!(code == Some(3) && text.contains("is not the draft of this approval"), "{code:?} {text}");
    let (code, text) = show(&first.id, &draft);
    assert!(code == Some(3) && text.contains("the approval's call sends no draft"), "{code:?} {text}");
    // A token whose signature is changed is refused.
    let (code, text) = run(&["approvals", "list", "--server", &url], &format!("{lead}x"));
    assert!(code == Some(1) && text.contains("UNAUTHENTICATED"), "{text}");
    let agent = [
        "keys",
        "dev-token",
        "--principal",
        "rep-1",
        "--agent",
        "refund-bot",
        "--step",
        "action",
        "--case",
        "case-1",
        "--scopes",
        "accounts",
    ];
    let delegation = run(&[&agent[..], &["--keys", keys.to_str().unwrap()]].concat(), "").1.trim().to_owned();
    let call = v1::AuthorizeRequest { delegation: token(delegation.clone()), ..credit(50) };
    assert_eq!(desk.ask(&call).await.reason(), v1::Reason::ApprovalRequired);
    // The same call from the command line is denied, requested, approved, allowed and repeated.
    let file =
        |name: &str, text: &str| crate::harness::pki::write(folder.path(), name, text).to_str().unwrap().to_owned();
    let attributes: serde_json::Value = serde_json::from_str(crate::harness::CASE).unwrap();
    let written = json!({
        "action": "account.credit", "arguments": {"amount_minor": 50, "currency": "EUR"}, "model": {"name": "test"},
        "resource": {"type": "Account", "id": "account-1", "attributes": {"tenant": "acme", "customer": "customer-1"}},
        "case": {"id": "case-1", "version": "3", "tenant": "acme", "attributes": attributes},
    });
    let (request, delegation) = (file("request.yaml", &written.to_string()), file("delegation", &delegation));
    let authorize = ["authorize", request.as_str(), "--token", &delegation, "--server", &url, "-o", "json"];
    let (code, text) = run(&authorize, "");
    let denied: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &denied["reason"]), (Some(2), &json!("approval_required")), "{text}");
    let asked = v1::RequestApprovalRequest {
        evaluation_id: denied["evaluation_id"].as_str().unwrap().into(),
        binding_token: denied["binding_token"].as_str().unwrap().into(),
        justification: Some(crate::harness::people::justification()),
        ..Default::default()
    };
    let third = desk.approvals.request_approval(asked).await.unwrap().into_inner().approval.unwrap();
    assert_eq!(run(&["approvals", "approve", &third.id, "--server", &url], &lead).0, Some(0));
    let approval = file("approval", &desk.fetch(&third.id).await.unwrap());
    let used = [&authorize[..], &["--approval-token", &approval, "--operation-id", "op-1"]].concat();
    for repeated in [false, true] {
        let (code, text) = run(&used, "");
        let allowed: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (code, &allowed["approval"], &allowed["repeated"]),
            (Some(0), &json!(third.id), &json!(repeated)),
            "{text}"
        );
    }
    // `watch` prints the existing requests and keeps running.
    let mut watch = crate::harness::command(&["approvals", "watch", "--server", &url]);
    let mut watch = watch.env("COUNTERSIGN_TOKEN", &lead).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(watch.stdout.take().unwrap()), &mut line).unwrap();
    assert!(line.starts_with("apr_"), "{line}");
    watch.kill().unwrap();
    watch.wait().unwrap();
}

/// The state may contain customers' calls, so a remote database needs TLS with a verified certificate.
#[tokio::test(flavor = "multi_thread")]
async fn postgresql_requires_tls_with_a_verified_certificate() {
    use crate::harness::pki::{Authority, server, write};
    let (mut postgres, folder) = (Postgres::start(), temp());
    let (authority, stranger) = (Authority::new(), Authority::new());
    postgres.require_tls(&authority.sign(&server()));
    let url = |authority: &Authority, name: &str| {
        let ca = write(folder.path(), name, &authority.pem());
        postgres.url().replace("sslmode=disable", &format!("sslmode=verify-full&sslrootcert={}", ca.display()))
    };
    let app = App::start_with(|config, _| config.store.url = Some(url(&authority, "ca.pem"))).await;
    let issuer = Issuer::of(&app.data);
    let mut desk = Desk::new(app.channel().await);
    let (_, token) = desk.approved(&credit(400), &issuer).await;
    assert_eq!(desk.ask(&with_token(&credit(400), &token, "op-1")).await.decision(), v1::Decision::Allow);
    app.stop().await;
    for refused in [url(&stranger, "stranger.pem"), postgres.url()] {
        let folder = temp();
        let mut config = crate::harness::config(&folder.path().join("data"));
        config.store.url = Some(refused);
        config.store.start_seconds = 0;
        let seams = countersign::app::Seams::system(Default::default());
        let error = countersign::app::build(&config, seams).await.unwrap_err().to_string();
        assert!(error.starts_with("the state store can't be opened: ") && error.contains("`127.0.0.1:"), "{error}");
    }
}

/// Returns the same call in tenant `globex`.
fn of_globex(call: &v1::AuthorizeRequest) -> v1::AuthorizeRequest {
    let resource = call.resource.clone().map(|resource| v1::Resource {
        attributes_json: r#"{"tenant":"globex","customer":"customer-1"}"#.into(),
        ..resource
    });
    v1::AuthorizeRequest {
        delegation: asserted("globex-bot", "globex-rep", "action"),
        case: call.case.clone().map(|case| v1::Case { tenant: "globex".into(), ..case }),
        resource,
        ..call.clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_sends_each_change_once_and_the_token_only_to_the_tool_service() {
    on_both_engines!(app, {
        let issuer = Issuer::of(&app.data);
        let mut desk = Desk::new(app.channel().await);
        let first = desk.request(&credit(400)).await.unwrap();
        let second = desk.request(&credit(401)).await.unwrap();
        let mut service =
            desk.approvals.watch_approvals(v1::WatchApprovalsRequest::default()).await.unwrap().into_inner();
        let mut human = desk
            .approvals
            .watch_approvals(bearer(v1::WatchApprovalsRequest::default(), &issuer.human("rep-2")))
            .await
            .unwrap()
            .into_inner();
        // This stream watches only the second request.
        let ids = vec![second.id.clone()];
        let mut other = desk.approvals.watch_approvals(v1::WatchApprovalsRequest { ids }).await.unwrap().into_inner();
        for watch in [&mut service, &mut human] {
            for id in [&first.id, &second.id] {
                let seen = watch.message().await.unwrap().unwrap();
                let approval = seen.approval.unwrap();
                assert_eq!((&approval.id, approval.state()), (id, v1::ApprovalState::Pending));
                assert_eq!(seen.token, "");
            }
        }
        desk.review(&first, true, &issuer.human("lead-1")).await.unwrap();
        let seen = service.message().await.unwrap().unwrap();
        assert_eq!(seen.approval.unwrap().state(), v1::ApprovalState::Approved);
        let shown = human.message().await.unwrap().unwrap();
        assert_eq!((shown.approval.unwrap().state(), shown.token.as_str()), (v1::ApprovalState::Approved, ""));
        assert_eq!(desk.ask(&with_token(&credit(400), &seen.token, "op-1")).await.decision(), v1::Decision::Allow);
        for watch in [&mut service, &mut human] {
            assert_eq!(watch.message().await.unwrap().unwrap().approval.unwrap().state(), v1::ApprovalState::Consumed);
        }
        // A replay of a consumed approval is counted, so that an alert can be set on it.
        desk.ask(&with_token(&credit(400), &seen.token, "op-2")).await;
        let metrics = crate::harness::get(app.admin, "/metrics").await.1;
        assert!(
            metrics.lines().any(|line| line.starts_with("countersign_approvals_total{")
                && line.contains("replayed")
                && line.ends_with(" 1")),
            "{metrics}"
        );
        // A human of another tenant sees nothing, and an unknown human may not watch at all.
        let foreign = bearer(v1::WatchApprovalsRequest::default(), &issuer.human("globex-rep"));
        let mut foreign = desk.approvals.watch_approvals(foreign).await.unwrap().into_inner();
        let stranger = bearer(v1::WatchApprovalsRequest::default(), &issuer.human("nobody"));
        assert_eq!(desk.approvals.watch_approvals(stranger).await.unwrap_err().code(), Code::Unauthenticated);
        // The first event that each of these streams gets is its own, so none of the others came before.
        desk.request(&of_globex(&credit(402))).await.unwrap();
        assert_eq!(foreign.message().await.unwrap().unwrap().approval.unwrap().tenant, "globex");
        for state in [v1::ApprovalState::Pending, v1::ApprovalState::Denied] {
            let seen = other.message().await.unwrap().unwrap().approval.unwrap();
            assert_eq!((seen.id.as_str(), seen.state()), (second.id.as_str(), state));
            if state == v1::ApprovalState::Pending {
                desk.review(&second, false, &issuer.human("lead-1")).await.unwrap();
            }
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn pending_requests_are_limited_per_case_and_per_agent() {
    on_both_engines!(app, {
        let mut desk = Desk::new(app.channel().await);
        for amount in 1..=5 {
            desk.request(&credit(amount)).await.unwrap();
        }
        let full = desk.request(&credit(6)).await.unwrap_err();
        assert_eq!(
            (full.code(), full.message()),
            (Code::ResourceExhausted, "the case has reached its maximum number of pending requests")
        );
        // One tool service may have half of the 50 pending requests that an agent may have.
        for case in 2..=5 {
            for amount in 1..=5 {
                let call = v1::AuthorizeRequest {
                    case: credit(1).case.map(|of| v1::Case { id: format!("case-{case}"), ..of }),
                    ..credit(amount)
                };
                desk.request(&call).await.unwrap();
            }
        }
        let call =
            v1::AuthorizeRequest { case: credit(1).case.map(|of| v1::Case { id: "case-6".into(), ..of }), ..credit(1) };
        let full = desk.request(&call).await.unwrap_err();
        assert_eq!(
            (full.code(), full.message()),
            (Code::ResourceExhausted, "the agent has reached its maximum number of pending requests")
        );
    });
}

/// Tokens of another environment, purpose, audience or generation are refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_forged_or_foreign_approval_token_is_unverifiable() {
    on_both_engines!(app, {
        let issuer = Issuer::of(&app.data);
        let mut desk = Desk::new(app.channel().await);
        let (wire, good) = desk.approved(&credit(400), &issuer).await;
        let ring = |purpose| Keyring::read(&app.data.join("keys"), purpose).unwrap();
        let claims = |more: serde_json::Value| {
            let payload = good.split('.').nth(1).unwrap();
            use base64::Engine;
            let claims: serde_json::Value =
                serde_json::from_slice(&base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload).unwrap())
                    .unwrap();
            merged(claims, more)
        };
        let typ = "countersign-approval+jwt";
        let approval = |name: &str, value: &str| {
            let part = merged(claims(json!({}))["approval"].clone(), json!({name: value}));
            ring(Purpose::Approval).sign(typ, &claims(json!({"approval": part}))).unwrap()
        };
        let unverifiable = v1::Reason::ApprovalUnverifiable;
        for (what, token, reason) in [
            (
                "another environment",
                ring(Purpose::Approval).sign(typ, &claims(json!({"iss": "countersign:staging"}))).unwrap(),
                unverifiable,
            ),
            ("another purpose's key", ring(Purpose::Binding).sign(typ, &claims(json!({}))).unwrap(), unverifiable),
            (
                "another type",
                ring(Purpose::Approval).sign("countersign-binding+jwt", &claims(json!({}))).unwrap(),
                unverifiable,
            ),
            ("an unknown member", ring(Purpose::Approval).sign(typ, &claims(json!({"x": 1}))).unwrap(), unverifiable),
            (
                "another tool service",
                ring(Purpose::Approval).sign(typ, &claims(json!({"aud": "crm-tools"}))).unwrap(),
                v1::Reason::ApprovalOutOfScope,
            ),
            (
                "another approval's id",
                ring(Purpose::Approval).sign(typ, &claims(json!({"jti": "apr_0"}))).unwrap(),
                unverifiable,
            ),
            ("another generation", approval("generation", "x"), unverifiable),
            ("another digest", approval("digest", "x"), unverifiable),
            ("a human's token", issuer.human("lead-1"), unverifiable),
            ("cut", good[..good.len() - 8].to_owned(), unverifiable),
            ("none", "x".into(), unverifiable),
        ] {
            let answer = desk.ask(&with_token(&credit(400), &token, "op-1")).await;
            assert_eq!((answer.decision(), answer.reason()), (v1::Decision::Deny, reason), "{what}");
        }
        let refused = desk
            .decisions
            .authorize(v1::AuthorizeRequest { approval_token: good.clone(), ..credit(400) })
            .await
            .unwrap_err();
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::InvalidArgument, "`operation_id` is required with a token")
        );
        assert_eq!(desk.ask(&with_token(&credit(400), &good, "op-1")).await.approval.unwrap().id, wire.id);
    });
}

/// The name of a change, the change, and the reason of the denial; `None` if the approval still holds.
type Variation = (&'static str, fn(&mut v1::AuthorizeRequest), Option<v1::Reason>);

/// Lists every member of a call and the effect of its change on an approval. A member that the protocol gains
/// does not compile here until it has a row, or a reason for its absence.
fn variations(call: &v1::AuthorizeRequest) -> Vec<Variation> {
    let v1::AuthorizeRequest {
        // This id does not affect the decision.
        request_id: _,
        delegation: _,
        action: _,
        resource,
        case,
        arguments_json: _,
        // The action of this test takes no facts; tests in `model/approval.rs` show that they are compared.
        facts_json: _,
        // Texts are screened with each call, and their findings can only deny.
        untrusted: _,
        // These are the tokens, and the operation that uses them.
        approval_token: _,
        consent_token: _,
        release_token: _,
        operation_id: _,
        // These are recorded, but are not part of the approved call.
        model: _,
        conversation_id: _,
        tool_call_id: _,
        // A dry run uses no token.
        dry_run: _,
        // Conformance mode has no approvals.
        plain: _,
    } = call;
    let v1::Resource { r#ref: _, version: _, attributes_json: _ } = resource.as_ref().unwrap();
    let v1::Case { id: _, version: _, tenant: _, attributes_json: _ } = case.as_ref().unwrap();
    fn json_of(bytes: &[u8], change: fn(&mut Value)) -> bytes::Bytes {
        let mut value: Value = serde_json::from_slice(bytes).unwrap();
        change(&mut value);
        value.to_string().into()
    }
    fn on_case(call: &mut v1::AuthorizeRequest, change: fn(&mut Value)) {
        let case = call.case.as_mut().unwrap();
        case.attributes_json = json_of(&case.attributes_json, change);
    }
    fn on_resource(call: &mut v1::AuthorizeRequest, change: fn(&mut Value)) {
        let resource = call.resource.as_mut().unwrap();
        resource.attributes_json = json_of(&resource.attributes_json, change);
    }
    let (out, denied) = (Some(v1::Reason::ApprovalOutOfScope), Some(v1::Reason::NotPermitted));
    vec![
        ("nothing", |_| {}, None),
        ("action", |call| call.action = "billing.change_plan".into(), out),
        ("arguments", |call| call.arguments_json = r#"{"amount_minor":400,"currency":"USD"}"#.into(), out),
        ("arguments, more", |call| call.arguments_json = r#"{"amount_minor":401,"currency":"EUR"}"#.into(), out),
        ("arguments, less", |call| call.arguments_json = r#"{"amount_minor":399,"currency":"EUR"}"#.into(), None),
        (
            "resource.ref.id",
            |call| call.resource.as_mut().unwrap().r#ref.as_mut().unwrap().id = "account-2".into(),
            out,
        ),
        ("resource.version", |call| call.resource.as_mut().unwrap().version = "9".into(), out),
        ("resource.attributes", |call| on_resource(call, |value| value["customer"] = "customer-2".into()), denied),
        ("case.id", |call| call.case.as_mut().unwrap().id = "case-99".into(), out),
        ("case.version", |call| call.case.as_mut().unwrap().version = "9".into(), Some(v1::Reason::CaseChanged)),
        ("case.tenant", |call| call.case.as_mut().unwrap().tenant = "globex".into(), denied),
        ("case.product", |call| on_case(call, |value| value["product"] = "cloud".into()), out),
        ("case.status", |call| on_case(call, |value| value["status"] = "pending".into()), out),
        (
            "the customer, of case and account",
            |call| {
                on_case(call, |value| value["customer"] = "customer-2".into());
                on_resource(call, |value| value["customer"] = "customer-2".into());
            },
            out,
        ),
        ("agent", |call| call.delegation = asserted("refund-bot-2", "rep-1", "action"), denied),
        ("supervisor", |call| call.delegation = asserted("refund-bot", "rep-2", "action"), out),
        ("step", |call| call.delegation = asserted("refund-bot", "rep-1", "drafting"), out),
    ]
}

/// An approval covers only the call that was shown to the reviewer, member by member.
#[tokio::test(flavor = "multi_thread")]
async fn changing_any_member_of_an_approved_call_invalidates_the_approval() {
    on_both_engines!(app, {
        let issuer = Issuer::of(&app.data);
        let mut desk = Desk::new(app.channel().await);
        for (index, (name, change, expected)) in variations(&credit(400)).into_iter().enumerate() {
            // Each row has its own case, because rates are counted per case.
            let case = v1::Case { id: format!("case-{index}"), ..credit(400).case.unwrap() };
            let call = v1::AuthorizeRequest { case: Some(case), ..credit(400) };
            let (_, token) = desk.approved(&call, &issuer).await;
            let mut changed = call.clone();
            change(&mut changed);
            assert!(name == "nothing" || changed != call, "{name} changes nothing");
            let answer = desk.decisions.authorize(with_token(&changed, &token, &format!("op-{name}"))).await;
            let answer = answer.unwrap_or_else(|status| panic!("{name}: {status}")).into_inner();
            let denied = (answer.decision() != v1::Decision::Allow).then(|| answer.reason());
            assert_eq!(denied, expected, "{name}");
            // An unused approval must still allow its own call, which also consumes it before the next row.
            if denied.is_some() {
                let own = desk.ask(&with_token(&call, &token, &format!("own-{name}"))).await;
                assert_eq!(
                    own.decision(),
                    v1::Decision::Allow,
                    "{name}: the approval was consumed or lost: {:?}",
                    own.reason()
                );
            }
        }
    });
}

/// Evidence must be the id of an evaluation of the same case.
#[tokio::test(flavor = "multi_thread")]
async fn evidence_must_exist_in_the_case() {
    let app = App::start().await;
    let mut desk = Desk::new(app.channel().await);
    let read = desk.ask(&crate::harness::order_check()).await.evaluation_id;
    let call = credit(400);
    let own = desk.ask(&call).await.evaluation_id;
    let elsewhere = v1::Case { id: "case-77".into(), ..call.case.clone().unwrap() };
    let elsewhere = desk.ask(&v1::AuthorizeRequest { case: Some(elsewhere), ..call.clone() }).await.evaluation_id;
    let mut flipped = own.clone().into_bytes();
    let last = flipped.last_mut().unwrap();
    *last = if *last == b'0' { b'1' } else { b'0' };
    let flipped = String::from_utf8(flipped).unwrap();
    assert!(read != own);
    for (id, taken) in [
        (own.as_str(), true),
        (&flipped, false),
        (&elsewhere, false),
        ("01a206a6-c48f-7ff5-bfb0-7348383015c2", false),
        (&own.to_uppercase(), false),
        ("made up", false),
    ] {
        let denied = desk.ask(&call).await;
        let request = v1::RequestApprovalRequest {
            evaluation_id: denied.evaluation_id.clone(),
            binding_token: denied.access_request.unwrap().binding_token,
            justification: Some(v1::Justification { evidence: vec![id.into(), read.clone()], ..justification() }),
            ..Default::default()
        };
        let requested = desk.approvals.request_approval(request).await;
        match requested {
            Ok(requested) => {
                let display = requested.into_inner().approval.unwrap().display;
                let shown = |part: String| assert!(taken && display.contains(&part), "{part}: {display}");
                shown(format!("\nevidence: {id}: account.credit was denied at 20"));
                shown(format!("\nevidence: {read}: order.check was allowed at 20"));
            }
            Err(status) => {
                assert!(!taken && status.code() == Code::InvalidArgument, "{id}: {status}");
                assert!(
                    status.message().contains("justification.evidence[0]") && !status.message().contains(id),
                    "{status}"
                );
            }
        }
    }
    app.stop().await;
}

/// Two humans on call lift a kill switch. It stays lifted after a restart, and a new report sets it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_switch_is_lifted_by_two_humans_with_the_right() {
    on_both_engines!(app, {
        use countersign::api::v1::signal_service_client::SignalServiceClient;
        use v1::SignalSubjectKind::{Agent, Supervisor, Tenant};
        let issuer = Issuer::of(&app.data);
        let mut client = app.decisions().await;
        let signals = SignalServiceClient::new(app.channel().await);
        let report = async |kind: v1::SignalSubjectKind, subject: &str, event: &str| {
            let request = v1::ReportSignalRequest {
                subject_kind: kind.into(),
                subject_id: subject.into(),
                kind: "kill_switch".into(),
                ttl: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
                event_id: event.into(),
                event_time: Some(prost_types::Timestamp { seconds: seconds(), nanos: 0 }),
                ..Default::default()
            };
            signals.clone().report_signal(request).await.unwrap()
        };
        let mut lifting = SignalServiceClient::new(app.channel().await);
        let mut lift = async |kind: v1::SignalSubjectKind, subject: &str, human: &str| {
            let request = v1::LiftSignalRequest {
                subject_kind: kind.into(),
                subject_id: subject.into(),
                tenant: "acme".into(),
                reason: "a mistake".into(),
            };
            lifting.lift_signal(bearer(request, human)).await.map(tonic::Response::into_inner)
        };
        let mut decision = async || client.authorize(order_check()).await.unwrap().into_inner().decision();
        let [lead, other, junior, foreign] =
            ["lead-1", "lead-2", "junior-lead", "globex-lead"].map(|human| issuer.human(human));
        report(Agent, "support-bot", "event-1").await;
        assert_eq!(decision().await, v1::Decision::Deny);
        for stranger in [&junior, &foreign] {
            assert_eq!(lift(Agent, "support-bot", stranger).await.unwrap_err().code(), Code::PermissionDenied);
        }
        for _ in 0..2 {
            let asked = lift(Agent, "support-bot", &lead).await.unwrap();
            assert_eq!((asked.lifted, asked.humans, asked.quorum), (false, 1, 2), "one human counts once");
        }
        assert_eq!(decision().await, v1::Decision::Deny);
        assert!(lift(Agent, "support-bot", &other).await.unwrap().lifted);
        assert_eq!(decision().await, v1::Decision::Allow);
        assert_eq!(lift(Agent, "support-bot", &lead).await.unwrap_err().code(), Code::FailedPrecondition);
        let types: Vec<String> =
            lines(&app.data).iter().filter_map(|line| line["type"].as_str().map(str::to_owned)).collect();
        assert_eq!(types.iter().filter(|name| *name == "signal.lift_asked").count(), 2);
        assert_eq!(types.iter().filter(|name| *name == "signal.lifted").count(), 1);

        // Reported again, it is in force again, and who asked before does not count.
        report(Agent, "support-bot", "event-2").await;
        assert_eq!(decision().await, v1::Decision::Deny);
        assert!(!lift(Agent, "support-bot", &other).await.unwrap().lifted);
        assert!(lift(Agent, "support-bot", &lead).await.unwrap().lifted);

        // A person counts once, whatever entities she has.
        report(Agent, "support-bot", "event-5").await;
        let [ann, ann_too] = ["lead-1", "lead-2"].map(|human| issuer.human_with(human, json!({"person": "ann"})));
        assert!(!lift(Agent, "support-bot", &ann).await.unwrap().lifted);
        let asked = lift(Agent, "support-bot", &ann_too).await.unwrap();
        assert_eq!((asked.lifted, asked.humans), (false, 1));
        // So does a human, whatever person her issuers give her.
        let asked = lift(Agent, "support-bot", &other).await.unwrap();
        assert_eq!((asked.lifted, asked.humans), (false, 1));
        assert!(lift(Agent, "support-bot", &lead).await.unwrap().lifted);

        // A switch on the whole tenant doesn't stop those who lift it; one on a human stops her.
        report(Tenant, "acme", "event-3").await;
        report(Supervisor, "lead-2", "event-4").await;
        assert!(!lift(Tenant, "acme", &lead).await.unwrap().lifted);
        assert_eq!(lift(Tenant, "acme", &other).await.unwrap_err().code(), Code::Unauthenticated);
        assert_eq!(decision().await, v1::Decision::Deny);
        // The vote of a human who was stopped since does not count.
        assert!(!lift(Supervisor, "lead-2", &lead).await.unwrap().lifted);
        report(Supervisor, "lead-1", "event-6").await;
        let asked = lift(Supervisor, "lead-2", &other).await;
        assert_eq!(asked.unwrap_err().code(), Code::Unauthenticated, "nobody is left to lift anything");
        let status = app.operations().await.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
        assert!(status.ready, "no lifted switch counts as lost: {status:?}");
    });
}
