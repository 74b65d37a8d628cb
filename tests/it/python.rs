//! A client in another language: Python's `grpcio`, with stubs from the .proto files, and with reflection.

use std::path::Path;
use std::process::Command;

use crate::harness::{NOBODY, Process, is_open, temp, unprivileged};

/// Over TCP, and over a Unix socket, for which these clients send the socket's path as the authority.
#[test]
fn python_makes_an_allowed_a_denied_and_a_malformed_call() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("target/test-venv/bin/python");
    assert!(python.exists(), "the test environment is missing: run `scripts/setup-tests`, or `make test`");
    let folder = temp();
    let (socket, settings) = (folder.path().join("socket"), folder.path().join("settings.yaml"));
    let own = rustix::process::getuid().as_raw();
    let peers = [own, NOBODY].map(|user| serde_json::json!({"user": user, "tool_service": "support-tools"}));
    let callers = serde_json::json!({"callers": {"unix_socket": {"path": socket, "peers": peers}}});
    std::fs::write(&settings, callers.to_string()).unwrap();
    let server = Process::serve(&folder.path().join("data"), &["--config", settings.to_str().unwrap()], |_| {});
    // The project's folder may be closed to the unprivileged user, so copy its files to an open one.
    for (from, to) in [
        ("tests/python/client.py", "client.py"),
        ("proto/countersign/v1/decision.proto", "proto/countersign/v1/decision.proto"),
        ("proto/countersign/v1/admin.proto", "proto/countersign/v1/admin.proto"),
    ] {
        let to = folder.path().join(to);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(root.join(from), to).unwrap();
    }
    for address in [server.grpc.to_string(), format!("unix:{}", socket.display())] {
        let mut command = Command::new(&python);
        command.arg(folder.path().join("client.py")).arg(&address).current_dir(folder.path());
        // Another user can't use a virtual environment in a closed folder; then the client runs as this user.
        if is_open(&python) && is_open(&root.join("target/test-venv")) {
            unprivileged(&mut command);
        }
        let output = command.output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{address}: {text}");
        assert!(text.contains("allowed, denied, malformed, reflected: as expected"), "{text}");
    }
}
