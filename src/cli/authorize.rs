//! The `countersign authorize` command.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;

use super::connection::{Connection, read_token};
use super::{Environment, Exit, Failure, client_failure, runtime};
use crate::api::{client, v1};
use crate::bundle::Bundle;
use crate::bundle::manifest::yaml_line;
use crate::clock::{Clock, SystemClock};
use crate::delegation::asserted_chain;
use crate::json::{Object, canonical};
use crate::model::answer::Obligation;
use crate::model::call::Call;
use crate::model::chain::{Asserted, Credential};
use crate::model::refusal::Refusal;
use crate::model::time::Timestamp;
use crate::pdp::evaluation::{Evaluation, Evaluator};
use crate::pdp::scoring::{calm, trust_texts};
use crate::pdp::snapshot::computed;
use crate::workbench::request::WrittenRequest;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The request, as YAML or JSON; `-` reads standard input. See examples/authorize.yaml
    request: PathBuf,
    #[command(flatten)]
    connection: Connection,
    /// File with a delegation token, which sets agent, supervisor, step and scopes
    #[arg(long, value_name = "FILE")]
    token: Option<PathBuf>,
    /// File with an approval token to consume
    #[arg(long, value_name = "FILE", requires = "operation_id")]
    approval_token: Option<PathBuf>,
    /// File with the token of a customer's consent to consume
    #[arg(long, value_name = "FILE", requires = "operation_id")]
    consent_token: Option<PathBuf>,
    /// Id of the operation that consumes the approval or consent; a retry with the same id gets the same answer
    #[arg(long, value_name = "ID")]
    operation_id: Option<String>,
    /// If only an approval is lacking, request it, with this text as the customer's request
    #[arg(long, value_name = "TEXT", conflicts_with = "local")]
    request_approval: Option<String>,
    /// Evaluate with a local bundle, without a server and without a record
    #[arg(long, conflicts_with_all = ["server", "token", "approval_token", "consent_token"])]
    local: bool,
    /// With --local: folder of the bundle [default: policies, or that of the settings]
    #[arg(long, value_name = "FOLDER", requires = "local")]
    bundle: Option<PathBuf>,
    /// With --local: the calling tool service [default: that of the bundle's `development` section]
    #[arg(long, value_name = "ID", requires = "local")]
    tool_service: Option<String>,
    /// With --local: the time of the decision, RFC 3339 [default: now]
    #[arg(long, value_name = "TIME", requires = "local")]
    at: Option<String>,
}

/// Result of the evaluation, as it is printed.
#[derive(Debug, serde::Serialize)]
struct Shown {
    decision: &'static str,
    mode: String,
    hypothetical: &'static str,
    reason: String,
    reason_user: String,
    next_action: String,
    requires: Vec<String>,
    /// Texts to show to the customer, by language.
    consent_texts: BTreeMap<String, String>,
    obligations: Vec<String>,
    advice: Vec<String>,
    computed: Object,
    evaluation_id: String,
    binding_token: String,
    approval: String,
    /// Id of the approval that was requested.
    requested: String,
    consent: String,
    repeated: bool,
    policy_digest: String,
    audit_index: Option<u64>,
    determining: Vec<String>,
    /// Denial of each link of the chain: the policies, or that none permits it.
    denied: Vec<String>,
    warnings: Vec<String>,
}

pub(super) fn run(environment: &Environment, arguments: &Arguments) -> Result<Exit, Failure> {
    let call = read(arguments)?;
    let (allowed, shown) =
        if arguments.local { local(environment, arguments, &call)? } else { remote(environment, arguments, &call)? };
    environment.print(&shown, &text(&shown));
    Ok(if allowed { Exit::Ok } else { Exit::Denied })
}

fn read(arguments: &Arguments) -> Result<Call, Failure> {
    let usage = |message: String| Failure::new(Exit::Usage, message);
    let name = arguments.request.display();
    let mut text = String::new();
    let read = match arguments.request.as_os_str().to_str() {
        Some("-") => std::io::stdin().read_to_string(&mut text),
        _ => std::fs::File::open(&arguments.request).and_then(|mut file| file.read_to_string(&mut text)),
    };
    read.map_err(|error| usage(format!("the request `{name}` can't be read: {error}")))?;
    let written: WrittenRequest =
        serde_saphyr::from_str(&text).map_err(|error| usage(format!("the request `{name}`: {}", yaml_line(&error))))?;
    let mut call = written.call();
    if let Some(path) = &arguments.token {
        call.credential = Credential::Token { token: read_token(path)?, agent_certificate: None };
    }
    call.tokens.approval = arguments.approval_token.as_deref().map(read_token).transpose()?;
    call.tokens.consent = arguments.consent_token.as_deref().map(read_token).transpose()?;
    call.tokens.operation = arguments.operation_id.clone().unwrap_or_default();
    Ok(call)
}

