use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn enabled() -> Labels {
    labels(&[(NAMESPACE_SWITCH, "enabled")])
}

fn injected(pod: &Value) -> Result<Injected, String> {
    let target = Target { namespace: "shop", namespace_labels: &enabled(), workload: "web" };
    match inject(&Settings::default(), &target, pod) {
        Ok(Outcome::Injected(done)) => Ok(done),
        Ok(Outcome::Skipped(why)) => panic!("skipped: {why}"),
        Err(refusal) => Err(refusal.to_string()),
    }
}

fn sidecar(pod: &Value) -> &Value {
    &pod["spec"]["initContainers"][1]
}

/// The whole truth: each combination of what namespace and pod can say.
#[test]
fn who_gets_a_sidecar() {
    const NONE: &str = "";
    let ours = Settings::default();
    let mut checked = 0;
    for own in [NONE, "enabled", "disabled", "x"] {
        for istio in [NONE, "enabled", "disabled", "x"] {
            for ns_revision in [NONE, "default", "canary"] {
                for pod_revision in [NONE, "default", "canary"] {
                    for label in [NONE, "true", "false"] {
                        for annotation in [NONE, "true", "false"] {
                            let ns = [(OWN_SWITCH, own), (NAMESPACE_SWITCH, istio), (REVISION, ns_revision)];
                            let given = |all: &[(&str, &str)]| {
                                labels(&all.iter().copied().filter(|(_, v)| *v != NONE).collect::<Vec<_>>())
                            };
                            let pod = json!({
                                "metadata": {
                                    "labels": given(&[(POD_SWITCH, label), (REVISION, pod_revision)]),
                                    "annotations": given(&[(POD_SWITCH, annotation)]),
                                },
                                "spec": {"containers": []},
                            });
                            let got = decide(&ours, "shop", &given(&ns), &pod).unwrap();

                            let switch = if own == NONE { istio } else { own };
                            let wish = if label == NONE { annotation } else { label };
                            let expected = if switch != NONE && switch != "enabled" {
                                "namespace declines"
                            } else if wish == "false" {
                                "pod declines"
                            } else if switch == "enabled" {
                                "inject"
                            } else {
                                match (ns_revision, pod_revision, wish) {
                                    ("default", ..) | (NONE, "default", _) | (NONE, NONE, "true") => "inject",
                                    ("canary", ..) | (NONE, "canary", _) => "other",
                                    _ => "not asked",
                                }
                            };
                            let name = match got {
                                Decision::Inject => "inject",
                                Decision::Skip(Skip::NamespaceDeclines(..)) => "namespace declines",
                                Decision::Skip(Skip::PodDeclines) => "pod declines",
                                Decision::Skip(Skip::OtherRevision(_)) => "other",
                                Decision::Skip(Skip::NotAsked) => "not asked",
                                Decision::Skip(other) => panic!("{other}"),
                            };
                            assert_eq!(name, expected, "{ns:?} {pod}");
                            checked += 1;
                        }
                    }
                }
            }
        }
    }
    assert_eq!(checked, 4 * 4 * 3 * 3 * 3 * 3);
}

#[test]
fn some_pods_are_left_alone_whatever_anybody_says() {
    let asks = json!({"labels": {POD_SWITCH: "true"}});
    let plain = json!({"metadata": asks, "spec": {"containers": []}});
    let host = json!({"metadata": asks, "spec": {"hostNetwork": true, "containers": []}});
    let skipped =
        |namespace: &str, pod: &Value| decide(&Settings::default(), namespace, &enabled(), pod).unwrap();
    assert_eq!(skipped("shop", &host), Decision::Skip(Skip::HostNetwork));
    for namespace in ["kube-system", "kube-public", "kube-node-lease", "local-path-storage", "mesh-system"] {
        assert_eq!(skipped(namespace, &plain), Decision::Skip(Skip::SystemNamespace), "{namespace}");
    }
    assert_eq!(skipped("shop", &plain), Decision::Inject);
}

