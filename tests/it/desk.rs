//! The approval desk over HTTP: sign-in, reviews, and what must not be possible. `browser` tests it in a real browser.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use countersign::api::v1;
use reqwest::header::{self, HeaderMap};
use reqwest::{Response, StatusCode};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::content::{evaluate, prepare, to_evaluate, to_prepare, to_send};
use crate::harness::people::{Desk, Issuer, bearer, credit, justification, with_token};
use crate::harness::{Process, channel, copy, lines, order_check, policies, temp};
use crate::replay::containing;

/// A server with a desk, and its data folder.
pub(crate) struct Pages {
    pub(crate) server: Process,
    pub(crate) data: PathBuf,
    _folder: tempfile::TempDir,
}

impl Pages {
    pub(crate) fn start(more: &[&str]) -> Self {
        let folder = temp();
        let data = folder.path().join("data");
        let server = Process::serve(&data, &[&["--desk-listen", "127.0.0.1:0"], more].concat(), |_| {});
        Self { server, data, _folder: folder }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.server.desk.unwrap())
    }

    pub(crate) fn link(&self) -> String {
        std::fs::read_to_string(self.data.join("desk-link")).unwrap().trim().to_owned()
    }

    pub(crate) async fn calls(&self) -> Desk {
        Desk::new(channel(self.server.grpc).await)
    }

    /// Signs a human in.
    async fn human(&self, id: &str) -> Browser {
        let mut browser = Browser { url: self.url(), cookie: String::new(), client: client() };
        let answer = browser.post(&self.link().replace(&self.url(), ""), &[("human", id)]).await;
        assert_eq!(answer.status(), StatusCode::SEE_OTHER);
        browser.cookie = cookie(answer.headers());
        browser
    }
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap()
}

/// Returns the session's cookie of an answer, as a browser sends it back.
fn cookie(headers: &HeaderMap) -> String {
    let mut all = headers.get_all(header::SET_COOKIE).iter().map(|value| value.to_str().unwrap());
    let own = all.find(|cookie| cookie.starts_with("countersign-desk=")).unwrap();
    own.split(';').next().unwrap().to_owned()
}

/// Returns the value of a field of a form.
fn field(page: &str, name: &str) -> String {
    let (_, rest) =
        page.split_once(&format!("name=\"{name}\" value=\"")).unwrap_or_else(|| panic!("no {name}: {page}"));
    rest.split('"').next().unwrap().to_owned()
}

/// Client that sends the requests of a browser.
struct Browser {
    url: String,
    cookie: String,
    client: reqwest::Client,
}

impl Browser {
    async fn get(&self, path: &str) -> Response {
        self.client.get(format!("{}{path}", self.url)).header(header::COOKIE, &self.cookie).send().await.unwrap()
    }

    async fn page(&self, path: &str) -> String {
        let answer = self.get(path).await;
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        answer.text().await.unwrap()
    }

    async fn post(&self, path: &str, fields: &[(&str, &str)]) -> Response {
        self.post_from(path, fields, Some(&self.url)).await
    }

    async fn post_from(&self, path: &str, fields: &[(&str, &str)], origin: Option<&str>) -> Response {
        let pairs = fields.iter().map(|(name, value)| format!("{name}={}", encoded(value)));
        let mut request = self
            .client
            .post(format!("{}{path}", self.url))
            .header(header::COOKIE, &self.cookie)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        if let Some(origin) = origin {
            request = request.header(header::ORIGIN, origin);
        }
        request.body(pairs.collect::<Vec<_>>().join("&")).send().await.unwrap()
    }

    /// Returns the fields of a review, as the page of the request has them.
    async fn form(&self, id: &str) -> (String, String) {
        let page = self.page(&format!("/requests/{id}")).await;
        (field(&page, "form"), field(&page, "digest"))
    }

