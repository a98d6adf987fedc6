use super::*;

/// As kube-apiserver sends it for a pod of a Deployment, shortened where nothing is looked at.
fn review(namespace: &str, pod: Value) -> Value {
    json!({
        "kind": "AdmissionReview",
        "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": "0df28fbd-5f5f-11e8-bc74-36e6bb280816",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "requestKind": {"group": "", "version": "v1", "kind": "Pod"},
            "requestResource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": namespace,
            "operation": "CREATE",
            "userInfo": {
                "username": "system:serviceaccount:kube-system:replicaset-controller",
                "groups": ["system:serviceaccounts", "system:authenticated"],
            },
            "object": pod,
            "oldObject": null,
            "dryRun": false,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
        },
    })
}

fn reviews_pod() -> Value {
    json!({
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {
            "generateName": "reviews-v1-7d5f8c9b6-",
            "creationTimestamp": null,
            "labels": {"app": "reviews", "version": "v1", "pod-template-hash": "7d5f8c9b6"},
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "reviews-v1-7d5f8c9b6",
                "uid": "9a0b", "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "spec": {
            "volumes": [{"name": "kube-api-access-x2x", "projected": {"sources": [], "defaultMode": 420}}],
            "containers": [{
                "name": "reviews", "image": "reviews:1",
                "ports": [{"name": "http", "containerPort": 9080, "protocol": "TCP"}],
                "resources": {},
                "readinessProbe": {
                    "httpGet": {"path": "/health", "port": "http", "scheme": "HTTP"},
                    "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3,
                },
                "terminationMessagePath": "/dev/termination-log",
                "imagePullPolicy": "IfNotPresent",
            }],
            "restartPolicy": "Always",
            "serviceAccountName": "reviews",
            "schedulerName": "default-scheduler",
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "tolerationSeconds": 300}],
        },
        "status": {},
    })
}

fn enabled(_: &str) -> Option<Labels> {
    Some(Labels::from([("istio-injection".into(), "enabled".into())]))
}

fn answer(review: &Value) -> Value {
    let answer = mutate(&Settings::default(), enabled, review).unwrap();
    assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
    assert_eq!(answer["kind"], "AdmissionReview");
    assert_eq!(answer["response"]["uid"], review["request"]["uid"]);
    answer["response"].clone()
}

/// The pod as the API server has it after the patch.
fn patched(pod: &Value, response: &Value) -> Value {
    let patch = BASE64_STANDARD.decode(response["patch"].as_str().unwrap()).unwrap();
    let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &patch).unwrap();
    pod
}

#[test]
fn a_pod_of_a_deployment_gets_its_sidecar_by_a_patch() {
    let pod = reviews_pod();
    let response = answer(&review("default", pod.clone()));
    assert_eq!(response["allowed"], true);
    assert_eq!(response["patchType"], "JSONPatch");
    let done = patched(&pod, &response);
    assert_eq!(done["spec"]["initContainers"][0]["name"], "mesh-init");
    assert_eq!(done["spec"]["initContainers"][1]["name"], "mesh-proxy");
    assert_eq!(done["spec"]["containers"][0]["readinessProbe"]["httpGet"]["port"], 15020);
    assert_eq!(done["spec"]["containers"][0]["readinessProbe"]["periodSeconds"], 10);
    assert_eq!(done["spec"]["tolerations"], pod["spec"]["tolerations"]);
    assert_eq!(done["spec"]["volumes"][0], pod["spec"]["volumes"][0]);
    assert_eq!(done["metadata"]["ownerReferences"], pod["metadata"]["ownerReferences"]);
    assert!(done["metadata"].get("namespace").is_none(), "the API server sets it");

    // The same pod again, as a second webhook's change makes the API server ask.
    let again = answer(&review("default", done));
    assert_eq!(again["allowed"], true);
    assert!(again.get("patch").is_none());
}