#[test]
fn a_wish_in_every_spelling_and_one_that_is_none() {
    let decided = |value: &str| {
        let pod = json!({"metadata": {"labels": {POD_SWITCH: value}}});
        decide(&Settings::default(), "shop", &enabled(), &pod)
    };
    for yes in ["true", "TRUE", "yes", "y", "on", ""] {
        assert_eq!(decided(yes), Ok(Decision::Inject), "{yes}");
    }
    for no in ["false", "False", "no", "n", "off"] {
        assert_eq!(decided(no), Ok(Decision::Skip(Skip::PodDeclines)), "{no}");
    }
    let error = decided("flase").unwrap_err().to_string();
    assert_eq!(
        error,
        "metadata.labels[sidecar.istio.io/inject]: \"flase\" is neither \"true\" nor \"false\"; write one of them"
    );
}

#[test]
fn a_revision_answers_to_its_name_only() {
    let canary = Settings { revision: "canary".into(), ..Settings::default() };
    let decided = |ns: &[(&str, &str)], pod: Value| {
        decide(&canary, "shop", &labels(ns), &json!({"metadata": {"labels": pod}})).unwrap()
    };
    let other = || Decision::Skip(Skip::OtherRevision("default".into()));
    assert_eq!(decided(&[(NAMESPACE_SWITCH, "enabled")], json!({})), other());
    assert_eq!(decided(&[], json!({POD_SWITCH: "true"})), other());
    assert_eq!(decided(&[(REVISION, "canary")], json!({})), Decision::Inject);
    assert_eq!(decided(&[], json!({REVISION: "canary"})), Decision::Inject);

    let always = Settings { by_default: true, ..Settings::default() };
    let decided = |ns: &[(&str, &str)]| decide(&always, "shop", &labels(ns), &json!({})).unwrap();
    assert_eq!(decided(&[]), Decision::Inject);
    assert_eq!(
        decided(&[(NAMESPACE_SWITCH, "disabled")]),
        Decision::Skip(Skip::NamespaceDeclines(NAMESPACE_SWITCH, "disabled".into()))
    );
}

#[test]
fn an_annotation_that_was_copied_is_no_sidecar() {
    let pod = json!({
        "metadata": {"annotations": {STATUS_ANNOTATION: "{}"}},
        "spec": {"containers": [{"name": "app"}]},
    });
    assert_eq!(sidecar(&injected(&pod).unwrap().pod)["name"], PROXY_CONTAINER);
}

#[test]
fn the_sidecar_has_no_privilege_and_the_init_container_has_one() {
    let pod = json!({"spec": {
        "securityContext": {"runAsNonRoot": true, "runAsUser": 1000},
        "containers": [{"name": "app"}],
        "initContainers": [{"name": "migrate"}],
    }});
    let pod = injected(&pod).unwrap().pod;
    let list = &pod["spec"]["initContainers"];
    let names: Vec<_> = list.as_array().unwrap().iter().map(view::name).collect();
    assert_eq!(names, [INIT_CONTAINER, PROXY_CONTAINER, "migrate"]);
    let closed = json!({
        "allowPrivilegeEscalation": false, "privileged": false, "readOnlyRootFilesystem": true,
        "seccompProfile": {"type": "RuntimeDefault"},
        "capabilities": {"drop": ["ALL"]}, "runAsUser": 1337, "runAsGroup": 1337, "runAsNonRoot": true,
    });
    assert_eq!(list[1]["securityContext"], closed);
    let mut init = closed;
    for (field, value) in [
        ("runAsUser", json!(0)),
        ("runAsGroup", json!(0)),
        ("runAsNonRoot", json!(false)),
        ("capabilities", json!({"drop": ["ALL"], "add": ["NET_ADMIN"]})),
    ] {
        init[field] = value;
    }
    assert_eq!(list[0]["securityContext"], init);
    // A native sidecar: it keeps running, and what follows waits for it.
    assert_eq!(list[1]["restartPolicy"], "Always");
    assert_eq!(list[1]["lifecycle"], json!({"postStart": {"exec": {"command": ["mesh-proxy", "wait"]}}}));
    assert!(list[1].get("startupProbe").is_none());
    assert!(list[0].get("restartPolicy").is_none());
    let state = json!({"name": "mesh-state", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}});
    assert!(pod["spec"]["volumes"].as_array().unwrap().contains(&state));
}

