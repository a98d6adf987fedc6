//! The benchmark's own parts at work, without outside programs; and with them, ignored.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests are tests, which clippy sees in test functions only"
)]

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output};

use mesh_bench::peer::Peer;
use mesh_bench::report::{CaseReport, Row};
use mesh_bench::scenario::CASES;
use mesh_bench::template::Values;
use mesh_test::process::Proc;
use mesh_test::{ports, wait};

const BENCH: &str = env!("CARGO_BIN_EXE_mesh-bench");

/// The program in a role that listens.
async fn role(args: &[&str], listen: SocketAddr) -> Proc {
    let proc = Proc::spawn(BENCH, ["role"].iter().chain(args));
    wait::until_secs(20, "the role listens", async || mesh_test::client::connect(listen).await.is_ok()).await;
    proc
}

async fn bench(args: &[&str]) -> Output {
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    tokio::task::spawn_blocking(move || Command::new(BENCH).args(args).output().unwrap()).await.unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&*output.stdout, &*output.stderr].concat()).into_owned()
}

/// The open loop sends as many requests as it is told, to the backend and through the relay, and tells five
/// figures.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_open_loop_counts_every_request() {
    let (backend_at, relay_at) = (ports::free_addr(), ports::free_addr());
    let (b, r) = (backend_at.to_string(), relay_at.to_string());
    let _backend = role(&["backend", "--listen", &b], backend_at).await;
    let _relay = role(&["relay", "--listen", &r, "--to", &b], relay_at).await;
    for to in [&b, &r] {
        let rate = ["--rate", "2000", "--count", "300", "--connections", "4"];
        let mut args = vec!["role", "open-loop", "--to", to, "--host", "reviews"];
        args.extend(rate);
        let output = bench(&args).await;
        assert!(output.status.success(), "{}", text(&output));
        let figures: Vec<f64> =
            String::from_utf8_lossy(&output.stdout).split_whitespace().map(|f| f.parse().unwrap()).collect();
        let [count, seconds, p50, p99, p999] = figures[..] else { panic!("{figures:?}") };
        assert!((count - 300.0).abs() < 0.5);
        assert!(seconds > 0.0 && 0.0 < p50 && p50 <= p99 && p99 <= p999, "{figures:?}");
    }
}

/// An answer that is not 200 is a failure, not a fast answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_open_loop_fails_with_the_proxy() {
    let failing = mesh_test::backend::Backend::start("failing").await;
    let to = failing.addr().to_string();
    let mut args = vec!["role", "open-loop", "--to", &to, "--host", "reviews", "--rate", "1000"];
    args.extend(["--count", "10", "--connections", "1"]);
    let good = bench(&args).await;
    assert!(good.status.success(), "{}", text(&good));
    let at = failing.addr();
    drop(failing);
    // Its socket is closed by a task that ends a little later.
    let refused = async || tokio::net::TcpStream::connect(at).await.is_err();
    wait::until_secs(30, "the backend's end", refused).await;
    let gone = bench(&args).await;
    assert!(!gone.status.success() && text(&gone).contains("to connect"), "{}", text(&gone));
}

/// HTTP/2 and gRPC as h2load will ask for them, through the relay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_backends_answer_what_the_scenarios_check() {
    use mesh_bench::scenario::{Wire, plain};
    for wire in [Wire::H1, Wire::H2, Wire::Grpc] {
        let (backend_at, relay_at) = (ports::free_addr(), ports::free_addr());
        let (b, r) = (backend_at.to_string(), relay_at.to_string());
        let name = if wire == Wire::H1 { "backend" } else { "backend-h2" };
        let _backend = role(&[name, "--listen", &b], backend_at).await;
        let mut args = vec!["relay", "--listen", &r, "--to", &b];
        args.extend((wire != Wire::H1).then_some("--h2"));
        let _relay = role(&args, relay_at).await;
        plain::verify(relay_at, wire, false).await.unwrap();
        // The relay knows one backend: whoever claims to split is found out.
        let error = plain::verify(relay_at, wire, true).await.unwrap_err().to_string();
        assert!(error.starts_with("0 of 300"), "{error}");
    }
}

/// Bytes there and back, and without end, through the relay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_come_back_and_are_counted() {
    let (backend_at, relay_at) = (ports::free_addr(), ports::free_addr());
    let (b, r) = (backend_at.to_string(), relay_at.to_string());
    let _backend = role(&["tcp-backend", "--listen", &b], backend_at).await;
    let _relay = role(&["tcp-relay", "--listen", &r, "--to", &b], relay_at).await;
    for work in ["bulk", "pingpong"] {
        let args = ["role", "tcp-load", "--to", &r, "--work", work, "--connections", "2", "--seconds", "0"];
        let output = bench(&args).await;
        assert!(output.status.success(), "{}", text(&output));
        assert_eq!(String::from_utf8_lossy(&output.stdout).split_whitespace().count(), 5);
    }
    drop(_backend);
    let args = ["role", "tcp-load", "--to", &r, "--work", "pingpong", "--connections", "1", "--seconds", "5"];
    assert!(!bench(&args).await.status.success());
}

