//! The `countersign signals` command.

use std::time::Duration;

use super::connection::{Connection, HumanToken};
use super::{Environment, Exit, Failure, client_failure, runtime};
use crate::api::client::{self, Target};
use crate::api::v1;
use crate::clock::{Clock, SystemClock};
use crate::entropy::{SystemEntropy, evaluation_id};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Report a signal, as a tool service; it takes effect at once, and on every replica within a second
    Report(Report),
    /// List the signals in force
    List(List),
    /// Lift a kill switch, as a human with your own token; more humans may have to ask
    Lift(Lift),
    /// Clear risk state, as a human with your own token; kill switches and revoked sessions stay in force
    Clear(Clear),
}

#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// Tenant
    #[arg(long)]
    tenant: String,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    token: HumanToken,
}

#[derive(Debug, clap::Args)]
pub(super) struct Lift {
    #[command(flatten)]
    subject: Subject,
    /// Tenant of the subject; not needed for a whole tenant or everything
    #[arg(long)]
    tenant: Option<String>,
    /// Why
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    token: HumanToken,
}

#[derive(Debug, clap::Args)]
pub(super) struct Report {
    /// Kind of the signal
    #[arg(value_parser = crate::model::halt::SignalKind::ALL.map(crate::model::halt::SignalKind::name))]
    kind: String,
    #[command(flatten)]
    subject: Subject,
    /// Tenant of the case or customer
    #[arg(long)]
    tenant: Option<String>,
    /// Time for which it stays in force, in minutes
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=43_200))]
    minutes: u32,
    /// Severity
    #[arg(long, default_value = "high", value_parser = ["info", "low", "medium", "high", "critical"])]
    severity: String,
    #[command(flatten)]
    connection: Connection,
}

/// Subject of a signal.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct Subject {
    /// An agent
    #[arg(long, value_name = "ID")]
    agent: Option<String>,
    /// A supervising human
    #[arg(long, value_name = "ID")]
    supervisor: Option<String>,
    /// A case; with --tenant
    #[arg(long, value_name = "ID", requires = "tenant")]
    case: Option<String>,
    /// A customer; with --tenant
    #[arg(long, value_name = "ID", requires = "tenant")]
    customer: Option<String>,
    /// A whole tenant
    #[arg(long, value_name = "ID")]
    whole_tenant: Option<String>,
    /// Everything that the deployment of this environment decides
    #[arg(long, value_name = "ENVIRONMENT")]
    everything: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Clear {
    /// Tenant
    #[arg(long)]
    tenant: String,
    /// A case
    #[arg(long, value_name = "ID")]
    case: Option<String>,
    /// A customer
    #[arg(long, value_name = "ID")]
    customer: Option<String>,
    /// An agent
    #[arg(long, value_name = "ID")]
    agent: Option<String>,
    /// A supervising human
    #[arg(long, value_name = "ID")]
    supervisor: Option<String>,
    /// Why
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    token: HumanToken,
}

pub(super) fn run(environment: &Environment, command: &Command) -> Result<Exit, Failure> {
    let (what, audit) = match command {
        Command::Report(report) => {
            let response = runtime()?
                .block_on(client::report(&report.connection.target(environment)?, request(report)?))
                .map_err(client_failure)?;
            ((if response.duplicate { "known before" } else { "taken" }).to_owned(), response.audit)
        }
        Command::List(asked) => return list(environment, asked),
        Command::Lift(asked) => lift(environment, asked)?,
        Command::Clear(clear) => {
            let target =
                Target { token: Some(clear.token.read(environment)?), ..clear.connection.target(environment)? };
            let named = |id: &Option<String>| id.clone().unwrap_or_default();
            let request = v1::ClearRiskRequest {
                tenant: clear.tenant.clone(),
                case_id: named(&clear.case),
                customer_id: named(&clear.customer),
                agent_id: named(&clear.agent),
                supervisor_id: named(&clear.supervisor),
                reason: clear.reason.clone(),
            };
            ("cleared".to_owned(), runtime()?.block_on(client::clear(&target, request)).map_err(client_failure)?.audit)
        }
    };
    let json = serde_json::json!({"outcome": what, "audit": audit.as_ref().map(|audit| serde_json::json!({"log": audit.log, "index": audit.index}))});
    let place = audit.map_or_else(String::new, |audit| format!(", recorded in {} at {}", audit.log, audit.index));
    environment.print(&json, &format!("{what}{place}"));
    Ok(Exit::Ok)
}

