//! Traffic of one workload to the two versions of a service: split by weight, moved by an edit without a
//! failed request and without forgetting what is known of endpoints, routed by what requests say, whichever
//! way a client calls its sidecar.

use std::time::Duration;

use http::Method;
use mesh_test::backend::Backend;
use mesh_test::client::{self, Call, Conn, Protocol, Reply};
use mesh_test::load::LoadGen;
use mesh_test::sidecar::Sidecar;
use mesh_test::wait::until;
use mesh_test::yaml::{self, Workload};
use mesh_test::{ports, tcp};
use serde_json::Value;
use tokio::time::Instant;

use crate::stage::{HOST, Replica, Stage};

/// How long an edit may take to be in force: a second is what is promised.
const EDIT: Duration = Duration::from_secs(1);
/// What a busy machine may add to it in a test: this many times as long.
const SLACK: u32 = 5;
/// How long anything else may take.
const LONG: Duration = Duration::from_secs(30);

/// `web`, and `reviews` in the versions v1 and v2: two applications, three sidecars.
struct Canary {
    stage: Stage,
    v1: Replica,
    v2: Replica,
    web: Sidecar,
}

impl Canary {
    async fn start(route: &str) -> Self {
        let stage = Stage::new();
        stage.dir.write("rule.yaml", yaml::destination_rule("reviews", "default", "reviews", &["v1", "v2"]));
        stage.dir.write("route.yaml", route);
        let (v1, v2) = (stage.replica("v1").await, stage.replica("v2").await);
        let web = stage.web().await;
        Self { stage, v1, v2, web }
    }

    async fn send(&self, call: Call) -> Reply {
        client::send(self.web.outbound(), &call).await.unwrap()
    }

    async fn get(&self, path: &str) -> Reply {
        self.send(Call::get(HOST, path)).await
    }
}

fn weights(v1: u32, v2: u32) -> String {
    yaml::split("reviews", "default", "reviews", &[("v1", v1), ("v2", v2)])
}

fn routes(http: &str) -> String {
    yaml::virtual_service("reviews", "default", "reviews", http)
}

async fn page(sidecar: &Sidecar, path: &str) -> Value {
    serde_json::from_slice(&sidecar.admin_get(path).await.unwrap().body).unwrap()
}

async fn generation(sidecar: &Sidecar) -> u64 {
    page(sidecar, "/config_dump").await["generation"].as_u64().unwrap()
}

/// The endpoint of `/clusters` whose workload has that name.
async fn endpoint(sidecar: &Sidecar, workload: &str) -> Value {
    let clusters = page(sidecar, "/clusters").await;
    let endpoints = clusters.as_array().unwrap().iter().flat_map(|c| c["endpoints"].as_array().unwrap());
    let mut found = endpoints.filter(|e| e["workload"] == workload);
    let one = found.next().unwrap_or_else(|| panic!("no endpoint {workload}: {clusters:#}")).clone();
    assert!(found.next().is_none(), "{clusters:#}");
    one
}

/// A thousand requests on connections of their own follow the weights.
#[tokio::test]
async fn a_thousand_requests_follow_the_weights() {
    let mesh = Canary::start(&weights(90, 10)).await;
    for _ in 0..1000 {
        let reply = mesh.get("/").await;
        assert_eq!(reply.status, 200, "{reply:?}");
        assert_eq!(reply.reason(), None);
    }
    let (v1, v2) = (mesh.v1.app.requests(), mesh.v2.app.requests());
    println!("90/10 gave {v1}/{v2}");
    assert_eq!(v1 + v2, 1000);
    assert!((850..=950).contains(&v1), "{v1} of 1000 to v1");
}

