//! The connections of one endpoint.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::task::Context;

use futures_util::task::AtomicWaker;
use hyper::client::conn::http2;
use mesh_core::body::Body;
use mesh_core::clock::now;
use mesh_core::cluster::{Endpoint, EndpointState, Permit};
use mesh_core::facts::{PeerIdentity, UpstreamAddr};
use mesh_core::failure::Failure;
use tokio::time::Instant;

use super::carried;
use super::connect::HttpVersion;
use super::h1::Conn;
use super::shared::{Place, Shared, lock};

/// The most idle HTTP/1.1 connections that one shard keeps to one endpoint; more are closed.
pub const MAX_IDLE: usize = 512;
/// The most HTTP/2 connections that one shard opens to one endpoint. Where the streams of all are in use,
/// further requests wait on the least busy one.
pub const MAX_HTTP2_CONNECTIONS: usize = 16;

/// How many streams a peer takes at once before it has said so; hyper assumes the same.
const FIRST_STREAMS: usize = 100;

/// What hangs on an endpoint.
#[derive(Debug)]
pub(super) struct EndpointPool {
    shards: Box<[Shard]>,
    /// The endpoint took HTTP/1.1 when HTTP/2 was offered; forgotten when it takes what is offered.
    only_http1: AtomicBool,
    /// The other way round.
    only_http2: AtomicBool,
    /// The endpoint took HTTP/1.1 as it is when it was offered to carry it. Each new connection offers it again.
    carries_none: AtomicBool,
}

#[derive(Debug, Default)]
pub(super) struct Shard {
    lists: Mutex<Lists>,
    gate: tokio::sync::Mutex<()>,
    carried_gate: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Lists {
    /// Unused ones; the last was used last.
    idle: Vec<Idle>,
    http2: Multiplexed,
    carried: Multiplexed,
}

/// Connections that take several requests at once, and all speak the same.
#[derive(Debug, Default)]
struct Multiplexed {
    conns: Vec<Arc<Http2>>,
    /// When the last one failed, for those who waited for it.
    failed: Option<(Instant, Failure)>,
}

#[derive(Debug)]
struct Idle {
    conn: Conn,
    expires: Option<Instant>,
}

/// Who is at the other end.
#[derive(Debug, Clone, Default)]
pub(super) struct Remote {
    pub(super) address: Option<UpstreamAddr>,
    pub(super) peer: Option<Arc<PeerIdentity>>,
}

/// An HTTP/2 connection, shared; or one that carries HTTP/1.1.
#[derive(Debug)]
pub(super) struct Http2 {
    /// `None` when the connection's task has ended.
    send: Mutex<Option<http2::SendRequest<Body>>>,
    pub(super) remote: Remote,
    pub(super) version: HttpVersion,
    pub(super) started: AtomicU32,
    pub(super) active: AtomicU32,
    pub(super) room: StreamRoom,
    expires: Mutex<Option<Instant>>,
}

/// How many streams a peer takes at once. The connection's task alone can find out, and only when it runs:
/// it is woken once, with the first answer, because the peer's settings came before that.
#[derive(Debug)]
pub(super) struct StreamRoom {
    streams: AtomicUsize,
    spoken: AtomicBool,
    task: AtomicWaker,
}

/// One stream of an HTTP/2 connection, from check-out to the end of the response's body.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) conn: Arc<Http2>,
    home: Home,
    slot: Option<Slot>,
}

/// Room for one carried request, where connections are limited.
#[derive(Debug)]
pub(super) struct Slot {
    permit: Option<Permit>,
    shared: Arc<Shared>,
    place: Place,
}

/// Where a connection goes back to.
#[derive(Debug, Clone)]
pub(super) struct Home {
    pub(super) target: Arc<Endpoint>,
    pub(super) shared: Arc<Shared>,
    pub(super) place: Place,
    pub(super) shard: usize,
    pub(super) idle_timeout: Option<std::time::Duration>,
    /// 0 is no limit.
    pub(super) max_requests: u32,
}

