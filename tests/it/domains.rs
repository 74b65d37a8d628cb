//! The bundles of other domains, which `countersign init` writes: nothing of customer support is built into the program.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use countersign::api::v1;
use countersign::bundle::folder::Folder;
use countersign::bundle::{Bundle, LoadError, Reading};
use countersign::policy::shape::{Record, Shape};
use countersign::workbench::tables;

use crate::harness::people::Desk;
use crate::harness::{Process, asserted, channel, command, copy, open_root, policies, shell, temp};

fn domain(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("domains").join(name)
}

fn load(folder: &Folder) -> Bundle {
    Bundle::from_folder(folder.clone(), Reading::default()).unwrap_or_else(|error| panic!("{:#?}", error.lines()))
}

#[test]
fn each_domain_has_tables_that_decide_every_policy_and_deny_more_than_they_allow() {
    for (name, most) in [("blank", 10), ("helpdesk", 60), ("travel", 60)] {
        let report = tables::run(&Folder::read(&domain(name)).unwrap(), Reading::default()).unwrap();
        assert_eq!(report.failures, vec![], "{name}");
        assert!(report.decisions >= most && report.denied > report.allowed, "{name}: {report:?}");
        assert_eq!((report.unreached.as_slice(), report.unstated.as_slice()), (&[][..], &[][..]), "{name}");
    }
}

#[test]
fn init_writes_each_domain_and_never_over_something() {
    for name in ["blank", "helpdesk", "support", "travel"] {
        let folder = temp();
        let path = folder.path().join("new/bundle");
        let init = || shell(&format!("countersign init new/bundle --domain {name}"), folder.path()).output().unwrap();
        assert!(init().status.success(), "{name}");
        let original = if name == "support" { policies() } else { domain(name) };
        assert_eq!(Folder::read(&path).unwrap(), Folder::read(&original).unwrap(), "{name}");
        let again = init();
        let said = String::from_utf8_lossy(&again.stderr).into_owned();
        assert!(again.status.code() == Some(1) && said.contains("is not empty"), "{name}: {said}");
    }
}

/// Words of the schema that mean something to the PDP, and words that are also keys of a bundle's files.
const RESERVED: &[&str] = &[
    "agent",
    "action",
    "approval",
    "args",
    "asserted",
    "approvers",
    "case",
    "chain",
    "change",
    "checks",
    "consent",
    "derived",
    "expires",
    "facts",
    "four_eyes",
    "identity",
    "limits",
    "EUR",
    "JPY",
    "USD",
    "name",
    "now",
    "own",
    "rates",
    "read",
    "reads",
    "release",
    "resource",
    "review",
    "revoke",
    "risk",
    "scopes",
    "step",
    "sums",
    "supervisor",
    "template",
    "tenant",
    "tenants",
    "tool_service",
    "user",
    "call",
    "count",
    "in",
    "is",
    "has",
    "or",
    "and",
    "a",
];

/// Adds the words of all names of a record.
fn words_of(record: &Record, words: &mut BTreeSet<String>) {
    for (name, member) in record {
        words.insert(name.clone());
        words_of_shape(&member.shape, words);
    }
}

fn words_of_shape(shape: &Shape, words: &mut BTreeSet<String>) {
    match shape {
        Shape::Set(element) => words_of_shape(element, words),
        Shape::Record(record) => words_of(record, words),
        _ => words.extend(shape.choices().iter().cloned()),
    }
}

/// Returns each word that the schema declares: types, attributes, arguments, values, actions and groups.
fn words(bundle: &Bundle) -> BTreeSet<String> {
    let mut words = BTreeSet::new();
    for (name, kind) in &bundle.policies.shapes.entities {
        words.insert(name.clone());
        words.extend(bundle.policies.shapes.choices(name).iter().cloned());
        words_of(&kind.attributes, &mut words);
    }
    let direct = |id: &&String| bundle.roles.as_ref().unwrap().is_direct(id);
    for (id, action) in bundle.policies.shapes.actions.iter().filter(|(id, _)| !direct(id)) {
        words.extend(id.split('.').map(str::to_owned));
        words.extend(action.groups.iter().cloned());
        words_of(&action.context, &mut words);
    }
    // Groups of steps follow their steps.
    words.retain(|word| !RESERVED.contains(&word.as_str()) && !word.contains('-') && !word.starts_with("in_"));
    words
}

