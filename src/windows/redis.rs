//! The engine that replicas share: Redis 7 or Valkey, alone, under Sentinel, or as a cluster. One script a visit; all keys of a tenant
//! share a hash tag, so that a cluster has them in one place.
//!
//! Redis may lose what it acknowledged: when it is restarted, flushed, or fails over to a replica that was behind. Each tenant has a
//! generation, which also stands in the state store, and each process counts what it wrote: when either is not what it was, the visit
//! says that windows were lost. A server that may evict keys is not used.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use ::redis::aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection};
use ::redis::cluster::ClusterClient;
use ::redis::cluster_async::ClusterConnection;
use ::redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use ::redis::{Client, ConnectionAddr, FromRedisValue, IntoConnectionInfo, RedisError, Script, TlsCertificates, TlsMode};
use arc_swap::ArcSwapOption;
use dashmap::DashMap;
use futures_util::future::BoxFuture;
use smol_str::SmolStr;
use tokio::sync::{Mutex, OnceCell};

use crate::model::time::Timestamp;
use crate::windows::{Change, Key, Options, Tenant, Visit, Visited, WindowsDown};

/// Where the server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// The nodes of a cluster, of which the others are learnt.
    Cluster(Vec<String>),
    /// The sentinels, and what they call the primary.
    Sentinel(Vec<String>, String),
    /// One server.
    Single(String),
}

/// An address that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`windows.urls` can't be used: give `redis://host:port` or `rediss://host:port`, and `windows.master` for sentinels")]
pub struct AddressError;

impl From<RedisError> for AddressError {
    fn from(_: RedisError) -> Self {
        Self
    }
}

/// What is known of a tenant's windows on the server.
#[derive(Debug)]
struct Adopted {
    generation: String,
    /// How many writes of this process were acknowledged.
    writes: AtomicI64,
}

/// How the server is reached.
enum Line {
    Cluster(Box<ClusterClient>, OnceCell<ClusterConnection>),
    Sentinel(Box<Mutex<SentinelClient>>, ArcSwapOption<MultiplexedConnection>),
    Single(Box<Client>, OnceCell<ConnectionManager>),
}

/// Windows on a server.
pub struct Redis {
    line: Line,
    timeout: Duration,
    boot: String,
    adopted: DashMap<Tenant, Arc<Adopted>>,
    /// Generations that were not found any more, or not all of them.
    lost: DashMap<Tenant, String>,
    visiting: Script,
    adopting: Script,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Addresses may hold passwords.
        formatter.debug_struct("Redis").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

/// The script's answer.
type Reply = (i64, i64, Vec<i64>, Vec<u64>, Vec<Vec<String>>);

impl Redis {
    /// Connects when it is first needed.
    ///
    /// # Errors
    /// When an address can't be used.
    pub(super) fn open(options: Options) -> Result<Self, AddressError> {
        let authorities = options.authorities.map(|pem| TlsCertificates { client_tls: None, root_cert: Some(pem) });
        let line = match options.server.ok_or(AddressError)? {
            Server::Cluster(urls) => {
                let client = ClusterClient::builder(urls).connection_timeout(options.timeout).response_timeout(options.timeout);
                let client = match authorities {
                    Some(authorities) => client.certs(authorities),
                    None => client,
                };
                Line::Cluster(Box::new(client.retries(1).build()?), OnceCell::new())
            }
            Server::Sentinel(urls, master) => {
                Line::Sentinel(Box::new(Mutex::new(sentinels(&urls, &master, authorities)?)), ArcSwapOption::empty())
            }
            Server::Single(url) => {
                let client = match authorities {
                    Some(authorities) => Client::build_with_tls(url, authorities)?,
                    None => Client::open(url)?,
                };
                Line::Single(Box::new(client), OnceCell::new())
            }
        };
        Ok(Self {
            line,
            timeout: options.timeout,
            boot: options.boot,
            adopted: DashMap::new(),
            lost: DashMap::new(),
            visiting: Script::new(include_str!("visit.lua")),
            adopting: Script::new(include_str!("adopt.lua")),
        })
    }

