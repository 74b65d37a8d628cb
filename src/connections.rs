//! Bounded connections: how many there may be, how long one may do nothing, and who makes room when there are too many. What a peer that
//! has proven nothing can use up is apart from what known callers have.
//!
//! A connection is *known* once a request on it was identified: see [`Peer::known`](crate::caller::Peer). Connections of unknown peers are few
//! and short-lived, and the oldest of them makes room for a new one. So whoever opens connections without end only closes its own, and
//! file descriptors are left for readiness, reloads and the audit log.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// Descriptors that are no connection's: files, the state store, telemetry, the admin port.
const RESERVED: u64 = 256;
/// The most descriptors that are asked of the operating system.
const DESCRIPTORS_MAX: u64 = 65_536;
/// The most connections, whatever the operating system allows.
const CONNECTIONS_MAX: usize = 16_384;
/// How often a connection is looked at.
const PERIOD: Duration = Duration::from_secs(5);

/// How many connections there may be, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Of all peers.
    pub all: usize,
    /// Of unknown peers.
    pub unknown: usize,
    /// How long a known peer's connection may have no request.
    pub idle: Duration,
    /// How long an unknown peer's connection lives.
    pub unknown_age: Duration,
}

impl Bounds {
    /// The bounds of the port that takes calls: what descriptors allow, and a quarter of it for unknown peers.
    pub fn of_calls() -> Self {
        let all = usize::try_from(descriptors().saturating_sub(RESERVED)).unwrap_or(usize::MAX).clamp(64, CONNECTIONS_MAX);
        Self { all, unknown: (all / 4).min(1024), idle: Duration::from_secs(300), unknown_age: Duration::from_secs(60) }
    }

    /// The bounds of a port beside it, on which no peer becomes known.
    pub fn of_port() -> Self {
        Self { all: 64, unknown: 64, idle: Duration::from_secs(30), unknown_age: Duration::from_secs(30) }
    }
}

/// The descriptors that this process may have. Asks for more where it may.
fn descriptors() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.unwrap_or(DESCRIPTORS_MAX).min(DESCRIPTORS_MAX);
    let current = current.unwrap_or(DESCRIPTORS_MAX);
    if current < wanted && setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }).is_ok() {
        return wanted;
    }
    current
}

/// What is known of a connection while it is open.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// Whether a request on it was identified.
    pub known: Arc<AtomicBool>,
    requests: Arc<AtomicUsize>,
    in_flight: Arc<AtomicUsize>,
}

impl Standing {
    /// Counts a request until the guard is dropped.
    pub fn begin(&self) -> InFlight {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        InFlight(Arc::clone(&self.in_flight))
    }

    /// How many requests are under way.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Whether a request on it was identified.
    pub fn is_known(&self) -> bool {
        self.known.load(Ordering::Acquire)
    }
}

/// A request that is under way.
#[derive(Debug)]
pub struct InFlight(Arc<AtomicUsize>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The connections of a port.
#[derive(Clone, Debug)]
pub struct Connections {
    bounds: Bounds,
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    /// By age.
    entries: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    standing: Standing,
    /// Whose it is, if its peer proved that when it connected.
    owner: Option<String>,
    /// Dropped to close the connection.
    _open: oneshot::Sender<()>,
}

impl Open {
    /// Closes the oldest connection that may be closed; false if there is none.
    fn close_oldest(&mut self, may: impl Fn(&Entry) -> bool) -> bool {
        let oldest = self.entries.iter().find(|(_, entry)| may(entry)).map(|(id, _)| *id);
        oldest.is_some_and(|id| self.entries.remove(&id).is_some())
    }
}

impl Connections {
    /// No connection yet.
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, open: Arc::default() }
    }

    /// Takes a new connection in, of a peer that has proven nothing yet. If there are too many of those, the oldest of them makes room.
    /// `None` if there is no room: then the connection is to be dropped.
    pub fn admit(&self) -> Option<Place> {
        let mut open = self.open();
        let is_unknown = |entry: &Entry| !entry.standing.is_known();
        let unknown = open.entries.values().filter(|entry| is_unknown(entry)).count();
        if unknown >= self.bounds.unknown {
            open.close_oldest(is_unknown);
        }
        if open.entries.len() >= self.bounds.all && !open.close_oldest(is_unknown) && !open.close_oldest(is_idle) {
            return None;
        }
        let standing = Standing::default();
        let (sender, closed) = oneshot::channel();
        let id = open.next;
        open.next += 1;
        open.entries.insert(id, Entry { standing: standing.clone(), owner: None, _open: sender });
        Some(Place { id, standing, closed, connections: self.clone() })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.open().entries.len()
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_idle(entry: &Entry) -> bool {
    entry.standing.in_flight() == 0
}

/// A connection's place among those that there may be; freed when it is dropped.
#[derive(Debug)]
pub struct Place {
    id: u64,
    /// What is known of it.
    pub standing: Standing,
    closed: oneshot::Receiver<()>,
    connections: Connections,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.open().entries.remove(&self.id);
    }
}

