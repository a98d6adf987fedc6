//! What a name leads to, and which VirtualService applies.

use super::*;

const CART: (&str, &str, &str) =
    ("Service", "shop/cart", "{clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]}");
const ROUTE: &str = "http: [{route: [{destination: {host: cart.shop.svc.cluster.local}}]}]";

fn host(store: &Store, namespace: &str, called: &str) -> Option<String> {
    outbound(store, namespace, called).map(|o| o.host().to_owned())
}

#[test]
fn a_service_is_called_by_its_short_forms_and_its_address() {
    let store = docs(&[CART, ("Service", "web/cart", "{ports: [{name: http, port: 80}]}")]);
    let shop = Some("cart.shop.svc.cluster.local".to_owned());
    let web = Some("cart.web.svc.cluster.local".to_owned());
    for (namespace, called, want) in [
        ("shop", "cart", &shop),
        ("web", "cart", &web),
        ("other", "cart", &None),
        ("web", "cart.shop", &shop),
        ("web", "cart.shop.svc", &shop),
        ("web", "cart.shop.svc.cluster.local", &shop),
        ("web", "cart.shop.svc.cluster", &None),
        ("web", "10.96.0.1", &shop),
        ("web", "10.96.0.2", &None),
        ("web", "x.cart.shop", &None),
    ] {
        assert_eq!(host(&store, namespace, called), *want, "{namespace} {called}");
    }
}

#[test]
fn every_domain_of_every_host_leads_back_to_the_host() {
    let store = docs(&[
        CART,
        ("Service", "shop/db", "{clusterIP: None, ports: [{name: tcp, port: 80}]}"),
        (
            "Service",
            "shop/alias",
            "{type: ExternalName, externalName: cart.shop.svc.cluster.local, ports: [{name: http, port: 80}]}",
        ),
        (
            "ServiceEntry",
            "web/e",
            "{hosts: ['*.example.com', cart.shop], addresses: [10.96.0.1, 10.96.0.9, 10.0.0.0/8], ports: [{number: 80, name: http, protocol: HTTP}], resolution: NONE}",
        ),
        ("VirtualService", "web/v", &format!("{{hosts: [old.example.org, '*.old.org'], {ROUTE}}}")),
    ]);
    for namespace in ["shop", "web", "other"] {
        let entries: Vec<_> = store.hosts(&caller(namespace)).collect();
        let mut seen = std::collections::HashSet::new();
        for entry in &entries {
            assert_eq!(entry.domains, outbound(&store, namespace, &entry.host).unwrap().domains());
            for domain in &entry.domains {
                assert!(seen.insert(Arc::clone(domain)), "{domain} twice in {namespace}");
                let called = match domain.strip_prefix("*.") {
                    Some(rest) => format!("one.{rest}"),
                    None => domain.to_string(),
                };
                assert_eq!(host(&store, namespace, &called).as_deref(), Some(&*entry.host), "{called}");
            }
        }
        assert_eq!(entries.len(), 6, "{entries:?}");
    }
}

#[test]
fn kubernetes_wins_then_the_own_namespace_then_the_oldest() {
    let entry = |name: &str| {
        format!(
            "{{hosts: [x.example.com, cart.shop.svc.cluster.local], ports: [{{number: {name}, name: http, protocol: HTTP}}], resolution: DNS}}"
        )
    };
    let (one, two) = (entry("1"), entry("2"));
    let store = docs(&[CART, ("ServiceEntry", "b/e@2", &two), ("ServiceEntry", "a/e@1", &one)]);
    let port =
        |namespace, host| outbound(&store, namespace, host).unwrap().service().unwrap().ports[0].number;
    assert_eq!(port("a", "cart.shop"), 80);
    assert_eq!(
        (port("a", "x.example.com"), port("b", "x.example.com"), port("c", "x.example.com")),
        (1, 2, 1)
    );
}

