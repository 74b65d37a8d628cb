//! Consents: the case's customer agrees to exactly one call. The travel bundle serves its payment system on the loopback
//! interface and its chat on a Unix socket; the chat reports what travellers answer.

use std::path::Path;

use countersign::api::v1;
use countersign::api::v1::approval_service_client::ApprovalServiceClient;
use countersign::config::UnixPeer;
use countersign::pdp::reload::Trigger;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::harness::people::{Desk, Issuer, justification};
use crate::harness::postgres::Postgres;
use crate::harness::{App, Hands, asserted, channel, copy, lines, temp, unix, verify, within};

const BOOKING: &str = r#"{"tenant":"north","traveller":"traveller-1","cabin":"economy","flight":"cancelled","insured":false,"hours_since_booking":72,"passengers":2,"paid_minor":60000,"refunded_minor":0,"currency":"EUR"}"#;
const ENQUIRY: &str = r#"{"traveller":"traveller-1","tier":"regular","status":"open","currency":"EUR"}"#;
/// Text that the traveller is shown for a refund of 150.00 EUR.
const SHOWN: &str = "We will pay 150.00 EUR back for booking booking-1. Do you agree?";

/// A server with the travel bundle, its payment system and its chat.
struct Travel {
    app: App,
    hands: Hands,
    payments: Desk,
    chat: ApprovalServiceClient<Channel>,
    folder: TempDir,
}

impl Travel {
    async fn start(url: Option<String>) -> Self {
        let folder = temp();
        let bundle = folder.path().join("travel");
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("domains/travel"), &bundle);
        let manifest = std::fs::read_to_string(bundle.join("bundle.yaml")).unwrap();
        let manifest = manifest.replace("tool_service: reservations", "tool_service: payments");
        std::fs::write(bundle.join("bundle.yaml"), manifest).unwrap();
        let socket = folder.path().join("socket");
        let hands = Hands::now();
        let app = App::start_in(&folder.path().join("data"), |config, seams| {
            config.bundle.path = bundle;
            config.store.url = url;
            config.callers.unix_socket.path = Some(socket.clone());
            let user = rustix::process::getuid().as_raw();
            config.callers.unix_socket.peers = vec![UnixPeer { user, tool_service: "chat".into() }];
            seams.clock = Box::new(hands.clone());
        })
        .await;
        let payments = Desk::new(channel(app.grpc).await);
        let chat = ApprovalServiceClient::new(unix(socket).await);
        Self { app, hands, payments, chat, folder }
    }

    /// Makes a call that lacks the consent, and returns its denial.
    async fn denied(&mut self, call: &v1::AuthorizeRequest) -> v1::AuthorizeResponse {
        let denied = self.payments.ask(call).await;
        assert_eq!(
            (denied.reason(), denied.next_action()),
            (v1::Reason::ConsentRequired, v1::NextAction::Request),
            "{denied:?}"
        );
        denied
    }

    async fn report(&mut self, report: v1::ReportConsentRequest) -> Result<v1::Approval, Status> {
        Ok(self.chat.report_consent(report).await?.into_inner().consent.unwrap())
    }

    /// Lets the traveller agree to a call, and returns the consent and its token.
    async fn agreed(&mut self, call: &v1::AuthorizeRequest) -> (v1::Approval, String) {
        let denied = self.denied(call).await;
        let consent = self.report(answer(&denied)).await.unwrap();
        assert_eq!(consent.state(), v1::ApprovalState::Approved);
        let token = self.payments.fetch(&consent.id).await.unwrap();
        assert!(!token.is_empty());
        (consent, token)
    }

    async fn stop(self) {
        self.app.stop().await;
        drop(self.folder);
    }
}

/// Runs a test's body over SQLite, then over PostgreSQL.
macro_rules! on_both_engines {
    ($travel:ident, $body:block) => {{
        let postgres = Postgres::database();
        for url in [None, Some(postgres.url())] {
            let mut $travel = Travel::start(url).await;
            $body
            $travel.stop().await;
        }
    }};
}

