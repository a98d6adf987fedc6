//! Who sees what.

use proptest::prelude::*;

use super::*;

const PORTS: &str = "ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS";

fn sees(store: &Store, namespace: &str, host: &str) -> bool {
    let found = outbound(store, namespace, host).is_some();
    let listed = store.hosts(&caller(namespace)).any(|entry| &*entry.host == host);
    assert_eq!(found, listed, "{namespace} {host}");
    found
}

#[test]
fn export_to_says_which_namespaces_see_a_service() {
    for (export, own, named, other) in [
        ("", true, true, true),
        (", exportTo: ['*']", true, true, true),
        (", exportTo: [.]", true, false, false),
        (", exportTo: [., named]", true, true, false),
        (", exportTo: [named]", false, true, false),
        (", exportTo: ['~']", false, false, false),
    ] {
        let store = docs(&[("ServiceEntry", "own/e", &format!("{{hosts: [x.com], {PORTS}{export}}}"))]);
        let seen = ["own", "named", "other"].map(|namespace| sees(&store, namespace, "x.com"));
        assert_eq!(seen, [own, named, other], "{export}");
    }
}

#[test]
fn a_kubernetes_service_is_exported_by_annotation() {
    let text = doc("Service", "own/s", "{ports: [{name: http, port: 80}]}")
        .replace("namespace: own", "namespace: own, annotations: {networking.istio.io/exportTo: '., named'}");
    let store = store(&text);
    let seen = ["own", "named", "other"].map(|namespace| sees(&store, namespace, "s.own.svc.cluster.local"));
    assert_eq!(seen, [true, true, false]);
}

#[test]
fn a_virtual_service_that_is_not_exported_leaves_the_host_to_the_next() {
    let route = |more: &str| {
        format!("{{hosts: [x.com], http: [{{route: [{{destination: {{host: x.com}}}}]}}]{more}}}")
    };
    let store = docs(&[
        ("ServiceEntry", "own/e", &format!("{{hosts: [x.com], {PORTS}}}")),
        ("VirtualService", "own/private@1", &route(", exportTo: [.]")),
        ("VirtualService", "own/public@2", &route("")),
    ]);
    assert_eq!(route_name(&store, "own"), "own/private");
    assert_eq!(route_name(&store, "other"), "own/public");
}

fn route_name(store: &Store, namespace: &str) -> String {
    super::route(store, namespace, "x.com").unwrap()
}

/// Three services, and what a Sidecar's egress hosts leave of them.
#[test]
fn egress_hosts_narrow_what_is_seen() {
    let entry = |host: &str| format!("{{hosts: [{host}], {PORTS}}}");
    let (x, y) = (entry("x.com"), entry("y.x.com"));
    let w = entry("'*.w.com'").replace("DNS", "NONE");
    for (hosts, want) in [
        ("['*/*']", [true, true, true]),
        ("['./*']", [true, false, true]),
        ("[other/*]", [false, true, false]),
        ("['~/*']", [false, false, false]),
        ("['*/x.com']", [true, false, false]),
        ("['*/*.x.com']", [false, true, false]),
        ("[own/x.com, other/y.x.com]", [true, true, false]),
        ("[other/x.com]", [false, false, false]),
        ("['*/*', '~other/*']", [true, false, true]),
        ("['*/*', '~*/x.com']", [false, true, true]),
        ("['*/a.w.com']", [false, false, false]),
    ] {
        let store = docs(&[
            ("ServiceEntry", "own/x", &x),
            ("ServiceEntry", "other/y", &y),
            ("ServiceEntry", "own/w", &w),
            ("Sidecar", "own/s", &format!("{{egress: [{{hosts: {hosts}}}]}}")),
        ]);
        assert_eq!(["x.com", "y.x.com", "*.w.com"].map(|host| sees(&store, "own", host)), want, "{hosts}");
        assert!(sees(&store, "third", "x.com"), "another namespace's Sidecar is not ours");
    }
}