fn lift(environment: &Environment, asked: &Lift) -> Result<(String, Option<v1::AuditReference>), Failure> {
    let target = Target { token: Some(asked.token.read(environment)?), ..asked.connection.target(environment)? };
    let (kind, subject_id) = asked.subject.named()?;
    let tenant = match kind {
        v1::SignalSubjectKind::Tenant => subject_id.clone(),
        v1::SignalSubjectKind::Server => String::new(),
        _ => asked
            .tenant
            .clone()
            .ok_or_else(|| Failure::new(Exit::Usage, "name the tenant of the subject with `--tenant`"))?,
    };
    let request = v1::LiftSignalRequest { subject_kind: kind.into(), subject_id, tenant, reason: asked.reason.clone() };
    let response = runtime()?.block_on(client::lift(&target, request)).map_err(client_failure)?;
    let what = match response.lifted {
        true => "lifted".to_owned(),
        false => format!(
            "asked for by {} of {} humans: it stays in force until another one asks",
            response.humans, response.quorum
        ),
    };
    Ok((what, response.audit))
}

fn list(environment: &Environment, asked: &List) -> Result<Exit, Failure> {
    let target = Target { token: asked.token.read_if_named(environment)?, ..asked.connection.target(environment)? };
    let response = runtime()?.block_on(client::signals(&target, asked.tenant.clone())).map_err(client_failure)?;
    let mut text = String::new();
    let mut listed = vec![];
    for signal in &response.signals {
        let kind = signal.subject_kind().as_str_name().trim_start_matches("SIGNAL_SUBJECT_KIND_").to_lowercase();
        let (since, until) = client::period(signal);
        text.push_str(&format!("{}  {kind} {}  from {since} to {until}\n", signal.effect, signal.subject_id));
        listed.push(serde_json::json!({"effect": signal.effect, "subject_kind": kind, "subject": signal.subject_id, "tenant": signal.tenant, "since": since, "until": until}));
    }
    if response.truncated {
        text.push_str("and more\n");
    }
    if listed.is_empty() {
        text.push_str("no signal is in force\n");
    }
    environment.print(&serde_json::json!({"signals": listed, "truncated": response.truncated}), text.trim_end());
    Ok(Exit::Ok)
}

impl Subject {
    /// Returns the subject that was named.
    fn named(&self) -> Result<(v1::SignalSubjectKind, String), Failure> {
        use v1::SignalSubjectKind as Kind;
        let Self { agent, supervisor, case, customer, whole_tenant, everything } = self;
        let subjects = [
            (Kind::Agent, agent),
            (Kind::Supervisor, supervisor),
            (Kind::Case, case),
            (Kind::Customer, customer),
            (Kind::Tenant, whole_tenant),
            (Kind::Server, everything),
        ];
        let named = subjects.into_iter().find_map(|(kind, id)| Some((kind, id.clone()?)));
        named.ok_or_else(|| Failure::new(Exit::Usage, "name the subject, e.g. with `--agent`"))
    }
}

fn request(report: &Report) -> Result<v1::ReportSignalRequest, Failure> {
    let (kind, subject_id) = report.subject.named()?;
    let severity = match report.severity.as_str() {
        "critical" => v1::Severity::Critical,
        "info" => v1::Severity::Info,
        "low" => v1::Severity::Low,
        "medium" => v1::Severity::Medium,
        _ => v1::Severity::High,
    };
    let now = SystemClock.now();
    let id = evaluation_id(&SystemEntropy, now).map_err(|error| Failure::new(Exit::Failure, error))?;
    let ttl = Duration::from_secs(u64::from(report.minutes) * 60);
    Ok(v1::ReportSignalRequest {
        subject_kind: kind.into(),
        subject_id,
        kind: report.kind.clone(),
        severity: severity.into(),
        ttl: Some(client::duration(ttl)),
        event_id: id.to_string(),
        event_time: Some(crate::api::respond::time(now)),
        tenant: report.tenant.clone().unwrap_or_default(),
    })
}
