use std::path::Path;

use proptest::prelude::*;

use super::node::{MAX_DEPTH, MAX_DOCUMENTS};
use super::*;
use crate::diagnostic::{Diagnostic, Effect};
use crate::resource::authorization_policy::{Action, Rule};
use crate::resource::peer_authentication::MutualTlsMode;
use crate::resource::{AuthorizationPolicy, Object, Resource, StringMatch};

const SAMPLE: &str = include_str!("samples/bookinfo.yaml");

fn read(text: &str) -> Reading {
    read_file(Path::new("f.yaml"), text, &|_| Vec::new())
}

/// The messages of everything that is wrong, without file and effect.
fn wrong(text: &str) -> Vec<String> {
    let reading = read(text);
    let of_resources = reading.resources.into_iter().flat_map(|r| r.diagnostics);
    let all: Vec<Diagnostic> = reading.diagnostics.into_iter().chain(of_resources).collect();
    all.iter().map(|d| format!("{}: {}: {}", d.origin.as_ref().unwrap().line, d.field, d.message)).collect()
}

fn virtual_service(spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: x}}\nspec:\n{spec}\n"
    )
}

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: x}}\nspec:\n{spec}\n"
    )
}

#[test]
fn every_kind_is_read_with_all_its_fields_and_reads_back_what_it_writes() {
    let objects = parse_objects("bookinfo.yaml", SAMPLE).unwrap();
    let kinds: Vec<&str> = objects.iter().map(Object::kind).collect();
    assert_eq!(
        kinds,
        [
            "VirtualService",
            "DestinationRule",
            "ServiceEntry",
            "WorkloadEntry",
            "Sidecar",
            "PeerAuthentication",
            "AuthorizationPolicy",
            "Telemetry",
            "Service",
            "EndpointSlice",
            "Pod",
            "Namespace"
        ]
    );
    for object in &objects {
        let written = serde_json::to_string_pretty(object).unwrap();
        let again = parse_objects("again.json", &written).unwrap();
        let again = serde_json::to_value(&again[0]).unwrap();
        assert_eq!(again, serde_json::to_value(object).unwrap(), "{}", object.reference());
    }
    let Object::VirtualService(vs) = &objects[0] else { panic!() };
    assert_eq!(vs.spec.http[0].matches[0].headers["x-canary"], StringMatch::Present);
    assert_eq!(vs.spec.http[0].timeout.unwrap().get().as_millis(), 1500);
    assert_eq!(vs.origin.as_ref().unwrap().line, 2);
    let Object::Pod(pod) = &objects[10] else { panic!() };
    assert!(pod.spec.status.is_ready());
    assert_eq!(pod.meta.creation_timestamp, "");
}

#[test]
fn the_sample_leaves_no_field_of_the_mesh_resources_behind() {
    // What was written and what is written again hold the same fields, so none is dropped in silence.
    let objects = parse_objects("bookinfo.yaml", SAMPLE).unwrap();
    let documents = documents(SAMPLE);
    for (object, document) in objects.iter().zip(&documents).take(8) {
        let written = serde_json::to_string(object).unwrap();
        let again = super::documents(&written).remove(0).root.unwrap();
        let (first, again) =
            (document.root.as_ref().unwrap().get("spec").unwrap(), again.get("spec").unwrap());
        assert_eq!(keys(first), keys(again), "{}", object.reference());
    }
}

/// Every key with its path, without those whose value is what absence means.
fn keys(node: &Node) -> Vec<String> {
    fn walk(node: &Node, path: &str, into: &mut Vec<String>) {
        match &node.value {
            Value::Map(entries) => {
                for entry in entries {
                    // What a field's absence means is not written again.
                    let off = matches!(entry.value.as_scalar(), Some("false" | "UPSERT"));
                    let path = format!("{path}.{}", entry.key);
                    if !off {
                        into.push(path.clone());
                    }
                    walk(&entry.value, &path, into);
                }
            }
            Value::List(items) => {
                items.iter().enumerate().for_each(|(i, n)| walk(n, &format!("{path}[{i}]"), into))
            }
            _ => {}
        }
    }
    let mut all = Vec::new();
    walk(node, "", &mut all);
    all.sort();
    all
}

