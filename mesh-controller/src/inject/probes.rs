//! Probes and hooks of the application, asked through the sidecar.
//!
//! The kubelet has no identity of the mesh, so under STRICT it could not reach the application. What it asks
//! over the network is asked at [`STATUS_PORT`] instead, which is not redirected; the sidecar, which learns the
//! original from its variable [`VARIABLE`], asks the application and passes the answer on.
//!
//! The variable holds an object, from the path that the kubelet asks for to the original, written as Kubernetes
//! writes it with its port as a number:
//!
//! ```json
//! {"/app-health/app/readyz": {"httpGet": {"path": "/ok", "port": 8080, "scheme": "HTTP"}, "timeoutSeconds": 1}}
//! ```

use serde_json::{Map, Value, json};

use super::refusal::Refusal;
use super::settings::STATUS_PORT;
use super::view;

/// The sidecar's variable with the original probes.
pub const VARIABLE: &str = "MESH_APP_PROBES";
/// The most that the variable may hold, in bytes; the pod as a whole has a limit at the API server.
pub const MAX_BYTES: usize = 64 << 10;

/// Probes, and what the last part of their path is called.
const PROBES: [(&str, &str); 3] =
    [("livenessProbe", "livez"), ("readinessProbe", "readyz"), ("startupProbe", "startupz")];
/// Hooks, and what the last part of their path is called.
const HOOKS: [(&str, &str); 2] = [("postStart", "poststartz"), ("preStop", "prestopz")];

/// Leads the probes and hooks of the containers in `list` (such as `containers`) to the sidecar, and puts what
/// they were into `originals`.
pub(crate) fn rewrite(
    spec: &mut Map<String, Value>,
    list: &str,
    originals: &mut Map<String, Value>,
) -> Result<(), Refusal> {
    let containers = spec.get_mut(list).and_then(Value::as_array_mut);
    for (i, container) in containers.into_iter().flatten().enumerate() {
        let at = format!("spec.{list}[{i}]");
        let name = view::name(container).to_owned();
        let ports = container.get("ports").cloned().unwrap_or_default();
        for (field, short) in PROBES {
            let Some(probe) = container.get_mut(field).and_then(Value::as_object_mut) else { continue };
            let path = format!("/app-health/{name}/{short}");
            if let Some(original) = redirect(probe, &path, &ports, &format!("{at}.{field}"))? {
                originals.insert(path, original);
            }
        }
        for (field, short) in HOOKS {
            let hook = container.get_mut("lifecycle").and_then(|l| l.get_mut(field));
            let Some(hook) = hook.and_then(Value::as_object_mut) else { continue };
            // A hook's tcpSocket exists on paper only: the kubelet does nothing for it.
            if !hook.contains_key("httpGet") {
                continue;
            }
            let path = format!("/app-lifecycle/{name}/{short}");
            if let Some(original) = redirect(hook, &path, &ports, &format!("{at}.lifecycle.{field}"))? {
                originals.insert(path, original);
            }
        }
    }
    Ok(())
}

/// Leads one probe or hook to the sidecar. Gives what it was, or nothing where it is left alone.
fn redirect(
    probe: &mut Map<String, Value>,
    path: &str,
    ports: &Value,
    at: &str,
) -> Result<Option<Value>, Refusal> {
    let Some(kind) = ["httpGet", "tcpSocket", "grpc"].into_iter().find(|kind| probe.contains_key(*kind))
    else {
        return Ok(None); // `exec` runs inside of the container
    };
    let Some(handler) = probe.get(kind).and_then(Value::as_object) else {
        return Err(Refusal::new(format!("{at}.{kind}"), "must be an object"));
    };
    // It asks somebody else than this pod.
    if handler.get("host").and_then(Value::as_str).is_some_and(|host| !host.is_empty()) {
        return Ok(None);
    }
    let mut handler = handler.clone();
    let port =
        number(handler.get("port"), ports).map_err(|why| Refusal::new(format!("{at}.{kind}.port"), why))?;
    if port == STATUS_PORT {
        return Ok(None); // it is the sidecar's page already
    }
    handler.insert("port".into(), json!(port));
    let mut original = json!({ kind: handler });
    if let (Some(seconds), Some(original)) = (probe.get("timeoutSeconds"), original.as_object_mut()) {
        original.insert("timeoutSeconds".into(), seconds.clone());
    }
    probe.remove(kind);
    probe.insert("httpGet".into(), json!({ "path": path, "port": STATUS_PORT }));
    Ok(Some(original))
}

