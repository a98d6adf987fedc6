//! Where endpoints come from, and how they are spoken to.

use super::*;
use crate::resource::Object;

fn endpoints(store: &Store, host: &str, port: u16) -> Vec<EndpointSpec> {
    outbound(store, "a", host).unwrap().endpoints(port, "")
}

const SERVICE: (&str, &str, &str) =
    ("Service", "a/s", "{selector: {app: s}, ports: [{name: http, port: 80, targetPort: web}]}");

#[test]
fn a_workload_entry_serves_at_its_own_port_the_target_port_or_the_same() {
    for (target, ports, want) in [
        ("", "", "10.0.0.1:80"),
        (", targetPort: 8080", "", "10.0.0.1:8080"),
        (", targetPort: 8080", "http: 9090", "10.0.0.1:9090"),
        (", targetPort: web", "web: 9191", "10.0.0.1:9191"),
        (", targetPort: web", "", "10.0.0.1:80"),
    ] {
        let service = format!("{{selector: {{app: s}}, ports: [{{name: http, port: 80{target}}}]}}");
        let entry = format!("{{address: 10.0.0.1, labels: {{app: s}}, ports: {{{ports}}}}}");
        let store = docs(&[("Service", "a/s", &service), ("WorkloadEntry", "a/w", &entry)]);
        assert_eq!(addresses(&endpoints(&store, "s", 80)), [want], "{target} {ports}");
        assert!(endpoints(&store, "s", 81).is_empty());
    }
}

#[test]
fn a_service_selects_in_its_own_namespace_only() {
    let entry = "{address: 10.0.0.1, labels: {app: s}}";
    let store = docs(&[SERVICE, ("WorkloadEntry", "b/w", entry)]);
    assert!(endpoints(&store, "s", 80).is_empty());
}

#[test]
fn labels_of_a_workload_entrys_metadata_win_over_its_spec() {
    let text = doc("WorkloadEntry", "a/w", "{address: 10.0.0.1, labels: {app: x, y: z}}")
        .replace("namespace: a", "namespace: a, labels: {app: s}");
    let workload = store(&text).workload("a", "w").unwrap();
    assert_eq!((workload.labels["app"].as_str(), workload.labels["y"].as_str()), ("s", "z"));
}

#[test]
fn weight_name_and_locality_come_along() {
    let entry = "{address: Db.Example.com, weight: 7, locality: r/z/s, labels: {app: s}}";
    let store = docs(&[
        SERVICE,
        ("WorkloadEntry", "a/w", entry),
        ("WorkloadEntry", "a/u", "{address: 'unix:///x', labels: {app: s}}"),
    ]);
    let found = endpoints(&store, "s", 80);
    assert_eq!((addresses(&found), found[0].weight), (vec!["db.example.com:80".to_owned()], 7));
    assert_eq!(&*store.workload("a", "w").unwrap().locality, "r/z/s");
}

