//! What goes on without its control plane. These tests take it away from everybody, so each runs alone: `e2e/run`
//! sees to it. What they take away they give back, also when they fail.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::Api;
use mesh_e2e::{
    App, Namespace, Report, SYSTEM, component, helm, in_namespace, installed, kill, kubectl, restored, yaml,
};
use mesh_test::sidecar::metric_sum;
use mesh_test::wait;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::mesh::{INJECTED, metrics};

const REVIEWS: &str = "http://reviews:9080/";
const WEB: &str = "http://web:9080/";
/// What a load has in flight at the most.
const CONNECTIONS: u64 = 4;

fn load(url: &str) -> Value {
    json!({"url": url, "connections": CONNECTIONS, "pause_ms": 5})
}

async fn controllers(replicas: u32) -> Result<String, String> {
    let replicas = format!("--replicas={replicas}");
    kubectl(&["-n", SYSTEM, "scale", "deployment/mesh-controller", &replicas], "").await
}

async fn controllers_are_ready() -> Result<String, String> {
    let wanted = ["-n", SYSTEM, "rollout", "status", "deployment/mesh-controller", "--timeout=90s"];
    kubectl(&wanted, "").await
}

async fn controllers_are_gone() {
    controllers(0).await.unwrap();
    wait::until_secs(60, "the controllers to be gone", async || {
        let pods =
            ["-n", SYSTEM, "get", "pods", "-l", "app.kubernetes.io/name=mesh-controller", "-o", "name"];
        kubectl(&pods, "").await.is_ok_and(|pods| pods.trim().is_empty())
    })
    .await;
}

async fn api_server_is_back() {
    component("start", "kube-apiserver").await;
    wait::until_secs(60, "the API server", async || kubectl(&["get", "--raw", "/readyz"], "").await.is_ok())
        .await;
}

/// Everything as `e2e/run` has installed it.
async fn give_back() {
    api_server_is_back().await;
    controllers(2).await.unwrap();
    controllers_are_ready().await.unwrap();
}

/// Applications of these names, each with as many pods; gives the first of each.
async fn applications<const N: usize>(namespace: &Namespace, wanted: [(&str, u32); N]) -> [App; N] {
    for (name, replicas) in wanted {
        namespace.apply(&yaml::deployment(name).replicas(replicas).to_string()).await;
    }
    for (name, _) in wanted {
        namespace.rolled_out(name).await;
    }
    futures_util::future::join_all(wanted.map(|(name, _)| namespace.app(name))).await.try_into().unwrap()
}

async fn answered(app: &App, url: &str, status: u16) {
    wait::until_secs(30, &format!("{status} from {url}"), async || app.get(url).await.status == Some(status))
        .await;
}

/// Ends unless no more than those failed that can have been in flight where a proxy was killed.
fn assert_in_flight_at_most(report: &Report) {
    assert!(report.total > 100 && report.failed <= CONNECTIONS, "more than was in flight: {report:#?}");
}

/// The mTLS requests that a sidecar has taken from an account, or sent to one, as its label says.
async fn with_identity(app: &App, label: &str, namespace: &Namespace, account: &str) -> f64 {
    let principal = format!("{label}=\"spiffe://cluster.local/ns/{}/sa/{account}\"", namespace.name());
    let page = metrics(app).await.unwrap_or_default();
    metric_sum(&page, "istio_requests_total", &[&principal, "response_code=\"200\""])
}

/// How often the sidecar of a pod was started again.
fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|status| status.init_container_statuses.as_deref());
    let mut sidecars = statuses.unwrap_or_default().iter().filter(|status| status.name == "mesh-proxy");
    sidecars.next().map_or(0, |status| status.restart_count)
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn away_controllers_and_api_server_are_not_missed() {
    installed().await;
    in_namespace("away", INJECTED, async |namespace: Namespace| {
        in_namespace("outside", &[], async |outside: Namespace| {
            let [web, _] = applications(&namespace, [("web", 1), ("reviews", 2)]).await;
            let [called, never] = applications(&outside, [("called", 1), ("never", 1)]).await;
            answered(&web, REVIEWS, 200).await;
            // So that their addresses are nobody's that the mesh knows.
            outside.kubectl(&["delete", "service", "called", "never"]).await.unwrap();
            let addresses = [&called, &never].map(|app| app.address().to_string());
            let not_missed = not_missed(&namespace, &web, &addresses);
            restored(not_missed, give_back()).await;
        })
        .await;
    })
    .await;
}