#[test]
fn errors_name_line_field_and_the_nearest_known_name() {
    let table: &[(String, &str)] = &[
        (
            policy("  rules:\n  - from:\n    - source: {}\n    - source:\n        principls: [a]"),
            "9: spec.rules[0].from[1].source.principls: unknown field; did you mean \"principals\"?",
        ),
        (
            virtual_service("  hosts: [a]\n  http:\n  - rout: []"),
            "7: spec.http[0].rout: unknown field; did you mean \"route\"?",
        ),
        (
            virtual_service("  hosts: [a]\n  zzz: 1"),
            "6: spec.zzz: unknown field; known are hosts, gateways, http, tls, tcp, exportTo",
        ),
        (
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: x}\nsepc: {}\n".to_owned(),
            "4: sepc: unknown field; did you mean \"spec\"?",
        ),
        (virtual_service("  hosts: a"), "5: spec.hosts: a list is wanted, found the text \"a\""),
        (virtual_service("  hosts: [a]\n  http: {}"), "6: spec.http: a list is wanted, found an object"),
        (virtual_service("  hosts:\n  - 7"), "6: spec.hosts[0]: a text is wanted, found the number 7; quote it: \"7\""),
        (virtual_service("  hosts: [true]"), "5: spec.hosts[0]: a text is wanted, found true; quote it: \"true\""),
        (virtual_service("  hosts:\n  - a\n  -"), "7: spec.hosts[1]: the item is empty"),
        (
            virtual_service("  hosts: [a]\n  http:\n  - timeout: 10"),
            "7: spec.http[0].timeout: a text is wanted, found the number 10; quote it: \"10\"",
        ),
        (
            virtual_service("  hosts: [a]\n  http:\n  - timeout: ten"),
            "7: spec.http[0].timeout: \"ten\" is not a duration: a number is missing; write it as \"1.5s\", \
             \"250ms\", \"1m\" or \"1h\"",
        ),
        (
            virtual_service("  hosts: [a]\n  http:\n  - route:\n    - destination:\n        host: b\n        port: {number: 70000}"),
            "10: spec.http[0].route[0].destination.port.number: the number 70000 is out of range, which is 0 to 65535",
        ),
        (
            virtual_service("  hosts: [a]\n  http:\n  - route:\n    - weight: -1"),
            "8: spec.http[0].route[0].weight: the number -1 is out of range, which is 0 to 4294967295",
        ),
        (
            virtual_service("  hosts: [a]\n  http:\n  - route:\n    - weight: \"5\""),
            "8: spec.http[0].route[0].weight: a number is wanted, found the text \"5\"; drop the quotes",
        ),
        (
            virtual_service("  hosts: [a]\n  http:\n  - match:\n    - uri: {exact: /a, prefix: /b}"),
            "8: spec.http[0].match[0].uri: has more than one of exact, prefix and regex; keep one",
        ),
        (
            virtual_service("  hosts: [a]\n  http:\n  - match:\n    - headers:\n        x-a:"),
            "9: spec.http[0].match[0].headers[x-a]: the value is empty; write \"\" or {} if that is meant",
        ),
        (
            policy("  action: DENNY"),
            "5: spec.action: unknown value \"DENNY\"; did you mean \"DENY\"? It is one of ALLOW, DENY, AUDIT, CUSTOM",
        ),
        (
            policy("  rules:\n  - from: []"),
            "6: spec.rules[0].from: the list is empty; leave the field out, or say what it should hold",
        ),
        (policy("  rules: [null]"), "5: spec.rules[0]: the item is empty"),
        (
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: x}\nspec:\n  portLevelMtls: {http: {mode: STRICT}}".to_owned(),
            "5: spec.portLevelMtls.http: the key must be a number from 0 to 65535",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: x\n  labels: {version: 1.10}".to_owned(),
            "5: metadata.labels.version: a text is wanted, found the number 1.10; quote it: \"1.10\"",
        ),
        (
            "apiVersion: networking.istio.io/v2\nkind: Sidecar\nmetadata: {name: x}".to_owned(),
            "1: apiVersion: version \"v2\" is not known; use networking.istio.io/v1",
        ),
        ("kind: Service\nmetadata: {name: x}".to_owned(), "1: : the document (kind Service) has no apiVersion"),
        ("a: 1".to_owned(), "1: : the document has no kind; is it a resource?"),
        ("- a".to_owned(), "1: : a resource is an object with apiVersion, kind and metadata"),
        ("apiVersion: v1\nkind: Service\nspec: {}".to_owned(), "1: metadata.name: the name is required"),
        ("a: 1\na: 2".to_owned(), "2: : the key \"a\" stands on line 2 although line 1 has it already; keep one"),
        ("a: !custom 1".to_owned(), "1: : the tag !custom has no meaning here"),
    ];
    for (text, want) in table {
        let found = wrong(text);
        assert!(found.iter().any(|f| f == want), "{text}\nwanted {want}\nfound  {found:#?}");
    }
}

