//! Peer → caller. In this version every process on the loopback interface is trusted, in development mode alone.

use std::net::SocketAddr;

use crate::model::chain::{Authentication, Caller, DevelopmentDefaults};
use crate::model::refusal::Refusal;

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its address, if the transport tells.
    pub address: Option<SocketAddr>,
}

impl Peer {
    /// The address without the port, as records name a peer.
    pub fn host(&self) -> String {
        self.address.map_or_else(|| "unknown".to_owned(), |address| address.ip().to_string())
    }
}

/// The caller where the bundle names none for development: a conformance bundle has no tool services.
const NAMELESS: &str = "development";

/// Says who calls.
///
/// # Errors
/// UNAUTHENTICATED, when the peer is not on the loopback interface.
pub fn identify(peer: Peer, development: Option<&DevelopmentDefaults>) -> Result<Caller, Refusal> {
    if !peer.address.is_some_and(|address| address.ip().to_canonical().is_loopback()) {
        return Err(Refusal::Unauthenticated("development mode takes callers on the loopback interface alone"));
    }
    let tool_service = development.map_or_else(|| NAMELESS.to_owned(), |defaults| defaults.tool_service.clone());
    Ok(Caller { tool_service, by: Authentication::Development })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_peers_are_trusted() {
        let defaults = DevelopmentDefaults { tool_service: "crm".into(), agent: "a".into(), supervisor: "s".into(), step: "intake".into() };
        let by = |address: &str| identify(Peer { address: address.parse().ok() }, Some(&defaults));
        for trusted in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(by(trusted).map(|caller| caller.tool_service), Ok("crm".into()), "{trusted}");
        }
        for refused in ["192.0.2.1:1", "0.0.0.0:1", "[::]:1", "[2001:db8::1]:1", "[::ffff:192.0.2.1]:1", "no address"] {
            assert!(matches!(by(refused), Err(Refusal::Unauthenticated(_))), "{refused}");
        }
    }
}
