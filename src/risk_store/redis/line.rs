//! Connection to the risk store's server: a single server, the primary that sentinels name, or a cluster.

use std::sync::Arc;
use std::time::Duration;

use ::redis::aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection};
use ::redis::cluster::ClusterClient;
use ::redis::cluster_async::ClusterConnection;
use ::redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use ::redis::{Client, ConnectionAddr, FromRedisValue, IntoConnectionInfo, RedisError, TlsCertificates, TlsMode};
use arc_swap::ArcSwapOption;
use tokio::sync::{Mutex, OnceCell};

use crate::risk_store::address::{AddressError, Server};
use crate::risk_store::operations::Options;

pub(super) enum Line {
    Cluster(Box<ClusterClient>, OnceCell<ClusterConnection>),
    Sentinel(Box<Mutex<SentinelClient>>, ArcSwapOption<MultiplexedConnection>),
    Single(Box<Client>, OnceCell<ConnectionManager>),
}

impl Line {
    /// Creates the clients; they connect when they are first used.
    pub(super) fn open(options: &Options) -> Result<Self, AddressError> {
        let authorities =
            options.authorities.clone().map(|pem| TlsCertificates { client_tls: None, root_cert: Some(pem) });
        match options.server.clone().ok_or(AddressError)? {
            Server::Cluster(urls) => {
                let client =
                    ClusterClient::builder(urls).connection_timeout(options.timeout).response_timeout(options.timeout);
                let client = match authorities {
                    Some(authorities) => client.certs(authorities),
                    None => client,
                };
                Ok(Self::Cluster(Box::new(client.retries(1).build()?), OnceCell::new()))
            }
            Server::Sentinel(urls, master) => Ok(Self::Sentinel(
                Box::new(Mutex::new(sentinels(&urls, &master, authorities)?)),
                ArcSwapOption::empty(),
            )),
            Server::Single(url) => {
                let client = match authorities {
                    Some(authorities) => Client::build_with_tls(url, authorities)?,
                    None => Client::open(url)?,
                };
                Ok(Self::Single(Box::new(client), OnceCell::new()))
            }
        }
    }

    pub(super) async fn run<T: FromRedisValue>(
        &self,
        call: &::redis::ScriptInvocation<'_>,
        timeout: Duration,
    ) -> Result<T, RedisError> {
        match self {
            Self::Cluster(client, connection) => {
                let connection = connection.get_or_try_init(|| client.get_async_connection()).await?;
                call.invoke_async(&mut connection.clone()).await
            }
            Self::Sentinel(client, connection) => {
                let mut connection = match connection.load_full() {
                    Some(connection) => connection.as_ref().clone(),
                    None => {
                        // The first task asks the sentinels; the others wait and use its connection.
                        let mut client = client.lock().await;
                        match connection.load_full() {
                            Some(connection) => connection.as_ref().clone(),
                            None => {
                                let found = client.get_async_connection().await?;
                                connection.store(Some(Arc::new(found.clone())));
                                found
                            }
                        }
                    }
                };
                call.invoke_async(&mut connection).await
            }
            Self::Single(client, connection) => {
                let config = ConnectionManagerConfig::new()
                    .set_connection_timeout(Some(timeout))
                    .set_response_timeout(Some(timeout));
                let config = config.set_number_of_retries(1).set_max_delay(Duration::from_millis(100));
                let connection = connection
                    .get_or_try_init(|| ConnectionManager::new_with_config(Client::clone(client), config))
                    .await?;
                call.invoke_async(&mut connection.clone()).await
            }
        }
    }

    /// Drops the connection to a primary that is gone or demoted, so that the next call looks it up again.
    /// Returns whether the connection is gone.
    pub(super) fn drop_after(&self, error: &RedisError) -> bool {
        let gone = error.is_io_error()
            || error.is_connection_dropped()
            || error.is_unrecoverable_error()
            || error.code() == Some("READONLY");
        if gone {
            self.drop_stalled();
        }
        gone
    }

    pub(super) fn drop_stalled(&self) {
        match self {
            Self::Sentinel(_, connection) => connection.store(None),
            Self::Cluster(..) | Self::Single(..) => {}
        }
    }
}

/// Creates a client for these sentinels. User, password and TLS of the first URL are also used for the
/// primary.
fn sentinels(
    urls: &[String],
    master: &str,
    authorities: Option<TlsCertificates>,
) -> Result<SentinelClient, AddressError> {
    let infos = urls.iter().map(|url| url.as_str().into_connection_info()).collect::<Result<Vec<_>, _>>()?;
    let first = infos.first().ok_or(AddressError)?;
    let tls = matches!(first.addr(), ConnectionAddr::TcpTls { .. });
    let (username, password) = (first.redis_settings().username(), first.redis_settings().password());
    let addresses: Vec<ConnectionAddr> = infos.iter().map(|info| info.addr().clone()).collect();
    let mut builder = SentinelClientBuilder::new(addresses, master, SentinelServerType::Master)?;
    if let Some(username) = username {
        builder = builder.set_client_to_redis_username(username).set_client_to_sentinel_username(username);
    }
    if let Some(password) = password {
        builder = builder.set_client_to_redis_password(password).set_client_to_sentinel_password(password);
    }
    if tls {
        builder =
            builder.set_client_to_redis_tls_mode(TlsMode::Secure).set_client_to_sentinel_tls_mode(TlsMode::Secure);
        if let Some(authorities) = authorities {
            builder = builder
                .set_client_to_redis_certificates(authorities.clone())
                .set_client_to_sentinel_certificates(authorities);
        }
    }
    Ok(builder.build()?)
}
