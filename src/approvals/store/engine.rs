//! The engines, and how each runs an operation in a transaction. On SQLite, one writer commits the queued
//! operations as a group with one sync, each in its own savepoint. On PostgreSQL, an operation takes a
//! connection of a pool.

use std::fs::OpenOptions;
use std::future::Future;
use std::os::unix::fs::OpenOptionsExt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::any::AnyPoolOptions;
use sqlx::{AnyConnection, AnyPool, AssertSqlSafe, Connection as _, Executor as _};
use tokio::sync::{mpsc, oneshot};

use crate::approvals::store::error::StoreError;
use crate::approvals::store::location::{Location, Options, url};

/// Maximum number of operations in one group.
const GROUP_MAX: usize = 64;
/// Maximum number of operations that wait for the writer.
const QUEUE_MAX: usize = 4096;

/// End of an operation's transaction, with the operation's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End<T> {
    Commit(T),
    /// Drops the changes.
    RollBack(T),
}

impl<T> End<T> {
    /// Keeps the changes if `keep` is true.
    pub(super) fn commit_if(keep: bool, value: T) -> Self {
        if keep { Self::Commit(value) } else { Self::RollBack(value) }
    }
}

/// Work of an operation in its transaction.
type Work = Box<dyn for<'c> FnOnce(&'c mut AnyConnection) -> Running<'c> + Send>;
type Running<'c> = Pin<Box<dyn Future<Output = Result<bool, StoreError>> + Send + 'c>>;
/// Future of an operation: whether to keep its changes, and its result.
pub(super) type Operation<'c, T> = Pin<Box<dyn Future<Output = Result<End<T>, StoreError>> + Send + 'c>>;

/// Statement with its bound values.
pub(super) type Statement = sqlx::query::Query<'static, sqlx::Any, sqlx::any::AnyArguments>;

pub(super) struct Job {
    work: Work,
    done: oneshot::Sender<Result<(), StoreError>>,
}

/// Message to SQLite's writer.
pub(super) enum Message {
    Close(oneshot::Sender<()>),
    Work(Job),
}

#[derive(Debug)]
pub(super) enum Engine {
    Postgres { calls: AnyPool, apart: AnyPool, dialect: Dialect, url: String },
    Sqlite { writer: mpsc::Sender<Message>, readers: AnyPool, dialect: Dialect },
}

/// Connections that an operation uses on PostgreSQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// A few connections that calls can't use: for kill switches, and for coordination between replicas.
    Apart,
    /// The connections of calls.
    Calls,
}

/// Number of connections in [`Lane::Apart`].
const APART: u32 = 3;

/// SQL that differs between the engines, and properties of the server.
#[derive(Clone, Debug)]
pub(super) struct Dialect {
    /// SQL for the identity of the server's tables in one line of its history. On PostgreSQL it consists of
    /// the system identifier, the timeline, which each promotion changes, and the identifiers of database and
    /// table, which each restored dump changes. It is an empty text on SQLite.
    pub lineage: String,
    /// SQL for the time, in microseconds since the epoch.
    pub clock: String,
    /// Whether other processes use the store as well.
    pub is_shared: bool,
    /// PostgreSQL's `synchronous_commit`, which names what a commit waits for; empty if no standby confirms
    /// commits.
    pub durability: String,
}

impl Dialect {
    fn sqlite() -> Self {
        let clock = "CAST((julianday('now') - 2440587.5) * 86400000000.0 AS BIGINT)".to_owned();
        Self { lineage: "''".to_owned(), clock, is_shared: false, durability: String::new() }
    }

