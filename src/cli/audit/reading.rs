//! `countersign audit show`, `case`, `export` and `check`: reading the log.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::audit::complete::{self, Completeness, Lacking};
use crate::audit::story::{Entry, Filter, read};
use crate::audit::told::{COLUMNS, csv, details, ocsf, plain, summary};
use crate::audit::verify::first_line;
use crate::cli::{Environment, Exit, Failure, Output, print};
use crate::clock::{Clock as _, SystemClock};
use crate::model::time::Timestamp;

/// Pause between two looks at a log that is followed.
const FOLLOW: Duration = Duration::from_millis(500);

/// Time by which the lines of one log may be behind those of another.
const LATE: Duration = Duration::from_secs(60);

/// Which lines are read.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Lines {
    /// Folders of logs, such as those of several replicas, which are merged by time [default: audit/ in the data folder of the settings]
    folders: Vec<PathBuf>,
    /// Case
    #[arg(long, value_name = "ID")]
    case: Option<String>,
    /// Tenant
    #[arg(long, value_name = "ID")]
    tenant: Option<String>,
    /// Agent
    #[arg(long, value_name = "ID")]
    agent: Option<String>,
    /// Supervisor or reviewer
    #[arg(long, value_name = "ID")]
    human: Option<String>,
    /// Evaluation id: the decision, and what followed from it
    #[arg(long, value_name = "ID")]
    evaluation: Option<String>,
    /// Type of the lines, or its beginning, such as `approval`
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// `allow` or `deny`
    #[arg(long, value_parser = ["allow", "deny"])]
    decision: Option<String>,
    /// Reason of a denial
    #[arg(long)]
    reason: Option<String>,
    /// Policy that determined the decision
    #[arg(long, value_name = "ID")]
    policy: Option<String>,
    /// From this time on (RFC 3339), or from this long ago: `90s`, `15m`, `24h`, `7d`
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<Timestamp>,
    /// Before this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<Timestamp>,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Show {
    #[command(flatten)]
    lines: Lines,
    /// Print only the first lines
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Go on with lines as they are written, until interrupted
    #[arg(long)]
    follow: bool,
    /// Explain each line: policies, findings, risk, approvals
    #[arg(long)]
    details: bool,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Case {
    /// The case
    id: String,
    /// Folders of logs, which are merged by time [default: audit/ in the data folder of the settings]
    folders: Vec<PathBuf>,
    /// Its tenant, if several have a case of this id
    #[arg(long, value_name = "ID")]
    tenant: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Export {
    #[command(flatten)]
    lines: Lines,
    /// Form of the lines
    #[arg(long, value_enum, default_value_t = Form::Jsonl)]
    form: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    /// RFC 4180, one row for each line
    Csv,
    /// The lines as they are
    Jsonl,
    /// OCSF 1.8, one event for each line
    Ocsf,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Check {
    /// Folders of all logs of the deployment [default: audit/ in the data folder of the settings]
    folders: Vec<PathBuf>,
    /// From this time on (RFC 3339), or from this long ago, such as `24h`
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<Timestamp>,
}

/// Parses a time, or how long ago it is.
pub(in crate::cli) fn time(text: &str) -> Result<Timestamp, String> {
    let ago = || {
        let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let unit = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => return None,
        };
        let seconds = number.parse::<u64>().ok()?.checked_mul(unit)?;
        Some(SystemClock.now().minus(Duration::from_secs(seconds)))
    };
    Timestamp::parse(text)
        .or_else(ago)
        .ok_or_else(|| "is no RFC 3339 time, and no time such as `15m` or `24h`".to_owned())
}

/// Returns the folders of the logs that are read, each once.
pub(in crate::cli) fn folders(environment: &Environment, named: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut all = if named.is_empty() { vec![environment.config()?.audit().folder] } else { named.to_vec() };
    all.sort();
    all.dedup();
    for folder in &all {
        first_line(folder).map_err(|error| Failure::new(Exit::Failure, error))?;
    }
    Ok(all)
}

impl Lines {
    fn filter(&self) -> Filter {
        Filter {
            case: self.case.clone(),
            tenant: self.tenant.clone(),
            agent: self.agent.clone(),
            human: self.human.clone(),
            evaluation: self.evaluation.clone(),
            kind: self.kind.clone(),
            decision: self.decision.clone(),
            reason: self.reason.clone(),
            policy: self.policy.clone(),
            since: self.since,
            until: self.until,
        }
    }
}

fn lines(folders: &[PathBuf], filter: &Filter, take: impl FnMut(Entry) -> bool) -> Result<(), Failure> {
    let shown = folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join("`, `");
    read(folders, filter, take)
        .map_err(|error| Failure::new(Exit::Failure, format!("`{shown}` can't be read: {error}")))
}

pub(super) fn show(environment: &Environment, arguments: &Show) -> Result<Exit, Failure> {
    let folders = folders(environment, &arguments.lines.folders)?;
    let mut filter = arguments.lines.filter();
    let (mut left, mut seen) = (arguments.limit.unwrap_or(usize::MAX), None);
    let mut last: Vec<(PathBuf, u64)> = vec![];
    let begun = SystemClock.now();
    loop {
        lines(&folders, &filter, |entry| {
            // A line of the same time as the last one may be read again.
            let known = last.iter().any(|(folder, seq)| *folder == entry.folder && *seq >= entry.seq);
            if left > 0 && !known {
                left -= 1;
                row(environment.output, &entry, arguments.details);
                last.retain(|(folder, _)| *folder != entry.folder);
                last.push((entry.folder.clone(), entry.seq));
                seen = seen.max(Some(entry.at));
            }
            left > 0
        })?;
        if !arguments.follow || left == 0 {
            return Ok(Exit::Ok);
        }
        // Lines of several logs may come a little late.
        filter.since = filter.since.max(Some(seen.unwrap_or(begun).minus(LATE)));
        std::thread::sleep(FOLLOW);
    }
}

fn row(output: Output, entry: &Entry, is_explained: bool) {
    match output {
        Output::Json => print(&entry.line),
        Output::Text => {
            print(&format!("{}  #{:<6} {}", entry.at, entry.seq, summary(entry)));
            if is_explained {
                details(entry).iter().for_each(|fact| print(&format!("    {fact}")));
            }
        }
    }
}

pub(super) fn case(environment: &Environment, arguments: &Case) -> Result<Exit, Failure> {
    let folders = folders(environment, &arguments.folders)?;
    let filter = Filter { case: Some(arguments.id.clone()), tenant: arguments.tenant.clone(), ..Filter::default() };
    let (mut count, mut open) = (0_usize, BTreeMap::new());
    lines(&folders, &filter, |entry| {
        count += 1;
        row(environment.output, &entry, true);
        let id = entry.text("/evaluation_id").to_owned();
        match (entry.kind(), entry.text("/decision")) {
            ("decision", "allow") if entry.text("/purpose") == "authorize" => {
                open.insert(id, entry.text("/action").to_owned());
            }
            ("outcome.reported", _) => {
                open.remove(&id);
            }
            _ => {}
        }
        true
    })?;
    if environment.output == Output::Text {
        print(&format!("{count} lines about case {}", arguments.id));
        for (id, action) in &open {
            print(&format!("no outcome was reported of {action} ({id})"));
        }
    }
    Ok(if count == 0 { Exit::Failure } else { Exit::Ok })
}

pub(super) fn export(environment: &Environment, arguments: &Export) -> Result<Exit, Failure> {
    let folders = folders(environment, &arguments.lines.folders)?;
    if arguments.form == Form::Csv {
        print(&COLUMNS.join(","));
    }
    lines(&folders, &arguments.lines.filter(), |entry| {
        match arguments.form {
            Form::Csv => print(&csv(&entry)),
            Form::Jsonl => print(&entry.line),
            Form::Ocsf => print(&ocsf(&entry).to_string()),
        }
        true
    })?;
    Ok(Exit::Ok)
}

pub(super) fn check(environment: &Environment, arguments: &Check) -> Result<Exit, Failure> {
    let folders = folders(environment, &arguments.folders)?;
    let found = complete::check(&folders, arguments.since, SystemClock.now());
    let shown = |folder: &PathBuf| Path::display(folder).to_string();
    let names = || folders.iter().map(shown).collect::<Vec<_>>().join("`, `");
    let found = found.map_err(|error| Failure::new(Exit::Failure, format!("`{}` can't be read: {error}", names())))?;
    environment.print(&found, &told(&found));
    Ok(if found.is_complete() { Exit::Ok } else { Exit::Invalid })
}

fn told(found: &Completeness) -> String {
    let mut text = format!("{} decisions", found.decisions);
    let lists: [(&str, &[Lacking]); 4] = [
        ("allowed more than an hour ago, and no outcome was reported", &found.without_outcome),
        ("an outcome was reported, and no log has the allow", &found.without_allow),
        ("decided by a bundle that no log has activated", &found.unknown_bundles),
        ("the server did not stop by itself after this start", &found.without_stop),
    ];
    for (what, list) in lists {
        for Lacking { at, seq, about, action, .. } in list {
            text.push('\n');
            text.push_str(&plain(&format!("{at}  #{seq:<6} {action} {about}: {what}")));
        }
    }
    if found.is_complete() {
        text.push_str("\ncomplete");
    }
    text
}
