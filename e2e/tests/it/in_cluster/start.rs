//! How a pod with a sidecar starts: when, and in which order. What measures time is named `timed_`, and `e2e/run` lets
//! nothing else run beside it.

use std::time::Duration;

use futures_util::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, PostParams, WatchEvent, WatchParams};
use mesh_e2e::{App, Namespace, in_namespace, sidecar, yaml};
use mesh_test::wait;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::mesh::{INJECTED, REVIEWS, SERIES, answered, metric};

/// How long a sidecar may take from its start until it is ready, certificate and first configuration included.
const READY_WITHIN: Duration = Duration::from_millis(300);
/// How much later than the same pod with two containers that do nothing an injected pod may be ready.
const LATER_BY: Duration = Duration::from_millis(500);

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort();
    all[all.len() / 2]
}

/// A pod whose application needs no time to start. Its ports are declared by nobody.
fn pod(name: &str, injected: bool) -> Value {
    json!({
        "metadata": {
            "name": name,
            "labels": {"sidecar.istio.io/inject": injected.to_string()},
            "annotations": {"traffic.sidecar.istio.io/excludeInboundPorts": "7000"},
        },
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "app",
                "image": yaml::image(),
                "imagePullPolicy": "Never",
                "args": ["--name=app"],
            }],
        },
    })
}

/// The same with a sidecar that is held up for by a probe: it has a `postStart` hook already, which does nothing.
fn probed(name: &str) -> Value {
    let mut pod = pod(name, true);
    let nothing = json!({"postStart": {"sleep": {"seconds": 0}}});
    let own = json!({"name": "mesh-proxy", "image": "auto", "lifecycle": nothing});
    pod["spec"]["containers"].as_array_mut().unwrap().push(own);
    pod
}

/// The same with containers of an injected pod's shape that do nothing: one ends, the other stays.
fn like_injected(name: &str) -> Value {
    let mut pod = pod(name, false);
    let container = |name: &str, args: &[&str]| {
        json!({
            "name": name,
            "image": yaml::image(),
            "imagePullPolicy": "Never",
            "args": args,
            "resources": {"requests": {"cpu": "50m", "memory": "48Mi"}, "limits": {"cpu": "2", "memory": "1Gi"}},
        })
    };
    let mut stays = container("stays", &["--name=stays", "--control=7001"]);
    stays["restartPolicy"] = json!("Always");
    pod["spec"]["initContainers"] = json!([container("ends", &["--version"]), stays]);
    pod
}

