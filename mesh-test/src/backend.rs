//! An application for the mesh to stand in front of.

mod answer;
mod io;

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, Method, Version};
use http_body_util::combinators::BoxBody;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

pub use self::answer::Echo;
use self::io::Abruptly;
use crate::ports;

/// The request heads that are kept for [`Backend::seen`].
const KEPT_HEADS: usize = 1024;

type Body = BoxBody<Bytes, Infallible>;

/// How a backend fails at every request, whatever its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Failing {
    /// It does not fail.
    #[default]
    Not,
    /// It answers with this status.
    Status(u16),
    /// It closes the connection (HTTP/1.1) or resets the stream (HTTP/2) instead of answering.
    Reset,
    /// It never answers.
    Hang,
}

/// The head of a request that a backend has received.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its method.
    pub method: Method,
    /// Its path with the query.
    pub path: String,
    /// Its HTTP version.
    pub version: Version,
    /// `:authority` or `Host`.
    pub authority: Option<String>,
    /// Its headers.
    pub headers: HeaderMap,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Running,
    Graceful,
    Abrupt,
}

#[derive(Debug)]
struct Shared {
    name: String,
    failing: Mutex<Failing>,
    counts: Mutex<BTreeMap<(Method, String), u64>>,
    heads: Mutex<VecDeque<Seen>>,
    total: AtomicU64,
    accepted: AtomicU64,
    active: AtomicUsize,
    in_flight: AtomicUsize,
    /// Read when a socket is dropped: it then closes with a reset.
    abrupt: Arc<AtomicBool>,
}

/// An HTTP/1.1 and HTTP/2 (prior knowledge) server on a loopback port.
///
/// | path | answer |
/// |---|---|
/// | `/echo` | 200, the request as JSON lines and its body: see [`Echo`] |
/// | `/status/N` | status N |
/// | `/delay/MS` | 200 after MS milliseconds |
/// | `/forge` | 403 with forged `x-mesh-reason: denied` and `x-mesh-detail` |
/// | `/bytes/N` | 200 with N bytes |
/// | `/trailers` | 200 with the trailers `grpc-status: 0` and `x-trailer: NAME` |
/// | `/upgrade` | 101 for an HTTP/1.1 request with `upgrade`; then sends back each byte |
/// | anything else | 200, the body is its name and a line feed |
///
/// Each answer carries `x-served-by: NAME`. Dropping the handle stops it abruptly.
#[derive(Debug)]
pub struct Backend {
    addr: SocketAddr,
    shared: Arc<Shared>,
    stop: watch::Sender<Stop>,
    task: Option<JoinHandle<()>>,
}

impl Backend {
    /// Starts on a free loopback port.
    pub async fn start(name: &str) -> Self {
        Self::bind(name, ports::free_addr()).await
    }

    /// Starts on that address; for one that comes back where it was.
    ///
    /// # Panics
    /// When the address cannot be bound.
    pub async fn bind(name: &str, addr: SocketAddr) -> Self {
        Self::serve(name, addr, None).await
    }

    /// Starts on a free loopback port behind TLS, for example with
    /// [`server_config`](crate::tls::server_config).
    pub async fn start_tls(name: &str, config: Arc<rustls::ServerConfig>) -> Self {
        Self::serve(name, ports::free_addr(), Some(TlsAcceptor::from(config))).await
    }

