//! What the tests take for granted of the cluster, without a mesh.

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::api::{Api, PostParams};
use mesh_e2e::{Namespace, in_namespace, yaml};
use mesh_test::wait;
use serde_json::json;

#[tokio::test]
#[ignore = "needs a cluster"]
async fn pods_talk_through_a_service_by_its_name() {
    in_namespace("plain", &[], async |namespace: Namespace| {
        namespace.apply(&yaml::deployment("web").to_string()).await;
        namespace.apply(&yaml::deployment("reviews").replicas(2).to_string()).await;
        namespace.rolled_out("web").await;
        namespace.rolled_out("reviews").await;
        let web = namespace.app("web").await;
        // A name and a rule for a new service take a moment to get around.
        wait::until_secs(10, "the service to be known", async || {
            web.get("http://reviews:9080/").await.status == Some(200)
        })
        .await;
        let answer = web.get("http://reviews:9080/").await;
        assert_eq!(answer.served_by.as_deref(), Some("reviews"), "{answer:?}");

        let echoed = web.tcp(&json!({"host": "reviews", "port": 9000, "send": "hello"})).await;
        assert_eq!((echoed.error, echoed.answer.as_str()), (None, "hello"));
        let greeted = web.tcp(&json!({"host": "reviews", "port": 9001, "greeting": true, "send": "x"})).await;
        assert_eq!((greeted.error, greeted.greeting.as_str()), (None, "reviews"));

        web.start_load("l", &json!({"url": "http://reviews:9080/", "connections": 2, "pause_ms": 5})).await;
        wait::until_secs(10, "some load", async || web.load("l").await.total > 50).await;
        web.stop_load("l").await.assert_clean();

        let unknown = web.get("http://nobody.example.com/").await;
        assert!(unknown.error.is_some_and(|e| e.contains("lookup")), "a name that does not exist");
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn a_job_with_a_native_sidecar_ends() {
    in_namespace("job", &[], async |namespace: Namespace| {
        let mut job = yaml::job(1, "http://127.0.0.1:8080/");
        job["spec"]["template"]["spec"]["initContainers"] = json!([{
            "name": "sidecar",
            "image": yaml::image(),
            "imagePullPolicy": "Never",
            "restartPolicy": "Always",
            "args": ["--name=sidecar", "--http=8080", "--control=7001"],
            "startupProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
        }]);
        namespace.apply(&job.to_string()).await;
        namespace.work_done(1).await;
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn a_token_is_good_for_its_audience_alone() {
    in_namespace("token", &[], async |namespace: Namespace| {
        namespace.kubectl(&["create", "serviceaccount", "web"]).await.unwrap();
        let token = namespace.kubectl(&["create", "token", "web", "--audience=istio-ca"]).await.unwrap();
        let review = async |audience: &str| {
            let spec = TokenReviewSpec {
                token: Some(token.trim().to_owned()),
                audiences: Some(vec![audience.to_owned()]),
            };
            let review = TokenReview { spec, ..TokenReview::default() };
            let reviews: Api<TokenReview> = Api::all(namespace.client().clone());
            reviews.create(&PostParams::default(), &review).await.unwrap().status.unwrap()
        };
        let good = review("istio-ca").await;
        assert_eq!(good.authenticated, Some(true));
        let name = good.user.and_then(|user| user.username).unwrap();
        assert_eq!(name, format!("system:serviceaccount:{}:web", namespace.name()));
        assert_ne!(review("another").await.authenticated, Some(true));
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn kubectl_runs_programs_in_pods_and_reads_logs() {
    in_namespace("exec", &[], async |namespace: Namespace| {
        namespace.apply(&yaml::deployment("web").to_string()).await;
        namespace.rolled_out("web").await;
        let logs = namespace.kubectl(&["logs", "deployment/web"]).await.unwrap();
        assert_eq!(logs.trim(), "web serves");
        let version =
            namespace.kubectl(&["exec", "deployment/web", "--", "e2e-app", "--version"]).await.unwrap();
        assert_eq!(version.trim(), format!("e2e-app {}", env!("CARGO_PKG_VERSION")));
    })
    .await;
}