    /// Queries which parts of its lineage the server shows to this role.
    async fn postgres(connection: &mut AnyConnection) -> Result<Self, StoreError> {
        const SYSTEM: &str = "(SELECT CAST(system_identifier AS TEXT) FROM pg_control_system())";
        const TIMELINE: &str = "substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)";
        const TABLE: &str = "(SELECT CAST(oid AS TEXT) FROM pg_database WHERE datname = current_database())
            || '/' || CAST(CAST(CAST('meta' AS regclass) AS oid) AS TEXT)";
        // Insufficient privilege, undefined function, feature not supported.
        const MAY_NOT: [&str; 3] = ["42501", "42883", "0A000"];
        let standby: bool = sqlx::query_scalar("SELECT pg_is_in_recovery()").fetch_one(&mut *connection).await?;
        if standby {
            return Err(StoreError::Unreachable("the server is a standby".to_owned()));
        }
        let mut lineage = vec![TABLE];
        for (part, sql) in [("timeline", TIMELINE), ("system identifier", SYSTEM)] {
            match connection.execute(AssertSqlSafe(format!("SELECT {sql}"))).await {
                Ok(_) => lineage.insert(0, sql),
                Err(sqlx::Error::Database(error))
                    if error.code().is_some_and(|code| MAY_NOT.contains(&code.as_ref())) =>
                {
                    tracing::warn!(
                        name: "store.lineage_unknown", part,
                        "this role may not read it: only replicas that still have their data folder detect a failover or an older backup"
                    )
                }
                Err(error) => return Err(error.into()),
            }
        }
        let durability = "SELECT CASE WHEN current_setting('synchronous_standby_names') = ''
                OR current_setting('synchronous_commit') IN ('local', 'off') THEN ''
            ELSE current_setting('synchronous_commit') END";
        Ok(Self {
            lineage: lineage.join(" || '/' || "),
            clock: "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)".to_owned(),
            is_shared: true,
            durability: sqlx::query_scalar(durability).fetch_one(connection).await?,
        })
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Message")
    }
}

/// Returns the settings of each PostgreSQL session. A replica that is frozen within a transaction, or whose
/// machine is gone, holds locks that all other replicas wait for, so PostgreSQL ends its session before the
/// others give up.
fn session(timeout: Duration) -> Vec<String> {
    let (whole, half, twice) = (timeout.as_millis(), timeout.as_millis() / 2, timeout.as_millis() * 2);
    let seconds = timeout.as_secs().max(1);
    vec![
        format!("SET idle_in_transaction_session_timeout = {half}"),
        format!("SET lock_timeout = {whole}"),
        format!("SET statement_timeout = {twice}"),
        format!("SET tcp_user_timeout = {twice}"),
        format!("SET tcp_keepalives_idle = {seconds}"),
        format!("SET tcp_keepalives_interval = {seconds}"),
        "SET tcp_keepalives_count = 2".to_owned(),
        // A commit that was answered must survive a crash. Stronger settings of the server or the role are
        // kept.
        "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
            .to_owned(),
    ]
}

/// Connects to a server without using it; a file is not opened.
///
/// # Errors
/// When the server can't be reached.
pub(super) async fn reach(location: &Location, timeout: Duration) -> Result<(), StoreError> {
    let Location::Postgres(url) = location else { return Ok(()) };
    sqlx::any::install_default_drivers();
    let late = |_| StoreError::Unreachable("it does not answer in time".to_owned());
    let connection = tokio::time::timeout(timeout, AnyConnection::connect(url)).await.map_err(late)??;
    // This connection was only a test.
    let _closed = connection.close().await;
    Ok(())
}