#[test]
fn a_document_that_is_not_yaml_is_named_with_its_line_and_hides_no_other() {
    let text = format!("{}---\nfoo: [1, 2\nbar: 3\n---\n{}", policy("  {}"), virtual_service("  hosts: [a"));
    let reading = read(&text);
    assert_eq!(reading.resources.len(), 1);
    assert!(!reading.whole);
    let lines: Vec<u32> = reading.diagnostics.iter().map(|d| d.origin.as_ref().unwrap().line).collect();
    assert_eq!(lines.len(), 2);
    assert!((7..=9).contains(&lines[0]), "{lines:?}");
    assert!(lines[1] >= 14, "{lines:?}");
    assert!(reading.diagnostics[0].message.starts_with("not YAML: "), "{}", reading.diagnostics[0].message);
}

#[test]
fn what_the_schema_forbids_is_found_with_its_line() {
    let table: &[(String, &str)] = &[
        (
            virtual_service("  hosts: [a, a]\n  http: [{route: [{destination: {host: b}}]}]"),
            "5: spec.hosts[1]: the host stands here twice",
        ),
        (
            virtual_service("  hosts: [a]\n  http:\n  - match: [{uri: {}}]"),
            "7: spec.http[0]: exactly one of route, redirect, directResponse and delegate is required",
        ),
        (
            virtual_service("  hosts: [a]\n  http:\n  - match: [{uri: {}}]"),
            "7: spec.http[0].match[0].uri: one of exact, prefix and regex is required",
        ),
        (
            virtual_service("  hosts: [a]\n  http:\n  - timeout: 10us"),
            "7: spec.http[0].timeout: the duration is shorter than 1ms",
        ),
        (
            virtual_service(
                "  hosts: [a]\n  http:\n  - route: [{destination: {host: b}, weight: 0}, {destination: {host: c}}]",
            ),
            "7: spec.http[0].route: all weights are 0; give at least one destination a share",
        ),
        (
            virtual_service("  hosts: [\"*\"]"),
            "5: spec.hosts[0]: \"*\" is not allowed for sidecars; name the hosts",
        ),
        (
            virtual_service("  hosts: [a]\n  exportTo: [\".\", default]"),
            "6: spec.exportTo[1]: \"default\" stands here twice (\".\" is the namespace default)",
        ),
        (
            virtual_service("  hosts: [a]\n  http: [{retries: {attempts: 1, retryOn: 5xxx}}]"),
            "6: spec.http[0].retries.retryOn: \"5xxx\" is neither a retry condition nor a status",
        ),
        (
            virtual_service(
                "  hosts: [a]\n  http: [{fault: {abort: {httpStatus: 500, percentage: {value: 101}}}}]",
            ),
            "6: spec.http[0].fault.abort.percentage.value: 101 is neither 0 nor in 0.0001..100",
        ),
        (policy("  action: DENY"), "4: spec.rules: DENY without a rule does nothing; add rules"),
        (
            policy("  rules:\n  - from:\n    - source: {}"),
            "7: spec.rules[0].from[0].source: the source is empty, which would match everybody; leave `from` out to \
             say that",
        ),
        (
            policy("  rules:\n  - to: [{operation: {ports: [http]}}]"),
            "6: spec.rules[0].to[0].operation.ports[0]: \"http\" is not a port, 1 to 65535",
        ),
        (
            policy("  rules:\n  - when: [{key: source.ip, values: [10.0.0.0/33]}]"),
            "6: spec.rules[0].when[0].values[0]: \"10.0.0.0/33\" is neither an address nor a block such as 10.0.0.0/8",
        ),
    ];
    for (text, want) in table {
        let found = wrong(text);
        assert!(found.iter().any(|f| f == want), "{text}\nwanted {want}\nfound  {found:#?}");
    }
    let long = "a".repeat(crate::resource::MAX_REGEX + 1);
    let found =
        wrong(&virtual_service(&format!("  hosts: [a]\n  http: [{{match: [{{uri: {{regex: {long}}}}}]}}]")));
    assert!(found.iter().any(|f| f.ends_with("the expression is longer than 1024 bytes")), "{found:#?}");
    let found = wrong(&virtual_service("  hosts: [a]\n  http: [{match: [{uri: {regex: \"a(\"}}]}]"));
    assert!(
        found.iter().any(|f| f.contains("\"a(\" is not a regular expression: unclosed group")),
        "{found:#?}"
    );
}