/// Returns the refund of two payments; `card` and `gift_card` are their amounts.
fn refund_of(card: i64, gift_card: i64) -> v1::AuthorizeRequest {
    let arguments = json!({
        "booking_id": "booking-1", "currency": "EUR",
        "payments": [{"method": "card", "amount_minor": card}, {"method": "gift_card", "amount_minor": gift_card}],
    });
    v1::AuthorizeRequest {
        delegation: asserted("settlement-bot", "clerk-1", "settlement"),
        action: "refund.issue".into(),
        resource: Some(v1::Resource {
            r#ref: Some(v1::EntityReference { r#type: "Booking".into(), id: "booking-1".into() }),
            attributes_json: BOOKING.into(),
            ..Default::default()
        }),
        case: Some(v1::Case {
            id: "enquiry-1".into(),
            version: "1".into(),
            tenant: "north".into(),
            attributes_json: ENQUIRY.into(),
        }),
        arguments_json: arguments.to_string().into(),
        model: Some(v1::Model { name: "test".into(), ..Default::default() }),
        conversation_id: "chat-7".into(),
        ..Default::default()
    }
}

fn refund() -> v1::AuthorizeRequest {
    refund_of(10_000, 5_000)
}

fn with_consent(call: &v1::AuthorizeRequest, token: &str, operation: &str) -> v1::AuthorizeRequest {
    v1::AuthorizeRequest { consent_token: token.into(), operation_id: operation.into(), ..call.clone() }
}

/// Returns the report that the traveller agrees to the English text of a denial.
fn answer(denied: &v1::AuthorizeResponse) -> v1::ReportConsentRequest {
    let request = denied.access_request.clone().unwrap();
    let shown = request.consent_texts.iter().find(|text| text.language == "en").unwrap();
    v1::ReportConsentRequest {
        evaluation_id: denied.evaluation_id.clone(),
        binding_token: request.binding_token,
        customer_id: "traveller-1".into(),
        answer: v1::ConsentAnswer::Agree.into(),
        text_digest: Sha256::digest(&shown.text).to_vec().into(),
        message_id: "message-9".into(),
    }
}

