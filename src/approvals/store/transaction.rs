//! Reads and writes on the engine. Each write is one transaction; [`Store::advance`] is for those that
//! increment the revision.

use std::sync::{Arc, PoisonError};

use sqlx::AnyConnection;

use crate::approvals::store::Store;
use crate::approvals::store::engine::{End, Lane, Operation};
use crate::approvals::store::error::StoreError;
use crate::approvals::store::history::Writer;
use crate::approvals::store::location::Seen;
use crate::approvals::store::transitions::Revision;

impl Store {
    pub(super) fn writer(&self) -> Writer {
        Writer {
            seen: self.seen(),
            replica: self.options.replica.clone(),
            boot: self.options.boot.clone(),
            heads: Arc::clone(&self.heads),
            dialect: self.engine.dialect().clone(),
            sealing: self.options.sealing.clone(),
            last: Arc::default(),
        }
    }

    /// Runs an operation that increments the revision, in a transaction.
    pub(super) async fn advance<T: Send + 'static>(
        &self,
        operation: impl for<'c> FnOnce(&'c mut AnyConnection, Writer) -> Operation<'c, T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let writer = self.writer();
        let (last, generation) = (Arc::clone(&writer.last), writer.seen.generation.clone());
        let written = self.write(move |connection| {
            Box::pin(async move {
                let counted = Arc::clone(&writer.last);
                let end = operation(connection, writer).await?;
                if matches!(end, End::RollBack(_)) {
                    *counted.lock().unwrap_or_else(PoisonError::into_inner) = None;
                }
                Ok(end)
            })
        });
        let value = written.await?;
        if let Some(revision) = last.lock().unwrap_or_else(PoisonError::into_inner).take() {
            self.saw(&generation, &revision);
        }
        Ok(value)
    }

    pub(super) fn saw(&self, generation: &str, revision: &Revision) {
        self.seen.rcu(|seen| match seen.generation == generation && revision.number > seen.revision {
            true => {
                Seen { generation: seen.generation.clone(), revision: revision.number, head: revision.head.clone() }
            }
            false => seen.as_ref().clone(),
        });
    }

    pub(super) async fn read<T, F>(
        &self,
        question: impl FnOnce(sqlx::pool::PoolConnection<sqlx::Any>) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        self.read_by(Lane::Calls, question).await
    }

    /// Like [`Store::read`], but on PostgreSQL does not wait for calls.
    pub(super) async fn read_apart<T, F>(
        &self,
        question: impl FnOnce(sqlx::pool::PoolConnection<sqlx::Any>) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        self.read_by(Lane::Apart, question).await
    }

    async fn read_by<T, F>(
        &self,
        lane: Lane,
        question: impl FnOnce(sqlx::pool::PoolConnection<sqlx::Any>) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let asked = async { question(self.engine.readers(lane).acquire().await?).await };
        let answered = tokio::time::timeout(self.options.timeout, asked).await;
        self.noted(answered.unwrap_or_else(|_| Err(StoreError::Unreachable("no answer in time".to_owned()))))
    }

    pub(super) async fn write<T: Send + 'static>(
        &self,
        operation: impl for<'c> FnOnce(&'c mut AnyConnection) -> Operation<'c, T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.noted(self.engine.transact(Lane::Calls, self.options.timeout, operation).await)
    }

    /// Like [`Store::write`], but on PostgreSQL does not wait for calls.
    pub(super) async fn write_apart<T: Send + 'static>(
        &self,
        operation: impl for<'c> FnOnce(&'c mut AnyConnection) -> Operation<'c, T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.noted(self.engine.transact(Lane::Apart, self.options.timeout, operation).await)
    }
}
