//! The record of every decision and refusal: one JSON line each, chained by hash, durable before the answer leaves.
//!
//! The format (`v` 2): JCS (RFC 8785), at most 65,535 bytes a line; `seq` counts from 0 without gaps; `prev` is the SHA-256 of the
//! line before without its newline; `mac` is HMAC-SHA256 under the deployment's key over the line with 64 zeros in the place of `mac`;
//! `durable` is the last `seq` that was known to be on disk when the line was written, so that a torn tail can be told from damage.
//! Segments are named by their first `seq`, closed segments are read-only.
//!
//! Why a hash and a MAC in each line, and not a database: the hashes alone show to everybody that nothing between two known lines
//! changed, with `sha256sum`. Whoever can write the files can compute hashes again, but not MACs. Neither shows that the last lines
//! are missing, so the head is noted outside of the log: in the replica's own file, in the state store, and with a witness.

pub mod content;
pub mod disk;
pub mod events;
pub mod key;
pub mod operations;
pub mod record;
pub mod recover;
pub mod refusals;
pub mod replay;
pub mod verify;
pub mod witness;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};

use crate::audit::disk::Disk;
use crate::audit::key::DigestKey;
use crate::audit::record::Record;
use crate::audit::recover::Recovered;
use crate::json::Value;
use crate::model::head::Head;
use crate::model::time::Timestamp;

/// `prev` of the first line.
const GENESIS: &str = ZEROS;
/// What stands in the place of a line's MAC while the MAC is made.
const ZEROS: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// How many records may wait for the disk before requests are refused.
const QUEUE_MAX: usize = 8192;

/// Whether answers wait for the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// They don't: a crash may lose the last records. Must be asked for, and stands in each line and answer.
    BestEffort,
    /// They do: no answer without a durable record.
    #[default]
    Strict,
}

impl Durability {
    /// The name in records and status.
    pub fn name(self) -> &'static str {
        match self {
            Self::BestEffort => "best_effort",
            Self::Strict => "strict",
        }
    }
}

/// How the log is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The log's folder.
    pub folder: PathBuf,
    /// The log's name, as answers refer to it.
    pub log: String,
    /// Whether answers wait for the disk.
    pub durability: Durability,
    /// A segment is closed when it is this large, in bytes.
    pub segment_bytes: u64,
    /// A segment is closed when it is this old, in seconds.
    pub segment_seconds: u64,
}

/// A head as it was noted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotedHead {
    /// The head.
    pub head: Head,
    /// Where it was noted, for messages.
    pub place: String,
}

/// Why the log can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The log lacks a line that was noted elsewhere.
    #[error(
        "the audit log in `{folder}` does not have line {index} as {place} notes it: lines were cut off, or the log was replaced or \
         rewritten. Restore the log. If the lines are lost for good, run `countersign audit accept-loss --reason …`, which is recorded"
    )]
    Behind {
        /// The log's folder.
        folder: String,
        /// The line.
        index: u64,
        /// Where it was noted.
        place: String,
    },
    /// There is no loss to accept.
    #[error("the audit log in `{0}` has every line that was noted: there is no loss to accept")]
    Complete(String),
    /// A line that was durable is damaged.
    #[error(
        "the audit log is damaged at {place}: see `countersign audit verify {folder}`; restore it, or move the folder away and keep it"
    )]
    Damaged {
        /// File and line.
        place: String,
        /// The log's folder.
        folder: String,
    },
    /// The clock stands before the last record.
    #[error("the clock stands more than 60 s before the last audit record ({0}): set it right")]
    Clock(Timestamp),
    /// The last segment is of an earlier format.
    #[error(
        "the audit log in `{0}` was written by an earlier version: move the folder away and keep it; `countersign audit verify` reads it"
    )]
    Format(String),
    /// A line's MAC is not by this key.
    #[error(
        "{place} of the audit log was not written with this deployment's key: the line was changed, or `keys/audit-digest.key` in the \
         data folder was replaced. Restore the log or the key"
    )]
    Foreign {
        /// File and line.
        place: String,
    },
    /// The operating system refuses.
    #[error("the audit log at `{0}` can't be opened: {1}")]
    Io(PathBuf, std::io::Error),
    /// Another process writes it.
    #[error("the data folder `{0}` is in use by another server: stop it, or give another folder with `--data`")]
    Locked(PathBuf),
}

/// The log takes no records now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuditDown {
    /// It can't write.
    #[error("the audit log can't be written")]
    Failed,
    /// Too many records wait.
    #[error("the audit log is overloaded")]
    Full,
}

/// Proof that a record is durable (or, in best-effort mode, accepted). Only this module makes one.
#[derive(Debug, PartialEq, Eq)]
pub struct Receipt {
    index: Option<u64>,
}

/// A value whose record is durable. What leaves the process must be one.
#[derive(Debug, PartialEq, Eq)]
pub struct Recorded<T> {
    value: T,
    index: Option<u64>,
}

impl Receipt {
    /// The record's sequence number; none in best-effort mode.
    pub fn index(&self) -> Option<u64> {
        self.index
    }

    /// Puts a value together with the proof of its record.
    pub fn seal<T>(self, value: T) -> Recorded<T> {
        Recorded { value, index: self.index }
    }
}

impl<T> Recorded<T> {
    /// The value.
    pub fn value(&self) -> &T {
        &self.value
    }

    /// The record's sequence number; none in best-effort mode, where it is not written yet.
    pub fn index(&self) -> Option<u64> {
        self.index
    }
}

