//! What goes on without its control plane. These tests take it away from everybody, so each runs alone: `e2e/run`
//! sees to it.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::Api;
use mesh_e2e::{Namespace, SYSTEM, component, in_namespace, installed, kubectl, yaml};
use mesh_test::wait;
use serde_json::json;
use tokio::time::Instant;

const REVIEWS: &str = "http://reviews:9080/";

async fn controllers(replicas: u32) -> Result<String, String> {
    let replicas = format!("--replicas={replicas}");
    kubectl(&["-n", SYSTEM, "scale", "deployment/mesh-controller", &replicas], "").await
}

async fn controllers_are_ready() -> Result<String, String> {
    let wanted = ["-n", SYSTEM, "rollout", "status", "deployment/mesh-controller", "--timeout=90s"];
    kubectl(&wanted, "").await
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn away_controllers_and_api_server_are_not_missed() {
    installed().await;
    in_namespace("away", &[("istio-injection", "enabled")], async |namespace: Namespace| {
        namespace.apply(&yaml::deployment("web").to_string()).await;
        namespace.apply(&yaml::deployment("reviews").replicas(2).to_string()).await;
        namespace.rolled_out("web").await;
        namespace.rolled_out("reviews").await;
        let web = namespace.app("web").await;
        wait::until_secs(20, "a first answer", async || web.get(REVIEWS).await.status == Some(200)).await;
        web.start_load("l", &json!({"url": REVIEWS, "connections": 4, "pause_ms": 5})).await;
        let goes_on = async |without: &str| {
            web.lap("l").await.assert_clean();
            wait::until_secs(30, "a thousand calls more", async || web.load("l").await.total > 1000).await;
            let lap = web.lap("l").await;
            println!("without {without}: {} calls, {} failed", lap.total, lap.failed);
            lap.assert_clean();
        };

        controllers(0).await.unwrap();
        wait::until_secs(60, "the controllers to be gone", async || {
            let pods =
                ["-n", SYSTEM, "get", "pods", "-l", "app.kubernetes.io/name=mesh-controller", "-o", "name"];
            kubectl(&pods, "").await.is_ok_and(|pods| pods.trim().is_empty())
        })
        .await;
        goes_on("controllers").await;
        component("stop", "kube-apiserver").await;
        goes_on("controllers and API server").await;
        component("start", "kube-apiserver").await;
        wait::until_secs(60, "the API server", async || {
            kubectl(&["get", "--raw", "/readyz"], "").await.is_ok()
        })
        .await;
        controllers(2).await.unwrap();
        controllers_are_ready().await.unwrap();

        // What had to wait is done.
        let refuse = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody}
spec: {selector: {matchLabels: {app: reviews}}, action: ALLOW}
";
        web.stop_load("l").await.assert_clean();
        wait::until_secs(30, "the webhook to answer", async || namespace.try_apply(refuse).await.is_ok())
            .await;
        wait::until_secs(60, "the policy to be in force", async || {
            web.get(REVIEWS).await.status == Some(403)
        })
        .await;
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn away_a_leader_is_followed_by_another_within_15_seconds() {
    let client = installed().await;
    let leases: Api<Lease> = Api::namespaced(client, SYSTEM);
    let holder = async || {
        let lease = leases.get("mesh-controller").await.ok()?;
        lease.spec?.holder_identity.filter(|holder| !holder.is_empty())
    };
    wait::until_secs(30, "a leader", async || holder().await.is_some()).await;
    let leader = holder().await.unwrap();
    // POD_RANDOM: a controller that is started anew in a pod is another.
    let (pod, _) = leader.rsplit_once('_').unwrap();
    let kill = ["-n", SYSTEM, "delete", "pod", pod, "--grace-period=0", "--force"];
    kubectl(&kill, "").await.unwrap();
    let killed = Instant::now();
    wait::until_secs(30, "another leader", async || {
        tokio::time::sleep(Duration::from_millis(50)).await;
        holder().await.is_some_and(|now| now != leader)
    })
    .await;
    println!("another leads after {:?}", killed.elapsed());
    assert!(killed.elapsed() < Duration::from_secs(15), "{:?}", killed.elapsed());
    controllers_are_ready().await.unwrap();
}