#[test]
fn a_sidecar_without_egress_sees_everything_and_the_policy_for_the_rest_is_surfaced() {
    use crate::resource::sidecar::OutboundTrafficPolicyMode;
    let store = docs(&[
        ("ServiceEntry", "own/x", &format!("{{hosts: [x.com], {PORTS}}}")),
        ("Sidecar", "own/s", "{outboundTrafficPolicy: {mode: ALLOW_ANY}}"),
    ]);
    assert!(sees(&store, "own", "x.com"));
    let policy = store.outbound_traffic_policy(&caller("own")).unwrap();
    assert_eq!(policy.mode, OutboundTrafficPolicyMode::AllowAny);
    assert!(store.outbound_traffic_policy(&caller("other")).is_none());
}

#[test]
fn the_sidecar_is_the_selecting_one_then_the_namespaces_then_the_roots() {
    let hosts = "egress: [{hosts: ['*/*']}]";
    let selecting = format!("{{workloadSelector: {{labels: {{app: a}}}}, {hosts}}}");
    let plain = format!("{{{hosts}}}");
    let all = [
        ("Sidecar", "own/selecting@3", selecting.as_str()),
        ("Sidecar", "own/selecting-too@4", &selecting),
        ("Sidecar", "own/plain@2", &plain),
        ("Sidecar", "istio-system/root@1", &plain),
        ("Sidecar", "istio-system/root-selecting@0", &selecting),
    ];
    let labels: crate::resource::Labels = [("app".to_owned(), "a".to_owned())].into();
    let a = Workload::detached(&StoreOptions::default(), "own", "a", "", labels);
    let of = |count: usize, workload: &Workload| {
        docs(&all[count..]).sidecar(workload).map(|s| s.meta.name.clone()).unwrap_or_default()
    };
    assert_eq!(of(0, &a), "selecting");
    assert_eq!(of(1, &a), "selecting-too");
    assert_eq!(of(2, &a), "plain");
    assert_eq!(of(0, &caller("own")), "plain");
    assert_eq!(of(3, &a), "root");
    assert_eq!(of(4, &a), "");
}

#[test]
fn what_a_seen_virtual_service_leads_to_is_seen() {
    let entry = |host: &str| format!("{{hosts: [{host}], {PORTS}}}");
    let (x, y, z) = (entry("x.com"), entry("y.com"), entry("z.com"));
    let route = |host: &str, to: &str| {
        format!("{{hosts: [{host}], http: [{{route: [{{destination: {{host: {to}}}}}]}}]}}")
    };
    let (to_y, to_z) = (route("x.com", "y.com"), route("z.com", "z.com"));
    let documents = |hosts: &str| {
        docs(&[
            ("ServiceEntry", "other/x", &x),
            ("ServiceEntry", "other/y", &y),
            ("ServiceEntry", "other/z", &z),
            ("VirtualService", "other/v", &to_y),
            ("VirtualService", "third/v", &to_z),
            ("Sidecar", "own/s", &format!("{{egress: [{{hosts: {hosts}}}]}}")),
        ])
    };
    let seen = |hosts: &str| ["x.com", "y.com", "z.com"].map(|host| sees(&documents(hosts), "own", host));
    assert_eq!(seen("[other/x.com]"), [true, true, false]);
    assert_eq!(seen("[other/x.com, '~other/y.com']"), [true, false, false]);
    // A VirtualService is taken in by its own namespace.
    assert_eq!(super::route(&documents("[other/z.com]"), "own", "z.com"), None);
    assert_eq!(super::route(&documents("['*/z.com']"), "own", "z.com").unwrap(), "third/v");
}

const NAMESPACES: [&str; 3] = ["a", "b", "c"];

fn namespace() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(&NAMESPACES[..])
}

fn export() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(&["", "'*'", ".", "a", "b", "b, c"][..])
}

fn egress() -> impl Strategy<Value = Option<&'static str>> {
    let hosts = ["'*/*'", "./*", "a/*", "~/*", "b/x.com", "'*/*.y.com'", "'*/*', ~b/*"];
    proptest::option::of(proptest::sample::select(hosts.to_vec()))
}

