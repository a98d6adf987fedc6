//! What a pod's sidecar serves besides the application's traffic: readiness for the kubelet, the application's
//! probes and hooks, metrics. These ports are not redirected, and anybody in the network may ask.

mod ask;
mod merge;
mod probes;
mod withdrawn;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh::Mesh;
use mesh::serve::HEADER_TIMEOUT;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};

use crate::accept::accept;
use crate::drain::{Leave, Watch};

pub(crate) use merge::AppMetrics;
pub(crate) use probes::Probes;
pub(crate) use withdrawn::{LEAVE_AFTER, ending};

/// How many requests to these ports are worked on at once; more are refused. The kubelet has a few per container.
pub(crate) const MAX_AT_ONCE: usize = 64;
/// How many containers' ends are held up at once, apart from those: they wait for seconds.
pub(crate) const MAX_HELD_UP: usize = 32;
/// How many connections to these ports are open at once; more are closed.
pub(crate) const MAX_CONNECTIONS: usize = 256;

const TEXT: &str = "text/plain; charset=utf-8";

/// Which of the ports it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// 15020: probes and hooks of the application, metrics of both, readiness, the end.
    Status,
    /// 15021: readiness.
    Health,
    /// 15090: the sidecar's own metrics.
    Metrics,
}

/// Answers on these ports.
#[derive(Clone)]
pub(crate) struct Status {
    pub(crate) mesh: Mesh,
    pub(crate) watch: Watch,
    pub(crate) leave: Leave,
    pub(crate) quit: Arc<Notify>,
    pub(crate) probes: Arc<Probes>,
    pub(crate) app_metrics: Option<Arc<AppMetrics>>,
    /// Where the application is asked.
    pub(crate) app: IpAddr,
    pub(crate) room: Room,
}

/// Limits on what is done at once, of all these ports together.
#[derive(Clone)]
pub(crate) struct Room {
    requests: Arc<Semaphore>,
    held_up: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Ready,
    OwnMetrics,
    AllMetrics,
    App,
    /// To be told when callers have been told to go elsewhere.
    Withdrawn,
    Leave,
    Quit,
    /// The path is there, and the method is another.
    Method(&'static str),
    /// The process may only be ended from within the pod.
    Stranger,
    Nothing,
}

/// Decides what a request asks for. Pure.
fn asked(role: Role, method: &Method, path: &str, within: bool) -> Asked {
    let get = matches!(*method, Method::GET | Method::HEAD);
    let found = match (role, path) {
        (Role::Health | Role::Status, "/healthz/ready") => Asked::Ready,
        (Role::Metrics, "/stats/prometheus" | "/metrics") => Asked::OwnMetrics,
        (Role::Status, "/stats/prometheus" | "/metrics") => Asked::AllMetrics,
        (Role::Status, path) if path.starts_with("/app-health/") || path.starts_with("/app-lifecycle/") => {
            Asked::App
        }
        (Role::Status, "/withdrawn") => Asked::Withdrawn,
        (Role::Status, "/drain") => Asked::Leave,
        (Role::Status, "/quitquitquit") => Asked::Quit,
        _ => return Asked::Nothing,
    };
    match found {
        Asked::Leave | Asked::Quit if *method != Method::POST => Asked::Method("POST"),
        Asked::Leave | Asked::Quit if !within => Asked::Stranger,
        Asked::Leave | Asked::Quit => found,
        _ if !get => Asked::Method("GET, HEAD"),
        _ => found,
    }
}

impl Status {
    /// The limits.
    pub(crate) fn room() -> Room {
        Room {
            requests: Arc::new(Semaphore::new(MAX_AT_ONCE)),
            held_up: Arc::new(Semaphore::new(MAX_HELD_UP)),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        }
    }