impl Place {
    /// The peer proved who it is. One caller may have half of all connections; beyond, its oldest idle one makes room. False if there is
    /// none: then the connection is to be dropped.
    pub fn prove(&self, owner: &str) -> bool {
        let mut open = self.connections.open();
        let is_own = |entry: &Entry| entry.owner.as_deref() == Some(owner);
        let own = open.entries.values().filter(|entry| is_own(entry)).count();
        if own >= self.connections.bounds.all.div_ceil(2) && !open.close_oldest(|entry| is_own(entry) && is_idle(entry)) {
            return false;
        }
        if let Some(entry) = open.entries.get_mut(&self.id) {
            entry.owner = Some(owner.to_owned());
        }
        self.standing.known.store(true, Ordering::Release);
        true
    }

    /// Waits for a handshake, but no longer than until the place is needed by others.
    pub async fn unless_closed<T>(&mut self, handshake: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = handshake => Some(done),
            _closed = &mut self.closed => None,
        }
    }
}

/// A stream that ends when its place is needed by others, when its peer stays unknown too long, or when it has no request for too long.
#[derive(Debug)]
pub struct Bounded<S> {
    stream: S,
    place: Place,
    period: Interval,
    life: Life,
    is_over: bool,
}

/// How long a connection has been open, and without a request.
#[derive(Debug, Default)]
struct Life {
    age: Duration,
    idle: Duration,
    requests: usize,
}

impl Life {
    /// Another [`PERIOD`] has passed; returns whether the connection is over.
    fn passes(&mut self, standing: &Standing, bounds: &Bounds) -> bool {
        let requests = standing.requests.load(Ordering::Relaxed);
        self.age += PERIOD;
        self.idle = if standing.in_flight() > 0 || requests != self.requests { Duration::ZERO } else { self.idle + PERIOD };
        self.requests = requests;
        self.idle > bounds.idle || !standing.is_known() && self.age > bounds.unknown_age
    }
}

impl<S> Bounded<S> {
    /// Bounds a stream.
    pub fn new(stream: S, place: Place) -> Self {
        let mut period = interval(PERIOD);
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { stream, place, period, life: Life::default(), is_over: false }
    }

    /// What is known of the connection.
    pub fn standing(&self) -> &Standing {
        &self.place.standing
    }