/// Renames whole words in a text.
fn renamed(text: &str, words: &BTreeSet<String>) -> String {
    let is_part = |letter: char| letter.is_alphanumeric() || letter == '_';
    let mut result = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(is_part) {
        let (before, from) = rest.split_at(start);
        let end = from.find(|letter| !is_part(letter)).unwrap_or(from.len());
        let (word, after) = from.split_at(end);
        result.push_str(before);
        result.push_str(word);
        // An action group belongs to a step by its name.
        if words.contains(word) || word.strip_prefix("in_").is_some_and(|step| words.contains(step)) {
            result.push_str("_renamed");
        }
        rest = after;
    }
    result + rest
}

/// The tables contain the expected decisions, so that a renamed bundle that passes its renamed tables decides the same.
#[test]
fn a_bundle_decides_the_same_whatever_its_names_are() {
    for name in ["blank", "helpdesk", "travel"] {
        let folder = Folder::read(&domain(name)).unwrap();
        let words = words(&load(&folder));
        let files = folder.files().iter().map(|(file, bytes)| {
            (file.clone(), renamed(&String::from_utf8(bytes.clone()).unwrap(), &words).into_bytes())
        });
        let changed = Folder::of(files.collect::<Vec<_>>());
        assert!(words.len() >= 15 && changed.digest() != folder.digest(), "{name}: {words:?}");
        let run = |folder: &Folder| {
            tables::run(folder, Reading::default()).unwrap_or_else(|error| panic!("{name}: {:#?}", error.lines()))
        };
        let (before, after) = (run(&folder), run(&changed));
        assert_eq!(after.failures, vec![], "{name}");
        let counts = |report: &tables::Report| (report.decisions, report.allowed, report.denied);
        assert_eq!(counts(&before), counts(&after), "{name}");
    }
}

/// Each change removes what keeps two owners, or two tenants, apart.
#[test]
fn an_owner_that_the_manifest_does_not_name_is_a_fault() {
    let faults = |file: &str, from: &str, to: &str| {
        let mut files = Folder::read(&domain("travel")).unwrap().files().clone();
        let text = String::from_utf8(files[file].clone()).unwrap();
        assert!(text.contains(from), "{file} has no {from}");
        files.insert(file.to_owned(), text.replace(from, to).into_bytes());
        match Bundle::from_folder(Folder::of(files), Reading::default()) {
            Err(LoadError::Faulty { faults, .. }) => {
                faults.iter().map(countersign::model::fault::Fault::line).collect::<Vec<_>>().join("\n")
            }
            other => panic!("{from} -> {to}: {:?}", other.map(|_| "accepted")),
        }
    };
    for (file, from, to, expected) in [
        (
            "bundle.yaml",
            "owners: {Enquiry: traveller, Booking: traveller}",
            "",
            "type `Enquiry` must name the attribute of its owner",
        ),
        ("bundle.yaml", ", Booking: traveller", "", "type `Booking` must name the attribute of its owner"),
        ("bundle.yaml", "Enquiry: traveller, ", "", "type `Enquiry` must name the attribute of its owner"),
        ("bundle.yaml", "Booking: traveller}", "Booking: travellr}", "did you mean `traveller`?"),
        (
            "bundle.yaml",
            "Booking: traveller}",
            "Booking: paid_minor}",
            "must have the required attribute `paid_minor` of type String",
        ),
        ("bundle.yaml", "Booking: traveller}", "Booking: traveller, Clerk: tenant}", "`Clerk` has no owner"),
        (
            "bundle.yaml",
            "  approval_request: Request",
            "  ownerless: [Booking]\n  approval_request: Request",
            "in `owners` and in `ownerless`",
        ),
        (
            "bundle.yaml",
            "owners: {Enquiry: traveller, Booking: traveller}",
            "ownerless: [Enquiry]\n  owners: {Booking: traveller}",
            "but the case has none to compare it with",
        ),
        ("rates.yaml", "per: [case]", "per: [mood]", "mood"),
    ] {
        let found = faults(file, from, to);
        assert!(found.contains(expected), "{from} -> {to}: {found}");
    }
    // Without an owner of the case, a limit per customer would count everybody together.
    let mut files = Folder::read(&domain("helpdesk")).unwrap().files().clone();
    let manifest = String::from_utf8(files["bundle.yaml"].clone()).unwrap();
    let without = "ownerless: [Ticket, Device, Login]";
    let manifest = manifest
        .replace("owners: {Ticket: employee, Device: employee, Login: employee}", without)
        .replace("    password.reset: {employee: owner}\n", "");
    files.insert("bundle.yaml".to_owned(), manifest.into_bytes());
    let refused = Bundle::from_folder(Folder::of(files), Reading::default()).unwrap_err();
    assert!(
        refused.lines().join("\n").contains("`resets_per_employee` counts by `customer`, but the case has no owner"),
        "{:#?}",
        refused.lines()
    );
}

