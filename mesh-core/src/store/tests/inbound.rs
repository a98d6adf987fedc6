//! What applies to a workload.

use super::*;
use crate::resource::peer_authentication::MutualTlsMode;

const WORKLOAD: (&str, &str, &str) =
    ("WorkloadEntry", "a/w", "{address: 10.0.0.1, ports: {http: 8080}, labels: {app: w}}");

fn inbound(documents: &[(&str, &str, &str)]) -> crate::store::Inbound {
    let all: Vec<_> = documents.iter().copied().chain([WORKLOAD]).collect();
    let store = docs(&all);
    store.inbound(&store.workload("a", "w").unwrap())
}

#[test]
fn authorization_comes_from_the_root_and_the_own_namespace_by_selector() {
    let found = inbound(&[
        ("AuthorizationPolicy", "a/own@3", "{}"),
        ("AuthorizationPolicy", "a/selects@2", "{selector: {matchLabels: {app: w}}}"),
        ("AuthorizationPolicy", "a/selects-others", "{selector: {matchLabels: {app: x}}}"),
        ("AuthorizationPolicy", "a/targets", "{targetRefs: [{kind: Service, name: s}]}"),
        ("AuthorizationPolicy", "b/other", "{}"),
        ("AuthorizationPolicy", "istio-system/mesh@1", "{}"),
        ("AuthorizationPolicy", "istio-system/mesh-selects@4", "{selector: {matchLabels: {app: w}}}"),
    ]);
    let names: Vec<_> = found.authorization.iter().map(|p| p.meta.name.as_str()).collect();
    assert_eq!(names, ["mesh", "selects", "own", "mesh-selects"]);
}

#[test]
fn mtls_modes_are_inherited_port_workload_namespace_mesh() {
    let policy = |mode: &str| format!("{{mtls: {{mode: {mode}}}}}");
    let selecting = |mode: &str| {
        format!(
            "{{selector: {{matchLabels: {{app: w}}}}, mtls: {{mode: {mode}}}, portLevelMtls: {{8080: {{mode: DISABLE}}, 8081: {{mode: UNSET}}}}}}"
        )
    };
    let modes = |documents: &[(&str, String)]| {
        let documents: Vec<_> =
            documents.iter().map(|(name, spec)| ("PeerAuthentication", *name, spec.as_str())).collect();
        let found = inbound(&documents).peer_authentication;
        [8080, 8081].map(|port| found.mode(port).as_str())
    };
    assert_eq!(modes(&[]), ["PERMISSIVE"; 2]);
    assert_eq!(modes(&[("istio-system/m", policy("STRICT"))]), ["STRICT"; 2]);
    assert_eq!(modes(&[("istio-system/m", policy("STRICT")), ("a/n", policy("DISABLE"))]), ["DISABLE"; 2]);
    assert_eq!(modes(&[("istio-system/m", policy("STRICT")), ("a/n", policy("UNSET"))]), ["STRICT"; 2]);
    assert_eq!(
        modes(&[("a/n", policy("STRICT")), ("a/w", selecting("PERMISSIVE"))]),
        ["DISABLE", "PERMISSIVE"]
    );
    assert_eq!(modes(&[("a/n", policy("STRICT")), ("a/w", selecting("UNSET"))]), ["DISABLE", "STRICT"]);
    // The oldest counts; a selector counts only outside of the root namespace.
    assert_eq!(modes(&[("a/n@2", policy("STRICT")), ("a/o@1", policy("DISABLE"))]), ["DISABLE"; 2]);
    assert_eq!(modes(&[("istio-system/w", selecting("STRICT"))]), ["PERMISSIVE"; 2]);
    assert_eq!(modes(&[("b/n", policy("STRICT"))]), ["PERMISSIVE"; 2]);
}

#[test]
fn a_closed_reading_of_a_peer_authentication_comes_before_an_older_one() {
    use crate::resource::peer_authentication::{MutualTls, PeerAuthentication};
    use crate::resource::{Invalid, Resource};
    let spec = |mode| PeerAuthentication { mtls: Some(MutualTls { mode }), ..Default::default() };
    let mut old = Resource::new("a", "old", spec(MutualTlsMode::Permissive));
    old.meta.creation_timestamp = "2024-01-01T00:00:00Z".into();
    let closed = Resource {
        invalid: Some(Invalid { reason: "typo".into() }),
        ..Resource::new("a", "new", spec(MutualTlsMode::Strict))
    };
    let mut objects = parse_objects("test.yaml", &doc(WORKLOAD.0, WORKLOAD.1, WORKLOAD.2)).unwrap();
    objects.extend([old.into(), closed.into()]);
    let store = Store::new(StoreOptions::default(), objects);
    let found = store.inbound(&store.workload("a", "w").unwrap()).peer_authentication;
    assert_eq!(found.mode(8080), MutualTlsMode::Strict);
}

