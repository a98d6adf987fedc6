//! A client that knows the mesh: it sends a tenth of its calls to a canary, and hides a backend that fails
//! now and then by trying another.
//!
//! ```sh
//! cargo run --example canary_client
//! ```
//!
//! The program starts three small backends and describes them with the resources that Istio and Kubernetes
//! use; no proxy runs. One sees the split (90/10), how often the flaky backend failed, and that the caller
//! saw none of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use http::{Request, Uri};
use http_body_util::BodyExt;
use mesh::Mesh;
use mesh::core::body::Body;
use mesh::core::yaml::parse_objects;
use mesh_examples::BoxError;
use tokio::net::TcpListener;
use tower::ServiceExt;

const CALLS: u32 = 500;

/// The service, where it runs, and how calls to it are routed.
fn resources(stable: SocketAddr, flaky: SocketAddr, canary: SocketAddr) -> String {
    let workload = |name: &str, version: &str, addr: SocketAddr| {
        format!(
            "---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: {name}, namespace: default}}
spec:
  address: {}
  ports: {{http: {}}}
  labels: {{app: reviews, version: {version}}}
",
            addr.ip(),
            addr.port()
        )
    };
    let routes = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: default}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: default}
spec:
  host: reviews
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: default}
spec:
  hosts: [reviews]
  http:
  - route:
    - {destination: {host: reviews, subset: v1}, weight: 90}
    - {destination: {host: reviews, subset: v2}, weight: 10}
    retries: {attempts: 2, retryOn: 5xx, backoff: 1ms}
";
    let workloads = [
        workload("reviews-v1-a", "v1", stable),
        workload("reviews-v1-b", "v1", flaky),
        workload("reviews-v2", "v2", canary),
    ];
    routes.to_owned() + &workloads.concat()
}

/// A backend that answers with its version, or fails at every `fails`-th call.
async fn backend(
    version: &'static str,
    fails: Option<u32>,
    failures: Arc<AtomicU32>,
) -> Result<SocketAddr, BoxError> {
    let calls = Arc::new(AtomicU32::new(0));
    let answer = move || async move {
        let call = calls.fetch_add(1, Ordering::Relaxed) + 1;
        if fails.is_some_and(|every| call.is_multiple_of(every)) {
            failures.fetch_add(1, Ordering::Relaxed);
            return (StatusCode::SERVICE_UNAVAILABLE, "out of order");
        }
        (StatusCode::OK, version)
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    let app = Router::new().route("/", get(answer));
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(addr)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let failures = Arc::new(AtomicU32::new(0));
    let stable = backend("v1", None, Arc::clone(&failures)).await?;
    let flaky = backend("v1", Some(3), Arc::clone(&failures)).await?;
    let canary = backend("v2", None, Arc::clone(&failures)).await?;

    let objects = parse_objects("store.yaml", &resources(stable, flaky, canary))
        .map_err(|wrong| format!("{wrong:?}"))?;
    // `.directory("mesh.d")` instead would read files, and follow their changes.
    let (mesh, driver) = Mesh::builder().objects(objects).account("default", "web").build()?;
    let driver = tokio::spawn(driver.run());

    // A tower service like any other; it is always ready, and clones share its connections.
    let client = mesh.client();
    let mut answers: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..CALLS {
        let request = Request::get(Uri::from_static("http://reviews:9080/")).body(Body::empty())?;
        let response = client.clone().oneshot(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        let who = if status.is_success() {
            String::from_utf8_lossy(&body).into_owned()
        } else {
            "failed".to_owned()
        };
        *answers.entry(who).or_default() += 1;
    }

    println!("{CALLS} calls to reviews:9080, weights 90/10");
    for (who, count) in &answers {
        println!("{who}: {count}");
    }
    println!("failures made by a backend of v1: {}", failures.load(Ordering::Relaxed));
    println!("failures seen by the caller: {}", answers.get("failed").unwrap_or(&0));
    driver.abort();
    Ok(())
}