/// A tool service could send any supervisor, and so give itself every right.
#[test]
fn principals_that_tool_services_would_supply_are_a_fault() {
    let mut files = Folder::read(&domain("travel")).unwrap().files().clone();
    let manifest = String::from_utf8(files["bundle.yaml"].clone()).unwrap();
    let manifest = manifest
        .replace("bundle: [Airline, Assistant, Clerk, Role, System]", "bundle: [Airline, Assistant, Role, System]")
        .replace("tool_service: [Booking, Enquiry, Flight]", "tool_service: [Booking, Clerk, Enquiry, Flight]");
    files.insert("bundle.yaml".to_owned(), manifest.into_bytes());
    files.remove("entities/people.json");
    let refused = Bundle::from_folder(Folder::of(files), Reading::default()).unwrap_err().lines().join("\n");
    assert!(refused.contains("`supervisor` is the type `Clerk`, which the bundle must supply"), "{refused}");
}

/// Tool services send tags among the attributes, and the bundle has them in its entities.
#[test]
fn policies_read_the_tags_of_supplied_and_static_entities() {
    let run = |edits: &[(&str, &str, &str)]| {
        let mut files = Folder::read(&domain("blank")).unwrap().files().clone();
        let own = [
            ("bundle.yaml", "bundle: [Agent,", "bundle: [Membership, Agent,"),
            ("bundle.yaml", "  writes:", "  level: 2\n  writes:"),
            (
                "schema.cedarschema",
                "status: Status };",
                "status: Status, membership: Membership } tags String;\nentity Membership tags Long;",
            ),
            (
                "entities/entities.json",
                "[\n",
                "[\n{\"uid\": {\"type\": \"Membership\", \"id\": \"gold\"}, \"attrs\": {}, \"tags\": {\"most\": 4}, \"parents\": []},\n",
            ),
            (
                "policies.cedar",
                "@id(\"item.locked\")",
                "@id(\"case.held\")\nforbid (principal, action in Action::\"write\", resource)\nwhen { context.case.hasTag(\"hold\") && context.case.getTag(\"hold\") != \"none\" };\n\n@id(\"item.locked\")",
            ),
            (
                "policies.cedar",
                "context.args.amount <= 100",
                "context.case.membership.hasTag(\"most\") && context.args.amount <= context.case.membership.getTag(\"most\")",
            ),
            ("tests/items.yaml", "owner: owner-1, status: open}", "owner: owner-1, status: open, membership: gold}"),
            ("tests/items.yaml", "[101, 0, -1]", "[5, 0, -1]"),
            ("tests/items.yaml", "arguments: {amount: 5}", "arguments: {amount: 4}"),
        ];
        for (file, from, to) in own.iter().chain(edits) {
            let text = String::from_utf8(files[*file].clone()).unwrap();
            assert!(text.contains(from), "{file} has no {from}");
            files.insert((*file).to_owned(), text.replace(from, to).into_bytes());
        }
        tables::run(&Folder::of(files), Reading::default()).map_err(|error| error.lines().join("\n"))
    };
    let table = "  - name: a case that is held\n    action: item.change\n    attributes: {tags: {hold: fraud, other: x}}\n    expect: {decision: deny, policies: [case.held]}\n  \
                 - name: a case that is no longer held\n    action: item.change\n    attributes: {tags: {hold: none}}\n    expect: {decision: allow}\n  \
                 - name: a tag of another type\n    action: item.change\n    attributes: {tags: {hold: 3}}\n    expect: {invalid: case.attributes_json.tags}\n  \
                 - name: tags that are none\n    action: item.change\n    attributes: {tags: hold}\n    expect: {invalid: case.attributes_json.tags}\ncases:\n";
    let report = run(&[(
        "tests/items.yaml",
        "cases:\n",
        &table.replace("cases:\n", "").replacen("  - name", "cases:\n  - name", 1),
    )])
    .unwrap();
    assert_eq!(report.failures, vec![]);
    // An attribute of the same name would be mistaken for the tags.
    let refused =
        run(&[("schema.cedarschema", "status: Status, membership", "status: Status, tags?: Long, membership")]);
    let refused = refused.map(|report| report.decisions).unwrap_err();
    assert!(refused.contains("type `Case` has tags, which tool services send as `tags`"), "{refused}");
}