    /// Fails when it is over; registers to be woken when it is. Reading and writing both look: a peer that reads nothing keeps a
    /// connection writing.
    fn goes_on(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let Self { place, life, period, is_over, .. } = self;
        *is_over = *is_over || Pin::new(&mut place.closed).poll(context).is_ready();
        while !*is_over && period.poll_tick(context).is_ready() {
            *is_over = life.passes(&place.standing, &place.connections.bounds);
        }
        if *is_over { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.goes_on(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.goes_on(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.goes_on(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.goes_on(context)?;
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn connections(all: usize, unknown: usize) -> Connections {
        let (idle, unknown_age) = (Duration::from_secs(300), Duration::from_secs(60));
        Connections::new(Bounds { all, unknown, idle, unknown_age })
    }

    fn is_closed(place: &mut Place) -> bool {
        !matches!(place.closed.try_recv(), Err(oneshot::error::TryRecvError::Empty))
    }

    #[test]
    fn strangers_make_room_for_each_other_and_for_known_callers() {
        let connections = connections(4, 2);
        let of = |owner: &str| {
            let place = connections.admit().expect("room");
            assert!(place.prove(owner));
            place
        };
        let mut known = of("one");
        let mut strangers: Vec<Place> = (0..5).filter_map(|_| connections.admit()).collect();
        assert_eq!(strangers.iter_mut().map(is_closed).collect::<Vec<_>>(), [true, true, true, false, false]);
        assert!(!is_closed(&mut known));
        // Known callers take the places of the strangers that are left, and then those of idle connections.
        let busy = [of("two"), of("two"), of("three")];
        let requests: Vec<_> = busy.iter().map(|place| place.standing.begin()).collect();
        assert!(strangers.iter_mut().all(is_closed) && !is_closed(&mut known));
        let last = of("four");
        let request = last.standing.begin();
        assert!(is_closed(&mut known) && connections.admit().is_none());
        drop((busy, requests, request, last));
        assert_eq!(connections.count(), 0);
    }

    #[test]
    fn one_caller_has_half_of_all_connections_at_most() {
        let connections = connections(4, 4);
        let own: Vec<Place> = (0..2).filter_map(|_| connections.admit()).collect();
        assert!(own.iter().all(|place| place.prove("one")));
        let _requests: Vec<_> = own.iter().map(|place| place.standing.begin()).collect();
        let third = connections.admit().expect("room");
        assert!(!third.prove("one") && third.prove("two"));
    }

    #[test]
    fn a_connection_ends_when_nobody_is_known_on_it_or_nothing_is_asked() {
        for (known, lives) in [(false, 60), (true, 320)] {
            let place = connections(4, 2).admit().expect("room");
            assert!(!known || place.prove("one"));
            let (standing, bounds) = (&place.standing, place.connections.bounds);
            let mut request = Some(standing.begin());
            let mut life = Life::default();
            let mut seconds = 0;
            while !life.passes(standing, &bounds) {
                seconds += PERIOD.as_secs();
                assert!(seconds < 1000, "it never ends");
                request = request.filter(|_| seconds < 20);
            }
            assert_eq!(seconds, lives, "{known}");
        }
    }

    #[tokio::test]
    async fn a_place_that_others_need_ends_its_stream() {
        let connections = connections(4, 1);
        let (near, _far) = tokio::io::duplex(64);
        let mut stream = Bounded::new(near, connections.admit().expect("room"));
        let reading = tokio::spawn(async move { stream.read_u8().await.map_err(|error| error.kind()) });
        let mut shaking = connections.admit().expect("the first one goes");
        assert_eq!(reading.await.expect("no panic"), Err(io::ErrorKind::TimedOut));
        let shaken = tokio::spawn(async move { shaking.unless_closed(std::future::pending::<()>()).await });
        tokio::task::yield_now().await;
        // One that writes to a peer that reads nothing ends, too, and stays ended.
        let (near, _far) = tokio::io::duplex(4);
        let mut stream = Bounded::new(near, connections.admit().expect("the second one goes"));
        assert_eq!(shaken.await.expect("no panic"), None);
        let writing = tokio::spawn(async move {
            let written = stream.write_all(b"more than it holds").await.map_err(|error| error.kind());
            (written, stream.flush().await.map_err(|error| error.kind()))
        });
        tokio::task::yield_now().await;
        let _next = connections.admit().expect("the third one goes");
        let over = Err(io::ErrorKind::TimedOut);
        assert_eq!(writing.await.expect("no panic"), (over, over));
    }
}
