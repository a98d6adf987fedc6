//! Becoming ready, the command line and its environment, workers, and leaving without failing anybody.

use std::time::Duration;

use mesh_test::client::{Call, Conn, Protocol};
use mesh_test::load::LoadGen;
use mesh_test::ports;
use mesh_test::process::Proc;
use mesh_test::sidecar::SidecarSpec;
use mesh_test::wait::{until_ok, until_secs};
use mesh_test::yaml::{Dir, Workload};
use tokio::time::Instant;

use crate::stage::{BIN, HOST, Stage};

/// Longer than any test here needs.
const LONG: Duration = Duration::from_secs(20);

/// Not ready without the workload, which is named; ready once it is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_names_the_workload_that_is_missing() {
    let stage = Stage::new();
    let mut late = stage.spec("late").outbound().spawn();
    let reply = until_ok(LONG, "the admin page", || late.admin_get("/ready")).await;
    assert_eq!(reply.status, 503);
    assert!(reply.text().contains("default/late"), "{}", reply.text());
    let refused = late.get(HOST, "/").await.unwrap();
    assert_eq!(refused.status / 100, 5, "{refused:?}");
    let workload = Workload::new("late", "default", "late", ports::loopback(1)).account("late");
    stage.dir.write("late.yaml", workload.to_string());
    late.wait_ready(LONG).await;
    assert!(stage.dir.file("late.yaml").exists());
    assert_eq!(late.admin_get("/healthz/ready").await.unwrap().status, 200);
}

/// SIGTERM: what is in flight is finished, connections are told to close, the exit code is 0.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_in_flight_are_finished() {
    for protocol in [Protocol::H1, Protocol::H2] {
        let stage = Stage::new();
        let reviews = stage.replica("a").await;
        let mut web = stage.spec("web").outbound().flag("--drain", "15s").start().await;
        let mut conn = web.connect(protocol).await.unwrap();
        assert_eq!(conn.send(&Call::get(HOST, "/")).await.unwrap().status, 200);
        let slow = tokio::spawn(async move {
            let reply = conn.send(&Call::get(HOST, "/delay/2500")).await;
            (reply, conn)
        });
        until_secs(20, "the request at work", async || reviews.app.in_flight() == 1).await;
        let begun = Instant::now();
        web.proc.terminate();
        web.proc.wait_for_line("draining", LONG).await;
        until_secs(20, "no more connections", async || web.connect(protocol).await.is_err()).await;
        assert!(web.proc.is_running(), "it waits for the request");
        let (reply, conn) = slow.await.unwrap();
        let reply = reply.unwrap();
        until_secs(20, "the connection closed", async || conn.is_closed()).await;
        assert_eq!(reply.status, 200);
        if protocol == Protocol::H1 {
            assert_eq!(reply.header("connection"), Some("close"), "{reply:?}");
        }
        assert!(web.proc.wait(LONG).await.success());
        println!("left after {:?}", begun.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(15), "it left when it was done, not at the deadline");
    }
}

/// The same on the side of the callee, whose sidecar ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_in_flight_to_the_workload_are_finished() {
    for protocol in [Protocol::H1, Protocol::H2] {
        let stage = Stage::new();
        let mut reviews = stage.replica("a").await;
        let web = stage.web().await;
        let mut conn = web.connect(protocol).await.unwrap();
        let slow = tokio::spawn(async move { conn.send(&Call::get(HOST, "/delay/1500")).await });
        until_secs(20, "the request at work", async || reviews.app.in_flight() == 1).await;
        reviews.sidecar.proc.terminate();
        let reply = slow.await.unwrap().unwrap();
        assert_eq!(reply.status, 200, "{:?}", reply.reason());
        assert!(reviews.sidecar.proc.wait(LONG).await.success());
    }
}

/// What takes longer than `--drain` is cut.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_has_an_end() {
    let stage = Stage::new();
    let reviews = stage.replica("a").await;
    let mut web = stage.spec("web").outbound().flag("--drain", "500ms").start().await;
    let mut conn = web.connect(Protocol::H1).await.unwrap();
    let slow = tokio::spawn(async move { conn.send(&Call::get(HOST, "/delay/60000")).await });
    until_secs(20, "the request at work", async || reviews.app.in_flight() == 1).await;
    let begun = Instant::now();
    web.proc.terminate();
    assert!(web.proc.wait(LONG).await.success());
    println!("left after {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    slow.await.unwrap().unwrap_err();
    assert!(web.proc.lines().iter().any(|l| l.contains("time to drain is over")), "{}", web.proc.tail());
}

/// Sidecars are restarted under load, one of the callee and the caller's own: no failed request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_under_load_fails_no_request() {
    for protocol in [Protocol::H1, Protocol::H2] {
        let stage = Stage::new();
        let (mut a, b) = (stage.replica("a").await, stage.replica("b").await);
        let web = stage.web().await;
        let load = LoadGen::to(web.outbound()).host(HOST).protocol(protocol).connections(4).start();
        for _ in 0..2 {
            let (was_a, was_b) = (a.app.requests(), b.app.requests());
            until_secs(30, "load on both", async || {
                a.app.requests() > was_a + 20 && b.app.requests() > was_b + 20
            })
            .await;
            let spec = a.sidecar.spec().clone();
            let (status, _) = a.sidecar.stop().await;
            assert!(status.success(), "{status}");
            let total = load.snapshot().total;
            until_secs(30, "load on the other", async || load.snapshot().total > total + 50).await;
            a.sidecar = spec.start().await;
        }
        let was = a.app.requests();
        until_secs(30, "load on the new one", async || a.app.requests() > was + 20).await;
        load.stop().await.assert_clean();
        assert!(web.stop().await.0.success());
    }
}

