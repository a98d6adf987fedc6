//! Objects that hold the template of a pod.

use serde_json::Value;

use super::decide::{Labels, Skip};
use super::refusal::Refusal;
use super::settings::Settings;
use super::{Outcome, Target, inject, view};

/// API group, kind, and where the pod's template stands.
const KINDS: [(&str, &str, &str); 8] = [
    ("", "Pod", ""),
    ("", "ReplicationController", "/spec/template"),
    ("apps", "Deployment", "/spec/template"),
    ("apps", "StatefulSet", "/spec/template"),
    ("apps", "DaemonSet", "/spec/template"),
    ("apps", "ReplicaSet", "/spec/template"),
    ("batch", "Job", "/spec/template"),
    ("batch", "CronJob", "/spec/jobTemplate/spec/template"),
];

/// What became of an object.
#[derive(Debug, Clone, PartialEq)]
pub enum Injection {
    /// It holds no pod.
    NoPod,
    /// Its pods are left as they are.
    Skipped(Skip),
    /// Its pods have sidecars now.
    Injected {
        /// The object.
        object: Value,
        /// What the pod asks for that makes no difference here.
        warnings: Vec<String>,
    },
}

/// Gives the pods of `object` (any of Kubernetes' kinds) their sidecars. `namespace` is where it goes when it
/// does not say so, `labels_of` gives the labels of a namespace.
///
/// # Errors
///
/// As [`inject`] does; the error names the object.
pub fn inject_object(
    settings: &Settings,
    namespace: &str,
    labels_of: impl FnOnce(&str) -> Labels,
    object: &Value,
) -> Result<Injection, Refusal> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (api, kind) = (text("/apiVersion"), text("/kind"));
    let group = api.split_once('/').map_or("", |(group, _)| group);
    let Some((.., pointer)) = KINDS.iter().find(|(g, k, _)| (*g, *k) == (group, kind)) else {
        return Ok(Injection::NoPod);
    };
    let name = match text("/metadata/name") {
        "" => text("/metadata/generateName").trim_end_matches('-'),
        name => name,
    };
    let namespace = Some(text("/metadata/namespace")).filter(|n| !n.is_empty()).unwrap_or(namespace);
    let subject = format!("{kind} {namespace}/{}", if name.is_empty() { "(no name)" } else { name });
    let prefix = pointer.trim_start_matches('/').replace('/', ".");
    let Some(pod) = object.pointer(pointer) else {
        return Err(Refusal::new(prefix, "is missing; the template of a pod stands there").of(subject, ""));
    };
    let workload = if pointer.is_empty() { workload_of(object) } else { name.to_owned() };
    let target = Target { namespace, namespace_labels: &labels_of(namespace), workload: &workload };
    match inject(settings, &target, pod).map_err(|refusal| refusal.of(subject, &prefix))? {
        Outcome::Skipped(why) => Ok(Injection::Skipped(why)),
        Outcome::Injected(done) => {
            let mut object = object.clone();
            if let Some(slot) = object.pointer_mut(pointer) {
                *slot = done.pod;
            }
            Ok(Injection::Injected { object, warnings: done.warnings })
        }
    }
}

/// The workload that a Pod is part of, from its owner: of a ReplicaSet the Deployment, of a Job the CronJob
/// behind it.
fn workload_of(pod: &Value) -> String {
    let text =
        |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let owners = view::list(pod, "/metadata/ownerReferences");
    let Some(owner) = owners.iter().find(|o| o.get("controller") == Some(&Value::Bool(true))) else {
        let metadata = pod.get("metadata").unwrap_or(&Value::Null);
        return match text(metadata, "name") {
            name if name.is_empty() => text(metadata, "generateName").trim_end_matches('-').to_owned(),
            name => name,
        };
    };
    let name = text(owner, "name");
    let suffix = match text(owner, "kind").as_str() {
        "ReplicaSet" => view::label(pod, "pod-template-hash").map(str::to_owned),
        // A CronJob's jobs end with the minute for which they were made.
        "Job" => name
            .rsplit_once('-')
            .map(|(_, time)| time.to_owned())
            .filter(|time| time.len() >= 8 && time.bytes().all(|b| b.is_ascii_digit())),
        _ => None,
    };
    let stripped = suffix.and_then(|s| Some(name.strip_suffix(&s)?.strip_suffix('-')?.to_owned()));
    stripped.unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_belongs_to_what_its_owner_belongs_to() {
        for (kind, owner, hash, expected) in [
            ("ReplicaSet", "web-7d5f8", "7d5f8", "web"),
            ("ReplicaSet", "web-7d5f8", "other", "web-7d5f8"),
            ("ReplicaSet", "lone", "", "lone"),
            ("Job", "backup-28712345", "", "backup"),
            ("Job", "once-12", "", "once-12"),
            ("StatefulSet", "db", "", "db"),
        ] {
            let pod = json!({"metadata": {
                "name": "p",
                "labels": {"pod-template-hash": hash},
                "ownerReferences": [{"kind": "Node", "name": "n"}, {"kind": kind, "name": owner, "controller": true}],
            }});
            assert_eq!(workload_of(&pod), expected, "{kind} {owner}");
        }
        assert_eq!(workload_of(&json!({"metadata": {"name": "p"}})), "p");
        assert_eq!(workload_of(&json!({"metadata": {"generateName": "p-"}})), "p");
        assert_eq!(workload_of(&json!(3)), "");
    }

    #[test]
    fn kinds_of_others_are_nobodys_business() {
        for (api, kind) in [("example.com/v1", "Deployment"), ("v1", "Service"), ("apps/v1", "Job"), ("", "")]
        {
            let object = json!({"apiVersion": api, "kind": kind, "spec": {"template": {"spec": {}}}});
            let done = inject_object(&Settings::default(), "default", |_| Labels::new(), &object);
            assert_eq!(done, Ok(Injection::NoPod));
        }
    }
}
