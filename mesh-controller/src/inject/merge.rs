//! A pod may hold a container with the sidecar's name, to have its own way about parts of it.

use serde_json::{Map, Value, json};

use super::refusal::Refusal;
use super::settings::{PROXY_CONTAINER, PROXY_ID};
use super::view;

/// Istio's name for it, so that what was written for Istio means the sidecar here as well.
const ISTIO_CONTAINER: &str = "istio-proxy";
/// The image that stands for the mesh's own.
const AUTO_IMAGE: &str = "auto";
/// What a pod may say about its sidecar.
const OPEN: &str = "env, image, imagePullPolicy, lifecycle, resources, volumeMounts, securityContext (with the \
                    same user)";

/// A container of the pod's that speaks of the sidecar, and where it stood.
pub(super) struct Override {
    container: Map<String, Value>,
    at: String,
}

/// Takes the container out of the pod.
pub(super) fn take(spec: &mut Map<String, Value>) -> Result<Option<Override>, Refusal> {
    let mut found: Option<Override> = None;
    for list in ["initContainers", "containers"] {
        let Some(containers) = spec.get_mut(list).and_then(Value::as_array_mut) else { continue };
        while let Some(i) =
            containers.iter().position(|c| matches!(view::name(c), PROXY_CONTAINER | ISTIO_CONTAINER))
        {
            let at = format!("spec.{list}[{i}]");
            if let Some(other) = &found {
                let message = format!("{} speaks of the sidecar already; keep one", other.at);
                return Err(Refusal::new(at, message));
            }
            let Value::Object(container) = containers.remove(i) else { continue };
            found = Some(Override { container, at });
        }
    }
    Ok(found)
}

/// Lays it over `sidecar`. Lists are merged by the key of their items, objects field by field.
pub(super) fn lay_over(sidecar: &mut Value, over: Override) -> Result<(), Refusal> {
    let Some(sidecar) = sidecar.as_object_mut() else { return Ok(()) };
    // `auto` stands for the mesh's image; what Kubernetes made of it by default says nothing.
    let auto = over.container.get("image").is_none_or(|image| image == AUTO_IMAGE);
    for (key, value) in over.container {
        let at = format!("{}.{key}", over.at);
        match key.as_str() {
            "name" => {}
            "image" | "imagePullPolicy" if auto => {}
            // An init container with the sidecar's name is written so by hand.
            "restartPolicy" if value == "Always" => {}
            "image"
            | "imagePullPolicy"
            | "lifecycle"
            | "terminationMessagePath"
            | "terminationMessagePolicy" => {
                sidecar.insert(key, value);
            }
            "resources" => objects(sidecar, key, value, &at)?,
            "securityContext" => {
                for field in ["runAsUser", "runAsGroup"] {
                    if value.get(field).is_some_and(|id| *id != json!(PROXY_ID)) {
                        let message = format!(
                            "must stay {PROXY_ID}, or the sidecar's calls come back to it; remove it"
                        );
                        return Err(Refusal::new(format!("{at}.{field}"), message));
                    }
                }
                objects(sidecar, key, value, &at)?;
            }
            "env" => items(sidecar, key, "name", value, &at)?,
            "volumeMounts" => items(sidecar, key, "mountPath", value, &at)?,
            _ => {
                let message = format!("of the sidecar is the mesh's; what a pod may set is {OPEN}");
                return Err(Refusal::new(at, message));
            }
        }
    }
    Ok(())
}

fn objects(into: &mut Map<String, Value>, key: String, value: Value, at: &str) -> Result<(), Refusal> {
    let Value::Object(value) = value else { return Err(Refusal::new(at, "must be an object")) };
    let into = view::object(into, &key, at)?;
    for (key, value) in value {
        match (into.get_mut(&key), value) {
            (Some(Value::Object(old)), Value::Object(new)) => old.extend(new),
            (_, new) => {
                into.insert(key, new);
            }
        }
    }
    Ok(())
}

fn items(
    into: &mut Map<String, Value>,
    list: String,
    key: &str,
    value: Value,
    at: &str,
) -> Result<(), Refusal> {
    let Value::Array(value) = value else { return Err(Refusal::new(at, "must be a list")) };
    let into = view::array(into, &list, at)?;
    for item in value {
        match into.iter_mut().find(|old| old.get(key).is_some() && old.get(key) == item.get(key)) {
            Some(old) => *old = item,
            None => into.push(item),
        }
    }
    Ok(())
}