/// Makes a pod; how long it takes until it is ready, by what the API server tells when. Then it is deleted.
async fn time_to_ready(namespace: &Namespace, pod: &Value) -> Duration {
    let pods: Api<Pod> = namespace.api();
    let name = pod["metadata"]["name"].as_str().unwrap();
    let begun = Instant::now();
    let made = pods.create(&PostParams::default(), &serde_json::from_value(pod.clone()).unwrap()).await;
    let version = made.unwrap().metadata.resource_version.unwrap();
    let of_name = WatchParams::default().fields(&format!("metadata.name={name}"));
    let events = pods.watch(&of_name, &version).await.unwrap();
    pin_mut!(events);
    let ready = async {
        loop {
            match events.next().await.unwrap().unwrap() {
                WatchEvent::Modified(pod) if is_ready(&pod) => break,
                WatchEvent::Modified(_) | WatchEvent::Added(_) | WatchEvent::Bookmark(_) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), ready)
        .await
        .unwrap_or_else(|_| panic!("{name} is not ready"));
    let took = begun.elapsed();
    delete(&pods, name).await;
    took
}

async fn delete(pods: &Api<Pod>, name: &str) {
    pods.delete(name, &DeleteParams::default()).await.unwrap();
    wait::until_secs(60, "the end of a pod", async || pods.get_opt(name).await.unwrap().is_none()).await;
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn timed_an_injected_pod_is_ready_little_later_than_one_of_its_shape() {
    const ROUNDS: usize = 7;
    in_namespace("little-later", INJECTED, async |namespace: Namespace| {
        // Volumes and rules that the first pod of a namespace waits for are there then.
        time_to_ready(&namespace, &pod("first", true)).await;
        let [mut injected, mut others, mut probes] = [const { Vec::new() }; 3];
        for round in 0..ROUNDS {
            others.push(time_to_ready(&namespace, &like_injected(&format!("like-{round}"))).await);
            injected.push(time_to_ready(&namespace, &pod(&format!("injected-{round}"), true)).await);
            probes.push(time_to_ready(&namespace, &probed(&format!("probed-{round}"))).await);
        }
        println!("from a pod's creation until it is ready, {ROUNDS} times:");
        println!("with containers that do nothing {others:.2?}\ninjected {injected:.2?}\nby a probe {probes:.2?}");
        let (with, without, by_probe) = (median(injected), median(others), median(probes));
        let later = with.saturating_sub(without);
        println!(
            "medians: with containers that do nothing {without:.2?}; injected {with:.2?}, {later:.2?} later; with a \
             startup probe in place of the hook {by_probe:.2?}"
        );
        assert!(later < LATER_BY, "{later:?}");
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn timed_a_sidecar_is_ready_at_once() {
    in_namespace("at-once", INJECTED, async |namespace: Namespace| {
        let mut best = Duration::MAX;
        for series in 0..SERIES {
            best = best.min(startup(&namespace, series).await);
            if best <= READY_WITHIN {
                break;
            }
        }
        assert!(best <= READY_WITHIN, "{best:?}");
    })
    .await;
}

/// The median of the times that sidecars take, pod after pod.
async fn startup(namespace: &Namespace, series: usize) -> Duration {
    const PODS: usize = 7;
    let pods: Api<Pod> = namespace.api();
    let (mut own, mut whole) = (Vec::new(), Vec::new());
    for i in 0..PODS {
        let name = format!("app-{series}-{i}");
        let pod = serde_json::from_value(pod(&name, true)).unwrap();
        pods.create(&PostParams::default(), &pod).await.unwrap();
        let app = App::of(&namespace.ready(&name).await);
        let took = metric(&app, "istio_agent_startup_duration_seconds").await;
        assert!(took > 0.0, "the sidecar tells when it was ready");
        own.push(Duration::from_secs_f64(took));
        // The same by the clocks of others: the kernel's for the start, the log's for the end.
        let log = namespace.kubectl(&["logs", &name, "-c", "mesh-proxy"]).await.unwrap();
        let line = log.lines().find(|line| line.contains(" ready took=")).unwrap_or_else(|| panic!("{log}"));
        let at = line.split_whitespace().next().unwrap().parse::<k8s_openapi::jiff::Timestamp>().unwrap();
        let started = sidecar(&format!("{}/{name}", namespace.name())).await.started;
        whole.push(Duration::from_secs_f64(at.as_microsecond() as f64 / 1e6 - started));
        delete(&pods, &name).await;
    }
    println!("from its start until it is ready a sidecar takes {own:.0?}");
    println!("from when the runtime makes its process, {whole:.0?}");
    let (own, whole) = (median(own), median(whole));
    println!("medians of {PODS}: {own:.0?}, {whole:.0?}");
    own
}

/// One call at its very start, without another try, in each of many pods.
#[tokio::test]
#[ignore = "needs a cluster"]
async fn no_application_starts_before_its_network_is_ready() {
    const PODS: u32 = 10;
    in_namespace("first-act", INJECTED, async |namespace: Namespace| {
        namespace.apply(&yaml::deployment("reviews").to_string()).await;
        namespace.apply(&yaml::deployment("web").to_string()).await;
        namespace.rolled_out("reviews").await;
        namespace.rolled_out("web").await;
        answered(&namespace.app("web").await, REVIEWS, 200).await;
        // Nobody may call in plaintext, so that what passes beside the sidecar fails as well.
        namespace.apply(super::mesh::STRICT).await;
        namespace.apply(&yaml::job(PODS, REVIEWS).to_string()).await;
        namespace.work_done(PODS).await;
    })
    .await;
}

/// A sidecar that cannot get ready, since there is no controller where it looks for it.
#[tokio::test]
#[ignore = "needs a cluster"]
async fn an_application_waits_for_a_sidecar_that_is_not_ready() {
    in_namespace("not-ready", INJECTED, async |namespace: Namespace| {
        let mut lost = pod("lost", true);
        let nowhere = json!({"name": "MESH_CONTROLLER", "value": "https://127.0.0.1:9"});
        lost["spec"]["containers"].as_array_mut().unwrap().push(json!({
            "name": "mesh-proxy", "image": "auto", "env": [nowhere],
        }));
        let pods: Api<Pod> = namespace.api();
        pods.create(&PostParams::default(), &serde_json::from_value(lost).unwrap()).await.unwrap();
        let missing = ["exec", "lost", "-c", "mesh-proxy", "--", "mesh-proxy", "wait", "--timeout=0s"];
        let said =
            wait::until_ok(Duration::from_secs(60), "the sidecar to tell what is missing", async || {
                let said = namespace.kubectl(&missing).await.unwrap_err();
                if said.contains("no certificate") { Ok(said) } else { Err(said) }
            })
            .await;
        println!("{said}");
        // Who looks at the pod is told as well, once the kubelet gives the sidecar up for a while.
        wait::until_secs(90, "the kubelet to tell it", async || {
            let status = pods.get("lost").await.unwrap().status.unwrap();
            let app = &status.container_statuses.as_deref().unwrap_or_default()[0];
            assert!(app.state.as_ref().is_none_or(|state| state.waiting.is_some()), "{app:?}");
            assert!(app.last_state.as_ref().is_none_or(|state| state.terminated.is_none()), "{app:?}");
            let all = serde_json::to_string(&status.init_container_statuses).unwrap();
            all.contains("the sidecar was not ready within 30s: ")
        })
        .await;
        delete(&pods, "lost").await;
    })
    .await;
}