    async fn serve(name: &str, addr: SocketAddr, tls: Option<TlsAcceptor>) -> Self {
        let listener = ports::listen(addr).await;
        let addr = listener.local_addr().unwrap_or(addr);
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            failing: Mutex::default(),
            counts: Mutex::default(),
            heads: Mutex::default(),
            total: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            active: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            abrupt: Arc::default(),
        });
        let (stop, stopped) = watch::channel(Stop::Running);
        let task = tokio::spawn(accept(listener, Arc::clone(&shared), tls, stopped));
        Self { addr, shared, stop, task: Some(task) }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// From now on every request is answered with `status`.
    pub fn fail_with(&self, status: u16) {
        self.fail(Failing::Status(status));
    }

    /// From now on every request fails in that way.
    pub fn fail(&self, how: Failing) {
        *self.shared.failing.lock().unwrap_or_else(PoisonError::into_inner) = how;
    }

    /// Ends what [`Backend::fail`] began.
    pub fn recover(&self) {
        self.fail(Failing::Not);
    }

    /// Requests received so far.
    pub fn requests(&self) -> u64 {
        self.shared.total.load(Ordering::Relaxed)
    }

    /// Requests received so far for this path (without the query), with any method.
    pub fn count(&self, path: &str) -> u64 {
        let counts = self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().filter(|((_, p), _)| p == path).map(|(_, n)| n).sum()
    }

    /// Requests received so far for this method and path (without the query).
    pub fn count_method(&self, method: &Method, path: &str) -> u64 {
        let counts = self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().filter(|((m, p), _)| m == method && p == path).map(|(_, n)| n).sum()
    }

    /// The heads of the last requests, oldest first.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.heads.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Connections accepted so far.
    pub fn accepted_connections(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Connections open now, upgraded ones included.
    pub fn active_connections(&self) -> usize {
        self.shared.active.load(Ordering::Relaxed)
    }

    /// Requests whose answer has not begun.
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.load(Ordering::Relaxed)
    }

    /// Stops as a crash does: the port is closed and every connection is reset.
    pub async fn stop_abrupt(mut self) {
        self.shared.abrupt.store(true, Ordering::Relaxed);
        self.stop_as(Stop::Abrupt).await;
    }

    /// Stops as a good server does: the port is closed, connections end after the requests in flight.
    /// Upgraded connections end at once.
    pub async fn stop_graceful(mut self) {
        self.stop_as(Stop::Graceful).await;
    }

    async fn stop_as(&mut self, stop: Stop) {
        self.stop.send_replace(stop);
        if let Some(task) = self.task.take() {
            task.await.unwrap_or_else(|e| panic!("backend {}: {e}", self.shared.name));
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if self.task.is_some() {
            self.shared.abrupt.store(true, Ordering::Relaxed);
            self.stop.send_replace(Stop::Abrupt);
        }
    }
}

/// Adds one for as long as it lives.
struct Counted(Arc<Shared>, fn(&Shared) -> &AtomicUsize);

impl Counted {
    fn new(shared: &Arc<Shared>, which: fn(&Shared) -> &AtomicUsize) -> Self {
        which(shared).fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(shared), which)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.1)(&self.0).fetch_sub(1, Ordering::Relaxed);
    }
}

async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    tls: Option<TlsAcceptor>,
    stop: watch::Receiver<Stop>,
) {
    let mut stopped = stop.clone();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = stopped.wait_for(|stop| *stop != Stop::Running) => break,
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let connection = connection(stream, Arc::clone(&shared), tls.clone(), stop.clone());
                connections.spawn(connection);
            }
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(
    stream: TcpStream,
    shared: Arc<Shared>,
    tls: Option<TlsAcceptor>,
    stop: watch::Receiver<Stop>,
) {
    shared.accepted.fetch_add(1, Ordering::Relaxed);
    let _active = Counted::new(&shared, |s| &s.active);
    let _ = stream.set_nodelay(true);
    let stream = Abruptly::new(stream, Arc::clone(&shared.abrupt));
    match tls {
        None => http(stream, shared, stop).await,
        Some(tls) => {
            if let Ok(stream) = tls.accept(stream).await {
                http(stream, shared, stop).await;
            }
        }
    }
}

async fn http<S>(stream: S, shared: Arc<Shared>, mut stop: watch::Receiver<Stop>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let for_upgrades = stop.clone();
    let service =
        service_fn(move |request| answer::answer(Arc::clone(&shared), for_upgrades.clone(), request));
    let server = auto::Builder::new(TokioExecutor::new());
    let mut connection = std::pin::pin!(server.serve_connection_with_upgrades(TokioIo::new(stream), service));
    loop {
        tokio::select! {
            // A connection that fails has failed for the client too; the test looks there.
            _ = connection.as_mut() => return,
            changed = stop.changed() => match *stop.borrow_and_update() {
                Stop::Running if changed.is_ok() => {}
                Stop::Graceful => connection.as_mut().graceful_shutdown(),
                Stop::Running | Stop::Abrupt => return,
            },
        }
        if *stop.borrow() == Stop::Graceful {
            // The sender may be gone by now: wait for the connection alone.
            let _ = connection.as_mut().await;
            return;
        }
    }
}

#[cfg(test)]
mod tests;
