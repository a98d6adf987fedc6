//! The demo's load: a few keep-alive connections, each with a request every few milliseconds.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::services::VERSION;

const CONNECTIONS: usize = 8;
/// Eight connections with a request every 10 ms are 800 a second: enough to judge a split, and little enough
/// for any machine.
const PACE: Duration = Duration::from_millis(10);
/// Latencies kept per window; a window is half a second.
const MAX_SAMPLES: usize = 100_000;

/// What was seen over some time.
#[derive(Debug, Default)]
pub(super) struct Window {
    v1: u32,
    v2: u32,
    pub(super) failed: u32,
    latencies: Vec<Duration>,
}

/// What failed, all in all.
#[derive(Debug, Default, Clone)]
pub(super) struct Failures {
    pub(super) count: u32,
    pub(super) first: Option<String>,
}

/// A reply in short.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) reason: String,
    pub(super) version: String,
    pub(super) body: String,
}

#[derive(Debug, Default)]
struct Seen {
    window: Window,
    failures: Failures,
}

/// Load that runs until it is stopped.
pub(super) struct Load {
    seen: Arc<Mutex<Seen>>,
    tasks: JoinSet<()>,
    stop: tokio::sync::watch::Sender<bool>,
}

impl Window {
    pub(super) fn requests(&self) -> u32 {
        self.v1 + self.v2 + self.failed
    }

    pub(super) fn share_v1(&self) -> f64 {
        f64::from(self.v1) / f64::from((self.v1 + self.v2).max(1))
    }

    /// The median and the 99th percentile.
    pub(super) fn percentiles(&self) -> (Duration, Duration) {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let at = |share: usize| sorted.get(sorted.len() * share / 100).or(sorted.last()).copied();
        (at(50).unwrap_or_default(), at(99).unwrap_or_default())
    }

    pub(super) fn add(&mut self, other: Self) {
        self.v1 += other.v1;
        self.v2 += other.v2;
        self.failed += other.failed;
    }
}

impl Load {
    pub(super) fn start(proxy: SocketAddr, host: &'static str) -> Self {
        let seen = Arc::<Mutex<Seen>>::default();
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let mut tasks = JoinSet::new();
        for _ in 0..CONNECTIONS {
            let (seen, stopped) = (Arc::clone(&seen), stopped.clone());
            tasks.spawn(async move {
                let mut connection = None;
                let mut pace = tokio::time::interval(PACE);
                pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
                while !*stopped.borrow() {
                    pace.tick().await;
                    let from = Instant::now();
                    let result = send(&mut connection, proxy, host, "GET", "/reviews/1").await;
                    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                    seen.count(result, from.elapsed());
                }
            });
        }
        Self { seen, tasks, stop }
    }

    /// What was seen since the last look.
    pub(super) fn take(&self) -> Window {
        std::mem::take(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner).window)
    }

    /// Ends the load; each connection finishes the request it has begun.
    pub(super) async fn stop(mut self) -> Failures {
        let _ = self.stop.send(true);
        while self.tasks.join_next().await.is_some() {}
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).failures.clone()
    }
}

impl Seen {
    fn count(&mut self, result: anyhow::Result<Reply>, latency: Duration) {
        let error = match result {
            Ok(reply) if reply.status == 200 && reply.version == "v1" => {
                self.window.v1 += 1;
                None
            }
            Ok(reply) if reply.status == 200 && reply.version == "v2" => {
                self.window.v2 += 1;
                None
            }
            Ok(reply) => Some(format!("status {} {} {}", reply.status, reply.reason, reply.body.trim_end())),
            Err(error) => Some(format!("{error:#}")),
        };
        if self.window.latencies.len() < MAX_SAMPLES {
            self.window.latencies.push(latency);
        }
        if let Some(error) = error {
            self.window.failed += 1;
            self.failures.count += 1;
            self.failures.first.get_or_insert(error);
        }
    }
}

/// One request on a connection of its own.
pub(super) async fn once(addr: SocketAddr, host: &str, method: &str, path: &str) -> anyhow::Result<Reply> {
    send(&mut None, addr, host, method, path).await
}

async fn send(
    connection: &mut Option<SendRequest<Empty<Bytes>>>,
    addr: SocketAddr,
    host: &str,
    method: &str,
    path: &str,
) -> anyhow::Result<Reply> {
    let usable = match connection {
        Some(sender) => sender.ready().await.is_ok(),
        None => false,
    };
    if !usable {
        *connection = Some(connect(addr).await?);
    }
    let sender = connection.as_mut().context("no connection")?;
    let request = Request::builder().method(method).uri(path).header("host", host).body(Empty::new())?;
    let answer = async {
        let response = sender.send_request(request).await.context("the proxy broke the connection")?;
        let header = |name: &str| {
            let value = response.headers().get(name).and_then(|v| v.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let (status, reason, version) =
            (response.status().as_u16(), header("x-mesh-reason"), header(VERSION));
        let body = response.into_body().collect().await.context("the answer broke off")?.to_bytes();
        Ok(Reply { status, reason, version, body: String::from_utf8_lossy(&body).into_owned() })
    };
    let answer = answer.await;
    if answer.is_err() {
        *connection = None;
    }
    answer
}

async fn connect(addr: SocketAddr) -> anyhow::Result<SendRequest<Empty<Bytes>>> {
    let stream = TcpStream::connect(addr).await.with_context(|| format!("no connection to {addr}"))?;
    stream.set_nodelay(true)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}
