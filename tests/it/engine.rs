//! The policy index gives the same result as evaluating every policy.

use std::str::FromStr;

use cedar_policy::{Authorizer, Context, Entities, EntityUid, Policy, PolicyId, PolicySet, Request, Schema};
use countersign::model::chain::Link;
use countersign::policy::engine::Engine;
use proptest::prelude::*;
use proptest::sample::select;

const SCHEMA: &str = r#"
entity Group in [Group];
entity User in [Group] { level: Long, name?: String };
entity Robot in [Group] { level: Long };
entity Folder in [Folder];
entity File in [Folder] { size: Long };
action "all";
action "reads" in ["all"];
action "read" in ["reads"] appliesTo { principal: [User, Robot], resource: [File, Folder], context: { n: Long, tag?: String } };
action "list" in ["reads"] appliesTo { principal: [User], resource: [Folder], context: { n: Long, tag?: String } };
action "write" in ["all"] appliesTo { principal: [User, Robot], resource: [File], context: { n: Long, tag?: String } };
"#;

const ENTITIES: &str = r#"[
  {"uid":{"type":"Group","id":"root"},"attrs":{},"parents":[]},
  {"uid":{"type":"Group","id":"staff"},"attrs":{},"parents":[{"type":"Group","id":"root"}]},
  {"uid":{"type":"User","id":"ann"},"attrs":{"level":3,"name":"ann"},"parents":[{"type":"Group","id":"staff"}]},
  {"uid":{"type":"User","id":"bob"},"attrs":{"level":1},"parents":[]},
  {"uid":{"type":"Robot","id":"r2"},"attrs":{"level":9},"parents":[{"type":"Group","id":"root"}]},
  {"uid":{"type":"Folder","id":"top"},"attrs":{},"parents":[]},
  {"uid":{"type":"Folder","id":"sub"},"attrs":{},"parents":[{"type":"Folder","id":"top"}]},
  {"uid":{"type":"File","id":"f"},"attrs":{"size":10},"parents":[{"type":"Folder","id":"sub"}]}
]"#;

fn policy() -> impl Strategy<Value = String> {
    let principals = &[
        "principal",
        "principal == User::\"ann\"",
        "principal in Group::\"root\"",
        "principal in Group::\"staff\"",
        "principal is User",
        "principal is Robot in Group::\"root\"",
        "principal == Robot::\"r2\"",
    ];
    let actions = &[
        "action",
        "action == Action::\"read\"",
        "action in Action::\"all\"",
        "action in Action::\"reads\"",
        "action in [Action::\"list\", Action::\"write\"]",
    ];
    let resources = &[
        "resource",
        "resource == File::\"f\"",
        "resource in Folder::\"top\"",
        "resource is Folder",
        "resource is File in Folder::\"sub\"",
        "resource in File::\"f\"",
    ];
    // Some of these fail to evaluate: a missing attribute, an overflow, a wrong type.
    let bodies = &[
        "",
        "when { context.n > 2 }",
        "unless { context.n > 2 }",
        "when { principal.level > 2 }",
        "when { principal.name == \"ann\" }",
        "when { context.tag like \"a*\" }",
        "when { resource.size * 9223372036854775807 > 1 }",
        "when { context.n == \"x\" }",
        "unless { principal in Group::\"staff\" }",
    ];
    (
        select(&["permit", "forbid"][..]),
        select(&principals[..]),
        select(&actions[..]),
        select(&resources[..]),
        select(&bodies[..]),
    )
        .prop_map(|(effect, principal, action, resource, body)| {
            format!("{effect} ({principal}, {action}, {resource}) {body};")
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: crate::harness::cases(400), ..ProptestConfig::default() })]

    #[test]
    fn the_policy_index_gives_the_same_result_as_evaluating_all_policies(policies in proptest::collection::vec(policy(), 0..25), n in -1i64..5, tag in any::<bool>()) {
        let schema = Schema::from_cedarschema_str(SCHEMA).unwrap().0;
        let entities = Entities::from_json_str(ENTITIES, Some(&schema)).unwrap();
        let mut set = PolicySet::new();
        for (index, text) in policies.iter().enumerate() {
            set.add(Policy::parse(Some(PolicyId::new(format!("p{index}"))), text).unwrap()).unwrap();
        }
        let engine = Engine::from(&set);
        let context = if tag { format!(r#"{{"n":{n},"tag":"abc"}}"#) } else { format!(r#"{{"n":{n}}}"#) };
        for principal in ["User::\"ann\"", "User::\"bob\"", "Robot::\"r2\"", "User::\"nobody\"", "Group::\"root\""] {
            for action in ["read", "list", "write", "all", "unknown"] {
                for resource in ["File::\"f\"", "Folder::\"top\"", "Folder::\"sub\"", "File::\"none\"", "User::\"ann\""] {
                    let uid = |text: &str| EntityUid::from_str(text).unwrap();
                    let action = uid(&format!("Action::\"{action}\""));
                    let request = Request::new(uid(principal), action, uid(resource), Context::from_json_str(&context, None).unwrap(), None).unwrap();
                    let found = engine.evaluate(Link::Plain, &request, &entities);
                    prop_assert_eq!(&found, &engine.evaluate_all(Link::Plain, &request, &entities));
                    let cedar = Authorizer::new().is_authorized(&request, &set, &entities);
                    prop_assert_eq!(found.permitted, cedar.decision() == cedar_policy::Decision::Allow);
                    let mut reasons: Vec<_> = cedar.diagnostics().reason().map(ToString::to_string).collect();
                    reasons.sort();
                    prop_assert_eq!(&found.determining, &reasons);
                    prop_assert_eq!(found.errors.len(), cedar.diagnostics().errors().count());
                }
            }
        }
    }
}

/// Threat 18: Cedar's `like` has only wildcards, and costs at most text length times pattern length.
#[test]
fn a_pattern_with_many_wildcards_terminates_on_the_longest_text() {
    let pattern = "a*".repeat(30);
    let policy = format!("permit (principal, action, resource) when {{ context.text like \"{pattern}b\" }};");
    let set = PolicySet::from_str(&policy).unwrap();
    let context =
        Context::from_json_value(serde_json::json!({ "text": "a".repeat(countersign::json::BYTES_MAX) }), None)
            .unwrap();
    let uid = |text: &str| EntityUid::from_str(text).unwrap();
    let request =
        Request::new(uid("User::\"ann\""), uid("Action::\"read\""), uid("File::\"f\""), context, None).unwrap();
    let verdict = Engine::from(&set).evaluate(Link::Plain, &request, &Entities::empty());
    assert!(!verdict.permitted && verdict.errors.is_empty());
}
