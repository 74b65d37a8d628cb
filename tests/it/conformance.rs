//! Conformance mode: with every gate off, Countersign gives Cedar's own answers, in `countersign test` and over gRPC.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use cedar_policy::{Authorizer, Context, Decision, Entities, EntityUid, Policy, PolicyId, PolicySet, Request, Schema};
use countersign::api::v1;
use countersign::bundle::{Bundle, Gates, Reading};
use countersign::config::Config;
use countersign::pdp::snapshot::OnError;
use countersign::policy::Validation;
use countersign::workbench::cedar_json;
use serde_json::Value;
use tonic::Code;

use crate::harness::{App, command, copy, lines, temp};

fn bundles() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance");
    let mut bundles: Vec<PathBuf> =
        std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    bundles.sort();
    bundles
}

fn plain(config: &mut Config, bundle: &Path) {
    config.bundle.path = bundle.to_owned();
    config.engine.gates = Gates::None;
    config.engine.on_error = OnError::Skip;
    config.engine.validate = Validation::Off;
}

/// Reference decisions, made by Cedar's own `Authorizer` and parsers.
struct Judge {
    schema: Option<Schema>,
    policies: PolicySet,
    entities: Entities,
}

impl Judge {
    fn of(bundle: &Path) -> Self {
        let read = |name: &str| std::fs::read_to_string(bundle.join(name));
        let schema = read("schema.cedarschema").ok().map(|text| Schema::from_cedarschema_str(&text).unwrap().0);
        let mut files: Vec<PathBuf> = std::fs::read_dir(bundle).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.extension().is_some_and(|extension| extension == "cedar"));
        files.sort();
        let text: String = files.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
        let mut policies = PolicySet::new();
        for policy in PolicySet::from_str(&text).unwrap().policies() {
            let renamed: Policy = match policy.annotation("id") {
                Some(id) => policy.new_id(PolicyId::new(id)),
                None => policy.clone(),
            };
            policies.add(renamed).unwrap();
        }
        let entities = Entities::from_json_str(&read("entities/all.json").unwrap(), schema.as_ref()).unwrap();
        Self { schema, policies, entities }
    }

    fn decide(&self, case: &Value) -> (bool, Vec<String>, Vec<String>) {
        let uid = |member: &str| EntityUid::from_str(case["request"][member].as_str().unwrap()).unwrap();
        let action = uid("action");
        let schema = self
            .schema
            .as_ref()
            .filter(|schema| schema.actions().any(|known| *known == action))
            .map(|schema| (schema, &action));
        let context = Context::from_json_value(case["request"]["context"].clone(), schema).unwrap();
        let entities = match case.get("entities") {
            Some(own) => Entities::from_json_value(own.clone(), self.schema.as_ref()).unwrap(),
            None => self.entities.clone(),
        };
        let request = Request::new(uid("principal"), action, uid("resource"), context, None).unwrap();
        let response = Authorizer::new().is_authorized(&request, &self.policies, &entities);
        let mut reason: Vec<String> = response.diagnostics().reason().map(text).collect();
        reason.sort();
        let mut errors: Vec<String> = response
            .diagnostics()
            .errors()
            .map(|cedar_policy::AuthorizationError::PolicyEvaluationError(error)| text(error.policy_id()))
            .collect();
        errors.sort();
        (response.decision() == Decision::Allow, reason, errors)
    }
}

fn text(id: &PolicyId) -> String {
    AsRef::<str>::as_ref(id).to_owned()
}

