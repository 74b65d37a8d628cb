//! The command line. Exit codes: 0 allowed, valid or passed; 1 failure; 2 denied; 3 invalid bundle, failed
//! test, broken log or wrong draft; 64 usage.

mod approvals;
mod audit;
mod authorize;
mod check;
mod config;
mod connection;
mod detectors;
mod healthcheck;
mod init;
mod keys;
mod replay;
mod serve;
mod signals;
mod store;
mod test;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};

use crate::api::client::ClientError;
use crate::bundle::LoadError;
use crate::config::{Config, ConfigError};
use crate::model::fault::{Fault, FaultReport};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Ok = 0,
    Failure = 1,
    Denied = 2,
    Invalid = 3,
    Usage = 64,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Countersign: a policy decision point for AI agents in customer support.
///
/// Tool services ask it, call by call, whether an agent may act; the answers come from Cedar policies and leave a durable record.
#[derive(Debug, Parser)]
#[command(name = "countersign", version, propagate_version = true, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Settings file [default: countersign.yaml, if it exists]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Output format
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Text,
    /// One JSON object
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server
    Serve(serve::Arguments),
    /// Write a small bundle to begin with
    Init(init::Arguments),
    /// Check a bundle: syntax, types, and the rules of a readable bundle
    Check(check::Arguments),
    /// Check the settings of a server
    #[command(subcommand)]
    Config(config::Command),
    /// Run a bundle's tests: decision tables (tests/*.yaml) and Cedar's JSON tests (tests/*.json)
    Test(test::Arguments),
    /// Evaluate recorded decisions again, by the bundle that made them or by another one, and show what changes
    ///
    /// Gates, derived values, policies and obligations are evaluated again. Risk scores, full windows, findings and checks are taken as they were, so
    /// other windows, weights or detectors change nothing here. Exit codes: 0 nothing changes, 3 something does, 1 nothing could be replayed.
    Replay(replay::Arguments),
    /// Evaluate one request, on a running server or with a local bundle
    Authorize(authorize::Arguments),
    /// Review approval requests, as a human with your own token
    #[command(subcommand)]
    Approvals(approvals::Command),
    /// Report signals such as kill switches, and clear risk state
    #[command(subcommand)]
    Signals(signals::Command),
    /// Measure, explain and train the detectors of texts
    #[command(subcommand)]
    Detectors(detectors::Command),
    /// Make, rotate and list the keys that sign tokens
    #[command(subcommand)]
    Keys(keys::Command),
    /// Show the state of the store that replicas share, and confirm a loss
    #[command(subcommand)]
    Store(store::Command),
    /// Read, verify and prove the audit log, or accept a loss of lines
    #[command(subcommand)]
    Audit(audit::Command),
    /// Ask a running server whether it is healthy, for container health checks
    Healthcheck(healthcheck::Arguments),
}

/// Global arguments and environment variables, which every command gets.
struct Environment {
    config: Option<PathBuf>,
    output: Output,
    variables: BTreeMap<String, String>,
}

impl Environment {
    fn config(&self) -> Result<Config, ConfigError> {
        Config::load(self.config.as_deref(), self.variables.clone())
    }

    /// Prints a value as JSON, or its text for people, depending on `--output`.
    #[expect(clippy::expect_used, reason = "a program that reads the output must not take an empty line for a result")]
    fn print(&self, value: &impl serde::Serialize, text: &str) {
        match self.output {
            Output::Json => print(&serde_json::to_string(value).expect("what commands print has string keys")),
            Output::Text => print(text),
        }
    }
}