/// What the writer is told.
enum Message {
    Append(Box<Pending>),
    Close,
}

/// A record on its way to the disk.
struct Pending {
    at: Timestamp,
    record: Record,
    done: oneshot::Sender<Result<Option<u64>, AuditDown>>,
}

/// What the log's state is, for status and readiness.
#[derive(Debug, Default)]
struct Health {
    failed: AtomicBool,
    last: AtomicU64,
    failures: AtomicU64,
    lost: AtomicU64,
    head: std::sync::Mutex<Option<Head>>,
}

/// The audit log. Cheap to share: records go to one writer thread, which commits in groups.
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
    /// Opens the folder, takes its lock, cuts a torn tail and starts the writer. `noted` are heads that the log must have.
    ///
    /// # Errors
    /// When the folder can't be used, what was durable is damaged, or a noted head is missing.
    pub fn open(
        options: Options,
        key: DigestKey,
        disk: Arc<dyn Disk>,
        noted: &[NotedHead],
        now: Timestamp,
    ) -> Result<(Self, Option<Recovered>), OpenError> {
        let (writer, recovered) = writer::Writer::open(&options, Arc::clone(&disk), key.clone(), writer::Start::Checked(noted), now)?;
        Self::start(options, key, disk, writer, recovered)
    }

    /// Opens a log that lacks lines which were noted: it goes on behind the last noted index, so that no index is given twice. The
    /// caller must record the loss first.
    ///
    /// # Errors
    /// When the folder can't be used, what is there is damaged, or nothing is missing.
    pub fn open_after_loss(
        options: Options,
        key: DigestKey,
        disk: Arc<dyn Disk>,
        noted: &[NotedHead],
        now: Timestamp,
    ) -> Result<(Self, Option<Recovered>), OpenError> {
        let (writer, recovered) = writer::Writer::open(&options, Arc::clone(&disk), key.clone(), writer::Start::AfterLoss(noted), now)?;
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

    /// Appends a record and waits until it is durable (in best-effort mode: until it has its place).
    ///
    /// # Errors
    /// When the log can't take it; then no answer may leave.
    pub async fn append(&self, at: Timestamp, record: Record) -> Result<Receipt, AuditDown> {
        let (done, receipt) = oneshot::channel();
        self.sender.try_send(Message::Append(Box::new(Pending { at, record, done }))).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => AuditDown::Full,
            mpsc::error::TrySendError::Closed(_) => AuditDown::Failed,
        })?;
        let index = receipt.await.map_err(|_| AuditDown::Failed)??;
        Ok(Receipt { index })
    }

    /// The state store's generation, revision and head that the last segment knew when the log was opened.
    pub fn last_transition(&self) -> Option<&(String, i64, String)> {
        self.transition.as_ref()
    }

    /// The line of a transition of the state store that was left at this time or later, if it is in the log. Reads files: for what
    /// is rare.
    pub fn line_of(&self, generation: &str, revision: i64, since: Timestamp) -> Option<u64> {
        recover::line_of(&self.options.folder, generation, revision, since)
    }

    /// Reads the lines since a time, in order. Reads files: call it from a blocking thread.
    ///
    /// # Errors
    /// When they can't be read.
    pub fn replay(&self, since: Timestamp, take: impl FnMut(replay::Line)) -> std::io::Result<()> {
        replay::lines_since(&self.options.folder, since, take)
    }

    /// The last line that is known to be durable; `None` of an empty log.
    pub fn head(&self) -> Option<Head> {
        self.health.head.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Returns whether the log has a line. Reads files: for what is rare.
    ///
    /// # Errors
    /// When they can't be read.
    pub fn has(&self, head: &Head) -> std::io::Result<bool> {
        Ok(recover::hash_of(&self.options.folder, head.index)?.as_deref() == Some(head.hash.as_str()))
    }

    /// The keyed digest of a value: `hmac-sha256:` and hex over its canonical form.
    pub fn digest(&self, value: &Value) -> String {
        self.key.digest(value)
    }

    /// The log's name.
    pub fn log(&self) -> &str {
        &self.options.log
    }

    /// Whether answers wait for the disk.
    pub fn durability(&self) -> Durability {
        self.options.durability
    }

    /// False while records can't be written.
    pub fn healthy(&self) -> bool {
        !self.health.failed.load(Ordering::Acquire)
    }

    /// Sequence number of the last durable record.
    pub fn last_index(&self) -> u64 {
        self.health.last.load(Ordering::Acquire)
    }

    /// How often a commit failed.
    pub fn failures(&self) -> u64 {
        self.health.failures.load(Ordering::Relaxed)
    }

    /// How many best-effort records were lost.
    pub fn lost(&self) -> u64 {
        self.health.lost.load(Ordering::Relaxed)
    }

    /// True while more than a fifth of the file system is free: only then may unauthenticated peers fill it.
    pub fn has_room_for_strangers(&self) -> bool {
        self.disk.free(&self.options.folder).is_some_and(|(free, total)| free >= total / 5)
    }

    /// Writes what is queued and ends the writer; records after it are refused. Blocks: call it from a blocking thread.
    pub fn close(&self) {
        // A full queue drains, and a writer that is gone needs no word.
        let _gone = self.sender.blocking_send(Message::Close);
        let thread = self.writer.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        // A writer that panicked has nothing left to write; the lines it wrote are on disk.
        let _ended = thread.map(std::thread::JoinHandle::join);
    }
}

/// SHA-256 in lower-case hex.
fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