fn remote(environment: &Environment, arguments: &Arguments, call: &Call) -> Result<(bool, Shown), Failure> {
    let answered =
        runtime()?.block_on(client::authorize(&arguments.connection.target(environment)?, client::message(call)));
    let response = answered.map_err(client_failure)?;
    let allowed = response.decision() == v1::Decision::Allow && response.mode() == v1::Mode::Enforce;
    let requested = match (&arguments.request_approval, &response.access_request) {
        (Some(text), Some(asked)) => Some(request(environment, arguments, &response.evaluation_id, asked, text)?),
        _ => None,
    };
    let name = |name: &str, prefix: &str| name.trim_start_matches(prefix).to_lowercase();
    let reason = response.reason().as_str_name();
    let shown = Shown {
        decision: name_of(allowed),
        mode: name(response.mode().as_str_name(), "MODE_"),
        hypothetical: match response.hypothetical() {
            v1::Decision::Allow => "allow",
            v1::Decision::Deny => "deny",
            v1::Decision::Unspecified => "",
        },
        reason: if response.reason() == v1::Reason::Unspecified { String::new() } else { name(reason, "REASON_") },
        reason_user: response.reason_user.clone(),
        next_action: name(response.next_action().as_str_name(), "NEXT_ACTION_"),
        requires: response.access_request.as_ref().map_or_else(Vec::new, |request| request.requires.clone()),
        consent_texts: response
            .access_request
            .iter()
            .flat_map(|request| &request.consent_texts)
            .map(|text| (text.language.clone(), text.text.clone()))
            .collect(),
        obligations: response.obligations.iter().map(obligation).collect(),
        advice: response.advice.iter().map(obligation).collect(),
        computed: Object::new(),
        evaluation_id: response.evaluation_id.clone(),
        binding_token: response
            .access_request
            .as_ref()
            .map_or_else(String::new, |request| request.binding_token.clone()),
        approval: response.approval.as_ref().map_or_else(String::new, |used| used.id.clone()),
        requested: requested.map_or_else(String::new, |requested| requested.id),
        consent: response.consent.as_ref().map_or_else(String::new, |used| used.id.clone()),
        repeated: response.repeated,
        policy_digest: response.policy.as_ref().map_or_else(String::new, |policy| policy.digest.clone()),
        audit_index: response.audit.as_ref().map(|audit| audit.index),
        determining: vec![],
        denied: vec![],
        warnings: response.warnings.clone(),
    };
    Ok((allowed, shown))
}

/// Requests the approval that a denial lacks.
fn request(
    environment: &Environment,
    arguments: &Arguments,
    evaluation_id: &str,
    asked: &v1::AccessRequest,
    text: &str,
) -> Result<v1::Approval, Failure> {
    let justification = v1::Justification {
        customer_request: text.to_owned(),
        policy_clause: "none: requested on the command line".to_owned(),
        ..v1::Justification::default()
    };
    let request = v1::RequestApprovalRequest {
        evaluation_id: evaluation_id.to_owned(),
        binding_token: asked.binding_token.clone(),
        justification: Some(justification),
        ..Default::default()
    };
    let target = arguments.connection.target(environment)?;
    runtime()?.block_on(client::request_approval(&target, request)).map_err(client_failure)
}

fn name_of(allowed: bool) -> &'static str {
    if allowed { "allow" } else { "deny" }
}

