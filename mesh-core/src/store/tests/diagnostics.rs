//! What is told about resources that are fine by themselves.

use super::*;

const CART: (&str, &str, &str) = ("Service", "shop/cart", "{ports: [{name: http, port: 80}]}");

fn told(documents: &[(&str, &str, &str)]) -> Vec<String> {
    docs(documents)
        .diagnostics()
        .into_iter()
        .map(|mut d| {
            assert!(!d.is_error() && d.origin.is_some());
            d.origin = None;
            d.to_string()
        })
        .collect()
}

#[test]
fn a_younger_claim_of_a_host_is_told() {
    let route = |more: &str| {
        format!("{{hosts: [pay, cart], http: [{{route: [{{destination: {{host: cart}}}}]}}]{more}}}")
    };
    let (all, own, web) = (route(""), route(", exportTo: [.]"), route(", exportTo: [web]"));
    let pay = ("Service", "shop/pay", CART.2);
    let found =
        told(&[CART, pay, ("VirtualService", "shop/b@2", &all), ("VirtualService", "shop/a@1", &own)]);
    assert_eq!(found.len(), 2);
    assert_eq!(
        found[0],
        "VirtualService shop/b: spec.hosts[0]: VirtualService shop/a is older and has the host \
         pay.shop.svc.cluster.local already; for sidecars one VirtualService serves a host, so put the rules of \
         both into one; it has no effect"
    );
    // Nobody sees both.
    assert!(
        told(&[CART, pay, ("VirtualService", "shop/b@2", &web), ("VirtualService", "shop/a@1", &own)])
            .is_empty()
    );
}

#[test]
fn a_destination_that_leads_nowhere_is_told_once() {
    let route = |to: &str| {
        format!(
            "{{hosts: [cart], http: [{{route: [{{destination: {{host: {to}}}}}]}}, {{route: [{{destination: {{host: {to}}}}}]}}]}}"
        )
    };
    let found = told(&[CART, ("VirtualService", "shop/v", &route("card"))]);
    assert_eq!(found.len(), 1);
    assert!(found[0].contains("has the host card.shop.svc.cluster.local"), "{found:?}");
    let rule = ("DestinationRule", "shop/r", "{host: cart, subsets: [{name: v1, labels: {version: v1}}]}");
    let found = told(&[CART, rule, ("VirtualService", "shop/v", &route("cart, subset: v2"))]);
    assert_eq!(found.len(), 1);
    assert!(found[0].contains("defines the subset \"v2\""), "{found:?}");
    assert!(told(&[CART, rule, ("VirtualService", "shop/v", &route("cart, subset: v1"))]).is_empty());
}

#[test]
fn a_rule_for_a_host_that_nobody_has_is_told() {
    for (host, count) in [("cart", 0), ("card", 1), ("'*.shop.svc.cluster.local'", 0), ("'*.example.com'", 1)]
    {
        let found = told(&[CART, ("DestinationRule", "shop/r", &format!("{{host: {host}}}"))]);
        assert_eq!(found.len(), count, "{host}: {found:?}");
    }
}

#[test]
fn a_selector_that_selects_nothing_is_told() {
    let workload = ("WorkloadEntry", "shop/w", "{address: 10.0.0.1, labels: {app: a}}");
    let service = |app: &str| format!("{{selector: {{app: {app}}}, ports: [{{name: http, port: 80}}]}}");
    let entry = |app: &str| {
        format!(
            "{{hosts: [x.com], resolution: STATIC, workloadSelector: {{labels: {{app: {app}}}}}, ports: [{{number: 80, name: http, protocol: HTTP}}]}}"
        )
    };
    let policy = |app: &str| format!("{{selector: {{matchLabels: {{app: {app}}}}}}}");
    let sidecar =
        |app: &str| format!("{{workloadSelector: {{labels: {{app: {app}}}}}, egress: [{{hosts: ['*/*']}}]}}");
    for (kind, spec) in [
        ("Service", &service as &dyn Fn(&str) -> String),
        ("ServiceEntry", &entry),
        ("AuthorizationPolicy", &policy),
        ("PeerAuthentication", &policy),
        ("Telemetry", &policy),
        ("Sidecar", &sidecar),
    ] {
        assert!(told(&[workload, (kind, "shop/x", &spec("a"))]).is_empty(), "{kind}");
        let found = told(&[workload, (kind, "shop/x", &spec("b"))]);
        assert!(found.len() == 1 && found[0].contains("app=b"), "{kind}: {found:?}");
    }
    // A policy of the root namespace reaches every workload.
    assert!(told(&[workload, ("AuthorizationPolicy", "istio-system/x", &policy("a"))]).is_empty());
    // An unready Pod is selected all the same.
    let pod = ("Pod", "shop/p", "labels: {app: b}\nstatus: {podIP: 10.0.0.1, phase: Pending}");
    assert!(told(&[pod, ("Service", "shop/x", &service("b"))]).is_empty());
}
