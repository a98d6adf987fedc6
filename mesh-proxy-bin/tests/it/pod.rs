//! Two pods whose connections are redirected to their sidecars, and somebody outside of the mesh: three networks on
//! one bridge, real rules, real processes.
//!
//! The test itself stands in the first pod, as its application. Threads of it stand in the other networks.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use mesh_test::backend::Backend;
use mesh_test::ca::TestCa;
use mesh_test::client::{self, Call, CallError, Conn, Protocol, Reply};
use mesh_test::process::Proc;
use mesh_test::sidecar::metric_sum;
use mesh_test::tcp::EchoServer;
use mesh_test::wait::until_secs;
use mesh_test::yaml::{self, Dir, Workload};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::interception::{Held, in_a_network_of_its_own, sh};
use crate::stage::BIN;

const LONG: Duration = Duration::from_secs(20);
const WEB: &str = "10.99.0.1";
const REVIEWS: &str = "10.99.0.2";
/// Outside of the mesh; holds the bridge.
const OUTSIDE: &str = "10.99.0.3";
const BANNER: &str = "5.7 hello\n";

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: default}
spec: {clusterIP: 10.96.0.10, selector: {app: reviews}, ports: [{name: http, port: 9080, targetPort: 8080}, {name: tcp-db, port: 3306}, {name: any, port: 7777}]}
---
apiVersion: v1
kind: Service
metadata: {name: each, namespace: default}
spec: {clusterIP: None, selector: {app: reviews}, ports: [{name: http, port: 8080}]}
";

fn addr(host: &str, port: u16) -> SocketAddr {
    SocketAddr::new(host.parse().unwrap(), port)
}

/// A network of its own, held by a process that does nothing.
struct Net(Held);

impl Net {
    /// On the bridge of `bridge` (a process) or, without, with the bridge.
    fn new(address: &str, bridge: Option<&Self>) -> Self {
        let held = Held(Command::new("unshare").args(["--net", "--", "sleep", "600"]).spawn().unwrap());
        let net = Self(held);
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        let path = net.path();
        runtime().block_on(mesh_test::wait::until_secs(10, "the network", async || {
            std::fs::read_link(&path).is_ok_and(|link| link != own)
        }));
        match bridge {
            None => net.script(&format!(
                "ip link set lo up; ip link add br0 type bridge; ip addr add {address}/24 dev br0; ip link set br0 up"
            )),
            Some(bridge) => bridge.attach(address, net.0.0.id()),
        }
        net
    }

    /// Attaches the network of process `pid` to this one's bridge.
    fn attach(&self, address: &str, pid: u32) {
        let port = format!("p{}", address.rsplit('.').next().unwrap());
        self.script(&format!(
            "ip link add {port} type veth peer name eth0 netns {pid}; ip link set {port} master br0; \
             ip link set {port} up"
        ));
        let setup = format!(
            "ip link set lo up; ip addr add {address}/24 dev eth0; ip link set eth0 up; \
             ip route add default via {OUTSIDE}"
        );
        sh(&format!("nsenter --net=/proc/{pid}/ns/net bash -euc '{setup}'"));
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.0.id())
    }

    fn script(&self, script: &str) {
        sh(&format!("nsenter --net={} bash -euc '{script}'", self.path()));
    }

    /// Runs `work` on a thread that stands in this network.
    fn run<T, F>(&self, work: impl FnOnce() -> F + Send + 'static) -> thread::JoinHandle<T>
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        let path = self.path();
        thread::spawn(move || {
            let link = std::fs::File::open(path).unwrap();
            let net = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&link), net).unwrap();
            runtime().block_on(work())
        })
    }

    fn get(&self, at: SocketAddr, host: &str, path: &str) -> Result<Reply, CallError> {
        let (host, path) = (host.to_owned(), path.to_owned());
        self.run(move || async move { client::get(at, &host, &path).await }).join().unwrap()
    }

    /// What somebody who only listens hears within a while; nothing where the connection is closed.
    fn hears(&self, at: SocketAddr) -> String {
        self.run(move || hear(at)).join().unwrap()
    }
}

async fn hear(at: SocketAddr) -> String {
    let Ok(mut stream) = TcpStream::connect(at).await else { return "refused".into() };
    let mut heard = vec![0; BANNER.len()];
    match tokio::time::timeout(LONG, stream.read_exact(&mut heard)).await {
        Ok(Ok(_)) => {}
        _ => return String::new(),
    }
    stream.write_all(b"back").await.unwrap();
    let mut back = [0; 4];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"back");
    String::from_utf8(heard).unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A sidecar with the defaults of an injected one, as the user's group whose connections are left alone.
