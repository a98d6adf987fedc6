//! The pages for probes, Prometheus and people. Plain HTTP; what tells of others is for this pod alone.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderValue, Method, Request, StatusCode, header};
use mesh_xds::server::{ProxyStatus, TypeStatus};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;

use super::accept::{Port, accept};
use super::drain::Draining;
use super::http::{JSON, Page, TEXT, page, serve_connection, wrong_method};
use crate::metrics::{CONTENT_TYPE, Metrics};

/// How many proxies a page shows.
pub const MAX_PROXIES: usize = 1000;
/// How many names of a type a page shows of one proxy.
pub const MAX_NAMES: usize = 1000;
/// How many names of a type it shows where it shows several proxies.
pub const FEW_NAMES: usize = 20;

const INDEX: &str = "\
GET /live             200 while the process answers
GET /ready            200 once the cluster is known, the CA is there, and the API server believes the webhooks
GET /metrics          metrics (OpenMetrics)
GET /debug/proxies    each proxy: who it is, what it subscribes to, its last ACK and NACK; from this pod only
                      ?workload=NAMESPACE/NAME shows one, with all its subscriptions
";

/// What the pages show. Cheap to clone.
#[derive(Clone)]
pub struct Admin {
    metrics: Arc<Metrics>,
    missing: watch::Receiver<Vec<String>>,
    proxies: Arc<dyn Fn() -> Vec<ProxyStatus> + Send + Sync>,
}

impl Admin {
    /// `missing` says what keeps the controller from being ready, `proxies` who is connected.
    pub fn new(
        metrics: Arc<Metrics>,
        missing: watch::Receiver<Vec<String>>,
        proxies: impl Fn() -> Vec<ProxyStatus> + Send + Sync + 'static,
    ) -> Self {
        Self { metrics, missing, proxies: Arc::new(proxies) }
    }

    /// Serves until the drain begins.
    pub async fn serve(self, listener: TcpListener, port: Port, drain: Draining) {
        let of = port.clone();
        accept(listener, &of, drain.clone(), |stream, peer, place| {
            let (admin, drain, idle) = (self.clone(), drain.clone(), port.limits.idle);
            tokio::spawn(async move {
                let _place = place;
                let answer = |request| std::future::ready(admin.answer(&request, peer.ip()));
                serve_connection(stream, idle, drain, answer).await;
            });
        })
        .await;
    }

    /// The answer to a request from `peer`.
    pub fn answer<B>(&self, request: &Request<B>, peer: IpAddr) -> Page {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return wrong_method(&Method::GET);
        }
        match request.uri().path() {
            "/" => page(StatusCode::OK, TEXT, INDEX),
            "/live" => page(StatusCode::OK, TEXT, "live\n"),
            "/ready" => self.ready(),
            "/metrics" => {
                let mut response = page(StatusCode::OK, TEXT, self.metrics.page());
                let kind = HeaderValue::from_static(CONTENT_TYPE);
                response.headers_mut().insert(header::CONTENT_TYPE, kind);
                response
            }
            "/debug/proxies" if peer.to_canonical().is_loopback() => {
                let wanted = request
                    .uri()
                    .query()
                    .and_then(|query| query.split('&').find_map(|part| part.strip_prefix("workload=")));
                let wanted = wanted.map(|name| name.replace("%2F", "/").replace("%2f", "/"));
                let text = format!("{:#}\n", told(&(self.proxies)(), wanted.as_deref(), Instant::now()));
                page(StatusCode::OK, JSON, text)
            }
            "/debug/proxies" => {
                let way_out = "from this pod only: kubectl port-forward to it, and ask localhost\n";
                page(StatusCode::FORBIDDEN, TEXT, way_out)
            }
            path => page(StatusCode::NOT_FOUND, TEXT, format!("there is no {path}; there are\n\n{INDEX}")),
        }
    }

    fn ready(&self) -> Page {
        let missing = self.missing.borrow().join("; ");
        if missing.is_empty() {
            return page(StatusCode::OK, TEXT, "ready\n");
        }
        page(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("not ready: {missing}\n"))
    }
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").finish_non_exhaustive()
    }
}

/// The proxies as JSON: all, in short, or the one whose workload is wanted.
fn told(proxies: &[ProxyStatus], wanted: Option<&str>, now: Instant) -> Value {
    let names = if wanted.is_some() { MAX_NAMES } else { FEW_NAMES };
    let shown: Vec<Value> = proxies
        .iter()
        .filter(|proxy| wanted.is_none_or(|wanted| proxy.workload.as_deref() == Some(wanted)))
        .take(MAX_PROXIES)
        .map(|proxy| one(proxy, names, now))
        .collect();
    json!({"connected": proxies.len(), "shown": shown.len(), "proxies": shown})
}

fn one(proxy: &ProxyStatus, names: usize, now: Instant) -> Value {
    let types: Vec<Value> = proxy.types.iter().map(|status| of_type(status, names, now)).collect();
    json!({
        "identity": proxy.identity.as_str(),
        "workload": proxy.workload.as_deref(),
        "node": proxy.node,
        "connectedSeconds": seconds(proxy.opened, now),
        "types": types,
    })
}

fn of_type(status: &TypeStatus, names: usize, now: Instant) -> Value {
    let ack = status.last_ack.map(|ack| json!({"nonce": ack.nonce, "secondsAgo": seconds(ack.at, now)}));
    let nack = status
        .last_nack
        .as_ref()
        .map(|nack| json!({"nonce": nack.nonce, "secondsAgo": seconds(nack.at, now), "reason": nack.reason}));
    json!({
        "type": status.kind.to_string(),
        "synced": status.is_synced(),
        "subscriptions": status.names.len(),
        "names": status.names.iter().take(names).map(|name| &**name).collect::<Vec<_>>(),
        "waiting": status.waiting,
        "inFlightSeconds": status.in_flight.map(|since| seconds(since, now)),
        "lastAck": ack,
        "lastNack": nack,
    })
}

/// In tenths.
fn seconds(since: Instant, now: Instant) -> f64 {
    (now.saturating_duration_since(since).as_secs_f64() * 10.0).round() / 10.0
}