/// Runs the command that the arguments name.
pub fn run(
    arguments: impl IntoIterator<Item = OsString>,
    variables: impl IntoIterator<Item = (String, String)>,
) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are not errors. For usage errors, clap's own exit code is not the documented
            // one.
            let wrong = error.use_stderr();
            // Ignore a closed pipe.
            let _written = error.print();
            return if wrong { Exit::Usage } else { Exit::Ok }.into();
        }
    };
    let environment =
        Environment { config: arguments.config, output: arguments.output, variables: variables.into_iter().collect() };
    let ended = match arguments.command {
        Command::Serve(arguments) => serve::run(&environment, arguments),
        Command::Init(arguments) => init::run(&environment, &arguments),
        Command::Check(arguments) => check::run(&environment, &arguments),
        Command::Config(command) => config::run(&environment, command),
        Command::Test(arguments) => test::run(&environment, &arguments),
        Command::Replay(arguments) => replay::run(&environment, &arguments),
        Command::Authorize(arguments) => authorize::run(&environment, &arguments),
        Command::Approvals(command) => approvals::run(&environment, &command),
        Command::Signals(command) => signals::run(&environment, &command),
        Command::Detectors(command) => detectors::run(&environment, &command),
        Command::Keys(command) => keys::run(&environment, &command),
        Command::Store(command) => store::run(&environment, &command),
        Command::Audit(command) => audit::run(&environment, command),
        Command::Healthcheck(arguments) => healthcheck::run(&environment, &arguments),
    };
    ended.unwrap_or_else(|failure| failure.report(environment.output)).into()
}

/// Returns the help of every command, for a snapshot test.
pub fn help() -> String {
    fn collect(command: &mut clap::Command, path: &str, text: &mut String) {
        let path = format!("{path} {}", command.get_name()).trim().to_owned();
        text.push_str(&format!("=== {path} --help\n{}\n", command.render_long_help()));
        let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
        for name in names {
            if let Some(sub) = command.find_subcommand_mut(&name) {
                collect(sub, &path, text);
            }
        }
    }
    let mut text = String::new();
    let mut command = Arguments::command();
    command.build();
    collect(&mut command, "", &mut text);
    text
}

/// Failure of a command: a message for people and an exit code.
struct Failure {
    message: String,
    exit: Exit,
    /// gRPC status of a server's refusal; empty for other failures.
    status: String,
    /// Faults of a bundle.
    faults: Vec<FaultReport>,
}

impl Failure {
    fn new(exit: Exit, message: impl std::fmt::Display) -> Self {
        Self { message: message.to_string(), exit, status: String::new(), faults: vec![] }
    }

    /// Writes the failure to standard error: as text, or as one JSON object.
    fn report(self, output: Output) -> Exit {
        match output {
            Output::Json => {
                let mut error = serde_json::json!({"message": self.message, "exit": self.exit as u8});
                if let Some(members) = error.as_object_mut() {
                    if !self.status.is_empty() {
                        members.insert("status".to_owned(), self.status.into());
                    }
                    if !self.faults.is_empty() {
                        members.insert("faults".to_owned(), serde_json::json!(self.faults));
                    }
                }
                eprint(&serde_json::json!({"error": error}).to_string());
            }
            Output::Text => eprint(&format!("countersign: {}", self.message)),
        }
        self.exit
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(Exit::Usage, error)
    }
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        match &error {
            LoadError::Unreadable(message) => Self::new(Exit::Invalid, message),
            LoadError::Faulty { faults, .. } => {
                let drawn: String = faults.iter().map(Fault::drawing).collect();
                let message = format!("the bundle is refused\n{drawn}{} fault(s)", faults.len());
                Self { faults: error.reports(), ..Self::new(Exit::Invalid, message) }
            }
        }
    }
}

fn client_failure(error: ClientError) -> Failure {
    match error {
        ClientError::Address(_) | ClientError::Tls(_) | ClientError::Token => Failure::new(Exit::Usage, error),
        ClientError::Refused { ref code, .. } => {
            Failure { status: code.clone(), ..Failure::new(Exit::Failure, &error) }
        }
        ClientError::Unreachable { .. } => Failure::new(Exit::Failure, error),
    }
}

fn print(text: &str) {
    // Ignore a closed pipe: a reader such as `head` may end early.
    let _gone = writeln!(std::io::stdout(), "{}", text.trim_end());
}

fn eprint(text: &str) {
    let _gone = writeln!(std::io::stderr(), "{}", text.trim_end());
}

/// Builds a runtime whose threads have the stack size that Cedar's evaluator needs.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    const STACK_BYTES: usize = 8 * 1024 * 1024;
    let built = tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(STACK_BYTES).build();
    built.map_err(|error| Failure::new(Exit::Failure, format!("the runtime can't start: {error}")))
}
