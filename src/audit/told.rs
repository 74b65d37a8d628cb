//! Lines of the log in words, for people, and in the forms of other systems: CSV, and OCSF 1.8 (API Activity, User Access
//! Management).

use serde_json::{Value, json};

use crate::audit::story::Entry;
use crate::model::text::is_unprintable;

/// Columns of the CSV form.
pub const COLUMNS: [&str; 18] = [
    "time",
    "log",
    "seq",
    "type",
    "decision",
    "reason",
    "action",
    "resource",
    "agent",
    "supervisor",
    "tool_service",
    "tenant",
    "case",
    "case_version",
    "evaluation_id",
    "policy_digest",
    "policies",
    "risk",
];

/// Returns the resource as `Type::id`.
fn resource(entry: &Entry) -> String {
    match (entry.text("/resource/type"), entry.text("/resource/id")) {
        ("", _) => entry.text("/approval/resource").to_owned(),
        (kind, id) => format!("{kind}::{id}"),
    }
}

fn first<'e>(entry: &'e Entry, places: &[&str]) -> &'e str {
    places.iter().map(|place| entry.text(place)).find(|text| !text.is_empty()).unwrap_or("")
}

fn agent(entry: &Entry) -> &str {
    first(entry, &["/chain/agent", "/approval/agent", "/consent/agent"])
}

fn supervisor(entry: &Entry) -> &str {
    first(entry, &["/chain/supervisor", "/approval/supervisor", "/consent/supervisor"])
}

fn tool_service(entry: &Entry) -> &str {
    first(entry, &["/caller/tool_service", "/by/tool_service", "/approval/tool_service"])
}

fn action(entry: &Entry) -> &str {
    first(entry, &["/action", "/approval/action", "/consent/action"])
}

fn case(entry: &Entry) -> String {
    let version = entry.text("/case/version");
    let at = if version.is_empty() { String::new() } else { format!("@{version}") };
    format!("{}{at}", entry.text("/case/id"))
}

fn risk(entry: &Entry) -> String {
    let risk = entry.value.pointer("/signals/risk");
    let score = risk.and_then(|risk| risk.get("score")?.as_u64());
    score.map_or_else(String::new, |score| format!("{} {score}", entry.text("/signals/risk/tier")))
}

/// Returns a line in one sentence: what was decided or happened, who did it, and for which case.
pub fn summary(entry: &Entry) -> String {
    let mut parts: Vec<String> = vec![];
    match entry.kind() {
        "decision" => {
            let denied = [entry.text("/decision"), entry.text("/reason")].join(" ");
            parts.push(denied.trim().to_owned());
            parts.push(format!("{} on {}", action(entry), resource(entry)));
        }
        kind => {
            parts.push(kind.to_owned());
            let words = [
                "/approval/template",
                "/consent/template",
                "/state",
                "/status",
                "/kind",
                "/effect",
                "/name",
                "/reason",
                "/problem",
            ];
            parts.extend(
                words.map(|place| entry.text(place)).into_iter().filter(|word| !word.is_empty()).map(str::to_owned),
            );
            parts.extend((!action(entry).is_empty()).then(|| format!("of {}", action(entry))));
            parts.extend(
                (!entry.text("/subject").is_empty())
                    .then(|| format!("{} {}", entry.text("/subject_kind"), entry.text("/subject"))),
            );
        }
    }
    if !agent(entry).is_empty() {
        parts.push(format!("by {} for {}", agent(entry), supervisor(entry)));
    }
    let by = first(entry, &["/by/human", "/by/tool_service", "/caller/tool_service"]);
    parts.extend((!by.is_empty()).then(|| format!("from {by}")));
    parts.extend((!case(entry).is_empty()).then(|| format!("case {}", case(entry))));
    plain(&parts.join(", "))
}

/// Returns what explains a line, one fact for each: policies, requirements, findings, risk, approvals.
pub fn details(entry: &Entry) -> Vec<String> {
    let mut all = vec![];
    let mut add = |name: &str, values: Vec<String>| {
        let values: Vec<String> = values.into_iter().filter(|value| !value.is_empty()).collect();
        if !values.is_empty() {
            all.push(plain(&format!("{name}: {}", values.join(", "))));
        }
    };
    let listed = |place: &str| entry.texts(place).into_iter().map(str::to_owned).collect::<Vec<_>>();
    let one = |place: &str| vec![entry.text(place).to_owned()];
    add("evaluation", one("/evaluation_id"));
    add("step", one("/chain/step"));
    add("arguments", arguments(entry));
    add("decided by", entry.policies().into_iter().map(str::to_owned).collect());
    add("gate", one("/gate"));
    add("requires", listed("/requires/items"));
    add("obligations", listed("/obligations/items"));
    add("stopped by", one("/halted_by"));
    add("full windows", listed("/signals/full"));
    add("found in texts", [listed("/signals/found"), listed("/signals/findings")].concat());
    add("risk", [vec![risk(entry)], listed("/signals/risk/factors")].concat());
    add("draft", one("/output/disposition"));
    add("found in the draft", listed("/output/findings"));
    add("approval", [one("/approval/id"), listed("/approval/approvers")].concat());
    add("approval used", one("/approval_used"));
    add("checks made", listed("/makes_checks"));
    add(
        "model",
        vec![
            [entry.text("/model/provider"), entry.text("/model/name"), entry.text("/model/version")]
                .join(" ")
                .trim()
                .to_owned(),
        ],
    );
    add("conversation", one("/correlation/conversation"));
    add("trace", one("/trace_id"));
    add("policy", one("/policy/digest"));
    add("digest", one("/digest"));
    all
}