impl Engine {
    pub(super) async fn open(options: &Options) -> Result<Self, StoreError> {
        sqlx::any::install_default_drivers();
        // The pool tests a connection before use, so one that a restarted server closed is replaced, and no
        // operation fails.
        let pool =
            |connections: u32| AnyPoolOptions::new().max_connections(connections).acquire_timeout(options.timeout);
        match &options.location {
            Location::Postgres(url) => {
                // Connect once directly, because the pool would report only that it has no connection, not
                // the cause.
                let late = |_| StoreError::Unreachable("it does not answer in time".to_owned());
                let mut first =
                    tokio::time::timeout(options.timeout, AnyConnection::connect(url)).await.map_err(late)??;
                let dialect =
                    tokio::time::timeout(options.timeout, Dialect::postgres(&mut first)).await.map_err(late)??;
                first.close().await?;
                let settings = session(options.timeout);
                let connect = |connections: u32| {
                    let settings = settings.clone();
                    let pool = pool(connections).after_connect(move |connection, _| {
                        let settings = settings.clone();
                        Box::pin(async move {
                            for setting in settings {
                                connection.execute(AssertSqlSafe(setting)).await?;
                            }
                            Ok(())
                        })
                    });
                    pool.connect_lazy(url)
                };
                Ok(Self::Postgres {
                    calls: connect(options.connections)?,
                    apart: connect(APART)?,
                    dialect,
                    url: url.clone(),
                })
            }
            Location::Sqlite(path) => {
                // Create the file here with mode 0600, so that other users can't read it; SQLite gives its
                // other files the same mode.
                let made = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
                made.map_err(|error| StoreError::Unreachable(format!("`{}`: {error}", path.display())))?;
                let url =
                    url(path).map_err(|error| StoreError::Unreachable(format!("`{}`: {error}", path.display())))?;
                let mut connection = AnyConnection::connect(&url).await?;
                for pragma in ["PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", "PRAGMA busy_timeout = 2000"] {
                    connection.execute(pragma).await?;
                }
                let readers = pool(options.connections).connect_lazy(&format!("{url}?mode=ro"))?;
                let (writer, queue) = mpsc::channel(QUEUE_MAX);
                tokio::spawn(write(connection, queue));
                Ok(Self::Sqlite { writer, readers, dialect: Dialect::sqlite() })
            }
        }
    }

    /// Returns the pool for reads.
    pub(super) fn readers(&self, lane: Lane) -> &AnyPool {
        match (self, lane) {
            (Self::Postgres { calls, .. }, Lane::Calls) => calls,
            (Self::Postgres { apart, .. }, Lane::Apart) => apart,
            (Self::Sqlite { readers, .. }, _) => readers,
        }
    }

    /// Returns why no connection can be made, because a pool does not report the cause; `None` if one can be
    /// made.
    pub(super) async fn why_unreachable(&self, timeout: Duration) -> Option<StoreError> {
        let Self::Postgres { url, .. } = self else { return None };
        reach(&Location::Postgres(url.clone()), timeout).await.err()
    }

    pub(super) fn dialect(&self) -> &Dialect {
        match self {
            Self::Postgres { dialect, .. } | Self::Sqlite { dialect, .. } => dialect,
        }
    }

