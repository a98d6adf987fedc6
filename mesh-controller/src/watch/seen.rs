//! Objects as they come from the API server: taken apart as soon as they are read, so that a page of a list costs
//! no more than what is kept of it.

use std::borrow::Cow;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta as KubeMeta;
use kube::core::{ApiResource, DynamicResourceScope, Resource};
use mesh_core::resource::{EndpointSlice, Kind, Namespace, ObjectMeta, Pod, Service};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

/// What is kept of an object.
pub(crate) trait Form: Clone + fmt::Debug + Send + Sync + 'static {
    /// Takes an object's JSON apart. Whatever is wrong with it is kept for later: an object that cannot be read must
    /// not hide the others of its list.
    fn take_apart(json: &str) -> Self;

    /// Its metadata, as far as they could be read.
    fn meta(&self) -> &ObjectMeta;
}

/// An object of which `F` is kept.
#[derive(Debug, Clone)]
pub(crate) struct Seen<F> {
    /// What the client of the API looks at: the version alone.
    meta: KubeMeta,
    pub(crate) form: F,
}

impl<'de, F: Form> Deserialize<'de> for Seen<F> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = Box::<RawValue>::deserialize(deserializer)?;
        let form = F::take_apart(json.get());
        let version = Some(&form.meta().resource_version).filter(|v| !v.is_empty()).cloned();
        Ok(Self { meta: KubeMeta { resource_version: version, ..KubeMeta::default() }, form })
    }
}

impl<F: Form> Resource for Seen<F> {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(api: &ApiResource) -> Cow<'_, str> {
        api.kind.as_str().into()
    }

    fn group(api: &ApiResource) -> Cow<'_, str> {
        api.group.as_str().into()
    }

    fn version(api: &ApiResource) -> Cow<'_, str> {
        api.version.as_str().into()
    }

    fn plural(api: &ApiResource) -> Cow<'_, str> {
        api.plural.as_str().into()
    }

    fn meta(&self) -> &KubeMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut KubeMeta {
        &mut self.meta
    }
}

/// Where objects of a kind are found.
pub(crate) fn resource_of<K: Kind>() -> ApiResource {
    let version = K::VERSIONS.first().copied().unwrap_or_default();
    let api_version =
        if K::GROUP.is_empty() { version.to_owned() } else { format!("{}/{version}", K::GROUP) };
    ApiResource {
        group: K::GROUP.to_owned(),
        version: version.to_owned(),
        api_version,
        kind: K::KIND.to_owned(),
        plural: K::PLURAL.to_owned(),
    }
}

#[derive(Deserialize)]
struct OnlyMeta {
    #[serde(default)]
    metadata: ObjectMeta,
}

fn meta_of(json: &str) -> ObjectMeta {
    serde_json::from_str(json).map(|OnlyMeta { metadata }| metadata).unwrap_or_default()
}

/// An object of Kubernetes' own: the fields that the mesh uses.
#[derive(Debug, Clone)]
pub(crate) struct Thin<K> {
    pub(crate) meta: ObjectMeta,
    /// The object; why it cannot be read; nothing where the object is none that counts.
    pub(crate) spec: Result<Option<K>, String>,
}

impl<K: Slim> Form for Thin<K> {
    fn take_apart(json: &str) -> Self {
        let mut meta = meta_of(json);
        let spec = if K::FLAT {
            serde_json::from_str(json)
        } else {
            serde_json::from_str(json).map(|OnlySpec { spec }| spec)
        };
        let kept = meta.annotations.iter().filter(|(key, _)| K::keeps(key));
        meta.annotations = kept.map(|(key, value)| (key.clone(), value.clone())).collect();
        Self { meta, spec: spec.map(K::slim).map_err(|e| e.to_string()) }
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }
}

#[derive(Deserialize)]
#[serde(bound = "K: Kind")]
struct OnlySpec<K> {
    #[serde(default)]
    spec: K,
}