fn arguments(entry: &Entry) -> Vec<String> {
    let members = entry.value.get("arguments").and_then(Value::as_object).into_iter().flatten();
    let shown = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    members.map(|(name, value)| format!("{name} {}", shown(value))).collect()
}

/// Removes control and formatting characters, which could change what a terminal shows.
pub fn plain(text: &str) -> String {
    text.chars().filter(|sign| !is_unprintable(*sign)).collect()
}

/// Returns a line of CSV (RFC 4180) with [`COLUMNS`].
pub fn csv(entry: &Entry) -> String {
    let cells = [
        entry.at.to_string(),
        entry.folder.display().to_string(),
        entry.seq.to_string(),
        entry.kind().to_owned(),
        entry.text("/decision").to_owned(),
        entry.text("/reason").to_owned(),
        action(entry).to_owned(),
        resource(entry),
        agent(entry).to_owned(),
        supervisor(entry).to_owned(),
        tool_service(entry).to_owned(),
        first(entry, &["/case/tenant", "/tenant"]).to_owned(),
        entry.text("/case/id").to_owned(),
        entry.text("/case/version").to_owned(),
        first(entry, &["/evaluation_id", "/approval/evaluation_id"]).to_owned(),
        first(entry, &["/policy/digest", "/digest"]).to_owned(),
        entry.policies().join(" "),
        risk(entry),
    ];
    cells.map(|cell| cell_of(&cell)).join(",")
}

/// Quotes a cell; in some countries spreadsheets take semicolons for commas. Spreadsheets run what begins with some signs, so a quotation mark goes before these.
fn cell_of(text: &str) -> String {
    let is_formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let text = if is_formula { format!("'{text}") } else { text.to_owned() };
    if text.contains(['"', ',', ';', '\t', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

/// Returns a line as an OCSF 1.8 event: decisions and drafts as API Activity with the profile `security_control`, what happens to
/// approvals as User Access Management.
pub fn ocsf(entry: &Entry) -> Value {
    const API_ACTIVITY: u64 = 6003;
    const USER_ACCESS: u64 = 3005;
    const OTHER: u64 = 99;
    let kind = entry.kind();
    let is_approval = kind.starts_with("approval.") || kind.starts_with("consent.");
    let (class, category) = if is_approval { (USER_ACCESS, 3) } else { (API_ACTIVITY, 6) };
    let activity = match (kind, entry.text("/state")) {
        (_, "approved") if is_approval => 1,
        (_, "revoked" | "denied" | "expired") if is_approval => 2,
        _ => OTHER,
    };
    let mut event = json!({
        "class_uid": class, "category_uid": category, "activity_id": activity, "type_uid": class * 100 + activity,
        "time": entry.at.micros().div_euclid(1000), "severity_id": 1,
        "message": summary(entry),
        "actor": {"user": {"name": supervisor(entry)}, "app_name": agent(entry)},
        "api": {"operation": if action(entry).is_empty() { kind } else { action(entry) }},
        "src_endpoint": {"name": tool_service(entry)},
        "resources": [{"name": resource(entry)}],
        "metadata": {
            "version": "1.8.0", "product": {"name": "Countersign", "vendor_name": "Countersign"}, "profiles": ["security_control"],
            "uid": first(entry, &["/evaluation_id", "/approval/evaluation_id"]), "sequence": entry.seq,
            "tenant_uid": first(entry, &["/case/tenant", "/tenant"]), "correlation_uid": entry.text("/correlation/conversation"),
            "log_name": entry.folder.display().to_string(), "event_code": kind,
        },
        "unmapped": {"case": entry.text("/case/id"), "policy_digest": entry.text("/policy/digest"), "reason": entry.text("/reason")},
    });
    let more = match entry.text("/decision") {
        "allow" => json!({"action_id": 1, "disposition_id": 1, "status_id": 1}),
        "deny" => json!({"action_id": 2, "disposition_id": 2, "status_id": 2}),
        _ => json!({}),
    };
    let authorizations: Vec<Value> = entry
        .policies()
        .into_iter()
        .map(|policy| json!({"decision": entry.text("/decision"), "policy": {"name": policy}}))
        .collect();
    if let (Value::Object(event), Value::Object(more)) = (&mut event, more) {
        event.extend(more);
        event.insert("authorizations".to_owned(), authorizations.into());
        event.extend(entry.value.pointer("/signals/risk/score").map(|score| ("risk_score".to_owned(), score.clone())));
    }
    event
}
