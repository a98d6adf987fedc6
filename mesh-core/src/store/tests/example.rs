//! A whole small mesh.

use super::*;
use crate::protocol::Protocol;

const MESH: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: default}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: reviews-v1, namespace: default}
spec:
  address: 127.0.0.1
  ports: {http: 19081}
  serviceAccount: reviews
  labels: {app: reviews, version: v1, security.istio.io/tlsMode: istio}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: reviews-v2, namespace: default}
spec:
  address: 127.0.0.1
  ports: {http: 19082}
  serviceAccount: reviews
  labels: {app: reviews, version: v2, security.istio.io/tlsMode: istio}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: web, namespace: default}
spec: {address: 127.0.0.1, labels: {app: web}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: default}
spec:
  hosts: [reviews]
  http:
  - route:
    - {destination: {host: reviews, subset: v1}, weight: 90}
    - {destination: {host: reviews, subset: v2}, weight: 10}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: default}
spec:
  host: reviews
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: reviews, namespace: default}
spec:
  selector: {matchLabels: {app: reviews}}
  rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/default]}}]}]
";

#[test]
fn a_caller_finds_routes_subsets_and_endpoints() {
    let store = store(MESH);
    let web = store.workload("default", "web").unwrap();
    assert_eq!(web.identity.as_ref().unwrap().principal(), "cluster.local/ns/default/sa/default");

    let reviews = store.outbound(&web, "reviews").unwrap();
    assert_eq!(reviews.host(), "reviews.default.svc.cluster.local");
    assert_eq!(reviews.virtual_service().unwrap().meta.name, "reviews");
    assert_eq!(reviews.service().unwrap().ports[0].protocol, Protocol::Http1);
    assert_eq!(addresses(&reviews.endpoints(9080, "")), ["127.0.0.1:19081", "127.0.0.1:19082"]);

    let v2 = reviews.endpoints(9080, "v2");
    assert_eq!(addresses(&v2), ["127.0.0.1:19082"]);
    assert_eq!(expected(&v2[0]), "cluster.local/ns/default/sa/reviews");
    let UpstreamTls::Mutual { sni, .. } = &v2[0].key.tls else { panic!() };
    assert_eq!(&**sni, "outbound_.9080_.v2_.reviews.default.svc.cluster.local");
    assert_eq!(&*v2[0].labels.canonical_service, "reviews");
    assert_eq!(&*v2[0].labels.canonical_revision, "v2");
    assert!(store.diagnostics().is_empty(), "{:?}", store.diagnostics());
}

#[test]
fn a_workload_finds_its_policies_and_ports() {
    use crate::resource::peer_authentication::MutualTlsMode;
    let store = store(MESH);
    let inbound = store.inbound(&store.workload("default", "reviews-v1").unwrap());
    assert_eq!(inbound.authorization.len(), 1);
    assert_eq!(inbound.peer_authentication.mode(19081), MutualTlsMode::Strict);
    let port = inbound.port(19081).unwrap();
    assert_eq!((port.service_port.number, port.service_port.protocol), (9080, Protocol::Http1));
    assert_eq!(&*port.service.name, "reviews");
    assert!(inbound.port(9080).is_none());

    let web = store.inbound(&store.workload("default", "web").unwrap());
    assert!(web.authorization.is_empty() && web.ports.is_empty());
}

#[test]
fn hosts_are_listed_with_the_names_that_the_caller_may_use() {
    let store = store(MESH);
    let domains = |namespace| {
        let hosts: Vec<_> = store.hosts(&caller(namespace)).collect();
        assert_eq!(hosts.len(), 1);
        hosts[0].domains.iter().map(|d| d.to_string()).collect::<Vec<_>>()
    };
    let full = "reviews.default.svc.cluster.local";
    assert_eq!(domains("default"), [full, "reviews", "reviews.default", "reviews.default.svc"]);
    assert_eq!(domains("other"), [full, "reviews.default", "reviews.default.svc"]);
}
