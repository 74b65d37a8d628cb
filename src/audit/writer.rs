//! The only thread that writes the log. It takes the waiting records as one batch, writes them, syncs once,
//! and then releases the batch's answers. In best-effort mode no answer waits for it, and it syncs once a
//! second.

mod queue;
mod trimming;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Serialize;

use crate::audit::chain::{GENESIS, ZEROS, hash};
use crate::audit::checkpoints::{self, Begins, Checkpoints};
use crate::audit::disk::{Disk, Segment, create_folder, lock};
use crate::audit::error::{AuditDown, OpenError};
use crate::audit::evidence::EvidenceWriter;
use crate::audit::key::DigestKey;
use crate::audit::record::{LINE_MAX, Record};
use crate::audit::recover::{self, Recovered, Tail};
use crate::audit::tree::leaf;
use crate::audit::{Durability, Health, Keys, NotedHead, Observer, Options, Pending};
use crate::json;
use crate::model::head::Head;
use crate::model::number::to_u64;
use crate::model::time::Timestamp;

/// Minimum time between two syncs of a best-effort log.
const BEST_EFFORT_SYNC: Duration = Duration::from_secs(1);
/// Maximum time by which the clock may be behind the last record when the log is opened.
const CLOCK_SLACK: Duration = Duration::from_secs(60);

/// Record with the members that place it in the log.
#[derive(Serialize)]
struct Line<'a> {
    v: u8,
    seq: u64,
    prev: &'a str,
    mac: &'a str,
    ts: String,
    durable: Option<u64>,
    durability: &'static str,
    #[serde(flatten)]
    record: &'a Record,
}

/// State of the log after a failed batch.
enum Failure {
    /// The batch is not in the log, and the next one may succeed.
    Clean,
    /// The content of the file is unknown, so nothing may be written until a restart has read it.
    Poisoned,
}

/// Condition on the noted heads when a log is opened.
#[derive(Clone, Copy, Debug)]
pub(super) enum Start<'a> {
    /// The log must contain these heads.
    Checked(&'a [NotedHead]),
    /// The log lacks some of these heads; new lines continue after all of them.
    AfterLoss(&'a [NotedHead]),
}

impl Start<'_> {
    fn begins(self, tail: &Tail) -> Begins {
        match (&tail.segment, self) {
            (Some(_), _) => Begins::There,
            (None, Self::AfterLoss(_)) => Begins::AfterLoss(tail.next),
            (None, Self::Checked(_)) => Begins::New,
        }
    }
}

/// State of the writer thread.
pub(super) struct Writer {
    options: Options,
    key: DigestKey,
    disk: Arc<dyn Disk>,
    _lock: fs::File,
    segment: Box<dyn Segment>,
    path: PathBuf,
    length: u64,
    opened: Timestamp,
    synced: Timestamp,
    /// Last record that is known to be on disk.
    durable: Option<u64>,
    next: u64,
    prev: String,
    poisoned: bool,
    /// First line that stays, by the last record of a deletion.
    trimmed: Option<u64>,
    checkpoints: Checkpoints,
    evidence: EvidenceWriter,
    observer: Option<Observer>,
    health: Arc<Health>,
    pub(super) transition: Option<(String, i64, String)>,
}

