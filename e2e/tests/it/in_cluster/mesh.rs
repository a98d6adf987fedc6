//! The mesh around applications that know nothing of it.

use std::time::Duration;

use mesh_e2e::{App, Namespace, in_namespace, kubectl, restored, yaml};
use mesh_test::wait;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// What `istio-injection=enabled` asks for.
pub(crate) const INJECTED: &[(&str, &str)] = &[("istio-injection", "enabled")];
/// Within this an edit is in force, once `kubectl` has returned.
const IN_FORCE_WITHIN: Duration = Duration::from_secs(1);
/// How many times a whole series is measured at most: a machine that is busy with others makes each slower.
pub(crate) const SERIES: usize = 3;
/// Within this a client hears a server that speaks first, though nobody has declared that it does.
const GREETED_WITHIN_MS: f64 = 100.0;
pub(crate) const REVIEWS: &str = "http://reviews:9080/";

/// `web`, and `reviews` in two versions.
async fn applications(namespace: &Namespace) -> App {
    let reviews = yaml::deployment("reviews");
    namespace.apply(&yaml::deployment("web").to_string()).await;
    namespace.apply(&reviews.clone().version("v1").to_string()).await;
    namespace.apply(&reviews.version("v2").without_service().to_string()).await;
    for deployment in ["web", "reviews-v1", "reviews-v2"] {
        namespace.rolled_out(deployment).await;
    }
    let web = namespace.app("web").await;
    answered(&web, REVIEWS, 200).await;
    web
}

/// Waits until a call is answered so: names, rules and policies take a moment to get around.
pub(crate) async fn answered(app: &App, url: &str, status: u16) {
    wait::until_secs(20, &format!("{status} from {url}"), async || app.get(url).await.status == Some(status))
        .await;
}

fn mode(mode: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default}}
spec: {{mtls: {{mode: {mode}}}}}
"
    )
}

fn split(v1: u32, v2: u32) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: reviews}}
spec:
  hosts: [reviews]
  http:
  - route:
    - destination: {{host: reviews, subset: v1}}
      weight: {v1}
    - destination: {{host: reviews, subset: v2}}
      weight: {v2}
"
    )
}

/// Lets those call `reviews` whom one rule of an AuthorizationPolicy names.
fn allow(rule: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: reviews}}
spec:
  selector: {{matchLabels: {{app: reviews}}}}
  action: ALLOW
  rules:
  {rule}
"
    )
}

pub(crate) const STRICT: &str = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
";

const SUBSETS: &str = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
";

