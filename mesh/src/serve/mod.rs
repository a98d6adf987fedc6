//! Serving an embedding program's service: what a sidecar does around an application, in the application.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use mesh_core::body::{Body, BoxError};
use mesh_core::facts::{LocalAddr, PeerAddr, Transport};
use mesh_route::pool::HttpVersion;
use mesh_telemetry::layer::Measured;
use mesh_tls::alpn::Negotiated;
use mesh_tls::io::Rewind;
use mesh_tls::{AcceptError, AcceptedStream};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tower_layer::Layer;
use tower_service::Service;

use crate::mesh::Mesh;

mod asleep;
pub mod h1;
mod serving;

pub use self::asleep::Asleep;
pub use self::serving::{Serving, http};

/// The largest header block of a request, in bytes: Istio's default.
pub const MAX_HEADER_BYTES: usize = 60 * 1024;
/// Streams at once on one HTTP/2 connection.
pub const MAX_STREAMS: u32 = 1000;
/// Streams that a peer reset before they were taken up, at once; beyond it the connection is closed
/// (CVE-2023-44487).
pub const MAX_PENDING_RESETS: usize = 50;
/// Streams that had to be reset because of a peer's errors, per connection (CVE-2025-8671).
pub const MAX_ERROR_RESETS: usize = 200;
/// How long a peer may take until it has sent the first bytes of a connection, and the headers of a request.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long requests that were begun may take once the program stops: Istio's `terminationDrainDuration`.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long accepting pauses when the process is out of something (descriptors, memory).
const PAUSE: Duration = Duration::from_millis(50);

/// The body of a request that reaches a served program: what came, counted.
pub type ServedBody = Measured<Body>;

/// How an embedding program's service is served.
const SERVING: Serving = Serving {
    h1: h1::Settings {
        max_head: MAX_HEADER_BYTES,
        head_timeout: HEADER_TIMEOUT,
        linger: Duration::ZERO,
        dated: true,
    },
    windows: None,
    join_upgrades: false,
};

const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

impl Mesh {
    /// Serves `service` on `listener` until `stop` returns: each connection is [accepted](Mesh::accept) (mTLS
    /// as the PeerAuthentication in force says), each request gets [`Facts`](mesh_core::facts::Facts) with the verified peer and goes
    /// through the [server layer](Mesh::server_layer), which must not be put on by the caller too. HTTP/1.1,
    /// HTTP/2 and upgrades are served.
    ///
    /// Once `stop` returns no connection is taken any more; requests that were begun have [`DRAIN_TIMEOUT`].
    /// Dropping the future ends everything at once. A connection that is plaintext ends, after its
    /// requests, when its port becomes STRICT. TLS that is not the mesh's own is closed: there is nobody here
    /// to pass it on to.
    ///
    /// ```no_run
    /// # async fn example(mesh: tower_mesh::Mesh, app: axum::Router) -> std::io::Result<()> {
    /// let listener = tokio::net::TcpListener::bind("0.0.0.0:9080").await?;
    /// mesh.serve(listener, app, std::future::pending()).await; // or until a signal comes
    /// # Ok(())
    /// # }
    /// ```
    pub async fn serve<S, R>(&self, listener: TcpListener, service: S, stop: impl Future<Output = ()>)
    where
        S: Service<Request<ServedBody>, Response = Response<R>> + Clone + Send + 'static,
        S::Error: Into<BoxError> + 'static,
        S::Future: Send + 'static,
        R: http_body::Body<Data = Bytes> + Default + From<Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        let service = self.server_layer().layer(service);
        let (stopping, stopped) = watch::channel(false);
        let mut connections = JoinSet::new();
        let mut stop = std::pin::pin!(stop);
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.as_mut() => break,
                Some(_) = connections.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let connection =
                        serve_connection(self.clone(), service.clone(), stream, peer, stopped.clone());
                    connections.spawn(connection);
                }
                Err(error) => {
                    tracing::error!(%error, "cannot accept connections now; trying again");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        drop(listener);
        stopping.send_replace(true);
        let drained = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN_TIMEOUT, drained).await.is_err() {
            tracing::warn!(open = connections.len(), "connections are cut off: they did not end in time");
        }
    }
}

