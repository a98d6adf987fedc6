//! What in a pod stands in the way of a sidecar.

use serde_json::{Map, Value};

use super::POD_SWITCH;
use super::refusal::Refusal;
use super::settings::{
    ADMIN_PORT, INBOUND_PORT, INIT_CONTAINER, METRICS_PORT, OUTBOUND_PORT, PROXY_ID, READY_PORT, STATUS_PORT,
};
use super::view;

const PORTS: [u16; 6] = [ADMIN_PORT, OUTBOUND_PORT, INBOUND_PORT, STATUS_PORT, READY_PORT, METRICS_PORT];

/// The init containers with which Istio's injector marks a pod.
const FOREIGN: [&str; 2] = ["istio-init", "istio-validation"];

/// Refuses a pod that another mesh has injected.
pub(super) fn check_foreign(pod: &Map<String, Value>) -> Result<(), Refusal> {
    let containers = view::list(pod.get("spec").unwrap_or(&Value::Null), "/initContainers");
    match containers.iter().position(|c| FOREIGN.contains(&view::name(c))) {
        None => Ok(()),
        Some(i) => {
            let message = format!(
                "the pod has Istio's sidecar, and there can be one only; start from the pod without it, or set \
                 the label {POD_SWITCH}=\"false\""
            );
            Err(Refusal::new(format!("spec.initContainers[{i}]"), message))
        }
    }
}

/// Refuses a pod that cannot work with a sidecar. `volumes` are the names of ours.
pub(super) fn check(pod: &Map<String, Value>, volumes: &[&str]) -> Result<(), Refusal> {
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    if spec.pointer("/os/name").and_then(Value::as_str) == Some("windows") {
        let message = format!("there is no sidecar for Windows; set the label {POD_SWITCH}=\"false\"");
        return Err(Refusal::new("spec.os.name", message));
    }
    for list in ["initContainers", "containers"] {
        for (i, container) in view::list(spec, &format!("/{list}")).iter().enumerate() {
            check_container(spec, container, &format!("spec.{list}[{i}]"))?;
        }
    }
    for (i, volume) in view::list(spec, "/volumes").iter().enumerate() {
        if volumes.contains(&view::name(volume)) {
            let message =
                format!("{:?} is the name of a volume of the sidecar's; choose another", view::name(volume));
            return Err(Refusal::new(format!("spec.volumes[{i}].name"), message));
        }
    }
    Ok(())
}

fn check_container(spec: &Value, container: &Value, at: &str) -> Result<(), Refusal> {
    if view::name(container) == INIT_CONTAINER {
        let message =
            format!("{INIT_CONTAINER:?} is added by the mesh; remove the container or choose another name");
        return Err(Refusal::new(format!("{at}.name"), message));
    }
    for (i, port) in view::list(container, "/ports").iter().enumerate() {
        let number = port.get("containerPort").and_then(Value::as_u64);
        if PORTS.iter().any(|p| Some(u64::from(*p)) == number) {
            let message = "is a port of the sidecar's; let the application listen on another";
            return Err(Refusal::new(format!("{at}.ports[{i}].containerPort"), message));
        }
    }
    for field in ["runAsUser", "runAsGroup"] {
        let own = container.pointer(&format!("/securityContext/{field}")).filter(|v| !v.is_null());
        let place = if own.is_some() { at } else { "spec" };
        let id = own.or_else(|| spec.pointer(&format!("/securityContext/{field}")));
        if id.and_then(Value::as_u64) == Some(u64::from(PROXY_ID)) {
            let message = format!(
                "{PROXY_ID} is the sidecar's own, whose calls are not redirected: those of container {:?} would \
                 pass it by; choose another",
                view::name(container),
            );
            return Err(Refusal::new(format!("{place}.securityContext.{field}"), message));
        }
    }
    Ok(())
}