    /// Serves until the process ends: readiness is asked while it drains, too.
    pub(crate) async fn serve(self, listener: TcpListener, role: Role) {
        accept(listener, std::future::pending(), |stream, peer| {
            let Ok(held) = Arc::clone(&self.room.connections).try_acquire_owned() else { return };
            let status = self.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let status = status.clone();
                async move { Ok::<_, Infallible>(status.answer(role, peer, &request).await) }
            });
            tokio::spawn(async move {
                let mut server = http1::Builder::new();
                server.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
                if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
                    tracing::debug!(%error, %peer, "a connection to a status port ended early");
                }
                drop(held);
            });
        })
        .await;
    }

    async fn answer<B>(&self, role: Role, peer: SocketAddr, request: &Request<B>) -> Response<Full<Bytes>> {
        let Ok(held) = self.room.requests.try_acquire() else { return too_many() };
        let within = peer.ip().to_canonical().is_loopback();
        match asked(role, request.method(), request.uri().path(), within) {
            Asked::Ready => self.ready(),
            Asked::OwnMetrics => {
                let (kind, text) = self.mesh.metrics_page(request.headers().get(http::header::ACCEPT));
                let mut response = page(StatusCode::OK, text);
                response.headers_mut().insert(CONTENT_TYPE, kind);
                response
            }
            Asked::AllMetrics => {
                merge::page(&self.mesh, self.app_metrics.as_deref(), self.app, request.headers()).await
            }
            Asked::App => self.probes.ask(self.app, request).await,
            Asked::Withdrawn => {
                drop(held);
                self.withdrawn(request.uri().query()).await
            }
            Asked::Leave => {
                tracing::info!("leaving: callers are told to go elsewhere");
                self.leave.leave();
                page(StatusCode::OK, "leaving\n")
            }
            Asked::Quit => {
                self.quit.notify_one();
                page(StatusCode::OK, "ending\n")
            }
            Asked::Method(allowed) => {
                let mut response = page(StatusCode::METHOD_NOT_ALLOWED, format!("use {allowed}\n"));
                response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
                response
            }
            Asked::Stranger => page(StatusCode::FORBIDDEN, "from within the pod only (127.0.0.1)\n"),
            Asked::Nothing => page(StatusCode::NOT_FOUND, "there is nothing here\n"),
        }
    }

    /// Answers when callers have been told to go elsewhere, or the time is over.
    async fn withdrawn(&self, query: Option<&str>) -> Response<Full<Bytes>> {
        let within = match withdrawn::within(query) {
            Ok(within) => within,
            Err(why) => return page(StatusCode::BAD_REQUEST, format!("{why}\n")),
        };
        let Ok(_held) = self.room.held_up.try_acquire() else { return too_many() };
        if withdrawn::withdrawn(&self.mesh.readiness().configuration(), within).await {
            return page(StatusCode::OK, "callers have been told\n");
        }
        tracing::warn!(
            ?within,
            "the control plane has not said that this workload is to end; callers may not know"
        );
        page(StatusCode::OK, "the time is over\n")
    }

    fn ready(&self) -> Response<Full<Bytes>> {
        if self.watch.is_leaving() {
            return page(StatusCode::SERVICE_UNAVAILABLE, "not ready: the sidecar is leaving\n");
        }
        let missing = self.mesh.readiness().missing();
        if missing.is_empty() {
            return page(StatusCode::OK, "ready\n");
        }
        page(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", missing.join("; ")))
    }
}

fn too_many() -> Response<Full<Bytes>> {
    page(StatusCode::SERVICE_UNAVAILABLE, "too many requests at once\n")
}

fn page(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(TEXT));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_port_has_its_pages() {
        use Role::{Health, Metrics, Status};
        let (get, post) = (Method::GET, Method::POST);
        for (role, method, path, within, want) in [
            (Health, &get, "/healthz/ready", false, Asked::Ready),
            (Health, &get, "/stats/prometheus", false, Asked::Nothing),
            (Health, &get, "/quitquitquit", true, Asked::Nothing),
            (Metrics, &get, "/stats/prometheus", false, Asked::OwnMetrics),
            (Metrics, &get, "/healthz/ready", false, Asked::Nothing),
            (Metrics, &post, "/stats/prometheus", false, Asked::Method("GET, HEAD")),
            (Status, &get, "/stats/prometheus", false, Asked::AllMetrics),
            (Status, &get, "/healthz/ready", false, Asked::Ready),
            (Status, &get, "/app-health/a/livez", false, Asked::App),
            (Status, &get, "/app-lifecycle/a/prestopz", false, Asked::App),
            (Status, &post, "/app-health/a/livez", false, Asked::Method("GET, HEAD")),
            (Status, &post, "/quitquitquit", true, Asked::Quit),
            (Status, &post, "/quitquitquit", false, Asked::Stranger),
            (Status, &get, "/quitquitquit", true, Asked::Method("POST")),
            (Status, &get, "/withdrawn", false, Asked::Withdrawn),
            (Status, &post, "/withdrawn", true, Asked::Method("GET, HEAD")),
            (Health, &get, "/withdrawn", true, Asked::Nothing),
            (Status, &post, "/drain", true, Asked::Leave),
            (Status, &post, "/drain", false, Asked::Stranger),
            (Status, &get, "/", false, Asked::Nothing),
        ] {
            assert_eq!(asked(role, method, path, within), want, "{role:?} {method} {path}");
        }
    }
}
