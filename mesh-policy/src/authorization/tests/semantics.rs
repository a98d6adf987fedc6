//! What a rule means, field by field.

use super::*;
use proptest::prelude::*;

fn source(fields: &str) -> String {
    format!(r#"{{"from": [{{"source": {{{fields}}}}}]}}"#)
}

fn operation(fields: &str) -> String {
    format!(r#"{{"to": [{{"operation": {{{fields}}}}}]}}"#)
}

fn when(key: &str, fields: &str) -> String {
    format!(r#"{{"when": [{{"key": "{key}", {fields}}}]}}"#)
}

#[test]
fn sources() {
    let somebody = get(&web(), "/");
    let unknown = get(&nobody(), "/");
    // fields, matches `web`, matches a caller without identity
    let table = [
        (r#""principals": ["cluster.local/ns/default/sa/web"]"#, true, false),
        (r#""principals": ["cluster.local/ns/default/sa/we"]"#, false, false),
        (r#""principals": ["x", "cluster.local/ns/default/*"]"#, true, false),
        (r#""principals": ["*/sa/web"]"#, true, false),
        (r#""principals": ["*"]"#, true, false),
        (r#""notPrincipals": ["cluster.local/ns/default/sa/web"]"#, false, true),
        (r#""notPrincipals": ["cluster.local/ns/default/sa/other"]"#, true, true),
        (r#""notPrincipals": ["*"]"#, false, true),
        (r#""principals": ["*"], "notPrincipals": ["x"]"#, true, false),
        (r#""namespaces": ["default"]"#, true, false),
        (r#""namespaces": ["def"]"#, false, false),
        (r#""namespaces": ["d*t"]"#, true, false),
        (r#""namespaces": ["*"]"#, true, false),
        (r#""notNamespaces": ["default"]"#, false, true),
        (r#""notNamespaces": ["other"]"#, true, true),
        (r#""serviceAccounts": ["web"]"#, true, false),
        (r#""serviceAccounts": ["default/web"]"#, true, false),
        (r#""serviceAccounts": ["other/web"]"#, false, false),
        (r#""notServiceAccounts": ["web"]"#, false, true),
        (r#""trustDomains": ["cluster.local"]"#, true, false),
        (r#""trustDomains": ["cluster*", "x"]"#, true, false),
        (r#""trustDomains": ["other"]"#, false, false),
        (r#""notTrustDomains": ["*.local"]"#, false, true),
        (r#""ipBlocks": ["10.1.0.0/16"]"#, true, true),
        (r#""ipBlocks": ["10.1.2.3"]"#, true, true),
        (r#""ipBlocks": ["10.1.2.4", "fd00::/8"]"#, false, false),
        (r#""notIpBlocks": ["10.1.0.0/16"]"#, false, false),
        (r#""namespaces": ["default"], "ipBlocks": ["10.9.0.0/16"]"#, false, false),
    ];
    for (fields, by_web, by_nobody) in table {
        let rule = source(fields);
        assert_eq!(matches(&rule, &somebody), by_web, "{fields}");
        assert_eq!(matches(&rule, &unknown), by_nobody, "{fields}, nobody");
    }
}

#[test]
fn operations() {
    let post = |uri: &str| {
        let mut r = get(&web(), uri);
        *r.method_mut() = http::Method::POST;
        r
    };
    let table = [
        (r#""methods": ["GET"]"#, get(&web(), "/"), true),
        (r#""methods": ["GET"]"#, post("/"), false),
        (r#""methods": ["P*"]"#, post("/"), true),
        (r#""methods": ["*"]"#, post("/"), true),
        (r#""notMethods": ["GET"]"#, post("/"), true),
        (r#""paths": ["/a"]"#, get(&web(), "/a"), true),
        (r#""paths": ["/a"]"#, get(&web(), "/a?x=/b"), true),
        (r#""paths": ["/a"]"#, get(&web(), "/a/"), false),
        (r#""paths": ["/a*"]"#, get(&web(), "/abc"), true),
        (r#""paths": ["*.png"]"#, get(&web(), "/x/y.png"), true),
        (r#""paths": ["/x/{*}/z"]"#, get(&web(), "/x/y/z"), true),
        (r#""paths": ["/x/{*}/z"]"#, get(&web(), "/x/y/y/z"), false),
        (r#""paths": ["/x/{**}"]"#, get(&web(), "/x/y/z"), true),
        (r#""notPaths": ["/a"]"#, get(&web(), "/b"), true),
        (r#""hosts": ["a.com"]"#, get(&web(), "http://a.com/"), true),
        (r#""hosts": ["A.com"]"#, get(&web(), "http://a.COM/"), true),
        (r#""hosts": ["a.com"]"#, get(&web(), "http://a.com:8080/"), false),
        (r#""hosts": ["a.com:*"]"#, get(&web(), "http://a.com:8080/"), true),
        (r#""hosts": ["*.com"]"#, get(&web(), "http://b.a.com/"), true),
        (r#""hosts": ["*"]"#, get(&web(), "/"), false),
        (r#""notHosts": ["a.com"]"#, get(&web(), "http://b.com/"), true),
        (r#""ports": ["9080"]"#, get(&web(), "/"), true),
        (r#""ports": ["15006"]"#, get(&web(), "/"), false),
        (r#""notPorts": ["80"]"#, get(&web(), "/"), true),
        (r#""methods": ["GET"], "paths": ["/b"]"#, get(&web(), "/a"), false),
    ];
    for (fields, request, want) in table {
        assert_eq!(matches(&operation(fields), &request), want, "{fields} on {:?}", request.uri());
    }
}

#[test]
fn conditions() {
    let table = [
        ("source.ip", r#""values": ["10.0.0.0/8"]"#, true),
        ("source.ip", r#""notValues": ["10.0.0.0/8"]"#, false),
        ("source.namespace", r#""values": ["default"]"#, true),
        ("source.principal", r#""values": ["cluster.local/ns/default/sa/web"]"#, true),
        ("source.principal", r#""notValues": ["*/sa/web"]"#, false),
        ("source.serviceAccount", r#""values": ["default/web"]"#, true),
        ("source.trustDomain", r#""values": ["cluster.local"]"#, true),
        ("destination.ip", r#""values": ["10.0.0.9"]"#, true),
        ("destination.port", r#""values": ["9080"]"#, true),
        ("destination.port", r#""values": ["1"], "notValues": ["2"]"#, false),
        ("destination.port", r#""values": ["9080"], "notValues": ["9080"]"#, false),
        ("connection.sni", r#""values": ["Reviews.*"]"#, true),
        ("connection.sni", r#""values": ["x"]"#, false),
        ("request.headers[X-Team]", r#""values": ["red"]"#, true),
        ("request.headers[x-team]", r#""values": ["re*"], "notValues": ["reds"]"#, true),
        ("request.headers[x-none]", r#""values": ["*"]"#, false),
        ("request.headers[x-none]", r#""notValues": ["*"]"#, true),
        ("request.headers[host]", r#""values": ["a.com"]"#, true),
    ];
    let mut request = get(&web(), "http://a.com/");
    request.headers_mut().insert("x-team", "red".parse().unwrap());
    for (key, fields, want) in table {
        assert_eq!(matches(&when(key, fields), &request), want, "{key} {fields}");
    }
}

#[test]
fn entries_are_alternatives_and_parts_are_all_needed() {
    let request = get(&web(), "/a");
    let yes = r#"{"source": {"namespaces": ["default"]}}"#;
    let no = r#"{"source": {"namespaces": ["other"]}}"#;
    let table = [
        ("{}".to_owned(), true),
        (format!(r#"{{"from": [{no}, {yes}]}}"#), true),
        (format!(r#"{{"from": [{no}]}}"#), false),
        (format!(r#"{{"from": [{yes}], "to": [{{"operation": {{"paths": ["/b"]}}}}]}}"#), false),
        (
            format!(
                r#"{{"from": [{yes}], "when": [
                    {{"key": "destination.port", "values": ["9080"]}}, {{"key": "source.ip", "values": ["1.1.1.1"]}}]}}"#
            ),
            false,
        ),
    ];
    for (rule, want) in table {
        assert_eq!(matches(&rule, &request), want, "{rule}");
    }
}

/// The order of features.md: DENY, then "no ALLOW policy", then ALLOW.
#[test]
fn deny_comes_first_and_without_allow_all_may_pass() {
    let deny = policy("deny", r#"{"action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/x"]}}]}]}"#);
    let allow = policy("allow", r#"{"rules": [{"to": [{"operation": {"paths": ["/x", "/y"]}}]}]}"#);
    let nothing = policy("nothing", "{}");
    let table = [
        (vec![], [true, true, true]),
        (vec![deny.clone()], [false, true, true]),
        (vec![allow.clone()], [true, true, false]),
        (vec![allow.clone(), deny.clone()], [false, true, false]),
        (vec![nothing.clone()], [false, false, false]),
        (vec![nothing, allow], [true, true, false]),
    ];
    for (policies, want) in table {
        let rules = compile(&policies);
        let got = ["/x", "/y", "/z"].map(|path| passes(&rules, &get(&web(), path)));
        assert_eq!(got, want, "{policies:?}");
    }
}

#[test]
fn a_refusal_explains_itself() {
    let deny = policy(
        "no-x",
        r#"{"action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/y"]}}]}, {"to": [{"operation": {"paths": ["/x"]}}]}]}"#,
    );
    let viewer = policy("viewer", r#"{"rules": [{"to": [{"operation": {"methods": ["POST"]}}]}]}"#);
    let admin = policy("admin", "{}");
    let rules = compile(&[deny, viewer, admin]);
    let failure = |path: &str| {
        let request = get(&web(), path);
        rules.check(&RequestView::of(&request)).refusal().unwrap().failure()
    };
    let names = |f: &mesh_core::failure::Failure| -> Vec<String> {
        f.deciding_policies().iter().map(|p| p.namespaced_name().to_owned()).collect()
    };
    let denied = failure("/x");
    assert_eq!(denied.explanation(), "DENY default/no-x rule[1] matches");
    assert_eq!(names(&denied), ["default/no-x"]);
    let not_allowed = failure("/");
    assert_eq!(not_allowed.explanation(), "no ALLOW policy matches (default/viewer, default/admin)");
    assert_eq!(names(&not_allowed), ["default/viewer", "default/admin"]);
    assert_eq!(not_allowed.code().as_str(), "denied");
}

#[test]
fn a_pass_tells_which_rule_admits() {
    let rules = one("ALLOW", r#"{"to": [{"operation": {"paths": ["/a"]}}]}"#);
    let request = get(&web(), "/a");
    let Decision::Pass(pass) = rules.check(&RequestView::of(&request)) else { panic!() };
    let matched = pass.matched().unwrap();
    assert_eq!((matched.policy.name(), matched.rule), ("p", 0));
}

/// Where no HTTP is spoken: an ALLOW rule that asks for HTTP never matches, a DENY rule forgets that it asks.
#[test]
fn connections() {
    let connection = web();
    let decide = |rules: &Rules| rules.check_connection(&ConnectionView::of(&connection)).passes();
    // rule, admitted by ALLOW, refused by DENY
    let table = [
        (source(r#""namespaces": ["default"]"#), true, true),
        (source(r#""namespaces": ["other"]"#), false, false),
        (operation(r#""ports": ["9080"]"#), true, true),
        (operation(r#""ports": ["9080"], "methods": ["GET"]"#), false, true),
        (operation(r#""ports": ["80"], "methods": ["GET"]"#), false, false),
        (operation(r#""methods": ["GET"]"#), false, true),
        (operation(r#""notPaths": ["/a"]"#), false, true),
        (when("request.headers[x]", r#""values": ["y"]"#), false, true),
        (when("connection.sni", r#""values": ["reviews.default"]"#), true, true),
    ];
    for (rule, admitted, refused) in table {
        assert_eq!(decide(&one("ALLOW", &rule)), admitted, "ALLOW {rule}");
        assert_eq!(!decide(&one("DENY", &rule)), refused, "DENY {rule}");
    }
}

#[test]
fn without_facts_the_caller_is_unknown() {
    let request = Request::builder().uri("/").body(()).unwrap();
    assert!(!matches(&source(r#""principals": ["*"]"#), &request));
    assert!(!matches(&source(r#""ipBlocks": ["0.0.0.0/0"]"#), &request));
    assert!(!matches(&operation(r#""ports": ["80"]"#), &request));
    assert!(matches("{}", &request));
}

/// Istio admits a caller without identity here; so do we, and the module says how to mean otherwise.
#[test]
fn not_principals_alone_admit_a_caller_without_identity() {
    let rules = one("ALLOW", &source(r#""notPrincipals": ["cluster.local/ns/default/sa/web"]"#));
    assert!(passes(&rules, &get(&nobody(), "/")));
    let rules = one("ALLOW", &source(r#""principals": ["*"], "notPrincipals": ["x/ns/default/sa/web"]"#));
    assert!(!passes(&rules, &get(&nobody(), "/")));
}

#[test]
fn trust_domain_aliases() {
    let td = |name: &str| name.parse().unwrap();
    let context = Context::new(td("new")).aliases([td("old")]);
    let by = |name: &str| get(&connection().peer(id(&format!("{name}/ns/default/sa/web"))).build(), "/");
    for written in ["new", "old", "cluster.local"] {
        let spec =
            format!(r#"{{"rules": [{}]}}"#, source(&format!(r#""principals": ["{written}/ns/default/*"]"#)));
        let (rules, _) = Rules::compile(&[policy("p", &spec)], &context);
        let got = ["new", "old", "cluster.local", "foreign"].map(|name| passes(&rules, &by(name)));
        assert_eq!(got, [true, true, false, false], "{written}");
    }
    let spec = format!(r#"{{"rules": [{}]}}"#, source(r#""principals": ["foreign/ns/default/sa/web"]"#));
    let (rules, _) = Rules::compile(&[policy("p", &spec)], &context);
    assert!(passes(&rules, &by("foreign")) && !passes(&rules, &by("new")));
}

#[test]
fn the_policys_namespace_completes_a_service_account() {
    let spec: AuthorizationPolicy =
        serde_json::from_str(&format!(r#"{{"rules": [{}]}}"#, source(r#""serviceAccounts": ["web"]"#)))
            .unwrap();
    let rules = compile(&[Arc::new(Resource::new("istio-system", "p", spec))]);
    assert!(!passes(&rules, &get(&web(), "/")));
    let other = connection().peer(id("cluster.local/ns/istio-system/sa/web")).build();
    assert!(passes(&rules, &get(&other, "/")));
}

#[test]
fn dry_run_decides_and_does_not_refuse() {
    let mut resource = (*policy("dry", r#"{"action": "DENY", "rules": [{}]}"#)).clone();
    resource.meta.annotations.insert(DRY_RUN.into(), "true".into());
    let rules = compile(&[Arc::new(resource)]);
    let request = get(&web(), "/");
    assert!(passes(&rules, &request));
    let view = RequestView::of(&request);
    let dry = rules.check_dry_run(&view).unwrap();
    assert_eq!(dry.refusal().unwrap().detail(), "DENY default/dry rule[0] matches");
    assert!(Rules::default().check_dry_run(&view).is_none());
}

proptest! {
    /// Dots, dashes and all else that a regex would read stand for themselves.
    #[test]
    fn a_policy_admits_only_its_literal_set(
        allowed in proptest::collection::vec("[a-c.-]{1,4}", 1..4),
        other in "[a-c.-]{1,4}",
    ) {
        prop_assume!(other.as_str() != "." && other.as_str() != "..");
        let named = allowed.contains(&other);
        let caller = format!("cluster.local/ns/default/sa/{other}");
        let request = get(&connection().peer(id(&caller)).build(), "/");
        let principals: Vec<String> =
            allowed.iter().map(|sa| format!("cluster.local/ns/default/sa/{sa}")).collect();
        for (field, values) in [("principals", &principals), ("serviceAccounts", &allowed)] {
            let rule = source(&format!(r#""{field}": {}"#, serde_json::to_string(values).unwrap()));
            prop_assert_eq!(matches(&rule, &request), named, "{}", rule);
        }
    }

    #[test]
    fn no_request_makes_a_check_panic(path in "/[ -~]{0,30}", host in "[ -~]{0,20}", value in "[ -~]{0,20}") {
        let Ok(mut request) = Request::builder().uri(path).body(()) else { return Ok(()) };
        for (name, text) in [("host", host), ("x-a", value)] {
            request.headers_mut().insert(name, text.parse().unwrap());
        }
        let rule = r#"{"to": [{"operation": {"paths": ["/a*", "/{*}/b/{**}"], "notHosts": ["a*"]}}],
            "when": [{"key": "request.headers[x-a]", "notValues": ["*x"]}]}"#;
        let _ = (passes(&one("ALLOW", rule), &request), passes(&one("DENY", rule), &request));
    }
}