#[test]
fn null_counts_as_absent_and_unknown_fields_are_errors_even_when_null() {
    let text = virtual_service(
        "  hosts: [a]\n  tls: null\n  http:\n  - name:\n    timeout: ~\n    route: [{destination: {host: b}}]",
    );
    assert_eq!(wrong(&text), Vec::<String>::new());
    assert_eq!(wrong(&virtual_service("  hosts: [a]\n  htp: null")).len(), 1);
}

#[test]
fn foreign_kinds_are_skipped_and_kinds_of_ours_that_are_not_supported_are_errors() {
    let reading = read("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n");
    assert_eq!(reading.diagnostics[0].effect, Effect::Skipped);
    assert!(reading.whole);
    for (group, kind) in [
        ("networking.istio.io/v1", "Gateway"),
        ("security.istio.io/v1", "RequestAuthentication"),
        ("gateway.networking.k8s.io/v1", "HTTPRoute"),
        ("extensions.istio.io/v1alpha1", "WasmPlugin"),
    ] {
        let reading = read(&format!("apiVersion: {group}\nkind: {kind}\nmetadata: {{name: x}}\n"));
        assert_eq!(
            reading.diagnostics[0].to_string(),
            format!(
                "f.yaml:1: {kind} default/x: kind {kind} is not supported yet; the resource is not applied"
            )
        );
    }
    let found = wrong("apiVersion: networking.istio.io/v1\nkind: Sandwich\nmetadata: {name: x}");
    assert!(
        found[0].contains("kind Sandwich of networking.istio.io is not known; known are VirtualService"),
        "{found:?}"
    );
}