/// Moving all traffic by an edit of the file, under load: soon all of it arrives there, and not one request
/// fails. Once with requests on connections that stay, once over HTTP/2, once on fresh connections.
#[tokio::test]
async fn an_edit_moves_all_traffic_and_fails_no_request() {
    let mesh = Canary::start(&weights(90, 10)).await;
    let pause = Duration::from_millis(2);
    let load = || LoadGen::to(mesh.web.outbound()).host(HOST).connections(2).pause(pause);
    let loads = [load().start(), load().protocol(Protocol::H2).start(), load().fresh_connections().start()];
    until(LONG, "load on both versions", async || {
        loads.iter().all(|l| l.snapshot().of("v1") > 50 && l.snapshot().of("v2") > 0)
    })
    .await;
    for load in &loads {
        load.lap().assert_clean();
    }

    mesh.stage.dir.write("route.yaml", weights(0, 100));
    let begun = Instant::now();
    let mut last = Duration::ZERO;
    // Until nothing has gone to v1 for longer than an edit may take.
    while begun.elapsed() < last + EDIT * SLACK {
        tokio::time::sleep(Duration::from_millis(10)).await;
        for load in &loads {
            let lap = load.lap();
            assert_eq!(lap.failed, 0, "{lap}");
            if lap.of("v1") > 0 {
                last = begun.elapsed();
            }
        }
        assert!(last < EDIT * SLACK, "v1 is still called {last:?} after the edit");
    }
    println!("v1 was called for {last:?} after the edit to 0/100");
    // The last lap has just begun: what it says is told by requests, not by the clock.
    until(LONG, "requests after the edit", async || loads.iter().all(|l| l.snapshot().total > 50)).await;
    for load in loads {
        let report = load.stop().await;
        report.assert_clean();
        assert_eq!((report.of("v1"), report.of("v2")), (0, report.total), "{report}");
    }
}

/// An edit keeps what is known of endpoints: connections stay open and are used again, requests in flight go on
/// and stay counted, what is ejected stays so.
#[tokio::test]
async fn an_edit_keeps_pools_requests_in_flight_and_ejections() {
    // One request at a time on each connection, and several.
    for (policy, connections) in [("DO_NOT_UPGRADE", 2), ("DEFAULT", 1)] {
        an_edit_keeps(policy, connections).await;
    }
}

async fn an_edit_keeps(policy: &str, connections: u64) {
    let plain = "- route:\n  - destination: {host: reviews}\n";
    let mesh = Canary::start(&routes(plain)).await;
    let settings = |more: &str| {
        format!(
            "outlierDetection:\n  consecutive5xxErrors: 2\n  baseEjectionTime: 600s\n  maxEjectionPercent: 100\n\
             connectionPool:\n  http: {{h2UpgradePolicy: {policy}{more}}}\n"
        )
    };
    mesh.stage.traffic_policy(&settings(""));
    mesh.v2.app.fail_with(500);
    until(LONG, "v2's ejection", async || {
        mesh.get("/").await;
        endpoint(&mesh.web, "v2").await["ejected"] == true
    })
    .await;

    let mut slow = mesh.web.connect(Protocol::H1).await.unwrap();
    let slow = tokio::spawn(async move { slow.send(&Call::get(HOST, "/delay/6000")).await });
    until(LONG, "the slow request", async || mesh.v1.app.in_flight() == 1).await;
    // One more request beside the one that is under way, on a connection of its own or on the same.
    assert_eq!(mesh.get("/").await.served_by(), Some("v1"));
    let facts = async || {
        let (v1, v2) = (endpoint(&mesh.web, "v1").await, endpoint(&mesh.web, "v2").await);
        let of_v1 = ["requests", "connections", "ejected"].map(|field| v1[field].clone());
        of_v1.into_iter().chain(["ejected", "ejections"].map(|field| v2[field].clone())).collect::<Vec<_>>()
    };
    let before = facts().await;
    assert_eq!((&before[0], &before[2], &before[3]), (&1.into(), &false.into(), &true.into()), "{before:?}");
    // At most one more is open from before the slow request.
    let open = before[1].as_u64().unwrap();
    assert!((connections..=connections + 1).contains(&open), "{policy} {before:?}");

    // The route, then the settings of the cluster itself.
    let header = format!("{plain}  headers: {{response: {{set: {{x-edited: \"yes\"}}}}}}\n");
    let edits: [&dyn Fn(); 2] = [&|| mesh.stage.dir.write("route.yaml", routes(&header)), &|| {
        mesh.stage.traffic_policy(&settings(", maxRetries: 7"))
    }];
    for edit in edits {
        let old = generation(&mesh.web).await;
        edit();
        until(LONG, "the edit", async || generation(&mesh.web).await > old).await;
        assert_eq!(facts().await, before);
        let reply = mesh.get("/").await;
        assert_eq!((reply.served_by(), reply.header("x-edited")), (Some("v1"), Some("yes")));
        assert_eq!(facts().await, before);
    }
    let reply = slow.await.unwrap().unwrap();
    assert_eq!((reply.status, reply.served_by()), (200, Some("v1")));
    until(LONG, "the end of the slow request", async || endpoint(&mesh.web, "v1").await["requests"] == 0)
        .await;
    assert_eq!(endpoint(&mesh.web, "v2").await["ejected"], true);
}

