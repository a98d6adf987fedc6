use mesh_core::diagnostic::ResourceRef;
use mesh_core::facts::{Connection, PeerIdentity, Transport};
use proptest::prelude::*;
use std::time::UNIX_EPOCH;

use super::*;

const KEYS: &str = "start_time method path protocol response_code response_flags response_code_details \
    connection_termination_details upstream_transport_failure_reason bytes_received bytes_sent duration \
    upstream_service_time x_forwarded_for user_agent request_id authority upstream_host upstream_cluster \
    upstream_local_address downstream_local_address downstream_remote_address requested_server_name \
    route_name reason detail resource policies upstream_reason source_principal trace_id";

fn facts() -> Facts {
    let tls = Transport::Tls { sni: Some("outbound_.9080_._.reviews".into()), alpn: None };
    Facts::new(
        Connection::builder()
            .peer_addr("10.0.0.7:40000".parse().unwrap())
            .local_addr("[2001:db8::1]:15006".parse().unwrap())
            .original_dst("10.0.0.9:9080".parse().unwrap())
            .transport(tls)
            .peer(PeerIdentity::new("spiffe://cluster.local/ns/default/sa/web".parse().unwrap()))
            .build(),
    )
}

fn denied() -> Failure {
    Failure::new(FailureCode::Denied).detail("no ALLOW policy matches").policies(vec![
        ResourceRef::new("AuthorizationPolicy", "default", "reviews-get"),
        ResourceRef::new("AuthorizationPolicy", "istio-system", "all"),
    ])
}

fn request(facts: &Facts) -> Entry<'_> {
    Entry {
        method: Some("GET"),
        path: Some(b"/reviews/1?x=\"y\""),
        protocol: Some("HTTP/1.1"),
        response_code: 403,
        bytes_sent: 19,
        duration: Duration::from_micros(2_900),
        user_agent: Some(b"curl/8"),
        request_id: Some(b"abc"),
        authority: Some(b"reviews:9080"),
        ..Entry::new(facts, UNIX_EPOCH + Duration::from_millis(1_714_564_800_042))
    }
}

fn json(entry: &Entry<'_>) -> String {
    let mut out = Vec::new();
    entry.write_json(&mut out);
    String::from_utf8(out).unwrap()
}

