//! The `countersign config` command.

use super::{Environment, Exit, Failure, print, runtime, serve};
use crate::app::check::{self, Check};
use crate::config;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Do everything that a start does, except listening: settings, bundle, certificates, keys, stores, telemetry
    Check(serve::Arguments),
}

pub(super) fn run(environment: &Environment, command: Command) -> Result<Exit, Failure> {
    let Command::Check(arguments) = command;
    let config = arguments.settings(environment)?;
    let telemetry = config::telemetry(&config.environment, &environment.variables)?;
    let checks = runtime()?.block_on(check::check(&config, &telemetry));
    let shown: Vec<_> = checks.iter().map(shown).collect();
    let is_valid = checks.iter().all(|check| check.found.is_ok());
    match environment.output {
        super::Output::Json => print(&serde_json::json!({"valid": is_valid, "checks": shown}).to_string()),
        super::Output::Text => print(&checks.iter().map(line).collect::<String>()),
    }
    let failed = checks.into_iter().find_map(|check| check.found.err());
    Ok(failed.map_or(Exit::Ok, |error| serve::start_failure(error).exit))
}

fn shown(Check { name, found }: &Check) -> serde_json::Value {
    match found {
        Ok(found) => serde_json::json!({"name": name, "ok": true, "found": found}),
        Err(error) => serde_json::json!({"name": name, "ok": false, "error": error.to_string()}),
    }
}

fn line(Check { name, found }: &Check) -> String {
    match found {
        Ok(found) => format!("ok      {name:<14} {found}\n").trim_end().to_owned() + "\n",
        Err(error) => format!("FAULTY  {name:<14} {error}\n"),
    }
}