#[test]
fn pods_are_used_directly_when_they_are_ready_and_have_the_port() {
    let spec =
        "spec: {serviceAccountName: sa, containers: [{name: c, ports: [{name: web, containerPort: 8080}]}]}";
    for (status, want) in [
        ("{podIP: 10.0.0.2, phase: Running}", true),
        ("{podIP: 10.0.0.2, phase: Pending}", false),
        ("{podIP: 10.0.0.2, phase: Running, conditions: [{type: Ready, status: 'False'}]}", false),
        ("{podIP: 10.0.0.2, phase: Running, conditions: [{type: Ready, status: 'True'}]}", true),
        ("{phase: Running}", false),
    ] {
        let pod = format!("labels: {{app: s, security.istio.io/tlsMode: istio}}\n{spec}\nstatus: {status}");
        let store = docs(&[SERVICE, ("Pod", "a/p", &pod)]);
        let found = endpoints(&store, "s", 80);
        assert_eq!(addresses(&found) == ["10.0.0.2:8080"], want, "{status}");
        assert_eq!(found.is_empty(), !want, "{status}");
        assert!(found.iter().all(|e| expected(e) == "cluster.local/ns/a/sa/sa"));
    }
    let nameless = "labels: {app: s}\nstatus: {podIP: 10.0.0.2, phase: Running}";
    assert!(endpoints(&docs(&[SERVICE, ("Pod", "a/p", nameless)]), "s", 80).is_empty());
    let ending = doc(
        "Pod",
        "a/p",
        &format!("labels: {{app: s}}\n{spec}\nstatus: {{podIP: 10.0.0.2, phase: Running}}"),
    )
    .replace("namespace: a", "namespace: a, deletionTimestamp: \"2024-01-01T00:00:00Z\"");
    // One that is to end is better than none.
    let ending = doc(SERVICE.0, SERVICE.1, SERVICE.2) + &ending;
    assert_eq!(addresses(&endpoints(&store(&ending), "s", 80)), ["10.0.0.2:8080"]);
    let other = doc(
        "Pod",
        "a/q",
        &format!("labels: {{app: s}}\n{spec}\nstatus: {{podIP: 10.0.0.3, phase: Running}}"),
    );
    assert_eq!(addresses(&endpoints(&store(&(ending + &other)), "s", 80)), ["10.0.0.3:8080"]);
}

#[test]
fn slices_come_before_selected_pods_and_join_them() {
    let pod = |ip: &str| {
        format!(
            "labels: {{app: s, security.istio.io/tlsMode: istio}}\nspec: {{serviceAccountName: sa}}\nstatus: {{podIP: {ip}, phase: Running}}"
        )
    };
    let slice = "labels: {kubernetes.io/service-name: s}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.0.0.1], targetRef: {kind: Pod, name: by-name}}
- {addresses: [10.0.0.2]}
- {addresses: [10.0.0.3]}
- {addresses: [10.0.0.4], conditions: {ready: false}}";
    let store = docs(&[
        SERVICE,
        ("EndpointSlice", "a/s-1", slice),
        ("Pod", "a/by-name", &pod("10.9.9.9")),
        ("Pod", "a/by-address", &pod("10.0.0.2")),
        ("Pod", "a/not-listed", &pod("10.0.0.7")),
        ("WorkloadEntry", "a/w", "{address: 10.0.0.8, labels: {app: s}}"),
    ]);
    let found = endpoints(&store, "s", 80);
    assert_eq!(addresses(&found), ["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080", "10.0.0.8:80"]);
    let sa = "cluster.local/ns/a/sa/sa";
    assert_eq!(found.iter().map(expected).collect::<Vec<_>>(), [sa, sa, "-", "-"]);
}

#[test]
fn unready_endpoints_count_where_published_and_ending_ones_where_nothing_else_is_left() {
    let slice = |conditions: &str| {
        format!(
            "labels: {{kubernetes.io/service-name: s}}\naddressType: IPv4\nports: [{{name: http, port: 1}}]\nendpoints: [{{addresses: [10.0.0.1], conditions: {conditions}}}]"
        )
    };
    let found = |service: &str, conditions: &str| {
        let store = docs(&[("Service", "a/s", service), ("EndpointSlice", "a/x", &slice(conditions))]);
        endpoints(&store, "s", 80).len()
    };
    let plain = "{ports: [{name: http, port: 80}]}";
    assert_eq!(found(plain, "{}"), 1);
    assert_eq!(found(plain, "{ready: false}"), 0);
    assert_eq!(
        found("{publishNotReadyAddresses: true, ports: [{name: http, port: 80}]}", "{ready: false}"),
        1
    );
    assert_eq!(found(plain, "{ready: false, serving: true, terminating: true}"), 1);
    assert_eq!(found(plain, "{ready: false, serving: false, terminating: true}"), 0);
}