/// A text that a call could not fill would keep the customer from being asked.
#[test]
fn texts_for_customers_name_only_values_that_every_call_has() {
    let text = "{derived.paid_minor in args.currency}";
    for (file, from, to, expected) in [
        ("approvals.yaml", text, "{args.paid}", "names `args.paid`, which every call must have"),
        ("approvals.yaml", text, "{facts.note}", "names `facts.note`, which every call must have"),
        ("approvals.yaml", text, "{resource.insured}", "names `resource.insured`, which must be a text, a number"),
        ("approvals.yaml", text, "{case.tenant}", "names `case.tenant`, which every call must have"),
        ("approvals.yaml", text, "{args.payments}", "names `args.payments`, which must be a text, a number"),
        (
            "approvals.yaml",
            text,
            "{args.booking_id in args.currency}",
            "names `args.booking_id`, which must be a `Long`",
        ),
        (
            "approvals.yaml",
            text,
            "{resource.paid_minor in resource.passengers}",
            "which must be a `String` or an enumerated type",
        ),
        ("approvals.yaml", text, "{paid}", "names no value: write `{args.name}`"),
        ("approvals.yaml", "Do you agree?", "Do you agree? {", "has `{` without `}`"),
        ("approvals.yaml", "use_minutes: 10", "use_minutes: 61", "`use_minutes` must be 1 to 60"),
        (
            "approvals.yaml",
            "consents:\n  refund:",
            "consents:\n  refunds:",
            "requires a consent with template `refund`, which `approvals.yaml` does not define",
        ),
        (
            "payments.cedar",
            "consent:refund",
            "consent:refnd",
            "`context.consent` of action `refund.issue` does not declare template `refnd`: did you mean `refund`?",
        ),
        (
            "schema.cedarschema",
            "type Consent = { template: Template, expires",
            "type Consent = { kind: Template, expires",
            "{template: enumerated, expires: datetime}",
        ),
    ] {
        let mut files = Folder::read(&domain("travel")).unwrap().files().clone();
        let before = String::from_utf8(files[file].clone()).unwrap();
        assert!(before.contains(from), "{file} has no {from}");
        files.insert(file.to_owned(), before.replace(from, to).into_bytes());
        let found = Bundle::from_folder(Folder::of(files), Reading::default()).unwrap_err().lines();
        assert!(found.iter().any(|line| line.contains(expected)), "{from} -> {to}: {found:#?}");
    }
}

