//! Limits on connections: their number, their idle time, and which one is closed when there are too many.
//! Unauthenticated peers have limits of their own, so that they can't exhaust what authenticated callers
//! need.
//!
//! A connection is *known* once a request on it was authenticated: see [`Peer::known`](crate::caller::Peer).
//! Until then its peer is unauthenticated. Connections of unauthenticated peers are few and short-lived, and
//! a new one closes the oldest of them. So a flood of connections only closes connections of unauthenticated
//! peers, and file descriptors remain for health checks, reloads and the audit log.

pub mod authority;
pub mod batched;
pub mod handshakes;

use std::collections::{BTreeMap, HashSet};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{oneshot, watch};
use tokio::time::{Interval, MissedTickBehavior, interval};

/// File descriptors that are reserved for other uses: files, the state store, telemetry, the admin port.
const RESERVED: u64 = 256;
/// Highest limit of file descriptors that the process requests.
const DESCRIPTORS_MAX: u64 = 65_536;
/// Maximum number of connections, even if the operating system allows more descriptors.
const CONNECTIONS_MAX: usize = 16_384;
/// Interval at which a connection's age and idle time are checked.
const PERIOD: Duration = Duration::from_secs(5);

/// Time without a call after which a stopping server closes a connection.
const FAREWELL: Duration = Duration::from_millis(250);

/// Limits on the connections of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Maximum number of connections of all peers.
    pub all: usize,
    /// Maximum number of connections of unauthenticated peers.
    pub unknown: usize,
    /// Maximum time for which a connection may have no request.
    pub idle: Duration,
    /// Maximum age of an unauthenticated peer's connection.
    pub unknown_age: Duration,
}

impl Bounds {
    /// Returns the limits of the gRPC port: as many connections as the descriptors allow, of which
    /// unauthenticated peers get a quarter, at most 1,024.
    pub fn of_calls() -> Self {
        let all =
            usize::try_from(descriptors().saturating_sub(RESERVED)).unwrap_or(usize::MAX).clamp(64, CONNECTIONS_MAX);
        Self { all, unknown: (all / 4).min(1024), idle: Duration::from_secs(300), unknown_age: Duration::from_secs(60) }
    }

    /// Returns the limits of the other ports, on which no peer becomes known.
    pub fn of_port() -> Self {
        Self { all: 64, unknown: 64, idle: Duration::from_secs(30), unknown_age: Duration::from_secs(30) }
    }
}

/// Returns how many file descriptors this process may have, after raising that limit where allowed.
fn descriptors() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.unwrap_or(DESCRIPTORS_MAX).min(DESCRIPTORS_MAX);
    let current = current.unwrap_or(DESCRIPTORS_MAX);
    if current < wanted && setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }).is_ok() {
        return wanted;
    }
    current
}

/// Live state of an open connection.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// Whether a request on the connection was authenticated.
    pub known: Arc<AtomicBool>,
    requests: Arc<AtomicUsize>,
    in_flight: Arc<AtomicUsize>,
    /// Number of the requests in flight that a stopping server waits for.
    calls: Arc<AtomicUsize>,
    /// Whether the server is closing its connections; `None` without a port.
    closing: Option<watch::Receiver<bool>>,
}

impl Standing {
    /// Counts a request until the guard is dropped.
    pub fn begin(&self) -> InFlight {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        InFlight(Arc::clone(&self.in_flight))
    }

    /// Counts a request that a stopping server waits for, until the guard is dropped. Health watches are not counted,
    /// because they never end by themselves.
    pub fn call(&self) -> InFlight {
        self.calls.fetch_add(1, Ordering::AcqRel);
        InFlight(Arc::clone(&self.calls))
    }

    /// Waits until the server closes its connections.
    pub async fn closes(self) {
        let Some(mut closing) = self.closing else { return std::future::pending().await };
        // The sender is dropped with the port.
        let _closed = closing.wait_for(|is_closing| *is_closing).await;
    }

