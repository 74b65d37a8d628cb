//! The policy index gives the same result as Cedar's own authorizer, which evaluates every policy.

use std::str::FromStr;

use cedar_policy::{Authorizer, Context, Entities, EntityUid, PolicySet, Request};
use countersign::model::chain::Link;
use countersign::model::verdict::LinkVerdict;
use countersign::policy::engine::Engine;
use proptest::prelude::*;
use proptest::sample::select;

/// Entity types, also in namespaces.
const TYPES: [&str; 4] = ["User", "Group", "A::User", "A::B::File"];
/// Ids, as Cedar writes them in policies and JSON.
const IDS: [&str; 7] = ["a", "", "x y", "\\\"", "\\0", "ü", "Group"];
const ACTIONS: [&str; 5] = ["read", "write", "", "\\\"quoted\\\"", "all"];
/// Some of these fail to evaluate: a missing attribute, an overflow, a wrong type, a missing entity.
const CONDITIONS: [&str; 12] = [
    "",
    "when { context.n > 2 }",
    "unless { context.n > 2 }",
    "when { principal has level && principal.level > 2 }",
    "when { principal.level > 2 }",
    "when { context.tag like \"a*\" }",
    "when { resource.level * 9223372036854775807 > 1 }",
    "when { context.n == \"x\" }",
    "when { context.n }",
    "unless { principal in Group::\"a\" }",
    "when { resource in principal }",
    "when { User::\"nobody\".level == 1 } unless { context.n > 3 }",
];

/// Uid of an entity as Cedar writes it.
fn uid() -> impl Strategy<Value = String> {
    (select(&TYPES[..]), select(&IDS[..])).prop_map(|(kind, id)| format!("{kind}::\"{id}\""))
}

fn action() -> impl Strategy<Value = String> {
    select(&ACTIONS[..]).prop_map(|id| format!("Action::\"{id}\""))
}

/// Constraint of a scope's principal or resource.
fn constraint(variable: &'static str) -> impl Strategy<Value = String> {
    (0..5, uid(), select(&TYPES[..])).prop_map(move |(form, uid, kind)| match form {
        0 => variable.to_owned(),
        1 => format!("{variable} == {uid}"),
        2 => format!("{variable} in {uid}"),
        3 => format!("{variable} is {kind}"),
        _ => format!("{variable} is {kind} in {uid}"),
    })
}

fn policy() -> impl Strategy<Value = String> {
    let actions = (0..4, proptest::collection::vec(action(), 1..4)).prop_map(|(form, actions)| match form {
        0 => "action".to_owned(),
        1 => format!("action == {}", actions[0]),
        2 => format!("action in {}", actions[0]),
        _ => format!("action in [{}]", actions.join(", ")),
    });
    let effect = select(&["permit", "forbid"][..]);
    (effect, constraint("principal"), actions, constraint("resource"), select(&CONDITIONS[..])).prop_map(
        |(effect, principal, action, resource, condition)| {
            format!("{effect} ({principal}, {action}, {resource}) {condition};")
        },
    )
}

/// Entities with attributes and parents. An entity's parents come after it in a fixed order, so that there is
/// no cycle. Actions have groups.
fn entities() -> impl Strategy<Value = Entities> {
    let count = TYPES.len() * IDS.len() + ACTIONS.len();
    let one = (any::<bool>(), proptest::option::of(-1..5), proptest::collection::vec(1..9_usize, 0..3));
    proptest::collection::vec(one, count).prop_map(|found| {
        let all = TYPES.iter().flat_map(|kind| IDS.iter().map(move |id| format!("{kind}::\"{id}\"")));
        let all: Vec<EntityUid> = all
            .chain(ACTIONS.iter().map(|id| format!("Action::\"{id}\"")))
            .map(|text| EntityUid::from_str(&text).unwrap())
            .collect();
        let is_action = |uid: &EntityUid| uid.type_name().to_string() == "Action";
        let json =
            |uid: &EntityUid| serde_json::json!({"type": uid.type_name().to_string(), "id": uid.id().unescaped()});
        let made: Vec<_> = found
            .iter()
            .enumerate()
            .filter(|(_, (exists, ..))| *exists)
            .map(|(index, (_, level, parents))| {
                let parents = parents.iter().filter_map(|step| all.get(index + step));
                let parents: Vec<_> =
                    parents.filter(|parent| is_action(parent) == is_action(&all[index])).map(json).collect();
                let attributes = level.filter(|_| !is_action(&all[index])).map(|level| ("level", level));
                let attributes: std::collections::BTreeMap<_, _> = attributes.into_iter().collect();
                serde_json::json!({"uid": json(&all[index]), "attrs": attributes, "parents": parents})
            })
            .collect();
        Entities::from_json_value(made.into(), None).unwrap()
    })
}

