//! Identity and webhooks, before a real API server.

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use kube::ResourceExt;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, PostParams};
use mesh_xds::ca::RequestError;
use rcgen::{KeyPair, SigningKey};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tonic::Code;

use crate::definitions::install;
use crate::keeper::start_at_once;
use crate::log::{Log, capture};
use crate::ports::is_of;
use crate::real::Real;
use crate::running::{PATIENCE, Running, code};

const TWO_MINUTES: Duration = Duration::from_secs(120);

fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

async fn namespace(client: &kube::Client, name: &str, labels: Value) {
    let api: Api<Namespace> = Api::all(client.clone());
    let namespace = object(json!({"metadata": {"name": name, "labels": labels}}));
    api.create(&PostParams::default(), &namespace).await.unwrap();
}

/// A pod with an account of its own, as far as an API server alone has pods.
async fn workload(client: &kube::Client, namespace: &str, account: &str, pod: &str) -> Pod {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let _ = accounts.create(&PostParams::default(), &object(json!({"metadata": {"name": account}}))).await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let pod = object(json!({
        "metadata": {"name": pod},
        "spec": {"serviceAccountName": account, "containers": [{"name": "app", "image": "app"}]},
    }));
    pods.create(&PostParams::default(), &pod).await.unwrap()
}

async fn token(
    client: &kube::Client,
    namespace: &str,
    account: &str,
    audience: &str,
    pod: Option<&Pod>,
) -> String {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let bound = pod.map(|pod| BoundObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
    });
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: vec![audience.to_owned()],
            expiration_seconds: Some(600),
            bound_object_ref: bound,
        },
        ..TokenRequest::default()
    };
    let answer = accounts.create_token_request(account, &PostParams::default(), &request).await.unwrap();
    answer.status.unwrap().token
}