async fn not_missed(namespace: &Namespace, web: &App, [called, never]: &[String; 2]) {
    web.start_load("l", &load(REVIEWS)).await;
    let goes_on = async |without: &str| {
        web.lap("l").await.assert_clean();
        wait::until_secs(30, "a thousand calls more", async || web.load("l").await.total > 1000).await;
        let lap = web.lap("l").await;
        println!("without {without}: {} calls, {} failed", lap.total, lap.failed);
        lap.assert_clean();
    };
    let echo =
        async |host: &str, text: &str| web.tcp(&json!({"host": host, "port": 9000, "send": text})).await;
    let by_address = |address: &str| format!("http://{address}:9080/");
    assert_eq!(web.get(&by_address(called)).await.status, Some(200));

    controllers_are_gone().await;
    goes_on("controllers").await;
    component("stop", "kube-apiserver").await;
    goes_on("controllers and API server").await;

    // What was known to be nobody's is called as before; what was never called may be the mesh's own, and nothing
    // goes there that is not encrypted.
    assert_eq!(web.get(&by_address(called)).await.status, Some(200));
    assert_eq!(echo(called, "hello").await.answer, "hello");
    let refused = web.get(&by_address(never)).await;
    assert_eq!((refused.status, refused.reason.as_deref()), (Some(503), Some("config_unavailable")));
    assert!(echo(never, "hello").await.error.is_some());
    assert_eq!(echo(never, CLIENT_HELLO).await.answer, CLIENT_HELLO);

    api_server_is_back().await;
    controllers(2).await.unwrap();
    controllers_are_ready().await.unwrap();

    // What had to wait is done.
    let refuse = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody}
spec: {selector: {matchLabels: {app: reviews}}, action: ALLOW}
";
    web.stop_load("l").await.assert_clean();
    wait::until_secs(30, "the webhook to answer", async || namespace.try_apply(refuse).await.is_ok()).await;
    wait::until_secs(60, "the policy to be in force", async || web.get(REVIEWS).await.status == Some(403))
        .await;
    answered(web, &by_address(never), 200).await;
}

/// How TLS begins, in bytes that are text too: TLS 1.3's smallest ClientHello without extensions.
const CLIENT_HELLO: &str = "\x16\x03\x01\0\x2d\x01\0\0\x29\x03\x03\
     01234567890123456789012345678901\
     \0\0\x02\x13\x01\x01\0";

#[tokio::test]
#[ignore = "needs a cluster"]
async fn away_a_killed_sidecar_comes_back_from_its_state() {
    installed().await;
    in_namespace("revived", INJECTED, async |namespace: Namespace| {
        let wanted = [("front", 1), ("web", 1), ("reviews", 2)];
        let [front, web, reviews] = applications(&namespace, wanted).await;
        for (app, url) in [(&web, REVIEWS), (&front, REVIEWS), (&front, WEB)] {
            answered(app, url, 200).await;
        }
        restored(revived(&namespace, &front, &web, &reviews), give_back()).await;
        for app in [&front, &web, &reviews] {
            let pods: Api<Pod> = namespace.api();
            let wanted = i32::from(app.pod() != front.pod());
            wait::until_secs(30, &format!("{wanted} restarts of {}'s sidecar", app.pod()), async || {
                pods.get(app.pod()).await.is_ok_and(|pod| restarts(&pod) == wanted)
            })
            .await;
        }
    })
    .await;
}