/// Cedar's own verdict: decision, determining policies, and policies that failed.
fn cedar(set: &PolicySet, request: &Request, entities: &Entities) -> (bool, Vec<String>, Vec<String>) {
    let response = Authorizer::new().is_authorized(request, set, entities);
    let mut reasons: Vec<String> = response.diagnostics().reason().map(ToString::to_string).collect();
    let mut errors: Vec<String> = response
        .diagnostics()
        .errors()
        .map(|error| match error {
            cedar_policy::AuthorizationError::PolicyEvaluationError(error) => error.policy_id().to_string(),
        })
        .collect();
    reasons.sort();
    errors.sort();
    (response.decision() == cedar_policy::Decision::Allow, reasons, errors)
}

fn ours(verdict: &LinkVerdict) -> (bool, Vec<String>, Vec<String>) {
    let errors = verdict.errors.iter().map(|error| error.policy.clone()).collect();
    (verdict.permitted, verdict.determining.clone(), errors)
}

fn request(principal: &str, action: &str, resource: &str, context: &serde_json::Value) -> Request {
    let uid = |text: &str| EntityUid::from_str(text).unwrap();
    let context = Context::from_json_value(context.clone(), None).unwrap();
    Request::new(uid(principal), uid(action), uid(resource), context, None).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: crate::harness::cases(2000), ..ProptestConfig::default() })]

    /// Each case compares sixteen requests.
    #[test]
    fn the_policy_index_gives_the_same_result_as_cedar(
        policies in proptest::collection::vec(policy(), 0..25),
        entities in entities(),
        requests in proptest::collection::vec((uid(), action(), uid()), 16),
        n in -1i64..5,
        tag in any::<bool>(),
    ) {
        let set = PolicySet::from_str(&policies.join("\n")).unwrap();
        let engine = Engine::from(&set);
        let context = if tag { serde_json::json!({"n": n, "tag": "abc"}) } else { serde_json::json!({"n": n}) };
        // Requests that differ only in the principal share results.
        let (_, action, resource) = requests[0].clone();
        let first = request("User::\"a\"", &action, &resource, &context);
        let links: Vec<(Link, Request)> = requests
            .iter()
            .map(|(principal, ..)| {
                let principal = EntityUid::from_str(principal).unwrap();
                let (action, resource) = (first.action().cloned(), first.resource().cloned());
                let context = first.context().cloned().unwrap();
                let request = Request::new(principal, action.unwrap(), resource.unwrap(), context, None);
                (Link::Plain, request.unwrap())
            })
            .collect();
        for ((link, request), verdict) in links.iter().zip(engine.evaluate_links(&links, &entities)) {
            prop_assert_eq!(verdict, engine.evaluate_all(*link, request, &entities));
        }
        for (principal, action, resource) in requests {
            let request = request(&principal, &action, &resource, &context);
            let found = engine.evaluate(Link::Plain, &request, &entities);
            prop_assert_eq!(&found, &engine.evaluate_all(Link::Plain, &request, &entities));
            prop_assert_eq!(ours(&found), cedar(&set, &request, &entities));
        }
    }
}

/// Threat 18: Cedar's `like` has only wildcards, and costs at most text length times pattern length.
#[test]
fn a_pattern_with_many_wildcards_terminates_on_the_longest_text() {
    let pattern = "a*".repeat(30);
    let policy = format!("permit (principal, action, resource) when {{ context.text like \"{pattern}b\" }};");
    let set = PolicySet::from_str(&policy).unwrap();
    let context = serde_json::json!({ "text": "a".repeat(countersign::json::BYTES_MAX) });
    let request = request("User::\"a\"", "Action::\"read\"", "User::\"a\"", &context);
    let verdict = Engine::from(&set).evaluate(Link::Plain, &request, &Entities::empty());
    assert!(!verdict.permitted && verdict.errors.is_empty());
}

/// Scopes that name many groups on both sides have far more combinations than policies. This would take minutes if
/// each combination were looked up.
#[test]
fn many_groups_on_both_sides_cost_no_more_than_their_policies() {
    const GROUPS: usize = 20_000;
    let policy = |index: usize| {
        format!(
            "permit (principal in Group::\"g{index}\", action, resource);
             forbid (principal, action, resource in Folder::\"f{index}\") when {{ context.n > 5 }};"
        )
    };
    let set = PolicySet::from_str(&(0..GROUPS).map(policy).collect::<String>()).unwrap();
    let parents = |kind: &str, letter: &str| -> Vec<_> {
        (0..GROUPS).map(|index| serde_json::json!({"type": kind, "id": format!("{letter}{index}")})).collect()
    };
    let entities = serde_json::json!([
        {"uid": {"type": "User", "id": "ann"}, "attrs": {}, "parents": parents("Group", "g")},
        {"uid": {"type": "File", "id": "x"}, "attrs": {}, "parents": parents("Folder", "f")},
    ]);
    let entities = Entities::from_json_value(entities, None).unwrap();
    let request = request("User::\"ann\"", "Action::\"read\"", "File::\"x\"", &serde_json::json!({"n": 1}));
    let verdict = Engine::from(&set).evaluate(Link::Plain, &request, &entities);
    assert!(verdict.permitted);
    assert_eq!(verdict.determining.len(), GROUPS);
}
