//! The listeners of a server.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};

use tokio::net::{TcpListener, UnixListener};

use crate::app::StartError;
use crate::config::Config;

/// Listeners that are bound, each with its address.
pub(super) struct Ports {
    pub(super) grpc: (TcpListener, SocketAddr),
    pub(super) admin: (TcpListener, SocketAddr),
    pub(super) events: Option<(TcpListener, SocketAddr)>,
    pub(super) desk: Option<(TcpListener, SocketAddr)>,
    pub(super) socket: Option<UnixListener>,
}

impl Ports {
    /// Binds the ports that the settings name.
    ///
    /// # Errors
    /// If an address can't be used.
    pub(super) async fn bind(config: &Config) -> Result<Self, StartError> {
        let grpc = listen(config.listen.grpc, "--listen").await?;
        let admin = listen(config.listen.admin, "--admin-listen").await?;
        let events = optional(config.events.listen, "events.listen").await?;
        let desk = optional(config.desk.listen, "--desk-listen").await?;
        Ok(Self { grpc, admin, events, desk, socket: socket(config)? })
    }
}

async fn optional(
    address: Option<SocketAddr>,
    setting: &'static str,
) -> Result<Option<(TcpListener, SocketAddr)>, StartError> {
    match address {
        Some(address) => listen(address, setting).await.map(Some),
        None => Ok(None),
    }
}

async fn listen(address: SocketAddr, setting: &'static str) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |error| StartError::Address { address, error, setting };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

fn socket(config: &Config) -> Result<Option<UnixListener>, StartError> {
    let Some(path) = &config.callers.unix_socket.path else { return Ok(None) };
    let failed = |error| StartError::Socket(path.clone(), error);
    // A killed server leaves its socket behind. Remove it, but no file of another kind.
    if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        fs::remove_file(path).map_err(failed)?;
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    // Every user may open the socket, because callers are authenticated by their peer credentials.
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).map_err(failed)?;
    Ok(Some(listener))
}