#[test]
fn a_slip_in_group_or_kind_is_an_error_of_the_resource_that_was_meant() {
    for (head, want) in [
        (
            "apiVersion: security.istio.io/v1\nkind: AuthorisationPolicy",
            "2: kind: kind \"AuthorisationPolicy\" is not known; did you mean \"AuthorizationPolicy\"?",
        ),
        (
            "apiVersion: securty.istio.io/v1\nkind: AuthorizationPolicy",
            "1: apiVersion: AuthorizationPolicy is not a kind of \"securty.istio.io\"; use security.istio.io/v1",
        ),
        (
            "apiVersion: security.istio.io.v1\nkind: AuthorizationPolicy",
            "1: apiVersion: AuthorizationPolicy is not a kind of \"security.istio.io.v1\"; use security.istio.io/v1",
        ),
        (
            "apiVersion: v1\nkind: AuthorizationPolicy",
            "1: apiVersion: AuthorizationPolicy is not a kind of \"v1\"; use security.istio.io/v1",
        ),
    ] {
        let text = format!("{head}\nmetadata: {{name: x}}\nspec: {{action: DENY, rules: [{{}}]}}");
        assert_eq!(wrong(&text), [want], "{head}");
        let reading = read(&text);
        assert!(reading.whole && reading.resources[0].closed.is_some(), "{head}");
    }
    // Another mesh's kind of the same name is a stranger.
    let reading =
        read("apiVersion: policy.linkerd.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: x}");
    assert_eq!(reading.diagnostics[0].effect, Effect::Skipped);
}

#[test]
fn scalars_are_read_as_yaml_s_core_schema_says() {
    let document = documents("a: [1, -1, 0x10, 0o17, 1.5, 1e3, true, no, ~, \"1\", 'true', 1.2.3, 2024-01-01, ., 18446744073709551615, +]").remove(0);
    let root = document.root.unwrap();
    let values: Vec<&Value> = root.get("a").unwrap().as_list().unwrap().iter().map(|n| &n.value).collect();
    let number = |n, t: &str| Value::Number(n, t.to_owned());
    let text = |t: &str| Value::Text(t.to_owned());
    let want = [
        number(Number::Int(1), "1"),
        number(Number::Int(-1), "-1"),
        number(Number::Int(16), "0x10"),
        number(Number::Int(15), "0o17"),
        number(Number::Float(1.5), "1.5"),
        number(Number::Float(1000.0), "1e3"),
        Value::Bool(true),
        text("no"),
        Value::Null,
        text("1"),
        text("true"),
        text("1.2.3"),
        text("2024-01-01"),
        text("."),
        number(Number::Large(u64::MAX), "18446744073709551615"),
        text("+"),
    ];
    assert_eq!(values, want.iter().collect::<Vec<_>>());
}

#[test]
fn anchors_aliases_and_merges_work_within_their_bound() {
    let document = documents("a: &x {k: 1, l: 2}\nb: *x\nc: {<<: *x, k: 3}\n").remove(0);
    let root = document.root.unwrap();
    assert_eq!(root.get("b").unwrap().get("l").unwrap().as_scalar(), Some("2"));
    assert_eq!(root.get("c").unwrap().get("k").unwrap().as_scalar(), Some("3"));
    assert_eq!(root.get("c").unwrap().get("l").unwrap().as_scalar(), Some("2"));

    let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned();
    for i in 1..9 {
        let aliases = vec![format!("*a{}", i - 1); 9].join(",");
        bomb.push_str(&format!("a{i}: &a{i} [{aliases}]\n"));
    }
    let error = documents(&bomb).remove(0).root.unwrap_err();
    assert!(error.message.contains("anchors and aliases"), "{error}");
    assert!(documents("a: &a [*a]").remove(0).root.is_err());
}

#[test]
fn depth_and_number_of_documents_are_bounded() {
    let deep = "[".repeat(MAX_DEPTH + 1) + &"]".repeat(MAX_DEPTH + 1);
    assert!(documents(&deep).remove(0).root.is_err());
    let fine = "[".repeat(MAX_DEPTH) + &"]".repeat(MAX_DEPTH);
    assert!(documents(&fine).remove(0).root.is_ok());
    let many = documents(&"---\na\n".repeat(MAX_DOCUMENTS + 5));
    assert_eq!(many.len(), MAX_DOCUMENTS + 1);
    assert!(many[MAX_DOCUMENTS].root.is_err());
}