/// The sidecar's own metrics.
pub(crate) async fn metrics(app: &App) -> std::io::Result<String> {
    let address = format!("{}:15090", app.address());
    let mut stream = TcpStream::connect(&address).await?;
    let request = format!("GET /stats/prometheus HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// One of them without labels; 0 where it is not told.
pub(crate) async fn metric(app: &App, name: &str) -> f64 {
    let text = metrics(app).await.unwrap_or_default();
    let line = text.lines().find(|line| line.split(' ').next() == Some(name));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_default()
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn both_peers_know_whom_they_speak_with_and_strangers_are_refused() {
    in_namespace("identity", INJECTED, async |namespace: Namespace| {
        let web = applications(&namespace).await;
        namespace.apply(&mode("STRICT")).await;
        let name = namespace.name().to_owned();
        in_namespace("stranger", &[], async |outside: Namespace| {
            outside.apply(&yaml::deployment("stranger").to_string()).await;
            outside.rolled_out("stranger").await;
            let stranger = outside.app("stranger").await;
            let url = format!("http://reviews.{name}:9080/");
            wait::until_secs(20, "STRICT to refuse", async || stranger.get(&url).await.status.is_none())
                .await;
            assert_eq!(web.get(REVIEWS).await.status, Some(200));
            namespace.apply(&mode("PERMISSIVE")).await;
            answered(&stranger, &url, 200).await;
        })
        .await;
        let principal = |account: &str| format!("spiffe://cluster.local/ns/{name}/sa/{account}");
        let of_web = metrics(&web).await.unwrap();
        assert!(of_web.contains(&format!("destination_principal=\"{}\"", principal("reviews"))), "{of_web}");
        let reviews = App::of(&namespace.pods("reviews").await[0]);
        // A call goes to one of two pods.
        wait::until_secs(20, "a call to this pod, by the caller's identity", async || {
            assert_eq!(web.get(REVIEWS).await.status, Some(200));
            let of_reviews = metrics(&reviews).await.unwrap();
            of_reviews.contains(&format!("source_principal=\"{}\"", principal("web")))
        })
        .await;
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn timed_an_edit_takes_effect_within_a_second_and_fails_nothing() {
    in_namespace("split", INJECTED, async |namespace: Namespace| {
        let web = applications(&namespace).await;
        namespace.apply(SUBSETS).await;
        namespace.apply(&split(90, 10)).await;
        let load = json!({"url": REVIEWS, "connections": 4, "pause_ms": 2});
        web.start_load("l", &load).await;
        wait::until_secs(20, "v1 to get most", async || {
            let lap = web.lap("l").await;
            lap.of("reviews-v1") > 4 * lap.of("reviews-v2") && lap.of("reviews-v2") > 0
        })
        .await;
        let mut best = Duration::MAX;
        for _ in 0..SERIES {
            best = best.min(edits(&namespace, &web).await);
            if best < IN_FORCE_WITHIN {
                break;
            }
        }
        let all = web.stop_load("l").await;
        assert_eq!(all.failed, 0, "{all:?}");
        assert!(best < IN_FORCE_WITHIN, "p99 {best:?}");
    })
    .await;
}

/// Edits the split again and again; the 99th percentile of the time from when `kubectl` returns until no request goes the
/// old way.
async fn edits(namespace: &Namespace, web: &App) -> Duration {
    const CHANGES: usize = 50;
    let mut took = Vec::new();
    for change in 0..CHANGES {
        let (weights, left) =
            if change % 2 == 0 { (split(0, 100), "reviews-v1") } else { (split(100, 0), "reviews-v2") };
        namespace.apply(&weights).await;
        let applied = Instant::now();
        web.lap("l").await;
        wait::until_secs(10, "the change to be in force", async || {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let lap = web.lap("l").await;
            lap.total > 5 && lap.of(left) == 0
        })
        .await;
        took.push(applied.elapsed());
    }
    took.sort();
    let (p50, p99) = (took[CHANGES / 2], took[CHANGES * 99 / 100]);
    println!("a VirtualService's change takes effect after kubectl returns: p50 {p50:?}, p99 {p99:?}");
    p99
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn an_invalid_resource_is_refused_with_the_way_out() {
    in_namespace("invalid", INJECTED, async |namespace: Namespace| {
        let wrong = split(90, 10).replace("weight: 10", "weight: -10");
        let refused = namespace.try_apply(&wrong).await.unwrap_err();
        assert!(refused.contains("reviews") && refused.contains("weight"), "{refused}");
        let wrong = SUBSETS.replace(
            "labels: {version: v2}}",
            "labels: {version: v2}, trafficPolicy: {outlierDetection: {baseEjectionTime: often}}}",
        );
        let refused = namespace.try_apply(&wrong).await.unwrap_err();
        assert!(refused.contains("baseEjectionTime"), "{refused}");
    })
    .await;
}

/// Changes which namespaces the API server asks the webhook of validation about: all but those with `label`, or all.
async fn validated(but: Option<&str>) {
    let selector = but.map_or_else(
        || json!({}),
        |label| json!({"matchExpressions": [{"key": label, "operator": "DoesNotExist"}]}),
    );
    let patch =
        json!([{"op": "add", "path": "/webhooks/0/namespaceSelector", "value": selector}]).to_string();
    let line = ["patch", "validatingwebhookconfiguration", "mesh-controller", "--type=json", "-p", &patch];
    kubectl(&line, "").await.unwrap();
}

/// The reason and the message of a VirtualService's condition, and which edit it is about.
async fn condition(namespace: &Namespace, name: &str) -> (String, String, String) {
    let path = "jsonpath={.status.observedGeneration}|{range .status.conditions[?(@.type==\"Reconciled\")]}{.reason}|{.message}{end}";
    let told = namespace.kubectl(&["get", "virtualservice", name, "-o", path]).await.unwrap();
    let mut parts = told.splitn(3, '|').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    let (edit, reason, message) = (next(), next(), next());
    (reason, message, edit)
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn an_invalid_resource_that_got_past_the_webhook_is_told_in_its_status_and_the_last_good_one_stays() {
    const UNASKED: &str = "mesh-e2e-unasked";
    let labels = [INJECTED, &[(UNASKED, "true")]].concat();
    in_namespace("past", &labels, async |namespace: Namespace| {
        let web = applications(&namespace).await;
        namespace.apply(SUBSETS).await;
        namespace.apply(&split(0, 100)).await;
        web.start_load("l", &json!({"url": REVIEWS, "connections": 4, "pause_ms": 5})).await;
        wait::until_secs(20, "v2 to get all", async || {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let lap = web.lap("l").await;
            lap.total > 5 && lap.of("reviews-v1") == 0
        })
        .await;
        // What would lead to v1, were it not that no such expression can be.
        let wrong = split(100, 0).replace("  http:\n", "  http:\n  - match: [{uri: {regex: \"(\"}}]\n    route: [{destination: {host: reviews, subset: v1}}]\n");
        assert!(namespace.try_apply(&wrong).await.unwrap_err().contains("regex"), "else it is no test");
        let past = async {
            validated(Some(UNASKED)).await;
            // The API server takes it up a moment later.
            wait::until_secs(20, "nobody to be asked", async || namespace.try_apply(&wrong).await.is_ok()).await;
        };
        restored(past, validated(None)).await;
        wait::until_secs(20, "the status", async || {
            let (reason, message, edit) = condition(&namespace, "reviews").await;
            reason == "LastGoodKept" && message.contains("regex") && edit == "2"
        })
        .await;
        println!("{:?}", condition(&namespace, "reviews").await);
        wait::until_secs(60, "some more calls", async || web.load("l").await.total > 200).await;
        let all = web.stop_load("l").await;
        all.assert_clean();
        assert_eq!(all.of("reviews-v1"), 0, "{all:?}");

        // The next good edit is in force, and its status says so.
        namespace.apply(&split(100, 0)).await;
        wait::until_secs(20, "v1", async || {
            web.get(REVIEWS).await.served_by.as_deref() == Some("reviews-v1")
        })
        .await;
        wait::until_secs(20, "the status", async || {
            let (reason, _, edit) = condition(&namespace, "reviews").await;
            reason == "Applied" && edit == "3"
        })
        .await;
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn who_may_call_is_asked_of_the_identity_and_probes_keep_passing() {
    in_namespace("authz", INJECTED, async |namespace: Namespace| {
        let web = applications(&namespace).await;
        namespace.apply(&yaml::deployment("other").to_string()).await;
        namespace.rolled_out("other").await;
        let other = namespace.app("other").await;
        answered(&other, REVIEWS, 200).await;
        let name = namespace.name();
        namespace.apply(&allow(&format!("- from: [{{source: {{principals: [cluster.local/ns/{name}/sa/web]}}}}]\n    to: [{{operation: {{methods: [GET]}}}}]"))).await;
        answered(&other, REVIEWS, 403).await;
        assert_eq!(other.get(REVIEWS).await.reason.as_deref(), Some("denied"));
        assert_eq!(web.get(REVIEWS).await.status, Some(200));
        let post = web.call(&json!({"url": REVIEWS, "method": "POST"})).await;
        assert_eq!((post.status, post.reason.as_deref()), (Some(403), Some("denied")));

        namespace.apply(&allow(&format!("- from: [{{source: {{namespaces: [{name}]}}}}]"))).await;
        answered(&other, REVIEWS, 200).await;
        for pod in namespace.pods("reviews").await {
            let status = pod.status.unwrap();
            let ready = status.conditions.unwrap().into_iter().find(|c| c.type_ == "Ready").unwrap();
            assert_eq!(ready.status, "True");
            let restarts: i32 = status.container_statuses.unwrap().iter().map(|c| c.restart_count).sum();
            assert_eq!(restarts, 0);
        }
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn restarts_under_load_fail_nothing() {
    const TIMES: usize = 10;
    in_namespace("rollout", INJECTED, async |namespace: Namespace| {
        applications(&namespace).await;
        // The caller is restarted too, so that the load comes from one that is not.
        namespace.apply(&yaml::deployment("front").to_string()).await;
        namespace.rolled_out("front").await;
        let front = namespace.app("front").await;
        for url in [REVIEWS, "http://web:9080/"] {
            answered(&front, url, 200).await;
        }
        front.start_load("reviews", &json!({"url": REVIEWS, "connections": 4, "pause_ms": 5})).await;
        front.start_load("web", &json!({"url": "http://web:9080/", "connections": 4, "pause_ms": 5})).await;
        for _ in 0..TIMES {
            for deployment in ["reviews-v1", "web"] {
                namespace
                    .kubectl(&["rollout", "restart", &format!("deployment/{deployment}")])
                    .await
                    .unwrap();
            }
            for deployment in ["reviews-v1", "web"] {
                let deployment = format!("deployment/{deployment}");
                namespace.kubectl(&["rollout", "status", &deployment, "--timeout=90s"]).await.unwrap();
            }
        }
        for load in ["reviews", "web"] {
            let all = front.stop_load(load).await;
            println!("{load}: {} calls, {} failed", all.total, all.failed);
            all.assert_clean();
        }
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn the_only_pod_of_a_service_is_deleted_and_nothing_fails() {
    in_namespace("only", INJECTED, async |namespace: Namespace| {
        let web = applications(&namespace).await;
        let other = "http://other:9080/";
        namespace.apply(&yaml::deployment("other").to_string()).await;
        namespace.rolled_out("other").await;
        answered(&web, other, 200).await;
        web.start_load("l", &json!({"url": other, "connections": 4, "pause_ms": 5})).await;
        let old = namespace.pods("other").await.remove(0).metadata.name.unwrap();
        namespace.kubectl(&["delete", "pod", &old, "--wait=true", "--timeout=60s"]).await.unwrap();
        // It served until another one did.
        let new = namespace.pods("other").await;
        assert!(new.iter().all(|pod| pod.metadata.name.as_ref() != Some(&old)), "{new:?}");
        wait::until_secs(60, "some more calls", async || {
            let seen = web.load("l").await;
            tokio::time::sleep(Duration::from_millis(500)).await;
            web.load("l").await.total > seen.total + 20
        })
        .await;
        let all = web.stop_load("l").await;
        println!("{} calls, {} failed", all.total, all.failed);
        all.assert_clean();
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn timed_tcp_passes_whoever_speaks_first_and_what_is_outside_is_reached() {
    in_namespace("tcp", INJECTED, async |namespace: Namespace| {
        let web = applications(&namespace).await;
        namespace.apply(&mode("STRICT")).await;
        let echoed = web.tcp(&json!({"host": "reviews", "port": 9000, "send": "hello"})).await;
        assert_eq!((echoed.error, echoed.answer.as_str()), (None, "hello"));
        // Nothing tells that the server of port 9001 speaks first.
        let mut took = Vec::new();
        for _ in 0..11 {
            let greeted =
                web.tcp(&json!({"host": "reviews", "port": 9001, "greeting": true, "send": "x"})).await;
            assert_eq!((greeted.error, greeted.answer.as_str()), (None, "x"));
            assert!(greeted.greeting.starts_with("reviews-v"), "{}", greeted.greeting);
            took.push(greeted.greeting_millis);
        }
        took.sort_by(f64::total_cmp);
        println!("the greeting of a server on an undeclared port: {took:.1?} ms");
        assert!(took[took.len() / 2] < GREETED_WITHIN_MS, "{took:.1?} ms");
        in_namespace("outside", &[], async |outside: Namespace| {
            outside.apply(&yaml::deployment("plain").to_string()).await;
            outside.rolled_out("plain").await;
            answered(&web, &format!("http://plain.{}:9080/", outside.name()), 200).await;
            let plain = outside.app("plain").await;
            answered(&web, &format!("http://{}:9080/", plain.address()), 200).await;
        })
        .await;
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn a_job_with_an_injected_sidecar_ends() {
    in_namespace("job", INJECTED, async |namespace: Namespace| {
        applications(&namespace).await;
        namespace.apply(&yaml::job(1, REVIEWS).to_string()).await;
        namespace.work_done(1).await;
    })
    .await;
}