#[test]
fn a_pod_that_is_to_end_is_left_out_before_its_slice_says_so() {
    let slice = "labels: {kubernetes.io/service-name: s}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.0.0.1], targetRef: {kind: Pod, name: one}}
- {addresses: [10.0.0.2], targetRef: {kind: Pod, name: two}}";
    let pod = |name: &str, ends: bool| {
        let body = "labels: {app: s}\nspec: {serviceAccountName: sa}\nstatus: {phase: Running}";
        let pod = doc("Pod", name, body);
        let ending = "namespace: a, deletionTimestamp: \"2024-01-01T00:00:00Z\"";
        if ends { pod.replace("namespace: a", ending) } else { pod }
    };
    let whole = |slice: &str, pods: &[(&str, bool)]| {
        let pods = pods.iter().map(|(name, ends)| pod(name, *ends)).collect::<String>();
        let service = doc(SERVICE.0, SERVICE.1, SERVICE.2) + &doc("EndpointSlice", "a/s-1", slice);
        store(&(service + &pods))
    };
    let found = |pods: &[(&str, bool)]| addresses(&endpoints(&whole(slice, pods), "s", 80));
    let (one, both) = (["10.0.0.1:8080"], ["10.0.0.1:8080", "10.0.0.2:8080"]);
    assert_eq!(found(&[("a/one", false), ("a/two", false)]), both);
    assert_eq!(found(&[("a/one", false), ("a/two", true)]), one);
    // Gone already, and the slice is late.
    assert_eq!(found(&[("a/one", false)]), one);
    // Nothing else is left.
    assert_eq!(found(&[("a/one", true), ("a/two", true)]), both);
    // Nobody tells of Pods.
    assert_eq!(found(&[]), both);

    // The Pod itself is told that it ends when callers are, and not as long as there is nobody else for them.
    let told = |slice: &str, pods: &[(&str, bool)], name: &str| {
        let store = whole(slice, pods);
        let object = store.workload_object(&store.workload("a", name).unwrap()).unwrap();
        let Object::Pod(pod) = object else { panic!("{object:?}") };
        !pod.meta.deletion_timestamp.is_empty()
    };
    let two = "labels: {kubernetes.io/service-name: s}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.0.0.2], targetRef: {kind: Pod, name: two}}]";
    assert!(!told(slice, &[("a/one", false), ("a/two", false)], "two"));
    assert!(told(slice, &[("a/one", false), ("a/two", true)], "two"));
    assert!(!told(slice, &[("a/one", true), ("a/two", true)], "two"));
    assert!(
        !told(two, &[("a/one", false), ("a/two", true)], "two"),
        "one is ready, and its slice does not say so yet"
    );
    let nobody_calls = "labels: {kubernetes.io/service-name: other}\naddressType: IPv4\nendpoints: []";
    assert!(told(nobody_calls, &[("a/one", false), ("a/two", true)], "two"));
}

#[test]
fn of_two_address_families_one_counts() {
    let slice = |family: &str, ip: &str| {
        format!(
            "labels: {{kubernetes.io/service-name: s}}\naddressType: {family}\nports: [{{name: http, port: 1}}]\nendpoints: [{{addresses: ['{ip}']}}]"
        )
    };
    let (v4, v6) = (slice("IPv4", "10.0.0.1"), slice("IPv6", "fd00::1"));
    let found = |cluster_ip: &str| {
        let service = format!("{{clusterIP: '{cluster_ip}', ports: [{{name: http, port: 80}}]}}");
        let store = docs(&[
            ("Service", "a/s", &service),
            ("EndpointSlice", "a/x", &v4),
            ("EndpointSlice", "a/y", &v6),
        ]);
        addresses(&endpoints(&store, "s", 80))
    };
    assert_eq!(found("10.96.0.1"), ["10.0.0.1:1"]);
    assert_eq!(found("fd00::9"), ["[fd00::1]:1"]);
}

