//! Records every decision and refusal as one JSON line, chained by hash. In strict mode a line is durable
//! before the answer leaves.
//!
//! Format (`v` 2): JCS (RFC 8785), at most 65,535 bytes a line. `seq` counts from 0 without gaps, except
//! where a `log.loss_accepted` line follows lost lines. `prev` is the SHA-256 of the previous line without
//! its newline. `mac` is HMAC-SHA256 under the deployment's key over a fixed prefix and the line with 64
//! zeros in place of `mac`. `durable` is the last `seq` of the batches before; in strict mode these are on
//! disk by then, so a torn tail can be told from damage. Segments are named after their first `seq`, and
//! closed segments are read-only.
//!
//! The log consists of files with a hash and a MAC per line rather than a database, because anyone can check
//! with `sha256sum` that nothing between two known lines changed. Someone who can write the files can
//! recompute hashes, but not MACs. Neither shows that the last lines are missing, so the head is also noted
//! outside the log: in the replica's own file, in the state store, and with a witness.

mod chain;
pub mod checkpoint;
pub mod checkpoints;
pub mod complete;
pub mod content;
pub mod decisions;
pub mod disk;
pub mod error;
pub mod events;
pub mod evidence;
pub mod index;
pub mod key;
pub mod operations;
pub mod prove;
pub mod record;
pub mod recover;
pub mod refusals;
pub mod replay;
mod retention;
pub mod story;
pub mod told;
pub mod tree;
pub mod verify;
pub mod witness;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use tokio::sync::{mpsc, oneshot};

use crate::audit::checkpoint::CheckpointKey;
use crate::audit::disk::Disk;
pub use crate::audit::error::{AuditDown, OpenError};
use crate::audit::key::DigestKey;
use crate::audit::record::Record;
use crate::audit::recover::Recovered;
use crate::model::head::Head;
use crate::model::time::Timestamp;

/// Maximum number of records that wait for the disk; further requests are refused.
const QUEUE_MAX: usize = 8192;

/// Whether answers wait for the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// Answers don't wait, so a crash may lose the last records. This mode must be configured, and each line
    /// and answer names it.
    BestEffort,
    /// Answers wait: none leaves without a durable record.
    #[default]
    Strict,
}

impl Durability {
    /// Name in records and status.
    pub fn name(self) -> &'static str {
        match self {
            Self::BestEffort => "best_effort",
            Self::Strict => "strict",
        }
    }
}

/// Settings of the audit log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub folder: PathBuf,
    /// Name by which answers refer to the log.
    pub log: String,
    pub durability: Durability,
    /// Size in bytes at which a segment is closed.
    pub segment_bytes: u64,
    /// Age in seconds at which a segment is closed.
    pub segment_seconds: u64,
}

/// Head that was noted outside the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotedHead {
    pub head: Head,
    /// Place of the note, for messages.
    pub place: String,
}

/// Proof that a record is durable (or, in best-effort mode, in the writer's queue). Only this module can create
/// one.
#[derive(Debug, PartialEq, Eq)]
pub struct Receipt {
    index: Option<u64>,
}

/// Value with the proof of its record. Answers leave the process only in this type.
#[derive(Debug, PartialEq, Eq)]
pub struct Recorded<T> {
    value: T,
    index: Option<u64>,
}

impl Receipt {
    /// Sequence number of the record; `None` in best-effort mode, where the line is written later.
    pub fn index(&self) -> Option<u64> {
        self.index
    }

    /// Combines a value with the proof of its record.
    pub fn seal<T>(self, value: T) -> Recorded<T> {
        Recorded { value, index: self.index }
    }
}

impl<T> Recorded<T> {
    pub fn value(&self) -> &T {
        &self.value
    }

    /// Sequence number of the record; `None` in best-effort mode, where the line is written later.
    pub fn index(&self) -> Option<u64> {
        self.index
    }
}

/// Keys of a log.
#[derive(Debug)]
pub struct Keys {
    pub digest: DigestKey,
    pub checkpoint: CheckpointKey,
}

/// Message to the writer thread.
enum Message {
    Append(Box<Pending>),
    /// Sign a checkpoint if it is time.
    Checkpoint(Timestamp),
    /// Delete segments that were written before `before`.
    Trim {
        before: Timestamp,
        now: Timestamp,
    },
    /// Call this with each line from now on.
    Observe(Observer),
    Close,
}