async fn revived(namespace: &Namespace, front: &App, web: &App, reviews: &App) {
    let workload = |app: &App| format!("MESH_WORKLOAD={}/{}", namespace.name(), app.pod());
    controllers_are_gone().await;
    component("stop", "kube-apiserver").await;

    // A caller's sidecar; calls of others do not notice.
    front.start_load("reviews", &load(REVIEWS)).await;
    wait::until_secs(30, "some load", async || front.load("reviews").await.total > 100).await;
    let before = with_identity(reviews, "source_principal", namespace, "web").await;
    kill("mesh-proxy", &workload(web)).await;
    let killed = Instant::now();
    answered(web, REVIEWS, 200).await;
    println!("a caller's sidecar is back after {:?}", killed.elapsed());
    // What it counts is its own; what the other side counts says by whom it was called.
    assert!(with_identity(web, "destination_principal", namespace, "reviews").await > 0.0);
    wait::until_secs(30, "calls with the identity of before", async || {
        assert_eq!(web.get(REVIEWS).await.status, Some(200));
        with_identity(reviews, "source_principal", namespace, "web").await > before
    })
    .await;
    front.lap("reviews").await.assert_clean();

    // A server's, beside another replica: what was in flight in it may fail. Calls to others do not notice.
    front.start_load("web", &load(WEB)).await;
    wait::until_secs(30, "some load", async || front.load("web").await.total > 100).await;
    kill("mesh-proxy", &workload(reviews)).await;
    let killed = Instant::now();
    wait::until_secs(30, "calls that the new process takes with mTLS", async || {
        with_identity(reviews, "source_principal", namespace, "front").await > 0.0
    })
    .await;
    println!("a server's sidecar takes calls again after {:?}", killed.elapsed());
    let (of_reviews, of_web) = (front.stop_load("reviews").await, front.stop_load("web").await);
    println!(
        "a server's sidecar was killed: {} calls, {} failed; to others {}, {} failed",
        of_reviews.total, of_reviews.failed, of_web.total, of_web.failed
    );
    assert_in_flight_at_most(&of_reviews);
    of_web.assert_clean();
}

/// When the certificate of a sidecar ends, in seconds since 1970.
async fn certificate_end(app: &App) -> f64 {
    metric_sum(&metrics(app).await.unwrap_or_default(), "mesh_certificate_expiration_timestamp_seconds", &[])
}

