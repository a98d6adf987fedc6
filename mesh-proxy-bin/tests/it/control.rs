//! A sidecar that is configured by a control plane: what it asks for, what it keeps, what it outlives.

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use mesh_test::backend::Backend;
use mesh_test::client::{self, Call, Conn, Protocol};
use mesh_test::ports;
use mesh_test::sidecar::Sidecar;
use mesh_test::tcp::{EchoServer, round_trip};
use mesh_test::wait::until_secs;
use mesh_test::yaml::{self, Workload};
use mesh_xds::ResourceType::{self, Endpoints, Host};

use crate::plane::Plane;

const PATIENCE: u64 = 60;

/// The sidecar's own workload, and nothing else.
fn own() -> String {
    Workload::new("web-1", "default", "web", ports::loopback(1)).account("web").sidecar().to_string()
}

fn full(name: &str) -> String {
    format!("{name}.default.svc.cluster.local")
}

/// A service with one plain endpoint.
fn service(name: &str, at: SocketAddr) -> String {
    let workload = Workload::new(&format!("{name}-1"), "default", name, at).account(name);
    format!("{}---\n{workload}", yaml::service(name, "default", 80))
}

fn all(parts: &[String]) -> String {
    parts.join("---\n")
}

async fn get(sidecar: &Sidecar, host: &str) -> client::Reply {
    client::get(sidecar.outbound(), host, "/").await.unwrap()
}

fn reason(reply: &client::Reply) -> Option<&str> {
    reply.reason()
}

#[tokio::test]
async fn a_host_is_asked_for_when_it_is_called_and_what_does_not_exist_is_remembered() {
    let (reviews, ratings) = (Backend::start("reviews").await, Backend::start("ratings").await);
    let before = all(&[own(), service("reviews", reviews.addr())]);
    let plane = Plane::start(&before).await;
    let sidecar = plane.sidecar().outbound().start().await;
    assert!(plane.names(Host).is_empty(), "nothing was called");

    assert_eq!(get(&sidecar, "reviews").await.served_by(), Some("reviews"));
    assert!(plane.is_subscribed(Host, &full("reviews")) && plane.is_subscribed(Endpoints, &full("reviews")));
    assert!(!plane.is_subscribed(Host, &full("ratings")));
    let first = sidecar.metric("mesh_first_calls_total", &[]).await;
    for host in ["reviews", "reviews.default", "reviews.default.svc", &full("reviews")] {
        assert_eq!(get(&sidecar, host).await.status, 200, "{host}");
    }
    assert_eq!(sidecar.metric("mesh_first_calls_total", &[]).await, first, "a known host waits for nothing");

    let unknown = get(&sidecar, "ratings").await;
    assert_eq!((unknown.status, reason(&unknown)), (502, Some("unknown_host")));
    // It is told of when it is made, while it is remembered.
    plane.apply(&all(&[before, service("ratings", ratings.addr())]));
    until_secs(PATIENCE, "the new host", async || get(&sidecar, "ratings").await.status == 200).await;

    let dump = sidecar.admin_get("/config_dump").await.unwrap().text();
    let dump: serde_json::Value = serde_json::from_str(&dump).unwrap();
    let source = &dump["source"]["control_plane"];
    assert_eq!(source["connected"], true, "{source}");
    assert!(source["subscriptions"]["Host"][full("reviews")]["version"].is_string(), "{source}");
    assert!(source["responses"]["Host"]["last_ack"].is_string(), "{source}");
    assert_eq!(sidecar.metric("envoy_control_plane_connected_state", &[]).await, 1.0);
    assert!(sidecar.metric("istio_agent_cert_expiry_seconds", &["resource_name=\"default\""]).await > 3000.0);
}