const ROUTES: &str = r#"
- match: [{headers: {x-user: {exact: jason}}}]
  route: [{destination: {host: reviews, subset: v2}}]
- match: [{method: {exact: DELETE}}, {queryParams: {version: {exact: "2"}}}, {uri: {regex: "/v[2-9]/.*"}}]
  route: [{destination: {host: reviews, subset: v2}}]
- match: [{uri: {prefix: /old/}}]
  rewrite: {uri: /echo/}
  headers: {request: {set: {x-added: "by the route"}, remove: [x-removed]}}
  route: [{destination: {host: reviews, subset: v1}}]
- match: [{uri: {exact: /moved}}]
  redirect: {uri: /here, authority: elsewhere.example, redirectCode: 302}
- match: [{uri: {exact: /teapot}}]
  directResponse: {status: 418, body: {string: short and stout}}
- match: [{uri: {exact: /broken}}]
  fault: {abort: {httpStatus: 555, percentage: {value: 100}}}
  route: [{destination: {host: reviews, subset: v1}}]
- match: [{uri: {prefix: /delay/}}]
  timeout: 200ms
  route: [{destination: {host: reviews, subset: v1}}]
- match: [{uri: {exact: /nowhere}}]
  route: [{destination: {host: reviews, subset: v9}}]
- match: [{uri: {prefix: /}}]
  route: [{destination: {host: reviews, subset: v1}}]
"#;

/// The first rule that matches decides: by header, method, query and path; rewrites, header operations,
/// redirects, answers of the mesh's own, faults, timeouts.
#[tokio::test]
async fn the_first_route_that_matches_decides() {
    let mesh = Canary::start(&routes(ROUTES)).await;
    let served = async |call: Call| mesh.send(call).await.served_by().map(str::to_owned);
    assert_eq!(served(Call::get(HOST, "/")).await.as_deref(), Some("v1"));
    assert_eq!(served(Call::get(HOST, "/").header("x-user", "jason")).await.as_deref(), Some("v2"));
    assert_eq!(served(Call::get(HOST, "/").header("x-user", "jasons")).await.as_deref(), Some("v1"));
    assert_eq!(served(Call::new(Method::DELETE, HOST, "/")).await.as_deref(), Some("v2"));
    assert_eq!(served(Call::get(HOST, "/a?version=2")).await.as_deref(), Some("v2"));
    assert_eq!(served(Call::get(HOST, "/a?version=1")).await.as_deref(), Some("v1"));
    assert_eq!(served(Call::get(HOST, "/v2/a")).await.as_deref(), Some("v2"));
    assert_eq!(served(Call::get(HOST, "/v1/a")).await.as_deref(), Some("v1"));

    let call = Call::post(HOST, "/old/page?q=1", "body").header("x-removed", "1").header("x-kept", "1");
    let echo = mesh.send(call).await.echo();
    assert_eq!((&*echo.method, &*echo.path, &*echo.body), ("POST", "/echo/page?q=1", &b"body"[..]));
    assert_eq!(echo.header("x-added"), Some("by the route"));
    assert_eq!((echo.header("x-removed"), echo.header("x-kept")), (None, Some("1")));

    let moved = mesh.get("/moved").await;
    assert_eq!((moved.status, moved.header("location")), (302, Some("http://elsewhere.example/here")));
    let teapot = mesh.get("/teapot").await;
    assert_eq!((teapot.status, &*teapot.text()), (418, "short and stout"));
    let broken = mesh.get("/broken").await;
    assert_eq!((broken.status, broken.reason()), (555, Some("fault_injected")));
    let late = mesh.get("/delay/20000").await;
    assert_eq!((late.status, late.reason()), (504, Some("timeout")));
    let nowhere = mesh.get("/nowhere").await;
    assert_eq!((nowhere.status, nowhere.reason()), (503, Some("unknown_subset")));
    for reply in [moved, teapot, broken, late, nowhere] {
        assert_eq!(reply.served_by(), None, "{reply:?}");
        assert_eq!(reply.header("x-mesh-detail"), None, "{reply:?}");
    }
    assert_eq!(mesh.v1.app.count("/broken"), 0);
}

