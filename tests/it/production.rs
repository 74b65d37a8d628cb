//! `docs/production.md`, run as it stands: its blocks of commands, one after the other, in an empty folder.

use std::path::Path;

use base64::Engine as _;
use serde_json::json;
use sha2::Digest as _;

use crate::harness::people::{merged, seconds};
use crate::harness::{copy, policies, shell, temp};

/// Stops the server that the page started, also if the test fails.
struct Background<'a>(&'a Path);

impl Drop for Background<'_> {
    fn drop(&mut self) {
        if let Ok(id) = std::fs::read_to_string(self.0.join("server.pid"))
            && let Some(id) = id.trim().parse().ok().and_then(rustix::process::Pid::from_raw)
        {
            // It has ended if the page came to its end.
            let _ended = rustix::process::kill_process(id, rustix::process::Signal::KILL);
        }
    }
}

/// Returns the blocks of commands of the page.
fn blocks() -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/production.md");
    let page = std::fs::read_to_string(path).unwrap();
    page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn the_way_to_production_works_as_the_page_says() {
    let folder = temp();
    let path = folder.path();
    copy(&policies(), &path.join("policies"));
    std::fs::create_dir(path.join("examples")).unwrap();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/authorize.yaml");
    std::fs::copy(example, path.join("examples/authorize.yaml")).unwrap();
    let (ring, jwks) = crate::identity::provider(path, "provider");
    std::fs::copy(jwks, path.join("idp.jwks")).unwrap();
    let _background = Background(path);
    let ports = [("7070", free_port().to_string()), ("7071", free_port().to_string())];
    let mut told = vec![];
    for block in blocks() {
        let block = ports.iter().fold(block, |block, (port, free)| block.replace(port, free));
        let output = shell(&format!("set -e\n{block}"), path).output().unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let log = std::fs::read_to_string(path.join("server.log")).unwrap_or_default();
        assert!(output.status.success(), "{block}\n{said}\n{log}");
        told.push(said);
        if block.contains("issue billing") {
            // What the identity provider does, once the certificate exists.
            let write = |name: &str, claims: &serde_json::Value| {
                std::fs::write(path.join(name), ring.sign("at+jwt", claims).unwrap()).unwrap();
            };
            let (now, human) = (seconds(), "lead-1");
            let common = json!({
                "iss": "https://idp.acme.example", "aud": "countersign:production", "sub_profile": "user",
                "iat": now, "nbf": now, "exp": now + 600, "jti": "1",
            });
            let own = json!({"sub": human, "person": "p-1", "amr": ["hwk"]});
            write("lead.jwt", &merged(common.clone(), own));
            let delegated = json!({
                "sub": "rep-1", "person": "p-2", "step": "enrichment", "case": "case-1", "scope": "orders",
                "act": {"iss": "https://agents.acme.example", "sub": "support-bot", "sub_profile": "ai_agent"},
                "cnf": {"x5t#S256": digest(&path.join("billing.pem"))},
            });
            write("delegation.jwt", &merged(common, delegated));
        }
    }
    let call = told.iter().find(|said| said.starts_with("ALLOW")).unwrap_or_else(|| panic!("{told:#?}"));
    assert!(!call.contains("warnings"), "{call}");
    assert!(told.iter().any(|said| said.contains("asked for by 1 of 2 humans")), "{told:#?}");
}

/// Returns the SHA-256 of a certificate's DER, in base64url.
fn digest(pem: &Path) -> String {
    let text = std::fs::read_to_string(pem).unwrap();
    let body: String = text.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = base64::engine::general_purpose::STANDARD.decode(body).unwrap();
    countersign::jose::encode(&sha2::Sha256::digest(der))
}