impl EndpointPool {
    /// The pool of `endpoint`, made on first use. `None` when something else hangs there.
    pub(super) fn of<'a>(endpoint: &'a Arc<EndpointState>, shared: &Shared) -> Option<&'a Self> {
        endpoint.attachment(|| {
            shared.remember(endpoint);
            Self {
                shards: (0..shared.shards).map(|_| Shard::default()).collect(),
                only_http1: AtomicBool::new(false),
                only_http2: AtomicBool::new(false),
                carries_none: AtomicBool::new(false),
            }
        })
    }

    pub(super) fn shard(&self, number: usize) -> Option<&Shard> {
        self.shards.get(number.checked_rem(self.shards.len())?)
    }

    /// What to speak where `want` is wished for.
    pub(super) fn version(&self, want: HttpVersion) -> HttpVersion {
        match want {
            HttpVersion::Carried if self.carries_none.load(Ordering::Relaxed) => {
                self.version(HttpVersion::Http1)
            }
            HttpVersion::Http2 if self.only_http1.load(Ordering::Relaxed) => HttpVersion::Http1,
            HttpVersion::Http1 if self.only_http2.load(Ordering::Relaxed) => HttpVersion::Http2,
            _ => want,
        }
    }

    /// Remembers what was agreed on where `want` was offered.
    pub(super) fn agreed(&self, want: HttpVersion, got: HttpVersion) {
        let want = if want == HttpVersion::Carried {
            self.carries_none.store(got != HttpVersion::Carried, Ordering::Relaxed);
            if got == HttpVersion::Carried {
                return;
            }
            HttpVersion::Http1
        } else {
            want
        };
        self.only_http1.store(want != got && got == HttpVersion::Http1, Ordering::Relaxed);
        self.only_http2.store(want != got && got == HttpVersion::Http2, Ordering::Relaxed);
    }

    /// Drops what is closed or has been idle for too long; says how many.
    pub(super) fn sweep(&self, now: Instant) -> usize {
        self.shards.iter().map(|s| s.sweep(now)).sum()
    }

    /// Lets go of every connection; those in use end with their requests.
    pub(super) fn close(&self) {
        for shard in &self.shards {
            let mut lists = lock(&shard.lists);
            lists.idle.clear();
            lists.http2.conns.clear();
            lists.carried.conns.clear();
        }
    }

    /// Lets go of one connection that nobody uses, to make room for another. Says whether there was one.
    pub(super) fn evict(&self) -> bool {
        self.shards.iter().any(|shard| {
            let mut lists = lock(&shard.lists);
            if !lists.idle.is_empty() {
                lists.idle.remove(0);
                return true;
            }
            let lists = &mut *lists;
            [&mut lists.carried, &mut lists.http2].into_iter().any(|list| {
                let unused = list.conns.iter().position(|c| c.active.load(Ordering::Relaxed) == 0);
                unused.map(|at| list.conns.remove(at)).is_some()
            })
        })
    }
}

impl Shard {
    /// The most recently used idle connection that is still one. To be used before anything is waited for.
    pub(super) fn take_http1(&self, now: Instant, cx: &mut Context<'_>) -> Option<Conn> {
        loop {
            let Idle { mut conn, expires } = lock(&self.lists).idle.pop()?;
            if expires.is_none_or(|t| t > now) && conn.poll_is_open(cx) {
                return Some(conn);
            }
        }
    }

    /// Held while a connection is made that takes several requests at once, so that a burst of them shares one.
    pub(super) fn gate(&self, version: HttpVersion) -> &tokio::sync::Mutex<()> {
        if version == HttpVersion::Carried { &self.carried_gate } else { &self.gate }
    }