    /// Returns the number of requests that a stopping server waits for.
    fn calls(&self) -> usize {
        self.calls.load(Ordering::Acquire)
    }

    /// Returns the number of requests in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Returns whether a request on the connection was authenticated.
    pub fn is_known(&self) -> bool {
        self.known.load(Ordering::Acquire)
    }
}

/// Guard that counts a request as in flight.
#[derive(Debug)]
pub struct InFlight(Arc<AtomicUsize>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The open connections of a port.
#[derive(Clone, Debug)]
pub struct Connections {
    bounds: Bounds,
    open: Arc<Mutex<Open>>,
    closing: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    /// Oldest first, because ids are assigned in ascending order.
    entries: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    standing: Standing,
    /// The caller that opened the connection, if its peer proved an identity when it connected.
    owner: Option<String>,
    /// Dropping this sender closes the connection.
    _open: oneshot::Sender<()>,
}

impl Open {
    /// Closes the oldest connection that `may` accepts; returns false if it accepts none.
    fn close_oldest(&mut self, may: impl Fn(&Entry) -> bool) -> bool {
        let oldest = self.entries.iter().find(|(_, entry)| may(entry)).map(|(id, _)| *id);
        oldest.is_some_and(|id| self.entries.remove(&id).is_some())
    }
}

impl Connections {
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, open: Arc::default(), closing: watch::Sender::new(false) }
    }

    /// Registers a new connection, whose peer is unauthenticated. If there are too many of those, the oldest
    /// one is closed. Returns `None` if there is no room; the connection must then be dropped.
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
        let standing = Standing { closing: Some(self.closing.subscribe()), ..Standing::default() };
        let (sender, closed) = oneshot::channel();
        let id = open.next;
        open.next += 1;
        open.entries.insert(id, Entry { standing: standing.clone(), owner: None, _open: sender });
        Some(Place { handle: Handle { id, standing, connections: self.clone() }, closed })
    }

    /// Closes every connection when no call has been under way on it for a moment: the last answer may not be
    /// written yet. HTTP/2 clients have been told that the server goes away, and may close their connections themselves.
    pub async fn drain(&self) {
        self.closing.send_replace(true);
        let mut quiet: HashSet<u64> = HashSet::new();
        while self.count() > 0 {
            tokio::time::sleep(FAREWELL).await;
            let mut open = self.open();
            open.entries.retain(|id, entry| entry.standing.calls() > 0 || !quiet.contains(id));
            quiet = open.entries.iter().filter(|(_, entry)| entry.standing.calls() == 0).map(|(id, _)| *id).collect();
        }
    }

    /// Returns the number of calls under way.
    pub fn calls(&self) -> usize {
        self.open().entries.values().map(|entry| entry.standing.calls()).sum()
    }

    /// Returns the number of open connections.
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

/// A connection's entry in [`Connections`]. Dropping the place frees it.
#[derive(Debug)]
pub struct Place {
    pub handle: Handle,
    closed: oneshot::Receiver<()>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.handle.connections.open().entries.remove(&self.handle.id);
    }
}

/// Handle of an open connection, for the requests on it.
#[derive(Clone, Debug)]
pub struct Handle {
    id: u64,
    /// Live state of the connection.
    pub standing: Standing,
    connections: Connections,
}

impl Handle {
    /// Marks the connection as known, and as opened by this caller. One caller may have half of all
    /// connections; for one more, its oldest idle one is closed. Returns false if none is idle; the
    /// connection must then be dropped.
    pub fn prove(&self, owner: &str) -> bool {
        let mut open = self.connections.open();
        let is_own = |entry: &Entry| entry.owner.as_deref() == Some(owner);
        let own = open.entries.values().filter(|entry| is_own(entry)).count();
        if own >= self.connections.bounds.all.div_ceil(2) && !open.close_oldest(|entry| is_own(entry) && is_idle(entry))
        {
            return false;
        }
        if let Some(entry) = open.entries.get_mut(&self.id) {
            entry.owner = Some(owner.to_owned());
        }
        self.standing.known.store(true, Ordering::Release);
        true
    }
}

