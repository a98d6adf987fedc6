//! Kubernetes' own objects, as far as the mesh uses them; the rest of each is ignored.

use super::common::{IntOrString, Labels};

thin_types! {
    /// The spec of a `Service`.
    pub struct Service {
        /// `ClusterIP` (also when empty), `NodePort`, `LoadBalancer` or `ExternalName`.
        #[serde(rename = "type")]
        pub service_type: String,
        /// The Pods (and WorkloadEntries) of its namespace that serve it; empty means that somebody else
        /// writes its EndpointSlices.
        pub selector: Labels,
        /// Its ports.
        pub ports: Vec<ServicePort>,
        /// Its virtual address, `None` for a headless service, or empty.
        #[serde(rename = "clusterIP")]
        pub cluster_ip: String,
        /// All its virtual addresses.
        #[serde(rename = "clusterIPs")]
        pub cluster_ips: Vec<String>,
        /// Addresses outside of the cluster at which it is served.
        #[serde(rename = "externalIPs")]
        pub external_ips: Vec<String>,
        /// What an `ExternalName` service stands for.
        pub external_name: String,
        /// Whether endpoints count before they are ready.
        pub publish_not_ready_addresses: bool,
        /// `PreferClose`, `PreferSameZone` or `PreferSameNode`; empty for none.
        pub traffic_distribution: String,
        /// `Cluster` (also when empty) or `Local`.
        pub internal_traffic_policy: String,
    }

    /// A port of a `Service`.
    pub struct ServicePort {
        /// Its name; may be empty where there is one only.
        pub name: String,
        /// `TCP` (also when empty), `UDP` or `SCTP`.
        pub protocol: String,
        /// The application protocol, such as `http` or `kubernetes.io/h2c`.
        pub app_protocol: Option<String>,
        /// The number that callers use.
        pub port: u16,
        /// The number or name at the endpoints; absent means the same number.
        pub target_port: Option<IntOrString>,
    }

    /// An `EndpointSlice`: some of the endpoints of a service.
    ///
    /// It belongs to the service that its label `kubernetes.io/service-name` names.
    pub struct EndpointSlice {
        /// `IPv4`, `IPv6` or `FQDN`.
        pub address_type: String,
        /// The endpoints.
        pub endpoints: Vec<Endpoint>,
        /// The ports that each of them has.
        pub ports: Vec<EndpointPort>,
    }

    /// An endpoint of an `EndpointSlice`.
    pub struct Endpoint {
        /// Its addresses, of which the first counts.
        pub addresses: Vec<String>,
        /// Whether it can be used.
        pub conditions: EndpointConditions,
        /// Its host name, for headless services.
        pub hostname: Option<String>,
        /// The Pod that it is.
        pub target_ref: Option<ObjectReference>,
        /// Its node.
        pub node_name: Option<String>,
        /// Its zone.
        pub zone: Option<String>,
    }

    /// Whether an endpoint can be used.
    pub struct EndpointConditions {
        /// Absent means yes.
        pub ready: Option<bool>,
        /// Absent means the same as `ready`.
        pub serving: Option<bool>,
        /// Absent means no.
        pub terminating: Option<bool>,
    }

    /// A port of an `EndpointSlice`.
    pub struct EndpointPort {
        /// The name of the service's port.
        pub name: Option<String>,
        /// `TCP` when absent.
        pub protocol: Option<String>,
        /// The number; absent means every port.
        pub port: Option<u16>,
        /// The application protocol.
        pub app_protocol: Option<String>,
    }

    /// Another object.
    pub struct ObjectReference {
        /// Its kind.
        pub kind: String,
        /// Its namespace.
        pub namespace: String,
        /// Its name.
        pub name: String,
        /// Its uid.
        pub uid: String,
    }

    /// A `Pod`.
    pub struct Pod {
        /// What was asked for.
        pub spec: PodSpec,
        /// What is.
        pub status: PodStatus,
    }

    /// What was asked for.
    pub struct PodSpec {
        /// The account that it runs as; empty means `default`.
        pub service_account_name: String,
        /// Its containers.
        pub containers: Vec<Container>,
        /// Its node.
        pub node_name: String,
        /// Whether it has the node's own network.
        pub host_network: bool,
    }

    /// A container.
    pub struct Container {
        /// Its name.
        pub name: String,
        /// The ports that it declares.
        pub ports: Vec<ContainerPort>,
    }

    /// A port that a container declares.
    pub struct ContainerPort {
        /// Its name, which a `targetPort` may use.
        pub name: String,
        /// Its number.
        pub container_port: u16,
        /// `TCP` (also when empty), `UDP` or `SCTP`.
        pub protocol: String,
    }

    /// What a Pod is at the moment.
    pub struct PodStatus {
        /// `Pending`, `Running`, `Succeeded`, `Failed`, or empty where nobody says.
        pub phase: String,
        /// Its address.
        #[serde(rename = "podIP")]
        pub pod_ip: String,
        /// All its addresses.
        #[serde(rename = "podIPs")]
        pub pod_ips: Vec<PodIp>,
        /// The address of its node.
        #[serde(rename = "hostIP")]
        pub host_ip: String,
        /// Its conditions, among them `Ready`.
        pub conditions: Vec<PodCondition>,
    }

    /// An address of a Pod.
    pub struct PodIp {
        /// The address.
        pub ip: String,
    }

    /// A condition of a Pod.
    pub struct PodCondition {
        /// Which.
        #[serde(rename = "type")]
        pub condition_type: String,
        /// `True`, `False` or `Unknown`.
        pub status: String,
    }

    /// A `Namespace`; all that counts is its metadata.
    pub struct Namespace {}
}

impl EndpointConditions {
    /// Whether the endpoint takes new requests.
    pub fn is_ready(&self) -> bool {
        self.ready.unwrap_or(true)
    }
}

impl PodStatus {
    /// Whether the Pod takes new requests: its `Ready` condition, or, where none is given (a Pod that a
    /// person wrote to a file), whether it is not known to have ended.
    pub fn is_ready(&self) -> bool {
        match self.conditions.iter().find(|c| c.condition_type == "Ready") {
            Some(ready) => ready.status == "True",
            None => matches!(self.phase.as_str(), "" | "Running"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_is_the_same_as_nothing() {
        let slice = r#"{"addressType": "IPv4", "endpoints": null, "ports": null}"#;
        let slice: EndpointSlice = serde_json::from_str(slice).unwrap();
        assert_eq!(slice, EndpointSlice { address_type: "IPv4".into(), ..EndpointSlice::default() });
        let endpoint =
            r#"{"addresses": ["10.0.0.1"], "conditions": {"ready": null}, "nodeName": "a", "zone": null}"#;
        let endpoint: Endpoint = serde_json::from_str(endpoint).unwrap();
        assert!(endpoint.conditions.is_ready());
        assert_eq!((endpoint.node_name.as_deref(), endpoint.zone), (Some("a"), None));
        let meta: crate::resource::ObjectMeta =
            serde_json::from_str(r#"{"name": "a", "labels": null, "creationTimestamp": null}"#).unwrap();
        assert_eq!(meta.name, "a");
    }
}