/// Is called with the log's key and the bytes of each line after it was written, without its newline.
type Observer = Box<dyn Fn(&DigestKey, &[u8]) + Send>;

/// Record that waits to be written.
struct Pending {
    at: Timestamp,
    record: Record,
    /// Receives the line's number when the line is durable; `None` if no one waits for that.
    done: Option<oneshot::Sender<Result<u64, AuditDown>>>,
}

/// State of the log for status and readiness.
#[derive(Debug, Default)]
struct Health {
    failed: AtomicBool,
    last: AtomicU64,
    failures: AtomicU64,
    lost: AtomicU64,
    head: std::sync::Mutex<Option<Head>>,
    /// Time of the last checkpoint, in microseconds.
    checkpointed: AtomicI64,
}

/// Audit log that all requests share: records go to one writer thread, which commits them in groups.
#[derive(Debug)]
pub struct Audit {
    sender: mpsc::Sender<Message>,
    health: Arc<Health>,
    options: Options,
    key: DigestKey,
    disk: Arc<dyn Disk>,
    writer: std::sync::Mutex<Option<std::thread::JoinHandle<()>>>,
    transition: Option<(String, i64, String)>,
}

impl Audit {
    /// Opens the folder, takes its lock, cuts a torn tail and starts the writer. The log must contain the
    /// heads in `noted`.
    ///
    /// # Errors
    /// When the folder can't be used, a durable line is damaged, or a noted head is missing.
    pub fn open(
        options: Options,
        keys: Keys,
        disk: Arc<dyn Disk>,
        noted: &[NotedHead],
        now: Timestamp,
    ) -> Result<(Self, Option<Recovered>), OpenError> {
        let key = keys.digest.clone();
        let (writer, recovered) =
            writer::Writer::open(&options, Arc::clone(&disk), keys, writer::Start::Checked(noted), now)?;
        Self::start(options, key, disk, writer, recovered)
    }

    /// Opens a log that lacks noted lines. New lines continue after the last noted index, so no index is used
    /// twice. The first record that the caller appends must be the accepted loss.
    ///
    /// # Errors
    /// When the folder can't be used, an existing line is damaged, or no noted line is missing.
    pub fn open_after_loss(
        options: Options,
        keys: Keys,
        disk: Arc<dyn Disk>,
        noted: &[NotedHead],
        now: Timestamp,
    ) -> Result<(Self, Option<Recovered>), OpenError> {
        let key = keys.digest.clone();
        let (writer, recovered) =
            writer::Writer::open(&options, Arc::clone(&disk), keys, writer::Start::AfterLoss(noted), now)?;
        Self::start(options, key, disk, writer, recovered)
    }

    fn start(
        options: Options,
        key: DigestKey,
        disk: Arc<dyn Disk>,
        writer: writer::Writer,
        recovered: Option<Recovered>,
    ) -> Result<(Self, Option<Recovered>), OpenError> {
        let health = writer.health();
        let transition = writer.transition.clone();
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        let thread = std::thread::Builder::new().name("audit".into()).spawn(move || writer.run(receiver));
        let thread = thread.map_err(|error| OpenError::Io(options.folder.clone(), error))?;
        let writer = std::sync::Mutex::new(Some(thread));
        Ok((Self { sender, health, options, key, disk, writer, transition }, recovered))
    }