#[test]
fn the_sidecar_learns_the_probes_and_where_the_metrics_are() {
    let pod = json!({
        "metadata": {"annotations": {
            "prometheus.io/scrape": "true", "prometheus.io/port": "9100", "prometheus.io/path": "/m",
        }},
        "spec": {
            "initContainers": [{"name": "helper", "restartPolicy": "Always", "startupProbe": {"tcpSocket": {"port": 7}}}],
            "containers": [{"name": "app", "readinessProbe": {"httpGet": {"path": "/$(POD_NAME)", "port": 80}}}],
        },
    });
    let pod = injected(&pod).unwrap().pod;
    let env = sidecar(&pod)["env"].as_array().unwrap();
    let value = |name: &str| -> Value {
        let variable = env.iter().find(|v| view::name(v) == name).unwrap();
        serde_json::from_str(variable["value"].as_str().unwrap()).unwrap()
    };
    let probes = json!({
        "/app-health/app/readyz": {"httpGet": {"path": "/$(POD_NAME)", "port": 80}},
        "/app-health/helper/startupz": {"tcpSocket": {"port": 7}},
    });
    assert_eq!(value(PROBES_VARIABLE), probes);
    // Kubernetes would put the name in.
    let variable = env.iter().find(|v| view::name(v) == PROBES_VARIABLE).unwrap();
    assert!(!variable["value"].as_str().unwrap().contains('$'));
    assert_eq!(value("MESH_APP_METRICS"), json!({"port": 9100, "path": "/m", "scheme": "http"}));
    let annotations = &pod["metadata"]["annotations"];
    assert_eq!(annotations["prometheus.io/port"], "15020");
    assert_eq!(annotations["prometheus.io/path"], "/stats/prometheus");
}

#[test]
fn probes_and_metrics_stay_where_the_pod_wants_them() {
    let probe = json!({"httpGet": {"path": "/ok", "port": 80}});
    let pod = json!({
        "metadata": {"annotations": {
            "sidecar.istio.io/rewriteAppHTTPProbers": "false",
            "prometheus.istio.io/merge-metrics": "false",
            "prometheus.io/port": "9100",
        }},
        "spec": {"containers": [{"name": "app", "readinessProbe": probe}]},
    });
    let pod = injected(&pod).unwrap().pod;
    assert_eq!(pod["spec"]["containers"][0]["readinessProbe"], probe);
    assert_eq!(pod["metadata"]["annotations"]["prometheus.io/port"], "9100");
    let env = sidecar(&pod)["env"].as_array().unwrap();
    assert!(!env.iter().any(|v| matches!(view::name(v), PROBES_VARIABLE | "MESH_APP_METRICS")));
}