#[test]
fn a_service_entry_lists_selects_or_names_its_endpoints() {
    let entry = |rest: &str| {
        format!(
            "{{hosts: [api.example.com], ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 8080}}], {rest}}}"
        )
    };
    for (rest, want) in [
        (
            "resolution: STATIC, endpoints: [{address: 10.0.0.1}, {address: 10.0.0.2, ports: {http: 9}}]",
            vec!["10.0.0.1:8080", "10.0.0.2:9"],
        ),
        ("resolution: STATIC, workloadSelector: {labels: {app: s}}", vec!["10.0.0.5:8080", "10.0.0.6:8080"]),
        ("resolution: DNS", vec!["api.example.com:8080"]),
        ("resolution: DNS, endpoints: [{address: eu.example.com}]", vec!["eu.example.com:8080"]),
        ("resolution: NONE", vec!["api.example.com:8080"]),
    ] {
        let store = docs(&[
            ("ServiceEntry", "a/e", &entry(rest)),
            ("Pod", "a/p", "labels: {app: s}\nstatus: {podIP: 10.0.0.5, phase: Running}"),
            ("WorkloadEntry", "a/w", "{address: 10.0.0.6, labels: {app: s}}"),
            ("WorkloadEntry", "b/w", "{address: 10.0.0.7, labels: {app: s}}"),
        ]);
        assert_eq!(addresses(&endpoints(&store, "api.example.com", 80)), want, "{rest}");
    }
}

#[test]
fn the_name_called_is_the_endpoint_of_an_open_wildcard() {
    let entry =
        "{hosts: ['*.example.com'], ports: [{number: 80, name: http, protocol: HTTP}], resolution: NONE}";
    let store = docs(&[("ServiceEntry", "a/e", entry)]);
    let found = outbound(&store, "a", "x.example.com").unwrap();
    assert_eq!(found.host(), "*.example.com");
    assert_eq!(addresses(&found.endpoints(80, "")), ["x.example.com:80"]);
    assert!(outbound(&store, "a", "*.example.com").unwrap().endpoints(80, "").is_empty());
    assert!(outbound(&store, "a", "example.com").is_none());
}

/// Automatic mTLS, and what overrides it.
#[test]
fn mtls_is_automatic_unless_somebody_says_otherwise() {
    let mesh = "label";
    let entry = |location: &str| {
        format!(
            "{{hosts: [s.b], location: {location}, resolution: STATIC, ports: [{{number: 80, name: http, protocol: HTTP}}], endpoints: [{{address: 10.0.0.1, serviceAccount: sa, labels: {{security.istio.io/tlsMode: istio}}}}, {{address: 10.0.0.2}}]}}"
        )
    };
    let rule = |tls: &str| {
        doc("DestinationRule", "a/r", &format!("{{host: s.b, trafficPolicy: {{tls: {{{tls}}}}}}}"))
    };
    let sa = "cluster.local/ns/a/sa/sa";
    let default = "cluster.local/ns/a/sa/default";
    let x = "cluster.local/ns/x/sa/x";
    for (case, location, more, want) in [
        (mesh, "MESH_INTERNAL", String::new(), [sa, "-"]),
        ("external", "MESH_EXTERNAL", String::new(), ["-", "-"]),
        ("disable", "MESH_INTERNAL", rule("mode: DISABLE"), ["-", "-"]),
        ("forced", "MESH_EXTERNAL", rule("mode: ISTIO_MUTUAL"), [sa, default]),
        (
            "named",
            "MESH_INTERNAL",
            rule(
                "mode: ISTIO_MUTUAL, subjectAltNames: ['spiffe://cluster.local/ns/x/sa/x', api.example.com]",
            ),
            [x, x],
        ),
        (
            "server off",
            "MESH_INTERNAL",
            doc("PeerAuthentication", "a/p", "{mtls: {mode: DISABLE}}"),
            ["-", "-"],
        ),
        (
            "other server off",
            "MESH_INTERNAL",
            doc("PeerAuthentication", "b/p", "{mtls: {mode: DISABLE}}"),
            [sa, "-"],
        ),
        (
            "port off",
            "MESH_INTERNAL",
            doc(
                "PeerAuthentication",
                "a/p",
                "{selector: {matchLabels: {security.istio.io/tlsMode: istio}}, portLevelMtls: {80: {mode: DISABLE}}}",
            ),
            ["-", "-"],
        ),
    ] {
        let store = store(&(doc("ServiceEntry", "a/e", &entry(location)) + &more));
        let found = endpoints(&store, "s.b", 80);
        assert_eq!(found.iter().map(expected).collect::<Vec<_>>(), want, "{case}");
    }
}