#[test]
fn values_and_bytes_are_bounded() {
    let many = format!("[{}]", "a,".repeat(MAX_NODES));
    assert!(documents(&many).remove(0).root.unwrap_err().message.contains("values"));
    let long = format!("a: {}", "x".repeat(MAX_DOCUMENT_BYTES));
    assert!(documents(&long).remove(0).root.unwrap_err().message.contains("bytes"));
}

#[test]
fn documents_are_split_where_yaml_splits_them() {
    let text = "%YAML 1.2\n---\na: 1\n...\n# nothing\n---\n--- b\n---\nc: |\n  ---\n  d\n";
    let documents = documents(text);
    let lines: Vec<u32> = documents.iter().map(|d| d.line).collect();
    assert_eq!(lines, [3, 7, 9]);
    assert_eq!(documents[2].root.as_ref().unwrap().get("c").unwrap().as_text(), Some("---\nd\n"));
    assert_eq!(super::documents("\u{feff}a: 1\r\n---\r\nb: 2\r\n").len(), 2);
    assert_eq!(super::documents("{\n\t\"a\": [1,\n\t2]}\n")[0].root.as_ref().unwrap().line_of("a"), 2);
}

fn closed_policy(spec: &str) -> std::sync::Arc<Resource<AuthorizationPolicy>> {
    match read(&policy(spec)).resources.remove(0).closed {
        Some(Object::AuthorizationPolicy(policy)) => policy,
        other => panic!("no closed reading of {spec}: {other:?}"),
    }
}

#[test]
fn a_broken_authorization_policy_takes_its_closed_reading() {
    let selector = "  selector: {matchLabels: {app: a}}\n";
    let bad = "  rules: [{form: []}]\n";
    let everything = [Rule::default()];
    let table: &[(String, bool, Action, &[Rule])] = &[
        (format!("{selector}{bad}"), true, Action::Allow, &[]),
        (format!("{selector}  action: ALLOW\n{bad}"), true, Action::Allow, &[]),
        (format!("{selector}  action: AUDIT\n{bad}"), true, Action::Audit, &[]),
        (format!("{selector}  action: DENY\n{bad}"), true, Action::Deny, &everything),
        (format!("{selector}  action: CUSTOM\n{bad}"), true, Action::Deny, &everything),
        (format!("{selector}  action: DENNY\n  rules: [{{}}]"), true, Action::Deny, &everything),
        (format!("{selector}  action: [ALLOW]\n  rules: [{{}}]"), true, Action::Deny, &everything),
        (format!("  selector: {{matchLabel: {{app: a}}}}\n{bad}"), false, Action::Allow, &[]),
        (format!("  selector: {{matchLabels: {{app: \"*\"}}}}\n{bad}"), false, Action::Allow, &[]),
        (format!("  selector: {{matchLabels: {{app: 7}}}}\n{bad}"), false, Action::Allow, &[]),
        (format!("  selector: app\n{bad}"), false, Action::Allow, &[]),
        ("  7".to_owned(), false, Action::Allow, &[]),
    ];
    for (spec, selects, action, rules) in table {
        let closed = closed_policy(spec);
        assert_eq!(closed.spec.selector.is_some(), *selects, "{spec}");
        assert_eq!(closed.spec.action, *action, "{spec}");
        assert_eq!(closed.spec.rules, *rules, "{spec}");
        assert!(closed.invalid.is_some(), "{spec}");
    }
    let closed = closed_policy("  rules:\n  - from: [{source: {principls: [a]}}]");
    assert_eq!(
        closed.invalid.as_ref().unwrap().reason,
        "AuthorizationPolicy default/x: spec.rules[0].from[0].source.principls: unknown field; did you mean \
         \"principals\"?"
    );
}

