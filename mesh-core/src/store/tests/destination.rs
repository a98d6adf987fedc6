//! Which DestinationRules apply, and what they come to.

use super::*;
use crate::failure::FailureCode;
use crate::resource::destination_rule::SimpleLb;

const SERVICE: (&str, &str, &str) =
    ("Service", "shop/cart", "{ports: [{name: http, port: 80}, {name: x, port: 81}]}");

/// The names of the rules for calls from `namespace` to `cart.shop`.
fn rules(store: &Store, caller: &Workload) -> String {
    let outbound = store.outbound(caller, "cart.shop").unwrap();
    outbound
        .policy()
        .rules()
        .iter()
        .map(|r| r.reference().namespaced_name().to_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn the_callers_namespace_comes_before_the_services_and_that_before_the_root() {
    let all = [
        SERVICE,
        ("DestinationRule", "web/r", "{host: cart.shop.svc.cluster.local}"),
        ("DestinationRule", "shop/r", "{host: cart}"),
        ("DestinationRule", "istio-system/r", "{host: '*.local'}"),
        ("DestinationRule", "istio-system/own", "{host: '*.local', exportTo: [.]}"),
    ];
    let without = |name: &str| docs(&all.iter().copied().filter(|d| d.1 != name).collect::<Vec<_>>());
    assert_eq!(rules(&docs(&all), &caller("web")), "web/r");
    assert_eq!(rules(&without("web/r"), &caller("web")), "shop/r");
    assert_eq!(rules(&without("shop/r"), &caller("other")), "istio-system/r");
    // A short host belongs to the rule's namespace: `cart` in `web` would be another service.
    assert_eq!(rules(&docs(&[SERVICE, ("DestinationRule", "web/r", "{host: cart}")]), &caller("web")), "");
    // For workloads of the root namespace only its private rules come first.
    assert_eq!(rules(&docs(&all), &caller("istio-system")), "istio-system/own");
    assert_eq!(rules(&without("istio-system/own"), &caller("istio-system")), "shop/r");
}

#[test]
fn a_rule_that_is_not_exported_is_not_seen() {
    let store = docs(&[SERVICE, ("DestinationRule", "shop/r", "{host: cart, exportTo: [.]}")]);
    assert_eq!(rules(&store, &caller("shop")), "shop/r");
    assert_eq!(rules(&store, &caller("web")), "");
}

#[test]
fn the_exact_host_comes_before_the_longer_and_that_before_the_shorter_wildcard() {
    let wide = ("DestinationRule", "shop/wide@1", "{host: '*.local'}");
    let narrow = ("DestinationRule", "shop/narrow@2", "{host: '*.shop.svc.cluster.local'}");
    let exact = ("DestinationRule", "shop/exact@3", "{host: cart}");
    assert_eq!(rules(&docs(&[SERVICE, wide, narrow, exact]), &caller("a")), "shop/exact");
    assert_eq!(rules(&docs(&[SERVICE, wide, narrow]), &caller("a")), "shop/narrow");
    assert_eq!(rules(&docs(&[SERVICE, wide]), &caller("a")), "shop/wide");
}

#[test]
fn rules_of_one_host_are_merged_subsets_together_and_the_oldest_policy() {
    let store = docs(&[
        SERVICE,
        (
            "DestinationRule",
            "shop/b@2",
            "{host: cart, trafficPolicy: {loadBalancer: {simple: RANDOM}}, subsets: [{name: v1, labels: {from: b}}, {name: v2, labels: {from: b}}]}",
        ),
        (
            "DestinationRule",
            "shop/a@1",
            "{host: cart, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}, subsets: [{name: v1, labels: {from: a}}]}",
        ),
        // Another audience is another rule.
        (
            "DestinationRule",
            "shop/c@3",
            "{host: cart, exportTo: [web], subsets: [{name: v3, labels: {from: c}}]}",
        ),
    ]);
    assert_eq!(rules(&store, &caller("web")), "shop/a shop/b");
    let outbound = outbound(&store, "web", "cart.shop").unwrap();
    let subsets: Vec<_> =
        outbound.policy().subsets().iter().map(|s| format!("{}={}", s.name, s.labels["from"])).collect();
    assert_eq!(subsets, ["v1=a", "v2=b"]);
    let balancer = outbound.effective_policy(80, "").load_balancer.unwrap();
    assert_eq!(balancer.simple, Some(SimpleLb::RoundRobin));
}

#[test]
fn a_rule_that_selects_the_caller_comes_first_in_its_own_namespace() {
    let store = docs(&[
        SERVICE,
        ("DestinationRule", "web/all@1", "{host: cart.shop.svc.cluster.local}"),
        (
            "DestinationRule",
            "web/some@2",
            "{host: cart.shop.svc.cluster.local, exportTo: [.], workloadSelector: {matchLabels: {app: front}}}",
        ),
    ]);
    assert_eq!(rules(&store, &caller("web")), "web/all");
    let labels: crate::resource::Labels = [("app".to_owned(), "front".to_owned())].into();
    let front = Workload::detached(&StoreOptions::default(), "web", "front", "", labels);
    assert_eq!(rules(&store, &front), "web/some");
}

#[test]
fn a_subset_replaces_blocks_and_a_port_replaces_all_four() {
    let store = docs(&[
        SERVICE,
        (
            "DestinationRule",
            "shop/r",
            "
  host: cart
  trafficPolicy:
    loadBalancer: {simple: RANDOM}
    outlierDetection: {interval: 1s}
    retryBudget: {percent: 30}
    portLevelSettings: [{port: {number: 81}, connectionPool: {tcp: {maxConnections: 81}}}]
  subsets:
  - name: v1
    trafficPolicy:
      loadBalancer: {simple: ROUND_ROBIN}
      portLevelSettings: [{port: {number: 82}, connectionPool: {tcp: {maxConnections: 82}}}]",
        ),
    ]);
    let outbound = outbound(&store, "shop", "cart").unwrap();
    let told = |port, subset: &str| {
        let p = outbound.effective_policy(port, subset);
        assert!(p.retry_budget.is_some() && p.refuse.is_none());
        (
            p.load_balancer.map(|l| l.simple.unwrap().as_str()),
            p.outlier_detection.is_some(),
            p.connection_pool.map(|c| c.tcp.unwrap().max_connections),
        )
    };
    assert_eq!(told(80, ""), (Some("RANDOM"), true, None));
    assert_eq!(told(81, ""), (None, false, Some(81)), "what a port leaves out is the default");
    assert_eq!(told(80, "v1"), (Some("ROUND_ROBIN"), true, None));
    assert_eq!(told(81, "v1"), (Some("ROUND_ROBIN"), false, Some(81)));
    assert_eq!(told(82, "v1"), (None, false, Some(82)));
}

#[test]
fn calls_are_refused_where_the_policy_cannot_be_kept() {
    let refusal = |rule: &str, subset: &str| {
        let store = docs(&[
            SERVICE,
            ("WorkloadEntry", "shop/w", "{address: 10.0.0.1}"),
            ("DestinationRule", "shop/r", rule),
        ]);
        let outbound = outbound(&store, "shop", "cart").unwrap();
        assert!(outbound.endpoints(80, subset).is_empty());
        let refuse = outbound.effective_policy(80, subset).refuse.unwrap();
        assert_eq!(refuse.at_fault().unwrap().to_string(), "DestinationRule shop/r");
        (refuse.code(), refuse.explanation().into_owned())
    };
    let (code, why) = refusal("{host: cart}", "v1");
    assert_eq!(code, FailureCode::UnknownSubset);
    assert!(why.contains("\"v1\""), "{why}");
    let (code, why) = refusal("{host: cart, trafficPolicy: {tls: {mode: SIMPLE}}}", "");
    assert_eq!(code, FailureCode::PolicyInvalid);
    assert!(why.contains("tls.mode SIMPLE"), "{why}");
}

#[test]
fn a_closed_reading_refuses_every_call() {
    use crate::resource::{DestinationRule, Invalid, Resource};
    let spec = DestinationRule { host: "cart.shop.svc.cluster.local".into(), ..Default::default() };
    let closed = Resource {
        invalid: Some(Invalid { reason: "no such mode".into() }),
        ..Resource::new("shop", "r", spec)
    };
    let mut objects = parse_objects("test.yaml", &doc(SERVICE.0, SERVICE.1, SERVICE.2)).unwrap();
    objects.push(closed.into());
    // Neither an older rule nor another audience hides it.
    objects.extend(
        parse_objects("test.yaml", &doc("DestinationRule", "shop/old@1", "{host: cart, exportTo: [., web]}"))
            .unwrap(),
    );
    let store = Store::new(StoreOptions::default(), objects);
    let refuse = outbound(&store, "shop", "cart").unwrap().effective_policy(80, "").refuse.unwrap();
    assert_eq!(refuse.code(), FailureCode::PolicyInvalid);
    assert_eq!(refuse.explanation(), "no such mode");
}