/// What `exportTo` says, written anew.
fn exported(export: &str, own: &str, to: &str) -> bool {
    export.is_empty()
        || export.contains('*')
        || export.split(", ").any(|e| e == to || (e == "." && own == to))
}

/// What the egress hosts above say, written anew.
fn listed(egress: &str, client: &str, own: &str, host: &str) -> bool {
    match egress {
        "'*/*'" => true,
        "./*" => own == client,
        "a/*" => own == "a",
        "~/*" => false,
        "b/x.com" => own == "b" && host == "x.com",
        "'*/*.y.com'" => host.ends_with(".y.com"),
        _ => own != "b",
    }
}

/// The number in a name such as `v3`.
fn number(name: &str) -> usize {
    name.trim_start_matches(char::is_alphabetic).parse().unwrap()
}

proptest! {
    /// Nothing that is not exported to the caller, or that its Sidecar does not take in, is ever handed
    /// out. No route leads anywhere else here, so that none pulls anything in.
    #[test]
    fn nothing_is_handed_out_beyond_what_is_seen(
        services in proptest::collection::vec((namespace(), export(), proptest::sample::select(&["x.com", "'*.y.com'", "z.y.com"][..])), 1..6),
        rules in proptest::collection::vec((namespace(), export()), 0..4),
        routes in proptest::collection::vec((namespace(), export()), 0..4),
        client in namespace(),
        egress in egress(),
    ) {
        let list = |export: &str| if export.is_empty() { String::new() } else { format!(", exportTo: [{export}]") };
        let mut text = String::new();
        for (n, (own, export, host)) in services.iter().enumerate() {
            text += &doc("ServiceEntry", &format!("{own}/s{n}"), &format!("{{hosts: [{host}], ports: [{{number: 80, name: http, protocol: HTTP}}], resolution: NONE{}}}", list(export)));
        }
        for (n, (own, export)) in rules.iter().enumerate() {
            text += &doc("DestinationRule", &format!("{own}/r{n}"), &format!("{{host: '*.com'{}}}", list(export)));
        }
        for (n, (own, export)) in routes.iter().enumerate() {
            text += &doc("VirtualService", &format!("{own}/v{n}"), &format!("{{hosts: [x.com, '*.y.com'], http: [{{redirect: {{uri: /}}}}]{}}}", list(export)));
        }
        if let Some(hosts) = egress {
            text += &doc("Sidecar", &format!("{client}/s"), &format!("{{egress: [{{hosts: [{hosts}]}}]}}"));
        }
        let store = store(&text);
        let takes = |own: &str, host: &str| egress.is_none_or(|e| listed(e, client, own, host));
        for called in ["x.com", "a.y.com", "z.y.com"] {
            let Some(found) = outbound(&store, client, called) else { continue };
            if let Some(service) = found.service() {
                let fits = services.iter().any(|(own, export, host)| {
                    *own == &*service.namespace && host.trim_matches('\'') == &*service.host && exported(export, own, client)
                });
                prop_assert!(fits && takes(&service.namespace, &service.host), "{called}: {service:?}");
            }
            if let Some(vs) = found.virtual_service() {
                let (own, export) = routes[number(&vs.meta.name)];
                prop_assert!(exported(export, own, client), "{called}: {vs:?}");
                prop_assert!(takes(own, "x.com") || takes(own, "*.y.com"), "{called}: {vs:?}");
            }
            for rule in found.policy().rules() {
                let (own, export) = rules[number(&rule.meta.name)];
                prop_assert!(exported(export, own, client), "{called}: {rule:?}");
            }
        }
    }

    #[test]
    fn no_name_makes_the_store_panic(called in "[a-z.*:0-9-]{0,30}") {
        let store = docs(&[
            ("ServiceEntry", "a/e", &format!("{{hosts: ['*.com', x.com], {}}}", PORTS.replace("DNS", "NONE"))),
            ("VirtualService", "a/v", "{hosts: ['*.org'], http: [{redirect: {uri: /}}]}"),
        ]);
        if let Some(found) = outbound(&store, "a", &called) {
            let _ = found.endpoints(80, "");
        }
    }
}
