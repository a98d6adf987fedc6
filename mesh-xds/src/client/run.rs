//! Connects, again and again, and takes what it is sent.

use std::error::Error;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use futures_util::stream;
use http::Uri;
use hyper::rt::{Read, Write};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};
use tonic::Status;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codegen::{Body as HttpBody, StdError};
use tonic::transport::{Channel, Endpoint};
use tower_service::Service;

use super::counters::add;
use super::state::News;
use super::{Change, Client, ClientLimits, Now, Refusal, Sink};
use crate::proto::discovery::DeltaDiscoveryResponse;
use crate::proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use crate::{Payload, ResourceType};

/// Any error of a connection.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Connects through `connector`, which makes the secured connection; over it goes HTTP/2 with keep-alive.
///
/// # Errors
/// When there is no connection.
pub async fn connect<C>(server: Uri, connector: C, limits: &ClientLimits) -> Result<Channel, BoxError>
where
    C: Service<Uri> + Send + 'static,
    C::Response: Read + Write + Send + Unpin,
    C::Future: Send,
    C::Error: Send,
    BoxError: From<C::Error>,
{
    let endpoint = Endpoint::from(server)
        .connect_timeout(limits.connect)
        .http2_keep_alive_interval(limits.keep_alive)
        .keep_alive_timeout(limits.keep_alive_timeout)
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_with_connector(connector).await?)
}

impl Client {
    /// Connects by `connect`, again whenever the stream ends, and hands what it is sent to `sink`. Never
    /// returns; drop it to end.
    pub async fn run<C, F, T, S>(&self, connect: C, sink: S)
    where
        C: FnMut() -> F,
        F: Future<Output = Result<T, BoxError>>,
        T: GrpcService<Body>,
        T::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
        <T::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
        S: Sink,
    {
        self.run_with(connect, sink, fastrand::f64).await;
    }

    /// As [`run`](Self::run), with the random draws (0 to 1) for the waits between connections.
    pub async fn run_with<C, F, T, S>(&self, mut connect: C, mut sink: S, mut draw: impl FnMut() -> f64)
    where
        C: FnMut() -> F,
        F: Future<Output = Result<T, BoxError>>,
        T: GrpcService<Body>,
        T::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
        <T::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
        S: Sink,
    {
        let limits = &self.shared.limits;
        let mut failures = 0_u32;
        loop {
            let channel = timeout(limits.connect, connect()).await;
            let channel = channel.unwrap_or_else(|_| Err("no connection in time".into()));
            let mut useful = false;
            let ended = match channel {
                Ok(channel) => self.stream(channel, &mut sink, &mut useful).await.to_string(),
                Err(error) => {
                    add(&self.shared.counters.connect_failures, 1);
                    chain(&*error)
                }
            };
            self.shared.connected.send_if_modified(|connected| std::mem::replace(connected, false));
            self.set_ended(Some(ended.as_str().into()));
            // A server that answers and then ends the stream is not one that fails, but it is one that others
            // lose at the same moment.
            failures = if useful { 1 } else { failures.saturating_add(1) };
            let wait = limits.backoff.after(failures, draw());
            tracing::info!(reason = %ended, ?wait, failures, "the stream to the control plane has ended; what is held stays in force");
            sleep(wait).await;
        }
    }

