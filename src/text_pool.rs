//! Threads that process texts. Processing takes CPU time in proportion to a text's length, so texts have a
//! few threads of their own: threads that serve connections never wait for a text, and texts of one tool
//! service never wait for another one's queue.

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::model::refusal::Refusal;

/// Maximum number of texts that wait for a thread: per tool service, and in total.
const WAITING_PER_CALLER_MAX: usize = 64;
const WAITING_MAX: usize = 1024;
const THREADS_MAX: usize = 8;
/// POSIX nice value of the threads. Threads that serve connections have precedence, so that a decision does
/// not wait for a text; texts still get about a quarter of a busy core.
const NICE: i32 = 5;
/// Cedar evaluates nested policies recursively, which needs a large stack.
const STACK: usize = 8 << 20;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Debug)]
pub(crate) struct TextPool {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Shared").field("waiting", &self.queue().waiting).finish_non_exhaustive()
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waiting texts, in order of arrival per caller.
#[derive(Default)]
struct Queue {
    callers: HashMap<String, VecDeque<Job>>,
    /// Callers with waiting texts, in the order of their turns.
    turns: VecDeque<String>,
    waiting: usize,
    closed: bool,
}

impl Queue {
    fn push(&mut self, caller: &str, job: Job) -> Result<(), Refusal> {
        if self.closed {
            return Err(Refusal::Unavailable("the server is stopping"));
        }
        if self.waiting >= WAITING_MAX {
            return Err(Refusal::Exhausted("too many texts are waiting to be processed"));
        }
        let own = self.callers.entry(caller.to_owned()).or_default();
        if own.len() >= WAITING_PER_CALLER_MAX {
            return Err(Refusal::Exhausted("too many texts of this caller are waiting to be processed"));
        }
        if own.is_empty() {
            self.turns.push_back(caller.to_owned());
        }
        own.push_back(job);
        self.waiting += 1;
        Ok(())
    }

    /// Returns the next text of the next caller, and moves the caller to the end of the order.
    fn pop(&mut self) -> Option<Job> {
        let caller = self.turns.pop_front()?;
        let own = self.callers.get_mut(&caller)?;
        let job = own.pop_front();
        self.waiting = self.waiting.saturating_sub(usize::from(job.is_some()));
        if own.is_empty() {
            self.callers.remove(&caller);
        } else {
            self.turns.push_back(caller);
        }
        job
    }
}

impl TextPool {
    /// Starts the threads, half as many as there are cores but at most [`THREADS_MAX`].
    ///
    /// # Errors
    /// When the operating system can't create a thread.
    pub(crate) fn start() -> std::io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self::with_threads((cores / 2).clamp(1, THREADS_MAX))
    }

    fn with_threads(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::<Shared>::default();
        for _ in 0..threads {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name("texts".into()).stack_size(STACK).spawn(move || work(&shared))?;
        }
        Ok(Self { shared })
    }

    /// Runs work on a text when it is the caller's turn. If the request is cancelled before, the work is not
    /// started.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED if too many texts wait; UNAVAILABLE if the work failed or the server is stopping.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        caller: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let (done, result) = oneshot::channel();
        let job = Box::new(move || {
            if !done.is_closed() {
                // A request that was cancelled in the meantime needs no result.
                let _given_up = done.send(work());
            }
        });
        self.shared.queue().push(caller, job)?;
        self.shared.wake.notify_one();
        result.await.map_err(|_| Refusal::Unavailable("the text could not be processed"))
    }
}

impl Drop for TextPool {
    fn drop(&mut self) {
        self.shared.queue().closed = true;
        self.shared.wake.notify_all();
    }
}

fn work(shared: &Shared) {
    // On Linux the nice value applies to this thread only. If it can't be set, the thread keeps the normal
    // priority.
    let _unchanged = rustix::process::nice(NICE);
    let mut queue = shared.queue();
    loop {
        match queue.pop() {
            Some(job) => {
                drop(queue);
                // A panic ends only the request, whose channel is dropped, and not the thread.
                if std::panic::catch_unwind(AssertUnwindSafe(job)).is_err() {
                    tracing::error!(name: "text.panicked", "processing a text panicked; its request is refused");
                }
                queue = shared.queue();
            }
            None if queue.closed => return,
            None => queue = shared.wake.wait(queue).unwrap_or_else(PoisonError::into_inner),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Returns a pool of one thread that is busy until the sender is dropped.
    fn busy() -> (TextPool, mpsc::Sender<()>) {
        let pool = TextPool::with_threads(1).expect("a thread");
        let (release, held) = mpsc::channel::<()>();
        let (begun, begins) = mpsc::channel();
        let job = Box::new(move || {
            begun.send(()).expect("the test waits");
            let _released = held.recv();
        });
        pool.shared.queue().push("busy", job).expect("room");
        pool.shared.wake.notify_one();
        begins.recv().expect("it begins");
        (pool, release)
    }

    #[tokio::test]
    async fn callers_take_turns_and_a_full_share_is_the_callers_own() {
        let (pool, release) = busy();
        let order = Arc::new(Mutex::new(vec![]));
        let note = |who: &'static str| {
            let order = Arc::clone(&order);
            Box::new(move || order.lock().expect("unpoisoned").push(who))
        };
        for _ in 0..WAITING_PER_CALLER_MAX {
            pool.shared.queue().push("greedy", note("greedy")).expect("room");
        }
        let full = pool.run("greedy", || ()).await;
        assert_eq!(full, Err(Refusal::Exhausted("too many texts of this caller are waiting to be processed")));
        pool.shared.queue().push("modest", note("modest")).expect("its own share");
        drop(release);
        assert_eq!(pool.run("modest", || 7).await, Ok(7));
        let place = order.lock().expect("unpoisoned").iter().position(|who| *who == "modest");
        assert!(place.is_some_and(|place| place <= 1), "{place:?}");
    }

    #[tokio::test]
    async fn what_was_given_up_is_not_begun_and_a_panic_ends_no_thread() {
        let (pool, release) = busy();
        let (began, begins) = mpsc::channel::<()>();
        let given_up = pool.run("one", move || began.send(()));
        drop(tokio::time::timeout(std::time::Duration::ZERO, given_up).await);
        drop(release);
        let panicked: Result<(), Refusal> = pool.run("one", || std::panic::resume_unwind(Box::new("in a test"))).await;
        assert_eq!(panicked, Err(Refusal::Unavailable("the text could not be processed")));
        assert_eq!(pool.run("one", || 1).await, Ok(1));
        assert!(begins.try_recv().is_err(), "it was begun");
    }
}