    /// Appends a record and waits until it is durable. In best-effort mode it only waits in the writer's queue.
    ///
    /// # Errors
    /// When the log can't take the record; then no answer may leave.
    pub async fn append(&self, at: Timestamp, record: Record) -> Result<Receipt, AuditDown> {
        let send = |done| {
            let pending = Box::new(Pending { at, record, done });
            self.sender.try_send(Message::Append(pending)).map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => AuditDown::Full,
                mpsc::error::TrySendError::Closed(_) => AuditDown::Failed,
            })
        };
        match self.options.durability {
            Durability::BestEffort => {
                send(None)?;
                Ok(Receipt { index: None })
            }
            Durability::Strict => {
                let (done, written) = oneshot::channel();
                send(Some(done))?;
                let index = written.await.map_err(|_| AuditDown::Failed)??;
                Ok(Receipt { index: Some(index) })
            }
        }
    }

    /// Asks the writer to call a function with the log's key and the bytes of each line, after it was written. The function must
    /// not block.
    pub fn observe(&self, observer: impl Fn(&DigestKey, &[u8]) + Send + 'static) {
        // The queue is empty at start, when this is called.
        let _full = self.sender.try_send(Message::Observe(Box::new(observer)));
    }

    /// Asks the writer to sign a checkpoint if one is due. Call it every second.
    pub fn checkpoint(&self, now: Timestamp) {
        // If the queue is full, the next batch signs.
        let _full = self.sender.try_send(Message::Checkpoint(now));
    }

    /// Asks the writer to delete the segments that were written before a time.
    pub fn trim(&self, before: Timestamp, now: Timestamp) {
        // If the queue is full, the next call deletes them.
        let _full = self.sender.try_send(Message::Trim { before, now });
    }

    /// Returns the time of the last checkpoint, or of the last look at which no line waited for one.
    pub fn checkpointed(&self) -> Timestamp {
        Timestamp::from_micros(self.health.checkpointed.load(Ordering::Relaxed))
    }

    /// Returns the state store's generation, revision and head as the last segment had them when the log was
    /// opened.
    pub fn last_transition(&self) -> Option<&(String, i64, String)> {
        self.transition.as_ref()
    }

    /// Returns the number of the line that records a transition of the state store and was written at `since`
    /// or later, if there is one. It reads whole segments, so call it only in rare cases.
    pub fn line_of(&self, generation: &str, revision: i64, since: Timestamp) -> Option<u64> {
        recover::line_of(&self.options.folder, generation, revision, since)
    }

    /// Reads the lines since a time, in order, each with its time. It reads files, so call it from a blocking thread.
    ///
    /// # Errors
    /// When a line can't be read.
    pub fn replay(&self, since: Timestamp, take: impl FnMut(Timestamp, replay::Line)) -> std::io::Result<()> {
        replay::lines_since(&self.options.folder, since, take)
    }

    /// Returns the folder of the log.
    pub fn folder(&self) -> &std::path::Path {
        &self.options.folder
    }

    /// Deletes evidence that was last written before a time.
    ///
    /// # Errors
    /// When a file can't be deleted.
    pub fn purge_evidence(&self, before: Timestamp) -> std::io::Result<()> {
        evidence::purge(&self.options.folder, before)
    }

    /// Returns the last line that is known to be durable; `None` if no line is.
    pub fn head(&self) -> Option<Head> {
        self.health.head.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Returns whether the log contains this line. It reads a segment, so call it only in rare cases.
    ///
    /// # Errors
    /// When the segment can't be read.
    pub fn has(&self, head: &Head) -> std::io::Result<bool> {
        Ok(recover::hash_of(&self.options.folder, head.index)?.as_deref() == Some(head.hash.as_str()))
    }

    /// Returns the keyed digest of a value: `hmac-sha256:` and hex over its canonical form.
    pub fn digest(&self, value: &impl serde::Serialize) -> String {
        self.key.digest(value)
    }

    /// Returns the keyed digest by which a customer's lines and risk are found. It stays the same when the key is replaced.
    pub fn customer(&self, id: &str) -> String {
        self.key.customer(id)
    }

    pub fn log(&self) -> &str {
        &self.options.log
    }

    pub fn durability(&self) -> Durability {
        self.options.durability
    }

    /// Returns false while records can't be written.
    pub fn healthy(&self) -> bool {
        !self.health.failed.load(Ordering::Acquire)
    }

    /// Sequence number of the last written record, which in strict mode is durable; 0 for an empty log.
    pub fn last_index(&self) -> u64 {
        self.health.last.load(Ordering::Acquire)
    }

    /// Number of failed commits since the start.
    pub fn failures(&self) -> u64 {
        self.health.failures.load(Ordering::Relaxed)
    }

    /// Number of best-effort records that were lost.
    pub fn lost(&self) -> u64 {
        self.health.lost.load(Ordering::Relaxed)
    }

    /// Returns whether at least a fifth of the file system is free. Refusals of unauthenticated peers are
    /// written only then, because such peers could fill the disk.
    pub fn has_room_for_unauthenticated(&self) -> bool {
        self.disk.free(&self.options.folder).is_some_and(|(free, total)| free >= total / 5)
    }

    /// Writes the queued records and ends the writer; later records are refused. It blocks, so call it from a
    /// blocking thread.
    pub fn close(&self) {
        // `blocking_send` waits while the queue is full, and fails only if the writer has already ended.
        let _gone = self.sender.blocking_send(Message::Close);
        let thread = self.writer.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        // A writer that panicked has nothing left to write; its earlier lines are on disk.
        let _ended = thread.map(std::thread::JoinHandle::join);
    }
}