    /// A connection that speaks `version` and has a stream to spare. Where there are as many as there may be,
    /// or `crowded`, the least busy one when none has.
    pub(super) fn take_stream(
        &self,
        version: HttpVersion,
        now: Instant,
        home: &Home,
        crowded: bool,
    ) -> Option<Stream> {
        let mut lists = lock(&self.lists);
        let list = &mut lists.of(version).conns;
        let crowded = crowded || list.len() >= most(version);
        list.retain(|c| c.is_usable(now, home.max_requests));
        let spare = list.iter().find(|c| c.active() < c.room());
        let conn = match spare {
            Some(conn) => conn,
            None if crowded => list.iter().min_by_key(|c| c.active())?,
            None => return None,
        };
        Some(Stream::start(conn, home))
    }

    pub(super) fn add(&self, conn: Arc<Http2>, home: &Home) -> Stream {
        let stream = Stream::start(&conn, home);
        if !home.shared.is_draining() {
            let mut lists = lock(&self.lists);
            let list = &mut lists.of(conn.version).conns;
            // Until it says otherwise, it takes as many streams as the one before.
            if let Some(known) = list.last() {
                conn.room.guess(known.room.get());
            }
            list.push(conn);
        }
        stream
    }

    pub(super) fn remove(&self, conn: &Arc<Http2>) {
        lock(&self.lists).of(conn.version).conns.retain(|c| !Arc::ptr_eq(c, conn));
    }

    pub(super) fn fail(&self, version: HttpVersion, now: Instant, failure: Failure) {
        lock(&self.lists).of(version).failed = Some((now, failure));
    }

    /// Why the connection failed that somebody else made while one waited since `since`.
    pub(super) fn failed_since(&self, version: HttpVersion, since: Instant) -> Option<Failure> {
        let mut lists = lock(&self.lists);
        let failed = lists.of(version).failed.as_ref();
        failed.filter(|(at, _)| *at >= since).map(|(_, failure)| failure.clone())
    }

    fn sweep(&self, now: Instant) -> usize {
        let mut lists = lock(&self.lists);
        let before = lists.len();
        lists.idle.retain_mut(|i| i.expires.is_none_or(|t| t > now) && i.conn.is_open());
        lists.http2.conns.retain(|c| c.is_usable(now, 0));
        lists.carried.conns.retain(|c| c.is_usable(now, 0));
        before - lists.len()
    }
}

impl Lists {
    fn of(&mut self, version: HttpVersion) -> &mut Multiplexed {
        if version == HttpVersion::Carried { &mut self.carried } else { &mut self.http2 }
    }

    fn len(&self) -> usize {
        self.idle.len() + self.http2.conns.len() + self.carried.conns.len()
    }
}

/// How many connections one shard has to one endpoint that take several requests at once.
fn most(version: HttpVersion) -> usize {
    if version == HttpVersion::Carried { carried::MAX_CONNECTIONS } else { MAX_HTTP2_CONNECTIONS }
}

impl Http2 {
    pub(super) fn new(send: http2::SendRequest<Body>, remote: Remote, version: HttpVersion) -> Self {
        Self {
            send: Mutex::new(Some(send)),
            remote,
            version,
            started: AtomicU32::new(0),
            active: AtomicU32::new(0),
            room: StreamRoom::default(),
            expires: Mutex::new(None),
        }
    }

    /// A handle to send one request with; `None` when the connection has ended. To be dropped before the
    /// answer is waited for: see [`end`](Self::end).
    pub(super) fn handle(&self) -> Option<http2::SendRequest<Body>> {
        lock(&self.send).clone()
    }

    /// The connection's task has ended. A request that was queued at that very moment comes back only when
    /// the last handle is gone (a tokio channel gives back what was pushed while its receiver went away
    /// only when it has no sender left), so the pool must not keep one.
    pub(super) fn end(&self) {
        let last = lock(&self.send).take();
        drop(last);
    }

    fn is_closed(&self) -> bool {
        lock(&self.send).as_ref().is_none_or(http2::SendRequest::is_closed)
    }

