//! The client in the pod: it resolves names and connects as any program does.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, Uri};
use mesh_test::client::{Call, Conn, Protocol, Reply};
use mesh_test::load::{LoadGen, Report};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

/// The longest text of a peer's that is told on.
const MAX_TEXT: usize = 64 * 1024;

/// How long a TCP peer has for its answer.
const TCP_PATIENCE: Duration = Duration::from_secs(10);

/// What to call, and how.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Order {
    /// `http://HOST[:PORT]/PATH`.
    pub(crate) url: String,
    #[serde(default)]
    method: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    body: String,
    /// HTTP/2 with prior knowledge.
    #[serde(default)]
    http2: bool,
    /// For a load: how many connections.
    #[serde(default)]
    connections: Option<usize>,
    /// For a load: the pause of each connection between two calls.
    #[serde(default)]
    pause_ms: u64,
    /// For a load: a new connection for each call.
    #[serde(default)]
    fresh: bool,
}

/// What came of a call.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Outcome {
    status: Option<u16>,
    version: Option<String>,
    served_by: Option<String>,
    reason: Option<String>,
    headers: BTreeMap<String, String>,
    body: String,
    error: Option<String>,
    millis: f64,
}

impl Outcome {
    /// Answered with 2xx.
    pub(crate) fn is_good(&self) -> bool {
        self.status.is_some_and(|status| (200..300).contains(&status))
    }
}

impl Order {
    /// A plain GET.
    pub(crate) fn get(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            method: None,
            headers: BTreeMap::new(),
            body: String::new(),
            http2: false,
            connections: None,
            pause_ms: 0,
            fresh: false,
        }
    }

    fn protocol(&self) -> Protocol {
        if self.http2 { Protocol::H2 } else { Protocol::H1 }
    }

    /// Where it goes, and what is sent.
    async fn resolve(&self) -> Result<(SocketAddr, Call), String> {
        let uri: Uri = self.url.parse().map_err(|e| format!("url {:?}: {e}", self.url))?;
        let (Some("http"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(format!("url {:?}: http://HOST[:PORT]/PATH is needed", self.url));
        };
        let method: Method = match &self.method {
            None => Method::GET,
            Some(method) => method.parse().map_err(|e| format!("method {method:?}: {e}"))?,
        };
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let mut call = Call::new(method, authority.as_str(), path).body(self.body.clone());
        for (name, value) in &self.headers {
            // What a test double takes for granted is checked here, where a test's typing error can be answered.
            name.parse::<HeaderName>().map_err(|e| format!("header {name:?}: {e}"))?;
            value.parse::<HeaderValue>().map_err(|e| format!("header {name:?}: {e}"))?;
            call = call.header(name, value);
        }
        let addr = lookup(authority.host(), authority.port_u16().unwrap_or(80)).await?;
        Ok((addr, call))
    }
}

async fn lookup(host: &str, port: u16) -> Result<SocketAddr, String> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let mut found = tokio::net::lookup_host((host, port)).await.map_err(|e| format!("name {host}: {e}"))?;
    found.next().ok_or_else(|| format!("name {host}: no address"))
}

/// One call on a connection of its own.
pub(crate) async fn call(order: &Order) -> Outcome {
    let begun = Instant::now();
    let reply = async {
        let (addr, call) = order.resolve().await?;
        let mut conn = Conn::open(addr, order.protocol()).await.map_err(|e| e.to_string())?;
        conn.send(&call).await.map_err(|e| e.to_string())
    };
    let mut outcome = match reply.await {
        Ok(reply) => told(&reply),
        Err(error) => Outcome { error: Some(error), ..Outcome::default() },
    };
    outcome.millis = begun.elapsed().as_secs_f64() * 1e3;
    outcome
}

fn told(reply: &Reply) -> Outcome {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    Outcome {
        status: Some(reply.status),
        version: Some(format!("{:?}", reply.version)),
        served_by: reply.served_by().map(ToOwned::to_owned),
        reason: reply.reason().map(ToOwned::to_owned),
        headers: reply.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
        body: reply.text().chars().take(MAX_TEXT).collect(),
        error: None,
        millis: 0.0,
    }
}

/// What a load is made of.
pub(crate) async fn load(order: &Order) -> Result<LoadGen, String> {
    let (addr, call) = order.resolve().await?;
    let load = LoadGen::to(addr)
        .call(call)
        .connections(order.connections.unwrap_or(4))
        .protocol(order.protocol())
        .pause(Duration::from_millis(order.pause_ms))
        .repeat_on_reused();
    Ok(if order.fresh { load.fresh_connections() } else { load })
}

/// The report of a load as the control port gives it.
pub(crate) fn report(report: &Report) -> serde_json::Value {
    serde_json::json!({
        "total": report.total,
        "failed": report.failed,
        "reconnects": report.reconnects,
        "by_backend": report.by_backend,
        "by_status": report.by_status.iter().map(|(k, v)| (k.to_string(), *v)).collect::<BTreeMap<_, _>>(),
        "errors": report.errors,
        "p50_ms": report.p50.as_secs_f64() * 1e3,
        "p99_ms": report.p99.as_secs_f64() * 1e3,
    })
}

/// A TCP connection: reads a greeting, if one is awaited, then sends, then reads as many bytes as were sent.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TcpOrder {
    host: String,
    port: u16,
    /// The server speaks first, up to a line feed.
    #[serde(default)]
    greeting: bool,
    #[serde(default)]
    send: String,
}

/// What came of it.
#[derive(Debug, Default, Serialize)]
pub(crate) struct TcpOutcome {
    greeting: String,
    greeting_millis: f64,
    answer: String,
    error: Option<String>,
}

/// Does it.
pub(crate) async fn tcp(order: &TcpOrder) -> TcpOutcome {
    let mut outcome = TcpOutcome::default();
    match tokio::time::timeout(TCP_PATIENCE, exchange(order, &mut outcome)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => outcome.error = Some(error),
        Err(_) => outcome.error = Some(format!("not done within {TCP_PATIENCE:?}")),
    }
    outcome
}

async fn exchange(order: &TcpOrder, outcome: &mut TcpOutcome) -> Result<(), String> {
    let begun = Instant::now();
    let addr = lookup(&order.host, order.port).await?;
    let text = |e: std::io::Error| format!("{addr}: {e}");
    let mut stream = tokio::net::TcpStream::connect(addr).await.map_err(text)?;
    if order.greeting {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') && line.len() < MAX_TEXT {
            line.push(stream.read_u8().await.map_err(text)?);
        }
        outcome.greeting = String::from_utf8_lossy(&line).trim_end().to_owned();
        outcome.greeting_millis = begun.elapsed().as_secs_f64() * 1e3;
    }
    stream.write_all(order.send.as_bytes()).await.map_err(text)?;
    let mut answer = vec![0; order.send.len()];
    stream.read_exact(&mut answer).await.map_err(text)?;
    outcome.answer = String::from_utf8_lossy(&answer).into_owned();
    Ok(())
}