fn sidecar(dir: &Path, ca: &Path, workload: &str, ip: &str, env: &[(&str, &str)]) -> Proc {
    let ca = ca.to_str().unwrap().to_owned();
    let config = dir.to_str().unwrap().to_owned();
    let args = ["--regid", "1337", "--clear-groups", BIN, "run", "--transparent"];
    let flags =
        ["--config", &config, "--workload", workload, "--dev-ca", &ca, "--workers", "2", "--drain", "15s"];
    let env = [("POD_IP", ip)].into_iter().chain(env.iter().copied());
    Proc::spawn_with("setpriv", args.iter().chain(&flags), env)
}

fn init() {
    let output = Command::new(BIN).arg("init").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

async fn ready(ip: &str) {
    let at = addr(ip, 15021);
    until_secs(30, "a sidecar that is ready", async || {
        client::get(at, "x", "/healthz/ready").await.is_ok_and(|reply| reply.status == 200)
    })
    .await;
}

/// An application's metrics.
async fn metrics(at: SocketAddr) {
    const PAGE: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\nconnection: close\r\n\r\n\
                        # TYPE jobs gauge\njobs 3\n";
    let listener = tokio::net::TcpListener::bind(at).await.unwrap();
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = [0; 1024];
        let _ = stream.read(&mut head).await;
        let _ = stream.write_all(PAGE.as_bytes()).await;
    }
}