async fn serve_connection<S, R>(
    mesh: Mesh,
    service: S,
    stream: TcpStream,
    peer: SocketAddr,
    mut stopped: watch::Receiver<bool>,
) where
    S: Service<Request<Body>, Response = Response<R>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    R: http_body::Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    let _ = stream.set_nodelay(true);
    let Ok(local) = stream.local_addr() else { return };
    let mut stream = AcceptedStream::new(stream, PeerAddr(peer), LocalAddr(local));
    if let Some(port) = mesh.0.inbound_port {
        stream = stream.workload_port(port);
    }
    let accepted = match mesh.accept(stream).await {
        Ok(accepted) => accepted,
        Err(error) => {
            mesh.count_refused(error.reason());
            match error {
                AcceptError::Closed { .. } => tracing::debug!(%error, "a connection was not taken"),
                _ => tracing::warn!(%error, "a connection was refused"),
            }
            return;
        }
    };
    if matches!(accepted.connection.transport(), Transport::Passthrough { .. }) {
        mesh.count_refused("foreign_tls");
        tracing::warn!(%peer, "TLS that is not the mesh's was refused");
        return;
    }
    let negotiated = accepted.negotiated();
    let connection = mesh.describe_peer(accepted.connection);
    let mut io = accepted.io;
    let mut first = BytesMut::new();
    let version = match negotiated {
        Some(Negotiated::Http1) => HttpVersion::Http1,
        Some(Negotiated::Carried) => HttpVersion::Carried,
        Some(Negotiated::Http2) => HttpVersion::Http2,
        _ => match tokio::time::timeout(HEADER_TIMEOUT, detect(&mut io, &mut first)).await {
            Ok(Some(version)) => version,
            _ => return,
        },
    };
    let watched = Arc::clone(&connection);
    let stop = async move {
        tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => {}
            () = mesh.transport_refused(&watched) => {}
        }
    };
    // Boxed: it has room for a request's future.
    Box::pin(http(Rewind::new(io, first.freeze()), version, connection, service, stop, &SERVING)).await;
}

