//! Two Rust programs with mutual TLS between them, and no proxy anywhere.
//!
//! ```sh
//! cargo run --example mtls_pair
//! ```
//!
//! For the sake of one command, both programs run in one process; they share nothing but the directory of a
//! development CA and a few resources. One sees who each of them is, that the server knows its caller by its
//! certificate, that a caller with another identity is refused by policy, and that one without any is not
//! even let in.

use std::net::SocketAddr;
use std::path::Path;

use axum::Router;
use axum::extract::Extension;
use axum::routing::get;
use http::{Method, Request};
use http_body_util::BodyExt;
use mesh::core::body::Body;
use mesh::core::facts::Facts;
use mesh::core::resource::Object;
use mesh::core::yaml::parse_objects;
use mesh::{IdentitySource, Mesh};
use mesh_examples::{BoxError, plain_call};
use tokio::net::TcpListener;
use tower::ServiceExt;

/// What everybody in the mesh knows: the service, where it runs and as whom, and who may call it.
fn resources(server: SocketAddr) -> Result<Vec<Object>, BoxError> {
    let text = format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: reviews, namespace: default}}
spec: {{selector: {{app: reviews}}, ports: [{{name: http, port: 9080}}]}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: reviews-v1, namespace: default}}
spec:
  address: {}
  ports: {{http: {}}}
  serviceAccount: reviews
  # The label says that mTLS is spoken there. Callers insist on it, and on this account's certificate.
  labels: {{app: reviews, security.istio.io/tlsMode: istio}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default, namespace: default}}
spec: {{mtls: {{mode: STRICT}}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: reviews, namespace: default}}
spec:
  selector: {{matchLabels: {{app: reviews}}}}
  rules:
  - from: [{{source: {{principals: [cluster.local/ns/default/sa/web]}}}}]
",
        server.ip(),
        server.port()
    );
    parse_objects("store.yaml", &text).map_err(|wrong| format!("{wrong:?}").into())
}

/// The first program: an axum service that says who called it.
async fn server(listener: TcpListener, ca: &Path) -> Result<(), BoxError> {
    let (mesh, driver) = Mesh::builder()
        .objects(resources(listener.local_addr()?)?)
        .workload("default", "reviews-v1")
        .identity(IdentitySource::DevCa(ca.to_owned()))
        .build()?;
    tokio::spawn(driver.run());
    mesh.readiness().ready().await;
    println!("the server is {}", identity(&mesh));

    // `serve` has verified the caller's certificate and asked the policy before a request comes here.
    let hello = |Extension(facts): Extension<Facts>| async move {
        match facts.peer() {
            Some(peer) => format!("hello {}", peer.id()),
            None => "hello stranger".to_owned(),
        }
    };
    let app = Router::new().route("/", get(hello));
    tokio::spawn(async move { mesh.serve(listener, app, std::future::pending()).await });
    Ok(())
}

/// The second program: calls the first under the identity of a service account.
async fn client(server: SocketAddr, account: &str, ca: &Path) -> Result<(), BoxError> {
    let (mesh, driver) = Mesh::builder()
        .objects(resources(server)?)
        .account("default", account)
        .identity(IdentitySource::DevCa(ca.to_owned()))
        .build()?;
    let driver = tokio::spawn(driver.run());
    mesh.readiness().ready().await;
    println!("a client is {}", identity(&mesh));

    let request = Request::get("http://reviews:9080/").body(Body::empty())?;
    let response = mesh.client().oneshot(request).await?;
    let status = response.status().as_u16();
    let reason = response.headers().get("x-mesh-reason").cloned();
    let body = response.into_body().collect().await?.to_bytes();
    match reason {
        None => println!("  answered {status}: {}", String::from_utf8_lossy(&body)),
        Some(reason) => println!("  refused with {status}, x-mesh-reason: {}", reason.to_str()?),
    }
    driver.abort();
    Ok(())
}

fn identity(mesh: &Mesh) -> String {
    mesh.credentials().load().id().map_or_else(|| "nobody".to_owned(), ToString::to_string)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let ca = tempfile::tempdir()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    server(listener, ca.path()).await?;
    client(addr, "web", ca.path()).await?;
    client(addr, "stranger", ca.path()).await?;
    match plain_call(addr, Method::GET, "/").await {
        Ok(answer) => println!("a client without mTLS was answered {}", answer.status()),
        Err(_) => println!("a client without mTLS is not let in"),
    }
    Ok(())
}