/// Every way in which a client may call its sidecar leads to the same place: plain requests, the absolute form
/// of clients of an HTTP proxy, HTTP/2 without TLS, and either of them through a tunnel.
#[tokio::test]
async fn every_way_of_calling_leads_there() {
    let mesh = Canary::start(&weights(100, 0)).await;
    let out = mesh.web.outbound();
    let there = |what: &str, reply: Reply| {
        assert_eq!((reply.status, reply.served_by()), (200, Some("v1")), "{what}: {reply:?}");
        reply.echo()
    };
    for host in ["reviews", "reviews:9080", "reviews.default", "reviews.default.svc.cluster.local:9080"] {
        let call = Call::get(host, "/echo?a=b");
        there(host, client::send(out, &call).await.unwrap());
        let echo = there(host, client::send(out, &call.absolute()).await.unwrap());
        assert_eq!((&*echo.path, echo.authority.as_deref()), ("/echo?a=b", Some(host)));
        let echo = there(host, client::get_h2(out, host, "/echo?a=b").await.unwrap());
        assert_eq!((&*echo.path, echo.authority.as_deref()), ("/echo?a=b", Some(host)));
    }
    for protocol in [Protocol::H1, Protocol::H2] {
        let mut conn = Conn::tunnel(out, HOST, protocol).await.unwrap();
        for _ in 0..3 {
            let echo = there("tunnel", conn.send(&Call::get(HOST, "/echo")).await.unwrap());
            assert_eq!(echo.authority.as_deref(), Some(HOST));
        }
        // Inside the tunnel routes apply as outside of it.
        let body = vec![b'x'; 300_000];
        let echo = there("tunnel", conn.send(&Call::post(HOST, "/echo", body.clone())).await.unwrap());
        assert_eq!(echo.body, body);
    }
    assert_eq!(mesh.v2.app.requests(), 0);
}

