//! The admin pages: readiness, metrics, what is in force, certificates, the log level.

use std::convert::Infallible;

use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh::Mesh;
use mesh::serve::HEADER_TIMEOUT;
use tokio::net::TcpListener;

use crate::accept::accept;
use crate::logging::LogControl;

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

const INDEX: &str = "\
GET  /ready             200 once the first configuration and certificate are in force
GET  /metrics           metrics; OpenMetrics for who asks for it (also /stats/prometheus)
GET  /config_dump       the resources in force, and what is wrong with others
GET  /clusters          destinations: endpoints, requests in flight, ejections
GET  /certs             the certificate in force and its renewal
GET  /logging           the log level
POST /logging?level=L   sets it: off, error, warn, info, debug, trace, or directives
";

/// Answers admin requests.
#[derive(Clone)]
pub(crate) struct Admin {
    mesh: Mesh,
    log: LogControl,
}

impl Admin {
    pub(crate) fn new(mesh: Mesh, log: LogControl) -> Self {
        Self { mesh, log }
    }

    /// Serves until the process ends: a drain is worth watching.
    pub(crate) async fn serve(self, listener: TcpListener) {
        accept(listener, std::future::pending(), |stream, _| {
            let admin = self.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                std::future::ready(Ok::<_, Infallible>(admin.answer(&request)))
            });
            tokio::spawn(async move {
                let mut server = http1::Builder::new();
                server.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
                if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
                    tracing::debug!(%error, "an admin connection ended early");
                }
            });
        })
        .await;
    }

    fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        let get = matches!(*request.method(), Method::GET | Method::HEAD);
        match path {
            "/logging" if request.method() == Method::POST => self.set_level(request.uri().query()),
            _ if !get => {
                let mut response = page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "use GET\n");
                let allowed = if path == "/logging" { "GET, HEAD, POST" } else { "GET, HEAD" };
                response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
                response
            }
            "/" => page(StatusCode::OK, TEXT, INDEX),
            "/ready" | "/healthz/ready" => self.ready(),
            "/metrics" | "/stats/prometheus" => {
                let (kind, text) = self.mesh.metrics_page(request.headers().get(ACCEPT));
                let mut response = page(StatusCode::OK, TEXT, text);
                response.headers_mut().insert(CONTENT_TYPE, kind);
                response
            }
            "/config_dump" => json(&self.mesh.config_dump()),
            "/clusters" => json(&self.mesh.clusters_dump()),
            "/certs" => json(&self.mesh.certs_dump()),
            "/logging" => page(StatusCode::OK, TEXT, format!("{}\n", self.log.get())),
            _ => page(StatusCode::NOT_FOUND, TEXT, format!("there is no {path}; there are\n\n{INDEX}")),
        }
    }

    fn ready(&self) -> Response<Full<Bytes>> {
        let missing = self.mesh.readiness().missing();
        if missing.is_empty() {
            return page(StatusCode::OK, TEXT, "ready\n");
        }
        page(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("not ready: {}\n", missing.join("; ")))
    }

    fn set_level(&self, query: Option<&str>) -> Response<Full<Bytes>> {
        let Some(level) = query.and_then(|q| q.split('&').find_map(|p| p.strip_prefix("level="))) else {
            return page(StatusCode::BAD_REQUEST, TEXT, "say which: POST /logging?level=debug\n");
        };
        match self.log.set(level) {
            Ok(()) => page(StatusCode::OK, TEXT, format!("{}\n", self.log.get())),
            Err(error) => page(StatusCode::BAD_REQUEST, TEXT, format!("{error:#}\n")),
        }
    }
}

fn page(status: StatusCode, kind: &'static str, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn json(value: &serde_json::Value) -> Response<Full<Bytes>> {
    page(StatusCode::OK, JSON, format!("{value:#}\n"))
}
