//! Two layers of the mesh, alone, on an axum service: who may do what, and metrics of it.
//!
//! ```sh
//! cargo run --example one_layer_axum
//! ```
//!
//! There is no sidecar here and no directory of configuration: the rules are an Istio `AuthorizationPolicy`
//! written down below. One sees a call that the policy allows, one that it refuses (the answer carries
//! `x-mesh-reason: denied`), one that climbs out of the allowed path and is refused too, and what
//! `/metrics` tells about them in Istio's words.

use axum::Router;
use axum::routing::get;
use http::Method;
use mesh::core::live;
use mesh::core::resource::Object;
use mesh::core::yaml::parse_objects;
use mesh::policy::authorization::{AuthorizationLayer, Context, Rules};
use mesh::telemetry::TelemetryLayer;
use mesh::telemetry::metrics::{Exposition, Metrics, OwnWorkload};
use mesh_examples::{BoxError, plain_call};
use tokio::net::TcpListener;

const POLICY: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: default}
spec:
  rules:
  - to: [{operation: {methods: [GET], paths: ["/reviews/*"]}}]
"#;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // YAML to resources, resources to rules. Each step says what is wrong, and with which field.
    let objects = parse_objects("policy.yaml", POLICY).map_err(|wrong| format!("{wrong:?}"))?;
    let policies: Vec<_> = objects
        .into_iter()
        .filter_map(|object| match object {
            Object::AuthorizationPolicy(policy) => Some(policy),
            _ => None,
        })
        .collect();
    let (rules, diagnostics) = Rules::compile(&policies, &Context::default());
    for diagnostic in &diagnostics {
        println!("{diagnostic}");
    }

    // A layer reads its rules from a `Live`. `publisher.publish(other_rules)` would change them while the
    // service runs, between two requests.
    let (_publisher, rules) = live::channel(rules);
    let metrics = Metrics::new(OwnWorkload::default());

    let page = metrics.clone();
    let app = Router::new()
        .route("/reviews/{id}", get(|| async { "five stars" }).delete(|| async { "gone" }))
        .layer(AuthorizationLayer::new(rules))
        // Outside of authorization, so that refused calls are counted too.
        .layer(TelemetryLayer::new(&metrics))
        // Added after the layers: a scraper is not asked who it is.
        .route("/metrics", get(move || async move { page.encode(Exposition::Classic) }));

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    let server = tokio::spawn(async move { axum::serve(listener, app).await });

    let calls =
        [(Method::GET, "/reviews/1"), (Method::DELETE, "/reviews/1"), (Method::GET, "/reviews/../metrics")];
    for (method, path) in calls {
        let answer = plain_call(addr, method.clone(), path).await?;
        let reason = match answer.headers().get("x-mesh-reason") {
            Some(reason) => format!(" (x-mesh-reason: {})", reason.to_str()?),
            None => String::new(),
        };
        println!("{method} {path} -> {}{reason}", answer.status().as_u16());
    }

    println!("GET /metrics ->");
    let scraped = plain_call(addr, Method::GET, "/metrics").await?.into_body();
    for line in scraped.lines().filter(|line| line.starts_with("istio_requests_total{")) {
        println!("{line}");
    }
    server.abort();
    Ok(())
}