/// The bags of a membership are two steps away from the call, and those of its family three.
#[test]
fn policies_read_reference_data_as_far_away_as_the_manifest_says() {
    let run = |level: &str, path: &str| {
        let mut files = Folder::read(&domain("blank")).unwrap().files().clone();
        let edits = [
            ("bundle.yaml", "bundle: [Agent,", "bundle: [Family, Membership, Agent,"),
            ("bundle.yaml", "  writes:", &format!("  {level}\n  writes:")),
            (
                "schema.cedarschema",
                "status: Status };",
                "status: Status, membership: Membership };\nentity Membership { bags: Long, family: Family };\nentity Family { bags: Long };",
            ),
            (
                "policies.cedar",
                "context.args.amount >= 1",
                &format!("context.args.amount >= 1 && context.args.amount <= {path}"),
            ),
            (
                "entities/entities.json",
                "[\n",
                "[\n{\"uid\": {\"type\": \"Membership\", \"id\": \"gold\"}, \"attrs\": {\"bags\": 2, \"family\": {\"type\": \"Family\", \"id\": \"one\"}}, \"parents\": []},\n{\"uid\": {\"type\": \"Family\", \"id\": \"one\"}, \"attrs\": {\"bags\": 4}, \"parents\": []},\n",
            ),
            ("tests/items.yaml", "owner: owner-1, status: open}", "owner: owner-1, status: open, membership: gold}"),
            ("tests/items.yaml", "[101, 0, -1]", "[5, 0, -1]"),
            ("tests/items.yaml", "arguments: {amount: 5}", "arguments: {amount: 2}"),
        ];
        for (file, from, to) in edits {
            let text = String::from_utf8(files[file].clone()).unwrap();
            assert!(text.contains(from), "{file} has no {from}");
            files.insert(file.to_owned(), text.replace(from, to).into_bytes());
        }
        tables::run(&Folder::of(files), Reading::default()).map_err(|error| error.lines().join("\n"))
    };
    for (level, path) in
        [("level: 2", "context.case.membership.bags"), ("level: 3", "context.case.membership.family.bags")]
    {
        assert_eq!(run(level, path).unwrap().failures, vec![], "{level}");
    }
    for (level, path) in
        [("level: 1", "context.case.membership.bags"), ("level: 2", "context.case.membership.family.bags")]
    {
        let refused = run(level, path).map(|report| report.decisions).unwrap_err();
        assert!(refused.contains("level"), "{level} {path}: {refused}");
    }
}

/// Each mistake is one cause, whose consequences are no faults of their own.
#[test]
fn one_mistake_of_an_author_is_one_fault_at_its_place() {
    for (file, from, to, expected) in [
        (
            "schema.cedarschema",
            "tenant: Airline, scopes: Set<Scope> };",
            "tenant: Airline, scopes?: Set<Scope> };",
            "schema.cedarschema:5:8: type `Assistant` must have the required attribute `scopes`",
        ),
        (
            "bundle.yaml",
            "{change: [status]}",
            "[change]",
            "bundle.yaml:24:11: a mapping (`key: value`) is expected here",
        ),
        (
            "bundle.yaml",
            "{change: [status]}",
            "{changes: [status]}",
            "bundle.yaml:24:12: `writes` names `changes`, which is not a group of actions: did you mean `change`?",
        ),
        ("bundle.yaml", "case: Enquiry", "case: Enqury", "bundle.yaml:11:9: `case` names `Enqury`"),
        ("bundle.yaml", "agent: Assistant", "agent: Asistant", "bundle.yaml:7:10: `agent` names `Asistant`"),
        ("bundle.yaml", "step: Stage ", "step: Stages ", "bundle.yaml:12:9: `step` names `Stages`"),
        ("bundle.yaml", "tenant: Airline", "tenant: Airlines", "bundle.yaml:10:11: `tenant` names `Airlines`"),
        (
            "schema.cedarschema",
            ", asserted: Bool }",
            " }",
            "schema.cedarschema:55:28: `chain` in the context of action `booking.cancel` must be the required record",
        ),
        (
            "bundle.yaml",
            "  direct: [approval.read, approval.review, approval.revoke, consent.report]\n",
            "",
            "bundle.yaml:6:1: `approval.read`, `approval.review`, `approval.revoke`, `consent.report` are done on one's own behalf",
        ),
        (
            "schema.cedarschema",
            "action \"booking.cancel\" in [\"in_service\", ",
            "action \"booking.cancel\" in [",
            "schema.cedarschema:70:9: action `booking.cancel` is in no group of in_lookup, in_service, in_settlement",
        ),
        (
            "tenancy.cedar",
            "@id(\"tenancy.clerk\")\nforbid (principal is Clerk, action in Action::\"call\"",
            "@id(\"tenancy.clerk\")\nforbid (principal is Clerk, action == Action::\"booking.read\"",
            "no `forbid` on all principals of type `Clerk` reads `principal.tenant`",
        ),
        (
            "bundle.yaml",
            "sum(payments.amount_minor)",
            "sum(payment.amount_minor)",
            "bundle.yaml:30:5: `derived.paid_minor` of action `booking.create` is computed from `payment.amount_minor`, which is no argument",
        ),
    ] {
        let mut files = Folder::read(&domain("travel")).unwrap().files().clone();
        let text = String::from_utf8(files[file].clone()).unwrap();
        assert!(text.contains(from), "{file} has no {from}");
        files.insert(file.to_owned(), text.replace(from, to).into_bytes());
        let found = Bundle::from_folder(Folder::of(files), Reading::default()).unwrap_err().lines();
        // The last mistake is in two actions, which need the value.
        let most = if to.starts_with("sum(") { 2 } else { 1 };
        assert!(found.len() <= most && found[0].contains(expected), "{from} -> {to}: {found:#?}");
    }
}

