//! Servers on loopback, and clusters that point to them.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_core::body::Body;
use mesh_core::cluster::{
    Cluster, ClusterKey, ClusterSettings, Dispatch, Endpoint, EndpointSpec, Registry, ServiceName,
};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};
use tower::ServiceExt;
use tower_mesh_route::pool::{Pool, TcpConnect, TryError};

/// A server that counts, and that can be killed with all its connections.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) connections: Arc<AtomicUsize>,
    pub(crate) requests: Arc<AtomicUsize>,
    tasks: Arc<Mutex<Vec<AbortHandle>>>,
}

impl Server {
    /// Serves HTTP/1.1 or HTTP/2, as the client begins.
    pub(crate) async fn start<F, Fut>(handler: F) -> Self
    where
        F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::start_at("127.0.0.1:0".parse().unwrap(), handler).await
    }

    pub(crate) async fn start_at<F, Fut>(address: SocketAddr, handler: F) -> Self
    where
        F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Response<Body>> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            connections: Arc::default(),
            requests: Arc::default(),
            tasks: Arc::default(),
        };
        let (connections, requests) = (Arc::clone(&server.connections), Arc::clone(&server.requests));
        let task = tokio::spawn(async move {
            // Dropped with this task, and all connections with it.
            let mut set = JoinSet::new();
            loop {
                let (io, _) = listener.accept().await.unwrap();
                io.set_nodelay(true).unwrap();
                connections.fetch_add(1, Ordering::SeqCst);
                let (handler, requests) = (handler.clone(), Arc::clone(&requests));
                let service = service_fn(move |request| {
                    requests.fetch_add(1, Ordering::SeqCst);
                    let answer = handler(request);
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                set.spawn(async move {
                    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection_with_upgrades(TokioIo::new(io), service).await;
                });
            }
        });
        server.tasks.lock().unwrap().push(task.abort_handle());
        server
    }

    pub(crate) async fn echo() -> Self {
        Self::start(|request| async move {
            let bytes = request.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
            Response::new(Body::from(bytes))
        })
        .await
    }

    pub(crate) fn kill(&self) {
        for task in self.tasks.lock().unwrap().iter() {
            task.abort();
        }
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

pub(crate) fn cluster(addresses: &[SocketAddr], settings: ClusterSettings) -> Arc<Cluster> {
    let key = ClusterKey::new("a.default.svc.cluster.local", 80, "");
    let specs = addresses.iter().map(|a| EndpointSpec::plaintext(*a)).collect();
    Registry::new().cluster(&key, &ServiceName::new(&key.host, "a", "default"), settings, specs)
}

pub(crate) fn endpoint(cluster: &Cluster, at: usize) -> Arc<Endpoint> {
    Arc::clone(&cluster.load_endpoints().members()[at])
}

pub(crate) fn get(path: &str) -> Request<Body> {
    Request::get(path).header("host", "a").body(Body::empty()).unwrap()
}

pub(crate) fn get2(path: &str) -> Request<Body> {
    let mut request = get(&format!("http://a{path}"));
    *request.version_mut() = Version::HTTP_2;
    request
}

pub(crate) fn full(text: &str) -> Body {
    Body::new(Full::new(Bytes::copy_from_slice(text.as_bytes())))
}

pub(crate) async fn text(response: Response<Body>) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

pub(crate) async fn send(
    pool: &Pool<TcpConnect>,
    cluster: &Arc<Cluster>,
    request: Request<Body>,
) -> Result<Response<Body>, TryError> {
    let endpoint = endpoint(cluster, 0);
    pool.clone().oneshot(Dispatch { cluster: Arc::clone(cluster), endpoint, request }).await
}

/// Lets other tasks run until `done`; gives up after a few seconds.
pub(crate) async fn until(mut done: impl FnMut() -> bool) {
    for _ in 0..5000 {
        if done() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    panic!("it did not come to pass");
}