/// A kind of Kubernetes' own, of which as little as possible is kept.
pub(crate) trait Slim: Kind {
    /// Whether an annotation matters to the mesh.
    fn keeps(annotation: &str) -> bool {
        let _ = annotation;
        false
    }

    /// What of it counts: nothing where the object is as good as not there.
    fn slim(self) -> Option<Self> {
        Some(self)
    }
}

impl Slim for Namespace {}

impl Slim for Service {
    fn keeps(annotation: &str) -> bool {
        annotation.starts_with("networking.istio.io/")
    }

    fn slim(mut self) -> Option<Self> {
        self.ports.shrink_to_fit();
        self.cluster_ips.shrink_to_fit();
        Some(self)
    }
}

impl Slim for EndpointSlice {
    fn slim(mut self) -> Option<Self> {
        self.endpoints.iter_mut().for_each(|e| e.addresses.shrink_to_fit());
        self.endpoints.shrink_to_fit();
        self.ports.shrink_to_fit();
        Some(self)
    }
}

impl Slim for Pod {
    /// A pod that has ended or has no address yet takes part in nothing. Of the others, containers without ports and
    /// conditions other than `Ready` say nothing to the mesh, and change often.
    fn slim(mut self) -> Option<Self> {
        if self.status.pod_ip.is_empty() || matches!(self.status.phase.as_str(), "Succeeded" | "Failed") {
            return None;
        }
        self.spec.containers.retain(|c| !c.ports.is_empty());
        self.spec.containers.iter_mut().for_each(|c| c.ports.shrink_to_fit());
        self.spec.containers.shrink_to_fit();
        self.status.conditions.retain(|c| c.condition_type == "Ready");
        self.status.conditions.shrink_to_fit();
        self.status.pod_ips.shrink_to_fit();
        Some(self)
    }
}

/// A resource of the mesh, to be read strictly.
#[derive(Debug, Clone)]
pub(crate) struct Whole {
    pub(crate) meta: ObjectMeta,
    pub(crate) object: Value,
    /// The status, which is nobody's configuration.
    pub(crate) status: Value,
}

impl Form for Whole {
    fn take_apart(json: &str) -> Self {
        let meta = meta_of(json);
        let mut object: Value = serde_json::from_str(json).unwrap_or_else(|error| {
            // What is nested too deeply for us: read as a spec that is none, so that it is refused as any other.
            serde_json::json!({
                "metadata": {"name": meta.name, "namespace": meta.namespace, "uid": meta.uid},
                "spec": error.to_string(),
            })
        });
        let status = object.get_mut("status").map(Value::take).unwrap_or_default();
        if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
            // Changes whenever anything does; who compares objects looks for what was changed.
            metadata.remove("resourceVersion");
            metadata.remove("managedFields");
            if let Some(Value::Object(annotations)) = metadata.get_mut("annotations") {
                annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
            }
        }
        Self { meta, object, status }
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::{ObjectList, WatchEvent};
    use serde_json::json;

