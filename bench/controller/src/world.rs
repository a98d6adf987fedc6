//! What is in the cluster: services, their Pods, slices, accounts and routes, as objects of the API.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

/// How many namespaces there are.
pub const NAMESPACES: usize = 20;
/// How many endpoints may come and go: their addresses are 10.240.0.0/12.
pub const PASSING: usize = 1 << 20;
/// The namespace of the controller.
pub const SYSTEM: &str = "mesh-system";

/// How large the cluster is.
#[derive(Debug, Clone, Copy)]
pub struct World {
    /// Services.
    pub services: usize,
    /// Pods behind each.
    pub endpoints: usize,
}

/// An object and where it is written to.
#[derive(Debug, Clone)]
pub struct Write {
    /// The collection's path.
    pub path: String,
    /// The object.
    pub object: Value,
    /// What is then written to its `status`.
    pub status: Option<Value>,
}

/// The namespace of a service.
pub fn namespace(service: usize) -> String {
    format!("team-{}", service % NAMESPACES)
}

/// The name of a service, of its account and of its VirtualService.
pub fn name(service: usize) -> String {
    format!("service-{service}")
}

/// The full name of a service.
pub fn host(service: usize) -> String {
    format!("{}.{}.svc.cluster.local", name(service), namespace(service))
}

/// The name of a Pod of a service.
pub fn pod(service: usize, at: usize) -> String {
    format!("service-{service}-5d4f7c9b6d-abc{at:02}")
}

/// An address that nobody else has: counted from 10.128.0.1.
fn ip(number: usize) -> Ipv4Addr {
    // A cluster whose addresses do not fit is larger than Kubernetes bears.
    Ipv4Addr::from_bits(0x0a80_0001 + u32::try_from(number).unwrap_or_default())
}

/// An address of an endpoint that comes and goes.
pub fn passing_ip(number: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0af0_0001 + u32::try_from(number).unwrap_or_default())
}

/// Where the EndpointSlice of a service is.
pub fn slice_path(service: usize) -> String {
    format!(
        "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices/{}-x7k2p",
        namespace(service),
        name(service)
    )
}

/// Where the VirtualService of a service is.
pub fn routes_path(service: usize) -> String {
    let namespace = namespace(service);
    format!("/apis/networking.istio.io/v1/namespaces/{namespace}/virtualservices/{}", name(service))
}

impl World {
    /// What must be there before anything else.
    pub fn first(&self) -> Vec<Write> {
        let spaces = (0..NAMESPACES).map(namespace).chain([SYSTEM.to_owned()]);
        let space = |name: String| {
            plain(
                "/api/v1/namespaces",
                json!({"apiVersion": "v1", "kind": "Namespace",
                    "metadata": {"name": name, "labels": {"istio-injection": "enabled"}}}),
            )
        };
        spaces.map(space).collect()
    }

