//! How many times one request asks the allocator for memory, once everything is warm; a test binary of its own,
//! because its allocator counts.
//!
//! What is counted is what runs for users: `mesh-proxy run` with the configuration of the scenario `plain`, and
//! the service of the scenario `layers`. They run in this process, each on a thread of its own; the client and
//! the backend beside them allocate nothing, so that every allocation is theirs. Each figure has a most, which
//! nobody may raise without saying why.
//!
//! `MESH_ALLOCATIONS=CASE` in the environment writes where each allocation of that case comes from to
//! `dhat-heap.json` in the working directory.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are tests, which clippy sees in test functions only"
)]

use std::convert::Infallible;
use std::ffi::OsString;
use std::future::{Ready, ready};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::thread;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header};
use mesh::AccessLogTo;
use mesh::core::body::Body;
use mesh::serve::ServedBody;
use mesh_bench::args::{Role, Variant};
use mesh_bench::role::layers;
use mesh_bench::template::Values;
use mesh_test::{ports, wait};
use tokio::task::LocalSet;
use tower::{Layer as _, Service, ServiceExt as _};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// Requests before the first that counts: pools, caches and buffers have grown, both sides of the split are
/// connected.
const WARM: u64 = 300;
/// Requests that are counted together.
const BATCH: u64 = 200;
/// How often. What else goes on in a process (a timer that sweeps, a batch of log lines that is written) is not in
/// all of them: the lowest count is the requests' own.
const BATCHES: usize = 5;

/// The body of every answer, in bytes.
const BODY: usize = 100;

/// How many allocations each case may make for one request.
#[derive(Debug)]
struct Most {
    /// What our layers (telemetry, authorization with ten rules, a rate limit) add to an axum service with a
    /// parameter in its path, nothing around them.
    layers: u64,
    /// The same with a service that looks at nothing: it has no extensions of its own, so that the map for them is
    /// ours as well.
    layers_plain: u64,
    /// What `Mesh::serve` with the same layers adds to the axum service on hyper's server: less than the layers alone,
    /// since its own server makes fewer than hyper's.
    served: u64,
    /// The same with a JSON access log in place of the rate limit.
    served_log: u64,
    /// The sidecar, with everything that `plain` has on.
    sidecar: u64,
    /// hyper on both sides with nothing between: its part of the sidecar's.
    relay: u64,
}

const MOST: Most = Most { layers: 3, layers_plain: 5, served: 1, served_log: 2, sidecar: 14, relay: 7 };

#[test]
fn a_request_costs_so_many_allocations() {
    let found = Most {
        layers: layers_around("layers", layers::app()),
        layers_plain: layers_around("layers_plain", Plain),
        ..over_sockets()
    };
    println!("{found:#?}");
    for (what, found, most) in [
        ("layers", found.layers, MOST.layers),
        ("layers_plain", found.layers_plain, MOST.layers_plain),
        ("served", found.served, MOST.served),
        ("served_log", found.served_log, MOST.served_log),
        ("sidecar", found.sidecar, MOST.sidecar),
        ("relay", found.relay, MOST.relay),
    ] {
        assert!(
            found <= most,
            "{what}: {found} allocations, not {most}; MESH_ALLOCATIONS={what} tells whose"
        );
    }
}

/// What the layers add to a service that is called, without a server.
fn layers_around<S, R>(case: &str, service: S) -> u64
where
    S: Service<Request<Body>, Response = Response<R>, Error = Infallible>
        + Service<Request<ServedBody>, Response = Response<R>, Error = Infallible>
        + Clone,
    R: http_body::Body<Data = Bytes, Error: 'static> + Default + From<Bytes> + Unpin,
{
    let (mesh, _driver) = layers::mesh(AccessLogTo::Off).unwrap();
    let layered = mesh.server_layer().layer(layers::rate_limit().unwrap().layer(service.clone()));
    count(case, || call(layered.clone())) - count("without layers", || call(service.clone()))
}

/// One call of a service that need not wait for anything, and the whole of its answer.
fn call<S, R>(service: S)
where
    S: Service<Request<Body>, Response = Response<R>, Error = Infallible>,
    R: http_body::Body<Data = Bytes> + Unpin,
{
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = Uri::from_static("/reviews/7");
    request.headers_mut().insert(header::HOST, HeaderValue::from_static("reviews:9080"));
    let mut cx = Context::from_waker(Waker::noop());
    let Poll::Ready(Ok(mut response)) = pin!(service.oneshot(request)).poll(&mut cx) else {
        panic!("it waits")
    };
    assert_eq!(response.status(), 200);
    while let Poll::Ready(Some(frame)) = Pin::new(response.body_mut()).poll_frame(&mut cx) {
        assert!(frame.is_ok());
    }
}