    /// As [`Windows::visit`](super::Windows::visit).
    pub(super) async fn visit(&self, tenant: Tenant, now: Timestamp, visit: &Visit) -> Result<Visited, WindowsDown> {
        let adopted = self.adopted.get(&tenant).map(|adopted| Arc::clone(&adopted)).ok_or(WindowsDown::Lost)?;
        let before = adopted.writes.load(Ordering::Acquire);
        let mut call = self.visiting.prepare_invoke();
        call.key(generation_key(tenant)).key(format!("countersign:{{{}}}:writes:{}", tenant.0, self.boot));
        call.arg(&adopted.generation).arg(now.micros());
        say(&mut call, tenant, Key::of(&[&adopted.generation]), visit);
        let (known, writes, waits, counts, memories): Reply = self.call(&call).await?;
        // What this process wrote before it asked must be there: a server that lost a write of ours counts fewer.
        if known == 0 || writes <= before {
            self.forsake(tenant, &adopted);
            return Err(WindowsDown::Lost);
        }
        adopted.writes.fetch_max(writes, Ordering::AcqRel);
        let memories = memories.into_iter().map(times).collect::<Option<Vec<_>>>();
        let memories = memories.ok_or_else(|| WindowsDown::Unreachable("it answers what it was not asked".into()))?;
        Ok(Visited { waits, counts, memories })
    }

    /// The generation of a tenant's windows that the server has, and the one that is not all there any more.
    ///
    /// # Errors
    /// When the server does not answer, or may evict keys.
    pub async fn found(&self, tenant: Tenant) -> Result<(Option<String>, Option<String>), WindowsDown> {
        let found = self.adopting(tenant, "").await?;
        Ok((found, self.lost.get(&tenant).map(|lost| lost.clone())))
    }

    /// Whether the tenant's generation is known.
    pub fn knows(&self, tenant: Tenant) -> bool {
        self.adopted.contains_key(&tenant)
    }

    /// The tenants whose generation is known.
    pub fn tenants(&self) -> Vec<Tenant> {
        self.adopted.iter().map(|adopted| *adopted.key()).collect()
    }

    /// Whether a tenant's windows are still those that are known.
    ///
    /// # Errors
    /// When they are not, the server may evict keys, or does not answer.
    pub async fn check(&self, tenant: Tenant) -> Result<(), WindowsDown> {
        let adopted = self.adopted.get(&tenant).map(|adopted| Arc::clone(&adopted)).ok_or(WindowsDown::Lost)?;
        match self.adopting(tenant, "").await {
            Ok(found) if found.as_ref() == Some(&adopted.generation) => Ok(()),
            Ok(_) => {
                self.forsake(tenant, &adopted);
                Err(WindowsDown::Lost)
            }
            Err(WindowsDown::Evicts) => {
                self.forsake(tenant, &adopted);
                Err(WindowsDown::Evicts)
            }
            Err(down) => Err(down),
        }
    }

    /// Calls a tenant's windows lost, for every replica.
    pub fn give_up(&self, tenant: Tenant) {
        if let Some(adopted) = self.adopted.get(&tenant).map(|adopted| Arc::clone(&adopted)) {
            self.forsake(tenant, &adopted);
        }
    }

    fn forsake(&self, tenant: Tenant, adopted: &Arc<Adopted>) {
        if self.adopted.remove_if(&tenant, |_, known| Arc::ptr_eq(known, adopted)).is_some() {
            self.lost.insert(tenant, adopted.generation.clone());
        }
    }

    /// How long a visit may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Goes on with a generation, which the server has from now on.
    ///
    /// # Errors
    /// When the server does not answer, or may evict keys.
    pub async fn adopt(&self, tenant: Tenant, generation: String) -> Result<(), WindowsDown> {
        self.adopting(tenant, &generation).await?;
        self.lost.remove(&tenant);
        self.adopted.insert(tenant, Arc::new(Adopted { generation, writes: AtomicI64::new(0) }));
        Ok(())
    }

    async fn adopting(&self, tenant: Tenant, generation: &str) -> Result<Option<String>, WindowsDown> {
        let mut call = self.adopting.prepare_invoke();
        call.key(generation_key(tenant)).arg(generation);
        let (evicts, found): (i64, Option<String>) = self.call(&call).await?;
        if evicts == 0 {
            return Ok(found);
        }
        Err(WindowsDown::Evicts)
    }