    /// Runs an operation in a transaction and returns its result once it is committed. After a timeout it is
    /// unknown whether the operation was committed; its outbox entry shows it.
    pub(super) async fn transact<T: Send + 'static>(
        &self,
        lane: Lane,
        timeout: Duration,
        operation: impl for<'c> FnOnce(&'c mut AnyConnection) -> Operation<'c, T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let late = |_| StoreError::Unreachable("no answer in time".to_owned());
        match self {
            Self::Postgres { .. } => {
                // Run it to completion even if the caller goes away, so that a consumption is never abandoned
                // halfway. The time is still limited, because a server that is gone without closing the
                // connection would occupy the pool.
                let pool = self.readers(lane).clone();
                let running = tokio::spawn(tokio::time::timeout(timeout * 4, async move {
                    let mut transaction = pool.begin().await?;
                    match operation(&mut transaction).await? {
                        End::Commit(value) => transaction.commit().await.map(|()| value).map_err(StoreError::from),
                        End::RollBack(value) => transaction.rollback().await.map(|()| value).map_err(StoreError::from),
                    }
                }));
                let ended = tokio::time::timeout(timeout, running).await.map_err(late)?;
                ended.map_err(|_| StoreError::Unreachable("the operation failed".to_owned()))?.map_err(late)?
            }
            Self::Sqlite { writer, .. } => {
                let slot = Arc::new(Mutex::new(None));
                let filled = Arc::clone(&slot);
                let work: Work = Box::new(move |connection| {
                    Box::pin(async move {
                        let (keep, value) = match operation(connection).await? {
                            End::Commit(value) => (true, value),
                            End::RollBack(value) => (false, value),
                        };
                        *filled.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
                        Ok(keep)
                    })
                });
                let (done, committed) = oneshot::channel();
                let full = |_| StoreError::Unreachable("too many operations are queued".to_owned());
                writer.try_send(Message::Work(Job { work, done })).map_err(full)?;
                let gone = |_| StoreError::Unreachable("the writer has stopped".to_owned());
                tokio::time::timeout(timeout, committed).await.map_err(late)?.map_err(gone)??;
                let value = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
                value.ok_or(StoreError::Damaged)
            }
        }
    }

    /// Runs one statement as its own transaction and returns the number of changed rows.
    pub(super) async fn run(&self, timeout: Duration, statement: Statement) -> Result<u64, StoreError> {
        let Self::Postgres { calls, .. } = self else {
            let changed = self.transact(Lane::Calls, timeout, move |connection| {
                Box::pin(async move { Ok(End::Commit(statement.execute(connection).await?.rows_affected())) })
            });
            return changed.await;
        };
        // Run it to completion even if the caller goes away, as in `transact`.
        let pool = calls.clone();
        let running = tokio::spawn(tokio::time::timeout(timeout * 4, async move {
            Ok(statement.execute(&pool).await?.rows_affected())
        }));
        let late = |_| StoreError::Unreachable("no answer in time".to_owned());
        let ended = tokio::time::timeout(timeout, running).await.map_err(late)?;
        ended.map_err(|_| StoreError::Unreachable("the operation failed".to_owned()))?.map_err(late)?
    }

    pub(super) async fn close(&self) {
        self.readers(Lane::Calls).close().await;
        self.readers(Lane::Apart).close().await;
        if let Self::Sqlite { writer, .. } = self {
            let (done, closed) = oneshot::channel();
            if writer.send(Message::Close(done)).await.is_ok() {
                // If the writer is gone, its connection is closed, too.
                let _closed = closed.await;
            }
        }
    }
}

/// Runs SQLite's only writer.
async fn write(mut connection: AnyConnection, mut queue: mpsc::Receiver<Message>) {
    let mut messages = Vec::with_capacity(GROUP_MAX);
    while queue.recv_many(&mut messages, GROUP_MAX).await > 0 {
        let (mut group, mut closing) = (vec![], None);
        for message in messages.drain(..) {
            match message {
                Message::Close(done) => closing = Some(done),
                Message::Work(job) => group.push(job),
            }
        }
        let mut waiting = vec![];
        let committed = if group.is_empty() { Ok(()) } else { commit(&mut connection, group, &mut waiting).await };
        if committed.is_err() {
            // A transaction that is still open would include the next group.
            let _none_open = connection.execute("ROLLBACK").await;
        }
        for (done, result) in waiting {
            // A caller that is gone needs no answer; its changes stay.
            let _gone = done.send(committed.clone().and(result));
        }
        if let Some(done) = closing {
            if let Err(error) = connection.close().await {
                tracing::warn!(name: "store.not_closed", error = %error);
            }
            let _gone = done.send(());
            return;
        }
    }
}

type Waiting = Vec<(oneshot::Sender<Result<(), StoreError>>, Result<(), StoreError>)>;

async fn commit(connection: &mut AnyConnection, group: Vec<Job>, waiting: &mut Waiting) -> Result<(), StoreError> {
    let begun = connection.execute("BEGIN IMMEDIATE").await.map(|_| ()).map_err(StoreError::from);
    for Job { work, done } in group {
        let result = match &begun {
            Ok(()) => in_savepoint(connection, work).await,
            Err(error) => Err(error.clone()),
        };
        waiting.push((done, result));
    }
    begun?;
    connection.execute("COMMIT").await?;
    Ok(())
}

async fn in_savepoint(connection: &mut AnyConnection, work: Work) -> Result<(), StoreError> {
    connection.execute("SAVEPOINT operation").await?;
    let result = work(connection).await;
    if !matches!(result, Ok(true)) {
        connection.execute("ROLLBACK TO operation").await?;
    }
    connection.execute("RELEASE operation").await?;
    result.map(|_| ())
}
