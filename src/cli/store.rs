//! The `countersign store` command.

use super::connection::Connection;
use super::{Environment, Exit, Failure, client_failure, runtime};
use crate::api::{client, v1};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Show whether the state store answers, what its failover may lose, and whether replicas have different bundles
    Status(Connection),
    /// Confirm that you dealt with a loss of the state store and reported again the kill switches that no replica knew. This ends the alarm
    Confirm(Connection),
}

pub(super) fn run(environment: &Environment, command: &Command) -> Result<Exit, Failure> {
    match command {
        Command::Status(connection) => status(environment, connection),
        Command::Confirm(connection) => {
            let audit = runtime()?
                .block_on(client::confirm_store(&connection.target(environment)?))
                .map_err(client_failure)?
                .audit;
            let place = audit.as_ref().map(|audit| serde_json::json!({"log": audit.log, "index": audit.index}));
            let text =
                audit.map_or_else(String::new, |audit| format!(", recorded in {} at {}", audit.log, audit.index));
            environment
                .print(&serde_json::json!({"outcome": "confirmed", "audit": place}), &format!("confirmed{text}"));
            Ok(Exit::Ok)
        }
    }
}

fn status(environment: &Environment, connection: &Connection) -> Result<Exit, Failure> {
    let found = runtime()?.block_on(client::status(&connection.target(environment)?)).map_err(client_failure)?;
    // In protobuf, an absent message equals an empty one.
    let store = found.store.unwrap_or_default();
    let v1::StoreStatus { engine, healthy, went_back_at, durability, bundles, clock_skew } = store;
    let went_back_at = went_back_at.map(|at| at.to_string());
    let skew = clock_skew.unwrap_or_default();
    let milliseconds = skew.seconds.saturating_mul(1000).saturating_add(i64::from(skew.nanos / 1_000_000));
    let json = serde_json::json!({
        "engine": engine, "healthy": healthy, "went_back_at": went_back_at, "durability": durability, "bundles": bundles,
        "clock_skew_ms": milliseconds,
    });
    let yes = |is: bool| if is { "yes" } else { "no" };
    let lines = [
        format!("engine       {engine}"),
        format!("healthy      {}", yes(healthy)),
        format!("went back    {}", went_back_at.map_or("no".to_owned(), |at| format!("{at}, not confirmed"))),
        format!("durability   {}", if durability.is_empty() { "the server's own disk" } else { &durability }),
        format!("bundles      {}", bundles.join(" ")),
        format!("clock skew   {milliseconds} ms"),
    ];
    environment.print(&json, &lines.join("\n"));
    Ok(Exit::Ok)
}