    fn pod(name: &str, status: &Value) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": name, "namespace": "shop", "resourceVersion": "7", "uid": "u", "labels": {"app": "web"},
                "annotations": {"sidecar.istio.io/status": "{}"}, "managedFields": [{"manager": "kubelet"}],
                "creationTimestamp": "2024-05-01T00:00:00Z", "ownerReferences": [],
            },
            "spec": {
                "serviceAccountName": "web", "nodeName": "n", "volumes": [{"name": "v"}],
                "containers": [
                    {"name": "app", "image": "i", "ports": [{"name": "http", "containerPort": 8080}]}, {"name": "side"},
                ],
            },
            "status": status,
        })
    }

    fn running() -> Value {
        json!({
            "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}],
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}],
        })
    }

    #[test]
    fn of_a_pod_only_what_counts_is_kept() {
        let seen: Seen<Thin<Pod>> = serde_json::from_str(&pod("a", &running()).to_string()).unwrap();
        assert_eq!(seen.meta().resource_version.as_deref(), Some("7"));
        let Thin { meta, spec } = seen.form;
        assert_eq!(
            (meta.name.as_str(), meta.labels["app"].as_str(), meta.annotations.len()),
            ("a", "web", 0)
        );
        let pod = spec.unwrap().unwrap();
        assert_eq!(pod.spec.containers.len(), 1);
        assert_eq!(pod.status.conditions.len(), 1);
        assert!(pod.status.is_ready());
    }

    #[test]
    fn a_pod_that_has_ended_or_no_address_counts_for_nothing() {
        for status in [
            json!({"phase": "Succeeded", "podIP": "10.0.0.1"}),
            json!({"phase": "Failed", "podIP": "10.0.0.1"}),
            json!({"phase": "Pending"}),
            json!({}),
            Value::Null,
        ] {
            let thin = Thin::<Pod>::take_apart(&pod("a", &status).to_string());
            assert_eq!(thin.spec, Ok(None), "{status}");
        }
    }

    #[test]
    fn an_object_that_cannot_be_read_hides_no_other() {
        let mut bad = pod("bad", &running());
        bad["spec"]["containers"][0]["ports"][0]["containerPort"] = json!(70_000);
        let list = json!({
            "apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "9"},
            "items": [pod("a", &running()), bad, pod("b", &running())],
        });
        let list: ObjectList<Seen<Thin<Pod>>> = serde_json::from_str(&list.to_string()).unwrap();
        let told: Vec<_> =
            list.items.iter().map(|i| (i.form.meta.name.as_str(), i.form.spec.is_ok())).collect();
        assert_eq!(told, [("a", true), ("bad", false), ("b", true)]);
    }

    #[test]
    fn what_a_watch_sends_is_read() {
        let line = format!(r#"{{"type":"ADDED","object":{}}}"#, pod("a", &running()));
        let event: WatchEvent<Seen<Thin<Pod>>> = serde_json::from_str(&line).unwrap();
        assert!(matches!(event, WatchEvent::Added(seen) if seen.form.meta.name == "a"), "{line}");
    }

    #[test]
    fn a_service_keeps_the_annotations_that_it_is_exported_by() {
        let json = json!({
            "metadata": {"name": "a", "namespace": "b", "annotations": {
                "networking.istio.io/exportTo": ".", "kubectl.kubernetes.io/last-applied-configuration": "{}",
            }},
            "spec": {"ports": [{"port": 80}], "clusterIP": "10.0.0.1", "clusterIPs": null},
        });
        let thin = Thin::<Service>::take_apart(&json.to_string());
        assert_eq!(thin.meta.annotations.keys().collect::<Vec<_>>(), ["networking.istio.io/exportTo"]);
        assert_eq!(thin.spec.unwrap().unwrap().ports[0].port, 80);
    }

    #[test]
    fn a_resource_of_the_mesh_is_kept_whole_but_for_what_is_no_configuration() {
        let json = json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {"name": "a", "namespace": "b", "resourceVersion": "5", "generation": 2, "managedFields": []},
            "spec": {"hosts": ["x"], "unknown": 1}, "status": {"conditions": []},
        });
        let whole = Whole::take_apart(&json.to_string());
        assert_eq!((whole.meta.resource_version.as_str(), whole.meta.generation), ("5", 2));
        assert_eq!(whole.status, json!({"conditions": []}));
        assert_eq!(whole.object["metadata"], json!({"name": "a", "namespace": "b", "generation": 2}));
        assert_eq!(whole.object["spec"], json["spec"]);
    }

    #[test]
    fn what_is_nested_too_deeply_still_has_a_name() {
        let deep = format!("{}{}", "[".repeat(1000), "]".repeat(1000));
        let json = format!(r#"{{"metadata":{{"name":"a","namespace":"b"}},"spec":{{"rules":{deep}}}}}"#);
        let whole = Whole::take_apart(&json);
        assert_eq!(whole.meta.name, "a");
        assert!(whole.object["spec"].is_string());
    }
}