/// The claims of a token, signed (RS256) by `key` anew.
fn signed(like: &str, key: &KeyPair, change: impl FnOnce(&mut Value)) -> String {
    let part = |n| BASE64_URL_SAFE_NO_PAD.decode(like.split('.').nth(n).unwrap()).unwrap();
    let mut claims: Value = serde_json::from_slice(&part(1)).unwrap();
    change(&mut claims);
    let header = BASE64_URL_SAFE_NO_PAD.encode(part(0));
    let text = format!("{header}.{}", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()));
    let signature = key.sign(text.as_bytes()).unwrap();
    format!("{text}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}

/// One thread, so that what it logs is all there is.
#[tokio::test]
#[ignore = "needs kube-apiserver"]
async fn an_identity_is_what_kubernetes_vouches_for() {
    let (log, _guard) = capture();
    let real = Real::start().await;
    let client = &real.client;
    namespace(client, "mesh-system", json!({})).await;
    namespace(client, "shop", json!({})).await;
    namespace(client, "other", json!({})).await;
    start_at_once(client.clone()).await;

    let web = workload(client, "shop", "web", "web-1").await;
    let gone = workload(client, "shop", "web", "web-2").await;
    let others = workload(client, "other", "web", "web-1").await;
    let running = Running::ready(client.clone(), &[]).await;
    let good = token(client, "shop", "web", "istio-ca", Some(&web)).await;

    // A request that asks for another name gets its own.
    let identity = running.certificate(&good, TWO_MINUTES, None).await.unwrap();
    is_of(&identity, "spiffe://cluster.local/ns/shop/sa/web", &running.roots());
    let names = ["spiffe---cluster.local-ns-shop-sa-web", "shop-web-1"];
    let issued =
        "audit: certificate issued id=\"spiffe://cluster.local/ns/shop/sa/web\" pod=\"web-1\" serial=";
    assert_eq!(lines(&log, issued), 1);
    assert_eq!(running.who(Some(&good), None).await.unwrap(), names);
    assert_eq!(running.who(None, Some(&identity)).await.unwrap(), names);
    let made = "mesh_controller_certificates_issued_total";
    assert_eq!(running.metric(made).await, 1);

    let own = KeyPair::from_pem(&real.signing_key()).unwrap();
    let past = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() - 3600;
    let expired = signed(&good, &own, |claims| {
        for (claim, at) in [("iat", past - 600), ("nbf", past - 600), ("exp", past)] {
            claims[claim] = json!(at);
        }
    });
    let altered = {
        let mut parts: Vec<_> = good.split('.').map(str::to_owned).collect();
        let mut claims: Value =
            serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(&parts[1]).unwrap()).unwrap();
        claims["sub"] = json!("system:serviceaccount:kube-system:admin");
        parts[1] = BASE64_URL_SAFE_NO_PAD.encode(claims.to_string());
        parts.join(".")
    };
    let of_gone = token(client, "shop", "web", "istio-ca", Some(&gone)).await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "shop");
    pods.delete("web-2", &DeleteParams::default().grace_period(0)).await.unwrap();
    mesh_test::wait::until(PATIENCE, "the pod's end", async || {
        pods.get_opt("web-2").await.unwrap().is_none()
    })
    .await;

    // Another namespace's account of the same name, whose pod has the same name: it is itself, whatever its request and
    // its proxy say, and it is not who has made the connection.
    let of_other = token(client, "other", "web", "istio-ca", Some(&others)).await;
    let other = running.certificate(&of_other, TWO_MINUTES, None).await.unwrap();
    is_of(&other, "spiffe://cluster.local/ns/other/sa/web", &running.roots());
    let names = ["spiffe---cluster.local-ns-other-sa-web", "other-web-1"];
    assert_eq!(running.who(Some(&of_other), None).await.unwrap(), names);
    let issued =
        "audit: certificate issued id=\"spiffe://cluster.local/ns/other/sa/web\" pod=\"web-1\" serial=";
    assert_eq!(lines(&log, issued), 1);
    // A token that says of itself that it is the other namespace's is none.
    let moved = signed(&good, &KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap(), |claims| {
        claims["sub"] = json!("system:serviceaccount:other:web");
        claims["kubernetes.io"]["namespace"] = json!("other");
    });

    let table = [
        ("wrong_audience", token(client, "shop", "web", "vault", Some(&web)).await, None),
        ("expired", expired, None),
        ("not_authenticated", altered, None),
        ("not_authenticated", moved, None),
        ("not_authenticated", "made.up.bm90aGluZyBvZiB0aGUgc29ydA".to_owned(), None),
        ("not_authenticated", of_gone, None),
        ("no_pod", token(client, "shop", "web", "istio-ca", None).await, None),
        ("another_identity", of_other, Some(&identity)),
        ("another_identity", good, Some(&other)),
    ];
    for (n, (reason, token, shown)) in table.iter().enumerate() {
        let counter = format!("mesh_controller_certificates_refused_total{{reason=\"{reason}\"}}");
        let tokens = format!("mesh_controller_tokens_total{{outcome=\"{reason}\"}}");
        let before = (running.metric(&counter).await, running.metric(&tokens).await);
        log.take();
        let error = running.certificate(token, TWO_MINUTES, *shown).await.map(|_| ()).unwrap_err();
        assert!(matches!(error, RequestError::Refused(_)), "{n} {reason}: {error}");
        assert_eq!(code(running.who(Some(token), *shown).await), Code::Unauthenticated, "{n} {reason}");
        // Each refusal is counted and is a line that says why, and to nobody is told what was shown.
        assert_eq!(running.metric(&counter).await, before.0 + 1, "{n} {reason}");
        assert_eq!(running.metric(&tokens).await, before.1 + 2, "{n} {reason}");
        let told = log.take();
        let with = |text: &str| told.iter().filter(|line| line.contains(text)).collect::<Vec<_>>();
        let refused = with(&format!("audit: certificate refused reason=\"{reason}\""));
        assert!(refused.len() == 1 && refused[0].contains("why=\""), "{n} {reason}: {told:#?}");
        let stream = with("a discovery stream is refused: ");
        assert!(stream.len() == 1 && stream[0].contains(reason), "{n} {reason}: {told:#?}");
        let signature = token.rsplit('.').next().unwrap();
        assert!(with(signature).is_empty(), "{n} {reason}: a token in the log: {told:#?}");
    }
    assert_eq!(running.metric(made).await, 2);
    running.stop().await;
}