/// The variants of `layers`: with our layers policy holds, without there is nobody who would refuse.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_layers_are_around_the_service() {
    let dir = mesh_test::yaml::Dir::new();
    for (variant, refused, logs) in [
        ("alone", 404, false),
        ("layers", 403, false),
        ("layers-limit", 403, false),
        ("layers-log", 403, true),
        ("trace-layer", 404, false),
    ] {
        let listen = ports::free_addr();
        let log = dir.file(variant);
        let at = listen.to_string();
        let args = ["layers", "--listen", &at, "--variant", variant, "--log", log.to_str().unwrap()];
        let _service = role(&args, listen).await;
        assert_eq!(
            mesh_test::client::get(listen, "reviews", "/reviews/7").await.unwrap().status,
            200,
            "{variant}"
        );
        assert_eq!(
            mesh_test::client::get(listen, "reviews", "/secret").await.unwrap().status,
            refused,
            "{variant}"
        );
        if logs {
            wait::until_secs(20, "lines in the log", async || {
                std::fs::read_to_string(&log).is_ok_and(|text| text.lines().count() == 2)
            })
            .await;
        }
    }
}

/// Every file of `bench/peers` is text with placeholders that close; our own configurations are YAML.
#[test]
fn the_peers_files_render() {
    let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
    let dir = mesh_test::yaml::Dir::new();
    let values = [
        "ADDRESS",
        "ADMIN",
        "ALPN",
        "APP",
        "BACKEND_V1",
        "BACKEND_V2",
        "CLUSTERS",
        "CONNECTIONS",
        "DIR",
        "ENDPOINT",
        "ENDPOINTS",
        "HOSTS",
        "IDENTITY",
        "INBOUND",
        "KEEPALIVE",
        "LIMIT",
        "LOG",
        "MAXCONN",
        "NAME",
        "PORT",
        "PORT_NAME",
        "PROTO",
        "RULE",
        "RULES",
        "UPSTREAM_PROTOCOL",
        "VIRTUAL_HOSTS",
    ]
    .into_iter()
    .fold(Values::new(), |values, name| values.with(name, 1));
    values.render_to(&peers, &dir.file("rendered")).unwrap();
    let mut rendered = 0;
    for file in std::fs::read_dir(dir.file("rendered")).unwrap() {
        let path = file.unwrap().path();
        if path.is_file() {
            rendered += 1;
            assert!(!std::fs::read_to_string(path).unwrap().contains("{{"));
        }
    }
    assert!(rendered >= 9);
}

/// Our configurations say what they mean: nothing in them is skipped or without effect.
#[test]
fn our_own_configurations_are_whole() {
    let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/ours");
    let dir = mesh_test::yaml::Dir::new();
    let values = ["BACKEND_V1", "BACKEND_V2", "INBOUND", "LIMIT"]
        .into_iter()
        .fold(Values::new().with("PORT_NAME", "http"), |values, name| values.with(name, 9000));
    for folder in ["plain", "mtls", "tcp", "tcp-mtls", "routes"] {
        values.render_to(&peers.join(folder), &dir.file(folder)).unwrap();
        let report = mesh::check(&dir.file(folder), "istio-system").unwrap();
        assert!(report.diagnostics.is_empty(), "{folder}: {:?}", report.diagnostics);
    }
}

#[test]
fn the_list_names_every_case() {
    let output = Command::new(BENCH).arg("--list").output().unwrap();
    let text = text(&output);
    assert!(output.status.success());
    for case in CASES {
        assert!(text.lines().any(|line| line.starts_with(case.id)), "{}", case.id);
    }
    let output = Command::new(BENCH).arg("nonsense").output().unwrap();
    assert!(!output.status.success());
}

#[test]
fn a_row_with_an_error_has_no_figures_in_the_table() {
    let case = CASES.iter().find(|case| case.id == "plain").unwrap();
    let rows = vec![Row { peer: Peer::Ours, rounds: Vec::new(), error: Some("Non-2xx: 5".into()) }];
    let report = CaseReport {
        id: case.id,
        about: case.about,
        metrics: case.metrics,
        base: case.base,
        rows,
        notes: Vec::new(),
    };
    assert!(report.table().contains("ours: ERROR: Non-2xx: 5"));
}

/// Two cases from end to end. Only figures of a release build are worth a look; here they have to be there.
#[test]
#[ignore = "needs Envoy, wrk"]
fn interop_cases_are_measured_from_end_to_end() {
    let json = tempfile::NamedTempFile::new().unwrap();
    let output = Command::new(BENCH)
        .args(["plain", "mtls", "--peers", "envoy,relay", "--seconds", "1", "--rounds", "1", "--json"])
        .arg(json.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(json.path()).unwrap()).unwrap();
    let cases = report["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 2);
    for peer in cases.iter().flat_map(|case| case["peers"].as_array().unwrap()) {
        assert!(peer["median"]["requests_per_second"].as_f64().unwrap() > 0.0, "{peer}");
    }
}