#[test]
fn the_server_name_is_istios_unless_a_rule_gives_one() {
    let sni = |tls: &str| {
        let store = docs(&[
            SERVICE,
            ("WorkloadEntry", "a/w", "{address: 10.0.0.1, labels: {app: s}}"),
            (
                "DestinationRule",
                "a/r",
                &format!("{{host: s, trafficPolicy: {{tls: {{mode: ISTIO_MUTUAL{tls}}}}}}}"),
            ),
        ]);
        match &endpoints(&store, "s", 80)[0].key.tls {
            UpstreamTls::Mutual { sni, .. } => sni.to_string(),
            UpstreamTls::Plaintext => panic!(),
        }
    };
    assert_eq!(sni(""), "outbound_.80_._.s.a.svc.cluster.local");
    assert_eq!(sni(", sni: x.y"), "x.y");
}

/// Where nothing says who an endpoint is, only what the service is known to run as is admitted.
#[test]
fn an_unknown_endpoint_must_be_one_of_the_services_accounts() {
    let slice = "labels: {kubernetes.io/service-name: s}\naddressType: IPv4\nports: [{name: http, port: 1}]\nendpoints: [{addresses: [10.0.0.1]}]";
    let rule = ("DestinationRule", "a/r", "{host: s, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}");
    let entry = ("WorkloadEntry", "a/w", "{address: 10.0.0.2, serviceAccount: sa, labels: {app: s}}");
    let slice = ("EndpointSlice", "a/x", slice);
    let who = |d: &[_]| endpoints(&docs(d), "s", 80).iter().map(expected).collect::<Vec<_>>();
    assert_eq!(who(&[SERVICE, rule, slice, entry]), ["cluster.local/ns/a/sa/sa", "cluster.local/ns/a/sa/sa"]);
    assert_eq!(who(&[SERVICE, rule, slice]), [""], "nobody is admitted");
}

#[test]
fn names_of_a_service_entry_replace_accounts_and_for_kubernetes_stand_beside_them() {
    let names = "subjectAltNames: ['spiffe://cluster.local/ns/x/sa/x']";
    let entry = |host: &str| {
        format!(
            "{{hosts: [{host}], location: MESH_INTERNAL, resolution: STATIC, {names}, ports: [{{number: 80, name: http, protocol: HTTP}}], endpoints: [{{address: 10.0.0.9, labels: {{security.istio.io/tlsMode: istio}}}}]}}"
        )
    };
    let store = docs(&[
        SERVICE,
        ("WorkloadEntry", "a/w", "{address: 10.0.0.1, labels: {app: s, security.istio.io/tlsMode: istio}}"),
        ("ServiceEntry", "a/e", &entry("s.a.svc.cluster.local")),
        ("ServiceEntry", "a/o", &entry("other.example.com")),
        ("Service", "b/t", "{selector: {app: t}, ports: [{name: http, port: 80}]}"),
        ("WorkloadEntry", "b/t", "{address: 10.0.0.2, labels: {app: t, security.istio.io/tlsMode: istio}}"),
        // Of another namespace: it must not widen who passes for the service.
        ("ServiceEntry", "a/t", &entry("t.b.svc.cluster.local")),
    ]);
    let one = |host: &str| {
        let found = endpoints(&store, host, 80);
        assert_eq!(found.len(), 1, "Kubernetes wins: {host}");
        expected(&found[0])
    };
    assert_eq!(one("s"), "cluster.local/ns/a/sa/default cluster.local/ns/x/sa/x");
    assert_eq!(one("other.example.com"), "cluster.local/ns/x/sa/x");
    assert_eq!(one("t.b"), "cluster.local/ns/b/sa/default");
}
