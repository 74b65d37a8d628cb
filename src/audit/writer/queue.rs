//! The writer's loop: it takes the waiting messages from the queue and writes their records as one batch.
//!
//! A sync costs far more than a line. So, after a batch with several records, the writer waits a little for more records before it
//! syncs the next one. It syncs a single record at once.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::audit::writer::Writer;
use crate::audit::{Durability, Message, Pending};
use crate::model::time::Timestamp;

/// Maximum number of records in a batch.
const BATCH_MAX: usize = 256;
/// Time for which a best-effort log collects its next batch.
const BEST_EFFORT_PAUSE: Duration = Duration::from_millis(2);
/// Time for which a strict log waits for another record before it syncs a batch.
const STRICT_PAUSE: Duration = Duration::from_micros(500);
/// Number of such times that a strict log waits at most for one batch.
const STRICT_PAUSES: usize = 6;

/// Messages that are handled together.
#[derive(Default)]
struct Round {
    batch: Vec<Pending>,
    checkpoint: Option<Timestamp>,
    /// Time before which segments are deleted, and the time now.
    trim: Option<(Timestamp, Timestamp)>,
}

impl Writer {
    /// Writes batches until a `Close` message arrives, and then what the queue contains.
    pub(in crate::audit) fn run(mut self, mut queue: mpsc::Receiver<Message>) {
        let mut last = 0;
        while let Some(first) = queue.blocking_recv() {
            let mut round = Round::default();
            self.take(first, &mut round, &mut queue);
            self.fill(&mut round, &mut queue);
            if self.options.durability == Durability::Strict && last.max(round.batch.len()) > 1 {
                self.wait_for_more(&mut round, &mut queue);
            }
            last = round.batch.len();
            self.handle(round);
            if self.options.durability == Durability::BestEffort && queue.is_empty() && !queue.is_closed() {
                // No answer waits, so let the next batch grow: each record that finds the writer waiting wakes it.
                std::thread::sleep(BEST_EFFORT_PAUSE);
            }
        }
        if self.segment.sync().is_err() {
            self.health.failed.store(true, Ordering::Release);
            return;
        }
        self.durable = self.next.checked_sub(1);
        self.checkpoint(self.synced, true);
    }

    /// Collects records as long as they keep coming.
    fn wait_for_more(&mut self, round: &mut Round, queue: &mut mpsc::Receiver<Message>) {
        for _ in 0..STRICT_PAUSES {
            let before = round.batch.len();
            if before >= BATCH_MAX || queue.is_closed() {
                return;
            }
            std::thread::sleep(STRICT_PAUSE);
            self.fill(round, queue);
            if round.batch.len() == before {
                return;
            }
        }
    }

    /// Takes the messages that wait.
    fn fill(&mut self, round: &mut Round, queue: &mut mpsc::Receiver<Message>) {
        while round.batch.len() < BATCH_MAX
            && let Ok(message) = queue.try_recv()
        {
            self.take(message, round, queue);
        }
    }

    fn take(&mut self, message: Message, round: &mut Round, queue: &mut mpsc::Receiver<Message>) {
        match message {
            Message::Append(pending) => round.batch.push(*pending),
            Message::Checkpoint(now) => round.checkpoint = Some(now),
            Message::Trim { before, now } => round.trim = Some((before, now)),
            Message::Observe(observer) => self.observer = Some(observer),
            // The queue takes nothing more, and what it has taken is still written.
            Message::Close => queue.close(),
        }
    }

    fn handle(&mut self, round: Round) {
        self.commit(round.batch);
        if let Some(now) = round.checkpoint {
            self.settle(now);
            self.checkpoint(now, false);
        }
        if let Some((before, now)) = round.trim
            && let Err(error) = self.trim(before, now)
        {
            tracing::error!(name: "audit.not_trimmed", error = %error, "old segments of the audit log can't be deleted");
        }
    }
}