#[tokio::test]
async fn a_route_never_comes_without_the_hosts_that_it_leads_to() {
    let (v1, v2, other) =
        (Backend::start("v1").await, Backend::start("v2").await, Backend::start("other").await);
    let reviews = |routes: &str| {
        let of = |name: &str, at: SocketAddr| {
            Workload::new(&format!("reviews-{name}"), "default", "reviews", at).version(name).to_string()
        };
        all(&[
            own(),
            yaml::service("reviews", "default", 80),
            of("v1", v1.addr()),
            of("v2", v2.addr()),
            service("other", other.addr()),
            format!(
                "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: r, namespace: default}}\n\
                 spec: {{host: reviews, subsets: [{{name: v1, labels: {{version: v1}}}}, {{name: v2, labels: {{version: v2}}}}]}}\n\
                 ---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: r, namespace: default}}\n\
                 spec: {{hosts: [reviews], http: [{{route: [{{destination: {routes}}}]}}]}}\n"
            ),
        ])
    };
    let plane = Plane::start(&reviews("{host: other}")).await;
    let sidecar = plane.sidecar().outbound().start().await;
    // The first call of all: the destination is another host, which nobody called.
    assert_eq!(get(&sidecar, "reviews").await.served_by(), Some("other"));
    assert!(plane.is_subscribed(Endpoints, &full("other")));

    for (routes, served_by) in [
        ("{host: reviews, subset: v2}", "v2"),
        ("{host: reviews, subset: v1}", "v1"),
        ("{host: other.default.svc.cluster.local}", "other"),
    ] {
        plane.apply(&reviews(routes));
        until_secs(PATIENCE, routes, async || {
            let reply = get(&sidecar, "reviews").await;
            assert_eq!(reply.status, 200, "{routes}: {:?}", reason(&reply));
            reply.served_by() == Some(served_by)
        })
        .await;
    }
    // A destination that does not exist fails those who go there, as anywhere.
    plane.apply(&reviews("{host: nowhere}"));
    until_secs(PATIENCE, "the missing host", async || {
        reason(&get(&sidecar, "reviews").await) == Some("unknown_subset")
    })
    .await;
}

#[tokio::test]
async fn endpoints_come_and_go_without_a_new_route() {
    let (a, b) = (Backend::start("a").await, Backend::start("b").await);
    let with = |at: SocketAddr| all(&[own(), service("reviews", at)]);
    let plane = Plane::start(&with(a.addr())).await;
    let sidecar = plane.sidecar().outbound().start().await;
    assert_eq!(get(&sidecar, "reviews").await.served_by(), Some("a"));
    plane.apply(&with(b.addr()));
    until_secs(PATIENCE, "the other endpoint", async || {
        let reply = get(&sidecar, "reviews").await;
        assert_eq!(reply.status, 200);
        reply.served_by() == Some("b")
    })
    .await;
    // And when the host is deleted, it is not known any more.
    plane.apply(&own());
    until_secs(PATIENCE, "the end of the host", async || get(&sidecar, "reviews").await.status == 502).await;
}

#[tokio::test]
async fn what_cannot_be_used_is_refused_with_the_reason_and_the_last_good_one_stays() {
    let app = Backend::start("app").await;
    let with = |http: &str| {
        all(&[
            own(),
            service("reviews", app.addr()),
            format!(
                "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: r, namespace: default}}\n\
                 spec: {{hosts: [reviews], http: [{http}]}}\n"
            ),
        ])
    };
    let good = "{headers: {response: {set: {x-form: first}}}, route: [{destination: {host: reviews}}]}";
    let plane = Plane::start(&with(good)).await;
    let sidecar = plane.sidecar().outbound().start().await;
    let form = |reply: &client::Reply| reply.header("x-form").map(str::to_owned);
    assert_eq!(form(&get(&sidecar, "reviews").await).as_deref(), Some("first"));

    plane.apply(&with("{delegate: {name: a}}"));
    until_secs(PATIENCE, "the refusal", async || !plane.nacks().is_empty()).await;
    let nack = plane.nacks().remove(0);
    assert!(nack.contains("VirtualService default/r") && nack.contains("delegate"), "{nack}");
    assert_eq!(form(&get(&sidecar, "reviews").await).as_deref(), Some("first"));
    let dump = sidecar.admin_get("/config_dump").await.unwrap().text();
    assert!(dump.contains("last_nack") && dump.contains("delegate"), "{dump}");
    assert_eq!(sidecar.metric("mesh_control_plane_rejected_total", &[]).await, 1.0);

    plane.apply(&with(&good.replace("first", "second")));
    until_secs(PATIENCE, "the next good one", async || {
        form(&get(&sidecar, "reviews").await).as_deref() == Some("second")
    })
    .await;
}

