//! A TCP relay that can switch to another server, like a load balancer, or forward nothing, like a cut cable.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Target of a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leads {
    /// Forwards nothing and keeps connections open.
    Nowhere,
    /// Forwards to this port, and closes connections to any other.
    To(u16),
}

/// A relay that listens on a free loopback port.
pub(crate) struct Relay {
    pub(crate) port: u16,
    leads: Arc<watch::Sender<Leads>>,
}

impl Relay {
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let leads = Arc::new(watch::channel(Leads::To(port)).0);
        let changes = leads.subscribe();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(relay(stream, changes.clone()));
            }
        });
        Self { port: own, leads }
    }

    pub(crate) fn lead(&self, leads: Leads) {
        self.leads.send_replace(leads);
    }
}

async fn relay(stream: TcpStream, mut leads: watch::Receiver<Leads>) {
    let Ok(to) = leads.wait_for(|leads| *leads != Leads::Nowhere).await.map(|leads| *leads) else { return };
    let Leads::To(port) = to else { return };
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let ((read, write), (server_read, server_write)) = (stream.into_split(), server.into_split());
    tokio::select! {
        () = pass(read, server_write, leads.clone()) => {}
        () = pass(server_read, write, leads.clone()) => {}
        _ = async { leads.wait_for(|leads| *leads != to && *leads != Leads::Nowhere).await.map(|_| ()) } => {}
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut leads: watch::Receiver<Leads>) {
    let mut buffer = vec![0; 65_536];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if leads.wait_for(|leads| *leads != Leads::Nowhere).await.is_err()
            || to.write_all(&buffer[..read]).await.is_err()
        {
            return;
        }
    }
}
