//! The gRPC service around the sessions.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::stream;
use http::header::CONTENT_TYPE;
use http::{Request, Response};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tonic::Status;
use tonic::body::Body;
use tonic::metadata::GRPC_CONTENT_TYPE;
use tonic::server::NamedService;
use tower_service::Service;

use super::counters::add;
use super::grpc::{Pieces, Replies, Requests, pieces};
use super::index::Entries;
use super::session::Names;
use super::{Notifier, Peer, ProxyStatus, Received, ServerCounters, ServerLimits, Session, Source};
use crate::proto::discovery::aggregated_discovery_service_server::SERVICE_NAME;
use crate::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

/// The path of the one method.
const DELTA: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// Serves discovery from a [`Source`]. Cheap to clone; clones are one server.
///
/// A stream is driven by whoever reads its responses, without a task or a queue of its own: a response is
/// made when the connection has room for it.
pub struct Discovery<S> {
    shared: Arc<Shared<S>>,
}

struct Shared<S> {
    source: S,
    limits: ServerLimits,
    notifier: Notifier,
    streams: Mutex<HashMap<u64, Arc<Proxy>>>,
    next: AtomicU64,
    counters: Arc<ServerCounters>,
    closing: watch::Sender<bool>,
}

/// A stream as others see it.
#[derive(Debug)]
struct Proxy {
    peer: Peer,
    opened: Instant,
    session: Mutex<Session>,
}

/// A stream as its driver sees it.
struct Open<S> {
    shared: Arc<Shared<S>>,
    id: u64,
    proxy: Arc<Proxy>,
    entries: Entries,
    requests: Requests,
    /// What is left of the last response.
    pieces: Pieces,
    closing: watch::Receiver<bool>,
    until: Instant,
    ended: bool,
}

/// The gRPC service of a [`Discovery`]; made by [`Discovery::into_service`]. Always ready.
#[derive(Debug)]
pub struct DiscoveryService<S>(Discovery<S>);

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl<S: Source> Discovery<S> {
    /// A server that answers from `source`.
    pub fn new(source: S, limits: ServerLimits) -> Self {
        let shared = Shared {
            source,
            limits,
            notifier: Notifier::default(),
            streams: Mutex::default(),
            next: AtomicU64::new(0),
            counters: Arc::default(),
            closing: watch::Sender::new(false),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Where changes are told.
    pub fn notifier(&self) -> Notifier {
        self.shared.notifier.clone()
    }

    /// What it counts.
    pub fn counters(&self) -> Arc<ServerCounters> {
        Arc::clone(&self.shared.counters)
    }

    /// What it answers from.
    pub fn source(&self) -> &S {
        &self.shared.source
    }

    /// Every open stream as it is now, the oldest first.
    pub fn proxies(&self) -> Vec<ProxyStatus> {
        let proxies: Vec<_> = lock(&self.shared.streams).values().map(Arc::clone).collect();
        let mut proxies: Vec<_> = proxies.iter().map(|proxy| proxy.status()).collect();
        proxies.sort_by(|a, b| (a.opened, &a.identity).cmp(&(b.opened, &b.identity)));
        proxies
    }

    /// Ends every stream, and refuses new ones: proxies go to another replica.
    pub fn close(&self) {
        self.shared.closing.send_replace(true);
    }

    /// As a gRPC service, with its limit on requests.
    pub fn into_service(self) -> DiscoveryService<S> {
        DiscoveryService(self)
    }

    fn open(&self, peer: Peer, requests: Body, draw: f64) -> Result<Open<S>, Status> {
        let shared = &self.shared;
        if *shared.closing.borrow() {
            return Err(Status::unavailable("the server is ending; another replica answers"));
        }
        let id = shared.next.fetch_add(1, Ordering::Relaxed);
        let opened = Instant::now();
        let session = Mutex::new(Session::new(shared.limits.clone()));
        let proxy = Arc::new(Proxy { peer, opened, session });
        {
            let mut streams = lock(&shared.streams);
            if streams.len() >= shared.limits.streams {
                add(&shared.counters.refused_streams, 1);
                let message = format!("{} streams are open already", streams.len());
                return Err(Status::resource_exhausted(message));
            }
            streams.insert(id, Arc::clone(&proxy));
        }
        add(&shared.counters.streams, 1);
        add(&shared.counters.opened, 1);
        let age = shared.limits.stream_age;
        Ok(Open {
            shared: Arc::clone(shared),
            id,
            proxy,
            entries: Entries::new(id, shared.notifier.clone()),
            requests: Requests::new(requests, shared.limits.request_bytes),
            pieces: Pieces::default(),
            closing: shared.closing.subscribe(),
            until: opened + age + age.mul_f64(draw.clamp(0.0, 1.0) / 10.0),
            ended: false,
        })
    }
}

impl<S: Source> DiscoveryService<S> {
    fn answer(&self, request: Request<Body>) -> Result<Response<Body>, Status> {
        if request.uri().path() != DELTA {
            return Err(Status::unimplemented("there is DeltaAggregatedResources alone"));
        }
        let discovery = &self.0;
        let (parts, requests) = request.into_parts();
        let Some(peer) = parts.extensions.get::<Peer>() else {
            add(&discovery.shared.counters.unauthenticated, 1);
            return Err(Status::unauthenticated("the connection proves no identity"));
        };
        let open = discovery.open(peer.clone(), requests, fastrand::f64())?;
        tracing::debug!(peer = %open.proxy.peer.identity, "a proxy's stream is open");
        let replies = stream::unfold(open, |mut open| async move {
            let piece = open.piece().await?;
            Some((piece, open))
        });
        let mut response = Response::new(Body::new(Replies::new(replies)));
        response.headers_mut().insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);
        Ok(response)
    }
}

impl<S: Source> Service<Request<Body>> for DiscoveryService<S> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        let response = self.answer(request).unwrap_or_else(Status::into_http);
        Box::pin(std::future::ready(Ok(response)))
    }
}