    /// Runs a script within the time that there is.
    async fn call<T: FromRedisValue + Send>(&self, call: &::redis::ScriptInvocation<'_>) -> Result<T, WindowsDown> {
        // Boxed, so that a decision's future does not hold a client's.
        let running: BoxFuture<'_, Result<T, RedisError>> = Box::pin(self.line.run(call, self.timeout));
        let answered = tokio::time::timeout(self.timeout, running).await;
        match answered {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                self.line.drop_after(&error);
                // Never its text: it may hold keys and addresses.
                Err(WindowsDown::Unreachable(error.category().to_owned()))
            }
            Err(_) => {
                self.line.drop_stalled();
                Err(WindowsDown::Unreachable("it took too long".into()))
            }
        }
    }
}

impl Line {
    async fn run<T: FromRedisValue>(&self, call: &::redis::ScriptInvocation<'_>, timeout: Duration) -> Result<T, RedisError> {
        match self {
            Self::Cluster(client, connection) => {
                let connection = connection.get_or_try_init(|| client.get_async_connection()).await?;
                call.invoke_async(&mut connection.clone()).await
            }
            Self::Sentinel(client, connection) => {
                let mut connection = match connection.load_full() {
                    Some(connection) => connection.as_ref().clone(),
                    None => {
                        // One asks the sentinels; the others find its connection.
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
                let config = ConnectionManagerConfig::new().set_connection_timeout(Some(timeout)).set_response_timeout(Some(timeout));
                let config = config.set_number_of_retries(1).set_max_delay(Duration::from_millis(100));
                let connection = connection.get_or_try_init(|| ConnectionManager::new_with_config(Client::clone(client), config)).await?;
                call.invoke_async(&mut connection.clone()).await
            }
        }
    }

    /// A primary that went away, or is none any more, is looked for again.
    fn drop_after(&self, error: &RedisError) {
        let gone =
            error.is_io_error() || error.is_connection_dropped() || error.is_unrecoverable_error() || error.code() == Some("READONLY");
        if gone {
            self.drop_stalled();
        }
    }

    fn drop_stalled(&self) {
        match self {
            Self::Sentinel(_, connection) => connection.store(None),
            Self::Cluster(..) | Self::Single(..) => {}
        }
    }
}

/// The sentinels of these URLs. The first one's user and password, and whether it speaks TLS, are the primary's, too.
fn sentinels(urls: &[String], master: &str, authorities: Option<TlsCertificates>) -> Result<SentinelClient, AddressError> {
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
        builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure).set_client_to_sentinel_tls_mode(TlsMode::Secure);
        if let Some(authorities) = authorities {
            builder = builder.set_client_to_redis_certificates(authorities.clone()).set_client_to_sentinel_certificates(authorities);
        }
    }
    Ok(builder.build()?)
}

fn generation_key(tenant: Tenant) -> String {
    format!("countersign:{{{}}}:generation", tenant.0)
}

/// Writes a visit as the script reads it.
fn say(call: &mut ::redis::ScriptInvocation<'_>, tenant: Tenant, seed: Key, visit: &Visit) {
    let key = |key: Key| format!("countersign:{{{}}}:{key}", tenant.0);
    call.arg(visit.forgets.len());
    for forgotten in &visit.forgets {
        call.key(key(*forgotten));
    }
    call.arg(visit.reads.len());
    for read in &visit.reads {
        call.key(key(*read));
    }
    call.arg(visit.takes.len());
    for take in &visit.takes {
        call.key(key(take.key)).arg(take.every).arg(take.room);
    }
    call.arg(visit.touches.len());
    for touch in &visit.touches {
        let item = touch.item.map(|item| format!("{:016x}", Tenant::thing(seed, item))).unwrap_or_default();
        call.key(key(touch.key)).key(key(touch.key) + ":level").arg(item).arg(touch.within).arg(touch.most.unwrap_or(0));
    }
    call.arg(visit.notes.len());
    for note in &visit.notes {
        let (kind, length, reach) = match note.change {
            Change::Add { step, reach } => ("add", step, reach),
            Change::For(length) => ("for", length, 0),
        };
        call.key(key(note.key)).arg(note.name.as_str()).arg(kind).arg(length).arg(reach);
    }
}

/// A memory's times, from names and numbers in turn.
fn times(flat: Vec<String>) -> Option<Vec<(SmolStr, i64)>> {
    flat.chunks(2)
        .map(|pair| match pair {
            [name, until] => Some((SmolStr::new(name), until.parse().ok()?)),
            _ => None,
        })
        .collect()
}