/// A service that answers whatever is asked, and looks at nothing.
#[derive(Clone)]
struct Plain;

impl<B> Service<Request<B>> for Plain {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        ready(Ok(Response::new(Body::from("plain"))))
    }
}

/// What servers and the sidecar cost with a client and a backend on real connections.
fn over_sockets() -> Most {
    let dir = tempfile::tempdir().unwrap();
    let backend = ports::free_addr();
    role(Role::Backend { listen: vec![backend] });
    let relay = ports::free_addr();
    role(Role::Relay { listen: relay, to: backend, h2: false });
    let layers = |variant| {
        let listen = ports::free_addr();
        role(Role::Layers { listen, variant, log: dir.path().join("layers.log") });
        listen
    };
    let (alone, limit, log) =
        (layers(Variant::Alone), layers(Variant::LayersLimit), layers(Variant::LayersLog));
    let sidecar = sidecar(dir.path(), backend);
    listening(backend);

    let alone = count_served("alone", alone);
    Most {
        layers: 0,
        layers_plain: 0,
        served: count_served("served", limit) - alone,
        served_log: count_served("served_log", log) - alone,
        sidecar: count_served("sidecar", sidecar),
        relay: count_served("relay", relay),
    }
}

fn count_served(case: &str, listen: SocketAddr) -> u64 {
    listening(listen);
    let mut client = Client::open(listen);
    count(case, || client.call())
}

/// Allocations of one call, on all threads.
fn count(case: &str, mut call: impl FnMut()) -> u64 {
    let mut calls = |count| (0..count).for_each(|_| call());
    calls(WARM);
    let profile = std::env::var_os("MESH_ALLOCATIONS").is_some_and(|wanted| wanted == case);
    let profiler = dhat::Profiler::builder();
    let _profiler = if profile { profiler.trim_backtraces(None).build() } else { profiler.testing().build() };
    let batches: Vec<u64> = (0..BATCHES)
        .map(|_| {
            let before = dhat::HeapStats::get().total_blocks;
            calls(BATCH);
            dhat::HeapStats::get().total_blocks - before
        })
        .collect();
    println!("{case}: {batches:?} allocations, in {BATCH} calls each");
    batches.into_iter().min().unwrap_or_default() / BATCH
}

/// A client on one connection that allocates nothing.
struct Client {
    stream: TcpStream,
    buffer: [u8; 4096],
}

impl Client {
    fn open(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: [0; 4096] }
    }

    /// One request, and the whole of its answer.
    fn call(&mut self) {
        self.stream
            .write_all(b"GET /reviews/7 HTTP/1.1\r\nhost: reviews:9080\r\nuser-agent: allocations\r\n\r\n")
            .unwrap();
        let mut filled = 0;
        loop {
            let read = self.stream.read(&mut self.buffer[filled..]).unwrap();
            assert!(read > 0, "the connection was closed");
            filled += read;
            let answer = &self.buffer[..filled];
            assert!(
                answer.starts_with(&b"HTTP/1.1 200 OK\r\n"[..filled.min(17)]),
                "{}",
                answer.escape_ascii()
            );
            let head = answer.windows(4).position(|four| four == b"\r\n\r\n");
            if head.is_some_and(|head| filled == head + 4 + BODY) {
                return;
            }
        }
    }
}

/// A role of the benchmark, on a thread that ends with the process.
fn role(role: Role) {
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(LocalSet::new().run_until(mesh_bench::role::run(role))).unwrap();
    });
}

/// `mesh-proxy run`, on a thread that ends with the process.
fn sidecar(dir: &Path, backend: SocketAddr) -> SocketAddr {
    let listen = ports::free_addr();
    let config = dir.join("config");
    let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/ours/plain");
    Values::new()
        .with("BACKEND_V1", backend.port())
        .with("BACKEND_V2", backend.port())
        .with("PORT_NAME", "http")
        .with("LIMIT", 20_000)
        .render_to(&peers, &config)
        .unwrap();
    let mut command: Vec<OsString> = "mesh-proxy run --workload default/web --workers 1 --log warn"
        .split(' ')
        .map(OsString::from)
        .collect();
    let flags: [(&str, OsString); 5] = [
        ("--config", config.into()),
        ("--dev-ca", dir.join("ca").into()),
        ("--admin", ports::free_addr().to_string().into()),
        ("--access-log", dir.join("access.log").into()),
        ("--outbound", listen.to_string().into()),
    ];
    for (flag, value) in flags {
        command.extend([flag.into(), value]);
    }
    thread::spawn(move || mesh_proxy::main(command));
    listen
}

/// Returns when somebody listens.
fn listening(addr: SocketAddr) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let listens = async || mesh_test::client::connect(addr).await.is_ok();
    runtime.block_on(wait::until_secs(20, "somebody listens", listens));
}
