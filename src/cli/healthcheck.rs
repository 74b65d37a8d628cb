//! The `countersign healthcheck` command.

use super::connection::Connection;
use super::{Environment, Exit, Failure, client_failure, runtime};
use crate::api::client;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// Service to check, e.g. countersign.v1.DecisionService; empty means the whole server
    #[arg(long, default_value = "")]
    service: String,
}

pub(super) fn run(environment: &Environment, arguments: &Arguments) -> Result<Exit, Failure> {
    let asked = runtime()?.block_on(client::healthy(&arguments.connection.target(environment)?, &arguments.service));
    let serving = asked.map_err(client_failure)?;
    let status = if serving { "serving" } else { "not serving" };
    environment.print(&serde_json::json!({ "status": status }), status);
    Ok(if serving { Exit::Ok } else { Exit::Failure })
}