    /// One stream, until it ends. `useful` is set when the server answered anything, or kept it for longer than is ever
    /// waited for the next.
    async fn stream<T>(&self, channel: T, sink: &mut impl Sink, useful: &mut bool) -> Status
    where
        T: GrpcService<Body>,
        T::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
        <T::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
    {
        let shared = &*self.shared;
        let most = shared.limits.response_bytes;
        self.state().connected();
        // A request is made when there is room for it: what is to be said meanwhile is said together.
        let (requests, mut rest) = mpsc::channel(1);
        let outgoing = stream::poll_fn(move |cx| rest.poll_recv(cx));
        let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(most);
        let opening = timeout(shared.limits.connect, client.delta_aggregated_resources(outgoing));
        let mut opening = pin!(opening);
        let opened = loop {
            // Some servers answer only when they have been asked something.
            tokio::select! {
                opened = opening.as_mut() => break opened,
                Ok(permit) = requests.reserve(), if self.has_request() => self.say(permit),
                () = shared.wake.notified() => {}
            }
        };
        let mut responses = match opened {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => {
                add(&shared.counters.connect_failures, 1);
                return status;
            }
            Err(_) => {
                add(&shared.counters.connect_failures, 1);
                return Status::deadline_exceeded("no stream in time");
            }
        };
        add(&shared.counters.connected, 1);
        shared.connected.send_replace(true);
        self.set_ended(None);
        let opened = Instant::now();
        let mut sweep = interval_at(opened + shared.limits.sweep, shared.limits.sweep);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                response = responses.message() => match response {
                    Ok(Some(response)) => {
                        *useful = true;
                        if let Err(status) = self.take(response, sink) {
                            return status;
                        }
                    }
                    Ok(None) => return Status::unavailable("the server ended the stream"),
                    Err(status) => return status,
                },
                permit = requests.reserve(), if self.has_request() => match permit {
                    Ok(permit) => self.say(permit),
                    Err(_) => return Status::unavailable("the connection is gone"),
                },
                () = shared.wake.notified() => {}
                // Never while there is no stream: what is let go of then could not be had again.
                _ = sweep.tick() => self.sweep(sink),
            }
            // Who has all that it wants is not answered, however good the server is.
            *useful |= opened.elapsed() >= shared.limits.backoff.longest;
        }
    }

    fn set_ended(&self, why: Option<Arc<str>>) {
        *self.shared.ended.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    fn has_request(&self) -> bool {
        self.state().has_request()
    }

    fn say(&self, permit: mpsc::Permit<'_, crate::proto::discovery::DeltaDiscoveryRequest>) {
        if let Some(request) = self.state().request() {
            permit.send(request);
        }
    }

    fn take(&self, response: DeltaDiscoveryResponse, sink: &mut impl Sink) -> Result<(), Status> {
        let counters = &self.shared.counters;
        add(&counters.responses, 1);
        add(&counters.resources, response.resources.len());
        add(&counters.removals, response.removed_resources.len());
        let Some(kind) = ResourceType::of_url(&response.type_url) else {
            return Err(Status::invalid_argument("the server sends a type that was not asked for"));
        };
        let Sorted { news, changes, mut refused } =
            self.read(kind, response.resources, response.removed_resources);
        if !changes.is_empty() {
            refused.extend(sink.apply(&changes));
        }
        if !refused.is_empty() {
            add(&counters.nacks, 1);
            for Refusal { name, reason } in &refused {
                tracing::warn!(%kind, %name, %reason, "what the control plane sent is refused; the last good one stays");
            }
        }
        self.state().commit(kind, response.nonce, news, &refused, Instant::now());
        self.shared.changes.send_modify(|n| *n = n.wrapping_add(1));
        Ok(())
    }

    /// Sorts a response into what is wanted and can be read.
    fn read(
        &self,
        kind: ResourceType,
        resources: Vec<crate::proto::discovery::Resource>,
        removed: Vec<String>,
    ) -> Sorted {
        let mut read = Sorted::default();
        for resource in resources {
            // Unsubscribed from while it was on its way, or never asked for.
            if !self.state().is_wanted(kind, &resource.name) {
                continue;
            }
            let name: Arc<str> = resource.name.into();
            let body = resource.resource.filter(|any| any.type_url == kind.url()).map(|any| any.value);
            let Some(body) = body else {
                let reason = format!("the content is no {kind}");
                read.refused.push(Refusal { name: Arc::clone(&name), reason });
                read.news.push((name, News::Absent));
                continue;
            };
            match Payload::decode(kind, &body) {
                Ok(content) => {
                    let now = Now::Content(Box::new(content));
                    read.changes.push(Change { kind, name: Arc::clone(&name), now });
                }
                Err(error) => {
                    read.refused.push(Refusal { name: Arc::clone(&name), reason: error.to_string() });
                }
            }
            // A copy: else each resource would keep the whole response in memory.
            let body = Bytes::copy_from_slice(&body);
            read.news.push((name, News::Content { version: resource.version.into(), body }));
        }
        for name in removed {
            if self.state().is_wanted(kind, &name) {
                let name: Arc<str> = name.into();
                read.changes.push(Change { kind, name: Arc::clone(&name), now: Now::Absent });
                read.news.push((name, News::Absent));
            }
        }
        read
    }

    fn sweep(&self, sink: &mut impl Sink) {
        let dropped = self.state().sweep(Instant::now());
        if dropped.is_empty() {
            return;
        }
        add(&self.shared.counters.forgotten, dropped.len());
        let forgotten = |(kind, name)| Change { kind, name, now: Now::Forgotten };
        let changes: Vec<Change> = dropped.into_iter().map(forgotten).collect();
        for of_one_kind in changes.chunk_by(|a, b| a.kind == b.kind) {
            sink.apply(of_one_kind);
        }
        self.shared.changes.send_modify(|n| *n = n.wrapping_add(1));
    }
}

/// What a response holds: what is to be kept, what the sink is asked, what cannot be read.
#[derive(Default)]
struct Sorted {
    news: Vec<(Arc<str>, News)>,
    changes: Vec<Change>,
    refused: Vec<Refusal>,
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&error.to_string());
        next = error.source();
    }
    text
}
