use mesh_core::diagnostic::Effect;
use mesh_core::failure::FailureCode;
use proptest::prelude::*;

use super::*;
use crate::fault::AbortStatus;
use crate::policy::RoutePolicy;
use crate::retry::{Condition as RetryCondition, RetryPolicy};
use crate::testing::{Caller, ask, fqdn, host_routes, request, table, virtual_service};

const BOOKINFO: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - name: jason
    match:
    - headers: {end-user: {exact: jason}}
      name: him
    route: [{destination: {host: reviews, subset: v2}}]
  - route:
    - {destination: {host: reviews, subset: v1}, weight: 90}
    - {destination: {host: reviews.default.svc.cluster.local, subset: v3}, weight: 10}
";

const HTTPBIN: &str = "
apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata: {name: httpbin}
spec:
  hosts: [httpbin.default.svc.cluster.local]
  http:
  - match: [{uri: {prefix: /status}}, {uri: {prefix: /delay}, method: {exact: GET}}]
    route: [{destination: {host: httpbin, port: {number: 8000}}}]
    timeout: 5s
    retries: {attempts: 3, perTryTimeout: 2s, retryOn: 'gateway-error,503'}
    fault: {delay: {percentage: {value: 50}, fixedDelay: 2s}, abort: {percentage: {value: 0.1}, grpcStatus: UNAVAILABLE}}
  - match: [{uri: {exact: /old}}]
    redirect: {uri: /new, redirectCode: 308}
  - match: [{uri: {prefix: /teapot}}]
    directResponse: {status: 418, body: {string: short and stout}}
  - match: [{uri: {prefix: /gone}}]
    route: [{destination: {host: gone}}]
  - match: [{uri: {prefix: /nosubset}}]
    route: [{destination: {host: reviews, subset: v9}}]
";

/// Just over nine tenths.
const LAST_TENTH: u64 = u64::MAX / 10 * 9 + u64::MAX / 100;

#[test]
fn bookinfo() {
    let table = table(&[BOOKINFO]);
    let jason = request("GET http://reviews:9080/", &[("end-user", "jason")]);
    let other = request("GET http://reviews.default.svc.cluster.local/x", &[]);
    assert_eq!(ask(&table, &jason, u64::MAX), "reviews/v2");
    assert_eq!(ask(&table, &other, 0), "reviews/v1");
    assert_eq!(ask(&table, &other, LAST_TENTH), "reviews/v3");
    let (mut rng, mut v1) = (fastrand::Rng::with_seed(7), 0);
    for _ in 0..1000 {
        v1 += u32::from(ask(&table, &other, rng.u64(..)) == "reviews/v1");
    }
    assert!((850..=950).contains(&v1), "{v1}");
}

#[test]
fn httpbin() {
    let table = table(&[HTTPBIN]);
    for (line, want) in [
        ("GET http://httpbin:8000/status/200", "httpbin:8000"),
        ("GET http://httpbin/delay/1", "httpbin:8000"),
        ("POST http://httpbin/delay/1", "no_route"),
        ("GET http://httpbin/old", "308"),
        ("GET http://httpbin/teapot", "418"),
        ("GET http://httpbin/gone", "unknown_subset"),
        ("GET http://httpbin/nosubset", "unknown_subset"),
        ("GET http://httpbin/", "no_route"),
        ("GET http://httpbin:9999/status/200", "unknown_host"),
        ("GET http://elsewhere/", "unknown_host"),
    ] {
        assert_eq!(ask(&table, &request(line, &[]), 0), want, "{line}");
    }
}

fn policy_of(table: &RouteTable, host: &str, path: &str) -> Arc<RoutePolicy> {
    let (_, routes) = table.host(host).unwrap().port(None).unwrap();
    let rule = routes.iter().find(|(condition, _)| condition.is_none_or(|c| c.to_string().contains(path)));
    Arc::clone(&rule.unwrap().1.policy)
}