/// The second pod: its applications and its sidecar, until it is told to end.
fn reviews(net: &Net, dir: &Dir, ca: &Path) -> (mpsc::Sender<()>, thread::JoinHandle<ExitStatus>) {
    const PROBES: &str = r#"{
        "/app-health/a/readyz": {"httpGet": {"path": "/echo", "port": 8080}},
        "/app-health/a/livez": {"tcpSocket": {"port": 3306}},
        "/app-health/a/startupz": {"httpGet": {"path": "/status/500", "port": 8080}},
        "/app-health/b/readyz": {"grpc": {"port": 8080}},
        "/app-health/b/livez": {"tcpSocket": {"port": 1}},
        "/app-health/b/startupz": {"httpGet": {"path": "/delay/60000", "port": 8080}, "timeoutSeconds": 1}
    }"#;
    let (end, ended) = mpsc::channel();
    let (up, is_up) = mpsc::channel();
    let (dir, ca) = (dir.path().to_owned(), ca.to_owned());
    let pod = net.run(move || async move {
        init();
        let http = Backend::bind("reviews-1", addr(REVIEWS, 8080)).await;
        let _db = EchoServer::with_banner(addr(REVIEWS, 3306), BANNER).await;
        let _any = EchoServer::with_banner(addr(REVIEWS, 7777), BANNER).await;
        let _undeclared = Backend::bind("undeclared", addr(REVIEWS, 4444)).await;
        tokio::spawn(metrics(addr(REVIEWS, 9090)));
        let env = [("MESH_APP_PROBES", PROBES), ("MESH_APP_METRICS", r#"{"port": 9090, "path": "/m"}"#)];
        let mut proxy = sidecar(&dir, &ca, "default/reviews-1", REVIEWS, &env);
        ready(REVIEWS).await;
        up.send(()).unwrap();
        // Its applications go on while the sidecar ends.
        let ended = tokio::task::spawn_blocking(move || ended.recv());
        if ended.await.unwrap().is_ok() {
            until_secs(20, "the request at work", async || http.in_flight() == 1).await;
        }
        proxy.terminate();
        proxy.wait(LONG).await
    });
    is_up.recv_timeout(LONG).unwrap();
    (end, pod)
}

/// The parts of a mesh of two pods.
struct Stage {
    dir: Dir,
    outside: Net,
    pod: Net,
    end: mpsc::Sender<()>,
    reviews: thread::JoinHandle<ExitStatus>,
    web: Proc,
    _files: Dir,
}

impl Stage {
    /// To be made within a runtime.
    async fn new() -> Self {
        let (dir, files) = (Dir::new(), Dir::new());
        let ca = files.file("ca");
        TestCa::new().write_dev_ca(&ca);
        dir.write("services.yaml", SERVICES);
        let web = Workload::new("web-1", "default", "web", addr(WEB, 80)).account("web").sidecar();
        dir.write("web.yaml", web.to_string());
        let reviews_1 = Workload::new("reviews-1", "default", "reviews", addr(REVIEWS, 8080));
        dir.write("reviews-1.yaml", reviews_1.account("reviews").sidecar().to_string());
        dir.write("strict.yaml", yaml::peer_authentication("strict", "default", "", "STRICT"));
        let (outside, pod) = tokio::task::spawn_blocking(|| {
            let outside = Net::new(OUTSIDE, None);
            outside.attach(WEB, std::process::id());
            let pod = Net::new(REVIEWS, Some(&outside));
            drop(outside.run(|| async {
                let _http = Backend::bind("outside", addr(OUTSIDE, 8000)).await;
                let _db = EchoServer::with_banner(addr(OUTSIDE, 5000), BANNER).await;
                std::future::pending::<()>().await;
            }));
            init();
            (outside, pod)
        })
        .await
        .unwrap();
        let (end, reviews) = reviews(&pod, &dir, &ca);
        let web = sidecar(dir.path(), &ca, "default/web-1", WEB, &[]);
        ready(WEB).await;
        Self { dir, outside, pod, end, reviews, web, _files: files }
    }

    fn strict(&self, mode: &str) {
        self.dir.write("strict.yaml", yaml::peer_authentication("strict", "default", "", mode));
    }

    fn page(&self, at: SocketAddr, path: &str) -> Reply {
        self.outside.get(at, "x", path).unwrap()
    }

    fn metric(&self, ip: &str, name: &str, labels: &[&str]) -> f64 {
        metric_sum(&self.page(addr(ip, 15090), "/stats/prometheus").text(), name, labels)
    }
}

#[test]
#[ignore = "needs nft, ip and setpriv"]
fn an_unchanged_application_is_in_the_mesh() {
    in_a_network_of_its_own("pod::an_unchanged_application_is_in_the_mesh", || {
        runtime().block_on(async {
            let stage = Stage::new().await;
            calls(&stage).await;
            strangers(&stage).await;
            what_nobody_knows(&stage).await;
            pages(&stage);
            loops(&stage).await;
        });
    });
}

/// The application of the first pod calls the second, in every way that there is.
async fn calls(stage: &Stage) {
    let vip = addr("10.96.0.10", 9080);
    for host in ["reviews:9080", "reviews", "reviews.default.svc.cluster.local:9080", "10.96.0.10:9080"] {
        let reply = client::get(vip, host, "/").await.unwrap();
        assert_eq!(
            (reply.status, reply.served_by()),
            (200, Some("reviews-1")),
            "{host}: {:?}",
            reply.reason()
        );
    }
    assert_eq!(client::get_h2(vip, "reviews:9080", "/").await.unwrap().status, 200);
    // By the endpoint's own address: what a headless service's name leads to, or nothing but the address.
    for host in ["each:8080", "reviews-1.each:8080", "10.99.0.2:8080"] {
        let reply = client::get(addr(REVIEWS, 8080), host, "/").await.unwrap();
        assert_eq!(
            (reply.status, reply.served_by()),
            (200, Some("reviews-1")),
            "{host}: {:?}",
            reply.reason()
        );
    }
    // Where the server speaks first, declared or not, by the service and by the endpoint's address.
    for at in [addr("10.96.0.10", 3306), addr("10.96.0.10", 7777), addr(REVIEWS, 3306), addr(REVIEWS, 7777)] {
        assert_eq!(hear(at).await, BANNER, "{at}");
    }
    let mutual = [
        "source_principal=\"spiffe://cluster.local/ns/default/sa/web\"",
        "connection_security_policy=\"mutual_tls\"",
    ];
    assert_eq!(stage.metric(REVIEWS, "istio_requests_total", &mutual), 8.0);
    assert_eq!(stage.metric(REVIEWS, "istio_tcp_connections_opened_total", &mutual), 4.0);
    assert_eq!(stage.metric(REVIEWS, "istio_requests_total", &["connection_security_policy=\"none\""]), 0.0);
    let own =
        ["reporter=\"source\"", "destination_principal=\"spiffe://cluster.local/ns/default/sa/reviews\""];
    assert_eq!(stage.metric(WEB, "istio_requests_total", &own), 8.0);

    // The second pod's application calls its own service, and is served like anybody: by way of both sides.
    let reply = stage.pod.get(vip, "reviews:9080", "/").unwrap();
    assert_eq!((reply.status, reply.served_by()), (200, Some("reviews-1")), "{:?}", reply.reason());
    let own =
        ["reporter=\"destination\"", "source_principal=\"spiffe://cluster.local/ns/default/sa/reviews\""];
    assert_eq!(stage.metric(REVIEWS, "istio_requests_total", &own), 1.0);
}

/// Who is not in the mesh is refused under STRICT, and served under PERMISSIVE.
async fn strangers(stage: &Stage) {
    let http = addr(REVIEWS, 8080);
    assert!(stage.outside.get(http, "reviews", "/").is_err());
    stage.strict("PERMISSIVE");
    until_secs(20, "PERMISSIVE", async || {
        stage.outside.get(http, "reviews", "/").is_ok_and(|reply| reply.status == 200)
    })
    .await;
    assert_eq!(stage.outside.hears(addr(REVIEWS, 3306)), BANNER);
    assert_eq!(stage.outside.hears(addr(REVIEWS, 7777)), BANNER);
    // A port that no service has is handed over all the same, and PeerAuthentication holds for it.
    let undeclared = addr(REVIEWS, 4444);
    assert_eq!(stage.outside.get(undeclared, "x", "/").unwrap().served_by(), Some("undeclared"));
    stage.strict("STRICT");
    until_secs(20, "STRICT", async || stage.outside.get(http, "reviews", "/").is_err()).await;
    assert!(stage.outside.get(undeclared, "x", "/").is_err());
    assert_eq!(stage.outside.hears(addr(REVIEWS, 3306)), "");
}

/// What the mesh does not know is passed on as it came, until a Sidecar closes it.
async fn what_nobody_knows(stage: &Stage) {
    let http = addr(OUTSIDE, 8000);
    let mut conn = Conn::open(http, Protocol::H1).await.unwrap();
    let call = Call::get("example.com", "/");
    assert_eq!(conn.send(&call).await.unwrap().served_by(), Some("outside"));
    assert_eq!(client::get_h2(http, "example.com", "/").await.unwrap().status, 200);
    assert_eq!(hear(addr(OUTSIDE, 5000)).await, BANNER);
    let passed = ["destination_service_name=\"PassthroughCluster\""];
    assert_eq!(stage.metric(WEB, "istio_requests_total", &passed), 2.0);
    assert_eq!(stage.metric(WEB, "istio_tcp_connections_opened_total", &passed), 1.0);

    let closed = "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: own, namespace: default}\n\
                  spec: {outboundTrafficPolicy: {mode: REGISTRY_ONLY}}\n";
    stage.dir.write("sidecar.yaml", closed);
    until_secs(20, "REGISTRY_ONLY", async || {
        let reply = client::get(http, "example.com", "/").await.unwrap();
        (reply.status, reply.reason()) == (502, Some("unknown_host"))
    })
    .await;
    until_secs(20, "the end of what was open", async || conn.is_closed()).await;
    assert_eq!(hear(addr(OUTSIDE, 5000)).await, "");
    let closed = ["destination_service_name=\"BlackHoleCluster\""];
    assert_eq!(stage.metric(WEB, "istio_tcp_connections_opened_total", &closed), 1.0);
    assert_eq!(client::get(addr("10.96.0.10", 9080), "reviews:9080", "/").await.unwrap().status, 200);
    stage.dir.remove("sidecar.yaml");
    until_secs(20, "ALLOW_ANY", async || {
        client::get(http, "example.com", "/").await.is_ok_and(|reply| reply.status == 200)
    })
    .await;
}

/// What the kubelet and Prometheus ask for, under STRICT, from outside of the mesh.
fn pages(stage: &Stage) {
    let status = addr(REVIEWS, 15020);
    for (path, want) in [
        ("/app-health/a/readyz", 200),
        ("/app-health/a/livez", 200),
        ("/app-health/a/startupz", 500),
        ("/app-health/b/readyz", 503),
        ("/app-health/b/livez", 503),
        ("/app-health/b/startupz", 503),
        ("/app-health/c/readyz", 404),
        ("/healthz/ready", 200),
    ] {
        let reply = stage.page(status, path);
        assert_eq!(reply.status, want, "{path}: {}", reply.text());
    }
    let both = stage.page(status, "/stats/prometheus").text();
    for line in ["# TYPE istio_requests_total counter", "mesh_app_metrics_up 1", "jobs 3"] {
        assert!(both.lines().any(|l| l == line), "{line}\n{both}");
    }
    let own = stage.page(addr(REVIEWS, 15090), "/stats/prometheus").text();
    assert!(own.contains("istio_requests_total{") && !own.contains("jobs"), "{own}");
    let quit = stage.outside.run(move || async move {
        client::send(status, &Call::post("x", "/quitquitquit", "")).await.unwrap().status
    });
    assert_eq!(quit.join().unwrap(), 403, "from within the pod only");
    assert!(
        stage.outside.get(addr(REVIEWS, 15000), "x", "/config_dump").is_err(),
        "the admin page is the pod's own"
    );
}

/// Who calls the sidecar itself gets nothing, and nothing goes round in circles.
async fn loops(stage: &Stage) {
    for port in [15001, 15006] {
        assert!(stage.outside.get(addr(REVIEWS, port), "reviews", "/").is_err(), "{port} from outside");
        assert!(client::get(addr("127.0.0.1", port), "reviews", "/").await.is_err(), "{port} from within");
        assert!(client::get(addr("10.96.0.10", port), "reviews", "/").await.is_err(), "{port} of a service");
    }
    let refused = |ip: &str, reason: &str| {
        stage.metric(ip, "mesh_connections_refused_total", &[&format!("reason=\"{reason}\"")])
    };
    // From outside both arrive at the inbound side: one as it came, the other redirected to where it was going.
    assert_eq!((refused(REVIEWS, "loop"), refused(REVIEWS, "not_redirected")), (1.0, 1.0));
    assert_eq!((refused(WEB, "loop"), refused(WEB, "not_redirected")), (2.0, 2.0));
}

#[test]
#[ignore = "needs nft, ip and setpriv"]
fn a_pod_ends_without_failing_anybody() {
    in_a_network_of_its_own("pod::a_pod_ends_without_failing_anybody", || {
        runtime().block_on(async {
            let mut stage = Stage::new().await;
            let health =
                |outside: &Net, ip| outside.get(addr(ip, 15021), "x", "/healthz/ready").unwrap().status;
            let vip = addr("10.96.0.10", 9080);
            let slow = tokio::spawn(async move { client::get(vip, "reviews:9080", "/delay/3000").await });
            stage.end.send(()).unwrap();
            until_secs(20, "a pod that is not ready", async || health(&stage.outside, REVIEWS) == 503).await;
            // What comes late is served as long as anything is in flight.
            let late = client::get(vip, "reviews:9080", "/").await.unwrap();
            assert_eq!(late.status, 200, "{:?}", late.reason());
            // And the application's last calls.
            assert_eq!(stage.pod.get(addr(OUTSIDE, 8000), "example.com", "/").unwrap().status, 200);
            assert_eq!(slow.await.unwrap().unwrap().status, 200);
            assert!(stage.reviews.join().unwrap().success());

            // What asks before it ends the application is told when everybody knows of it.
            let own = addr("127.0.0.1", 15020);
            let at_once = client::get(own, "x", "/withdrawn?within=0").await.unwrap();
            assert_eq!(at_once.text(), "the time is over\n");
            assert_eq!(client::get(own, "x", "/withdrawn?within=x").await.unwrap().status, 400);
            // One more than is held up at once.
            let many = (0..33).map(|_| client::get(own, "x", "/withdrawn?within=3"));
            let many =
                futures_util::future::join_all(many).await.into_iter().map(|reply| reply.unwrap().status);
            let (held, refused): (Vec<_>, Vec<_>) = many.partition(|status| *status == 200);
            assert_eq!((held.len(), refused.as_slice()), (32, &[503][..]));
            let hook =
                tokio::spawn(async move { client::get(own, "x", "/withdrawn?within=60").await.unwrap() });
            assert_eq!(health(&stage.outside, WEB), 200);
            let deleted = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web-1\n  namespace: default\n  \
                           deletionTimestamp: \"2026-01-01T00:00:00Z\"\n  labels: {app: web}\n\
                           spec: {serviceAccountName: web}\n";
            stage.dir.write("web.yaml", format!("{deleted}status: {{podIP: {WEB}, phase: Running}}\n"));
            let hook = hook.await.unwrap();
            assert_eq!((hook.status, hook.text().as_str()), (200, "callers have been told\n"));
            until_secs(20, "a pod that leaves", async || health(&stage.outside, WEB) == 503).await;

            // Nothing in flight: it ends at once, here because the application says so.
            let quit = client::send(addr("127.0.0.1", 15020), &Call::post("x", "/quitquitquit", "")).await;
            assert_eq!(quit.unwrap().status, 200);
            assert!(stage.web.wait(LONG).await.success());
        });
    });
}