fn refused(report: v1::ReportConsentRequest) -> v1::ReportConsentRequest {
    v1::ReportConsentRequest { answer: v1::ConsentAnswer::Refuse.into(), ..report }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_customer_agrees_to_one_call_once_and_each_step_is_recorded() {
    on_both_engines!(travel, {
        let denied = travel.denied(&refund()).await;
        let request = denied.access_request.clone().unwrap();
        let texts: Vec<_> =
            request.consent_texts.iter().map(|text| (text.language.as_str(), text.text.as_str())).collect();
        assert_eq!(texts[1], ("en", SHOWN));
        assert_eq!(texts[0].0, "de");
        assert_eq!(
            (request.template.as_str(), request.requires.as_slice()),
            ("refund", &["consent:refund".to_owned()][..])
        );
        let consent = travel.report(answer(&denied)).await.unwrap();
        assert_eq!((consent.state(), consent.display.as_str()), (v1::ApprovalState::Approved, SHOWN));
        let said = consent.customer_answer.clone().unwrap();
        assert_eq!(
            (said.customer_id.as_str(), said.agrees, said.reported_by.as_str(), said.message_id.as_str()),
            ("traveller-1", true, "chat", "message-9")
        );
        assert!(consent.approvers.is_empty(), "no human of the bundle approved");
        // A report that is repeated changes nothing. The chat, which does not make the call, gets no token.
        assert_eq!(travel.report(answer(&denied)).await.unwrap().id, consent.id);
        let read = travel.chat.get_approval(v1::GetApprovalRequest { id: consent.id.clone() }).await;
        assert_eq!(read.unwrap_err().code(), Code::NotFound);
        let token = travel.payments.fetch(&consent.id).await.unwrap();
        let allowed = travel.payments.ask(&with_consent(&refund(), &token, "op-1")).await;
        assert_eq!((allowed.decision(), allowed.repeated), (v1::Decision::Allow, false), "{allowed:?}");
        let used = allowed.consent.clone().unwrap();
        assert_eq!(
            (used.id.as_str(), used.reported_by.as_str(), allowed.approval.is_none()),
            (consent.id.as_str(), "chat", true)
        );
        // A retry of the operation gets the same answer; another operation is denied.
        let again = travel.payments.ask(&with_consent(&refund(), &token, "op-1")).await;
        assert_eq!(
            (again.repeated, &again.evaluation_id, &again.consent),
            (true, &allowed.evaluation_id, &allowed.consent)
        );
        let other = travel.payments.ask(&with_consent(&refund(), &token, "op-2")).await;
        assert_eq!((other.decision(), other.reason()), (v1::Decision::Deny, v1::Reason::ApprovalUsed));

        let lines = lines(&travel.app.data);
        let of = |kind: &str| lines.iter().filter(|line| line["type"] == kind).collect::<Vec<_>>();
        assert_eq!((of("consent.reported").len(), of("consent.token_issued").len()), (1, 1));
        assert_eq!(of("approval.requested").len() + of("approval.reviewed").len(), 0);
        let reported = of("consent.reported")[0];
        assert_eq!(
            (&reported["by"]["tool_service"], &reported["state"], &reported["decision"], &reported["message"]),
            (&json!("chat"), &json!("approved"), &json!("agree"), &json!("message-9"))
        );
        assert_eq!((&reported["consent"]["id"], &reported["consent"]["approvers"]), (&json!(consent.id), &json!([])));
        assert_eq!(reported["correlation"]["conversation"], "chat-7");
        let allows: Vec<&Value> = lines.iter().filter(|line| line["decision"] == "allow").collect();
        assert_eq!(
            (allows.len(), &allows[0]["consent"]["id"], &allows[0]["consent"]["operation"]),
            (1, &json!(consent.id), &json!("op-1"))
        );
        // The customer, the text and the token appear nowhere in clear.
        let text = serde_json::to_string(&lines).unwrap();
        assert!(!text.contains("traveller-1") && !text.contains("150.00") && !text.contains(&token), "{text}");
        verify(&travel.app.data.join("audit")).unwrap();
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_counts_only_from_the_chat_for_the_cases_customer_and_a_text_of_the_bundle() {
    on_both_engines!(travel, {
        let denied = travel.denied(&refund()).await;
        let other = travel.denied(&refund_of(9_000, 1)).await;
        let digest = |text: &str| -> bytes::Bytes { Sha256::digest(text).to_vec().into() };
        let good = || answer(&denied);
        let tampered = {
            let token = good().binding_token;
            let (head, signature) = token.rsplit_once('.').unwrap();
            format!("{head}.{}", signature.chars().rev().collect::<String>())
        };
        let rows = [
            (
                "another customer",
                v1::ReportConsentRequest { customer_id: "traveller-2".into(), ..good() },
                Code::FailedPrecondition,
            ),
            (
                "a text of the agent",
                v1::ReportConsentRequest { text_digest: digest("Do you agree?"), ..good() },
                Code::FailedPrecondition,
            ),
            (
                "the text of another amount",
                v1::ReportConsentRequest { text_digest: digest(&SHOWN.replace("150", "15")), ..good() },
                Code::FailedPrecondition,
            ),
            (
                "the evaluation of another call",
                v1::ReportConsentRequest { evaluation_id: other.evaluation_id.clone(), ..good() },
                Code::PermissionDenied,
            ),
            (
                "a forged binding",
                v1::ReportConsentRequest { binding_token: tampered, ..good() },
                Code::FailedPrecondition,
            ),
            ("no answer", v1::ReportConsentRequest { answer: 0, ..good() }, Code::InvalidArgument),
            ("an unknown answer", v1::ReportConsentRequest { answer: 9, ..good() }, Code::InvalidArgument),
            ("no customer", v1::ReportConsentRequest { customer_id: String::new(), ..good() }, Code::InvalidArgument),
            (
                "no digest",
                v1::ReportConsentRequest { text_digest: bytes::Bytes::new(), ..good() },
                Code::InvalidArgument,
            ),
            (
                "a message in words",
                v1::ReportConsentRequest { message_id: "yes please".into(), ..good() },
                Code::InvalidArgument,
            ),
        ];
        for (what, report, expected) in rows {
            let refused = travel.report(report).await.unwrap_err();
            assert_eq!(refused.code(), expected, "{what}: {refused:?}");
            assert!(!refused.message().contains("traveller-2"), "{what}: {refused:?}");
        }
        // Whoever makes the call does not report, even if the traveller did agree.
        let own = travel.payments.approvals.report_consent(good()).await.unwrap_err();
        assert_eq!(own.code(), Code::PermissionDenied);
        // No reviewer can stand in for the traveller.
        let request = v1::RequestApprovalRequest {
            evaluation_id: denied.evaluation_id.clone(),
            binding_token: good().binding_token,
            justification: Some(justification()),
            ..Default::default()
        };
        let refused = travel.payments.approvals.request_approval(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        // A denial that waited too long can't be answered.
        travel.hands.forward(16 * 60);
        travel.app.pdp.refresh().await;
        assert_eq!(travel.report(good()).await.unwrap_err().code(), Code::FailedPrecondition);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consent_holds_for_no_other_call() {
    on_both_engines!(travel, {
        let (consent, token) = travel.agreed(&refund()).await;
        let call = with_consent(&refund(), &token, "op");
        let case = |change: fn(&mut v1::Case)| {
            let mut case = call.case.clone().unwrap();
            change(&mut case);
            v1::AuthorizeRequest { case: Some(case), ..call.clone() }
        };
        let booking = |from: &str, to: &str| {
            let resource =
                v1::Resource { attributes_json: BOOKING.replace(from, to).into(), ..call.resource.clone().unwrap() };
            v1::AuthorizeRequest { resource: Some(resource), ..call.clone() }
        };
        let rows = [
            (
                "a smaller amount",
                v1::AuthorizeRequest { arguments_json: refund_of(9_999, 5_000).arguments_json, ..call.clone() },
                v1::Reason::ApprovalOutOfScope,
            ),
            ("a newer version of the case", case(|case| case.version = "2".into()), v1::Reason::CaseChanged),
            ("another case", case(|case| case.id = "enquiry-2".into()), v1::Reason::ApprovalOutOfScope),
            ("another fact about the booking", booking("72", "73"), v1::Reason::ApprovalOutOfScope),
            (
                "another agent",
                v1::AuthorizeRequest { delegation: asserted("settlement-bot", "lead-1", "settlement"), ..call.clone() },
                v1::Reason::ApprovalOutOfScope,
            ),
            (
                "the token as an approval",
                v1::AuthorizeRequest { approval_token: token.clone(), consent_token: String::new(), ..call.clone() },
                v1::Reason::ApprovalUnverifiable,
            ),
            (
                "a forged token",
                v1::AuthorizeRequest { consent_token: format!("{token}x"), ..call.clone() },
                v1::Reason::ApprovalUnverifiable,
            ),
        ];
        for (what, changed, expected) in rows {
            let answer = travel.payments.ask(&changed).await;
            assert_eq!((answer.decision(), answer.reason()), (v1::Decision::Deny, expected), "{what}: {answer:?}");
        }
        // Another traveller's enquiry names another owner, which the case gate denies before the token counts.
        let stolen = v1::Case {
            attributes_json: ENQUIRY.replace("traveller-1", "traveller-2").into(),
            ..call.case.clone().unwrap()
        };
        let stolen = travel.payments.ask(&v1::AuthorizeRequest { case: Some(stolen), ..call.clone() }).await;
        assert_eq!(stolen.decision(), v1::Decision::Deny);
        // After its minutes, the traveller must be asked again.
        travel.hands.forward(10 * 60 + 1);
        travel.app.pdp.refresh().await;
        assert_eq!(travel.payments.fetch(&consent.id).await.unwrap(), "");
        let late = travel.payments.ask(&call).await;
        assert_eq!(late.reason(), v1::Reason::ConsentRequired, "{late:?}");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_customer_may_refuse_and_take_a_consent_back() {
    on_both_engines!(travel, {
        let denied = travel.denied(&refund()).await;
        let no = travel.report(refused(answer(&denied))).await.unwrap();
        assert_eq!((no.state(), no.customer_answer.unwrap().agrees), (v1::ApprovalState::Denied, false));
        assert_eq!(travel.payments.fetch(&no.id).await.unwrap(), "");
        assert_eq!(travel.report(refused(answer(&denied))).await.unwrap().id, no.id);
        // The same denial can't become a yes; the call must be decided again, and the customer asked again.
        assert_eq!(travel.report(answer(&denied)).await.unwrap_err().code(), Code::FailedPrecondition);

        let denied = travel.denied(&refund()).await;
        travel.hands.forward(8 * 60);
        travel.app.pdp.refresh().await;
        let second = v1::ReportConsentRequest { message_id: "message-8".into(), ..answer(&denied) };
        let yes = travel.report(second).await.unwrap();
        let token = travel.payments.fetch(&yes.id).await.unwrap();
        // The binding token has expired, and the consent has not.
        travel.hands.forward(9 * 60);
        travel.app.pdp.refresh().await;
        let back = travel.report(refused(answer(&denied))).await.unwrap();
        assert_eq!((&back.id, back.state()), (&yes.id, v1::ApprovalState::Revoked));
        let answered = travel.payments.ask(&with_consent(&refund(), &token, "op-1")).await;
        assert_eq!((answered.decision(), answered.reason()), (v1::Decision::Deny, v1::Reason::ApprovalRevoked));

        // What was consumed can't be taken back. One message is the answer to one denial only.
        let own = travel.denied(&refund()).await;
        assert_eq!(travel.report(answer(&own)).await.unwrap_err().code(), Code::FailedPrecondition);
        let other = v1::ReportConsentRequest { message_id: "message-10".into(), ..answer(&own) };
        let consent = travel.report(other).await.unwrap();
        let token = travel.payments.fetch(&consent.id).await.unwrap();
        assert_eq!(travel.payments.ask(&with_consent(&refund(), &token, "op-2")).await.decision(), v1::Decision::Allow);
        assert_eq!(travel.report(refused(answer(&own))).await.unwrap_err().code(), Code::FailedPrecondition);
        let states: Vec<Value> = lines(&travel.app.data)
            .into_iter()
            .filter(|line| line["type"] == "consent.reported")
            .map(|line| line["state"].clone())
            .collect();
        assert_eq!(states, ["denied", "approved", "revoked", "approved"]);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reviewer_sees_the_consent_and_the_call_consumes_both() {
    on_both_engines!(travel, {
        let issuer = Issuer::of(&travel.app.data);
        let large = refund_of(15_000, 15_000);
        let denied = travel.denied(&large).await;
        assert_eq!(denied.access_request.clone().unwrap().requires, ["approval:refund", "consent:refund"]);
        let (consent, consent_token) = travel.agreed(&large).await;
        // The call that brings the consent is denied for lack of the approval only, and consumes nothing.
        let asked = travel.payments.ask(&with_consent(&large, &consent_token, "op-0")).await;
        assert_eq!(asked.reason(), v1::Reason::ApprovalRequired, "{asked:?}");
        assert!(asked.access_request.clone().unwrap().consent_texts.is_empty());
        let approval = travel.payments.request_of(asked).await.unwrap();
        for expected in [
            "computed paid_minor: 30000",
            &format!("customer's consent: {} of ", consent.id),
            "reported by chat",
            "shown to the customer: We will pay 300.00 EUR back",
        ] {
            assert!(approval.display.contains(expected), "{expected}: {}", approval.display);
        }
        travel.payments.review(&approval, true, &issuer.human("lead-1")).await.unwrap();
        let approval_token = travel.payments.fetch(&approval.id).await.unwrap();
        let with = |approval: &str, consent: &str, operation: &str| v1::AuthorizeRequest {
            approval_token: approval.into(),
            consent_token: consent.into(),
            operation_id: operation.into(),
            ..large.clone()
        };
        let alone = travel.payments.ask(&with(&approval_token, "", "op-1")).await;
        assert_eq!(alone.reason(), v1::Reason::ConsentRequired, "an approval is no consent: {alone:?}");
        // A token that can't be used denies the call, and the other one stays usable.
        let wrong = travel.payments.ask(&with(&approval_token, &approval_token, "op-1")).await;
        assert_eq!(wrong.reason(), v1::Reason::ApprovalUnverifiable);
        let both = travel.payments.ask(&with(&approval_token, &consent_token, "op-1")).await;
        assert_eq!(both.decision(), v1::Decision::Allow, "{both:?}");
        assert_eq!((both.approval.unwrap().id, both.consent.unwrap().id), (approval.id.clone(), consent.id.clone()));
        for (approval, consent, expected) in [
            (approval_token.as_str(), "", v1::Reason::ApprovalUsed),
            ("", consent_token.as_str(), v1::Reason::ApprovalUsed),
            (&approval_token, &consent_token, v1::Reason::ApprovalUsed),
        ] {
            assert_eq!(travel.payments.ask(&with(approval, consent, "op-2")).await.reason(), expected);
        }
        assert!(travel.payments.ask(&with(&approval_token, &consent_token, "op-1")).await.repeated);
    });
}

/// Threats 7 and 8, for consents: 40 racing uses by different operations, and one of them is allowed.
#[tokio::test(flavor = "multi_thread")]
async fn racing_uses_of_a_consent_give_one_allow() {
    on_both_engines!(travel, {
        let (_, token) = travel.agreed(&refund()).await;
        let mut racing = tokio::task::JoinSet::new();
        for index in 0..40 {
            let (mut decisions, call) =
                (travel.payments.decisions.clone(), with_consent(&refund(), &token, &format!("op-{index}")));
            racing.spawn(async move { decisions.authorize(call).await.unwrap().into_inner() });
        }
        let answers = within("the racing uses", racing.join_all()).await;
        let allowed = answers.iter().filter(|answer| answer.decision() == v1::Decision::Allow).count();
        assert_eq!(allowed, 1);
        assert!(
            answers
                .iter()
                .filter(|answer| answer.decision() != v1::Decision::Allow)
                .all(|answer| answer.reason() == v1::Reason::ApprovalUsed)
        );
    });
}

/// A consent whose reporter has lost the right no longer counts, and a kill switch on the customer stops its use.
#[tokio::test(flavor = "multi_thread")]
async fn a_consent_falls_with_the_right_of_its_reporter() {
    on_both_engines!(travel, {
        let (_, token) = travel.agreed(&refund()).await;
        let roles = travel.folder.path().join("travel/roles.cedar");
        let text = std::fs::read_to_string(&roles).unwrap();
        let at = text.find("@id(\"consent.reporters\")").unwrap();
        let rest = text[at..].split_once("resource);").unwrap().1;
        std::fs::write(&roles, format!("{}{rest}", &text[..at])).unwrap();
        travel.app.pdp.reload(Trigger::Asked).await.unwrap();
        let answered = travel.payments.ask(&with_consent(&refund(), &token, "op-1")).await;
        assert_eq!((answered.decision(), answered.reason()), (v1::Decision::Deny, v1::Reason::ApprovalRevoked));
        let denied = travel.denied(&refund()).await;
        assert_eq!(travel.report(answer(&denied)).await.unwrap_err().code(), Code::PermissionDenied);
    });
}