fn message(case: &Value) -> v1::AuthorizeRequest {
    let reference = |member: &str| {
        let uid = EntityUid::from_str(case["request"][member].as_str().unwrap()).unwrap();
        Some(v1::EntityReference { r#type: uid.type_name().to_string(), id: uid.id().unescaped().to_owned() })
    };
    let plain = v1::PlainRequest {
        principal: reference("principal"),
        action: reference("action"),
        resource: reference("resource"),
        context_json: case["request"]["context"].to_string().into(),
        entities_json: case.get("entities").map(|own| own.to_string().into()).unwrap_or_default(),
    };
    v1::AuthorizeRequest { plain: Some(plain), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_answers_equal_those_of_cedar() {
    let mut cases = 0;
    for bundle in bundles() {
        let evaluate = Judge::of(&bundle);
        let app = App::start_with(|config, _| plain(config, &bundle)).await;
        let (mut decisions, mut admin) = (app.decisions().await, app.operations().await);
        let table: Vec<Value> =
            serde_json::from_str(&std::fs::read_to_string(bundle.join("tests/cases.json")).unwrap()).unwrap();
        for case in table {
            let name = format!("{} {}", bundle.display(), case["name"]);
            let (allowed, reason, errors) = evaluate.decide(&case);
            let response = decisions.authorize(message(&case)).await.unwrap().into_inner();
            assert_eq!(response.decision() == v1::Decision::Allow, allowed, "{name}");
            assert_eq!(
                response.warnings,
                ["conformance_errors_skipped", "conformance_gates_off", "conformance_unvalidated", "development_mode"]
            );
            let explain = v1::ExplainDecisionRequest { request: Some(message(&case)) };
            let explained = admin.explain_decision(explain).await.unwrap().into_inner();
            let [link] = explained.links.as_slice() else { panic!("{name}: {explained:?}") };
            assert_eq!(link.decision() == v1::Decision::Allow, allowed, "{name}");
            assert_eq!(link.determining.iter().map(|policy| policy.id.clone()).collect::<Vec<_>>(), reason, "{name}");
            assert_eq!(link.errors.iter().map(|fault| fault.id.clone()).collect::<Vec<_>>(), errors, "{name}");
            cases += 1;
        }
        assert!(
            lines(&app.data).iter().filter(|line| line["type"] == "decision").all(|line| line["warnings"]
                .as_array()
                .unwrap()
                .len()
                == 4)
        );
        app.stop().await;
    }
    assert!(cases >= 60, "{cases} cases");
}

#[test]
fn the_test_command_gives_the_same_answers_as_cedar() {
    let mut decisions = 0;
    for bundle in bundles() {
        let reading = Reading { gates: Gates::None, validation: Validation::Off, ..Reading::default() };
        let report = cedar_json::run(&Bundle::load(&bundle, reading).unwrap(), Validation::Off);
        assert_eq!(report.failures, vec![], "{}", bundle.display());
        decisions += report.decisions;
        let folder = temp();
        copy(&bundle, folder.path());
        let output = command(&["test", folder.path().to_str().unwrap()])
            .envs([
                ("COUNTERSIGN__ENGINE__GATES", "none"),
                ("COUNTERSIGN__ENGINE__ON_ERROR", "skip"),
                ("COUNTERSIGN__ENGINE__VALIDATE", "off"),
            ])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    assert!(decisions >= 60, "{decisions}");
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_plain_requests_are_refused_without_echoing_values() {
    let bundle = bundles().into_iter().find(|bundle| bundle.ends_with("scopes")).unwrap();
    let app = App::start_with(|config, _| plain(config, &bundle)).await;
    let mut client = app.decisions().await;
    let good = || v1::PlainRequest {
        principal: Some(v1::EntityReference { r#type: "User".into(), id: "eq".into() }),
        action: Some(v1::EntityReference { r#type: "Action".into(), id: "view".into() }),
        resource: Some(v1::EntityReference { r#type: "File".into(), id: "free".into() }),
        ..Default::default()
    };
    let bad = v1::EntityReference { r#type: "not a type s3cr3t".into(), id: "x".into() };
    for (field, plain) in [
        ("plain.context_json", v1::PlainRequest { context_json: r#"{"a":"s3cr3t""#.into(), ..good() }),
        ("plain.context_json", v1::PlainRequest { context_json: r#"{"s3cr3t":1.5}"#.into(), ..good() }),
        ("plain.entities_json", v1::PlainRequest { entities_json: r#"[{"uid":"s3cr3t"}]"#.into(), ..good() }),
        ("plain.entities_json", v1::PlainRequest { entities_json: "[".repeat(100_000).into(), ..good() }),
        ("plain.principal.type", v1::PlainRequest { principal: Some(bad.clone()), ..good() }),
        ("plain.action", v1::PlainRequest { action: None, ..good() }),
    ] {
        let status =
            client.authorize(v1::AuthorizeRequest { plain: Some(plain), ..Default::default() }).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(field) && !status.message().contains("s3cr3t"), "{}", status.message());
    }
    // A call with a chain is refused, because conformance mode has no gates for it.
    let status = client.authorize(crate::harness::order_check()).await.unwrap_err();
    assert!(status.message().contains("`plain` is required"), "{}", status.message());
    app.stop().await;
}
