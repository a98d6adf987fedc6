//! The application in a pod (`e2e-app`), as its control port shows it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use http::Method;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use mesh_test::client::{self, Call};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Where the application is told what to do.
const CONTROL_PORT: u16 = 7000;

/// An application in a pod.
#[derive(Debug, Clone)]
pub struct App {
    pod: String,
    address: IpAddr,
}

/// What came of one call.
#[derive(Debug, Clone, Deserialize)]
pub struct Outcome {
    /// The status, when there was an answer.
    pub status: Option<u16>,
    /// The HTTP version of the answer.
    pub version: Option<String>,
    /// Which application answered.
    pub served_by: Option<String>,
    /// Why the mesh answered in its place.
    pub reason: Option<String>,
    /// The answer's headers.
    pub headers: BTreeMap<String, String>,
    /// The answer's body.
    pub body: String,
    /// Why there was no answer.
    pub error: Option<String>,
    /// How long it took.
    pub millis: f64,
}

/// What a load saw.
#[derive(Debug, Clone, Deserialize)]
pub struct Report {
    /// Calls that ended, well or not.
    pub total: u64,
    /// Calls without an answer, or with one that is not 2xx.
    pub failed: u64,
    /// Calls that moved to a fresh connection.
    pub reconnects: u64,
    /// Answers by who gave them.
    pub by_backend: BTreeMap<String, u64>,
    /// Answers by status.
    pub by_status: BTreeMap<String, u64>,
    /// The first failures in words.
    pub errors: Vec<String>,
    /// Median time of a call.
    pub p50_ms: f64,
    /// 99th percentile of the time of a call.
    pub p99_ms: f64,
}

impl Report {
    /// Answers of one application.
    pub fn of(&self, app: &str) -> u64 {
        self.by_backend.get(app).copied().unwrap_or(0)
    }

    /// Ends the test unless there were calls and each one was answered with 2xx.
    ///
    /// # Panics
    /// With the report.
    #[track_caller]
    pub fn assert_clean(&self) {
        assert!(self.total > 0 && self.failed == 0, "failed requests under load: {self:#?}");
    }
}

/// What came of one TCP connection.
#[derive(Debug, Clone, Deserialize)]
pub struct TcpOutcome {
    /// What the server said first.
    pub greeting: String,
    /// How long that took, connecting included.
    pub greeting_millis: f64,
    /// What it answered.
    pub answer: String,
    /// Why that is not all.
    pub error: Option<String>,
}

impl App {
    /// The application of a pod.
    ///
    /// # Panics
    /// When the pod has no address.
    pub fn of(pod: &Pod) -> Self {
        let address = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref()).unwrap_or_default();
        let address =
            address.parse().unwrap_or_else(|e| panic!("address of pod {}: {address:?}: {e}", pod.name_any()));
        Self { pod: pod.name_any(), address }
    }

    /// Its pod's name.
    pub fn pod(&self) -> &str {
        &self.pod
    }

    /// Its pod's address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Lets it GET an address.
    pub async fn get(&self, url: &str) -> Outcome {
        self.call(&json!({ "url": url })).await
    }

    /// Lets it call: `url`, and where they are wanted `method`, `headers`, `body`, `http2`.
    pub async fn call(&self, order: &Value) -> Outcome {
        self.tell(Method::POST, "/call", order).await
    }

    /// Lets it open a TCP connection: `host`, `port`, `send`, and `greeting` for a server that speaks first.
    pub async fn tcp(&self, order: &Value) -> TcpOutcome {
        self.tell(Method::POST, "/tcp", order).await
    }

    /// Starts a load under a name: `url`, and where they are wanted `connections`, `pause_ms`, `fresh`, and what
    /// [`App::call`] takes.
    pub async fn start_load(&self, name: &str, order: &Value) {
        let _: Value = self.tell(Method::POST, &format!("/load/{name}"), order).await;
    }

    /// What a load has seen so far.
    pub async fn load(&self, name: &str) -> Report {
        self.tell(Method::GET, &format!("/load/{name}"), &Value::Null).await
    }

    /// What a load has seen so far; it forgets it.
    pub async fn lap(&self, name: &str) -> Report {
        self.tell(Method::POST, &format!("/load/{name}/lap"), &Value::Null).await
    }

    /// Ends a load.
    pub async fn stop_load(&self, name: &str) -> Report {
        self.tell(Method::DELETE, &format!("/load/{name}"), &Value::Null).await
    }

    /// Lets it answer every request with that status; 0 ends it.
    pub async fn fail(&self, status: u16) {
        let _: Value = self.tell(Method::POST, &format!("/fail/{status}"), &Value::Null).await;
    }

    async fn tell<T: DeserializeOwned>(&self, method: Method, path: &str, order: &Value) -> T {
        let what = format!("{method} {path} of pod {}", self.pod);
        let address = SocketAddr::new(self.address, CONTROL_PORT);
        let mut call = Call::new(method, &address.to_string(), path);
        if !order.is_null() {
            call = call.body(order.to_string()).header("content-type", "application/json");
        }
        let reply = client::send(address, &call).await.unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(reply.status == 200, "{what}: {} {}", reply.status, reply.text());
        serde_json::from_slice(&reply.body).unwrap_or_else(|e| panic!("{what}: {e}: {}", reply.text()))
    }
}