/// A port in use is an error that names the flag and the address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_in_use_is_a_clear_error() {
    let stage = Stage::new();
    let taken = std::net::TcpListener::bind(ports::free_addr()).unwrap();
    let addr = taken.local_addr().unwrap();
    let spec = || stage.spec("web");
    for (flag, spec) in [
        ("outbound", spec().outbound_at(addr)),
        ("inbound", spec().inbound(addr, ports::loopback(1))),
        ("admin", spec().outbound().admin_at(addr)),
    ] {
        let mut failed = spec.spawn();
        assert_eq!(failed.proc.wait(LONG).await.code(), Some(1));
        let tail = failed.proc.tail();
        assert!(tail.contains(&format!("mesh-proxy: cannot listen on --{flag} {addr}")), "{tail}");
    }
}

/// Every flag may stand in the environment; the command line wins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_environment_configures() {
    let stage = Stage::new();
    let _reviews = stage.replica("a").await;
    let (outbound, admin) = (ports::free_addr(), ports::free_addr());
    let log = stage.beside("env.log");
    let env = [
        ("MESH_CONFIG", stage.dir.path().display().to_string()),
        ("MESH_WORKLOAD", "default/web".to_owned()),
        ("MESH_DEV_CA", stage.ca_dir().display().to_string()),
        ("MESH_OUTBOUND", outbound.to_string()),
        ("MESH_ADMIN", admin.to_string()),
        ("MESH_WORKERS", "1".to_owned()),
        ("MESH_ACCESS_LOG", log.display().to_string()),
        ("MESH_ACCESS_LOG_FORMAT", "text".to_owned()),
        ("MESH_DRAIN", "1s".to_owned()),
        ("MESH_LOG", "debug".to_owned()),
    ];
    let mut web = Proc::spawn_with(BIN, ["run", "--log", "warn"], env);
    until_secs(20, "readiness", async || {
        mesh_test::client::get(admin, "localhost", "/ready").await.is_ok_and(|r| r.status == 200)
    })
    .await;
    assert_eq!(mesh_test::client::get(outbound, HOST, "/").await.unwrap().status, 200);
    until_secs(10, "the log", async || {
        std::fs::read_to_string(&log).is_ok_and(|t| t.contains("\"GET / HTTP/1.1\" 200"))
    })
    .await;
    let level = mesh_test::client::get(admin, "localhost", "/logging").await.unwrap().text();
    assert_eq!(level.trim(), "warn");
    web.terminate();
    assert!(web.wait(LONG).await.success());
}

/// The log level changes while running; nonsense is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_level_changes_while_running() {
    let stage = Stage::new();
    let _reviews = stage.replica("a").await;
    let web = stage.spec("web").outbound().flag("--log", "warn").start().await;
    let debug = || web.proc.lines().iter().any(|l| l.contains("DEBUG"));
    web.get(HOST, "/").await.unwrap();
    assert!(!debug(), "{}", web.proc.tail());
    let mut admin = Conn::open(web.admin(), Protocol::H1).await.unwrap();
    let set = |level: &str| Call::new(http::Method::POST, "localhost", &format!("/logging?level={level}"));
    let nonsense = admin.send(&set("loud=noise")).await.unwrap();
    assert_eq!(nonsense.status, 400);
    assert!(nonsense.text().contains("debug"), "{}", nonsense.text());
    let reply = admin.send(&set("debug")).await.unwrap();
    assert_eq!((reply.status, reply.text().trim()), (200, "debug"));
    until_secs(20, "something to read", async || {
        let _ = web.get("nobody:80", "/").await;
        // Broken off in the middle of its headers: worth a word at this level only.
        if let Ok(mut stream) = mesh_test::client::connect(web.outbound()).await {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"GET / HTTP/1.1\r\nx").await;
        }
        debug()
    })
    .await;
}

/// Each of two workers takes its share of the connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_workers_serve() {
    let stage = Stage::new();
    let reviews = stage.replica("a").await;
    let web = stage.spec("web").outbound().flag("--workers", "2").start().await;
    let tasks = format!("/proc/{}/task", web.proc.pid().unwrap());
    let switches = || -> Vec<(String, u64)> {
        let mut all: Vec<_> = std::fs::read_dir(&tasks)
            .unwrap()
            .filter_map(|task| {
                let status = std::fs::read_to_string(task.ok()?.path().join("status")).ok()?;
                let field = |name: &str| {
                    status.lines().find_map(|l| l.strip_prefix(name)).map(|v| v.trim().to_owned())
                };
                let name = field("Name:")?.strip_prefix("worker-")?.to_owned();
                Some((name, field("voluntary_ctxt_switches:")?.parse().ok()?))
            })
            .collect();
        all.sort();
        all
    };
    let before = switches();
    assert_eq!(before.len(), 2, "{before:?}");
    let load = LoadGen::to(web.outbound()).host(HOST).connections(4).fresh_connections();
    load.run_calls(200).await.assert_clean();
    let after = switches();
    for ((name, before), (_, after)) in before.iter().zip(&after) {
        assert!(after - before > 40, "worker {name} did nothing: {before} -> {after}");
    }
    assert!(reviews.app.requests() >= 200);
    assert!(web.metric("istio_requests_total", &["response_code=\"200\""]).await >= 200.0);
}

/// The command line is refused where it makes no sense, with the way out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_line_without_work_is_refused() {
    let dir = Dir::new();
    let spec = SidecarSpec::new(BIN, dir.path(), "default/web").dev_ca(dir.file("ca"));
    let mut idle = spec.spawn();
    assert_eq!(idle.proc.wait(LONG).await.code(), Some(1));
    assert!(idle.proc.tail().contains("--outbound"), "{}", idle.proc.tail());
}