/// The sidecar of `reviews`, configured by files of its own: the other end of mTLS.
async fn strict_reviews(plane: &Plane, app: &Backend) -> (yaml::Dir, Sidecar, String) {
    let (dir, at) = (yaml::Dir::new(), ports::free_addr());
    let workload = Workload::new("reviews-1", "default", "reviews", at).account("reviews").sidecar();
    let resources = all(&[
        yaml::service("reviews", "default", 80),
        workload.to_string(),
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: istio-system}\nspec: {mtls: {mode: STRICT}}\n".to_owned(),
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: web, namespace: default}\nspec: {rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/web]}}]}]}\n".to_owned(),
    ]);
    dir.write("all.yaml", &resources);
    plane.ca.leaf_for("default", "reviews").write_to(dir.file("identity"));
    let spec = mesh_test::sidecar::SidecarSpec::new(crate::stage::BIN, dir.path(), "default/reviews-1");
    let spec = spec.identity_dir(dir.file("identity")).inbound(at, app.addr());
    let sidecar = spec.start().await;
    let told = all(&[own(), yaml::service("reviews", "default", 80), workload.to_string()]);
    (dir, sidecar, told)
}

#[tokio::test]
async fn traffic_outlives_the_control_plane_and_so_does_a_sidecar_that_is_started_again() {
    let app = Backend::start("app").await;
    let mut plane = Plane::start(&own()).await;
    let (_dir, _reviews, told) = strict_reviews(&plane, &app).await;
    plane.apply(&told);
    let sidecar = plane.sidecar().outbound().start().await;
    // STRICT, and for `web` alone: the certificate counts.
    assert_eq!(get(&sidecar, "reviews").await.served_by(), Some("app"));
    let private = plane.file("state").join("private");
    until_secs(PATIENCE, "the state", async || private.join("configuration").exists()).await;
    let held = async || std::fs::read(private.join("configuration")).unwrap().len();
    until_secs(PATIENCE, "the host in the state", async || held().await > 1000).await;
    for name in ["configuration", "identity"] {
        assert_eq!(std::fs::metadata(private.join(name)).unwrap().mode() & 0o777, 0o600);
    }

    plane.pause().await;
    until_secs(PATIENCE, "the loss", async || {
        sidecar.metric("envoy_control_plane_connected_state", &[]).await == 0.0
    })
    .await;
    assert_eq!(get(&sidecar, "reviews").await.status, 200);
    sidecar.proc.kill();
    drop(sidecar);

    let again = plane.sidecar().outbound().start().await;
    let issued = plane.asked();
    assert_eq!(get(&again, "reviews").await.served_by(), Some("app"));
    assert_eq!(plane.asked(), issued, "nobody was asked");
    // What it never knew it does not know now, and says so; nobody waits for ever.
    let unknown = get(&again, "ratings").await;
    assert_eq!((unknown.status, reason(&unknown)), (503, Some("config_unavailable")));

    // Back again: changes that were waited for arrive.
    plane.apply(&all(&[told, service("ratings", app.addr())]));
    plane.resume().await;
    until_secs(PATIENCE, "the new host", async || get(&again, "ratings").await.status == 200).await;
    assert_eq!(get(&again, "reviews").await.status, 200);
}

#[tokio::test]
async fn certificates_are_renewed_early_and_tried_for_as_long_as_it_takes() {
    let app = Backend::start("app").await;
    let mut plane = Plane::start(&own()).await;
    plane.set(|s| s.lifetime = Duration::from_secs(6));
    let (_dir, _reviews, told) = strict_reviews(&plane, &app).await;
    plane.apply(&told);
    let sidecar = plane.sidecar().outbound().start().await;
    until_secs(PATIENCE, "renewals", async || plane.issued() >= 3).await;
    assert_eq!(get(&sidecar, "reviews").await.status, 200);

    // The token is replaced meanwhile: the next request shows the new one.
    plane.set(|s| s.token = "another".into());
    until_secs(PATIENCE, "a refusal", async || {
        sidecar.metric("mesh_certificate_failures_total", &[]).await >= 1.0
    })
    .await;
    let certs = sidecar.admin_get("/certs").await.unwrap().text();
    assert!(certs.contains("the token is not good"), "{certs}");
    plane.write("token", "another\n");
    let before = plane.issued();
    until_secs(PATIENCE, "a renewal by the new token", async || plane.issued() > before).await;

    // The control plane is gone until the certificate has expired, and back.
    plane.pause().await;
    sidecar.proc.wait_for_line("HAS EXPIRED", Duration::from_secs(PATIENCE)).await;
    plane.resume().await;
    until_secs(PATIENCE, "a renewal after all", async || get(&sidecar, "reviews").await.status == 200).await;
    assert!(sidecar.metric("istio_agent_cert_expiry_seconds", &[]).await > 0.0);
}