    async fn review(&self, id: &str, decision: &str) -> Response {
        let (form, digest) = self.form(id).await;
        let fields = [
            ("form", &*form),
            ("digest", &*digest),
            ("decision", decision),
            ("reason", "other"),
            ("text", "as agreed"),
        ];
        self.post(&format!("/requests/{id}"), &fields).await
    }
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_signs_one_human_in_once_and_a_session_ends_with_its_sign_out() {
    let pages = Pages::start(&[]);
    let link = pages.link();
    let mode = std::fs::metadata(pages.data.join("desk-link")).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let nobody = Browser { url: pages.url(), cookie: String::new(), client: client() };
    for path in ["/", "/requests/apr_1", "/decisions", "/cases/c", "/stops", "/bundle", "/changes"] {
        let answer = nobody.get(path).await;
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{path}");
        assert!(answer.text().await.unwrap().contains("desk-link"), "{path} says how to sign in");
    }
    let lead = pages.human("lead-1").await;
    assert!(lead.page("/").await.contains("Nothing that you may see waits for approval."));
    // The link that was used does not work again, and another one does.
    let used = nobody.post(&link.replace(&pages.url(), ""), &[("human", "lead-2")]).await;
    assert_eq!(used.status(), StatusCode::NOT_FOUND);
    assert_ne!(pages.link(), link);
    let rep = pages.human("rep-1").await;
    assert!(rep.page("/").await.contains("rep-1"));
    // Somebody whom the bundle does not have can sign in to nothing.
    assert_eq!(pages.human("nobody").await.get("/").await.status(), StatusCode::UNAUTHORIZED);

    let form = field(&lead.page("/").await, "form");
    let foreign = field(&rep.page("/").await, "form");
    assert_eq!(lead.post("/logout", &[("form", &foreign)]).await.status(), StatusCode::FORBIDDEN);
    assert_eq!(lead.get("/logout").await.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(lead.get("/").await.status(), StatusCode::OK);
    let left = lead.post("/logout", &[("form", &form)]).await;
    assert_eq!(cookie(left.headers()), "countersign-desk=");
    // Whoever copied the cookie before has nothing.
    assert_eq!(lead.get("/").await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(rep.get("/").await.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_reviewed_once_by_who_may_with_the_form_of_its_own_page() {
    let pages = Pages::start(&[]);
    let mut calls = pages.calls().await;
    let waiting = calls.request(&credit(400)).await.unwrap();
    let path = format!("/requests/{}", waiting.id);
    let (lead, other) = (pages.human("lead-1").await, pages.human("lead-2").await);
    let inbox = lead.page("/").await;
    assert!(inbox.contains(&path) && inbox.contains("1 request waits") && !inbox.contains("not yours"), "{inbox}");
    let supervisor = pages.human("rep-1").await;
    assert!(supervisor.page("/").await.contains("not yours to review"));
    let own = supervisor.page(&path).await;
    assert!(own.contains("supervises this call herself") && !own.contains("id=\"decide\""), "{own}");

    let (form, digest) = lead.form(&waiting.id).await;
    let fields = |form: &str, digest: &str| {
        let text = |text: &str| text.to_owned();
        [("form", text(form)), ("digest", text(digest)), ("decision", text("approve")), ("text", text("fine"))]
    };
    async fn send(browser: &Browser, path: &str, fields: [(&str, String); 4], origin: Option<&str>) -> StatusCode {
        let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
        browser.post_from(path, &fields, origin).await.status()
    }
    let origin = pages.url();
    // With only an address, from another page, with another form, or with the digest of another view.
    assert_eq!(
        lead.get(&format!("{path}?decision=approve&form={form}&digest={digest}")).await.status(),
        StatusCode::OK
    );
    for foreign in [None, Some("https://evil.example"), Some("null"), Some("http://127.0.0.1")] {
        assert_eq!(send(&lead, &path, fields(&form, &digest), foreign).await, StatusCode::FORBIDDEN, "{foreign:?}");
    }
    let (others_form, _) = other.form(&waiting.id).await;
    assert_eq!(send(&lead, &path, fields(&others_form, &digest), Some(&origin)).await, StatusCode::FORBIDDEN);
    let wrong = "0".repeat(64);
    assert_eq!(send(&lead, &path, fields(&form, &wrong), Some(&origin)).await, StatusCode::CONFLICT);
    assert_eq!(send(&lead, &path, fields(&form, "x"), Some(&origin)).await, StatusCode::BAD_REQUEST);
    // Of another tenant, of the supervisor, of nobody.
    let foreign = pages.human("globex-lead").await;
    assert_eq!(foreign.get(&path).await.status(), StatusCode::NOT_FOUND);
    assert!(foreign.page("/").await.contains("Nothing that you may see"));
    let foreign_form = field(&foreign.page("/").await, "form");
    assert_eq!(send(&foreign, &path, fields(&foreign_form, &digest), Some(&origin)).await, StatusCode::NOT_FOUND);
    let supervisor_form = field(&own, "form");
    assert_eq!(send(&supervisor, &path, fields(&supervisor_form, &digest), Some(&origin)).await, StatusCode::FORBIDDEN);
    let nobody = Browser { url: pages.url(), cookie: lead.cookie.replace("=ey", "=fy"), client: client() };
    assert_eq!(send(&nobody, &path, fields(&form, &digest), Some(&origin)).await, StatusCode::UNAUTHORIZED);
    assert!(calls.fetch(&waiting.id).await.unwrap().is_empty(), "nothing was approved by any of these");

    // Two reviewers at once: one review counts.
    let (mine, theirs) = tokio::join!(lead.review(&waiting.id, "approve"), other.review(&waiting.id, "approve"));
    let mut both = [mine.status().as_u16(), theirs.status().as_u16()];
    both.sort_unstable();
    assert_eq!(both, [303, 409]);
    // The same form again.
    assert_eq!(send(&lead, &path, fields(&form, &digest), Some(&origin)).await, StatusCode::CONFLICT);
    let shown = lead.page(&path).await;
    assert!(shown.contains("Approved; may be used once") && !shown.contains("id=\"decide\""), "{shown}");
    let token = calls.fetch(&waiting.id).await.unwrap();
    assert_eq!(calls.ask(&with_token(&credit(400), &token, "op-1")).await.decision(), v1::Decision::Allow);
    assert!(lead.page(&path).await.contains("Approved and used."));
    let reviewed = lines(&pages.data).into_iter().find(|line| line["type"] == "approval.reviewed").unwrap();
    assert_eq!(reviewed["display_digest"].as_str().unwrap().len(), 43, "{reviewed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denial_has_a_reason_and_may_suggest_other_arguments() {
    let pages = Pages::start(&[]);
    let mut calls = pages.calls().await;
    let waiting = calls.request(&credit(400)).await.unwrap();
    let lead = pages.human("lead-1").await;
    let (form, digest) = lead.form(&waiting.id).await;
    let path = format!("/requests/{}", waiting.id);
    let with = |reason: &'static str, suggested: &'static str| {
        [
            ("form", form.clone()),
            ("digest", digest.clone()),
            ("decision", "deny".into()),
            ("reason", reason.into()),
            ("text", "half of it".into()),
            ("suggests", "yes".into()),
            ("suggested", suggested.into()),
        ]
    };
    for (reason, suggested, status) in [
        ("", r#"{"amount_minor":200,"currency":"EUR"}"#, StatusCode::BAD_REQUEST),
        ("wrong_amount", "no JSON", StatusCode::BAD_REQUEST),
        ("wrong_amount", r#"{"amount_minor":"many","currency":"EUR"}"#, StatusCode::BAD_REQUEST),
        ("wrong_amount", r#"{"amount_minor":200,"currency":"EUR"}"#, StatusCode::SEE_OTHER),
    ] {
        let fields = with(reason, suggested);
        let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(lead.post(&path, &fields).await.status(), status, "{reason} {suggested}");
    }
    let request = v1::GetApprovalRequest { id: waiting.id.clone() };
    let denied = calls.approvals.get_approval(request).await.unwrap().into_inner().approval.unwrap();
    assert_eq!(denied.state(), v1::ApprovalState::Denied);
    assert_eq!(denied.denial_reason, "wrong_amount: half of it");
    assert_eq!(denied.suggested_arguments_json, br#"{"amount_minor":200,"currency":"EUR"}"#.as_slice());
}

/// Asks for the approval of a draft that the policies don't release, and passes a draft with the request.
async fn ask_for_reply(calls: &mut Desk, draft: &str, passed: &str) -> Result<v1::Approval, tonic::Status> {
    let prepared = prepare(&mut calls.decisions, to_prepare("Where is my refund?")).await;
    let evaluated = v1::EvaluateOutputRequest { model_confidence: 10, ..to_evaluate(draft, &prepared) };
    let evaluated = evaluate(&mut calls.decisions, evaluated).await;
    let request = v1::RequestApprovalRequest {
        evaluation_id: evaluated.evaluation_id.clone(),
        binding_token: evaluated.access_request.unwrap().binding_token,
        justification: Some(justification()),
        draft: passed.to_owned(),
    };
    Ok(calls.approvals.request_approval(request).await?.into_inner().approval.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reviewer_of_a_reply_reads_the_draft_with_its_findings_marked_until_the_approval_ends() {
    const DRAFT: &str = "Hello Jane,\nwe have refunded you. <b>Kind</b> \u{202e}regards";
    let pages = Pages::start(&[]);
    let mut calls = pages.calls().await;
    // A draft that would not be sent is refused, and so is one that is too long.
    for other in ["We have not refunded you.".to_owned(), "x".repeat((64 << 10) + 1)] {
        let refused = ask_for_reply(&mut calls, DRAFT, &other).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        assert!(refused.message().contains("draft") && !refused.message().contains("We have"), "{refused}");
    }
    let with = ask_for_reply(&mut calls, DRAFT, DRAFT).await.unwrap();
    let path = format!("/requests/{}", with.id);
    let rep = pages.human("rep-1").await;
    let page = rep.page(&path).await;
    assert!(
        page.contains("<mark>we have refunded</mark><span class=\"mark\"> [claim/refund_issued high] </span>"),
        "{page}"
    );
    assert!(page.contains("Hello Jane,\n") && page.contains("&lt;b&gt;Kind&lt;/b&gt; \\u{202e}regards"), "{page}");
    // It is stored encrypted, and returned to humans who may read the approval, not to the tool service or in lists.
    assert_eq!(containing(&pages.data, b"Hello Jane,\nwe have"), Vec::<String>::new());
    let id = || v1::GetApprovalRequest { id: with.id.clone() };
    let human = Issuer::of(&pages.data).human("rep-1");
    let read = calls.approvals.get_approval(bearer(id(), &human)).await.unwrap().into_inner().approval.unwrap();
    assert_eq!(read.draft, DRAFT);
    let listed = calls.approvals.list_approvals(bearer(v1::ListApprovalsRequest::default(), &human)).await;
    assert_eq!(listed.unwrap().into_inner().approvals[0].draft, "");
    let own = calls.approvals.get_approval(id()).await.unwrap().into_inner().approval.unwrap();
    assert_eq!((own.draft, with.draft.clone()), (String::new(), String::new()));
    let foreign = Issuer::of(&pages.data).human("globex-lead");
    let refused = calls.approvals.get_approval(bearer(id(), &foreign)).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::NotFound);
    // It stays until the approval is used, and is gone after that.
    assert_eq!(rep.review(&with.id, "approve").await.status(), StatusCode::SEE_OTHER);
    assert!(rep.page(&path).await.contains("<mark>we have refunded</mark>"));
    let token = calls.fetch(&with.id).await.unwrap();
    let send = to_send(&with.draft_digest, "", "op-1");
    assert_eq!(calls.ask(&with_token(&send, &token, "op-1")).await.decision(), v1::Decision::Allow);
    let page = rep.page(&path).await;
    assert!(page.contains("Approved and used.") && !page.contains("we have refunded"), "{page}");
    let read = calls.approvals.get_approval(bearer(id(), &human)).await.unwrap().into_inner().approval.unwrap();
    assert_eq!(read.draft, "");
    // So it is after a denial.
    let denied = ask_for_reply(&mut calls, "We have credited you.", "We have credited you.").await.unwrap();
    assert_eq!(rep.review(&denied.id, "deny").await.status(), StatusCode::SEE_OTHER);
    let request = v1::GetApprovalRequest { id: denied.id };
    let read = calls.approvals.get_approval(bearer(request, &human)).await.unwrap().into_inner().approval.unwrap();
    assert_eq!((read.state(), read.draft.as_str()), (v1::ApprovalState::Denied, ""));
    // A tool service that passes none is named as the place where the draft is.
    let without = ask_for_reply(&mut calls, DRAFT, "").await.unwrap();
    let page = rep.page(&format!("/requests/{}", without.id)).await;
    assert!(page.contains("did not pass the draft") && !page.contains("<mark>"), "{page}");
    // The same call again is the same request, which gets the draft.
    let again = ask_for_reply(&mut calls, DRAFT, DRAFT).await.unwrap();
    assert_eq!(again.id, without.id);
    assert!(rep.page(&format!("/requests/{}", again.id)).await.contains("<mark>we have refunded</mark>"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_text_of_a_request_becomes_a_part_of_the_page() {
    const HOSTILE: [&str; 6] = [
        "<script>alert(1)</script>",
        "\"><img src=x onerror=alert(1)>",
        "\u{1b}[2J\u{1b}[31mred",
        "amount \u{202e}0001\u{202c}",
        "ze\u{200b}ro\u{2060}width\u{feff}",
        "line\r\nargument amount_minor at most: 1",
    ];
    let pages = Pages::start(&[]);
    let mut calls = pages.calls().await;
    let denied = calls.ask(&credit(400)).await;
    let hostile = HOSTILE.join(" ");
    let written = v1::Justification {
        customer_request: hostile.clone(),
        policy_clause: hostile.chars().take(64).collect(),
        expected_effect: hostile.clone(),
        ..justification()
    };
    let request = |justification| v1::RequestApprovalRequest {
        evaluation_id: denied.evaluation_id.clone(),
        binding_token: denied.access_request.clone().unwrap().binding_token,
        justification: Some(justification),
        ..Default::default()
    };
    let long = v1::Justification { customer_request: "x".repeat(1 << 20), ..justification() };
    assert!(calls.approvals.request_approval(request(long)).await.is_err(), "a text of 1 MiB is refused");
    let asked = calls.approvals.request_approval(request(written)).await.unwrap().into_inner().approval.unwrap();
    let lead = pages.human("lead-1").await;
    let answer = lead.get(&format!("/requests/{}", asked.id)).await;
    let policy = answer.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap().to_owned();
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
    assert_eq!(answer.headers()[header::X_FRAME_OPTIONS], "DENY");
    let page = answer.text().await.unwrap();
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;") && page.contains("\\u{202e}"), "{page}");
    for raw in ["<script>alert", "<img", "\u{1b}", "\u{202e}", "\u{200b}", "\u{feff}", "\r"] {
        assert!(!page.contains(raw), "{raw:?} is in the page");
    }
    // What an agent wrote can't look like a line of the call.
    assert_eq!(page.matches("argument amount_minor at most</dt>").count(), 1);
    // The search shows what was typed, and the address of a request that is no id.
    for path in [
        "/?q=%3Cscript%3Ealert(1)%3C/script%3E",
        "/requests/%3Cscript%3E",
        "/cases/%3Cscript%3Ealert(1)%3C%2Fscript%3E",
    ] {
        assert!(!lead.get(path).await.text().await.unwrap().contains("<script>"), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn humans_on_call_stop_an_agent_and_two_of_them_lift_that() {
    let pages = Pages::start(&[]);
    let mut calls = pages.calls().await;
    let (lead, second, rep) = (pages.human("lead-1").await, pages.human("lead-2").await, pages.human("rep-1").await);
    assert_eq!(rep.get("/stops").await.status(), StatusCode::FORBIDDEN);
    assert!(lead.page("/stops").await.contains("Nothing is stopped."));
    let form = field(&lead.page("/stops").await, "form");
    let set = |subject: &'static str, reason: &'static str| {
        [
            ("form", form.clone()),
            ("kind", "agent".to_owned()),
            ("subject", subject.to_owned()),
            ("hours", "8".to_owned()),
            ("reason", reason.to_owned()),
        ]
    };
    async fn send<const N: usize>(browser: &Browser, path: &str, fields: &[(&str, String); N]) -> StatusCode {
        let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
        browser.post(path, &fields).await.status()
    }
    assert_eq!(send(&lead, "/stops", &set("support-bot", " ")).await, StatusCode::BAD_REQUEST);
    assert_eq!(send(&lead, "/stops", &set("no-such-agent", "why")).await, StatusCode::FORBIDDEN);
    let rep_form = field(&rep.page("/").await, "form");
    let mut forbidden = set("support-bot", "why");
    forbidden[0].1.clone_from(&rep_form);
    assert_eq!(send(&rep, "/stops", &forbidden).await, StatusCode::FORBIDDEN);
    assert_eq!(calls.ask(&order_check()).await.decision(), v1::Decision::Allow);
    assert_eq!(send(&lead, "/stops", &set("support-bot", "it was turned")).await, StatusCode::SEE_OTHER);
    assert_eq!(calls.ask(&order_check()).await.decision(), v1::Decision::Deny);
    let shown = lead.page("/stops").await;
    assert!(shown.contains("support-bot") && shown.contains("kill switch since"), "{shown}");
    assert!(lead.page("/").await.contains("1 kill switch or revoked session is in force."));

    for (browser, status) in [(&lead, StatusCode::OK), (&lead, StatusCode::OK), (&second, StatusCode::SEE_OTHER)] {
        let page = browser.page("/stops").await;
        let lift = [
            ("form", field(&page, "form")),
            ("kind", "agent".to_owned()),
            ("subject", "support-bot".to_owned()),
            ("tenant", field(&page, "tenant")),
            ("reason", "it was mended".to_owned()),
        ];
        assert_eq!(send(browser, "/stops/lift", &lift).await, status);
    }
    assert_eq!(calls.ask(&order_check()).await.decision(), v1::Decision::Allow);
    let set = lines(&pages.data).into_iter().find(|line| line["type"] == "signal.reported").unwrap();
    assert_eq!((set["by"]["human"].as_str(), set["subject"].as_str()), (Some("lead-1"), Some("support-bot")));
    assert!(set["reason_digest"].as_str().unwrap().starts_with("hmac-sha256:"), "{set}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_explorer_shows_why_of_the_own_tenant_alone_and_gives_the_proof() {
    let pages = Pages::start(&[]);
    let mut calls = pages.calls().await;
    let allowed = calls.ask(&order_check()).await;
    let denied = calls.ask(&credit(400)).await;
    let (lead, foreign, rep) =
        (pages.human("lead-1").await, pages.human("globex-lead").await, pages.human("rep-1").await);
    for path in ["/decisions", "/bundle", "/cases/case-1"] {
        assert_eq!(rep.get(path).await.status(), StatusCode::FORBIDDEN, "{path}");
    }
    let found = lead.page("/decisions?decision=deny&agent=refund-bot").await;
    assert!(found.contains("1 decision matches.") && found.contains(&denied.evaluation_id), "{found}");
    assert!(lead.page("/decisions?policy=agent.checks-orders").await.contains(&allowed.evaluation_id));
    assert!(lead.page("/decisions?case=no-such-case").await.contains("No decision matches."));
    assert!(foreign.page("/decisions").await.contains("No decision matches."));
    let of = |evaluation: &str| format!("/decisions/{evaluation}");
    assert_eq!(foreign.get(&of(&allowed.evaluation_id)).await.status(), StatusCode::NOT_FOUND);
    let shown = lead.page(&of(&allowed.evaluation_id)).await;
    for part in ["agent.checks-orders", "Agent::support-bot", "permit", "low 0"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    // Why not: which policy, and which clause of it.
    let shown = lead.page(&of(&denied.evaluation_id)).await;
    assert!(
        shown.contains("<code>credit.approved</code> forbids: <code>context has approval</code> is false"),
        "{shown}"
    );
    assert!(
        shown.contains(
            "<code>money.positive</code> does not forbid: <code>context.args.amount_minor &gt; 0</code> is true"
        ),
        "{shown}"
    );
    let case = lead.page("/cases/case-1").await;
    assert!(
        case.contains("2 lines, in order.") && case.contains("order.check") && case.contains("account.credit"),
        "{case}"
    );
    let bundle = lead.page("/bundle").await;
    assert!(bundle.contains("agent.checks-orders") && bundle.contains("sha256:"));

    // A checkpoint is signed within ten seconds; until then the page says so.
    let proof = format!("{}/proof", of(&allowed.evaluation_id));
    assert_eq!(foreign.get(&proof).await.status(), StatusCode::NOT_FOUND);
    let proven = async {
        loop {
            let answer = lead.get(&proof).await;
            if answer.status() == StatusCode::OK {
                return answer.text().await.unwrap();
            }
            assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    };
    let proof = crate::harness::within("proof", proven).await;
    assert!(proof.starts_with("c2sp.org/tlog-proof@v1\n"), "{proof}");
    let text = std::fs::read_to_string(pages.data.join("audit/seg-00000000000000000000.jsonl")).unwrap();
    let line = text.lines().find(|line| line.contains(&allowed.evaluation_id)).unwrap();
    assert!(check_proof(&pages.data, line, &proof));
    assert!(!check_proof(&pages.data, &line.replace("allow", "deny"), &proof));
}

#[tokio::test(flavor = "multi_thread")]
async fn links_lead_to_the_case_and_the_trace_and_a_refused_bundle_is_shown() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let folder = temp();
    let bundle = folder.path().join("bundle");
    copy(&policies(), &bundle);
    let accounts = std::fs::read_to_string(bundle.join("accounts.cedar")).unwrap();
    let two = accounts.replace("@requires(\"approval:credit\")", "@requires(\"approval:credit\") @quorum(\"2\")");
    assert_ne!(accounts, two);
    std::fs::write(bundle.join("accounts.cedar"), two).unwrap();
    let settings = folder.path().join("settings.yaml");
    let desk = serde_json::json!({
        "desk": {"trace_url": "https://traces.example/trace/{trace_id}", "case_url": "https://tickets.example/cases/{case}"},
    });
    std::fs::write(&settings, desk.to_string()).unwrap();
    let arguments = ["--config", settings.to_str().unwrap(), "--bundle", bundle.to_str().unwrap()];
    let pages = Pages::start(&arguments);
    let mut calls = pages.calls().await;
    let mut traced = tonic::Request::new(credit(400));
    traced.metadata_mut().insert("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-01").parse().unwrap());
    let denied = calls.decisions.authorize(traced).await.unwrap().into_inner();
    let waiting = calls.request_of(denied.clone()).await.unwrap();
    let (lead, second) = (pages.human("lead-1").await, pages.human("lead-2").await);
    let path = format!("/requests/{}", waiting.id);
    let page = lead.page(&path).await;
    assert!(
        page.contains("href=\"https://tickets.example/cases/case-1\"") && page.contains("Waits for 2 of 2 reviewers"),
        "{page}"
    );
    let trace = format!("href=\"https://traces.example/trace/{TRACE}\"");
    let page = lead.page(&format!("/decisions/{}", denied.evaluation_id)).await;
    assert!(page.contains(&trace), "{trace}: {page}");

    // One of two reviewers is not enough, and she can't review twice.
    assert_eq!(lead.review(&waiting.id, "approve").await.status(), StatusCode::SEE_OTHER);
    let page = second.page(&path).await;
    assert!(page.contains("Waits for 1 of 2 reviewers") && page.contains("<strong>lead-1</strong> approved"), "{page}");
    let page = lead.page(&path).await;
    assert!(!page.contains("id=\"decide\"") && page.contains("has reviewed this request already"), "{page}");
    assert!(calls.fetch(&waiting.id).await.unwrap().is_empty());
    assert_eq!(second.review(&waiting.id, "approve").await.status(), StatusCode::SEE_OTHER);
    assert!(!calls.fetch(&waiting.id).await.unwrap().is_empty());

    assert!(!lead.page("/bundle").await.contains("Refused"));
    std::fs::write(bundle.join("broken.cedar"), "permit (principal, action, resource) when { <b>oh</b> };").unwrap();
    pages.server.signal(rustix::process::Signal::HUP);
    let refused = async {
        loop {
            let page = lead.page("/bundle").await;
            if page.contains("Refused") {
                return page;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    let page = crate::harness::within("refused bundle", refused).await;
    assert!(
        page.contains("the one above stays in force") && page.contains("broken.cedar:1") && !page.contains("<b>oh"),
        "{page}"
    );
}

fn check_proof(data: &Path, line: &str, proof: &str) -> bool {
    let folder = temp();
    let (line_file, proof_file) = (folder.path().join("line.json"), folder.path().join("line.tlog-proof"));
    std::fs::write(&line_file, line).unwrap();
    std::fs::write(&proof_file, proof).unwrap();
    let key = data.join("keys/audit-checkpoint.vkey");
    let arguments =
        ["audit", "check-proof", line_file.to_str().unwrap(), proof_file.to_str().unwrap(), "--checkpoint-key"];
    let mut check = crate::harness::command(&arguments);
    check.arg(key).output().unwrap().status.success()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watching_browser_is_told_of_changes_and_nothing_else() {
    let pages = Pages::start(&[]);
    let lead = pages.human("lead-1").await;
    let mut stream = lead.get("/changes").await;
    assert_eq!(stream.headers()[header::CONTENT_TYPE], "text/event-stream");
    let mut calls = pages.calls().await;
    let waiting = async {
        // The stream tells changes since it looked first, so change something until it does.
        for amount in 1.. {
            calls.request(&credit(amount)).await.ok();
            let next = tokio::time::timeout(std::time::Duration::from_secs(3), stream.chunk()).await;
            if let Ok(Ok(Some(chunk))) = next {
                return String::from_utf8(chunk.to_vec()).unwrap();
            }
        }
        unreachable!("amounts do not end")
    };
    let told = crate::harness::within("event", waiting).await;
    let known = ["event: changed", "data: requests", ""];
    assert!(told.lines().all(|line| known.contains(&line.trim())) && told.contains("changed"), "{told}");
    // The list is read twice a second.
    let shown = async {
        while !lead.page("/").await.contains("account.credit") {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    crate::harness::within("request in the list", shown).await;
}

/// Requests approvals until the stream of a watching browser tells a change; fails if the stream was closed.
async fn assert_still_told(pages: &Pages, stream: &mut Response) {
    let mut calls = pages.calls().await;
    let told = async {
        for amount in 1.. {
            calls.request(&credit(amount)).await.ok();
            match tokio::time::timeout(std::time::Duration::from_secs(3), stream.chunk()).await {
                Ok(chunk) => return chunk.unwrap().unwrap(),
                Err(_) => continue,
            }
        }
        unreachable!("amounts do not end")
    };
    assert!(crate::harness::within("event", told).await.starts_with(b"event: changed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_strangers_close_no_connection_of_a_signed_in_human() {
    let pages = Pages::start(&[]);
    let lead = pages.human("lead-1").await;
    let mut stream = lead.get("/changes").await;
    let mut strangers = vec![];
    for _ in 0..700 {
        strangers.push(tokio::net::TcpStream::connect(pages.server.desk.unwrap()).await.unwrap());
    }
    // The page is still served on a new connection, and the stream still tells changes.
    let second = pages.human("lead-2").await;
    assert_eq!(second.get("/").await.status(), StatusCode::OK);
    assert_still_told(&pages, &mut stream).await;
    drop(strangers);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_one_human_close_only_her_own() {
    let pages = Pages::start(&[]);
    let (one, other) = (pages.human("lead-1").await, pages.human("lead-2").await);
    let mut stream = other.get("/changes").await;
    let address = pages.server.desk.unwrap();
    let page = format!("GET /requests/apr_none HTTP/1.1\r\nhost: {address}\r\ncookie: {}\r\n\r\n", one.cookie);
    let mut open = vec![];
    for _ in 0..600 {
        let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
        connection.write_all(page.as_bytes()).await.unwrap();
        let mut start = [0; 12];
        connection.read_exact(&mut start).await.unwrap();
        assert_eq!(&start, b"HTTP/1.1 404");
        open.push(connection);
    }
    // Her oldest connections were closed, and the other's stream still tells changes.
    let mut rest = vec![];
    crate::harness::within("end of a connection", open[0].read_to_end(&mut rest)).await.unwrap();
    assert_eq!(other.get("/").await.status(), StatusCode::OK);
    assert_still_told(&pages, &mut stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_made_again_is_one_request_and_is_counted() {
    let pages = Pages::start(&[]);
    let mut calls = pages.calls().await;
    let first = calls.request(&credit(400)).await.unwrap();
    let lead = pages.human("lead-1").await;
    let path = format!("/requests/{}", first.id);
    assert!(!lead.page("/").await.contains("requested again") && !lead.page(&path).await.contains("requested again"));
    for repeats in 1..=2 {
        let again = calls.request(&credit(400)).await.unwrap();
        assert_eq!((again.id.as_str(), again.repeats), (first.id.as_str(), repeats));
    }
    // The list is read twice a second.
    let shown = async {
        while !lead.page("/").await.contains("requested again 2 times") {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    crate::harness::within("count in the list", shown).await;
    assert!(lead.page("/").await.contains("1 request waits."));
    assert!(lead.page(&path).await.contains("The same call was requested again 2 times."));
    // Another call is another request.
    assert_eq!(calls.request(&credit(401)).await.unwrap().repeats, 0);
    // After a decision, nothing is counted.
    assert_eq!(lead.review(&first.id, "deny").await.status(), StatusCode::SEE_OTHER);
    assert!(calls.request(&credit(400)).await.is_err());
    assert!(lead.page(&path).await.contains("requested again 2 times"));
}

/// What a receiver of webhooks got: headers and body.
type Received = (HeaderMap, String);

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_is_signed_delivered_again_after_a_failure_and_says_nothing_personal() {
    const SECRET: &str = "a-secret-of-the-webhook-0123";
    let (sender, mut received) = tokio::sync::mpsc::unbounded_channel::<Received>();
    let first = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let take = move |headers: HeaderMap, body: String| {
        let (sender, fails) = (sender.clone(), first.swap(false, std::sync::atomic::Ordering::Relaxed));
        async move {
            if fails {
                return StatusCode::SERVICE_UNAVAILABLE;
            }
            sender.send((headers, body)).unwrap();
            StatusCode::NO_CONTENT
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let routes = axum::Router::new().route("/hook", axum::routing::post(take));
    tokio::spawn(async move { axum::serve(listener, routes).await });

    let folder = temp();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, SECRET).unwrap();
    let settings = folder.path().join("settings.yaml");
    let webhook = |tenant: &str| serde_json::json!({"tenant": tenant, "url": url, "secret_file": secret});
    let desk = serde_json::json!({"desk": {"webhooks": [webhook("acme"), webhook("globex")]}});
    std::fs::write(&settings, desk.to_string()).unwrap();
    let pages = Pages::start(&["--config", settings.to_str().unwrap()]);
    let mut calls = pages.calls().await;
    // Events are of changes since the server looked first, within its first second.
    let warm = async {
        loop {
            match tokio::time::timeout(std::time::Duration::from_secs(2), received.recv()).await {
                Ok(Some(event)) => return event,
                Ok(None) => panic!("the receiver is gone"),
                Err(_) => drop(calls.request(&credit(400)).await),
            }
        }
    };
    let (headers, body) = crate::harness::within("event", warm).await;
    let text = |name: &str| headers[name].to_str().unwrap().to_owned();
    assert_eq!(text("content-type"), "application/cloudevents+json");
    let signed = format!("{}.{}.{body}", text("webhook-id"), text("webhook-timestamp"));
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, SECRET.as_bytes());
    let mac = aws_lc_rs::hmac::sign(&key, signed.as_bytes());
    let mac = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, mac);
    assert_eq!(text("webhook-signature"), format!("v1,{mac}"));
    let event: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (event["specversion"].as_str(), event["type"].as_str()),
        (Some("1.0"), Some("countersign.approval.requested"))
    );
    assert_eq!(event["id"].as_str(), Some(&*text("webhook-id")));
    assert_eq!((event["data"]["tenant"].as_str(), event["data"]["state"].as_str()), (Some("acme"), Some("pending")));
    for personal in ["customer-1", "case-1", "rep-1", "The customer asks"] {
        assert!(!body.contains(personal), "{personal}: {body}");
    }
    // The link opens the page, and approves nothing.
    let id = event["data"]["approval"].as_str().unwrap().to_owned();
    let link = event["data"]["link"].as_str().unwrap().replace(&pages.url(), "");
    let lead = pages.human("lead-1").await;
    assert!(lead.page(&link).await.contains("Waits for 1 of 1 reviewers"));
    assert_eq!(lead.review(&id, "approve").await.status(), StatusCode::SEE_OTHER);
    let approved = async {
        loop {
            let (_, body) = received.recv().await.unwrap();
            let event: serde_json::Value = serde_json::from_str(&body).unwrap();
            if event["data"]["approval"] == id.as_str() && event["type"] == "countersign.approval.approved" {
                return;
            }
        }
    };
    crate::harness::within("event of the approval", approved).await;
}