fn refund() -> v1::AuthorizeRequest {
    let booking = r#"{"tenant":"north","traveller":"traveller-1","cabin":"economy","flight":"cancelled","insured":false,"hours_since_booking":72,"passengers":2,"paid_minor":60000,"refunded_minor":0,"currency":"EUR"}"#;
    let enquiry = r#"{"traveller":"traveller-1","tier":"regular","status":"open","currency":"EUR"}"#;
    let arguments = r#"{"booking_id":"booking-1","payments":[{"method":"card","amount_minor":15000},{"method":"gift_card","amount_minor":15000}],"currency":"EUR"}"#;
    v1::AuthorizeRequest {
        delegation: asserted("settlement-bot", "clerk-1", "settlement"),
        action: "refund.issue".into(),
        resource: Some(v1::Resource {
            r#ref: Some(v1::EntityReference { r#type: "Booking".into(), id: "booking-1".into() }),
            attributes_json: booking.into(),
            ..Default::default()
        }),
        case: Some(v1::Case {
            id: "enquiry-1".into(),
            version: "1".into(),
            tenant: "north".into(),
            attributes_json: enquiry.into(),
        }),
        arguments_json: arguments.into(),
        model: Some(v1::Model { name: "test".into(), ..Default::default() }),
        ..Default::default()
    }
}

/// Serves the travel bundle, for the payment system.
fn travel(folder: &Path) -> Process {
    let bundle = folder.join("travel");
    copy(&domain("travel"), &bundle);
    let manifest = std::fs::read_to_string(bundle.join("bundle.yaml")).unwrap();
    std::fs::write(
        bundle.join("bundle.yaml"),
        manifest.replace("tool_service: reservations", "tool_service: payments"),
    )
    .unwrap();
    Process::serve(&folder.join("data"), &["--bundle", bundle.to_str().unwrap()], |_| {})
}