/// The number of a port that may be given by its name.
fn number(port: Option<&Value>, ports: &Value) -> Result<u16, String> {
    let of = |value: &Value| value.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
    match port {
        Some(Value::String(name)) => {
            if let Some(number) = name.parse::<u16>().ok().filter(|n| *n > 0) {
                return Ok(number);
            }
            let declared = ports.as_array().into_iter().flatten().find(|p| view::name(p) == name);
            declared.and_then(|p| of(p.get("containerPort")?)).ok_or_else(|| {
                format!("the container has no port named {name:?}; declare it under ports, or write a number")
            })
        }
        Some(value) => of(value).ok_or_else(|| format!("{value} is no port; write a number from 1 to 65535")),
        None => Err("is missing; write the port that the probe asks".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of one container: the container, and the originals.
    fn rewritten(container: Value) -> Result<(Value, Value), String> {
        let mut spec = json!({ "containers": [container] });
        let mut originals = Map::new();
        rewrite(spec.as_object_mut().unwrap(), "containers", &mut originals).map_err(|e| e.to_string())?;
        Ok((spec["containers"][0].take(), Value::Object(originals)))
    }

    #[test]
    fn each_form_is_led_to_the_sidecar_and_kept() {
        for (field, short) in PROBES {
            for (handler, kept) in [
                (
                    json!({"httpGet": {"path": "/a", "port": 80}}),
                    json!({"httpGet": {"path": "/a", "port": 80}}),
                ),
                (
                    json!({"httpGet": {"port": "web", "scheme": "HTTPS", "httpHeaders": [{"name": "A", "value": "b"}]}}),
                    json!({"httpGet": {"port": 8080, "scheme": "HTTPS", "httpHeaders": [{"name": "A", "value": "b"}]}}),
                ),
                (json!({"tcpSocket": {"port": "web"}}), json!({"tcpSocket": {"port": 8080}})),
                (json!({"grpc": {"port": 9, "service": "s"}}), json!({"grpc": {"port": 9, "service": "s"}})),
            ] {
                let mut probe = handler.clone();
                probe["timeoutSeconds"] = json!(3);
                probe["periodSeconds"] = json!(7);
                let ports = json!([{"name": "web", "containerPort": 8080}]);
                let (container, originals) =
                    rewritten(json!({"name": "c", "ports": ports, field: probe})).unwrap();
                let path = format!("/app-health/c/{short}");
                let expected = json!({
                    "httpGet": {"path": path, "port": 15020}, "timeoutSeconds": 3, "periodSeconds": 7,
                });
                assert_eq!(container[field], expected);
                let mut kept = kept;
                kept["timeoutSeconds"] = json!(3);
                assert_eq!(originals, json!({ path: kept }));
            }
        }
    }

    #[test]
    fn hooks_that_get_a_page_are_led_to_the_sidecar() {
        let lifecycle = json!({
            "preStop": {"httpGet": {"path": "/bye", "port": 80}},
            "postStart": {"exec": {"command": ["true"]}},
        });
        let (container, originals) = rewritten(json!({"name": "c", "lifecycle": lifecycle})).unwrap();
        let path = "/app-lifecycle/c/prestopz";
        assert_eq!(container["lifecycle"]["preStop"], json!({"httpGet": {"path": path, "port": 15020}}));
        assert_eq!(container["lifecycle"]["postStart"], lifecycle["postStart"]);
        assert_eq!(originals, json!({ path: {"httpGet": {"path": "/bye", "port": 80}} }));
    }

    #[test]
    fn what_does_not_reach_the_pod_over_the_network_stays() {
        for container in [
            json!({"name": "c", "readinessProbe": {"exec": {"command": ["true"]}}}),
            json!({"name": "c", "readinessProbe": {"httpGet": {"host": "10.0.0.1", "port": 80}}}),
            json!({"name": "c", "lifecycle": {"preStop": {"tcpSocket": {"port": 80}}}}),
            json!({"name": "c", "lifecycle": {"preStop": {"sleep": {"seconds": 3}}}}),
            json!({"name": "c"}),
        ] {
            assert_eq!(rewritten(container.clone()).unwrap(), (container, json!({})));
        }
    }

    #[test]
    fn ports_that_are_none_are_refused() {
        for (port, said) in [
            (json!("web"), "the container has no port named \"web\""),
            (json!(0), "0 is no port"),
            (json!(65536), "65536 is no port"),
            (json!(1.5), "1.5 is no port"),
            (Value::Null, "null is no port"),
        ] {
            let error =
                rewritten(json!({"name": "c", "livenessProbe": {"tcpSocket": {"port": port}}})).unwrap_err();
            assert!(error.starts_with("spec.containers[0].livenessProbe.tcpSocket.port: "), "{error}");
            assert!(error.contains(said), "{error}");
        }
        let error = rewritten(json!({"name": "c", "livenessProbe": {"httpGet": 3}})).unwrap_err();
        assert_eq!(error, "spec.containers[0].livenessProbe.httpGet: must be an object");
    }
}
