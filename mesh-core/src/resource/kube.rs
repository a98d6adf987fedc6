//! Resources as `kube` knows them, for programs that watch the Kubernetes API.

use std::borrow::Cow;

use k8s_openapi::NamespaceResourceScope;
pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta as KubeMeta;
use kube_core::Resource as KubeResource;
use serde::{Deserialize, Serialize};

use super::meta::{DEFAULT_NAMESPACE, ObjectMeta};
use super::object::{Kind, Resource};

/// A mesh resource in the shape of the Kubernetes API: metadata and spec. What else the API sends, such as
/// its status, is ignored.
///
/// Reading one checks the schema strictly, as for files.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", bound(deserialize = "T: Kind"))]
pub struct KubeObject<T> {
    /// The metadata as the API has it.
    #[serde(default)]
    pub metadata: KubeMeta,
    /// The spec.
    #[serde(default)]
    pub spec: T,
}

impl<T: Kind> KubeObject<T> {
    /// As a resource of ours.
    pub fn into_resource(self) -> Resource<T> {
        let meta = self.metadata;
        let meta = ObjectMeta {
            name: meta.name.unwrap_or_default(),
            namespace: meta.namespace.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned()),
            labels: meta.labels.unwrap_or_default(),
            annotations: meta.annotations.unwrap_or_default(),
            creation_timestamp: meta.creation_timestamp.map(|t| t.0.to_string()).unwrap_or_default(),
            deletion_timestamp: meta.deletion_timestamp.map(|t| t.0.to_string()).unwrap_or_default(),
            generation: meta.generation.unwrap_or_default(),
            resource_version: meta.resource_version.unwrap_or_default(),
            uid: meta.uid.unwrap_or_default(),
        };
        Resource { meta, spec: self.spec, origin: None, invalid: None }
    }
}

impl<T: Kind> KubeResource for KubeObject<T> {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        T::KIND.into()
    }

    fn group((): &()) -> Cow<'_, str> {
        T::GROUP.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        T::VERSIONS.first().copied().unwrap_or_default().into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        T::PLURAL.into()
    }

    fn meta(&self) -> &KubeMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut KubeMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::VirtualService;

    #[test]
    fn a_resource_knows_its_place_in_the_api() {
        assert_eq!(
            KubeObject::<VirtualService>::url_path(&(), Some("shop")),
            "/apis/networking.istio.io/v1/namespaces/shop/virtualservices"
        );
        let object: KubeObject<VirtualService> = serde_json::from_str(
            r#"{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","status":{},
                "metadata":{"name":"reviews","namespace":"shop","creationTimestamp":"2024-05-01T00:00:00Z"},
                "spec":{"hosts":["reviews"]}}"#,
        )
        .unwrap();
        let resource = object.into_resource();
        assert_eq!(resource.reference().to_string(), "VirtualService shop/reviews");
        assert_eq!(resource.meta.creation_timestamp, "2024-05-01T00:00:00Z");
    }
}
