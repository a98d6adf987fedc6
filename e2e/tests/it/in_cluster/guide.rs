//! What docs/kubernetes.md tells newcomers to type.

use mesh_e2e::{Namespace, in_namespace, yaml};
use mesh_test::wait;
use serde_json::json;

use super::mesh::{INJECTED, REVIEWS, answered};

const GUIDE: &str = include_str!("../../../../docs/kubernetes.md");

/// The manifests of the guide, in its order.
fn manifests() -> Vec<String> {
    let blocks = GUIDE.split("<<'YAML'\n").skip(1);
    blocks.map(|block| block.split("\nYAML\n").next().unwrap().to_owned()).collect()
}

/// Puts the tests' application in the place of the guide's, which comes from the internet.
fn with_our_application(manifest: &str) -> String {
    let image = format!("image: {}, imagePullPolicy: Never", yaml::image());
    let mut lines = Vec::new();
    for line in manifest.lines() {
        let line = if line.contains("command: [sh") {
            let version = if line.contains("echo v1") { "v1" } else { "v2" };
            format!("        args: [--name=reviews-{version}, --http=9080]")
        } else if line.trim() == "image: python:3-alpine" {
            format!("        image: {}\n        imagePullPolicy: Never", yaml::image())
        } else {
            // So that the test reaches it whatever the mesh does.
            line.replace("image: python:3-alpine, command: [sleep, infinity]", &format!("{image}, args: [--name=web]"))
                .replace(
                    "metadata: {labels: {app: web}}",
                    "metadata: {labels: {app: web}, annotations: {traffic.sidecar.istio.io/excludeInboundPorts: '7000'}}",
                )
        };
        lines.push(line);
    }
    lines.join("\n")
}

#[test]
fn the_guide_is_as_its_test_reads_it() {
    let manifests = manifests();
    assert_eq!(manifests.len(), 3, "{manifests:#?}");
    let ours = with_our_application(&manifests[0]);
    assert!(!ours.contains("python"), "{ours}");
    assert!(ours.contains("excludeInboundPorts"), "{ours}");
    assert_eq!(ours.matches(&yaml::image()).count(), 3, "{ours}");
    assert!(manifests[1].contains("/ns/shop/"));
    assert!(GUIDE.contains("weight: 90}") && GUIDE.contains("weight: 10}"));
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn the_guide_leads_to_a_canary() {
    in_namespace("guide", INJECTED, async |namespace: Namespace| {
        let [applications, policies, canary] = manifests().try_into().unwrap();
        namespace.apply(&with_our_application(&applications)).await;
        for deployment in ["web", "reviews-v1", "reviews-v2"] {
            namespace.rolled_out(deployment).await;
        }
        let web = namespace.app("web").await;
        answered(&web, REVIEWS, 200).await;
        let post = async || web.call(&json!({"url": REVIEWS, "method": "POST"})).await;
        assert_eq!(post().await.status, Some(200));

        let policies = policies.replace("/ns/shop/", &format!("/ns/{}/", namespace.name()));
        namespace.apply(&policies).await;
        wait::until_secs(20, "the policy to be in force", async || {
            post().await.reason.as_deref() == Some("denied")
        })
        .await;
        answered(&web, REVIEWS, 200).await;

        namespace.apply(&canary).await;
        // Half of the answers come from either before that.
        wait::until_secs(20, "nine of ten answers to come from v1", async || {
            web.start_load("l", &json!({"url": REVIEWS, "connections": 2})).await;
            wait::until_secs(20, "300 answers", async || web.load("l").await.total >= 300).await;
            let all = web.stop_load("l").await;
            all.assert_clean();
            let (one, two) = (all.of("reviews-v1"), all.of("reviews-v2"));
            println!("of {} answers {one} are from v1, {two} from v2", all.total);
            two > 0 && two * 5 < all.total && one + two == all.total
        })
        .await;
    })
    .await;
}