impl<S> NamedService for DiscoveryService<S> {
    const NAME: &'static str = SERVICE_NAME;
}

impl<S: Source> Open<S> {
    /// The next bytes to send; `None` when the stream is over.
    async fn piece(&mut self) -> Option<Result<Bytes, Status>> {
        loop {
            if let Some(piece) = self.pieces.next() {
                return Some(Ok(piece));
            }
            match self.next().await? {
                Ok(response) => self.pieces = pieces(response),
                Err(status) => return Some(Err(status)),
            }
        }
    }

    /// The next response; `None` when the stream is over.
    async fn next(&mut self) -> Option<Result<DeltaDiscoveryResponse, Status>> {
        while !self.ended {
            if let Some(response) = self.respond() {
                return Some(Ok(response));
            }
            tokio::select! {
                request = self.requests.next() => match request {
                    Ok(Some(request)) => {
                        if let Err(status) = self.receive(request) {
                            self.ended = true;
                            return Some(Err(status));
                        }
                    }
                    // The proxy says that it will ask nothing more.
                    Ok(None) => self.ended = true,
                    // It is gone, or what it says is too large or no message: then it is told so.
                    Err(status) => {
                        self.ended = true;
                        return Some(Err(status));
                    }
                },
                () = self.entries.mailbox.news() => {
                    let news = self.entries.mailbox.take();
                    let mut session = lock(&self.proxy.session);
                    news.all.into_iter().for_each(|kind| session.all_changed(kind));
                    news.names.iter().for_each(|(kind, name)| session.changed(*kind, name));
                }
                () = closed(&mut self.closing) => {
                    self.ended = true;
                    return Some(Err(Status::unavailable("the server is ending; another replica answers")));
                }
                () = sleep_until(self.until) => {
                    self.ended = true;
                    return Some(Err(Status::unavailable("the stream has reached its age; open another")));
                }
            }
        }
        None
    }

    fn respond(&self) -> Option<DeltaDiscoveryResponse> {
        let (peer, source) = (&self.proxy.peer, &self.shared.source);
        let answers = |kind, name: &str| source.answer(peer, kind, name);
        let response = lock(&self.proxy.session).respond(&answers, Instant::now())?;
        let counters = &self.shared.counters;
        add(&counters.responses, 1);
        add(&counters.resources, response.resources.len());
        add(&counters.removals, response.removed_resources.len());
        let content = response.resources.iter().filter_map(|resource| resource.resource.as_ref());
        add(&counters.bytes, content.map(|content| content.value.len()).sum());
        Some(response)
    }

    fn receive(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        let counters = &self.shared.counters;
        add(&counters.requests, 1);
        let identity = &self.proxy.peer.identity;
        let received = lock(&self.proxy.session).receive(request, &mut self.entries, Instant::now());
        match received {
            Ok(Received::Subscriptions) => {}
            Ok(Received::Ack) => add(&counters.acks, 1),
            Ok(Received::Stale) => add(&counters.stale, 1),
            Ok(Received::Nack(reason)) => {
                add(&counters.nacks, 1);
                tracing::warn!(peer = %identity, ?reason, "a proxy refused its configuration and keeps the last good one");
            }
            Err(violation) => {
                add(&counters.violations, 1);
                tracing::warn!(peer = %identity, %violation, "a proxy's stream is closed");
                return Err(Status::invalid_argument(violation.to_string()));
            }
        }
        Ok(())
    }
}

impl<S> Drop for Open<S> {
    fn drop(&mut self) {
        let subscriptions: Vec<_> = {
            let session = lock(&self.proxy.session);
            session.subscriptions().map(|(kind, name)| (kind, Arc::clone(name))).collect()
        };
        for (kind, name) in subscriptions {
            self.entries.unsubscribed(kind, &name);
        }
        lock(&self.shared.streams).remove(&self.id);
        self.shared.counters.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Proxy {
    fn status(&self) -> ProxyStatus {
        let session = lock(&self.session);
        ProxyStatus {
            identity: self.peer.identity.clone(),
            workload: self.peer.workload.clone(),
            node: session.node().map(str::to_owned),
            opened: self.opened,
            types: session.status(),
        }
    }
}

async fn closed(closing: &mut watch::Receiver<bool>) {
    if closing.wait_for(|closing| *closing).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S> Clone for Discovery<S> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<S> Clone for DiscoveryService<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S> fmt::Debug for Discovery<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Discovery").field("limits", &self.shared.limits).finish_non_exhaustive()
    }
}
