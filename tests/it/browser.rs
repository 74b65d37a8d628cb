//! The approval desk in a real browser (Chromium): `tests/browser` has the steps, and this file answers what they ask for.

use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use countersign::api::v1;

use crate::desk::Pages;
use crate::harness::people::{Desk, credit, with_token};
use crate::harness::{Process, channel, copy, open_root, temp, unprivileged};

/// Pictures of the pages, for people.
const SCREENSHOTS: &str = "target/screenshots";

/// Returns where the packages of `tests/browser` are installed.
fn modules() -> PathBuf {
    let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-browser");
    assert!(
        modules.join("node_modules/playwright-core").exists(),
        "the packages of the browser tests are missing: run `scripts/setup-tests`, or `make test`"
    );
    modules
}

/// Copies a folder with all that is below it.
fn copied(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-r").args([from, to]).status().unwrap();
    assert!(copied.success(), "`{}` can't be copied", from.display());
}

fn chromium() -> &'static str {
    let known = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
    let found = known.into_iter().find(|path| Path::new(path).exists());
    found.unwrap_or_else(|| panic!("there is no Chromium: run `scripts/setup-tests`, or `apt-get install chromium`"))
}

/// A script that drives the browser.
pub(crate) struct Steps {
    child: Child,
    _folder: tempfile::TempDir,
    screenshots: PathBuf,
}