    fn room(&self) -> usize {
        let room = self.room.get();
        if self.version == HttpVersion::Carried { room.min(carried::MAX_STREAMS as usize) } else { room }
    }

    fn active(&self) -> usize {
        usize::try_from(self.active.load(Ordering::Relaxed)).unwrap_or(usize::MAX)
    }

    fn is_usable(&self, now: Instant, max_requests: u32) -> bool {
        let used_up = max_requests > 0 && self.started.load(Ordering::Relaxed) >= max_requests;
        let expired = self.active() == 0 && lock(&self.expires).is_some_and(|t| t <= now);
        !(used_up || expired || self.is_closed())
    }
}

impl Default for StreamRoom {
    fn default() -> Self {
        Self {
            streams: AtomicUsize::new(FIRST_STREAMS),
            spoken: AtomicBool::new(false),
            task: AtomicWaker::new(),
        }
    }
}

impl StreamRoom {
    fn get(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    /// What to go by until the peer has spoken.
    fn guess(&self, streams: usize) {
        if !self.spoken.load(Ordering::Acquire) {
            self.streams.store(streams, Ordering::Relaxed);
        }
    }

    /// For the connection's task: what is in force now.
    pub(super) fn tell(&self, streams: usize) {
        if self.spoken.load(Ordering::Acquire) {
            self.streams.store(streams, Ordering::Relaxed);
        }
    }

    /// For the connection's task: it wants to be woken.
    pub(super) fn listen(&self, cx: &Context<'_>) {
        if !self.spoken.load(Ordering::Acquire) {
            self.task.register(cx.waker());
        }
    }

    pub(super) fn peer_has_spoken(&self) {
        if !self.spoken.load(Ordering::Relaxed) && !self.spoken.swap(true, Ordering::AcqRel) {
            self.task.wake();
        }
    }
}

impl Stream {
    fn start(conn: &Arc<Http2>, home: &Home) -> Self {
        conn.active.fetch_add(1, Ordering::Relaxed);
        conn.started.fetch_add(1, Ordering::Relaxed);
        Self { conn: Arc::clone(conn), home: home.clone(), slot: None }
    }

    /// Holds `slot`, too, until it ends.
    pub(super) fn with_slot(self, slot: Option<Slot>) -> Self {
        let mut this = self;
        this.slot = slot;
        this
    }

    pub(super) fn home(&self) -> &Home {
        &self.home
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.conn.active.fetch_sub(1, Ordering::Relaxed) == 1 {
            *lock(&self.conn.expires) = self.home.idle_timeout.and_then(|idle| now().checked_add(idle));
            // Unused now: it may make room for another.
            self.home.shared.wake_one(self.home.place);
        }
    }
}

impl Slot {
    pub(super) fn new(permit: Permit, home: &Home) -> Self {
        Self { permit: Some(permit), shared: Arc::clone(&home.shared), place: home.place }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // Before the wake, so that whoever wakes finds the room.
        self.permit = None;
        self.shared.wake_one(self.place);
    }
}

impl Home {
    pub(super) fn find(&self) -> Option<&Shard> {
        EndpointPool::of(self.target.state(), &self.shared)?.shard(self.shard)
    }

    /// Takes an HTTP/1.1 connection back whose response has ended.
    pub(super) fn take_back(&self, conn: Conn) {
        let used_up = self.max_requests > 0 && conn.served >= self.max_requests;
        if used_up || self.shared.is_draining() {
            return;
        }
        let expires = self.idle_timeout.and_then(|idle| now().checked_add(idle));
        if let Some(shard) = self.find() {
            let mut lists = lock(&shard.lists);
            if lists.idle.len() < MAX_IDLE {
                // Many an endpoint has one connection; a vector begins with room for four.
                if lists.idle.capacity() == 0 {
                    lists.idle.reserve_exact(1);
                }
                lists.idle.push(Idle { conn, expires });
            }
        }
        self.shared.wake_one(self.place);
    }
}