fn text(entry: &Entry<'_>) -> String {
    let mut out = Vec::new();
    entry.write_text(&mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn json_has_istios_keys_in_istios_order_and_the_reason() {
    let (facts, failure) = (facts(), denied());
    let line = json(&Entry { failure: Some(&failure), ..request(&facts) });
    let mut at = 0;
    for key in KEYS.split_whitespace() {
        let quoted = format!("\"{key}\":");
        let found = line
            .get(at..)
            .unwrap()
            .find(&quoted)
            .unwrap_or_else(|| panic!("{key} is missing or out of order"));
        at += found;
    }
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(value.as_object().unwrap().len(), KEYS.split_whitespace().count());
    for (key, expected) in [
        ("start_time", serde_json::json!("2024-05-01T12:00:00.042Z")),
        ("path", serde_json::json!("/reviews/1?x=\"y\"")),
        ("response_code", serde_json::json!(403)),
        ("response_flags", serde_json::json!("-")),
        ("response_code_details", serde_json::json!("denied[default/reviews-get,istio-system/all]")),
        ("bytes_received", serde_json::json!(0)),
        ("bytes_sent", serde_json::json!(19)),
        ("duration", serde_json::json!(2)),
        ("upstream_service_time", serde_json::Value::Null),
        ("x_forwarded_for", serde_json::Value::Null),
        ("upstream_cluster", serde_json::json!("inbound|9080||")),
        ("downstream_local_address", serde_json::json!("10.0.0.9:9080")),
        ("downstream_remote_address", serde_json::json!("10.0.0.7:40000")),
        ("requested_server_name", serde_json::json!("outbound_.9080_._.reviews")),
        ("reason", serde_json::json!("denied")),
        ("detail", serde_json::json!("no ALLOW policy matches")),
        ("policies", serde_json::json!(["default/reviews-get", "istio-system/all"])),
        ("source_principal", serde_json::json!("spiffe://cluster.local/ns/default/sa/web")),
    ] {
        assert_eq!(value[key], expected, "{key}");
    }
}

#[test]
fn an_answer_of_the_application_has_no_reason() {
    let facts = facts();
    let entry = Entry { upstream_service_time: Some(Duration::from_millis(7)), ..request(&facts) };
    let value: serde_json::Value = serde_json::from_str(&json(&entry)).unwrap();
    assert_eq!(value["response_code_details"], "via_upstream");
    assert_eq!(value["upstream_service_time"], 7);
    assert_eq!((&value["reason"], &value["policies"]), (&serde_json::Value::Null, &serde_json::json!([])));
}

#[test]
fn text_is_istios_default_format() {
    let (facts, failure) = (facts(), denied());
    assert_eq!(
        text(&Entry { failure: Some(&failure), ..request(&facts) }),
        "[2024-05-01T12:00:00.042Z] \"GET /reviews/1?x=\\x22y\\x22 HTTP/1.1\" 403 - \
         denied[default/reviews-get,istio-system/all] - \"-\" 0 19 2 - \"-\" \"curl/8\" \"abc\" \"reviews:9080\" \
         \"-\" inbound|9080|| - 10.0.0.9:9080 10.0.0.7:40000 outbound_.9080_._.reviews -\n"
    );
}

#[test]
fn failures_on_the_way_name_the_resource_and_the_transports_error() {
    let facts = Facts::default();
    let failure = Failure::new(FailureCode::IdentityMismatch)
        .detail("expected spiffe://a/b")
        .resource(ResourceRef::new("DestinationRule", "default", "reviews"));
    let entry = Entry { failure: Some(&failure), response_flags: "UF", ..request(&facts) };
    let value: serde_json::Value = serde_json::from_str(&json(&entry)).unwrap();
    assert_eq!(value["upstream_transport_failure_reason"], "expected spiffe://a/b");
    assert_eq!(value["resource"], "DestinationRule default/reviews");
    // A connection that is no request has ended for that reason.
    let connection = Entry { method: None, path: None, protocol: None, ..entry };
    let value: serde_json::Value = serde_json::from_str(&json(&connection)).unwrap();
    assert_eq!(value["connection_termination_details"], "identity_mismatch");
    assert!(text(&connection).contains("] \"- - -\" 403 UF identity_mismatch identity_mismatch \""));
}

#[test]
fn every_field_is_bounded() {
    let facts = Facts::default();
    let long = vec![b'x'; 100_000];
    let many = (0..1000).map(|i| ResourceRef::new("AuthorizationPolicy", "default", &format!("policy-{i}")));
    let failure = Failure::new(FailureCode::ConnectFailed)
        .detail(String::from_utf8(long.clone()).unwrap())
        .policies(many.collect());
    let entry = Entry {
        path: Some(&long),
        user_agent: Some(&long),
        x_forwarded_for: Some(&long),
        request_id: Some(&long),
        authority: Some(&long),
        upstream_detail: Some(&long),
        failure: Some(&failure),
        ..request(&facts)
    };
    let line = json(&entry);
    assert!(line.len() < 12_000, "{}", line.len());
    assert!(text(&entry).len() < 12_000);
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(value["path"].as_str().unwrap().len(), MAX_PATH + 3);
    assert_eq!(value["user_agent"].as_str().unwrap().len(), MAX_FIELD + 3);
    assert_eq!(value["detail"].as_str().unwrap().len(), MAX_EXPLANATION + 3);
    assert_eq!(value["policies"].as_array().unwrap().len(), MAX_POLICIES);
}

proptest! {
    #[test]
    fn whatever_peers_send_a_line_is_one_line(
        path in proptest::collection::vec(any::<u8>(), 0..60),
        agent in proptest::collection::vec(any::<u8>(), 0..60),
        authority in ".{0,20}",
        sni in ".{0,20}",
    ) {
        let transport = Transport::Passthrough { sni: Some(sni.as_str().into()) };
        let facts = Facts::new(Connection::builder().transport(transport).build());
        let entry = Entry {
            path: Some(&path),
            user_agent: Some(&agent),
            authority: Some(authority.as_bytes()),
            ..request(&facts)
        };
        let line = json(&entry);
        prop_assert_eq!(line.matches('\n').count(), 1);
        prop_assert!(line.trim_end_matches('\n').chars().all(|c| !c.is_control()));
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        prop_assert_eq!(value["path"].as_str().unwrap(), String::from_utf8_lossy(&path));
        prop_assert_eq!(value["requested_server_name"].as_str().unwrap(), sni.as_str());

        let line = text(&entry);
        prop_assert_eq!(line.matches('\n').count(), 1);
        prop_assert!(line.trim_end_matches('\n').chars().all(|c| !c.is_control()));
        // Quotation marks are only the format's own, and bare fields have no spaces.
        prop_assert_eq!(line.matches('"').count(), 14);
        let after = line.rsplit('"').next().unwrap();
        prop_assert_eq!(after.split(' ').count(), 7);
    }
}