#[tokio::test]
async fn who_is_somebody_else_or_is_not_believed_does_not_become_ready_and_says_why() {
    let mut plane = Plane::start(&own()).await;
    plane.set(|s| s.identity = mesh_test::ca::spiffe("default", "admin"));
    let mut sidecar = plane.sidecar().outbound().spawn();
    let not_ready = async |sidecar: &Sidecar, part: &str| {
        until_secs(PATIENCE, part, async || match sidecar.admin_get("/ready").await {
            Ok(reply) => reply.status == 503 && reply.text().contains(part),
            Err(_) => false,
        })
        .await;
    };
    not_ready(&sidecar, "sa/admin").await;
    plane.set(|s| s.identity = mesh_test::ca::spiffe("default", "web"));
    sidecar.wait_ready(Duration::from_secs(PATIENCE)).await;
    until_secs(PATIENCE, "the state", async || plane.file("state").join("private/identity").exists()).await;
    drop(sidecar);

    // Roots of another authority: the server is not believed. Once they are the right ones, it is.
    let good = std::fs::read_to_string(plane.file("roots.pem")).unwrap();
    plane.write("roots.pem", mesh_test::ca::TestCa::new().root_pem());
    std::fs::remove_dir_all(plane.file("state")).unwrap();
    let mut sidecar = plane.sidecar().outbound().spawn();
    not_ready(&sidecar, "no certificate").await;
    not_ready(&sidecar, "invalid peer certificate").await;
    plane.write("roots.pem", &good);
    sidecar.wait_ready(Duration::from_secs(PATIENCE)).await;
    until_secs(PATIENCE, "the state", async || plane.file("state").join("private/identity").exists()).await;
    drop(sidecar);

    // What another workload left is not used.
    let state = plane.file("state").join("private").join("identity");
    let text = std::fs::read_to_string(&state).unwrap().replace("default/web-1", "default/web-2");
    std::fs::write(&state, text).unwrap();
    plane.pause().await;
    let sidecar = plane.sidecar().outbound().spawn();
    not_ready(&sidecar, "no certificate").await;
    sidecar.proc.wait_for_line("it is not used", Duration::from_secs(PATIENCE)).await;
}

#[tokio::test]
async fn a_workload_that_is_not_known_yet_is_waited_for() {
    let plane = Plane::start(&yaml::service("reviews", "default", 80)).await;
    let mut sidecar = plane.sidecar().outbound().spawn();
    until_secs(PATIENCE, "the reason", async || match sidecar.admin_get("/ready").await {
        Ok(reply) => reply.text().contains("does not know the workload default/web-1"),
        Err(_) => false,
    })
    .await;
    plane.apply(&own());
    sidecar.wait_ready(Duration::from_secs(PATIENCE)).await;
}

#[tokio::test]
async fn connections_go_by_name_and_by_address() {
    let echo = EchoServer::start().await;
    let with_vip = yaml::service_with_ports("redis", "default", &[("tcp", 80)])
        .replace("spec:", "spec:\n  clusterIP: 10.96.0.10");
    let workload = Workload::new("redis-1", "default", "redis", echo.addr());
    let workload = workload.ports(&[("tcp", echo.addr().port())]).to_string();
    let plane = Plane::start(&all(&[own(), with_vip, workload])).await;
    let sidecar = plane.sidecar().outbound().start().await;
    for to in ["10.96.0.10:80", "redis:80"] {
        let mut tunnel = client::connect_tunnel(sidecar.outbound(), to).await.unwrap();
        assert_eq!(round_trip(&mut tunnel, b"hello").await.unwrap(), b"hello", "{to}");
    }
    assert!(plane.is_subscribed(ResourceType::Address, "10.96.0.10"));
    assert!(client::connect_tunnel(sidecar.outbound(), "10.96.0.11:80").await.is_err());
}

