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
use sqlx::{AnyConnection, AnyPool, AssertSqlSafe, Connection as _, Executor as _, Row as _};
use tokio::sync::{mpsc, oneshot};

use crate::approvals::store::dialect::Dialect;
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
    Sqlite { writer: mpsc::Sender<Message>, readers: AnyPool, dialect: Dialect, url: String },
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

/// Connects to a store that is only read.
///
/// # Errors
/// When the file is missing, or the server can't be reached.
pub(super) async fn connect_to_read(location: &Location) -> Result<AnyConnection, StoreError> {
    sqlx::any::install_default_drivers();
    let url = match location {
        Location::Postgres(url) => url.clone(),
        Location::Sqlite(path) => {
            let url = url(path).map_err(|error| StoreError::Unreachable(format!("`{}`: {error}", path.display())))?;
            format!("{url}?mode=ro")
        }
    };
    Ok(AnyConnection::connect(&url).await?)
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
                // Deleted rows are overwritten, because some of them are erased.
                for pragma in [
                    "PRAGMA journal_mode = WAL",
                    "PRAGMA synchronous = FULL",
                    "PRAGMA busy_timeout = 2000",
                    "PRAGMA secure_delete = ON",
                ] {
                    connection.execute(pragma).await?;
                }
                let readers = pool(options.connections).connect_lazy(&format!("{url}?mode=ro"))?;
                let (writer, queue) = mpsc::channel(QUEUE_MAX);
                tokio::spawn(write(connection, queue));
                Ok(Self::Sqlite { writer, readers, dialect: Dialect::sqlite(), url })
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

    /// Writes the journal of SQLite into the file and empties it, so that it has no copy of deleted rows. The journal of PostgreSQL
    /// is the operator's.
    pub(super) async fn empty_journal(&self) -> Result<(), StoreError> {
        const TRIES: u32 = 3;
        let Self::Sqlite { url, .. } = self else { return Ok(()) };
        let mut connection = AnyConnection::connect(url).await?;
        connection.execute("PRAGMA busy_timeout = 2000").await?;
        let mut is_busy = true;
        for _ in 0..TRIES {
            let row = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(&mut connection).await?;
            is_busy = row.try_get::<i64, _>(0)? != 0;
            if !is_busy {
                break;
            }
        }
        connection.close().await?;
        if is_busy { Err(StoreError::Unreachable("the journal is in use".to_owned())) } else { Ok(()) }
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