/// Tells HTTP/2 with prior knowledge from everything else, which HTTP/1.1's server answers for. `None` when
/// the connection ends.
async fn detect<I: AsyncRead + Unpin>(io: &mut I, first: &mut BytesMut) -> Option<HttpVersion> {
    loop {
        if io.read_buf(first).await.ok()? == 0 {
            return None;
        }
        let head = first.get(..H2_PREFACE.len()).unwrap_or(first);
        if !H2_PREFACE.starts_with(head) {
            return Some(HttpVersion::Http1);
        }
        if head.len() == H2_PREFACE.len() {
            return Some(HttpVersion::Http2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_core::facts::Facts;
    use tokio::io::AsyncWriteExt;
    use tower::ServiceExt as _;

    #[tokio::test(start_paused = true)]
    async fn first_bytes_tell_the_version() {
        let table: [(&[u8], Option<HttpVersion>); 5] = [
            (H2_PREFACE, Some(HttpVersion::Http2)),
            (b"GET / HTTP/1.1\r\n", Some(HttpVersion::Http1)),
            (b"PRINT / HTTP/1.1\r\n", Some(HttpVersion::Http1)),
            (b"PRI * HT", None),
            (b"", None),
        ];
        for (bytes, want) in table {
            // Byte by byte: a peer chooses how it cuts.
            let (mut peer, mut io) = tokio::io::duplex(1);
            tokio::spawn(async move { peer.write_all(bytes).await });
            let mut first = BytesMut::new();
            assert_eq!(detect(&mut io, &mut first).await, want, "{}", bytes.escape_ascii());
        }
    }

    #[tokio::test]
    async fn serves_under_policy_and_drains() {
        let policy = mesh_core::yaml::parse_objects(
            "a.yaml",
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\n\
             spec: {rules: [{to: [{operation: {methods: [GET]}}]}]}\n",
        );
        let (mesh, driver) = Mesh::builder().objects(policy.unwrap()).build().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let app = tower::service_fn(|request: Request<ServedBody>| async move {
            let facts = Facts::of(&request).is_some_and(|facts| facts.connection().peer_addr().is_some());
            Ok::<_, Infallible>(Response::new(Body::from(format!("facts: {facts}"))))
        });
        let serving = tokio::spawn(async move {
            mesh.serve(listener, app, async { stopped.await.unwrap_or(()) }).await;
        });

        let read = mesh_test::client::get(addr, "a", "/").await.unwrap();
        assert_eq!((read.status, read.text().as_str()), (200, "facts: true"));
        assert_eq!(mesh_test::client::get_h2(addr, "a", "/").await.unwrap().status, 200);
        let post = mesh_test::client::Call::post("a", "/", "x");
        let write = mesh_test::client::send(addr, &post).await.unwrap();
        assert_eq!((write.status, write.reason()), (403, Some("denied")));

        let large = mesh_test::client::Call::get("a", "/").header("x-large", &"x".repeat(MAX_HEADER_BYTES));
        assert_eq!(mesh_test::client::send(addr, &large).await.unwrap().status, 431);

        // An idle connection is told to end; the listener is gone when serving has ended.
        let protocol = mesh_test::client::Protocol::H1;
        let mut idle = mesh_test::client::Conn::open(addr, protocol).await.unwrap();
        idle.send(&mesh_test::client::Call::get("a", "/")).await.unwrap();
        stop.send(()).unwrap();
        serving.await.unwrap();
        assert!(mesh_test::client::get(addr, "a", "/").await.is_err());
        drop(driver);
    }

    /// The program finds what it expects of hyper, whatever came before on the connection.
    #[tokio::test]
    async fn an_upgrade_is_handed_over_to_the_program() {
        let (mesh, _driver) = Mesh::builder().build().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let app = tower::service_fn(|mut request: Request<ServedBody>| async move {
            if request.uri().path() != "/ws" {
                return Ok::<_, Infallible>(Response::new(Body::from("no")));
            }
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut io = hyper_util::rt::TokioIo::new(upgrade.await.unwrap());
                let mut first = [0; 5];
                io.read_exact(&mut first).await.unwrap();
                io.write_all(&first).await.unwrap();
            });
            let response =
                Response::builder().status(101).header("upgrade", "x").header("connection", "upgrade");
            Ok(response.body(Body::empty()).unwrap())
        });
        tokio::spawn(async move { mesh.serve(listener, app, std::future::pending()).await });

        let asks = "HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
        let plain = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for (path, end) in [("/ws", "hello"), ("/other", "connection: close\r\n")] {
            let mut stream = TcpStream::connect(addr).await.unwrap();
            // All at once: what is behind a request that is not upgraded is not read any more.
            stream.write_all(format!("{plain}GET {path} {asks}hello").as_bytes()).await.unwrap();
            let mut all = String::new();
            stream.read_to_string(&mut all).await.unwrap();
            assert!(all.starts_with("HTTP/1.1 200 OK\r\n"), "{all}");
            assert!(all.contains(end), "{all}");
            assert_eq!(all.matches("HTTP/1.1 101").count(), usize::from(path == "/ws"), "{all}");
            assert_eq!(all.matches("HTTP/1.1").count(), 2, "{all}");
        }
    }

    /// Two embedding programs: the wire is ours, and the program sees HTTP/1.1.
    #[tokio::test]
    async fn carried_requests_are_http1_to_the_program() {
        use mesh_tls::alpn::CARRIED;

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let objects = || {
            let text = format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: a, namespace: default}}\n\
                 spec: {{selector: {{app: a}}, ports: [{{name: http, port: 80}}]}}\n---\n\
                 apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
                 metadata: {{name: a-1, namespace: default}}\nspec: {{address: 127.0.0.1, \
                 ports: {{http: {}}}, serviceAccount: a, labels: {{app: a, security.istio.io/tlsMode: istio}}}}\n",
                addr.port()
            );
            mesh_core::yaml::parse_objects("a.yaml", &text).unwrap()
        };
        let ca = mesh_test::yaml::Dir::new();
        let identity = || crate::IdentitySource::DevCa(ca.file("ca"));
        let server = Mesh::builder().objects(objects()).workload("default", "a-1").identity(identity());
        let (server, served) = server.build().unwrap();
        tokio::spawn(served.run());
        let client = Mesh::builder().objects(objects()).account("default", "b").identity(identity());
        let (client, called) = client.build().unwrap();
        tokio::spawn(called.run());
        server.readiness().ready().await;
        client.readiness().ready().await;
        let app = tower::service_fn(|request: Request<ServedBody>| async move {
            let facts = Facts::of(&request).unwrap();
            let carried = matches!(facts.connection().transport(),
                Transport::Tls { alpn: Some(alpn), .. } if **alpn == *CARRIED);
            let host = request.headers()["host"].to_str().unwrap();
            let seen = format!("{carried} {:?} {} {host}", request.version(), request.uri());
            Ok::<_, Infallible>(Response::new(Body::from(seen)))
        });
        tokio::spawn(async move { server.serve(listener, app, std::future::pending()).await });

        let request = Request::get("http://a/x?y=1").body(Body::empty()).unwrap();
        let response = client.client().oneshot(request).await.unwrap();
        assert_eq!((response.status().as_u16(), response.version()), (200, http::Version::HTTP_11));
        let read = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
        assert_eq!(read, "true HTTP/1.1 /x?y=1 a");
    }
}