/// How many lines have this in them since the log was looked at last.
fn lines(log: &Log, text: &str) -> usize {
    log.take().iter().filter(|line| line.contains(text)).count()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs kube-apiserver"]
async fn the_api_server_asks_the_webhooks_and_believes_the_bundle_that_was_written() {
    let real = Real::start().await;
    let client = &real.client;
    install(client).await;
    namespace(client, "mesh-system", json!({})).await;
    namespace(client, "injected", json!({"istio-injection": "enabled"})).await;
    let running = Running::ready(client.clone(), &["--dns-names", "127.0.0.1"]).await;

    let url = |path: &str| json!({"url": format!("https://{}{path}", running.args.webhook)});
    let webhook = |name: &str, path: &str, rule: Value| {
        json!({
            "metadata": {"name": "mesh-controller"},
            "webhooks": [{
                "name": name, "clientConfig": url(path), "rules": [rule], "failurePolicy": "Fail",
                "sideEffects": "None", "admissionReviewVersions": ["v1"], "timeoutSeconds": 5,
            }],
        })
    };
    let mutating: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let rule =
        json!({"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]});
    let injector = object(webhook("inject.mesh.dev", "/inject", rule));
    mutating.create(&PostParams::default(), &injector).await.unwrap();
    let validating: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    let rule = json!({
        "apiGroups": ["networking.istio.io", "security.istio.io", "telemetry.istio.io"],
        "apiVersions": ["*"], "operations": ["CREATE", "UPDATE"], "resources": ["*"],
    });
    let validator = object(webhook("validate.mesh.dev", "/validate", rule));
    validating.create(&PostParams::default(), &validator).await.unwrap();
    running.leader.send_replace(true);
    let written = async || {
        let one = mutating.get("mesh-controller").await.unwrap().webhooks.unwrap_or_default();
        let other = validating.get("mesh-controller").await.unwrap().webhooks.unwrap_or_default();
        one.iter().all(|w| w.client_config.ca_bundle.is_some())
            && other.iter().all(|w| w.client_config.ca_bundle.is_some())
    };
    mesh_test::wait::until(PATIENCE, "the bundles", written).await;

    // A pod in a namespace that asks for it gets its sidecar. The API server takes up configurations a moment
    // after they are written.
    let pods: Api<Pod> = Api::namespaced(client.clone(), "injected");
    let pod = |name: &str| {
        object::<Pod>(json!({"metadata": {"name": name}, "spec": {
            "serviceAccountName": "app", "containers": [{"name": "app", "image": "app"}],
        }}))
    };
    let mut n = 0;
    mesh_test::wait::until_ok(PATIENCE, "a sidecar", async || {
        n += 1;
        let made = pods.create(&PostParams::default(), &pod(&format!("app-{n}"))).await;
        let made = made.map_err(|error| error.to_string())?;
        let containers = made.spec.and_then(|spec| spec.init_containers).unwrap_or_default();
        let has = containers
            .iter()
            .any(|c| c.name == "mesh-proxy" && c.restart_policy.as_deref() == Some("Always"));
        has.then_some(()).ok_or_else(|| format!("{containers:?}"))
    })
    .await;
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    assert!(
        pods.create(&dry, &pod("dry")).await.unwrap().annotations().contains_key("sidecar.istio.io/status")
    );

    let kind = GroupVersionKind::gvk("networking.istio.io", "v1", "VirtualService");
    let resource = ApiResource::from_gvk_with_plural(&kind, "virtualservices");
    let routes: Api<DynamicObject> = Api::namespaced_with(client.clone(), "injected", &resource);
    let route = |spec: Value| {
        object::<DynamicObject>(json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {"name": "reviews"}, "spec": spec,
        }))
    };
    let bad = route(
        json!({"hosts": ["reviews"], "http": [{"timeout": "soon", "route": [{"destination": {"host": "reviews"}}]}]}),
    );
    let mut said = String::new();
    mesh_test::wait::until(PATIENCE, "a refusal", async || {
        match routes.create(&PostParams::default(), &bad).await {
            Ok(_) => {
                routes.delete("reviews", &DeleteParams::default()).await.unwrap();
                false
            }
            Err(error) => {
                said = error.to_string();
                true
            }
        }
    })
    .await;
    assert!(said.contains("VirtualService injected/reviews: spec.http[0].timeout: "), "{said}");
    let good =
        route(json!({"hosts": ["reviews"], "http": [{"route": [{"destination": {"host": "reviews"}}]}]}));
    routes.create(&PostParams::default(), &good).await.unwrap();
    routes.delete("reviews", &DeleteParams::default()).await.unwrap();

    // Somebody makes a configuration anew.
    mutating.delete("mesh-controller", &DeleteParams::default()).await.unwrap();
    mutating.create(&PostParams::default(), &injector).await.unwrap();
    mesh_test::wait::until(PATIENCE, "the bundles again", written).await;
    running.stop().await;
}

#[tokio::test]
#[ignore = "needs kube-apiserver"]
async fn the_program_serves_once_it_knows_the_cluster_and_ends_when_told() {
    let real = Real::start().await;
    namespace(&real.client, "mesh-system", json!({})).await;
    let ports = [(); 3].map(|()| format!("127.0.0.1:{}", mesh_test::ports::free()));
    let args =
        ["run", "--listen", &ports[0], "--webhook", &ports[1], "--admin", &ports[2], "--drain", "100ms"];
    let kubeconfig = [("KUBECONFIG", real.kubeconfig())];
    let program = env!("CARGO_BIN_EXE_mesh-controller");
    let mut program = mesh_test::process::Proc::spawn_with(program, args, kubeconfig);
    program.wait_for_line("a CA is in force", PATIENCE).await;
    // The cluster has been read.
    program.wait_for_line("serving", PATIENCE).await;
    assert!(tokio::net::TcpStream::connect(&ports[0]).await.is_ok());
    program.terminate();
    assert!(program.wait(PATIENCE).await.success());
}
