//! The webhooks over HTTPS.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::StatusCode;
use mesh_controller::serve::webhooks::MAX_REVIEW;
use serde_json::{Value, json};

use crate::fake::Fake;
use crate::running::{PATIENCE, Running};

const MUTATING: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/mesh-controller";
const VALIDATING: &str =
    "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/mesh-controller";

fn pod(namespace: &str) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "1", "namespace": namespace, "operation": "CREATE",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "object": {"metadata": {"name": "a"}, "spec": {"containers": [{"name": "a"}]}},
        },
    })
}

#[tokio::test]
async fn pods_of_known_and_of_new_namespaces_get_sidecars() {
    let fake = Fake::start().await;
    let running = Running::ready(fake.client.clone(), &["--proxy-image", "example/mesh:1"]).await;
    let answer = running.review("/inject", &pod("known")).await;
    let patch = BASE64_STANDARD.decode(answer["response"]["patch"].as_str().unwrap()).unwrap();
    assert!(String::from_utf8(patch).unwrap().contains("example/mesh:1"));

    // Made a moment ago: only the API server knows it.
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "new",
        "labels": {"istio-injection": "enabled"}}});
    fake.put("/api/v1/namespaces/new", namespace);
    let answer = running.review("/inject", &pod("new")).await;
    assert_eq!(answer["response"]["patchType"], "JSONPatch");
    // And one that nobody knows is refused, for its owner to try again.
    let answer = running.review("/inject", &pod("nowhere")).await;
    assert_eq!(answer["response"]["allowed"], false);
    for (decision, count) in [("changed", 2), ("refused", 1)] {
        let name =
            format!("mesh_controller_webhook_decisions_total{{webhook=\"inject\",decision=\"{decision}\"}}");
        assert_eq!(running.metric(&name).await, count, "{decision}");
    }
    running.stop().await;
}

#[tokio::test]
async fn what_is_no_review_is_a_bad_request() {
    let fake = Fake::start().await;
    let running = Running::ready(fake.client.clone(), &[]).await;
    for path in ["/inject", "/validate"] {
        for body in ["", "no JSON", "{}", r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}"#]
        {
            assert_eq!(running.post(path, body).await.0, StatusCode::BAD_REQUEST, "{path} {body}");
        }
        assert_eq!(running.post(path, vec![b' '; MAX_REVIEW + 1]).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    }
    assert_eq!(running.post("/", "").await.0, StatusCode::NOT_FOUND);
    running.stop().await;
}

#[tokio::test]
async fn the_leader_writes_the_roots_into_both_configurations_and_writes_them_again() {
    let fake = Fake::start().await;
    let configuration = |kind: &str| {
        json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
            "metadata": {"name": "mesh-controller"},
            "webhooks": [{"name": "a.mesh.dev", "admissionReviewVersions": ["v1"], "sideEffects": "None",
                "clientConfig": {"service": {"name": "mesh-controller", "namespace": "mesh-system"}}}]})
    };
    fake.put(MUTATING, configuration("MutatingWebhookConfiguration"));
    fake.put(VALIDATING, configuration("ValidatingWebhookConfiguration"));
    let running = Running::start(fake.client.clone(), &[]);
    running.synced.send_replace(true);
    // The API server believes no webhook yet, so nothing may be sent to this replica.
    const MISSING: &str = "not ready: the webhook configurations do not hold the CA bundle yet\n";
    mesh_test::wait::until(PATIENCE, "the rest", async || running.admin("/ready").await.1 == MISSING).await;
    assert_eq!(fake.asked("PATCH", MUTATING), 0, "it does not lead");
    running.leader.send_replace(true);
    mesh_test::wait::until(PATIENCE, "readiness", async || running.admin("/ready").await.0 == StatusCode::OK)
        .await;
    let bundle = BASE64_STANDARD.encode(running.roots());
    let written = |path: &str| {
        fake.get(path).unwrap()["webhooks"][0]["clientConfig"]["caBundle"].as_str() == Some(&bundle)
    };
    mesh_test::wait::until(PATIENCE, "both", async || written(MUTATING) && written(VALIDATING)).await;
    // Somebody puts the original back; the leader looks again.
    fake.put(MUTATING, configuration("MutatingWebhookConfiguration"));
    running.leader.send_replace(true);
    mesh_test::wait::until(PATIENCE, "again", async || written(MUTATING)).await;
    running.stop().await;
}