impl Steps {
    pub(crate) fn start(script: &str, change: impl FnOnce(&mut Command)) -> Self {
        let folder = temp();
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser");
        for file in ["steps.mjs", script] {
            std::fs::copy(own.join(file), folder.path().join(file)).unwrap();
        }
        // The project's folder may be closed to the unprivileged user who runs the browser.
        let packages = folder.path().join("packages");
        copied(&modules(), &packages);
        let screenshots = folder.path().join("screenshots");
        std::fs::create_dir_all(&screenshots).unwrap();
        std::fs::set_permissions(&screenshots, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let mut command = Command::new("node");
        command.arg(folder.path().join(script)).env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin");
        command.env("MODULES", &packages).env("CHROMIUM", chromium()).env("SCREENSHOTS", &screenshots);
        // Long enough for a busy machine.
        command.env("PATIENCE_MS", "60000");
        // Chromium keeps its profile there.
        command.env("HOME", folder.path()).env("TMPDIR", folder.path()).current_dir(folder.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        change(&mut command);
        unprivileged(&mut command);
        let child = command.spawn().unwrap_or_else(|error| {
            panic!("node: {error}: run `scripts/setup-tests`, or `apt-get install nodejs npm`")
        });
        Self { child, _folder: folder, screenshots }
    }

    /// Answers each line of the script until it is done.
    pub(crate) async fn answer(mut self, mut answer: impl AsyncFnMut(&str) -> String) {
        let mut input = self.child.stdin.take().unwrap();
        let lines = BufReader::new(self.child.stdout.take().unwrap()).lines();
        let mut is_done = false;
        let (sender, mut asked) = tokio::sync::mpsc::channel(1);
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(sender.blocking_send(line))));
        // The steps have their own limits, which name what did not happen; this one ends steps that hang.
        let limit = tokio::time::Instant::now() + std::time::Duration::from_secs(300);
        while let Some(line) = tokio::time::timeout_at(limit, asked.recv()).await.unwrap() {
            if line == "done" {
                is_done = true;
                continue;
            }
            let answer = answer(&line).await;
            writeln!(input, "{answer}").unwrap();
        }
        drop(input);
        let pictures = Path::new(env!("CARGO_MANIFEST_DIR")).join(SCREENSHOTS);
        std::fs::create_dir_all(&pictures).unwrap();
        for picture in std::fs::read_dir(&self.screenshots).unwrap().map(|entry| entry.unwrap().path()) {
            std::fs::copy(&picture, pictures.join(picture.file_name().unwrap())).unwrap();
        }
        assert!(self.child.wait().unwrap().success() && is_done, "the steps failed: their error is above");
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        // Ignore errors: the script may have ended already.
        let _ended = self.child.kill();
        let _waited = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_humans_bring_a_credit_from_its_request_to_its_use_in_a_browser() {
    let pages = Pages::start(&[]);
    let mut calls: Desk = pages.calls().await;
    let mut last: Option<(v1::AuthorizeRequest, v1::Approval)> = None;
    let steps = Steps::start("desk.mjs", |_| {});
    let answer = async |asked: &str| match asked.split_once(' ').unwrap_or((asked, "")) {
        ("link", _) => pages.link(),
        ("request", amount) => {
            let call = credit(amount.parse().unwrap());
            let approval = calls.request(&call).await.unwrap();
            let id = approval.id.clone();
            last = Some((call, approval));
            id
        }
        ("use", _) => {
            let (call, approval) = last.as_ref().unwrap();
            let token = calls.fetch(&approval.id).await.unwrap();
            let answer = calls.ask(&with_token(call, &token, "op-1")).await;
            if answer.decision() == v1::Decision::Allow { "allow".into() } else { format!("{answer:?}") }
        }
        ("state", _) => {
            let id = last.as_ref().unwrap().1.id.clone();
            let got = calls.approvals.get_approval(v1::GetApprovalRequest { id }).await.unwrap().into_inner();
            let approval = got.approval.unwrap();
            let state = approval.state().as_str_name().to_lowercase().replace("approval_state_", "");
            format!("{state} {}", approval.denial_reason)
        }
        other => panic!("the steps ask for {other:?}"),
    };
    steps.answer(answer).await;
    assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(SCREENSHOTS).join("request.png").exists());
}

/// Returns a port that is free now.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[tokio::test(flavor = "multi_thread")]
async fn humans_sign_in_at_an_openid_provider() {
    const SECRET: &str = "a-secret-that-provider-and-desk-share-0123456789";
    let folder = temp();
    // Each must know the other's address before it starts.
    let (desk, issuer) = (free_port(), free_port());
    let (desk_url, issuer_url) = (format!("http://127.0.0.1:{desk}"), format!("http://127.0.0.1:{issuer}"));
    let secret = folder.path().join("secret");
    std::fs::write(&secret, format!("{SECRET}\n")).unwrap();
    let bundle = folder.path().join("bundle");
    copy(&open_root().join("policies"), &bundle);
    let templates = std::fs::read_to_string(bundle.join("approvals.yaml")).unwrap();
    let stronger = templates.replacen("\n  credit:\n", "\n  credit:\n    acr: [high]\n", 1);
    assert_ne!(templates, stronger);
    std::fs::write(bundle.join("approvals.yaml"), stronger).unwrap();
    let settings = folder.path().join("settings.yaml");
    let oidc = serde_json::json!({
        "issuer": issuer_url, "client_id": "desk", "client_secret_file": secret, "algorithm": "ES256", "person_claim": "employee",
    });
    let desk = serde_json::json!({"listen": format!("127.0.0.1:{desk}"), "url": desk_url, "oidc": oidc});
    std::fs::write(&settings, serde_json::json!({ "desk": desk }).to_string()).unwrap();
    let arguments = ["--config", settings.to_str().unwrap(), "--bundle", bundle.to_str().unwrap()];
    let server = Process::serve(&folder.path().join("data"), &arguments, |_| {});
    let mut calls = Desk::new(channel(server.grpc).await);
    let steps = Steps::start("oidc.mjs", |command| {
        command.env("DESK", &desk_url).env("ISSUER", &issuer_url).env("SECRET", SECRET);
    });
    let answer = async |asked: &str| match asked.split_once(' ') {
        Some(("request", amount)) => calls.request(&credit(amount.parse().unwrap())).await.unwrap().id,
        _ => panic!("the steps ask for {asked}"),
    };
    steps.answer(answer).await;
    let log = server.log_of_stop();
    assert!(!log.contains(SECRET) && log.contains("desk.signed_in"), "{log}");
}
