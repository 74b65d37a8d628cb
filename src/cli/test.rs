//! The `countersign test` command.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Environment, Exit, Failure};
use crate::bundle::Bundle;
use crate::bundle::folder::Folder;
use crate::config::Config;
use crate::workbench::tables::Report;
use crate::workbench::{cedar_json, tables};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Folder of the policy bundle [default: policies, or that of the settings]
    bundle: Option<PathBuf>,
    /// Exit with 3 also if a policy decides no test, or if no test states the obligations of a policy
    #[arg(long)]
    strict: bool,
    /// Run the tests again whenever a file of the bundle changes, until the command is stopped
    #[arg(long)]
    watch: bool,
}

/// Time between two looks at the folder.
const WATCH_PERIOD: Duration = Duration::from_millis(300);

pub(super) fn run(environment: &Environment, arguments: &Arguments) -> Result<Exit, Failure> {
    let config = environment.config()?;
    let path = arguments.bundle.as_ref().unwrap_or(&config.bundle.path);
    let mut folder = read(path)?;
    if !arguments.watch {
        return once(environment, arguments, &config, &folder);
    }
    loop {
        if let Err(failure) = once(environment, arguments, &config, &folder) {
            failure.report(environment.output);
        }
        folder = changed(path, &folder);
    }
}

/// Waits until a folder differs from what it was.
fn changed(path: &Path, last: &Folder) -> Folder {
    loop {
        std::thread::sleep(WATCH_PERIOD);
        // A file may be missing while an editor replaces it.
        match read(path) {
            Ok(folder) if folder != *last => return folder,
            Ok(_) | Err(_) => {}
        }
    }
}

fn read(path: &Path) -> Result<Folder, Failure> {
    Folder::read(path).map_err(|error| Failure::new(Exit::Invalid, error))
}

fn once(environment: &Environment, arguments: &Arguments, config: &Config, folder: &Folder) -> Result<Exit, Failure> {
    let bundle = Bundle::from_folder(folder.clone(), config.reading())?;
    let mut report = tables::run(folder, config.reading())?;
    let plain = cedar_json::run(&bundle, config.engine.validate);
    report.decisions += plain.decisions;
    report.allowed += plain.allowed;
    report.denied += plain.denied;
    report.failures.extend(plain.failures);
    environment.print(&report, &text(&report));
    let is_covered = report.unreached.is_empty() && report.unstated.is_empty();
    // A run that decides nothing shows nothing.
    let passed = report.failures.is_empty() && report.decisions > 0 && (is_covered || !arguments.strict);
    Ok(if passed { Exit::Ok } else { Exit::Invalid })
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for failure in &report.failures {
        text.push_str(&format!("FAILED {}:{}: {}\n", failure.file, failure.line, failure.case));
        for difference in &failure.differences {
            text.push_str(&format!("  {difference}\n"));
        }
    }
    if !report.unreached.is_empty() {
        text.push_str(&format!("no test is decided by: {}\n", report.unreached.join(", ")));
    }
    if !report.unstated.is_empty() {
        text.push_str(&format!("no test states the obligations of: {}\n", report.unstated.join(", ")));
    }
    if report.decisions == 0 {
        text.push_str("no test decides anything: write cases into tests/*.yaml\n");
    }
    let passed = report.decisions - report.failures.len().min(report.decisions);
    text.push_str(&format!(
        "{passed} of {} decisions as expected ({} allowed, {} denied)\n",
        report.decisions, report.allowed, report.denied
    ));
    text
}
