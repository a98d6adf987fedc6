//! The application's end, which waits until its callers have been told.
//!
//! The kubelet tells an application to end when its pod is deleted, at the same time as everybody is told not to call
//! it any more. What arrives in between fails, unless the application goes on serving for a while, which few do. So
//! each container gets a `preStop` hook, before which Kubernetes does not tell it to end: it asks the sidecar, which
//! answers when the controller has withdrawn the workload from its callers.

use serde_json::{Map, Value, json};

use super::refusal::Refusal;
use super::settings::STATUS_PORT;
use super::view;

/// The longest that the hook may take, in seconds.
pub(super) const MAX_WITHIN: u64 = 15;
/// What Kubernetes gives a pod to end, in seconds, where it does not say.
const DEFAULT_GRACE: u64 = 30;

/// Gives each application container that has no `preStop` hook one that waits. It may take half of the pod's time to
/// end at most: the rest is the application's.
pub(super) fn hold(spec: &mut Map<String, Value>) -> Result<(), Refusal> {
    let grace = spec.get("terminationGracePeriodSeconds").and_then(Value::as_u64).unwrap_or(DEFAULT_GRACE);
    let within = (grace / 2).min(MAX_WITHIN);
    if within == 0 {
        return Ok(());
    }
    let containers = spec.get_mut("containers").and_then(Value::as_array_mut);
    for (i, container) in containers.into_iter().flatten().enumerate() {
        let Some(container) = container.as_object_mut() else { continue };
        let lifecycle = view::object(container, "lifecycle", &format!("spec.containers[{i}].lifecycle"))?;
        if lifecycle.get("preStop").is_none_or(Value::is_null) {
            let path = format!("/withdrawn?within={within}");
            lifecycle.insert("preStop".into(), json!({"httpGet": {"path": path, "port": STATUS_PORT}}));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(mut spec: Value) -> Value {
        hold(spec.as_object_mut().unwrap()).unwrap();
        spec["containers"].take()
    }

    #[test]
    fn it_takes_half_of_the_time_at_most() {
        for (grace, within) in
            [(json!(null), 15), (json!(30), 15), (json!(300), 15), (json!(10), 5), (json!(3), 1)]
        {
            let spec =
                json!({"terminationGracePeriodSeconds": grace, "containers": [{"name": "a"}, {"name": "b"}]});
            let hook = json!({"httpGet": {"path": format!("/withdrawn?within={within}"), "port": 15020}});
            for container in held(spec).as_array().unwrap() {
                assert_eq!(container["lifecycle"]["preStop"], hook, "{grace}");
            }
        }
        for grace in [0, 1] {
            let spec = json!({"terminationGracePeriodSeconds": grace, "containers": [{"name": "a"}]});
            assert_eq!(held(spec.clone()), spec["containers"]);
        }
    }

    #[test]
    fn a_hook_of_its_own_stays() {
        let own = json!({"preStop": {"sleep": {"seconds": 3}}});
        let other = json!({"postStart": {"exec": {"command": ["true"]}}, "preStop": null});
        let found = held(json!({"containers": [{"lifecycle": own}, {"lifecycle": other}]}));
        assert_eq!(found[0]["lifecycle"], own);
        assert_eq!(found[1]["lifecycle"]["postStart"], other["postStart"]);
        assert_eq!(found[1]["lifecycle"]["preStop"]["httpGet"]["port"], 15020);
        let mut wrong = json!({"containers": [{"lifecycle": 3}]});
        let error = hold(wrong.as_object_mut().unwrap()).unwrap_err().to_string();
        assert_eq!(error, "spec.containers[0].lifecycle: must be an object");
    }
}