#[test]
fn policies_of_rules() {
    let table = table(&[HTTPBIN]);
    let policy = policy_of(&table, "httpbin", "/status");
    assert_eq!(policy.timeout, Some(std::time::Duration::from_secs(5)));
    assert_eq!((policy.retry.attempts, policy.retry.explicit), (3, true));
    assert!(policy.retry.retry_on.has(RetryCondition::GatewayError));
    assert!(policy.retry.retry_on.has_status(http::StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(policy.retry.per_try_timeout, Some(std::time::Duration::from_secs(2)));
    assert_eq!(policy.fault.delay.unwrap().duration, std::time::Duration::from_secs(2));
    assert_eq!(
        policy.fault.abort.unwrap().status,
        AbortStatus::Grpc(mesh_core::failure::GrpcCode::UNAVAILABLE)
    );
    // A rule that says nothing, and a service without a VirtualService.
    assert_eq!(*policy_of(&table, "httpbin", "/gone"), RoutePolicy::default());
    assert_eq!(policy_of(&table, "reviews", "").retry, RetryPolicy::default());
    let off = crate::testing::table(&[
        "spec: {hosts: [reviews], http: [{retries: {attempts: 0}, timeout: 0s, route: [{destination: {host: reviews}}]}]}",
    ]);
    let policy = policy_of(&off, "reviews", "");
    assert_eq!((policy.retry.attempts, policy.timeout), (0, None));
}

#[test]
fn hosts_ports_and_wildcards() {
    let (multi, _) = host_routes("multi", None, &Caller::default());
    let (reviews, _) = host_routes("reviews", None, &Caller::default());
    let (ratings, _) = host_routes("ratings", None, &Caller::default());
    let builder = RouteTable::builder()
        .host(["multi", "Multi.Default.", "10.0.0.1", "::1"], &multi)
        .host(["*.example.com", "multi"], &reviews)
        .host(["*.a.example.com", "*-x.test"], &ratings);
    assert_eq!(builder.taken(), [Taken { domain: "multi".into(), loser: fqdn("reviews").into() }]);
    let table = builder.build();
    for (host, want) in [
        ("multi", "multi:80"),
        ("MULTI", "multi:80"),
        ("multi.default", "multi:80"),
        ("multi:80", "multi:80"),
        ("multi:8080", "multi:8080"),
        ("multi:81", "unknown_host"),
        ("10.0.0.1:8080", "multi:8080"),
        ("[::1]:8080", "multi:8080"),
        ("b.example.com:9080", "reviews:9080"),
        ("b.c.example.com", "reviews:9080"),
        ("b.a.example.com", "ratings:9080"),
        ("a.example.com", "reviews:9080"),
        ("example.com", "unknown_host"),
        ("y-x.test", "ratings:9080"),
        ("-x.test", "unknown_host"),
    ] {
        let asked = request("GET /", &[("host", host)]);
        assert_eq!(ask(&table, &asked, 0), want, "{host}");
    }
}

#[test]
fn an_unchanged_host_is_shared_between_tables() {
    let (multi, _) = host_routes("multi", None, &Caller::default());
    let (old, _) = host_routes("reviews", None, &Caller::default());
    let (new, _) = host_routes("reviews", Some(&virtual_service(BOOKINFO)), &Caller::default());
    let before = RouteTable::builder().host(["multi"], &multi).host(["reviews"], &old).build();
    let after = RouteTable::builder().host(["multi"], &multi).host(["reviews"], &new).build();
    assert!(Arc::ptr_eq(before.host("multi").unwrap(), after.host("multi").unwrap()));
    assert!(!Arc::ptr_eq(before.host("reviews").unwrap(), after.host("reviews").unwrap()));
}

#[test]
fn what_depends_on_the_caller_is_decided_when_compiling() {
    let vs = virtual_service(
        "spec:\n  hosts: [multi]\n  http:\n\
         \x20 - match: [{port: 8080, uri: {prefix: /p}}]\n    route: [{destination: {host: ratings}}]\n\
         \x20 - match: [{sourceLabels: {app: web}}]\n    route: [{destination: {host: reviews, subset: v1}}]\n\
         \x20 - match: [{sourceNamespace: other}]\n    route: [{destination: {host: reviews, subset: v2}}]\n\
         \x20 - match: [{gateways: [mesh], sourceNamespace: nowhere, uri: {prefix: /g}}]\n    route: [{destination: {host: reviews, subset: v3}}]\n\
         \x20 - match: [{gateways: [edge]}]\n    route: [{destination: {host: gone}}]\n",
    );
    let web = Caller { labels: [("app".to_owned(), "web".to_owned())].into(), ..Caller::default() };
    let other = Caller { namespace: "other", ..Caller::default() };
    let table = |caller: &Caller| {
        RouteTable::builder().host(["multi"], &host_routes("multi", Some(&vs), caller).0).build()
    };
    for (caller, uri, want) in [
        (&web, "http://multi:8080/p", "ratings:9080"),
        (&web, "http://multi/p", "reviews/v1"),
        (&other, "http://multi/p", "reviews/v2"),
        (&Caller::default(), "http://multi/g", "reviews/v3"),
        (&Caller::default(), "http://multi/x", "no_route"),
    ] {
        assert_eq!(ask(&table(caller), &request(&format!("GET {uri}"), &[]), 0), want, "{uri}");
    }
}

#[test]
fn where_no_rule_applies_the_service_itself_answers() {
    for vs in [
        "spec: {hosts: [multi], gateways: [edge], http: [{route: [{destination: {host: reviews}}]}]}",
        "spec: {hosts: [multi], http: [{match: [{sourceNamespace: other}], route: [{destination: {host: reviews}}]}]}",
        "spec: {hosts: [multi], tcp: [{route: [{destination: {host: reviews}}]}]}",
    ] {
        let (routes, diagnostics) = host_routes("multi", Some(&virtual_service(vs)), &Caller::default());
        assert!(diagnostics.is_empty(), "{diagnostics:?}");
        let table = RouteTable::builder().host(["multi"], &routes).build();
        assert_eq!(ask(&table, &request("GET http://multi:8080/", &[]), 0), "multi:8080", "{vs}");
    }
}

#[test]
fn a_rule_for_everything_ends_the_list() {
    for all in [
        "",
        "match: [{uri: {prefix: /}}],",
        "match: [{uri: {regex: '.*'}}],",
        "match: [{uri: {exact: /a}}, {uri: {prefix: /}}, {uri: {exact: /b}}],",
    ] {
        let vs = virtual_service(&format!(
            "spec: {{hosts: [reviews], http: [{{{all} route: [{{destination: {{host: reviews, subset: v1}}}}]}}, {{route: [{{destination: {{host: reviews, subset: v2}}}}]}}]}}"
        ));
        let (routes, _) = host_routes("reviews", Some(&vs), &Caller::default());
        assert!(routes.port(None).unwrap().1.iter().all(|(_, rule)| rule.index == 0), "{all}");
        let said = validate(&vs);
        assert_eq!(said.len(), 1, "{said:?}");
        assert_eq!(
            said[0].to_string(),
            "test.yaml:1: VirtualService default/test: spec.http[1]: the rule is never reached: spec.http[0] \
             takes every request; it has no effect"
        );
    }
}

#[test]
fn a_match_explains_itself() {
    let table = table(&[BOOKINFO]);
    let explain = |headers: &[(&str, &str)], draw| {
        let request = request("GET http://reviews:9080/", headers);
        let authority = mesh_core::normal::Authority::parse("reviews:9080").unwrap();
        let found = table.route(&RequestView::of(&request, &authority), draw).unwrap();
        (found.to_string(), found.name().to_string(), found.port())
    };
    assert_eq!(
        explain(&[("end-user", "jason")], 0),
        (
            "VirtualService default/reviews: spec.http[0].match[0] (header end-user exact \"jason\") -> \
         outbound|9080|v2|reviews.default.svc.cluster.local"
                .to_owned(),
            "jason.him".to_owned(),
            9080
        )
    );
    assert_eq!(
        explain(&[], 0).0,
        "VirtualService default/reviews: spec.http[1] -> outbound|9080|v1|reviews.default.svc.cluster.local"
    );
    assert_eq!(explain(&[], 0).1, "default");
}

#[test]
fn a_missing_destination_names_the_resource() {
    let table = table(&[HTTPBIN]);
    let request = request("GET http://httpbin/nosubset", &[]);
    let authority = mesh_core::normal::Authority::parse("httpbin").unwrap();
    let found = table.route(&RequestView::of(&request, &authority), 0).unwrap();
    let failure = found.cluster().unwrap_err();
    assert_eq!(failure.code(), FailureCode::UnknownSubset);
    assert_eq!(failure.at_fault().unwrap().to_string(), "VirtualService default/httpbin");
    assert_eq!(
        found.destination().unwrap().key.to_string(),
        "outbound|8000|v9|reviews.default.svc.cluster.local"
    );
}

#[test]
fn what_is_not_supported_is_said() {
    use Effect::{NoEffect, NotApplied};
    let route = "route: [{destination: {host: reviews}}]";
    let table: [(String, &str, Effect, &str); 19] = [
        (format!("{{mirror: {{host: a}}, {route}}}"), "mirror", NotApplied, "mirror is not supported yet"),
        (
            format!("{{mirrors: [{{destination: {{host: a}}}}], {route}}}"),
            "mirrors",
            NotApplied,
            "not supported yet",
        ),
        (format!("{{mirrorPercent: 5, {route}}}"), "mirrorPercent", NoEffect, "there is no mirror"),
        (
            format!("{{mirrorPercentage: {{value: 5}}, {route}}}"),
            "mirrorPercentage",
            NoEffect,
            "there is no mirror",
        ),
        (
            format!("{{corsPolicy: {{allowMethods: [GET]}}, {route}}}"),
            "corsPolicy",
            NotApplied,
            "not supported yet",
        ),
        ("{delegate: {name: a}}".to_owned(), "delegate", NotApplied, "not supported yet"),
        (
            format!("{{match: [{{uri: {{prefix: /x}}, statPrefix: x}}], {route}}}"),
            "match[0].statPrefix",
            NoEffect,
            "no statistics",
        ),
        (
            format!("{{match: [{{headers: {{'@request.auth.claims.iss': {{exact: x}}}}}}], {route}}}"),
            "match[0].headers[@request.auth.claims.iss]",
            NotApplied,
            "claims",
        ),
        (
            format!("{{retries: {{attempts: 1, retryRemoteLocalities: true}}, {route}}}"),
            "retries.retryRemoteLocalities",
            NoEffect,
            "localities",
        ),
        (
            format!("{{headers: {{request: {{set: {{x: '%START_TIME%'}}}}}}, {route}}}"),
            "headers.request.set[x]",
            NotApplied,
            "not supported yet",
        ),
        (
            format!("{{headers: {{response: {{add: {{x-mesh-reason: x}}}}}}, {route}}}"),
            "headers.response.add[x-mesh-reason]",
            NotApplied,
            "belongs to",
        ),
        (
            "{route: [{destination: {host: reviews}, headers: {request: {remove: [connection]}}}]}"
                .to_owned(),
            "route[0].headers.request.remove[connection]",
            NotApplied,
            "belongs to",
        ),
        (
            format!("{{fault: {{abort: {{http2Error: x}}}}, {route}}}"),
            "fault.abort.http2Error",
            NotApplied,
            "use httpStatus",
        ),
        (
            format!("{{fault: {{delay: {{exponentialDelay: 1s}}}}, {route}}}"),
            "fault.delay.exponentialDelay",
            NotApplied,
            "use fixedDelay",
        ),
        (
            format!("{{fault: {{abort: {{grpcStatus: NOPE}}}}, {route}}}"),
            "fault.abort.grpcStatus",
            NotApplied,
            "\"NOPE\"",
        ),
        (format!("{{rewrite: {{uri: 'new'}}, {route}}}"), "rewrite.uri", NotApplied, "no path"),
        (
            format!("{{rewrite: {{uriRegexRewrite: {{match: '(a)', rewrite: '\\2'}}}}, {route}}}"),
            "rewrite.uriRegexRewrite",
            NotApplied,
            "no such group",
        ),
        (
            format!("{{rewrite: {{authority: a}}, headers: {{request: {{set: {{host: b}}}}}}, {route}}}"),
            "rewrite.authority",
            NotApplied,
            "keep one",
        ),
        (
            "{match: [{uri: {exact: /a}}], redirect: {prefixRewrite: /b}}".to_owned(),
            "redirect.prefixRewrite",
            NotApplied,
            "use uri",
        ),
    ];
    for (rule, field, effect, message) in table {
        let vs = virtual_service(&format!("spec: {{hosts: [reviews], http: [{rule}]}}"));
        let said = validate(&vs);
        let found = said.iter().find(|d| d.field == format!("spec.http[0].{field}"));
        let found = found.unwrap_or_else(|| panic!("{field}: {said:#?}"));
        assert_eq!(found.effect, effect, "{found}");
        assert!(found.message.contains(message), "{found}");
        assert_eq!(said.len(), 1, "{said:#?}");
        // Nothing of a resource that is not applied takes effect.
        let (routes, _) = host_routes("multi", Some(&vs), &Caller::default());
        let default = routes.port(Some(80)).unwrap().1.resource().is_none();
        assert_eq!(default, effect == NotApplied, "{rule}");
    }
}

#[test]
fn gateways_delegates_tls_and_tcp_are_looked_at_when_loading() {
    for (spec, field, error) in [
        (
            "{hosts: [a], gateways: [edge], http: [{route: [{destination: {host: a}}]}]}",
            "spec.gateways[0]",
            true,
        ),
        (
            "{hosts: [a], gateways: [mesh, edge], http: [{route: [{destination: {host: a}}]}]}",
            "spec.gateways[1]",
            false,
        ),
        ("{http: [{route: [{destination: {host: a}}]}]}", "spec.hosts", true),
        (
            "{hosts: [a.b], tls: [{match: [{sniHosts: [a.b]}], route: [{destination: {host: a}}]}]}",
            "spec.tls",
            true,
        ),
        (
            "{hosts: [a], tcp: [{match: [{destinationSubnets: [10.0.0.0/8]}], route: [{destination: {host: a}}]}]}",
            "spec.tcp[0].match[0].destinationSubnets",
            true,
        ),
    ] {
        let said = validate(&virtual_service(&format!("spec: {spec}")));
        assert_eq!(
            said.iter().map(|d| (d.field.as_str(), d.is_error())).collect::<Vec<_>>(),
            [(field, error)]
        );
    }
    assert!(validate(&virtual_service(BOOKINFO)).is_empty());
    assert!(validate(&virtual_service(HTTPBIN)).is_empty());
}

#[test]
fn tcp_goes_by_weight_and_port() {
    let vs = virtual_service(
        "spec: {hosts: [multi], tcp: [{match: [{port: 8080}], route: [{destination: {host: reviews, subset: v1}, weight: 90}, {destination: {host: reviews, subset: v9}, weight: 10}]}]}",
    );
    let (registry, labels, host) = (mesh_core::cluster::Registry::new(), Default::default(), fqdn("multi"));
    let compile = |port| {
        let resolve = |to: &DestinationRef<'_>| crate::testing::resolve(&registry, to);
        let context = CompileContext {
            namespace: "default",
            labels: &labels,
            cluster_domain: "cluster.local",
            host: &host,
            port,
            resolve: &resolve,
        };
        compile_tcp(Some(&vs), &context).routes
    };
    let routed = compile(8080);
    assert_eq!(&*routed.route(0).unwrap().key().subset, "v1");
    let failure = routed.route(LAST_TENTH).unwrap_err();
    assert_eq!((failure.code(), failure.at_fault()), (FailureCode::UnknownSubset, Some(&vs.reference())));
    assert_eq!(compile(80).route(0).unwrap().key().to_string(), format!("outbound|80||{host}"));
}

#[test]
fn full_names() {
    for (host, want) in [
        ("reviews", "reviews.ns.svc.cluster.local"),
        ("Reviews", "reviews.ns.svc.cluster.local"),
        ("reviews.other", "reviews.other"),
        ("a.b.", "a.b"),
        ("*.b", "*.b"),
        ("*", "*"),
    ] {
        assert_eq!(full_host(host, "ns", "cluster.local"), want);
    }
}

proptest! {
    #[test]
    fn no_request_makes_the_table_panic(
        host in "[a-z0-9.:*\\[\\]-]{0,20}",
        path in "/[ -~]{0,30}",
        header in "[ -~]{0,10}",
        draw: u64,
    ) {
        static TABLE: std::sync::LazyLock<RouteTable> = std::sync::LazyLock::new(|| table(&[BOOKINFO, HTTPBIN]));
        if let (Ok(authority), Ok(uri)) = (mesh_core::normal::Authority::parse(&host), path.parse::<http::Uri>()) {
            let mut headers = http::HeaderMap::new();
            headers.insert("end-user", header.parse().unwrap());
            let view = RequestView::new(&http::Method::GET, &uri, &headers, &authority);
            if let Ok(found) = TABLE.route(&view, draw) {
                let _ = (found.cluster(), found.to_string(), found.on_response());
            }
        }
    }
}
