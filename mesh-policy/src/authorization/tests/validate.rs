//! What is wrong with a policy is told with its field and the way out, and is never in force.

use super::*;
use mesh_core::diagnostic::Effect;
use mesh_core::resource::Invalid;

/// `FIELD: MESSAGE` of every complaint, errors marked with `!`.
fn complaints(spec: &str) -> Vec<(bool, String)> {
    validate(&policy("p", spec)).iter().map(|d| (d.is_error(), d.field.clone())).collect()
}

#[test]
fn fields_and_effects() {
    let in_source = |action: &str, f: &str| {
        format!(r#"{{"action": "{action}", "rules": [{{"from": [{{"source": {{{f}}}}}]}}]}}"#)
    };
    let in_operation = |f: &str| format!(r#"{{"rules": [{{"to": [{{"operation": {{{f}}}}}]}}]}}"#);
    let in_when =
        |action: &str, f: &str| format!(r#"{{"action": "{action}", "rules": [{{"when": [{{{f}}}]}}]}}"#);
    let table = [
        (
            in_source("ALLOW", r#""remoteIpBlocks": ["1.2.3.4"]"#),
            true,
            "spec.rules[0].from[0].source.remoteIpBlocks",
        ),
        (
            in_source("DENY", r#""notRemoteIpBlocks": ["1.2.3.4"]"#),
            true,
            "spec.rules[0].from[0].source.notRemoteIpBlocks",
        ),
        (
            in_source("ALLOW", r#""ipBlocks": ["10.0.0.0/8", "10.0.0.0/40"]"#),
            true,
            "spec.rules[0].from[0].source.ipBlocks[1]",
        ),
        (
            in_source("ALLOW", r#""principals": ["spiffe://a/ns/b/sa/c"]"#),
            true,
            "spec.rules[0].from[0].source.principals[0]",
        ),
        (in_source("ALLOW", r#""principals": [""]"#), true, "spec.rules[0].from[0].source.principals[0]"),
        (
            in_source("ALLOW", r#""principals": ["a/*/c"]"#),
            false,
            "spec.rules[0].from[0].source.principals[0]",
        ),
        (
            in_source("ALLOW", r#""serviceAccounts": ["a/b/c"]"#),
            true,
            "spec.rules[0].from[0].source.serviceAccounts[0]",
        ),
        (
            in_source("ALLOW", r#""serviceAccounts": ["a/*"]"#),
            true,
            "spec.rules[0].from[0].source.serviceAccounts[0]",
        ),
        (
            in_source("ALLOW", r#""serviceAccounts": ["a"], "namespaces": ["b"]"#),
            true,
            "spec.rules[0].from[0].source.serviceAccounts",
        ),
        (
            in_source("ALLOW", r#""requestPrincipals": ["*"]"#),
            false,
            "spec.rules[0].from[0].source.requestPrincipals",
        ),
        (
            in_source("ALLOW", r#""notRequestPrincipals": ["x"]"#),
            true,
            "spec.rules[0].from[0].source.notRequestPrincipals",
        ),
        (
            in_source("DENY", r#""requestPrincipals": ["x"]"#),
            true,
            "spec.rules[0].from[0].source.requestPrincipals",
        ),
        (
            in_source("DENY", r#""notRequestPrincipals": ["*"]"#),
            false,
            "spec.rules[0].from[0].source.notRequestPrincipals",
        ),
        (in_source("ALLOW", ""), true, "spec.rules[0].from[0].source"),
        (in_operation(""), true, "spec.rules[0].to[0].operation"),
        (in_operation(r#""ports": ["80", "http"]"#), true, "spec.rules[0].to[0].operation.ports[1]"),
        (in_operation(r#""ports": ["0"]"#), true, "spec.rules[0].to[0].operation.ports[0]"),
        (in_operation(r#""paths": ["/{**}/{*}"]"#), true, "spec.rules[0].to[0].operation.paths[0]"),
        (in_operation(r#""paths": ["/{id}"]"#), true, "spec.rules[0].to[0].operation.paths[0]"),
        (in_operation(r#""methods": ["get"]"#), false, "spec.rules[0].to[0].operation.methods[0]"),
        (in_when("ALLOW", r#""key": "remote.ip", "values": ["1.1.1.1"]"#), true, "spec.rules[0].when[0].key"),
        (
            in_when("ALLOW", r#""key": "experimental.envoy.filters.x", "values": ["1"]"#),
            true,
            "spec.rules[0].when[0].key",
        ),
        (
            in_when("ALLOW", r#""key": "request.header[x]", "values": ["1"]"#),
            true,
            "spec.rules[0].when[0].key",
        ),
        (
            in_when("ALLOW", r#""key": "request.headers[:path]", "values": ["1"]"#),
            true,
            "spec.rules[0].when[0].key",
        ),
        (in_when("ALLOW", r#""key": "source.ip""#), true, "spec.rules[0].when[0]"),
        (in_when("ALLOW", r#""key": "source.ip", "values": ["x"]"#), true, "spec.rules[0].when[0].values[0]"),
        (
            in_when("ALLOW", r#""key": "request.auth.claims[a][b]", "values": ["x"]"#),
            false,
            "spec.rules[0].when[0].values",
        ),
        (
            in_when("DENY", r#""key": "request.auth.principal", "values": ["x"]"#),
            true,
            "spec.rules[0].when[0].values",
        ),
        (r#"{"action": "DENY"}"#.into(), true, "spec.rules"),
        (r#"{"action": "CUSTOM", "rules": [{}]}"#.into(), true, "spec.action"),
        (r#"{"action": "AUDIT", "rules": [{}]}"#.into(), false, "spec.action"),
        (
            r#"{"targetRefs": [{"kind": "Gateway", "name": "g"}], "rules": [{}]}"#.into(),
            false,
            "spec.targetRefs",
        ),
    ];
    for (spec, error, field) in table {
        assert_eq!(complaints(&spec), [(error, field.to_owned())], "{spec}");
    }
    assert_eq!(complaints("{}"), []);
    assert_eq!(complaints(r#"{"action": "DENY", "rules": [{}]}"#), []);
}

#[test]
fn a_complaint_reads_well() {
    let spec = r#"{"rules": [{"from": [{"source": {"remoteIpBlocks": ["1.2.3.4"]}}]}]}"#;
    assert_eq!(
        validate(&policy("p", spec))[0].to_string(),
        "AuthorizationPolicy default/p: spec.rules[0].from[0].source.remoteIpBlocks: the address of the \
         original client is not known yet; use ipBlocks, the address of the direct peer; until it is mended it \
         refuses all that it selects"
    );
}

/// An ALLOW that cannot be read admits nothing; a DENY or CUSTOM refuses everything; both say so.
#[test]
fn the_closed_reading() {
    let broken = r#""rules": [{"from": [{"source": {"ipBlocks": ["x"]}}]}]"#;
    let good = policy("good", r#"{"rules": [{"to": [{"operation": {"paths": ["/a"]}}]}]}"#);
    for (action, answers) in [
        ("ALLOW", ["pass", "policy_invalid"]),
        ("DENY", ["policy_invalid", "policy_invalid"]),
        ("CUSTOM", ["policy_invalid", "policy_invalid"]),
        ("AUDIT", ["pass", "denied"]),
    ] {
        let spec = format!(r#"{{"action": "{action}", {broken}}}"#);
        let (rules, _) = Rules::compile(&[policy("bad", &spec), Arc::clone(&good)], &Context::default());
        // The same policy as a loader hands it over.
        let mut closed = Resource::new(
            "default",
            "bad",
            serde_json::from_str::<AuthorizationPolicy>(&format!(r#"{{"action": "{action}"}}"#)).unwrap(),
        );
        closed.invalid = Some(Invalid { reason: "spec.rulez: unknown field".into() });
        let (handed, found) = Rules::compile(&[Arc::new(closed), Arc::clone(&good)], &Context::default());
        assert!(found.iter().all(|d| d.effect == Effect::NoEffect), "it was told when it was read");
        for (rules, reason) in [(rules, "ipBlocks[0]"), (handed, "spec.rulez")] {
            for (path, want) in ["/a", "/b"].into_iter().zip(answers) {
                let request = get(&web(), path);
                let decision = rules.check(&RequestView::of(&request));
                let got = decision.refusal().map_or("pass", |r| r.code().as_str());
                assert_eq!(got, want, "{action} {path}");
                if want == "policy_invalid" {
                    let failure = decision.refusal().unwrap().failure();
                    let reason =
                        if failure.explanation().contains("CUSTOM") { "spec.action" } else { reason };
                    assert!(failure.explanation().contains(reason), "{failure}");
                    assert_eq!(failure.at_fault().unwrap().namespaced_name(), "default/bad");
                    assert_eq!(failure.deciding_policies().len(), 1);
                }
            }
        }
    }
}