fn obligation(obligation: &v1::Obligation) -> String {
    format!("{}:{}", obligation.r#type, obligation.properties.get("value").map_or("", String::as_str))
}

fn local(environment: &Environment, arguments: &Arguments, call: &Call) -> Result<(bool, Shown), Failure> {
    let config = environment.config()?;
    let path = arguments.bundle.as_ref().unwrap_or(&config.bundle.path);
    let bundle = Bundle::load(path, config.reading())?;
    let now = match &arguments.at {
        Some(text) => Timestamp::parse(text)
            .ok_or_else(|| Failure::new(Exit::Usage, "`--at` must be a time such as 2026-03-02T09:00:00Z"))?,
        None => SystemClock.now(),
    };
    let Evaluation { outcome, gate, verdict } = decide(&bundle, call, arguments.tool_service.as_deref(), now)
        .map_err(|refusal| Failure::new(Exit::Failure, refusal.in_full()))?;
    let allowed = outcome.denied.is_none() && !call.dry_run;
    let shown = Shown {
        decision: name_of(allowed),
        mode: if call.dry_run { "dry_run" } else { "enforce" }.to_owned(),
        hypothetical: if call.dry_run { name_of(outcome.denied.is_none()) } else { "" },
        reason: outcome.denied.map_or("", |reason| reason.name()).to_owned(),
        reason_user: outcome.text().to_owned(),
        next_action: outcome.denied.map_or("none", |reason| reason.next_action().name()).to_owned(),
        consent_texts: outcome.missing.as_ref().map_or_else(BTreeMap::new, |missing| missing.texts.clone()),
        requires: outcome.missing.map_or_else(Vec::new, |missing| missing.requires),
        obligations: outcome.obligations.iter().map(written).collect(),
        advice: outcome.advice.iter().map(written).collect(),
        computed: computed(&bundle, &call.action, &call.arguments).unwrap_or_default(),
        evaluation_id: String::new(),
        binding_token: String::new(),
        approval: String::new(),
        requested: String::new(),
        consent: String::new(),
        repeated: false,
        policy_digest: bundle.version.digest.clone(),
        audit_index: None,
        determining: match gate {
            Some(gate) => vec![format!("gate: {}", gate.name())],
            None => verdict.determining().into_iter().map(str::to_owned).collect(),
        },
        denied: if gate.is_some() { vec![] } else { verdict.denials() },
        warnings: vec!["not_recorded".into()],
    };
    Ok((allowed, shown))
}

/// Evaluates a call with the bundle's development defaults for what it does not name, without approvals and with an
/// empty risk store.
fn decide(bundle: &Bundle, call: &Call, tool_service: Option<&str>, now: Timestamp) -> Result<Evaluation, Refusal> {
    let missing = |words| Refusal::Unauthenticated(words);
    let roles = bundle
        .roles
        .as_ref()
        .ok_or_else(|| Refusal::invalid("engine.gates", "is `none`: only a server evaluates plain requests"))?;
    let defaults = bundle.manifest.development.clone().unwrap_or_default();
    let asserted = match &call.credential {
        Credential::Asserted(asserted) => asserted.clone(),
        Credential::None => Asserted::default(),
        Credential::Token { .. } => return Err(missing("only a server can verify a token: leave out `--local`")),
    };
    let chain = asserted_chain(tool_service.unwrap_or(&defaults.tool_service), &asserted, &defaults);
    if chain.tool_service.is_empty() || chain.agent.is_empty() || chain.supervisor.is_empty() || chain.step.is_empty() {
        return Err(missing(
            "the bundle has no `development` section: give `--tool-service`, and agent, supervisor and step in the request",
        ));
    }
    let mut trusted = calm(&bundle.policies.shapes);
    let _kinds = trust_texts(bundle, call, &[], &mut trusted);
    Evaluator { bundle, roles, now }.evaluate(&chain, call, &trusted)
}

fn written(obligation: &Obligation) -> String {
    format!("{}:{}", obligation.kind, obligation.value)
}

fn text(shown: &Shown) -> String {
    let mut text = shown.decision.to_uppercase();
    if !shown.hypothetical.is_empty() {
        text.push_str(&format!(" (dry run: it would be {})", shown.hypothetical.to_uppercase()));
    }
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            text.push_str(&format!("\n{name:<14}{value}"));
        }
    };
    line("reason", &shown.reason);
    line("", &shown.reason_user);
    line("next action", if shown.decision == "deny" { &shown.next_action } else { "" });
    line("requires", &shown.requires.join(", "));
    shown.consent_texts.iter().for_each(|(language, text)| line("to be shown", &format!("{language}: {text}")));
    line("obligations", &shown.obligations.join("; "));
    line("advice", &shown.advice.join("; "));
    let computed =
        shown.computed.iter().map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(&canonical(value))));
    line("computed", &computed.collect::<Vec<_>>().join(", "));
    line("determined by", &shown.determining.join(", "));
    shown.denied.iter().enumerate().for_each(|(at, denied)| line(if at == 0 { "denied" } else { "" }, denied));
    line("approval", &shown.approval);
    line("requested", &shown.requested);
    line("consent", &shown.consent);
    line("repeated", if shown.repeated { "the answer of this operation's first call" } else { "" });
    line("evaluation", &shown.evaluation_id);
    line("warnings", &shown.warnings.join(", "));
    text
}