impl Writer {
    /// Takes the lock, reads the tail and opens the segment to write.
    pub(super) fn open(
        options: &Options,
        disk: Arc<dyn Disk>,
        keys: Keys,
        start: Start<'_>,
        now: Timestamp,
    ) -> Result<(Self, Option<Recovered>), OpenError> {
        let io = |error| OpenError::Io(options.folder.clone(), error);
        create_folder(&options.folder).map_err(io)?;
        let lock = lock(&options.folder)?;
        let Keys { digest: key, checkpoint } = keys;
        let tail = recover::read_tail(&options.folder, &key, now)?;
        let tail = match start {
            Start::Checked(noted) => match recover::missing(&options.folder, noted).map_err(io)?.into_iter().next() {
                Some(NotedHead { head, place }) => {
                    let folder = options.folder.display().to_string();
                    return Err(OpenError::Behind { folder, index: head.index, place });
                }
                None => tail,
            },
            Start::AfterLoss(noted) => {
                let signed = checkpoints::last_line(&options.folder, &checkpoint);
                recover::after_loss(&options.folder, noted, signed, tail)?
            }
        };
        if let Some(last) = tail.last.filter(|last| now.plus(CLOCK_SLACK) < *last) {
            return Err(OpenError::Clock(last));
        }
        let begins = start.begins(&tail);
        let path = tail.segment.unwrap_or_else(|| segment_path(&options.folder, tail.next));
        let checkpoints = Checkpoints::open(&options.folder, Arc::clone(&disk), checkpoint, begins, now)?;
        if begins != Begins::There {
            checkpoints.begin(tail.next).map_err(io)?;
        }
        let segment = disk.open(&path).map_err(io)?;
        // On first start the folders are new. Sync them too, otherwise a crash could lose the segment file
        // itself.
        for folder in [Some(options.folder.as_path()), options.folder.parent()].into_iter().flatten() {
            disk.sync_folder(folder).map_err(io)?;
        }
        let health = Arc::new(Health::default());
        health.checkpointed.store(now.micros(), Ordering::Relaxed);
        health.last.store(tail.next.saturating_sub(1), Ordering::Release);
        let head = tail.next.checked_sub(1).zip(tail.prev.clone()).filter(|_| tail.segment_is_whole);
        *health.head.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
            head.map(|(index, hash)| Head { index, hash });
        let writer = Self {
            options: options.clone(),
            key,
            disk: Arc::clone(&disk),
            _lock: lock,
            segment,
            path,
            length: tail.length,
            opened: tail.opened.unwrap_or(now),
            synced: now,
            durable: tail.next.checked_sub(1),
            next: tail.next,
            prev: tail.prev.unwrap_or_else(|| GENESIS.to_owned()),
            poisoned: false,
            trimmed: None,
            checkpoints,
            evidence: EvidenceWriter::new(disk),
            observer: None,
            health,
            transition: tail.transition,
        };
        Ok((writer, tail.recovered))
    }

    pub(super) fn health(&self) -> Arc<Health> {
        Arc::clone(&self.health)
    }

    /// Syncs what a best-effort log has written, if no later line will.
    fn settle(&mut self, now: Timestamp) {
        let last = self.next.checked_sub(1);
        if self.poisoned || self.durable == last || self.synced.plus(BEST_EFFORT_SYNC) > now {
            return;
        }
        if self.segment.sync().is_err() || !self.segment.is_at(&self.path, self.length).unwrap_or(false) {
            self.poisoned = true;
            self.health.failed.store(true, Ordering::Release);
            return;
        }
        (self.durable, self.synced) = (last, now);
        let head = last.map(|index| Head { index, hash: self.prev.clone() });
        *self.health.head.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = head;
    }

    /// Signs a checkpoint if one is due and every line is durable. A line is answered without one, so a failure is only logged.
    fn checkpoint(&mut self, now: Timestamp, is_forced: bool) {
        if self.poisoned || self.durable != self.next.checked_sub(1) {
            return;
        }
        match self.checkpoints.sign(now, is_forced) {
            Ok(()) => self.health.checkpointed.store(self.checkpoints.signed_at().micros(), Ordering::Relaxed),
            Err(error) => {
                self.health.failures.fetch_add(1, Ordering::Relaxed);
                tracing::error!(name: "audit.checkpoint_failed", error = %error, "a checkpoint of the audit log can't be written; the next one may be");
            }
        }
    }

    fn commit(&mut self, batch: Vec<Pending>) {
        let (mut text, mut taken) = (Vec::new(), Vec::with_capacity(batch.len()));
        let (mut next, mut prev, mut edge) = (self.next, self.prev.clone(), self.checkpoints.edge.clone());
        // Without records nothing is written, so the time does not matter.
        let newest = batch.iter().map(|pending| pending.at).max().unwrap_or_default();
        let mut sealed = vec![];
        for mut pending in batch {
            let Some(line) = self.line(next, &prev, &pending).ok().filter(|line| line.len() <= LINE_MAX) else {
                tracing::error!(name: "audit.record_lost", "a record can't be written, because it has no form or is too long");
                self.health.failures.fetch_add(1, Ordering::Relaxed);
                self.lose(1);
                answer(pending, Err(AuditDown::Failed));
                continue;
            };
            sealed.extend(pending.record.take_evidence().map(|evidence| (next, evidence)));
            prev = hash(&line);
            edge.push(leaf(&line));
            text.extend_from_slice(&line);
            text.push(b'\n');
            taken.push((pending, next));
            next += 1;
        }
        if taken.is_empty() {
            return;
        }
        let written = if self.poisoned { Err(Failure::Poisoned) } else { self.write(&text, newest) };
        if let Ok(durable) = written {
            self.next = next;
            self.prev = prev;
            self.checkpoints.edge = edge;
            if durable {
                self.durable = next.checked_sub(1);
                let head = Head { index: next.saturating_sub(1), hash: self.prev.clone() };
                *self.health.head.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(head);
            }
            self.health.last.store(next.saturating_sub(1), Ordering::Release);
            self.health.failed.store(false, Ordering::Release);
            self.checkpoint(newest, false);
        } else {
            self.poisoned |= matches!(written, Err(Failure::Poisoned));
            self.health.failed.store(true, Ordering::Release);
            self.health.failures.fetch_add(1, Ordering::Relaxed);
            self.lose(to_u64(taken.len()));
        }
        for (pending, index) in taken {
            answer(pending, if written.is_ok() { Ok(index) } else { Err(AuditDown::Failed) });
        }
        // No answer waits for evidence or an observer.
        if written.is_ok() {
            if let Some(observer) = &self.observer {
                text.split(|byte| *byte == b'\n')
                    .filter(|line| !line.is_empty())
                    .for_each(|line| observer(&self.key, line));
            }
            self.evidence.append(&self.path, &sealed);
        }
    }