#[test]
fn a_broken_peer_authentication_means_strict() {
    let text = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: x}\nspec:\n  \
                selector: {matchLabels: {app: a}}\n  mtls: {mode: PERMISIVE}\n  portLevelMtls: {80: {mode: DISABLE}}";
    let Some(Object::PeerAuthentication(closed)) = read(text).resources.remove(0).closed else { panic!() };
    assert_eq!(closed.spec.mtls.as_ref().unwrap().mode, MutualTlsMode::Strict);
    assert_eq!(closed.spec.selector.as_ref().unwrap().match_labels["app"], "a");
    assert!(closed.spec.port_level_mtls.is_empty());
}

#[test]
fn a_broken_destination_rule_with_tls_keeps_its_host_and_one_without_is_not_applied() {
    let rule = |spec: &str| {
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: x}}\nspec: {spec}"
        );
        read(&text).resources.remove(0)
    };
    let broken = rule("{host: a, trafficPolicy: {tls: {mode: SIMPEL}}}");
    let Some(Object::DestinationRule(closed)) = broken.closed else { panic!() };
    assert_eq!(closed.spec.host, "a");
    assert!(closed.invalid.is_some() && closed.spec.traffic_policy.is_none());
    let broken =
        rule("{host: a, subset: [], trafficPolicy: {portLevelSettings: [{port: {number: 1}, tls: {}}]}}");
    assert!(broken.closed.is_some());
    let broken = rule("{host: a, trafficPolicy: {loadBalancer: {simple: RUNDROBIN}}}");
    assert!(broken.closed.is_none() && broken.object.is_none());
}

#[test]
fn another_crate_may_refuse_or_remark() {
    let text = virtual_service(
        "  hosts: [a]\n  http:\n  - route: [{destination: {host: b}}]\n    mirror: {host: c}",
    );
    let read = |effect| {
        read_file(Path::new("f.yaml"), &text, &|object: &Object| {
            vec![
                Diagnostic::new(effect, format!("no mirror in {}", object.kind()))
                    .field("spec.http[0].mirror"),
            ]
        })
        .resources
        .remove(0)
    };
    let refused = read(Effect::NotApplied);
    assert!(refused.object.is_none());
    assert_eq!(
        refused.diagnostics[0].to_string(),
        "f.yaml:8: VirtualService default/x: spec.http[0].mirror: no mirror in VirtualService; the resource is not \
         applied"
    );
    let remarked = read(Effect::NoEffect);
    assert!(remarked.object.is_some() && remarked.diagnostics.len() == 1);
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "(?s).{0,200}") {
        let _ = read(&text);
    }

    #[test]
    fn no_yaml_like_text_makes_the_reader_panic(
        text in "(apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: \\{name: a\\}\nspec:\n)?([ \\-:\\[\\]{}a-z&*!|>'\"0-9.,\n#%<~\t]|---\n|rules:|from:|source:|\n  ){0,60}"
    ) {
        let _ = read(&text);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_sample_with_a_byte_changed_never_panics(at in 0..SAMPLE.len(), with in "[ -~\n]") {
        let mut text = SAMPLE.to_owned();
        if text.is_char_boundary(at) && text.is_char_boundary(at + 1) {
            text.replace_range(at..=at, &with);
            let _ = read(&text);
        }
    }
}

#[test]
fn no_document_hides_behind_a_lone_carriage_return() {
    let found = documents("a: 1\r---\rb: 2\n---\nc: 3\n");
    assert_eq!(found.len(), 2);
    assert!(found[0].root.is_err(), "{:?}", found[0].root);
    assert!(found[1].root.is_ok());
}

#[test]
fn a_space_that_yaml_does_not_know_is_content_wherever_it_stands() {
    for space in ["\u{85}", "\u{2028}", "\u{a0}"] {
        assert_eq!(documents(space).len(), 1);
        assert_eq!(documents(&format!("---\n{space}")).len(), 1);
    }
    assert_eq!(documents(" \t\r\n").len(), 0);
}