#[test]
fn a_pod_without_labels_and_metadata_gets_them() {
    for pod in [
        json!({"spec": {"containers": [{"name": "a"}]}}),
        json!({"metadata": {"labels": null, "annotations": null}, "spec": {"containers": [], "volumes": null}}),
    ] {
        let done = patched(&pod, &answer(&review("default", pod.clone())));
        assert_eq!(done["metadata"]["labels"]["security.istio.io/tlsMode"], "istio");
    }
}

#[test]
fn what_is_not_to_be_changed_is_allowed_as_it_is() {
    let mut update = review("default", reviews_pod());
    update["request"]["operation"] = json!("UPDATE");
    let mut other = review("default", reviews_pod());
    other["request"]["kind"]["kind"] = json!("Service");
    let mut ephemeral = review("default", reviews_pod());
    ephemeral["request"]["subResource"] = json!("ephemeralcontainers");
    let mut host = reviews_pod();
    host["spec"]["hostNetwork"] = json!(true);
    for (review, why) in [
        (update, "skipped: not a new pod"),
        (other, "skipped: not a new pod"),
        (ephemeral, "skipped: not a new pod"),
        (review("default", host), "skipped: it uses the network of its node (spec.hostNetwork)"),
        (review("kube-system", reviews_pod()), "skipped: its namespace is left alone"),
    ] {
        let response = answer(&review);
        assert_eq!(response["allowed"], true);
        assert!(response.get("patch").is_none());
        assert_eq!(response["auditAnnotations"]["injection"], why);
    }
}

#[test]
fn a_pod_that_cannot_have_one_is_refused_by_name() {
    let mut pod = reviews_pod();
    pod["spec"]["containers"][0]["ports"][0]["containerPort"] = json!(15001);
    let response = answer(&review("default", pod));
    assert_eq!(response["allowed"], false);
    assert_eq!(response["status"]["code"], 422);
    assert_eq!(
        response["status"]["message"],
        "no sidecar can be added: Pod default/reviews-v1-7d5f8c9b6: spec.containers[0].ports[0].containerPort: \
         is a port of the sidecar's; let the application listen on another"
    );
}

#[test]
fn a_namespace_that_is_not_known_yet_is_no_excuse_to_go_without() {
    let review = review("new", reviews_pod());
    let response = mutate(&Settings::default(), |_| None, &review).unwrap()["response"].clone();
    assert_eq!(response["allowed"], false);
    assert_eq!(
        response["status"]["message"],
        "no sidecar can be added: metadata.namespace: namespace \"new\" is not known to the controller yet; try again"
    );
    // Some are left alone in any case, and must not wait for it.
    let mut host = reviews_pod();
    host["spec"]["hostNetwork"] = json!(true);
    let mut declines = reviews_pod();
    declines["metadata"]["labels"]["sidecar.istio.io/inject"] = json!("false");
    for (namespace, pod) in [("new", host), ("new", declines), ("kube-system", reviews_pod())] {
        let response = mutate(&Settings::default(), |_| None, &self::review(namespace, pod)).unwrap();
        assert_eq!(response["response"]["allowed"], true, "{response}");
        assert!(response["response"].get("patch").is_none());
    }
}

#[test]
fn warnings_reach_the_user_and_have_a_limit() {
    let mut pod = reviews_pod();
    pod["metadata"]["annotations"] = json!({"proxy.istio.io/config": "{}"});
    let response = answer(&review("default", pod));
    assert_eq!(
        response["warnings"],
        json!(["metadata.annotations[proxy.istio.io/config]: makes no difference to this mesh"])
    );
    assert_eq!(shortened(&"é".repeat(200), MAX_WARNING).len(), MAX_WARNING);
    assert_eq!(shortened(&format!("a{}", "é".repeat(200)), MAX_WARNING).len(), MAX_WARNING - 1);
}

#[test]
fn what_is_no_review_has_no_answer() {
    let old =
        json!({"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview", "request": {"uid": "a"}});
    let empty =
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"uid": ""}});
    for body in [Value::Null, json!([]), json!("x"), json!({"kind": 3}), old, empty] {
        assert!(mutate(&Settings::default(), enabled, &body).is_err(), "{body}");
    }
}
