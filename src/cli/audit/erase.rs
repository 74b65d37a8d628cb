//! `countersign audit erase`.

use crate::api::client::Target;
use crate::api::{client, v1};
use crate::cli::connection::{Connection, HumanToken};
use crate::cli::{Environment, Exit, Failure, client_failure, runtime};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    /// Tenant
    #[arg(long, value_name = "ID")]
    tenant: String,
    #[command(flatten)]
    subject: Subject,
    /// Reason; only its keyed digest is recorded
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    token: HumanToken,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Subject {
    /// The customer to erase
    #[arg(long, value_name = "ID")]
    customer: Option<String>,
    /// The case to erase, if it has no customer
    #[arg(long, value_name = "ID")]
    case: Option<String>,
}

pub(super) fn run(environment: &Environment, arguments: &Arguments) -> Result<Exit, Failure> {
    let connection = arguments.connection.target(environment)?;
    let target = Target { token: Some(arguments.token.read(environment)?), ..connection };
    let request = v1::EraseSubjectRequest {
        tenant: arguments.tenant.clone(),
        customer_id: arguments.subject.customer.clone().unwrap_or_default(),
        case_id: arguments.subject.case.clone().unwrap_or_default(),
        reason: arguments.reason.clone(),
    };
    let erased = runtime()?.block_on(client::erase(&target, request)).map_err(client_failure)?;
    let place = erased.audit.map(|audit| serde_json::json!({"log": audit.log, "index": audit.index}));
    let text = match erased.keys {
        0 => "nothing was encrypted for this subject: check the id".to_owned(),
        keys => format!("erased: {keys} keys were deleted, and with them all evidence and calls that they encrypted"),
    };
    environment.print(&serde_json::json!({"outcome": "erased", "keys": erased.keys, "audit": place}), &text);
    Ok(Exit::Ok)
}