fn now() -> f64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64()
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn away_for_a_minute_of_certificates_of_two_nothing_fails() {
    const AWAY: Duration = Duration::from_secs(60);
    installed().await;
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/chart");
    let release = ["--namespace", SYSTEM];
    let status = helm(&[&["status", "tower-mesh", "-o", "json"], &release[..]].concat()).await.unwrap();
    let status: Value = serde_json::from_str(&status).unwrap();
    let revision = status["version"].to_string();
    let short = async {
        let values = ["--reuse-values", "--set", "ca.maxCertificateLife=2m", "--wait", "--timeout", "2m"];
        let upgrade = [&["upgrade", "tower-mesh", chart], &release[..], &values].concat();
        helm(&upgrade).await.unwrap();
        in_namespace("expiring", INJECTED, async |namespace: Namespace| {
            let [web, reviews] = applications(&namespace, [("web", 1), ("reviews", 1)]).await;
            answered(&web, REVIEWS, 200).await;
            web.start_load("l", &load(REVIEWS)).await;
            let ends = async || (certificate_end(&web).await, certificate_end(&reviews).await);
            let before = ends().await;
            for end in [before.0, before.1] {
                assert!((1.0..=121.0).contains(&(end - now())), "{end}: not two minutes");
            }
            let connects = async || {
                // Each makes a connection of its own, between the sidecars too.
                let echoed = web.tcp(&json!({"host": "reviews", "port": 9000, "send": "hello"})).await;
                assert_eq!((echoed.error, echoed.answer.as_str()), (None, "hello"));
            };
            // Whenever that is in the lives of the certificates.
            let gone = Instant::now();
            controllers_are_gone().await;
            let mut connections = 0;
            while gone.elapsed() < AWAY {
                connects().await;
                connections += 1;
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            controllers(2).await.unwrap();
            let at_least = ends().await;
            let left = at_least.0.min(at_least.1) - now();
            wait::until_secs(30, "both certificates to be renewed", async || {
                connects().await;
                let after = ends().await;
                after.0 > at_least.0 && after.1 > at_least.1
            })
            .await;
            let all = web.stop_load("l").await;
            println!(
                "controllers gone for {AWAY:?} of certificates of two minutes: {} calls, {} failed, {connections} new \
                 connections; {left:.0} s of a certificate were left, renewed {:.1} s after the controllers were asked back",
                all.total,
                all.failed,
                (gone.elapsed() - AWAY).as_secs_f64(),
            );
            all.assert_clean();
        })
        .await;
    };
    restored(Box::pin(short), async {
        let back = ["rollback", "tower-mesh", &revision, "--wait", "--timeout", "2m"];
        helm(&[&back[..], &release].concat()).await.unwrap();
        give_back().await;
    })
    .await;
}

async fn holder(leases: &Api<Lease>) -> Option<String> {
    let lease = leases.get("mesh-controller").await.ok()?;
    lease.spec?.holder_identity.filter(|holder| !holder.is_empty())
}

/// A DestinationRule of which one field does nothing, which its status is to say.
fn with_a_remark(name: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}}}
spec: {{host: reviews, trafficPolicy: {{connectionPool: {{tcp: {{tcpKeepalive: {{time: 60s}}}}}}}}}}
"
    )
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn away_a_killed_leader_is_followed_by_another_that_writes_within_15_seconds() {
    const WITHIN: Duration = Duration::from_secs(15);
    let client = installed().await;
    let leases: Api<Lease> = Api::namespaced(client.clone(), SYSTEM);
    wait::until_secs(30, "a leader", async || holder(&leases).await.is_some()).await;
    in_namespace("led", INJECTED, async |namespace: Namespace| {
        let [web, _] = applications(&namespace, [("web", 2), ("reviews", 2)]).await;
        answered(&web, REVIEWS, 200).await;
        web.start_load("l", &load(REVIEWS)).await;
        let leader = holder(&leases).await.unwrap();
        // POD_RANDOM: a controller that is started anew in a pod is another.
        let (pod, _) = leader.rsplit_once('_').unwrap();
        let pods: Api<Pod> = Api::namespaced(client.clone(), SYSTEM);
        let path = format!("/api/v1/namespaces/{SYSTEM}/pods/{pod}:15014/proxy/metrics");
        let page = kubectl(&["get", "--raw", &path], "").await.unwrap();
        let attached = metric_sum(&page, "mesh_controller_proxies", &[]);
        let followed = async {
            kill("mesh-controller", &format!("MESH_POD_NAME={pod}")).await;
            let killed = Instant::now();
            // Who is asked may be the one that was killed, until its pod is known not to be ready.
            let fresh = with_a_remark("fresh");
            wait::until_secs(15, "the webhook of the other", async || namespace.try_apply(&fresh).await.is_ok())
                .await;
            let accepted = killed.elapsed();
            wait::until(WITHIN, "the status of a resource that nobody wrote to before", async || {
                let path = "jsonpath={.status.conditions[?(@.type==\"Reconciled\")].message}";
                let told = namespace.kubectl(&["get", "destinationrule", "fresh", "-o", path]).await;
                told.is_ok_and(|message| message.contains("tcpKeepalive"))
            })
            .await;
            let written = killed.elapsed();
            let now = holder(&leases).await.unwrap();
            println!(
                "the leader of {attached} sidecars was killed: a resource is accepted after {accepted:?}, another leader \
                 has written its status after {written:?}"
            );
            assert_ne!(now, leader);
            assert!(written < WITHIN, "{written:?}");
        };
        restored(followed, async { drop(controllers_are_ready().await.unwrap()) }).await;
        let container = |pod: &Pod| pod.status.as_ref()?.container_statuses.as_ref()?.first().cloned();
        let again = container(&pods.get(pod).await.unwrap()).unwrap();
        assert_eq!(again.restart_count, 1, "the process was killed, not its pod");

        // No proxy noticed: who had its stream has another, and is told what is new.
        for app in namespace.pods("web").await.iter().chain(&namespace.pods("reviews").await) {
            let (app, name) = (App::of(app), app.name_any());
            wait::until_secs(15, &format!("the stream of {name}"), async || {
                let page = metrics(&app).await.unwrap_or_default();
                metric_sum(&page, "envoy_control_plane_connected_state", &[]) == 1.0
            })
            .await;
            let page = metrics(&app).await.unwrap();
            assert_eq!(metric_sum(&page, "mesh_control_plane_rejected_total", &[]), 0.0, "{name}");
            assert_eq!(metric_sum(&page, "mesh_first_calls_refused_total", &[]), 0.0, "{name}");
        }
        let all = web.stop_load("l").await;
        println!("meanwhile {} calls, {} failed", all.total, all.failed);
        all.assert_clean();
        let refuse = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody}
spec: {selector: {matchLabels: {app: reviews}}, action: ALLOW}
";
        namespace.apply(refuse).await;
        answered(&web, REVIEWS, 403).await;
    })
    .await;
}