/// A list that repeats a member would be judged without the repetition.
#[tokio::test(flavor = "multi_thread")]
async fn what_repeats_or_contradicts_is_refused_with_its_path() {
    let folder = temp();
    let server = travel(folder.path());
    let mut desk = Desk::new(channel(server.grpc).await);
    let arguments = |text: &str| v1::AuthorizeRequest { arguments_json: text.to_owned().into(), ..refund() };
    let twice = r#"{"booking_id":"booking-1","payments":[{"method":"card","amount_minor":1},{"method":"card","amount_minor":1}],"currency":"EUR"}"#;
    let other = r#"{"booking_id":"booking-2","payments":[{"method":"card","amount_minor":1}],"currency":"EUR"}"#;
    for (text, expected) in [
        (twice, "arguments_json.payments[1]` occurs twice in a set"),
        (other, "arguments_json.booking_id` is not the id of the call's resource"),
    ] {
        let status = desk.decisions.authorize(arguments(text)).await.unwrap_err();
        assert!(status.code() == tonic::Code::InvalidArgument && status.message().contains(expected), "{status:?}");
        assert!(!status.message().contains("booking-2"), "{status:?}");
    }
    assert!(server.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denial_tells_what_the_policies_have_for_the_agent() {
    let folder = temp();
    let server = travel(folder.path());
    let mut desk = Desk::new(channel(server.grpc).await);
    let booking = |from: &str, to: &str| {
        let mut call = refund();
        let resource = call.resource.as_mut().unwrap();
        let text = String::from_utf8(resource.attributes_json.to_vec()).unwrap();
        resource.attributes_json = text.replace(from, to).into();
        call
    };
    let told = desk.ask(&booking("cancelled", "scheduled")).await;
    assert_eq!(told.reason_user, "A refund needs a cancelled flight, business or insurance.");
    assert!(server.stop().success());
}

#[test]
fn a_local_call_names_its_tool_service() {
    let folder = temp();
    let call = "step: settlement\naction: refund.issue\nagent: settlement-bot\nsupervisor: clerk-1\nmodel: {name: m}\n\
        arguments: {booking_id: booking-1, currency: EUR, payments: [{method: card, amount_minor: 100}]}\n\
        resource: {type: Booking, id: booking-1, attributes: {tenant: north, traveller: t, cabin: business, flight: scheduled, insured: false, hours_since_booking: 1, passengers: 1, paid_minor: 100, refunded_minor: 0, currency: EUR}}\n\
        case: {id: e, version: '1', tenant: north, attributes: {traveller: t, tier: gold, status: open, currency: EUR}}\n";
    std::fs::write(folder.path().join("call.yaml"), call).unwrap();
    let ask = |more: &str, bundle: &str| {
        let output = shell(&format!("countersign authorize --local --bundle {bundle} {more} call.yaml"), folder.path());
        let output = { output }.output().unwrap();
        (
            output.status.code(),
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
        )
    };
    copy(&domain("travel"), &folder.path().join("travel"));
    let (code, said) = ask("", "travel");
    assert!(code == Some(2) && said.contains("\nreason        not_permitted\n"), "{said}");
    let (code, said) = ask("--tool-service payments", "travel");
    assert!(
        code == Some(2)
            && said.contains("\nreason        consent_required\n")
            && said.contains("\nto be shown   en: We will pay 1.00 EUR back for booking booking-1. Do you agree?\n")
            && said.contains("\ncomputed      paid_minor: 100\n"),
        "{said}"
    );
    // A bundle without defaults for development works, too.
    let manifest = std::fs::read_to_string(folder.path().join("travel/bundle.yaml")).unwrap();
    let without = manifest.split("\n# Who calls in development").next().unwrap();
    std::fs::write(folder.path().join("travel/bundle.yaml"), without).unwrap();
    let (code, said) = ask("--tool-service payments", "travel");
    assert!(code == Some(2) && said.contains("\nreason        consent_required\n"), "{said}");
    let (code, said) = ask("", "travel");
    assert!(code == Some(1) && said.contains("give `--tool-service`"), "{said}");
}

#[test]
fn the_page_of_the_first_bundle_works_as_printed() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/first-bundle.md")).unwrap();
    let folder = temp();
    let mut said = String::new();
    let (mut run, mut compared) = (0, 0);
    for block in page.split("\n```").skip(1).step_by(2) {
        let (language, text) = block.split_once('\n').unwrap();
        match language {
            "sh" => {
                let output = shell(&format!("set -e\n{text}"), folder.path()).output().unwrap();
                said =
                    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
                assert!(output.status.success(), "{text}\n{said}");
                run += 1;
            }
            "text" => {
                for line in text.lines() {
                    assert!(said.contains(line), "expected {line:?} in\n{said}");
                    compared += 1;
                }
            }
            other => panic!("{other}"),
        }
    }
    assert!(run >= 5 && compared >= 12, "{run} blocks, {compared} lines");
}

#[test]
fn the_test_command_runs_again_when_a_file_changes() {
    let folder = temp();
    let bundle = folder.path().join("bundle");
    copy(&domain("blank"), &bundle);
    let mut watching = command(&["test", "--watch", bundle.to_str().unwrap()]);
    let mut child = watching.current_dir(open_root()).stdout(Stdio::piped()).spawn().unwrap();
    let (sender, lines) = std::sync::mpsc::channel();
    let stdout = child.stdout.take().unwrap();
    std::thread::spawn(move || {
        BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    let mut said = String::new();
    let mut until = |expected: &str| {
        said.clear();
        while !said.contains(expected) {
            match lines.recv_timeout(Duration::from_secs(60)) {
                Ok(line) => said.push_str(&format!("{line}\n")),
                Err(_) => panic!("no {expected:?} in {said}"),
            }
        }
    };
    until("16 of 16 decisions as expected");
    let policies = std::fs::read_to_string(bundle.join("policies.cedar")).unwrap();
    std::fs::write(bundle.join("policies.cedar"), policies.replace("<= 100", "<= 1000")).unwrap();
    until("FAILED tests/items.yaml:52: too much, or nothing");
    std::fs::write(bundle.join("policies.cedar"), policies).unwrap();
    until("16 of 16 decisions as expected");
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Each change of a table is a typo that would be denied, and so pass for the wrong reason.
#[test]
fn a_table_that_names_what_does_not_exist_is_refused() {
    let run = |from: &str, to: &str| {
        let mut files = Folder::read(&domain("blank")).unwrap().files().clone();
        let text = String::from_utf8(files["tests/items.yaml"].clone()).unwrap();
        assert!(text.contains(from), "no {from}");
        files.insert("tests/items.yaml".to_owned(), text.replacen(from, to, 1).into_bytes());
        tables::run(&Folder::of(files), Reading::default())
    };
    let case = "  - name: another owner's item\n";
    for (more, expected) in [
        ("    agent: agent-2\n", "`agent` names `agent-2`, which is no Agent: did you mean `agent-1`?"),
        ("    supervisor: persn-1\n", "did you mean `person-1`?"),
        ("    caller: [items, itms]\n", "did you mean `items`?"),
        ("    step: raed\n", "did you mean `read`?"),
        ("    agent: []\n", "`agent` is an empty list"),
        ("    context: [later]\n", "`context` names `later`"),
    ] {
        let refused = run(case, &format!("{case}{more}")).unwrap_err();
        assert!(refused.lines().join("\n").contains(expected), "{more}: {:#?}", refused.lines());
    }
    for (from, to, expected) in [
        ("action: item.change\n    expect", "action: item.chnge\n    expect", "did you mean `item.change`?"),
        ("resource: other-item", "resource: othr-item", "did you mean `other-item`?"),
        ("case: case, step", "case: cse, step", "did you mean `case`?"),
        ("expect: {decision: deny, gate: case}", "expect: {}", "`expect` expects nothing"),
        ("    unknown: true\n", "", "scopes"),
        ("gate: case", "gate: cas", "`expect: gate` names `cas`, which is no gate: did you mean `case`?"),
        ("reason: step_not_allowed", "reason: step_not_alowed", "did you mean `step_not_allowed`?"),
        ("- name: a locked item", "- name: an item is changed", "another case of the file is named"),
    ] {
        let refused = run(from, to).map(|report| format!("{report:?}")).unwrap_err();
        assert!(refused.lines().join("\n").contains(expected), "{to}: {:#?}", refused.lines());
    }
    assert_eq!(
        run(case, &format!("{case}    unknown: true\n    agent: [agent-1, nobody]\n")).unwrap().failures.len(),
        2
    );
}

/// Without an action, a resource or a caller, a case would pass because nothing compares it.
#[test]
fn a_case_that_decides_nothing_fails() {
    for (from, to) in [
        ("    action: item.change\n    resource: locked-item\n", "    resource: locked-item\n"),
        ("    item.read: {resource: item}\n", ""),
    ] {
        let mut files = Folder::read(&domain("blank")).unwrap().files().clone();
        let text = String::from_utf8(files["tests/items.yaml"].clone()).unwrap();
        assert!(text.contains(from), "no {from}");
        files.insert("tests/items.yaml".to_owned(), text.replacen(from, to, 1).into_bytes());
        let report = tables::run(&Folder::of(files), Reading::default()).unwrap();
        let said = format!("{:?}", report.failures);
        assert!(said.contains("decides nothing"), "{from}: {said}");
    }
}

#[test]
fn a_run_that_decides_nothing_fails() {
    let folder = temp();
    copy(&domain("blank"), &folder.path().join("bundle"));
    std::fs::remove_dir_all(folder.path().join("bundle/tests")).unwrap();
    let output = shell("countersign test bundle", folder.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.code() == Some(3) && said.contains("no test decides anything"), "{said}");
}
