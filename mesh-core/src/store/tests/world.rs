//! A small world of which any part may be there.

use super::doc;
use crate::resource::Object;
use crate::yaml::parse_objects;

/// Names under which its services are called, or not.
pub(super) const HOSTS: &[&str] = &[
    "s",
    "s.a",
    "s.b",
    "s.b.svc.cluster.local",
    "three.s.b.svc.cluster.local",
    "alone",
    "alias",
    "alias.b.svc.cluster.local",
    "hidden.b",
    "x.example.com",
    "y.example.com",
    "*.example.com",
    "block.example.com",
    "only.claimed.io",
    "other.claimed.io",
    "10.96.0.1",
    "10.96.0.2",
];

/// Addresses at which something is, or not.
pub(super) const IPS: &[&str] = &[
    "10.96.0.1",
    "10.96.0.2",
    "10.96.0.9",
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "10.0.0.9",
    "10.0.1.1",
    "240.0.0.1",
    "240.0.9.1",
    "1.1.1.1",
];

/// Two namespaces and everything that can be told of them, some of it in two forms.
pub(super) fn objects() -> Vec<Object> {
    let pod = |name: &str, app: &str, ip: &str, ready: &str| {
        doc(
            "Pod",
            name,
            &format!(
                "labels: {{app: {app}, security.istio.io/tlsMode: istio}}\nspec: {{serviceAccountName: {app}, \
                 containers: [{{ports: [{{name: web, containerPort: 8080}}]}}]}}\nstatus: {{podIP: {ip}, \
                 conditions: [{{type: Ready, status: '{ready}'}}]}}\n"
            ),
        )
    };
    let slice = |name: &str, of: &str, endpoints: &str| {
        let labels = format!("labels: {{kubernetes.io/service-name: {of}}}\n");
        let body =
            format!("{labels}addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints: {endpoints}");
        doc("EndpointSlice", name, &body)
    };
    let service = |name: &str, app: &str, ip: &str| {
        let ports = "ports: [{name: http, port: 80, targetPort: web}]";
        doc("Service", name, &format!("{{selector: {{app: {app}}}, clusterIP: {ip}, {ports}}}"))
    };
    let texts = [
        pod("a/one@3", "x", "10.0.0.1", "True"),
        pod("a/one@3", "y", "10.0.0.1", "True"),
        pod("a/two@2", "x", "10.0.0.2", "True"),
        pod("a/two@2", "x", "10.0.0.2", "False"),
        pod("b/three@1", "z", "10.0.0.3", "True"),
        service("a/s@1", "x", "10.96.0.1"),
        service("a/s@1", "y", "10.96.0.2"),
        service("b/s@2", "z", "None"),
        slice("a/s-1", "s", "[{addresses: [10.0.0.1]}, {addresses: [10.0.0.9]}]"),
        slice("a/s-1", "s", "[{addresses: [10.0.0.2]}]"),
        slice("b/s-1", "s", "[{addresses: [10.0.0.3], targetRef: {kind: Pod, name: three}}]"),
        doc("WorkloadEntry", "a/we", "{address: 10.0.1.1, labels: {app: x}, ports: {http: 9090}}"),
        doc("WorkloadEntry", "a/we", "{address: 10.0.1.2, labels: {app: w}}"),
        doc(
            "ServiceEntry",
            "b/se",
            "{hosts: [x.example.com], ports: [{number: 80, name: http}], resolution: DNS}",
        ),
        doc(
            "ServiceEntry",
            "b/se",
            "{hosts: ['*.example.com'], exportTo: ['.'], ports: [{number: 80, name: http}], resolution: NONE}",
        ),
        doc(
            "VirtualService",
            "a/vs@1",
            "{hosts: [s], http: [{route: [{destination: {host: s, subset: v1}}]}]}",
        ),
        doc(
            "VirtualService",
            "b/vs@2",
            "{hosts: [s.a.svc.cluster.local, x.example.com], http: [{route: [{destination: {host: s.b.svc.cluster.local}}]}]}",
        ),
        doc("DestinationRule", "a/dr", "{host: s, subsets: [{name: v1, labels: {app: x}}]}"),
        doc("DestinationRule", "b/dr", "{host: '*.cluster.local', trafficPolicy: {tls: {mode: DISABLE}}}"),
        doc("PeerAuthentication", "a/pa", "{selector: {matchLabels: {app: x}}, mtls: {mode: DISABLE}}"),
        doc("PeerAuthentication", "istio-system/pa", "{mtls: {mode: STRICT}}"),
        doc("AuthorizationPolicy", "a/ap", "{selector: {matchLabels: {app: x}}, rules: [{}]}"),
        doc("AuthorizationPolicy", "istio-system/ap", "{}"),
        doc("Sidecar", "a/sc", "{workloadSelector: {labels: {app: y}}, egress: [{hosts: ['./*']}]}"),
        doc("Sidecar", "a/plain", "{egress: [{hosts: ['b/*']}]}"),
        doc("Telemetry", "a/t", "{metrics: [{overrides: [{disabled: true}]}]}"),
        // What hides, what takes the place of something else, what stands for something else.
        service("b/s@2", "z", "10.96.0.2"),
        doc("Service", "b/hidden", "{clusterIP: 10.96.0.9, ports: [{name: http, port: 80}]}")
            .replace("namespace: b", "namespace: b, annotations: {networking.istio.io/exportTo: '.'}"),
        doc(
            "Service",
            "a/alias",
            "{type: ExternalName, externalName: s.b.svc.cluster.local, ports: [{port: 80}]}",
        ),
        doc("Service", "a/alias", "{type: ExternalName, externalName: x.example.com, ports: [{port: 80}]}"),
        doc("Service", "b/alias", "{type: ExternalName, externalName: alias.a.svc.cluster.local}"),
        doc(
            "ServiceEntry",
            "a/short",
            "{hosts: [s.b], addresses: [10.96.0.1], ports: [{number: 80, name: http}], resolution: STATIC, endpoints: [{address: 1.1.1.1}]}",
        ),
        doc(
            "ServiceEntry",
            "b/names",
            "{hosts: [s.b.svc.cluster.local], subjectAltNames: [spiffe://cluster.local/ns/b/sa/n], ports: [{number: 80, name: http}], resolution: STATIC, exportTo: ['.']}",
        ),
        doc(
            "ServiceEntry",
            "b/block",
            "{hosts: [block.example.com], addresses: [240.0.0.0/24, 10.96.0.2], ports: [{number: 80, name: http}], resolution: STATIC, workloadSelector: {labels: {app: z}}}",
        ),
        doc(
            "ServiceEntry",
            "a/block",
            "{hosts: [block.example.com], addresses: [240.0.0.0/16], exportTo: [a], ports: [{number: 80, name: http}], resolution: STATIC}",
        ),
        doc(
            "VirtualService",
            "a/pull@1",
            "{hosts: [x.example.com], http: [{route: [{destination: {host: s.b.svc.cluster.local}}], mirror: {host: block.example.com}}]}",
        ),
        doc(
            "VirtualService",
            "b/secret@1",
            "{hosts: ['*.example.com'], exportTo: ['.'], http: [{route: [{destination: {host: s}}]}]}",
        ),
        doc(
            "VirtualService",
            "a/claim",
            "{hosts: [only.claimed.io, '*.claimed.io'], http: [{route: [{destination: {host: s}}]}]}",
        ),
        doc(
            "DestinationRule",
            "a/selecting@1",
            "{host: s, workloadSelector: {matchLabels: {app: x}}, trafficPolicy: {tls: {mode: DISABLE}}}",
        ),
        doc(
            "DestinationRule",
            "a/selecting@1",
            "{host: '*.svc.cluster.local', workloadSelector: {matchLabels: {app: y}}, exportTo: ['.']}",
        ),
        doc(
            "DestinationRule",
            "istio-system/dr",
            "{host: '*.local', trafficPolicy: {connectionPool: {http: {maxRetries: 1}}}}",
        ),
        doc("Sidecar", "b/sc", "{egress: [{hosts: ['./*', 'a/x.example.com']}]}"),
        doc("Sidecar", "istio-system/sc", "{egress: [{hosts: ['./*', '~b/hidden.b.svc.cluster.local']}]}"),
        slice("a/alone-1", "alone", "[{addresses: [10.0.0.1], targetRef: {kind: Pod, name: one}}]"),
        doc("Service", "a/alone", "{ports: [{name: http, port: 81}]}"),
        doc("Service", "a/alone", "{selector: {app: x}, ports: [{name: http, port: 81, targetPort: 9}]}"),
    ];
    texts.iter().flat_map(|text| parse_objects("all.yaml", text).unwrap()).collect()
}