#[tokio::test]
async fn a_flood_of_hosts_is_bounded_and_others_are_served() {
    let app = Backend::start("app").await;
    let plane = Plane::start(&all(&[own(), service("reviews", app.addr())])).await;
    let sidecar = plane.sidecar().outbound().start().await;
    let mut conn = Conn::open(sidecar.outbound(), Protocol::H1).await.unwrap();
    for i in 0..1500 {
        let reply = conn.send(&Call::get(&format!("nobody-{i}.example.com"), "/")).await.unwrap();
        assert_eq!(reply.status, 502, "{i}");
    }
    assert_eq!(get(&sidecar, "reviews").await.status, 200);
    // What names nothing is remembered within a limit.
    assert!(plane.names(Host).len() <= 1024 + 8, "{}", plane.names(Host).len());
    assert!(sidecar.metric("mesh_subscriptions", &[]).await <= (2 * 1024 + 32) as f64);
}

/// An embedding program, whose limits are its own: what is not used is let go of, what is used stays.
#[tokio::test]
async fn idle_hosts_are_let_go_of_and_first_calls_share_one_question() {
    use mesh::control::ClientLimits;
    use tower::ServiceExt;

    let app = Backend::start("app").await;
    // `reviews` leads to `ratings`, which nobody calls.
    let route = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: r, namespace: default}\n\
                 spec: {hosts: [reviews], http: [{route: [{destination: {host: ratings}}]}]}\n";
    let hosts = ["reviews", "ratings", "idle"].map(|name| service(name, app.addr()));
    let plane = Plane::start(&all(&[own(), all(&hosts), route.to_owned()])).await;
    let control = mesh::ControlPlane {
        client: ClientLimits {
            idle: Duration::from_secs(5),
            sweep: Duration::from_millis(200),
            ..ClientLimits::default()
        },
        ..plane.control()
    };
    let built = mesh::Mesh::builder().workload("default", "web-1").control_plane(control).build();
    let (mesh, driver) = built.unwrap();
    let driver = tokio::spawn(driver.run());
    mesh.readiness().ready().await;

    let call = |host: &str| {
        let request = http::Request::get(format!("http://{host}/"));
        mesh.client().oneshot(request.body(mesh::core::body::Body::empty()).unwrap())
    };
    let many = (0..100).map(|_| call("reviews"));
    for answer in futures_util::future::join_all(many).await {
        assert_eq!(answer.unwrap().status(), 200);
    }
    assert_eq!(call("idle").await.unwrap().status(), 200);
    assert!(plane.is_subscribed(Host, &full("idle")));
    until_secs(PATIENCE, "the end of what is idle", async || {
        assert_eq!(call("reviews").await.unwrap().status(), 200);
        !plane.is_subscribed(Host, &full("idle")) && !plane.is_subscribed(Endpoints, &full("idle"))
    })
    .await;
    for name in ["reviews", "ratings"] {
        assert!(
            plane.is_subscribed(Host, &full(name)) && plane.is_subscribed(Endpoints, &full(name)),
            "{name}"
        );
    }
    assert!(mesh.registry().all().iter().all(|cluster| *cluster.key().host != *full("idle")));
    assert_eq!(call("idle").await.unwrap().status(), 200, "it is learnt again");
    driver.abort();
}

/// What a sidecar holds follows what it uses, not the size of the cluster.
#[tokio::test]
async fn of_a_thousand_services_those_alone_are_held_that_are_called() {
    let app = Backend::start("app").await;
    let services: Vec<String> = (0..1000).map(|i| service(&format!("s{i}"), app.addr())).collect();
    let plane = Plane::start(&all(&[own(), all(&services)])).await;
    let sidecar = plane.sidecar().outbound().start().await;
    for host in ["s1", "s500", "s999"] {
        assert_eq!(get(&sidecar, host).await.status, 200, "{host}");
    }
    let mut held: Vec<_> = plane.names(Host).iter().map(ToString::to_string).collect();
    held.sort();
    assert_eq!(held, [full("s1"), full("s500"), full("s999")]);
    assert_eq!(sidecar.metric("mesh_first_calls_total", &[]).await, 3.0);
    let before = plane.discovery_counts();
    assert_eq!(get(&sidecar, "s7").await.status, 200);
    let after = plane.discovery_counts();
    // One host and its endpoints.
    assert_eq!((after.0 - before.0, after.1 - before.1), (2, 0));
}

