//! The two containers that a pod gets, and their volumes.

use serde_json::{Map, Value, json};

use super::annotations::Wishes;
use super::probes;
use super::settings::{
    INIT_CONTAINER, METRICS_PORT, PROXY_CONTAINER, PROXY_ID, READY_PORT, Resources, STATUS_PORT, Settings,
    TOKEN_SECONDS,
};

const TOKEN_VOLUME: &str = "mesh-token";
const ROOT_VOLUME: &str = "mesh-root";
const STATE_VOLUME: &str = "mesh-state";
/// The names of the sidecar's volumes.
pub(super) const VOLUMES: [&str; 3] = [STATE_VOLUME, TOKEN_VOLUME, ROOT_VOLUME];

const TOKEN_DIR: &str = "/var/run/secrets/mesh/token";
const ROOT_DIR: &str = "/var/run/secrets/mesh/root";
const STATE_DIR: &str = "/var/lib/mesh";
/// The most that the state may take of the pod's memory.
const STATE_LIMIT: &str = "64Mi";

/// How often and how long the start is waited for by a probe: every second, ten minutes.
const STARTUP_PERIOD: u32 = 1;
const STARTUP_FAILURES: u32 = 600;
/// As Istio asks whether a sidecar is still ready.
const READINESS_PERIOD: u32 = 15;
const READINESS_FAILURES: u32 = 4;
const PROBE_TIMEOUT: u32 = 3;

/// What redirects the pod's traffic, before anything else runs. It is the one part with a privilege, and it
/// ends before the application starts.
pub(super) fn init(settings: &Settings, wishes: &Wishes, arguments: &[String]) -> Value {
    let mut container = json!({
        "name": INIT_CONTAINER,
        "image": wishes.image,
        "command": ["mesh-proxy"],
        "args": arguments,
        "resources": resources(&wishes.resources),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "runAsUser": 0,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    });
    pull_policy(&mut container, settings);
    container
}

/// The sidecar: an init container that keeps running, so that what comes after it starts when it is ready,
/// and a Job ends without it.
pub(super) fn sidecar(
    settings: &Settings,
    wishes: &Wishes,
    probes: &Map<String, Value>,
    app_metrics: Option<Value>,
) -> Value {
    let field =
        |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let text = |name: &str, value: &str| json!({"name": name, "value": value});
    let mut env = vec![
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("POD_IP", "status.podIP"),
        field("NODE_NAME", "spec.nodeName"),
        field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        text("MESH_WORKLOAD", "$(POD_NAMESPACE)/$(POD_NAME)"),
        text("MESH_SERVICE_ACCOUNT", "$(SERVICE_ACCOUNT)"),
        text("MESH_CONTROLLER", &settings.controller),
        text("MESH_TOKEN", &format!("{TOKEN_DIR}/token")),
        text("MESH_CA_ROOT", &format!("{ROOT_DIR}/root-cert.pem")),
        text("MESH_STATE", STATE_DIR),
        text("MESH_TRUST_DOMAIN", &settings.trust_domain),
        text("MESH_ROOT_NAMESPACE", &settings.root_namespace),
        text("MESH_TRANSPARENT", "true"),
        text("MESH_LOG", &wishes.log),
    ];
    if !probes.is_empty() {
        env.push(text(probes::VARIABLE, &literal(&Value::Object(probes.clone()))));
    }
    if let Some(metrics) = app_metrics {
        env.push(text("MESH_APP_METRICS", &literal(&metrics)));
    }
    // The last name is the one for which Istio's monitors of Prometheus look.
    let ports = [("mesh-status", STATUS_PORT), ("mesh-ready", READY_PORT), ("http-envoy-prom", METRICS_PORT)]
        .map(|(name, port)| json!({"name": name, "containerPort": port, "protocol": "TCP"}));
    let mut container = json!({
        "name": PROXY_CONTAINER,
        "image": wishes.image,
        "restartPolicy": "Always",
        "command": ["mesh-proxy"],
        "args": ["run"],
        "env": env,
        "ports": ports,
        "readinessProbe": ready(READINESS_PERIOD, READINESS_FAILURES),
        "resources": resources(&wishes.resources),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": PROXY_ID,
            "runAsNonRoot": true,
            "runAsUser": PROXY_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [
            {"name": STATE_VOLUME, "mountPath": STATE_DIR},
            {"name": TOKEN_VOLUME, "mountPath": TOKEN_DIR, "readOnly": true},
            {"name": ROOT_VOLUME, "mountPath": ROOT_DIR, "readOnly": true},
        ],
    });
    pull_policy(&mut container, settings);
    container
}

/// Holds what comes after the sidecar up until that is ready. A hook does it at once; a probe, which the kubelet
/// asks once a second, has to do where the pod has a `postStart` hook of its own for the sidecar.
pub(super) fn hold_up(sidecar: &mut Value) {
    let Some(sidecar) = sidecar.as_object_mut() else { return };
    let lifecycle = sidecar.entry("lifecycle").or_insert_with(|| json!({}));
    if lifecycle.is_null() {
        *lifecycle = json!({});
    }
    match lifecycle.as_object_mut() {
        Some(hooks) if hooks.get("postStart").is_none_or(Value::is_null) => {
            hooks.insert("postStart".into(), json!({"exec": {"command": ["mesh-proxy", "wait"]}}));
        }
        _ => {
            sidecar.insert("startupProbe".into(), ready(STARTUP_PERIOD, STARTUP_FAILURES));
        }
    }
}

fn ready(period: u32, failures: u32) -> Value {
    json!({
        "httpGet": {"path": "/healthz/ready", "port": READY_PORT},
        "periodSeconds": period,
        "failureThreshold": failures,
        "timeoutSeconds": PROBE_TIMEOUT,
    })
}

/// The sidecar's volumes. Its state is memory: a key leaves the process, never the pod.
pub(super) fn volumes(settings: &Settings) -> [Value; 3] {
    let token = json!({
        "serviceAccountToken": {
            "audience": settings.token_audience, "expirationSeconds": TOKEN_SECONDS, "path": "token",
        },
    });
    let roots = json!([{"key": "root-cert.pem", "path": "root-cert.pem"}]);
    [
        json!({"name": STATE_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": STATE_LIMIT}}),
        json!({"name": TOKEN_VOLUME, "projected": {"sources": [token]}}),
        json!({"name": ROOT_VOLUME, "configMap": {"name": settings.root_config_map, "items": roots}}),
    ]
}

/// JSON in which Kubernetes finds no `$(VARIABLE)` to put a value in for: a dollar is in texts only, and may be
/// written otherwise there.
fn literal(value: &Value) -> String {
    value.to_string().replace('$', "\\u0024")
}

fn resources(resources: &Resources) -> Value {
    let lists = [("requests", &resources.requests), ("limits", &resources.limits)];
    let given = lists.into_iter().filter(|(_, list)| !list.is_empty());
    Value::Object(given.map(|(name, list)| (name.to_owned(), json!(list))).collect())
}

fn pull_policy(container: &mut Value, settings: &Settings) {
    if let (Some(policy), Some(container)) = (&settings.image_pull_policy, container.as_object_mut()) {
        container.insert("imagePullPolicy".into(), json!(policy));
    }
}