/// The API server drops what its types do not know, without a word.
#[test]
fn kubernetes_knows_every_field_that_is_added() {
    let pod = json!({
        "metadata": {"name": "p", "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "1"}},
        "spec": {"containers": [{
            "name": "app",
            "startupProbe": {"grpc": {"port": 1}},
            "lifecycle": {"postStart": {"httpGet": {"port": 1}}},
        }]},
    });
    let settings = Settings { image_pull_policy: Some("Always".into()), ..Settings::default() };
    let target = Target { namespace: "shop", namespace_labels: &enabled(), workload: "web" };
    let Ok(Outcome::Injected(done)) = inject(&settings, &target, &pod) else { panic!() };
    let typed: k8s_openapi::api::core::v1::Pod = serde_json::from_value(done.pod.clone()).unwrap();
    let mut again = serde_json::to_value(&typed).unwrap();
    let added = again.as_object_mut().unwrap();
    added.remove("apiVersion");
    added.remove("kind");
    assert_eq!(without_empty(again), without_empty(done.pod));
}

/// Kubernetes' types leave out what is empty.
fn without_empty(value: Value) -> Value {
    match value {
        Value::Array(list) => list.into_iter().map(without_empty).collect(),
        Value::Object(map) => map
            .into_iter()
            .map(|(key, value)| (key, without_empty(value)))
            .filter(|(_, value)| !matches!(value, Value::Object(map) if map.is_empty()))
            .collect(),
        other => other,
    }
}

#[test]
fn a_container_with_the_sidecars_name_is_laid_over_it() {
    for (list, name) in
        [("containers", "mesh-proxy"), ("containers", "istio-proxy"), ("initContainers", "mesh-proxy")]
    {
        let own = json!({
            "name": name, "image": "auto", "imagePullPolicy": "Always",
            "env": [{"name": "MESH_LOG", "value": "debug"}, {"name": "MINE", "value": "1"}],
            "resources": {"limits": {"cpu": "1"}},
            "volumeMounts": [{"name": "certs", "mountPath": "/certs"}],
            "securityContext": {"readOnlyRootFilesystem": false},
            "terminationMessagePath": "/dev/termination-log",
        });
        let mut pod = json!({"spec": {"containers": [{"name": "app"}], "volumes": [{"name": "certs"}]}});
        match pod["spec"][list].as_array_mut() {
            Some(list) => list.push(own),
            None => pod["spec"][list] = json!([own]),
        }
        let done = injected(&pod).unwrap().pod;
        let left: Vec<_> = view::list(&done, "/spec/containers").iter().map(view::name).collect();
        assert_eq!(left, ["app"]);
        assert_eq!(done["spec"]["initContainers"].as_array().unwrap().len(), 2);
        let sidecar = sidecar(&done);
        assert_eq!(sidecar["name"], PROXY_CONTAINER);
        assert_eq!(sidecar["image"], Settings::default().image);
        assert!(sidecar.get("imagePullPolicy").is_none());
        let env = sidecar["env"].as_array().unwrap();
        let of = |name| env.iter().filter(|v| view::name(v) == name).collect::<Vec<_>>();
        assert_eq!(of("MESH_LOG"), [&json!({"name": "MESH_LOG", "value": "debug"})]);
        assert_eq!(of("MINE").len(), 1);
        assert_eq!(sidecar["resources"]["limits"], json!({"cpu": "1", "memory": "1Gi"}));
        assert_eq!(sidecar["volumeMounts"].as_array().unwrap().len(), 4);
        assert_eq!(sidecar["securityContext"]["readOnlyRootFilesystem"], false);
        assert_eq!(sidecar["securityContext"]["runAsUser"], 1337);
    }
    let with_image =
        json!({"spec": {"containers": [{"name": "app"}, {"name": "mesh-proxy", "image": "mine:2"}]}});
    assert_eq!(sidecar(&injected(&with_image).unwrap().pod)["image"], "mine:2");
}

/// What comes after the sidecar starts when that is ready, whatever hooks the pod has for it.
#[test]
fn something_holds_up_what_comes_after_the_sidecar() {
    let ours = json!({"exec": {"command": ["mesh-proxy", "wait"]}});
    let sleep = json!({"sleep": {"seconds": 1}});
    let with = |lifecycle: Value| {
        let own = json!({"name": "mesh-proxy", "image": "auto", "lifecycle": lifecycle});
        let pod = json!({"spec": {"containers": [{"name": "app"}, own]}});
        sidecar(&injected(&pod).unwrap().pod).clone()
    };
    for lifecycle in [json!({"preStop": sleep}), json!({"preStop": sleep, "postStart": null})] {
        let sidecar = with(lifecycle);
        assert_eq!(sidecar["lifecycle"], json!({"preStop": sleep, "postStart": ours}));
        assert!(sidecar.get("startupProbe").is_none());
    }
    assert_eq!(with(Value::Null)["lifecycle"], json!({"postStart": ours}));
    let sidecar = with(json!({"postStart": sleep}));
    assert_eq!(sidecar["lifecycle"], json!({"postStart": sleep}));
    assert_eq!(sidecar["startupProbe"]["httpGet"], json!({"path": "/healthz/ready", "port": 15021}));
}

#[test]
fn what_cannot_be_done_is_refused_with_field_and_way_out() {
    let with = |container: Value| json!({"spec": {"containers": [{"name": "app"}, container]}});
    for (pod, said) in [
        (json!({}), "spec: is missing"),
        (json!({"spec": {}}), "spec.containers: is missing"),
        (json!({"spec": {"containers": {}}}), "spec.containers: must be a list"),
        (json!({"spec": {"containers": [], "volumes": 3}}), "spec.volumes: must be a list"),
        (json!({"metadata": 3, "spec": {"containers": []}}), "metadata: must be an object"),
        (
            json!({"metadata": {"labels": []}, "spec": {"containers": []}}),
            "metadata.labels: must be an object",
        ),
        (
            json!({"spec": {"os": {"name": "windows"}, "containers": []}}),
            "spec.os.name: there is no sidecar for Windows; set the label sidecar.istio.io/inject=\"false\"",
        ),
        (
            with(json!({"name": "b", "ports": [{"containerPort": 80}, {"containerPort": 15021}]})),
            "spec.containers[1].ports[1].containerPort: is a port of the sidecar's",
        ),
        (
            with(json!({"name": "b", "securityContext": {"runAsUser": 1337}})),
            "spec.containers[1].securityContext.runAsUser: 1337 is the sidecar's own",
        ),
        (
            json!({"spec": {"securityContext": {"runAsGroup": 1337}, "containers": [{"name": "app"}]}}),
            "spec.securityContext.runAsGroup: 1337 is the sidecar's own",
        ),
        (with(json!({"name": "mesh-init"})), "spec.containers[1].name: \"mesh-init\" is added by the mesh"),
        (
            json!({"spec": {"containers": [], "volumes": [{"name": "mesh-token"}]}}),
            "spec.volumes[0].name: \"mesh-token\" is the name of a volume of the sidecar's",
        ),
        (
            json!({"spec": {"containers": [], "initContainers": [{"name": "istio-init"}]}}),
            "spec.initContainers[0]: the pod has Istio's sidecar",
        ),
        (
            with(json!({"name": "mesh-proxy", "command": ["sh"]})),
            "spec.containers[1].command: of the sidecar is the mesh's; what a pod may set is env, image",
        ),
        (
            with(json!({"name": "mesh-proxy", "securityContext": {"runAsUser": 0}})),
            "spec.containers[1].securityContext.runAsUser: must stay 1337",
        ),
        (
            json!({"spec": {"containers": [{"name": "mesh-proxy"}, {"name": "istio-proxy"}]}}),
            "speaks of the sidecar already; keep one",
        ),
        (
            json!({"metadata": {"annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "x"}},
                   "spec": {"containers": []}}),
            "metadata.annotations[prometheus.io/port]: \"x\" is no port",
        ),
    ] {
        let error = injected(&pod).unwrap_err();
        assert!(error.contains(said), "{error}\nshould say: {said}");
    }
}

#[test]
fn probes_have_a_limit() {
    let probe = json!({"httpGet": {"path": "/".repeat(MAX_PROBES_BYTES), "port": 80}});
    let error =
        injected(&json!({"spec": {"containers": [{"name": "a", "livenessProbe": probe}]}})).unwrap_err();
    assert!(error.contains("at most 65536 can be led to the sidecar"), "{error}");
}

#[test]
fn a_uid_of_the_pods_is_the_containers_unless_it_has_its_own() {
    let pod = json!({"spec": {
        "securityContext": {"runAsUser": 1337},
        "containers": [{"name": "app", "securityContext": {"runAsUser": 1000}}],
    }});
    assert!(injected(&pod).is_ok());
}

#[test]
fn telemetry_has_a_name_for_it() {
    for (own, workload, name, revision) in [
        (json!({}), "web", "web", "latest"),
        (json!({"app": "a", "version": "v2"}), "web", "a", "v2"),
        (
            json!({"app": "a", "app.kubernetes.io/name": "k", "app.kubernetes.io/version": "1"}),
            "web",
            "k",
            "1",
        ),
        (json!({"service.istio.io/canonical-name": "c", "app": "a"}), "web", "c", "latest"),
        (json!({}), &format!("{}.x", "a".repeat(62)), &"a".repeat(62), "latest"),
    ] {
        let target = Target { namespace: "shop", namespace_labels: &enabled(), workload };
        let pod = json!({"metadata": {"labels": own}, "spec": {"containers": []}});
        let Ok(Outcome::Injected(done)) = inject(&Settings::default(), &target, &pod) else { panic!() };
        let labels = &done.pod["metadata"]["labels"];
        assert_eq!(labels["service.istio.io/canonical-name"], name);
        assert_eq!(labels["service.istio.io/canonical-revision"], revision);
        assert_eq!(labels["security.istio.io/tlsMode"], "istio");
    }
}

/// Any JSON that could stand where a field is.
fn anything() -> impl Strategy<Value = Value> + Clone {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[a-z0-9/.-]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        let key = prop_oneof![
            "[a-z]{1,6}",
            Just("name".to_owned()),
            Just("ports".to_owned()),
            Just("httpGet".to_owned()),
            Just("readinessProbe".to_owned()),
            Just("lifecycle".to_owned()),
            Just("securityContext".to_owned()),
            Just("port".to_owned()),
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(key, inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn pods() -> impl Strategy<Value = Value> {
    let container = ("[a-z]{1,8}", anything(), 1..=u16::MAX, anything(), any::<bool>()).prop_map(
        |(name, unknown, port, odd, probed)| {
            let mut container = json!({"name": name, "futureField": unknown, "ports": [{"name": "p", "containerPort": port}]});
            if probed {
                container["readinessProbe"] = json!({"httpGet": {"port": "p"}, "unknown": odd});
            } else {
                container["lifecycle"] = odd;
            }
            container
        },
    );
    let containers = prop::collection::vec(container, 0..4);
    (containers.clone(), prop::option::of(containers), anything(), anything(), prop::option::of(anything()))
        .prop_map(|(containers, init, unknown, spec, metadata)| {
            let mut pod =
                json!({"futureField": unknown, "spec": {"containers": containers, "futureField": spec}});
            if let Some(init) = init {
                pod["spec"]["initContainers"] = json!(init);
            }
            if let Some(metadata) = metadata {
                pod["metadata"] = metadata;
            }
            pod
        })
}

proptest! {
    /// Injecting twice is injecting once, and what is not understood comes out as it went in.
    #[test]
    fn injection_is_idempotent_and_loses_nothing(pod in pods()) {
        let target = Target { namespace: "shop", namespace_labels: &enabled(), workload: "w" };
        if let Ok(Outcome::Injected(done)) = inject(&Settings::default(), &target, &pod) {
            let again = inject(&Settings::default(), &target, &done.pod);
            prop_assert_eq!(again, Ok(Outcome::Skipped(Skip::AlreadyInjected)));
            prop_assert_eq!(&done.pod["futureField"], &pod["futureField"]);
            prop_assert_eq!(&done.pod["spec"]["futureField"], &pod["spec"]["futureField"]);
            let before = view::list(&pod, "/spec/containers");
            let after = view::list(&done.pod, "/spec/containers");
            prop_assert_eq!(before.len(), after.len());
            for (before, after) in before.iter().zip(after) {
                prop_assert_eq!(&before["futureField"], &after["futureField"]);
                prop_assert_eq!(&before["readinessProbe"]["unknown"], &after["readinessProbe"]["unknown"]);
            }
        }
    }

    /// No object makes it panic.
    #[test]
    fn nothing_is_too_odd(object in anything(), spec in anything(), containers in anything()) {
        let target = Target { namespace: "shop", namespace_labels: &enabled(), workload: "w" };
        let _ = inject(&Settings::default(), &target, &object);
        let _ = inject(&Settings::default(), &target, &json!({"metadata": object, "spec": spec}));
        let pod = json!({"metadata": object, "spec": {"containers": [containers], "initContainers": spec}});
        let _ = inject(&Settings::default(), &target, &pod);
    }
}
