//! The deployment files, checked with the validators that `scripts/setup-tests` installs.

use std::path::Path;
use std::process::Command;

fn validate(program: &str, arguments: &[&str]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = root.join("target/test-venv/bin").join(program);
    assert!(program.exists(), "{} is missing: run `scripts/setup-tests`, or `make test`", program.display());
    let output = Command::new(&program).args(arguments).current_dir(root).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {text}", program.display());
}

#[test]
fn the_dockerfile_is_sound() {
    validate("hadolint", &["deploy/Dockerfile"]);
}

#[test]
fn the_compose_file_fits_its_schema() {
    validate("check-jsonschema", &["--builtin-schema", "vendor.compose-spec", "deploy/compose.yaml"]);
}

#[test]
fn the_image_runs_unprivileged_and_copies_what_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("deploy/Dockerfile")).unwrap();
    assert!(text.contains("gcr.io/distroless/cc-debian12:nonroot") && !text.contains("USER root"));
    let copied = text.lines().filter_map(|line| line.strip_prefix("COPY ")).filter(|line| !line.starts_with("--from"));
    let sources: Vec<&str> = copied.flat_map(|line| line.split_whitespace().rev().skip(1)).collect();
    assert!(!sources.is_empty());
    for source in sources {
        assert!(root.join(source).exists(), "{source} is copied and does not exist");
    }
}