    /// Counts records that can't be written although their answers have left.
    fn lose(&self, count: u64) {
        if self.options.durability == Durability::BestEffort {
            self.health.lost.fetch_add(count, Ordering::Relaxed);
        }
    }

    fn line(&self, seq: u64, prev: &str, pending: &Pending) -> Result<Vec<u8>, serde_json::Error> {
        let mut line = json::try_canonical(&Line {
            v: recover::FORMAT,
            seq,
            prev,
            mac: ZEROS,
            ts: pending.at.to_string(),
            durable: self.durable,
            durability: self.options.durability.name(),
            record: &pending.record,
        })?;
        let mac = self.key.line(&line);
        if let Some(place) = recover::mac_place(&line).and_then(|place| line.get_mut(place)) {
            place.copy_from_slice(mac.as_bytes());
        }
        Ok(line)
    }

    /// Writes a batch, syncs if a sync is due, and returns whether it synced. After a failed write the file
    /// is cut back to its length before the batch, so a retry can't tear the chain.
    fn write(&mut self, text: &[u8], now: Timestamp) -> Result<bool, Failure> {
        self.rotate_if_due(now)?;
        if self.segment.write_all(text).is_err() {
            return Err(match self.segment.set_len(self.length).and_then(|()| self.segment.sync()) {
                Ok(()) => Failure::Clean,
                Err(_) => Failure::Poisoned,
            });
        }
        // In best-effort mode sync once a second, because a sync for each batch would delay the next one.
        let length = self.length + to_u64(text.len());
        let due = self.options.durability == Durability::Strict || self.synced.plus(BEST_EFFORT_SYNC) <= now;
        if due {
            // The kernel drops dirty pages after a failed sync, and a second one would succeed without them.
            self.segment.sync().map_err(|_| Failure::Poisoned)?;
            if !self.segment.is_at(&self.path, length).unwrap_or(false) {
                // The records went to a file that no reader will find, or to one that another process writes.
                tracing::error!(
                    name: "audit.segment_replaced", path = %self.path.display(),
                    "the open segment was deleted, replaced or changed: all requests are refused until the server is restarted"
                );
                return Err(Failure::Poisoned);
            }
            self.synced = now;
        }
        self.length = length;
        Ok(due)
    }

    fn rotate_if_due(&mut self, now: Timestamp) -> Result<(), Failure> {
        let old = self.opened.plus(Duration::from_secs(self.options.segment_seconds)) <= now;
        if self.length == 0 || !(old || self.length >= self.options.segment_bytes) {
            return Ok(());
        }
        // The next segment proves this one's last line durable, so it must be. In strict mode it is.
        if self.durable != self.next.checked_sub(1) {
            self.segment.sync().map_err(|_| Failure::Poisoned)?;
            self.durable = self.next.checked_sub(1);
        }
        self.checkpoint(now, true);
        let path = segment_path(&self.options.folder, self.next);
        // Without the file, a start reads the segments before.
        let _noted = self.checkpoints.begin(self.next);
        let segment = self.disk.open(&path).map_err(|_| Failure::Clean)?;
        self.disk.sync_folder(&self.options.folder).map_err(|_| Failure::Poisoned)?;
        let closed = std::mem::replace(&mut self.path, path);
        self.segment = segment;
        (self.length, self.opened) = (0, now);
        // A log whose closed segment stays writable is still valid, and `verify` still reads it, so ignore an
        // error here.
        let _kept = fs::set_permissions(closed, fs::Permissions::from_mode(0o440));
        Ok(())
    }
}

fn segment_path(folder: &std::path::Path, first: u64) -> PathBuf {
    folder.join(format!("seg-{first:020}.jsonl"))
}

fn answer(pending: Pending, index: Result<u64, AuditDown>) {
    // If the caller is gone, there is no one to answer; its record remains in the log.
    let _gone = pending.done.map(|done| done.send(index));
}