/// On a port that is declared gRPC, HTTP/2 is spoken all the way to the application, and trailers come back.
#[tokio::test]
async fn http2_goes_all_the_way_with_its_trailers() {
    let stage = Stage::new();
    let app = Backend::start("ratings").await;
    let inbound = ports::free_addr();
    let workload = Workload::new("ratings", "default", "ratings", inbound).account("ratings").sidecar();
    let workload = workload.ports(&[("grpc", inbound.port())]);
    let service = yaml::service_with_ports("ratings", "default", &[("grpc", 9090)]);
    stage.dir.write("ratings.yaml", yaml::documents([service, workload.to_string()]));
    let sidecar = stage.spec("ratings").inbound(inbound, app.addr()).start().await;
    let web = stage.web().await;
    let mut conns = [
        Conn::open(web.outbound(), Protocol::H2).await.unwrap(),
        Conn::tunnel(web.outbound(), "ratings:9090", Protocol::H2).await.unwrap(),
    ];
    for conn in &mut conns {
        let call = Call::post("ratings:9090", "/trailers", "x").header("content-type", "application/grpc");
        let reply = conn.send(&call.header("te", "trailers")).await.unwrap();
        assert_eq!((reply.status, reply.served_by()), (200, Some("ratings")), "{reply:?}");
        assert_eq!(reply.trailers.get("grpc-status").map(|v| v.as_bytes()), Some(&b"0"[..]), "{reply:?}");
        let echo = conn.send(&Call::get("ratings:9090", "/echo")).await.unwrap().echo();
        assert_eq!(echo.version, "HTTP/2");
    }
    // An edit leaves the connection that carries a request as it is, and the next request shares it.
    let [mut busy, mut next] = conns;
    let slow = tokio::spawn(async move { busy.send(&Call::get("ratings:9090", "/delay/5000")).await });
    until(LONG, "the slow request", async || app.in_flight() == 1).await;
    let before = endpoint(&web, "ratings").await["connections"].clone();
    let old = generation(&web).await;
    let route = "- timeout: 20s\n  route:\n  - destination: {host: ratings}\n";
    stage.dir.write("route.yaml", yaml::virtual_service("ratings", "default", "ratings", route));
    until(LONG, "the edit", async || generation(&web).await > old).await;
    for _ in 0..10 {
        assert_eq!(next.send(&Call::get("ratings:9090", "/")).await.unwrap().status, 200);
    }
    assert_eq!(endpoint(&web, "ratings").await["connections"], before);
    assert_eq!(endpoint(&web, "ratings").await["requests"], 1);
    assert_eq!(slow.await.unwrap().unwrap().status, 200);
    assert!(app.accepted_connections() <= 2, "{}", app.accepted_connections());
    drop(sidecar);
}

/// A host that nobody knows is answered by the mesh, and never called wherever it points.
#[tokio::test]
async fn a_host_that_nobody_knows_is_not_called() {
    let mesh = Canary::start(&weights(100, 0)).await;
    let outside = Backend::start("outside").await;
    let out = mesh.web.outbound();
    let by_address = outside.addr().to_string();
    let by_name = format!("localhost:{}", outside.addr().port());
    for host in ["unknown.example", "reviews.other", "reviews:9081", &*by_address, &*by_name] {
        let call = Call::get(host, "/");
        let replies = [
            client::send(out, &call).await.unwrap(),
            client::send(out, &call.absolute()).await.unwrap(),
            client::get_h2(out, host, "/").await.unwrap(),
        ];
        for reply in replies {
            assert_eq!((reply.status, reply.reason()), (502, Some("unknown_host")), "{host}: {reply:?}");
            assert_eq!(reply.text(), "unknown host\n");
        }
    }
    for target in ["unknown.example:80", &*by_address, &*by_name] {
        let error = client::connect_tunnel(out, target).await.unwrap_err().to_string();
        assert!(error.contains("502") && error.contains("unknown_host"), "{target}: {error}");
    }
    assert_eq!((outside.accepted_connections(), mesh.v1.app.requests()), (0, 0));
}

/// A change of protocol, as WebSocket clients ask for it, passes through both sidecars.
#[tokio::test]
async fn an_upgrade_passes_through_both_sidecars() {
    let mesh = Canary::start(&weights(100, 0)).await;
    let (head, mut stream) =
        client::upgrade(mesh.web.outbound(), HOST, "/upgrade", "websocket").await.unwrap();
    assert_eq!((head.status, head.header("upgrade")), (101, Some("websocket")));
    assert_eq!(head.served_by(), Some("v1"));
    for message in [&b"hello"[..], &[7; 100_000]] {
        assert_eq!(tcp::round_trip(&mut stream, message).await.unwrap(), message);
    }
    // Its end is passed on as well.
    drop(stream);
    until(LONG, "the end of the upgraded connection", async || mesh.v1.app.active_connections() == 0).await;
}