#[test]
fn entries_of_one_namespace_are_one_service() {
    let entry = |port: u16, ip: &str| {
        format!(
            "{{hosts: [x.example.com], ports: [{{number: {port}, name: p{port}, protocol: HTTP}}], resolution: STATIC, endpoints: [{{address: {ip}}}]}}"
        )
    };
    let store = docs(&[
        ("ServiceEntry", "a/e@1", &entry(1, "10.0.0.1")),
        ("ServiceEntry", "a/f@2", &entry(2, "10.0.0.2")),
    ]);
    let found = outbound(&store, "b", "x.example.com").unwrap();
    assert_eq!(found.service().unwrap().ports.iter().map(|p| p.number).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(addresses(&found.endpoints(2, "")), ["10.0.0.2:2"]);
}

#[test]
fn the_oldest_virtual_service_of_the_most_specific_host_applies() {
    let of = |hosts: &str, more: &str| format!("{{hosts: [{hosts}], {ROUTE}{more}}}");
    let exact = of("cart.shop.svc.cluster.local", "");
    let store = docs(&[
        CART,
        ("Service", "shop/pay", "{ports: [{name: http, port: 80}]}"),
        ("Service", "web/front", "{ports: [{name: http, port: 80}]}"),
        ("VirtualService", "web/young@3", &exact),
        ("VirtualService", "web/old@2", &exact),
        ("VirtualService", "web/wide@1", &of("'*.svc.cluster.local'", "")),
        ("VirtualService", "web/narrow@9", &of("'*.shop.svc.cluster.local'", "")),
        ("VirtualService", "web/gateway@0", &of("cart.shop.svc.cluster.local", ", gateways: [edge]")),
    ]);
    assert_eq!(route(&store, "a", "cart.shop").unwrap(), "web/old");
    assert_eq!(route(&store, "a", "pay.shop").unwrap(), "web/narrow");
    assert_eq!(route(&store, "a", "front.web").unwrap(), "web/wide");
}

#[test]
fn gateways_decide_whether_sidecars_use_a_virtual_service() {
    for (gateways, want) in [("", true), (", gateways: [edge]", false), (", gateways: [edge, mesh]", true)] {
        let store =
            docs(&[CART, ("VirtualService", "shop/v", &format!("{{hosts: [cart], {ROUTE}{gateways}}}"))]);
        assert_eq!(route(&store, "shop", "cart").is_some(), want, "{gateways}");
    }
}

#[test]
fn a_short_host_of_a_virtual_service_belongs_to_its_namespace() {
    let store = docs(&[CART, ("VirtualService", "web/v", &format!("{{hosts: [cart], {ROUTE}}}"))]);
    assert_eq!(route(&store, "web", "cart.shop"), None);
    assert_eq!(
        host(&store, "web", "cart").unwrap(),
        "cart.web.svc.cluster.local",
        "known to its VirtualService alone"
    );
}

#[test]
fn a_host_that_only_a_virtual_service_knows_has_no_service() {
    let store = docs(&[
        CART,
        ("VirtualService", "web/v", &format!("{{hosts: [old.example.org, '*.example.net'], {ROUTE}}}")),
    ]);
    for (called, want) in [("old.example.org", "old.example.org"), ("a.example.net", "*.example.net")] {
        let found = outbound(&store, "a", called).unwrap();
        assert_eq!(found.host(), want);
        assert!(found.service().is_none() && found.endpoints(80, "").is_empty());
        assert_eq!(found.virtual_service().unwrap().meta.name, "v");
    }
}

#[test]
fn the_longer_wildcard_wins_whoever_has_it() {
    let store = docs(&[
        CART,
        (
            "ServiceEntry",
            "a/e",
            "{hosts: ['*.b.example.com', '*.com'], ports: [{number: 80, name: http, protocol: HTTP}], resolution: NONE}",
        ),
        ("VirtualService", "a/v", &format!("{{hosts: ['*.example.com'], {ROUTE}}}")),
    ]);
    for (called, want) in
        [("x.b.example.com", "*.b.example.com"), ("x.example.com", "*.example.com"), ("x.com", "*.com")]
    {
        assert_eq!(host(&store, "a", called).as_deref(), Some(want), "{called}");
    }
}

#[test]
fn an_external_name_stands_for_its_target() {
    let alias = |target: &str| {
        format!("{{type: ExternalName, externalName: {target}, ports: [{{name: http, port: 80}}]}}")
    };
    let (known, unknown, chained) = (
        alias("cart.shop.svc.cluster.local"),
        alias("api.example.com"),
        alias("alias.web.svc.cluster.local"),
    );
    let store = docs(&[
        CART,
        ("Service", "web/alias", &known),
        ("Service", "web/out", &unknown),
        ("Service", "web/two", &chained),
    ]);
    assert_eq!(host(&store, "web", "alias").unwrap(), "cart.shop.svc.cluster.local");
    assert_eq!(host(&store, "web", "two").unwrap(), "cart.shop.svc.cluster.local");
    assert_eq!(addresses(&outbound(&store, "web", "out").unwrap().endpoints(80, "")), ["api.example.com:80"]);
    assert!(store.hosts(&caller("web")).all(|entry| !entry.host.starts_with("alias")));
}

#[test]
fn a_ring_of_external_names_ends() {
    let alias = |target: &str| {
        format!(
            "{{type: ExternalName, externalName: {target}.a.svc.cluster.local, ports: [{{name: http, port: 80}}]}}"
        )
    };
    let names: Vec<_> = (0..=crate::store::outbound::MAX_ALIASES + 2).map(|n| format!("a/x{n}")).collect();
    let specs: Vec<_> = (0..names.len()).map(|n| alias(&format!("x{}", (n + 1) % names.len()))).collect();
    let all: Vec<_> = names.iter().zip(&specs).map(|(n, s)| ("Service", n.as_str(), s.as_str())).collect();
    assert!(host(&docs(&all), "a", "x0").unwrap().starts_with("x0."), "it stands for itself then");
}

#[test]
fn an_endpoint_of_a_headless_service_is_called_by_its_own_name() {
    let slice = "labels: {kubernetes.io/service-name: db}\naddressType: IPv4\nports: [{name: tcp, port: 5432}]\nendpoints: [{addresses: [10.0.0.1], hostname: db-0}, {addresses: [10.0.0.2], hostname: db-1}]";
    let store = docs(&[
        ("Service", "a/db", "{clusterIP: None, ports: [{name: tcp, port: 5432}]}"),
        ("EndpointSlice", "a/x", slice),
    ]);
    let at = |called| addresses(&outbound(&store, "a", called).unwrap().endpoints(5432, ""));
    assert_eq!(at("db-1.db"), ["10.0.0.2:5432"]);
    assert_eq!(at("db"), ["10.0.0.1:5432", "10.0.0.2:5432"]);
    assert!(at("db-7.db").is_empty());
}

#[test]
fn a_fingerprint_changes_with_routes_and_policies_and_not_with_endpoints() {
    let base = doc(CART.0, CART.1, CART.2).replace("{clusterIP", "{selector: {app: cart}, clusterIP");
    let entry = doc("WorkloadEntry", "shop/w", "{address: 10.0.0.1, labels: {app: cart}}");
    let route = doc("VirtualService", "shop/v", &format!("{{hosts: [cart], {ROUTE}}}"));
    let rule = doc("DestinationRule", "shop/r", "{host: cart}");
    let print = |text: &str| outbound(&store(text), "shop", "cart").unwrap().fingerprint();
    let all = format!("{base}{entry}{route}{rule}");
    let before = print(&all);
    assert_eq!(before, print(&format!("# a comment, and another order\n{rule}{route}{entry}{base}")));
    assert_eq!(before, print(&format!("{base}{route}{rule}")), "without its endpoint");
    assert_ne!(before, print(&format!("{base}{entry}{rule}")));
    assert_ne!(before, print(&format!("{base}{entry}{route}")));
    assert_ne!(before, print(&all.replace("hosts: [cart]", "hosts: [cart, pay]")));
    assert_ne!(before, print(&all.replace("name: http", "name: grpc")));
}

/// Building must not look at every pair of anything. In a release build this takes some tens of
/// milliseconds; what is asserted is the result.
#[test]
fn a_thousand_hosts_with_ten_thousand_rules() {
    let mut text = String::new();
    for n in 0..1000 {
        text += &doc(
            "Service",
            &format!("a/s{n}"),
            &format!("{{selector: {{app: s{n}}}, ports: [{{name: http, port: 80}}]}}"),
        );
        text += &doc(
            "WorkloadEntry",
            &format!("a/w{n}"),
            &format!("{{address: 10.0.0.1, labels: {{app: s{n}}}}}"),
        );
    }
    let mut objects = parse_objects("test.yaml", &text).unwrap();
    for n in 0..1000 {
        let rule =
            parse_objects("test.yaml", &doc("VirtualService", "a/v", &format!("{{hosts: [s{n}], {ROUTE}}}")))
                .unwrap();
        let crate::resource::Object::VirtualService(vs) = &rule[0] else { panic!() };
        let mut vs = (**vs).clone();
        vs.meta.name = format!("v{n}");
        vs.spec.http = vec![vs.spec.http[0].clone(); 10];
        objects.push(vs.into());
    }
    let store = Store::new(StoreOptions::default(), objects);
    let web = caller("a");
    assert_eq!(store.hosts(&web).count(), 1000);
    for n in 0..1000 {
        let found = store.outbound(&web, &format!("s{n}")).unwrap();
        assert_eq!(found.virtual_service().unwrap().spec.http.len(), 10);
        assert_eq!(found.endpoints(80, "").len(), 1);
    }
}