    /// The accounts, to which Pods belong.
    pub fn accounts(&self) -> Vec<Write> {
        let account = |i| {
            plain(
                format!("/api/v1/namespaces/{}/serviceaccounts", namespace(i)),
                json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name(i)}}),
            )
        };
        (0..self.services).map(account).collect()
    }

    /// Everything else.
    pub fn rest(&self) -> Vec<Write> {
        let of_service = |i| {
            let pods = (0..self.endpoints).map(move |at| self.pod(i, at));
            [service(i), self.slice(i), routes(i)].into_iter().chain(pods)
        };
        (0..self.services).flat_map(of_service).collect()
    }

    fn ip(self, service: usize, at: usize) -> Ipv4Addr {
        ip(service * self.endpoints + at)
    }

    fn slice(self, i: usize) -> Write {
        plain(
            format!("/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices", namespace(i)),
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"name": format!("{}-x7k2p", name(i)), "labels": {
                    "kubernetes.io/service-name": name(i),
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}},
                "endpoints": self.endpoints_of(i, None),
                "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            }),
        )
    }

    /// The endpoints of a service, and one more with this address.
    pub fn endpoints_of(self, service: usize, passing: Option<Ipv4Addr>) -> Value {
        let ready = json!({"ready": true, "serving": true, "terminating": false});
        let known = (0..self.endpoints).map(|at| {
            json!({
                "addresses": [self.ip(service, at)], "conditions": ready, "nodeName": node(service, at),
                "targetRef": {"kind": "Pod", "namespace": namespace(service), "name": pod(service, at)},
            })
        });
        let passing = passing.map(|ip| json!({"addresses": [ip], "conditions": ready}));
        Value::Array(known.chain(passing).collect())
    }

    /// A Pod as a Deployment of an injected namespace has it: most of it is none of the mesh's business.
    fn pod(self, i: usize, at: usize) -> Write {
        let name = name(i);
        let env: Vec<_> =
            (0..10).map(|n| json!({"name": format!("SETTING_{n}"), "value": "some value of it"})).collect();
        let probe = json!({"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 10});
        let token = json!({"name": "token", "mountPath": "/var/run/secrets/tokens", "readOnly": true});
        let ip = self.ip(i, at);
        let since = "2024-01-01T00:00:00Z";
        let condition = |what: &str| json!({"type": what, "status": "True", "lastTransitionTime": since});
        let conditions = ["Initialized", "Ready", "ContainersReady", "PodScheduled"].map(condition);
        let of_container = |name: &str| {
            json!({"name": name, "ready": true, "restartCount": 0, "image": "registry.example/app:1.0",
                "imageID": "registry.example/app@sha256:6a3c2f1b0c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7",
                "containerID": "containerd://6a3c2f1b0c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7",
                "state": {"running": {"startedAt": since}}, "started": true})
        };
        Write {
            path: format!("/api/v1/namespaces/{}/pods", namespace(i)),
            object: json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "name": pod(i, at), "generateName": format!("{name}-5d4f7c9b6d-"),
                    "labels": {"app": name, "version": "v1", "pod-template-hash": "5d4f7c9b6d",
                        "security.istio.io/tlsMode": "istio"},
                    "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "15020",
                        "kubectl.kubernetes.io/restartedAt": since},
                },
                "spec": {
                    "serviceAccountName": name, "nodeName": node(i, at), "automountServiceAccountToken": false,
                    "containers": [{"name": "app", "image": "registry.example/app:1.0", "env": env,
                        "ports": [{"name": "http", "containerPort": 8080}],
                        "readinessProbe": probe, "livenessProbe": probe, "volumeMounts": [token],
                        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}}}],
                    "initContainers": [{"name": "mesh-proxy", "image": "registry.example/mesh-proxy:0.1",
                        "restartPolicy": "Always", "volumeMounts": [token], "startupProbe": probe}],
                    "volumes": [{"name": "token", "projected": {"sources": [
                        {"serviceAccountToken": {"audience": "istio-ca", "path": "istio-token"}}]}}],
                },
            }),
            status: Some(json!({"status": {
                "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "hostIP": "192.0.2.1", "startTime": since,
                "conditions": conditions,
                "containerStatuses": [of_container("app")],
                "initContainerStatuses": [of_container("mesh-proxy")],
            }})),
        }
    }
}

fn node(service: usize, at: usize) -> String {
    format!("node-{}", (service * 7 + at) % 100)
}

fn plain(path: impl Into<String>, object: Value) -> Write {
    Write { path: path.into(), object, status: None }
}

fn service(i: usize) -> Write {
    plain(
        format!("/api/v1/namespaces/{}/services", namespace(i)),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name(i), "labels": {"app": name(i)}},
            "spec": {"selector": {"app": name(i)}, "clusterIP": "None",
                "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
        }),
    )
}

fn routes(i: usize) -> Write {
    plain(
        format!("/apis/networking.istio.io/v1/namespaces/{}/virtualservices", namespace(i)),
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": name(i)},
            "spec": {"hosts": [name(i)], "http": http_routes(i, "mark-0")},
        }),
    )
}

/// The routes of a service; `mark` makes them different.
pub fn http_routes(service: usize, mark: &str) -> Value {
    let route = json!([{"destination": {"host": name(service)}}]);
    json!([
        {"match": [{"uri": {"prefix": "/api"}}], "timeout": "5s", "route": route},
        {"headers": {"request": {"set": {"x-mark": mark}}}, "retries": {"attempts": 2, "retryOn": "5xx"},
            "route": route},
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_object_and_every_address_is_there_once() {
        let world = World { services: 40, endpoints: 10 };
        let all: Vec<_> = [world.first(), world.accounts(), world.rest()].into_iter().flatten().collect();
        assert_eq!(all.len(), NAMESPACES + 1 + 40 + 40 * (3 + 10));
        let named: HashSet<_> =
            all.iter().map(|w| (&w.path, w.object["metadata"]["name"].as_str())).collect();
        assert_eq!(named.len(), all.len());
        let addresses: HashSet<_> =
            all.iter().filter_map(|w| w.status.as_ref()?["status"]["podIP"].as_str()).collect();
        assert_eq!(addresses.len(), 400);
        assert!(!addresses.contains(&*passing_ip(0).to_string()));
    }

    #[test]
    fn an_endpoint_that_passes_comes_last() {
        let world = World { services: 1, endpoints: 2 };
        let endpoints = world.endpoints_of(0, Some(passing_ip(6)));
        assert_eq!(endpoints.as_array().map(Vec::len), Some(3));
        assert_eq!(endpoints[2]["addresses"][0], "10.240.0.7");
    }
}