impl Place {
    /// Waits for a handshake. Returns `None` if the connection is closed meanwhile to make room for others.
    pub async fn unless_closed<T>(&mut self, handshake: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = handshake => Some(done),
            _closed = &mut self.closed => None,
        }
    }
}

/// Stream that fails when it is closed to make room for others, when its peer stays unauthenticated too long,
/// or when it has no request for too long.
#[derive(Debug)]
pub struct Bounded<S> {
    stream: S,
    place: Place,
    period: Interval,
    life: Life,
    is_over: bool,
}

/// Age of a connection and its time without a request.
#[derive(Debug, Default)]
struct Life {
    age: Duration,
    idle: Duration,
    requests: usize,
}

impl Life {
    /// Adds one [`PERIOD`]; returns whether the connection has reached a limit.
    fn passes(&mut self, standing: &Standing, bounds: &Bounds) -> bool {
        let requests = standing.requests.load(Ordering::Relaxed);
        self.age += PERIOD;
        self.idle =
            if standing.in_flight() > 0 || requests != self.requests { Duration::ZERO } else { self.idle + PERIOD };
        self.requests = requests;
        self.idle > bounds.idle || !standing.is_known() && self.age > bounds.unknown_age
    }
}

impl<S> Bounded<S> {
    /// Wraps a stream to enforce the limits of its place.
    pub fn new(stream: S, place: Place) -> Self {
        let mut period = interval(PERIOD);
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { stream, place, period, life: Life::default(), is_over: false }
    }

    pub fn standing(&self) -> &Standing {
        &self.place.handle.standing
    }

    /// Returns an error once the connection is over, and wakes the task when that happens. Both reads and
    /// writes call this, because a peer that reads nothing keeps a connection busy with writing.
    fn goes_on(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let Self { place, life, period, is_over, .. } = self;
        *is_over = *is_over || Pin::new(&mut place.closed).poll(context).is_ready();
        while !*is_over && period.poll_tick(context).is_ready() {
            *is_over = life.passes(&place.handle.standing, &place.handle.connections.bounds);
        }
        if *is_over { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
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

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
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
            assert!(place.handle.prove(owner));
            place
        };
        let mut known = of("one");
        let mut strangers: Vec<Place> = (0..5).filter_map(|_| connections.admit()).collect();
        assert_eq!(strangers.iter_mut().map(is_closed).collect::<Vec<_>>(), [true, true, true, false, false]);
        assert!(!is_closed(&mut known));
        // Known callers take the places of the remaining unauthenticated peers, then those of idle
        // connections.
        let busy = [of("two"), of("two"), of("three")];
        let requests: Vec<_> = busy.iter().map(|place| place.handle.standing.begin()).collect();
        assert!(strangers.iter_mut().all(is_closed) && !is_closed(&mut known));
        let last = of("four");
        let request = last.handle.standing.begin();
        assert!(is_closed(&mut known) && connections.admit().is_none());
        drop((busy, requests, request, last));
        assert_eq!(connections.count(), 0);
    }

    #[test]
    fn one_caller_has_half_of_all_connections_at_most() {
        let connections = connections(4, 4);
        let own: Vec<Place> = (0..2).filter_map(|_| connections.admit()).collect();
        assert!(own.iter().all(|place| place.handle.prove("one")));
        let _requests: Vec<_> = own.iter().map(|place| place.handle.standing.begin()).collect();
        let third = connections.admit().expect("room");
        assert!(!third.handle.prove("one") && third.handle.prove("two"));
    }

    #[test]
    fn a_connection_ends_when_nobody_is_known_on_it_or_nothing_is_asked() {
        for (known, lives) in [(false, 60), (true, 320)] {
            let place = connections(4, 2).admit().expect("room");
            assert!(!known || place.handle.prove("one"));
            let (standing, bounds) = (&place.handle.standing, place.handle.connections.bounds);
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
        // A connection that writes to a peer that reads nothing ends, too, and stays ended.
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
