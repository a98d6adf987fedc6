//! An axum service with nothing, with our layers, or with tower-http's tracing around it.

use std::io::BufWriter;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::routing::get;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use mesh::core::yaml::parse_objects;
use mesh::policy::ratelimit::{Key, Rate, RateLimitLayer};
use mesh::{AccessLogTo, Driver, LogFormat, Mesh};
use tokio::net::TcpListener;
use tower::{Layer as _, Service};
use tower_http::trace::{DefaultMakeSpan, DefaultOnResponse, TraceLayer};
use tracing::Level;

use crate::args::Variant;

/// Far above what one core serves: the limit is looked at each time and refuses nobody.
const REQUESTS_PER_SECOND: u32 = 10_000_000;

/// Rules of which the last admits what is called.
pub const RULES: usize = 10;

pub(super) async fn run(listen: SocketAddr, variant: Variant, log: &Path) -> Result<()> {
    let listener = TcpListener::bind(listen).await.with_context(|| listen.to_string())?;
    let app = app();
    match variant {
        Variant::Alone => serve(listener, app).await,
        Variant::TraceLayer => {
            let file = std::fs::File::create(log).with_context(|| log.display().to_string())?;
            tracing_subscriber::fmt()
                .json()
                .with_max_level(Level::INFO)
                .with_writer(Mutex::new(BufWriter::with_capacity(64 << 10, file)))
                .init();
            let trace = TraceLayer::new_for_http()
                .make_span_with(DefaultMakeSpan::new().level(Level::INFO))
                .on_response(DefaultOnResponse::new().level(Level::INFO));
            serve(listener, app.layer(trace)).await
        }
        Variant::Layers | Variant::LayersLimit | Variant::LayersLog => {
            let log = match variant {
                Variant::LayersLog => AccessLogTo::File(log.to_owned()),
                _ => AccessLogTo::Off,
            };
            let (mesh, driver) = mesh(log)?;
            tokio::spawn(driver.run());
            let never = std::future::pending();
            if variant == Variant::LayersLimit {
                mesh.serve(listener, rate_limit()?.layer(app), never).await;
            } else {
                mesh.serve(listener, app, never).await;
            }
            Ok(())
        }
    }
}

/// What answers: a hundred bytes, to a path with a parameter.
pub fn app() -> Router {
    let body = "x".repeat(100);
    Router::new().route("/reviews/{id}", get(async || body))
}

/// A mesh with [`RULES`] rules, which has to be run.
///
/// # Errors
/// When it cannot be built.
pub fn mesh(log: AccessLogTo) -> Result<(Mesh, Driver)> {
    let objects = parse_objects("policy.yaml", &policy());
    let objects = objects.map_err(|wrong| anyhow::anyhow!("{wrong:?}"))?;
    Ok(Mesh::builder().objects(objects).access_log(log, LogFormat::Json).build()?)
}

/// A limit that is looked at each time and refuses nobody.
///
/// # Errors
/// None: the rate is a good one.
pub fn rate_limit() -> Result<RateLimitLayer> {
    Ok(RateLimitLayer::new(Rate::new(REQUESTS_PER_SECOND, Duration::from_secs(1))?, Key::Everybody))
}

/// Nine rules for other paths, and one for the path that is called, as YAML.
pub fn policy() -> String {
    let others = (1..RULES)
        .map(|n| format!("  - to: [{{operation: {{methods: [GET], paths: [\"/other-{n}/*\"]}}}}]\n"))
        .collect::<String>();
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: readers, namespace: default}}\n\
         spec:\n  rules:\n{others}  - to: [{{operation: {{methods: [GET], paths: [\"/reviews/*\"]}}}}]\n"
    )
}

/// hyper's own server, as `Mesh::serve` uses it too.
async fn serve<S>(listener: TcpListener, service: S) -> Result<()>
where
    S: Service<Request<Incoming>, Response = axum::response::Response> + Clone + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    S::Future: 'static,
{
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::task::yield_now().await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(service.clone());
        tokio::task::spawn_local(async move {
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