/// A redirected connection to an address: what becomes of bytes, and of TLS of the application's own.
async fn ways(mesh: &mesh::Mesh, to: &str) -> (String, String) {
    let outgoing = mesh.outgoing(to.parse().unwrap()).await.unwrap();
    let name = |way: Result<&mesh::tcp::TcpTarget, &mesh::core::failure::Failure>| match way {
        Ok(target) => target.cluster().service().name.to_string(),
        Err(failure) => failure.code().as_str().to_owned(),
    };
    (name(outgoing.bytes()), name(outgoing.encrypted()))
}

/// What was nobody's stays so, and what was never called may be the mesh's own.
#[tokio::test]
async fn without_a_control_plane_what_was_never_called_is_not_called_in_plaintext() {
    let passed = ("PassthroughCluster".to_owned(), "PassthroughCluster".to_owned());
    let untold = |tls: &str| ("config_unavailable".to_owned(), tls.to_owned());
    let with_vip = yaml::service_with_ports("redis", "default", &[("tcp", 80)])
        .replace("spec:", "spec:\n  clusterIP: 10.96.0.10");
    let resources = all(&[own(), with_vip]);
    let mut plane = Plane::start(&resources).await;
    let start = |plane: &Plane| {
        let control = mesh::ControlPlane { state: Some(plane.file("state")), ..plane.control() };
        let mesh = mesh::Mesh::builder().workload("default", "web-1").control_plane(control);
        let (mesh, driver) = mesh.redirected(mesh::outgoing::UnknownDestinations::Allowed).build().unwrap();
        (mesh, tokio::spawn(driver.run()))
    };
    let (mesh, driver) = start(&plane);
    mesh.readiness().ready().await;
    assert_eq!(ways(&mesh, "192.0.2.7:9000").await, passed);
    assert_eq!(ways(&mesh, "10.96.0.10:80").await.0, "redis");
    let kept = plane.file("state").join("private/configuration");
    until_secs(PATIENCE, "what is nobody's in the state", async || {
        std::fs::read(&kept).is_ok_and(|bytes| bytes.windows(9).any(|part| part == b"192.0.2.7"))
    })
    .await;

    plane.pause().await;
    assert_eq!(ways(&mesh, "192.0.2.7:9000").await, passed, "as before");
    assert_eq!(ways(&mesh, "10.96.0.10:80").await.0, "redis");
    // Encrypted by the application: nothing is in plaintext, whoever it is.
    assert_eq!(ways(&mesh, "192.0.2.8:443").await, untold("PassthroughCluster"));
    let closed = mesh.outgoing("192.0.2.8:9000".parse().unwrap()).await.unwrap();
    assert!(closed.otherwise().is_none() && !closed.is_known());
    let told = closed.bytes().unwrap_err().to_string();
    assert!(told.contains("192.0.2.8:9000") && told.contains("excludeOutboundIPRanges"), "{told}");
    driver.abort();

    // A program that is started again knows the same.
    let (mesh, driver) = start(&plane);
    mesh.readiness().ready().await;
    assert_eq!(ways(&mesh, "192.0.2.7:9000").await, passed);
    assert_eq!(ways(&mesh, "192.0.2.8:443").await, untold("PassthroughCluster"));
    plane.resume().await;
    until_secs(PATIENCE, "somebody to ask", async || ways(&mesh, "192.0.2.8:9000").await == passed).await;

    // Where what the mesh does not know is closed, it stays closed.
    let registry_only = "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: own, namespace: default}\n\
                         spec: {outboundTrafficPolicy: {mode: REGISTRY_ONLY}}\n";
    plane.apply(&all(&[resources, registry_only.to_owned()]));
    until_secs(PATIENCE, "REGISTRY_ONLY", async || {
        ways(&mesh, "192.0.2.7:9000").await == ("unknown_host".to_owned(), "unknown_host".to_owned())
    })
    .await;
    plane.pause().await;
    assert_eq!(ways(&mesh, "192.0.2.9:443").await, untold("config_unavailable"));
    driver.abort();
}