#[test]
fn telemetry_comes_in_levels_the_oldest_of_each() {
    let found = inbound(&[
        ("Telemetry", "a/w", "{selector: {matchLabels: {app: w}}}"),
        ("Telemetry", "a/n@2", "{}"),
        ("Telemetry", "a/older@1", "{}"),
        ("Telemetry", "istio-system/m", "{}"),
        ("Telemetry", "istio-system/s", "{selector: {matchLabels: {app: w}}}"),
        ("Telemetry", "b/x", "{}"),
    ]);
    let names: Vec<_> = found.telemetry.iter().map(|t| t.meta.name.as_str()).collect();
    assert_eq!(names, ["m", "older", "w"]);
}

#[test]
fn each_port_knows_its_service_and_the_oldest_service_comes_first() {
    let found = inbound(&[
        (
            "Service",
            "a/young@2",
            "{selector: {app: w}, ports: [{name: grpc, port: 81, targetPort: 8080}, {name: tcp-x, port: 82}]}",
        ),
        ("Service", "a/old@1", "{selector: {app: w}, ports: [{name: http, port: 80}]}"),
        ("Service", "a/others", "{selector: {app: x}, ports: [{name: http, port: 80}]}"),
        ("Service", "b/elsewhere", "{selector: {app: w}, ports: [{name: http, port: 80}]}"),
        (
            "ServiceEntry",
            "a/e",
            "{hosts: [e.example.com], resolution: STATIC, workloadSelector: {labels: {app: w}}, ports: [{number: 90, name: e, protocol: GRPC}]}",
        ),
        (
            "DestinationRule",
            "a/r",
            "{host: old, trafficPolicy: {connectionPool: {tcp: {maxConnections: 3}}}}",
        ),
    ]);
    let ports: Vec<_> =
        found.ports.iter().map(|p| (p.workload_port, &*p.service.name, p.service_port.number)).collect();
    assert_eq!(ports, [(8080, "old", 80), (8080, "young", 81), (82, "young", 82), (90, "e.example.com", 90)]);
    let first = found.port(8080).unwrap();
    assert_eq!(first.policy.effective(80, "").connection_pool.unwrap().tcp.unwrap().max_connections, 3);
}

#[test]
fn a_slice_knows_a_pod_that_no_selector_finds() {
    let slice = "labels: {kubernetes.io/service-name: s}\naddressType: IPv4\nports: [{name: http, port: 8080}]\nendpoints: [{addresses: [10.0.0.2], targetRef: {kind: Pod, name: p}}]";
    let store = docs(&[
        ("Service", "a/s", "{ports: [{name: http, port: 80}]}"),
        ("EndpointSlice", "a/x", slice),
        ("Pod", "a/p", "status: {podIP: 10.0.0.2, phase: Running}"),
    ]);
    let found = store.inbound(&store.workload("a", "p").unwrap());
    assert_eq!(found.port(8080).unwrap().service_port.number, 80);
}

#[test]
fn the_names_of_a_workload_are_istios() {
    let pod = |labels: &str| {
        let store = docs(&[("Pod", "a/cart-5d4f-x9", &format!("labels: {labels}\nspec: {{}}"))]);
        store.workload("a", "cart-5d4f-x9").unwrap().telemetry.clone()
    };
    let plain = pod("{pod-template-hash: 5d4f}");
    assert_eq!(
        (&*plain.workload, &*plain.canonical_service, &*plain.canonical_revision),
        ("cart", "cart", "latest")
    );
    let labels = pod("{app: a, version: v1}");
    assert_eq!((&*labels.canonical_service, &*labels.canonical_revision), ("a", "v1"));
    let recommended = pod("{app: a, version: v1, app.kubernetes.io/name: n, app.kubernetes.io/version: '2'}");
    assert_eq!((&*recommended.canonical_service, &*recommended.canonical_revision), ("n", "2"));
    let own = pod(
        "{app: a, service.istio.io/canonical-name: c, service.istio.io/canonical-revision: r, service.istio.io/workload-name: w}",
    );
    assert_eq!((&*own.workload, &*own.canonical_service, &*own.canonical_revision), ("w", "c", "r"));
    assert_eq!(
        (&*own.app, own.principal.as_ref().unwrap().principal()),
        ("a", "cluster.local/ns/a/sa/default")
    );
}
